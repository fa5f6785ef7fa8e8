"""Part of bar 1 of `prune`: on random graphs from hypothesis, removal of exact units equals zeros in their place."""

from __future__ import annotations

import warnings

import hypothesis
import numpy as np
from hypothesis import HealthCheck

from benchmarks.common import Benchmark
from benchmarks.cutting import check_all, check_order
from benchmarks.zoo.random_graphs import Case, graphs
from espalier.ir import verify
from espalier.ir.execute import execute

COUNT, QUICK_COUNT = 200, 10
LARGEST = 1e12
"""Outputs above it have lost the digits that are compared."""


def examine_graph(case: Case) -> tuple[int, float] | None:
    """The number of units of one graph, and by how much removal is off zeros; None if its outputs can't be compared.

    Raises ValueError where removal is not what zeros are, or depends on the order.
    """
    graph, inputs, rng = case
    verify(graph, "types")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if not all(np.isfinite(y).all() and np.abs(y).max() < LARGEST for y in execute(graph, inputs)):
            return None
        found = check_all(graph, inputs, rng)
        check_order(graph, inputs, rng)
    return found


def measure_random(benchmark: Benchmark) -> None:
    """The bar: all of so many random graphs."""
    wanted = QUICK_COUNT if benchmark.arguments.quick else COUNT
    found: list[tuple[int, float]] = []

    @hypothesis.seed(benchmark.arguments.seed)
    @hypothesis.settings(
        max_examples=4 * wanted, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @hypothesis.given(graphs())
    def every(case: Case) -> None:
        if len(found) < wanted and (one := examine_graph(case)) is not None:
            found.append(one)

    reason = None
    try:
        every()
    except Exception as error:  # hypothesis shows the smallest graph that it found
        reason = f"{type(error).__name__}: {error}"
    units, worst = sum(count for count, _ in found), max((off for _, off in found), default=None)
    enough = len(found) == wanted
    benchmark.details["random_graphs"] = {"graphs": len(found), "units": units, "worst": worst}
    if reason is None and not enough:
        reason = f"only {len(found)} could be compared"
    benchmark.bar(
        "hard_is_soft_on_random_graphs", len(found), f"all of {wanted}, ≤ 1e-10 in float64", reason is None, reason
    )
