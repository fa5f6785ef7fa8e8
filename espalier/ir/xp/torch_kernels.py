"""Normalisations and pooling in torch, by its own fused kernels: they are what training spends its time in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from espalier.ir.xp.torch_elements import Array
from espalier.ir.xp.torch_products import windows


def relu(array: Array) -> Array:
    """max(x, 0)."""
    if array.dtype.is_floating_point and array.itemsize > 1:
        return torch.relu(array)
    return torch.maximum(array, torch.zeros_like(array))


def _channels_second(x: Array) -> Array:
    return x if x.ndim > 1 else x[:, None]  # numbers of one channel


def batch_norm(x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    """scale·(x − mean)/√(variance + epsilon) + shift per channel of axis 1."""
    found = F.batch_norm(_channels_second(x), mean, variance, scale, shift, False, 0.0, epsilon)
    return found.reshape(x.shape)


def batch_norm_training(x: Array, scale: Array, shift: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """`batch_norm` with x's own statistics; then these: means and population variances."""
    wide = _channels_second(x)
    if wide.numel() == 0:
        nothing = torch.full((wide.shape[1],), math.nan, dtype=x.dtype, device=x.device)
        return x, nothing, nothing
    # the kernel's own record of the variance is 1/√(variance + epsilon); running statistics from zero keep more digits
    mean, variance = torch.zeros_like(scale), torch.zeros_like(scale)
    found = torch.batch_norm(wide, scale, shift, mean, variance, True, 1.0, epsilon, torch.backends.cudnn.enabled)
    count = wide.numel() // wide.shape[1]
    with torch.no_grad():
        variance = variance * ((count - 1) / count) if count > 1 else torch.zeros_like(variance)
    return found.reshape(x.shape), mean, variance


def layer_norm(
    x: Array, first: int, epsilon: float, scale: Array | None = None, shift: Array | None = None
) -> tuple[Array, Array, Array]:
    """(x − mean)/√(variance + epsilon)·scale + shift over the axes from `first` on; the means; 1/√(variance + epsilon).

    The statistics keep the axes with extent 1.
    """
    inner = tuple(x.shape[first:])
    if math.prod(inner) == 0:
        empty = torch.full((*x.shape[:first], *(1 for _ in inner)), math.nan, dtype=x.dtype, device=x.device)
        return x, empty, empty
    inside = scale if scale is not None and inner and tuple(scale.shape) == inner and scale.dtype == x.dtype else None
    added = shift if shift is not None and inner and tuple(shift.shape) == inner and shift.dtype == x.dtype else None
    if inside is None and scale is not None:
        added = None  # the shift comes after the scale
    found, mean, inverse = torch.native_layer_norm(x if inner else x[..., None], inner or (1,), inside, added, epsilon)
    if not inner:  # of single numbers
        found, mean, inverse = (array.reshape(x.shape) for array in (found, mean, inverse))
    if inside is None and scale is not None:
        found = found * scale
    if added is None and shift is not None:
        found = found + shift
    return found, mean, inverse


_LARGEST = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS = {2: F.avg_pool2d, 3: F.avg_pool3d}


def window_max(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Array:
    """The largest number of each window over the last axes of (n, c, …), which must be padded as needed."""
    if len(kernel) in _LARGEST and x.dtype.is_floating_point and x.itemsize >= 4 and 0 not in (*x.shape, *counts):
        return _LARGEST[len(kernel)](
            _reached(x, kernel, strides, dilations, counts), tuple(kernel), tuple(strides), 0, tuple(dilations)
        )
    return torch.amax(_flat_windows(x, kernel, strides, dilations, counts), -1)


def window_sum(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Array:
    """The sum of each window over the last axes of (n, c, …), which must be padded as needed."""
    plain = all(step == 1 for step in dilations) and x.dtype.is_floating_point and x.itemsize >= 4
    if len(kernel) in _MEANS and plain and 0 not in (*x.shape, *counts):
        reached = _reached(x, kernel, strides, dilations, counts)
        return _MEANS[len(kernel)](reached, tuple(kernel), tuple(strides), divisor_override=1)
    return torch.sum(_flat_windows(x, kernel, strides, dilations, counts), -1)


def _flat_windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Array:
    return windows(x, kernel, strides, dilations, counts).reshape(*x.shape[:2], *counts, math.prod(kernel))


def _reached(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Array:
    """Without the positions after the last window."""
    sizes = zip(kernel, strides, dilations, counts, strict=True)
    spans = [slice(0, (count - 1) * stride + dilation * (size - 1) + 1) for size, stride, dilation, count in sizes]
    return x[(slice(None), slice(None), *spans)]
