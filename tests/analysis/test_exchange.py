from __future__ import annotations

import networkx
import numpy as np

from espalier.analysis.exchange import to_networkx
from espalier.ir import Builder, Graph, TensorType
from espalier.ir.elements import F32


def diamond() -> Graph:
    """out = relu(x)·relu(x) + w, and x itself as a second output."""
    graph = Graph("diamond")
    build = Builder(graph)
    x = build.input(TensorType(F32, (2, 3)), "x")
    r = build.relu(x)
    square = build.mul(r, r)
    total = build.add(square, np.ones(3, np.float32))
    graph.set_outputs([total, x], ["out", "x"])
    return graph


def test_vertices_are_the_models_objects_and_edges_its_uses() -> None:
    graph = diamond()
    found = to_networkx(graph)
    relu, mul, add = graph.nodes
    (x,) = graph.inputs
    (w,) = graph.constants()
    assert set(found) == {relu, mul, add, x, w, graph}
    assert {found.nodes[v]["kind"] for v in (relu, mul, add)} == {"node"}
    assert found.nodes[w]["kind"] == "constant" and found.nodes[graph]["kind"] == "output"
    edges = {(a, b, data["operand"]) for a, b, data in found.edges(data=True)}
    inside = {(x, relu, 0), (relu, mul, 0), (relu, mul, 1), (mul, add, 0), (w, add, 1)}
    assert edges == inside | {(add, graph, 0), (x, graph, 1)}
    assert all(data["value"] in (a.results if a in graph.nodes else [a]) for a, _, data in found.edges(data=True))


def test_algorithms_of_networkx_answer_in_the_models_objects() -> None:
    graph = diamond()
    found = to_networkx(graph)
    relu, mul, add = graph.nodes
    assert networkx.is_directed_acyclic_graph(found)
    assert networkx.dag_longest_path(networkx.DiGraph(found))[-4:] == [relu, mul, add, graph]
    assert networkx.ancestors(found, add) >= {relu, mul, graph.inputs[0]}


def test_the_result_is_a_copy() -> None:
    graph = diamond()
    to_networkx(graph).remove_nodes_from(graph.nodes)
    assert len(graph.nodes) == 3
