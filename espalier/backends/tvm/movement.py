"""Primitives that move entries: indexing, reshaping, joining, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.ir import dims, elements
from espalier.ir.dims import Dim, Dimension
from espalier.ir.elements import Element
from espalier.ir.xp import numpy as numpy_xp
from espalier.backends.tvm.arithmetic import (
    PRIMITIVES, as_tensor, broadcast_index, broadcast_shapes, filled, flat_index, primitive, promoted, to_element,
)  # fmt: skip
from espalier.backends.tvm.numbers import expression_type, immediate, select
from espalier.backends.tvm.tensor import Access, Alias, At, Expr, Index, Map, Tensor, Untraceable


def zero() -> Expr:
    return immediate(0, "int64")


def view(source: Tensor, shape: Sequence[Dimension], position: Any, access: Access = "once", cost: int = 0) -> Tensor:
    """A tensor whose entry at an index is the source's at `position(at, index)`."""
    return Map(tuple(shape), source.element, [source], [access], lambda at, index: at(0, position(at, index)), cost)


@primitive
def transpose(array: Any, perm: Sequence[int]) -> Tensor:
    perm = tuple(int(axis) % array.ndim for axis in perm)
    if perm == tuple(range(array.ndim)):
        return array  # type: ignore[no-any-return]
    inverse = [perm.index(axis) for axis in range(array.ndim)]
    return view(array, [array.shape[axis] for axis in perm], lambda at, index: [index[axis] for axis in inverse])


@primitive
def reshape(array: Any, shape: Any) -> Tensor:
    """The same entries under another shape; one −1 is worked out."""
    target = list(shape) if isinstance(shape, list | tuple | np.ndarray) else [shape]
    target = [extent if isinstance(extent, Dim) else int(extent) for extent in target]
    if -1 in target:
        known = dims.product(extent for extent in target if not (isinstance(extent, int) and extent == -1))
        if known == 0:
            raise ValueError("the shape to reshape to is ambiguous")
        rest = dims.floor_divide(array.size, known)
        target[target.index(-1)] = rest
    target = [extent if isinstance(extent, Dim) else int(extent) for extent in target]
    if tuple(target) == array.shape:
        return array  # type: ignore[no-any-return]
    size, wanted = array.size, dims.product(target)
    if isinstance(size, int) and isinstance(wanted, int) and size != wanted:
        raise ValueError(f"{array.shape} can't be reshaped to {tuple(target)}")
    if [extent for extent in target if extent != 1] == [extent for extent in array.shape if extent != 1]:
        return _unit_axes(array, target)
    return Alias(array, tuple(target))


def _unit_axes(array: Tensor, target: Sequence[Dimension]) -> Tensor:
    """A reshape that only adds and drops axes of extent 1."""
    places = [axis for axis, extent in enumerate(target) if extent != 1]
    kept = [axis for axis, extent in enumerate(array.shape) if extent != 1]
    where = dict(zip(kept, places, strict=True))

    def position(at: At, index: Index) -> list[Expr]:
        return [index[where[axis]] if axis in where else zero() for axis in range(array.ndim)]

    return view(array, target, position, "same")


@primitive
def squeeze(array: Any, axis: Any = None) -> Tensor:
    axes = range(array.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    dropped = {int(a) % array.ndim for a in axes if axis is not None or array.shape[a] == 1}
    for a in dropped:
        if isinstance(array.shape[a], int) and array.shape[a] != 1:
            raise ValueError(f"axis {a} of {array.shape} can't be dropped")
    target = [extent for a, extent in enumerate(array.shape) if a not in dropped]
    kept = [a for a in range(array.ndim) if a not in dropped]
    return view(array, target, lambda at, index: [index[kept.index(a)] if a in kept else zero() for a in range(array.ndim)], "same")


@primitive
def expand_dims(array: Any, axis: Any) -> Tensor:
    axes = [axis] if isinstance(axis, int) else list(axis)
    rank = array.ndim + len(axes)
    added = {int(a) % rank for a in axes}
    kept = [a for a in range(rank) if a not in added]
    extents = iter(array.shape)
    target = [1 if a in added else next(extents) for a in range(rank)]
    return view(array, target, lambda at, index: [index[a] for a in kept], "same")


@primitive
def flip(array: Any, axis: Any = None) -> Tensor:
    axes = range(array.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    flipped = {int(a) % array.ndim for a in axes}

    def position(at: At, index: Index) -> list[Expr]:
        return [at.dim(array.shape[a]) - 1 - entry if a in flipped else entry for a, entry in enumerate(index)]

    return view(array, array.shape, position)


@primitive
def roll(array: Any, shift: Any, axis: Any = None) -> Tensor:
    if axis is None:
        return reshape(roll(reshape(array, (-1,)), shift, 0), array.shape)
    pairs = [(shift, axis)] if isinstance(axis, int) else list(zip(shift, axis, strict=True))
    for amount, along in pairs:
        along = along % array.ndim
        extent = array.shape[along]
        first = dims.modulo(extent - amount, extent) if isinstance(extent, Dim) else (extent - int(amount)) % max(extent, 1)
        array = concat([_part(array, along, first, extent), _part(array, along, 0, first)], along)
    return array  # type: ignore[no-any-return]


def _part(array: Tensor, axis: int, start: Any, stop: Any) -> Any:
    return getitem(array, (slice(None),) * axis + (slice(start, stop),))


@primitive
def concat(arrays: Sequence[Any], axis: int = 0) -> Tensor:
    """One after another along an axis."""
    element = promoted(*arrays)
    parts = [as_tensor(to_element(array, element)) for array in arrays]
    axis = axis % parts[0].ndim
    parts = [part for part in parts if part.shape[axis] != 0] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    offsets: list[Dimension] = [0]
    for part in parts:
        offsets.append(offsets[-1] + part.shape[axis])
    shape = [*parts[0].shape[:axis], offsets[-1], *parts[0].shape[axis + 1 :]]
    for part in parts[1:]:
        for a in range(part.ndim):
            if a != axis and isinstance(part.shape[a], int) and not isinstance(shape[a], int):
                shape[a] = part.shape[a]

    def body(at: At, index: Index) -> Expr:
        def rest(k: int) -> Expr:
            inner = index[axis] - at.dim(offsets[k]) if k else index[axis]
            here = [*index[:axis], inner, *index[axis + 1 :]]
            if k + 1 == len(parts):
                return at(k, here)
            return at.choose(index[axis] < at.dim(offsets[k + 1]), lambda: at(k, here), lambda: rest(k + 1))

        return rest(0)

    return Map(tuple(shape), element, parts, ["once"] * len(parts), body, cost=1)


@primitive
def stack(arrays: Sequence[Any], axis: int = 0) -> Tensor:
    rank = np.ndim(arrays[0]) if not isinstance(arrays[0], Tensor) else arrays[0].ndim
    return concat([PRIMITIVES["expand_dims"](array, axis % (rank + 1)) for array in arrays], axis % (rank + 1))


@primitive
def tile(array: Any, repeats: Any) -> Tensor:
    """The whole array repeated along each axis."""
    times = [r if isinstance(r, Dim) else int(r) for r in (repeats if isinstance(repeats, list | tuple | np.ndarray) else [repeats])]
    rank = max(len(times), array.ndim)
    times = [1] * (rank - len(times)) + times
    array = reshape(array, (1,) * (rank - array.ndim) + array.shape)
    shape = [extent * r for extent, r in zip(array.shape, times, strict=True)]

    def position(at: At, index: Index) -> list[Expr]:
        return [
            entry if r == 1 else zero() if extent == 1 else tirx.floormod(entry, at.dim(extent))
            for entry, extent, r in zip(index, array.shape, times, strict=True)
        ]

    return view(array, shape, position, "many")


@primitive
def repeat(array: Any, repeats: Any, axis: int | None = None) -> Tensor:
    """Each entry repeated along an axis."""
    if axis is None:
        return repeat(reshape(array, (-1,)), repeats, 0)
    if isinstance(repeats, Tensor) or np.ndim(repeats):
        counts = np.asarray(repeats).reshape(-1)
        return take(array, np.repeat(np.arange(len(counts)), counts), axis)
    axis, times = axis % array.ndim, repeats if isinstance(repeats, Dim) else int(repeats)
    shape = [extent * times if a == axis else extent for a, extent in enumerate(array.shape)]

    def position(at: At, index: Index) -> list[Expr]:
        return [tirx.floordiv(entry, at.dim(times)) if a == axis else entry for a, entry in enumerate(index)]

    return view(array, shape, position, "many")


@primitive
def pad(array: Any, pads: Sequence[tuple[Any, Any]], mode: str = "constant", value: Any = 0) -> Tensor:
    """Add, or with negative amounts cut, positions at both ends of each axis."""
    pads = [tuple(p if isinstance(p, Dim) else int(p) for p in pair) for pair in pads]  # type: ignore[misc]
    source = as_tensor(array)
    if all(pair == (0, 0) for pair in pads):
        return source
    shape = [extent + before + after for extent, (before, after) in zip(source.shape, pads, strict=True)]
    if mode != "constant":
        return _pad_by_index(source, pads, shape, mode)
    filler = as_tensor(to_element(value, source.element) if isinstance(value, Tensor | np.ndarray | np.generic) else np.asarray(value).astype(source.element.dtype))

    def body(at: At, index: Index) -> Expr:
        inside, place = None, []
        for entry, extent, (before, after) in zip(index, source.shape, pads, strict=True):
            here = entry if before == 0 else entry - at.dim(before)
            place.append(here)
            for amount, condition in ((before, lambda h=here: h >= zero()), (after, lambda h=here, e=extent: h < at.dim(e))):
                if not (isinstance(amount, int) and amount <= 0):
                    inside = condition() if inside is None else tirx.And(inside, condition())
        outside = at(1, [zero()] * filler.ndim)
        return at(0, place) if inside is None else at.guard(inside, lambda: at(0, place), outside)

    return Map(tuple(shape), source.element, [source, filler], ["once", "many"], body, cost=1)


def _pad_by_index(source: Tensor, pads: Sequence[tuple[Any, Any]], shape: Sequence[Dimension], mode: str) -> Tensor:
    def place(at: At, entry: Expr, extent: Dimension, before: Any, after: Any) -> Expr:
        if (before, after) == (0, 0):
            return entry
        here, size = entry - at.dim(before), at.dim(extent)
        # numpy pads what is left after cutting: positions cut away are not seen in reflections or copies
        low = -before if isinstance(before, int) and before < 0 else 0
        high = size if not (isinstance(after, int) and after < 0) else at.dim(extent + after)
        span, here = high - immediate(low, "int64"), here - immediate(low, "int64")
        if mode == "edge":
            found = tirx.max(tirx.min(here, span - 1), zero())
        elif mode == "wrap":
            found = tirx.floormod(here, span)
        elif mode == "reflect":
            period = tirx.max(2 * (span - 1), immediate(1, "int64"))
            folded = tirx.floormod(here, period)
            found = tirx.min(folded, period - folded)
            found = select(tirx.EQ(span, immediate(1, "int64")), zero(), found)
        else:
            raise ValueError(f"there is no padding mode {mode!r}")
        return found + immediate(low, "int64")

    def position(at: At, index: Index) -> list[Expr]:
        return [place(at, entry, extent, *pair) for entry, extent, pair in zip(index, source.shape, pads, strict=True)]

    return view(source, shape, position, "many", cost=2)


@primitive
def windows(array: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[Any]) -> Tensor:
    """All windows over the last axes: shape (…, *counts, *kernel)."""
    spatial = len(kernel)
    lead = array.ndim - spatial

    def position(at: At, index: Index) -> list[Expr]:
        places = [
            index[lead + k] * immediate(int(strides[k]), "int64") + index[lead + spatial + k] * immediate(int(dilations[k]), "int64")
            for k in range(spatial)
        ]
        return [*index[:lead], *places]

    return view(array, [*array.shape[:lead], *counts, *kernel], position, "many")


@primitive
def take(array: Any, indices: Any, axis: int | None = None) -> Tensor:
    """Entries along an axis at the given positions."""
    if axis is None:
        return take(PRIMITIVES["reshape"](array, (-1,)), indices, 0)
    rank = array.ndim if isinstance(array, Tensor) else np.ndim(array)
    axis = axis % rank
    found = getitem(as_tensor(array), (slice(None),) * axis + (indices if isinstance(indices, Tensor) else np.asarray(indices),))
    return found  # type: ignore[no-any-return]


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
        place = broadcast_index(at, index, tuple(1 if a == axis else e for a, e in enumerate(source.shape)), tuple(shape))
        place[axis] = safe_position(at, chosen, source.shape[axis])
        return place

    return Map(tuple(shape), source.element, [source, positions], ["many", "same" if positions.shape == tuple(shape) else "many"],
               lambda at, index: at(0, position(at, index)), cost=2)  # fmt: skip


def safe_position(at: At, position: Expr, extent: Dimension) -> Expr:
    """A position counted from either end, kept inside the axis whatever the data."""
    size = at.dim(extent)
    position = at.bind(position if str(position.ty.dtype) == "int64" else tirx.Cast("int64", position))
    counted = select(position < zero(), position + size, position)
    return tirx.max(tirx.min(counted, size - 1), zero())


def getitem(array: Tensor, key: Any) -> Any:
    """numpy's indexing by integers, slices, None, … and integer arrays."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(isinstance(k, Tensor) and k.element.kind == "bool" for k in keys):
        raise Untraceable("a mask selects a number of entries that is not known before run time", next(k for k in keys if isinstance(k, Tensor)))
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
                raise IndexError(f"position {number} lies outside of an axis of {extent}")
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
    return first, dims.maximum(0, dims.ceil_divide(last - first, step)) if _may_be_empty(last - first) else dims.ceil_divide(last - first, step), step


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


def _gather(array: Tensor, shape: Sequence[Dimension], plan: Sequence[Any], arrays: Sequence[tuple[int, Any]], places: Sequence[int]) -> Tensor:
    positions = [as_tensor(np.asarray(k, np.int64) if isinstance(k, np.ndarray) else k) for _, k in arrays]
    inner = broadcast_shapes(*(p.shape for p in positions))
    adjacent = [axis for axis, _ in arrays] == list(range(arrays[0][0], arrays[0][0] + len(arrays)))
    kept = [a for a, extent in enumerate(shape) if not (isinstance(extent, int) and extent == -1 and a in places)]
    before = sum(a < places[0] for a in kept) if adjacent else 0
    result = [shape[a] for a in kept]
    target = (*result[:before], *inner, *result[before:])
    where = {a: (k if k < before else k + len(inner)) for k, a in enumerate(kept)}

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
        return at(0, found)

    access: list[Access] = ["many"] * (1 + len(positions))
    return Map(target, array.element, [array, *positions], access, body, cost=2)


def _triangle(name: str, keep: Any) -> None:
    def operation(array: Any, k: Any = 0) -> Tensor:
        source = as_tensor(array)
        bound = as_tensor(k, elements.I64)

        def body(at: At, index: Index) -> Expr:
            offset = at(1, [zero()] * bound.ndim)
            return at.guard(keep(index[-1] - index[-2], offset), lambda: at(0, index), immediate(0, expression_type(source.element)))

        return Map(source.shape, source.element, [source, bound], ["same", "many"], body, cost=1)

    operation.__name__ = name
    primitive(operation)


_triangle("tril", lambda difference, offset: difference <= offset)
_triangle("triu", lambda difference, offset: difference >= offset)


def full(shape: Sequence[Any], value: Any, kind: Element) -> Any:
    """An array of one value; the extents may be dimensions."""
    if isinstance(value, Tensor):
        return PRIMITIVES["broadcast_to"](to_element(value, kind), tuple(shape))
    if all(isinstance(extent, int | np.integer) for extent in shape):
        return numpy_xp.full(shape, value, kind)
    return filled(shape, value, kind)


def zeros(shape: Sequence[Any], kind: Element) -> Any:
    return full(shape, 0, kind)


def arange(start: Any, stop: Any = None, step: Any = 1, **keywords: Any) -> Any:
    """start, start + step, …: with an extent in dimensions where they are."""
    first, last = (0, start) if stop is None else (start, stop)
    if all(not isinstance(x, Dim | Tensor) for x in (first, last, step)):
        return np.arange(first, last, step, **keywords)
    if isinstance(first, Tensor) or isinstance(last, Tensor) or isinstance(step, Tensor):
        raise Untraceable("a range's length depends on data")
    count = dims.ceil_divide(last - first, int(step))
    stride = immediate(int(step), "int64")
    return Map((count,), elements.I64, (), (), lambda at, index: index[0] * stride + at.dim(first))


PRIMITIVES.update(full=full, zeros=zeros, arange=arange)
