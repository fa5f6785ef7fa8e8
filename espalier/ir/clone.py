"""Copies of graphs and of parts of graphs. Constants are shared, never copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from espalier.ir.graph import Graph, Node, Value


def clone(graph: Graph) -> Graph:
    """A graph of its own with the same content; values and nodes are new, constants shared."""
    copy = Graph(graph.name)
    copy.metadata = dict(graph.metadata)
    copy._symbols, copy._symbol_prefix = graph._symbols, graph._symbol_prefix
    mapping: dict[Value, Value] = {}
    for value in graph.inputs:
        mapping[value] = copy.add_input(value.type, value.name)
    _copy_nodes(graph, copy, mapping)
    copy.set_outputs([mapping.get(value, value) for value in graph.outputs], graph.output_names)
    return copy


def extract(nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value], name: str = "part") -> Graph:
    """The given nodes (in an order that can run) as a graph with these inputs and outputs."""
    part = Graph(name)
    mapping = {value: part.add_input(value.type, value.name) for value in inputs}
    for value, copy in mapping.items():
        copy.content = value.content
    _copy_nodes(nodes, part, mapping)
    part.set_outputs([mapping.get(value, value) for value in outputs])
    return part


def _copy_nodes(nodes: Iterable[Node], target: Graph, mapping: dict[Value, Value]) -> None:
    for node in nodes:
        operands = [None if operand is None else mapping.get(operand, operand) for operand in node.operands]
        regions = [clone(region) for region in node.regions]
        copy = Node(node.op, operands, [result.type for result in node.results], regions, node.location)
        for old, new in zip(node.results, copy.results, strict=True):
            new.name, new.content = old.name, old.content
            mapping[old] = new
        target.insert(copy)
