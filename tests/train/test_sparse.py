"""Masks, penalties and gates in training loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir.execute import execute
from espalier.passes.structure.reindex import reindex
from espalier.train.module import to_torch
from espalier.train.sparse import TEETH, GradualMasks, GroupPenalty, gate, gated
from tests.passes.structure.pruning import graph_of, images, net

TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


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
    masks = GradualMasks(module, final=0.8, steps=8, every=2)
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
    masks = GradualMasks(module, pattern=(2, 4))
    train(module, 3, after=masks.step)
    found = {value.name: module.read(value).detach() for value in masks.axes}
    assert ((found["second.weight"] != 0).reshape(8, 2, 4, 9).sum(2) == 2).all()
    assert (found["first.weight"] != 0).all()  # 3 channels are no multiple of 4


def test_the_penalty_adds_its_definition_to_the_gradients() -> None:
    graph = graph_of(net(), images())
    coupling = couple(graph)
    module = to_torch(graph)
    penalty = GroupPenalty(module, coupling, strength=0.01, base=16.0)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalty.add()
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
    coupling = couple(graph)
    unit = next(u for u in coupling.removable() if u.name == "first.weight.0")
    module = to_torch(graph)
    penalty = GroupPenalty(module, coupling, strength=0.02)
    before = penalty.norms(unit)
    train(module, 60, before=penalty.add)
    after = penalty.norms(unit)
    weakest, strongest = int(before.argmin()), int(before.argmax())
    assert after[weakest] / before[weakest] < 0.5 * after[strongest] / before[strongest]


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
