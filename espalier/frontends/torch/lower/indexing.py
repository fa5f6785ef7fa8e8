"""Reading and writing at computed positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import LAST, Scope
from espalier.frontends.torch.tensors import number
from espalier.ir import dims
from espalier.ir.dims import Dimension, Shape
from espalier.ir.elements import BOOL, I32, I64, U8
from espalier.ir.graph import Value, constant_value

Indices = Sequence[Value | None]


def positions(s: Scope, index: Value) -> Value:
    """An index tensor as ONNX takes it."""
    return index if index.element in (I32, I64) else s.cast(index, I64)


def nonzero_positions(s: Scope, mask: Value) -> Value:
    """The positions of what is not zero: count × rank."""
    return s.transpose(s.b.non_zero(mask), (1, 0))


@lowers("aten.nonzero.default")
def nonzero(s: Scope, x: Value) -> Value:
    if s.rank_of(x) == 0:
        found = nonzero_positions(s, s.reshape(x, (1,)))
        return s.slice(found, 1, 0, 0)
    return nonzero_positions(s, x)


@lowers("aten.argwhere.default")
def argwhere(s: Scope, x: Value) -> Value:
    return nonzero(s, x)


@lowers("aten.masked_select.default")
def masked_select(s: Scope, x: Value, mask: Value) -> Value:
    shape = s.broadcast_shape(s.shape_of(x), s.shape_of(mask))
    flat = s.reshape(s.expand(x, shape), (dims.product(shape),))
    kept = s.reshape(s.expand(mask, shape), (dims.product(shape),))
    return s.b.compress(flat, kept, axis=0)


@lowers("aten.masked_scatter.default")
def masked_scatter(s: Scope, x: Value, mask: Value, source: Value) -> Value:
    """Under the mask, the elements of the source one after another."""
    shape = s.shape
    size = dims.product(shape)
    flat, under = s.reshape(s.expand(x, shape), (size,)), s.reshape(s.expand(mask, shape), (size,))
    order = s.b.sub(s.b.cum_sum(s.cast(under, I64), number(0, I64)), number(1, I64))
    supply = s.reshape(source, (dims.product(s.shape_of(source)),))
    if supply.shape == (0,):
        return s.expand(x, shape)
    taken = s.b.gather(supply, s.b.max(order, number(0, I64)), axis=0)
    # torch asks for a source that is long enough; positions outside of the mask read within bounds here
    return s.reshape(s.b.where(under, taken, flat), shape)


@lowers("aten.embedding.default")
def embedding(s: Scope, weight: Value, indices: Value, *_: Any, **__: Any) -> Value:
    return s.b.gather(weight, positions(s, indices), axis=0)


@lowers("aten._embedding_bag.default", "aten._embedding_bag_forward_only.default")
def embedding_bag(
    s: Scope, weight: Value, indices: Value, offsets: Value, scale_grad_by_freq: bool = False, mode: int = 0,
    sparse: bool = False, per_sample_weights: Value | None = None, include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Value, ...]:  # fmt: skip
    """Sums (mode 0), means (1) or maxima (2) of rows; bag k holds the indices from offsets[k] to the next offset."""
    if any(s.used(index) for index in range(1, 4)):
        s.refuse("the bookkeeping of the bags")
    count, place = s.shape_of(indices)[0], s.arange(s.shape_of(indices)[0])
    starts = s.cast(offsets, I64)
    bags = s.shape_of(starts)[0] - int(include_last_offset)
    passed = s.b.less_or_equal(starts, s.unsqueeze(place, 1))
    bag = s.b.sub(s.b.reduce_sum(s.cast(passed, I64), s.sizes([1]), keepdims=0), number(1, I64))
    member = s.b.equal(s.unsqueeze(s.arange(bags), 1), bag)  # bags × indices
    if padding_idx >= 0:
        member = s.b.logical_and(member, s.b.logical_not(s.b.equal(s.cast(indices, I64), number(padding_idx, I64))))
    rows = embedding(s, weight, indices)
    if mode == 2:
        wide = s.expand(s.unsqueeze(rows, 0), (bags, count, s.shape_of(weight)[1]))
        low = number(-math.inf, weight.element)
        top = s.b.reduce_max(s.b.where(s.unsqueeze(member, 2), wide, low), s.sizes([1]), keepdims=0)
        return (s.b.where(s.b.equal(top, low), s.zero_like(top), top),)
    if per_sample_weights is not None:
        rows = s.b.mul(rows, s.unsqueeze(per_sample_weights, 1))
    chosen = s.cast(member, weight.element)
    total = s.b.matmul(chosen, rows)
    if mode == 1:
        size = s.b.max(s.b.reduce_sum(chosen, s.sizes([1])), number(1, weight.element))
        total = s.b.div(total, size)
    return (total,)


@lowers("aten.index_select.default")
def index_select(s: Scope, x: Value, dim: int, index: Value) -> Value:
    rank = s.rank_of(x)
    if rank == 0:
        return x
    if s.rank_of(index) == 0:
        index = s.reshape(index, (1,))
    return s.b.gather(x, positions(s, index), axis=s.axis(dim, rank))


@lowers("aten.take.default")
def take(s: Scope, x: Value, index: Value) -> Value:
    return s.b.gather(s.reshape(x, (dims.product(s.shape_of(x)),)), positions(s, index), axis=0)


def spread(s: Scope, x: Value, indices: Indices) -> list[Value | None]:
    """Integer indices only: a mask becomes the positions of its true elements, one index per axis of it."""
    found: list[Value | None] = []
    for index in indices:
        if index is not None and index.element in (BOOL, U8):
            where = s.b.non_zero(index)
            found += [s.select(where, 0, axis) for axis in range(s.rank_of(index))]
        else:
            found.append(None if index is None else positions(s, index))
    return found


@lowers("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(s: Scope, x: Value, indices: Indices) -> Value:
    """x[…]: one index is a gather; several are broadcast and read together."""
    single = [k for k, entry in enumerate(indices) if entry is not None]
    if len(single) == 1:
        entry = indices[single[0]]
        assert entry is not None
        if entry.element in (BOOL, U8) and s.rank_of(entry) == 1:
            return s.b.compress(x, s.cast(entry, BOOL), axis=single[0])
    found = spread(s, x, indices)
    axes = [k for k, entry in enumerate(found) if entry is not None]
    if not axes:
        return x
    given = [entry for entry in found if entry is not None]
    if len(axes) == 1:
        return s.b.gather(x, given[0], axis=axes[0])
    order, place = gathered_order(axes, s.rank_of(x))
    together, common = joined(s, given)
    read = s.b.gather_nd(s.transpose(x, order), together)
    if place == 0:
        return read
    rest = s.rank_of(x) - len(axes)
    return s.transpose(
        read, [*(common + k for k in range(place)), *range(common), *(common + k for k in range(place, rest))]
    )


def gathered_order(axes: Sequence[int], rank: int) -> tuple[list[int], int]:
    """The axes with the indexed ones first; how many others the result has before those of the indices."""
    rest = [axis for axis in range(rank) if axis not in axes]
    adjacent = list(axes) == list(range(axes[0], axes[0] + len(axes)))
    return [*axes, *rest], axes[0] if adjacent else 0


def joined(s: Scope, indices: Sequence[Value]) -> tuple[Value, int]:
    """Indices broadcast against each other, side by side on a new last axis; and the rank before that axis."""
    shape = s.broadcast_shape(*(s.shape_of(entry) for entry in indices))
    columns = [s.unsqueeze(s.expand(s.cast(entry, I64), shape), len(shape)) for entry in indices]
    return s.concat(columns, len(shape)), len(shape)


@lowers("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(s: Scope, x: Value, indices: Indices, values: Value, accumulate: bool = False) -> Value:
    values = s.cast(values, x.element)
    given = [entry for entry in indices if entry is not None]
    if not accumulate and len(given) == 1 and given[0].element == BOOL and dims.product(s.shape_of(values)) == 1:
        first = next(k for k, entry in enumerate(indices) if entry is not None)
        mask = given[0]
        after = s.rank_of(x) - first - s.rank_of(mask)
        mask = s.unsqueeze(mask, *range(s.rank_of(mask), s.rank_of(mask) + after))
        return s.b.where(mask, s.scalar(values), x)
    found = spread(s, x, indices)
    axes = [k for k, entry in enumerate(found) if entry is not None]
    order, place = gathered_order(axes, s.rank_of(x))
    together, common = joined(s, [entry for entry in found if entry is not None])
    moved = s.transpose(x, order)
    lead = s.shape_of(together)[:-1]
    rest = s.shape_of(moved)[len(axes) :]
    # values stand as the indexing would read them: other axes, those of the indices, other axes
    written = s.expand(values, (*rest[:place], *lead, *rest[place:]))
    written = s.transpose(
        written, [*range(place, place + common), *range(place), *range(place + common, common + len(rest))]
    )
    result = add_nd(s, moved, together, written) if accumulate else s.b.scatter_nd(moved, together, written)
    return s.transpose(result, [order.index(k) for k in range(len(order))])


def add_nd(s: Scope, x: Value, indices: Value, updates: Value) -> Value:
    """Sum updates into positions; bools become true."""
    if x.element == BOOL:
        return s.cast(s.b.scatter_nd(s.cast(x, I32), indices, s.cast(updates, I32), reduction="add"), BOOL)
    return s.b.scatter_nd(x, indices, updates, reduction="add")


def _narrowed(s: Scope, x: Value, shape: Shape, but: int | None = None) -> Value:
    """The first positions of each axis, as many as the shape has."""
    for axis, (own, wanted) in enumerate(zip(s.shape_of(x), shape, strict=True)):
        if axis != but and own != wanted:
            x = s.slice(x, axis, 0, wanted)
    return x


@lowers("aten.gather.default")
def gather(s: Scope, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    rank = s.rank_of(x)
    if rank == 0 or s.rank_of(index) == 0:
        flat = s.b.gather(s.reshape(x, (dims.product(s.shape_of(x)),)), s.reshape(index, (1,)), axis=0)
        return s.reshape(flat, s.shape)
    axis = s.axis(dim, rank)
    return s.b.gather_elements(_narrowed(s, x, s.shape_of(index), axis), positions(s, index), axis=axis)


def _scatter(s: Scope, x: Value, dim: int, index: Value, source: Value, reduction: str = "none") -> Value:
    shape, rank = s.shape_of(x), s.rank_of(x)
    if rank == 0:
        found = _scatter(s, s.reshape(x, (1,)), 0, s.reshape(index, (1,)), s.reshape(source, (1,)), reduction)
        return s.reshape(found, ())
    if 0 in s.shape_of(index):
        return x
    source = _narrowed(s, source, s.shape_of(index))
    extra = {} if reduction == "none" else {"reduction": reduction}
    return s.reshape(s.b.scatter_elements(x, positions(s, index), source, axis=s.axis(dim, rank), **extra), shape)


@lowers("aten.scatter.src")
def scatter(s: Scope, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _scatter(s, x, dim, index, source)


@lowers("aten.scatter.value")
def scatter_value(s: Scope, x: Value, dim: int, index: Value, value: Any) -> Value:
    return _scatter(s, x, dim, index, s.expand(s.number(value, x.element), s.shape_of(index)))


@lowers("aten.scatter_add.default")
def scatter_add(s: Scope, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _scatter(s, x, dim, index, source, "add")


_REDUCTIONS = {"add": "add", "sum": "add", "multiply": "mul", "prod": "mul", "amax": "max", "amin": "min"}


@lowers("aten.scatter.reduce", "aten.scatter.value_reduce")
def scatter_reducing(s: Scope, x: Value, dim: int, index: Value, source: Any, reduce: str) -> Value:
    if not isinstance(source, Value):
        source = s.expand(s.number(source, x.element), s.shape_of(index))
    return _scatter(s, x, dim, index, source, _REDUCTIONS[reduce])


@lowers("aten.scatter_reduce.two")
def scatter_reduce(
    s: Scope, x: Value, dim: int, index: Value, source: Value, reduce: str, include_self: bool = True
) -> Value:
    source = _narrowed(s, source, s.shape_of(index))
    shape = s.shape_of(index)
    if not include_self:
        x = _scatter(s, x, dim, index, s.full(shape, _neutral(x, reduce), x.element))
    if reduce != "mean":
        return _scatter(s, x, dim, index, source, _REDUCTIONS[reduce])
    total = _scatter(s, x, dim, index, source, "add")
    ones, start = s.full(shape, 1, x.element), s.full(s.shape_of(x), int(include_self), x.element)
    count = s.b.max(_scatter(s, start, dim, index, ones, "add"), number(1, x.element))
    if x.element.is_float:
        return s.b.div(total, count)
    return s.b.div(s.b.sub(total, s.b.mod(total, count)), count)


def _neutral(x: Value, reduce: str) -> Any:
    """What changes nothing when it is reduced with."""
    if reduce in ("amax", "amin"):
        if x.element.is_float:
            return -math.inf if reduce == "amax" else math.inf
        return x.element.range[0 if reduce == "amax" else 1]
    return 1 if reduce == "prod" else 0


@lowers("aten.index_add.default")
def index_add(s: Scope, x: Value, dim: int, index: Value, source: Value, alpha: Any = 1) -> Value:
    source = s.cast(source, x.element)
    if alpha != 1:
        source = s.b.mul(source, s.number(alpha, x.element))
    return _along(s, x, dim, index, source, accumulate=True)


@lowers("aten.index_copy.default")
def index_copy(s: Scope, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _along(s, x, dim, index, s.cast(source, x.element), accumulate=False)


@lowers("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def index_fill(s: Scope, x: Value, dim: int, index: Value, value: Any) -> Value:
    axis = s.axis(dim, s.rank_of(x))
    count = s.shape_of(index)[0] if s.rank_of(index) else 1
    shape = [count if k == axis else extent for k, extent in enumerate(s.shape_of(x))]
    return _along(s, x, dim, index, s.expand(s.operand(value, x.element), shape), accumulate=False)


def _along(s: Scope, x: Value, dim: int, index: Value, source: Value, accumulate: bool) -> Value:
    """Write (or add) slices of one axis at the positions of a one-dimensional index."""
    rank = s.rank_of(x)
    if rank == 0:
        found = _along(s, s.reshape(x, (1,)), 0, s.reshape(index, (1,)), s.reshape(source, (1,)), accumulate)
        return s.reshape(found, ())
    axis = s.axis(dim, rank)
    order = [axis, *(k for k in range(rank) if k != axis)]
    column = s.unsqueeze(s.cast(index, I64), 1) if s.rank_of(index) else s.reshape(s.cast(index, I64), (1, 1))
    moved, written = s.transpose(x, order), s.transpose(source, order)
    result = add_nd(s, moved, column, written) if accumulate else s.b.scatter_nd(moved, column, written)
    return s.transpose(result, [order.index(k) for k in range(rank)])


@lowers("aten.slice_scatter.default")
def slice_scatter(
    s: Scope, x: Value, source: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    """Parts before and after are kept; with a step, positions are computed and written."""
    axis = s.axis(dim, s.rank_of(x))
    extent = s.shape_of(x)[axis]
    first, last = (_position(s, entry, default, extent) for entry, default in ((start, 0), (end, LAST)))
    written = s.expand(source, [
        s.shape_of(source)[k] if k == axis else own for k, own in enumerate(s.shape_of(x))
    ])  # fmt: skip
    if step == 1:
        end_of = first + s.shape_of(source)[axis]
        parts = [] if first == 0 else [s.slice(x, axis, 0, first)]
        parts.append(written)
        if end_of != extent:
            parts.append(s.slice(x, axis, end_of, LAST))
        return s.concat(parts, axis)
    if not isinstance(first, int) or not isinstance(last, int):
        s.refuse("writing every n-th position of a dynamic range", code="E405")
    return _along(s, x, axis, constant_value(np.arange(first, last, step)), written, accumulate=False)


def _position(s: Scope, entry: Any, default: int, extent: Dimension) -> Dimension:
    """A start or an end as a position from the front, inside the axis."""
    place = s.dim(default if entry is None else entry)
    if isinstance(place, int) and place < 0:
        place = extent + place
    if isinstance(place, int) and place >= LAST or place == extent:
        return extent
    if isinstance(place, int) and isinstance(extent, int):
        return min(max(place, 0), extent)
    return place


@lowers("aten.select_scatter.default")
def select_scatter(s: Scope, x: Value, source: Value, dim: int, index: Any) -> Value:
    axis = s.axis(dim, s.rank_of(x))
    place = _position(s, index, 0, s.shape_of(x)[axis])
    return slice_scatter(s, x, s.unsqueeze(source, axis), axis, place, place + 1)


@lowers("aten.diagonal_scatter.default")
def diagonal_scatter(s: Scope, x: Value, source: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    rank, shape = s.rank_of(x), s.shape_of(x)
    a, b = s.axis(dim1, rank), s.axis(dim2, rank)
    row, column = s.arange(shape[a]), s.arange(shape[b])
    on = s.b.equal(s.b.add(s.unsqueeze(row, 1), number(offset, I64)), s.unsqueeze(column, 0))
    rest = [axis for axis in range(rank) if axis not in (a, b)]
    order = [*rest, a, b]
    # each row of the diagonal spreads over its row (or column) of the matrix
    lead = max(-offset, 0)
    index = s.b.sub(row, number(lead, I64))
    count = s.shape_of(source)[-1]
    inside = s.b.min(s.b.max(index, number(0, I64)), s.number(count - 1, I64))
    values = s.unsqueeze(s.b.gather(source, inside, axis=rank - 2), rank - 1)
    found = s.b.where(on, values, s.transpose(x, order))
    return s.transpose(found, [order.index(k) for k in range(rank)])


@lowers("aten.one_hot.default")
def one_hot(s: Scope, x: Value, classes: int = -1) -> Value:
    if classes == -1:
        s.refuse("the number of classes must be given: it would depend on the data", code="E405")
    hits = s.b.equal(s.unsqueeze(s.cast(x, I64), s.rank_of(x)), s.arange(s.dim(classes)))
    return s.cast(hits, I64)
