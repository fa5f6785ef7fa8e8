"""Which indices of which tensors leave, or arrive, together.

Every operator declares its axes as terms; `couple` unifies the terms of producers and consumers. What remains, an
unlinked variable, is a coordinate that exists once in the whole model: a `Unit`. Removing an index of a unit removes it
from every tensor that has the unit, and attributes and shape operands that are bound to it follow. `verdicts` then
says of each unit whether that is exact, approximate, or not allowed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from espalier.ir import Graph, Node, TensorType, Value
from espalier.ir.axes import Equation
from espalier.ir.constants import View
from espalier.ir.dims import Dimension
from espalier.ir.garbage import few_collections
from espalier.ir.inference import type_context
from espalier.ir.op import TypeInferenceError
from espalier.ir.terms import (
    Product,
    Reason,
    Sum,
    Term,
    Variable,
    leaves,
    letters,
    pin,
    product,
    resolve,
    segments,
    squared,
    unify,
)

Indices: TypeAlias = NDArray[np.int64]
Verdict: TypeAlias = Literal["exact", "approximate", "frozen"]


class Member(NamedTuple):
    """One axis of one tensor that has a unit."""

    value: Value
    axis: int

    def __str__(self) -> str:
        return f"{self.value.name or '?'}.{self.axis}"


class Use(NamedTuple):
    """One axis of one operand (or, with `operand` None, of one result) of a node, as its operator declares it."""

    node: Node
    operand: int | None
    axis: int
    kept: bool
    """Whether the node's results have the axis too; if not, it sums over it."""


@dataclass(eq=False)
class Unit:
    """One independent coordinate of a model, and everything that has it.

    Attributes:
        variable: the coordinate itself, as it stands in the terms of `Coupling.axes`.
        name: the first weight axis that has it, in the order of the graph: stable, and unique within the model.
        weights: the axes of constants that have it.
        activations: the axes of computed values that have it.
        reasons: why removing is not the same as zeroing (statistics over it, products of what does not vanish).
        readers: the weights with which nodes sum over it: with zeros there, nothing of it gets through.
        silent: whether zeroing what produces it is enough, so that nothing that reads it needs to change.
        silenced: the computed factors that only its producers can make vanish: some node sums over it without a weight.
    """

    variable: Variable
    name: str = ""
    weights: list[Member] = field(default_factory=list)
    activations: list[Member] = field(default_factory=list)
    reasons: dict[str, Node] = field(default_factory=dict)
    readers: dict[Value, None] = field(default_factory=dict)
    silent: bool = True
    silenced: dict[Value, None] = field(default_factory=dict)

    @property
    def extent(self) -> int:
        """The number of indices. Raises TypeError if only the run time knows it."""
        if not isinstance(self.variable.extent, int):
            raise TypeError(f"the extent {self.variable.extent} is not known before run time")
        return self.variable.extent

    @property
    def verdict(self) -> Verdict:
        """exact: removing an index equals zeros there; approximate: it does not; frozen: it may not be removed."""
        if self.variable.pinned or not self.weights or not isinstance(self.variable.extent, int):
            return "frozen"
        return "approximate" if self.reasons else "exact"

    def why(self) -> str:
        """The reason for the verdict, in words."""
        pinned = self.variable.pinned
        if pinned:
            where = getattr(pinned, "where", None)
            return str(pinned) if where is None else f"{pinned} (at {describe(where)})"
        if not self.weights:
            return "no weight has it"
        if not isinstance(self.variable.extent, int):
            return "its extent is not known before run time"
        if self.reasons:
            return "; ".join(
                f"{reason} (at {describe(node)})" for reason, node in itertools.islice(self.reasons.items(), 3)
            )
        return "zeroing its producers is enough" if self.silent else "what reads it must be zeroed or cut too"

    def __repr__(self) -> str:
        return f"<{self.verdict} unit {self.name} ×{self.variable.extent}: {', '.join(map(str, self.weights))}>"


@dataclass(eq=False)
class Coupling:
    """The units of a graph, and the terms from which they come. Valid until the graph changes."""

    graph: Graph
    axes: dict[Value, list[Term]] = field(default_factory=dict)
    """The terms of every tensor's axes."""
    equations: dict[Node, Equation] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    """Every coordinate that some weight has (of extent 2 or more), frozen ones too, in the order of the graph."""
    by_variable: dict[Variable, Unit] = field(default_factory=dict)
    vanishing: dict[Value, set[Variable]] = field(default_factory=dict)
    """Computed value → the units at which it is zero once all weights that have them are."""
    extents: set[Value] = field(default_factory=set)
    """Constants that are read as extents, axes or other numbers only: no weights."""

    def of(self, value: Value, axis: int) -> list[Unit]:
        """The units that an axis is made of, major first."""
        found = self.axes.get(value)
        return [] if found is None else [self.by_variable[v] for v in leaves(found[axis]) if v in self.by_variable]

    def removable(self) -> list[Unit]:
        """The units that are not frozen."""
        return [unit for unit in self.units if unit.verdict != "frozen"]

    def positions(self, value: Value, axis: int, chosen: Mapping[Variable, Indices]) -> Indices:
        """Where on an axis the chosen indices of its coordinates lie, in their order."""
        return positions(self.axes[value][axis], chosen)

    def coordinate(self, value: Value, axis: int, unit: Unit) -> Indices:
        """For each position of an axis, the index of the unit there; −1 where the axis does not have it."""
        return coordinate(self.axes[value][axis], unit.variable)

    def uses(self, member: Member, unit: Unit) -> Iterator[Use]:
        """How the graph's nodes use an axis of a value: each keeps the unit there, or sums over it."""
        for node in member.value.users:
            equation = self.equations.get(node)
            if equation is None:
                continue
            made = {id(v) for terms in equation.results for term in terms or () for v in letters(term)}
            reshaped = bool(equation.equal)
            for position, operand in enumerate(node.operands):
                terms = equation.operands[position] if position < len(equation.operands) else None
                if operand is member.value and terms is not None:
                    having = [v for v in letters(terms[member.axis]) if unit.variable in set(leaves(v))]
                    if having:
                        yield Use(node, position, member.axis, reshaped or all(id(v) in made for v in having))

    def producers(self, unit: Unit, values: Iterable[Value]) -> dict[Value, None]:
        """The weights whose zeros make values vanish at a unit's index, in the order in which they are found."""
        found: dict[Value, None] = {}
        stack, seen = list(values), set(values)
        while stack:
            value = stack.pop()
            if value.constant is not None:
                found[value] = None
            elif value.producer is not None and unit.variable in self.vanishing.get(value, ()):
                for operand in value.producer.inputs:
                    if operand not in seen and any(unit in self.of(operand, k) for k in range(operand.rank or 0)):
                        seen.add(operand)
                        stack.append(operand)
        return found


def describe(where: Any) -> str:
    """A node, value or whatever a reason points at, as a user knows it."""
    if isinstance(where, Node):
        return f"{where.op.name} {where.location}"
    return where.name or str(where.type) if isinstance(where, Value) else str(where)


def positions(term: Term, chosen: Mapping[Variable, Indices]) -> Indices:
    """The positions, along an axis of this term, of the chosen indices of its coordinates (others: all of them)."""
    term = resolve(term)
    if isinstance(term, Variable):
        return chosen[term] if term in chosen else np.arange(_static(term), dtype=np.int64)
    parts = [positions(part, chosen) for part in term.parts]
    if isinstance(term, Sum):
        offsets = np.cumsum([0, *(_static(part) for part in term.parts)])
        found = [part + offset for part, offset in zip(parts, offsets, strict=False)]
        return np.concatenate(found) if found else np.zeros(0, np.int64)
    mixed = np.zeros(1, np.int64)
    for part, inner in zip(term.parts, parts, strict=True):
        mixed = (mixed[:, None] * _static(part) + inner).reshape(-1)
    return mixed


def coordinate(term: Term, variable: Variable) -> Indices:
    """For each position along an axis of this term, the index of the variable there; −1 where it has none."""
    term = resolve(term)
    if isinstance(term, Variable):
        return np.arange(_static(term), dtype=np.int64) if term is variable else np.full(_static(term), -1, np.int64)
    parts = [coordinate(part, variable) for part in term.parts]
    if isinstance(term, Sum):
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return reduce(lambda major, minor: np.maximum(major[:, None], minor).reshape(-1), parts, np.full(1, -1, np.int64))


def _static(term: Term) -> int:
    if not isinstance(term.extent, int):
        raise TypeError(f"the extent {term.extent} is not known before run time")
    return term.extent


def couple(graph: Graph, apart: Collection[Value] = ()) -> Coupling:
    """Unify the axis terms of a graph, and read its units off them.

    Time is about linear in the number of nodes, whatever the extents.

    Args:
        graph: the graph, which must not change while the coupling is in use.
        apart: values that are not to couple their readers; the coupling knows no axes of theirs. Tensors of one number
            everywhere do couple theirs otherwise: the pass `separate_fills` gives each reader its own.
    """
    from espalier.analysis.verdicts import judge

    found = Coupling(graph)
    with few_collections(all_stays=True):
        _Unifier(found, frozenset(apart)).run()
        _collect(found)
        judge(found)
    return found


class _Unifier:
    """Gives every tensor its terms."""

    def __init__(self, coupling: Coupling, apart: frozenset[Value]) -> None:
        self.graph, self.axes, self.equations = coupling.graph, coupling.axes, coupling.equations
        self.extents, self.apart = coupling.extents, apart
        self.declared: dict[tuple[Any, ...], Equation | None] = {}
        self._symbols = 0

    def run(self) -> None:
        graph, described = self.graph, set[Value]()
        self.tie()
        for value in graph.inputs:
            self.freeze(value, Reason("it is an input of the model", value))
        for node in graph:
            equation = self.equation(node)
            if equation is None:
                why = (
                    "its indices pass into a body"
                    if node.regions
                    else f"{node.op.name} does not say what it does to it"
                )
                for value in (*node.inputs, *node.results):
                    self.freeze(value, Reason(why, node))
                described.update(node.inputs)
                continue
            self.equations[node] = equation
            self.name_reasons(node, equation)
            for operand, terms in itertools.zip_longest(node.operands, equation.operands[: len(node.operands)]):
                if operand is not None:
                    self.meet(operand, terms, node, "its numbers are read, not its place")
                    if operand.constant is not None:
                        (self.extents if terms is None else described).add(operand)
            for result, terms in itertools.zip_longest(node.results, equation.results[: len(node.results)]):
                self.meet(result, terms, node, "the data decide about it")
            for a, b in equation.equal:
                unify(a, b, node)
        for name, value in zip(graph.output_names, graph.outputs, strict=True):
            self.freeze(value, Reason(f"it is an output of the model, {name!r}", value))
        for region in itertools.islice(graph.all_graphs(), 1, None):
            for node in region:
                for operand in node.inputs:
                    if operand.constant is not None:
                        self.freeze(operand, Reason("the body of a loop or branch uses it", node))
        self.extents -= described

    def equation(self, node: Node) -> Equation | None:
        """The declaration, if it says something and the node is no door into a region."""
        if node.regions:
            return None
        kind = self.kind(node)
        if kind in self.declared:
            known = self.declared[kind]
            return None if known is None else known.copy()
        before = self._symbols
        context = type_context(self.graph, node, self._fresh)
        try:
            found = node.op.equation(context)
        except TypeInferenceError:
            found = None
        own = self._symbols != before or (bool(context.contents_read) and "numbers" in kind)  # more than its kind
        if not own:
            self.declared[kind] = None if found is None else found.copy()
        return found

    @staticmethod
    def kind(node: Node) -> tuple[Any, ...]:
        """What most declarations rest on, types and known whole numbers: models repeat a few kinds of nodes."""
        contents: list[Any] = []
        for operand in node.operands:
            known: Any = None
            if operand is not None and type(operand.type) is TensorType:
                if operand.type.element.is_float:
                    known = "numbers" if operand.constant is not None or operand.content is not None else None
                elif (held := operand.known) is not None:
                    known = "numbers" if held.dtype == object else (held.dtype.str, held.shape, held.tobytes())
            contents.append(known)
        types = tuple(None if operand is None else operand.type for operand in node.operands)
        return (node.op, types, len(node.results), *contents)

    def _fresh(self) -> str:
        self._symbols += 1
        return f"unknown{self._symbols}"

    @staticmethod
    def name_reasons(node: Node, equation: Equation) -> None:
        """Let what the declaration pins name the node."""
        for terms in itertools.chain(equation.operands, equation.results):
            for term in terms or ():
                for variable in (term,) if type(term) is Variable else letters(term):
                    if variable.pinned and type(variable.pinned) is not Reason:
                        variable.pinned = Reason(variable.pinned, node)

    def terms(self, value: Value) -> list[Term] | None:
        """A value's terms, made if it has none yet; None if it is no tensor of known rank."""
        found = self.axes.get(value)
        if found is None and isinstance(value.type, TensorType) and value.type.shape is not None:
            self.axes[value] = found = [Variable(extent) for extent in value.type.shape]
        return found

    def tie(self) -> None:
        """Constants that are views of one source are one weight: let their terms come from the source's."""
        sharing: dict[int, list[Value]] = {}
        for value in _values(self.graph):
            if value.constant is not None and value not in self.apart:
                sharing.setdefault(id(value.constant.source), []).append(value)
        for values in sharing.values():
            if len(values) > 1:
                held = [value.constant for value in values if value.constant is not None]
                first, common = held[0], _common_prefix([constant.views for constant in held])
                shape = first.base(common).shape
                source: list[Term] = [Variable(extent) for extent in shape]
                for value, constant in zip(values, held, strict=True):
                    terms = source
                    for view in constant.views[common:]:
                        terms = _through(view, terms)
                    self.axes[value] = list(terms)

    def freeze(self, value: Value, reason: Reason) -> None:
        if value not in self.apart:
            for term in self.terms(value) or ():
                pin(term, reason)

    def meet(self, value: Value, terms: list[Term] | None, node: Node, without: str) -> None:
        """Unify a value's axes with what a node says of them; if it says nothing, freeze them."""
        if value in self.apart:
            return
        if terms is None:
            self.freeze(value, Reason(without, node))
            return
        known = self.axes.get(value)
        if known is None:
            if value.shape == tuple(term.extent for term in terms):
                self.axes[value] = list(terms)
                return
            known = self.terms(value)
        if known is None:
            for term in terms:
                pin(term, Reason("its rank is not known", node))
            return
        for mine, theirs in zip(known, terms, strict=True):
            unify(mine, theirs, node)


def _common_prefix(chains: Sequence[tuple[View, ...]]) -> int:
    """How many steps all chains begin with."""
    count = 0
    for steps in zip(*chains, strict=False):
        if any(step != steps[0] for step in steps):
            break
        count += 1
    return count


def _through(view: View, terms: list[Term]) -> list[Term]:
    """The terms of a constant's axes after one more view."""
    if view.kind == "transpose":
        return [terms[axis] for axis in view.arguments[0]]
    if view.kind == "reshape":
        made: list[Term] = [Variable(extent) for extent in view.arguments[0]]
        unify(product(*terms), product(*made))
        return made
    axis = view.arguments[0]
    whole = terms[axis]
    chosen = view.positions(_static(whole))
    part: Term = Variable(len(chosen))
    if len(chosen) and chosen == range(chosen[0], chosen[-1] + 1):
        unify(whole, segments(Variable(chosen[0]), part, Variable(_static(whole) - chosen[-1] - 1)))
    return [*terms[:axis], part, *terms[axis + 1 :]]


def _collect(coupling: Coupling) -> None:
    """Read the units off the leaves of every tensor's terms, in the order of the graph."""
    found: dict[Variable, Unit] = {}
    for value in _values(coupling.graph):
        for axis, term in enumerate(coupling.axes.get(value, ())):
            term = resolve(term)
            whole = type(term) is Variable
            having = (term,) if type(term) is Variable else tuple(leaves(term))
            if not whole and len(distinct := dict.fromkeys(having)) < len(having):
                having, where = tuple(distinct), value.producer or next(iter(value.users), value)
                for leaf in squared(term):  # a position has two indices of it, where one is all that is asked for
                    leaf.pinned = leaf.pinned or Reason("one axis has it twice over", where)
            for place, leaf in enumerate(having):
                if leaf.extent == 1:
                    continue
                unit = found.get(leaf)
                if unit is None:
                    unit = found[leaf] = Unit(leaf)
                if value.constant is None:
                    unit.activations.append(Member(value, axis))
                    continue
                if value in coupling.extents:
                    continue
                if not unit.weights:
                    unit.name = f"{value.name or 'constant'}.{axis}" + ("" if whole else f".{place}")
                unit.weights.append(Member(value, axis))
    coupling.units = [unit for unit in found.values() if unit.weights]
    coupling.by_variable = {unit.variable: unit for unit in coupling.units}
    _make_unique(coupling.units)


def _make_unique(units: Iterable[Unit]) -> None:
    """Constants without names of their own would give units the same name."""
    seen: dict[str, int] = {}
    for unit in units:
        count = seen[unit.name] = seen.get(unit.name, 0) + 1
        if count > 1:
            unit.name = f"{unit.name}#{count}"


def _values(graph: Graph) -> Iterator[Value]:
    """Every tensor of the graph itself, each once, constants where they are first used."""
    seen: set[Value] = set()
    for value in graph.inputs:
        yield value
    for node in graph:
        for operand in node.operands:
            if operand is not None and operand.constant is not None and operand not in seen:
                seen.add(operand)
                yield operand
        yield from node.results
    for value in graph.outputs:
        if value.constant is not None and value not in seen:
            seen.add(value)
            yield value


def extent_of(term: Term, chosen: Mapping[Variable, Indices]) -> Dimension:
    """The extent of a term once only the chosen indices of some coordinates are left."""
    term = resolve(term)
    if isinstance(term, Variable):
        return len(chosen[term]) if term in chosen else term.extent
    parts = [extent_of(part, chosen) for part in term.parts]
    total: Dimension = 1 if isinstance(term, Product) else 0
    for part in parts:
        total = total * part if isinstance(term, Product) else total + part
    return total
