"""Primitives that reduce axes, and those built from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import scalars
from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor, astype, elementwise, filled, primitive
from espalier.backends.tvm.numbers import cast_type, expression_type, immediate, is_nan, rounded, select, wrap
from espalier.backends.tvm.tensor import Access, At, Expr, Fold, Index, Tensor, Untraceable
from espalier.ir import dims, elements
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element

LONG = 4096
"""Sums of more f32 than this are accumulated in f64."""


def reduced_axes(axis: Any, rank: int) -> tuple[int, ...]:
    """The axes as numbers from 0, in order."""
    given = range(rank) if axis is None else [axis] if isinstance(axis, int | np.integer) else axis
    return tuple(sorted({int(a) % rank for a in given}))


def fold(
    array: Tensor,
    axis: Any,
    keepdims: bool,
    element: Element,
    types: Sequence[str],
    start: Callable[[], Sequence[Expr]],
    step: Callable[[Sequence[Expr], Expr, Expr], Sequence[Expr]],
    finish: Callable[[Sequence[Expr]], Expr],
    join: Callable[[Sequence[Expr], Sequence[Expr]], Sequence[Expr]] | None = None,
) -> Tensor:
    """Reduce axes of one tensor; `step(state, entry, position)` gets the position along the last reduced axis."""
    axes = reduced_axes(axis, array.ndim)
    kept = [a for a in range(array.ndim) if a not in axes]
    shape = (
        [1 if a in axes else array.shape[a] for a in range(array.ndim)] if keepdims else [array.shape[a] for a in kept]
    )
    extents = tuple(array.shape[a] for a in axes)

    def place(index: Index, position: Index) -> list[Expr]:
        return [
            position[axes.index(a)] if a in axes else index[a if keepdims else kept.index(a)] for a in range(array.ndim)
        ]

    def at_step(at: At, state: Sequence[Expr], index: Index, position: Index) -> Sequence[Expr]:
        where = position[-1] if position else immediate(0, "int64")
        return step(state, at(0, place(index, position)), where)

    access: list[Access] = ["once"]
    rows = bool(axes) and axes[-1] == array.ndim - 1
    return Fold(
        tuple(shape), element, [array], access, extents, types, start, at_step,
        lambda at, state: rounded(element, wrap(finish(state), element), at.bind), join, rows,
    )  # fmt: skip


def _count(array: Tensor, axis: Any) -> Dimension:
    return dims.product(array.shape[a] for a in reduced_axes(axis, array.ndim))


def _summed(kind: Element) -> Element:
    if kind.kind in ("bool", "int"):
        return elements.I64
    return elements.U64 if kind.kind == "uint" else kind


def _accumulated(name: str, neutral: float, combine: Callable[[Expr, Expr], Expr]) -> None:
    def operation(array: Any, axis: Any = None, keepdims: bool = False, **ignored: Any) -> Tensor:
        if getattr(array, "is_pair", False):
            from espalier.backends.tvm import fourier

            return fourier.reduce(name, array, axis, keepdims)
        kind = _summed(array.element)
        source = astype(array, kind)
        if not reduced_axes(axis, array.ndim):
            result: Tensor = source
            return result
        count = _count(array, axis)
        state = expression_type(kind)
        if state == "float32" and not (isinstance(count, int) and count <= LONG):
            state = "float64"
        return fold(
            source, axis, keepdims, kind, [state], lambda: [immediate(neutral, state)],
            lambda s, x, p: [combine(s[0], cast_type(x, state))],
            lambda s: cast_type(s[0], expression_type(kind)), lambda a, b: [combine(a[0], b[0])],
        )  # fmt: skip

    operation.__name__ = name
    primitive(operation)


_accumulated("sum", 0, lambda a, b: a + b)
_accumulated("prod", 1, lambda a, b: a * b)


def _extreme(name: str, combine: Callable[[Expr, Expr], Expr], worst: Callable[[Element], Any]) -> None:
    def operation(array: Any, axis: Any = None, keepdims: bool = False, **ignored: Any) -> Tensor:
        kind = array.element
        if kind.kind == "bool":
            result: Tensor = PRIMITIVES["any" if name == "max" else "all"](array, axis=axis, keepdims=keepdims)
            return result
        if not reduced_axes(axis, array.ndim):
            return as_tensor(array)
        if _count(array, axis) == 0 and "initial" not in ignored:
            raise Untraceable(f"{name} of nothing")
        state = expression_type(kind)
        return fold(
            array, axis, keepdims, kind, [state], lambda: [immediate(worst(kind), state)],
            lambda s, x, p: [combine(s[0], x)], lambda s: s[0], lambda a, b: [combine(a[0], b[0])],
        )  # fmt: skip

    operation.__name__ = name
    primitive(operation)


def _keep_nan_max(a: Expr, b: Expr) -> Expr:
    if not scalars.dtype_of(a).startswith("float"):
        return tirx.max(a, b)
    return select(tirx.Or(b > a, is_nan(b)), b, a)


def _keep_nan_min(a: Expr, b: Expr) -> Expr:
    if not scalars.dtype_of(a).startswith("float"):
        return tirx.min(a, b)
    return select(tirx.Or(b < a, is_nan(b)), b, a)


_extreme("max", _keep_nan_max, lambda kind: -math.inf if kind.is_float else kind.range[0])
_extreme("min", _keep_nan_min, lambda kind: math.inf if kind.is_float else kind.range[1])


def _quantifier(name: str, neutral: bool, combine: Callable[[Expr, Expr], Expr]) -> None:
    def operation(array: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
        return fold(
            astype(array, elements.BOOL), axis, keepdims, elements.BOOL, ["int8"],
            lambda: [immediate(int(neutral), "int8")],
            lambda s, x, p: [combine(s[0], tirx.Cast("int8", x))], lambda s: tirx.NE(s[0], immediate(0, "int8")),
            lambda a, b: [combine(a[0], b[0])],
        )  # fmt: skip

    operation.__name__ = name
    primitive(operation)


_quantifier("all", True, tirx.min)
_quantifier("any", False, tirx.max)


@primitive
def mean(array: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    source = array if array.element.is_float else astype(array, elements.F64)
    total, count = PRIMITIVES["sum"](source, axis=axis, keepdims=keepdims), _count(source, axis)
    return divide_by(total, count)


def divide_by(total: Tensor, count: Dimension) -> Tensor:
    """A float tensor divided by a dimension."""
    dtype = expression_type(total.element)
    return elementwise(total.element, lambda at, x: tirx.div(x, tirx.Cast(dtype, at.dim(count))), total, cost=2)


def _position(name: str, better: Callable[[Expr, Expr], Expr]) -> None:
    def operation(array: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
        if axis is None:
            array, axis = PRIMITIVES["reshape"](array, (-1,)), 0
        if array.element.kind == "bool":
            array = astype(array, elements.U8)
        state = expression_type(array.element)

        def step(s: Sequence[Expr], x: Expr, p: Expr) -> Sequence[Expr]:
            first = tirx.EQ(s[1], immediate(-1, "int64"))
            beats = better(x, s[0])
            if state.startswith("float"):  # the first NaN wins
                beats = tirx.And(tirx.Or(beats, is_nan(x)), tirx.Not(is_nan(s[0])))
            take = tirx.Or(first, beats)
            return [select(take, x, s[0]), select(take, p, s[1])]

        return fold(
            array, axis, keepdims, elements.I64, [state, "int64"],
            lambda: [immediate(0, state), immediate(-1, "int64")], step, lambda s: s[1],
        )  # fmt: skip

    operation.__name__ = name
    primitive(operation)


_position("argmax", lambda x, best: x > best)
_position("argmin", lambda x, best: x < best)


@primitive
def logsumexp(array: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """log Σ exp(x), without overflow."""
    top = PRIMITIVES["max"](array, axis=axis, keepdims=True, initial=-math.inf)
    top = PRIMITIVES["where"](PRIMITIVES["isfinite"](top), top, filled(top.shape, 0, top.element))
    total = PRIMITIVES["sum"](PRIMITIVES["exp"](array - top), axis=axis, keepdims=True)
    found = PRIMITIVES["log"](total) + top
    result: Tensor = found if keepdims else PRIMITIVES["squeeze"](found, axis=reduced_axes(axis, array.ndim))
    return result


@primitive
def softmax(array: Any, axis: int) -> Tensor:
    """exp(x) normalised to sum 1 over an axis."""
    shifted = PRIMITIVES["exp"](array - PRIMITIVES["max"](array, axis=axis, keepdims=True, initial=-math.inf))
    result: Tensor = shifted / PRIMITIVES["sum"](shifted, axis=axis, keepdims=True)
    return result
