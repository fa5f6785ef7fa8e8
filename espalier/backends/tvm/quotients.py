"""Rounded quotients by known scales, without dividing.

x / s is computed as fma(x, r, x · t), where r + t is 1 / s to twice the precision. What counts is the integer that the
quotient, rounded to f32, is rounded to, within bounds: a function of x that never falls, and so does what is computed
here. Two such functions that agree around every step of one agree everywhere, which is tested for each scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NEIGHBOURS = 2
"""Floats on either side of where a step should be among which it is looked for."""
PIECE = 256
"""Scales that are looked at together: each takes thousands of numbers."""
MOST = 1 << 14
"""Scales beyond which it takes too long."""
EXTREME = 100
"""The largest power of two, and its negative the smallest, between which scales must be: nothing over- or underflows
then but what is rounded to 0."""


@dataclass(frozen=True)
class Reciprocals:
    """What to multiply by, for each scale, all in f32."""

    first: Array
    second: Array
    """Zeros where `first` is the reciprocal itself."""
    lowest: Array
    """Numbers below give the lower bound, as this one does."""
    highest: Array


def reciprocals(scale: Array, low: Array, high: Array) -> Reciprocals | None:
    """How to compute rint(x / scale), bounded by integers of at most 9 bits, for all x; None if that must be divided.

    Args:
        scale: Numbers in f32.
        low: The lower bounds, none above 0; of the scale's shape.
        high: The upper bounds, none below 0.
    """
    if not np.all(np.isfinite(scale)) or np.any(scale < 2.0**-EXTREME) or np.any(scale > 2.0**EXTREME):
        return None
    if not 0 < scale.size <= MOST:
        return None
    if scale.size > PIECE:
        flat = [each.reshape(-1) for each in (scale, low, high)]
        parts = [reciprocals(*(each[k : k + PIECE] for each in flat)) for k in range(0, scale.size, PIECE)]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            return None
        names = ("first", "second", "lowest", "highest")
        return Reciprocals(*(np.concatenate([getattr(each, n) for each in whole]).reshape(scale.shape) for n in names))
    exact = scale.astype(np.float64)
    first = (1 / exact).astype(np.float32)
    second = ((1 - first.astype(np.float64) * exact) / exact).astype(np.float32)  # the difference is exact
    bounds = []
    for bound in (low, high):
        end = (bound * exact).astype(np.float32)
        if np.any(np.rint(end / scale) != bound) or np.any(_rounded(end, first, second) != bound):
            return None
        bounds.append(end)
    below = np.arange(int(low.min()), int(high.max()), dtype=np.float64)  # steps lead from these to the next
    middle = ((below + 0.5) * exact[..., None]).astype(np.float32)
    upwards = np.where(middle < 0, np.int32(-1), np.int32(1))  # of the bits
    offsets = np.arange(-NEIGHBOURS, NEIGHBOURS + 1, dtype=np.int32)
    x = (middle.view(np.int32)[..., None] + upwards[..., None] * offsets).view(np.float32)
    wanted = np.rint(x / scale[..., None, None])
    found = _rounded(x, first[..., None, None], second[..., None, None])
    inside = (below >= low[..., None]) & (below < high[..., None])
    around = (wanted[..., 0] == below) & (wanted[..., -1] == below + 1)
    if np.any(inside & ~(around & np.all(wanted == found, axis=-1))):
        return None
    return Reciprocals(first, second, *bounds)


def _rounded(x: Array, first: Array, second: Array) -> Array:
    """rint(fma(x, first, x · second)) in f32."""
    product = x.astype(np.float64) * first.astype(np.float64)  # exact
    rest = (x * second).astype(np.float64)
    total = product + rest
    back = total - product
    error = (product - (total - back)) + (rest - back)
    # rounding to odd first makes the second rounding right
    even = (total.view(np.int64) & 1) == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    found: Array = np.rint(odd.astype(np.float32))
    return found
