"""One tiled template for matrix products and convolutions: rows × blocks of lanes, accumulated in registers.

An outer-product tile: for each step of the reduction one vector of lanes (result columns or channels) is loaded per
block, and multiplied by one broadcast number per row. Rows and lanes beyond the result are computed and not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from espalier.backends.tvm.arithmetic import as_tensor, broadcast_index
from espalier.backends.tvm.frames import Scope, Statement, integer, loop, sequence
from espalier.backends.tvm.kernels import Function, Nest, entry, is_large
from espalier.backends.tvm.numbers import expression_type, immediate
from espalier.backends.tvm.tensor import Constant, Expr, Index, Product, Tensor
from espalier.ir import dims
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element

LANES = 16
"""Result columns or channels in one vector."""
REGISTERS = 12
"""Accumulating vectors of LANES in one tile."""
GAP = 4
"""Entries between the rows of a finished tile: LLVM would make one huge register of stores that touch."""
SMALL_WORK = 2048
"""Multiplications below which the template is not worth its code."""


@dataclass(frozen=True)
class Plan:
    """How a product is tiled."""

    row_axis: int
    """The axis of the result whose entries share a vector."""
    lane_axis: int
    """The axis of the result that the lanes lie on."""
    lanes: int
    extents: tuple[Dimension, ...]
    """The loops of the reduction."""
    scalar: Callable[[Scope, Expr, Index, Index], Expr]
    """(scope, first operand's buffer, index of a result entry, position) → one number."""
    vector: Callable[[Scope, Expr, Index, Index], Expr]
    """(scope, second operand's buffer, index of a block's first result entry, position) → a vector."""
    multiple: int = 0
    """Columns that a tile must not straddle a multiple of (groups of channels); 0: any."""


def write(function: Function, product: Product) -> Statement:
    """The loops of a product, and of what is computed from its entries in the same kernel."""
    plan: Plan = product.plan
    shape = product.shape
    dtype, lanes = expression_type(product.element), plan.lanes
    rows, columns = shape[plan.row_axis], shape[plan.lane_axis]
    blocks = _blocks(rows, columns, lanes)
    while plan.multiple % (lanes * blocks):
        blocks //= 2
    registers = REGISTERS // 2 if dtype.endswith("64") else REGISTERS
    height = _height(rows, max(1, registers // blocks))
    left, right = (function.input(operand) for operand in product.operands)
    others = [axis for axis in range(len(shape)) if axis not in (plan.row_axis, plan.lane_axis)]
    nest = Nest(function, [shape[axis] for axis in others])
    column_tile = nest.add(dims.ceil_divide(columns, lanes * blocks))
    row_tile = nest.add(dims.ceil_divide(rows, height))
    first_row, first_column = row_tile * integer(height), column_tile * integer(lanes * blocks)
    names = function.names

    def place(row: Expr, column: Expr) -> list[Expr]:
        found: list[Expr] = [integer(0)] * len(shape)
        for axis, variable in zip(others, nest.variables, strict=False):
            found[axis] = variable
        found[plan.row_axis], found[plan.lane_axis] = row, column
        return found

    size, vector_type = [integer(1)], f"{dtype}x{lanes}"
    sums = [
        [tirx.decl_buffer(size, vector_type, names.variable("s").name) for _ in range(blocks)] for _ in range(height)
    ]
    whole = [integer(0)]
    none = tirx.Broadcast(immediate(0, dtype), lanes)
    positions = [names.variable("r") for _ in plan.extents]
    scope = Scope(function)
    vectors = [tirx.decl_buffer(size, vector_type, names.variable("w").name) for _ in range(blocks)]
    steps: list[Statement] = []
    for block in range(blocks):
        start = place(first_row, first_column + integer(block * lanes))
        steps.append(tirx.BufferStore(vectors[block], plan.vector(scope, right, start, positions), whole))
    limit = function.dim(rows)
    exact = isinstance(rows, int) and rows % height == 0
    for k in range(height):
        row = first_row + integer(k)
        row = row if exact else tirx.min(row, limit - integer(1))
        number = scope.bind(plan.scalar(scope, left, place(row, first_column), positions))
        for block in range(blocks):
            old = tirx.BufferLoad(sums[k][block], whole)
            added = tirx.Broadcast(number, lanes) * tirx.BufferLoad(vectors[block], whole)
            steps.append(tirx.BufferStore(sums[k][block], old + added, whole))
    body = scope.as_statements(*steps)
    for variable, extent in reversed(list(zip(positions, plan.extents, strict=True))):
        body = loop(variable, function.dim(extent), body)
    buffers = [buffer for each in sums for buffer in each]
    # what is stored is read with computed lanes, so it must not be the registers themselves
    tile = [tirx.decl_buffer([integer((lanes + GAP) * height)], dtype, names.variable("t").name) for _ in range(blocks)]
    places = [[tirx.Ramp(integer(k * (lanes + GAP)), integer(1), lanes)] for k in range(height)]
    spill = [
        tirx.BufferStore(tile[block], tirx.BufferLoad(sums[k][block], whole), places[k])
        for k in range(height)
        for block in range(blocks)
    ]
    stores = [
        _stored(function, product, place, tile[block], lanes, height, first_row, first_column + integer(block * lanes))
        for block in range(blocks)
    ]
    statement = sequence([
        *map(tirx.AllocBuffer, [*buffers, *vectors, *tile]),
        *(tirx.BufferStore(buffer, none, whole) for buffer in buffers),
        body, *spill, *stores,
    ])  # fmt: skip
    work = dims.product([*shape, *plan.extents])
    return nest.around(statement, parallel=is_large(work))


def _blocks(rows: Dimension, columns: Dimension, lanes: int) -> int:
    if not isinstance(columns, int):
        return 1
    many = 4 if rows == 1 else 2
    while many > 1 and (-(-columns // lanes)) % many:
        many //= 2
    return many


def _height(rows: Dimension, most: int) -> int:
    if not isinstance(rows, int):
        return min(most, 6)
    if rows <= most:
        return max(rows, 1)
    divisors = [size for size in range(most, most // 2, -1) if rows % size == 0]
    return divisors[0] if divisors else -(-rows // -(-rows // most))


def _stored(
    function: Function, product: Product, place: Callable[[Expr, Expr], list[Expr]], tile: Expr,
    lanes: int, height: int,
    first_row: Expr, first_column: Expr,
) -> Statement:  # fmt: skip
    """The entries of one block, each computed from its sum. The inner loop goes along memory where it can."""
    plan: Plan = product.plan
    shape = product.shape
    row, lane = function.names.variable("i"), function.names.variable("l")
    here = place(first_row + row, first_column + lane)
    function.folds = {product: lambda scope, index: tirx.BufferLoad(tile, [row * integer(lanes + GAP) + lane])}
    index = _root_index(function, product, here)
    scope = Scope(function)
    value = entry(function, scope, index)
    body = scope.as_statements(tirx.BufferStore(function.out_buffers[0], value, index))
    spans = {
        row: _span(function, shape[plan.row_axis], first_row, height),
        lane: _span(function, shape[plan.lane_axis], first_column, lanes),
    }
    inner, outer = (lane, row) if plan.lane_axis > plan.row_axis else (row, lane)
    return loop(outer, spans[outer], loop(inner, spans[inner], body))


def _span(function: Function, extent: Dimension, first: Expr, size: int) -> Expr:
    """How many of `size` entries from `first` on exist."""
    if isinstance(extent, int) and extent % size == 0:
        return integer(size)
    return tirx.max(tirx.min(integer(size), function.dim(extent) - first), integer(0))


def _root_index(function: Function, product: Product, place: Sequence[Expr]) -> list[Expr]:
    """The index of the kernel's root for an entry of the product; they differ in axes of extent 1 only."""
    if function.root is product:
        return list(place)
    given = iter([entry for entry, extent in zip(place, product.shape, strict=True) if extent != 1])
    return [integer(0) if extent == 1 else next(given) for extent in function.root.shape]


def _worth(shape: Sequence[Dimension], extents: Sequence[Dimension], kind: Element) -> bool:
    work = dims.product([*shape, *extents])
    fits = expression_type(kind) in ("float32", "float64", "int32", "int64")
    return fits and (not isinstance(work, int) or work >= SMALL_WORK)


def convolution(
    x: Tensor,
    w: Tensor,
    counts: Sequence[Dimension],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    kind: Element,
) -> Product | None:
    """A convolution of a padded x with constant weights, packed by blocks of channels; None if it doesn't fit."""
    outputs, per_group, kernel = w.shape[0], w.shape[1], w.shape[2:]
    shape = (x.shape[0], outputs, *counts)
    extents = (per_group, *kernel)
    each = outputs // groups if isinstance(outputs, int) else 0
    if not isinstance(w, Constant) or not each or (groups > 1 and each % LANES) or not _worth(shape, extents, kind):
        return None
    blocks = -(-outputs // LANES)
    padded = np.zeros((blocks * LANES, *w.array.shape[1:]), w.array.dtype)
    padded[:outputs] = w.array
    packed = padded.reshape(blocks, LANES, *w.array.shape[1:])
    packed = np.ascontiguousarray(np.moveaxis(packed, 1, -1)).reshape(-1)
    spatial = len(kernel)

    def scalar(scope: Scope, buffer: Expr, index: Index, position: Index) -> Expr:
        channel = position[0]
        if groups > 1:
            channel = tirx.floordiv(index[1], integer(each)) * integer(per_group) + channel
        places = [index[2 + k] * integer(strides[k]) + position[1 + k] * integer(dilations[k]) for k in range(spatial)]
        return tirx.BufferLoad(buffer, [index[0], channel, *places])

    def vector(scope: Scope, buffer: Expr, index: Index, position: Index) -> Expr:
        offset = tirx.floordiv(index[1], integer(LANES))
        for step, extent in zip(position, extents, strict=True):
            offset = offset * integer(extent) + step
        return tirx.BufferLoad(buffer, [tirx.Ramp(offset * integer(LANES), integer(1), LANES)])

    plan = Plan(1 + spatial, 1, LANES, extents, scalar, vector, each if groups > 1 else 0)
    return Product(shape, kind, [x, as_tensor(packed)], plan)


def matrices(
    left: Tensor, right: Tensor, shape: Sequence[Dimension], count: Dimension, kind: Element
) -> Product | None:
    """A product of stacks of matrices. None if the template doesn't fit."""
    shape = tuple(shape)
    columns, lead = shape[-1], shape[:-2]
    if not _worth(shape, (count,), kind) or not isinstance(columns, int):
        return None
    if isinstance(right, Constant) and right.ndim == 2 and columns >= LANES // 2:
        blocks = -(-columns // LANES)
        padded = np.zeros((right.array.shape[0], blocks * LANES), right.array.dtype)
        padded[:, :columns] = right.array
        packed = np.ascontiguousarray(padded.reshape(-1, blocks, LANES).transpose(1, 0, 2)).reshape(-1)
        weights, lanes = as_tensor(packed), LANES

        def vector(scope: Scope, buffer: Expr, index: Index, position: Index) -> Expr:
            offset = tirx.floordiv(index[-1], integer(LANES)) * scope.dim(count) + position[0]
            return tirx.BufferLoad(buffer, [tirx.Ramp(offset * integer(LANES), integer(1), LANES)])
    else:
        lanes = next((size for size in (16, 8, 4) if columns % size == 0), 1)
        if lanes == 1:
            return None
        weights = right

        def vector(scope: Scope, buffer: Expr, index: Index, position: Index) -> Expr:
            first = broadcast_index(scope, index[:-2], right.shape[:-2], lead)  # type: ignore[arg-type]  # a scope has `dim`
            return tirx.BufferLoad(buffer, [*first, position[0], tirx.Ramp(index[-1], integer(1), lanes)])

    def scalar(scope: Scope, buffer: Expr, index: Index, position: Index) -> Expr:
        first = broadcast_index(scope, index[:-2], left.shape[:-2], lead)  # type: ignore[arg-type]  # a scope has `dim`
        return tirx.BufferLoad(buffer, [*first, index[-2], position[0]])

    plan = Plan(len(shape) - 2, len(shape) - 1, lanes, (count,), scalar, vector)
    return Product(shape, kind, [left, weights], plan)
