"""Primitives that move entries: indexing, reshaping, joining, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm.arithmetic import (
    PRIMITIVES,
    as_tensor,
    filled,
    primitive,
    promoted,
    to_element,
)  # fmt: skip
from espalier.backends.tvm.numbers import expression_type, immediate, select
from espalier.backends.tvm.requirements import path, require
from espalier.backends.tvm.selection import getitem, take, view, zero
from espalier.backends.tvm.tensor import (
    Affine,
    Alias,
    At,
    Constant,
    Dequantized,
    Expr,
    Index,
    Map,
    Tensor,
    Untraceable,
    moved,
)
from espalier.ir import dims, elements
from espalier.ir.agreement import Requirement
from espalier.ir.dims import Dim, Dimension
from espalier.ir.elements import Element
from espalier.ir.xp import numpy as numpy_xp


@primitive
def transpose(array: Any, perm: Sequence[int]) -> Tensor:
    perm = tuple(int(axis) % array.ndim for axis in perm)
    if perm == tuple(range(array.ndim)):
        return array  # type: ignore[no-any-return]  # any array, that is a tensor here
    if isinstance(array, Constant):
        return _transposed(array, perm)
    inverse = [perm.index(axis) for axis in range(array.ndim)]
    return view(array, [array.shape[axis] for axis in perm], lambda at, index: [index[axis] for axis in inverse])


def _transposed(array: Constant, perm: tuple[int, ...]) -> Constant:
    """A constant with its axes in another order, and what it is dequantized from."""

    def numbers() -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(array.array.transpose(perm))

    held = array.affine
    if held is None:
        return Constant(numbers(), array.element)
    assert isinstance(held.stored, Constant)
    axis = None if held.axis is None else perm.index(held.axis)
    scale, zero = (each.transpose(perm) if held.block else each for each in (held.scale, held.zero))
    affine = Affine(_transposed(held.stored, perm), scale, zero, axis, held.block)
    return Dequantized(affine, array.element, numbers)


@primitive
def reshape(array: Any, shape: Any) -> Tensor:
    """The same entries under another shape; one −1 is worked out."""
    target = list(shape) if isinstance(shape, list | tuple | np.ndarray) else [shape]
    target = [extent if isinstance(extent, Dim) else int(extent) for extent in target]
    if -1 in target:
        known = dims.product(extent for extent in target if not (isinstance(extent, int) and extent == -1))
        if known == 0:
            raise Untraceable("the shape to reshape to is ambiguous")
        rest = dims.floor_divide(array.size, known)
        target[target.index(-1)] = rest
    target = [extent if isinstance(extent, Dim) else int(extent) for extent in target]
    if tuple(target) == array.shape:
        return array  # type: ignore[no-any-return]  # any array, that is a tensor here
    size, wanted = array.size, dims.product(target)
    if isinstance(size, int) and isinstance(wanted, int) and size != wanted:
        raise Untraceable(f"{array.shape} can't be reshaped to {tuple(target)}")
    if [extent for extent in target if extent != 1] == [extent for extent in array.shape if extent != 1]:
        return _unit_axes(array, target)
    if size == 0:
        return filled(target, 0, array.element)
    if path() and size != wanted:
        array = resized(Alias(array, (size,)), (wanted,))
    return moved(Alias(array, tuple(target)), [array], lambda stored: Alias(stored[0], tuple(target)))


def _unit_axes(array: Tensor, target: Sequence[Dimension]) -> Tensor:
    """A reshape that only adds and drops axes of extent 1."""
    places = [axis for axis, extent in enumerate(target) if extent != 1]
    kept = [axis for axis, extent in enumerate(array.shape) if extent != 1]
    where = dict(zip(kept, places, strict=True))

    def position(at: At, index: Index) -> list[Expr]:
        return [index[where[axis]] if axis in where else zero() for axis in range(array.ndim)]

    found = view(array, target, position, "same")
    found.function = lambda at, entry: entry
    return found


@primitive
def squeeze(array: Any, axis: Any = None) -> Tensor:
    axes = range(array.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    dropped = {int(a) % array.ndim for a in axes if axis is not None or array.shape[a] == 1}
    for a in dropped:
        if isinstance(array.shape[a], int) and array.shape[a] != 1:
            raise Untraceable(f"axis {a} of {array.shape} can't be dropped")
        if array.shape[a] != 1:
            require(Requirement(array.shape[a], "be", 1))
    target = [extent for a, extent in enumerate(array.shape) if a not in dropped]
    kept = [a for a in range(array.ndim) if a not in dropped]

    def position(at: At, index: Index) -> list[Expr]:
        return [index[kept.index(a)] if a in kept else zero() for a in range(array.ndim)]

    return view(array, target, position, "same")


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
def roll(array: Any, shift: Any, axis: Any = None) -> Any:
    if axis is None:
        return reshape(roll(reshape(array, (-1,)), shift, 0), array.shape)
    pairs = [(shift, axis)] if isinstance(axis, int) else list(zip(shift, axis, strict=True))
    for amount, along in pairs:
        along = along % array.ndim
        extent = array.shape[along]
        first = (
            dims.modulo(extent - amount, extent) if isinstance(extent, Dim) else (extent - int(amount)) % max(extent, 1)
        )
        array = concat([_part(array, along, first, extent), _part(array, along, 0, first)], along)
    return array


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

    found = Map(tuple(shape), element, parts, ["once"] * len(parts), body, cost=1)
    return moved(found, parts, lambda stored: concat(stored, axis))


@primitive
def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    rank = np.ndim(arrays[0]) if not isinstance(arrays[0], Tensor) else arrays[0].ndim
    return concat([PRIMITIVES["expand_dims"](array, axis % (rank + 1)) for array in arrays], axis % (rank + 1))


@primitive
def tile(array: Any, repeats: Any) -> Tensor:
    """The whole array repeated along each axis."""
    times = [
        r if isinstance(r, Dim) else int(r)
        for r in (repeats if isinstance(repeats, list | tuple | np.ndarray) else [repeats])
    ]
    rank = max(len(times), array.ndim)
    times = [*[1] * (rank - len(times)), *times]
    array = reshape(array, (1,) * (rank - array.ndim) + array.shape)
    shape = [extent * r for extent, r in zip(array.shape, times, strict=True)]

    def position(at: At, index: Index) -> list[Expr]:
        return [
            entry if r == 1 else zero() if extent == 1 else tirx.floormod(entry, at.dim(extent))
            for entry, extent, r in zip(index, array.shape, times, strict=True)
        ]

    return view(array, shape, position, "many")


@primitive
def repeat(array: Any, repeats: Any, axis: int | None = None) -> Any:
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
    pads = [tuple(p if isinstance(p, Dim) else int(p) for p in pair) for pair in pads]  # type: ignore[misc]  # pairs
    source = as_tensor(array)
    if all(pair == (0, 0) for pair in pads):
        return source
    shape = [extent + before + after for extent, (before, after) in zip(source.shape, pads, strict=True)]
    if mode != "constant":
        return _pad_by_index(source, pads, shape, mode)
    filler = as_tensor(
        to_element(value, source.element)
        if isinstance(value, Tensor | np.ndarray | np.generic)
        else np.asarray(value).astype(source.element.dtype)
    )

    def body(at: At, index: Index) -> Expr:
        inside, place = None, []
        for entry, extent, (before, after) in zip(index, source.shape, pads, strict=True):
            here = entry if before == 0 else entry - at.dim(before)
            place.append(here)
            bounds = [] if isinstance(before, int) and before <= 0 else [here >= zero()]
            if not (isinstance(after, int) and after <= 0):
                bounds.append(here < at.dim(extent))
            for condition in bounds:
                inside = condition if inside is None else tirx.And(inside, condition)
        outside = at(1, [zero()] * filler.ndim)
        return at(0, place) if inside is None else at.guard(inside, lambda: at(0, place), outside)

    found = Map(tuple(shape), source.element, [source, filler], ["once", "many"], body, cost=1)
    if isinstance(filler, Constant) and not filler.array.any():  # 0 is the zero point
        held = source.affine
        nothing = 0 if held is None or held.axis is not None else held.zero.item()
        return moved(found, [source], lambda stored: pad(stored[0], pads, value=nothing))
    return found


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
            found = tirx.floormod(here, tirx.max(span, immediate(1, "int64")))
        elif mode == "reflect":
            period = tirx.max(2 * (span - 1), immediate(1, "int64"))
            folded = tirx.floormod(here, period)
            found = tirx.min(folded, period - folded)
            found = select(tirx.EQ(span, immediate(1, "int64")), zero(), found)
        else:
            raise Untraceable(f"there is no padding mode {mode!r}")
        return found + immediate(low, "int64")

    def position(at: At, index: Index) -> list[Expr]:
        return [place(at, entry, extent, *pair) for entry, extent, pair in zip(index, source.shape, pads, strict=True)]

    return view(source, shape, position, "many", cost=2)


def resized(array: Any, shape: Sequence[Dimension]) -> Tensor:
    """The array with positions cut off or added at the end of each axis, so that nothing outside of it is read."""
    found: Tensor = PRIMITIVES["pad"](
        as_tensor(array), [(0, extent - old) for extent, old in zip(shape, array.shape, strict=True)]
    )
    return found


@primitive
def windows(
    array: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[Any]
) -> Tensor:
    """All windows over the last axes: shape (…, *counts, *kernel)."""
    spatial = len(kernel)
    lead = array.ndim - spatial

    def position(at: At, index: Index) -> list[Expr]:
        places = [
            index[lead + k] * immediate(int(strides[k]), "int64")
            + index[lead + spatial + k] * immediate(int(dilations[k]), "int64")
            for k in range(spatial)
        ]
        return [*index[:lead], *places]

    return view(array, [*array.shape[:lead], *counts, *kernel], position, "many")


def _triangle(name: str, keep: Any) -> None:
    def operation(array: Any, k: Any = 0) -> Tensor:
        source = as_tensor(array)
        bound = as_tensor(k, elements.I64)

        def body(at: At, index: Index) -> Expr:
            offset = at(1, [zero()] * bound.ndim)
            return at.guard(
                keep(index[-1] - index[-2], offset), lambda: at(0, index), immediate(0, expression_type(source.element))
            )

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
        raise Untraceable(
            "a range's length depends on data", next(x for x in (first, last, step) if isinstance(x, Tensor))
        )
    count = dims.ceil_divide(last - first, int(step))
    stride = immediate(int(step), "int64")
    return Map((count,), elements.I64, (), (), lambda at, index: index[0] * stride + at.dim(first))


PRIMITIVES.update(full=full, zeros=zeros, arange=arange)
