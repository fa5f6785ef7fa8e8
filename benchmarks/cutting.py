"""Removing indices of units, and zeros in their place: two graphs that must compute the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from espalier.analysis.coupling import Coupling, Unit, couple
from espalier.ir import Graph, structural_hash, verify
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
    """The largest difference of outputs, relative to the largest number of each.

    Raises ValueError for other shapes or dtypes, and where they are not finite at the same places.
    """
    worst = 0.0
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        x, y = np.asarray(x), np.asarray(y)
        if x.shape != y.shape or x.dtype != y.dtype:
            raise ValueError(f"output {k}: {x.dtype}{x.shape} instead of {y.dtype}{y.shape}")
        finite = np.isfinite(y)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
            raise ValueError(f"output {k} is not finite at the same places")
        if finite.any():
            kind = np.complex128 if x.dtype.kind == "c" else np.float64
            x, y = x[finite].astype(kind), y[finite].astype(kind)
            worst = max(worst, float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-300)))
    return worst


def hard_is_soft(graph: Graph, inputs: Sequence[Any], removed: Removed) -> float:
    """By how much removal differs from zeros."""
    return difference(execute(hard(graph, removed), inputs), execute(soft(graph, removed), inputs))


def check_all(graph: Graph, inputs: Sequence[Any], rng: np.random.Generator, limit: float = 1e-10) -> tuple[int, float]:
    """Cut every unit that may be cut, one by one and all at once; exact ones must equal zeros.

    Gives the number of units, and the largest difference. Raises ValueError for one above the limit.
    """
    coupling = couple(graph)
    units = coupling.removable()
    if len({unit.name for unit in coupling.units}) < len(coupling.units):
        raise ValueError("two units have one name")
    groups = [[unit] for unit in units if unit.extent > 1]
    groups.append([unit for unit in units if unit.verdict == "exact"])
    worst = 0.0
    for group in groups:
        removed = draw(group, rng.uniform(0.1, 0.9), rng)
        if all(unit.verdict == "exact" for unit in group):
            off = hard_is_soft(graph, inputs, removed)
            if not off <= limit:
                raise ValueError(f"{group} is off zeros by {off:.3g}")
            worst = max(worst, off)
        elif not all(np.isfinite(y).all() for y in execute(hard(graph, removed), inputs)):
            raise ValueError(f"without some of {group} the outputs are not finite")
    execute(hard(graph, draw(units, 0.5, rng)), inputs)
    return len(units), worst


def check_order(graph: Graph, inputs: Sequence[Any], rng: np.random.Generator) -> None:
    """Units that are cut one after the other, in any order, leave what they leave at once. Raises ValueError."""
    removed = draw(couple(graph).removable(), 0.4, rng, least=2)
    at_once, step = hard(graph, removed), clone(graph)
    for name in rng.permutation(list(removed)):
        step = hard(step, {name: removed[name]})
    if structural_hash(step) != structural_hash(at_once):
        raise ValueError("one after the other is not the same as all at once")
    if difference(execute(step, inputs), execute(at_once, inputs)):
        raise ValueError("one after the other computes something else than all at once")
