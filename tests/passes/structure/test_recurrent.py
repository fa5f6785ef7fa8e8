"""Stacked recurrent layers have a hidden unit each: they are pruned and widened one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from benchmarks.cutting import hard, hard_is_soft
from espalier.analysis.coupling import couple
from espalier.backends.onnx import save
from espalier.cli import main
from espalier.ir import Graph
from espalier.ir.execute import execute
from tests.passes.structure.growing import apart

X = np.random.default_rng(0).standard_normal((3, 5, 4))


class Stack(nn.Module):
    """Two or more layers, whose sequence or final states are classified."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 2, finals: bool = False, **options: bool) -> None:
        super().__init__()
        self.cell = kind(4, 6, num_layers=layers, batch_first=True, **options)
        self.head = nn.Linear(12 if options.get("bidirectional") else 6, 3)
        self.finals = finals

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, states = self.cell(x)
        return self.head((states[0] if isinstance(states, tuple) else states)[-1] if self.finals else y.mean(1))


def stacked(kind: type[nn.RNNBase], dynamic: bool = False, **options: object) -> tuple[Stack, Graph]:
    torch.manual_seed(0)
    module = Stack(kind, **options).double().eval()  # type: ignore[arg-type]
    shapes = ({0: torch.export.Dim("n", min=1)},) if dynamic else None
    return module, espalier.load(module, example_inputs=(torch.from_numpy(X),), dynamic_shapes=shapes)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{"dynamic": True}, {"layers": 3}, {"bidirectional": True}, {"bias": False}])
def test_each_layer_is_pruned_alone(kind: type[nn.RNNBase], options: dict[str, object]) -> None:
    module, graph = stacked(kind, **options)
    with torch.no_grad():
        np.testing.assert_allclose(execute(graph, [X])[0], module(torch.from_numpy(X)).numpy(), rtol=1e-10)
    hidden = [unit for unit in couple(graph).removable() if unit.extent == 6]
    assert len(hidden) == module.cell.num_layers and all(unit.verdict == "exact" for unit in hidden)
    for k, unit in enumerate(hidden):
        cut = {unit.name: [k, 4]}
        assert hard_is_soft(graph, [X], cut) <= 1e-12
        assert [u.extent for u in couple(hard(graph, cut)).removable() if u.extent in (4, 6)].count(4) == 1
    assert hard_is_soft(graph, [X], {unit.name: [k] for k, unit in enumerate(hidden)}) <= 1e-12


def test_the_pass_takes_another_share_of_each_layer_and_growth_another_factor() -> None:
    graph = espalier.prune(stacked(nn.LSTM)[1], ratio=0.0).graph  # cleaned, so that names stay
    first, second = (unit.name for unit in couple(graph).removable())
    small = espalier.prune(graph, ratios={first: 0.5, second: 0.17}).graph
    assert [unit.extent for unit in couple(small).removable()] == [3, 5]
    assert execute(small, [X])[0].shape == (3, 3)
    large = espalier.grow(graph, to=9, only=[second]).graph
    assert [unit.extent for unit in couple(large).removable()] == [6, 9]
    assert apart(graph, large, [X]) <= 1e-12


def test_units_are_listed_by_the_names_that_pruning_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(stacked(nn.LSTM)[1], tmp_path / "lstm.onnx")
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "lstm.onnx"), "--units", "--json"])
    units = [row for row in json.loads(capsys.readouterr().out)["units"] if row["verdict"] == "exact"]
    assert [row["extent"] for row in units] == [6, 6]
    for row in units:
        small = espalier.prune(tmp_path / "lstm.onnx", ratio=0.5, only=[row["name"]])
        assert [cut["unit"] for cut in small.details["cut"]] == [row["name"]]


def test_final_states_that_are_read_are_there() -> None:
    module, graph = stacked(nn.LSTM, finals=True)
    with torch.no_grad():
        np.testing.assert_allclose(execute(graph, [X])[0], module(torch.from_numpy(X)).numpy(), rtol=1e-10)


def test_states_that_are_given_stay_inputs() -> None:
    cell = nn.LSTM(4, 6, num_layers=2, batch_first=True).double().eval()
    states = tuple(torch.randn(2, 3, 6).double() for _ in range(2))
    graph = espalier.load(cell, example_inputs=(torch.from_numpy(X), states))
    found = execute(graph, [X, *(state.numpy() for state in states)])
    with torch.no_grad():
        y, (h, c) = cell(torch.from_numpy(X), states)
    for a, b in zip(found, (y, h, c), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-10)
