"""When two outputs agree."""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCE = {8: 1e-4, 4: 1e-4, 2: 1e-2, 1: 0.25}
"""Largest difference that still counts as agreement, relative to the largest element, by bytes of a float."""


def disagreement(a: Any, b: Any) -> tuple[float, float]:
    """Largest |a−b| relative to the largest finite |a|, and the tolerance for a's element (0 for integers).

    Infinite for different shapes, and where one is infinite or NaN and the other is not the same.
    """
    a, b = np.asarray(a), np.asarray(b)
    real = a.dtype.kind in "fcV" or a.dtype.name.startswith(("bfloat", "float"))
    limit = TOLERANCE.get(a.dtype.itemsize // (2 if a.dtype.kind == "c" else 1), 1e-4) if real else 0.0
    if a.shape != b.shape:
        return float("inf"), limit
    if a.size == 0 or a.dtype == object:
        return (0.0 if a.tolist() == b.tolist() else float("inf")), limit
    kind = np.complex128 if a.dtype.kind == "c" else np.float64
    wide_a, wide_b = a.astype(kind), b.astype(kind)
    same = (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
    finite = np.isfinite(wide_a)
    if np.any(~same & ~finite):
        return float("inf"), limit
    scale = float(np.max(np.abs(wide_a[finite]), initial=0.0))
    with np.errstate(invalid="ignore"):
        error = float(np.max(np.abs(np.where(same, 0, wide_a - wide_b))))
    return (error / scale if scale else error), limit
