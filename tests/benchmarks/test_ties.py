"""Differences by a quantizer's step: rounding ties are told from faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import espalier
from benchmarks import ties
from benchmarks.models import compared, difference, verdict
from benchmarks.references import exact_outputs, random_feeds
from espalier.frontends import load

RNG = np.random.default_rng(0)
SHAPE = (4, 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two layers, each with a quantizer of steps of 1/4."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Quant", ["a", "s", "z", "b"], ["q"], domain="qonnx.custom_op.general"),
        helper.make_node("MatMul", ["q", "v"], ["c"]),
        helper.make_node("Quant", ["c", "s", "z", "b"], ["y"], domain="qonnx.custom_op.general"),
    ]
    weights = {"s": 0.25, "z": 0, "b": 6, "w": RNG.standard_normal((8, 8)), "v": RNG.standard_normal((8, 3))}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 3))],
        [numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def altered(path: Path, name: str, change) -> Path:
    model = onnx.load(path)
    (weight,) = (w for w in model.graph.initializer if w.name == name)
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), name))
    onnx.save(model, path.with_name("altered.onnx"))
    return path.with_name("altered.onnx")


def stepwise(path: Path, compiled: Path, feed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`ties.stepwise` of an artifact of `path` in which the weights of another file were compiled by mistake."""
    run = espalier.compile(compiled, device="cpu", backend="onnx", output=tmp_path / "artifact").load()
    plain, weights = espalier.compile, list(onnx.load(compiled).graph.initializer)

    def compile_altered(model, **options):
        del model.graph.initializer[:]
        model.graph.initializer.extend(weights)
        return plain(model, **options)

    monkeypatch.setattr(espalier, "compile", compile_altered)
    return ties.stepwise(path, "onnx", [feed], [run(feed)])


def test_quantizers_of_weights_do_not_count(path: Path) -> None:
    assert [node.results[0].name for node in ties.quantizers(load(path))] == ["q", "y"]


def test_an_honest_artifact_is_proven(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    feed = {"x": RNG.standard_normal(SHAPE).astype(np.float32)}
    found = stepwise(path, path, feed, monkeypatch, tmp_path)
    assert found == {"proven": True, "ties": 0, "of": 4 * 8 + 4 * 3, "changed": 0, "distance": 0.0, "difference": 0.0}


def test_a_tie_is_no_fault(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    altered(path, "w", lambda w: np.eye(8, dtype=np.float32)).replace(path)
    feed = {"x": np.full(SHAPE, 0.125, np.float32)}  # on the border between 0, where even numbers go, and 1/4
    above = altered(path, "w", lambda w: w * np.float32(1 + 2**-23))
    found = stepwise(path, above, feed, monkeypatch, tmp_path)
    assert found["proven"] and found["ties"] == 32 and 0 < found["distance"] <= 3e-7


@pytest.mark.parametrize("name", ["w", "v"])
def test_a_fault_is_no_tie(path: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    feed = {"x": 4 * RNG.standard_normal(SHAPE).astype(np.float32)}
    found = stepwise(path, altered(path, name, lambda w: w * np.float32(1.03)), feed, monkeypatch, tmp_path)
    assert not found["proven"] and found["reason"].startswith({"w": "q", "v": "y"}[name])


@pytest.fixture
def means(tmp_path: Path) -> tuple[Path, dict]:
    """Rows, quantized in steps of 1/4 (twice), their means, and numbers of which half are ties."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "s", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["c"]),
        helper.make_node("ReduceMean", ["c"], ["y"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4,))],
        [numpy_helper.from_array(np.float32(0.25), "s"), numpy_helper.from_array(np.int8(0), "z")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "means.onnx")
    steps = np.array([[0.5, 1.5, 2.5, 3.5, 1, 2, 3, 4], [8.5, 0.5, 1.5, 9.5, 1, 2, 3, 4], [1] * 8, [2] * 8])
    return tmp_path / "means.onnx", {"x": (steps / 4).astype(np.float32)}


@pytest.mark.parametrize(("moved", "changed"), [((0, 0), 0), ((2, 0), 2), ((-2, 1), 3), ((-1, -2), 3), ((2, 2), 4)])
def test_ties_are_found_that_lead_to_the_outputs(means: tuple[Path, dict], moved: tuple, changed: int) -> None:
    """To even, two of the four ties of a row go up and two down: its sum may be two steps more or less."""
    path, feed = means
    wanted = -np.rint(4 * feed["x"]).mean(1) / 4 - np.array([*moved, 0, 0]) / 4 / 8
    found = ties.stepwise(path, "onnx", [feed], [{"y": wanted.astype(np.float32)}])
    assert found["proven"] and found["difference"] < 1e-6
    assert found["ties"] == changed and found["changed"] == 2 * changed  # both quantizers' results


@pytest.mark.parametrize("moved", [(3, 0, 0, 0), (0, -3, 0, 0), (0.5, 0, 0, 0), (0, 0, 1, 0), (2, 2, 0, -1)])
def test_no_ties_are_found_that_lead_elsewhere(means: tuple[Path, dict], moved: tuple) -> None:
    path, feed = means
    wanted = -np.rint(4 * feed["x"]).mean(1) / 4 - np.array(moved) / 4 / 8
    expected = [{"y": -np.rint(4 * feed["x"]).mean(1).astype(np.float32) / 4}]
    row = compared(path, "onnx", {"random": [feed]}, {"random": expected}, {"random": [{"y": wanted}]})
    assert not row["agrees"] and row["stepwise"]["random"]["difference"] > 1e-3


def test_a_fault_beside_ties_is_no_tie(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half the numbers of the first quantizer are ties, but no choice of them makes up for the second's weights."""
    altered(path, "w", lambda w: np.eye(8, dtype=np.float32)).replace(path)
    feed = {"x": (RNG.integers(-16, 16, SHAPE) / 8).astype(np.float32)}
    found = stepwise(path, altered(path, "v", lambda w: w * np.float32(1.5)), feed, monkeypatch, tmp_path)
    assert not found["proven"] and found["reason"].startswith("y")


def test_outputs_are_measured_over_all_samples() -> None:
    wanted = [{"y": np.array([1.0])}, {"y": np.array([0.0])}]
    assert difference(wanted, [{"y": np.array([1.0])}, {"y": np.array([1e-8])}]) == 1e-8
    assert difference(wanted, [{"y": np.array([1.0])}, {"y": np.array([np.nan])}]) == float("inf")
    assert difference(wanted, [{"y": np.array([1.0])}, {"y": np.zeros((1, 1))}]) == float("inf")


def test_exact_numbers_decide_where_nothing_is_quantized(tmp_path: Path) -> None:
    path, kind = tmp_path / "model.onnx", TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=kind),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32([2]))),
        helper.make_node("Mul", ["a", "c"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(name, kind, (2,))] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", *ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    feeds = {"random": [{"x": np.array([-10, -9.1], np.float32)}]}
    (exact,) = exact_outputs(path, feeds["random"])
    x = feeds["random"][0]["x"].astype(np.float64)
    assert exact["y"].dtype == np.float64
    np.testing.assert_allclose(exact["y"], 1 / (1 + np.exp(-2 * x)), rtol=1e-14)
    right, coarse, wrong = ([{"y": exact["y"].astype(np.float32) * np.float32(c)}] for c in (1, 1.001, 1.01))
    for expected, found in ((right, right), (coarse, right), (right, wrong), (coarse, wrong), (right, coarse)):
        row = compared(path, "onnx", feeds, {"random": expected}, {"random": found})
        assert row["agrees"] is (found is right)
    nan = [{"y": np.full(2, np.nan, np.float32)}]
    assert not compared(path, "onnx", feeds, {"random": right}, {"random": nan})["agrees"]


def test_what_counts_as_right() -> None:
    def holds(row: dict, finn: set[str] = frozenset()) -> bool:
        return verdict({"reference": "onnxruntime", **row}, "onnx", finn)[0]

    assert holds({"onnx": {"agrees": True}}) and not holds({"onnx": {"agrees": False}})
    assert not holds({"onnx": {"agrees": True}, "reference_fails": "why"})
    assert holds({"refused": "E110", "reference_refuses": True})
    assert not holds({"refused": "E110", "reference_refuses": False})
    assert not holds({"onnx": {"refused": "E401: VVAU_hls"}})
    assert holds({"onnx": {"refused": "E401: VVAU_hls"}}, {"VVAU_hls"})
    assert not holds({"crashed": "a fault"})


def test_random_inputs_are_of_the_declared_datatype(path: Path) -> None:
    for kind, allowed in (("BIPOLAR", {-1, 1}), ("INT2", {-2, -1, 0, 1}), ("UINT8", set(range(256)))):
        model = onnx.load(path)
        note = model.graph.quantization_annotation.add(tensor_name="x")
        note.quant_parameter_tensor_names.add(key="finn_datatype", value=kind)
        found = {float(n) for feed in random_feeds(path, model, 0) for n in feed["x"].reshape(-1)}
        assert found <= allowed and len(found) > 1
