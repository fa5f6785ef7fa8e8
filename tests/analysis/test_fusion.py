"""Fusion regions: every node in exactly one, one anchor each, no circles, and what belongs together is together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.analysis.fusion import Region, fusion_regions
from espalier.analysis.patterns import Pattern, is_elementwise, pattern
from espalier.ir import Builder, Graph
from espalier.ir.ops import Add, BatchNorm, Concat, Conv, MatMul, ReduceMean, Relu, Softmax, Transpose
from espalier.ir.types import parse as type_of


def names(region: Region) -> list[str]:
    return [node.op.name for node in region.nodes]


def block() -> Graph:
    """relu(conv(x) + x), its mean, and a product."""
    graph = Graph()
    b = Builder(graph)
    x = b.input(type_of("f32[n, 4, 8, 8]"), "x")
    y = b.conv(x, np.ones((4, 4, 3, 3), np.float32), pads=(1, 1, 1, 1))
    y = b.relu(b.add(y, x))
    pooled = b.reshape(b.reduce_mean(y, np.array([2, 3])), np.array([-1, 4]))
    graph.set_outputs([b.sigmoid(b.matmul(pooled, np.ones((4, 2), np.float32)))])
    return graph


def test_epilogues_join_their_anchor():
    regions = [names(region) for region in fusion_regions(block())]
    assert regions[0] == ["conv", "add", "relu"]
    assert ["matmul", "sigmoid"] in regions


def test_a_shared_result_ends_its_region():
    graph = Graph()
    b = Builder(graph)
    x = b.input(type_of("f32[4, 4]"), "x")
    y = b.matmul(x, np.ones((4, 4), np.float32))
    graph.set_outputs([b.relu(y), b.neg(y)])
    assert [names(region) for region in fusion_regions(graph)] == [["matmul"], ["relu"], ["neg"]]


def test_an_output_ends_its_region():
    graph = Graph()
    b = Builder(graph)
    y = b.matmul(b.input(type_of("f32[4, 4]"), "x"), np.ones((4, 4), np.float32))
    graph.set_outputs([y, b.relu(y)])
    assert [names(region) for region in fusion_regions(graph)] == [["matmul"], ["relu"]]


def test_a_region_has_at_most_one_anchor():
    graph = Graph()
    b = Builder(graph)
    x = b.input(type_of("f32[4, 4]"), "x")
    graph.set_outputs([b.matmul(b.matmul(b.relu(x), np.ones((4, 4), np.float32)), np.ones((4, 4), np.float32))])
    regions = fusion_regions(graph)
    assert [names(region) for region in regions] == [["relu", "matmul"], ["matmul"]]
    assert all(region.anchor is region.nodes[-1] for region in regions)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Relu, True), (Add, True), (Conv, False), (Softmax, False), (Concat, False), (Transpose, False)],
)
def test_elementwise_is_read_off_the_axes(kind: type, expected: bool):
    assert is_elementwise(kind) is expected


def test_patterns_follow_from_declarations():
    graph = Graph()
    b = Builder(graph)
    x = b.input(type_of("f32[2, 3, 4]"), "x")
    b.batch_norm(x, *(np.ones(3, np.float32) for _ in range(4)))
    b.reduce_mean(x, np.array([1]))
    b.matmul(x, np.ones((4, 2), np.float32))
    b.transpose(x, perm=(2, 0, 1))
    found = {type(node.op): pattern(graph, node) for node in graph}
    assert found[MatMul] is Pattern.CONTRACTION
    assert found[ReduceMean] is Pattern.REDUCTION
    assert found[Transpose] is Pattern.MOVEMENT
    assert found[BatchNorm] in (Pattern.REDUCTION, Pattern.OTHER, Pattern.ELEMENTWISE)


def random_graph(seed: int) -> Graph:
    graph = Graph()
    b, rng = Builder(graph), np.random.default_rng(seed)
    pool = [b.input(type_of("f32[4, 4]"), f"x{k}") for k in range(2)]
    for _ in range(int(rng.integers(1, 30))):
        x, y = (pool[int(rng.integers(0, len(pool)))] for _ in range(2))
        made = [
            lambda x, y: b.relu(x),
            lambda x, y: b.add(x, y),
            lambda x, y: b.matmul(x, y),
            lambda x, y: b.softmax(x),
            lambda x, y: b.transpose(x, perm=(1, 0)),
            lambda x, y: b.mul(x, b.reduce_mean(y, np.array([1]))),
        ][int(rng.integers(0, 6))](x, y)
        pool.append(made)
    graph.set_outputs(pool[-2:])
    return graph


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_regions_cover_the_graph_without_circles(seed: int):
    graph = random_graph(seed)
    regions = fusion_regions(graph)
    nodes = [node for region in regions for node in region.nodes]
    assert len(nodes) == len(graph) and set(nodes) == set(graph)
    home = {node: place for place, region in enumerate(regions) for node in region.nodes}
    anchors = (Pattern.CONTRACTION, Pattern.REDUCTION)
    for place, region in enumerate(regions):
        assert sum(pattern(graph, node) in anchors for node in region.nodes) == (region.anchor is not None)
        for node in region.nodes:
            for value in node.inputs:  # regions run in their order: nothing comes from a later one
                assert value.producer is None or home[value.producer] <= place
        for node in region.nodes[:-1]:  # what leaves a region is its last node's result
            assert all(home[user] == place for result in node.results for user in result.users)
            assert not any(result.is_output for result in node.results)
