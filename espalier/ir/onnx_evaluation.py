"""Running one ONNX node that the IR does not know, through onnxruntime or ONNX's own evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from espalier.errors import UnsupportedError


def run_onnx_node(serialized: bytes, opsets: Mapping[str, int], arrays: Sequence[Any], result_count: int) -> list[Any]:
    """Run a serialized NodeProto on arrays (None for absent inputs) and return its results.

    onnxruntime runs it if it is installed and knows the operator, else ONNX's reference evaluator. Raises
    UnsupportedError naming the node if neither can.
    """
    node = onnx.NodeProto.FromString(serialized)
    names = [f"x{k}" if array is not None else "" for k, array in enumerate(arrays)]
    outputs = [f"y{k}" for k in range(result_count)]
    del node.input[:], node.output[:]
    node.input.extend(names)
    node.output.extend(outputs)
    feed = {name: np.asarray(array) for name, array in zip(names, arrays, strict=True) if name}
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(name, _element(array), array.shape) for name, array in feed.items()],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()] or None)
    reasons = []
    for evaluate in (_onnxruntime, _reference):
        try:
            return evaluate(model, outputs, feed)
        except Exception as error:  # each library has exceptions of its own for what it can't run
            reasons.append(f"{type(error).__name__}: {str(error)[:200]}")
    raise UnsupportedError(
        "E403",
        f"neither onnxruntime nor ONNX's evaluator can run {node.domain or 'ai.onnx'}::{node.op_type}"
        f" ({'; '.join(reasons)})",
        node=node.op_type,
        source=node.name or None,
        hint="Register an operator of this meaning (entry-point group espalier.ops), or export the model without it.",
    )


def _element(array: Any) -> int:
    return TensorProto.STRING if array.dtype.kind in "OSU" else helper.np_dtype_to_tensor_dtype(array.dtype)


def _onnxruntime(model: onnx.ModelProto, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
    import onnxruntime

    model.ir_version = min(model.ir_version, 10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(outputs, feed))


def _reference(model: onnx.ModelProto, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    return list(ReferenceEvaluator(model).run(outputs, feed))
