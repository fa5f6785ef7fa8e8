"""Primitives for which torch has kernels of its own, as formulas of the others: for numpy and for backends to trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def relu(xp: Any, array: Any) -> Any:
    """max(x, 0)."""
    return xp.maximum(array, xp.zeros_like(array))


def _per_channel(xp: Any, values: Any, rank: int) -> Any:
    """Values of axis 1, shaped to broadcast against an array of this rank."""
    return xp.reshape(values, (-1,) + (1,) * (rank - 2)) if rank > 1 else xp.reshape(values, ())


def batch_norm(xp: Any, x: Any, scale: Any, shift: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    """scale·(x − mean)/√(variance + epsilon) + shift per channel of axis 1."""
    factor = scale / xp.sqrt(variance + epsilon)
    found = (x - _per_channel(xp, mean, x.ndim)) * _per_channel(xp, factor, x.ndim)
    return found + _per_channel(xp, shift, x.ndim)


def batch_norm_training(xp: Any, x: Any, scale: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """`batch_norm` with x's own statistics; then these: means and population variances."""
    axes = (0, *range(2, x.ndim))
    mean = xp.mean(x, axis=axes, keepdims=True)
    variance = xp.reshape(xp.mean((x - mean) * (x - mean), axis=axes, keepdims=True), scale.shape)
    mean = xp.reshape(mean, scale.shape)
    return batch_norm(xp, x, scale, shift, mean, variance, epsilon), mean, variance


def layer_norm(
    xp: Any, x: Any, first: int, epsilon: float, scale: Any = None, shift: Any = None
) -> tuple[Any, Any, Any]:
    """(x − mean)/√(variance + epsilon)·scale + shift over the axes from `first` on; the means; 1/√(variance + epsilon).

    The statistics keep the axes with extent 1.
    """
    axes = tuple(range(first, x.ndim))
    mean = xp.mean(x, axis=axes, keepdims=True)
    inverse = 1 / xp.sqrt(xp.mean((x - mean) * (x - mean), axis=axes, keepdims=True) + epsilon)
    found = (x - mean) * inverse
    found = found if scale is None else found * scale
    return found if shift is None else found + shift, mean, inverse


def log_softmax(xp: Any, array: Any, axis: int) -> Any:
    """The logarithm of softmax."""
    array = array - xp.max(array, axis=axis, keepdims=True)  # before the logarithm is small beside it
    return array - xp.logsumexp(array, axis, keepdims=True)


def _flat_windows(
    xp: Any, x: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[Any]
) -> Any:
    found = xp.windows(x, kernel, strides, dilations, counts)
    return xp.reshape(found, (*x.shape[:2], *counts, math.prod(kernel)))


def window_max(xp: Any, x: Any, *sizes: Sequence[Any]) -> Any:
    """The largest number of each window over the last axes of (n, c, …), which must be padded as needed.

    `sizes` are the windows' extents, strides, dilations and counts, as `windows` takes them.
    """
    return xp.max(_flat_windows(xp, x, *sizes), axis=-1)


def window_sum(xp: Any, x: Any, *sizes: Sequence[Any]) -> Any:
    """The sum of each window; see `window_max`."""
    return xp.sum(_flat_windows(xp, x, *sizes), axis=-1)


FORMULAS: Mapping[str, Callable[..., Any]] = {
    formula.__name__: formula
    for formula in (batch_norm, batch_norm_training, layer_norm, log_softmax, relu, window_max, window_sum)
}
