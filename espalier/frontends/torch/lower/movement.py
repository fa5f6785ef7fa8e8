"""Operators that only move elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import LAST, Scope
from espalier.frontends.torch.tensors import number
from espalier.ir import dims
from espalier.ir.dims import Dimension
from espalier.ir.elements import I64
from espalier.ir.graph import Value, constant_value


@lowers(
    "aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten._reshape_alias.default",
    "aten.view_copy.default", "aten._reshape_copy.default", "prims.reshape.default",
)  # fmt: skip
def view(s: Scope, x: Value, *_: Any) -> Value:
    return s.reshape(x, s.shape)


@lowers("aten.permute.default", "aten.permute_copy.default", "prims.transpose.default")
def permute(s: Scope, x: Value, order: Sequence[int]) -> Value:
    return s.transpose(x, [s.axis(axis, len(order)) for axis in order])


@lowers("aten.transpose.int", "aten.transpose_copy.int")
def transpose(s: Scope, x: Value, a: int, b: int) -> Value:
    return x if s.rank_of(x) == 0 else s.swap(x, a, b)


@lowers("aten.t.default", "aten.t_copy.default", "aten.numpy_T.default")
def transpose_all(s: Scope, x: Value) -> Value:
    return s.transpose(x, range(s.rank_of(x) - 1, -1, -1))


@lowers("aten.unsqueeze.default", "aten.unsqueeze_copy.default")
def unsqueeze(s: Scope, x: Value, dim: int) -> Value:
    return s.unsqueeze(x, s.axis(dim, s.rank_of(x) + 1))


@lowers(
    "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze_copy.default",
    "aten.squeeze_copy.dim", "aten.squeeze_copy.dims",
)  # fmt: skip
def squeeze(s: Scope, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    shape = s.shape_of(x)
    wanted = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = [s.axis(axis, len(shape)) for axis in wanted] if shape else []
    return s.squeeze(x, *(axis for axis in axes if shape[axis] == 1))


@lowers("prims.squeeze.default")
def squeeze_exactly(s: Scope, x: Value, axes: Sequence[int]) -> Value:
    return s.squeeze(x, *axes)


@lowers("aten.expand.default", "aten.expand_copy.default", "aten.broadcast_to.default")
def expand(s: Scope, x: Value, *_: Any, implicit: bool = False) -> Value:
    return s.expand(x, s.shape)


@lowers("prims.broadcast_in_dim.default")
def broadcast_in_axes(s: Scope, x: Value, shape: Sequence[Any], axes: Sequence[int]) -> Value:
    own = iter(s.shape_of(x))
    aligned = [next(own) if axis in axes else 1 for axis in range(len(shape))]
    return s.expand(s.reshape(x, aligned), s.shape)


@lowers("aten.slice.Tensor", "aten.slice_copy.Tensor")
def slice_(s: Scope, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    rank = s.rank_of(x)
    start, end = s.dim(0 if start is None else start), s.dim(LAST if end is None else end)
    return s.slice(x, s.axis(dim, rank), start, end, s.dim(step))  # type: ignore[arg-type]  # steps are static


@lowers("aten.select.int", "aten.select_copy.int")
def select(s: Scope, x: Value, dim: int, index: Any) -> Value:
    return s.select(x, s.axis(dim, s.rank_of(x)), s.dim(index))


@lowers(
    "aten.split_with_sizes.default",
    "aten.unsafe_split_with_sizes.default",
    "aten.split_with_sizes_copy.default",
    "aten.split.sizes",
)
def split_sizes(s: Scope, x: Value, sizes: Sequence[Any], dim: int = 0) -> tuple[Value, ...]:
    axis = s.axis(dim, s.rank_of(x))
    extents = [s.dim(size) for size in sizes]
    if len(extents) == 1:
        return (x,)
    return s.many.split(x, s.sizes(extents), axis=axis, results=len(extents))


@lowers(
    "aten.split.Tensor",
    "aten.unsafe_split.Tensor",
    "aten.chunk.default",
    "aten.unsafe_chunk.default",
    "aten.tensor_split.sections",
)
def split(s: Scope, x: Value, size: Any, dim: int = 0) -> tuple[Value, ...]:
    """Into the extents that torch computed."""
    axis = s.axis(dim, s.rank_of(x))
    return split_sizes(s, x, [s.known_shape(fake.shape)[axis] for fake in s.fakes], axis)


@lowers("aten.unbind.int", "aten.unbind_copy.int")
def unbind(s: Scope, x: Value, dim: int = 0) -> tuple[Value, ...]:
    axis = s.axis(dim, s.rank_of(x))
    return tuple(s.select(x, axis, index) if s.used(index) else x for index in range(len(s.fakes)))


@lowers("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(s: Scope, values: Sequence[Value], dim: int = 0) -> Value:
    # torch skips empty vectors whatever the rank of the others
    kept = [value for value in values if s.rank == 1 or tuple(s.shape_of(value)) != (0,)]
    return s.concat([s.cast(value, s.element) for value in kept], s.axis(dim, s.rank))


@lowers("aten.stack.default")
def stack(s: Scope, values: Sequence[Value], dim: int = 0) -> Value:
    axis = s.axis(dim, s.rank)
    return s.concat([s.unsqueeze(s.cast(value, s.element), axis) for value in values], axis)


@lowers("aten.flip.default")
def flip(s: Scope, x: Value, axes: Sequence[int]) -> Value:
    axes = [s.axis(axis, s.rank_of(x)) for axis in axes]
    if not axes or s.rank_of(x) == 0:
        return x
    count = len(axes)
    return s.b.slice(x, s.sizes([-1] * count), s.sizes([-LAST] * count), s.sizes(axes), s.sizes([-1] * count))


@lowers("aten.roll.default")
def roll(s: Scope, x: Value, shifts: Sequence[Any] | int, axes: Sequence[int] = ()) -> Value:
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    if not axes:
        shape = s.shape_of(x)
        return s.reshape(_rotate(s, s.reshape(x, (dims.product(shape),)), s.dim(shifts[0]), 0), shape)
    for shift, axis in zip(shifts, [axes] if isinstance(axes, int) else axes, strict=True):
        x = _rotate(s, x, s.dim(shift), s.axis(axis, s.rank_of(x)))
    return x


def _rotate(s: Scope, x: Value, shift: Dimension, axis: int) -> Value:
    shift = dims.modulo(shift, s.shape_of(x)[axis]) if s.shape_of(x)[axis] != 0 else 0
    if shift == 0:
        return x
    cut = s.shape_of(x)[axis] - shift
    return s.concat([s.slice(x, axis, cut, LAST), s.slice(x, axis, 0, cut)], axis)


@lowers("aten.repeat.default", "aten.tile.default")
def repeat(s: Scope, x: Value, repeats: Sequence[Any]) -> Value:
    counts = [s.dim(count) for count in repeats]
    rank = s.rank_of(x)
    counts = [*[1] * (rank - len(counts)), *counts]
    x = s.unsqueeze(x, *range(len(counts) - rank))
    return x if all(count == 1 for count in counts) else s.b.tile(x, s.sizes(counts))


@lowers("aten.repeat_interleave.Tensor")
def repeat_interleave(s: Scope, repeats: Value, output_size: Any = None) -> Value:
    """The index k, repeats[k] times: how many running sums each output position has passed."""
    ends = s.b.cum_sum(s.cast(repeats, I64), number(0, I64))
    if output_size is not None:
        total = s.number(s.dim(output_size), I64)
    else:
        total = s.b.reduce_sum(s.cast(repeats, I64), s.sizes([0]), keepdims=0)
    positions = s.b.range(number(0, I64), total, number(1, I64))
    passed = s.b.less_or_equal(ends, s.unsqueeze(positions, 1))
    return s.cast(s.b.reduce_sum(s.cast(passed, I64), s.sizes([1]), keepdims=0), s.element)


@lowers("aten.unfold.default", "aten.unfold_copy.default")
def unfold(s: Scope, x: Value, dim: int, size: int, step: int) -> Value:
    """All windows of an axis, as a new last axis."""
    rank = s.rank_of(x)
    if rank == 0:
        return s.reshape(x, (1,) * s.rank)
    return windows(s, x, s.axis(dim, rank), size, step)


def windows(s: Scope, x: Value, axis: int, size: int, step: int) -> Value:
    """Windows of `size` every `step` positions of an axis: the axis counts windows, a new last one runs inside."""
    rank, extent = s.rank_of(x), s.shape_of(x)[axis]
    count = dims.floor_divide(extent - size, step) + 1
    starts = s.unsqueeze(s.arange(count), 1)
    index: Value
    if isinstance(count, int):
        index = constant_value(np.arange(count)[:, None] * step + np.arange(size))
    else:
        index = s.b.add(s.b.mul(starts, number(step, I64)), constant_value(np.arange(size)))
    found = s.b.gather(x, index, axis=axis)
    return s.transpose(found, [*(k for k in range(rank + 1) if k != axis + 1), axis + 1])


@lowers("aten.diagonal.default", "aten.diagonal_copy.default")
def diagonal(s: Scope, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    rank, shape = s.rank_of(x), s.shape_of(x)
    a, b = s.axis(dim1, rank), s.axis(dim2, rank)
    rows, columns = shape[a], shape[b]
    rest = [axis for axis in range(rank) if axis not in (a, b)]
    flat = s.reshape(s.transpose(x, [*rest, a, b]), [*(shape[axis] for axis in rest), rows * columns])
    first = offset if offset >= 0 else columns * -offset
    index = s.b.add(s.b.mul(s.arange(s.shape[-1]), s.number(columns + 1, I64)), s.number(first, I64))
    return s.b.gather(flat, index, axis=len(rest))


def _triangle(upper: int) -> Callable[..., Value]:
    def lower(s: Scope, x: Value, diagonal: Any = 0) -> Value:
        return s.b.trilu(x, s.number(s.dim(diagonal), I64), upper=upper)

    return lower


lowers("aten.tril.default")(_triangle(0))
lowers("aten.triu.default")(_triangle(1))


def pad(s: Scope, x: Value, amounts: Sequence[Any], mode: str, value: Any = None) -> Value:
    """Torch's pads (begin and end of the last axis first) as ONNX's (all begins, then all ends)."""
    rank = s.rank_of(x)
    entries = [s.dim(amount) for amount in amounts]
    if all(entry == 0 for entry in entries):
        return x
    begins: list[Dimension] = [0] * rank
    ends: list[Dimension] = [0] * rank
    for k in range(len(entries) // 2):
        begins[rank - 1 - k], ends[rank - 1 - k] = entries[2 * k], entries[2 * k + 1]
    fill = None if mode != "constant" else s.number(0 if value is None else value, x.element)
    return s.b.pad(x, s.sizes([*begins, *ends]), fill, mode=mode)


@lowers("aten.constant_pad_nd.default")
def constant_pad(s: Scope, x: Value, amounts: Sequence[Any], value: Any = 0) -> Value:
    return pad(s, x, amounts, "constant", value)


def _padding(mode: str) -> Callable[..., Value]:
    def lower(s: Scope, x: Value, amounts: Sequence[Any]) -> Value:
        return pad(s, x, amounts, mode)

    return lower


lowers(*(f"aten.reflection_pad{n}d.default" for n in (1, 2, 3)))(_padding("reflect"))
lowers(*(f"aten.replication_pad{n}d.default" for n in (1, 2, 3)))(_padding("edge"))
lowers("aten._pad_circular.default")(_padding("wrap"))


@lowers("aten.pixel_shuffle.default")
def pixel_shuffle(s: Scope, x: Value, factor: int) -> Value:
    rank = s.rank_of(x)
    if rank == 4:
        return s.b.depth_to_space(x, blocksize=factor, mode="CRD")
    lead = s.shape_of(x)[:-3]
    flat = s.reshape(x, (dims.product(lead), *s.shape_of(x)[-3:]))
    return s.reshape(s.b.depth_to_space(flat, blocksize=factor, mode="CRD"), s.shape)


@lowers("aten.pixel_unshuffle.default")
def pixel_unshuffle(s: Scope, x: Value, factor: int) -> Value:
    """Channels before offsets, which ONNX's SpaceToDepth has the other way round."""
    *lead, c, h, w = s.shape_of(x)
    n, r = len(lead), factor
    apart = s.reshape(x, (*lead, c, dims.floor_divide(h, r), r, dims.floor_divide(w, r), r))
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return s.reshape(s.transpose(apart, order), s.shape)


@lowers("aten.as_strided.default", "aten.as_strided_copy.default")
def as_strided(s: Scope, x: Value, size: Sequence[Any], stride: Sequence[Any], offset: Any = None) -> Value:
    """Any strides over a tensor that torch keeps contiguous: positions computed here, read with one gather."""
    fake = s.argument_fake(0)
    numbers = [*size, *stride, offset or 0]
    if not fake.is_contiguous() or not all(isinstance(entry, int) for entry in numbers):
        s.refuse("strided views of tensors that are not contiguous, or of dynamic extents")
    index = np.full((), offset or 0, np.int64)
    for extent, step in zip(size, stride, strict=True):
        index = index[..., None] + np.arange(extent) * step
    flat = s.reshape(x, (dims.product(s.shape_of(x)),))
    if index.size == math.prod(index.shape) and np.array_equal(index.reshape(-1), np.arange(index.size)):
        return s.reshape(s.slice(flat, 0, 0, index.size), s.shape)
    return s.b.gather(flat, constant_value(index), axis=0)
