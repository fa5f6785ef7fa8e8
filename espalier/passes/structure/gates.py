"""Pruning by gates that are trained along with the model: what is closed in the end is removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir import Graph
from espalier.passes.structure.reindex import reindex
from espalier.passes.structure.select import chosen_units
from espalier.train.recover import recover
from espalier.train.sparse import GatedModule, GateTarget, gated


def prune_by_gates(
    graph: Graph,
    original: Graph | None,
    data: Any,
    *,
    target: float,
    strength: float = 10.0,
    slope: float = 1.0,
    only: Sequence[str] = (),
    ignore: Sequence[str] = (),
    **options: Any,
) -> Graph:
    """Train a graph whose exact units have a gate for each index, and return a copy without what the gates closed.

    Args:
        graph, original, data: as for `espalier.train.recover.recover`.
        target: the share of the multiply–accumulates that the gated units take which is to be left.
        strength: of the pull towards the target, against the loss.
        slope: the derivative of gates.
        only, ignore: patterns of units' names; by default all exact units have gates.
        options: further ones of `recover` (epochs or steps, learning_rate, seed, …).

    Raises:
        InputError: as `recover`; E201 for a target outside of 0 to 1; E202 and E221 as for pruning; E224 if no unit is
            exact.
    """
    hooks = [*options.pop("hooks", ()), GateTarget(target, strength)]
    modules: list[GatedModule] = []

    def made(copy: Graph) -> GatedModule:
        coupling = couple(copy)
        units = [unit for unit in chosen_units(coupling, only, ignore) if unit.verdict == "exact"]
        if not units:
            raise InputError("E224", "no unit of the model is exact, so that gates have nothing to close")
        modules.append(gated(copy, coupling, units, slope))
        return modules[-1]

    trained = recover(graph, original, data, module=made, hooks=hooks, **options)
    coupling = couple(trained)
    by_name = {unit.name: unit for unit in coupling.units}
    reindex(coupling, {by_name[name]: indices for name, indices in modules[-1].kept().items()}, "gates")
    return trained
