"""Pruning by gates that are trained along with the model: what is closed in the end is removed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from espalier.analysis.choice import chosen_units
from espalier.analysis.coupling import couple
from espalier.errors import BudgetError, InputError
from espalier.ir import Graph
from espalier.passes.structure.reindex import reindex
from espalier.train.gates import GatedModule, GateTarget, gated
from espalier.train.recover import recover


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
        target: the share of the model's multiply–accumulates that is to be left; the training is drawn to it, and ends
            near it if it is long enough.
        strength: of the pull towards the target, against the loss.
        slope: the derivative of gates.
        only, ignore: patterns of units' names; by default all exact units have gates.
        options: further ones of `recover` (epochs or steps, learning_rate, seed, …), but for `module` and `trainable`.

    Raises:
        InputError: as `recover`; E201 for a target outside of 0 to 1; E202 and E221 as for pruning; E224 if no unit is
            exact.
        BudgetError: E501 if one index of each unit costs more than the target.
    """
    for name in ("module", "trainable"):
        if name in options:
            raise InputError("E201", f"{name} has no meaning here: what has gates is a module of its own")
    hooks = [*options.pop("hooks", ()), GateTarget(target, strength)]
    modules: list[GatedModule] = []

    def made(copy: Graph) -> GatedModule:
        coupling = couple(copy)
        units = [unit for unit in chosen_units(coupling, only, ignore) if unit.verdict == "exact"]
        if not units:
            raise InputError("E224", "no unit of the model is exact, so that gates have nothing to close")
        module = gated(copy, coupling, units, slope)
        if module.least() > target:
            least = f"one index of each unit takes {module.least():.1%} of the multiply–accumulates"
            raise BudgetError("E501", f"{least}, so that {target:.1%} cannot be all that is left")
        modules.append(module)
        return module

    trained = recover(graph, original, data, module=made, hooks=hooks, **options)
    coupling, kept = couple(trained), modules[-1].kept()
    by_name = {unit.name: unit for unit in coupling.units}
    if all(len(indices) == by_name[name].extent for name, indices in kept.items()) and target < 1:
        warnings.warn("no gate has closed: train longer, or with a larger learning rate or strength", stacklevel=2)
    reindex(coupling, {by_name[name]: indices for name, indices in kept.items()}, "gates")
    return trained
