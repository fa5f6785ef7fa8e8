"""Products of narrow numbers by the machine's dot products: four of 8 bits or two of bf16 to a lane at a time.

Both operands lie as the tile reads them: neighbours of the reduction together, which the first operand has as its
channels or columns anyway, and the second by packing: a constant when the model is compiled, another matrix when it
runs. Neighbours that it lacks are zeros there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import machine
from espalier.backends.tvm.arithmetic import as_tensor
from espalier.backends.tvm.broadcasting import broadcast_index
from espalier.backends.tvm.frames import Scope, integer
from espalier.backends.tvm.layout import Reach
from espalier.backends.tvm.machine import Dot
from espalier.backends.tvm.numbers import immediate, select
from espalier.backends.tvm.products import FEW_BLOCKS, FEW_ROWS, Load, Plan, worth
from espalier.backends.tvm.tensor import At, Expr, Index, Map, Product, Tensor
from espalier.ir import elements
from espalier.ir.dims import Dimension

Array = np.ndarray[Any, Any]
Number = Callable[[Expr], Expr]
"""What is loaded of the first operand, as the product multiplies it."""


def convolution(
    dot: Dot, x: Tensor, weights: Array, counts: Sequence[Dimension], strides: Sequence[int],
    pads: Sequence[tuple[Any, Any]], dilations: Sequence[int], groups: int, *,
    number: Number, fill: int = 0, about: tuple[Any, ...] = (),
) -> Product | None:  # fmt: skip
    """A convolution of narrow numbers (n, g·i, …) with constant ones (g·o, i, K…); None if it doesn't fit.

    `number` makes 32 bits of a lane's neighbours, `fill` is what lies beyond the positions.
    """
    lanes, count = machine.current().lanes, dot.count
    outputs, per_group, *kernel = weights.shape
    shape, each = (x.shape[0], outputs, *counts), outputs // groups
    sums = _sums(dot)
    dense = groups == 1 or (per_group % lanes == 0 and each % lanes == 0)
    if not dense or not worth(shape, (per_group, *kernel), sums):
        return None
    along = tuple((int(before), int(after)) for before, after in pads)
    blocks, together = -(-outputs // lanes), lanes // count
    steps = -(-per_group // count)
    whole = per_group % lanes == 0
    filled = np.zeros((blocks * lanes, steps * count, *kernel), weights.dtype)
    filled[:outputs, :per_group] = weights
    inner = together if whole else steps
    filled = filled.reshape(blocks, lanes, steps // inner, inner, count, *kernel)
    packed = np.moveaxis(filled, (1, 3, 4), (-2, -3, -1))  # (o/l, i/l, K…, l/count, l, count)
    extents = (steps // inner, *kernel, inner)

    def numbers(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        block, step = position[0], position[-1]
        if groups > 1:
            block = tirx.floordiv(index[1], integer(each)) * integer(per_group // lanes) + block
        elif not whole:  # nothing beyond the last channel may be read: it is unknown, and may be no number
            block, step = tirx.floordiv(step, integer(together)), tirx.floormod(step, integer(together))
        neighbours = tirx.Ramp(step * integer(count), integer(1), count)
        channel = scope.kernel.composed(block, neighbours, lanes)
        return number(load([index[0], channel, *places(index, position[1:-1], strides, dilations, along)]))

    plan = Plan(
        1 + len(kernel), 1, lanes, extents, numbers, vectors(extents, lanes, count, 1), each if groups > 1 else 0,
        Reach(lanes, along, True, fill), about=(*about, strides, dilations, groups), **_combining(dot),
    )  # fmt: skip
    return Product(shape, sums, [x, flat(packed)], plan)


def depthwise(
    x: Tensor, weights: Array, counts: Sequence[Dimension], strides: Sequence[int], pads: Sequence[tuple[Any, Any]],
    dilations: Sequence[int], *, number: Number, fill: int = 0, about: tuple[Any, ...] = (),
) -> Product | None:  # fmt: skip
    """A convolution of each channel of narrow numbers with one filter (c, 1, K…), in f32; None if it doesn't fit.

    There are as many products as sums, so that floats are as fast. `number` makes floats of lanes that are loaded.
    """
    lanes = machine.current().lanes
    outputs, _, *kernel = weights.shape
    shape, along = (x.shape[0], outputs, *counts), tuple((int(before), int(after)) for before, after in pads)
    if not worth(shape, tuple(kernel), elements.F32):
        return None
    blocks = -(-outputs // lanes)
    padded = np.zeros((blocks * lanes, *kernel), np.float32)
    padded[:outputs] = weights[:, 0]
    packed = np.moveaxis(padded.reshape(blocks, lanes, *kernel), 1, -1)

    def entries(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        ramp = tirx.Ramp(integer(0), integer(1), lanes)
        channel = scope.kernel.composed(scope.kernel.block(index[1]), ramp, lanes)
        return number(load([index[0], channel, *places(index, position, strides, dilations, along)]))

    plan = Plan(
        1 + len(kernel), 1, lanes, tuple(kernel), entries, vectors(tuple(kernel), lanes, 1, 1), 0,
        Reach(lanes, along, True, fill), True, about=(*about, strides, dilations, outputs),
    )  # fmt: skip
    return Product(shape, elements.F32, [x, flat(packed)], plan)


def matrices(
    dot: Dot, x: Tensor, weights: Array, shape: Sequence[Dimension], *, number: Number, about: tuple[Any, ...] = ()
) -> Product | None:
    """A stack of matrices of narrow numbers times a constant one; None if it doesn't fit."""
    steps, columns = weights.shape
    count, lanes, lead = dot.count, machine.current().lanes, tuple(shape[:-2])
    if steps % count or not worth(shape, (steps,), _sums(dot)):
        return None
    blocks = -(-columns // lanes)
    filled = np.zeros((steps, blocks * lanes), weights.dtype)
    filled[:, :columns] = weights
    packed = filled.reshape(steps // count, count, blocks, lanes).transpose(2, 0, 3, 1)

    def numbers(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        first = broadcast_index(scope, index[:-2], x.shape[:-2], lead)
        return number(load([*first, index[-2], tirx.Ramp(position[0] * integer(count), integer(1), count)]))

    rank, extents = len(shape), (steps // count,)
    plan = Plan(
        rank - 2, rank - 1, lanes, extents, numbers, vectors(extents, lanes, count, rank - 1),
        about=about, **_combining(dot),
    )  # fmt: skip
    return Product(tuple(shape), _sums(dot), [x, flat(packed)], plan)


def stacks(
    dot: Dot, x: Tensor, y: Tensor, shape: Sequence[Dimension], *, about: tuple[Any, ...] = ()
) -> Product | None:
    """A product of two stacks of matrices of bf16; None if it doesn't fit.

    The second's rows are packed in pairs when the model runs. The last row, if it has no neighbour, gets zeros as one.
    """
    lanes, lead, steps, columns = machine.current().lanes, tuple(shape[:-2]), int(y.shape[-2]), shape[-1]
    if not isinstance(columns, int) or columns < lanes // 2 or not worth(shape, (steps,), elements.F32):
        return None
    if isinstance(shape[-2], int) and shape[-2] < FEW_ROWS:
        return None
    together = min(FEW_BLOCKS, -(-columns // lanes))
    packed, single, pairs = _paired(y, lanes, together), steps % 2, -(-steps // 2)

    def numbers(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        first = [*broadcast_index(scope, index[:-2], x.shape[:-2], lead), index[-2]]
        if single and isinstance(position[0], tirx.IntImm):
            return tirx.Cast("int32", load([*first, integer(steps - 1)]))
        return tirx.reinterpret("int32", load([*first, tirx.Ramp(position[0] * integer(2), integer(1), 2)]))

    def vector(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        first = broadcast_index(scope, index[:-2], y.shape[:-2], lead)
        return load([*first, scope.kernel.block(index[-1]), position[0], tirx.Ramp(integer(0), integer(1), lanes)])

    rank = len(shape)
    combining = {**_combining(dot), "vector_type": f"int32x{lanes}"}
    plan = Plan(
        rank - 2, rank - 1, lanes, (pairs,), numbers, vector, apart=single, blocks=together, about=about, **combining
    )  # fmt: skip
    return Product(tuple(shape), elements.F32, [x, packed], plan)


def _paired(matrix: Tensor, lanes: int, together: int) -> Map:
    """Stacks of matrices of bf16 (…, rows, columns) as pairs of neighbours on a column, each one number of 32 bits.

    They lie as (…, columns / lanes, rows / 2, lanes), a multiple of so many blocks together. Columns beyond the last
    repeat it, rows are zeros.
    """
    *lead, rows, columns = matrix.shape

    def body(at: At, index: Index) -> Expr:
        *first, block, pair, lane = index
        column = block * integer(lanes) + lane
        if columns % (lanes * together):
            column = tirx.min(column, integer(columns - 1))

        def bits(row: Expr) -> Expr:
            entry = at(0, [*first, tirx.min(row, integer(rows - 1)) if rows % 2 else row, column])
            return tirx.reinterpret("uint32", entry)

        low = tirx.shift_right(bits(pair * integer(2)), immediate(16, "uint32"))
        row = pair * integer(2) + integer(1)
        high = bits(row) & immediate(0xFFFF0000, "uint32")
        if rows % 2:
            high = select(row < integer(rows), high, immediate(0, "uint32"))
        return tirx.reinterpret("int32", low | high)

    shape = (*lead, -(-columns // (lanes * together)) * together, -(-rows // 2), lanes)
    return Map(shape, elements.I32, [matrix], ["once"], body, cost=1)


def places(
    index: Index, steps: Index, strides: Sequence[int], dilations: Sequence[int], along: Sequence[tuple[int, int]]
) -> list[Expr]:
    """The positions that a convolution reads for a result entry at a step of the kernel."""
    return [
        index[2 + k] * integer(strides[k]) + step * integer(dilations[k]) - integer(along[k][0])
        for k, step in enumerate(steps)
    ]


def vectors(extents: Sequence[int], lanes: int, packed: int, axis: int) -> Any:
    """Reads the second operand, which lies in the order of the loops: lanes, on an axis, of so many entries each."""

    def vector(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        offset = scope.kernel.block(index[axis])
        for step, extent in zip(position, extents, strict=True):
            offset = offset * integer(extent) + step
        return load([tirx.Ramp(offset * integer(lanes * packed), integer(1), lanes * packed)])

    return vector


def flat(packed: Array) -> Tensor:
    """An array as the tensor of its entries, one after another."""
    return as_tensor(np.ascontiguousarray(packed).reshape(-1))


def multiplied(dot: Dot, old: Expr, factor: Expr, vector: Expr) -> Expr:
    """Each lane's products of the narrow numbers in a broadcast number of 32 bits and the lane's, added to a sum."""
    lanes = machine.current().lanes
    first = tirx.reinterpret(f"{dot.first}x{dot.count * lanes}", factor)
    return _instructions(dot, lanes, old, first, tirx.reinterpret(f"{dot.second}x{dot.count * lanes}", vector))


def _instructions(dot: Dot, lanes: int, old: Expr, first: Expr, second: Expr) -> Expr:
    """As many of the machine's instructions as so many lanes take."""
    if lanes == dot.lanes:
        call = tirx.call_pure_extern if dot.llvm else tirx.call_llvm_pure_intrin
        return call(f"{dot.sums}x{lanes}", dot.intrinsic, old, first, second)
    wide = dot.count * lanes // 2
    types = [f"{dot.sums}x{lanes // 2}", f"{dot.first}x{wide}", f"{dot.second}x{wide}"]
    operands = list(zip(types, (old, first, second), strict=True))
    halves = [
        _instructions(dot, lanes // 2, *(half(kind, whole) for kind, whole in operands))
        for half in (tirx.vectorlow, tirx.vectorhigh)
    ]
    return tirx.vectorcombine(f"{dot.sums}x{lanes}", *halves)


def _sums(dot: Dot) -> elements.Element:
    return elements.I32 if dot.sums == "int32" else elements.F32


def _combining(dot: Dot) -> dict[str, Any]:
    """What a plan says of an instruction."""
    stored = "uint16" if dot.second == "int16" else dot.second  # of buffers that hold the second operand
    return {
        "vector_type": f"{stored}x{dot.count * machine.current().lanes}", "functions": dot.llvm,
        "element": dot.element,
        "combine": lambda *operands: multiplied(dot, *operands),
    }  # fmt: skip
