"""Tensors of one number everywhere tie nothing: each unit that reads one gets its own. What is tied otherwise stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import espalier
from benchmarks.cutting import hard_is_soft
from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir import Builder, Graph, TensorType, elements
from espalier.ir.dims import symbol
from espalier.ir.elements import Element
from espalier.ir.execute import execute
from espalier.ir.hashing import structural_hash
from espalier.passes.base import Context
from espalier.passes.pipelines import CLEANING
from espalier.passes.structure.separate import SeparateFills
from tests.passes.structure.pruning import run_pass

X = np.random.default_rng(0).standard_normal((2, 7, 6)).astype(np.float32)


class Layers(nn.Module):
    """Recurrent layers of one width, for which exporters to ONNX write one initial state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True)
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(self.lstm(x)[0])[0].mean(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    module, folder = Layers().eval(), tmp_path_factory.mktemp("layers")
    found = {}
    for name, shapes in (("static", None), ("dynamic", ({0: torch.export.Dim("b", min=1, max=64)},))):
        found[name] = folder / f"{name}.onnx"
        made = torch.onnx.export(module, (torch.from_numpy(X),), dynamo=True, dynamic_shapes=shapes, verbose=False)
        assert made is not None
        made.save(found[name])
    return found


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_layers_of_an_onnx_file_have_a_hidden_unit_each(name: str, exported: dict[str, Path], tmp_path: Path) -> None:
    graph = espalier.prune(exported[name], ratio=0.0).graph
    hidden = [unit for unit in couple(graph).removable() if unit.extent == 8]
    assert [unit.verdict for unit in hidden] == ["exact", "exact"]  # the third is the output's
    for k, unit in enumerate(hidden):
        assert hard_is_soft(graph, [X], {unit.name: [k, 5]}) <= 1e-5
    small = espalier.prune(exported[name], ratio=0.5, output=tmp_path / "small.onnx").graph
    assert [unit.extent for unit in couple(small).removable()] == [4, 4]
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    for batch in (2,) if name == "static" else (1, 2, 5):
        x = np.resize(X, (batch, 7, 6))
        np.testing.assert_allclose(session.run(None, {"x": x})[0], execute(small, [x])[0], atol=1e-6)
    wide = espalier.grow(exported[name], to=12, only=[hidden[1].name]).graph
    np.testing.assert_allclose(execute(wide, [X])[0], execute(graph, [X])[0], atol=1e-6)
    assert [unit.extent for unit in couple(wide).removable()] == [8, 12]


def branches(second: np.ndarray | None = None) -> Graph:
    """Two linear layers of 8 features on one input, whose features have one bias, or two views of one."""
    graph = Graph("branches")
    b, rng = Builder(graph), np.random.default_rng(1)
    x = b.input(TensorType(elements.F32, (symbol("b"), 6)), "x")
    bias = espalier.ir.constant_value(np.zeros(8, np.float32) if second is None else second, name="bias")
    made = []
    for _ in range(2):
        features = b.relu(b.add(b.matmul(x, rng.standard_normal((6, 8)).astype(np.float32)), bias))
        made.append(b.matmul(features, rng.standard_normal((8, 3)).astype(np.float32)))
    graph.set_outputs([b.add(*made)], ["y"])
    return graph


def test_a_shared_bias_of_zeros_is_split_and_another_is_not() -> None:
    graph = branches()
    assert [len(unit.weights) for unit in couple(graph).removable()] == [5]
    before = execute(graph, [X[0]])
    run_pass(graph, "separate_fills")
    assert [len(unit.weights) for unit in couple(graph).removable()] == [3, 3]
    np.testing.assert_array_equal(execute(graph, [X[0]])[0], before[0])
    once = structural_hash(graph)
    assert run_pass(graph, "separate_fills").passes[0].rewrites == 0 and structural_hash(graph) == once
    graph = branches(np.arange(8, dtype=np.float32))
    run_pass(graph, "separate_fills")
    assert [len(unit.weights) for unit in couple(graph).removable()] == [5]


def test_zeros_of_both_signs_are_two_numbers() -> None:
    graph = branches(np.array([0, -0.0] * 4, np.float32))
    assert run_pass(graph, "separate_fills").passes[0].rewrites == 0


def test_the_limit_of_rewrites_holds_and_pruning_separates_first() -> None:
    graph = branches()
    assert SeparateFills().run(graph, Context(stop_after=0)) == 0
    assert [len(unit.weights) for unit in couple(graph).removable()] == [5]
    graph = espalier.prune(graph, ratio=0.5).graph
    assert [(unit.extent, len(unit.weights)) for unit in couple(graph).removable()] == [(4, 3), (4, 3)]


def test_a_layer_that_is_used_twice_stays_one() -> None:
    """Its gains are all one before training; its matrices tie it anyway."""
    graph = Graph("twice")
    b, rng = Builder(graph), np.random.default_rng(2)
    x = b.input(TensorType(elements.F32, (symbol("b"), 6)), "x")
    weight, gain = rng.standard_normal((6, 6)).astype(np.float32), np.ones(6, np.float32)
    weights = [espalier.ir.constant_value(array, name=name) for array, name in ((weight, "weight"), (gain, "gain"))]
    y = b.matmul(x, rng.standard_normal((6, 6)).astype(np.float32))
    for _ in range(2):
        y = b.add(y, b.mul(b.matmul(y, weights[0]), weights[1]))
    graph.set_outputs([b.matmul(y, rng.standard_normal((6, 3)).astype(np.float32))], ["y"])
    assert run_pass(graph, "separate_fills").passes[0].rewrites == 0


def test_views_of_one_source_and_computed_fills_are_split() -> None:
    graph = Graph("views")
    b, rng = Builder(graph), np.random.default_rng(3)
    x = b.input(TensorType(elements.F32, (symbol("b"), 6)), "x")
    both = espalier.ir.constant_value(np.zeros((2, 8), np.float32), name="both")
    filled = b.constant_of_shape(np.array([2, 8]), value=0.5)
    made = []
    for k in range(2):
        assert both.constant is not None
        bias = espalier.ir.constant_value(both.constant.slice(0, k, k + 1))
        features = b.add(b.matmul(x, rng.standard_normal((6, 8)).astype(np.float32)), bias)
        features = b.add(features, b.slice(filled, np.array([k]), np.array([k + 1]), np.array([0])))
        made.append(b.matmul(b.relu(features), rng.standard_normal((8, 3)).astype(np.float32)))
    graph.set_outputs([b.add(*made)], ["y"])
    before = execute(graph, [X[0]])
    assert [unit.extent for unit in couple(graph).removable()] == [8]
    run_pass(graph, "separate_fills", verify="all")
    units = couple(graph).removable()
    assert [unit.extent for unit in units] == [8, 8]
    np.testing.assert_array_equal(execute(graph, [X[0]])[0], before[0])
    assert hard_is_soft(graph, [X[0]], {units[0].name: [1, 2], units[1].name: [7]}) <= 1e-5


def test_copies_have_as_many_results_as_what_they_copy() -> None:
    graph = Graph("split")
    b, rng = Builder(graph), np.random.default_rng(3)
    x = b.input(TensorType(elements.F32, (symbol("b"), 6)), "x")
    whole = b.split(b.constant_of_shape(np.array([1, 8])), axis=1, num_outputs=1, results=1)
    made = [b.add(b.matmul(x, rng.standard_normal((6, 8)).astype(np.float32)), whole) for _ in range(2)]
    graph.set_outputs([b.concat(*(b.matmul(y, rng.standard_normal((8, 3)).astype(np.float32)) for y in made), axis=1)])
    before = execute(graph, [X[0]])
    assert run_pass(graph, "separate_fills", verify="all").passes[0].rewrites == 2
    assert [unit.extent for unit in couple(graph).removable()] == [8, 8]
    np.testing.assert_array_equal(execute(graph, [X[0]])[0], before[0])


def test_a_fill_that_is_an_output_too_keeps_its_extents() -> None:
    graph = branches()
    bias = next(value for value in graph.constants() if value.name == "bias")
    graph.set_outputs([*graph.outputs, bias], ["y", "bias"])
    graph = espalier.prune(graph, ratio=0.5).graph
    y, kept = execute(graph, [X[0]])
    assert y.shape == (7, 3) and kept.shape == (8,)
    assert [unit.extent for unit in couple(graph).removable()] == [4, 4]


def test_extents_that_tensors_inside_are_asked_for_are_read_from_the_inputs() -> None:
    graph = Graph("asked")
    b, rng = Builder(graph), np.random.default_rng(4)
    x = b.input(TensorType(elements.F32, (symbol("b"), 2, 6)), "x")
    y = b.relu(b.matmul(x, rng.standard_normal((6, 8)).astype(np.float32)))
    shape = b.shape(y)
    batch = b.gather(shape, np.array(0), axis=0)
    rows = b.reshape(y, b.concat(b.reshape(batch, np.array([1])), np.array([16]), axis=0))
    graph.set_outputs([b.matmul(rows, rng.standard_normal((16, 3)).astype(np.float32)), batch], ["y", "batch"])
    before = execute(graph, [X[:, :2]])
    assert not couple(graph).removable()
    for spec in CLEANING:
        run_pass(graph, spec, verify="all")
    assert [unit.extent for unit in couple(graph).removable() if unit.extent == 8] == [8]
    for old, new in zip(before, execute(graph, [X[:, :2]]), strict=True):
        np.testing.assert_array_equal(new, old)
        assert new.dtype == old.dtype and new.shape == old.shape
    assert sum(node.op.name == "shape" for node in graph) == 1


def test_an_extent_that_no_input_has_is_asked_for_where_it_is() -> None:
    graph = Graph("asked")
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (symbol("b"), 6)), "x")
    twice = b.concat(x, x, axis=0)
    graph.set_outputs([b.shape(twice, start=0, end=1)], ["n"])
    assert run_pass(graph, "shapes_of_inputs").passes[0].rewrites == 0
    assert execute(graph, [X[0]])[0].tolist() == [14]


@pytest.mark.parametrize("element", [elements.I64, elements.I32])
def test_scalars_and_vectors_of_extents_keep_their_types(element: Element) -> None:
    graph = Graph("asked")
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (symbol("b"), symbol("t"))), "x")
    shape = b.cast(b.shape(b.relu(x)), to=element)
    size = b.gather(shape, np.array(1), axis=0)
    vector = b.gather(shape, np.array([0, 0, 1]), axis=0)
    graph.set_outputs([size, vector, shape], ["size", "vector", "shape"])
    before = execute(graph, [X[0]])
    assert run_pass(graph, "shapes_of_inputs", verify="all").passes[0].rewrites == 3
    run_pass(graph, "dead_code")
    assert not any(node.op.name == "relu" for node in graph)
    for old, new in zip(before, execute(graph, [X[0]]), strict=True):
        np.testing.assert_array_equal(new, old)
        assert new.dtype == old.dtype and new.shape == old.shape


def test_numbers_and_floats_that_come_from_extents_are_left_to_folding() -> None:
    graph = Graph("asked")
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (symbol("b"), 64)), "x")
    last = b.gather(b.shape(b.relu(x)), np.array(1), axis=0)
    graph.set_outputs([b.mul(x, b.div(np.float32(1), b.sqrt(b.cast(last, to=elements.F32)))), last], ["y", "n"])
    assert run_pass(graph, "shapes_of_inputs").passes[0].rewrites == 0


def pyramid(element: Element = elements.F64) -> Graph:
    """A convolution after a pooling of positions that vary, and a group norm, as torch's exporter writes one."""
    graph, rng = Graph("pyramid"), np.random.default_rng(4)
    b = Builder(graph)
    x = b.input(TensorType(element, (symbol("n"), 3, symbol("h"), symbol("w"))), "x")
    x = b.max_pool(b.conv(x, rng.standard_normal((4, 3, 1, 1))), kernel_shape=(2, 2), strides=(2, 2))
    x = b.conv(x, rng.standard_normal((8, 4, 3, 3)), pads=(1, 1, 1, 1))
    grouped = b.reshape(x, np.array([0, 2, -1]))
    normal = b.reshape(b.instance_norm(grouped, rng.standard_normal(2), rng.standard_normal(2)), b.shape(x))
    twice, more = b.mul(b.shape(x, start=2, end=4), np.array([2, 2])), b.add(b.shape(x, start=2, end=3), np.array([1]))
    large = b.concat(twice, more, axis=0)
    graph.set_outputs([b.conv(b.relu(normal), rng.standard_normal((2, 8, 1, 1))), large], ["y", "sizes"])
    return graph


def test_extents_that_come_from_those_of_inputs_are_computed_anew() -> None:
    graph = pyramid()
    assert not any(unit.extent in (2, 8) for unit in couple(graph).removable())
    inputs = [[np.random.default_rng(k).standard_normal((2, 3, *size))] for k, size in enumerate(((6, 8), (7, 9)))]
    before = [execute(graph, each) for each in inputs]
    assert run_pass(graph, "shapes_of_inputs").passes[0].rewrites == 0
    assert run_pass(graph, "shapes_of_inputs:expressions=true", verify="all").passes[0].rewrites == 2
    run_pass(graph, "dead_code")
    assert all(node.operand(0) in graph.inputs for node in graph if node.op.name == "shape")
    for each, wanted in zip(inputs, before, strict=True):
        for old, new in zip(wanted, execute(graph, each), strict=True):
            np.testing.assert_array_equal(new, old)
    assert sorted(unit.extent for unit in couple(graph).removable()) == [2, 4, 4]
    assert espalier.prune(pyramid(elements.F64), ratio=0.5).details["macs"]["removed"] > 0.7


def test_expressions_of_short_inputs_are_rounded_down() -> None:
    graph = Graph("short")
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (symbol("n"), 2, symbol("t"))), "x")
    y = b.conv(x, np.ones((3, 2, 5), np.float32), strides=(2,))  # ⌊(t − 5) / 2⌋ + 1 positions
    graph.set_outputs([b.shape(b.relu(y), start=2, end=3)], ["length"])
    assert run_pass(graph, "shapes_of_inputs:expressions=true", verify="all").passes[0].rewrites == 1
    for length in (4, 5, 6, 11):
        (found,) = execute(graph, [np.zeros((1, 2, length), np.float32)])
        assert found.tolist() == [(length - 5) // 2 + 1]


def test_the_hint_says_why_most_is_frozen_or_that_patterns_leave_nothing() -> None:
    graph = branches()
    with pytest.raises(InputError) as caught:
        run_pass(graph, "prune:ratio=0.5,ignore=*")
    assert caught.value.hint is not None and caught.value.hint.startswith("1 could be")
    graph = Graph("positions")
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (symbol("b"), symbol("t"), 4)), "x")
    table = espalier.ir.constant_value(np.ones((9, 4), np.float32), name="table")
    length = b.shape(x, start=1, end=2)
    graph.set_outputs([b.add(x, b.slice(table, np.array([0]), length, np.array([0])))], ["y"])
    with pytest.raises(InputError) as caught:
        run_pass(graph, "prune:ratio=0.5")
    assert caught.value.hint is not None and "are frozen: it is an input of the model" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_layers_of_attention_of_dynamic_length_are_pruned_and_grown(tmp_path: Path) -> None:
    """The old exporter asks many tensors for their shapes; each answer is replayed while others are there already."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    module = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)).eval()
    axes = {"x": {0: "b", 1: "t"}}
    torch.onnx.export(module, (torch.randn(2, 7, 16),), tmp_path / "m.onnx", dynamo=False, input_names=["x"],
                      dynamic_axes=axes)  # fmt: skip
    draw = np.random.default_rng(0)
    inputs = {"x": draw.standard_normal((3, 7, 16)).astype(np.float32)}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    wide = espalier.grow(tmp_path / "m.onnx", factor=2.0).graph
    np.testing.assert_allclose(execute(wide, [*inputs.values()])[0], session.run(None, inputs)[0], atol=1e-5)
    small = espalier.prune(tmp_path / "m.onnx", ratio=0.5, output=tmp_path / "small.onnx")
    assert {row["kept"] for row in small.details["cut"] if row["extent"] == 32} == {16}
    found = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, inputs)[0]
    np.testing.assert_allclose(found, execute(small.graph, [*inputs.values()])[0], atol=1e-5)


def test_one_extent_that_only_run_time_knows_to_agree_does_not_freeze_the_others() -> None:
    graph = Graph("heads")
    b, rng = Builder(graph), np.random.default_rng(5)
    x = b.input(TensorType(elements.F32, (symbol("b"), symbol("t"), 6)), "x")
    positions = b.input(TensorType(elements.F32, (symbol("u"), 1)), "positions")
    y = b.add(b.matmul(x, rng.standard_normal((6, 16)).astype(np.float32)), positions)
    batch, length = (b.shape(x, start=k, end=k + 1) for k in (0, 1))
    heads = b.reshape(y, b.concat(batch, length, np.array([4]), np.array([4]), axis=0))
    rows = b.reshape(b.mul(heads, heads), b.concat(batch, length, np.array([16]), axis=0))
    graph.set_outputs([b.matmul(b.relu(rows), rng.standard_normal((16, 3)).astype(np.float32))], ["y"])
    units = couple(graph).removable()
    assert [unit.extent for unit in units] == [4, 4]
    inputs = [X, np.ones((7, 1), np.float32)]
    assert hard_is_soft(graph, inputs, {units[0].name: [1], units[1].name: [0, 3]}) <= 1e-5


def test_computed_extents_that_follow_or_copy_stay_as_they_are() -> None:
    """Attention as exporters write it merges batch and heads by −1; heads that go change the numbers beside it only."""
    graph = Graph("heads")
    b, rng = Builder(graph), np.random.default_rng(6)
    x = b.input(TensorType(elements.F32, (symbol("b"), symbol("t"), 6)), "x")
    y = b.matmul(x, rng.standard_normal((6, 16)).astype(np.float32))
    batch, length = (b.shape(x, start=k, end=k + 1) for k in (0, 1))
    heads = b.reshape(y, b.concat(batch, length, np.array([4]), np.array([4]), axis=0))
    merged = b.reshape(b.transpose(heads, perm=(0, 2, 1, 3)), b.concat(np.array([-1]), length, np.array([4]), axis=0))
    again = b.reshape(b.relu(merged), b.concat(batch, np.array([4]), length, np.array([-1]), axis=0))
    rows = b.reshape(b.transpose(again, perm=(0, 2, 1, 3)), b.concat(batch, length, np.array([16]), axis=0))
    graph.set_outputs([b.matmul(rows, rng.standard_normal((16, 3)).astype(np.float32))], ["y"])
    units = couple(graph).removable()
    assert [unit.extent for unit in units] == [4, 4]
    for inputs in ([X], [X[:1, :5]]):
        assert hard_is_soft(graph, inputs, {units[0].name: [1, 2], units[1].name: [0]}) <= 1e-5
