"""What ONNX's own schemas say, cached: attributes, their defaults, and which became operands later."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from onnx import AttributeProto, defs

from espalier.errors import InputError
from espalier.frontends.onnx.elements import BY_CODE
from espalier.ir import elements
from espalier.ir.elements import Element
from espalier.ir.graph import Location
from espalier.ir.op import REQUIRED, Op

Attributes = dict[str, Any]
Schema: TypeAlias = Any
"""An `onnx.defs.OpSchema`, of which the package declares only a part."""
Found = TypeVar("Found")


def by_kind(function: Callable[[type[Op]], Found]) -> Callable[[type[Op]], Found]:
    """Remember a function of an operator class."""
    known: dict[str, Found] = {}

    def look_up(kind: type[Op]) -> Found:
        if kind.name not in known:
            known[kind.name] = function(kind)
        return known[kind.name]

    return look_up


@functools.cache
def schema_of(domain: str, op_type: str, version: int) -> Schema | None:
    """The schema that is in force at a version of an operator set; None if ONNX has none."""
    try:
        return defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return None


@functools.cache
def newest_schema(domain: str, op_type: str) -> Schema | None:
    """The newest schema of an operator; None if ONNX has none."""
    try:
        return defs.get_schema(op_type, domain=domain)
    except defs.SchemaError:
        return None


def by_schema(function: Callable[[str, str, int], Found]) -> Callable[[str, str, int], Found]:
    """Remember a function of domain, operator and version, once for all versions at which one schema is in force."""
    known: dict[tuple[str, str, int], Found] = {}

    @functools.cache
    def look_up(domain: str, op_type: str, version: int) -> Found:
        schema = schema_of(domain, op_type, version)
        key = domain, op_type, version if schema is None else schema.since_version
        if key not in known:
            known[key] = function(*key)
        return known[key]

    return look_up


@functools.cache
def input_names(schema: Schema) -> tuple[str, ...]:
    return tuple(formal.name for formal in schema.inputs)


@dataclass(frozen=True)
class Formal:
    """An attribute as a schema declares it."""

    kind: str
    """The name of its type: INT, FLOATS, …"""
    code: int
    """The type as `AttributeProto.type` has it."""
    required: bool


@by_schema
def formal_attributes(domain: str, op_type: str, version: int) -> Mapping[str, Formal]:
    """The attributes of an operator at a version; none if ONNX has no schema of it."""
    schema = schema_of(domain, op_type, version)
    return {
        name: Formal(kind, AttributeProto.AttributeType.Value(kind), formal.required)
        for name, formal in (schema.attributes.items() if schema is not None else ())
        for kind in [formal.type.name]
    }


@by_schema
def schema_defaults(domain: str, op_type: str, version: int) -> Mapping[str, Any]:
    """The defaults of attributes that have one, as Python values."""
    schema = schema_of(domain, op_type, version)
    if schema is None:
        return {}
    return {
        name: value
        for name, attribute in schema.attributes.items()
        if (value := attribute_value(attribute.default_value)) is not None
    }


def shortest(value: float) -> float:
    """The decimal number that a 32-bit float was written as: 0.01 rather than 0.009999999776482582."""
    return float(str(np.float32(value)))


def attribute_value(proto: AttributeProto) -> Any:
    """The Python value of an attribute, None if it has none; tensors, graphs and types stay messages."""
    reader = _READERS.get(proto.type)
    return None if reader is None else reader(proto)


_READERS: dict[int, Any] = {
    AttributeProto.INT: lambda proto: proto.i,
    AttributeProto.INTS: lambda proto: tuple(proto.ints),
    AttributeProto.FLOAT: lambda proto: shortest(proto.f),
    AttributeProto.FLOATS: lambda proto: tuple(shortest(value) for value in proto.floats),
    AttributeProto.STRING: lambda proto: proto.s.decode("utf-8"),
    AttributeProto.STRINGS: lambda proto: tuple(text.decode("utf-8") for text in proto.strings),
    AttributeProto.TENSOR: lambda proto: proto.t,
    AttributeProto.SPARSE_TENSOR: lambda proto: proto.sparse_tensor,
    AttributeProto.GRAPH: lambda proto: proto.g,
    AttributeProto.TYPE_PROTO: lambda proto: proto.tp,
    AttributeProto.GRAPHS: lambda proto: tuple(proto.graphs),
    AttributeProto.TENSORS: lambda proto: tuple(proto.tensors),
}


@by_kind
def element_attributes(kind: type[Op]) -> frozenset[str]:
    """The attributes of an operator class that hold an element where ONNX has the code of one."""
    hints = kind.attribute_types.items()
    return frozenset(name for name, hint in hints if Element in (hint, *typing.get_args(hint)))


@by_kind
def bool_attributes(kind: type[Op]) -> frozenset[str]:
    """The attributes of an operator class that are truth values where ONNX has 0 and 1."""
    return frozenset(name for name, hint in kind.attribute_types.items() if hint is bool)


@by_kind
def ir_names(kind: type[Op]) -> Mapping[str, str]:
    """Attribute by its name in ONNX → its name in the operator class."""
    return {kind.onnx_names.get(name, name): name for name in kind.defaults}


def to_ir(kind: type[Op], attributes: Mapping[str, Any], where: Location) -> Attributes:
    """Attributes as the operator class wants them. Raises InputError E116 for codes of no element type."""
    names = ir_names(kind)
    converted = {names.get(name, name): value for name, value in attributes.items()}
    for name in element_attributes(kind) & converted.keys():
        code = converted[name]
        if isinstance(code, int):
            if code and code not in BY_CODE:
                raise InputError("E116", f"{name} = {code} is not an element type of ONNX", node=where)
            converted[name] = BY_CODE[code] if code else None
    for name in bool_attributes(kind) & converted.keys():
        converted[name] = bool(converted[name])
    return converted


@dataclass(frozen=True)
class Operand:
    """Where an attribute of an old schema stands among today's operands."""

    position: int
    kind: str
    """"ints" (a vector of int64), "int" (a scalar of int64), "float" (of the first operand's element, or f32)"""
    like_first: bool


WITHOUT_MEANING = {"consumed_inputs", "is_test"}
"""Attributes of the oldest schemas that change nothing in inference."""

# attributes whose operand has another name today, and integers whose operand is a vector of one
_RENAMED = {("Pad", "value"): "constant_value"}
_VECTORS = {("TopK", "k")}


@by_schema
def moved_attributes(domain: str, op_type: str, version: int) -> Mapping[str, Operand]:
    """Attributes at that version that are operands today."""
    old, new = schema_of(domain, op_type, version), newest_schema(domain, op_type)
    if old is None or new is None or old.since_version == new.since_version:
        return {}
    names = [name.lower() for name in input_names(new)]
    found = {}
    today = formal_attributes(domain, op_type, new.since_version)
    for name, attribute in formal_attributes(domain, op_type, version).items():
        current = _RENAMED.get((op_type, name), name).lower()
        if name in today or current not in names:
            continue
        position = names.index(current)
        kind = {"INTS": "ints", "INT": "int", "FLOAT": "float", "FLOATS": "floats"}[attribute.kind]
        kind = "ints" if (op_type, name) in _VECTORS else kind
        found[name] = Operand(position, kind, new.inputs[position].type_str == new.inputs[0].type_str)
    return found


def operand_array(operand: Operand, value: Any, first: Element | None) -> tuple[np.ndarray[Any, Any], Element]:
    """An attribute's value as the tensor that today's operand is."""
    element = elements.F32 if not operand.like_first or first is None else first
    if operand.kind in ("ints", "int"):
        element = elements.I64
        value = (value,) if operand.kind == "ints" and isinstance(value, int) else value
    with np.errstate(all="ignore"):  # a 16-bit float may not reach an old default's bound
        return np.asarray(value).astype(element.dtype), element


@by_schema
def renumbered_operands(domain: str, op_type: str, version: int) -> tuple[int, ...] | None:
    """For each operand at that version, its place today; None if no place changed."""
    old, new = schema_of(domain, op_type, version), newest_schema(domain, op_type)
    if old is None or new is None or old.since_version == new.since_version:
        return None
    names = input_names(new)
    places = tuple(names.index(n) if n in names else k for k, n in enumerate(input_names(old)))
    return None if places == tuple(range(len(places))) else places


@by_schema
def changed_defaults(domain: str, op_type: str, version: int) -> Mapping[str, Any]:
    """Defaults at that version that differ from today's."""
    new = newest_schema(domain, op_type)
    today = schema_defaults(domain, op_type, new.since_version) if new is not None else {}
    return {k: v for k, v in schema_defaults(domain, op_type, version).items() if k in today and today[k] != v}


def missing_attributes(kind: type[Op], attributes: Mapping[str, Any]) -> list[str]:
    """Required attributes that are not given."""
    return [name for name, default in kind.defaults.items() if default is REQUIRED and name not in attributes]
