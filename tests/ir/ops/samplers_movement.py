"""Samples of operators that move, cut, join, index, rank and make tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.ir.elements import F64, I64
from espalier.ir.ops import (
    CenterCropPad,
    Col2Im,
    Concat,
    ConstantOfShape,
    DepthToSpace,
    Expand,
    EyeLike,
    Flatten,
    Gather,
    GatherElements,
    GatherND,
    OneHot,
    Pad,
    Range,
    Reshape,
    ReverseSequence,
    ScatterElements,
    ScatterND,
    Shape,
    Size,
    Slice,
    SpaceToDepth,
    Split,
    Squeeze,
    TensorScatter,
    Tile,
    TopK,
    Transpose,
    Trilu,
    Unsqueeze,
)  # fmt: skip
from tests.ir.ops.samples import Sample, extent, sampler, shape, values

Generator = np.random.Generator


def integers(*entries: Any) -> np.ndarray[Any, Any]:
    return np.array(entries, np.int64)


def sign(rng: Generator, axis: int, rank: int) -> int:
    """The axis, counted from the front or from the end."""
    return axis - rank if rng.random() < 0.5 else axis


def some_axes(rng: Generator, rank: int, low: int = 1) -> list[int]:
    """Distinct axes in any order, at least `low` of them."""
    count = int(rng.integers(low, rank + 1))
    return [int(axis) for axis in rng.permutation(rank)[:count]]


def merged(rng: Generator, extents: list[int]) -> list[int]:
    """The extents with some neighbours multiplied."""
    found = [extents[0]]
    for size in extents[1:]:
        if rng.random() < 0.5:
            found[-1] *= size
        else:
            found.append(size)
    return found


@sampler("reshape")
def reshape(rng: Generator) -> Sample:
    factors = [extent(rng, 2, 4) for _ in range(int(rng.integers(1, 5)))]
    source, target = merged(rng, factors), merged(rng, factors)
    if rng.random() < 0.3:
        target.insert(int(rng.integers(len(target) + 1)), 1)
    wanted = list(target)
    if rng.random() < 0.3:
        wanted[int(rng.integers(len(wanted)))] = -1
    if target[0] == source[0] and rng.random() < 0.5:
        wanted[0] = 0
    return Sample(Reshape(), [values(rng, source), integers(*wanted)])


@sampler("transpose")
def transpose(rng: Generator) -> Sample:
    sizes = shape(rng)
    perm = () if rng.random() < 0.3 else tuple(rng.permutation(len(sizes)).tolist())
    return Sample(Transpose(perm=perm), [values(rng, sizes)])


@sampler("squeeze")
def squeeze(rng: Generator) -> Sample:
    sizes = [1 if rng.random() < 0.5 else size for size in shape(rng, 1, 4)]
    ones = [sign(rng, axis, len(sizes)) for axis, size in enumerate(sizes) if size == 1 and rng.random() < 0.7]
    axes = integers(*ones) if rng.random() < 0.7 else None
    return Sample(Squeeze(), [values(rng, sizes), axes], rank_follows_extents=axes is None)


@sampler("unsqueeze")
def unsqueeze(rng: Generator) -> Sample:
    sizes, added = shape(rng, 0, 3), int(rng.integers(1, 3))
    rank = len(sizes) + added
    axes = [sign(rng, axis, rank) for axis in rng.permutation(rank)[:added].tolist()]
    return Sample(Unsqueeze(), [values(rng, sizes), integers(*axes)])


@sampler("flatten")
def flatten(rng: Generator) -> Sample:
    sizes = shape(rng)
    return Sample(Flatten(axis=int(rng.integers(-len(sizes), len(sizes) + 1))), [values(rng, sizes)])


@sampler("expand")
def expand(rng: Generator) -> Sample:
    full = shape(rng)
    rank = int(rng.integers(len(full) + 1))
    own = [1 if rng.random() < 0.4 else size for size in full[len(full) - rank :]]
    target = [1 if rng.random() < 0.2 else size for size in full]
    if rng.random() < 0.2:
        target = target[len(full) - rank :][1:]
    return Sample(Expand(), [values(rng, own), integers(*target)])


@sampler("tile")
def tile(rng: Generator) -> Sample:
    sizes = shape(rng)
    return Sample(Tile(), [values(rng, sizes), rng.integers(1, 4, len(sizes))])


def blocks(rng: Generator) -> tuple[dict[str, Any], list[int]]:
    """Attributes of a move between channels and blocks, and (n, c, h, w) without the blocks."""
    attributes = {"blocksize": extent(rng, 1, 3), "mode": str(rng.choice(["DCR", "CRD"]))}
    return attributes, [extent(rng, 1, 3) for _ in range(4)]


@sampler("depth_to_space")
def depth_to_space(rng: Generator) -> Sample:
    attributes, (n, c, h, w) = blocks(rng)
    return Sample(DepthToSpace(**attributes), [values(rng, (n, c * attributes["blocksize"] ** 2, h, w))])


@sampler("space_to_depth")
def space_to_depth(rng: Generator) -> Sample:
    attributes, (n, c, h, w) = blocks(rng)
    size = attributes["blocksize"]
    return Sample(SpaceToDepth(**attributes), [values(rng, (n, c, h * size, w * size))])


@sampler("trilu")
def trilu(rng: Generator) -> Sample:
    diagonal = np.array(rng.integers(-3, 4)) if rng.random() < 0.7 else None
    return Sample(Trilu(upper=int(rng.integers(2))), [values(rng, shape(rng, 2, 4)), diagonal])


@sampler("reverse_sequence")
def reverse_sequence(rng: Generator) -> Sample:
    sizes = shape(rng, 2, 4)
    time = int(rng.integers(2))
    lengths = rng.integers(1, sizes[time] + 1, sizes[1 - time])
    return Sample(ReverseSequence(time_axis=time, batch_axis=1 - time), [values(rng, sizes), lengths])


@sampler("shape")
def shape_of(rng: Generator) -> Sample:
    start = int(rng.integers(-5, 6)) if rng.random() < 0.7 else 0
    end = int(rng.integers(-5, 6)) if rng.random() < 0.5 else None
    return Sample(Shape(start=start, end=end), [values(rng, shape(rng))])


@sampler("size")
def size(rng: Generator) -> Sample:
    return Sample(Size(), [values(rng, shape(rng))])


@sampler("constant_of_shape")
def constant_of_shape(rng: Generator) -> Sample:
    value, dtype = (float(rng.standard_normal()), F64) if rng.random() < 0.5 else (int(rng.integers(2)), I64)
    return Sample(ConstantOfShape(value=value, dtype=dtype), [integers(*shape(rng))])


@sampler("range")
def range_(rng: Generator) -> Sample:
    start, limit = rng.integers(-9, 10, 2)
    delta = int(rng.choice([-3, -2, -1, 1, 2, 3]))
    if rng.random() < 0.5:
        return Sample(Range(), [np.array(start), np.array(limit), np.array(delta)])
    return Sample(Range(), [np.array(start / 2), np.array(limit * 1.0), np.array(delta / 4)])


@sampler("eye_like")
def eye_like(rng: Generator) -> Sample:
    dtype = I64 if rng.random() < 0.3 else None
    return Sample(EyeLike(k=int(rng.integers(-3, 4)), dtype=dtype), [values(rng, shape(rng, 2, 2))])


@sampler("concat")
def concat(rng: Generator) -> Sample:
    sizes = list(shape(rng, 1, 4))
    axis = int(rng.integers(len(sizes)))
    parts = [extent(rng, 0, 4) for _ in range(int(rng.integers(1, 5)))]
    operands = [values(rng, [*sizes[:axis], part, *sizes[axis + 1 :]]) for part in parts]
    return Sample(Concat(axis=sign(rng, axis, len(sizes))), operands)


@sampler("split")
def split(rng: Generator) -> Sample:
    sizes = list(shape(rng, 1, 4))
    axis = int(rng.integers(len(sizes)))
    place = sign(rng, axis, len(sizes))
    count = extent(rng, 1, 4)
    if rng.random() < 0.6:
        parts = [extent(rng, 0, 4) for _ in range(count)]
        sizes[axis] = sum(parts)
        return Sample(Split(axis=place), [values(rng, sizes), integers(*parts)], results=count)
    part = extent(rng, 1, 3)
    sizes[axis] = part * count - int(rng.integers(part))
    return Sample(Split(axis=place, num_outputs=count), [values(rng, sizes)], results=count)


@sampler("slice")
def slice_(rng: Generator) -> Sample:
    sizes = [extent(rng, 2, 8) for _ in shape(rng, 1, 4)]
    every = rng.random() < 0.2
    axes = list(range(int(rng.integers(1, len(sizes) + 1)))) if every else some_axes(rng, len(sizes))
    starts, ends, steps = [], [], []
    for axis in axes:
        step = int(rng.choice([1, 1, 1, 2, 2, 3, -1, -2]))
        if step > 1 and rng.random() < 0.6:  # whole steps
            sizes[axis] = step * extent(rng, 2, 3)
            starts.append(int(rng.integers(step)))
            ends.append(2**63 - 1)
        else:
            bounds = sorted(rng.integers(0, sizes[axis] + 1, 2).tolist(), reverse=step < 0)
            starts.append(sign(rng, bounds[0], sizes[axis]) if bounds[0] else 0)
            ends.append(bounds[1] if step > 0 else -(2**63) if rng.random() < 0.5 else bounds[1])
            if step > 0 and rng.random() < 0.3:
                ends[-1] = 2**31 - 1
        steps.append(step)
    named = None if every else integers(*(sign(rng, axis, len(sizes)) for axis in axes))
    stepped = integers(*steps)
    if all(step == 1 for step in steps) and rng.random() < 0.5:
        stepped = None
    return Sample(Slice(), [values(rng, sizes), integers(*starts), integers(*ends), named, stepped])


@sampler("pad")
def pad(rng: Generator) -> Sample:
    sizes = [extent(rng, 3, 5) for _ in shape(rng, 1, 3)]
    mode = str(rng.choice(["constant", "constant", "constant", "reflect", "edge", "wrap"]))
    axes = some_axes(rng, len(sizes)) if rng.random() < 0.5 else None
    low = -1 if rng.random() < 0.3 else 0
    amounts = rng.integers(low, 3, 2 * (len(sizes) if axes is None else len(axes)))
    value = None if mode != "constant" or rng.random() < 0.5 else np.array(rng.choice([0.0, 1.5]))
    named = None if axes is None else integers(*(sign(rng, axis, len(sizes)) for axis in axes))
    return Sample(Pad(mode=mode), [values(rng, sizes), amounts, value, named])


@sampler("center_crop_pad")
def center_crop_pad(rng: Generator) -> Sample:
    sizes = shape(rng, 1, 4)
    axes = some_axes(rng, len(sizes)) if rng.random() < 0.5 else None
    where = range(len(sizes)) if axes is None else axes
    wanted = [sizes[k] if rng.random() < 0.3 else extent(rng, 1, 7) for k in where]
    return Sample(CenterCropPad(crop_axes=axes and tuple(axes)), [values(rng, sizes), integers(*wanted)])


def indices(rng: Generator, sizes: Any, limit: int) -> np.ndarray[Any, Any]:
    """Legal indices of an axis, some of them counted from the end."""
    return rng.integers(-limit, limit, sizes)


@sampler("gather")
def gather(rng: Generator) -> Sample:
    sizes = shape(rng, 1, 4)
    axis = int(rng.integers(len(sizes)))
    where = np.asarray(indices(rng, shape(rng, 0, 2), sizes[axis]))
    return Sample(Gather(axis=sign(rng, axis, len(sizes))), [values(rng, sizes), where])


def elementwise(rng: Generator) -> tuple[tuple[int, ...], int, np.ndarray[Any, Any]]:
    """A shape, an axis, and indices of that axis of the same rank, on some axes fewer than there are."""
    sizes = shape(rng, 1, 4)
    axis = int(rng.integers(len(sizes)))
    used = [extent(rng, 1, size) if rng.random() < 0.3 or k == axis else size for k, size in enumerate(sizes)]
    order = np.argsort(rng.random((*used[:axis], sizes[axis], *used[axis + 1 :])), axis=axis)  # distinct: none twice
    found = np.take(order, range(used[axis]), axis=axis)
    return sizes, axis, np.where(rng.random(used) < 0.3, found - sizes[axis], found)


@sampler("gather_elements")
def gather_elements(rng: Generator) -> Sample:
    sizes, axis, where = elementwise(rng)
    return Sample(GatherElements(axis=sign(rng, axis, len(sizes))), [values(rng, sizes), where])


@sampler("scatter_elements")
def scatter_elements(rng: Generator) -> Sample:
    sizes, axis, where = elementwise(rng)
    reduction = str(rng.choice(["none", "add", "mul", "min", "max"]))
    op = ScatterElements(axis=sign(rng, axis, len(sizes)), reduction=reduction)
    return Sample(op, [values(rng, sizes), where, values(rng, where.shape)])


@sampler("gather_nd")
def gather_nd(rng: Generator) -> Sample:
    sizes = shape(rng, 2, 4)
    batch = int(rng.integers(0, len(sizes) - 1))
    depth = int(rng.integers(1, len(sizes) - batch + 1))
    where = (*sizes[:batch], *shape(rng, 0 if batch else 1, 2))
    columns = [indices(rng, where, sizes[batch + k]) for k in range(depth)]
    index = np.stack(columns, axis=-1)
    return Sample(GatherND(batch_dims=batch), [values(rng, sizes), index], rank_follows_extents=True)


@sampler("scatter_nd")
def scatter_nd(rng: Generator) -> Sample:
    sizes = shape(rng, 1, 4)
    depth = int(rng.integers(1, len(sizes) + 1))
    total = int(np.prod(sizes[:depth]))
    chosen = rng.permutation(total)[: extent(rng, 1, total)]
    where = np.stack(np.unravel_index(chosen, sizes[:depth]), axis=-1)
    updates = values(rng, (len(chosen), *sizes[depth:]))
    return Sample(ScatterND(reduction=str(rng.choice(["none", "add", "max"]))), [values(rng, sizes), where, updates])


@sampler("tensor_scatter")
def tensor_scatter(rng: Generator) -> Sample:
    sizes = list(shape(rng, 2, 4))
    axis = int(rng.integers(1, len(sizes)))
    steps = extent(rng, 1, sizes[axis])
    circular = rng.random() < 0.5
    first = rng.integers(0, sizes[axis] if circular else sizes[axis] - steps + 1, sizes[0])
    update = values(rng, [*sizes[:axis], steps, *sizes[axis + 1 :]])
    op = TensorScatter(mode="circular" if circular else "linear", axis=sign(rng, axis, len(sizes)))
    return Sample(op, [values(rng, sizes), update, first if rng.random() < 0.8 else None])


@sampler("one_hot")
def one_hot(rng: Generator) -> Sample:
    sizes, depth = shape(rng, 0, 3), extent(rng)
    axis = sign(rng, int(rng.integers(len(sizes) + 1)), len(sizes) + 1)
    where = np.asarray(rng.integers(-depth - 1, depth + 1, sizes))
    return Sample(OneHot(axis=axis), [where, np.array(depth), values(rng, (2,))])


@sampler("col2im")
def col2im(rng: Generator) -> Sample:
    rank = int(rng.integers(1, 3))
    image, block = [extent(rng, 5, 6) for _ in range(rank)], [extent(rng, 1, 3) for _ in range(rank)]
    strides, dilations = [extent(rng, 1, 2) for _ in range(rank)], [extent(rng, 1, 2) for _ in range(rank)]
    pads = rng.integers(0, 2, 2 * rank).tolist()
    counts = [
        (image[k] + pads[k] + pads[k + rank] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1 for k in range(rank)
    ]
    x = values(rng, (extent(rng, 1, 2), extent(rng, 1, 3) * int(np.prod(block)), int(np.prod(counts))))
    op = Col2Im(strides=tuple(strides), dilations=tuple(dilations), pads=tuple(pads))
    return Sample(op, [x, integers(*image), integers(*block)])


@sampler("top_k")
def top_k(rng: Generator) -> Sample:
    sizes = shape(rng, 1, 4)
    axis = int(rng.integers(len(sizes)))
    op = TopK(axis=sign(rng, axis, len(sizes)), largest=int(rng.integers(2)))
    return Sample(op, [values(rng, sizes), integers(extent(rng, 1, sizes[axis]))], results=2)
