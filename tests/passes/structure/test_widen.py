"""Widening keeps what a graph computes, on every kind of structure; what can't be widened is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import espalier
from benchmarks.cutting import difference
from benchmarks.zoo.classic import FAMILIES
from benchmarks.zoo.random_graphs import graphs
from espalier.analysis.coupling import couple
from espalier.backends.onnx import to_model
from espalier.errors import InputError
from espalier.ir import Builder, Graph, structural_hash, verify
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.ir.types import parse as type_of
from espalier.passes.base import Context
from espalier.passes.structure.widen import Widen, repeat, widen
from tests.analysis.networks import NETWORKS, loaded
from tests.passes.structure.growing import CASES, apart, family, size


def widened(graph: Graph, **options: object) -> tuple[Graph, Context]:
    grown, context = clone(graph), Context()
    Widen(**options).run(grown, context)
    verify(grown, "types")
    return grown, context


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("factor", [2.0, 1.5])
def test_families_compute_the_same(name: str, factor: float) -> None:
    graph, inputs = family(name)
    grown, context = widened(graph, factor=factor)
    assert apart(graph, grown, inputs) <= 1e-12
    assert size(grown) > size(graph)
    assert factor != 2 or not context.reasons


@pytest.mark.parametrize("name", NETWORKS)
def test_each_unit_alone_and_all_together(name: str) -> None:
    graph, inputs, _ = loaded(name)
    refused: Counter[str] = Counter()
    for unit in couple(graph).removable():
        try:
            grown, _ = widened(graph, only=unit.name.replace("[", "[[]"), to=unit.extent + 2, uneven=0.5)
        except InputError as error:
            assert error.code == "E221"
            refused[str(error)] += 1
            continue
        assert apart(graph, grown, inputs) <= 1e-12, unit
        assert structural_hash(grown) != structural_hash(graph)
    if name in GROUPS_ACROSS:
        with pytest.raises(InputError, match=r"group_norm .* does not keep"):
            widened(graph, factor=3)
        return
    grown, context = widened(graph, factor=3, uneven=0.5)
    assert apart(graph, grown, inputs) <= 1e-12
    assert not context.reasons


GROUPS_ACROSS = {"GroupNormAfterConcat"}
"""One group holds channels of two units, of which neither can be repeated alone."""


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=graphs(), factor=st.floats(1.1, 4), uneven=st.sampled_from([0.0, 0.7]))
def test_random_graphs(case: tuple[Graph, list[np.ndarray], np.random.Generator], factor: float, uneven: float) -> None:
    graph, inputs, _ = case
    try:
        grown, _ = widened(graph, factor=factor, uneven=uneven)
    except InputError as error:
        assert error.code == "E221"
        return
    assert apart(graph, grown, inputs) <= 1e-10


@settings(max_examples=20, deadline=None)
@given(
    extent=st.integers(1, 9), more=st.integers(0, 30), uneven=st.sampled_from([0.0, 0.3, 0.9]), seed=st.integers(0, 9)
)
def test_shares_add_up(extent: int, more: int, uneven: float, seed: int) -> None:
    found = repeat(extent, extent + more, np.random.default_rng(seed), uneven)
    assert found.indices[:extent].tolist() == list(range(extent))
    counts = np.bincount(found.indices, minlength=extent)
    assert counts.max() - counts.min() <= 1
    assert len(found.indices) == extent + more
    assert (np.bincount(found.indices, found.shares, extent) == 1).all()
    assert (found.shares > 0).all()


def test_the_seed_decides() -> None:
    graph, _, _ = loaded("Residual")
    same = [structural_hash(widened(graph, factor=1.5, noise=0.1, seed=s)[0]) for s in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


def test_noise_changes_outputs_a_little_and_says_so() -> None:
    graph, inputs, _ = loaded("Residual")
    grown, _ = widened(graph, noise=0.01)
    assert 1e-6 < apart(graph, grown, inputs) < 0.3
    assert Widen(noise=0.01).semantics.kind == "approximates"
    assert Widen().semantics.kind == "grows"


class Rounded(nn.Module):
    """Weights of few bits, and rounding of sums that are often ties."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 8)
        for layer in (self.a, self.b, self.c):
            for parameter in layer.parameters():
                parameter.data = torch.randint(-3, 4, parameter.shape) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).round()).round()).round()


@pytest.mark.parametrize("options", [{"factor": 1.5, "uneven": 0.5}, {"factor": 3.0}, {"factor": 4.5, "uneven": 0.9}])
def test_ties_of_quantizers_stay(options: dict[str, float]) -> None:
    torch.manual_seed(0)
    x = torch.randint(-4, 5, (64, 6)).float()
    graph = espalier.load(Rounded(), example_inputs=(x,))
    grown, _ = widened(graph, **options)
    assert size(grown) > size(graph)
    assert difference(execute(grown, [x.numpy()]), execute(graph, [x.numpy()])) == 0


def test_an_input_whose_width_its_weights_tell() -> None:
    """Exported with every axis dynamic, though only 5 features fit the weights."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    agraph (double[time, batch, features] x) => (double[time, batch, three] y) {
        all, last = GRU<hidden_size = 4>(x, w, r)
        states = Squeeze(all, axis)
        y = MatMul(states, head)
    }"""
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    weights = {"w": rng.normal(size=(1, 12, 5)), "r": rng.normal(size=(1, 12, 4)), "head": rng.normal(size=(4, 3))}
    weights["axis"] = np.array([1])
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    graph = espalier.load(proto)
    grown, context = widened(graph, factor=2.0)
    assert [row["extent"] for row in context.details["widened"]] == [4]
    assert apart(graph, grown, [rng.normal(size=(6, 2, 5))]) <= 1e-12


def test_tied_weights_stay_tied() -> None:
    graph, inputs, _ = loaded("TiedEmbedding")
    grown, _ = widened(graph, only="table.weight.1")
    tables = [c for c in grown.constants() if c.name.startswith("table")]
    assert len({id(c.constant.source) for c in tables}) == 1
    assert {c.shape for c in tables} == {(11, 16), (16, 11)}
    assert apart(graph, grown, inputs) <= 1e-12


def test_layer_norm_wants_a_whole_factor() -> None:
    graph, _, _ = loaded("AttentionNorm")
    with pytest.raises(InputError, match=r"layer_norm .*unevenly.*whole factor"):
        widened(graph, only="embed.weight.T.1", factor=1.5)
    grown, _ = widened(graph, only="embed.weight.T.1", factor=2)
    assert apart(*[graph, grown], loaded("AttentionNorm")[1]) <= 1e-12


def test_softmax_over_the_unit_is_refused_where_it_must_be() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).softmax(-1))

    graph = espalier.load(Mixed().double(), example_inputs=(torch.randn(2, 4).double(),))
    with pytest.raises(InputError, match="softmax"):
        widened(graph)


def test_uneven_shares_break_the_symmetry_of_gradients() -> None:
    """Else what was repeated would stay the same for ever."""
    from espalier.train.module import to_torch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).tanh())

    torch.manual_seed(0)
    x = torch.randn(8, 4).double()
    graph = espalier.load(Net().double(), example_inputs=(x,))
    for uneven, apart_ in ((0.0, False), (0.5, True)):
        grown, _ = widened(graph, uneven=uneven)
        module = to_torch(grown)
        module(x)[0].square().sum().backward()
        weight = next(v for v in module.weights if v.name.startswith("a.weight"))
        gradient = module.parameter_of(weight).grad
        rows = gradient if gradient.shape[0] == 12 else gradient.T
        indices = repeat(6, 12, np.random.default_rng(0)).indices
        first, second = rows[0], rows[6 + int(np.flatnonzero(indices[6:] == 0)[0])]
        assert (not torch.allclose(first, second)) == apart_


def test_wide_nets_run_in_onnxruntime(tmp_path: Path) -> None:
    for name in ("resnet_basic", "vit", "lstm"):
        module, inputs, _ = FAMILIES[name]()
        graph = espalier.load(module.eval(), example_inputs=inputs)
        before = execute(graph, [x.numpy() for x in inputs])
        grown, _ = widened(graph, factor=2)
        model = to_model(grown)
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        feeds = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
        assert difference(session.run(None, feeds), before) < 1e-5


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"factor": 0.5}, "E201"),
        ({"factor": float("nan")}, "E201"),
        ({"to": 0}, "E201"),
        ({"to": 2}, "E201"),
        ({"uneven": 1.0}, "E201"),
        ({"noise": -1.0}, "E201"),
        ({"only": "nothing"}, "E202"),
        ({"ignore": "nothing"}, "E202"),
        ({"only": "head.fc.weight.0"}, "E221"),
    ],
)
def test_bad_options(options: dict[str, object], code: str) -> None:
    graph, _, _ = loaded("Residual")
    before = structural_hash(graph)
    with pytest.raises(InputError) as caught:
        widened(graph, **options)
    assert caught.value.code == code
    assert structural_hash(graph) == before


@pytest.mark.parametrize("stride", [1, 2])
def test_sums_over_positions_that_small_inputs_have_none_of_count_shares(stride: int) -> None:
    """What is tried out on no numbers would hold with any share."""
    graph, rng = Graph("positions"), np.random.default_rng(0)
    b = Builder(graph)
    x = b.input(type_of("f64[n, 3, h, w]"), "x")
    y = b.relu(b.conv(x, rng.standard_normal((8, 3, 3, 3)), strides=(stride, stride)))
    total = b.reduce_sum(y, np.array([1, 2, 3]))
    graph.set_outputs([b.add(b.conv(y, rng.standard_normal((2, 8, 1, 1))), total)], ["y"])
    grown, _ = widened(graph, factor=1.5)
    assert [unit.extent for unit in couple(grown).removable()] == [12]
    assert apart(graph, grown, [rng.standard_normal((2, 3, 9, 12))]) <= 1e-12


def test_nothing_wanted_changes_nothing() -> None:
    graph = clone(loaded("Residual")[0])
    before = structural_hash(graph)
    assert widen(couple(graph), {}, "test") == 0
    assert structural_hash(graph) == before
