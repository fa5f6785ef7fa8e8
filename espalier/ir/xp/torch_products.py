"""Sums of products in torch, with what they need: padding, windows, scatters, transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from espalier.ir.xp.torch_elements import Array, asarray, wide


def pad(array: Array, pads: Sequence[tuple[int, int]], mode: str = "constant", value: Any = 0) -> Array:
    """Add (or, with negative amounts, cut) positions at both ends of each axis; modes as in numpy's form."""
    if mode == "constant" and isinstance(value, int | float) and array.dtype.is_floating_point and array.itemsize > 1:
        return F.pad(array, [amount for pair in reversed(pads) for amount in pair], value=value)
    for axis, (before, after) in enumerate(pads):
        if (before, after) == (0, 0):
            continue
        extent = array.shape[axis]
        if mode == "constant":
            array = _pad_axis(array, axis, before, after, value)
            continue
        first = max(0, -before)  # what is cut is not repeated elsewhere
        kept = extent - first - max(0, -after)
        places = torch.arange(-max(0, before), kept + max(0, after), device=array.device)
        if mode == "edge":
            places = torch.clamp(places, 0, kept - 1)
        elif mode == "wrap":
            places = places % kept
        elif mode == "reflect":
            period = max(1, 2 * (kept - 1))
            places = places % period
            places = torch.where(places < kept, places, period - places)
        else:
            raise ValueError(f"there is no padding mode {mode!r}")
        array = torch.index_select(array, axis, places + first)
    return array


def _pad_axis(array: Array, axis: int, before: int, after: int, value: Any) -> Array:
    kept = slice(max(0, -before), array.shape[axis] - max(0, -after))
    parts = [array[(slice(None),) * axis + (kept,)]]
    fill = torch.as_tensor(value, dtype=array.dtype, device=array.device)
    for place, amount in ((0, before), (1, after)):
        if amount > 0:
            shape = (*array.shape[:axis], amount, *array.shape[axis + 1 :])
            parts.insert(place * len(parts), fill.expand(shape))
    return torch.cat(parts, axis)


def _native(array: Array) -> bool:
    """Whether torch multiplies such numbers accurately by itself (it accumulates 16-bit floats in f32 on GPUs)."""
    return (
        array.dtype.is_complex
        or array.dtype.is_floating_point
        and (array.itemsize >= 4 or (array.device.type != "cpu" and array.itemsize == 2))
    )


def _products(function: Callable[[Array, Array], Array], a: Array, b: Array, terms: int) -> Array:
    """A function that sums products, on numbers of any kind; integers exactly, in f64 where that holds all sums."""
    result = torch.result_type(a, b)
    if _native(a) and _native(b):
        return function(a.to(result), b.to(result)).to(result)
    a, b = wide(a), wide(b)
    if a.dtype == torch.int64 and b.dtype == torch.int64:
        largest = [float(x.abs().max()) if x.numel() else 0.0 for x in (a, b)]
        if largest[0] * largest[1] * terms < 2**53:
            return function(a.double(), b.double()).round().to(result)
    return function(a, b).to(result)


def matmul(a: Array, b: Array) -> Array:
    """Matrix product over the last two axes, broadcasting the others; narrow floats accumulate in f32."""
    return _products(torch.matmul, a, b, a.shape[-1])


def einsum(text: str, *arrays: Array) -> Array:
    """Einstein summation, as numpy writes it."""
    if all(_native(array) for array in arrays):
        found: Array = torch.einsum(text, *arrays)
    else:
        found = torch.einsum(text, *map(wide, arrays))
    return found.to(arrays[0].dtype)


def windows(
    array: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Array:
    """All windows over the last axes: shape (…, *counts, *kernel). The array must be padded as needed."""
    first = array.ndim - len(kernel)
    for k, (size, stride, dilation, count) in enumerate(zip(kernel, strides, dilations, counts, strict=True)):
        lead = (slice(None),) * (first + k)
        array = array.unfold(first + k, dilation * (size - 1) + 1, stride)[(*lead, slice(0, count))][..., ::dilation]
    return array


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def conv(
    x: Array, w: Array, strides: Sequence[int], pads: Sequence[tuple[int, int]], dilations: Sequence[int], groups: int
) -> Array:
    """Cross-correlation: x (n, g·i, …), w (g·o, i, K…) → (n, g·o, P…), without bias, accumulated by `wide`."""
    spatial = w.ndim - 2
    symmetric = all(before == after >= 0 for before, after in pads) and spatial in _CONVOLUTIONS
    margins = tuple(before for before, _ in pads) if symmetric else (0,) * spatial
    if not symmetric:
        x = pad(x, [(0, 0), (0, 0), *pads])
    sizes = zip(x.shape[2:], w.shape[2:], strides, dilations, margins, strict=True)
    counts = [
        max(0, (extent + 2 * margin - dilation * (size - 1) - 1) // stride + 1)
        for extent, size, stride, dilation, margin in sizes
    ]
    if 0 in counts or 0 in x.shape or 0 in w.shape:
        return torch.zeros((x.shape[0], w.shape[0], *counts), dtype=torch.result_type(x, w), device=x.device)

    def convolve(a: Array, b: Array) -> Array:
        if spatial in _CONVOLUTIONS and a.dtype.is_floating_point:
            return _CONVOLUTIONS[spatial](a, b, None, tuple(strides), margins, tuple(dilations), groups)
        a = pad(a, [(0, 0), (0, 0), *((margin, margin) for margin in margins)])
        seen = windows(a, b.shape[2:], strides, dilations, counts)
        seen = seen.reshape(a.shape[0], groups, b.shape[1], *seen.shape[2:])
        return _einsum_windows(seen, b.reshape(groups, -1, *b.shape[1:]), spatial).reshape(a.shape[0], -1, *counts)

    return _products(convolve, x, w, w[0].numel())


def _einsum_windows(seen: Array, weights: Array, spatial: int) -> Array:
    """Windows (n, g, i, P…, K…) times weights (g, o, i, K…) → (n, g, o, P…)."""
    n, groups, channels = seen.shape[:3]
    places, kernel = seen.shape[3 : 3 + spatial], seen.shape[3 + spatial :]
    seen = seen.reshape(n, groups, channels, places.numel(), kernel.numel()).transpose(2, 3)
    rows = seen.reshape(n, groups, places.numel(), -1)
    found = torch.matmul(weights.reshape(1, groups, weights.shape[1], -1), rows.transpose(2, 3))
    return found.reshape(n, groups, weights.shape[1], *places)


def scatter(array: Array, index: tuple[Any, ...], updates: Array, reduction: str = "none") -> Array:
    """A copy with `updates` written (or added, multiplied, min, max) at the positions of an index tuple."""
    if index == (Ellipsis,):
        index, array, updates = (torch.zeros(1, dtype=torch.long, device=array.device),), array[None], updates[None]
        return scatter(array, index, updates, reduction)[0]
    given = [asarray(part).to(array.device).long() for part in index]
    common = np.broadcast_shapes(*(tuple(part.shape) for part in given))
    places = [part.expand(common) for part in given]
    lead, rest = array.shape[: len(index)], array.shape[len(index) :]
    rows = torch.zeros(common, dtype=torch.long, device=array.device)
    for extent, part in zip(lead, places, strict=True):
        if bool(((part < -extent) | (part >= extent)).any()):
            raise IndexError(f"an index lies outside of an axis of {extent}")
        rows = rows * extent + torch.where(part < 0, part + extent, part)
    flat = array.reshape(lead.numel(), rest.numel())
    new = updates.expand(*common, *rest).reshape(rows.numel(), rest.numel())
    if reduction == "none":
        return flat.index_put((rows.reshape(-1),), new).reshape(array.shape)
    across = rows.reshape(-1, 1).expand(new.shape)
    kind = {"add": "sum", "mul": "prod", "min": "amin", "max": "amax"}[reduction]
    return flat.scatter_reduce(0, across, new, kind, include_self=True).reshape(array.shape)


def fft(array: Array, axis: int, length: int | None = None, inverse: bool = False) -> Array:
    """The (inverse) discrete Fourier transform of complex numbers along an axis, in their own precision."""
    transform = torch.fft.ifft if inverse else torch.fft.fft
    found: Array = transform(wide(array), n=length, dim=axis)
    return found


def det(array: Array) -> Array:
    """Determinants of the matrices in the last two axes."""
    found: Array = torch.linalg.det(wide(array))
    return found.to(array.dtype)
