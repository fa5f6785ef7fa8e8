"""Copies of graphs and of parts of graphs. The elements of constants are shared, never copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from espalier.ir.graph import Graph, Node, Value, constant_value


def clone(graph: Graph) -> Graph:
    """A graph of its own with the same content: values and nodes are new, each `Constant` is that of the original.

    A constant value has one copy, which all nodes of the clone use, those of regions included.
    """
    return _clone(graph, Copies())


def extract(nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value], name: str = "part") -> Graph:
    """The given nodes (in an order that can run) as a graph with these inputs and outputs."""
    part, copies = Graph(name), Copies()
    for value in inputs:
        copies[value] = made = part.add_input(value.type, value.name)
        made.content = value.content
    _copy_nodes(nodes, part, copies)
    part.set_outputs([copies[value] for value in outputs])
    return part


class Copies(dict[Value, Value]):
    """Value → its copy. Constants get theirs when they are first asked for; other values without one stay."""

    def __missing__(self, value: Value) -> Value:
        if value.constant is None:
            return value
        self[value] = copy = constant_value(value.constant, name=value.name)
        copy.type = value.type
        return copy


def _clone(graph: Graph, copies: Copies) -> Graph:
    copy = Graph(graph.name, symbol_prefix=graph.symbol_prefix)
    copy.metadata = dict(graph.metadata)
    copy.reserve_symbols_of(graph)
    for value in graph.inputs:
        copies[value] = made = copy.add_input(value.type, value.name)
        made.content = value.content
    _copy_nodes(graph, copy, copies)
    copy.set_outputs([copies[value] for value in graph.outputs], graph.output_names)
    return copy


def _copy_nodes(nodes: Iterable[Node], target: Graph, copies: Copies) -> None:
    for node in nodes:
        operands = [None if operand is None else copies[operand] for operand in node.operands]
        regions = [_clone(region, copies) for region in node.regions]
        copy = Node(node.op, operands, [result.type for result in node.results], regions, node.location)
        for old, new in zip(node.results, copy.results, strict=True):
            new.name, new.content = old.name, old.content
            copies[old] = new
        target.insert(copy)
