"""The verifier finds what is wrong, and names the node, its source and the rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from espalier.errors import VerificationError
from espalier.ir import Builder, Graph, Node, Value, verify
from espalier.ir.graph import Location
from espalier.ir.ops import Conv, LogicalAnd, Relu
from espalier.ir.types import parse as type_of


def small() -> tuple[Graph, Node, Node]:
    graph = Graph("main")
    b = Builder(graph, location=Location(("layer/first",), ("model.py:7",)))
    x = b.input(type_of("f32[n, 3]"), "x")
    y = b.relu(x)
    z = b.add(y, np.ones(3, np.float32))
    z.name = "z"
    graph.set_outputs([z])
    first, second = graph
    return graph, first, second


def break_uses(graph: Graph, first: Node, second: Node) -> None:
    first.results[0].uses.clear()


def miscount_uses(graph: Graph, first: Node, second: Node) -> None:
    first.results[0].uses[second] = 2


def break_order(graph: Graph, first: Node, second: Node) -> None:
    graph.move(first, None)


def break_list(graph: Graph, first: Node, second: Node) -> None:
    second.previous = None


def miscount_nodes(graph: Graph, first: Node, second: Node) -> None:
    graph.node_count = 7


def break_type(graph: Graph, first: Node, second: Node) -> None:
    first.results[0].type = type_of("f32[n, 4]")


def break_element(graph: Graph, first: Node, second: Node) -> None:
    second.results[0].type = type_of("f16[n, 3]")


def lack_an_operand(graph: Graph, first: Node, second: Node) -> None:
    graph.set_operand(second, 1, None)


def too_many_operands(graph: Graph, first: Node, second: Node) -> None:
    graph.set_operand(first, 1, graph.inputs[0])


def foreign_operand(graph: Graph, first: Node, second: Node) -> None:
    graph.set_operand(second, 0, Value(type_of("f32[n, 3]"), "stranger"))


def foreign_output(graph: Graph, first: Node, second: Node) -> None:
    graph.set_outputs([Value(type_of("f32[3]"), "stranger")])


def two_inputs_in_one(graph: Graph, first: Node, second: Node) -> None:
    graph.inputs.append(graph.inputs[0])


def another_operator(graph: Graph, first: Node, second: Node) -> None:
    graph.set_op(second, LogicalAnd())


def missing_operands(graph: Graph, first: Node, second: Node) -> None:
    graph.set_op(first, Conv())


@pytest.mark.parametrize(
    ("damage", "rule", "level"),
    [
        (break_uses, "use lists agree", "structure"),
        (miscount_uses, "use lists agree", "structure"),
        (break_order, "operands are defined before use", "structure"),
        (break_list, "nodes are linked both ways", "structure"),
        (miscount_nodes, "nodes are linked both ways", "structure"),
        (lack_an_operand, "operands as declared", "structure"),
        (too_many_operands, "operands as declared", "structure"),
        (missing_operands, "operands as declared", "structure"),
        (foreign_operand, "operands are defined before use", "structure"),
        (foreign_output, "outputs are defined", "structure"),
        (two_inputs_in_one, "inputs are distinct", "structure"),
        (break_type, "types follow from operators", "types"),
        (break_element, "types follow from operators", "types"),
        (another_operator, "operands fit the operator", "types"),
    ],
)
def test_damage_is_found(damage: Callable[[Graph, Node, Node], None], rule: str, level: str) -> None:
    graph, first, second = small()
    verify(graph)
    damage(graph, first, second)
    if level == "types":
        verify(graph, "structure")
    with pytest.raises(VerificationError) as caught:
        verify(graph)
    error = caught.value
    assert error.code == "E601"
    assert f"(rule: {rule})" in error.message
    if error.node is not None:
        assert "relu" in error.node or "add" in error.node or "logical_and" in error.node or "conv" in error.node
        assert error.source == "layer/first, model.py:7"


def test_damage_in_a_region_is_found() -> None:
    graph = Graph("main")
    b = Builder(graph)
    x = b.input(type_of("f32[3]"), "x")
    regions = []
    for name in ("then", "else"):
        region = Graph(name)
        inner = Builder(region)
        region.set_outputs([inner.relu(inner.input(x.type, "x"))])
        regions.append(region)
    graph.set_outputs([getattr(b, "if")(np.array(True), x, regions=regions, results=1)])
    verify(graph)
    (node,) = regions[0]
    assert node.is_a(Relu)
    node.results[0].type = type_of("f32[4]")
    with pytest.raises(VerificationError, match="types follow from operators"):
        verify(graph)
