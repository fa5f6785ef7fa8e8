"""What torch has fused kernels for, in numpy by its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def relu(array: Array) -> Array:
    """max(x, 0)."""
    found = np.asarray(np.maximum(array, np.zeros_like(array)))
    return found.astype(array.dtype)  # numpy answers in int8 for 4-bit integers


def _per_channel(values: Array, rank: int) -> Array:
    """Values of axis 1, shaped to broadcast against an array of this rank."""
    return values.reshape((-1,) + (1,) * (rank - 2)) if rank > 1 else values.reshape(())


def batch_norm(x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    """scale·(x − mean)/√(variance + epsilon) + shift per channel of axis 1."""
    factor = scale / np.sqrt(variance + epsilon)
    found = (x - _per_channel(mean, x.ndim)) * _per_channel(factor, x.ndim)
    return np.asarray(found + _per_channel(shift, x.ndim))


def batch_norm_training(x: Array, scale: Array, shift: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """`batch_norm` with x's own statistics; then these: means and population variances."""
    axes = (0, *range(2, x.ndim))
    mean = np.mean(x, axis=axes, keepdims=True)
    variance = np.mean((x - mean) * (x - mean), axis=axes).reshape(-1)
    mean = mean.reshape(-1)
    return batch_norm(x, scale, shift, mean, variance, epsilon), mean, variance


def layer_norm(
    x: Array, first: int, epsilon: float, scale: Array | None = None, shift: Array | None = None
) -> tuple[Array, Array, Array]:
    """(x − mean)/√(variance + epsilon)·scale + shift over the axes from `first` on; the means; 1/√(variance + epsilon).

    The statistics keep the axes with extent 1.
    """
    axes = tuple(range(first, x.ndim))
    mean = np.mean(x, axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(np.mean((x - mean) * (x - mean), axis=axes, keepdims=True) + epsilon)
    found = (x - mean) * inverse
    found = found if scale is None else found * scale
    return np.asarray(found if shift is None else found + shift), mean, np.asarray(inverse)
