"""Rounding ties: when a quantized model may differ by a quantizer's step from another run of it.

Sums in another order, or a batch norm folded into weights, move a number by a few last bits; a quantizer makes a whole
step of that where the number lies on the border between two, and later layers carry it on. Such a difference proves
nothing against an artifact. `stepwise` tells it from a fault: it takes the artifact's own result of each quantizer as
given, computes the original model from there to the next one in f64, and asks whether the artifact's next result is
what the exact number, or one within rounding of it, is quantized to. What is no quantizer must agree as ever.

An artifact shows what its quantizers give only if they are outputs, and with other outputs it is another artifact, in
which a tie may go the other way: what is observed may then not lead to the outputs, or one part of it not to another.
So where a quantizer's results or an output cannot follow from what was observed, ties before it are taken the other
way, one by one, as long as that leads closer: only ties, and what must change after them. What proves an artifact right
is not how this was found but what it ends with, which is checked from the inputs to the outputs: one run of the
original in which every quantizer rounds as it should, within the same slack as ever, and that gives the artifact's
outputs. If a fault has moved those to where no choice of ties leads, there is no such run and nothing is proven; nor is
it where none is found. An output that ties alone can make, as a mean that many meet in, counts as right whatever made
it: `changed` tells how many had to be taken the other way.
"""

from __future__ import annotations

import tempfile
from collections import ChainMap
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from espalier.ir import Graph, Node, Value
from espalier.ir.ops.quantization import Dequantize, FakeQuantize, MultiThreshold, Quantize
from espalier.ir.xp import numpy as xp

Arrays = dict[str, NDArray[Any]]
Run = MutableMapping[Value, Any]
"""What each value is in a run of the original in f64."""
TOLERANCE = 1e-4
"""How far outputs may be from what the last quantizers lead to, relative to the largest."""
TRIES = 1000
"""How often at most a part of the model is computed again to find the ties that lead to one quantizer's results."""
MARGIN = 1e-6
"""Quantizers' results that differ by less, relative to the largest, are the same in floats of another width."""
SLACKS = (1e-7, 3e-7, 1e-6)
"""How far from a border a number may be for its rounding to count as a tie, relative to the largest of its tensor."""


def quantizers(graph: Graph) -> list[Node]:
    """The nodes that round something which depends on the model's inputs."""
    depend: set[Value] = set(graph.inputs)
    found = []
    for node in graph:
        if any(operand in depend for operand in node.operands):
            depend.update(node.results)
            if isinstance(node.op, (FakeQuantize, MultiThreshold, Quantize)):
                found.append(node)
    return found


def stepwise(path: Path, backend: str, feeds: Sequence[Arrays], outputs: Sequence[Arrays]) -> dict[str, Any]:
    """What became of each quantizer's results in an artifact that gave these outputs.

    Returns:
        `proven`, and if not, `reason`; `ties`, the numbers that another run may round the other way, `of` how many;
        `changed`, those of them that were taken the other way than observed; `distance`, the largest from a border,
        relative to the largest of its tensor; `difference` of the outputs, from the last quantizer on, relative to the
        largest.
    """
    from espalier.frontends import load

    graph = load(path)
    names = [node.results[0].name for node in quantizers(graph)]
    inner = _observed(path, backend, names, feeds, outputs)
    for found, wanted in zip(inner, outputs, strict=True):
        found.update(_before(graph, wanted))
    total: dict[str, Any] = {"proven": True, "ties": 0, "of": 0, "changed": 0, "distance": 0.0, "difference": 0.0}
    for feed, found in zip(feeds, inner, strict=True):
        step = _walk(graph, feed, found, set(names))
        if "reason" in step:
            return {"proven": False, **step}
        for key, combine in (("ties", sum), ("of", sum), ("changed", sum), ("distance", max), ("difference", max)):
            total[key] = combine((total[key], step[key]))
    return total


def _observed(
    path: Path, backend: str, names: Sequence[str], feeds: Sequence[Arrays], outputs: Sequence[Arrays]
) -> list[Arrays]:
    """What an artifact's quantizers of these names give, from artifacts that have them as outputs.

    Outputs change what is computed in one go, and so, now and then, which way a tie goes. Where the model's own outputs
    change with it, fewer are observed at a time.
    """
    import espalier

    model = onnx.load(path)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    with tempfile.TemporaryDirectory() as folder:
        run = espalier.compile(model, device="cpu", backend=backend, output=Path(folder) / "artifact").load()
        inner = [run(feed) for feed in feeds]
    same = all(np.array_equal(a[name], b[name]) for a, b in zip(inner, outputs, strict=True) for name in b)
    if same or len(names) <= 1:
        return inner
    middle = len(names) // 2
    parts = [_observed(path, backend, part, feeds, outputs) for part in (names[:middle], names[middle:])]
    return [{**first, **second} for first, second in zip(*parts, strict=True)]


def _before(graph: Graph, outputs: Arrays) -> Arrays:
    """These outputs, and what the quantizers right before them must have given.

    Where observing them changed the outputs, that these follow from the results of other quantizers all the same, but
    for ties, is as good a proof.
    """
    found = dict(outputs)
    last = set(quantizers(graph))
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        node = value.producer
        before = node.operands[0].producer if node is not None and isinstance(node.op, Dequantize) else None
        if node is None or before is None or before not in last or not isinstance(before.op, Quantize):
            continue
        there, back = ([value and value.constant for value in each.operands[1:]] for each in (before, node))
        if all(weights is not None for weights in there + back):
            there, back = ([weights.array for weights in each] for each in (there, back))
            if all(map(np.array_equal, there, back)):
                found[before.results[0].name] = before.op.reference(xp, outputs[name], *there)
    return found


@dataclass(frozen=True)
class _Goal:
    """What must follow from the quantizers before it: a quantizer's results, or an output that the artifact gave."""

    name: str
    value: Value
    """What is computed: a quantizer's operand, or the output."""
    quantizer: Node | None = None
    """Its results are in the run."""
    wanted: Any = None
    """The artifact's output."""

    def beyond(self, run: Run) -> Any:
        """How far each number is from what may be, relative to the largest; 0 where it may be."""
        if self.quantizer is not None:
            return _outside(self.quantizer, run, SLACKS[-1]) / (_largest(run[self.quantizer.results[0]]) or 1.0)
        off = self.off(run)
        return np.where(off <= TOLERANCE, 0.0, off)

    def off(self, run: Run) -> Any:
        """How far each number of an output is from what the run gives, relative to the largest."""
        exact = _read(run, self.value).astype(np.float64)
        return np.abs(exact - self.wanted) / (_largest(exact) or 1.0)


def _walk(graph: Graph, feed: Arrays, found: Arrays, names: set[str]) -> dict[str, Any]:
    """One run of the original in f64, with an artifact's results at the quantizers, or others that are as near."""
    run: Run = {value: _wide(feed[value.name]) for value in graph.inputs}
    goals: list[_Goal] = []
    for node in graph:
        name = node.results[0].name
        if name in names:
            run[node.results[0]] = _wide(found[name])
            goals.append(_Goal(name, node.operand(0), node))
            _settle(graph, run, goals)
        else:
            _compute(node, run)
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        goals.append(_Goal(name, value, wanted=found[name]))
        _settle(graph, run, goals)
    return _judge(run, goals, found)


def _judge(run: Run, goals: Sequence[_Goal], found: Arrays) -> dict[str, Any]:
    """Whether every quantizer of a run rounds as it should, and what that takes; how far the artifact's outputs are."""
    ties = of = changed = 0
    distance = difference = 0.0
    for goal in goals:
        if goal.quantizer is None:
            difference = max(difference, _largest(goal.off(run)))
            continue
        mine, (exact, _) = run[goal.quantizer.results[0]], _borders(goal.quantizer, run, 0.0)
        off = ~np.isclose(mine, exact, rtol=MARGIN, atol=MARGIN * _largest(exact))
        of += off.size
        ties += int(off.sum())
        changed += int(np.sum(mine != found[goal.name]))
        if off.any():
            needed = next((slack for slack in SLACKS if not _outside(goal.quantizer, run, slack)[off].any()), None)
            if needed is None:
                reason = f"{goal.name}: a result is not what any number within {SLACKS[-1]} of the exact one rounds to"
                return {"reason": reason}
            distance = max(distance, needed)
    return {"ties": ties, "of": of, "changed": changed, "distance": distance, "difference": difference}


def _settle(graph: Graph, run: Run, goals: Sequence[_Goal]) -> None:
    """Take ties the other way, the nearest first, where that brings the run closer to the last goal."""
    goal, tries = goals[-1], count()
    off = goal.beyond(run)
    better = bool(off.any())
    while better:
        better = False
        for source in [each.quantizer for each in reversed(goals[:-1]) if each.quantizer is not None]:
            turns = _Turns(graph, run, goals, source, tries)
            for tie in turns.that_reach(off > 0):
                trial = turns.taken(tie)
                closer = goal.beyond(trial)
                if closer.sum() < off.sum():
                    run.update(trial.maps[0])
                    off, better = closer, True
                if not off.any():
                    return


class _Turns:
    """Ties of one quantizer in a run, to be taken the other way."""

    def __init__(self, graph: Graph, run: Run, goals: Sequence[_Goal], source: Node, tries: Iterator[int]) -> None:
        self.graph, self.run, self.goals, self.source, self.tries = graph, run, goals, source, tries
        mine = run[source.results[0]]
        low, high = _borders(source, run, SLACKS[-1])
        ties = high - low > MARGIN * _largest(mine)
        self.other = np.where(ties, np.where(np.abs(mine - low) < np.abs(mine - high), high, low), mine)
        self.other = self.other.astype(mine.dtype)
        self.ways = [np.flatnonzero(way) for way in (self.other < mine, self.other > mine)]

    def taken(self, ties: Any) -> ChainMap[Value, Any]:
        """The run with these ties the other way, up to the last goal."""
        results = self.run[self.source.results[0]].copy()
        results.flat[ties] = self.other.flat[ties]
        return _followed(self.graph, self.run, self.goals, self.source, results)

    def that_reach(self, where: Any) -> Iterator[Any]:
        """Each tie that moves any of these numbers of the last goal, by halves: what all do not move, none does.

        Those that go up and those that go down are apart, as they would cancel in sums.
        """
        value = self.goals[-1].value
        parts = [way for way in self.ways if way.size]
        while parts:
            ties = parts.pop()
            if next(self.tries) >= TRIES:
                return
            if not np.any((_read(self.taken(ties), value) != _read(self.run, value))[where]):
                continue
            if ties.size == 1:
                yield ties
            else:
                parts += np.array_split(ties, 2)


def _followed(graph: Graph, run: Run, goals: Sequence[_Goal], source: Node, results: Any) -> ChainMap[Value, Any]:
    """A run up to the last goal with other results of a quantizer; what later ones give then changes where it must."""
    trial = ChainMap({source.results[0]: results}, run)
    moved, quantizers, last = {source.results[0]}, {goal.quantizer for goal in goals}, goals[-1].quantizer
    for node in graph:
        if node is last:
            break
        if not any(operand in moved for operand in node.operands):
            continue
        if node not in quantizers:
            _compute(node, trial)
        else:
            mine = run[node.results[0]]
            wrong = _outside(node, trial, SLACKS[-1]) > 0
            if not wrong.any():
                continue
            nearest = np.clip(mine, *_borders(node, trial, SLACKS[-1]))
            trial[node.results[0]] = np.where(wrong, nearest, mine).astype(mine.dtype)
        moved.update(node.results)
    return trial


def _compute(node: Node, run: Run) -> None:
    results = node.op.reference(xp, *(_read(run, operand) for operand in node.operands))
    run.update(zip(node.results, results if isinstance(results, tuple) else (results,), strict=False))


def _read(run: Run, value: Value | None) -> Any:
    if value is None:
        return None
    return _wide(value.constant.array) if value.constant is not None else run[value]


def _borders(node: Node, run: Run, slack: float) -> tuple[Any, Any]:
    """The least and the greatest results of a quantizer for numbers at most so far from its own: it is monotone."""
    x, *rest = (_read(run, operand) for operand in node.operands)
    room = slack * _largest(x)
    a, b = (node.op.reference(xp, x + by, *rest).astype(np.float64) for by in (-room, room))
    return np.minimum(a, b), np.maximum(a, b)


def _outside(node: Node, run: Run, slack: float) -> Any:
    """How far a quantizer's results are from those of numbers within a slack of its own; 0 for what is one of them."""
    mine = run[node.results[0]].astype(np.float64)
    low, high = _borders(node, run, slack)
    off = np.maximum(low - mine, mine - high)
    return np.where(off <= MARGIN * _largest(mine), 0.0, off)


def _largest(x: Any) -> float:
    return float(np.max(np.abs(x.astype(np.float64)), initial=0))


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype == np.float32 else array
