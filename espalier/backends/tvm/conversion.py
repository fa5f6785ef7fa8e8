"""ONNX's casts, and reading bits as another element."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from tvm import tirx

from espalier.backends.tvm import scalars
from espalier.backends.tvm.arithmetic import astype, clip, elementwise, primitive
from espalier.backends.tvm.numbers import decode, immediate, is_inf, select
from espalier.backends.tvm.tensor import At, Expr, Index, Map, Tensor
from espalier.ir import elements
from espalier.ir.elements import Element


@primitive
def cast(array: Any, kind: Element, saturate: bool, round_mode: str) -> Any:
    """Convert as ONNX's Cast does."""
    kind = kind.storage
    if kind == elements.F8E8M0:
        return _exponents(array, saturate, round_mode)
    if saturate and kind.is_float and kind.bits == 8:
        largest = float(np.asarray(ml_dtypes.finfo(kind.dtype).max, np.float64))
        if array.element.kind == "bool" or array.element.is_integer:
            array = astype(array, elements.F64)
        array = (
            clip(array, np.asarray(-largest, array.dtype), np.asarray(largest, array.dtype))
            if _holds(array.element, largest)
            else array
        )
    return astype(array, kind)


def _exponents(array: Any, saturate: bool, round_mode: str) -> Tensor:
    """Powers of two from numbers: the exponent of f32, rounded by what the mantissa holds."""
    source = astype(array, elements.F32)

    def body(at: At, x: Expr) -> Expr:
        bits = at.bind(tirx.reinterpret("uint32", x))
        exponent = at.bind(tirx.shift_right(bits, immediate(23, "uint32")) & immediate(0xFF, "uint32"))
        mantissa = bits & immediate(0x7FFFFF, "uint32")
        least = {"up": 1, "down": 1 << 23, "nearest": 0x400000}[round_mode]
        limit = immediate(0xFE if saturate else 0xFF, "uint32")
        up = tirx.And(mantissa >= immediate(least, "uint32"), exponent < limit)
        found = select(up, exponent + immediate(1, "uint32"), exponent)
        if saturate:
            found = select(is_inf(x), immediate(0xFE, "uint32"), found)
        return decode(elements.F8E8M0, found, at.bind)

    return elementwise(elements.F8E8M0, lambda at, x: body(at, at.bind(x)), source, cost=4)


def _holds(element: Element, number: float) -> bool:
    return bool(np.asarray(number).astype(element.dtype).astype(np.float64) == number)


@primitive
def bitcast(array: Any, kind: Element) -> Any:
    """The same bits read as another element of the same width."""
    from espalier.backends.tvm.numbers import buffer_type, load, store

    source, target = array.element, kind.storage

    def body(at: At, index: Index) -> Expr:
        raw = store(source, at(0, index), at.bind)
        if buffer_type(source) == "bool":
            raw = tirx.Cast("uint8", raw)
        there = buffer_type(target)
        if there == "bool":
            return tirx.NE(raw, scalars.like(0, raw))
        return load(target, raw if scalars.dtype_of(raw) == there else tirx.reinterpret(there, raw), at.bind)

    return Map(array.shape, target, [array], ["same"], body, cost=2)
