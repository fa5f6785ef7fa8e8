"""Repeating indices of units without changing what a graph computes (Net2Net, Chen et al. 2016, over whole units).

Every axis that has a unit gets the repeated indices (`reindex`). Operators that keep the unit keep it repeated. Where
one sums over it, each repetition must count for its share only: the shares of the repetitions of one index add up to 1,
and scale one factor of the sum. Where an operator's declaration alone does not tell (statistics, states that are fed
back, norms), the node itself is run on numbers, before and after, and decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, Indices, Unit, describe, positions
from espalier.analysis.parameters import parametric
from espalier.errors import InputError
from espalier.ir import Builder, Graph, Node, TensorType, Value, constant_value
from espalier.ir.agreement import requirements, settled
from espalier.ir.axes import Equation
from espalier.ir.clone import extract
from espalier.ir.constants import constant
from espalier.ir.dims import symbols
from espalier.ir.terms import Sum, Term, Variable, leaves, letters, resolve
from espalier.ir.xp import numpy as xp
from espalier.passes.samples import NoSample, sample_inputs
from espalier.passes.structure.reindex import _follow, _has, checked, infer_again, reindex

Array = NDArray[Any]
PROBE_TOLERANCE = 1e-9
"""Relative difference, in f64, up to which a node counts as unchanged."""


@dataclass(frozen=True)
class Repetition:
    """What a unit is to become.

    Attributes:
        indices: today's index at each new one, in order; every one of today's must occur.
        shares: what each new index counts for where it is summed over; 1 in all for each of today's indices.
    """

    indices: Indices
    shares: NDArray[np.float64]

    @property
    def is_even(self) -> bool:
        """Whether all indices occur equally often."""
        return len(set(np.bincount(self.indices).tolist())) == 1


class Place(NamedTuple):
    """One axis of one operand of a node."""

    node: Node
    operand: int
    axis: int

    @property
    def value(self) -> Value:
        return self.node.operand(self.operand)


class Scaling(NamedTuple):
    """Shares of a unit on an axis of an operand, to some power (½ where squares are summed)."""

    place: Place
    unit: Unit
    power: float = 1.0


@dataclass
class Widening:
    """A plan to repeat indices of units; `apply` carries it out for those that are not refused.

    Args:
        coupling: of the graph to change.
        wanted: unit → what it is to become. Units with the same factor of one axis may be widened together.
    """

    coupling: Coupling
    wanted: Mapping[Unit, Repetition]
    refused: dict[Unit, str] = field(default_factory=dict)
    """Unit → why it cannot be widened."""

    def __post_init__(self) -> None:
        self.scalings: dict[Unit, list[Scaling]] = {}
        """Unit → what its shares must scale."""
        for unit, repetition in self.wanted.items():
            try:
                checked(unit, repetition.indices)
                self.scalings[unit] = self._plan(unit)
            except (InputError, NoSample, TypeError) as error:
                self.refused[unit] = getattr(error, "message", None) or str(error)

    @property
    def accepted(self) -> dict[Unit, Repetition]:
        """The units that will be widened."""
        return {unit: repetition for unit, repetition in self.wanted.items() if unit not in self.refused}

    # ---- what must be scaled ---------------------------------------------------------------------------------

    def _plan(self, unit: Unit) -> list[Scaling]:
        found = []
        for node, equation in self.coupling.equations.items():
            found += self._at(node, equation, unit)
        return found

    def _at(self, node: Node, equation: Equation, unit: Unit) -> list[Scaling]:
        """The scalings that a node needs for one unit. Raises InputError if nothing helps."""
        having = [
            (position, axis, letter)
            for position, terms in enumerate(equation.operands[: len(node.operands)])
            if terms is not None and node.operands[position] is not None
            for axis, term in enumerate(terms)
            for letter in letters(term)
            if unit.variable in set(leaves(letter))
        ]
        normalized = any(unit.variable in set(leaves(term)) for term in equation.normalized)
        if not having and not normalized:
            return []
        made = {id(letter) for terms in equation.results for term in terms or () for letter in letters(term)}
        lost = {id(letter): letter for _, _, letter in having if id(letter) not in made and not equation.equal}
        kept = [(position, id(letter)) for position, _, letter in having if id(letter) not in lost]
        found, unclear = [], normalized or len(kept) > len(set(kept)) or (node.op.contracts and len(node.results) > 1)
        for key in lost:
            places = [Place(node, position, axis) for position, axis, letter in having if id(letter) == key]
            if node.op.contracts and len({place.operand for place in places}) > 1:
                found.append(Scaling(self._best(node, unit, places), unit))
            else:
                unclear = True
        if unclear:
            places = [Place(node, position, axis) for position, axis, _ in having]
            found += self._tried(equation, unit, list(dict.fromkeys(places)), found)
        return found

    def _best(self, node: Node, unit: Unit, places: Sequence[Place]) -> Place:
        """Which factor of a sum to scale: a weight of its own if there is one, else something computed."""
        floats = [place for place in places if place.value.element.storage.kind == "float"]
        own = [place for place in floats if place.value.constant is not None and self._is_own(place, unit)]
        computed = [place for place in floats if place.value.constant is None]
        made = [place for place in computed if place.value in self._parametric]
        for choice in (own, made, computed):
            if choice:
                return choice[0]
        raise InputError("E221", f"{describe(node)} sums over {unit.name} in integers, which have no shares")

    @cached_property
    def _parametric(self) -> set[Value]:
        return parametric(self.coupling.graph)

    @cached_property
    def _sharing(self) -> dict[int, set[Value]]:
        """Source → the constants that are views of it."""
        found: dict[int, set[Value]] = {}
        for value in self.coupling.graph.constants():
            if value.constant is not None:
                found.setdefault(id(value.constant.source), set()).add(value)
        return found

    def _uses(self, value: Value) -> list[Place]:
        """The uses of a constant in this graph, without axes (−1); copies of the graph share its constants."""
        users = [node for node in value.users if node.graph is self.coupling.graph]
        return [Place(node, k, -1) for node in users for k, operand in enumerate(node.operands) if operand is value]

    def _is_own(self, place: Place, unit: Unit) -> bool:
        """Whether a weight is tied to no other, and whoever else uses it sums over the same axis."""
        assert place.value.constant is not None
        if len(self._sharing[id(place.value.constant.source)]) > 1:
            return False
        return all(self._sums(use._replace(axis=place.axis), unit) for use in self._uses(place.value))

    def _sums(self, place: Place, unit: Unit) -> bool:
        """Whether a node sums over whatever has the unit on an axis of an operand."""
        equation = self.coupling.equations.get(place.node)
        terms = None if equation is None else equation.operands[place.operand]
        if equation is None or terms is None or equation.equal:
            return False
        made = {id(letter) for result in equation.results for term in result or () for letter in letters(term)}
        having = [letter for letter in letters(terms[place.axis]) if unit.variable in set(leaves(letter))]
        return not any(id(letter) in made for letter in having)

    def _tried(
        self, equation: Equation, unit: Unit, places: Sequence[Place], known: Sequence[Scaling]
    ) -> list[Scaling]:
        """What keeps a node's results, found by running it: nothing more, or shares on one axis of one operand."""
        node = places[0].node
        probe = Probe(self.coupling, node, equation, {unit.variable: self.wanted[unit].indices})
        base = [(s.place.operand, s.place.axis, self._factor(s.place, unit, s.power, (unit,))) for s in known]
        if probe.holds(base):
            return []
        floats = [place for place in places if place.value.element.storage.kind == "float"]
        for power in (1.0, 0.5):
            for place in sorted(floats, key=lambda place: place.value.constant is None):
                held = place.value.constant
                if held is not None and (len(self._sharing[id(held.source)]) > 1 or len(self._uses(place.value)) > 1):
                    continue
                if probe.holds([*base, (place.operand, place.axis, self._factor(place, unit, power, (unit,)))]):
                    return [Scaling(place, unit, power)]
        even = "" if self.wanted[unit].is_even else " unevenly (a whole factor might do)"
        message = f"{describe(node)} does not keep its results if indices of {unit.name} are repeated{even}"
        raise InputError("E221", message)

    def _factor(self, place: Place, unit: Unit, power: float, together: Sequence[Unit]) -> Array:
        """The factor at each new position of an axis."""
        chosen = {each.variable: self.wanted[each].indices for each in together}
        there = along(self.coupling.axes[place.value][place.axis], unit.variable, chosen)
        shares = np.append(self.wanted[unit].shares, 1.0) ** power
        factor: Array = shares[there]
        return factor

    # ---- carrying it out -------------------------------------------------------------------------------------

    def apply(self, by: str) -> None:
        """Widen the accepted units. The coupling is spent afterwards."""
        graph, together = self.coupling.graph, list(self.accepted)
        weights: dict[Value, dict[tuple[int, Unit], Array]] = {}
        computed: list[tuple[Place, Array]] = []
        for unit in together:
            for place, _, power in self.scalings[unit]:
                factor = self._factor(place, unit, power, together)
                if place.value.constant is None:
                    computed.append((place, factor))
                else:  # several nodes may ask for the same
                    weights.setdefault(place.value, {})[place.axis, unit] = factor
        uses = {value: self._uses(value) for value in weights}
        reindex(self.coupling, {unit: self.wanted[unit].indices for unit in together}, by)
        for value, factors in weights.items():
            held = uses[value][0].value.constant
            assert held is not None
            array = held.array.astype(np.float64)
            for (axis, _), factor in factors.items():
                array = array * factor.reshape((-1,) + (1,) * (array.ndim - axis - 1))
            fresh = constant_value(constant(array.astype(held.array.dtype), held.element), name=value.name)
            for place in uses[value]:
                graph.set_operand(place.node, place.operand, fresh)
        for place, factor in computed:
            _scale_operand(graph, place, factor, by)
        graph.epochs.weights += 1


def _scale_operand(graph: Graph, place: Place, factor: Array, by: str) -> None:
    """Multiply what a node reads along an axis."""
    value = place.value
    rank = value.rank or 0
    shaped = factor.reshape((-1,) + (1,) * (rank - place.axis - 1)).astype(value.element.dtype)
    builder = Builder(graph, place.node, place.node.location.touched(by))
    graph.set_operand(place.node, place.operand, builder.mul(value, constant_value(shaped, value.element)))
    infer_again(graph, [place.node], by)


def along(term: Term, variable: Variable, chosen: Mapping[Variable, Indices]) -> Indices:
    """For each position of an axis once it is widened, the new index of a coordinate there; −1 where it has none.

    Raises InputError if one position stands for two indices of it.
    """
    term = resolve(term)
    if isinstance(term, Variable):
        count = len(chosen[term]) if term in chosen else term.extent
        if not isinstance(count, int):
            raise TypeError(f"the extent {count} is not known before run time")
        return np.arange(count, dtype=np.int64) if term is variable else np.full(count, -1, np.int64)
    parts = [along(part, variable, chosen) for part in term.parts]
    if isinstance(term, Sum):
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)
    if sum(bool((part >= 0).any()) for part in parts) > 1:
        raise InputError("E221", "one axis has the unit twice over")
    return reduce(lambda major, minor: np.maximum(major[:, None], minor).reshape(-1), parts, np.full(1, -1, np.int64))


class Probe:
    """Runs one node on made-up numbers, in f64, as it is and with repeated indices.

    Raises NoSample if its operands can't be made up, InputError if what it reads can't follow.
    """

    def __init__(self, coupling: Coupling, node: Node, equation: Equation, chosen: Mapping[Variable, Indices]) -> None:
        self.node = node
        inputs = [value for value in dict.fromkeys(node.inputs) if value.constant is None]
        part = extract([node], inputs, node.results)
        (copy,) = part
        extents = settled(requirements(equation, [None if v is None else v.shape for v in node.operands]))
        known = dict(zip(inputs, _filled(inputs, extents), strict=True))
        before: list[Any] = [None if v is None else _wide(known.get(v, v.constant and v.array)) for v in node.operands]
        followers = {name: bound for name, bound in equation.bound.items() if _has(bound, chosen)}
        _follow(part, copy, followers, chosen)
        self.op = copy.op
        self.operands: list[Any] = []
        for position, (value, array) in enumerate(zip(node.operands, before, strict=True)):
            followed = copy.operands[position]
            if (
                value is not None
                and value.constant is not None
                and followed is not None
                and followed.constant is not value.constant
            ):
                self.operands.append(followed.array)
            elif value is not None and value in coupling.axes:
                self.operands.append(_repeated(array, coupling.axes[value], chosen))
            else:
                self.operands.append(array)
        self.wanted = [
            _repeated(np.asarray(array), coupling.axes[result], chosen)
            if result in coupling.axes
            else np.asarray(array)
            for result, array in zip(node.results, _call(node, node.op, before), strict=False)
        ]

    def holds(self, factors: Sequence[tuple[int, int, Array]]) -> bool:
        """Whether the results are the repeated ones once operands are scaled: (operand, axis, factors)."""
        operands = list(self.operands)
        for position, axis, factor in factors:
            operands[position] = operands[position] * factor.reshape(
                (-1,) + (1,) * (operands[position].ndim - axis - 1)
            )
        try:
            found = _call(self.node, self.op, operands)
        except (ValueError, IndexError, TypeError, ArithmeticError):
            return False
        return all(_equal(np.asarray(a), b) for a, b in zip(found, self.wanted, strict=False))


def _filled(inputs: Sequence[Value], extents: Mapping[str, int]) -> list[Any]:
    """Made-up numbers for inputs, none of them empty: of no numbers everything holds. Raises NoSample."""
    names = sorted({name for value in inputs for dim in value.shape or () for name in symbols(dim)})
    reason = NoSample("an operand is empty at all sizes that were tried")
    for more in (0, 3, 7, 15, 31):
        larger = {name: 2 + more + position % 4 for position, name in enumerate(names)} if more else {}
        try:
            found = sample_inputs(inputs, 0, extents={**larger, **extents})
        except NoSample as error:
            reason = error
            continue
        if all(np.size(array) for array in found):
            return found
    raise reason


def _wide(array: Any) -> Any:
    array = np.asarray(array)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _call(node: Node, op: Any, operands: Sequence[Any]) -> tuple[Any, ...]:
    with np.errstate(all="ignore"):
        found = op.reference(xp, *operands)
    return (found if isinstance(found, tuple) else (found,))[: len(node.results)]


def _repeated(array: Array, terms: Sequence[Term], chosen: Mapping[Variable, Indices]) -> Array:
    for axis, term in enumerate(terms):
        if any(leaf in chosen for leaf in leaves(term)):
            array = array.take(positions(term, chosen), axis)
    return array


def _equal(found: Array, wanted: Array) -> bool:
    if found.shape != wanted.shape:
        return False
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(found, wanted))
    finite = np.isfinite(wanted)
    if not finite.any() and wanted.size:
        return False
    scale = float(np.max(np.abs(wanted[finite]), initial=0.0)) + 1e-300
    return bool(np.allclose(found, wanted, rtol=0, atol=PROBE_TOLERANCE * scale, equal_nan=True))


def weights_that_make(coupling: Coupling, unit: Unit) -> Iterator[tuple[Value, int]]:
    """The weights of several axes that nodes keep the unit of, and of which no other is a view: (weight, axis)."""
    sharing: dict[int, int] = {}
    for value in coupling.graph.constants():
        if value.constant is not None:
            sharing[id(value.constant.source)] = sharing.get(id(value.constant.source), 0) + 1
    for member in unit.weights:
        value = member.value
        if value.constant is None or value.element.storage.kind != "float" or (value.rank or 0) < 2:
            continue
        if sharing.get(id(value.constant.source), 0) == 1 and isinstance(value.type, TensorType):
            uses = list(coupling.uses(member, unit))
            if uses and all(use.kept for use in uses):
                yield value, member.axis
