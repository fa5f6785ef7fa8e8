"""Quantization in few instructions, and dequantization that products can look through."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import xp
from espalier.backends.tvm.arithmetic import as_tensor, astype, dequantized, elementwise
from espalier.backends.tvm.numbers import immediate, is_nan, select
from espalier.backends.tvm.tensor import Affine, At, Constant, Dequantized, Expr, Tensor
from espalier.backends.tvm.trace import lowers
from espalier.ir import elements
from espalier.ir.graph import Node
from espalier.ir.xp import numpy as numpy_xp


@lowers("quantize")
def quantize(node: Node, x: Any, scale: Any, zero_point: Any = None) -> Any:
    """Round x / scale to even, move it by the zero point, and keep it in 8 bits; NaN becomes 0."""
    op: Any = node.op
    known = isinstance(scale, np.ndarray) and (zero_point is None or isinstance(zero_point, np.ndarray))
    stored = node.results[0].element.storage
    fits = isinstance(x, Tensor) and x.element == elements.F32 and stored in (elements.U8, elements.I8)
    if not known or not fits or op.block_size or scale.dtype != np.float32 or op.precision not in (None, elements.F32):
        return NotImplemented
    zero = np.zeros(scale.shape, np.float32) if zero_point is None else zero_point.astype(np.float32)
    spread = [1] * x.ndim
    if scale.size > 1:
        spread[op.axis % x.ndim] = -1
    shape = spread if scale.size > 1 else ()
    low, high = stored.range

    def entry(at: At, number: Expr, step: Expr, shift: Expr) -> Expr:
        divided = at.bind(number / step)
        whole = select(is_nan(divided), immediate(0, "float32") - shift, tirx.nearbyint(divided)) + shift
        bounded = tirx.max(tirx.min(whole, immediate(high, "float32")), immediate(low, "float32"))
        return tirx.Cast("int8" if low else "uint8", tirx.Cast("int32", bounded))

    return elementwise(stored, entry, x, as_tensor(scale.reshape(shape)), as_tensor(zero.reshape(shape)), cost=4)


@lowers("dequantize")
def dequantize(node: Node, x: Any, scale: Any, zero_point: Any = None) -> Any:
    """(x − zero point) · scale in f32, and what it follows from; constants are dequantized once and for all.

    Products that take the integers as they are never read what has been dequantized, and so it is not kept.
    """
    op: Any = node.op
    known = isinstance(scale, np.ndarray) and (zero_point is None or isinstance(zero_point, np.ndarray))
    if not known or scale.dtype != np.float32 or op.output_dtype not in (None, elements.F32):
        return NotImplemented
    zero = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point
    if not elements.from_dtype(zero.dtype).is_integer:
        return NotImplemented
    axis, block = op.granularity(x.ndim, scale.shape)
    count = () if axis is None else (-1,)
    steps, shifts = (each if block else each.reshape(count) for each in (scale, zero.astype(np.int64)))
    if isinstance(x, np.ndarray):
        if not elements.from_dtype(x.dtype).is_integer:
            return NotImplemented
        affine = Affine(as_tensor(x), steps, shifts, axis, block)
        return Dequantized(affine, elements.F32, lambda: np.asarray(op.reference(numpy_xp, x, scale, zero_point)))
    if not isinstance(x, Tensor) or not x.element.is_integer or x.element.bits > 16 or block:
        return NotImplemented
    return dequantized(Affine(x, steps, shifts, axis))


@lowers("gather")
def gather(node: Node, data: Any, indices: Any) -> Any:
    """What is read of a dequantized table is dequantized then, so that the table stays in integers."""
    if not isinstance(data, Constant) or data.affine is None or data.affine.stored.element.bits > 16:
        return NotImplemented
    return node.op.reference(xp, _entry_by_entry(data.affine), indices)


def _entry_by_entry(held: Affine) -> Any:
    """A dequantized tensor, computed where it is read."""
    stored = held.stored

    def spread(numbers: Any) -> Any:
        numbers = numbers.astype(np.float32)
        if not held.block:
            return numbers if held.axis is None else numbers.reshape(-1, *(1,) * (stored.ndim - 1 - held.axis))
        whole = xp.repeat(as_tensor(numbers), held.block, axis=held.axis)
        return whole[tuple(slice(0, extent) for extent in stored.shape)]

    return (astype(stored, elements.F32) - spread(held.zero)) * spread(held.scale)
