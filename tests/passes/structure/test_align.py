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
from espalier.cost.remaining import Remaining
from espalier.errors import InputError
from espalier.ir import Graph, Value
from espalier.ir.clone import clone
from espalier.ir.constants import constant
from espalier.ir.execute import execute
from espalier.passes.structure.align import align, average
from espalier.passes.structure.reindex import reindex, replace_here
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


def test_averages_of_tied_networks_are_tied() -> None:
    graph, inputs, _ = loaded("TiedEmbedding")
    made = average(graph, shuffled(graph, 3), matched=False)
    for found, other in ((made, shuffled(graph, 3)), (average(graph, graph), graph)):
        a, b = (value.constant for value in tied(found))
        assert a is not None and b is not None and a.source is b.source
        for value, mine, theirs in zip(tied(found), tied(graph), tied(other), strict=True):
            assert np.allclose(value.array, (mine.array + theirs.array) / 2)
    assert Remaining(couple(made)).parameters == Remaining(couple(graph)).parameters
    assert np.isfinite(execute(made, inputs)[0]).all()


def test_partners_that_are_not_tied_are_mixed_each_for_itself() -> None:
    graph = loaded("TiedEmbedding")[0]
    other = clone(graph)
    last = tied(other)[1]
    replace_here(other, last, constant(last.array + 1))
    made = average(graph, other, matched=False)
    first, second = (value.array - mine.array for value, mine in zip(tied(made), tied(graph), strict=True))
    assert np.allclose(first, 0) and np.allclose(second, 0.5)


def tied(graph: Graph) -> list[Value]:
    """The embedding, and what reads it again."""
    return [value for value in graph.constants() if 11 in value.array.shape]


def test_a_network_is_wholly_like_itself_whatever_is_zero() -> None:
    net = Net()
    nn.init.zeros_(net.a.bias)
    nn.init.zeros_(net.b.bias)
    graph = espalier.load(net.eval(), example_inputs=(torch.randn(5, 2),))
    assert align(graph, clone(graph)).likeness == pytest.approx((1, 1))


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _, _ = loaded("Residual")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    for act in (align, average):
        with pytest.raises(InputError, match=r"E205: alignment solves .* with scipy") as caught:
            act(graph, clone(graph))
        assert caught.value.hint == "pip install 'espalier[align]'"
