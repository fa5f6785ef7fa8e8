"""Which constants are weights: what trains, what is scored, what may become zero."""

from __future__ import annotations

import numpy as np

from espalier.ir import Value

LARGEST_WEIGHT = 1e4
"""A constant with larger elements is a mask or a sentinel, not something learned."""


def looks_learned(value: Value) -> bool:
    """Whether a constant is a weight: floats of 16 bits or more, several of them, all finite and none huge."""
    held = value.constant
    if held is None or not held.element.is_float or held.element.bits < 16 or held.size < 2:
        return False
    largest = float(np.abs(np.asarray(held.array, np.float32)).max())
    return largest < LARGEST_WEIGHT  # which NaN is not
