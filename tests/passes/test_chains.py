"""Long chains of operators: rules look a few nodes back, and no further for longer models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from espalier.ir import Builder, Graph, Value
from espalier.ir.execute import execute
from espalier.ir.ops import Where
from espalier.ir.types import parse as type_of
from espalier.passes import PassManager
from espalier.passes.pipelines import pipeline
from espalier.passes.rules.matching import NEAR, factors, is_finite, is_zero
from espalier.passes.rules.norms import fold_norms

Step = Callable[[Any, Value, Value], Value]
STEPS: dict[str, Step] = {
    "mul": lambda b, h, y: b.mul(h, y),
    "mul from the right": lambda b, h, y: b.mul(y, h),
    "mul by a number": lambda b, h, y: b.mul(h, np.float32(1.01)),
    "squares": lambda b, h, y: b.mul(h, h),
    "div": lambda b, h, y: b.div(h, y),
    "add": lambda b, h, y: b.add(h, y),
    "add a number": lambda b, h, y: b.add(h, np.float32(1.01)),
    "transpose": lambda b, h, y: b.transpose(h, perm=(1, 0)),
    "transpose between others": lambda b, h, y: b.transpose(b.tanh(h), perm=(1, 0)),
}


Y = [[1.001, 0.999], [1.002, 0.998]]
"""So near 1 that thousands of factors are neither 0 nor infinite. Nothing is symmetric: order shows."""
X = [[1, 20], [300, 4]]
START = {"squares": [[1, 0], [-1, 1]], "transpose between others": [[0.05, 0.2], [0.5, 1.5]]}
"""Of x, where X would end in one number whatever the rules did."""


def chain(step: Step, length: int) -> Graph:
    """That many steps after each other, and the half of what comes out."""
    graph = Graph()
    build: Any = Builder(graph)
    y = build.input(type_of("f32[2, 2]"), "y")
    h = build.input(type_of("f32[2, 2]"), "x")
    for _ in range(length):
        h = step(build, h, y)
    graph.set_outputs([build.mul(h, np.float32(0.5))], ["z"])
    return graph


def calls(graph: Graph) -> int:
    """How many functions the exact passes call."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    manager, profile = PassManager(pipeline("exact"), "none"), sys.getprofile()
    sys.setprofile(note)
    try:
        manager.run(graph)
    finally:
        sys.setprofile(profile)
    return count


@pytest.mark.parametrize("name", STEPS)
def test_the_passes_work_grows_as_the_chain_does(name: str) -> None:
    calls(chain(STEPS[name], 4))  # what is asked once per operator
    few, many = (calls(chain(STEPS[name], length)) for length in (100, 400))
    assert many < 4.4 * few


@pytest.mark.parametrize("name", STEPS)
def test_chains_longer_than_the_stack_is_deep(name: str) -> None:
    length = 2001  # odd, so that transposes do not cancel
    graph = chain(STEPS[name], length)
    PassManager(pipeline("exact"), "none").run(graph)
    inputs = [np.array(each, np.float32) for each in (Y, START.get(name, X))]
    wanted, got = (execute(each, inputs)[0] for each in (chain(STEPS[name], length), graph))
    assert np.all(np.isfinite(wanted)) and not np.allclose(wanted, wanted.T, rtol=2e-3)
    np.testing.assert_allclose(got, wanted, rtol=3e-4)


def test_factors_are_those_of_the_product() -> None:
    build: Any = Builder(Graph())
    x, y, z = (build.input(type_of("f32[2]"), name) for name in "xyz")
    product = build.div(
        build.mul(build.mul(x, np.float32(3)), build.mul(build.div(y, np.float32(4)), z)), np.float32(2)
    )
    assert factors(product) == ([x, y, z], 0.375)
    quotient = build.mul(build.div(x, y), np.float32(2))
    assert factors(quotient) == ([quotient.producer.operands[0]], 2.0)


@pytest.mark.parametrize("length", [NEAR // 2, 2000])
def test_what_movements_of_constants_are_is_asked_a_few_nodes_back(length: int) -> None:
    build: Any = Builder(Graph())
    zeros = build.constant_of_shape(np.array([2, 2]))
    mask = build.node(Where(), [build.input(type_of("bool[2, 2]"), "b"), np.float32(0), np.float32(-1e4)]).results[0]
    for _ in range(length):
        zeros, mask = (build.transpose(value, perm=(1, 0)) for value in (zeros, mask))
    assert is_zero(zeros) == is_finite(mask) == (length < NEAR)


def test_what_is_moved_many_times_is_asked_once() -> None:
    build: Any = Builder(Graph())
    zeros = build.constant_of_shape(np.array([1]))
    for _ in range(6):
        zeros = build.slice(build.concat(zeros, zeros, axis=0), np.array([0]), np.array([1]))
    assert is_zero(zeros)


def test_a_number_is_taken_through_few_additions_only() -> None:
    graph = Graph()
    build: Any = Builder(graph)
    h = build.matmul(build.input(type_of("f32[2, 4]"), "x"), np.ones((4, 3), np.float32))
    for k in range(2000):
        h = build.add(h, np.arange(k, k + 3, dtype=np.float32))
    graph.set_outputs([build.mul(h, np.float32(0.5))], ["z"])
    PassManager([fold_norms()], "none").run(graph)
    assert graph.node_count == 2002
