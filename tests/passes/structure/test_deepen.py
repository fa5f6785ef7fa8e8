"""Deepening keeps what a graph computes, and what it inserts can learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import espalier
from benchmarks.cutting import difference
from benchmarks.zoo.classic import FAMILIES
from espalier.analysis.coupling import couple
from espalier.backends.onnx import to_model
from espalier.errors import EspalierError, UnsupportedError
from espalier.ir import Builder, Graph, structural_hash, verify
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.ir.types import parse as type_of
from espalier.passes.base import Context, parse_spec
from espalier.passes.structure.deepen import Deepen, spots
from espalier.train.data import Data
from espalier.train.module import to_torch
from tests.passes.structure.growing import CASES, apart, family

WITHOUT = {
    "lstm", "lstm_bidirectional", "gru", "gru_bidirectional", "graph_attention", "graph_attention_edges", "hopfield",
    "complex_mask", "complex_mask_wave",
}  # fmt: skip
"""Their nonlinear functions follow no convolution or linear layer, or feed only further elementwise ones."""


def deepened(graph: Graph, data: object = None, **options: object) -> tuple[Graph, int]:
    grown = clone(graph)
    count = Deepen(**options).run(grown, Context(data=data))
    verify(grown, "types")
    return grown, count


@pytest.mark.parametrize("name", CASES)
def test_families_compute_the_same(name: str) -> None:
    graph, inputs = family(name)
    if name in WITHOUT:
        with pytest.raises(UnsupportedError, match="no activation follows a layer"):
            deepened(graph, count=0)
        return
    for options in ({"count": 0}, {"count": 0, "kind": "residual"}, {"count": 2, "kernel": 1}):
        grown, count = deepened(graph, **options)
        assert count == len(list(spots(couple(graph)))) or options.get("count") == 2
        assert len(grown) > len(graph)
        assert apart(graph, grown, inputs) <= 1e-12


class Net(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 6, 3), activation
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def net(activation: nn.Module) -> tuple[Graph, np.ndarray]:
    torch.manual_seed(0)
    module, x = Net(activation), torch.randn(16, 3, 9, 9)
    for _ in range(200):
        module(x)  # gives the norm its statistics
    return espalier.load(module.eval().double(), example_inputs=(x.double(),)), x.double().numpy()


def names(graph: Graph) -> list[str]:
    return [node.op.name for node in graph]


def test_identity_after_relu_and_residual_after_others() -> None:
    graph, x = net(nn.ReLU())
    grown, count = deepened(graph, count=0)
    assert count == 2
    assert names(grown).count("conv") == 4
    assert names(grown).count("batch_norm") == 2  # the second activation has none before it
    assert names(grown).count("relu") == 4
    for activation in (nn.GELU(), nn.SiLU(), nn.Hardswish()):
        graph, x = net(activation)
        grown, count = deepened(graph, count=0)
        assert apart(graph, grown, [x]) <= 1e-12
        assert names(grown).count("conv") == 2 + 2 * count
        with pytest.raises(UnsupportedError, match="no activation follows"):
            deepened(graph, kind="identity")


@pytest.mark.parametrize("given", [True, False])
def test_norms_hold_the_statistics_of_what_they_see(given: bool) -> None:
    """So that training, which normalises by the batch, starts from the same function too."""
    graph, x = net(nn.ReLU())
    data = Data({graph.inputs[0].name: x}, tuple(graph.inputs)) if given else None
    grown, _ = deepened(graph, data, count=0)
    inner: list[np.ndarray] = []
    execute(graph, [x], observe=lambda node, results: inner.append(results[0]) if node.op.name == "relu" else None)
    (mean,) = [v.array for v in grown.constants() if v.name.endswith("deeper.norm.running_mean")]
    (variance,) = [v.array for v in grown.constants() if v.name.endswith("deeper.norm.running_var")]
    tolerance = 1e-12 if given else 0.15
    np.testing.assert_allclose(mean, inner[0].mean((0, 2, 3)), rtol=tolerance)
    np.testing.assert_allclose(variance, inner[0].var((0, 2, 3)), rtol=2 * tolerance)


def test_what_is_inserted_can_learn() -> None:
    for activation in (nn.ReLU(), nn.GELU()):
        graph, x = net(activation)
        grown, _ = deepened(graph, count=0)
        module = to_torch(grown)
        module(torch.from_numpy(x))[0].square().sum().backward()
        fresh = [
            v for v in module.weights if ".deeper" in v.name and v.name.endswith("weight") and "norm" not in v.name
        ]
        last = [v for v in fresh if ".0.weight" not in v.name]
        assert len(last) == 2
        assert all(module.parameter_of(v).grad.abs().max() > 0 for v in last)


def test_a_chosen_sum_gets_a_normalised_body() -> None:
    graph, inputs = family("vit")
    sums = [s for s in spots(couple(graph), all_nodes=True) if s.node.op.name == "add"]
    name = next(s.value.name for s in sums if any("layer_norm" in user.op.name for user in s.value.users))
    grown, count = deepened(graph, after=name)
    assert count == 1
    assert names(grown).count("layer_norm") == names(graph).count("layer_norm") + 1
    assert apart(graph, grown, inputs) <= 1e-12
    with pytest.raises(UnsupportedError, match="change the outputs"):
        deepened(graph, after=name, kind="identity")


def test_deeper_nets_run_in_onnxruntime(tmp_path: Path) -> None:
    for name in ("resnet_basic", "vit"):
        module, inputs, _ = FAMILIES[name]()
        graph = espalier.load(module.eval(), example_inputs=inputs)
        grown, _ = deepened(graph, count=0)
        session = onnxruntime.InferenceSession(to_model(grown).SerializeToString(), providers=["CPUExecutionProvider"])
        feeds = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
        assert difference(session.run(None, feeds), execute(graph, [x.numpy() for x in inputs])) < 1e-5


def test_the_seed_decides_and_deepening_again_works() -> None:
    graph, x = net(nn.GELU())
    found = [structural_hash(deepened(graph, count=0, seed=seed)[0]) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    twice = deepened(deepened(graph, count=0)[0], count=0)[0]
    assert apart(graph, twice, [x]) <= 1e-12


def test_all_that_are_named_are_deepened_unless_a_count_is_given() -> None:
    graph, _ = net(nn.ReLU())
    places = [spot.value.name for spot in spots(couple(graph))]
    assert len(places) == 2
    for options, wanted in (({}, 2), ({"count": 1}, 1), ({"count": 0}, 2)):
        assert deepened(graph, after=";".join(places), **options)[1] == wanted
    assert deepened(graph, after=places[1])[1] == 1
    assert deepened(graph)[1] == 1
    assert Deepen(after="relu") == parse_spec("deepen:after=relu")


@pytest.mark.parametrize("how", ["matmul", "einsum"])
def test_layers_over_the_second_axis_that_are_no_convolutions_are_left(how: str) -> None:
    graph, rng = Graph("left"), np.random.default_rng(1)
    b = Builder(graph)
    x = b.input(type_of("f64[b, 7, n]"), "x")
    weight = rng.normal(size=(1, 5, 7) if how == "matmul" else (5, 7))
    h = b.matmul(weight, x) if how == "matmul" else b.einsum(x, weight, subscripts="bcn,dc->bdn")
    graph.set_outputs([b.relu(h)], ["y"])
    with pytest.raises(UnsupportedError, match="no activation follows a layer"):
        deepened(graph)


@pytest.mark.parametrize("spatial", [1, 2, 4])
def test_convolutions_of_one_position_are_deepened(spatial: int) -> None:
    graph, rng = Graph("pointwise"), np.random.default_rng(1)
    b = Builder(graph)
    x = b.input(type_of(f"f64[b, 4, {', '.join(['3'] * spatial)}]"), "x")
    graph.set_outputs([b.relu(b.conv(x, rng.normal(size=(5, 4, *[1] * spatial))))], ["y"])
    grown, count = deepened(graph)
    assert count == 1 and [node.op.name for node in grown] == ["conv", "relu", "conv", "relu"]
    assert apart(graph, grown, [rng.normal(size=(2, 4, *[3] * spatial))]) <= 1e-12


@pytest.mark.parametrize(
    ("options", "code"),
    [({"count": -1}, "E201"), ({"kind": "odd"}, "E201"), ({"kernel": 2}, "E201"), ({"after": "nothing"}, "E202")],
)
def test_bad_options(options: dict[str, object], code: str) -> None:
    graph, _ = net(nn.ReLU())
    with pytest.raises(EspalierError) as caught:
        deepened(graph, **options)
    assert caught.value.code == code
