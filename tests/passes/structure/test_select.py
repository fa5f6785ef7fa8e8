"""Which indices stay: invariants of every scope, target and multiple."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.zoo.classic import FAMILIES
from espalier import load
from espalier.analysis.coupling import Coupling, couple
from espalier.cost.count import macs
from espalier.cost.remaining import Remaining, number
from espalier.errors import BudgetError
from espalier.ir.clone import clone
from espalier.passes.structure.reindex import reindex
from espalier.passes.structure.select import SCOPES, OwnRatio, Scope, Selector, signature

NAMES = ("mobilenet_v2", "vit", "lstm")


@functools.cache
def family(name: str) -> Coupling:
    module, inputs, _ = FAMILIES[name]()
    return couple(load(module, example_inputs=inputs))


def selector(name: str, scope: str, multiple: int, seed: int) -> Selector:
    coupling, draw = family(name), np.random.default_rng(seed)
    scores = {unit: draw.random(unit.extent) for unit in coupling.removable()}
    return Selector(coupling, scores, scope, multiple)  # type: ignore[arg-type]


@given(
    st.sampled_from(NAMES),
    st.sampled_from(SCOPES),
    st.floats(0, 0.999),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 9),
)
def test_something_stays_and_it_is_the_best(name: str, scope: str, ratio: float, multiple: int, seed: int) -> None:
    chosen = selector(name, scope, multiple, seed)
    kept = chosen.by_ratio(ratio)
    for unit, indices in kept.items():
        assert 0 < len(indices) < unit.extent and unit.verdict != "frozen"
        assert np.all(np.diff(indices) > 0)
        gone = np.setdiff1d(np.arange(unit.extent), indices)
        assert chosen.scores[unit][gone].max() <= chosen.scores[unit][indices].min()
        if scope == "local" and multiple == 1:
            assert unit.extent - len(indices) == int(ratio * unit.extent + 1e-9)
    if scope == "global" and multiple == 1:
        wanted = int(ratio * sum(unit.extent for unit in chosen.scores) + 1e-9)
        gone = sum(unit.extent - len(indices) for unit, indices in kept.items())
        assert gone == min(wanted, sum(unit.extent - 1 for unit in chosen.scores))
    if ratio == 0:
        assert not kept


@given(st.sampled_from(NAMES), st.floats(0.05, 0.9), st.sampled_from([2, 4, 8]))
def test_axes_of_weights_keep_multiples(name: str, ratio: float, multiple: int) -> None:
    coupling = family(name)
    kept = selector(name, "local", multiple, 0).by_ratio(ratio)
    for unit, indices in kept.items():
        for value, axis in unit.weights:
            before = {u.variable: np.arange(u.extent) for u in coupling.of(value, axis)}
            after = {u.variable: kept.get(u, np.arange(u.extent)) for u in coupling.of(value, axis)}
            if len(coupling.positions(value, axis, before)) % multiple == 0:
                assert len(coupling.positions(value, axis, after)) % multiple == 0, (unit, value, len(indices))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("target", [0.0, 0.3, 0.6])
def test_targets_of_costs_are_met_and_counted_rightly(name: str, scope: str, target: float) -> None:
    chosen = selector(name, scope, 1, 1)
    costs = Remaining(chosen.coupling)
    assert costs.macs == sum(number(count) for node in chosen.coupling.graph if (count := macs(node)) is not None)
    for cost, whole in ((costs.macs_with, costs.macs), (costs.parameters_with, costs.parameters)):
        kept = chosen.by_cost(target, cost, "costs")
        share = 1 - cost({unit.variable: indices for unit, indices in kept.items()}) / whole
        assert target - 1e-9 <= share < target + 0.12 and (target or not kept)
        graph = clone(chosen.coupling.graph)
        again = couple(graph)
        by_name = {unit.name: unit for unit in again.units}
        reindex(again, {by_name[unit.name]: indices for unit, indices in kept.items()}, "test")
        left = Remaining(couple(graph))
        variables = {unit.variable: indices for unit, indices in kept.items()}
        assert left.macs == costs.macs_with(variables)
        assert left.parameters == costs.parameters_with(variables)


def test_a_target_out_of_reach_is_a_budget_that_cannot_be_met() -> None:
    chosen = selector("lstm", "local", 1, 0)
    with pytest.raises(BudgetError, match=r"at most .* of the MACs can go"):
        chosen.by_cost(0.99999, Remaining(chosen.coupling).macs_with, "MACs")


def test_own_ratios_and_classes() -> None:
    chosen = selector("vit", "isomorphic", 1, 0)
    classes: dict[object, list[str]] = {}
    for unit in chosen.scores:
        classes.setdefault(signature(chosen.coupling, unit), []).append(unit.name)
    assert ["blocks.0.mlp.0.weight.T.1", "blocks.1.mlp.0.weight.T.1", "blocks.2.mlp.0.weight.T.1"] in classes.values()
    kept = chosen.by_ratio(0.5)
    for names in classes.values():
        units = [unit for unit in chosen.scores if unit.name in names]
        gone = sum(unit.extent - len(kept.get(unit, range(unit.extent))) for unit in units)
        assert gone == int(0.5 * sum(unit.extent for unit in units))
    first = next(iter(chosen.scores))
    alone = Selector(chosen.coupling, chosen.scores, "local", 1, {first: OwnRatio(0, 0.25)}).by_ratio(0.0)
    assert {unit.name: unit.extent - len(k) for unit, k in alone.items()} == {first.name: first.extent // 4}


@pytest.mark.parametrize("scope", SCOPES)
def test_heads_go_where_their_product_with_the_depth_keeps_its_multiple(scope: Scope) -> None:
    attention = torch.nn.MultiheadAttention(64, 8, batch_first=True).eval()
    x = torch.zeros(2, 5, 64)
    coupling = couple(load(attention, example_inputs=(x, x, x)))
    scores = {unit: np.arange(unit.extent, dtype=float) for unit in coupling.removable()}
    kept = Selector(coupling, scores, scope, 8).by_ratio(0.5)
    assert kept and all(len(indices) == unit.extent // 2 for unit, indices in kept.items())
    assert any(unit.extent == 8 for unit in kept)


def test_scopes_of_equal_ratio_are_ranked_apart() -> None:
    chosen = selector("mobilenet_v2", "global", 1, 0)
    first, second = [unit for unit in chosen.scores if unit.extent >= 8][:2]
    scores = {first: np.arange(first.extent) + 0.0, second: np.arange(second.extent) + 1000.0}
    own = {first: OwnRatio(0, 0.5), second: OwnRatio(1, 0.5)}
    kept = Selector(chosen.coupling, scores, "global", 1, own).by_ratio(0.0)
    assert {unit: len(indices) for unit, indices in kept.items()} == {
        unit: unit.extent - unit.extent // 2 for unit in (first, second)
    }
    together = Selector(chosen.coupling, scores, "global", 1, dict.fromkeys(own, OwnRatio(0, 0.5))).by_ratio(0.0)
    assert len(together[first]) < first.extent // 2
