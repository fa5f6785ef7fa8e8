"""Functions of one number: exponentials, roundings, tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from espalier.backends.tvm import scalars
from espalier.backends.tvm.arithmetic import PRIMITIVES, astype, elementwise, logical_not, primitive
from espalier.backends.tvm.numbers import immediate, is_inf, is_nan, select
from espalier.backends.tvm.tensor import TRANSCENDENTAL, At, Expr
from espalier.ir import elements
from espalier.ir.elements import Element


def _unary(
    name: str, function: Callable[[At, Expr], Expr], cost: int = TRANSCENDENTAL, element: Element | None = None
) -> None:
    def operation(array: Any) -> Any:
        kind = array.element
        if not kind.is_float and element is None and cost == TRANSCENDENTAL:
            array, kind = astype(array, elements.F64), elements.F64
        return elementwise(element or kind, function, array, cost=cost)

    operation.__name__ = name
    globals()[name] = primitive(operation)


def _library(name: str) -> Callable[[At, Expr], Expr]:
    return lambda at, x: scalars.library(name, x)


def _whole(function: Callable[[Expr], Expr]) -> Callable[[At, Expr], Expr]:
    return lambda at, x: function(x) if scalars.dtype_of(x).startswith("float") else x


def _absolute(at: At, x: Expr) -> Expr:
    if scalars.dtype_of(x).startswith(("float", "u", "bool")):
        return tirx.abs(x) if scalars.dtype_of(x).startswith("float") else x
    return select(x < scalars.like(0, x), scalars.like(0, x) - x, x)


def _sign(at: At, x: Expr) -> Expr:
    x = at.bind(x)
    zero = scalars.like(0, x)
    if scalars.dtype_of(x).startswith("u"):
        return select(x > zero, scalars.like(1, x), zero)
    found = select(x > zero, scalars.like(1, x), select(x < zero, scalars.like(-1, x), zero))
    return select(is_nan(x), x, found) if scalars.dtype_of(x).startswith("float") else found


for _name in (
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "cos",
    "cosh",
    "expm1",
    "log",
    "log1p",
    "sin",
    "sinh",
    "tan",
):
    _unary(_name, _library(_name))
_unary("exp", lambda at, x: scalars.exp(at.bind, x))
_unary("tanh", lambda at, x: scalars.tanh(at.bind, x))
_unary("sigmoid", lambda at, x: scalars.sigmoid(at.bind, x))
_unary("erf", lambda at, x: scalars.erf(at.bind, x))
_unary("sqrt", lambda at, x: tirx.sqrt(x), cost=TRANSCENDENTAL)
_unary("floor", _whole(tirx.floor), cost=1)
_unary("ceil", _whole(tirx.ceil), cost=1)
_unary("trunc", _whole(tirx.trunc), cost=1)
_unary("rint", _whole(tirx.nearbyint), cost=1)
_unary("abs", _absolute, cost=1)
_unary("sign", _sign, cost=2)
_unary(
    "isnan",
    lambda at, x: is_nan(at.bind(x)) if scalars.dtype_of(x).startswith("float") else immediate(0, "bool"),
    1,
    elements.BOOL,
)
_unary(
    "isinf",
    lambda at, x: is_inf(at.bind(x)) if scalars.dtype_of(x).startswith("float") else immediate(0, "bool"),
    1,
    elements.BOOL,
)


@primitive
def isfinite(array: Any) -> Any:
    return logical_not(PRIMITIVES["logical_or"](PRIMITIVES["isnan"](array), PRIMITIVES["isinf"](array)))
