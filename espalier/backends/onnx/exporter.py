"""From a graph to a ModelProto: names, versions, regions, expansion of operators that the version lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, ValueInfoProto, helper

from espalier import __version__
from espalier.backends.onnx import rules
from espalier.backends.onnx.expansion import expand
from espalier.backends.onnx.lowering import lowered
from espalier.backends.onnx.printer import (
    CannotPrint,
    attribute_proto,
    attribute_protos,
    contents_matter,
    follows_schema,
    print_node,
)
from espalier.backends.onnx.sharing import share_tied_weights
from espalier.backends.onnx.weights import write_tensor
from espalier.errors import InputError, UnsupportedError
from espalier.frontends.onnx.functions import type_proto
from espalier.frontends.onnx.reader import NEWEST
from espalier.ir.graph import Graph, Location, Node, Value
from espalier.ir.types import TensorType, Type

if TYPE_CHECKING:
    from espalier.backends.onnx.weights import DataFile

OLDEST, DEFAULT = 7, 21
OLDEST_IR = 8
LONGEST_NAME = 200

_RULES = rules  # imported for what it registers


class Exporter:
    """One graph on its way out."""

    def __init__(self, graph: Graph, opset: int | None = None, data: DataFile | None = None) -> None:
        self.data = data
        if opset is not None and not OLDEST <= opset <= NEWEST:
            raise InputError("E201", f"opset {opset} is not between {OLDEST} and {NEWEST}")
        own = graph.metadata.get("opset")
        self.fixed = opset is not None
        self.version = opset if opset is not None else min(max(int(own), OLDEST), NEWEST) if own else DEFAULT
        self.graph = share_tied_weights(lowered(graph, self.version), self.version)
        self.domains: dict[str, int] = {}
        self.names: dict[Value, str] = {}
        self.taken: dict[str, int] = {}
        """Names of values, each with the number that a further one of the same hint would get."""
        self.node_names: dict[str, int] = {}
        self.constants: dict[int, str] = {}
        self.model = ModelProto()
        self._plans: dict[Any, Plan | Graph] = {}
        self._expansions: dict[Any, Graph | None] = {}
        self._keys = Keys()
        self._by_elements: dict[Any, Plan] = {}
        self._node_keys: dict[Node, Any] = {}
        """What decides how a node is written, at the present version."""
        self._assumed = set(graph.metadata.get("assumed_types", ()))

    def run(self) -> ModelProto:
        """The model. Raises UnsupportedError for what ONNX can't say."""
        self.version = self._lowest_version()
        model, graph = self.model, self.graph
        proto = model.graph
        proto.name = graph.name or "main"
        for value in graph.inputs:
            self.names[value] = self._reserve(value.name or "input")
            self._declare(proto.input.add(), self.names[value], value.type)
        outputs = self._output_names(graph, graph.output_names)
        self._print_graph(graph, proto)
        for name, value in zip(outputs, graph.outputs, strict=True):
            self._finish_output(proto, value, name)
            self._declare(proto.output.add(), name, value.type)
        model.opset_import.add(domain="", version=self.version)
        for domain, version in sorted(self.domains.items()):
            model.opset_import.add(domain=domain, version=version)
        known = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx.ml")]
        model.ir_version = max(OLDEST_IR, helper.find_min_ir_version_for(known, ignore_unknown=True))
        model.producer_name, model.producer_version = "espalier", __version__
        return model

    # ---- versions ------------------------------------------------------------------------------------------

    def _lowest_version(self) -> int:
        """The given version, or the lowest from the graph's own on that can say every node."""
        reason: tuple[Node, str] | None = None
        for version in [self.version] if self.fixed else range(self.version, NEWEST + 1):
            self.version, reason = version, None
            self._plans.clear()
            self._by_elements.clear()
            self._expansions.clear()
            self._node_keys.clear()
            nodes = self._distinct_nodes()
            for key, node in nodes.items():
                try:
                    self._plan(node, key)
                except CannotPrint as error:
                    reason = node, str(error)
                    break
            if reason is None:
                return version
        assert reason is not None
        node, text = reason
        raise UnsupportedError(
            "E402" if node.op.onnx else "E401",
            f"{node.op.name} cannot be written: {text}",
            node=repr(node),
            source=node.location,
            hint="Give a later opset, or none." if self.fixed else None,
        )

    def _distinct_nodes(self) -> dict[Any, Node]:
        found: dict[Any, Node] = {}
        for graph in self.graph.all_graphs():
            for node in graph:
                found.setdefault(self._key(node), node)
        return found

    def _plan(self, node: Node, key: Any) -> Plan | Graph:
        """How nodes like this one are written: as one node, or as a graph of older operators."""
        plan = self._plans.get(key)
        if plan is None:
            try:
                plan = self._as_one(node)
            except CannotPrint:
                plan = self._expanded(node)
                if plan is None:
                    raise
            self._plans[key] = plan
        return plan

    def _as_one(self, node: Node) -> Plan:
        """One node for one. Raises CannotPrint."""
        if follows_schema(node.op) and not contents_matter(node.op, self.version):
            elements = [v and getattr(v.type, "element", v.type) for v in (*node.operands, *node.results)]
            key = node.op, len(node.operands), *elements
            plan = self._by_elements.get(key)
            if plan is None:
                plan = self._by_elements[key] = self._planned(node)
            return plan
        return self._planned(node)

    def _planned(self, node: Node) -> Plan:
        slots = [None if value is None else _slot(value) for value in node.operands]
        printed = print_node(node, self.version, slots)
        places = {id(slot): position for position, slot in enumerate(slots)}
        positions = [None if value is None else places[id(value)] for value in printed.operands]
        if node.regions:
            positions = [place for place in positions if place is None or place < len(slots) - _captured(node)]
        while positions and positions[-1] is None:
            positions.pop()
        protos = list(printed.protos) if printed.protos is not None else attribute_protos(printed, self.version)
        return Plan(printed.domain, printed.op_type, positions, protos, printed.protos is not None)

    def _expanded(self, node: Node) -> Graph | None:
        """A graph of older operators, each of which has a form itself."""
        key = (*self._keys.of(node, True), tuple(bool(result.uses) for result in node.results))
        if key not in self._expansions:
            found = expand(node)
            try:
                for inner in found or ():
                    self._plan(inner, self._key(inner))
            except CannotPrint:
                found = None
            self._expansions[key] = found
        return self._expansions[key]

    def _key(self, node: Node) -> Any:
        key = self._node_keys.get(node)
        if key is None:
            key = self._node_keys[node] = self._keys.of(node, contents_matter(node.op, self.version))
        return key

    # ---- names ---------------------------------------------------------------------------------------------

    def _reserve(self, hint: str) -> str:
        return _unused(hint, self.taken)

    def _output_names(self, graph: Graph, wanted: list[str], region: bool = False) -> list[str]:
        """The names of a graph's outputs; those that nodes compute get them at once."""
        given: list[str] = []
        for position, value in enumerate(graph.outputs):
            hint = (
                wanted[position] if position < len(wanted) and wanted[position] else value.name or f"output_{position}"
            )
            if (
                not region and hint in self.taken and self.names.get(value) == hint
            ):  # an input that is an output of the same name
                name = hint
            else:
                name = self._reserve(hint)
            given.append(name)
            if value.producer is not None and value.producer.graph is graph and value not in self.names:
                self.names[value] = name
        return given

    def _name(self, value: Value, hint: str = "") -> str:
        name = self.names.get(value)
        if name is None:
            if value.constant is not None:
                return self._constant(value)
            name = self.names[value] = self._reserve(value.name or hint or "value")
        return name

    def _constant(self, value: Value) -> str:
        """The name of a constant's initializer; one for each constant, in the main graph."""
        assert value.constant is not None
        name = self.constants.get(id(value.constant))
        if name is None:
            name = self._reserve(value.name or "constant")
            self.constants[id(value.constant)] = name
            write_tensor(value.constant, name, self.model.graph.initializer.add(), self.data)
        return name

    def _node_name(self, location: Location) -> str:
        hint = "+".join(location.names)
        hint = hint if len(hint) <= LONGEST_NAME else location.names[0]
        if not hint:
            return ""
        return _unused(hint, self.node_names)

    def _declare(self, info: ValueInfoProto, name: str, type: Type) -> None:
        info.name = name
        info.type.CopyFrom(type_proto(type))

    # ---- graphs --------------------------------------------------------------------------------------------

    def _print_graph(self, graph: Graph, proto: GraphProto) -> None:
        for node in graph:
            self._print(node, proto)

    def _finish_output(self, proto: GraphProto, value: Value, name: str) -> None:
        """Copy a value that is no node's result, or has another name, to the output."""
        if self.names.get(value) != name:
            proto.node.add(op_type="Identity", input=[self._name(value)], output=[name])

    def _print(self, node: Node, proto: GraphProto) -> None:
        plan = self._plan(node, self._key(node))
        if isinstance(plan, Graph):
            expanded = self._expanded(node)
            assert expanded is not None
            self._print_expanded(node, expanded, proto)
            return
        made = proto.node.add(op_type=plan.op_type, name=self._node_name(node.location))
        if plan.domain:
            made.domain = plan.domain
            self._import(plan.domain, node)
        names, operands = self.names, node.operands
        inputs = []
        for position in plan.positions:
            value = None if position is None else operands[position]
            inputs.append("" if value is None else names.get(value) or self._name(value))
        made.input.extend(inputs)
        results = node.results
        optional = [port.optional for port in node.op.results]
        outputs = [
            "" if not v.uses and k < len(optional) and optional[k] else self._name(v, node.op.name)
            for k, v in enumerate(results)
        ]
        while outputs and not outputs[-1]:
            outputs.pop()
        made.output.extend(outputs)
        made.attribute.extend(plan.attributes)
        if node.regions:
            self._print_regions(node, made)
        if plan.declared:
            for value in results:
                if value.name not in self._assumed and _says_something(value.type):
                    self._declare(proto.value_info.add(), self._name(value), value.type)

    def _import(self, domain: str, node: Node) -> None:
        version = dict(getattr(node.op, "opsets", ())).get(domain, 1)
        if self.domains.setdefault(domain, version) != version:
            raise UnsupportedError(
                "E402", f"nodes of {domain} need versions {self.domains[domain]} and {version}", node=node.location
            )

    def _print_regions(self, node: Node, made: onnx.NodeProto) -> None:
        captured = _captured(node)
        operands = node.operands[len(node.operands) - captured :] if captured else []
        for name, region in zip(node.op.bodies, node.regions, strict=True):
            body = GraphProto(name=region.name or name)
            own = region.inputs[: len(region.inputs) - captured]
            for value in own:
                self.names[value] = self._reserve(value.name or "input")
                self._declare(body.input.add(), self.names[value], value.type)
            for value, outer in zip(region.inputs[len(own) :], operands, strict=True):
                assert outer is not None
                self.names[value] = self._name(outer)
            outputs = self._output_names(region, [], region=True)
            self._print_graph(region, body)
            for output, value in zip(outputs, region.outputs, strict=True):
                self._finish_output(body, value, output)
                self._declare(body.output.add(), output, value.type)
            made.attribute.append(attribute_proto(name, body, "GRAPH"))

    def _print_expanded(self, node: Node, expanded: Graph, proto: GraphProto) -> None:
        """Write the nodes of an expansion in the place of a node."""
        outer: Mapping[Value, Value] = dict(
            zip(expanded.inputs, (v for v in node.operands if v is not None and v.constant is None), strict=True)
        )
        for inner, value in outer.items():
            self.names[inner] = self._name(value)
        for result, value in zip(node.results, expanded.outputs, strict=True):
            if value.producer is not None and value not in self.names:
                self.names[value] = self._name(result, node.op.name)
        for inner_node in expanded:
            inner_node.location = node.location
            self._print(inner_node, proto)
        for result, value in zip(node.results, expanded.outputs, strict=True):
            if self.names.get(value) != self._name(result):
                self._finish_output(proto, value, self._name(result))
        for inner_node in expanded:  # the same graph serves the next node like this one, under other names
            for made in inner_node.results:
                self.names.pop(made, None)
        for inner in expanded.inputs:
            self.names.pop(inner, None)


def _unused(hint: str, taken: dict[str, int]) -> str:
    """The hint, or the hint with a number; it is taken afterwards."""
    number = taken.get(hint)
    name = hint
    while number is not None and name in taken:
        name = f"{hint}_{number}"
        number += 1
    if number is not None:
        taken[hint] = number
    taken[name] = 1
    return name


@dataclass
class Plan:
    """How nodes of one kind are written: operands by position, attributes as messages."""

    domain: str
    op_type: str
    positions: list[int | None]
    attributes: list[AttributeProto]
    declared: bool
    """Whether the results' types must be written, since ONNX can't infer them."""


class Keys:
    """What decides how nodes are written: nodes with equal keys are written alike.

    Operators and types count by value, and are numbered at first sight: hashing each type for each node would cost most
    of an export. The objects are kept, so that no identity is used twice.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._seen: dict[int, tuple[int, Any]] = {}

    def _number(self, thing: Any) -> int:
        known = self._seen.get(id(thing))
        if known is None:
            number = self._numbers.setdefault(thing, len(self._numbers))
            known = self._seen[id(thing)] = number, thing
        return known[0]

    def of(self, node: Node, contents: bool) -> tuple[Any, ...]:
        """The key of a node; `contents` says whether what its constants hold counts."""
        number = self._number
        operands = [
            None
            if v is None
            else (number(v.type), (self._number(v.constant) if contents else -1) if v.constant is not None else -2)
            for v in node.operands
        ]
        return (number(node.op), *operands, *[number(result.type) for result in node.results])


def _slot(value: Value) -> Value:
    """A stand-in for an operand, so that one value in two places is told apart."""
    slot = Value(value.type, value.name)
    slot.constant, slot.content = value.constant, value.content
    return slot


def _captured(node: Node) -> int:
    """How many of a node's last operands are outer values that its regions use."""
    carried = getattr(node.op, "carried", 0)
    own = {"if": 1, "loop": 2 + carried, "scan": carried + getattr(node.op, "num_scan_inputs", 0)}[node.op.name]
    return max(0, len(node.operands) - own)


def _says_something(type: Type) -> bool:
    return not isinstance(type, TensorType) or type.shape is not None
