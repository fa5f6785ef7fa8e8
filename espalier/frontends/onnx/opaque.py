"""Nodes that nothing here knows: kept whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import GraphProto, NodeProto, TypeProto

from espalier.errors import UnsupportedError
from espalier.frontends.onnx import schemas
from espalier.frontends.onnx.functions import type_proto
from espalier.ir.graph import Value
from espalier.ir.ops.opaque import Opaque
from espalier.ir.types import TensorType, Type

if TYPE_CHECKING:
    from espalier.frontends.onnx.site import Site


def opaque(site: Site) -> Sequence[Value]:
    """The results of a node that is carried through unchanged.

    Their types are the declared ones, or what ONNX infers, or else of unknown rank with the first operand's element;
    the names of the last kind are noted in the graph's metadata ("assumed_types").
    Raises UnsupportedError E407 for a body that uses values from outside.
    """
    node = NodeProto()
    node.CopyFrom(site.proto)
    del node.attribute[:]
    node.attribute.extend(site.raw.values())
    for attribute in site.raw.values():
        for body in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            free = _free_names(body)
            if free:
                raise UnsupportedError(
                    "E407", f"the body of the unknown operator {site.op_type} uses {free[0]!r} from outside",
                    node=site.location,
                )  # fmt: skip
    inferred = _infer(site)
    types: list[Type] = []
    for name in list(site.proto.output)[: site.results]:
        info = site.scope.declared.get(name)
        found = site.importer.types.read(info.type, name) if info is not None else None
        found = found or inferred.get(name)
        if found is None:
            first = next(
                (v.type.element for v in site.operands if v is not None and isinstance(v.type, TensorType)), None
            )
            if first is None:
                raise UnsupportedError(
                    "E403", f"nothing tells the type of {name!r}, a result of the unknown operator {site.op_type}",
                    node=site.location, hint="Declare it in the model (value_info).",
                )  # fmt: skip
            found = TensorType(first, None)
            site.importer.assumed.append(name)
        types.append(found)
    op = Opaque(
        domain=site.domain,
        op_type=site.op_type,
        node=node.SerializeToString(deterministic=True),
        result_types=tuple(map(str, types)),
        opsets=tuple(sorted(site.scope.opsets.items())),
    )
    return site.build.node(op, site.operands, results=len(types)).results


def _infer(site: Site) -> dict[str, Type]:
    """The types that ONNX's own inference finds."""
    schema = schemas.schema_of(site.domain, site.op_type, site.version)
    if schema is None or not schema.has_type_and_shape_inference_function:
        return {}
    named = zip(site.proto.input, site.operands, strict=False)
    types: dict[str, TypeProto] = {name: type_proto(value.type) for name, value in named if value is not None}
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in site.scope.opsets.items()]
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, site.proto, types, opset_imports=opsets)
    except Exception:  # whatever ONNX can't infer stays unknown
        return {}
    read = {name: site.importer.types.read(proto, name) for name, proto in found.items()}
    return {name: type for name, type in read.items() if type is not None}


def _free_names(body: GraphProto) -> list[str]:
    """Names that a graph uses and does not define."""
    defined = {tensor.name for tensor in body.initializer} | {info.name for info in body.input}
    free = []
    for node in body.node:
        inner = [a.g for a in node.attribute if a.HasField("g")]
        used = [*node.input, *(name for graph in inner for name in _free_names(graph))]
        free += [name for name in used if name and name not in defined]
        defined.update(node.output)
    return free + [info.name for info in body.output if info.name not in defined]
