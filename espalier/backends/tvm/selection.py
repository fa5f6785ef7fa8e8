"""Primitives that pick entries: numpy's indexing, by numbers, slices and tensors of positions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor, primitive
from espalier.backends.tvm.broadcasting import broadcast_index, broadcast_shapes
from espalier.backends.tvm.numbers import expression_type, immediate, select
from espalier.backends.tvm.requirements import path
from espalier.backends.tvm.tensor import Access, At, Expr, Index, Map, Tensor, Untraceable, moved
from espalier.ir import dims
from espalier.ir.dims import Dim, Dimension


def zero() -> Expr:
    return immediate(0, "int64")


def view(source: Tensor, shape: Sequence[Dimension], position: Any, access: Access = "once", cost: int = 0) -> Map:
    """A tensor whose entry at an index is the source's at `position(at, index)`."""
    found = Map(tuple(shape), source.element, [source], [access], lambda at, index: at(0, position(at, index)), cost)
    moved(found, [source], lambda stored: view(stored[0], shape, position, access, cost))
    return found


@primitive
def take(array: Any, indices: Any, axis: int | None = None) -> Any:
    """Entries along an axis at the given positions."""
    if axis is None:
        return take(PRIMITIVES["reshape"](array, (-1,)), indices, 0)
    rank = array.ndim if isinstance(array, Tensor) else np.ndim(array)
    axis = axis % rank
    found = getitem(
        as_tensor(array), (slice(None),) * axis + (indices if isinstance(indices, Tensor) else np.asarray(indices),)
    )
    return found


@primitive
def take_along_axis(array: Any, indices: Any, axis: int) -> Tensor:
    """Entries at positions that are given for each place."""
    source, positions = as_tensor(array), as_tensor(indices)
    axis = axis % source.ndim
    shape = [
        p if a == axis else broadcast_shapes((extent,), (p,))[0]
        for a, (extent, p) in enumerate(zip(source.shape, positions.shape, strict=True))
    ]

    def position(at: At, index: Index) -> list[Expr]:
        chosen = at(1, broadcast_index(at, index, positions.shape, tuple(shape)))
        place = broadcast_index(
            at, index, tuple(1 if a == axis else e for a, e in enumerate(source.shape)), tuple(shape)
        )
        place[axis] = safe_position(at, chosen, source.shape[axis])
        return place

    read = _reader(source)
    own: Access = "same" if positions.shape == tuple(shape) else "many"
    return Map(
        tuple(shape), source.element, [source, positions], ["many", own],
        lambda at, index: read(at, position(at, index)), cost=2,
    )  # fmt: skip


def safe_position(at: At, position: Expr, extent: Dimension) -> Expr:
    """A position counted from either end, kept inside the axis whatever the data."""
    size = at.dim(extent)
    position = at.bind(position if str(position.ty.dtype) == "int64" else tirx.Cast("int64", position))
    counted = select(position < zero(), position + size, position)
    return tirx.max(tirx.min(counted, size - 1), zero())


def _reader(source: Tensor) -> Callable[[At, Index], Expr]:
    """How operand 0, which is the source, is read at positions that come from data: nothing is read of empty tensors.

    Only regions that are not taken ask for that.
    """
    empty = [extent for extent in source.shape if (least := dims.lower_bound(extent)) is None or least < 1]
    if not empty or not path():
        return lambda at, place: at(0, place)
    neutral = immediate(0, expression_type(source.element))

    def read(at: At, place: Index) -> Expr:
        filled = functools.reduce(tirx.And, (at.dim(extent) > zero() for extent in empty))
        return at.guard(filled, lambda: at(0, place), neutral)

    return read


def getitem(array: Tensor, key: Any) -> Any:
    """numpy's indexing by integers, slices, None, … and integer arrays."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(isinstance(k, Tensor) and k.element.kind == "bool" for k in keys):
        raise Untraceable(
            "a mask selects a number of entries that is not known before run time",
            next(k for k in keys if isinstance(k, Tensor)),
        )
    expanded: list[Any] = []
    for k in keys:
        if isinstance(k, np.ndarray) and k.dtype == np.bool_:
            expanded += list(np.nonzero(k))
        else:
            expanded.append(k)
    consumed = sum(k is not None and k is not Ellipsis for k in expanded)
    whole = [slice(None)] * (array.ndim - consumed)
    place = next((p for p, k in enumerate(expanded) if k is Ellipsis), None)
    expanded = [*expanded, *whole] if place is None else [*expanded[:place], *whole, *expanded[place + 1 :]]
    return _select(array, expanded)


def _select(array: Tensor, keys: Sequence[Any]) -> Tensor:
    shape: list[Dimension] = []
    arrays: list[tuple[int, Any]] = []  # source axis, positions
    plan: list[Any] = []  # per source axis: a fixed position, (result axis, start, step), or the number of an array
    places: list[int] = []
    axis = 0
    for k in keys:
        if k is None:
            shape.append(1)
            continue
        extent = array.shape[axis]
        if isinstance(k, slice):
            start, count, step = slice_of(k, extent)
            plan.append((len(shape), start, step))
            shape.append(count)
        elif isinstance(k, Tensor) or (isinstance(k, np.ndarray) and k.ndim):
            places.append(len(shape))
            plan.append(len(arrays))
            arrays.append((axis, k))
            shape.append(-1)
        else:
            k = k.item() if isinstance(k, np.ndarray) else k
            number = k if isinstance(k, Dim) else int(k)
            if isinstance(number, int) and number < 0:
                number = extent + number
            if isinstance(number, int) and isinstance(extent, int) and not 0 <= number < extent:
                raise Untraceable(f"position {number} lies outside of an axis of {extent}")
            plan.append(("fixed", number))
        axis += 1
    if not arrays:

        def plain(at: At, index: Index) -> list[Expr]:
            return [_place(at, index, step) for step in plan]

        return view(array, shape, plain)
    return _gather(array, shape, plan, arrays, places)


def _place(at: At, index: Index, step: Any) -> Expr:
    if step[0] == "fixed":
        return at.dim(step[1])
    axis, start, stride = step
    entry = index[axis] if stride == 1 else index[axis] * immediate(stride, "int64")
    return entry if start == 0 else entry + at.dim(start)


def slice_of(key: slice, extent: Dimension) -> tuple[Dimension, Dimension, int]:
    """(start, count, step) of a slice of an axis."""
    step = 1 if key.step is None else int(key.step)
    start, stop = (_plain(bound) for bound in (key.start, key.stop))
    if isinstance(extent, int) and not isinstance(start, Dim) and not isinstance(stop, Dim):
        span = range(*slice(start, stop, step).indices(extent))
        return (span.start if len(span) else 0), len(span), step
    if step < 0:
        if start is None and stop is None:
            return extent - 1, dims.ceil_divide(extent, -step), step
        raise Untraceable("a backward slice of an axis whose extent is not known before run time")
    first = _bound(0 if start is None else start, extent)
    last = extent if stop is None else _bound(stop, extent)
    return (
        first,
        dims.maximum(0, dims.ceil_divide(last - first, step))
        if _may_be_empty(last - first)
        else dims.ceil_divide(last - first, step),
        step,
    )


def _plain(bound: Any) -> Any:
    return bound if bound is None or isinstance(bound, Dim) else int(bound)


def _bound(bound: Any, extent: Dimension) -> Dimension:
    if isinstance(bound, int) and bound < 0:
        low = dims.lower_bound(extent)
        return extent + bound if low is not None and low + bound >= 0 else dims.maximum(0, extent + bound)
    low = dims.lower_bound(extent - bound)
    return bound if low is not None and low >= 0 else dims.minimum(bound, extent)


def _may_be_empty(count: Dimension) -> bool:
    low = dims.lower_bound(count)
    return low is None or low < 0


def _gather(
    array: Tensor,
    shape: Sequence[Dimension],
    plan: Sequence[Any],
    arrays: Sequence[tuple[int, Any]],
    places: Sequence[int],
) -> Tensor:
    positions = [as_tensor(np.asarray(k, np.int64) if isinstance(k, np.ndarray) else k) for _, k in arrays]
    inner = broadcast_shapes(*(p.shape for p in positions))
    adjacent = [axis for axis, _ in arrays] == list(range(arrays[0][0], arrays[0][0] + len(arrays)))
    kept = [a for a, extent in enumerate(shape) if not (isinstance(extent, int) and extent == -1 and a in places)]
    before = sum(a < places[0] for a in kept) if adjacent else 0
    result = [shape[a] for a in kept]
    target = (*result[:before], *inner, *result[before:])
    where = {a: (k if k < before else k + len(inner)) for k, a in enumerate(kept)}
    read = _reader(array)

    def body(at: At, index: Index) -> Expr:
        chosen = index[before : before + len(inner)]
        found: list[Expr] = []
        for axis, step in enumerate(plan):
            if isinstance(step, int):
                at_index = broadcast_index(at, chosen, positions[step].shape, inner)
                found.append(safe_position(at, at(1 + step, at_index), array.shape[axis]))
            elif step[0] == "fixed":
                found.append(at.dim(step[1]))
            else:
                found.append(_place(at, index, (where[step[0]], *step[1:])))
        return read(at, found)

    access: list[Access] = ["many"] * (1 + len(positions))
    return Map(target, array.element, [array, *positions], access, body, cost=2)
