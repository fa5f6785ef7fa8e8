"""Movements of elements that cancel, merge, do nothing, or sink below what they commute with."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.analysis.patterns import is_elementwise
from espalier.ir import Node, Op, Value
from espalier.ir.dims import Dimension, Shape, product
from espalier.ir.ops import (
    AveragePool,
    Cast,
    CastLike,
    Concat,
    Conv,
    Dropout,
    Expand,
    Identity,
    Pad,
    Reshape,
    Slice,
    Split,
    Squeeze,
    Tile,
    Transpose,
)  # fmt: skip
from espalier.ir.ops.segments import INFINITE
from espalier.passes.rewrite import Replacement, Rewriter, rewrite
from espalier.passes.rules.matching import numbers


def reshapes(kind: type[Op]) -> bool:
    """Whether an operator keeps the elements in row-major order under another shape."""
    return kind.reshapes


def reshape_target(shape: Shape | None, source: Shape | None) -> list[int] | None:
    """ONNX's reshape operand for a result shape: 0 copies an extent, −1 is the one that follows. None if impossible."""
    if shape is None or any(extent == 0 for extent in shape):
        return None
    target, free = [], 0
    for axis, extent in enumerate(shape):
        if isinstance(extent, int):
            target.append(extent)
        elif source is not None and axis < len(source) and source[axis] == extent:
            target.append(0)
        else:
            target.append(-1)
            free += 1
    return target if free <= 1 else None


def reshape(rewriter: Rewriter, x: Value, shape: Shape | None) -> Value:
    """x under another shape of as many elements; no match if the shape can't be written as constants."""
    target = reshape_target(shape, x.shape)
    if target is None:
        rewriter.why("the shape has several unknown extents")
    made: Value = rewriter.reshape(x, np.array(target, np.int64))
    return made


@rewrite(Identity)
def drop_identity(node: Node, rewriter: Rewriter) -> Replacement:
    """identity(x) is x."""
    return node.operand(0)


@rewrite(Dropout)
def drop_dropout(node: Node, rewriter: Rewriter) -> Replacement:
    """Dropout does nothing when it infers."""
    training = node.training_mode
    inference = training is None or (training.is_constant and not training.array.any())
    rewriter.require(inference, "it may be in training mode")
    rewriter.require(len(node.results) == 1 or not node.results[1].uses, "its mask is used")
    return [node.x, *[None] * (len(node.results) - 1)]


@rewrite(Cast)
def drop_noop_cast(node: Node, rewriter: Rewriter) -> Replacement:
    """A cast to the type that the operand has already."""
    rewriter.require(node.operand(0).element == node.to, "it changes the type")
    return node.operand(0)


@rewrite(CastLike)
def cast_like_to_cast(node: Node, rewriter: Rewriter) -> Replacement:
    """A cast to the type of something, whose values don't matter."""
    to = node.results[0].element
    return rewriter.cast(node.operand(0), to=to, saturate=node.saturate, round_mode=node.round_mode)


@rewrite(Cast, of=Cast)
def merge_casts(node: Node, rewriter: Rewriter) -> Replacement:
    """A cast of a cast that lost nothing."""
    inner = node.operand(0).defined_by(Cast) or rewriter.why("its input is no cast")
    source = inner.operand(0).element
    rewriter.require(source.kind == inner.to.kind or source.kind == "bool", "the inner cast changes the kind of number")
    rewriter.require(source.bits <= inner.to.bits and source.name not in ("bf16",), "the inner cast may round")
    rewriter.require(source.kind != "float" or (source.bits, inner.to.bits) in ((16, 32), (16, 64), (32, 64)), "floats")
    return rewriter.node(node.op, [inner.operand(0)]).results[0]


@rewrite(lambda kind: kind.reshapes or issubclass(kind, Expand | Tile))
def drop_noop_movement(node: Node, rewriter: Rewriter) -> Replacement:
    """A reshape, expansion or tiling to the shape that the operand has already."""
    shape = node.results[0].shape
    rewriter.require(shape is not None and shape == node.operand(0).shape, "the shape changes, or is not known")
    return node.operand(0)


@rewrite((Reshape, Expand))
def fix_shape_operand(node: Node, rewriter: Rewriter) -> Replacement:
    """A computed shape that can be written with numbers, 0 for copied extents and −1 for the one that follows."""
    x, shape = node.operand(0), node.results[0].shape
    rewriter.require(node.operand(1).constant is None and shape is not None, "the shape is constant, or not known")
    if node.is_a(Reshape):
        return reshape(rewriter, x, shape)
    rewriter.require(x.shape is not None, "the rank is not known")
    source = (1,) * (len(shape) - len(x.shape)) + x.shape
    kept = [1 if extent == source[axis] else extent for axis, extent in enumerate(shape)]
    rewriter.require(all(isinstance(extent, int) for extent in kept), "unknown extents grow")
    return rewriter.expand(x, np.array(kept, np.int64))


@rewrite(reshapes, of=reshapes)
def merge_reshapes(node: Node, rewriter: Rewriter) -> Replacement:
    """A reshape of a reshape is one reshape."""
    inner = node.operand(0).producer
    rewriter.require(inner is not None and inner.op.reshapes, "its input is no reshape")
    assert inner is not None
    return reshape(rewriter, inner.operand(0), node.results[0].shape)


@rewrite(reshapes, of=Transpose)
def unwrap_transpose(node: Node, rewriter: Rewriter) -> Replacement:
    """Axes merged, transposed and split again are a transpose of the axes as they were."""
    transpose = node.operand(0).defined_by(Transpose) or rewriter.why("its input is no transpose")
    inner = transpose.operand(0).producer
    rewriter.require(inner is not None and inner.op.reshapes, "what is transposed is no reshape")
    assert inner is not None
    source, merged = inner.operand(0).shape, transpose.operand(0).shape
    runs = merged_runs(source, merged) or rewriter.why("the inner reshape does not just merge axes")
    shape = node.results[0].shape
    rewriter.require(shape is not None and len(shape) == len(source), "another number of axes comes out")
    moved = iter([axis for k in permutation(transpose, rewriter) for axis in runs[k]])
    units = iter([axis for axis, extent in enumerate(source) if extent == 1])  # these may go anywhere
    perm = tuple(next(units if extent == 1 else moved, -1) for extent in shape)
    rewriter.require(-1 not in perm and shape == tuple(source[axis] for axis in perm), "the axes are split otherwise")
    return rewriter.transpose(inner.operand(0), perm=perm)


def merged_runs(source: Shape | None, merged: Shape | None) -> list[list[int]] | None:
    """For each axis of a reshape's result, the source axes (but of extent 1) that it merges; None if it splits any."""
    if source is None or merged is None or 0 in source:
        return None
    axes, runs = [axis for axis, extent in enumerate(source) if extent != 1], []
    for extent in merged:
        run: list[int] = []
        while axes and product(source[axis] for axis in run) != extent:
            run.append(axes.pop(0))
        if product(source[axis] for axis in run) != extent:
            return None
        runs.append(run)
    return None if axes else runs


@rewrite(Transpose)
def drop_noop_transpose(node: Node, rewriter: Rewriter) -> Replacement:
    """A transpose that leaves all axes where they are."""
    perm = permutation(node, rewriter)
    rewriter.require(perm == tuple(range(len(perm))), "it permutes")
    return node.operand(0)


@rewrite(Transpose)
def transpose_to_reshape(node: Node, rewriter: Rewriter) -> Replacement:
    """A transpose that moves only axes of extent 1 is a reshape."""
    perm = permutation(node, rewriter)
    moved = [axis for axis in perm if node.operand(0).shape[axis] != 1]
    rewriter.require(moved == sorted(moved), "it moves more than axes of extent 1")
    inner = node.operand(0).producer
    near = inner is not None and (inner.op.reshapes or inner.is_a(Transpose))
    near = near or any(user.op.reshapes for user in node.results[0].users)
    rewriter.require(near, "no reshape is near that it could merge with")
    return reshape(rewriter, node.operand(0), node.results[0].shape)


def permutation(node: Node, rewriter: Rewriter) -> tuple[int, ...]:
    """A transpose's permutation, its default included."""
    rank = node.operand(0).rank
    rewriter.require(rank is not None, "the rank is not known")
    return tuple(node.perm) or tuple(range(rank or 0))[::-1]


@rewrite(Transpose, of=Transpose)
def merge_transposes(node: Node, rewriter: Rewriter) -> Replacement:
    """A transpose of a transpose is one transpose."""
    inner = node.operand(0).defined_by(Transpose) or rewriter.why("its input is no transpose")
    first, second = permutation(inner, rewriter), permutation(node, rewriter)
    return rewriter.transpose(inner.operand(0), perm=tuple(first[axis] for axis in second))


@rewrite(is_elementwise, of=Transpose)
def sink_transpose(node: Node, rewriter: Rewriter) -> Replacement:
    """An elementwise operator on transposed operands is the transpose of the operator on the operands."""
    sources = [operand.defined_by(Transpose) for operand in node.inputs if operand.constant is None]
    if not sources or any(source is None for source in sources) or len(node.results) != 1:
        rewriter.why("its operands are not all transposed")
    perms = {permutation(source, rewriter) for source in sources if source is not None}
    rewriter.require(len(perms) == 1, "its operands are transposed differently")
    alone = all(source.results[0].has_one_use for source in sources if source is not None)
    rewriter.require(alone, "a transposed operand is shared")
    perm = perms.pop()
    inverse = tuple(int(axis) for axis in np.argsort(perm))
    operands: list[Any] = []
    for operand in node.operands:
        if operand is None or operand.constant is None:
            source = None if operand is None else operand.defined_by(Transpose)
            operands.append(None if source is None else source.operand(0))
            continue
        rank = operand.constant.array.ndim
        rewriter.require(rank <= len(perm), "a constant has more axes")
        if operand.constant.size == 1:
            operands.append(operand)
            continue
        padded = operand.constant.reshape((1,) * (len(perm) - rank) + operand.constant.shape)
        operands.append(constant(padded.transpose(inverse)))
    made = rewriter.node(node.op, operands).results[0]
    return rewriter.transpose(made, perm=perm)


def constant(data: Any) -> Value:
    """A constant value (a view stays a view)."""
    from espalier.ir import constant_value

    return constant_value(data)


@rewrite(Concat)
def flatten_concat(node: Node, rewriter: Rewriter) -> Replacement:
    """A concatenation of one is that one; of a concatenation along the same axis, one concatenation."""
    if len(node.inputs) == 1:
        return node.inputs[0]
    axis = _axis(node.axis, node.results[0].rank, rewriter)
    parts: list[Value] = []
    for operand in node.inputs:
        inner = operand.defined_by(Concat)
        same = inner is not None and operand.has_one_use and _axis(inner.axis, operand.rank, rewriter) == axis
        parts.extend(inner.inputs if inner is not None and same else [operand])
    rewriter.require(len(parts) > len(node.inputs), "no operand is a concatenation along the same axis")
    return rewriter.concat(*parts, axis=axis)


def _axis(axis: int, rank: int | None, rewriter: Rewriter) -> int:
    rewriter.require(rank is not None, "the rank is not known")
    return axis % (rank or 1)


@rewrite(Concat, of=Split)
def drop_split_concat(node: Node, rewriter: Rewriter) -> Replacement:
    """The parts of a split, put together again in order."""
    split = node.inputs[0].defined_by(Split) or rewriter.why("its operands are no split")
    rewriter.require(list(node.inputs) == split.results, "not all parts of the split in order")
    rank = node.results[0].rank
    rewriter.require(_axis(split.axis, rank, rewriter) == _axis(node.axis, rank, rewriter), "other axes")
    return split.operand(0)


@rewrite(Split)
def drop_single_split(node: Node, rewriter: Rewriter) -> Replacement:
    """A split into one part."""
    rewriter.require(len(node.results) == 1, "several parts")
    return node.operand(0)


def slice_ranges(node: Node, rewriter: Rewriter) -> dict[int, tuple[int, int, int]]:
    """Axis → (start, end, step) of a slice with constant bounds, as given (ends may exceed the extent)."""
    rank = node.data.rank
    rewriter.require(rank is not None, "the rank is not known")
    bounds = [v.known if v is not None else None for v in (node.starts, node.ends)]
    axes, steps = node.axes_, node.steps
    for operand in (axes, steps):
        rewriter.require(operand is None or _numbers(operand), "the slice is not constant")
    rewriter.require(all(b is not None and b.dtype != object for b in bounds), "the slice is not constant")
    starts, ends = (b.reshape(-1).tolist() for b in bounds if b is not None)
    where = range(len(starts)) if axes is None else axes.known.reshape(-1).tolist()
    by = [1] * len(starts) if steps is None else steps.known.reshape(-1).tolist()
    return {int(axis) % rank: (int(s), int(e), int(k)) for axis, s, e, k in zip(where, starts, ends, by, strict=True)}


def _numbers(operand: Value) -> bool:
    return operand.known is not None and operand.known.dtype != object


@rewrite(Slice)
def drop_noop_slice(node: Node, rewriter: Rewriter) -> Replacement:
    """A slice that keeps everything."""
    ranges = slice_ranges(node, rewriter)
    for axis, (start, end, step) in ranges.items():
        extent: Dimension = node.data.shape[axis]
        whole = end >= (extent if isinstance(extent, int) else 2**31 - 1)
        rewriter.require(start == 0 and step == 1 and whole, "it cuts")
    return node.data


@rewrite(Slice, of=Slice)
def merge_slices(node: Node, rewriter: Rewriter) -> Replacement:
    """A slice of a slice along other axes is one slice."""
    inner = node.data.defined_by(Slice) or rewriter.why("its input is no slice")
    rewriter.require(inner.results[0].has_one_use, "the inner slice is shared")
    first, second = slice_ranges(inner, rewriter), slice_ranges(node, rewriter)
    rewriter.require(not first.keys() & second.keys(), "both cut one axis")
    ranges = dict(sorted({**first, **second}.items()))
    columns = [np.array([r[k] for r in ranges.values()], np.int64) for k in range(3)]
    return rewriter.slice(inner.data, columns[0], columns[1], np.array(list(ranges), np.int64), columns[2])


@rewrite(Pad)
def drop_noop_pad(node: Node, rewriter: Rewriter) -> Replacement:
    """Padding by nothing."""
    rewriter.require(_numbers(node.pads) and not node.pads.known.any(), "it pads, or is not constant")
    return node.data


@rewrite((Conv, AveragePool), of=Pad)
def fold_pad_into_window(node: Node, rewriter: Rewriter) -> Replacement:
    """Zero padding of the spatial axes before a convolution, or an average that counts it, is the window's own."""
    pad = node.x.defined_by(Pad) or rewriter.why("its input is no pad")
    rewriter.require(pad.mode == "constant" and _is_zero(pad.constant_value), "the padding is not zero")
    rewriter.require(node.auto_pad in ("NOTSET", "VALID"), "the window pads by itself")
    own, counts = node.pads or (), node.is_a(Conv) or (node.count_include_pad and not node.ceil_mode)
    rewriter.require(counts or not (any(own) or node.ceil_mode), "the average does not count its own padding")
    rank, amounts = node.x.rank, numbers(pad.pads)
    rewriter.require(amounts is not None and rank is not None and pad.axes_ is None, "the padding is not constant")
    assert rank is not None and amounts is not None
    begins, ends = amounts[:rank], amounts[rank:]
    rewriter.require(not any(begins[:2] + ends[:2]), "it pads batch or channels")
    rewriter.require(min(amounts) >= 0, "it crops")
    pads = tuple(a + b for a, b in zip(own or (0,) * (2 * (rank - 2)), begins[2:] + ends[2:], strict=True))
    changes = {} if node.is_a(Conv) else {"count_include_pad": 1}
    whole = node.is_a(Conv) or all(p < k for p, k in zip(pads, (*node.kernel_shape,) * 2, strict=True))
    rewriter.require(whole, "a window would lie in the padding alone, which runtimes refuse")
    padded = node.op.replace(pads=pads, auto_pad="NOTSET", **changes)
    return rewriter.node(padded, [pad.data, *node.operands[1:]]).results[0]


def _is_zero(value: Value | None) -> bool:
    return value is None or (value.known is not None and value.known.dtype != object and not value.known.any())


@rewrite((Squeeze, Reshape), of=Split)
def split_to_gather(node: Node, rewriter: Rewriter) -> Replacement:
    """A part of one position, split off and squeezed, is gathered."""
    part = node.operand(0)
    split = part.defined_by(Split, result=None) or rewriter.why("its input is no part of a split")
    axis, shapes = _axis(split.axis, part.rank, rewriter), [result.shape for result in split.results]
    extents = [None if shape is None else shape[axis] for shape in shapes[: part.index + 1]]
    rewriter.require(extents[-1] == 1 and all(isinstance(extent, int) for extent in extents), "not one known position")
    rewriter.require(node.results[0].shape == part.shape[:axis] + part.shape[axis + 1 :], "another shape")
    position = sum(shape[axis] for shape in shapes[: part.index])
    return rewriter.gather(split.operand(0), np.array(position, np.int64), axis=axis)


@rewrite((Squeeze, Reshape), of=Slice)
def slice_to_gather(node: Node, rewriter: Rewriter) -> Replacement:
    """One position of an axis, sliced and squeezed, is gathered."""
    part = node.operand(0).defined_by(Slice) or rewriter.why("its input is no slice")
    ranges = slice_ranges(part, rewriter)
    rewriter.require(len(ranges) == 1 and part.results[0].has_one_use, "several axes are sliced, or others use it")
    ((axis, (start, end, step)),) = ranges.items()
    shape = part.results[0].shape
    # of an empty axis nothing is left, which a squeeze refuses as gathering does
    first_or_last = node.is_a(Squeeze) and step > 0 and (end == 1 if start == 0 else start == -1 and end >= INFINITE)
    one = shape[axis] == 1 or first_or_last
    rewriter.require(one and node.results[0].shape == shape[:axis] + shape[axis + 1 :], "not one position")
    extent = part.data.shape[axis]
    inside = start < extent if isinstance(extent, int) else start in (0, -1)
    rewriter.require(inside and start >= -1, "the position may lie outside")
    return rewriter.gather(part.data, np.array(start, np.int64), axis=axis)
