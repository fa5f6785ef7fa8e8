"""Alignment of two networks of one architecture: the order of a unit's indices is arbitrary, so one is made to match.

Weight matching (Ainsworth et al., arXiv:2209.04836) over coupled units: for each unit an assignment problem over all
weight slices that have it, one unit after another, until nothing changes. Averaging after that is what FedMA does
(Wang et al., arXiv:2002.06440).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, Indices, Unit, couple
from espalier.cost.remaining import elements_of
from espalier.errors import InputError
from espalier.ir import Graph, Value, constant_value
from espalier.ir.clone import clone
from espalier.ir.constants import ArraySource, Constant
from espalier.ir.terms import Variable
from espalier.passes.structure.reindex import reindex

Array = NDArray[Any]
ROUNDS = 100
"""Sweeps over all units, at most; each raises the likeness, so that few are needed."""


@dataclass(frozen=True)
class Alignment:
    """A network in the order of another.

    Attributes:
        graph: the second network, its units reordered; it computes what it did.
        order: unit's name → which of its indices stands where, for the units that were matched.
        likeness: mean cosine of corresponding weights (but where both are zero), before and after.
    """

    graph: Graph
    order: dict[str, Indices]
    likeness: tuple[float, float]


def align(a: Graph, b: Graph, *, seed: int = 0) -> Alignment:
    """Reorder the units of b so that its weights are as like those of a as assignment gets them.

    Raises:
        InputError: E207 if the two are not of one architecture, E205 without scipy.
    """
    matching = _Matching(a, b, seed)
    before = matching.likeness()
    matching.solve()
    after = matching.likeness()
    copy = clone(b)
    coupling = couple(copy)
    order = {unit: matching.order[k] for k, unit in enumerate(coupling.units) if k in matching.order}
    names = {unit.name: indices for unit, indices in order.items()}
    if order:
        reindex(coupling, order, "align")
    return Alignment(copy, names, (before, after))


def average(a: Graph, b: Graph, *, weight: float = 0.5, matched: bool = True, seed: int = 0) -> Graph:
    """A network with the mean of the weights of two, of which the second is first aligned with the first.

    Args:
        weight: of b, from 0 to 1.
        matched: whether to align at all.

    Raises:
        InputError: as `align`; E201 for a weight outside of 0 to 1.
    """
    if not 0 <= weight <= 1:
        raise InputError("E201", f"weight={weight} is not from 0 to 1")
    other = align(a, b, seed=seed).graph if matched else b
    made = clone(a)
    pairs = paired(made, other)
    by_source: dict[int, list[Value]] = {}
    for value in pairs:
        if value.constant is not None and value.constant.element.storage.kind == "float":
            by_source.setdefault(id(value.constant.source), []).append(value)
    fresh: dict[Value, Value] = {}
    for values in by_source.values():
        fresh.update(_mixed(values, pairs, weight))
    for node in made:
        for position, operand in enumerate(node.operands):
            if operand is not None and operand in fresh:
                made.set_operand(node, position, fresh[operand])
    made.epochs.weights += 1
    return made


def _mixed(values: Sequence[Value], pairs: Mapping[Value, Value], weight: float) -> dict[Value, Value]:
    """The means of constants of one source and their partners: views of one array, unless the partners are not tied."""
    held = [value.constant for value in values if value.constant is not None]
    base = held[0].base(0).array
    theirs = base.astype(np.float64).reshape(-1)
    places = [elements_of(value) for value in values]
    for value, at in zip(values, places, strict=True):
        theirs[at] = pairs[value].array
    if len(values) > 1 and not all(
        np.array_equal(theirs[at], pairs[value].array.astype(np.float64), equal_nan=True)
        for value, at in zip(values, places, strict=True)
    ):
        return {value: own for value in values for own in _mixed([value], pairs, weight).values()}
    mixed = (1 - weight) * base.astype(np.float64) + weight * theirs.reshape(base.shape)
    source = ArraySource(mixed.astype(base.dtype))
    return {
        value: constant_value(Constant(source, own.element, own.shape, own.views), name=value.name)
        for value, own in zip(values, held, strict=True)
    }


def paired(a: Graph, b: Graph) -> dict[Value, Value]:
    """Constant of a → the constant of b that stands at its place. Raises InputError E207 if the graphs differ."""
    found: dict[Value, Value] = {}
    mine, theirs = a.nodes, b.nodes
    if len(mine) != len(theirs):
        raise _different(f"one has {len(mine)} nodes, the other {len(theirs)}")
    values = dict(zip(a.inputs, b.inputs, strict=False))
    for x, y in zip(mine, theirs, strict=True):
        if x.op != y.op or len(x.operands) != len(y.operands) or len(x.results) != len(y.results):
            raise _different(f"where one has {x}, the other has {y}")
        for p, q in zip(x.operands, y.operands, strict=True):
            if p is None or q is None or p.constant is None or q.constant is None:
                if p is not q and (p is None or values.get(p) is not q):
                    raise _different(f"{x} reads something else in the other")
                continue
            if p.type != q.type or found.setdefault(p, q) is not q:
                raise _different(f"{x} has a weight of type {p.type}, the other of {q.type}")
        values.update(zip(x.results, y.results, strict=True))
    if [values.get(v, found.get(v)) for v in a.outputs] != list(b.outputs):
        raise _different("their outputs are others")
    return found


def _different(how: str) -> InputError:
    return InputError("E207", f"the two networks are not of one architecture: {how}")


class _Matching:
    """Orders for the units of b, sought one by one."""

    def __init__(self, a: Graph, b: Graph, seed: int) -> None:
        self.rng, self.assign = np.random.default_rng(seed), _assigner()
        pairs = paired(a, b)
        self.a, self.b = couple(a), couple(b)
        if [u.extent for u in self.a.units if u.verdict != "frozen"] != [
            u.extent for u in self.b.units if u.verdict != "frozen"
        ]:
            raise _different("their units have other extents")
        self.free = [
            k for k, unit in enumerate(self.a.units) if unit.verdict != "frozen" and self.b.units[k].verdict != "frozen"
        ]
        self.pairs = [
            (value, other, *self._scaled(value.array, other.array))
            for value, other in pairs.items()
            if value.element.storage.kind == "float"
            and any(self.a.of(value, k) for k in range(value.rank or 0))
            and (value.array.any() or other.array.any())  # zeros are like zeros in any order
        ]
        self.order: dict[int, Indices] = {}

    @staticmethod
    def _scaled(a: Array, b: Array) -> tuple[Array, Array]:
        """Both of norm 1, so that each weight counts the same."""
        first, second = (np.asarray(x, np.float64) for x in (a, b))
        return first / (np.linalg.norm(first) or 1), second / (np.linalg.norm(second) or 1)

    def solve(self) -> None:
        """Start from the order as it is, and from what the slices' sorted numbers tell; keep what is more alike."""
        found: list[tuple[float, int, dict[int, Indices]]] = []
        starts: list[dict[int, Indices]] = [{}, self._by_content()]
        for start in starts:
            self.order = dict(start)
            self._climb()
            found.append((self.likeness(), len(found), self.order))
        self.order = max(found, key=lambda entry: (entry[0], -entry[1]))[2]

    def _climb(self) -> None:
        best = self.likeness()
        for _ in range(ROUNDS):
            for k in self.rng.permutation(self.free).tolist():
                self.order[k] = self.assign(self._products(k))
            now = self.likeness()
            if now <= best + 1e-12:
                return
            best = now

    def _chosen(self, but: int | None = None) -> dict[Variable, Indices]:
        return {self.b.units[k].variable: order for k, order in self.order.items() if k != but}

    def likeness(self) -> float:
        chosen = self._chosen()
        cosines = [float(np.vdot(x, self._ordered(other, y, chosen))) for _, other, x, y in self.pairs]
        return float(np.mean(cosines)) if cosines else 1.0

    def _ordered(self, value: Value, array: Array, chosen: Mapping[Variable, Indices]) -> Array:
        for axis in range(array.ndim):
            if any(unit.variable in chosen for unit in self.b.of(value, axis)):
                array = array.take(self.b.positions(value, axis, chosen), axis)
        return array

    def _products(self, k: int) -> Array:
        """How alike each index of a unit in a and each in b are: sums of products over all slices."""
        mine, theirs = self.a.units[k], self.b.units[k]
        found = np.zeros((mine.extent, theirs.extent))
        chosen, own = self._chosen(but=k), {theirs.variable: self.order.get(k, np.arange(theirs.extent))}
        for value, other, x, y in self.pairs:
            axes = [axis for axis in range(x.ndim) if mine in self.a.of(value, axis)]
            for axis in axes:
                y_ordered = self._ordered(other, y, chosen)
                for rest in axes:
                    if rest != axis:  # the unit is on another axis too: in the order found so far
                        y_ordered = y_ordered.take(self.b.positions(other, rest, own), rest)
                found += slices(self.a, value, axis, mine, x) @ slices(self.b, other, axis, theirs, y_ordered).T
        return found

    def _by_content(self) -> dict[int, Indices]:
        """Orders by the numbers of slices, sorted: what no order of other units changes."""
        found = {}
        for k in self.free:
            mine, theirs = self.a.units[k], self.b.units[k]
            apart = np.zeros((mine.extent, theirs.extent))
            for value, other, x, y in self.pairs:
                for axis in range(x.ndim):
                    if mine in self.a.of(value, axis):
                        p, q = (
                            np.sort(slices(c, v, axis, unit, array), axis=1)
                            for c, v, unit, array in ((self.a, value, mine, x), (self.b, other, theirs, y))
                        )
                        apart += (p**2).sum(1)[:, None] + (q**2).sum(1)[None] - 2 * p @ q.T
            found[k] = self.assign(-apart)
        return found


def _assigner() -> Callable[[Array], Indices]:
    """What gives for each row the column, so that the gains are largest in all. Raises InputError E205."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        hint = "pip install 'espalier[align]'"
        raise InputError("E205", "alignment solves assignment problems with scipy", hint=hint) from None
    return lambda gain: np.asarray(linear_sum_assignment(gain, maximize=True)[1], np.int64)


def slices(coupling: Coupling, value: Value, axis: int, unit: Unit, array: Array) -> Array:
    """The numbers of a weight at each index of a unit on an axis: (index, numbers)."""
    there = coupling.coordinate(value, axis, unit)
    places = np.argsort(np.where(there < 0, unit.extent, there), kind="stable")[: int((there >= 0).sum())]
    return np.moveaxis(array, axis, 0)[places].reshape(unit.extent, -1)
