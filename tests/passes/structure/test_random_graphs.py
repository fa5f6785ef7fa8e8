"""On random graphs, removal equals zeros wherever it is said to, and never makes an invalid graph."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from espalier.analysis.coupling import couple
from espalier.ir import Graph, structural_hash, verify
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from tests.passes.structure.cutting import check_all, difference, draw, hard
from tests.passes.structure.random_graphs import graphs

Case = tuple[Graph, list[np.ndarray], np.random.Generator]
relaxed = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def check(case: Case) -> None:
    graph, inputs, rng = case
    verify(graph, "types")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if not all(np.isfinite(y).all() and np.abs(y).max() < 1e12 for y in execute(graph, inputs)):
            return
        check_all(graph, inputs, rng)
        removed = draw(couple(graph).removable(), 0.4, rng, least=2)
        at_once = hard(graph, removed)
        step = clone(graph)
        for name in rng.permutation(list(removed)):
            step = hard(step, {name: removed[name]})
        assert structural_hash(step) == structural_hash(at_once)
        assert difference(execute(step, inputs), execute(at_once, inputs)) == 0


@settings(max_examples=40, suppress_health_check=relaxed)
@given(graphs())
def test_random_graphs(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=relaxed)
@given(graphs())
def test_many_random_graphs(case: Case) -> None:
    check(case)
