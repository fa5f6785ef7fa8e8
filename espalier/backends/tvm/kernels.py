"""Loops: one TIR function for each tensor that gets a buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import tirx

from espalier.backends.tvm import numbers
from espalier.backends.tvm.frames import Kernel, Scope, Statement, integer, loop, sequence
from espalier.backends.tvm.fuse import Plan
from espalier.backends.tvm.layout import zeros_around
from espalier.backends.tvm.tensor import Expr, Fold, Index, Layout, Map, Product, Program, Tensor
from espalier.ir import dims
from espalier.ir.dims import Dimension

PARALLEL_WORK = 16384
"""Entries (times loop lengths) below which a second thread costs more than it saves."""
TILE = 64
"""Entries of the last axis that a fold computes at a time."""
LANES = 16
"""Partial results of a fold along memory."""


class Function(Kernel):
    """A kernel with its parameters."""

    def __init__(self, plan: Plan, root: Tensor) -> None:
        super().__init__()
        self.plan, self.root = plan, root
        self.lanes = 0
        """Channels of a block, where the loops go through blocks of channels."""
        self.inputs: list[Tensor] = []
        self.outputs = root.parts if isinstance(root, Program) else [root]
        self.out_buffers = [self.declare(output, "y") for output in self.outputs]
        self.buffers = _Buffers(self)

    def declare(self, tensor: Tensor, letter: str) -> Expr:
        name = self.names.variable(letter).name
        shape = [self.dim(extent) for extent in tensor.stored_shape]
        return tirx.decl_buffer(shape, numbers.buffer_type(tensor.element), name=str(name))

    def input(self, tensor: Tensor) -> Expr:
        found = self.buffers.get(tensor)
        assert found is not None, f"{tensor} has no buffer"
        return found

    def finished(self, body: Statement) -> tvm.tirx.PrimFunc:
        parameters = [*(self.buffers[tensor] for tensor in self.inputs), *self.symbols.values(), *self.out_buffers]
        attributes = tvm.ir.make_node("ir.DictAttrs", **{"tirx.noalias": True})
        return tirx.PrimFunc(parameters, body, attrs=attributes)


class _Buffers(dict[Tensor, Expr]):
    """Buffers of what a kernel reads, declared when first read."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def get(self, tensor: Tensor, default: Any = None) -> Any:
        if tensor in self:
            return self[tensor]
        if tensor in self.function.plan.stored and tensor is not self.function.root:
            self[tensor] = self.function.declare(tensor, "x")
            self.function.inputs.append(tensor)
            return self[tensor]
        return default


def build(plan: Plan, root: Tensor) -> tuple[tvm.tirx.PrimFunc, list[Tensor], list[str]]:
    """The function that computes a root; the tensors and the symbols that it takes, in order."""
    function = Function(plan, root)
    if isinstance(root, Program):
        body = root.write(Scope(function), [function.input(operand) for operand in root.operands], function.out_buffers)
    else:
        folds = [root] if isinstance(root, Fold | Product) else plan.fused.get(root, [])
        products = [fold for fold in folds if isinstance(fold, Product)]
        if products:
            body = products[0].plan.write(function, products[0])
        else:
            body = _loops(function, [fold for fold in folds if isinstance(fold, Fold)])
    if zeros_around(root):
        body = sequence([*_zeros(function), body])
    made = function.finished(body)
    return made, function.inputs, list(function.symbols)


def entry(function: Function, scope: Scope, index: Index) -> Expr:
    """The root's entry as it is stored."""
    root = function.root
    if isinstance(root, Map):
        found = root.body(reader(scope, root), index)
    else:
        found = function.folds[root](scope, index)
    return numbers.store(root.element, found, scope.bind)


def stored(function: Function, index: Sequence[Expr]) -> Statement:
    """The statement that computes and stores the root's entry."""
    scope = Scope(function)
    value = entry(function, scope, index)
    return scope.as_statements(tirx.BufferStore(function.out_buffers[0], value, function.place(function.root, index)))


def stored_lanes(function: Function, index: Sequence[Expr], lane: Expr, lanes: int) -> Statement:
    """The loop over the lanes of a block, one of vectors, that computes and stores the root's entries.

    It is written as such since LLVM would unroll it, and then gather along another axis.
    """
    scope = Scope(function, lanes=(lane, lanes))
    value = entry(function, scope, index)
    store = tirx.BufferStore(function.out_buffers[0], value, function.place(function.root, index))
    return vectors(scope, lane, lanes, store)


def vectors(scope: Scope, lane: Expr, lanes: int, store: Statement) -> Statement:
    """A loop of vectors around what a scope has bound, and a last statement."""
    body = loop(lane, integer(lanes), sequence([*scope.computed, store]), "vectorized")
    return sequence([*scope.allocations, body])


def reader(scope: Scope, tensor: Tensor) -> Any:
    from espalier.backends.tvm.frames import Reader

    return Reader(scope, tensor)


def _zeros(function: Function) -> list[Statement]:
    """Fill what lies around the positions of the root's buffer."""
    root, layout = function.root, function.root.layout
    assert layout is not None
    buffer, shape = function.out_buffers[0], root.stored_shape
    nothing, lanes = tirx.const(layout.fill, numbers.buffer_type(root.element)), integer(0)
    if layout.lanes > 1:
        nothing, lanes = tirx.Broadcast(nothing, layout.lanes), tirx.Ramp(lanes, integer(1), layout.lanes)
    statements = []
    for axis, (before, after) in enumerate(layout.halo, 2):
        inner = function.dim(shape[axis] - after)
        for count, first in ((before, integer(0)), (after, inner)):
            if not count:
                continue
            extents = [integer(count) if a == axis else function.dim(e) for a, e in enumerate(shape[:-1])]
            variables = [function.names.variable("z") for _ in extents]
            place = [first + v if a == axis else v for a, v in enumerate(variables)]
            body: Statement = tirx.BufferStore(buffer, nothing, [*place, lanes])
            for variable, extent in reversed(list(zip(variables, extents, strict=True))):
                body = loop(variable, extent, body)
            statements.append(body)
    return statements


def _work(function: Function, folds: Sequence[Fold]) -> Dimension:
    inner: Dimension = 1
    for fold in folds:
        inner = inner + dims.product(fold.extents)
    cost = min(8, 1 + function.root.cost) if isinstance(function.root, Map) else 1
    return dims.product([*function.root.shape, inner, cost])


def is_large(work: Dimension) -> bool:
    return not isinstance(work, int) or work >= PARALLEL_WORK


def _loops(function: Function, folds: Sequence[Fold]) -> Statement:
    """The nest over a root's entries; folds are computed for a tile of the last axis at a time."""
    shape = function.root.shape
    if function.root.layout is not None and function.root.layout.lanes > 1:
        return _blocked_loops(function, folds, function.root.layout)
    if (found := _channels(function, folds)) is not None:
        return _channel_loops(function, folds, *found)
    axes = [axis for axis, extent in enumerate(shape) if extent != 1]
    last = axes[-1] if axes else None
    outer, tile = (axes[:-1], TILE if folds else 4096) if axes else ([], 1)
    if folds and last is not None and all(fold.rows for fold in folds):
        tile = 1
    index: list[Expr] = [integer(0)] * len(shape)
    nest = Nest(function, [shape[axis] for axis in outer])
    for axis, variable in zip(outer, nest.variables, strict=True):
        index[axis] = variable
    if last is None:
        body = _tile(function, folds, lambda lane: index, None)
    else:
        extent = shape[last]
        chunked = tile == 1 or not isinstance(extent, int) or extent > tile
        if chunked and not (tile == 4096 and outer):
            chunks = dims.ceil_divide(extent, tile)
            chunk = nest.add(chunks)
            base = chunk * integer(tile) if tile > 1 else chunk
            whole = isinstance(extent, int) and extent % tile == 0
            length = integer(tile) if whole else tirx.min(integer(tile), function.dim(extent) - base)
        else:
            base, length = None, function.dim(extent)

        def here(lane: Expr) -> list[Expr]:
            return [*index[:last], lane if base is None else base + lane, *index[last + 1 :]]

        body = _tile(function, folds, here, length)
    return nest.around(body, parallel=is_large(_work(function, folds)))


def _blocked_loops(function: Function, folds: Sequence[Fold], layout: Layout) -> Statement:
    """The nest over blocks of channels and positions; the lanes of a block are computed at a time."""
    batch, channels, *positions = function.root.shape
    function.lanes = layout.lanes
    nest = Nest(function, [batch, dims.ceil_divide(channels, layout.lanes), *positions])
    first, block, *rest = nest.variables
    left = channels - (-(-channels // layout.lanes) - 1) * layout.lanes
    length = integer(layout.lanes)
    if left != layout.lanes:
        length = tirx.min(length, integer(channels) - block * length)

    def here(lane: Expr) -> list[Expr]:
        return [first, function.composed(block, lane, layout.lanes), *rest]

    body = _tile(function, folds, here, length)
    return nest.around(body, parallel=is_large(_work(function, folds)))


def _channels(function: Function, folds: Sequence[Fold]) -> tuple[int, int] | None:
    """The axis of a root, in row-major order, that folds read as whole blocks of channels, and a block's lanes."""
    shape, plan = function.root.shape, function.plan
    axis = max((axis for axis, extent in enumerate(shape) if extent != 1), default=0)
    pending: list[Tensor] = [operand for fold in folds for operand in fold.operands]
    while pending:
        tensor = pending.pop()
        if tensor not in plan.stored:
            pending.extend(tensor.operands)
        elif tensor.layout is not None and shape and tensor.shape[1] == shape[axis]:
            lanes = tensor.layout.lanes
            if lanes > 1 and shape[axis] % lanes == 0 and dims.product(shape) == tensor.shape[0] * shape[axis]:
                return axis, lanes
    return None


def _channel_loops(function: Function, folds: Sequence[Fold], axis: int, lanes: int) -> Statement:
    """The nest over the entries of a root that `_channels` tells of; a block of them is computed at a time."""
    shape = function.root.shape
    function.lanes = lanes
    outer = [each for each, extent in enumerate(shape) if extent != 1 and each != axis]
    nest = Nest(function, [*(shape[each] for each in outer), dims.floor_divide(shape[axis], lanes)])
    index: list[Expr] = [integer(0)] * len(shape)
    for each, variable in zip(outer, nest.variables, strict=False):
        index[each] = variable

    def here(lane: Expr) -> list[Expr]:
        return [*index[:axis], function.composed(nest.variables[-1], lane, lanes), *index[axis + 1 :]]

    return nest.around(_tile(function, folds, here, integer(lanes)), parallel=is_large(_work(function, folds)))


class Nest:
    """Loops around a statement; enough of the outer ones are joined into one that threads share."""

    def __init__(self, function: Function, extents: Sequence[Dimension]) -> None:
        self.function, self.extents = function, list(extents)
        self.variables = [function.names.variable("i") for _ in extents]

    def add(self, extent: Dimension) -> Expr:
        self.extents.append(extent)
        self.variables.append(self.function.names.variable("i"))
        return self.variables[-1]

    def around(self, body: Statement, parallel: bool) -> Statement:
        joined = 0
        if parallel:
            size: Dimension = 1
            while joined < len(self.extents) and not (isinstance(size, int) and size >= 16):
                size = size * self.extents[joined]
                joined += 1
        for variable, extent in reversed(list(zip(self.variables, self.extents, strict=True))[joined:]):
            body = loop(variable, self.function.dim(extent), body)
        if not joined:
            return body
        if joined == 1:
            return loop(self.variables[0], self.function.dim(self.extents[0]), body, "parallel")
        whole = self.function.names.variable("p")
        rest, bound = whole, []
        for variable, extent in reversed(list(zip(self.variables[:joined], self.extents[:joined], strict=True))[1:]):
            bound.append(tirx.Bind(variable, tirx.floormod(rest, self.function.dim(extent))))
            rest = tirx.floordiv(rest, self.function.dim(extent))
        bound.append(tirx.Bind(self.variables[0], rest))
        size = dims.product(self.extents[:joined])
        return loop(whole, self.function.dim(size), sequence([*bound, body]), "parallel")


def _tile(
    function: Function, folds: Sequence[Fold], here: Callable[[Expr], Sequence[Expr]], length: Expr | None
) -> Statement:
    """So many entries, `here(lane)` being the index of one (None: the only one): each fold's states, then the entries.

    Folds along memory are made of lanes themselves, unless the entries lie in blocks.
    """
    tiled = length is not None
    if length is None:
        length = integer(1)
    extent = int(length) if isinstance(length, tirx.IntImm) else TILE
    lane = function.lane(function.lanes or extent)
    states: dict[Fold, list[Expr]] = {}
    allocations: list[Statement] = []
    for fold in folds:
        states[fold] = [
            tirx.decl_buffer([integer(max(extent, 1))], dtype, function.names.variable("s").name)
            for dtype in fold.types
        ]
        allocations += [tirx.AllocBuffer(state) for state in states[fold]]

    def at_hand(fold: Fold, places: dict[Fold, Index], lane: Expr) -> Callable[[Scope, Index], Expr]:
        def found(scope: Scope, place: Index) -> Expr:
            places[fold] = place
            position = lane if tiled else integer(0)
            return fold.finish(reader(scope, fold), [tirx.BufferLoad(state, [position]) for state in states[fold]])

        return found

    whole = bool(function.lanes) and isinstance(length, tirx.IntImm)

    def write(lane: Expr) -> tuple[Statement, dict[Fold, Index]]:
        places: dict[Fold, Index] = {}
        function.folds = {fold: at_hand(fold, places, lane) for fold in folds}
        index = list(here(lane))
        return (stored_lanes(function, index, lane, extent) if whole else stored(function, index)), places

    def place_of(fold: Fold) -> Callable[[Expr], Index]:
        return lambda lane: write(lane)[1][fold]

    final, used = write(lane)
    if tiled and not whole:
        final = loop(lane, length, final)
    before = [
        statement for fold in folds if fold in used
        for statement in _fold(function, fold, states[fold], place_of(fold), tiled, length)
    ]  # fmt: skip
    return sequence([*allocations, *before, final])


def _fold(
    function: Function, fold: Fold, states: Sequence[Expr], place: Callable[[Expr], Index], tiled: bool, length: Expr
) -> list[Statement]:
    """Statements that leave a fold's states for a tile in its buffers."""
    if fold.rows and fold.join is not None and fold.extents and _lanes(fold) and not function.lanes:
        return [_along_rows(function, fold, states, place, tiled, length)]
    begin, inside = function.names.variable("l"), function.lane(TILE)
    start = sequence([
        tirx.BufferStore(state, value, [begin if tiled else integer(0)])
        for state, value in zip(states, fold.start(), strict=True)
    ])  # fmt: skip
    positions = [function.names.variable("r") for _ in fold.extents]
    where = [inside if tiled else integer(0)]
    if function.lanes and isinstance(length, tirx.IntImm):
        lanes = int(length)
        scope = Scope(function, lanes=(inside, lanes))
        step = _step(fold, scope, states, where, place(inside), positions)
        start, body = loop(begin, length, start, "vectorized"), vectors(scope, inside, lanes, step)
    else:
        scope = Scope(function)
        step = _step(fold, scope, states, where, place(inside), positions)
        body = scope.as_statements(step)
        if tiled:
            start, body = loop(begin, length, start), loop(inside, length, body)
    for variable, extent in reversed(list(zip(positions, fold.extents, strict=True))):
        body = loop(variable, function.dim(extent), body)
    return [start, body]


def _step(fold: Fold, scope: Scope, states: Sequence[Expr], where: Index, place: Index, positions: Index) -> Statement:
    """The stores of a fold's next state; what they rest on is bound in the scope."""
    values = [tirx.BufferLoad(state, list(where)) for state in states]
    if len(states) > 1:
        values = [scope.bind(value) for value in values]
    found = list(fold.step(reader(scope, fold), values, place, positions))
    if len(states) > 1:
        found = [scope.bind(value) for value in found]
    return sequence([
        tirx.BufferStore(state, value, list(where)) for state, value in zip(states, found, strict=True)
    ])  # fmt: skip


def _lanes(fold: Fold) -> bool:
    extent = fold.extents[-1]
    return isinstance(extent, int) and extent >= 2 * LANES


def _along_rows(
    function: Function, fold: Fold, states: Sequence[Expr], place: Callable[[Expr], Index], tiled: bool, length: Expr
) -> Statement:
    """One entry after another, each in LANES interleaved parts that are joined at the end."""
    assert fold.join is not None
    variable = function.names.variable("l")
    where = place(variable)
    target = [variable if tiled else integer(0)]
    parts = [tirx.decl_buffer([integer(LANES)], dtype, function.names.variable("s").name) for dtype in fold.types]
    first = function.names.variable("k")
    statements = [
        *(tirx.AllocBuffer(part) for part in parts),
        loop(first, integer(LANES), sequence([
            tirx.BufferStore(part, value, [first]) for part, value in zip(parts, fold.start(), strict=True)
        ])),
    ]  # fmt: skip
    outer = [function.names.variable("r") for _ in fold.extents[:-1]]
    extent = fold.extents[-1]
    block, part_lane, rest = (function.names.variable(letter) for letter in "rkk")
    position = block * integer(LANES) + part_lane

    def step(lane: Expr, entry_position: Expr) -> Statement:
        scope = Scope(function)
        return scope.as_statements(_step(fold, scope, parts, [lane], where, [*outer, entry_position]))

    body = loop(part_lane, integer(LANES), step(part_lane, position))
    body = loop(block, integer(extent // LANES), body)
    if extent % LANES:
        tail = integer(extent - extent % LANES) + rest
        body = sequence([body, loop(rest, integer(extent % LANES), step(rest, tail))])
    for r, e in reversed(list(zip(outer, fold.extents[:-1], strict=True))):
        body = loop(r, function.dim(e), body)
    statements.append(body)
    width = LANES
    while width > 1:
        width //= 2
        k = function.names.variable("k")
        found = fold.join(
            [tirx.BufferLoad(p, [k]) for p in parts], [tirx.BufferLoad(p, [k + integer(width)]) for p in parts]
        )
        stores = [tirx.BufferStore(p, value, [k]) for p, value in zip(parts, found, strict=True)]
        statements.append(loop(k, integer(width), sequence(stores)))
    statements += [
        tirx.BufferStore(state, tirx.BufferLoad(part, [integer(0)]), target)
        for state, part in zip(states, parts, strict=True)
    ]
    body = sequence(statements)
    return loop(variable, length, body) if tiled else body
