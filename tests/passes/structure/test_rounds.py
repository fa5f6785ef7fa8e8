"""Rounds of pruning: together as much as one prune, whatever is rounded on the way, with training between them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import BudgetError, InputError
from espalier.ir import Graph, structural_hash
from espalier.ir.clone import clone
from espalier.passes.manager import PassManager
from espalier.passes.structure.prune import Prune
from espalier.passes.structure.rounds import PruneInRounds
from espalier.train.hooks import Hook
from espalier.train.loops import Run, Settings
from tests.passes.structure.pruning import graph_of, images, net

DATA = {"x": images(12).numpy(), "labels": np.arange(12) % 4}


def extents(graph: Graph) -> dict[str, int]:
    """Of all axes of weights, also of those with one index, which are no units."""
    return {f"{value.name}.{axis}": extent for value in graph.constants() for axis, extent in enumerate(value.shape)}


class Attention(nn.Module):
    """Heads that are a factor of the axes of three weights, and of a fourth that sums over them."""

    def __init__(self, heads: int = 3, size: int = 7) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.q, self.k, self.v = (nn.Linear(6, heads * size) for _ in range(3))
        self.out = nn.Linear(heads * size, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        found = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(found.transpose(1, 2).flatten(2)).mean(1)


def wide() -> Graph:
    return graph_of(net(channels=13, features=11), images())


def few() -> Graph:
    return graph_of(net(channels=6, features=5), images())


def attention() -> Graph:
    torch.manual_seed(0)
    return graph_of(Attention().eval(), torch.randn(4, 5, 6))


def untrained(graph: Graph, options: dict[str, Any], count: int) -> tuple[list[dict[str, int]], dict[str, Any]]:
    """The extents after each round, and what is said in the end."""
    found: list[dict[str, int]] = []

    def train(graph: Graph, original: Graph, number: int) -> Graph:
        assert number == len(found)
        found.append(extents(graph))
        return clone(graph)

    report = PassManager([PruneInRounds(Prune(**options), count, train)]).run(graph)
    return found, report.passes[-1].details


def indices(details: dict[str, Any]) -> int:
    """How many are left of all units that could lose some."""
    return sum(row["kept"] for row in details["cut"]) + sum(row["extent"] for row in details["whole"])


def at_once(graph: Graph, options: dict[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    report = PassManager([Prune(**options)]).run(graph)
    return extents(graph), report.passes[-1].details


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.5}, {"ratio": 0.83}, {"ratio": 0.4, "scope": "global"}, {"ratio": 0.6, "scope": "isomorphic"},
        {"ratio": 0.3, "ratios": "*.0:0.7"}, {"macs": 0.6}, {"params": 0.5}, {"macs": 0.5, "scope": "global"},
        {"ratio": 0.95}, {"ratio": 0.9, "scope": "global"},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)  # fmt: skip
@pytest.mark.parametrize("make", [wide, few, attention])
def test_rounds_end_where_one_prune_does(make: Any, options: dict[str, Any], count: int) -> None:
    once, said = at_once(make(), options)
    before = extents(make())
    rounds, told = untrained(make(), options, count)
    assert len(rounds) == count
    for now, later in itertools.pairwise([before, *rounds]):
        assert all(later[name] <= now[name] for name in later)
    if "scope" in options and "ratio" in options:  # indices are ranked anew after each round
        assert indices(told) == indices(said)
    elif "ratio" in options:
        assert rounds[-1] == once
        assert told["macs"] == said["macs"]
        assert [row["kept"] for row in told["cut"]] == [row["kept"] for row in said["cut"]]
    else:
        kind = "macs" if "macs" in options else "parameters"
        wanted = options.get("macs", options.get("params"))
        assert wanted - 1e-9 <= told[kind]["removed"] <= wanted + 0.2
    names = [row["unit"] for row in told["cut"] + told["whole"]]
    assert sorted(names) == sorted(row["unit"] for row in said["cut"] + said["whole"])


def test_most_goes_in_the_early_rounds() -> None:
    graph = graph_of(net(channels=32), images())
    left = [32, *(now["first.weight.0"] for now in untrained(graph, {"ratio": 0.75}, 6)[0])]
    gone = [a - b for a, b in itertools.pairwise(left)]
    assert sum(gone) == 24 and gone[0] > gone[2] > gone[4]


@pytest.mark.parametrize(
    "options", [{"only": "first.weight.0"}, {"ignore": "second*"}, {"ratios": "first*:0.9"}, {}], ids=str
)
def test_units_that_are_used_up_are_no_reason_to_stop(options: dict[str, Any]) -> None:
    graph = graph_of(net(channels=4, features=3), images())
    found, told = untrained(graph, {"ratio": 0.9, **options}, 5)
    assert found[-1]["first.weight.0"] == 1
    (row,) = (row for row in told["cut"] if row["unit"] == "first.weight.0")
    assert (row["extent"], row["kept"]) == (4, 1)


def test_a_target_out_of_reach_is_refused_before_anything_is_trained() -> None:
    graph = graph_of(net(), images())
    with pytest.raises(BudgetError, match=r"not 99\.5%"):
        untrained(graph, {"params": 0.995}, 3)
    assert structural_hash(graph) == structural_hash(graph_of(net(), images()))


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
    assert told["passes"] == plain.to_json()["passes"] and told["rounds"] == 3 == told["recovery"]["rounds"]
    (key,) = recovery
    assert told["recovery"][key] == recovery[key] and found.score is not None
    summary = "\n".join(found.summary())
    assert summary.count("MACs") == 1 and summary.count("cut first.weight.0: 6 → 3") == 1


def test_data_that_can_be_read_once_serve_all_rounds() -> None:
    batches = ((DATA["x"][k : k + 4], DATA["labels"][k : k + 4]) for k in (0, 4, 8))
    how = {"steps": 6, "batch_size": 4, "train_data": batches, "progress": False}
    found = espalier.prune(graph_of(net(), images()), ratio=0.5, rounds=3, recovery=how)
    assert found.score is None and found.recovery == {
        "epochs": None, "steps": 6, "by": "labels", "rounds": 3,
    }  # fmt: skip


def test_sparsity_grows_in_the_last_round() -> None:
    shares: list[float] = []

    def watch(run: Run) -> None:
        if run.step == run.total:
            held = [p for p in run.module.parameters() if p.ndim > 1]
            shares.append(float(sum((p == 0).sum() for p in held) / sum(p.numel() for p in held)))

    class After(Hook):  # hooks come before what sparsity stands for
        def after_update(self, run: Run) -> None:
            watch(run)

    how = {"steps": 9, "batch_size": 6, "sparsity": 0.5, "progress": False, "hooks": [After()]}
    found = espalier.prune(graph_of(net(), images()), ratio=0.3, rounds=3, data=DATA, recovery=how).graph
    assert max(shares[:2]) < 0.1
    for value in found.constants():
        if value.array.ndim > 1:
            assert (value.array == 0).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "length", [{"steps": 12}, {"epochs": 2.0}, {"settings": Settings(steps=12, batch_size=4)}], ids=str
)
def test_rounds_share_the_steps_and_see_other_samples(length: dict[str, Any]) -> None:
    seen: list[bytes] = []

    class Spy:
        def __call__(self, inputs: Any, draw: np.random.Generator) -> Any:
            seen.append(inputs[0].tobytes())
            return inputs

    x = images(24, seed=5).numpy()
    data = {"x": x, "labels": np.arange(24) % 4}
    size = {} if "settings" in length else {"batch_size": 4}
    how = {**length, **size, "augment": Spy(), "progress": False, "train_data": None}
    found = espalier.prune(graph_of(net(), images()), ratio=0.5, rounds=3, data=data, recovery=how)
    assert len(seen) == 12  # six batches an epoch
    assert len(set(seen)) == 12
    assert "trained by labels" in "\n".join(found.summary())


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 2}, {"rounds": 0, "recovery": {"steps": 2}}, {"rounds": 2.5, "recovery": {"steps": 5}},
        {"rounds": 3, "recovery": {"steps": 2}},
        {"rounds": 2, "recovery": {"epochs": 0.01}}, {"rounds": 2, "recovery": {}},
        {"rounds": 2, "recovery": {"steps": 4, "wrong": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_rounds_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="E201"):
        espalier.prune(graph_of(net(), images()), ratio=0.5, data=DATA, **options)
