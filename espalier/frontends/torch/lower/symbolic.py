"""Sizes, numbers read from tensors, and Python's arithmetic on them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope
from espalier.ir import dims
from espalier.ir.elements import BOOL, F64, I64, Element
from espalier.ir.graph import Value

Number = Any
"""A Python number, a dimension, or a value of one element."""


def _as_value(s: Scope, x: Number, element: Element) -> Value:
    return s.number(x, element)


def _kind(x: Number) -> Element:
    if isinstance(x, Value):
        return x.element
    return BOOL if isinstance(x, bool) else F64 if isinstance(x, float) else I64


def _common(*operands: Number) -> Element:
    return F64 if any(_kind(x) == F64 for x in operands) else I64


def _binary(name: str) -> Callable[..., Value]:
    def lower(s: Scope, x: Number, y: Number) -> Value:
        element = _common(x, y)
        return getattr(s.b, name)(_as_value(s, x, element), _as_value(s, y, element))

    return lower


def _function(name: str) -> Callable[..., Value]:
    return lambda s, x: getattr(s.b, name)(_as_value(s, x, F64))


def _divide(s: Scope, x: Number, y: Number) -> Value:
    return s.b.div(_as_value(s, x, F64), _as_value(s, y, F64))


def _floor_divide(s: Scope, x: Number, y: Number) -> Value:
    if _common(x, y) == F64:
        return s.b.floor(_divide(s, x, y))
    left, right = _as_value(s, x, I64), _as_value(s, y, I64)
    return s.b.div(s.b.sub(left, s.b.mod(left, right)), right)


def _modulo(s: Scope, x: Number, y: Number) -> Value:
    return s.b.mod(_as_value(s, x, I64), _as_value(s, y, I64))


def _integer(rounding: str | None) -> Callable[..., Value]:
    def lower(s: Scope, x: Number) -> Value:
        if _kind(x) != F64:
            return _as_value(s, x, I64)
        value = _as_value(s, x, F64)
        return s.cast(value if rounding is None else getattr(s.b, rounding)(value), I64)

    return lower


def _round(s: Scope, x: Number, digits: int | None = None) -> Value:
    if digits:
        s.refuse("rounding to decimals")
    return _integer("round")(s, x)


def _choose(s: Scope, condition: Number, x: Number, y: Number) -> Value:
    element = _common(x, y)
    return s.b.where(_as_value(s, condition, BOOL), _as_value(s, x, element), _as_value(s, y, element))


def _negated(function: Callable[..., Value]) -> Callable[..., Value]:
    return lambda s, *operands: s.b.logical_not(function(s, *operands))


def _logic(name: str) -> Callable[..., Value]:
    return lambda s, x, y: getattr(s.b, name)(_as_value(s, x, BOOL), _as_value(s, y, BOOL))


def _sum(s: Scope, numbers: Sequence[Number]) -> Value:
    element = _common(*numbers)
    total = _as_value(s, numbers[0], element)
    for entry in numbers[1:]:
        total = s.b.add(total, _as_value(s, entry, element))
    return total


_FUNCTIONS: dict[Any, Callable[..., Value]] = {
    operator.add: _binary("add"), operator.sub: _binary("sub"), operator.mul: _binary("mul"),
    operator.truediv: _divide, operator.floordiv: _floor_divide, operator.mod: _modulo, operator.pow: _binary("pow"),
    operator.neg: lambda s, x: s.b.neg(_as_value(s, x, _kind(x))),
    operator.eq: _binary("equal"), operator.ne: _negated(_binary("equal")), operator.lt: _binary("less"),
    operator.le: _binary("less_or_equal"), operator.gt: _binary("greater"), operator.ge: _binary("greater_or_equal"),
    operator.and_: _logic("logical_and"), operator.or_: _logic("logical_or"),
    torch.sym_sum: _sum, torch.sym_max: _binary("max"), torch.sym_min: _binary("min"), torch.sym_int: _integer(None),
    torch.sym_float: lambda s, x: _as_value(s, x, F64), torch.sym_ite: _choose,
    torch.sym_not: lambda s, x: s.b.logical_not(_as_value(s, x, BOOL)),
    math.ceil: _integer("ceil"), math.floor: _integer("floor"), math.trunc: _integer(None), round: _round,
    math.sqrt: _function("sqrt"), torch.sym_sqrt: _function("sqrt"), math.exp: _function("exp"),
    math.log: _function("log"), max: _binary("max"), min: _binary("min"),
}  # fmt: skip


def is_known(function: Any) -> bool:
    """Whether `lower` takes this function of numbers."""
    return function in _FUNCTIONS


def lower(s: Scope, function: Any, arguments: Sequence[Any]) -> Number:
    """A function of numbers: a dimension where torch's result is one, else a value computed in the graph."""
    fake = s.fakes[0]
    if isinstance(fake, (int, float, bool)):
        return fake
    if isinstance(fake, torch.SymInt):
        found = s.symbols.dimension(fake)
        if found is not None:
            return found
    value = _FUNCTIONS[function](s, *arguments)
    return item(s, value, fake) if isinstance(fake, torch.SymInt) else value


def item(s: Scope, found: Number, fake: torch.SymInt) -> dims.Dimension:
    """What the program computed as an integer, as a dimension that shapes may use from now on."""
    known = s.symbols.dimension(fake)
    if known is not None:
        return known
    return s.symbols.adopt(fake, s.dim(found))


@lowers("aten.sym_size.int")
def size(s: Scope, x: Value, dim: int) -> dims.Dimension:
    extent: dims.Dimension = s.shape_of(x)[dim]
    return extent


@lowers("aten.sym_numel.default")
def numel(s: Scope, x: Value) -> dims.Dimension:
    return dims.product(s.shape_of(x))


@lowers("aten.item.default", "aten._local_scalar_dense.default")
def read(s: Scope, x: Value) -> Number:
    fake = s.fakes[0]
    if isinstance(fake, (int, float, bool)):
        return fake
    element = I64 if isinstance(fake, torch.SymInt) else F64 if isinstance(fake, torch.SymFloat) else BOOL
    return s.cast(s.scalar(x), element)


@lowers("aten.scalar_tensor.default")
def scalar_tensor(s: Scope, x: Number, dtype: Any = None) -> Value:
    return s.number(x, s.element)


@lowers("aten.full_like.default")
def full_like(s: Scope, x: Value, fill: Number, dtype: Any = None) -> Value:
    return s.full(s.shape, fill)
