"""One node of the graph as one node of ONNX, at a given version of the operator set, or why that can't be.

The rules are those of the frontend turned round: an attribute of an old schema that is an operand today is read from
the operand's constant; a default that changed is written out; the few operators whose meaning changed have a rule each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, TensorProto, helper

from espalier.errors import UnsupportedError
from espalier.frontends.onnx import schemas
from espalier.frontends.onnx.elements import CODES, code_of
from espalier.ir.elements import Element
from espalier.ir.graph import Node, Value
from espalier.ir.op import REQUIRED, Op
from espalier.ir.types import TensorType


class CannotPrint(Exception):
    """Why a node has no form in a version of the operator set."""


@dataclass
class Printed:
    """One ONNX node without names: operands and results by value."""

    domain: str
    op_type: str
    operands: list[Value | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    results: int = 1
    protos: Sequence[AttributeProto] | None = None
    """The attributes as messages, if they are at hand."""


Rule = Callable[[Node, int, dict[str, Any], list["Value | None"]], "Printed | None"]
RULES: dict[str, Rule] = {}
"""Name of an operator → a rule that changes its attributes and operands for a version, or prints it by itself."""


READS_CONSTANTS: set[str] = set()


def rule(*names: str, contents: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule of operators; `contents` says whether it looks into constants."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        if contents:
            READS_CONSTANTS.update(names)
        return function

    return register


def follows_schema(op: Op) -> bool:
    """Whether the form of a node follows from its operator's schema alone, which tells operands apart by element."""
    return op.name not in RULES


def contents_matter(op: Op, version: int) -> bool:
    """Whether the form of a node depends on what its constant operands hold."""
    if op.name in READS_CONSTANTS:
        return True
    return op.onnx is not None and not op.onnx_domain and bool(schemas.moved_attributes("", op.onnx, version))


def print_node(node: Node, version: int, operands: list[Value | None] | None = None) -> Printed:
    """The node at a version of ai.onnx; `operands` may stand in for the node's own. Raises CannotPrint."""
    op = node.op
    attributes = _attributes(op)
    operands = list(node.operands if operands is None else operands)
    special = RULES.get(op.name)
    if special is not None:
        printed = special(node, version, attributes, operands)
        if printed is not None:
            return printed
    if op.onnx is None:
        raise CannotPrint(f"{op.name} is no operator of ONNX")
    if op.onnx_domain:
        return Printed(op.onnx_domain, op.onnx, operands, attributes, len(node.results))
    schema = schemas.schema_of("", op.onnx, version)
    if schema is None or schema.deprecated:
        raise CannotPrint(f"{op.onnx} is not in opset {version}")
    operands, attributes = _at(schema, op, operands, attributes, version)
    _check_types(schema, op.onnx, operands, node.results, version)
    return Printed("", op.onnx, operands, attributes, len(node.results))


def _attributes(op: Op) -> dict[str, Any]:
    """Attributes by their names in ONNX that are not the operator's default."""
    names = op.onnx_names
    return {
        names.get(key, key): value
        for key, default in op.defaults.items()
        if (value := op.__dict__[key]) is not None
        and (default is REQUIRED or value != default or _signed(value, default))
    }


def _signed(value: Any, default: Any) -> bool:
    """Whether two equal numbers differ in more than equality tells (−0.0 and 0.0)."""
    return isinstance(value, float) and np.signbit(value) != np.signbit(default)


def _at(
    schema: schemas.Schema, op: Op, operands: list[Value | None], attributes: dict[str, Any], version: int
) -> tuple[list[Value | None], dict[str, Any]]:
    """Operands and attributes as a schema has them. Raises CannotPrint."""
    assert op.onnx is not None
    newest, formals = schemas.newest_schema("", op.onnx), schemas.formal_attributes("", op.onnx, version)
    if newest is not None and newest.since_version != schema.since_version:
        for name, place in schemas.moved_attributes("", op.onnx, version).items():
            if place.position < len(operands) and operands[place.position] is not None:
                attributes[name] = _constant(operands[place.position], formals[name].kind, op.onnx, name)
                operands[place.position] = None
        places = schemas.renumbered_operands("", op.onnx, version) or tuple(range(len(schemas.input_names(schema))))
        if not (schema.inputs and schema.inputs[-1].option.name == "Variadic"):
            kept = [operands[place] if place < len(operands) else None for place in places]
            lost = [k for k, operand in enumerate(operands) if operand is not None and k not in places]
            if lost:
                raise CannotPrint(f"{op.onnx} of opset {version} has no {op.operands[lost[0]].name}")
            operands = kept
    defaults = schemas.schema_defaults("", op.onnx, version)
    for name in [name for name in attributes if name not in formals]:
        raise CannotPrint(f"{op.onnx} of opset {version} has no {name}")
    for name in schemas.changed_defaults("", op.onnx, version):
        attributes.setdefault(name, op.attributes.get(name, defaults[name]))
    for name, formal in formals.items():
        if formal.required and name not in attributes:
            value = op.attributes.get(name)
            if value is None:
                raise CannotPrint(f"{op.onnx} of opset {version} needs {name}")
            attributes[name] = value
    while operands and operands[-1] is None:
        operands.pop()
    for position, name in _required_inputs(schema):
        if position >= len(operands) or operands[position] is None:
            raise CannotPrint(f"{op.onnx} of opset {version} needs its operand {name}")
    return operands, attributes


@functools.cache
def _required_inputs(schema: schemas.Schema) -> tuple[tuple[int, str], ...]:
    return tuple((k, formal.name) for k, formal in enumerate(schema.inputs) if formal.option.name == "Single")


def _constant(operand: Value | None, kind: str, op_type: str, name: str) -> Any:
    if operand is None or operand.constant is None:
        raise CannotPrint(f"{op_type} of this opset needs {name} to be constant")
    numbers = operand.array.reshape(-1).tolist()
    if kind in ("INTS", "FLOATS"):
        return tuple(numbers)
    if len(numbers) != 1:
        raise CannotPrint(f"{op_type} of this opset needs one {name}")
    return numbers[0]


def _check_types(
    schema: schemas.Schema, op_type: str, operands: list[Value | None], results: Sequence[Value], version: int
) -> None:
    """Raise CannotPrint if a schema does not take the elements of these values."""
    for values, allowed in ((operands, _allowed(schema, "inputs")), (results, _allowed(schema, "outputs"))):
        for position, value in enumerate(values):
            if value is None or not allowed or not isinstance(value.type, TensorType):
                continue
            names = allowed[min(position, len(allowed) - 1)]
            code = CODES.get(value.type.element.storage)
            if code is not None and code not in names:
                raise CannotPrint(f"{op_type} of opset {version} does not take {value.type.element}")


_ALLOWED: dict[tuple[str, str, int, str], list[frozenset[int]]] = {}


def _allowed(schema: schemas.Schema, side: str) -> list[frozenset[int]]:
    """For each operand or result of a schema, the element codes that it may have."""
    key = (schema.domain, schema.name, schema.since_version, side)
    if key not in _ALLOWED:
        _ALLOWED[key] = [
            frozenset(_code(text) for text in formal.types if text.startswith("tensor(")) or frozenset(CODES.values())
            for formal in getattr(schema, side)
        ]
    return _ALLOWED[key]


@functools.cache
def _code(text: str) -> int:
    name = text.removeprefix("tensor(").removesuffix(")")
    code: int = TensorProto.DataType.Value({"float": "FLOAT", "double": "DOUBLE"}.get(name, name.upper()))
    return code


# ---- messages ----------------------------------------------------------------------------------------------


def attribute_protos(printed: Printed, version: int) -> list[AttributeProto]:
    """The attributes as messages, typed as the schema says. Raises UnsupportedError for what is no attribute."""
    formals = schemas.formal_attributes(printed.domain, printed.op_type, version)
    made = []
    for name, value in printed.attributes.items():
        kind = formals[name].kind if name in formals else None
        made.append(attribute_proto(name, value, kind))
    return made


def attribute_proto(name: str, value: Any, kind: str | None = None) -> AttributeProto:
    """One attribute; `kind` is what its schema calls its type."""
    if isinstance(value, Element):
        value = code_of(value)
    elif isinstance(value, bool):
        value = int(value)
    if kind is None:
        if isinstance(value, tuple) and not value:
            kind = "INTS"
        return (
            helper.make_attribute(name, value) if kind is None else AttributeProto(name=name, type=AttributeProto.INTS)
        )
    proto = AttributeProto(name=name, type=AttributeProto.AttributeType.Value(kind))
    if kind == "INT":
        proto.i = value
    elif kind == "FLOAT":
        proto.f = value
    elif kind == "STRING":
        proto.s = value.encode()
    elif kind == "INTS":
        proto.ints.extend(value)
    elif kind == "FLOATS":
        proto.floats.extend(value)
    elif kind == "STRINGS":
        proto.strings.extend(text.encode() for text in value)
    elif kind == "TENSOR":
        proto.t.CopyFrom(value)
    elif kind == "TYPE_PROTO":
        proto.tp.CopyFrom(value)
    elif kind == "GRAPH":
        proto.g.CopyFrom(value)
    else:
        raise UnsupportedError("E401", f"the attribute {name!r} has a type that is not written: {kind}")
    return proto
