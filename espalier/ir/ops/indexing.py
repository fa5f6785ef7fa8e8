"""Operators whose operands say by data where elements are read or written: gathers, scatters, one-hot vectors."""

from __future__ import annotations

import itertools
from typing import Any

from espalier.ir import dims, elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Shape
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, TypeContext, op
from espalier.ir.ops.movement import axis_index, described, length, listed, unknown_shape, variables
from espalier.ir.terms import Term, Variable, product
from espalier.ir.types import TensorType, Type

INDEXED = "indexed by data"


@op("gather", onnx="Gather")
class Gather(Op):
    """Slices of data at the indices of one axis; the axes of `indices` take its place."""

    data: In
    indices: In
    axis: int = 0

    zero = zeros.first
    symbolic = True
    moves = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        data, indices = ctx.shape("data"), ctx.shape("indices")
        if data is None or indices is None:
            return None
        axis = axis_index(self.axis, len(data))
        ins, places = variables(data), variables(indices)
        ins[axis] = Variable(data[axis], INDEXED)
        return described(ctx, [ins, places], [[*ins[:axis], *places, *ins[axis + 1 :]]])

    def reference(self, xp: Any, data: Any, indices: Any) -> Any:
        axis = self.axis % data.ndim
        return xp.asarray(xp.take(data, xp.positions(indices, data.shape[axis]), axis=axis))


def grids(xp: Any, extents: Shape, rank: int) -> list[Any]:
    """For each axis k, its positions as an array of `rank` axes that lie along axis k."""
    return [
        xp.reshape(xp.arange(extent), tuple(-1 if k == axis else 1 for k in range(rank)))
        for axis, extent in enumerate(extents)
    ]


def aligned(data: Shape, indices: Shape, axis: int) -> list[Term]:
    """Terms of `indices`: data's own where the extents agree, pinned ones where fewer positions are used."""
    return [
        Variable(extent, INDEXED if k != axis and extent != whole else None)
        for k, (extent, whole) in enumerate(zip(indices, data, strict=True))
    ]


@op("gather_elements", onnx="GatherElements")
class GatherElements(Op):
    """out[i, j, …] = data[i, indices[i, j, …], …]: indices of one axis, for each element of its own."""

    data: In
    indices: In
    axis: int = 0

    zero = zeros.first
    moves = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        data, indices = ctx.shape("data"), ctx.shape("indices")
        if data is None or indices is None:
            return None
        axis = _elementwise_axis(ctx, self.axis, data, indices)
        places = aligned(data, indices, axis)
        ins: list[Term] = [
            place if k != axis and place.extent == extent else Variable(extent, INDEXED)
            for k, (place, extent) in enumerate(zip(places, data, strict=True))
        ]
        return described(ctx, [ins, places], [places])

    def infer(self, ctx: TypeContext) -> list[Type]:
        self.equation(ctx)  # for its checks
        return [TensorType(ctx.element("data"), ctx.shape("indices"))]

    def reference(self, xp: Any, data: Any, indices: Any) -> Any:
        axis = self.axis % data.ndim
        used = tuple(slice(None) if k == axis else slice(0, extent) for k, extent in enumerate(indices.shape))
        return xp.take_along_axis(data[used], xp.positions(indices, data.shape[axis]), axis=axis)


def _elementwise_axis(ctx: TypeContext, axis: int, data: Shape, indices: Shape) -> int:
    if len(data) != len(indices):
        ctx.fail(f"indices of rank {len(indices)} for data of rank {len(data)}")
    axis = axis_index(axis, len(data))
    for k, (given, whole) in enumerate(zip(indices, data, strict=True)):
        if k != axis and isinstance(given, int) and isinstance(whole, int) and given > whole:
            ctx.fail(f"{given} indices on axis {k} of extent {whole}")
    return axis


@op("gather_nd", onnx="GatherND")
class GatherND(Op):
    """Slices of data at the index tuples in the last axis of `indices`; the first batch_dims axes are matched."""

    data: In
    indices: In
    batch_dims: int = 0

    zero = zeros.first
    moves = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        data, indices = ctx.shape("data"), ctx.shape("indices")
        depth = _tuple_depth(ctx, data, indices, self.batch_dims)
        if data is None or indices is None or depth is None:
            return None
        places = variables(indices[:-1])
        batch: list[Term] = []
        for k, (place, extent) in enumerate(zip(places[: self.batch_dims], data, strict=False)):
            if isinstance(place.extent, int) and isinstance(extent, int) and place.extent != extent:
                ctx.fail(f"batch axis {k} has extents {extent} and {place.extent}")
            batch.append(place if place.extent == extent else Variable(extent, "extents not known to agree"))
        start = self.batch_dims + depth
        rest = variables(data[start:])
        ins = [*batch, *variables(data[self.batch_dims : start], INDEXED), *rest]
        return described(ctx, [ins, [*places, Variable(depth, INDEXED)]], [[*places, *rest]])

    def reference(self, xp: Any, data: Any, indices: Any) -> Any:
        depth = indices.shape[-1]
        batch = grids(xp, data.shape[: self.batch_dims], indices.ndim - 1)
        places = _tuple_positions(xp, data.shape[self.batch_dims :], indices)
        return data[(*batch, *places)] if batch or depth else data


def _tuple_positions(xp: Any, extents: Shape, indices: Any) -> tuple[Any, ...]:
    """For each of the leading axes of these extents, the positions that the index tuples hold."""
    return tuple(xp.positions(indices[..., k], extents[k]) for k in range(indices.shape[-1]))


def _tuple_depth(ctx: TypeContext, data: Shape | None, indices: Shape | None, batch: int) -> int | None:
    """The length of the index tuples, if it is known."""
    if indices is None:
        return None
    if not indices:
        ctx.fail("indices need an axis of index tuples")
    depth = indices[-1]
    if data is not None and isinstance(depth, int) and depth + batch > len(data):
        ctx.fail(f"index tuples of {depth} for data of rank {len(data)} ({batch} batch axes)")
    return depth if isinstance(depth, int) else None


REDUCTIONS = ("none", "add", "mul", "min", "max")


@zeros.ZeroRule
def updated(states: zeros.States) -> bool:
    """Copies with updates: zero where both are, whatever the indices."""
    return states[0] is True and states[2] is True


class _Scatter(Op):
    """Base of copies of `data` in which some elements are replaced by, or combined with, updates."""

    zero = updated

    def infer(self, ctx: TypeContext) -> list[Type]:
        self.equation(ctx)  # for its checks
        return [ctx.type("data")]

    @staticmethod
    def check(ctx: TypeContext, reduction: str) -> None:
        if reduction not in REDUCTIONS:
            ctx.fail(f"there is no reduction {reduction!r}; there are {', '.join(REDUCTIONS)}")
        if ctx.element("data").storage != ctx.element("updates").storage:
            ctx.fail(f"updates are {ctx.element('updates')} where data are {ctx.element('data')}")


@op("scatter_elements", onnx="ScatterElements")
class ScatterElements(_Scatter):
    """A copy of data with updates at out[i, indices[i, j, …], …]."""

    data: In
    indices: In
    updates: In
    reduction: str = "none"
    axis: int = 0

    def equation(self, ctx: TypeContext) -> Equation | None:
        self.check(ctx, self.reduction)
        data, indices = ctx.shape("data"), ctx.shape("indices")
        if data is None or indices is None:
            return None
        axis = _elementwise_axis(ctx, self.axis, data, indices)
        places = aligned(data, indices, axis)
        places[axis] = Variable(indices[axis], INDEXED)
        ins: list[Term] = [
            place if k != axis and place.extent == extent else Variable(extent, INDEXED)
            for k, (place, extent) in enumerate(zip(places, data, strict=True))
        ]
        return described(ctx, [ins, places, places], [ins])

    def reference(self, xp: Any, data: Any, indices: Any, updates: Any) -> Any:
        where = grids(xp, indices.shape, indices.ndim)
        axis = self.axis % data.ndim
        where[axis] = xp.positions(indices, data.shape[axis])
        return xp.scatter(data, tuple(where), updates, self.reduction)


@op("scatter_nd", onnx="ScatterND")
class ScatterND(_Scatter):
    """A copy of data with updates at the index tuples in the last axis of `indices`."""

    data: In
    indices: In
    updates: In
    reduction: str = "none"

    def equation(self, ctx: TypeContext) -> Equation | None:
        self.check(ctx, self.reduction)
        data, indices = ctx.shape("data"), ctx.shape("indices")
        depth = _tuple_depth(ctx, data, indices, 0)
        if data is None or indices is None or depth is None:
            return None
        places, rest = variables(indices[:-1], INDEXED), variables(data[depth:])
        ins = [*variables(data[:depth], INDEXED), *rest]
        return described(ctx, [ins, [*places, Variable(depth, INDEXED)], [*places, *rest]], [ins])

    def reference(self, xp: Any, data: Any, indices: Any, updates: Any) -> Any:
        where = _tuple_positions(xp, data.shape, indices)
        return xp.scatter(data, where or (Ellipsis,), updates, self.reduction)


@zeros.ZeroRule
def written(states: zeros.States) -> bool:
    """A cache with an update: zero where both are."""
    return states[0] is True and states[1] is True


@op("tensor_scatter", onnx="TensorScatter")
class TensorScatter(Op):
    """A cache with an update written along `axis`, for each sample from its own index on."""

    past_cache: In
    update: In
    write_indices: In | None
    mode: str = "linear"
    axis: int = -2

    zero = written

    def equation(self, ctx: TypeContext) -> Equation | None:
        if self.mode not in ("linear", "circular"):
            ctx.fail(f"mode is linear or circular, not {self.mode!r}")
        cache, update = ctx.shape("past_cache"), ctx.shape("update")
        if cache is None or update is None:
            return None
        if len(cache) != len(update):
            ctx.fail(f"an update of rank {len(update)} for a cache of rank {len(cache)}")
        axis = axis_index(self.axis, len(cache))
        if axis == 0:
            ctx.fail("the axis is the batch axis")
        for k, (a, b) in enumerate(zip(cache, update, strict=True)):
            if k != axis and isinstance(a, int) and isinstance(b, int) and a != b:
                ctx.fail(f"extents {a} and {b} on axis {k}")
        ins = variables(cache)
        ins[axis] = Variable(cache[axis], INDEXED)
        updates: list[Term] = [*ins[:axis], Variable(update[axis], INDEXED), *ins[axis + 1 :]]
        return described(ctx, [ins, updates, [ins[0]]], [ins])

    def infer(self, ctx: TypeContext) -> list[Type]:
        self.equation(ctx)  # for its checks
        return [ctx.type("past_cache")]

    def reference(self, xp: Any, past_cache: Any, update: Any, write_indices: Any = None) -> Any:
        rank, axis = past_cache.ndim, self.axis % past_cache.ndim
        where = grids(xp, update.shape, rank)
        if write_indices is not None:
            where[axis] = where[axis] + xp.reshape(write_indices, (-1,) + (1,) * (rank - 1))
        if self.mode == "circular":
            where[axis] = where[axis] % past_cache.shape[axis]
        where[axis] = xp.positions(where[axis], past_cache.shape[axis])
        return xp.scatter(past_cache, tuple(where), update, "none")


@op("one_hot", onnx="OneHot")
class OneHot(Op):
    """values[1] where the new axis' position is the index, values[0] elsewhere; negative indices count from the end."""

    indices: In
    depth: In
    values: In
    axis: int = -1

    def element(self, ctx: TypeContext) -> Element:
        return ctx.element("values")

    def equation(self, ctx: TypeContext) -> Equation | None:
        indices, depth = ctx.shape("indices"), ctx.dimensions("depth")
        if indices is None or depth is None or len(depth) != 1:
            return None
        axis = axis_index(self.axis, len(indices) + 1)
        places = variables(indices)
        outs = [*places[:axis], Variable(depth[0], INDEXED), *places[axis:]]
        values = ctx.shape("values")
        return described(ctx, [places, None, None if values is None else variables(values, "off and on")], [outs])

    def infer(self, ctx: TypeContext) -> list[Type]:
        indices = ctx.shape("indices")
        if indices is None or ctx.content("depth") is not None:
            return super().infer(ctx)
        axis = axis_index(self.axis, len(indices) + 1)
        return [TensorType(self.element(ctx), (*indices[:axis], ctx.fresh(), *indices[axis:]))]

    def reference(self, xp: Any, indices: Any, depth: Any, values: Any) -> Any:
        axis, count = self.axis % (indices.ndim + 1), int(listed(xp, depth)[0])
        indices = xp.astype(indices, elements.I64)
        indices = xp.expand_dims(xp.where(indices < 0, indices + count, indices), axis)
        places = xp.reshape(xp.arange(count), (-1,) + (1,) * (indices.ndim - 1 - axis))
        return xp.where(indices == places, values[1], values[0])


@op("col2im", onnx="Col2Im")
class Col2Im(Op):
    """Blocks (n, c·k, l) summed into an image (n, c, …), where the l blocks of k pixels lie by strides and pads."""

    x: In
    image_shape: In
    block_shape: In
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    zero = zeros.passed

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape, image, block = ctx.shape("x"), ctx.dimensions("image_shape"), ctx.dimensions("block_shape")
        if shape is None or image is None or block is None:
            return None
        if len(shape) != 3 or len(image) != len(block):
            ctx.fail(f"blocks have 3 axes, not {len(shape)}; image and block shape have {len(image)} and {len(block)}")
        pixels = dims.product(block)
        if dims.is_static((shape[1], pixels)) and dims.modulo(shape[1], pixels) != 0:
            ctx.fail(f"{shape[1]} is not a multiple of the {pixels} pixels of a block")
        n, c = Variable(shape[0]), Variable(dims.floor_divide(shape[1], pixels))
        places, spatial = variables(block, "a block"), variables(image, "a spatial axis")
        columns = [n, product(c, *places), Variable(shape[2], "blocks of an image")]
        return described(ctx, [columns], [[n, c, *spatial]], bound={"image_shape": spatial, "block_shape": places})

    def infer(self, ctx: TypeContext) -> list[Type]:
        if ctx.shape("x") is not None and (ctx.content("image_shape") is None or ctx.content("block_shape") is None):
            spatial = length(ctx, "image_shape")
            return [TensorType(ctx.element("x"), unknown_shape(ctx, None if spatial is None else spatial + 2))]
        return super().infer(ctx)

    def reference(self, xp: Any, x: Any, image_shape: Any, block_shape: Any) -> Any:
        image, block = listed(xp, image_shape), listed(xp, block_shape)
        rank = len(image)
        strides, dilations = self.strides or (1,) * rank, self.dilations or (1,) * rank
        pads = self.pads or (0,) * (2 * rank)
        padded = [extent + pads[k] + pads[k + rank] for k, extent in enumerate(image)]
        counts = [max(0, (padded[k] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1) for k in range(rank)]
        n, c = x.shape[0], x.shape[1] // dims.product(block)
        blocks = xp.reshape(xp.wide(x), (n, c, *block, *counts))
        total = xp.zeros((n, c, *padded), xp.element(blocks))
        for offset in itertools.product(*map(range, block)) if x.shape[2] else ():
            spans = tuple(
                slice(k * dilation, k * dilation + (count - 1) * stride + 1, stride)
                for k, dilation, count, stride in zip(offset, dilations, counts, strides, strict=True)
            )
            total[(slice(None), slice(None), *spans)] += blocks[(slice(None), slice(None), *offset)]
        inner = tuple(slice(pads[k], pads[k] + extent) for k, extent in enumerate(image))
        return xp.astype(total[(slice(None), slice(None), *inner)], xp.element(x))
