"""Mixtures of templates are the weights that they stand for, train, fold, and grow two networks into one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from benchmarks.cutting import difference
from espalier.errors import InputError, UnsupportedError
from espalier.ir import Graph, verify
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.passes.base import Context, parse_spec
from espalier.passes.structure.mixture import Mixture, grow_mixture, mixes, orthogonal
from espalier.train.module import to_torch
from tests.passes.structure.growing import apart, family, size


class Residual(nn.Module):
    """Convolutions with norms, a depthwise one, a sum and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last, self.head = nn.Conv2d(14, 10, 1), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        y = self.a(x).relu()
        x = (x + self.b(y)).relu()
        z = self.last(torch.cat([self.deep(x).relu(), y], 1)).relu()
        return self.head(z.mean((2, 3)))


class Attention(nn.Module):
    """Heads stand for themselves, so that the two halves have their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out, self.head = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        q, k, v = (f(x).unflatten(2, (3, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(((q @ k.transpose(2, 3) * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.head(x.relu())


SHAPES = {Residual: (2, 3, 6, 6), Attention: (2, 7, 5)}


def member(kind: type[nn.Module], seed: int) -> tuple[Graph, np.ndarray]:
    torch.manual_seed(seed)
    module = kind().double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    x = torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(7)).double()
    return espalier.load(module, example_inputs=(x,)), x.numpy()


def mixed(graph: Graph, **options: int) -> Graph:
    made = clone(graph)
    assert Mixture(**options).run(made, Context()) >= 1
    verify(made, "types")
    return made


@pytest.mark.parametrize("name", ["resnet_basic", "vit", "lstm_bidirectional"])
def test_mixtures_are_the_weights(name: str) -> None:
    graph, inputs = family(name)
    made = mixed(graph)
    assert apart(graph, made, inputs) <= 1e-12
    assert size(made) > size(graph)
    folded = clone(made)
    parse_spec("fold_constants").run(folded, Context())
    assert mixes(folded) == []
    plain = clone(graph)  # what the model itself computes from constants is folded, too
    parse_spec("fold_constants").run(plain, Context())
    assert size(folded) == size(plain)
    assert apart(graph, folded, inputs) <= 1e-12


@pytest.mark.parametrize("kind", [Residual, Attention])
def test_without_new_coefficients_it_is_the_ensemble(kind: type[nn.Module]) -> None:
    (a, x), (b, _) = member(kind, 1), member(kind, 2)
    grown = grow_mixture(mixed(a, seed=1), mixed(b, seed=2), scale=0)
    verify(grown, "types")
    wanted = [(p + q) / 2 for p, q in zip(execute(a, [x]), execute(b, [x]), strict=True)]
    assert difference(execute(grown, [x]), wanted) <= 1e-12
    other = grow_mixture(mixed(a, seed=1), mixed(b, seed=2))
    assert difference(execute(other, [x]), wanted) > 1e-3
    assert len(mixes(grown)) > len(mixes(mixed(a)))


def test_new_coefficients_are_orthogonal_to_all_before() -> None:
    (a, _), (b, _) = member(Residual, 1), member(Residual, 2)
    one, two = mixed(a, seed=1, templates=5), mixed(b, seed=2, templates=5)
    grown = grow_mixture(one, two)
    held = {value.name: value.array for value in grown.constants()}
    checked = 0
    for m, n in zip(mixes(one), mixes(two), strict=True):
        name = m.weight.name
        if f"{name}.coefficients.2" not in held:
            continue
        third, fourth = (held[f"{name}.coefficients.{k}"] for k in (2, 3))
        vectors = np.array([m.coefficients.array, n.coefficients.array, third, fourth])
        gram = vectors @ vectors.T
        assert np.abs(gram[2, [0, 1, 3]]).max() < 1e-12
        assert np.abs(gram[3, :3]).max() < 1e-12
        assert np.linalg.norm(third) == pytest.approx(1)
        checked += 1
    assert checked >= 3


def test_too_few_templates_are_refused() -> None:
    (a, _), (b, _) = member(Residual, 1), member(Residual, 2)
    with pytest.raises(UnsupportedError, match=r"3 templates.*orthogonal"):
        grow_mixture(mixed(a, templates=3), mixed(b, templates=3))
    with pytest.raises(UnsupportedError, match="no coefficients orthogonal"):
        orthogonal([np.array([1.0, 2.0]), np.array([0.0, 1.0])])


def test_statistics_over_all_channels_are_refused() -> None:
    graph = mixed(family("vit")[0])
    with pytest.raises(UnsupportedError, match="layer_norm computes statistics"):
        grow_mixture(graph, graph)


def test_others_are_refused() -> None:
    (a, _), (b, _) = member(Residual, 1), member(Attention, 2)
    with pytest.raises(UnsupportedError, match="no weight is a mixture"):
        grow_mixture(a, a)
    with pytest.raises(InputError, match="not of one architecture"):
        grow_mixture(mixed(a), mixed(b))
    with pytest.raises(InputError, match="templates=0"):
        Mixture(templates=0)
    with pytest.raises(InputError, match="scale"):
        grow_mixture(mixed(a), mixed(a), scale=float("nan"))


def test_all_parts_learn_and_fold_to_one_weight() -> None:
    (a, x), (b, _) = member(Residual, 1), member(Residual, 2)
    grown = grow_mixture(mixed(a, seed=1), mixed(b, seed=2), scale=0.5)
    module = to_torch(grown)
    optimizer = torch.optim.SGD(module.parameters(), 1e-2)
    first = None
    for _ in range(5):
        optimizer.zero_grad()
        loss = (module(torch.from_numpy(x))[0] - 1).square().mean()
        first = first or loss.item()
        loss.backward()
        assert all(p.grad is not None for n, p in module.named_parameters())
        optimizer.step()
    assert loss.item() < first
    trained = module.write_back()
    folded = clone(trained)
    parse_spec("fold_constants").run(folded, Context())
    assert difference(execute(folded, [x]), execute(trained, [x])) <= 1e-12
    shapes = {value.name: value.shape for value in folded.constants()}
    assert shapes["stem.weight"] == (16, 3, 3, 3)
    assert shapes["a.weight"] == (12, 16, 3, 3)
    assert mixes(folded) == []
