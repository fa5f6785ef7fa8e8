"""Walking an ONNX graph: scopes, nodes, functions, types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from espalier.errors import InputError
from espalier.frontends.onnx import functions, opaque, schemas, tensors
from espalier.frontends.onnx.reader import BROADCASTING, NEWEST, OLDEST, not_utf8
from espalier.frontends.onnx.site import ADAPTERS, Absent, Refused, Results, Site
from espalier.frontends.onnx.types import TypeReader
from espalier.ir.axes import DeclarationError
from espalier.ir.constants import Constant
from espalier.ir.elements import F32, Element
from espalier.ir.graph import Graph, Location, Node, Value, constant_value
from espalier.ir.inference import infer_node, refine_type
from espalier.ir.op import Op, TypeInferenceError, onnx_operators
from espalier.ir.types import TensorType, Type

_UNKNOWN: Type = TensorType(F32, None)  # until infer_node has looked, at once
_EXPANSION = 50
"""Nodes that inlined functions may add for each node and function node of the file, beyond a hundred thousand."""


class Scope:
    """The names that one graph, region or function body sees."""

    def __init__(
        self,
        importer: Importer,
        graph: Graph,
        opsets: Mapping[str, int],
        parent: Scope | None = None,
        references: Mapping[str, AttributeProto] | None = None,
        prefix: str = "",
        place: Location | None = None,
    ) -> None:
        self.importer, self.graph, self.opsets, self.parent = importer, graph, opsets, parent
        self.names: dict[str, Value | Absent] = {}
        self.captured: list[tuple[Value, Value]] = []
        """Outer values that the region uses, and the region's inputs that stand for them."""
        self.declared: dict[str, ValueInfoProto] = {}
        self.references = references
        """The attributes that a function was called with."""
        self.prefix, self.place = prefix, place
        self.later: set[str] | None = None

    def define(self, name: str, value: Value | Absent, where: str) -> None:
        """Bind a name. Raises InputError E109 if it is bound already in this scope, E112 if it is no text."""
        if name.__class__ is not str:
            raise not_utf8(name)
        if name in self.names:
            raise InputError("E109", f"{name!r} is defined twice", node=where)
        self.names[name] = value

    def find(self, name: str) -> Value | Absent | None:
        """The value of a name, captured from an outer scope if need be; None if nothing defines it."""
        found = self.names.get(name)
        if found is not None or self.parent is None:
            return found
        outer = self.parent.find(name)
        if isinstance(outer, Value) and self.graph is not self.parent.graph and outer.constant is None:
            inner = self.graph.add_input(outer.type, name)
            inner.content = outer.content
            self.captured.append((outer, inner))
            outer = inner
        if outer is not None:
            self.names[name] = outer
        return outer


class Importer:
    """One model on its way in."""

    def __init__(self, model: ModelProto, folder: Path | None, opsets: Mapping[str, int], name: str) -> None:
        self.model, self.folder = model, folder
        self.graph = Graph(name)
        self.types = TypeReader(self.graph, model.graph.input)
        self.functions = functions.index(model)
        self.calls: list[tuple[str, str, str]] = []
        """The local functions that are being inlined."""
        self.operators = onnx_operators()
        self._prepared: dict[Any, Op] = {}
        """The operator instance of nodes that today's operators take as they are, by opset, type and attributes."""
        self._constant_types: dict[tuple[Element, tuple[int, ...]], Type] = {}
        written = len(model.graph.node) + sum(len(f.node) for f in model.functions)
        self.nodes_left = 100_000 + _EXPANSION * written
        self.assumed: list[str] = []
        """Results of unknown operators whose element is taken from their first operand."""
        self.read_names: set[str] | None = None
        self.scope = Scope(self, self.graph, opsets)

    # ---- graphs --------------------------------------------------------------------------------------------

    def run(self) -> Graph:
        """Import the main graph."""
        proto = self.model.graph
        if not proto.output:
            raise InputError("E118", "the model has no outputs", node=proto.name or None)
        self.read_graph(proto, self.scope)
        return self.graph

    def read_graph(self, proto: GraphProto, scope: Scope, inputs: Sequence[Type | None] | None = None) -> None:
        """Fill a scope and its graph. `inputs` are the types of a region's inputs as its node's operands have them."""
        graph, where = scope.graph, proto.name or "the graph"
        for tensor in proto.initializer:
            name = tensor.name
            scope.define(name, self._held(tensors.read_tensor(tensor, self.folder), name), where)
        for sparse in proto.sparse_initializer:
            name = sparse.values.name
            scope.define(name, constant_value(tensors.read_sparse(sparse, self.folder), name=name), where)
        initialised = set(scope.names)
        seen: set[str] = set()
        for position, info in enumerate(proto.input):
            if info.name in seen:
                raise InputError("E109", f"the input {info.name!r} is listed twice", node=where)
            seen.add(info.name)
            if info.name in initialised:
                self._refine(scope.names[info.name], self.types.read(info.type, info.name), info.name, None)
                continue
            declared = self.types.read(info.type, info.name) if info.HasField("type") else None
            given = inputs[position] if inputs is not None and position < len(inputs) else None
            if declared is None and given is None:
                raise InputError("E110", f"the input {info.name!r} has no type", node=info.name)
            type = declared if given is None else _as_given(given, declared, info.name)
            assert type is not None
            scope.define(info.name, graph.add_input(type, info.name), where)
        for info in proto.value_info:
            scope.declared[info.name] = info
        for info in proto.output:
            scope.declared.setdefault(info.name, info)
        self.read_nodes(proto.node, scope)
        outputs, names = [], []
        for info in proto.output:
            output = self._operand(scope, info.name, f"the outputs of {where}")
            if output is None:
                raise InputError("E109", f"{where} has an output without a value", node=info.name)
            outputs.append(output)
            names.append(info.name)
        if scope is self.scope and len(set(names)) != len(names):
            raise InputError("E109", "an output is listed twice", node=where)
        graph.set_outputs(outputs, names)

    def _held(self, constant: Constant, name: str = "") -> Value:
        """A constant as a value; constants of one shape share their type."""
        key = (constant.element, constant.shape)
        type = self._constant_types.get(key)
        if type is None:
            type = self._constant_types[key] = TensorType(constant.element, constant.shape)
        value = Value(type, name)
        value.constant = constant
        return value

    def _plain_constant(self, proto: NodeProto, scope: Scope, location: Location) -> Constant | None:
        """What a Constant holds that says it as most do; None for other nodes."""
        if proto.op_type != "Constant" or proto.domain not in ("", "ai.onnx") or len(proto.attribute) != 1:
            return None
        attribute = proto.attribute[0]
        formal = schemas.formal_attributes("", "Constant", scope.opsets[""]).get(attribute.name)
        if formal is None or attribute.type != formal.code or attribute.ref_attr_name:
            return None
        value = schemas.attribute_value(attribute)
        return tensors.read_value(attribute.name, value, self.folder, location.names[0])

    def read_nodes(self, nodes: Sequence[NodeProto], scope: Scope) -> None:
        """Import nodes, in order, into a scope's graph."""
        names, graph = scope.names, scope.graph
        self.nodes_left -= len(nodes)
        if self.nodes_left < 0:
            raise InputError("E117", "inlining the model's functions would make too many nodes", node=scope.prefix)
        prefix, place = scope.prefix, scope.place
        prepared, unknown = self._prepared, _UNKNOWN
        key_of_scope = tuple(scope.opsets.items())
        known_opset = OLDEST <= scope.opsets.get("", 0) <= NEWEST
        constants = known_opset and not any(kind == "Constant" for _, kind, _ in self.functions)
        for position, proto in enumerate(nodes):
            operands: list[Value | None] = []
            for name in proto.input:
                value = names.get(name) if name else None
                if value is None and name:
                    scope.later = scope.later or _defined_later(nodes, position)
                    value = self._operand(scope, name, proto.name or proto.op_type)
                operands.append(value if isinstance(value, Value) else None)
            while operands and operands[-1] is None:
                operands.pop()
            results = list(proto.output)
            while results and not results[-1]:
                results.pop()
            attributes = proto.attribute
            label = proto.name or (results[0] if results else proto.op_type)
            if label.__class__ is not str:
                raise not_utf8(label)
            location = place or Location((prefix + label if prefix else label,))
            plain = constants and not operands and len(results) == 1
            held = self._plain_constant(proto, scope, location) if plain else None
            if held is not None:
                values: Results = [self._held(held)]
            else:
                key: Any = (
                    key_of_scope, proto.domain, proto.op_type, proto.overload, len(operands), len(results),
                    tuple([a.SerializeToString() for a in attributes]) if attributes else (),
                )  # fmt: skip
                op = prepared.get(key)
                if op is not None:
                    values = self.insert(graph, Node(op, operands, [unknown] * len(results), (), location)).results
                else:
                    values = self._converted(proto, scope, operands, len(results), location, key)
            for name, value in zip(results, values, strict=False):
                if not name or value is None:
                    continue
                if name in names:
                    raise InputError("E109", f"{name!r} is defined twice", node=location)
                if name.__class__ is not str:
                    raise not_utf8(name)
                names[name] = value
                if not value.name:
                    value.name = prefix + name
                info = scope.declared.get(name)
                if info is not None:
                    self._refine(value, self.types.read(info.type, name), name, location)

    def insert(self, graph: Graph, node: Node) -> Node:
        """Infer a node's types and put it at the end. Raises InputError E110 if its operands don't fit."""
        op = node.op
        ports = op.operands
        if len(node.operands) != len(ports):
            _check_arity(node)
        try:
            infer_node(graph, node)
        except (
            TypeInferenceError,
            DeclarationError,
            ValueError,
            IndexError,
            OverflowError,
            ZeroDivisionError,
        ) as error:
            raise InputError("E110", f"{op.name}: {error}", node=node.location, source=_operand_types(node)) from error
        return graph.insert(node)

    # ---- one node ------------------------------------------------------------------------------------------

    def _converted(
        self, proto: NodeProto, scope: Scope, operands: list[Value | None], results: int, location: Location, key: Any
    ) -> Results:
        """The results of a node that was not seen before. Raises InputError E110 if it has too few."""
        site = self._site(proto, scope, operands, results, location)
        values = self._convert(site, key)
        if len(values) < site.results:
            raise InputError("E110", f"{proto.op_type} has {len(values)} results, not {site.results}", node=location)
        return values

    def _operand(self, scope: Scope, name: str, where: str) -> Value | None:
        value = scope.find(name)
        if value is None:
            if name.__class__ is not str:
                raise not_utf8(name)
            if scope.later and name in scope.later:
                raise InputError("E108", f"{name!r} is used before it is computed", node=where)
            raise InputError("E109", f"nothing defines {name!r}", node=where)
        return value if isinstance(value, Value) else None

    def _site(
        self, proto: NodeProto, scope: Scope, operands: list[Value | None], results: int, location: Location
    ) -> Site:
        for text in (proto.op_type, proto.domain):
            if text.__class__ is not str:
                raise not_utf8(text)
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        attributes: dict[str, Any] = {}
        raw: dict[str, AttributeProto] = {}
        for attribute in proto.attribute:
            name = attribute.name
            if name.__class__ is not str:
                raise not_utf8(name)
            if attribute.ref_attr_name:
                referred = (scope.references or {}).get(attribute.ref_attr_name)
                if referred is None:
                    continue
                attribute = AttributeProto()
                attribute.CopyFrom(referred)
                attribute.name = name
            if name in attributes:
                raise InputError("E116", f"the attribute {name!r} is given twice", node=location)
            attributes[name], raw[name] = schemas.attribute_value(attribute), attribute
        version = scope.opsets.get(domain, 0)
        if not domain and not OLDEST <= version <= NEWEST:
            raise InputError(
                "E107", f"the model uses ai.onnx without importing opset {OLDEST} to {NEWEST}", node=location
            )
        return Site(self, scope, proto, domain, proto.op_type, version, attributes, raw, operands, results, location)

    def _convert(self, site: Site, key: Any) -> Results:
        """The results of a node: by an adapter, as it is, by its function body, or opaque."""
        function = self.functions.get((site.proto.domain, site.op_type, site.proto.overload))
        if function is not None:
            return functions.inline_local(site, function)
        _check_attributes(site)
        try:
            for before, adapter in ADAPTERS.get((site.domain, site.op_type), ()):
                if site.version < before:
                    found = adapter(site)
                    if found is not None:
                        return found
            kind = self.operators.get((site.domain, site.op_type))
            if kind is not None:
                found = self._as_it_is(site, kind, key)
                if found is not None:
                    return found
            found = functions.inline_schema(site)
            if found is not None:
                return found
        except TypeInferenceError as error:
            raise InputError("E110", f"{site.op_type}: {error}", node=site.location) from error
        except Refused as refusal:
            if refusal.fatal:
                raise InputError("E110", str(refusal), node=site.location) from None
        return opaque.opaque(site)

    def convert_as(self, site: Site, domain: str, op_type: str) -> Sequence[Value]:
        """Convert a node as if it were of another operator at the newest version. Raises Refused if none is known."""
        old = site.domain, site.op_type, site.version, site.results
        site.domain, site.op_type, site.version, site.results = domain, op_type, NEWEST, 1
        try:
            for _, adapter in ADAPTERS.get((domain, op_type), ()):
                if (made := adapter(site)) is not None:
                    return [value for value in made if value is not None]
            found = self._as_it_is(site, self.operators[domain, op_type], None)
            if found is None:
                raise Refused(f"{old[1]} has an attribute that {op_type} lacks")
            return found
        finally:
            site.domain, site.op_type, site.version, site.results = old

    def _as_it_is(self, site: Site, kind: type[Op], key: Any) -> Sequence[Value] | None:
        """A node of an operator that the IR has, with attributes and operands brought to today's opset."""
        moved = schemas.moved_attributes(site.domain, site.op_type, site.version)
        places = schemas.renumbered_operands(site.domain, site.op_type, site.version)
        attributes = {**schemas.changed_defaults(site.domain, site.op_type, site.version), **site.attributes}
        unknown = attributes.keys() - schemas.ir_names(kind).keys() - moved.keys()
        defaults = schemas.schema_defaults(site.domain, site.op_type, site.version)
        for name in unknown:
            if attributes.pop(name) != defaults.get(name) and name not in schemas.WITHOUT_MEANING:
                if not kind.__module__.startswith("espalier."):  # there is no schema that could say more
                    known = ", ".join(sorted(schemas.ir_names(kind))) or "none"
                    message = f"{site.op_type} ({kind.__module__}) has no attribute {name!r}; it has {known}"
                    raise InputError("E116", message, node=site.location)
                return None  # a variant that the operator class does not have
        operands = site.operands
        if places is not None:
            operands = [None] * (max(places[: len(operands)], default=-1) + 1)
            for operand, position in zip(site.operands, places, strict=False):
                operands[position] = operand
        first = operands[0].element if operands and operands[0] is not None and moved else None
        for name, place in moved.items():
            value = attributes.pop(name, defaults.get(name))
            if value is None:
                continue
            operands = [*operands, *[None] * (place.position + 1 - len(operands))]
            if operands[place.position] is None:
                array, element = schemas.operand_array(place, value, first)
                operands[place.position] = constant_value(array, element)
        converted = schemas.to_ir(kind, attributes, site.location)
        missing = schemas.missing_attributes(kind, converted)
        if missing:
            raise InputError("E116", f"{site.op_type} lacks the attribute {missing[0]!r}", node=site.location)
        try:
            op = kind(**converted)
        except (TypeError, ValueError) as error:
            raise InputError("E116", f"{site.op_type}: {error}", node=site.location) from error
        node = self.insert(site.scope.graph, Node(op, operands, [_UNKNOWN] * site.results, (), site.location))
        referring = any(attribute.ref_attr_name for attribute in site.proto.attribute)
        if key is not None and not moved and places is None and not kind.bodies and not referring:
            self._prepared[key] = op
        return node.results

    def _refine(
        self, value: Value | Absent | None, declared: Type | None, name: str, location: Location | None
    ) -> None:
        if not isinstance(value, Value) or declared is None or value.type == declared:
            return
        if value.constant is not None:
            value = Value(value.type, value.name)  # a constant knows its own type: only look for contradictions
        try:
            refine_type(value, declared)
        except TypeInferenceError as error:
            raise InputError("E110", f"{name!r} is {error}", node=location or name) from None


def _as_given(given: Type, declared: Type | None, name: str) -> Type:
    """The type of a region's input: the operand's, or what the body declares where that says more than nothing."""
    if not isinstance(given, TensorType) or not isinstance(declared, TensorType):
        return given
    if given.element.storage != declared.element.storage:
        raise InputError("E110", f"{name!r} is declared as {declared}, but given {given}", node=name)
    return TensorType(given.element, declared.shape) if given.shape is None else given


def _defined_later(nodes: Sequence[NodeProto], position: int) -> set[str]:
    return {name for k in range(position, len(nodes)) for name in nodes[k].output}


def _operand_types(node: Node) -> str:
    return ", ".join("absent" if operand is None else repr(operand) for operand in node.operands)


def _check_arity(node: Node) -> None:
    op, ports, given = node.op, node.op.operands, len(node.operands)
    variadic = bool(ports) and ports[-1].variadic
    if given > len(ports) and not variadic:
        raise InputError("E110", f"{op.name} takes {len(ports)} operands, not {given}", node=node.location)
    for port in ports[given:]:
        if not port.optional and not port.variadic:
            raise InputError("E110", f"{op.name} lacks its operand {port.name}", node=node.location)
    if len(node.results) > len(op.results) and not op.results[-1].variadic:
        raise InputError(
            "E110", f"{op.name} has {len(op.results)} results, not {len(node.results)}", node=node.location
        )


def _check_attributes(site: Site) -> None:
    """Raise InputError E116 for attributes that the operator's schema does not have, or has with another type."""
    schema = schemas.schema_of(site.domain, site.op_type, site.version)
    if not site.domain and site.version < BROADCASTING:
        later = schemas.schema_of("", site.op_type, BROADCASTING)
        if schema is None or later is None or schema.since_version != later.since_version:
            raise InputError("E107", f"{site.op_type} of opset {site.version} is too old", node=site.location)
    if schema is None:
        if not site.domain and schemas.newest_schema("", site.op_type) is not None:
            raise InputError("E107", f"{site.op_type} is not in opset {site.version}", node=site.location)
        return
    formals = schemas.formal_attributes(site.domain, site.op_type, site.version)
    for name, attribute in site.raw.items():
        formal = formals.get(name)
        if formal is None:
            if not name.startswith("_") and name not in schemas.WITHOUT_MEANING:
                raise InputError("E116", f"{site.op_type} has no attribute {name!r}", node=site.location)
        elif attribute.type != formal.code:
            raise InputError("E116", f"the attribute {name!r} of {site.op_type} has the wrong type", node=site.location)
    for name, formal in formals.items():
        if formal.required and name not in site.raw:
            raise InputError("E116", f"{site.op_type} lacks the attribute {name!r}", node=site.location)
