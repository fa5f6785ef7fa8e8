"""Residual chains of convolution, batch norm and ReLU, of any length: what compilers are slow on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

CHANNELS, EXTENT = 4, 8
OPSET = 17


def residual_chain(nodes: int, seed: int = 0) -> onnx.ModelProto:
    """A model of about so many nodes: blocks of conv, norm, ReLU, conv, norm, add, ReLU, each with its own weights."""
    rng = np.random.default_rng(seed)
    model_nodes, initializers = [], []

    def weight(name: str, array: np.ndarray) -> str:
        initializers.append(
            helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.astype("<f4").tobytes(), raw=True)
        )
        return name

    def layer(name: str, x: str) -> str:
        w = weight(f"{name}.w", rng.normal(0, 0.2, (CHANNELS, CHANNELS, 3, 3)))
        model_nodes.append(
            helper.make_node(
                "Conv", [x, w], [f"{name}.c"], f"{name}.conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]
            )
        )
        parts = [
            weight(f"{name}.{part}", array)
            for part, array in (
                ("scale", rng.uniform(0.5, 1.5, CHANNELS)),
                ("bias", rng.normal(0, 0.1, CHANNELS)),
                ("mean", rng.normal(0, 0.1, CHANNELS)),
                ("var", rng.uniform(0.5, 1.5, CHANNELS)),
            )
        ]
        model_nodes.append(helper.make_node("BatchNormalization", [f"{name}.c", *parts], [f"{name}.n"], f"{name}.norm"))
        return f"{name}.n"

    x, block = "x", 0
    while len(model_nodes) < nodes:
        name = f"b{block}"
        y = layer(f"{name}.1", x)
        model_nodes.append(helper.make_node("Relu", [y], [f"{name}.r"], f"{name}.relu"))
        y = layer(f"{name}.2", f"{name}.r")
        model_nodes.append(helper.make_node("Add", [y, x], [f"{name}.a"], f"{name}.add"))
        model_nodes.append(helper.make_node("Relu", [f"{name}.a"], [f"{name}.o"], f"{name}.out"))
        x, block = f"{name}.o", block + 1
    shape = ["N", CHANNELS, EXTENT, EXTENT]
    graph = helper.make_graph(
        model_nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def write_chain(path: Path, nodes: int) -> None:
    path.write_bytes(residual_chain(nodes).SerializeToString())
