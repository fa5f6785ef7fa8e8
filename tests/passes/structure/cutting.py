"""Removing indices of units, and zeros in their place: two graphs that must compute the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from espalier.analysis.coupling import Coupling, Unit, couple
from espalier.ir import Graph, verify
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.passes.structure.reindex import reindex, without, zeroed

Removed = Mapping[str, Sequence[int]]
"""Name of a unit → the indices that go."""


def by_name(coupling: Coupling) -> dict[str, Unit]:
    return {unit.name: unit for unit in coupling.units}


def draw(units: Iterable[Unit], ratio: float, rng: np.random.Generator, least: int = 1) -> dict[str, np.ndarray]:
    """For each unit, random indices to remove: at least one, but so many stay."""
    found = {}
    for unit in units:
        if unit.extent <= least:
            continue
        count = min(max(1, int(unit.extent * ratio)), unit.extent - least)
        found[unit.name] = np.sort(rng.choice(unit.extent, count, replace=False))
    return found


def hard(graph: Graph, removed: Removed) -> Graph:
    """A copy without these indices; its types are checked."""
    copy = clone(graph)
    coupling = couple(copy)
    units = by_name(coupling)
    reindex(coupling, {units[name]: without(units[name], indices) for name, indices in removed.items()}, "test")
    verify(copy, "types")
    return copy


def soft(graph: Graph, removed: Removed) -> Graph:
    """A copy with zeros there."""
    copy = clone(graph)
    coupling = couple(copy)
    units = by_name(coupling)
    zeroed(coupling, {units[name]: indices for name, indices in removed.items()})
    return copy


def difference(a: Sequence[Any], b: Sequence[Any]) -> float:
    """The largest difference of outputs, relative to the largest number of each."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        if y.size:
            apart = np.abs(x.astype(np.float64) - y.astype(np.float64)).max()
            worst = max(worst, float(apart / (np.abs(y.astype(np.float64)).max() + 1e-300)))
    return worst


def hard_is_soft(graph: Graph, inputs: Sequence[Any], removed: Removed) -> float:
    """By how much removal differs from zeros."""
    return difference(execute(hard(graph, removed), inputs), execute(soft(graph, removed), inputs))


def check_all(graph: Graph, inputs: Sequence[Any], rng: np.random.Generator, limit: float = 1e-10) -> int:
    """Cut every unit that may be cut, one by one and all at once; exact ones must equal zeros. The number of units."""
    coupling = couple(graph)
    units = coupling.removable()
    assert len({unit.name for unit in coupling.units}) == len(coupling.units)
    groups = [[unit] for unit in units if unit.extent > 1]
    groups.append([unit for unit in units if unit.verdict == "exact"])
    for group in groups:
        removed = draw(group, rng.uniform(0.1, 0.9), rng)
        if all(unit.verdict == "exact" for unit in group):
            off = hard_is_soft(graph, inputs, removed)
            assert off <= limit, f"{group} off by {off}"
        else:
            assert all(np.isfinite(y).all() for y in execute(hard(graph, removed), inputs))
    execute(hard(graph, draw(units, 0.5, rng)), inputs)
    return len(units)
