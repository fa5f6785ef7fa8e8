"""Tensors made from numbers, and random ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope
from espalier.frontends.torch.tensors import number, to_array
from espalier.ir import dims
from espalier.ir.elements import F32, F64, I64
from espalier.ir.graph import Value, constant_value


@lowers("aten.full.default")
def full(s: Scope, size: Sequence[Any], fill: Any, dtype: Any = None) -> Value:
    return s.full(s.shape, fill)


@lowers("aten.new_full.default")
def new_full(s: Scope, x: Value, size: Sequence[Any], fill: Any, dtype: Any = None) -> Value:
    return s.full(s.shape, fill)


@lowers(
    "aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default", "aten.empty.memory_format",
    "aten.empty_like.default", "aten.new_empty.default", "aten.empty_strided.default", "aten.empty_permuted.default",
    "aten.new_empty_strided.default", "aten.zero.default", "prims.empty_strided.default",
)  # fmt: skip
def zeros(s: Scope, *_: Any, **__: Any) -> Value:
    """Zeros; also what torch leaves as it finds it."""
    return s.full(s.shape, 0)


@lowers("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default")
def ones(s: Scope, *_: Any, **__: Any) -> Value:
    return s.full(s.shape, 1)


@lowers("aten.fill.Scalar", "aten.fill.Tensor")
def fill(s: Scope, x: Value, value: Any) -> Value:
    return s.expand(s.operand(value), s.shape)


@lowers("aten.eye.default", "aten.eye.m")
def eye(s: Scope, *_: Any, **__: Any) -> Value:
    rows, columns = s.shape
    if isinstance(rows, int) and isinstance(columns, int):
        return constant_value(np.eye(rows, columns).astype(s.element.dtype), s.element)
    return s.cast(s.b.equal(s.unsqueeze(s.arange(rows), 1), s.arange(columns)), s.element)


@lowers("aten.arange.default")
def arange(s: Scope, end: Any, dtype: Any = None) -> Value:
    return arange_step(s, 0, end, 1)


@lowers("aten.arange.start")
def arange_start(s: Scope, start: Any, end: Any, dtype: Any = None) -> Value:
    return arange_step(s, start, end, 1)


@lowers("aten.arange.start_step")
def arange_step(s: Scope, start: Any, end: Any, step: Any = 1, dtype: Any = None) -> Value:
    element = s.element
    known = all(isinstance(entry, (int, float)) for entry in (start, end, step))
    if known:
        return constant_value(to_array(torch.arange(start, end, step, dtype=s.fakes[0].dtype)), element)
    # steps are counted in integers where all are, else in floats as torch does
    whole = not any(
        isinstance(entry, float) or isinstance(entry, Value) and entry.element.is_float for entry in (start, end, step)
    )
    counted = I64 if whole else F64
    found = s.b.range(*(s.number(entry, counted) for entry in (start, end, step)))
    extent = s.symbols.dimension(s.fakes[0].shape[0])
    return s.cast(found if extent is None else s.typed(found, (extent,)), element)


@lowers("prims.iota.default")
def iota(s: Scope, length: Any, start: Any = 0, step: Any = 1, dtype: Any = None, requires_grad: bool = False) -> Value:
    length, start, step = s.dim(length), s.dim(start), s.dim(step)
    if all(isinstance(entry, int) for entry in (length, start, step)):
        return constant_value((np.arange(length) * step + start).astype(s.element.dtype), s.element)
    counted = s.b.mul(s.arange(length), s.number(step, I64))
    return s.cast(s.b.add(counted, s.number(start, I64)), s.element)


@lowers("aten.linspace.default")
def linspace(s: Scope, start: Any, end: Any, steps: Any, dtype: Any = None) -> Value:
    (count,) = s.shape
    element = s.element
    if isinstance(count, int) and all(isinstance(entry, (int, float)) for entry in (start, end)):
        return constant_value(to_array(torch.linspace(start, end, count, dtype=s.fakes[0].dtype)), element)
    wide = element if element in (F32, F64) else F32
    first, last = s.number(start, wide), s.number(end, wide)
    position = s.cast(s.arange(count), wide)
    gaps = s.b.max(s.b.sub(s.number(count, wide), number(1, wide)), number(1, wide))
    return s.cast(s.b.add(first, s.b.mul(position, s.b.div(s.b.sub(last, first), gaps))), element)


@lowers("aten.rand.default", "aten.rand_like.default", "aten.rand.generator")
def rand(s: Scope, *_: Any, **__: Any) -> Value:
    return _random(s, "random_uniform")


@lowers("aten.randn.default", "aten.randn_like.default", "aten.randn.generator")
def randn(s: Scope, *_: Any, **__: Any) -> Value:
    return _random(s, "random_normal")


def _random(s: Scope, name: str) -> Value:
    shape, element = s.shape, s.element
    if dims.is_static(shape):
        return getattr(s.b, name)(shape=shape, dtype=element)
    return getattr(s.b, f"{name}_like")(s.full(shape, 0, element), dtype=element)
