"""The networks where pruners go wrong, through all that the benchmark asks: cut, compared, run, exported."""

from __future__ import annotations

from typing import Any

import pytest

import espalier
from benchmarks.prune_models import examine
from benchmarks.zoo.special import INPUTS, build
from espalier.ir import Graph


def pruned(name: str) -> tuple[Graph, Graph]:
    module, inputs, _ = build(name)
    graph = espalier.load(module, example_inputs=inputs)
    return graph, espalier.prune(graph, ratio=0.5).graph


def weights(graph: Graph, name: str) -> list[Any]:
    return [value for value in graph.constants() if value.name and value.name.startswith(name)]


@pytest.mark.parametrize("name", INPUTS)
def test_it_is_pruned_by_half_and_still_computes_what_zeros_do(name: str) -> None:
    record: dict[str, Any] = {}
    examine(f"special/{name}", record.update)
    assert record["stage"] == "done"
    assert record["precision"] == "f64" and record["hard_soft"] < 1e-12
    assert record["units"]["exact"] + record["units"]["approximate"] >= 1
    assert record["parameters_removed"] > 0.3


def test_a_gate_and_what_it_gates_lose_the_same_half() -> None:
    _, small = pruned("gated_linear")
    assert [value.shape for value in weights(small, "up.weight")] in ([(32, 12)], [(12, 32)])


def test_tied_embeddings_stay_tied_in_a_smaller_model() -> None:
    before, small = pruned("tied_embeddings")
    tables = weights(small, "table")
    assert tables and len({id(value.constant.source) for value in tables}) == 1
    assert {tuple(sorted(value.shape)) for value in tables} == {(12, 60)}
    sizes = [sum({id(v.constant.source): v.array.size for v in g.constants()}.values()) for g in (before, small)]
    assert sizes[1] < 0.6 * sizes[0]
