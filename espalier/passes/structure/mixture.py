"""Weights as mixtures of templates, and growth that makes one network of two (MixtureGrowth, arXiv:2311.04251).

The weight of a layer is Σ αₜ·Tₜ over templates T, an einsum on constants: it trains as that, and constant folding makes
it one weight before any backend sees it. Two trained networks of one architecture and half the width become one with
the weights [[W₀, W₂], [W₃, W₁]]: W₀ and W₁ are theirs, W₂ and W₃ mix their templates by new coefficients.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, Indices, Unit, couple, describe
from espalier.analysis.parameters import parametric
from espalier.errors import InputError, UnsupportedError
from espalier.ir import Builder, Graph, Node, Value, constant_value
from espalier.ir.clone import clone
from espalier.ir.ops.contraction import Einsum
from espalier.ir.terms import Product, Term, Variable, flatten, leaves, resolve
from espalier.passes.base import GROWS, Context, Pass, graph_pass
from espalier.passes.structure.align import paired
from espalier.passes.structure.reindex import reindex
from espalier.passes.structure.widening import Repetition, Widening, along

Array = NDArray[Any]
MEMBERS = 4
"""Blocks of a grown weight: those of the two networks, and two new ones."""


class Mix(NamedTuple):
    """A weight that is a mixture: coefficients [t], templates [t, …], and the node that sums them."""

    node: Node
    coefficients: Value
    templates: Value

    @property
    def weight(self) -> Value:
        return self.node.results[0]


@graph_pass("mixture", semantics=GROWS)
class Mixture(Pass):
    """Write the weights of layers as sums of templates, Σ αₜ·Tₜ, that train together and fold into one again.

    Attributes:
        templates: how many of them each weight has. `grow_mixture` needs 4, one for each block of a grown weight.
        seed: of templates and coefficients; None takes the run's. Networks that are to be grown into one want
            different ones.
    """

    templates: int = MEMBERS
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.templates < 1:
            raise InputError("E201", f"templates={self.templates} is not positive")

    def run(self, graph: Graph, context: Context) -> int:
        rng = np.random.default_rng(context.seed if self.seed is None else self.seed)
        uses = _layers(graph, context)
        done = 0
        for value, places in uses.items():
            if not context.may_rewrite():
                break
            array = value.array.astype(np.float64)
            alpha = rng.normal(size=self.templates)
            alpha /= np.linalg.norm(alpha)
            templates = rng.normal(0, array.std() or 1.0, (self.templates, *array.shape))
            templates += np.tensordot(alpha, array - np.tensordot(alpha, templates, 1), 0)
            first = min((node for node, _ in places), key=lambda node: node.position)
            builder = Builder(graph, first, first.location.touched(self.name))
            kind, name = value.array.dtype, value.name or "weight"
            mixed = mix(
                builder,
                constant_value(alpha.astype(kind), name=f"{name}.coefficients"),
                constant_value(templates.astype(kind), name=f"{name}.templates"),
                name,
            )
            for node, position in places:
                graph.set_operand(node, position, mixed)
            done += 1
        return done


def mix(builder: Builder, coefficients: Value, templates: Value, name: str = "") -> Value:
    """Σ over t of coefficients[t] · templates[t, …]."""
    letters = string.ascii_lowercase[: (templates.rank or 1) - 1]
    found: Value = builder.einsum(coefficients, templates, subscripts=f"z,z{letters}->{letters}")
    found.name = name
    return found


def mixes(graph: Graph) -> list[Mix]:
    """The weights of a graph that are mixtures."""
    found = []
    for node in graph:
        if isinstance(node.op, Einsum) and len(node.operands) == 2:
            alpha, templates = node.operand(0), node.operand(1)
            inputs, result = node.op.terms()
            if alpha.constant is not None and templates.constant is not None and inputs == ["z", f"z{result}"]:
                found.append(Mix(node, alpha, templates))
    return found


def _layers(graph: Graph, context: Context) -> dict[Value, list[tuple[Node, int]]]:
    """The weights of several axes that layers read and nobody else does, with their uses."""
    graph.renumber()
    sharing: dict[int, int] = {}
    for value in graph.constants():
        if value.constant is not None:
            sharing[id(value.constant.source)] = sharing.get(id(value.constant.source), 0) + 1
    done = {mixed.templates for mixed in mixes(graph)}
    found: dict[Value, list[tuple[Node, int]]] = {}
    for node in graph:
        if not node.op.contracts or all(v.constant is not None for v in node.inputs):
            continue
        for position, operand in enumerate(node.operands):
            held = None if operand is None or operand in done else operand.constant
            if operand is None or held is None or len(held.shape) < 2 or held.element.kind != "float":
                continue
            if sharing[id(held.source)] > 1:
                context.reasons[f"{operand.name} is tied to another weight"] += 1
                continue
            found.setdefault(operand, []).append((node, position))
    return found


def orthogonal(previous: Sequence[Array]) -> Array:
    """A vector of norm 1 that is orthogonal to all of the given ones. Raises UnsupportedError if there is none."""
    stacked = np.asarray(previous, np.float64)
    _, _, rows = np.linalg.svd(stacked, full_matrices=True)
    if len(stacked) >= stacked.shape[1]:
        raise UnsupportedError(
            "E402",
            f"{stacked.shape[1]} templates have no coefficients orthogonal to those of {len(stacked)} members",
            hint=f"Mix with at least {len(stacked) + 1} templates.",
        )
    found: Array = rows[-1]
    return found


# ---- growth -----------------------------------------------------------------------------------------------------


def grow_mixture(a: Graph, b: Graph, *, scale: float = 1.0) -> Graph:
    """One network of two of one architecture whose layers are mixtures: twice as wide, theirs on the diagonal.

    With `scale` 0 it computes the mean of what goes into the first nonlinear function after the units that a model has
    of its own (of the logits of a classifier): the block-diagonal ensemble.

    Args:
        a, b: the two, after the pass `mixture`, trained or not.
        scale: the norm of new coefficients relative to the mean norm of the old ones.

    Raises:
        InputError: E207 if the two are not of one architecture, E201 for a scale that is not finite.
        UnsupportedError: E402 if a model's structure keeps two from standing side by side (statistics over all
            channels, say), if it has no mixtures, or too few templates for orthogonal coefficients.
    """
    if not np.isfinite(scale):
        raise InputError("E201", f"scale={scale} is not finite")
    grown = clone(a)
    pairs = paired(grown, b)
    mixed = mixes(grown)
    if not mixed:
        raise UnsupportedError("E402", "no weight is a mixture", hint="Run the pass mixture first.")
    for each in mixed:
        if each.coefficients.shape[0] < MEMBERS:
            raise UnsupportedError(
                "E402",
                f"{each.weight.name} has {each.coefficients.shape[0]} templates: the coefficients of {MEMBERS} members "
                "can't be orthogonal",
                hint=f"Run the pass mixture with templates={MEMBERS} or more.",
            )
    return _Growth(grown, pairs, mixed, scale).run()


class _Growth:
    def __init__(self, grown: Graph, pairs: Mapping[Value, Value], mixed: list[Mix], scale: float) -> None:
        self.graph, self.pairs, self.mixed, self.scale = grown, pairs, mixed, scale
        self.coupling = couple(grown)
        self.units = _doubled(self.coupling)
        if not self.units:
            raise UnsupportedError("E402", "no unit can be doubled")
        twice = {u: Repetition(np.tile(np.arange(u.extent), 2), np.full(2 * u.extent, 0.5)) for u in self.units}
        self.chosen = {unit.variable: repetition.indices for unit, repetition in twice.items()}
        self.plan = Widening(self.coupling, twice)
        for unit, reason in self.plan.refused.items():
            raise UnsupportedError("E402", f"{unit.name} can't be doubled: {reason}")
        weights = {each.weight for each in mixed}
        self.summed: set[tuple[Value, int]] = set()
        """(weight, axis) over which nodes sum both halves."""
        for scalings in self.plan.scalings.values():
            for place, unit, _ in scalings:
                if place.value.constant is None and place.value not in weights:
                    raise UnsupportedError(
                        "E402", f"{describe(place.node)} sums over {unit.name} of both without a weight"
                    )
                self.summed.add((place.value, place.axis))

    def halves(self, value: Value, axis: int) -> Indices:
        """For each new position of an axis, whose it is: 0, 1, or −1 for what both have."""
        term = self.coupling.axes[value][axis]
        own = [unit for unit in self.units if unit.variable in set(leaves(term))]
        found: Indices = np.full(len(self.coupling.positions(value, axis, self.chosen)), -1, np.int64)
        for unit in own:
            found = np.maximum(found, along(term, unit.variable, self.chosen) // unit.extent)
        return found

    def labelled(self, value: Value) -> dict[int, Indices]:
        """Axis → halves, for the axes that have some."""
        found = {axis: self.halves(value, axis) for axis in range(value.rank or 0)}
        return {axis: halves for axis, halves in found.items() if (halves >= 0).any()}

    def run(self) -> Graph:
        graph = self.graph
        inside = {v for each in self.mixed for v in (each.coefficients, each.templates)}
        fixed: list[tuple[Node, int, Value, Array]] = []
        for node in graph:
            for position, value in enumerate(node.operands):
                if value is None or value not in self.pairs or value in inside:
                    continue
                if value.element.storage.kind == "float":
                    fixed.append((node, position, value, self.combined(value)))
        plans = [(each, self.labelled(each.weight), self.orders(each.weight)) for each in self.mixed]
        made: dict[Value, Value] = {}
        reindex(self.coupling, self.chosen_units(), "mixture")
        for node, position, value, array in fixed:
            if value not in made:
                made[value] = constant_value(array.astype(value.array.dtype), value.element, value.name)
            graph.set_operand(node, position, made[value])
        for each, labelled, orders in plans:
            weight = self.assembled(each, labelled, orders)
            old = each.node.results[0]
            graph.replace(old, weight)
            graph.erase(each.node)
        return graph

    def chosen_units(self) -> dict[Unit, Indices]:
        return {unit: self.chosen[unit.variable] for unit in self.units}

    def combined(self, value: Value) -> Array:
        """A plain weight of both: each half has its own, blocks between are zero, what both have is the mean."""
        other = self.pairs[value]
        axes = [self.coupling.positions(value, k, self.chosen) for k in range(value.rank or 0)]
        first, second = (x.array.astype(np.float64)[np.ix_(*axes)] if axes else x.array for x in (value, other))
        labels = [
            self.halves(value, k).reshape((-1,) + (1,) * ((value.rank or 0) - k - 1)) for k in range(value.rank or 0)
        ]
        is_a, is_b = (
            np.any(np.broadcast_arrays(*[x == side for x in labels]), axis=0) if labels else False for side in (0, 1)
        )
        found = np.where(is_a, np.where(is_b, 0.0, first), np.where(is_b, second, (first + second) / 2))
        if labels:
            kept = [labels[k] >= 0 for k in range(len(labels)) if (value, k) not in self.summed]
            own = np.any(np.broadcast_arrays(*kept, np.zeros(found.shape, bool)), axis=0)
            found = np.where((is_a | is_b) & ~own, found / 2, found)
        return np.asarray(found)

    def orders(self, value: Value) -> dict[int, Indices]:
        """Axis → where each new position comes from once the two halves stand one after the other."""
        found = {}
        for axis, halves in self.labelled(value).items():
            if (halves < 0).any():
                raise UnsupportedError("E402", f"{value.name} reads what only one network makes beside what both have")
            found[axis] = halves * value.shape[axis] + self.coupling.positions(value, axis, self.chosen)
        return found

    def assembled(self, each: Mix, labelled: Mapping[int, Indices], orders: Mapping[int, Indices]) -> Value:
        """The weight of the grown network, made before the node that made the old one."""
        builder = Builder(self.graph, each.node, each.node.location.touched("mixture"))
        name = each.weight.name
        alphas = (each.coefficients, self.pairs[each.coefficients])
        templates = (each.templates, self.pairs[each.templates])
        own = [mix(builder, alphas[m], templates[m]) for m in range(2)]
        axes = sorted(labelled, key=lambda axis: (each.weight, axis) in self.summed)
        if len(axes) > 2:
            raise UnsupportedError("E402", f"{name} has halves on {len(axes)} axes")
        if not axes:
            found: Value = builder.mul(builder.add(*own), 0.5)
        elif len(axes) == 1:
            found = builder.concat(*own, axis=axes[0])
            if (each.weight, axes[0]) in self.summed:
                found = builder.mul(found, 0.5)
        else:
            across = self.new_members(builder, alphas, templates, name)
            rows, columns = axes
            found = builder.concat(
                builder.concat(own[0], across[0], axis=columns),
                builder.concat(across[1], own[1], axis=columns),
                axis=rows,
            )
        for axis in axes:
            if orders[axis].tolist() != list(range(len(orders[axis]))):
                found = builder.gather(found, orders[axis], axis=axis)
        found.name = name
        return found

    def new_members(
        self, builder: Builder, alphas: tuple[Value, Value], templates: tuple[Value, Value], name: str
    ) -> list[Value]:
        """The blocks between the two: mixtures of their templates by coefficients orthogonal to all before."""
        before = [alpha.array.astype(np.float64) for alpha in alphas]
        size = self.scale * float(np.mean([np.linalg.norm(alpha) for alpha in before]))
        found = []
        for member in range(2):
            fresh = orthogonal(before)
            before.append(fresh)
            value = constant_value(
                (size * fresh).astype(alphas[0].array.dtype), name=f"{name}.coefficients.{member + 2}"
            )
            found.append(mix(builder, value, templates[member]))
        return found


def _doubled(coupling: Coupling) -> list[Unit]:
    """The units to double: free ones that activations have; of the factors of one axis, only the major.

    Raises UnsupportedError for units over which statistics are computed: the halves would not stay apart.
    """
    fixed = parametric(coupling.graph)
    found = [unit for unit in coupling.removable() if any(member.value not in fixed for member in unit.activations)]
    minor: set[Variable] = set()
    for terms in coupling.axes.values():
        for term in terms:
            minor.update(_minor(term, {unit.variable for unit in found}))
    found = [unit for unit in found if unit.variable not in minor]
    for unit in found:
        if unit.verdict != "exact":
            raise UnsupportedError("E402", f"{unit.name} can't be doubled: {unit.why()}")
    return found


def _minor(term: Term, free: set[Variable]) -> set[Variable]:
    """The coordinates that stand below a free one in a product."""
    resolved = resolve(term)
    if isinstance(resolved, Variable):
        return set()
    if not isinstance(resolved, Product):
        return {variable for part in resolved.parts for variable in _minor(part, free)}
    found: set[Variable] = set()
    major = False
    for part in flatten(resolved, Product):
        own = set(leaves(part)) & free
        found |= own if major else _minor(part, free)
        major = major or bool(own)
    return found


__all__ = ["MEMBERS", "Mix", "Mixture", "grow_mixture", "mix", "mixes", "orthogonal"]
