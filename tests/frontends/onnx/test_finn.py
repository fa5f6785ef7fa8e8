"""FINN's hardware operators: what its own `execute_node` computes, written down again in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.datasets import intrusions, trained_intrusions
from espalier.errors import InputError
from espalier.frontends.onnx import load
from espalier.ir.execute import execute

DOMAIN = "finn.custom_op.fpgadataflow"
RNG = np.random.default_rng(0)


def model(op_type: str, kind: str, x: np.ndarray, weights: list[np.ndarray], **attributes: object) -> ModelProto:
    domain, suffix = (f"{DOMAIN}.{kind}", f"_{kind}") if kind else (DOMAIN, "")
    names = [f"w{k}" for k in range(len(weights))]
    node = helper.make_node(op_type + suffix, ["x", *names], ["y"], domain=domain, PE=2, SIMD=1, **attributes)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w.astype(np.float32), name) for w, name in zip(weights, names, strict=True)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def reached(x: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return (x[..., None] >= thresholds).sum(-1)


@pytest.mark.parametrize("kind", ["", "hls", "rtl"])
@pytest.mark.parametrize("shape", [(1, 6), (2, 3, 4, 6)])
def test_matrix_vector_activation(kind: str, shape: tuple[int, ...]) -> None:
    x, w = RNG.integers(0, 4, shape).astype(np.float32), RNG.integers(-2, 2, (6, 4))
    thresholds = np.sort(RNG.integers(-8, 8, (4, 3)), axis=1)
    kinds = {"inputDataType": "UINT2", "weightDataType": "INT2", "outputDataType": "INT2", "MW": 6, "MH": 4}
    (found,) = execute(load(model("MVAU", kind, x, [w, thresholds], ActVal=-2, **kinds)), {"x": x})
    np.testing.assert_array_equal(found, reached(x @ w, thresholds) - 2)
    (found,) = execute(load(model("MVAU", kind, x, [w], noActivation=1, **kinds)), {"x": x})
    np.testing.assert_array_equal(found, x @ w)
    signs = {**kinds, "outputDataType": "BIPOLAR"}
    (found,) = execute(load(model("MVAU", kind, x, [w, thresholds[:, :1]], **signs)), {"x": x})
    np.testing.assert_array_equal(found, 2 * reached(x @ w, thresholds[:, :1]) - 1)


@pytest.mark.parametrize("stored", ["BIPOLAR", "BINARY"])
def test_equal_pairs_are_counted(stored: str) -> None:
    x, w = RNG.integers(0, 2, (2, 5)), RNG.integers(0, 2, (5, 4))
    equal = (x[:, :, None] == w[None]).sum(1)
    thresholds = np.array([[1, 3]] * 4)
    if stored == "BIPOLAR":
        x, w = 2 * x - 1, 2 * w - 1
    kinds = {"inputDataType": stored, "weightDataType": stored, "outputDataType": "UINT2", "MW": 5, "MH": 4}
    feed = x.astype(np.float32)
    made = model("MVAU", "hls", feed, [w, thresholds], binaryXnorMode=int(stored == "BINARY"), **kinds)
    (found,) = execute(load(made), {"x": feed})
    np.testing.assert_array_equal(found, reached(equal, thresholds))


def test_thresholding() -> None:
    x, thresholds = RNG.standard_normal((2, 3, 3, 4)).astype(np.float32), np.sort(RNG.standard_normal((4, 3)), axis=1)
    made = model("Thresholding", "rtl", x, [thresholds], NumChannels=4, ActVal=-4, outputDataType="INT3")
    (found,) = execute(load(made), {"x": x})
    np.testing.assert_array_equal(found, reached(x, thresholds.astype(np.float32)) - 4)


def test_what_does_not_fit_is_refused_and_the_rest_stays_opaque() -> None:
    x, w = np.zeros((1, 6), np.float32), np.zeros((6, 4))
    kinds = {"inputDataType": "UINT2", "weightDataType": "INT2", "outputDataType": "INT2", "noActivation": 1}
    with pytest.raises(InputError, match="E110"):
        load(model("MVAU", "hls", x, [w], MW=6, MH=5, **kinds))
    x = np.zeros((2, 3, 6), np.float32)  # where FINN's own thresholds meet another axis
    graph = load(model("Thresholding", "hls", x, [np.zeros((6, 1))], NumChannels=6, outputDataType="UINT2"))
    assert [node.op.name for node in graph] == ["opaque"]
    assert [n.op.name for n in load(model("VVAU", "hls", x, [w], **kinds))] == ["opaque"]


def test_the_folded_network_decides_as_its_training_did(real_data: Callable[[str], Path]) -> None:
    path = real_data("models/finn_cybsec_PE_SIMD.onnx")
    proto = onnx.load(path)
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "n"
    samples = intrusions(path.parent.parent)[0][::16]  # the models benchmark takes all
    (found,) = execute(load(proto), [samples])
    np.testing.assert_array_equal(found, trained_intrusions(path.parent.parent)(samples))
