"""Which indices stay, by scores: by ratio, or by what share of the costs goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from espalier.analysis.coupling import Coupling, Indices, Unit, extent_of
from espalier.errors import BudgetError
from espalier.ir.terms import Product, Term, Variable, flatten, leaves, resolve
from espalier.passes.structure.importance import Scores

Scope = Literal["local", "global", "isomorphic"]
SCOPES: tuple[str, ...] = get_args(Scope)
Kept: TypeAlias = dict[Unit, Indices]
SMALLEST_RATIO = 2.0**-24
"""How finely a ratio is searched for a target of costs."""


class OwnRatio(NamedTuple):
    """The ratio of a scope of its own: two scopes may have the same ratio."""

    scope: int
    ratio: float


Ranked: TypeAlias = tuple[object, OwnRatio | None]
"""What units have in common that are ranked together."""


@dataclass(frozen=True)
class Selector:
    """How indices are chosen.

    Attributes:
        coupling: of the graph.
        scores: unit → one number per index; the lowest go first. Units that are not here stay as they are.
        scope: local (each unit loses the ratio), global (one ranking over all), isomorphic (one within each class of
            units whose weights are used alike).
        multiple: axes of weights keep multiples of so many positions.
        own: unit → a scope of its own, with its ratio: units of one scope are ranked together.
        start: unit → the extent that shares are of, where earlier rounds of pruning have removed some of it.
        vanished: of units that earlier rounds have left one index of, which are units no more: whom they were ranked
            with (the class, their own scope), and their extent at the start.
    """

    coupling: Coupling
    scores: Mapping[Unit, Scores]
    scope: Scope = "local"
    multiple: int = 1
    own: Mapping[Unit, OwnRatio] = field(default_factory=dict)
    start: Mapping[Unit, int] = field(default_factory=dict)
    vanished: Sequence[tuple[Ranked, int]] = ()

    def by_ratio(self, ratio: float) -> Kept:
        """What stays if this share of the indices goes; only units that lose some."""
        removed: dict[Unit, int] = {}
        for (together, group_ratio), units in self._groups(ratio).items():
            if self.scope == "local":
                removed |= {unit: self._count(group_ratio, [unit]) for unit in units}
            else:
                removed |= self._ranked(
                    units, group_ratio, [extent for key, extent in self.vanished if key == together]
                )
        return self._kept(removed)

    def by_cost(self, target: float, cost: Callable[[Mapping[Variable, Indices]], int], name: str) -> Kept:
        """What stays if this share of a cost goes: at least that, and little more.

        Raises BudgetError E501 if even the least that may stay costs more.
        """
        whole = cost({})
        limit = whole * (1 - target)

        def fits(kept: Kept) -> bool:
            return cost({unit.variable: indices for unit, indices in kept.items()}) <= limit + 1e-9 * whole

        low, high = 0.0, 1.0
        if fits(self.by_ratio(low)):
            return self.by_ratio(low)
        most = self.by_ratio(high)
        if not fits(most):
            reached = 1 - cost({unit.variable: indices for unit, indices in most.items()}) / max(1, whole)
            raise BudgetError("E501", f"at most {reached:.1%} of the {name} can go, not {target:.1%}")
        while high - low > SMALLEST_RATIO:
            middle = (low + high) / 2
            low, high = (low, middle) if fits(self.by_ratio(middle)) else (middle, high)
        # One step of the ratio can take an index from many units at once: take it from as few as will do.
        before, after = self.by_ratio(low), self.by_ratio(high)
        changed = [unit for unit in self.scores if len(after.get(unit, ())) != len(before.get(unit, ()))]
        enough, short = len(changed), 0
        while enough - short > 1:
            middle_count = (enough + short) // 2
            trial = self._mixed(before, after, changed[:middle_count])
            enough, short = (middle_count, short) if fits(trial) else (enough, middle_count)
        return self._mixed(before, after, changed[:enough])

    @staticmethod
    def _mixed(before: Kept, after: Kept, moved: Sequence[Unit]) -> Kept:
        return {**before, **{unit: after[unit] for unit in moved if unit in after}}

    def _groups(self, ratio: float) -> dict[tuple[Ranked, float], list[Unit]]:
        """The units that are ranked together, with their ratio."""
        found: dict[tuple[Ranked, float], list[Unit]] = {}
        for unit in self.scores:
            own = self.own.get(unit)
            kind = signature(self.coupling, unit) if self.scope == "isomorphic" else ()
            found.setdefault(((kind, own), ratio if own is None else own.ratio), []).append(unit)
        return found

    def _ranked(self, units: Sequence[Unit], ratio: float, vanished: Sequence[int]) -> dict[Unit, int]:
        """How many indices of each unit are among the lowest of all, if each keeps one (or one step)."""
        wanted = self._count(ratio, units, vanished)
        removed = dict.fromkeys(units, 0)
        scores = np.concatenate([self.scores[unit] for unit in units])
        owner = np.repeat(np.arange(len(units)), [unit.extent for unit in units])
        spare = [max(0, unit.extent - step_of(self.coupling, unit, self.multiple, {})) for unit in units]
        for position in np.argsort(scores, kind="stable"):
            if not wanted:
                break
            unit = units[owner[position]]
            if removed[unit] < spare[owner[position]]:
                removed[unit] += 1
                wanted -= 1
        return removed

    def _count(self, ratio: float, units: Sequence[Unit], vanished: Sequence[int] = ()) -> int:
        """How many indices of units go now; never all. What earlier rounds rounded down, this one makes up for."""
        left = sum(unit.extent for unit in units) + len(vanished)
        whole = sum(self.start.get(unit, unit.extent) for unit in units) + sum(vanished)
        return max(0, min(whole - 1, math.floor(ratio * whole + 1e-9)) - (whole - left))

    def _kept(self, removed: Mapping[Unit, int]) -> Kept:
        counts: dict[Variable, int] = {}
        kept: Kept = {}
        for unit in self.scores:
            count = removed[unit]
            if not count:
                continue
            step = step_of(self.coupling, unit, self.multiple, counts)
            left = max(step, step * math.floor((unit.extent - count) / step + 0.5))
            if left < unit.extent:
                lowest = np.argsort(self.scores[unit], kind="stable")
                kept[unit] = np.sort(lowest[unit.extent - left :])
                counts[unit.variable] = left
        return kept


def step_of(coupling: Coupling, unit: Unit, multiple: int, counts: Mapping[Variable, int]) -> int:
    """The multiple that a unit must keep so that axes of weights that are a product of it and others keep theirs."""
    step = 1
    for value, axis in unit.weights if multiple > 1 else ():
        step = max(step, multiple // math.gcd(multiple, _others(coupling.axes[value][axis], unit.variable, counts)))
    return step


def _others(term: Term, variable: Variable, counts: Mapping[Variable, int]) -> int:
    """The extent that stands beside a variable in the product that it is a factor of."""
    term = resolve(term)
    if isinstance(term, Variable):
        return 1
    if not isinstance(term, Product):
        return next((_others(part, variable, counts) for part in term.parts if variable in set(leaves(part))), 1)
    total = 1
    chosen = {leaf: np.arange(count) for leaf, count in counts.items()}
    for part in flatten(term, Product):
        if variable in set(leaves(part)):
            total *= _others(part, variable, counts)
        else:
            extent = extent_of(part, chosen)
            total *= extent if isinstance(extent, int) else 1
    return total


def signature(coupling: Coupling, unit: Unit) -> tuple[object, ...]:
    """What units of one class have in common: which operators use their weights, where, and whether they sum over them.

    (The subgraphs of arXiv 2407.04616, said by declarations.)
    """
    return tuple(
        (use.node.op.name, use.operand, use.axis, use.kept)
        for member in unit.weights
        for use in coupling.uses(member, unit)
    )
