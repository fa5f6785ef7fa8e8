"""Transposed convolutions as one convolution for all places between the strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import xp
from espalier.backends.tvm.arithmetic import as_tensor
from espalier.backends.tvm.frames import integer
from espalier.backends.tvm.selection import view, zero
from espalier.backends.tvm.tensor import Affine, At, Constant, Dequantized, Expr, Index, Tensor
from espalier.backends.tvm.trace import lowers
from espalier.ir.graph import Node

Array = np.ndarray[Any, Any]


@lowers("conv_transpose")
def conv_transpose(node: Node, x: Any, w: Any, b: Any = None) -> Any:
    """A convolution that computes, for each position of x, the s × s × … results that lie there, as channels.

    The definition (a convolution of x with zeros between its positions) multiplies as many zeros. Result p, counted
    from the first that x reaches, sums x[i] · w[k] over p = s·i + k; with p = s·q + r and k = s·t + r, that is a
    convolution over t for every r, of the same x: kernels of ⌈K/s⌉ positions, zeros where s·t + r is beyond K. There an
    entry of x that is infinite or no number spoils neighbours that it does not reach by the definition.
    """
    op: Any = node.op
    groups, spatial = op.group, x.ndim - 2
    strides, dilations = op.strides or (1,) * spatial, op.dilations or (1,) * spatial
    constant = isinstance(w, np.ndarray | Constant)
    if not isinstance(x, Tensor) or not constant or set(strides) == {1} or set(dilations) != {1}:
        return NotImplemented
    kernel = w.shape[2:]
    counts, cuts = zip(*(op.extents(k, x.shape[2 + k], kernel[k]) for k in range(spatial)), strict=True)
    taps = [-(-size // stride) for size, stride in zip(kernel, strides, strict=True)]
    pads, extents = [], []
    for extent, count, cut, tap, stride in zip(x.shape[2:], counts, cuts, taps, strides, strict=True):
        extents.append((count + cut - 1) // stride + 1)
        pads.append((tap - 1, extents[-1] - extent))
    known = all(isinstance(each, int) and each >= 0 for each in (*(after for _, after in pads), *cuts))
    if not known or 0 in x.shape or any(isinstance(count, int) and count < 1 for count in counts):
        return NotImplemented
    weights = _by_places(w, groups, strides)
    if weights is None:
        return NotImplemented
    y = xp.conv(x, weights, (1,) * spatial, pads, dilations, groups)
    outputs, places = w.shape[1], math.prod(strides)
    if b is not None:
        each = xp.broadcast_to(xp.reshape(b, (groups, 1, outputs)), (groups, places, outputs))
        y = y + xp.reshape(each, (1, -1) + (1,) * spatial)

    def position(at: At, index: Index) -> list[Expr]:
        group = place = zero()
        channel, positions = index[1], []
        if groups > 1:
            group = tirx.floordiv(channel, integer(outputs))
            channel = channel - group * integer(outputs)
        for entry, cut, stride in zip(index[2:], cuts, strides, strict=True):
            whole = entry + integer(cut) if cut else entry
            positions.append(tirx.floordiv(whole, integer(stride)) if stride > 1 else whole)
            if stride > 1:
                place = place * integer(stride) + tirx.floormod(whole, integer(stride))
        return [index[0], (group * integer(places) + place) * integer(outputs) + channel, *positions]

    found = view(y, (x.shape[0], groups * outputs, *counts), position)
    if not any(cuts) and all(count == e * s for count, e, s in zip(counts, extents, strides, strict=True)):
        found.again = lambda other: view(other, found.shape, position)
    return found


def _by_places(w: Any, groups: int, strides: Sequence[int]) -> Any:
    """Weights (g·i, o, K…) as those of a convolution (g·s…·o, i, T…); None if they are dequantized by other axes."""
    held = w.affine if isinstance(w, Constant) else None
    if not isinstance(held, Affine):
        return _arranged(w.array if isinstance(w, Constant) else w, groups, strides, 0)
    if held.block or held.axis not in (None, 1) or not isinstance(held.stored, Constant):
        return _arranged(w.array, groups, strides, 0)
    zeros = set(held.zero.reshape(-1).tolist())
    if len(zeros) != 1:
        return _arranged(w.array, groups, strides, 0)
    stored = as_tensor(_arranged(held.stored.array, groups, strides, zeros.pop()))
    repeats = (groups, math.prod(strides), w.shape[1])
    scale, zero_point = (
        each if held.axis is None else np.broadcast_to(each.reshape(1, 1, -1), repeats).reshape(-1)
        for each in (held.scale, held.zero)
    )
    affine = Affine(stored, scale, zero_point, None if held.axis is None else 0)
    array = w.array
    return Dequantized(affine, w.element, lambda: _arranged(array, groups, strides, 0))


def _arranged(w: Array, groups: int, strides: Sequence[int], nothing: Any) -> Array:
    """(g·i, o, K…) as (g·s…·o, i, T…), kernels flipped; `nothing` where there is no weight."""
    inputs, outputs, *kernel = w.shape
    taps = [-(-size // stride) for size, stride in zip(kernel, strides, strict=True)]
    beyond = [(0, tap * stride - size) for tap, stride, size in zip(taps, strides, kernel, strict=True)]
    w = np.pad(w, [(0, 0), (0, 0), *beyond], constant_values=nothing)
    split = [extent for pair in zip(taps, strides, strict=True) for extent in pair]
    w = w.reshape(groups, inputs // groups, outputs, *split)
    spatial = len(kernel)
    tap_axes, place_axes = [3 + 2 * k for k in range(spatial)], [4 + 2 * k for k in range(spatial)]
    w = np.flip(w, tuple(tap_axes)).transpose(0, *place_axes, 2, 1, *tap_axes)
    return np.ascontiguousarray(w.reshape(-1, inputs // groups, *taps))
