"""Primitives whose entries depend on one another, as loops: running sums, sorting, scattering, determinants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import StringImm

from espalier.backends.tvm import numbers, requirements
from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor, astype, primitive, promoted, to_element
from espalier.backends.tvm.broadcasting import broadcast_index, broadcast_shapes
from espalier.backends.tvm.frames import Scope, Statement, integer, loop, sequence
from espalier.backends.tvm.numbers import expression_type, immediate, is_nan, select, wrap
from espalier.backends.tvm.scalars import dtype_of, maximum, minimum
from espalier.backends.tvm.selection import safe_position, zero
from espalier.backends.tvm.tensor import Constant, Expr, Program, Tensor, Untraceable
from espalier.ir import dims, elements
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element
from espalier.ir.xp import numpy as numpy_xp
from espalier.runtime.errors import REFUSAL


def local(scope: Scope, extent: Expr, dtype: str) -> Expr:
    """A buffer of the kernel's own."""
    return tirx.decl_buffer([extent], dtype, scope.kernel.names.variable("s").name)


def around(
    scope: Scope, extents: Sequence[Dimension], body: Callable[[list[Expr]], Statement], parallel: bool = False
) -> Statement:
    """Loops over extents; with `parallel`, threads share the first that is not 1."""
    variables = [scope.kernel.names.variable("i") for _ in extents]
    found = body(variables)
    first = next((k for k, extent in enumerate(extents) if extent != 1), None) if parallel else None
    for k in reversed(range(len(extents))):
        found = loop(variables[k], scope.dim(extents[k]), found, "parallel" if k == first else "serial")
    return found


def _running(name: str, neutral: int, combine: Callable[[Expr, Expr], Expr]) -> None:
    def operation(array: Any, axis: int = 0) -> Tensor:
        kind = array.element
        if kind.kind in ("bool", "int"):
            kind = elements.I64
        elif kind.kind == "uint":
            kind = elements.U64
        source = astype(array, kind)
        along = axis % source.ndim
        dtype = expression_type(kind)

        def write(scope: Scope, inputs: Sequence[Expr], outputs: Sequence[Expr]) -> Statement:
            state = local(scope, integer(1), dtype)
            others = [extent for a, extent in enumerate(source.shape) if a != along]

            def row(index: list[Expr]) -> Statement:
                position = scope.kernel.names.variable("r")
                place = [*index[:along], position, *index[along:]]
                inner = scope.inner()
                entry = numbers.load(kind, tirx.BufferLoad(inputs[0], place), inner.bind)
                total = inner.bind(
                    numbers.rounded(kind, combine(tirx.BufferLoad(state, [integer(0)]), entry), inner.bind)
                )
                body = inner.as_statements(
                    tirx.BufferStore(outputs[0], numbers.store(kind, total, inner.bind), place),
                    tirx.BufferStore(state, total, [integer(0)]),
                )
                return sequence([
                    tirx.AllocBuffer(state), tirx.BufferStore(state, immediate(neutral, dtype), [integer(0)]),
                    loop(position, scope.dim(source.shape[along]), body),
                ])  # fmt: skip

            return around(scope, others, row)

        return Program([(source.shape, kind)], [source], write)

    operation.__name__ = name
    primitive(operation)


_running("cumsum", 0, lambda a, b: a + b)
_running("cumprod", 1, lambda a, b: a * b)


@primitive
def argsort(array: Any, axis: int, descending: bool = False) -> Tensor:
    """Indices that sort an axis, stably, NaN as the largest; a merge sort from the bottom up."""
    source = as_tensor(array)
    if source.element.kind == "bool":
        source = astype(source, elements.U8)
    along, kind = axis % source.ndim, source.element
    extent = source.shape[along]

    def before(a: Expr, b: Expr) -> Expr:
        """Whether b must come before a, which stands left of it."""
        first, second = (b, a) if descending else (a, b)
        found = second < first
        if kind.is_float:
            found = tirx.Or(found, tirx.And(is_nan(first), tirx.Not(is_nan(second))))
        return found

    def write(scope: Scope, inputs: Sequence[Expr], outputs: Sequence[Expr]) -> Statement:
        names, size = scope.kernel.names, scope.dim(extent)
        spare = local(scope, size, "int64")
        heads = local(scope, integer(2), "int64")
        left, right = (tirx.BufferLoad(heads, [integer(k)]) for k in (0, 1))

        def row(index: list[Expr]) -> Statement:
            def order(position: Expr) -> list[Expr]:
                return [*index[:along], position, *index[along:]]

            def entry(inner: Scope, position: Expr) -> Expr:
                raw = tirx.BufferLoad(inputs[0], order(tirx.BufferLoad(outputs[0], order(position))))
                return numbers.load(kind, raw, inner.bind)

            fill, width_power, block, k, back = (names.variable(letter) for letter in "iwbki")
            width = tirx.shift_left(integer(1), width_power)
            low = block * (width + width)
            middle, high = tirx.min(low + width, size), tirx.min(low + width + width, size)
            inner = scope.inner()
            near, far = inner.bind(left), inner.bind(right)
            taken = inner.bind(tirx.if_then_else(
                near >= middle, immediate(1, "bool"),
                tirx.if_then_else(far >= high, immediate(0, "bool"), _compared(scope, entry, before, near, far)),
            ))  # fmt: skip
            source_place = inner.bind(select(taken, far, near))
            step = inner.as_statements(
                tirx.BufferStore(spare, tirx.BufferLoad(outputs[0], order(source_place)), [low + k]),
                tirx.BufferStore(heads, select(taken, near, near + integer(1)), [integer(0)]),
                tirx.BufferStore(heads, select(taken, far + integer(1), far), [integer(1)]),
            )
            merge = sequence([
                tirx.BufferStore(heads, low, [integer(0)]), tirx.BufferStore(heads, middle, [integer(1)]),
                loop(k, tirx.max(high - low, integer(0)), step),
            ])  # fmt: skip
            blocks = tirx.floordiv(size + (width + width) - integer(1), width + width)
            passes = loop(width_power, integer(_passes(extent)), sequence([
                loop(block, blocks, merge),
                loop(back, size, tirx.BufferStore(outputs[0], tirx.BufferLoad(spare, [back]), order(back))),
            ]))  # fmt: skip
            return sequence([
                tirx.AllocBuffer(spare), tirx.AllocBuffer(heads),
                loop(fill, size, tirx.BufferStore(outputs[0], fill, order(fill))), passes,
            ])  # fmt: skip

        return around(scope, [e for a, e in enumerate(source.shape) if a != along], row)

    return Program([(source.shape, elements.I64)], [source], write)


def _compared(
    scope: Scope, entry: Callable[[Scope, Expr], Expr], before: Callable[[Expr, Expr], Expr], near: Expr, far: Expr
) -> Expr:
    inner = scope.inner(expression=True)
    return inner.as_expression(before(inner.bind(entry(inner, near)), inner.bind(entry(inner, far))))


def _passes(extent: Dimension) -> int:
    """Doublings from 1 to the extent; of an unknown one as many as memory could hold."""
    return max(0, (extent - 1).bit_length()) if isinstance(extent, int) else 40


@primitive
def sort(array: Any, axis: int = -1) -> Tensor:
    result: Tensor = PRIMITIVES["take_along_axis"](array, argsort(array, axis), axis)
    return result


def positions(indices: Any, extent: Dimension) -> Any:
    """Indices of an axis as positions from its start. The compiled model fails with an IndexError if one lies outside.

    They are a tensor of their own, since only statements can fail, and not the expressions that read there.
    """
    known = indices.array if isinstance(indices, Constant) else None if isinstance(indices, Tensor) else indices
    path = requirements.path()
    if known is not None:
        least = dims.lower_bound(extent)
        if not path:
            numpy_xp.positions(known, extent)
        if not known.size or (least is not None and -least <= known.min() and known.max() < least):
            return indices
    source = as_tensor(indices)

    def write(scope: Scope, inputs: Sequence[Expr], outputs: Sequence[Expr]) -> Statement:
        size = scope.dim(extent)
        taken = requirements.is_taken(path, [
            tirx.BufferLoad(buffer, [zero()] * len(buffer.shape)) for buffer in inputs[1:]
        ])  # fmt: skip

        def one(index: list[Expr]) -> Statement:
            inner = scope.inner()
            entry = numbers.load(source.element, tirx.BufferLoad(inputs[0], index), inner.bind)
            position = inner.bind(entry if dtype_of(entry) == "int64" else tirx.Cast("int64", entry))
            inside = inner.bind(tirx.And(position + size >= zero(), position < size))
            message = StringImm(f"{REFUSAL}an index lies outside of its axis")
            counted = select(position < zero(), position + size, position)
            if taken is not None:
                counted = select(inside, counted, zero())
            holds = inside if taken is None else tirx.Or(tirx.Not(taken), inside)
            return inner.as_statements(
                tirx.AssertStmt(holds, StringImm("IndexError"), [message]),
                tirx.BufferStore(outputs[0], counted, index),
            )

        return around(scope, source.shape, one)

    return Program([(source.shape, elements.I64)], [source, *(condition for condition, _ in path)], write)


PRIMITIVES["positions"] = positions  # arrays too: whether they lie inside of an axis may depend on its extent


_COMBINED: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": lambda a, b: tirx.Or(a, b) if dtype_of(a) == "bool" else a + b,
    "mul": lambda a, b: tirx.And(a, b) if dtype_of(a) == "bool" else a * b,
    "min": lambda a, b: tirx.And(a, b) if dtype_of(a) == "bool" else minimum(a, b),
    "max": lambda a, b: tirx.Or(a, b) if dtype_of(a) == "bool" else maximum(a, b),
}


@primitive
def scatter(array: Any, index: tuple[Any, ...], updates: Any, reduction: str = "none") -> Tensor:
    """A copy with updates written, or combined, at the positions of an index tuple, in the order of the updates."""
    kind = promoted(array, updates)
    data, new = as_tensor(to_element(array, kind)), as_tensor(to_element(updates, kind))
    if len(index) == 1 and index[0] is Ellipsis:
        index = ()
    if any(not isinstance(k, Tensor | np.ndarray) for k in index):
        raise Untraceable("scatter at slices")
    places = [as_tensor(k if isinstance(k, Tensor) else np.asarray(k, np.int64)) for k in index]
    lead = broadcast_shapes(*(place.shape for place in places))
    rest = data.shape[len(places) :]
    whole = (*lead, *rest)
    broadcast_shapes(new.shape, whole)
    distinct = list(dict.fromkeys([data, new, *places]))

    def write(scope: Scope, inputs: Sequence[Expr], outputs: Sequence[Expr]) -> Statement:
        buffer = dict(zip(distinct, inputs, strict=True))

        def copied(i: list[Expr]) -> Statement:
            return tirx.BufferStore(outputs[0], tirx.BufferLoad(buffer[data], i), i)

        def put(i: list[Expr]) -> Statement:
            inner, at = scope.inner(), _At(scope)
            at.scope = inner
            target: list[Expr] = []
            for axis, place in enumerate(places):
                where = broadcast_index(at, i[: len(lead)], place.shape, lead)
                position = numbers.load(place.element, tirx.BufferLoad(buffer[place], where), inner.bind)
                target.append(inner.bind(safe_position(at, position, data.shape[axis])))
            target += i[len(lead) :]
            source = broadcast_index(at, i[len(i) - new.ndim :], new.shape, whole[len(whole) - new.ndim :])
            value = tirx.BufferLoad(buffer[new], source)
            if reduction != "none":
                old = inner.bind(numbers.load(kind, tirx.BufferLoad(outputs[0], target), inner.bind))
                entry = inner.bind(numbers.load(kind, value, inner.bind))
                found = numbers.rounded(kind, wrap(_COMBINED[reduction](old, entry), kind), inner.bind)
                value = numbers.store(kind, found, inner.bind)
            return inner.as_statements(tirx.BufferStore(outputs[0], value, target))

        return sequence([around(scope, data.shape, copied), around(scope, whole, put)])

    return Program([(data.shape, kind)], distinct, write)


class _At:
    """As much of `tensor.At` as index arithmetic needs."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def dim(self, dimension: Dimension) -> Expr:
        return self.scope.dim(dimension)

    def bind(self, value: Expr) -> Expr:
        return self.scope.bind(value)

    def __call__(self, operand: int, index: Any) -> Expr:
        raise AssertionError("a program reads its buffers itself")

    whole = __call__

    def guard(self, condition: Expr, yes: Callable[[], Expr], no: Expr) -> Expr:
        raise AssertionError("a program branches itself")

    def choose(self, condition: Expr, yes: Callable[[], Expr], no: Callable[[], Expr]) -> Expr:
        raise AssertionError("a program branches itself")


@primitive
def det(array: Any) -> Tensor:
    """Determinants of the matrices in the last two axes, by elimination with row exchange."""
    source: Tensor = PRIMITIVES["wide"](array)
    kind: Element = source.element
    n, dtype = source.shape[-1], expression_type(kind)
    if not isinstance(n, int):
        raise Untraceable("the determinant of matrices whose size is not known")

    def write(scope: Scope, inputs: Sequence[Expr], outputs: Sequence[Expr]) -> Statement:
        names = scope.kernel.names
        work, found, best, swap = (
            local(scope, integer(size), dtype if k != 2 else "int64") for k, size in enumerate((n * n, 1, 1, 1))
        )

        def cell(i: Expr, j: Expr) -> Expr:
            return i * integer(n) + j

        def load(i: Expr, j: Expr) -> Expr:
            return tirx.BufferLoad(work, [cell(i, j)])

        def one(index: list[Expr]) -> Statement:
            k, i, j, a, b, c, e = (names.variable("k") for _ in range(7))
            size, first = integer(n), [integer(0)]
            pivot = tirx.BufferLoad(best, first)
            total = tirx.BufferLoad(found, first)
            fill = loop(
                i, size, loop(j, size, tirx.BufferStore(work, tirx.BufferLoad(inputs[0], [*index, i, j]), [cell(i, j)]))
            )
            search = loop(
                a,
                size,
                tirx.IfThenElse(
                    tirx.And(a > k, tirx.abs(load(a, k)) > tirx.abs(load(pivot, k))),
                    tirx.BufferStore(best, a, first),
                    None,
                ),
            )
            exchange = loop(
                b,
                size,
                sequence(
                    [
                        tirx.BufferStore(swap, load(k, b), first),
                        tirx.BufferStore(work, load(pivot, b), [cell(k, b)]),
                        tirx.BufferStore(work, tirx.BufferLoad(swap, first), [cell(pivot, b)]),
                    ]
                ),
            )
            signed = select(tirx.EQ(pivot, k), total, immediate(-1, dtype) * total)
            factor = load(c, k) / load(k, k)
            below = tirx.And(c > k, tirx.NE(load(k, k), immediate(0, dtype)))
            eliminate = loop(c, size, tirx.IfThenElse(below, sequence([
                tirx.BufferStore(swap, factor, first),
                loop(e, size, tirx.IfThenElse(e > k, tirx.BufferStore(
                    work, load(c, e) - tirx.BufferLoad(swap, first) * load(k, e), [cell(c, e)]), None)),
            ]), None))  # fmt: skip
            steps = loop(k, size, sequence([
                tirx.BufferStore(best, k, first), search, tirx.BufferStore(found, signed, first), exchange,
                tirx.BufferStore(found, total * load(k, k), first), eliminate,
            ]))  # fmt: skip
            return sequence([
                *map(tirx.AllocBuffer, (work, found, best, swap)), fill,
                tirx.BufferStore(found, immediate(1, dtype), first), steps, tirx.BufferStore(outputs[0], total, index),
            ])  # fmt: skip

        return around(scope, source.shape[:-2], one)

    result: Tensor = astype(Program([(source.shape[:-2], kind)], [source], write), array.element)
    return result
