"""Graphs for onnx-graphsurgeon: to edit by hand, or to cut a small part of a model out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from espalier.backends.onnx import to_model
from espalier.errors import InputError
from espalier.ir.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto


def to_graphsurgeon(graph: Graph, *, opset: int | None = None) -> Any:
    """The graph as an `onnx_graphsurgeon.Graph`, through ONNX. `espalier.load` reads such a graph again.

    Raises:
        InputError: E205 if onnx-graphsurgeon is not installed.
        UnsupportedError: As `espalier.backends.onnx.to_model`.
    """
    # With the types of all tensors, which exporting a part of the graph needs.
    return _surgeon().import_onnx(onnx.shape_inference.infer_shapes(to_model(graph, opset=opset), data_prop=True))


def cut(graph: Graph, inputs: Sequence[str], outputs: Sequence[str], *, opset: int | None = None) -> ModelProto:
    """The part of a model between tensors, as an ONNX model: the smallest one that shows what happens there.

    Args:
        inputs: Names of the tensors that become inputs; whatever computes them is left out.
        outputs: Names of the tensors that become outputs; whatever does not lead to them is left out.

    Raises:
        InputError: E205 if onnx-graphsurgeon is not installed; E207 for a name that no tensor of the exported model
            has, or if an output needs an input of the model that is not among `inputs`.
        UnsupportedError: As `espalier.backends.onnx.to_model`.
    """
    model = to_graphsurgeon(graph, opset=opset)
    tensors = model.tensors()
    for name in (*inputs, *outputs):
        if name not in tensors:
            raise InputError("E207", f"no tensor of the exported model is called {name!r}", node=name)
    kept = set(inputs)
    for tensor in (tensors[name] for name in inputs):
        tensor.inputs.clear()
    originals = {tensor.name for tensor in model.inputs} - kept
    model.inputs = [tensors[name] for name in inputs]
    model.outputs = [tensors[name] for name in outputs]
    model.cleanup(remove_unused_graph_inputs=True)
    needed = {tensor.name for node in model.nodes for tensor in node.inputs} | {tensor.name for tensor in model.outputs}
    if missing := sorted(originals & needed):
        message = f"the outputs also need the model's input {missing[0]!r}"
        raise InputError("E207", message, hint="Add it to the inputs.")
    try:
        cut_model: ModelProto = _surgeon().export_onnx(model)
    except Exception as error:  # for a tensor whose element type ONNX cannot infer
        raise InputError("E207", f"the graph cannot be cut there: {error}") from error
    return cut_model


def _surgeon() -> Any:
    try:
        import onnx_graphsurgeon
    except ImportError as error:
        raise InputError("E205", "this needs onnx-graphsurgeon", hint="pip install 'espalier[graphsurgeon]'") from error
    return onnx_graphsurgeon
