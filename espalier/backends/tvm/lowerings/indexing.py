"""Operators that read or write by position."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.backends.tvm import xp
from espalier.backends.tvm.numbers import immediate
from espalier.backends.tvm.selection import view
from espalier.backends.tvm.tensor import At, Expr, Index, Tensor
from espalier.backends.tvm.trace import lowers
from espalier.ir import dims
from espalier.ir.dims import Dimension
from espalier.ir.graph import Node
from espalier.ir.ops.movement import axis_index, listed
from espalier.ir.ops.segments import slice_span


@lowers("slice")
def slice_(node: Node, data: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    """Slices whose first positions or lengths are dimensions; the reference takes numbers."""
    given = (starts, ends, axes, steps)
    if not isinstance(data, Tensor) or any(isinstance(operand, Tensor) for operand in given):
        return NotImplemented
    first, last, along, by = (None if operand is None else listed(xp, operand) for operand in given)
    assert first is not None and last is not None
    spans: dict[int, tuple[Dimension, Dimension, int]] = {}
    for k, (start, end) in enumerate(zip(first, last, strict=True)):
        axis = axis_index(k if along is None else along[k], data.ndim)
        step = 1 if by is None else int(by[k])
        span = slice_span(data.shape[axis], start, end, step)
        if span is None:
            raise dims.NotANumberError(f"whether a bound of the slice {start}:{end} is negative is not known")
        spans[axis] = (*span, step)
    if all(dims.is_static(span) for span in spans.values()):
        return NotImplemented

    def position(at: At, index: Index) -> list[Expr]:
        found = list(index)
        for axis, (begin, _, step) in spans.items():
            entry = index[axis] if step == 1 else index[axis] * immediate(step, "int64")
            found[axis] = entry if begin == 0 else entry + at.dim(begin)
        return found

    shape = [spans[axis][1] if axis in spans else extent for axis, extent in enumerate(data.shape)]
    return view(data, shape, position)


@lowers("col2im")
def col2im(node: Node, x: Any, image_shape: Any, block_shape: Any) -> Any:
    """Each pixel of each block added at its place of the padded image."""
    op: Any = node.op
    image, block = ([int(e) for e in xp.to_numpy(s).reshape(-1)] for s in (image_shape, block_shape))
    rank = len(image)
    strides, dilations, pads = op.strides or (1,) * rank, op.dilations or (1,) * rank, op.pads or (0,) * (2 * rank)
    padded = [extent + pads[k] + pads[k + rank] for k, extent in enumerate(image)]
    counts = [max(0, (padded[k] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1) for k in range(rank)]
    n, c = x.shape[0], x.shape[1] // dims.product(block)
    kind = xp.element(x)
    blocks = xp.reshape(xp.wide(x), (n * c, *block, *counts))
    where: list[Any] = [np.arange(n * c).reshape(-1, *(1,) * (2 * rank))]
    for k in range(rank):
        places = np.arange(block[k])[:, None] * dilations[k] + np.arange(counts[k])[None, :] * strides[k]
        where.append(
            places.reshape(
                1, *(block[k] if a == k else 1 for a in range(rank)), *(counts[k] if a == k else 1 for a in range(rank))
            )
        )
    total = xp.scatter(xp.zeros((n * c, *padded), xp.element(blocks)), tuple(where), blocks, "add")
    inner = tuple(slice(pads[k], pads[k] + extent) for k, extent in enumerate(image))
    return xp.astype(xp.reshape(total, (n, c, *padded))[(slice(None), slice(None), *inner)], kind)
