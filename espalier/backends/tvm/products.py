"""One tiled template for matrix products and convolutions: rows × blocks of lanes, accumulated in registers.

An outer-product tile: for each step of the reduction one vector of lanes (result columns or channels) is loaded per
block, and multiplied by one broadcast number per row. Rows and lanes beyond the result are computed and not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import tirx

from espalier.backends.tvm import choices, kernels, machine, panels
from espalier.backends.tvm.frames import Scope, Statement, integer, knowing, loop, sequence
from espalier.backends.tvm.kernels import Function, Nest, is_large, stored, stored_lanes
from espalier.backends.tvm.layout import Reach
from espalier.backends.tvm.numbers import expression_type, immediate
from espalier.backends.tvm.tensor import Expr, Index, Product, Tensor
from espalier.ir import dims
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element

GAP = 4
"""Entries between the rows of a finished tile: LLVM would make one huge register of stores that touch."""
FEW_ROWS = 4
"""Rows from which on it pays to pack the other matrix when the model runs."""
SMALL_WORK = 2048
"""Multiplications below which the template is not worth its code."""
LATENCY = 8
"""Vectors that must be accumulated at once to hide how long an addition takes."""
SHORT_SUM = 160
"""Steps of a reduction up to which a tile leaves a seventh of the registers free: such tiles took less time."""
MOST_BLOCKS = 8
"""Blocks of lanes of a tile."""
UNPACKED_BLOCKS = 4
"""Of a tile that unpacks its weights: what is unpacked of more does not stay in registers."""
FEW_BLOCKS = 2
"""Of a tile whose second operand is no constant: with fewer, or more than four, products took up to four times as
long."""
TRIED = 5
"""Tiles that are measured where choices are, besides the first in the other order."""

Load: TypeAlias = Callable[[Sequence[Expr]], Expr]
"""Reads an entry of an operand by its index, or some along the last axis of its buffer by a ramp."""
Place: TypeAlias = Callable[[Expr, int, Expr], list[Expr]]
"""The index of a result entry by its row in the tile, its block of columns and its lane."""


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
    scalar: Callable[[Scope, Load, Index, Index], Expr]
    """(scope, first operand, index of a result entry, position) → what a row is multiplied by: a number, or a vector
    if the product is `lanewise`."""
    vector: Callable[[Scope, Load, Index, Index], Expr]
    """(scope, second operand, index of a block's first result entry, position) → a vector."""
    multiple: int = 0
    """Columns that a tile must not straddle a multiple of (groups of channels); 0: any."""
    reach: Reach | None = None
    """What the first operand may be laid out as; None: row-major only."""
    lanewise: bool = False
    """Whether each lane is multiplied by a number of its own."""
    vector_type: str = ""
    """The type of the vectors, if it is not lanes of the result's."""
    element: str = ""
    """The IR's name of what is multiplied, if it is not the result's element."""
    combine: Callable[[Expr, Expr, Expr], Expr] = lambda old, factor, vector: old + factor * vector
    """(sum so far, first operand's vector, second operand's) → the sum with their products."""
    functions: str = ""
    """Functions that `combine` calls, in LLVM's text."""
    about: tuple[Any, ...] = ()
    """What shapes do not tell of how operands are read: strides, dilations, groups."""
    written_out: int = 0
    """Steps inside of the loops of the reduction that are written out; positions end with their number then."""
    left_over: int = 0
    """Such steps that come after the innermost loop, at the position where it ends."""
    apart: int = 0
    """Steps at the end of the innermost loop that are written after it, at positions that are numbers."""
    blocks: int = 0
    """Blocks of lanes of every tile, if that is not to be chosen; the second operand is filled up to a multiple."""
    most_blocks: int = MOST_BLOCKS
    """At most so many, where they are chosen."""
    vector_cost: int = 0
    """What a vector costs besides being loaded, in multiplications of vectors."""

    @property
    def steps(self) -> Dimension:
        """Of the whole reduction."""
        if not self.written_out:
            return dims.product(self.extents)
        return dims.product(self.extents[:-1]) * (self.extents[-1] * self.written_out + self.left_over)

    def write(self, function: Function, product: Product) -> Statement:
        """The loops of the product, and of what is computed from its entries in the same kernel."""
        return knowing(self.functions, _written(function, product, self))


def _written(function: Function, product: Product, plan: Plan) -> Statement:
    shape = product.shape
    dtype, lanes = expression_type(product.element), plan.lanes
    rows = shape[plan.row_axis]
    height, blocks, columns_first = _choice(function, product)
    left, right = (_reads(function, operand) for operand in product.operands)
    panel = panels.Panel(function, product, height, blocks) if panels.fits(product) else None
    nest, place = _nest(function, product, height, blocks, columns_first, panel)
    names = function.names
    size, vector_type = [integer(1)], f"{dtype}x{lanes}"
    sums = [
        [tirx.decl_buffer(size, vector_type, names.variable("s").name) for _ in range(blocks)] for _ in range(height)
    ]
    whole = [integer(0)]
    none = tirx.Broadcast(immediate(0, dtype), lanes)
    loops = [names.variable("r") for _ in plan.extents]
    loaded = plan.vector_type or vector_type
    vectors = [tirx.decl_buffer(size, loaded, names.variable("w").name) for _ in range(blocks)]

    def step(positions: Index) -> Statement:
        scope = Scope(function)
        found: list[Statement] = []
        for block in range(blocks):
            if panel is None:
                entries = plan.vector(scope, right, place(integer(0), block, integer(0)), positions)
            else:
                entries = tirx.BufferLoad(panel.buffer, panel.place(positions, block))
            found.append(tirx.BufferStore(vectors[block], entries, whole))
        for k in range(height):
            row = integer(k)
            if not isinstance(rows, int):
                row = tirx.min(row, function.dim(rows) - integer(1) - place(integer(0), 0, integer(0))[plan.row_axis])
            for block in range(blocks):
                if block == 0 or plan.lanewise:
                    factor = plan.scalar(scope, left, place(row, block, integer(0)), positions)
                    if not plan.lanewise:
                        factor = tirx.Broadcast(scope.bind(factor), lanes)
                old = tirx.BufferLoad(sums[k][block], whole)
                added = plan.combine(old, factor, tirx.BufferLoad(vectors[block], whole))
                found.append(tirx.BufferStore(sums[k][block], added, whole))
        return scope.as_statements(*found)

    def written_out(position: Index, count: int) -> Statement:
        return sequence([step([*position, integer(k)]) for k in range(count)])

    if panel is not None:
        (k,) = loops
        body = loop(k, function.dim(plan.steps), step([integer(0), k]))
    else:
        body = written_out(loops, plan.written_out) if plan.written_out else step(loops)
        for variable, extent in reversed(list(zip(loops, plan.extents, strict=True))):
            if plan.apart and variable is loops[-1]:
                last = [step([*loops[:-1], integer(int(extent) - k)]) for k in range(plan.apart, 0, -1)]
                body = sequence([loop(variable, integer(int(extent) - plan.apart), body), *last])
                continue
            body = loop(variable, function.dim(extent), body)
            if plan.left_over and variable is loops[-1]:
                body = sequence([body, written_out([*loops[:-1], function.dim(extent)], plan.left_over)])
    buffers = [buffer for each in sums for buffer in each]
    # what is stored is read with computed lanes, so it must not be the registers themselves
    tile = [tirx.decl_buffer([integer((lanes + GAP) * height)], dtype, names.variable("t").name) for _ in range(blocks)]
    places = [[tirx.Ramp(integer(k * (lanes + GAP)), integer(1), lanes)] for k in range(height)]
    spill = [
        tirx.BufferStore(tile[block], tirx.BufferLoad(sums[k][block], whole), places[k])
        for k in range(height)
        for block in range(blocks)
    ]
    stores = [_stored(function, product, place, tile[block], height, block) for block in range(blocks)]
    statement = sequence([
        *map(tirx.AllocBuffer, [*buffers, *vectors, *tile]),
        *(tirx.BufferStore(buffer, none, whole) for buffer in buffers),
        body, *spill, *stores,
    ])  # fmt: skip
    work = dims.product([*shape, plan.steps])
    if panel is not None:
        starts = [place(integer(0), block, integer(0)) for block in range(blocks)]
        return panel.around(right, starts, statement, parallel=is_large(work))
    return nest.around(statement, parallel=is_large(work))


def _reads(function: Function, operand: Tensor) -> Load:
    buffer = function.input(operand)
    return lambda index: tirx.BufferLoad(buffer, function.place(operand, index))


def _columns_first(product: Product) -> bool:
    """Whether to go through columns outside of rows, so that the second operand is read once, the first repeatedly.

    What is larger, the operands of all rows or those of all columns, is read once.
    """
    first, second = (operand.size * operand.element.bits for operand in product.operands)
    return isinstance(first, int) and isinstance(second, int) and second >= first


def _nest(
    function: Function, product: Product, height: int, blocks: int, columns_first: bool, panel: panels.Panel | None
) -> tuple[Nest, Place]:  # fmt: skip
    """The loops over tiles, and the index of an entry by its row in the tile, its block of columns and its lane."""
    plan: Plan = product.plan
    shape, lanes = product.shape, plan.lanes
    rows, columns = shape[plan.row_axis], shape[plan.lane_axis]
    nest = Nest(function, [])
    outer: dict[int, Expr] = {}
    if panel is not None:
        outer, column_tile, row_tile = panel.others, panel.column_tile, panel.row_tile
    else:
        others = [axis for axis in range(len(shape)) if axis not in (plan.row_axis, plan.lane_axis)]
        leading = others[:1] if plan.reach is not None or not columns_first else []
        tiles = dims.ceil_divide(columns, lanes * blocks)
        outer.update((axis, nest.add(shape[axis])) for axis in leading)
        if columns_first:
            column_tile = nest.add(tiles)
        outer.update((axis, nest.add(shape[axis])) for axis in others if axis not in leading)
        if not columns_first:
            column_tile = nest.add(tiles)
        row_tile = nest.add(dims.ceil_divide(rows, height))
    first_row = row_tile * integer(height)
    if isinstance(rows, int) and rows % height:  # the last tile overlaps the one before
        first_row = tirx.min(first_row, integer(rows - height))

    def place(row: Expr, block: int, lane: Expr) -> list[Expr]:
        index: list[Expr] = [integer(0)] * len(shape)
        for axis, variable in outer.items():
            index[axis] = variable
        index[plan.row_axis] = first_row + row
        index[plan.lane_axis] = function.composed(column_tile * integer(blocks) + integer(block), lane, lanes)
        return index

    return nest, place


def _choice(function: Function, product: Product) -> tuple[int, int, bool]:
    """Rows and blocks of a tile, and whether to go through columns outside of rows."""
    plan: Plan = product.plan
    rows, columns = (product.shape[axis] for axis in (plan.row_axis, plan.lane_axis))
    if panels.fits(product):
        vector_cost, most_blocks = 0, min(MOST_BLOCKS, panels.most_blocks(product))
    else:
        vector_cost, most_blocks = plan.vector_cost, plan.most_blocks
    ranked = tiles(
        rows, columns, plan.lanes, multiple=plan.multiple, lanewise=plan.lanewise, most_blocks=most_blocks,
        wide=expression_type(product.element).endswith("64"), steps=plan.steps, vector_cost=vector_cost,
        given=plan.blocks, together=bool(plan.element),
    )  # fmt: skip
    order = _columns_first(product)
    height, blocks, columns_first = choices.pick(
        (*ranked[0], int(order)), lambda: _question(function, product, ranked, order)
    )
    return int(height), int(blocks), bool(columns_first)


def _question(
    function: Function, product: Product, ranked: Sequence[tuple[int, int]], order: bool
) -> choices.Question | None:  # fmt: skip
    """How to tile a product, in the kernel that computes it and what follows from it."""
    plan, root = product.plan, function.root
    counts = [*product.shape, plan.steps]
    if not all(isinstance(extent, int) for extent in counts) or not is_large(dims.product(counts)):
        return None
    first = {blocks: k for k, (_, blocks) in reversed(list(enumerate(ranked)))}
    order_of = sorted(range(len(ranked)), key=lambda k: (k != 0, k not in first.values(), k))[:TRIED]
    candidates = [(*ranked[k], int(order)) for k in order_of]
    candidates.append((*ranked[0], int(not order)))
    facts = {
        "result": choices.described(product), "sum": list(plan.extents), "about": plan.about,
        "operands": [choices.described(operand) for operand in product.operands],
        "root": choices.described(root), "then": choices.following(root, product, function.plan.stored),
    }  # fmt: skip

    def kernel() -> choices.Kernel:
        made, operands, _ = kernels.build(function.plan, root)
        return choices.Kernel(made, (*operands, root))

    return choices.Question("tile", facts, tuple(candidates), kernel, dims.product(counts) / plan.lanes)


def tile(
    rows: Dimension, columns: Dimension, lanes: int, *,
    multiple: int = 0, lanewise: bool = False, wide: bool = False, most_blocks: int = MOST_BLOCKS,
) -> tuple[int, int]:  # fmt: skip
    """Rows and blocks of lanes that are accumulated in registers together: those of the least work in all."""
    return tiles(rows, columns, lanes, multiple=multiple, lanewise=lanewise, wide=wide, most_blocks=most_blocks)[0]


def tiles(
    rows: Dimension, columns: Dimension, lanes: int, *, multiple: int = 0, lanewise: bool = False, wide: bool = False,
    most_blocks: int = MOST_BLOCKS, steps: Dimension = SHORT_SUM + 1, vector_cost: int = 0,
    given: int = 0, together: bool = False,
) -> list[tuple[int, int]]:  # fmt: skip
    """Rows and blocks of lanes that may be accumulated in registers together, those of the least work first.

    A step of the reduction loads a vector per block and a number per row, and multiplies each by each; a row or block
    that the result lacks is computed in vain. `steps` is how long the reduction is, `vector_cost` what a vector costs
    besides, in multiplications; `given` is how many blocks a tile has, if that is not to be chosen; `together` says
    that operands of a multiplication are loaded before it.
    """
    registers = machine.current().registers // (2 if wide else 1)
    if isinstance(steps, int) and steps <= SHORT_SUM:
        registers -= registers // 7
    if lanewise:  # what neighbouring rows read overlaps, and is kept too
        registers = min(registers, LATENCY)
    if not isinstance(rows, int) or not isinstance(columns, int):
        return [(max(1, min(6, registers // 2)), given or 1)]
    all_blocks = -(-columns // lanes)
    found: list[tuple[int, int, tuple[int, int]]] = []
    for blocks in [given] if given else range(1, 2 if lanewise else most_blocks + 1):
        if not given and (all_blocks % blocks or (multiple and multiple % (lanes * blocks))):
            continue
        for height in range(1, min(rows, registers // blocks) + 1):
            crowded = (height + 1) * blocks > machine.current().registers + 3
            if crowded and height > 1 and (together or blocks > UNPACKED_BLOCKS):
                break  # the vectors of a step don't fit beside what is accumulated
            count = -(-rows // height) * -(-all_blocks // blocks)
            work = height * blocks
            unpacked = work + blocks * vector_cost
            cost = count * (max(unpacked, (height * (blocks if lanewise else 1) + blocks), LATENCY) + 1)
            found.append((cost, -work, (height, blocks)))
    return [each for *_, each in sorted(found, key=lambda entry: entry[:2])] or [(1, 1)]


def _stored(function: Function, product: Product, place: Place, tile: Expr, height: int, block: int) -> Statement:
    """The entries of one block, each computed from its sum. The inner loop goes along memory where it can."""
    plan: Plan = product.plan
    shape, lanes = product.shape, plan.lanes
    start = place(integer(0), block, integer(0))
    rows, columns = (shape[axis] for axis in (plan.row_axis, plan.lane_axis))
    row_count = integer(height) if isinstance(rows, int) else _span(function, rows, start[plan.row_axis], height)
    lane_count = _span(function, columns, start[plan.lane_axis], lanes, plan.blocks or 1)
    along = plan.lane_axis > plan.row_axis or function.root.layout is not None

    def entries(*, whole: bool) -> Statement:
        row, lane = function.names.variable("i"), function.lane(lanes)
        function.folds = {product: lambda scope, index: tirx.BufferLoad(tile, [row * integer(lanes + GAP) + lane])}
        index = root_index(function, product, place(row, block, lane))
        if whole:
            return loop(row, row_count, stored_lanes(function, index, lane, lanes))
        inner, outer = ((lane, lane_count), (row, row_count))[:: 1 if along else -1]
        return loop(*outer, loop(*inner, stored(function, index)))

    if not along or not isinstance(columns, int) or columns < lanes:
        return entries(whole=False)
    if columns % (lanes * (plan.blocks or 1)) == 0:
        return entries(whole=True)
    return tirx.IfThenElse(lane_count == integer(lanes), entries(whole=True), entries(whole=False))


def _span(function: Function, extent: Dimension, first: Expr, size: int, together: int = 1) -> Expr:
    """How many of `size` entries from `first` on exist, where always so many times as many are gone through."""
    if isinstance(extent, int) and extent % (size * together) == 0:
        return integer(size)
    return tirx.max(tirx.min(integer(size), function.dim(extent) - first), integer(0))


def root_index(function: Function, product: Product, place: Sequence[Expr]) -> list[Expr]:
    """The index of the kernel's root for an entry of the product; they differ in axes of extent 1 only."""
    if function.root is product:
        return list(place)
    given = iter([entry for entry, extent in zip(place, product.shape, strict=True) if extent != 1])
    return [integer(0) if extent == 1 else next(given) for extent in function.root.shape]


def worth(shape: Sequence[Dimension], extents: Sequence[Dimension], kind: Element) -> bool:
    """Whether a product is large enough for the template, and of an element that it knows."""
    work = dims.product([*shape, *extents])
    fits = expression_type(kind) in ("float32", "float64", "int32", "int64")
    return fits and (not isinstance(work, int) or work >= SMALL_WORK)
