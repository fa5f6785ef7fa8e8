"""Copies of graphs and of parts of graphs. The elements of constants are shared, never copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

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


class Snapshot:
    """What a graph is now, noted at a fraction of what a clone costs. `graph` is the clone, made when somebody asks.

    Meanwhile the graph may change, but only by its mutators; what more is known of its values by then, the clone knows.
    """

    def __init__(self, graph: Graph, copies: Copies | None = None) -> None:
        self._copies = Copies() if copies is None else copies
        self._copy, self._outputs, self._names = _begin(graph, self._copies), graph.outputs, [*graph.output_names]
        self._nodes = [
            (
                node.results,
                node.op,
                [*node.operands],
                [result.type for result in node.results],
                [Snapshot(region, self._copies) for region in node.regions],
                node.location,
            )
            for node in graph
        ]

    @cached_property
    def graph(self) -> Graph:
        """The graph as it was."""
        for results, op, operands, types, regions, location in self._nodes:
            copied = [None if operand is None else self._copies[operand] for operand in operands]
            bodies = [region.graph for region in regions]
            _insert_copy(results, Node(op, copied, types, bodies, location), self._copy, self._copies)
        self._copy.set_outputs([self._copies[value] for value in self._outputs], self._names)
        return self._copy


def _begin(graph: Graph, copies: Copies) -> Graph:
    """A graph with copies of the inputs."""
    copy = Graph(graph.name, symbol_prefix=graph.symbol_prefix)
    copy.metadata = dict(graph.metadata)
    copy.reserve_symbols_of(graph)
    for value in graph.inputs:
        copies[value] = made = copy.add_input(value.type, value.name)
        made.content = value.content
    return copy


def _clone(graph: Graph, copies: Copies) -> Graph:
    copy = _begin(graph, copies)
    _copy_nodes(graph, copy, copies)
    copy.set_outputs([copies[value] for value in graph.outputs], graph.output_names)
    return copy


def _copy_nodes(nodes: Iterable[Node], target: Graph, copies: Copies) -> None:
    for node in nodes:
        operands = [None if operand is None else copies[operand] for operand in node.operands]
        regions = [_clone(region, copies) for region in node.regions]
        types = [result.type for result in node.results]
        _insert_copy(node.results, Node(node.op, operands, types, regions, node.location), target, copies)


def _insert_copy(results: Sequence[Value], copy: Node, target: Graph, copies: Copies) -> None:
    """Put the copy of a node of these results at the end of the target, with what is known of them."""
    for old, new in zip(results, copy.results, strict=True):
        new.name, new.content = old.name, old.content
        copies[old] = new
    target.insert(copy)
