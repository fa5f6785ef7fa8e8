"""Broken and hostile models get one clear error with the right code, or a correct result."""

from __future__ import annotations

import os
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from espalier.errors import EspalierError, InputError
from espalier.frontends.onnx import load
from espalier.ir.dims import symbol
from espalier.ir.execute import execute

FLOAT = TensorProto.FLOAT


def info(name: str, shape: object = (2, 3), kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs=None, outputs=None, initializers=(), opset: int = 17, **keywords) -> ModelProto:
    graph = helper.make_graph(nodes, "g", inputs or [info("x")], outputs or [info("y")], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **keywords)


def node(op_type: str, inputs: str = "x", outputs: str = "y", **attributes) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), name=f"the_{op_type}", **attributes)


def external(location: str, offset: object = 0, length: object = 24, shape=(2, 3)) -> ModelProto:
    weight = TensorProto(name="w", data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=str(value))
    return model([node("Add", "x w")], initializers=[weight])


def stored(folder: Path, proto: ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def refused(source: object, code: str, **options) -> EspalierError:
    with pytest.raises(EspalierError) as caught:
        load(source, **options)
    assert caught.value.code == code, str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message.strip()
    return caught.value


def test_truncated_file(tmp_path: Path) -> None:
    path = stored(tmp_path, model([node("Relu")]))
    path.write_bytes(path.read_bytes()[:-7])
    refused(path, "E103")


def test_no_model_at_all() -> None:
    refused(b"\x00\x01 this is no protobuf \xff" * 4, "E103")
    refused(b"", "E103")


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.onnx", "E101")
    refused(tmp_path, "E101")


def test_wrong_shapes() -> None:
    error = refused(model([node("MatMul", "x x")]), "E110")
    assert "the_MatMul" in str(error)


def test_declared_output_contradicts() -> None:
    refused(model([node("Relu")], outputs=[info("y", (2, 4))]), "E110")


def test_wrong_element() -> None:
    refused(model([node("Add", "x i")], inputs=[info("x"), info("i", kind=TensorProto.INT64)]), "E110")


def test_missing_external_data(tmp_path: Path) -> None:
    error = refused(stored(tmp_path, external("absent.bin")), "E104")
    assert "absent.bin" in str(error)


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../secret.bin", "a/../../secret.bin", "C:\\secret", "", "\\\\host\\x"]
)
def test_external_data_elsewhere(tmp_path: Path, location: str) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(24))
    refused(stored(tmp_path / "inside", external(location)), "E105")


def test_external_data_behind_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "w.bin").write_bytes(bytes(24))
    (inside / "link.bin").symlink_to(outside / "w.bin")
    (inside / "folder").symlink_to(outside)
    os.link(outside / "w.bin", inside / "hard.bin")
    (inside / "directory").mkdir()
    for location in ("link.bin", "folder/w.bin", "hard.bin", "directory"):
        refused(stored(inside, external(location)), "E105")


@pytest.mark.parametrize(
    ("offset", "length", "shape"),
    [
        (-4, 24, (2, 3)),
        (0, -24, (2, 3)),
        (4, 24, (2, 3)),
        (0, 20, (2, 3)),
        (0, 1 << 40, (1 << 19, 1 << 19)),
        ("ten", 24, (2, 3)),
    ],
)
def test_external_data_that_does_not_fit(tmp_path: Path, offset: object, length: int, shape: tuple[int, ...]) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(24))
    refused(stored(tmp_path, external("w.bin", offset, length, shape)), "E106")


def test_external_data_of_a_message() -> None:
    refused(external("w.bin"), "E104")


def test_cycle() -> None:
    error = refused(model([node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")]), "E108")
    assert "'b'" in str(error)


def test_undefined_name() -> None:
    refused(model([node("Add", "x ghost")]), "E109")
    refused(model([node("Relu", "x", "z")]), "E109")


def test_name_collisions() -> None:
    weight = helper.make_tensor("y", FLOAT, [1], [1.0])
    refused(model([node("Relu"), node("Relu")]), "E109")
    refused(model([node("Relu")], initializers=[weight]), "E109")
    refused(model([node("Relu")], inputs=[info("x"), info("x")]), "E109")
    refused(model([node("Relu", "x", "x")], outputs=[info("x")]), "E109")


def test_unknown_operator_is_kept_opaque() -> None:
    proto = model([helper.make_node("Mystery", ["x"], ["y"], domain="my.domain", name="m", level=3)])
    proto.opset_import.add(domain="my.domain", version=4)
    graph = load(proto)
    (made,) = graph.nodes
    assert made.op.name == "opaque"
    assert made.op.op_type == "Mystery"
    assert str(graph.outputs[0].type) == "f32[2, 3]"


def test_unknown_standard_operator() -> None:
    refused(model([node("Gelu")], opset=17), "E107")


@pytest.mark.parametrize("opset", [0, 99, -3])
def test_opset_that_nobody_knows(opset: int) -> None:
    refused(model([node("Relu")], opset=opset), "E107")


def test_newer_file_format() -> None:
    proto = model([node("Relu")])
    proto.ir_version = onnx.IR_VERSION + 1
    refused(proto, "E107")


def test_nan_weights_are_numbers() -> None:
    weight = helper.make_tensor("w", FLOAT, [2, 3], [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0])
    graph = load(model([node("Mul", "x w")], initializers=[weight]))
    (found,) = execute(graph, [np.ones((2, 3), np.float32)])
    np.testing.assert_array_equal(found, np.array([[np.nan, np.inf, -np.inf], [0, -0.0, 1]], np.float32))


def test_empty_graph() -> None:
    proto = ModelProto(ir_version=8)
    proto.opset_import.add(version=17)
    proto.graph.name = "empty"
    refused(proto, "E118")


def test_graph_without_nodes_returns_its_input() -> None:
    graph = load(model([], outputs=[info("x")]))
    (found,) = execute(graph, [np.ones((2, 3), np.float32)])
    np.testing.assert_array_equal(found, np.ones((2, 3), np.float32))


def test_extents_of_zero() -> None:
    graph = load(model([node("ReduceSum", "x", "y", keepdims=0)], [info("x", (0, 3))], [info("y", ())]))
    (found,) = execute(graph, [np.zeros((0, 3), np.float32)])
    assert found.shape == () and found == 0


def test_names_that_are_not_utf8() -> None:
    data = model([node("Relu", "x", "name!")], outputs=[info("name!")]).SerializeToString()
    refused(data.replace(b"name!", b"na\xff\xfe!"), "E112")


def test_strings_that_are_not_utf8() -> None:
    text = TensorProto(name="t", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff\xfe"])
    refused(model([node("Relu")], initializers=[text]), "E112")


@pytest.mark.parametrize("raw", [b"", bytes(20), bytes(28)])
def test_weight_of_the_wrong_size(raw: bytes) -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[2, 3], raw_data=raw)
    refused(model([node("Add", "x w")], initializers=[weight]), "E111")


def test_weight_of_typed_data_of_the_wrong_size() -> None:
    for field, code in (("float_data", FLOAT), ("int64_data", TensorProto.INT64), ("int32_data", TensorProto.INT4)):
        weight = TensorProto(name="w", data_type=code, dims=[1000])
        getattr(weight, field).extend([1, 2, 3])
        refused(model([node("Relu")], initializers=[weight]), "E111")


@pytest.mark.parametrize("code", [0, 57])
def test_weight_of_no_known_element(code: int) -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[1], raw_data=bytes(4))
    weight.data_type = code
    refused(model([node("Relu")], initializers=[weight]), "E111")


def test_weight_with_absurd_shape() -> None:
    for dims in ([1 << 40, 1 << 40], [-1]):
        weight = TensorProto(name="w", data_type=FLOAT, dims=dims, raw_data=bytes(4))
        assert refused(model([node("Relu")], initializers=[weight]), "E117" if dims[0] > 0 else "E111")


def test_sparse_weight_that_would_fill_memory() -> None:
    proto = model([node("Relu")])
    sparse = proto.graph.sparse_initializer.add(dims=[1 << 20, 1 << 20])
    sparse.values.CopyFrom(helper.make_tensor("s", FLOAT, [1], [1.0]))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [0]))
    refused(proto, "E117")


def test_attributes() -> None:
    refused(model([node("Concat", "x x")]), "E116")
    refused(model([node("Relu", alpha=1.0)]), "E116")
    refused(model([node("Softmax", axis="first")]), "E116")
    refused(model([node("Cast", to=999)]), "E116")
    refused(model([node("Softmax", axis=7)]), "E110")
    refused(model([node("Transpose", perm=[0, 9])]), "E110")


def test_input_without_type() -> None:
    bare = onnx.ValueInfoProto(name="x")
    refused(model([node("Relu")], inputs=[bare]), "E110")


def test_maps_are_refused() -> None:
    proto = onnx.ValueInfoProto(name="x")
    proto.type.map_type.key_type = TensorProto.INT64
    proto.type.map_type.value_type.tensor_type.elem_type = FLOAT
    refused(model([node("Relu")], inputs=[proto]), "E410")


def function(name: str, *calls: str) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    names = ["x", *(f"t{k}" for k in range(len(calls) - 1)), "y"]
    nodes = [
        helper.make_node(call, [a], [b], domain="" if call == "Relu" else "f")
        for call, a, b in zip(calls, names, names[1:], strict=False)
    ]
    return helper.make_function("f", name, ["x"], ["y"], nodes, opsets)


def calling(*functions: onnx.FunctionProto) -> ModelProto:
    proto = model([helper.make_node("F0", ["x"], ["y"], domain="f", name="call")], functions=list(functions))
    proto.opset_import.add(domain="f", version=1)
    return proto


def test_functions() -> None:
    graph = load(calling(function("F0", "F1", "Relu"), function("F1", "Relu")))
    assert [each.op.name for each in graph] == ["relu", "relu"]
    assert all(each.location.names[0].startswith("call/") for each in graph)


def test_recursive_function() -> None:
    refused(calling(function("F0", "F1"), function("F1", "F0")), "E119")
    refused(calling(function("F0", "Relu"), function("F0", "Relu")), "E109")


def test_functions_that_multiply() -> None:
    bomb = [function(f"F{k}", *[f"F{k + 1}"] * 10) for k in range(12)]
    refused(calling(*bomb, function("F12", *["Relu"] * 10)), "E117")


@pytest.mark.parametrize("build", [lambda p: p, lambda p: p.SerializeToString()])
def test_bodies_that_return_too_little(build: Callable[[ModelProto], object]) -> None:
    empty = helper.make_graph([], "body", [], [])
    cond = info("c", (), TensorProto.BOOL)
    proto = model([node("If", "c", then_branch=empty, else_branch=empty)], inputs=[info("x"), cond])
    refused(build(proto), "E110")


def test_errors_are_input_errors() -> None:
    with pytest.raises(InputError):
        load(object())


FACTORS = "*".join(f"({'+'.join('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN'[k : k + 5])})" for k in range(0, 40, 5))
"""95 letters that are the product of 8 sums of 5 symbols: 390,625 terms."""


@pytest.mark.parametrize(
    "text",
    ["*".join(["(a+b+c+d+e+f+g+h)"] * 14), "-" * 100000 + "n", "(" * 3000 + "n" + ")" * 3000, FACTORS],
)
def test_an_extent_named_by_an_endless_expression_is_one_symbol(text: str) -> None:
    shape = [*string.ascii_letters, text]
    infos = [onnx.helper.make_tensor_value_info(name, 1, shape) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", infos[:1], infos[1:])
    loaded = load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9))
    assert loaded.inputs[0].shape[-1] == symbol(text)
