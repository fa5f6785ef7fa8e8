"""Graphs as torch modules: what they compute, what they learn, and how fast."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import espalier
from espalier.ir import Builder, Graph
from espalier.ir.constants import constant
from espalier.ir.execute import run
from espalier.ir.graph import constant_value
from espalier.ir.types import parse
from espalier.train.module import to_torch
from tests.analysis.networks import NETWORKS, example
from tests.train.networks import classifier, images, weights


def test_evaluation_is_execution() -> None:
    graph, x = classifier(), images(8)
    found = to_torch(graph)(torch.from_numpy(x))[0]
    np.testing.assert_allclose(found.detach().numpy(), run(graph, [x])[0], atol=1e-5)


def test_training_normalises_and_moves_as_torch_does() -> None:
    graph = Graph("norm")
    x = graph.add_input(parse("f32[n, 3, 4]"), "x")
    arrays = [np.random.default_rng(k).uniform(0.5, 1.5, 3).astype("f4") for k in range(4)]
    graph.set_outputs([Builder(graph).batch_norm(x, *arrays, momentum=0.9, epsilon=1e-3)])
    module, plain = to_torch(graph).train(), nn.BatchNorm1d(3, eps=1e-3, momentum=0.1)
    for name, array in zip(("weight", "bias", "running_mean", "running_var"), arrays, strict=True):
        getattr(plain, name).data.copy_(torch.from_numpy(array))
    given = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = plain(given)
    (expected,) = torch.autograd.grad(wanted.square().sum(), given)
    (found,) = module(given)
    (gradient,) = torch.autograd.grad(found.square().sum(), given)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient, expected)
    mean, variance = weights(module.write_back())[2:]
    np.testing.assert_allclose(mean, plain.running_mean, rtol=1e-5)
    spread = given.detach().numpy().var((0, 2))  # ONNX's is the population's, torch's the sample's
    np.testing.assert_allclose(variance, 0.9 * arrays[3] + 0.1 * spread, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3), (4, 3), (1, 3, 1)])
def test_one_number_for_each_channel(shape: tuple[int, ...]) -> None:
    graph = Graph("norm")
    x = graph.add_input(parse(f"f32[{', '.join(map(str, shape))}]"), "x")
    ones, zeros = np.ones(3, "f4"), np.zeros(3, "f4")
    graph.set_outputs([Builder(graph).batch_norm(x, ones, zeros, zeros, ones)])
    module = to_torch(graph).train()
    module(torch.ones(shape))
    assert all(np.isfinite(array).all() for array in weights(module.write_back()))


def shortcut() -> Graph:
    """Padding whose amounts a chain of integer nodes computes from constants."""
    graph = Graph("shortcut")
    x = graph.add_input(parse("f32[n, 2, 4]"), "x")
    b = Builder(graph)
    amounts = b.concat(b.mul(np.array([0, 1]), np.array([2, 1])), np.array([0, 0, 1, 0]), axis=0)
    weight = np.random.default_rng(0).standard_normal((3, 4, 1)).astype("f4")
    graph.set_outputs([b.conv(b.pad(x, amounts), weight)])
    return graph


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_training_in_bf16_gives_outputs_and_gradients_near_those_in_f32(name: str) -> None:
    module, inputs = example(name, torch.float32)
    trained = to_torch(espalier.load(module, example_inputs=inputs)).train()
    found = []
    for narrow in (None, torch.bfloat16):
        trained.narrow = narrow
        outputs = trained(*inputs)
        assert all(output.dtype == torch.float32 for output in outputs)
        parameters = dict(trained.named_parameters())
        gradients = torch.autograd.grad(
            sum(o.square().mean() for o in outputs), [*parameters.values()], allow_unused=True
        )
        found.append([*outputs, *(g for g in gradients if g is not None)])
    for wanted, near in zip(*found, strict=True):
        assert near.dtype == wanted.dtype
        assert float((near - wanted).norm()) <= 0.1 * float(wanted.norm()) + 1e-3
    with torch.no_grad():
        trained.eval()
        np.testing.assert_array_equal(trained(*inputs)[0].numpy(), trained(*inputs)[0].numpy())


def test_what_constants_say_is_computed_once() -> None:
    graph, x = shortcut(), images(2).reshape(-1)[:16].reshape(2, 2, 4)
    module, seen = to_torch(graph), []
    (found,) = module(torch.from_numpy(x), observe=lambda node, results: seen.append(node))
    np.testing.assert_allclose(found.detach().numpy(), run(graph, [x])[0], atol=1e-5)
    assert len(seen) == len(list(graph)) and set(seen) == set(graph)
    assert len(module._nodes) == 2
    assert len(module.state_dict()) == 4 and len(list(module.parameters())) == 1  # nothing computed is kept
    module.write_back()
    np.testing.assert_allclose(run(graph, [x])[0], found.detach().numpy(), atol=1e-5)


def test_selections_of_tied_weights_learn_as_one() -> None:
    source = constant(np.random.default_rng(0).standard_normal((6, 4)).astype("f4"))
    kept = source.take(1, [0, 2, 3])
    graph = Graph("tied")
    tokens = graph.add_input(parse("i64[n]"), "tokens")
    b = Builder(graph)
    embedded = b.gather(constant_value(kept), tokens, axis=0)
    graph.set_outputs([b.matmul(embedded, constant_value(kept.transpose((1, 0))))])
    module, x = to_torch(graph), np.array([0, 5, 2])
    (parameter,) = module.parameters()
    assert tuple(parameter.shape) == (6, 3)  # the selection is done once, not in each step
    np.testing.assert_allclose(module(torch.from_numpy(x))[0].detach().numpy(), run(graph, [x])[0], atol=1e-5)
    with torch.no_grad():
        parameter.mul_(2)
    before = run(graph, [x])[0]
    module.write_back()
    np.testing.assert_allclose(run(graph, [x])[0], 4 * before, rtol=1e-5)
    sources = {id(v.constant.source) for n in graph for v in n.operands if v is not None and v.constant is not None}
    assert len(sources) == 1


def test_statistics_behind_selections_move() -> None:
    held = constant(np.zeros(6, "f4")).take(0, [0, 2, 4])
    graph = Graph("pruned")
    x = graph.add_input(parse("f32[n, 3, 2]"), "x")
    b, ones, zeros = Builder(graph), np.ones(3, "f4"), np.zeros(3, "f4")
    graph.set_outputs([b.batch_norm(x, ones, zeros, constant_value(held), ones)])
    module = to_torch(graph).train()
    module(torch.full((2, 3, 2), 10.0))
    (norm,) = module.write_back()
    np.testing.assert_allclose(norm.operand(3).constant.array, 1.0, rtol=1e-5)


class Block(nn.Module):
    """Of ResNet-20 with option-A shortcuts."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(given, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made)
        self.conv2, self.norm2 = nn.Conv2d(made, made, 3, 1, 1, bias=False), nn.BatchNorm2d(made)
        self.stride, self.added = stride, (made - given) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return F.relu(x + y)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [16, *[16] * 3, *[32] * 3, *[64] * 3]
        blocks = [Block(a, b, 1 + (a < b)) for a, b in itertools.pairwise(widths)]
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.body, self.head = nn.Sequential(*blocks), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


def step_time(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """CPU-seconds of a forward and a backward pass."""
    start = time.process_time()
    output = module(x)
    F.cross_entropy(output[0] if isinstance(output, list) else output, y).backward()
    return time.process_time() - start


@pytest.mark.slow
def test_training_is_as_fast_as_a_plain_torch_module(real_data: Callable[[str], Path]) -> None:
    ours: Any = to_torch(espalier.load(real_data("models/akamaster_resnet20_cifar10.onnx"))).train()
    plain = ResNet20().train()
    x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
    ratios = [step_time(ours, x, y) / step_time(plain, x, y) for _ in range(6)][1:]
    assert np.median(ratios) <= 1.15, ratios
