"""If, Loop and Scan: bodies become regions that see outer values as operands only."""
