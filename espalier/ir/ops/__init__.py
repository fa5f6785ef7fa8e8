"""The operators, one class each, in files by what they do. See `espalier.ir.op` for what a class declares."""
