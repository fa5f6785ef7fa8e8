"""Recurrent layers as one kernel: the inputs' products of all times at once, then a loop over time.

The kernel goes through all times for a few rows of the batch at a time, in one direction; threads share these. Or they
share the hidden units, and go through the times together: each has its part of the weights in the caches of its core,
and waits for the others after each stage. At each time it accumulates the products of a few blocks of hidden units with
the hidden state in registers, and computes the blocks' gates as vectors, which a cell says in stages (`cells`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import bf16, machine, xp
from espalier.backends.tvm.arithmetic import as_tensor
from espalier.backends.tvm.cells import Operands, Stage, Values
from espalier.backends.tvm.frames import Kernel, Scope, Statement, awaited, integer, launched, loop, sequence
from espalier.backends.tvm.kernels import Nest, is_large, vectors
from espalier.backends.tvm.numbers import expression_type, immediate, widened
from espalier.backends.tvm.products import GAP
from espalier.backends.tvm.tensor import Constant, Expr, Map, Program, Tensor
from espalier.ir import dims, elements
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element

ROWS = 4
"""Rows of the batch that are multiplied at once: enough to hide the reading of weights."""
SHARE = 64
"""Rows that go through all times together at most."""
STEP = 1 << 17
"""Multiplications from one wait for each other to the next from which on threads share the hidden units of each time:
each keeps its part of the weights in its caches. …"""
LONG_STEP = 1 << 22
"""… and so many if they could share rows or directions, which need not wait for each other: each thread's part of the
weights then passes once for all rows."""
SUMS = 8
"""Vectors that are accumulated at once: enough to hide how long an addition takes."""
STREAMS = 8
"""Blocks of hidden units whose weights are read at once."""


class Layer:
    """A layer with packed weights; writes the kernel. `stages` are those of each direction, or of all."""

    def __init__(self, op: Any, given: Operands, hidden: int, stages: Sequence[list[Stage]]) -> None:
        self.hidden, self.stages, self.batch_first = hidden, stages, op.layout == 1
        self.directions, self.reverse = int(op.directions), op.direction == "reverse"
        self.lanes = machine.current().lanes
        self.blocks = -(-hidden // self.lanes)
        x = xp.wide(given.x)
        time, batch = x.shape[:2][:: -1 if self.batch_first else 1]
        self.time: Dimension = time
        self.batch: Dimension = batch
        self.kind: Element = xp.element(x)
        self.dtype = expression_type(self.kind)
        self.gates: int = given.w.shape[1] // hidden
        self.initial = dict(given.initial)
        recurrent = self.packed(given.r, given.r.shape[2])
        self.operands: dict[str, Tensor] = {"now": self.inputs(given, x)}
        for number, stage in enumerate(stages[0]):
            gates = xp.transpose(recurrent[:, :, stage.gates[0] : stage.gates[-1] + 1], (0, 1, 4, 2, 3))
            self.operands[f"weights{number}"] = self.narrowed(self.operand(gates))
        if given.extras is not None:
            self.operands["extra"] = self.operand(self.packed(given.extras, 1))
        if given.lengths is not None:
            self.operands["lengths"] = as_tensor(xp.astype(given.lengths, elements.I64))
        for name, state in self.initial.items():
            if state is not None and not (isinstance(state, np.ndarray) and not state.any()):
                self.operands[f"initial {name}"] = as_tensor(self.started(given.lengths, xp.wide(state)))

    def started(self, lengths: Any, state: Any) -> Any:
        """An initial state, but zeros for sequences of length 0."""
        if lengths is None:
            return state
        live = xp.reshape(xp.astype(lengths, elements.I64) > 0, (-1, 1, 1) if self.batch_first else (1, -1, 1))
        return xp.where(live, state, xp.zeros_like(state))

    def packed(self, rows: Any, count: int) -> Any:
        """(directions, gates·hidden, …) as (directions, blocks, gates, lanes, count), with zeros beyond the units."""
        parts = xp.reshape(xp.wide(rows), (self.directions, -1, self.hidden, count))
        parts = xp.pad(parts, [(0, 0), (0, 0), (0, self.blocks * self.lanes - self.hidden), (0, 0)])
        parts = xp.reshape(parts, (self.directions, -1, self.blocks, self.lanes, count))
        return xp.transpose(parts, (0, 2, 1, 3, 4))

    def operand(self, packed: Any) -> Tensor:
        """(directions, blocks, …, lanes, …) with its last axes as one."""
        rest = int(np.prod(packed.shape[3:]))
        made = xp.reshape(packed, (self.directions, self.blocks, packed.shape[2], rest))
        return as_tensor(np.ascontiguousarray(made) if isinstance(made, np.ndarray) else made)

    def narrowed(self, weights: Tensor) -> Tensor:
        """Weights whose numbers bf16 holds, in it: what passes by at each time is half as much."""
        if self.kind != elements.F32 or not isinstance(weights, Constant) or machine.current().bf16 is None:
            return weights
        exact = bf16.exactly(weights.array)
        return weights if exact is None else as_tensor(exact)

    def inputs(self, given: Operands, x: Any) -> Tensor:
        """The input's share of every gate: (rows of x, directions · blocks · gates · lanes)."""
        size = given.w.shape[2]
        weights = xp.transpose(xp.reshape(self.packed(given.w, size), (-1, size)), (1, 0))
        found = xp.matmul(xp.reshape(x, (self.time * self.batch, size)), weights)
        if given.b is not None:
            bias = xp.reshape(xp.wide(given.b), (self.directions, 2, self.gates, self.hidden))
            kept = np.ones((self.gates, 1), self.kind.dtype)
            kept[list(given.apart)] = 0
            found = found + xp.reshape(self.packed(bias[:, 0] + bias[:, 1] * kept, 1), (1, -1))
        return as_tensor(found)

    def program(self) -> Program:
        """The layer's results as a program: y, then the last states."""
        last: tuple[Dimension, ...] = (self.directions, self.batch, self.hidden)
        y: tuple[Dimension, ...] = (self.time, self.directions, self.batch, self.hidden)
        if self.batch_first:
            last, y = (self.batch, self.directions, self.hidden), (self.batch, self.time, self.directions, self.hidden)
        types = [(y, self.kind), *((last, self.kind) for _ in self.initial)]
        return Program(types, list(self.operands.values()), self.write)

    def write(self, scope: Scope, inputs: Sequence[Expr], outputs: Sequence[Expr]) -> Statement:
        """The kernel: rows of the batch, as many at a time as fit, in each direction."""
        function: Any = scope.kernel
        buffers = dict(zip(self.operands, inputs, strict=True))
        shared, most = self.shares_units(), self.share()
        tiles = dims.ceil_divide(self.batch, most)
        nest = Nest(function, [self.directions, tiles])
        direction, tile = nest.variables
        first = tile * integer(most)

        def rows(stages: Sequence[Stage], row: Expr, count: int, shared: bool) -> Statement:
            which = integer(0) if self.directions == 1 else direction
            return Sweep(self, function, buffers, outputs, stages, which, row, count, shared).write()

        def one_by_one(stages: Sequence[Stage], start: Expr, count: Expr, shared: bool) -> Statement:
            row = function.names.variable("i")
            return loop(row, count, rows(stages, start + row, 1, shared))

        def sweep(stages: Sequence[Stage]) -> Statement:
            whole = rows(stages, first, most, shared)
            if most == 1 or (isinstance(self.batch, int) and self.batch % most == 0):
                return whole
            left = function.dim(self.batch) - first
            if isinstance(self.batch, int):
                rest = rows(stages, first, self.batch % most, shared)
            else:
                rest = one_by_one(stages, first, left, shared)
            return tirx.IfThenElse(left >= integer(most), whole, rest)

        body = sweep(self.stages[0])
        if len(self.stages) > 1:
            body = tirx.IfThenElse(tirx.EQ(direction, integer(0)), body, sweep(self.stages[1]))
        work = dims.product([self.time, self.batch, self.gates, self.hidden, self.hidden])
        alone = self.directions == 1 and tiles == 1
        found = nest.around(body, parallel=is_large(work) and not alone and not shared)
        if isinstance(self.batch, int) or self.directions > 1 or not self.shares_units(1):
            return found
        batch = function.dim(self.batch)
        few = one_by_one(self.stages[0], integer(0), batch, True)
        return tirx.IfThenElse(batch < integer(max(most, 2)), few, found)

    def share(self) -> int:
        """Rows of the batch that go through all times together."""
        if not isinstance(self.batch, int):
            return self.group()
        return -(-self.batch // -(-self.batch // (SHARE if self.shares_units() else self.group())))

    def shares_units(self, batch: Dimension | None = None) -> bool:
        """Whether threads share the hidden units of each time, for a batch, rather than rows and directions."""
        batch = self.batch if batch is None else batch
        if not isinstance(batch, int):
            return False
        work = batch * self.gates * self.hidden**2 // len(self.stages[0])
        return work >= (STEP if self.directions == 1 and batch <= self.group() else LONG_STEP)

    def group(self) -> int:
        """Rows of the batch that are multiplied at once."""
        vectors_of_row = max(len(stage.gates) for stage in self.stages[0])
        return max(1, min(ROWS, self.registers // vectors_of_row))

    @property
    def registers(self) -> int:
        return machine.current().registers // (1 if self.dtype == "float32" else 2)


class Part:
    """Of a stage's tiles of hidden units, those that a thread computes: from `first` up to `last`.

    In a launch, `found` says which these are, by a loop that TVM shares among threads: so they stay the same at all
    times, and what belongs to them in the caches of the core.
    """

    def __init__(self, function: Kernel, tiles: int, shared: bool) -> None:
        self.first, self.last, self.count = integer(0), integer(tiles), integer(tiles)
        self.found: list[Statement] = []
        if shared:
            least, most = (tirx.decl_buffer([integer(1)], "int64", function.names.variable("m").name) for _ in range(2))
            one, tile = [integer(0)], function.names.variable("b")
            self.first, self.last = tirx.BufferLoad(least, one), tirx.BufferLoad(most, one)
            self.count = self.last - self.first
            mine = [
                tirx.BufferStore(least, tirx.min(self.first, tile), one),
                tirx.BufferStore(most, tile + integer(1), one),
            ]
            self.found = [
                *map(tirx.AllocBuffer, (least, most)),
                *(tirx.BufferStore(each, integer(tiles), one) for each in (least, most)),
                loop(tile, integer(tiles), sequence(mine), "parallel"),
            ]


class Sweep:
    """Writes the loop over time for some rows of the batch in one direction."""

    def __init__(
        self, layer: Layer, function: Kernel, buffers: Mapping[str, Expr], outputs: Sequence[Expr],
        stages: Sequence[Stage], direction: Expr, first: Expr, rows: int, shared: bool,
    ) -> None:  # fmt: skip
        self.layer, self.function, self.buffers, self.outputs = layer, function, buffers, outputs
        self.stages, self.direction, self.first, self.rows = stages, direction, first, rows
        self.shared, self.width = shared, layer.blocks * layer.lanes
        step = function.names.variable("r")
        last = function.dim(layer.time) - integer(1)
        self.step, self.time = step, step
        if layer.reverse:
            self.time = last - step
        elif layer.directions == 2:
            self.time = tirx.Select(tirx.EQ(direction, integer(0)), step, last - step)
        names = dict.fromkeys(layer.initial)
        for stage in stages:
            names |= dict.fromkeys([stage.source, *stage.finish(self.nothing())])
        names.pop("next")
        self.states = {name: self.local(self.rows * self.width * (1 + (name == "h"))) for name in names}

    def nothing(self) -> Values:
        return Values(self.layer.kind, lambda name, k: immediate(0, self.layer.dtype))

    def local(self, size: int) -> Expr:
        return tirx.decl_buffer([integer(size)], self.layer.dtype, self.function.names.variable("s").name)

    def write(self) -> Statement:
        parts = [
            Part(self.function, -(-self.layer.blocks // self.together(stage)), self.shared) for stage in self.stages
        ]
        stages = [
            self.stage(number, stage, part) for number, (stage, part) in enumerate(zip(self.stages, parts, strict=True))
        ]
        body = loop(self.step, self.function.dim(self.layer.time), sequence(stages))
        if self.shared:
            body = launched(sequence([*(found for part in parts for found in part.found), body]))
        return sequence([
            *map(tirx.AllocBuffer, self.states.values()),
            *(self.begun(name) for name in self.layer.initial), body,
            *(self.ended(name, buffer) for name, buffer in zip(self.layer.initial, self.outputs[1:], strict=True)),
        ])  # fmt: skip

    # indices

    def place(self, name: str, row: Expr, unit: Expr, step: Expr | None = None) -> list[Expr]:
        """Where a state's entry lies in its local buffer; h lies in two places by turns, the next one in the other."""
        found = row * integer(self.width) + unit
        if name in ("h", "next"):
            turn = (self.step if step is None else step) + integer(int(name == "next"))
            found = tirx.floormod(turn, integer(2)) * integer(self.rows * self.width) + found
        return [found]

    def state(self, name: str) -> Expr:
        """A state's local buffer."""
        return self.states["h" if name == "next" else name]

    def outside(self, row: Expr, unit: Expr) -> list[Expr]:
        """Its index in initial and last states."""
        pair = [self.direction, self.first + row]
        return [*(pair[::-1] if self.layer.batch_first else pair), unit]

    def along(self, body: Callable[[Expr, Expr], Sequence[Statement]]) -> Statement:
        """Loops over rows and units; the units of whole blocks are given as ramps."""
        names, lanes = self.function.names, self.layer.lanes
        row, block, rest = (names.variable(letter) for letter in "ibl")
        whole, left = divmod(self.layer.hidden, lanes)
        found = []
        if whole:
            ramp = tirx.Ramp(block * integer(lanes), integer(1), lanes)
            found.append(loop(block, integer(whole), sequence(body(row, ramp))))
        if left:
            found.append(loop(rest, integer(left), sequence(body(row, integer(whole * lanes) + rest))))
        return loop(row, integer(self.rows), sequence(found))

    # statements

    def begun(self, name: str) -> Statement:
        """The initial value of a state."""
        state, given = self.states[name], self.buffers.get(f"initial {name}")
        place = self.function.names.variable("z")
        lanes = self.layer.lanes
        nothing = tirx.Broadcast(immediate(0, self.layer.dtype), lanes)
        ramp = tirx.Ramp(place * integer(lanes), integer(1), lanes)
        zeros = loop(place, integer(self.rows * self.layer.blocks), tirx.BufferStore(state, nothing, [ramp]))
        if given is None:
            return zeros

        def copied(row: Expr, unit: Expr) -> Sequence[Statement]:
            value = tirx.BufferLoad(given, self.outside(row, unit))
            return [tirx.BufferStore(state, value, self.inside(name, row, unit, integer(0)))]

        return sequence([zeros, self.along(copied)])

    def inside(self, name: str, row: Expr, unit: Expr, step: Expr | None = None) -> list[Expr]:
        """`place` for units that may be a ramp."""
        if not isinstance(unit, tirx.Ramp):
            return self.place(name, row, unit, step)
        return [tirx.Ramp(*self.place(name, row, unit.base, step), unit.stride, unit.lanes)]

    def ended(self, name: str, output: Expr) -> Statement:
        """The last value of a state."""
        state, steps = self.states[name], self.function.dim(self.layer.time)
        return self.along(lambda row, unit: [
            tirx.BufferStore(
                output, tirx.BufferLoad(state, self.inside(name, row, unit, steps)), self.outside(row, unit)
            )
        ])  # fmt: skip

    def shown(self, row: Expr, block: Expr) -> Statement:
        """A row's next hidden state of a block, for all to see."""
        lanes, (whole, left) = self.layer.lanes, divmod(self.layer.hidden, self.layer.lanes)

        def copied(unit: Expr) -> Statement:
            found = tirx.BufferLoad(self.state("next"), self.inside("next", row, unit))
            place = [self.time, self.direction, self.first + row, unit]
            if self.layer.batch_first:
                place = [self.first + row, self.time, self.direction, unit]
            live = self.live(row)
            if live is not None:
                none = immediate(0, self.layer.dtype)
                if isinstance(unit, tirx.Ramp):
                    none = tirx.Broadcast(none, lanes)
                found = tirx.if_then_else(live, found, none)
            return tirx.BufferStore(self.outputs[0], found, place)

        if left:
            rest = self.function.names.variable("l")
            part = loop(rest, integer(left), copied(integer(whole * lanes) + rest))
            if not whole:
                return part
        full = copied(tirx.Ramp(block * integer(lanes), integer(1), lanes))
        return tirx.IfThenElse(block < integer(whole), full, part) if left else full

    def live(self, row: Expr) -> Expr | None:
        """Whether a row's sequence has not ended; None if none ends early."""
        lengths = self.buffers.get("lengths")
        return None if lengths is None else tirx.BufferLoad(lengths, [self.first + row]) > self.time

    def together(self, stage: Stage) -> int:
        """Blocks of hidden units whose products are accumulated at once."""
        count = len(stage.gates) * min(self.rows, self.layer.group())
        return max(1, min(STREAMS, SUMS // count, self.layer.registers // count, self.layer.blocks))

    def stage(self, number: int, stage: Stage, part: Part) -> Statement:
        """A stage for a part of the hidden units, a few blocks at a time, for a group of rows after the other."""
        names, group, together = self.function.names, min(self.rows, self.layer.group()), self.together(stage)
        whole, left = divmod(self.layer.blocks, together)

        def all_rows(first: Expr, blocks: int) -> Statement:
            full, rest = divmod(self.rows, group)
            row = names.variable("i")
            found = []
            if full:
                tile = self.tile(number, stage, row * integer(group), group, first, blocks)
                found.append(loop(row, integer(full), tile))
            if rest:
                found.append(self.tile(number, stage, integer(full * group), rest, first, blocks))
            return sequence(found)

        count = names.variable("b")
        some = names.variable("b")
        body = all_rows(some * integer(together), together)
        if left:
            rest = all_rows(integer(whole * together), left)
            body = tirx.IfThenElse(some < integer(whole), body, rest) if whole else rest
        # forwards and backwards by turns, so that the weights which were read last are still in a cache
        back = tirx.EQ(tirx.floormod(self.step, integer(2)), integer(1))
        turned = tirx.Bind(some, tirx.Select(back, part.last - integer(1) - count, part.first + count))
        body = loop(count, part.count, sequence([turned, body]))
        return awaited(body) if self.shared else body

    def tile(self, number: int, stage: Stage, row: Expr, rows: int, block: Expr, blocks: int) -> Statement:
        """The products of some rows and some blocks' gates, in registers, and what is computed from them."""
        layer, names, lanes = self.layer, self.function.names, self.layer.lanes
        one, vector = [integer(0)], f"{layer.dtype}x{lanes}"
        cells = [(each, gate) for each in range(blocks) for gate in range(len(stage.gates))]

        def registers(letter: str) -> list[Expr]:
            return [tirx.decl_buffer([integer(1)], vector, names.variable(letter).name) for _ in cells]

        sums, weights = [registers("s") for _ in range(rows)], registers("w")
        unit, source, packed = names.variable("k"), self.states[stage.source], self.buffers[f"weights{number}"]
        scope = Scope(self.function)
        steps: list[Statement] = []
        for register, (each, gate) in zip(weights, cells, strict=True):
            ramp = tirx.Ramp(integer(gate * lanes), integer(1), lanes)
            entries = tirx.BufferLoad(packed, [self.direction, block + integer(each), unit, ramp])
            if layer.operands[f"weights{number}"].element == elements.BF16:
                entries = widened(entries)
            steps.append(tirx.BufferStore(register, entries, one))
        for k, totals in enumerate(sums):
            factor = scope.bind(tirx.BufferLoad(source, self.place(stage.source, row + integer(k), unit)))
            for total, register in zip(totals, weights, strict=True):
                added = tirx.Broadcast(factor, lanes) * tirx.BufferLoad(register, one)
                steps.append(tirx.BufferStore(total, tirx.BufferLoad(total, one) + added, one))
        flat = [register for totals in sums for register in totals]
        nothing = tirx.Broadcast(immediate(0, layer.dtype), lanes)
        # what is read at computed places must not be the registers themselves
        spilled = [self.local(rows * blocks * (lanes + GAP)) for _ in stage.gates]
        spill = [
            tirx.BufferStore(
                spilled[gate], tirx.BufferLoad(total, one),
                [tirx.Ramp(integer((k * blocks + each) * (lanes + GAP)), integer(1), lanes)],
            )
            for k, totals in enumerate(sums)
            for total, (each, gate) in zip(totals, cells, strict=True)
        ]  # fmt: skip
        i, b = names.variable("i"), names.variable("b")
        before = dict(zip(stage.gates, spilled, strict=True))
        finished = self.finished(stage, row + i, block + b, before, (i * integer(blocks) + b) * integer(lanes + GAP))
        return sequence([
            *map(tirx.AllocBuffer, [*flat, *weights, *spilled]),
            *(tirx.BufferStore(each, nothing, one) for each in flat),
            loop(unit, integer(layer.hidden), scope.as_statements(*steps)), *spill,
            loop(i, integer(rows), loop(b, integer(blocks), finished)),
        ])  # fmt: skip

    def finished(self, stage: Stage, row: Expr, block: Expr, spilled: Mapping[int, Expr], start: Expr) -> Statement:
        """What a stage computes for the lanes of a block, whose products lie in `spilled` from `start` on."""
        layer, lanes = self.layer, self.layer.lanes
        lane = self.function.lane(lanes)
        scope = Scope(self.function, lanes=(lane, lanes))
        line = self.time * self.function.dim(layer.batch) + (self.first + row)
        if layer.batch_first:
            line = (self.first + row) * self.function.dim(layer.time) + self.time
        column = (self.direction * integer(layer.blocks) + block) * integer(layer.gates)

        def read(name: str, k: int) -> Expr | None:
            if name == "now":
                place = [line, (column + integer(k)) * integer(lanes) + lane]
                return tirx.BufferLoad(self.buffers["now"], place)
            if name == "before":
                return tirx.BufferLoad(spilled[k], [start + lane])
            if name == "extra":
                if "extra" not in self.buffers:
                    return None
                return tirx.BufferLoad(self.buffers["extra"], [self.direction, block, integer(k), lane])
            return tirx.BufferLoad(self.states[name], self.place(name, row, block * integer(lanes) + lane))

        values = Values(layer.kind, read)
        changed = dict(stage.finish(values))
        live = self.live(row)
        if live is not None:
            going = Map((), elements.BOOL, [], [], lambda at, index: live)
            kept = {"next": "h", **{name: name for name in layer.initial}}
            changed = {
                name: xp.where(going, new, values.state(kept[name])) if name in kept else new
                for name, new in changed.items()
            }
        found = {name: scope.bind(scope.read(as_tensor(value), [])) for name, value in changed.items()}
        stores = [
            tirx.BufferStore(self.state(name), value, self.place(name, row, block * integer(lanes) + lane))
            for name, value in found.items()
        ]
        computed = vectors(scope, lane, lanes, sequence(stores))
        return sequence([computed, self.shown(row, block)]) if "next" in changed else computed
