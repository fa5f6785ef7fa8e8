"""espalier fits neural networks to devices: compression as compilation."""

__version__ = "0.1.0"
