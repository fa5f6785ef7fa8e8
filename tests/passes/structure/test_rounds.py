"""Rounds of pruning: together as much as one prune, whatever is rounded on the way, with training between them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import espalier
from espalier.errors import BudgetError, InputError
from espalier.ir import Graph, structural_hash
from espalier.passes.manager import PassManager
from espalier.passes.structure.prune import Prune
from espalier.passes.structure.rounds import in_rounds
from tests.passes.structure.pruning import graph_of, images, net

DATA = {"x": images(12).numpy(), "labels": np.arange(12) % 4}


def extents(graph: Graph) -> dict[str, int]:
    """Of all axes of weights, also of those with one index, which are no units."""
    return {f"{value.name}.{axis}": extent for value in graph.constants() for axis, extent in enumerate(value.shape)}


def removed(options: dict[str, Any], count: int | None, **sizes: int) -> list[dict[str, int]]:
    """The extents after each round; without a count, after one prune."""
    graph = graph_of(net(**sizes), images())
    passes = [Prune(**options)] if count is None else in_rounds(Prune(**options), count)
    found = []
    for each in passes:
        PassManager([each]).run(graph)
        found.append(extents(graph))
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.5}, {"ratio": 0.83}, {"ratio": 0.4, "scope": "global"}, {"ratio": 0.6, "scope": "isomorphic"},
        {"ratio": 0.3, "ratios": "first*:0.7"}, {"macs": 0.6}, {"params": 0.5}, {"macs": 0.5, "scope": "global"},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)  # fmt: skip
def test_rounds_end_where_one_prune_does(options: dict[str, Any], count: int) -> None:
    for sizes in ({"channels": 13, "features": 11}, {"channels": 6, "features": 5}):
        (once,) = removed(options, None, **sizes)
        rounds = removed(options, count, **sizes)
        assert len(rounds) == count
        for before, after in itertools.pairwise(rounds):
            assert all(after[name] <= before[name] for name in after)
        if "scope" in options:  # indices are ranked anew after each round
            ends = [found["first.weight.0"] + found["second.weight.0"] for found in (once, rounds[-1])]
            assert abs(ends[0] - ends[1]) <= (2 if "macs" in options else 0)
        elif "ratio" in options:
            assert rounds[-1] == once
        else:
            assert all(abs(rounds[-1][name] - extent) <= 1 for name, extent in once.items())
        if count == 7 and options == {"ratio": 0.83}:
            left = [now["first.weight.0"] for now in rounds]
            assert sizes["channels"] - left[0] > left[2] - left[3] >= 0  # more in the early ones


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(BudgetError):
        removed({"params": 0.995}, 3)


@pytest.mark.parametrize("recovery", [{"steps": 7}, {"epochs": 3.0}])
def test_rounds_train_in_between(recovery: dict[str, Any], tmp_path: Path) -> None:
    graph = graph_of(net(), images())

    def once(**more: Any) -> Any:
        how = {**recovery, "batch_size": 6, "progress": False, **more}
        return espalier.prune(graph, ratio=0.5, rounds=3, data=DATA, recovery=how)

    found, plain = once(checkpoint=tmp_path), espalier.prune(graph, ratio=0.5)
    assert extents(found.graph) == extents(plain.graph)
    assert structural_hash(once(checkpoint=tmp_path).graph) == structural_hash(found.graph)
    assert structural_hash(once().graph) == structural_hash(found.graph) != structural_hash(plain.graph)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_1", "round_2", "round_3"]
    told = found.to_json()
    assert told["macs"] == plain.to_json()["macs"] and told["cut"] == plain.to_json()["cut"]
    assert [change.rewrites for change in found.changes] == [1, 1, 1] and len(told["passes"]) == 3
    (key,) = recovery
    assert told["recovery"][key] == recovery[key] and found.score is not None
    summary = "\n".join(found.summary())
    assert summary.count("MACs") == 1 and summary.count("cut first.weight.0: 6 → 3") == 1


def test_sparsity_grows_in_the_last_round() -> None:
    how = {"steps": 9, "batch_size": 6, "sparsity": 0.5, "progress": False}
    found = espalier.prune(graph_of(net(), images()), ratio=0.3, rounds=3, data=DATA, recovery=how).graph
    for value in found.constants():
        if value.array.ndim > 1:
            assert (value.array == 0).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("options", [{"rounds": 2}, {"rounds": 0, "recovery": {"steps": 2}}])
def test_rounds_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="E201"):
        espalier.prune(graph_of(net(), images()), ratio=0.5, data=DATA, **options)
