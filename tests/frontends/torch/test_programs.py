"""Whole programs: names, dynamic shapes, tied weights, source lines, control flow, refusals, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from espalier.errors import InputError, UnsupportedError
from espalier.frontends.torch import from_exported, from_module, load_pt2
from espalier.ir.graph import Graph
from espalier.ir.verify import verify
from tests.frontends.torch.support import agree, normal


class Tied(nn.Module):
    """An embedding whose weight is the output layer's, and once more read transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embedding(tokens).tanh()  # the marked line
        return {"logits": self.head(hidden), "again": hidden @ self.embedding.weight.t()}


TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 10], [0, 9, 8, 1]])


def exported(module: nn.Module, *inputs: torch.Tensor, **options: Any) -> Graph:
    graph = from_module(module.eval(), inputs, **options)
    verify(graph)
    return graph


def test_tied_weights_are_stored_once() -> None:
    module = Tied()
    graph = exported(module, TOKENS)
    sources = {id(value.constant.source) for value in graph.constants() if value.constant and value.constant.size == 66}
    assert len(sources) == 1
    agree(graph, module, TOKENS)


def test_parameters_share_memory_and_keep_their_names() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    graph = exported(module, normal(2, 4))
    weights = {value.name: value for value in graph.constants()}
    assert np.shares_memory(weights["0.weight"].array, module[0].weight.detach().numpy())


def test_names_of_inputs_and_outputs() -> None:
    graph = exported(Tied(), TOKENS)
    assert [value.name for value in graph.inputs] == ["tokens"]
    assert graph.output_names == ["logits", "again"]
    named = exported(Tied(), TOKENS, input_names=["ids"], output_names=["a", "b"])
    assert [value.name for value in named.inputs] == ["ids"]
    assert named.output_names == ["a", "b"]
    with pytest.raises(InputError, match="E201"):
        from_module(Tied(), (TOKENS,), output_names=["a"])


def test_source_lines_are_the_users() -> None:
    marked = next(k for k, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "the marked line" in line)
    graph = exported(Tied(), TOKENS)
    gathers = [node for node in graph if node.op.name == "gather"]
    assert gathers[0].location.lines == (f"torch/test_programs.py:{marked}",)
    assert gathers[0].location.names[0].startswith("embedding/")


class Shapes(nn.Module):
    """Sizes in views, expansions, ranges, pads and slices."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n, t, c = x.shape
        heads = self.inner(x).view(n, t, 2, c // 2).transpose(1, 2)
        scores = (heads @ heads.mT).masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
        mixed = (scores @ heads).transpose(1, 2).reshape(n, t, c)
        places = torch.arange(t, device=x.device)[None, :, None].expand(n, t, 1) / t
        halves = nn.functional.avg_pool1d(nn.functional.pad(x.mT, (1, 1)), 2)
        return mixed, torch.cat([mixed, places], -1), halves, x.flatten(0, 1).sum(0) * n, x[:, -2:].repeat(1, 2, 1)


def test_dynamic_shapes_run_at_other_sizes() -> None:
    module = Shapes().eval()
    graph = exported(module, normal(2, 6, 8), dynamic_shapes={"x": {0: Dim("batch"), 1: Dim("time", min=3)}})
    assert str(graph.inputs[0].type) == "f32[batch, time, 8]"
    assert str(graph.outputs[0].type) == "f32[batch, time, 8]"
    for shape in ((2, 6, 8), (5, 9, 8), (1, 3, 8)):
        agree(graph, module, normal(*shape))


def test_dynamic_batch_of_a_convolutional_network() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()
    graph = exported(layers, normal(2, 3, 8, 8), dynamic_shapes=({0: Dim("n")},))
    for n in (1, 2, 7):
        agree(graph, layers, normal(n, 3, 8, 8))
    assert str(graph.outputs[0].type) == "f32[n, 2]"


def test_dynamic_lstm_and_interpolation() -> None:
    """(The number of steps is fixed by torch.export itself.)"""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.lstm(x)
            return nn.functional.interpolate(y.mT, scale_factor=2.0)

    module = Sequence().eval()
    graph = exported(module, normal(2, 5, 4), dynamic_shapes={"x": {0: Dim("batch")}})
    for shape in ((2, 5, 4), (3, 5, 4)):
        agree(graph, module, normal(*shape))


def test_data_dependent_sizes_flow_on() -> None:
    class Kept(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x[x[:, 0] > 0]
            return (rows @ x.mT).softmax(-1).sum(0)

    module = Kept().eval()
    graph = exported(module, normal(6, 4))
    agree(graph, module, normal(6, 4))
    agree(graph, module, normal(6, 4, seed=3))


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y * 2 + 1, lambda y: -y.cos(), (x,))


def test_branches_become_regions() -> None:
    graph = exported(Branches(), normal(3))
    assert [node.op.name for node in graph if node.regions] == ["if"]
    for x in (torch.ones(3), -torch.ones(3)):
        agree(graph, Branches(), x)


def test_loops_become_regions() -> None:
    from torch._higher_order_ops import scan, while_loop

    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return while_loop(
                lambda k, y: y.sum() < 100, lambda k, y: (k + 1, y * 2), (torch.zeros((), dtype=torch.long), x)
            )

    class Running(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return scan(lambda total, row: (total + row, (total * row).sin()), x[0], x)

    for module, kind in ((Doubling(), "loop"), (Running(), "scan")):
        graph = exported(module, normal(3, 4).abs())
        assert kind in [node.op.name for node in graph if node.regions]
        agree(graph, module, normal(3, 4).abs())


@torch.library.custom_op("espalier_tests::secret", mutates_args=())
def secret(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@secret.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_unsupported_operators_are_named_all_at_once() -> None:
    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return secret(x) + torch.special.bessel_j0(x)

    with pytest.raises(UnsupportedError) as caught:
        from_module(Unknown(), (normal(3),))
    assert caught.value.code == "E408"
    assert "espalier_tests.secret.default" in caught.value.message
    assert "bessel_j0" in caught.value.message
    assert "test_programs.py:" in str(caught.value)


def test_a_module_that_cannot_be_traced_is_refused() -> None:
    class Moody(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.sum()) > 0 else x.numpy() + 1

    with pytest.raises(InputError) as caught:
        from_module(Moody(), (torch.ones(3),))
    assert caught.value.code == "E114"


def test_dimensions_that_cannot_vary_as_declared_are_refused_with_the_reason() -> None:
    class Quarters(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0], -1, 4) if x.shape[1] % 4 == 0 else x

    height = torch.export.Dim("height", min=2, max=100)
    with pytest.raises(InputError, match=r"% 4\) == 0") as caught:
        from_module(Quarters(), (torch.randn(2, 8),), dynamic_shapes=({1: height},))
    assert caught.value.code == "E114"


def test_wrong_example_inputs_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        from_module(nn.Linear(4, 2), (normal(2, 3),))
    assert caught.value.code == "E115"


def test_groups_that_only_run_time_knows_are_refused() -> None:
    class Modulated(nn.Module):
        """A kernel for each image, as groups of one convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.style, self.kernel = nn.Linear(2, 3), nn.Parameter(normal(4, 3, 3, 3))

        def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            kernels = self.kernel * self.style(z)[:, None, :, None, None]
            b, c, h, w = x.shape
            y = nn.functional.conv2d(x.reshape(1, b * c, h, w), kernels.flatten(0, 1), padding=1, groups=b)
            return y.reshape(b, 4, h, w)

    module, inputs = Modulated().eval(), (normal(2, 3, 5, 5), normal(2, 2))
    agree(exported(module, *inputs), module, *inputs)
    batch = Dim("batch", min=2)
    with pytest.raises(UnsupportedError, match="batch groups, which only run time knows") as caught:
        exported(module, *inputs, dynamic_shapes=({0: batch}, {0: batch}))
    assert caught.value.code == "E405"


def test_active_dropout_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="eval"):
        from_module(nn.Dropout(0.5).train(), (normal(3),))


def test_files_are_read_only_with_trust(tmp_path: Path) -> None:
    module = nn.Linear(4, 2).eval()
    program = torch.export.export(module, (normal(3, 4),))
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    with pytest.raises(InputError) as caught:
        load_pt2(path)
    assert caught.value.code == "E113"
    agree(load_pt2(path, trust=True), module, normal(3, 4))
    agree(from_exported(program), module, normal(3, 4))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError) as caught:
        load_pt2(path, trust=True)
    assert caught.value.code == "E103"
    with pytest.raises(InputError) as caught:
        load_pt2(tmp_path / "none.pt2", trust=True)
    assert caught.value.code == "E101"


def test_complex_inputs_and_outputs_are_pairs() -> None:
    class Turn(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z * 1j

    z = torch.view_as_complex(normal(3, 2))
    graph = exported(Turn(), z)
    assert str(graph.inputs[0].type) == "f32[3, 2]"
    agree(graph, Turn(), z)


def test_integer_and_optional_arguments() -> None:
    class Options(nn.Module):
        def forward(self, x: torch.Tensor, flag: bool = False, bias: torch.Tensor | None = None) -> list[torch.Tensor]:
            return [x + 1 if flag else x - 1, x if bias is None else x + bias]

    graph = from_module(Options(), (normal(3), True), {"bias": normal(3)})
    assert [value.name for value in graph.inputs] == ["x", "bias"]
    assert graph.output_names == ["output_0", "output_1"]


def test_changed_buffers_are_noted() -> None:
    class Counter(nn.Module):
        count: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x + self.count

    graph = exported(Counter(), normal(3))
    assert graph.metadata["ignored_mutations"] == ["count"]
    agree(graph, Counter(), normal(3))
