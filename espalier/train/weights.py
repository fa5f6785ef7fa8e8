"""Which constants are weights: what trains, what is scored, what may become zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.ir import Value

NO_LEARNING = "Weights that are stored quantized do not learn: train a model before it is quantized."
"""What to do where nothing learns."""
LARGEST_WEIGHT = 1e4
"""A constant with larger elements is a mask or a sentinel, not something learned."""


def looks_learned(value: Value) -> bool:
    """Whether a constant is a weight: floats of 16 bits or more, several of them, all finite and none huge."""
    held = value.constant
    if held is None or not held.element.is_float or held.element.bits < 16 or held.size < 2:
        return False
    return holds_weights(held.array)


def holds_weights(array: Any) -> bool:
    """Whether numbers may be a weight's: several of them, all finite and none huge."""
    if np.size(array) < 2:
        return False
    return float(np.abs(np.asarray(array, np.float32)).max()) < LARGEST_WEIGHT  # which NaN is not
