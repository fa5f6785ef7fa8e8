"""Widening: units get more indices, everywhere at once, and the model still computes the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from espalier.analysis.choice import chosen_units, patterns_of
from espalier.analysis.coupling import Coupling, Unit, couple
from espalier.cost.remaining import Remaining
from espalier.errors import InputError
from espalier.ir import Graph, Node, Value, constant_value
from espalier.ir.constants import constant
from espalier.passes.base import GROWS, Context, Pass, approximates, graph_pass
from espalier.passes.structure.importance import check_finite
from espalier.passes.structure.report import frozen_rows, reason_lines, unit_row
from espalier.passes.structure.widening import Repetition, Widening, along, weights_that_make

WIDENED_BYTES = 16
"""That a parameter of a wider model takes at least, while it is made and checked in f64."""
SHARE_BITS = 10
"""Bits of a share, and one more for each factor of 2 by which a unit grows."""


@graph_pass("widen", semantics=GROWS)
class Widen(Pass):
    """Repeat indices of units (channels, heads, features, hidden states) without changing the outputs.

    Repetitions of an index share what it is worth wherever a node sums over it (Net2Wider, arXiv:1511.05641, applied to
    whole units). A unit over which statistics are computed must be repeated evenly, so by a whole factor.

    Attributes:
        factor: the new extent of each unit relative to today's; rounded, never less than today's.
        to: the new extent instead.
        only, ignore: patterns of units' names, or the names themselves (as `espalier inspect --units` prints them),
            separated by `;`.
        uneven: how unequally repetitions share, from 0 (all the same) to below 1. Outputs stay as they are, but
            repetitions get different gradients, so that they can learn different things.
        noise: standard deviation of what is added to the weights that make new indices, relative to theirs. The outputs
            change then.
        seed: of the choice of what is repeated, the shares and the noise; None takes the run's.
    """

    factor: float = 2.0
    to: int | None = None
    only: str = ""
    ignore: str = ""
    uneven: float = 0.0
    noise: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 1 < self.factor < 1e6:
            raise InputError("E201", f"factor={self.factor:g} is not between 1 and 1e6")
        if self.to is not None and self.to < 1:
            raise InputError("E201", f"to={self.to} is not positive")
        if not 0 <= self.uneven < 1:
            raise InputError("E201", f"uneven={self.uneven} is not from 0 to below 1")
        if not 0 <= self.noise < 1e6:
            raise InputError("E201", f"noise={self.noise} is negative or not finite")
        if self.noise:
            object.__setattr__(self, "semantics", approximates("noise", self.noise))

    def extent(self, unit: Unit) -> int:
        """The extent that a unit is to have."""
        return round(unit.extent * self.factor) if self.to is None else self.to

    def run(self, graph: Graph, context: Context) -> int:
        coupling = couple(graph)
        check_finite(coupling)
        units = chosen_units(coupling, patterns_of(self.only), patterns_of(self.ignore))
        rng = np.random.default_rng(context.seed if self.seed is None else self.seed)
        extents = {}
        for unit in units:
            extent = self.extent(unit)
            if extent < unit.extent:
                raise InputError("E201", f"to={self.to} is less than the extent {unit.extent} of {unit.name}")
            if extent > unit.extent and context.may_rewrite():
                extents[unit] = extent
        check_memory(coupling, extents)
        wanted = {unit: repeat(unit.extent, extent, rng, self.uneven) for unit, extent in extents.items()}
        chosen = set(units)
        kept = {unit: _stays(unit, self, unit in chosen) for unit in coupling.removable() if unit not in wanted}
        frozen = frozen_rows(coupling)
        done = widen(coupling, wanted, self.name, self.noise, rng, context)
        context.details["kept"] = [_refusal(unit, why) for unit, why in kept.items()]
        context.details["frozen"] = frozen
        context.details["summary"] = _lines(context.details)
        return done


def check_memory(coupling: Coupling, extents: Mapping[Unit, int]) -> None:
    """Raise InputError E201 if this machine's memory has no room for the weights of units of these extents."""
    chosen = {unit.variable: np.broadcast_to(np.int64(0), extent) for unit, extent in extents.items()}
    count = Remaining(coupling).parameters_with(chosen)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    if memory <= 0:
        return  # the system does not say
    if WIDENED_BYTES * max(count, sum(extents.values())) > memory:
        room = f"{memory >> 30} GiB of memory have room for"
        message = f"the wider model would have {count} parameters, more than {room}"
        raise InputError("E201", message, hint="Widen it less, or fewer units: see `only`.")


def _stays(unit: Unit, options: Widen, chosen: bool) -> str:
    """Why a unit that could be widened is not even tried."""
    if not chosen:
        return "left out by only or ignore"
    return "it has this extent already" if unit.extent == options.extent(unit) else "so many rewrites were asked for"


def _refusal(unit: Unit, why: str) -> dict[str, Any]:
    return {"unit": unit.name, "extent": unit.extent, "why": why}


def _lines(details: Mapping[str, Any]) -> list[str]:
    widened = [
        f"widened {row['unit']}: {row['extent']} → {row['to']}, in {len(row['weights'])} weights"
        for row in details["widened"]
    ]
    return widened + [line for kind in ("refused", "kept", "frozen") for line in reason_lines(kind, details[kind])]


def repeat(extent: int, to: int, rng: np.random.Generator, uneven: float = 0.0) -> Repetition:
    """All indices, then random ones again (each as often as any other, give or take one), with their shares."""
    rounds = [rng.permutation(extent) for _ in range((to - 1) // extent)]
    indices = np.concatenate([np.arange(extent), *rounds])[:to].astype(np.int64)
    weight = 1 + uneven * rng.uniform(-1, 1, to) if uneven else np.ones(to)
    shares = weight / np.bincount(indices, weight, extent)[indices]
    # few bits each, so that weights of few bits are shared without rounding: a quantizer after them may have ties
    unit = 2.0 ** (SHARE_BITS + len(rounds).bit_length())
    shares = np.rint(shares * unit) / unit
    shares[:extent] += 1 - np.bincount(indices, shares, extent)
    return Repetition(indices, shares)


def widen(
    coupling: Coupling,
    wanted: Mapping[Unit, Repetition],
    by: str,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
    context: Context | None = None,
) -> int:
    """Widen units; those that can't be are told to the context. The number of units. The coupling is spent afterwards.

    Raises InputError E221 if none of the wanted ones can be widened.
    """
    plan = Widening(coupling, wanted)
    if context is not None:
        context.reasons.update(plan.refused.values())
        context.details = {
            "widened": [unit_row(unit, "to", len(each.indices)) for unit, each in plan.accepted.items()],
            "refused": [_refusal(unit, why) for unit, why in plan.refused.items()],
        }
    if plan.refused and not plan.accepted:
        unit, reason = next(iter(plan.refused.items()))
        others = f" (nor can {len(plan.refused) - 1} other units)" if len(plan.refused) > 1 else ""
        raise InputError("E221", f"{unit.name} can't be widened: {reason}{others}")
    if not plan.accepted:
        return 0
    makers = list(makers_of(coupling, plan.accepted)) if noise else []
    plan.apply(by)
    if rng is not None:
        for maker in makers:
            held = maker.node.operand(maker.operand)
            rows = np.moveaxis(held.array, maker.axis, 0)[maker.new]
            added = rng.normal(0, noise * float(held.array.std()), rows.shape)
            rewrite_rows(coupling.graph, held, maker.axis, maker.new, added.__add__)
    return len(plan.accepted)


class Maker(NamedTuple):
    """A weight that makes a unit: where it is read, its axis, and which positions of that are to be new."""

    node: Node
    operand: int
    axis: int
    new: NDArray[np.bool_]

    @property
    def value(self) -> Value:
        return self.node.operand(self.operand)


def makers_of(coupling: Coupling, accepted: Mapping[Unit, Repetition]) -> Iterator[Maker]:
    """The weights, of several axes, that make units."""
    chosen = {unit.variable: repetition.indices for unit, repetition in accepted.items()}
    for unit in accepted:
        for value, axis in weights_that_make(coupling, unit):
            there = along(coupling.axes[value][axis], unit.variable, chosen)
            user = next(node for node in value.users if node.graph is coupling.graph)
            yield Maker(user, user.operands.index(value), axis, there >= unit.extent)


def rewrite_rows(
    graph: Graph, value: Value, axis: int, rows: NDArray[np.bool_], make: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    """Give some positions of an axis of a weight other numbers: `make` maps those of today, rows first."""
    held = value.constant
    assert held is not None
    moved = np.moveaxis(np.array(held.array), axis, 0)
    moved[rows] = make(moved[rows]).astype(moved.dtype)
    fresh = constant_value(constant(np.ascontiguousarray(np.moveaxis(moved, 0, axis)), held.element), name=value.name)
    for node in value.users:
        if node.graph is graph:
            for position, operand in enumerate(node.operands):
                if operand is value:
                    graph.set_operand(node, position, fresh)
