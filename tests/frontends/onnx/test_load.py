"""Models of many operator sets and dialects mean what onnxruntime says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

import espalier.frontends
from espalier.analysis.coupling import couple
from espalier.backends.onnx import to_model
from espalier.errors import InputError
from espalier.frontends.onnx import load
from espalier.ir.execute import execute
from espalier.ir.verify import verify

RNG = np.random.default_rng(0)


def tensor(name: str, array: np.ndarray) -> TensorProto:
    return onnx.numpy_helper.from_array(array, name)


def build(nodes, feeds: dict[str, np.ndarray], opset: int, weights=(), outputs=("y",), domains=()) -> ModelProto:
    code = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(k, code(v.dtype), v.shape) for k, v in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [tensor(k, v) for k, v in dict(weights).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def onnxruntime_outputs(model: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def agrees(
    model: ModelProto, feeds: dict[str, np.ndarray], tolerance: float = 1e-5, exported: bool = True
) -> list[str]:
    """Import, verify, run, export at the same operator set; the names of the operators."""
    graph = load(model)
    verify(graph)
    expected = onnxruntime_outputs(model, feeds)
    for want, have in zip(expected, execute(graph, feeds), strict=True):
        assert want.dtype == have.dtype
        np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance)
    if exported:
        again = to_model(graph)
        onnx.checker.check_model(again)
        assert again.opset_import[0].version == model.opset_import[0].version
        for want, have in zip(expected, onnxruntime_outputs(again, feeds), strict=True):
            np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance)
    return [node.op.name for node in graph]


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


N = helper.make_node
X = {"x": floats(2, 3, 4, 5)}
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], dict[str, np.ndarray], int]] = {
    "softmax over several axes": ([N("Softmax", ["x"], ["y"], axis=1)], X, {}, 11),
    "softmax with the old default": ([N("LogSoftmax", ["x"], ["y"])], X, {}, 9),
    "hardmax": ([N("Hardmax", ["x"], ["y"], axis=2)], X, {}, 11),
    "clip with attributes": ([N("Clip", ["x"], ["y"], min=-0.5, max=0.25)], X, {}, 7),
    "slice with attributes": ([N("Slice", ["x"], ["y"], axes=[1, 3], starts=[1, -3], ends=[3, 100])], X, {}, 9),
    "pad with attributes": ([N("Pad", ["x"], ["y"], pads=[0, 1, 0, 2, 0, 0, 1, 0], value=3.0)], X, {}, 10),
    "squeeze": ([N("Unsqueeze", ["x"], ["u"], axes=[0, 3]), N("Squeeze", ["u"], ["y"], axes=[3])], X, {}, 11),
    "reduce": ([N("ReduceSum", ["x"], ["y"], axes=[1, -1], keepdims=0)], X, {}, 11),
    "reduce mean": ([N("ReduceMean", ["x"], ["y"], axes=[2])], X, {}, 13),
    "split by attribute": ([N("Split", ["x"], ["y", "z"], axis=3, split=[2, 3])], X, {}, 11),
    "split evenly": ([N("Split", ["x"], ["y", "z"], axis=2)], X, {}, 13),
    "topk": ([N("TopK", ["x"], ["y", "z"], k=2)], X, {}, 9),
    "dropout": ([N("Dropout", ["x"], ["y"], ratio=0.3)], X, {}, 10),
    "upsample by attribute": ([N("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 3.0], mode="nearest")], X, {}, 7),
    "upsample": (
        [N("Upsample", ["x", "s"], ["y"], mode="linear")], X, {"s": np.array([1, 1, 2, 2], np.float32)}, 9,
    ),
    "resize of opset 10": (
        [N("Resize", ["x", "s"], ["y"], mode="nearest")], X, {"s": np.array([1, 1, 1.5, 2], np.float32)}, 10,
    ),
    "scatter": (
        [N("Scatter", ["x", "i", "u"], ["y"], axis=1)], X,
        {"i": np.zeros((1, 1, 1, 2), np.int64), "u": floats(1, 1, 1, 2)}, 9,
    ),
    "batch norm": (
        [N("BatchNormalization", ["x", "a", "b", "c", "d"], ["y"], epsilon=1e-3)], X,
        {"a": floats(3), "b": floats(3), "c": floats(3), "d": np.ones(3, np.float32)}, 9,
    ),
    "convolution with automatic pads": (
        [N("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2], kernel_shape=[2, 3])], X,
        {"w": floats(4, 3, 2, 3)}, 11,
    ),
    "pool with automatic pads": (
        [N("MaxPool", ["x"], ["y"], auto_pad="SAME_UPPER", kernel_shape=[3, 2], strides=[2, 1])], X, {}, 12,
    ),
    "gemm": ([N("Gemm", ["a", "b", "c"], ["y"], transB=1, alpha=0.5)], {"a": floats(2, 3)},
             {"b": floats(4, 3), "c": floats(4)}, 8),
    "cast": ([N("Cast", ["x"], ["y"], to=TensorProto.INT32)], X, {}, 8),
    "shape arithmetic": (
        [N("Shape", ["x"], ["s"]), N("Gather", ["s", "k"], ["b"]), N("Concat", ["b", "r"], ["t"], axis=0),
         N("Reshape", ["x", "t"], ["y"])], X, {"k": np.array([0]), "r": np.array([-1])}, 13,
    ),
    "layer norm": ([N("LayerNormalization", ["x", "a"], ["y"])], X, {"a": floats(5)}, 17),
    "gelu": ([N("Gelu", ["x"], ["y"], approximate="tanh")], X, {}, 20),
    "group norm": ([N("GroupNormalization", ["x", "a", "b"], ["y"], num_groups=3)], X,
                   {"a": floats(3), "b": floats(3)}, 21),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_old_operator_sets(name: str) -> None:
    nodes, feeds, weights, opset = CASES[name]
    outputs = [*nodes[-1].output]
    operators = agrees(build(nodes, feeds, opset, weights, outputs), feeds)
    assert "opaque" not in operators


@pytest.mark.parametrize("opset", range(7, 25))
def test_every_operator_set(opset: int) -> None:
    weights = {"w": floats(4, 3, 3, 3), "b": floats(4), "m": floats(5, 6)}
    nodes = [
        N("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        N("Relu", ["c"], ["r"]),
        N("MatMul", ["r", "m"], ["p"]),
        N("Add", ["p", "p"], ["d"]),
        N("Softmax", ["d"], ["y"], axis=3),
    ]
    operators = agrees(build(nodes, X, opset, weights), X)
    assert operators == ["conv", "relu", "matmul", "add", "softmax"]


def test_group_norm_of_opset_18() -> None:
    """Its scales are by group."""
    nodes = [N("GroupNormalization", ["x", "a", "b"], ["y"], num_groups=2)]
    feeds, a, b = {"x": floats(2, 4, 3)}, floats(2), floats(2)
    graph = load(build(nodes, feeds, 18, {"a": a, "b": b}))
    (found,) = execute(graph, feeds)
    grouped = feeds["x"].reshape(2, 2, -1)
    normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    expected = (normal * a[:, None] + b[:, None]).reshape(2, 4, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_broadcasting_of_opset_6() -> None:
    nodes = [N("Add", ["x", "b"], ["y"], broadcast=1, axis=1)]
    graph = load(build(nodes, X, 6, {"b": np.arange(3, dtype=np.float32)}))
    (found,) = execute(graph, X)
    np.testing.assert_array_equal(found, X["x"] + np.arange(3, dtype=np.float32).reshape(3, 1, 1))


def test_names_and_places_are_kept() -> None:
    graph = load(build([N("Relu", ["x"], ["h"], name="first"), N("Neg", ["h"], ["y"])], X, 17))
    assert [node.location.names for node in graph] == [("first",), ("y",)]
    assert [value.name for value in graph.inputs] == ["x"] and graph.output_names == ["y"]
    assert graph.metadata["opset"] == 17


def test_initializers_are_shared() -> None:
    nodes = [N("MatMul", ["x", "w"], ["a"]), N("MatMul", ["a", "w"], ["y"])]
    graph = load(build(nodes, {"x": floats(2, 4)}, 17, {"w": floats(4, 4)}))
    first, second = graph.nodes
    assert first.operands[1] is second.operands[1]
    assert len(graph.constants()) == 1


def test_dynamic_dimensions_are_symbols() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", None, "N + 1", "a-b"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = load(helper.make_model(helper.make_graph([N("Relu", ["x"], ["y"])], "g", [x], [y]), ir_version=8))
    n, unnamed, more, text = graph.inputs[0].shape
    assert str(n) == "N" and str(more) == "N+1"
    assert str(unnamed) not in ("N", "a-b") and str(text) == '"a-b"'
    assert graph.outputs[0].type == graph.inputs[0].type


def body(nodes, inputs, outputs) -> onnx.GraphProto:
    def info(name: str, kind: int, shape: object) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    return helper.make_graph(nodes, "body", [info(*i) for i in inputs], [info(*o) for o in outputs])


def test_loop_captures_outer_values() -> None:
    F, J, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    inner = body(
        [N("Add", ["v", "x"], ["w"]), N("Identity", ["go"], ["on"]), N("Identity", ["w"], ["row"])],
        [("i", J, []), ("go", B, []), ("v", F, [2])],
        [("on", B, []), ("w", F, [2]), ("row", F, [2])],
    )
    feeds = {"x": floats(2), "n": np.array(3)}
    nodes = [N("Loop", ["n", "", "zero"], ["y", "rows"], body=inner)]
    operators = agrees(build(nodes, feeds, 16, {"zero": np.zeros(2, np.float32)}, ("y", "rows")), feeds)
    assert operators == ["loop"]


def test_loop_that_grows_its_value() -> None:
    F, J, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    inner = body(
        [N("Concat", ["v", "x"], ["w"], axis=0), N("Identity", ["go"], ["on"])],
        [("i", J, []), ("go", B, []), ("v", F, ["k"])],
        [("on", B, []), ("w", F, ["k2"])],
    )
    feeds = {"x": floats(2), "n": np.array(3)}
    model = build([N("Loop", ["n", "", "x"], ["y"], body=inner)], feeds, 16)
    agrees(model, feeds)
    assert not isinstance(load(model).outputs[0].shape[0], int)


def test_branches_capture_different_values() -> None:
    then = body([N("Add", ["x", "x"], ["t"])], [], [("t", TensorProto.FLOAT, [2])])
    other = body([N("Mul", ["z", "x"], ["e"])], [], [("e", TensorProto.FLOAT, [2])])
    for value in (True, False):
        feeds = {"c": np.array(value), "x": floats(2), "z": floats(2)}
        agrees(build([N("If", ["c"], ["y"], then_branch=then, else_branch=other)], feeds, 13), feeds)


def quantized(value: float = 0.05) -> dict[str, np.ndarray]:
    return {"s": np.array(value, np.float32), "z": np.array(3, np.uint8)}


def test_qlinear_matmul_becomes_a_matmul_of_dequantized_values() -> None:
    feeds = {"a": RNG.integers(0, 255, (3, 4), np.uint8), "b": RNG.integers(0, 255, (4, 5), np.uint8)}
    weights = {**quantized(), "t": np.array(2.0, np.float32)}
    nodes = [N("QLinearMatMul", ["a", "s", "z", "b", "s", "z", "t", "z"], ["y"])]
    assert agrees(build(nodes, feeds, 13, weights), feeds) == ["dequantize", "dequantize", "matmul", "quantize"]


def test_qlinear_conv_with_bias_and_scales_by_channel() -> None:
    feeds = {"x": RNG.integers(0, 255, (1, 2, 5, 5), np.uint8)}
    weights = {
        **quantized(), "w": RNG.integers(-9, 9, (3, 2, 3, 3), np.int8), "ws": np.array([0.1, 0.2, 0.05], np.float32),
        "wz": np.zeros(3, np.int8), "b": np.array([100, -50, 7], np.int32), "t": np.array(0.4, np.float32),
    }  # fmt: skip
    nodes = [N("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "t", "z", "b"], ["y"], pads=[1, 1, 1, 1])]
    operators = agrees(build(nodes, feeds, 13, weights), feeds)
    assert "conv" in operators and operators[-1] == "quantize"


MICROSOFT: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "Gelu": ([N("Gelu", ["x"], ["y"], domain="com.microsoft")], X, {}),
    "BiasGelu": ([N("BiasGelu", ["x", "b"], ["y"], domain="com.microsoft")], X, {"b": floats(5)}),
    "FastGelu": ([N("FastGelu", ["x", "b"], ["y"], domain="com.microsoft")], X, {"b": floats(5)}),
    "QuickGelu": ([N("QuickGelu", ["x"], ["y"], domain="com.microsoft")], X, {}),
    "FusedMatMul": (
        [N("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft", transA=1, transB=1, alpha=0.5)],
        {"a": floats(4, 3), "b": floats(5, 4)}, {},
    ),
    "SkipLayerNormalization": (
        [N("SkipLayerNormalization", ["x", "k", "g", "h", "b"], ["y"], domain="com.microsoft")],
        {"x": floats(2, 3, 8), "k": floats(2, 3, 8)}, {"g": floats(8), "h": floats(8), "b": floats(8)},
    ),
    "FusedConv": (
        [N("FusedConv", ["x", "w"], ["y"], domain="com.microsoft", activation="Relu", pads=[1, 1, 1, 1])],
        X, {"w": floats(4, 3, 3, 3)},
    ),
    "QLinearAdd": (
        [N("QLinearAdd", ["a", "s", "z", "b", "s", "z", "t", "z"], ["y"], domain="com.microsoft")],
        {"a": RNG.integers(0, 255, (3, 4), np.uint8), "b": RNG.integers(0, 255, (3, 4), np.uint8)},
        {**quantized(), "t": np.array(0.11, np.float32)},
    ),
    "QLinearSigmoid": (
        [N("QLinearSigmoid", ["a", "s", "z", "t", "u"], ["y"], domain="com.microsoft")],
        {"a": RNG.integers(0, 255, (3, 4), np.uint8)},
        {**quantized(), "t": np.array(1 / 256, np.float32), "u": np.array(0, np.uint8)},
    ),
    "QLinearConcat": (
        [N("QLinearConcat", ["t", "z", "a", "s", "z", "b", "s", "z"], ["y"], domain="com.microsoft", axis=1)],
        {"a": RNG.integers(0, 255, (3, 4), np.uint8), "b": RNG.integers(0, 255, (3, 2), np.uint8)},
        {**quantized(), "t": np.array(0.07, np.float32)},
    ),
    "QLinearGlobalAveragePool": (
        [N("QLinearGlobalAveragePool", ["a", "s", "z", "t", "z"], ["y"], domain="com.microsoft")],
        {"a": RNG.integers(0, 255, (2, 3, 4, 4), np.uint8)}, {**quantized(), "t": np.array(0.04, np.float32)},
    ),
    **{
        f"MatMulNBits of {bits} bits in {k}": (
            [
                N("MatMulNBits", ["x", "w", "s", *zeros], ["y"], domain="com.microsoft",
                  K=k, N=8, bits=bits, block_size=32)
            ],
            {"x": floats(3, k)},
            {
                "w": RNG.integers(0, 255, (8, -(-k // 32), 4 * bits), np.uint8),
                "s": np.abs(floats(8 * -(-k // 32))) * 0.1,
                **{name: RNG.integers(0, 255, 8 * -(-k * bits // 256), np.uint8) for name in zeros},
            },
        )
        for bits, k, zeros in ((2, 64, []), (4, 64, []), (8, 64, []), (2, 90, ["z"]), (4, 90, ["z"]), (8, 90, ["z"]))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MICROSOFT)
def test_operators_of_onnxruntime(name: str) -> None:
    nodes, feeds, weights = MICROSOFT[name]
    operators = agrees(build(nodes, feeds, 17, weights, domains=["com.microsoft"]), feeds, 1e-4, exported=False)
    assert "opaque" not in operators


def test_unknown_variants_stay_opaque_and_go_out_again() -> None:
    nodes = [N("Relu", ["x"], ["h"]), N("Mystery", ["h"], ["y"], domain="d", level=2, name="m")]
    model = build(nodes, X, 17, domains=["d"])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3]))
    again = to_model(load(model))
    assert again.graph.node[1].op_type == "Mystery" and again.graph.node[1].domain == "d"
    assert again.graph.node[1].attribute[0].i == 2
    assert {(entry.domain, entry.version) for entry in again.opset_import} == {("", 17), ("d", 1)}


@pytest.mark.parametrize("domain", ["onnx.brevitas", "qonnx.custom_op.general", "finn.custom_op.general"])
def test_dialects_of_qonnx(domain: str) -> None:
    weights = {"s": np.array(0.25, np.float32), "z": np.array(0, np.float32), "b": np.array(4, np.float32)}
    nodes = [N("Quant", ["x", "s", "z", "b"], ["y"], domain=domain, signed=1, narrow=1, rounding_mode="ROUND")]
    graph = load(build(nodes, X, 13, weights))
    assert [node.op.name for node in graph] == ["quant"]
    (found,) = execute(graph, X)
    np.testing.assert_array_equal(found, np.clip(np.rint(X["x"] / 0.25), -7, 7) * np.float32(0.25))


def test_external_data_is_mapped(tmp_path: Path) -> None:
    weight = floats(64, 64)
    model = build([N("MatMul", ["x", "w"], ["y"])], {"x": floats(2, 64)}, 17, {"w": weight})
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    graph = load(tmp_path / "m.onnx")
    (constant,) = graph.constants()
    assert type(constant.constant.source).__name__ == "FileSource"
    np.testing.assert_array_equal(constant.array, weight)


@pytest.mark.parametrize("bits", [32, 4])
def test_external_data_that_changed_since_are_refused(tmp_path: Path, bits: int) -> None:
    weight = floats(8, 8) if bits == 32 else np.ones((8, 8), np.float32)
    weights = {"w": weight if bits == 32 else weight.astype(ml_dtypes.int4)}
    nodes = [N("MatMul", ["x", "w"], ["y"])] if bits == 32 else [N("Cast", ["w"], ["y"], to=TensorProto.FLOAT)]
    model = build(nodes, {"x": floats(2, 8)}, 21, weights)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    data = tmp_path / "w.bin"
    (constant,) = load(tmp_path / "m.onnx").constants()
    np.testing.assert_array_equal(constant.array.astype(np.float32), weight)
    written = data.stat().st_mtime_ns
    data.write_bytes(bytes(data.stat().st_size))
    os.utime(data, ns=(written, written + 1_000_000))  # whatever the clock's step
    with pytest.raises(InputError, match=r"E106: w\.bin has changed since the model was loaded"):
        _ = constant.array
    data.write_bytes(b"")
    os.utime(data, ns=(written, written))
    with pytest.raises(InputError, match="E106"):
        _ = constant.array
    data.unlink()
    with pytest.raises(InputError, match="E104"):
        _ = constant.array


def test_load_dispatches_on_what_it_gets(tmp_path: Path) -> None:
    model = build([N("Relu", ["x"], ["y"])], X, 17)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    graph = espalier.frontends.load(path)
    assert espalier.frontends.load(graph) is graph
    for source in (str(path), model, model.SerializeToString()):
        assert [node.op.name for node in espalier.frontends.load(source)] == ["relu"]
    for source, code in ((tmp_path / "x.pth", "E113"), (tmp_path / "x.weird", "E101"), (object(), "E102")):
        with pytest.raises(InputError) as caught:
            espalier.frontends.load(source)
        assert caught.value.code == code


def test_real_models(real_data: Callable[[str], Path]) -> None:
    """All import but one, whose batch normalisation onnxruntime refuses too."""
    for path in sorted(real_data("models").glob("*.onnx")):
        if path.name == "jsc_three_layer_bn_keras.onnx":
            with pytest.raises(InputError, match="E110"):
                load(path)
            continue
        graph = load(path)
        verify(graph)
        assert not [node for node in graph if node.op.name == "opaque"], path.name


@pytest.mark.parametrize(
    ("shape", "attributes", "scale"),
    [
        ((1, 2, 4, 9), {}, 1 / 3),
        ((1, 4, 8), {"q_num_heads": 2, "kv_num_heads": 2}, 0.5),
        ((1, 2, 4, "width"), {}, None),
        ((1, 2, 4, 9), {"scale": 0.25}, 0.25),
    ],
)
def test_the_scale_of_attention_is_a_number(shape, attributes, scale) -> None:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "qkv"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], **attributes)
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info("y")])
    (found,) = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))
    assert found.op.scale == (None if scale is None else pytest.approx(scale, rel=1e-12))


def test_heads_of_attention_can_be_narrowed() -> None:
    shapes = {"x": (1, 2, 4, 8)}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    weights = {name: RNG.standard_normal((8, 6)).astype(np.float32) for name in ("wq", "wk")}
    nodes = [helper.make_node("MatMul", ["x", name], [name[1]]) for name in weights]
    nodes.append(helper.make_node("Attention", ["q", "k", "x"], ["y"]))
    outputs = [helper.make_empty_tensor_value_info("y")]
    graph = helper.make_graph(nodes, "g", infos, outputs, [tensor(k, v) for k, v in weights.items()])
    found = couple(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])))
    assert [unit.extent for unit in found.removable()] == [6]
