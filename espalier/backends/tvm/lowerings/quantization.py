"""Quantization in few instructions, and dequantization that products can look through."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import machine, xp
from espalier.backends.tvm.arithmetic import as_tensor, elementwise
from espalier.backends.tvm.fuse import CHEAP
from espalier.backends.tvm.integers import dequantized
from espalier.backends.tvm.numbers import expression_type, immediate, is_number, select
from espalier.backends.tvm.quotients import reciprocals
from espalier.backends.tvm.scalars import ROUNDING
from espalier.backends.tvm.tables import tabulated
from espalier.backends.tvm.tensor import Affine, At, Constant, Dequantized, Expr, Map, Tensor
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
    if np.any(scale == 0) or (zero_point is not None and zero_point.size != scale.size):
        return NotImplemented
    if isinstance(x, Map) and x.again is not None and scale.size == 1:
        return x.again(quantize(node, x.operands[0], scale.reshape(()), zero_point))
    zero = np.zeros(scale.shape, np.float32) if zero_point is None else zero_point.astype(np.float32)
    spread = [1] * x.ndim
    if scale.size > 1:
        spread[op.axis % x.ndim] = -1
    shape = spread if scale.size > 1 else ()
    low, high = (np.float32(bound) - zero for bound in stored.range)
    found = reciprocals(scale, low, high) if machine.current().fused else None
    if found is None:
        numbers = [low, high, scale]
    else:
        numbers = [found.lowest, found.highest, found.first, *([found.second] if np.any(found.second) else [])]

    def shifted(at: At, number: Expr, shift: Expr, lowest: Expr, highest: Expr, *factors: Expr) -> Expr:
        """The quotient as a float whose last bits are its integer."""
        number = at.bind(number)
        quotient = number = number if found is not None else at.bind(number / factors[0])
        bounded = at.bind(tirx.min(tirx.max(quotient, lowest), highest))  # NaN gives the lower bound
        if found is not None:
            quotient = bounded * factors[0]
            if len(factors) > 1:
                rest = at.bind(bounded * factors[1])
                quotient = tirx.call_llvm_pure_intrin("float32", "llvm.fma", bounded, factors[0], rest)
            bounded = at.bind(quotient)
        integer = at.bind(bounded + immediate(ROUNDING, "float32"))
        if not stored.range[0]:
            return integer
        return at.bind(select(is_number(number), integer, immediate(ROUNDING, "float32") - shift))

    def entry(at: At, number: Expr, shift: Expr, *numbers: Expr) -> Expr:
        bits = tirx.reinterpret("int32", shifted(at, number, shift, *numbers))
        return tirx.Cast(expression_type(stored), bits + tirx.Cast("int32", shift))

    def whole(at: At, number: Expr, shift: Expr, *numbers: Expr) -> Expr:
        return shifted(at, number, shift, *numbers) - (immediate(ROUNDING, "float32") - shift)

    operands = [as_tensor(each.reshape(shape)) for each in (zero, *numbers)]
    result = elementwise(stored, entry, x, *operands, cost=4)
    result.whole = elementwise(elements.F32, whole, x, *operands).body
    return tabulated(result)


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
    if not elements.from_dtype(zero.dtype).is_integer or zero.size != scale.size:
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

    def entry(at: At, number: Expr, scale: Expr, *zero: Expr) -> Expr:
        number = tirx.Cast("float32", number)
        return (number - zero[0] if zero else number) * scale

    zero = [spread(held.zero)] if np.any(held.zero) else []
    return elementwise(elements.F32, entry, stored, spread(held.scale), *zero, cost=CHEAP)
