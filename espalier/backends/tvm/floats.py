"""Products of floats: which convolutions and stacks of matrices the template takes, with weights packed for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import machine, packing
from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor
from espalier.backends.tvm.broadcasting import broadcast_index
from espalier.backends.tvm.frames import Scope, integer
from espalier.backends.tvm.layout import Reach
from espalier.backends.tvm.numbers import expression_type, immediate
from espalier.backends.tvm.products import FEW_BLOCKS, FEW_ROWS, MOST_BLOCKS, UNPACKED_BLOCKS, Load, Plan, worth
from espalier.backends.tvm.tensor import At, Constant, Expr, Index, Map, Product, Tensor
from espalier.ir import dims, elements
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element


def convolution(
    x: Tensor, w: Tensor, counts: Sequence[Dimension], strides: Sequence[int], pads: Sequence[tuple[Any, Any]],
    dilations: Sequence[int], groups: int, kind: Element,
) -> Tensor | None:  # fmt: skip
    """A convolution with constant weights, packed by blocks of channels; None if it doesn't fit.

    Weights dequantized from 8 bits or fewer stay as small as they are.
    """
    lanes = machine.current().lanes
    outputs, per_group, kernel = w.shape[0], w.shape[1], w.shape[2:]
    shape = (x.shape[0], outputs, *counts)
    each = outputs // groups if isinstance(outputs, int) else 0
    depthwise = per_group == 1 and each == 1 and groups > 1
    if not isinstance(w, Constant) or not each or not worth(shape, (per_group, *kernel), kind) or x.ndim < 3:
        return None
    if groups > 1 and each % lanes and not depthwise:
        return None
    if any(not isinstance(end, int) or end < 0 for ends in pads for end in ends):
        return None
    split = per_group % lanes == 0
    packed = packing.filters(w, lanes if split else per_group) if kind == elements.F32 else None
    inner = lanes if split else per_group if packed is not None else 1
    extents: tuple[int, ...] = (per_group // inner, *kernel)
    if packed is not None:
        extents, weights = (*extents, inner // packed.count), packed.data
    else:
        blocks = -(-outputs // lanes)
        padded = np.zeros((blocks * lanes, *w.array.shape[1:]), w.array.dtype)
        padded[:outputs] = w.array
        filters = np.moveaxis(padded.reshape(blocks, lanes, per_group, *kernel), 1, -1)  # (o/l, i, K…, l)
        if split:
            filters = np.moveaxis(filters.reshape(blocks, per_group // lanes, lanes, *kernel, lanes), 2, -2)
            extents = (*extents, lanes)
        weights = as_tensor(np.ascontiguousarray(filters).reshape(-1))
    spatial = len(kernel)
    along = tuple((int(before), int(after)) for before, after in pads)
    few = not depthwise and isinstance(x.shape[1], int) and 2 * x.shape[1] < lanes
    reach = Reach(1 if few else lanes, along, depthwise or any(pair != (0, 0) for pair in along))

    def channel_at(scope: Scope, index: Index, position: Index) -> Expr:
        if depthwise:
            ramp = tirx.Ramp(integer(0), integer(1), lanes)
            return scope.kernel.composed(scope.kernel.block(index[1]), ramp, lanes)
        block = position[0]
        if groups > 1:
            block = tirx.floordiv(index[1], integer(each)) * integer(per_group // inner) + block
        within = position[-1] if packed is None else position[-2] * integer(packed.count) + position[-1]
        if split:
            return scope.kernel.composed(block, within, lanes)
        return block if packed is None else block * integer(inner) + within

    def scalar(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        places = [
            index[2 + k] * integer(strides[k]) + step * integer(dilations[k]) - integer(along[k][0])
            for k, step in enumerate(position[1 : 1 + spatial])
        ]
        return load([index[0], channel_at(scope, index, position), *places])

    def vector(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        block = scope.kernel.block(index[1])
        if packed is not None:
            run = _flat(integer(0), position[:-2], extents[:-1])
            return packed.vector(load, block, run, position[-2], int(position[-1]))
        return load([tirx.Ramp(_flat(block, position, extents) * integer(lanes), integer(1), lanes)])

    plan = Plan(
        1 + spatial, 1, lanes, extents, scalar, vector, each if groups > 1 and not depthwise else 0, reach, depthwise,
        about=("convolution", strides, dilations, groups, *(packed.about if packed else ())), **_unpacking(packed),
    )  # fmt: skip
    product = Product(shape, kind, [x, weights], plan)
    return product if packed is None else packed.finished(product, spatial)


def _flat(start: Expr, position: Index, extents: Sequence[Dimension]) -> Expr:
    """How far a position of nested loops is from the first one of all, from which so many nests come before."""
    for step, extent in zip(position, extents, strict=True):
        start = start * integer(int(extent)) + step
    return start


def _unpacking(packed: packing.Packed | None) -> dict[str, Any]:
    """What a plan says of packed weights."""
    if packed is None:
        return {}
    return {
        "written_out": packed.count, "left_over": packed.run % packed.count, "vector_cost": packed.cost,
        "most_blocks": UNPACKED_BLOCKS,
    }  # fmt: skip


def matrices(left: Tensor, right: Tensor, shape: Sequence[Dimension], count: Dimension, kind: Element) -> Tensor | None:
    """A product of stacks of matrices; None if the template doesn't fit.

    A second matrix that is dequantized from constants of 8 bits or fewer stays as small as they are.
    """
    shape = tuple(shape)
    columns, lead, together, most_blocks = shape[-1], shape[:-2], 0, MOST_BLOCKS
    if not worth(shape, (count,), kind) or not isinstance(columns, int):
        return None
    if isinstance(right, Constant) and right.ndim == 2 and columns >= machine.current().lanes // 2:
        if kind == elements.F32 and (packed := packing.matrix(right)) is not None:
            return _unpacked(left, packed, shape)
        lanes = machine.current().lanes
        blocks = -(-columns // lanes)
        padded = np.zeros((right.array.shape[0], blocks * lanes), right.array.dtype)
        padded[:, :columns] = right.array
        weights = as_tensor(np.ascontiguousarray(padded.reshape(-1, blocks, lanes).transpose(1, 0, 2)).reshape(-1))

        def vector(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
            offset = scope.kernel.block(index[-1]) * scope.dim(count) + position[0]
            return load([tirx.Ramp(offset * integer(lanes), integer(1), lanes)])
    else:
        lanes = machine.current().lanes
        most_blocks = min(FEW_BLOCKS, -(-columns // lanes))
        few = isinstance(shape[-2], int) and shape[-2] < FEW_ROWS
        direct = columns % (lanes if few else lanes * most_blocks) == 0
        if not direct and few:
            return None
        together = 0 if direct else most_blocks
        weights = right if direct else _packed(right, lanes, together)

        def vector(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
            first = broadcast_index(scope, index[:-2], right.shape[:-2], lead)
            if direct:
                return load([*first, position[0], tirx.Ramp(index[-1], integer(1), lanes)])
            ramp = tirx.Ramp(integer(0), integer(1), lanes)
            return load([*first, scope.kernel.block(index[-1]), position[0], ramp])

    def scalar(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        first = broadcast_index(scope, index[:-2], left.shape[:-2], lead)
        return load([*first, index[-2], position[0]])

    plan = Plan(
        len(shape) - 2, len(shape) - 1, lanes, (count,), scalar, vector, blocks=together, most_blocks=most_blocks,
        about=("matrices",),
    )  # fmt: skip
    return Product(shape, kind, [left, weights], plan)


def _unpacked(left: Tensor, right: packing.Packed, shape: tuple[Dimension, ...]) -> Tensor:
    """A product of a stack of matrices and a packed one."""
    if right.rows is not None:
        left = PRIMITIVES["multiply"](left, right.rows)
    lead = shape[:-2]

    def scalar(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        first = broadcast_index(scope, index[:-2], left.shape[:-2], lead)
        return load([*first, index[-2], position[0] * integer(right.count) + position[1]])

    def vector(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        return right.vector(load, scope.kernel.block(index[-1]), integer(0), position[0], int(position[1]))

    plan = Plan(
        len(shape) - 2, len(shape) - 1, right.lanes, (right.run // right.count,), scalar, vector,
        about=("matrices", *right.about), **_unpacking(right),
    )  # fmt: skip
    return right.finished(Product(shape, elements.F32, [left, right.data], plan))


def _packed(matrix: Tensor, lanes: int, together: int) -> Map:
    """Stacks of matrices (…, count, columns) as (…, columns / lanes, count, lanes), a multiple of so many blocks.

    Beyond the columns are zeros.
    """
    *lead, count, columns = matrix.shape
    nothing = immediate(0, expression_type(matrix.element))

    def body(at: At, index: Index) -> Expr:
        *first, block, row, lane = index
        column = block * integer(lanes) + lane
        return at.guard(column < at.dim(columns), lambda: at(0, [*first, row, column]), nothing)

    shape = (*lead, dims.ceil_divide(columns, lanes * together) * together, count, lanes)
    return Map(shape, matrix.element, [matrix], ["once"], body, cost=1)
