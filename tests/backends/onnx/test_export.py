"""What goes out computes the same, under the same names, in the lowest sufficient operator set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from espalier.backends.onnx import save, to_model
from espalier.backends.onnx.lowering import for_onnxruntime
from espalier.errors import InputError, UnsupportedError
from espalier.frontends.onnx import load
from espalier.ir import Builder, Graph, TensorType, constant_value, dims, elements
from espalier.ir.execute import execute

F32 = elements.F32
RNG = np.random.default_rng(0)


def graph_of(build, *types: TensorType, opset: int | None = None, names: tuple[str, ...] = ("y",)) -> Graph:
    graph = Graph("main")
    if opset is not None:
        graph.metadata["opset"] = opset
    inputs = [graph.add_input(type, f"x{k}") for k, type in enumerate(types)]
    made = build(Builder(graph), *inputs)
    graph.set_outputs(made if isinstance(made, tuple) else (made,), names)
    return graph


def agrees(graph: Graph, *arrays: np.ndarray, opset: int | None = None, tolerance: float = 1e-5) -> onnx.ModelProto:
    model = to_model(graph, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found = session.run(None, {f"x{k}": array for k, array in enumerate(arrays)})
    for want, have in zip(execute(graph, arrays), found, strict=True):
        np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance)
    return model


X = TensorType(F32, (2, 3, 4))
ARRAY = RNG.normal(size=(2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
def test_newer_operators_are_written_by_older_ones(opset: int) -> None:
    graph = graph_of(lambda b, x: b.gelu(x, approximate="tanh"), X, opset=opset)
    model = agrees(graph, ARRAY)
    assert model.opset_import[0].version == opset
    assert ("Gelu" in {node.op_type for node in model.graph.node}) == (opset >= 20)


def test_operands_become_attributes_again() -> None:
    graph = graph_of(lambda b, x: b.reduce_sum(x, np.array([1]), keepdims=0), X, opset=9)
    model = agrees(graph, ARRAY)
    (node,) = model.graph.node
    assert list(node.input) == ["x0"] and {a.name for a in node.attribute} == {"axes", "keepdims"}
    assert model.opset_import[0].version == 9


def test_the_version_is_raised_only_as_far_as_needed() -> None:
    graph = graph_of(lambda b, x: b.einsum(x, x, subscripts="abc,abc->ab"), X, opset=9)
    assert agrees(graph, ARRAY).opset_import[0].version == 12
    with pytest.raises(UnsupportedError) as caught:
        to_model(graph, opset=11)
    assert caught.value.code == "E402" and "einsum" in str(caught.value)


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_of_old_operator_sets_takes_the_last_axis_only(axis: int) -> None:
    model = agrees(graph_of(lambda b, x: b.softmax(x, axis=axis), X, opset=11), ARRAY)
    assert model.opset_import[0].version == 11
    assert ("Softmax" in {node.op_type for node in model.graph.node}) == (axis == 2)


def test_names_and_dynamic_dimensions_are_kept() -> None:
    n = dims.symbol("batch")
    graph = graph_of(lambda b, x: b.concat(x, x, axis=0), TensorType(F32, (n, 3)), names=("twice",))
    model = to_model(graph)
    (given,), (made,) = model.graph.input, model.graph.output
    assert given.name == "x0" and made.name == "twice"
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert made.type.tensor_type.shape.dim[0].dim_param == "2*batch"
    assert load(model).outputs[0].type == graph.outputs[0].type


def test_outputs_that_no_node_makes() -> None:
    """An input, a constant, and one value twice."""

    def build(b: Builder, x):
        y = b.relu(x)
        return x, constant_value(np.arange(3.0, dtype=np.float32), name="c"), y, y

    graph = graph_of(build, X, names=("copy", "numbers", "first", "second"))
    model = agrees(graph, ARRAY)
    assert [info.name for info in model.graph.output] == ["copy", "numbers", "first", "second"]


def test_names_that_clash_are_told_apart() -> None:
    def build(b: Builder, x):
        first, second = b.relu(x), b.neg(x)
        first.name = second.name = "x0"
        return b.add(first, second)

    model = agrees(graph_of(build, X), ARRAY)
    names = [name for node in model.graph.node for name in node.output]
    assert len(set(names) | {"x0"}) == 4


def test_a_shared_constant_is_written_once() -> None:
    weight = constant_value(RNG.normal(size=(4, 4)).astype(np.float32), name="w")
    model = agrees(graph_of(lambda b, x: b.matmul(b.matmul(x, weight), weight), X), ARRAY)
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]


@pytest.mark.parametrize(
    "element",
    [
        elements.U4,
        elements.I4,
        elements.U2,
        elements.I2,
        elements.F4E2M1,
        elements.BOOL,
        elements.BF16,
        elements.F8E4M3FN,
        elements.F16,
        elements.I64,
        elements.C64,
    ],
)
@pytest.mark.parametrize("count", [1, 5])
def test_constants_of_every_width_survive(element: elements.Element, count: int, tmp_path: Path) -> None:
    held = (np.arange(count) % 2).astype(element.dtype)
    graph = graph_of(lambda b, x: (b.relu(x), constant_value(held, element, "c")), X, names=("y", "c_out"), opset=28)
    for threshold in (1 << 30, -1):
        save(graph, tmp_path / "m.onnx", external_threshold=threshold)
        again = load(tmp_path / "m.onnx")
        (constant,) = again.constants()
        assert constant.element == element
        np.testing.assert_array_equal(constant.array, held)


def test_external_data_are_written_beside_the_model(tmp_path: Path) -> None:
    weight = RNG.normal(size=(64, 32)).astype(np.float32)
    held = constant_value(weight, name="w")
    turned = constant_value(held.constant.transpose((1, 0)), name="wt")
    graph = graph_of(lambda b, x: b.matmul(b.matmul(x, held), turned), TensorType(F32, (2, 64)))
    path = tmp_path / "m.onnx"
    save(graph, path, external_threshold=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    x = RNG.normal(size=(2, 64)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x0": x})
    np.testing.assert_allclose(found, x @ weight @ weight.T, rtol=1e-4, atol=1e-4)


def test_saving_over_the_model_that_the_weights_are_mapped_from(tmp_path: Path) -> None:
    weight = RNG.normal(size=(64, 32)).astype(np.float32)
    path = tmp_path / "m.onnx"
    original = graph_of(lambda b, x: b.matmul(x, constant_value(weight)), TensorType(F32, (2, 64)))
    save(original, path, external_threshold=0)
    graph = load(path)
    save(graph, path, external_threshold=0)
    for each in (graph, load(path)):
        (constant,) = each.constants()
        np.testing.assert_array_equal(constant.array, weight)


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        save(graph_of(lambda b, x: b.relu(x), X), tmp_path / "absent" / "m.onnx")
    assert caught.value.code == "E209"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [6, 29])
def test_opsets_that_do_not_exist(opset: int) -> None:
    with pytest.raises(InputError) as caught:
        to_model(graph_of(lambda b, x: b.relu(x), X), opset=opset)
    assert caught.value.code == "E201"


def test_the_same_graph_gives_the_same_bytes() -> None:
    def make() -> bytes:
        graph = graph_of(lambda b, x: b.gelu(b.layer_norm(x, np.ones(4, np.float32))), X, opset=17)
        return to_model(graph).SerializeToString(deterministic=True)

    assert make() == make()


def test_results_that_nobody_uses() -> None:
    """Those that ONNX calls optional are left out; those of a split are not, which onnxruntime would not survive."""
    graph = graph_of(lambda b, x: b.split(x, axis=1, num_outputs=3, results=3)[2], X, opset=18)
    (node,) = agrees(graph, ARRAY).graph.node
    assert all(node.output) and len(node.output) == 3
    pooled = graph_of(lambda b, x: b.max_pool(x, kernel_shape=(2,), results=2)[0], X, opset=18)
    (node,) = agrees(pooled, ARRAY).graph.node
    assert list(node.output) == ["y"]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_tied_weight_is_written_once(rank: int) -> None:
    """An embedding that also makes the logits, as a transposed view of the same constant."""
    table = constant_value(RNG.normal(size=(11, 8)).astype(np.float32), name="table")
    assert table.constant is not None
    transposed = constant_value(table.constant.transpose((1, 0)), name="head")
    ids = RNG.integers(0, 11, (5, 2)[: rank - 1])

    graph = graph_of(
        lambda b, i: b.matmul(b.gather(table, i), transposed), TensorType(elements.I64, ids.shape), opset=18
    )
    model = agrees(graph, ids)
    assert [entry.name for entry in model.graph.initializer] == ["table"]
    old = agrees(graph, ids, opset=11)  # before Einsum, it takes two
    assert len(old.graph.initializer) == 2


def test_a_weight_that_is_only_read_transposed_stays_a_product() -> None:
    table = constant_value(RNG.normal(size=(11, 8)).astype(np.float32))
    assert table.constant is not None
    transposed = constant_value(table.constant.transpose((1, 0)))
    graph = graph_of(lambda b, x: b.matmul(x, transposed), TensorType(F32, (3, 8)))
    model = agrees(graph, RNG.normal(size=(3, 8)).astype(np.float32))
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


@pytest.mark.parametrize(("kind", "gates", "count"), [("lstm", 4, 2), ("gru", 3, 1), ("rnn", 1, 1)])
def test_recurrent_layers_with_the_batch_first_run_in_onnxruntime(kind: str, gates: int, count: int) -> None:
    w, r = (RNG.normal(size=(2, gates * 5, extent)).astype(np.float32) for extent in (4, 5))
    states = [RNG.normal(size=(2, 2, 5)).astype(np.float32) for _ in range(count)]
    attributes = {"hidden_size": 5, "direction": "bidirectional", "layout": 1, "results": 1 + count}
    layer = lambda b, x: getattr(b, kind)(x, w, r, None, None, *states, **attributes)  # noqa: E731
    graph = graph_of(layer, X, names=("y", "h", "c")[: 1 + count])
    wanted = execute(graph, [ARRAY])
    for_onnxruntime(graph)
    agrees(graph, ARRAY)
    for want, have in zip(wanted, execute(graph, [ARRAY]), strict=True):
        np.testing.assert_array_equal(have, want)
