"""Nodes that look alike are converted once, but only where nothing else decides what they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import espalier
from espalier.errors import InputError
from espalier.ir.execute import execute
from espalier.ir.graph import Graph


def model(nodes: list[NodeProto], outputs: list[str], *, functions: Any = (), opset: int = 17) -> ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.ones(3, np.float32), name) for name in ("scale", "bias", "mean", "variance")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def operators(graph: Graph) -> list[str]:
    return [node.op.name for node in graph]


@pytest.mark.parametrize("first", [False, True])
def test_an_overload_is_another_function(first: bool) -> None:
    negated = helper.make_function(
        "", "Relu", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], [helper.make_opsetid("", 17)],
        overload="negated",
    )  # fmt: skip
    nodes = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["y"])]
    nodes[not first].overload = "negated"
    made = operators(espalier.load(model(nodes, ["y"], functions=[negated])))
    assert made == (["neg", "relu"] if first else ["relu", "neg"])


def test_a_reference_means_what_the_call_gives() -> None:
    def leaky() -> NodeProto:
        node = helper.make_node("LeakyRelu", ["a"], ["b"])
        node.attribute.append(AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT))
        return node

    function = helper.make_function("own", "Leaky", ["a"], ["b"], [leaky()], [helper.make_opsetid("", 17)], ["slope"])
    calls = [
        helper.make_node("Leaky", ["x"], [f"y{k}"], domain="own", slope=slope) for k, slope in enumerate((0.7, 0.2))
    ]
    outside = leaky()
    outside.input[:], outside.output[:] = ["x"], ["z"]
    graph = espalier.load(model([*calls, outside], ["y0", "y1", "z"], functions=[function]))
    assert [round(node.op.alpha, 6) for node in graph] == [0.7, 0.2, 0.01]


def test_running_statistics_are_left_out_only_where_nobody_reads_them() -> None:
    norm = helper.make_node(
        "BatchNormalization", ["x", "scale", "bias", "mean", "variance"], ["y", "m", "v", "sm", "sv"]
    )
    assert operators(espalier.load(model([norm], ["y"], opset=13))) == ["batch_norm"]
    with pytest.raises(InputError, match="running statistics in training mode only"):
        espalier.load(model([norm], ["y", "m"], opset=13))
    assert operators(espalier.load(model([norm], ["y"], opset=13))) == ["batch_norm"]


@pytest.mark.parametrize(
    "value",
    [
        {"value": numpy_helper.from_array(np.array([[1, 2, 3]], np.float32))}, {"value_float": 0.1},
        {"value_floats": [0.1, -2.5, 3.0]}, {"value_int": -7}, {"value_ints": [1, -2, 3]},
    ],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
def test_constants_by_every_attribute(value: dict[str, Any]) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], **value),
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["z"], to=TensorProto.FLOAT),
    ]
    proto, x = model(nodes, ["y", "z"]), np.arange(6, dtype=np.float32).reshape(2, 3)
    wanted = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    for mine, theirs in zip(execute(espalier.load(proto), [x]), wanted, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: setattr(a, "type", AttributeProto.FLOAT), "wrong type"),
        (lambda a: setattr(a, "name", "number"), "no attribute 'number'"),
        (lambda a: setattr(a.t, "raw_data", b"123"), "bytes do not hold"),
    ],
)
def test_a_broken_constant_is_refused(change: Any, message: str) -> None:
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(3, np.float32)))
    change(node.attribute[0])
    with pytest.raises(InputError, match=message):
        espalier.load(model([node, helper.make_node("Add", ["x", "c"], ["y"])], ["y"]))


def test_private_attributes_of_a_constant_say_nothing() -> None:
    add = helper.make_node("Add", ["x", "c"], ["y"])
    noted = helper.make_node("Constant", [], ["c"], value_float=2.0, _note=1)
    assert operators(espalier.load(model([noted, add], ["y"]))) == ["add"]
    with pytest.raises(InputError, match="Constant needs exactly one value"):
        espalier.load(model([helper.make_node("Constant", [], ["c"], _note=1), add], ["y"]))


def test_numbers_of_a_constant_need_an_opset_that_has_them() -> None:
    nodes = [helper.make_node("Constant", [], ["c"], value_ints=[3, 2]), helper.make_node("Reshape", ["x", "c"], ["y"])]
    assert operators(espalier.load(model(nodes, ["y"], opset=12))) == ["reshape"]
    with pytest.raises(InputError, match="Constant has no attribute 'value_ints'"):
        espalier.load(model(nodes, ["y"], opset=11))
    assert onnx.defs.get_schema("Constant", 11).since_version == 11
