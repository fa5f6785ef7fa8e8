from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import espalier
from benchmarks.artifact import network
from espalier.backends.onnx.surgeon import cut, to_graphsurgeon
from espalier.errors import InputError


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


IMAGE = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype("f4")


def test_a_graph_goes_to_graphsurgeon_and_back() -> None:
    original = network(seed=0)
    surgeon = to_graphsurgeon(espalier.load(original))
    assert [node.op for node in surgeon.nodes] == [node.op_type for node in original.graph.node]
    surgeon.nodes[-1].attrs["alpha"] = 2.0
    from espalier.backends.onnx import to_model

    (scores,) = run(to_model(espalier.load(surgeon)), image=IMAGE)
    shift = onnx.numpy_helper.to_array(original.graph.initializer[-1])
    (wanted,) = run(original, image=IMAGE)
    np.testing.assert_allclose(scores, 2 * wanted - shift, rtol=1e-4, atol=1e-4)


def test_a_part_of_a_model_computes_what_it_computed_there() -> None:
    original = network(seed=0)
    whole = onnx.ModelProto()
    whole.CopyFrom(original)
    for name in ("conv0", "relu1"):
        whole.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    _, conv0, relu1 = run(whole, image=IMAGE)
    part = cut(espalier.load(original), ["conv0"], ["relu1"])
    onnx.checker.check_model(part)
    assert [node.op_type for node in part.graph.node] == [node.op_type for node in original.graph.node[1:6]]
    np.testing.assert_allclose(run(part, conv0=conv0)[0], relu1, rtol=1e-5, atol=1e-5)


def test_a_graph_that_cannot_be_exported_is_refused() -> None:
    surgeon = to_graphsurgeon(espalier.load(network(seed=0)))
    surgeon.inputs[0].dtype = None
    with pytest.raises(InputError) as caught:
        espalier.load(surgeon)
    assert caught.value.code == "E110"


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        (["conv0"], ["absent"], "'absent'"),
        (["conv1"], ["relu0"], "also need the model's input 'image'"),
    ],
)
def test_impossible_cuts_are_refused(inputs: list[str], outputs: list[str], words: str) -> None:
    with pytest.raises(InputError, match="E207") as caught:
        cut(espalier.load(network(seed=0)), inputs, outputs)
    assert words in caught.value.message
