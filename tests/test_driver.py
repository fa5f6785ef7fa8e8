"""The driver: a model goes in, a checked artifact comes out, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import espalier
from benchmarks.artifact import network
from espalier import runtime
from espalier.errors import EspalierError
from espalier.ir.execute import execute
from espalier.ir.text import to_text

X = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)


def build(model: object, output: Path, **options: object) -> espalier.Artifact:
    return espalier.compile(model, output=output, backend="onnx", **options)


def refused(code: str, model: object, output: Path, **options: object) -> EspalierError:
    with pytest.raises(EspalierError) as caught:
        build(model, output, **options)
    assert caught.value.code == code, str(caught.value)
    assert not output.exists()
    return caught.value


@pytest.mark.parametrize("name", ["artifact", "artifact.zip"])
def test_the_artifact_computes_what_the_model_does(tmp_path: Path, name: str) -> None:
    model = network(seed=0)
    made = build(model, tmp_path / name)
    (wanted,) = execute(espalier.load(model), [X])
    found = made.load()({"image": X})["scores"]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert made.agreement.startswith("agrees")
    assert [spec.name for spec in made.manifest.inputs] == ["image"]


def test_same_model_same_options_same_hash(tmp_path: Path) -> None:
    first, second = (build(network(seed=0), tmp_path / name) for name in "ab")
    assert first.hash == second.hash
    assert build(network(seed=1), tmp_path / "c").hash != first.hash
    assert build(network(seed=0), tmp_path / "d", seed=1).hash != first.hash


def test_the_callers_model_is_left_alone(tmp_path: Path) -> None:
    model = network(seed=0)
    before = model.SerializeToString(deterministic=True)
    build(model, tmp_path / "artifact")
    assert model.SerializeToString(deterministic=True) == before
    graph = espalier.load(model)
    text = to_text(graph)
    assert build(graph, tmp_path / "graph").report.rewrites
    assert to_text(graph) == text


def test_an_artifact_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    first = build(network(seed=0), tmp_path / "artifact")
    with pytest.raises(EspalierError):
        build(network(seed=1), tmp_path / "artifact", data={"image": X, "nothing": X})
    assert runtime.load(tmp_path / "artifact").manifest == first.manifest
    second = build(network(seed=1), tmp_path / "artifact")
    assert runtime.load(tmp_path / "artifact").manifest == second.manifest != first.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_accuracy_with_labels_is_measured_and_recorded(tmp_path: Path) -> None:
    labels = np.argmax(execute(espalier.load(network(seed=0)), [X])[0], axis=1)
    made = build(network(seed=0), tmp_path / "artifact", data=[(X, labels)], max_drop=0)
    assert made.score is not None
    assert (made.score.metric, made.score.original, made.score.compiled) == ("top-1", 1.0, 1.0)
    assert runtime.load(tmp_path / "artifact").manifest.evaluation["samples"] == 4


def test_any_metric_is_measured_and_gated(tmp_path: Path) -> None:
    model = network(seed=0)
    (scores,) = execute(espalier.load(model), [X])
    data = {"image": X, "labels": scores + 1}
    made = build(model, tmp_path / "artifact", data=iter([({"image": X}, scores + 1)]), metric="rmse", max_drop=1.0)
    assert made.score is not None and made.score.metric == "rmse" and made.score.original == pytest.approx(1, rel=1e-4)
    assert made.manifest.evaluation["metric"] == "rmse"
    refused("E202", model, tmp_path / "no", data=data, metric="nonsense")
    assert "a metric" in str(refused("E212", model, tmp_path / "no", metric="f1"))


def test_a_batch_of_one_is_fed_sample_by_sample(tmp_path: Path) -> None:
    model = network(seed=0)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    made = build(model, tmp_path / "artifact", data={"image": X}, max_drop=0)
    assert made.score is not None and made.score.samples == 4


def test_options_that_cannot_be_met(tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    refused("E211", network(seed=0), out, budget="latency=2ms")
    refused("E212", network(seed=0), out, max_drop=1)
    refused("E201", network(seed=0), out, max_drop=-1, data={"image": X})
    refused("E201", network(seed=0), out, verify="loosely")
    refused("E202", network(seed=0), out, device="abacus")
    refused("E206", network(seed=0), out, data={"image": X[:, :2]})
    refused("E102", object(), out)


def test_a_model_of_random_numbers_says_what_was_not_compared(tmp_path: Path) -> None:
    shape = [2, 3]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    made = build(model, tmp_path / "artifact")
    assert made.agreement.startswith("not compared") and made.load()({"x": np.zeros(shape, "f4")})["y"].shape == (2, 3)


def test_external_data_survive(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "xy")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    made = build(tmp_path / "m.onnx", tmp_path / "artifact")
    (tmp_path / "w.bin").unlink()
    found = made.load()({"x": np.eye(64, dtype=np.float32)})["y"]
    np.testing.assert_allclose(found, weight, rtol=1e-6)


def quantized_per_channel(x: str, scale: str, zero: str, y: str, axis: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [x, scale, zero], [f"{y}_stored"], axis=axis),
        helper.make_node("DequantizeLinear", [f"{y}_stored", scale, zero], [y], axis=axis),
    ]


def test_what_onnxruntime_optimizes_wrongly_runs_with_its_basic_optimizations(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    held = {
        "s": np.float32(0.05), "z": np.uint8(128), "each": np.array([0.1, 0.2, 0.3], np.float32),
        "zeros": np.array([120, 128, 130], np.uint8), "ws": np.array([0.01, 0.02, 0.03], np.float32),
        "wz": np.zeros(3, np.int8), "w": random.integers(-90, 90, (3, 2, 3, 3)).astype(np.int8),
    }  # fmt: skip
    nodes = [
        *quantized_per_channel("x", "s", "z", "xq", 1),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
        helper.make_node("Conv", ["xq", "wq"], ["c"], kernel_shape=[3, 3]),
        *quantized_per_channel("c", "each", "zeros", "y", 1),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 6, 6])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 4, 4])
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = build(model, tmp_path / "artifact")
    assert made.manifest.backend["optimizations"] == "basic"
    assert made.agreement.startswith("agrees") and "only with the engine's basic optimizations (E712" in made.agreement
    image = random.normal(size=(1, 2, 6, 6)).astype(np.float32)
    (wanted,) = execute(espalier.load(model), [image])
    np.testing.assert_allclose(made.load()({"x": image})["y"], wanted, atol=1e-6)
