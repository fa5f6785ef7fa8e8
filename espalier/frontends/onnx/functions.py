"""Inlining: functions of the model, and the bodies that ONNX gives for operators without a class in the IR."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnx import AttributeProto, FunctionProto, ModelProto, TypeProto

from espalier.errors import InputError
from espalier.frontends.onnx import schemas
from espalier.frontends.onnx.elements import code_of
from espalier.frontends.onnx.reader import NEWEST
from espalier.frontends.onnx.site import ABSENT, Results, Site
from espalier.ir.graph import Value
from espalier.ir.types import OptionalType, TensorType, Type

if TYPE_CHECKING:
    from espalier.ir.graph import Location

Key = tuple[str, str, str]
DEPTH = 100
"""How deep functions may call each other."""


def index(model: ModelProto) -> Mapping[Key, FunctionProto]:
    """The model's functions by domain, name and overload. Raises InputError E109 for one that is defined twice."""
    found: dict[Key, FunctionProto] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in found:
            raise InputError("E109", f"the function {function.domain}::{function.name} is defined twice")
        found[key] = function
    return found


def inline_local(site: Site, function: FunctionProto) -> Results:
    """The results of a call of a function of the model. Raises InputError E119 for wrong or recursive calls."""
    importer, key = site.importer, (function.domain, function.name, function.overload)
    name = f"{function.domain}::{function.name}"
    if key in importer.calls:
        raise InputError("E119", f"the function {name} calls itself", node=site.location)
    if len(importer.calls) >= DEPTH:
        raise InputError("E119", f"functions call each other more than {DEPTH} deep", node=site.location)
    if len(site.operands) > len(function.input) or site.results > len(function.output):
        raise InputError("E119", f"the function {name} is called with other operands than it has", node=site.location)
    opsets = {("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in function.opset_import}
    references = {attribute.name: attribute for attribute in function.attribute_proto}
    references.update(site.raw)
    importer.calls.append(key)
    try:
        return _inline(site, function, opsets or site.scope.opsets, references, f"{site.location.names[0]}/", None)
    finally:
        importer.calls.pop()


def inline_schema(site: Site) -> Results | None:
    """The results of a node by the body that its schema has; None if it has none."""
    schema = schemas.schema_of(site.domain, site.op_type, site.version)
    if schema is None:
        return None
    function = body(schema, site)
    if function is None:
        return None
    references = {name: formal.default_value for name, formal in schema.attributes.items() if formal.default_value.type}
    references.update(site.raw)
    opsets = {"": NEWEST, **site.scope.opsets, **{entry.domain: entry.version for entry in function.opset_import}}
    return _inline(site, function, opsets, references, f"{site.location.names[0]}/", site.location)


def body(schema: schemas.Schema, site: Site) -> FunctionProto | None:
    """The function that a schema gives for a node of these operand types."""
    versions = [
        version for version in schema.all_function_opset_versions if version <= max(site.version, schema.since_version)
    ]
    if not versions:
        return None
    version = max(versions)
    if version in schema.function_opset_versions:
        return _plain_body(site.domain, site.op_type, site.version, version)
    types = []
    for name, operand in zip(site.proto.input, [*site.operands, *[None] * len(site.proto.input)], strict=False):
        proto = type_proto(operand.type) if operand is not None and name else TypeProto()
        types.append(proto.SerializeToString())
    node = site.proto
    if any(attribute.ref_attr_name for attribute in node.attribute):
        node = type(node)()
        node.CopyFrom(site.proto)
        del node.attribute[:]
        node.attribute.extend(site.raw.values())
    serialized = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), types)
    return FunctionProto.FromString(serialized) if serialized else None


@functools.cache
def _plain_body(domain: str, op_type: str, version: int, body_version: int) -> FunctionProto | None:
    schema = schemas.schema_of(domain, op_type, version)
    if schema is None:
        return None
    found: FunctionProto = FunctionProto.FromString(schema.get_function_with_opset_version(body_version))
    return found


def _inline(
    site: Site,
    function: FunctionProto,
    opsets: Mapping[str, int],
    references: Mapping[str, AttributeProto],
    prefix: str,
    place: Location | None,
) -> Results:
    from espalier.frontends.onnx.importer import Scope

    scope = Scope(site.importer, site.scope.graph, opsets, None, references, prefix, place)
    for position, name in enumerate(function.input):
        scope.define(name, site.operand(position) or ABSENT, function.name)
    for info in function.value_info:
        scope.declared[info.name] = info
    site.importer.read_nodes(function.node, scope)
    results: list[Value | None] = []
    for name, wanted in zip(function.output, list(site.proto.output)[: site.results], strict=False):
        found = scope.find(name) if wanted else None
        if wanted and not isinstance(found, Value):
            raise InputError("E119", f"the function {function.name} does not compute {name!r}", node=site.location)
        results.append(found if isinstance(found, Value) else None)
    return results


def type_proto(type: Type) -> TypeProto:
    """A type as ONNX writes it; dimensions that are no numbers by their text."""
    proto = TypeProto()
    if isinstance(type, TensorType):
        proto.tensor_type.elem_type = code_of(type.element)
        if type.shape is not None:
            proto.tensor_type.shape.SetInParent()
            for extent in type.shape:
                dimension = proto.tensor_type.shape.dim.add()
                if isinstance(extent, int):
                    dimension.dim_value = extent
                else:
                    dimension.dim_param = str(extent)
        return proto
    inner = type_proto(type.of)
    (proto.optional_type if isinstance(type, OptionalType) else proto.sequence_type).elem_type.CopyFrom(inner)
    return proto
