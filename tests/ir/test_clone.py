"""Copies of graphs: nothing but the elements of constants is shared."""

from __future__ import annotations

import numpy as np

from espalier.ir import Builder, Graph, TensorType, constant_value, to_text, verify
from espalier.ir.clone import Snapshot, clone, extract
from espalier.ir.elements import BOOL, F32
from espalier.ir.execute import execute
from espalier.ir.inference import _INFERRED
from espalier.ir.ops import If, Opaque
from espalier.ir.types import parse
from espalier.passes import PassManager
from espalier.passes.manager import compare_models
from espalier.passes.pipelines import pipeline


def tied() -> Graph:
    """x·W + W, where a branch adds W too."""
    graph = Graph()
    b = Builder(graph)
    x, weight = b.input(TensorType(F32, (2, 2)), "x"), constant_value(np.eye(2, dtype=np.float32), name="weight")
    branches = []
    for name in ("then", "else"):
        region = Graph(name)
        inner = region.add_input(x.type, "x")
        region.set_outputs([Builder(region).add(inner, weight)])
        branches.append(region)
    product = b.add(b.matmul(x, weight), weight)
    condition = b.input(TensorType(BOOL, ()), "condition")
    (chosen,) = b.node(If(), [condition, product], results=1, regions=branches).results
    graph.set_outputs([chosen, weight], ["chosen", "weight"])
    return graph


def test_constants_of_a_clone_are_its_own() -> None:
    graph = tied()
    (weight,) = graph.constants()
    before = dict(weight.uses)
    copy = clone(graph)
    (twin,) = copy.constants()  # one for all uses, in regions too
    assert twin is not weight and twin.constant is weight.constant and twin.name == "weight"
    assert dict(weight.uses) == before
    assert sum(twin.uses.values()) == sum(before.values())
    graphs = set(copy.all_graphs())
    assert all(user in graphs or user.graph in graphs for user in twin.uses)


def test_replacing_a_constant_leaves_other_copies_alone() -> None:
    graph = tied()
    copy = clone(graph)
    inputs = [np.ones((2, 2), np.float32), np.array(True)]
    wanted = execute(graph, inputs)
    (twin,) = copy.constants()
    copy.replace(twin, constant_value(np.zeros((2, 2), np.float32)))
    for found, expected in zip(execute(graph, inputs), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not execute(copy, inputs)[0].any()


def test_an_extracted_part_does_not_use_the_constants_of_the_whole() -> None:
    graph = tied()
    node = next(iter(graph))
    weight = node.operand(1)
    before = dict(weight.uses)
    part = extract([node], [graph.inputs[0]], node.results)
    assert dict(weight.uses) == before
    (twin,) = part.constants()
    assert twin is not weight and twin.has_one_use


def test_a_clone_gives_no_symbol_twice() -> None:
    graph = Graph(symbol_prefix="body_")
    given = {graph.fresh_symbol(), graph.fresh_symbol()}
    assert clone(graph).fresh_symbol() not in given
    assert graph.reserve_symbol("body_7") and graph.fresh_symbol() == "body_8"
    assert not graph.reserve_symbol("body_3") and graph.reserve_symbol("batch")


def test_inference_keeps_no_serialized_nodes() -> None:
    graph = Graph()
    node = b"a node of which nobody knows anything"
    op = Opaque(domain="unknown", op_type="Unknown", node=node, result_types=("f32[2]",))
    Builder(graph).node(op, [], results=1)
    assert not any(isinstance(kept, Opaque) for kept, *_ in _INFERRED)


def test_a_random_operator_in_a_branch_makes_a_graph_random() -> None:
    graph = tied()
    assert graph.is_deterministic
    (choice,) = [node for node in graph if node.regions]
    region = choice.regions[0]
    region.set_outputs([Builder(region).random_normal(shape=(2, 2))])
    assert not graph.is_deterministic
    assert "random" in compare_models(graph, graph)


def test_a_snapshot_keeps_what_the_graph_was_regions_too():
    region = Graph("branch")
    inner = Builder(region)
    given = region.add_input(parse("f32[3]"), "x")
    region.set_outputs([inner.relu(inner.relu(given))])
    graph = Graph()
    builder = Builder(graph)
    x = builder.input(parse("f32[3]"), "x")
    choice = builder.input(parse("bool[]"), "choice")
    (branch,) = builder.node(If(), [choice, x], results=1, regions=[region, clone(region)]).results
    graph.set_outputs([builder.add(builder.neg(builder.neg(branch)), x)], ["y"])
    wanted, snapshot = to_text(graph), Snapshot(graph)
    PassManager(pipeline("exact"), "none").run(graph)
    assert to_text(graph) != wanted
    assert to_text(snapshot.graph) == wanted
    verify(snapshot.graph, "structure")
