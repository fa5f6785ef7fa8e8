"""Panels: packed weights of a tile's columns, unpacked once for many rows, into a core's own cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from espalier.backends.tvm.frames import Scope, Statement, integer, loop, sequence
from espalier.backends.tvm.kernels import Function, Nest
from espalier.backends.tvm.tensor import Expr, Index, Product
from espalier.ir import dims

LEAST_ROWS = 8
"""Rows from which on weights are unpacked into a panel, not for each tile again."""
PART = 128
"""Rows that a panel is unpacked for: enough to hide what that takes, and few enough that threads share large ones."""
BYTES = 1 << 19
"""Of a panel, unless one block of lanes alone has more."""


def fits(product: Product) -> bool:
    """Whether a product should unpack its weights into panels."""
    plan: Any = product.plan
    known = [extent for extent in product.shape[:-1] if isinstance(extent, int)]
    static = isinstance(product.shape[plan.row_axis], int)
    return bool(plan.written_out) and plan.reach is None and static and dims.product(known) >= LEAST_ROWS


def most_blocks(product: Product) -> int:
    """Blocks of lanes that a panel may have."""
    plan: Any = product.plan
    return max(1, BYTES // int(4 * plan.lanes * plan.steps))


class Panel:
    """The loops over a product's panels and, inside of them, over their tiles."""

    def __init__(self, function: Function, product: Product, height: int, blocks: int) -> None:
        self.function, self.plan, self.blocks = function, product.plan, blocks
        plan, shape = self.plan, product.shape
        tiles = -(-int(shape[plan.row_axis]) // height)
        each = max(1, PART // height)
        self.outer = Nest(function, [dims.ceil_divide(shape[plan.lane_axis], plan.lanes * blocks), -(-tiles // each)])
        self.inner = Nest(function, [])
        self.column_tile, part = self.outer.variables
        self.others = {
            axis: self.inner.add(extent)
            for axis, extent in enumerate(shape)
            if axis not in (plan.row_axis, plan.lane_axis)
        }
        self.count = integer(each)
        if tiles % each:
            self.count = tirx.min(self.count, integer(tiles) - part * integer(each))
        self.tile = function.names.variable("i")
        self.row_tile = part * integer(each) + self.tile
        self.words = -(-int(plan.steps) // plan.written_out)
        size = integer(self.words * plan.written_out * blocks * plan.lanes)
        self.buffer = tirx.decl_buffer([size], "float32", function.names.variable("u").name)

    def place(self, position: Index, block: int) -> list[Expr]:
        """Where the vector of a block lies for a step of the reduction."""
        lanes = self.plan.lanes
        step = position[0] * integer(self.plan.written_out) + position[1]
        return [tirx.Ramp((step * integer(self.blocks) + integer(block)) * integer(lanes), integer(1), lanes)]

    def around(self, load: Any, starts: Sequence[Index], tile: Statement, parallel: bool) -> Statement:
        """Unpack a panel, the first entries of whose blocks have these indices, and do this for each of its tiles."""
        plan = self.plan

        word = self.function.names.variable("r")
        unpacked = [
            tirx.BufferStore(self.buffer, vector, self.place(position, block))
            for position in ([word, integer(k)] for k in range(plan.written_out))
            for block, start in enumerate(starts)
            for vector in [plan.vector(Scope(self.function), load, start, position)]
        ]
        body = sequence([
            tirx.AllocBuffer(self.buffer), loop(word, integer(self.words), sequence(unpacked)),
            self.inner.around(loop(self.tile, self.count, tile), parallel=False),
        ])  # fmt: skip
        return self.outer.around(body, parallel)
