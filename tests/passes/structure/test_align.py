"""Two networks of one architecture are matched unit by unit; averages of matched ones are better."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir import Graph
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.passes.structure.align import align, average
from espalier.passes.structure.reindex import reindex
from tests.analysis.networks import NETWORKS, loaded
from tests.passes.structure.growing import CASES, apart, family


def shuffled(graph: Graph, seed: int) -> Graph:
    """The same function with the indices of every free unit in another order."""
    made, rng = clone(graph), np.random.default_rng(seed)
    coupling = couple(made)
    orders = {unit: rng.permutation(unit.extent) for unit in coupling.removable()}
    reindex(coupling, orders, "test")
    return made


def weights_apart(a: Graph, b: Graph) -> float:
    pairs = zip(a.constants(), b.constants(), strict=True)
    with np.errstate(invalid="ignore"):  # masks hold infinities
        return max(float(np.nanmax(np.abs(x.array - y.array))) for x, y in pairs if x.array.dtype.kind == "f")


@pytest.mark.parametrize("name", CASES)
def test_a_shuffled_copy_is_put_in_order_again(name: str) -> None:
    graph, inputs = family(name)
    other = shuffled(graph, 1)
    assert apart(graph, other, inputs) <= 1e-12
    found = align(graph, other)
    assert weights_apart(graph, found.graph) <= 1e-10
    assert found.likeness[1] == pytest.approx(1, abs=1e-9)
    assert apart(graph, average(graph, other), inputs) <= 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_alignment_keeps_the_function(name: str) -> None:
    """Of a network with other weights, too."""
    graph, inputs, module = loaded(name)
    torch.manual_seed(5)
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    other = espalier.load(changed, example_inputs=tuple(map(torch.from_numpy, inputs)))
    found = align(graph, other)
    assert apart(other, found.graph, inputs) <= 1e-10
    assert found.likeness[1] >= found.likeness[0] - 1e-12


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def points(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three spirals."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    radius = torch.rand(count, generator=generator)
    angle = 4 * radius + labels * 2 * torch.pi / 3 + 0.15 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels


def trained(seed: int) -> Graph:
    torch.manual_seed(seed)
    net = Net()
    x, y = points(1500, seed)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3, weight_decay=1e-4)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return espalier.load(net.eval(), example_inputs=(x[:500],))


def loss(graph: Graph) -> float:
    x, y = points(500, 99)
    (logits,) = execute(graph, [x.numpy()])
    return float(nn.functional.cross_entropy(torch.from_numpy(logits), y))


def test_matched_averages_of_trained_nets_are_better() -> None:
    matched, unmatched = [], []
    for pair in ((1, 2), (3, 4), (5, 6)):
        a, b = (trained(seed) for seed in pair)
        assert max(loss(a), loss(b)) < 0.35
        matched.append(loss(average(a, b)))
        unmatched.append(loss(average(a, b, matched=False)))
    assert all(m < u for m, u in zip(matched, unmatched, strict=True)), (matched, unmatched)


def test_other_architectures_are_refused() -> None:
    a, b = loaded("Residual")[0], loaded("Shuffle32")[0]
    with pytest.raises(InputError, match="not of one architecture"):
        align(a, b)
    with pytest.raises(InputError, match="weight=2"):
        average(a, a, weight=2)


def test_the_weight_of_the_average() -> None:
    graph, _, _ = loaded("Residual")
    other = shuffled(graph, 3)
    assert weights_apart(average(graph, other, weight=0, matched=False), graph) == 0
    assert weights_apart(average(graph, other, weight=1, matched=False), other) == 0


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _, _ = loaded("Residual")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    for act in (align, average):
        with pytest.raises(InputError, match=r"E205: alignment solves .* with scipy") as caught:
            act(graph, clone(graph))
        assert caught.value.hint == "pip install 'espalier[align]'"
