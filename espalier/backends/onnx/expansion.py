"""Operators by others: the function body that ONNX gives for an operator, as a small graph."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from espalier.backends.onnx.printer import attribute_protos, print_node
from espalier.errors import EspalierError
from espalier.frontends.onnx import schemas
from espalier.frontends.onnx.importer import Importer
from espalier.frontends.onnx.reader import NEWEST
from espalier.ir.graph import Graph, Node, Value


def expand(node: Node) -> Graph | None:
    """A graph that computes the node by older operators; None if ONNX defines none.

    Its inputs are the node's operands that are there and no constants, each time they occur; constants are used as they
    are.
    """
    op = node.op
    if op.onnx is None or op.onnx_domain or node.regions:
        return None
    schema = schemas.newest_schema("", op.onnx)
    if schema is None or not (schema.has_function or schema.has_context_dependent_function):
        return None
    printed = print_node(node, NEWEST)
    proto = NodeProto(op_type=op.onnx, name=op.onnx)
    proto.attribute.extend(attribute_protos(printed, NEWEST))
    importer = Importer(ModelProto(), None, {"": NEWEST}, op.name)
    importer.operators = {key: kind for key, kind in importer.operators.items() if key != ("", op.onnx)}
    scope = importer.scope
    for position, operand in enumerate(node.operands):
        if operand is None:
            proto.input.append("")
            continue
        proto.input.append(f"x{position}")
        value = operand
        if operand.constant is None:
            value = scope.graph.add_input(operand.type)
            value.content = operand.content
        scope.define(f"x{position}", value, op.name)
    proto.output.extend(f"y{k}" if result.uses or not k else "" for k, result in enumerate(node.results))
    try:
        importer.read_nodes([proto], scope)
    except EspalierError:
        return None
    outputs = [scope.find(f"y{k}") for k in range(len(node.results))]
    found = [value for value in outputs if isinstance(value, Value)]
    if any(inner.op.onnx is None for inner in scope.graph):
        return None
    scope.graph.set_outputs(found)
    return scope.graph
