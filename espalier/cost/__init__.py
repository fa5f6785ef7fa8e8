"""What a graph would cost: counts derived from axes and types, and the devices that it would run on."""
