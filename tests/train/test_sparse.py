"""Masks, penalties and gates in training loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier.analysis.coupling import couple
from espalier.cost.remaining import Remaining
from espalier.errors import InputError
from espalier.ir import Graph, structural_hash
from espalier.ir.execute import execute
from espalier.passes.structure.gates import prune_by_gates
from espalier.passes.structure.reindex import reindex
from espalier.train.hooks import Hook
from espalier.train.loops import Run
from espalier.train.module import to_torch
from espalier.train.recover import recover
from espalier.train.sparse import TEETH, GradualMasks, GroupPenalty, gate, gated
from tests.passes.structure.pruning import graph_of, images, net

TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
LABELLED = {"x": images().numpy(), "labels": TARGETS.numpy()}


def train(module: torch.nn.Module, steps: int, rate: float = 0.05, after=lambda: None, before=lambda: None) -> float:
    optimiser = torch.optim.SGD(module.parameters(), rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(images())[0], TARGETS)
        loss.backward()
        before()
        optimiser.step()
        after()
    return float(loss.detach())


def test_masks_tighten_along_the_schedule_and_hold() -> None:
    module = to_torch(graph_of(net(), images()))
    masks = GradualMasks(0.8, 8, every=2)
    masks.bind(module)
    shares = []

    def step() -> None:
        masks.step()
        shares.append(masks.ratio)
        for value in masks.axes:
            zeros = int((module.read(value) == 0).sum())
            assert zeros >= int(masks.ratio * module.read(value).numel())

    train(module, 12, after=step)
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 0.8 and len(set(shares)) == 5
    graph = module.write_back()
    sparse = [v for v in graph.constants() if v.array.ndim > 1]
    assert all(np.sum(v.array == 0) == int(0.8 * v.array.size) for v in sparse)


def test_masks_by_pattern() -> None:
    module = to_torch(graph_of(net(channels=8, features=8), images()))
    masks = GradualMasks(steps=1, pattern=(2, 4))
    masks.bind(module)
    train(module, 3, after=masks.step)
    found = {value.name: module.read(value).detach() for value in masks.axes}
    assert ((found["second.weight"] != 0).reshape(8, 2, 4, 9).sum(2) == 2).all()
    assert (found["first.weight"] != 0).all()  # 3 channels are no multiple of 4


def test_the_penalty_adds_its_definition_to_the_gradients() -> None:
    graph = graph_of(net(), images())
    module = to_torch(graph)
    penalty = GroupPenalty(0.01, base=16.0)
    penalty.bind(module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalty.term().backward()
    source = net()
    rows = [source.first.weight, source.first.bias, source.norm.weight, source.norm.bias]
    rows.append(source.second.weight.movedim(1, 0))
    squares = sum((w.detach() ** 2).reshape(6, -1).sum(1) for w in rows)
    s = squares.sqrt()
    gamma = 16.0 ** ((s.max() - s) / (s.max() - s.min()))
    values = {value.name: value for value in module.weights if value.constant is not None}
    gradient = module.parameter_of(values["first.weight"]).grad
    torch.testing.assert_close(gradient, 0.01 * gamma[:, None, None, None] * source.first.weight.detach())
    gradient = module.parameter_of(values["first.bias"]).grad
    torch.testing.assert_close(gradient, 0.01 * gamma * source.first.bias.detach())
    statistics = {"norm.running_mean", "norm.running_var"}
    assert all(module.parameter_of(values[name]) is None for name in statistics & values.keys())


def test_the_penalty_parts_the_weak_from_the_strong() -> None:
    graph = graph_of(net(), images())
    module = to_torch(graph)
    penalty = GroupPenalty(0.02, units=["first.weight.0"])
    penalty.bind(module)
    (unit,) = penalty.members
    before = penalty.norms(unit)
    recover(graph, None, LABELLED, steps=60, batch_size=6, hooks=[penalty])
    (unit,) = penalty.members  # of the module that was trained
    after = penalty.norms(unit)
    weakest, strongest = int(before.argmin()), int(before.argmax())
    assert after[weakest] / before[weakest] < 0.5 * after[strongest] / before[strongest]


def test_the_penalty_refuses_units_that_are_not_there() -> None:
    with pytest.raises(InputError, match="no unit is called 'third'"):
        GroupPenalty(units=["third"]).bind(to_torch(graph_of(net(), images())))


def test_a_gate_is_a_step_with_a_slope() -> None:
    w = torch.linspace(-2, 2, 101, dtype=torch.float64, requires_grad=True)
    opened = gate(w, 0.7)
    assert ((opened - (w > 0).double()).abs() <= 1 / TEETH).all()
    opened.sum().backward()
    torch.testing.assert_close(w.grad, torch.full_like(w, 0.7))


def test_removing_what_gates_closed_is_what_the_gates_did() -> None:
    graph = graph_of(net(), images())
    module = gated(graph, couple(graph))
    with torch.no_grad():
        module.gates[0][[1, 4]] = -0.5
        module.gates[1][0] = -0.5
        wanted = module(images())[0].numpy()
    kept = module.kept()
    assert kept["first.weight.0"].tolist() == [0, 2, 3, 5] and kept["second.weight.0"].tolist() == [1, 2, 3, 4]
    graph = module.write_back()
    coupling = couple(graph)
    by_name = {unit.name: unit for unit in coupling.units}
    reindex(coupling, {by_name[name]: indices for name, indices in kept.items()}, "gates")
    (found,) = execute(graph, [images().numpy()])
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)  # open gates are 1 to within 1e-5


def test_gates_learn_to_meet_a_target() -> None:
    graph = graph_of(net(), images())
    module = gated(graph, couple(graph))
    assert float(module.share().detach()) == pytest.approx(1, abs=1e-4)
    optimiser = torch.optim.SGD(module.parameters(), 0.05)
    for _ in range(80):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(images())[0], TARGETS) + 20 * module.penalty(0.6)
        loss.backward()
        optimiser.step()
    assert 0.4 < float(module.share().detach()) < 0.8
    assert any(len(module.kept()[unit.name]) < unit.extent for unit in module.units)


def test_gates_refuse_units_that_are_not_exact() -> None:
    graph = graph_of(net(), images())
    coupling = couple(graph)
    frozen = next(unit for unit in coupling.units if unit.verdict == "frozen")
    with pytest.raises(InputError, match="not be the same"):
        gated(graph, coupling, [frozen])


def test_gates_go_where_the_module_goes() -> None:
    """To a device without memory: what stayed behind could not be multiplied with what went."""
    graph = graph_of(net(), images())
    module = gated(graph, couple(graph))
    names = set(module.state_dict())
    module.to("meta")
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}
    for value in module.weights:
        assert module.read(value).device.type == "meta"
    assert module.penalty(0.5).device.type == "meta"
    assert not any("places" in name for name in names)  # what follows from the graph is not kept


class Stop(Exception):
    """A kill, for tests within one process."""


class StopAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def identity(self) -> dict[str, Any]:
        return {}

    def after_update(self, run: Run) -> None:
        if run.step == self.step:
            raise Stop


def zeros(graph: Graph) -> dict[str, float]:
    return {value.name: float((value.array == 0).mean()) for value in graph.constants() if value.array.ndim > 1}


@pytest.mark.parametrize(("sparsity", "share"), [(0.6, 0.6), ("0.25", 0.25), ("1:4", 0.75), ("2:4", 0.5)])
def test_recovered_models_are_as_sparse_as_asked_for(sparsity: float | str, share: float) -> None:
    graph = graph_of(net(channels=8, features=8), images())
    found = zeros(recover(graph, None, LABELLED, steps=24, batch_size=6, sparsity=sparsity))
    if isinstance(sparsity, str) and ":" in sparsity:
        assert found.pop("first.weight") == 0  # 3 channels are no multiple of 4
    for name, ratio in found.items():
        assert ratio == pytest.approx(share, abs=0.05), name


def test_zeros_are_kept_if_that_is_asked_for() -> None:
    graph = graph_of(net(), images())
    sparse = recover(graph, None, LABELLED, steps=1, batch_size=6, hooks=[GradualMasks(0.5, 1)])
    before = {v.name: v.array != 0 for v in sparse.constants() if v.array.ndim > 1}
    kept, free = (recover(sparse, None, LABELLED, steps=5, batch_size=6, sparsity=s) for s in ("keep", None))
    for value in kept.constants():
        if value.array.ndim > 1:
            np.testing.assert_array_equal(value.array != 0, before[value.name])
    assert max(zeros(free).values()) < 0.1 < min(zeros(kept).values())


@pytest.mark.parametrize("sparsity", ["0.6", "2:4", "keep"])
def test_masks_go_on_after_a_kill(sparsity: str, tmp_path: Path) -> None:
    graph = graph_of(net(channels=8, features=8), images())
    if sparsity == "keep":
        graph = recover(graph, None, LABELLED, steps=1, batch_size=6, sparsity=0.5)

    def once(folder: Path | None, stop: int = 0) -> Graph:
        hooks = [StopAt(stop)]
        return recover(
            graph, None, LABELLED, steps=21, batch_size=6, hooks=hooks, sparsity=sparsity, checkpoint=folder,
            every_steps=2,
        )  # fmt: skip

    whole = once(None)
    for stop in (3, 12, 20):
        with pytest.raises(Stop):
            once(tmp_path, stop)
    assert structural_hash(once(tmp_path)) == structural_hash(whole)
    with pytest.raises(InputError, match="E232"):
        recover(graph, None, LABELLED, steps=21, batch_size=6, hooks=[StopAt(0)], checkpoint=tmp_path)


@pytest.mark.parametrize("sparsity", ["much", 1.0, -0.1, "4:2", "nan"])
def test_other_sparsities_are_refused(sparsity: float | str) -> None:
    with pytest.raises(InputError, match="E201"):
        recover(graph_of(net(), images()), None, LABELLED, steps=2, batch_size=6, sparsity=sparsity)


def test_a_hook_serves_several_runs() -> None:
    graph, hook = graph_of(net(), images()), GradualMasks(0.5)
    first, second = (recover(graph, None, LABELLED, steps=8, batch_size=6, hooks=[hook]) for _ in range(2))
    assert structural_hash(first) == structural_hash(second)


def test_what_gates_close_while_a_model_recovers_is_removed(tmp_path: Path) -> None:
    graph = graph_of(net(), images())

    def once(**options: Any) -> Graph:
        return prune_by_gates(
            graph, None, LABELLED, target=0.5, strength=20, steps=60, batch_size=6, learning_rate=0.05, **options
        )

    small = once(checkpoint=tmp_path, every_steps=7)
    assert 0.2 < Remaining(couple(small)).parameters / Remaining(couple(graph)).parameters < 0.8
    assert [v.shape for v in small.inputs] == [v.shape for v in graph.inputs]
    assert structural_hash(once(checkpoint=tmp_path)) == structural_hash(once()) == structural_hash(small)
    only = once(only=["second.*"])
    weights = {value.name: value.shape for value in only.constants()}
    assert weights["first.weight"][0] == 6 and weights["second.weight"][0] < 5
    for bad, code in (({"only": ["third"]}, "E202"), ({"target": 0.0}, "E201")):
        with pytest.raises(InputError, match=code):
            prune_by_gates(graph, None, LABELLED, **{"target": 0.5, "steps": 1, **bad})
