"""Graphs for people's own analyses: as networkx sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from espalier.ir import Graph, Node, Value

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: Graph) -> networkx.MultiDiGraph[Any]:
    """A directed graph whose vertices are the model's own objects, and whose edges are uses of values.

    Vertices are the graph's nodes, its inputs and the constants that it uses (`Value`s), and the graph itself, which
    stands for the outputs. Each has `kind` ("node", "input", "constant" or "output"), `label` and, for nodes, `op`, its
    operator's name, and `location`. An edge leads from what makes a value to each use of it, with `value`, `result`
    (which result of its maker) and `operand` (the position among the user's operands, or among the outputs). Parallel
    edges are kept: x·x uses x twice.

    Bodies of If, Loop and Scan are graphs of their own, `node.regions`; call this for each. What it returns is a copy:
    changing it does not change the model.
    """
    import networkx

    result: networkx.MultiDiGraph[Any] = networkx.MultiDiGraph(name=graph.name)
    for value in graph.inputs:
        result.add_node(value, kind="input", label=value.name)
    for value in graph.constants():
        result.add_node(value, kind="constant", label=value.name)
    for node in graph:
        result.add_node(node, kind="node", label=node.op.name, op=node.op.name, location=node.location)
    result.add_node(graph, kind="output", label=graph.name)

    def use(value: Value | None, user: Node | Graph, position: int) -> None:
        if value is not None:
            maker = value if value.producer is None else value.producer
            result.add_edge(maker, user, value=value, result=value.index, operand=position)

    for node in graph:
        for position, operand in enumerate(node.operands):
            use(operand, node, position)
    for position, output in enumerate(graph.outputs):
        use(output, graph, position)
    return result
