"""Thinner dense blocks: a connection that is cut equals zeros in the weights that read it; the rest is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import espalier
from benchmarks.cutting import difference
from espalier.analysis.coupling import couple
from espalier.backends.onnx import save
from espalier.errors import InputError
from espalier.ir import Graph, constant_value, structural_hash, verify
from espalier.ir.clone import clone
from espalier.ir.constants import constant
from espalier.ir.execute import execute
from espalier.passes.base import Context
from espalier.passes.structure.connections import Cut, blocks
from espalier.passes.structure.thin import Thin
from tests.passes.structure.growing import family

X = np.random.default_rng(0).standard_normal((2, 4, 6, 6))


class Dense(nn.Module):
    """A dense block of convolutions behind a stem, pooled and classified.

    Args:
        widths: the channels that each layer adds.
        body: makes a layer of the channels that it reads and those that it adds.
        listed: concatenate all tensors anew for each layer, instead of the last concatenation and one more.
        newest_first: put what is new in front.
    """

    def __init__(
        self, body: Callable[[int, int], nn.Module], widths: tuple[int, ...] = (3, 2, 4, 3, 2, 3),
        listed: bool = False, newest_first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.Conv2d(4, 5, 3, padding=1)
        self.widths = (5, *widths)
        self.layers = nn.ModuleList(body(sum(self.widths[: k + 1]), width) for k, width in enumerate(widths))
        self.norm, self.head = nn.BatchNorm2d(sum(self.widths)), nn.Linear(sum(self.widths), 3)
        self.listed, self.newest_first = listed, newest_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tensors = [self.stem(x)]
        whole = tensors[0]
        for layer in self.layers:
            tensors.append(layer(whole))
            pair = tensors if self.listed else [whole, tensors[-1]]
            whole = torch.cat(pair[::-1] if self.newest_first else pair, 1)
        return self.head(torch.relu(self.norm(whole)).mean((2, 3)))


class Bottleneck(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.BatchNorm2d(inputs), nn.PReLU(inputs), nn.Conv2d(inputs, 6, 1), nn.SiLU(),
            nn.Conv2d(6, outputs, 3, padding=1),
        )  # fmt: skip


class Gated(nn.Module):
    """Squeeze and excitation over what is read, two branches that read it, and a depthwise convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, 3), nn.Linear(3, inputs)
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        self.a, self.b = nn.Conv2d(inputs, outputs, 1), nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        y = self.depthwise(x * gate[:, :, None, None])
        return torch.relu(self.a(y)) + self.b(y)


BODIES: dict[str, Callable[[int, int], nn.Module]] = {"bottleneck": Bottleneck, "gated": Gated}


def randomized(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else torch.randn_like(tensor) / 2)
    return module.double().eval()


def load(module: nn.Module) -> Graph:
    return espalier.load(randomized(module), example_inputs=(torch.from_numpy(X),))


def thinned(graph: Graph, **options: Any) -> tuple[Graph, dict[str, Any]]:
    thin, context = clone(graph), Context()
    Thin(**options).run(thin, context)
    verify(thin, "types")
    return thin, context.details


def cuts(graph: Graph, **options: Any) -> Iterator[Cut]:
    coupling, thin = couple(graph), Thin(**options)
    for readers in blocks(graph):
        for reader in readers:
            is_last = reader is readers[-1]
            keep = thin.links(reader.number, is_last=is_last)
            if is_last and not thin.ends:
                continue
            yield Cut(
                coupling, reader, [s for s, k in zip(reader.sources, reader.layers, strict=True) if k not in keep]
            )


def zeroed(graph: Graph, **options: Any) -> Graph:
    """A copy with zeros where connections would be cut."""
    soft = clone(graph)
    places = [place for cut in cuts(soft, **options) for place in cut.zeros()]
    for node, position, array in places:
        held = node.operand(position).constant
        assert held is not None
        soft.set_operand(node, position, constant_value(constant(array, held.element)))
    return soft


def size(graph: Graph) -> int:
    return sum(value.array.size for value in graph.constants())


OPTIONS = [{}, {"ends": True}, {"pattern": "nearest", "count": 1, "ends": True}, {"pattern": "nearest", "count": 2}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("form", [{}, {"listed": True}, {"newest_first": True}, {"listed": True, "newest_first": True}])
def test_cut_is_the_same_as_zeros(body: str, form: dict[str, bool], options: dict[str, Any]) -> None:
    graph = load(Dense(BODIES[body], **form))
    thin, details = thinned(graph, **options)
    soft = zeroed(graph, **options)
    assert difference(execute(thin, [X]), execute(soft, [X])) <= 1e-12
    assert difference(execute(thin, [X]), execute(graph, [X])) > 1e-6
    assert size(thin) < size(graph)
    assert not any(row["refused"] for row in details["readers"])
    assert details["parameters"]["after"] < details["parameters"]["before"]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_dense_network_of_three_blocks(options: dict[str, Any]) -> None:
    graph, inputs = family("densenet")
    thin, details = thinned(graph, **options)
    assert {row["block"] for row in details["readers"] if row["cut"]} == {0, 1, 2}
    assert difference(execute(thin, inputs), execute(zeroed(graph, **options), inputs)) <= 1e-12


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    widths=st.lists(st.integers(2, 4), min_size=3, max_size=6), body=st.sampled_from(list(BODIES)),
    listed=st.booleans(), options=st.sampled_from(OPTIONS),
)  # fmt: skip
def test_random_blocks(widths: list[int], body: str, listed: bool, options: dict[str, Any]) -> None:
    graph = load(Dense(BODIES[body], tuple(widths), listed))
    thin, _ = thinned(graph, **options)
    assert difference(execute(thin, [X]), execute(zeroed(graph, **options), [X])) <= 1e-12


def test_layers_keep_the_connections_that_they_should() -> None:
    """The columns of each layer's first convolution are those of the harmonic layers, as counted by hand."""
    module = Dense(Bottleneck)
    graph = load(module)
    thin, details = thinned(graph)
    kept = {1: {0}, 2: {0, 1}, 3: {2}, 4: {0, 2, 3}, 5: {4}, 6: {4, 5}}
    starts = np.cumsum([0, *module.widths])
    weights = {value.name: value.array for value in thin.constants()}
    for layer, links in kept.items():
        columns = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in sorted(links)])
        whole = module.layers[layer - 1][2].weight.detach().numpy()
        np.testing.assert_array_equal(weights[f"layers.{layer - 1}.2.weight"], whole[:, columns])
    rows = {row["layer"]: row for row in details["readers"]}
    assert rows[5]["cut"] == [0, 1, 2, 3] and rows[5]["channels"] == 17 and rows[5]["left"] == 3
    assert rows[5]["weights"] == ["layers.4.2.weight"]
    assert rows[None]["cut"] == []
    with torch.no_grad():  # the same by zeros in torch itself
        for layer, links in kept.items():
            for k in set(range(layer)) - links:
                module.layers[layer - 1][2].weight[:, starts[k] : starts[k + 1]] = 0
        wanted = module(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(execute(thin, [X])[0], wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_the_patterns() -> None:
    assert [Thin().links(k) for k in (1, 2, 3, 4, 6, 8)] == [{0}, {0, 1}, {2}, {0, 2, 3}, {4, 5}, {0, 4, 6, 7}]
    assert Thin().links(7, is_last=True) == {1, 3, 5, 6}
    assert Thin(pattern="nearest", count=3).links(5) == {2, 3, 4}
    assert Thin(pattern="nearest", count=3).links(2) == {0, 1}


def test_layers_up_to_the_threshold_stay_dense() -> None:
    graph = load(Dense(Bottleneck))
    _, details = thinned(graph, above=14)
    rows = {row["layer"]: row for row in details["readers"]}
    assert rows[3]["channels"] == 10 and rows[4]["channels"] == 14 and not rows[3]["cut"] and not rows[4]["cut"]
    assert rows[5]["cut"] and rows[6]["cut"]
    before = structural_hash(graph)
    assert structural_hash(thinned(graph, above=100)[0]) == before


def test_a_layer_that_nobody_reads_any_more_goes() -> None:
    graph = load(Dense(Bottleneck))
    thin, _ = thinned(graph, pattern="nearest", count=1, ends=True)
    assert len([node for node in thin if node.op.name == "conv"]) == 13  # each reads the one before: all are needed
    lone = load(Dense(Bottleneck, widths=(3, 2, 4)))
    thin, _ = thinned(lone, ends=True)  # layer 2 was read by layer 3 and by what follows; the latter is cut
    assert len([node for node in thin if node.op.name == "concat"]) < len(
        [node for node in lone if node.op.name == "concat"]
    )


class Grouped(nn.Sequential):
    """Two groups, of which each reads some of several layers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, 4, 1, groups=1 if inputs % 2 else 2), nn.Conv2d(4, outputs, 1))


class Normed(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.GroupNorm(1, inputs), nn.Conv2d(inputs, outputs, 1))


class Apart(nn.Module):
    """A convolution of its own for the block's input, and one for the rest."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(5, outputs, 1), nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x[:, :5]) + self.b(x)


class Read(nn.Module):
    """What it reads goes into its output as it is."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax(1, keepdim=True).expand(-1, 2, -1, -1)


@pytest.mark.parametrize(
    ("body", "widths", "why"),
    [
        (Normed, (3, 2, 4, 3), "computes statistics over it"),
        (Grouped, (3, 2, 4, 3), "shares coordinates with what stays"),
        (Apart, (3, 2, 4, 3), "nothing left to read"),
        (Read, (2, 2, 2, 2), "over it"),
    ],
)
def test_what_would_not_be_zeros_is_refused(
    body: Callable[[int, int], nn.Module], widths: tuple[int, ...], why: str
) -> None:
    graph = load(Dense(body, widths))
    thin, details = thinned(graph)
    refusals = [refusal["why"] for row in details["readers"] for refusal in row["refused"]]
    assert refusals and any(why in reason for reason in refusals), refusals
    assert difference(execute(thin, [X]), execute(zeroed(graph), [X])) <= 1e-12
    assert any(line.endswith(refusals[0]) and "goes on reading" in line for line in details["summary"])


class Shared(nn.Module):
    """Two layers that read with one weight, of which one is thinned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(12, 4, 1)
        self.other = nn.Conv2d(4, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        two = torch.cat([x, self.a(x)], 1)
        three = torch.cat([two, self.b(two)], 1)
        four = torch.cat([three, self.c(three)], 1)
        return four.mean((2, 3)) + self.c(self.other(x)).mean()


def test_weights_that_are_used_elsewhere_stay() -> None:
    graph = load(Shared())
    before = execute(graph, [X])
    thin, details = thinned(graph)
    reasons = {refusal["why"] for row in details["readers"] for refusal in row["refused"]}
    assert reasons == {"the weight 'c.weight' is used elsewhere, too"}
    assert difference(execute(thin, [X]), before) == 0


@pytest.mark.parametrize("name", ["resnet_basic", "hardnet", "mobilenet_v3"])
def test_models_without_dense_blocks_are_refused(name: str) -> None:
    graph, _ = family(name)
    with pytest.raises(InputError, match="E224: the model has no dense block"):
        thinned(graph)


@pytest.mark.parametrize("options", [{"pattern": "random"}, {"count": 0}, {"above": -1}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="E201"):
        Thin(**options)


def test_in_a_pipeline_and_in_onnxruntime(tmp_path: Path) -> None:
    module = randomized(Dense(Bottleneck)).float()
    x = X.astype(np.float32)
    shapes = ({0: torch.export.Dim("n", min=1)},)
    graph = espalier.load(module, example_inputs=(torch.from_numpy(x),), dynamic_shapes=shapes)
    made = espalier.compile(
        clone(graph), output=tmp_path / "a", backend="onnx", passes=["thin:ends=true"], pipeline="none",
        data={graph.inputs[0].name: x},
    )  # fmt: skip
    assert "thin changes the outputs: agreement" in made.report.whole_model
    assert made.agreement.startswith("agrees with the model after the last pass that approximates")
    thin, _ = thinned(graph, ends=True)
    save(thin, tmp_path / "thin.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "thin.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    wanted = execute(zeroed(graph, ends=True), [x])
    assert difference([found], wanted) <= 1e-5
