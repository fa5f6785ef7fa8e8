"""Winograd's minimal filtering: 3 × 3 convolutions as products of transformed tiles, with 2¼ to 4 times fewer of them.

A tile of m × m results follows from (m + 2)² products of numbers where the definition takes 9 m². For each of these
points there is a matrix product over channels; the weights are transformed when the model is compiled. The kernel goes
through groups of tiles whose transformed images stay in the cache: it transforms their images, and then, for a few
blocks of result channels after the other, multiplies in registers and transforms back; what is computed from the
results in the same kernel is computed there.

An entry that is infinite or no number spoils all results of its tiles, not just those that read it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import choices, floats, fuse, kernels, machine, products
from espalier.backends.tvm.arithmetic import as_tensor
from espalier.backends.tvm.filters import FILTERS, KERNEL, Filter, Transform
from espalier.backends.tvm.frames import Statement, integer, loop, sequence
from espalier.backends.tvm.kernels import Function, is_large, stored, stored_lanes
from espalier.backends.tvm.layout import Reach
from espalier.backends.tvm.numbers import immediate, widened
from espalier.backends.tvm.tensor import Constant, Expr, Input, Layout, Product, Tensor
from espalier.ir import dims, elements
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element

SHARED = 4
"""Groups of tiles from which on threads share these, rather than the channels of each."""
CACHE = 1 << 19
"""Bytes of a core's own cache that a kernel may count on for a group's transformed images."""
FEWEST = 16
"""Tiles of a group for which the weights are worth being read again."""
MOST_BLOCKS = 2
"""Blocks of result channels that are multiplied at once; with more, their weights don't stay in the nearest cache."""
REGISTERS = 12
"""Registers for sums below which products are too slow to be worth transforms."""
READ, READ_NEAR = 12.0, 4.0
"""What it costs to read a vector of weights from memory, and from a core's own cache, in multiplications."""
CLEARLY = 0.9
"""Of the cost of what is more exact, what must be left."""


# ---- the kernel --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How a convolution is computed."""

    filter: Filter
    before: tuple[int, int]
    """Positions before the first that a convolution reads."""
    lanes: int
    group: int
    """Tiles that go through all steps together."""
    height: int
    """Of these, how many are multiplied at once, …"""
    blocks: int
    """… by as many blocks of result channels."""
    reach: Reach

    def write(self, function: Function, product: Product) -> Statement:
        """The loops of the convolution."""
        return Writer(self, function, product).write()


class Writer:
    """Writes a kernel."""

    def __init__(self, plan: Plan, function: Function, product: Product) -> None:
        self.plan, self.function, self.product = plan, function, product
        self.filter, self.lanes = plan.filter, plan.lanes
        self.x = product.operands[0]
        self.images, self.weights = (function.input(operand) for operand in product.operands)
        batch, outputs, *positions = product.shape
        self.channels, self.outputs = int(self.x.shape[1]), int(outputs)
        self.in_blocks, self.out_blocks = (-(-count // self.lanes) for count in (self.channels, self.outputs))
        self.positions = [int(extent) for extent in positions]
        self.grid = [-(-extent // self.filter.results) for extent in self.positions]
        self.tiles: Dimension = batch * (self.grid[0] * self.grid[1])
        self.rows = -(-plan.group // plan.height) * plan.height
        self.points = self.filter.size**2
        # a vector more than needed: otherwise those written together would all lie in the same few lines of the cache
        self.in_point = (self.in_blocks * self.rows + 1) * self.lanes
        self.out_tile = (self.points + 1) * self.lanes
        self.transformed = self.local(self.points * self.in_point)

    def local(self, size: int) -> Expr:
        return tirx.decl_buffer([integer(size)], "float32", self.function.names.variable("s").name)

    def lane_ramp(self, start: Expr) -> Expr:
        return tirx.Ramp(start, integer(1), self.lanes)

    def write(self) -> Statement:
        names, plan = self.function.names, self.plan
        groups = dims.ceil_divide(self.tiles, plan.group)
        work = dims.product([*self.product.shape, self.channels])
        shared = not isinstance(groups, int) or groups >= SHARED
        inner = "parallel" if is_large(work) and not shared else "serial"
        group, block, part = (names.variable(letter) for letter in "gbo")
        first = group * integer(plan.group)
        count = integer(plan.group)
        if not isinstance(self.tiles, int) or self.tiles % plan.group:
            count = tirx.min(count, self.function.dim(self.tiles) - first)
        tile = names.variable("t")
        into = loop(tile, count, self.into(first + tile, tile, block))
        body = sequence([
            tirx.AllocBuffer(self.transformed),
            loop(block, integer(self.in_blocks), into, inner),
            loop(part, integer(self.out_blocks // plan.blocks), self.part(first, count, part), inner),
        ])  # fmt: skip
        return loop(group, self.function.dim(groups), body, "parallel" if is_large(work) and shared else "serial")

    def place(self, tile: Expr) -> tuple[Expr, list[Expr]]:
        """The image of a tile, and its first positions."""
        m = integer(self.filter.results)
        down, across = map(integer, self.grid)
        row = tirx.floordiv(tile, across)
        image = tirx.floordiv(row, down)
        return image, [(row - image * down) * m, (tile - row * across) * m]

    def into(self, tile: Expr, number: Expr, block: Expr) -> Statement:
        """Transform a block of channels of a tile's images."""
        image, start = self.place(tile)
        size = self.filter.size
        line = Line(self)
        image, *start = (line.bind(index) for index in (image, *start))
        channel = self.function.composed(block, self.lane_ramp(integer(0)), self.lanes)

        def entry(i: int, j: int) -> Expr:
            before = self.plan.before
            place = [image, channel, start[0] + integer(i - before[0]), start[1] + integer(j - before[1])]
            loaded = tirx.BufferLoad(self.images, self.function.place(self.x, place))
            return line.keep(loaded if self.x.element == elements.F32 else widened(loaded))

        grid = [[entry(i, j) for j in range(size)] for i in range(size)]
        grid = line.both(self.filter.into, grid)
        base = (block * integer(self.rows) + number) * integer(self.lanes)  # unbound: TVM sees that it is aligned
        for point, entry in enumerate(entry for row in grid for entry in row):
            line.store(self.transformed, self.lane_ramp(base + integer(point * self.in_point)), entry)
        return line.statement()

    def part(self, first: Expr, count: Expr, part: Expr) -> Statement:
        """Some blocks of result channels of a group of tiles."""
        names, plan = self.function.names, self.plan
        sums = self.local(plan.blocks * self.rows * self.out_tile)
        point, chunk, tile = (names.variable(letter) for letter in "pct")
        chunks = tirx.floordiv(count + integer(plan.height - 1), integer(plan.height))
        product = self.multiply(sums, part, point, chunk * integer(plan.height))
        which = names.variable("b")
        results = self.back(sums, first + tile, tile, part, which)
        return sequence([
            tirx.AllocBuffer(sums),
            loop(point, integer(self.points), loop(chunk, chunks, product)),
            loop(which, integer(plan.blocks), loop(tile, count, results)),
        ])  # fmt: skip

    def multiply(self, sums: Expr, part: Expr, point: Expr, row: Expr) -> Statement:
        """The products of a few tiles and blocks at one point, in registers."""
        names, plan, lanes = self.function.names, self.plan, self.lanes
        one, vector = [integer(0)], f"float32x{lanes}"

        def registers(letter: str, count: int) -> list[Expr]:
            return [tirx.decl_buffer([integer(1)], vector, names.variable(letter).name) for _ in range(count)]

        totals = [registers("s", plan.blocks) for _ in range(plan.height)]
        loaded = registers("w", plan.blocks)
        flat = [register for row in totals for register in row]

        def steps(block: Expr, lane: Expr) -> Statement:
            factor = tirx.decl_buffer([integer(1)], "float32", names.variable("v").name)
            channel = block * integer(lanes) + lane
            weight = (part * integer(self.points) + point) * integer(self.channels) + channel
            start = point * integer(self.in_point) + (block * integer(self.rows) + row) * integer(lanes) + lane
            found: list[Statement] = [tirx.AllocBuffer(factor)]
            for k, register in enumerate(loaded):
                place = (weight * integer(plan.blocks) + integer(k)) * integer(lanes)
                found.append(tirx.BufferStore(register, tirx.BufferLoad(self.weights, [self.lane_ramp(place)]), one))
            for k, row_totals in enumerate(totals):
                entry = tirx.BufferLoad(self.transformed, [start + integer(k * lanes)])
                found.append(tirx.BufferStore(factor, entry, one))
                spread = tirx.Broadcast(tirx.BufferLoad(factor, one), lanes)
                for total, register in zip(row_totals, loaded, strict=True):
                    added = tirx.BufferLoad(total, one) + spread * tirx.BufferLoad(register, one)
                    found.append(tirx.BufferStore(total, added, one))
            return sequence(found)

        block, lane = (names.variable(letter) for letter in "rk")
        whole, left = divmod(self.channels, lanes)
        body = []
        if whole:
            body.append(loop(block, integer(whole), loop(lane, integer(lanes), steps(block, lane))))
        if left:
            rest = names.variable("k")
            body.append(loop(rest, integer(left), steps(integer(whole), rest)))
        base = row * integer(self.out_tile) + point * integer(lanes)
        stores = [
            tirx.BufferStore(sums, tirx.BufferLoad(register, one), [
                self.lane_ramp(base + integer((b * self.rows + k) * self.out_tile))
            ])
            for k, row_totals in enumerate(totals)
            for b, register in enumerate(row_totals)
        ]  # fmt: skip
        none = tirx.Broadcast(immediate(0, "float32"), lanes)
        return sequence([
            *map(tirx.AllocBuffer, [*flat, *loaded]),
            *(tirx.BufferStore(register, none, one) for register in flat), *body, *stores,
        ])  # fmt: skip

    def back(self, sums: Expr, tile: Expr, number: Expr, part: Expr, which: Expr) -> Statement:
        """The results of a tile in one block of channels, and what is computed from them."""
        names, plan, lanes, m = self.function.names, self.plan, self.lanes, self.filter.results
        size = self.filter.size
        line = Line(self)
        image, start = self.place(tile)
        image, *start = (line.bind(index) for index in (image, *start))
        base = (which * integer(self.rows) + number) * integer(self.out_tile)
        grid = [
            [
                line.keep(tirx.BufferLoad(
                    sums, [self.lane_ramp(base + integer((i * size + j) * lanes))]
                ))
                for j in range(size)
            ]
            for i in range(size)
        ]  # fmt: skip
        grid = line.both(self.filter.back, grid)
        stride = lanes + products.GAP
        found = self.local(m * m * stride)
        for k, entry in enumerate(entry for row in grid for entry in row):
            line.store(found, self.lane_ramp(integer(k * stride)), entry)
        block = line.bind(part * integer(plan.blocks) + which)
        i, j = names.variable("i"), names.variable("j")
        counts = []
        for first, extent in zip(start, self.positions, strict=True):
            last = integer(m) if extent % m == 0 else tirx.min(integer(m), integer(extent) - first)
            counts.append(last)

        def entries(*, whole: bool) -> Statement:
            function, product, lane = self.function, self.product, self.function.lane(lanes)
            entry = [(i * integer(m) + j) * integer(stride) + lane]
            function.folds = {product: lambda scope, index: tirx.BufferLoad(found, entry)}
            place = [image, function.composed(block, lane, lanes), start[0] + i, start[1] + j]
            index = products.root_index(function, product, place)
            if whole:
                return loop(i, counts[0], loop(j, counts[1], stored_lanes(function, index, lane, lanes)))
            left = tirx.min(integer(lanes), integer(self.outputs) - block * integer(lanes))
            return loop(lane, left, loop(i, counts[0], loop(j, counts[1], stored(function, index))))

        if self.function.root.layout is None:
            result = entries(whole=False)
        elif self.outputs % lanes == 0:
            result = entries(whole=True)
        else:
            full = block < integer(self.outputs // lanes)
            result = tirx.IfThenElse(full, entries(whole=True), entries(whole=False))
        return sequence([tirx.AllocBuffer(found), line.statement(result)])


class Line:
    """Statements without a branch, on vectors in registers."""

    def __init__(self, writer: Writer) -> None:
        self.names, self.lanes = writer.function.names, writer.lanes
        self.allocations: list[Statement] = []
        self.statements: list[Statement] = []

    def _held(self, value: Expr, dtype: str) -> Expr:
        cell = tirx.decl_buffer([integer(1)], dtype, self.names.variable("v").name, layout=None)
        self.allocations.append(tirx.AllocBuffer(cell))
        self.statements.append(tirx.BufferStore(cell, value, [integer(0)]))
        return tirx.BufferLoad(cell, [integer(0)])

    def keep(self, value: Expr) -> Expr:
        """A vector, computed here."""
        return self._held(value, f"float32x{self.lanes}")

    def bind(self, index: Expr) -> Expr:
        """An index, computed here."""
        variable = self.names.variable("i")
        self.statements.append(tirx.Bind(variable, index))
        return variable

    def both(self, transform: Transform, grid: Sequence[Sequence[Expr]]) -> list[list[Expr]]:
        """Transform columns, and then rows."""
        columns = [transform(column, self.keep) for column in zip(*grid, strict=True)]
        return [transform(row, self.keep) for row in zip(*columns, strict=True)]

    def store(self, buffer: Expr, place: Expr, value: Expr) -> None:
        self.statements.append(tirx.BufferStore(buffer, value, [place]))

    def statement(self, *last: Statement) -> Statement:
        return sequence([*self.allocations, *self.statements, *last])


# ---- the choice --------------------------------------------------------------------------------------------------


def convolution(
    x: Tensor, w: Tensor, counts: Sequence[Dimension], strides: Sequence[int], pads: Sequence[tuple[Any, Any]],
    dilations: Sequence[int], groups: int, kind: Element,
) -> Product | None:  # fmt: skip
    """A convolution with constant 3 × 3 weights; None if it doesn't fit or doesn't pay."""
    if not isinstance(w, Constant) or w.shape[2:] != (KERNEL, KERNEL) or kind != elements.F32 or groups != 1:
        return None
    extents = [*x.shape[1:], *counts, *(end for ends in pads for end in ends)]
    results = [count for count in counts if isinstance(count, int)]
    if any(not isinstance(extent, int) or extent < 0 for extent in extents) or 0 in [*w.array.shape, *results]:
        return None
    if {*strides, *dilations} != {1} or x.shape[0] == 0 or not np.isfinite(w.array).all():
        return None
    batch = x.shape[0] if isinstance(x.shape[0], int) else 1
    ways = [Way.of(each, batch, w.array.shape, results) for each in FILTERS.values()]
    pairs = x.narrow is not None and machine.current().bf16 is not None
    way = cheapest(ways, direct(batch, w.array.shape, results) / (2 if pairs else 1))

    def ask() -> choices.Question | None:
        return None if pairs else _question(x, w, results, pads, way)

    chosen = choices.pick(_name(way), ask)
    if chosen != _name(way):
        way = Way.named(chosen, batch, w.array.shape, results)
    return None if way is None else _planned(x, w, results, pads, way)


DEFINITION: choices.Choice = ("definition",)
GROUPS = (1.0, 0.5, 2.0)
"""Times the tiles of a group that the rule chooses: what is measured where choices are."""


def _name(way: Way | None) -> choices.Choice:
    return DEFINITION if way is None else ("transformed", way.filter.results, way.group)


def _question(
    x: Tensor, w: Constant, counts: Sequence[int], pads: Sequence[tuple[int, int]], ruled: Way | None
) -> choices.Question | None:  # fmt: skip
    """Whether to compute a convolution by transforms, and by which; measured without what follows from it."""
    batch, shape = x.shape[0], w.array.shape
    if not isinstance(batch, int) or machine.current().registers < REGISTERS:
        return None
    lanes, steps = machine.current().lanes, direct(batch, shape, counts)
    if not is_large(int(steps) * lanes):
        return None
    plain = [Way.of(each, batch, shape, counts) for each in FILTERS.values()]
    groups = [(way, max(1, int(way.group * factor))) for factor in GROUPS for way in plain]
    others = [Way.of(way.filter, batch, shape, counts, group) for way, group in groups]
    candidates = tuple(dict.fromkeys([_name(ruled), DEFINITION, *map(_name, others)]))
    facts = {"images": list(x.shape), "weights": list(shape), "results": list(counts), "pads": pads}

    def kernel() -> choices.Kernel:
        source = Input(x.shape, elements.F32, 0)
        given = (source, w, counts, (1, 1), pads, (1, 1), 1, elements.F32)
        product: Tensor | None = convolution(*given)
        if product is None:
            product = floats.convolution(*given)
        assert isinstance(product, Product)
        reach = product.plan.reach
        source.layout = Layout(reach.lanes, reach.pads, reach.fill)
        if 2 * product.shape[1] >= lanes:
            product.layout = Layout(lanes, ((0, 0),) * len(counts))
        made, operands, _ = kernels.build(fuse.Plan([product], {source, *product.operands, product}), product)
        return choices.Kernel(made, (*operands, product))

    return choices.Question("convolution", facts, candidates, kernel, steps)


@dataclass(frozen=True)
class Way:
    """How a convolution could be computed, and how long that takes in multiplications of vectors."""

    filter: Filter
    group: int
    height: int
    blocks: int
    cost: float

    @classmethod
    def of(
        cls, chosen: Filter, batch: int, shape: Sequence[int], counts: Sequence[int], group: int | None = None
    ) -> Way:  # fmt: skip
        """For weights of a shape (outputs, channels, 3, 3), and results' extents; with groups of a size if given."""
        lanes = machine.current().lanes
        outputs, channels = shape[:2]
        points = chosen.size**2
        tiles = batch * math.prod(-(-count // chosen.results) for count in counts)
        weights = 4 * points * channels * _padded(outputs)
        kept = CACHE if weights > 2 * CACHE else CACHE // 2  # weights that pass by each time should do so less often
        most = max(FEWEST, kept // (4 * points * channels))
        groups = -(-tiles // (most if group is None else min(group, tiles)))
        group = -(-tiles // groups)
        height, blocks = products.tile(group, outputs, lanes, most_blocks=MOST_BLOCKS)
        step = max(height * blocks, height + blocks, products.LATENCY) + 1
        cost = points * channels * groups * -(-group // height) * step * _padded(outputs) / (lanes * blocks)
        cost += groups * (READ if weights > 2 * CACHE else READ_NEAR) * weights / (4 * lanes)
        cost += tiles * (chosen.into_cost * -(-channels // lanes) + chosen.back_cost * -(-outputs // lanes))
        return cls(chosen, group, height, blocks, cost)

    @classmethod
    def named(cls, name: choices.Choice, batch: int, shape: Sequence[int], counts: Sequence[int]) -> Way | None:
        """What `_name` calls so."""
        return None if name == DEFINITION else cls.of(FILTERS[int(name[1])], batch, shape, counts, int(name[2]))


def direct(batch: int, shape: Sequence[int], counts: Sequence[int]) -> float:
    """What a convolution costs by its definition, in multiplications of vectors."""
    outputs, channels = shape[:2]
    lanes = machine.current().lanes
    work = channels * _padded(outputs) * KERNEL**2 / lanes
    return work * (batch * math.prod(counts) + READ)


def cheapest(ways: Sequence[Way], definition: float) -> Way | None:
    """Which to take; larger tiles, whose results are less exact, and all of them only for a clear gain."""
    best, cost = None, definition
    for way in sorted(ways, key=lambda way: way.filter.results):
        if way.cost < CLEARLY * cost:
            best, cost = way, way.cost
    return best if machine.current().registers >= REGISTERS else None


def _padded(outputs: int) -> int:
    lanes = machine.current().lanes
    return -(-outputs // lanes) * lanes


def _planned(x: Tensor, w: Constant, counts: Sequence[int], pads: Sequence[tuple[int, int]], way: Way) -> Product:
    lanes, chosen, blocks = machine.current().lanes, way.filter, way.blocks
    outputs, channels = w.array.shape[:2]
    padded = np.zeros((_padded(outputs), channels, KERNEL**2))
    padded[:outputs] = w.array.reshape(outputs, channels, KERNEL**2)
    transformed = (padded @ np.kron(chosen.weights, chosen.weights).T).astype(np.float32)
    packed = transformed.reshape(-1, blocks, lanes, channels, chosen.size**2).transpose(0, 4, 3, 1, 2)
    weights = as_tensor(np.ascontiguousarray(packed).reshape(-1))
    beyond = []
    for count, (before, after), extent in zip(counts, pads, x.shape[2:], strict=True):
        end = -(-count // chosen.results) * chosen.results + KERNEL - 1
        beyond.append((before, max(after, end - before - extent)))
    reach = Reach(lanes, tuple(beyond), True)
    plan = Plan(chosen, (beyond[0][0], beyond[1][0]), lanes, way.group, way.height, blocks, reach)
    stored = x if x.narrow is None else x.narrow
    return Product((x.shape[0], outputs, *counts), elements.F32, [stored, weights], plan)
