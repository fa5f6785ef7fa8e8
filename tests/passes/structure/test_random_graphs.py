"""On random graphs, removal equals zeros wherever it is said to, and never makes an invalid graph."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.prune_random import examine_graph
from benchmarks.zoo.random_graphs import Case, graphs

relaxed = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=40, suppress_health_check=relaxed)
@given(graphs())
def test_random_graphs(case: Case) -> None:
    examine_graph(case)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=relaxed)
@given(graphs())
def test_many_random_graphs(case: Case) -> None:
    examine_graph(case)
