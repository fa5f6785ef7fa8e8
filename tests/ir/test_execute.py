"""The reference executor refuses inputs that don't fit."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import espalier
from espalier.errors import InputError, UnsupportedError
from espalier.ir import Builder, Graph
from espalier.ir.execute import Allowance, execute, run
from espalier.ir.types import parse


def summed(*types: str) -> Graph:
    graph = Graph()
    b = Builder(graph)
    values = [b.input(parse(text), f"x{k}") for k, text in enumerate(types)]
    graph.set_outputs([b.relu(value) for value in values])
    return graph


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.bool_, "datetime64[s]"])
def test_elements_are_checked(dtype: object) -> None:
    with pytest.raises(InputError, match=r"'x0' holds .*the model wants f32"):
        execute(summed("f32[2]"), [np.zeros(2, dtype)])
    with pytest.raises(InputError, match="'x0' holds"):
        execute(summed("f32[*]"), [np.zeros(2, dtype)])


def test_extents_that_follow_from_others_are_checked() -> None:
    graph = summed("f32[2*n]", "f32[n]")
    four, two, three = (np.zeros(count, np.float32) for count in (4, 2, 3))
    assert [y.shape for y in execute(graph, [four, two])] == [(4,), (2,)]
    with pytest.raises(InputError, match="'x0' has an extent of 4 where 2\\*n is 6"):
        execute(graph, [four, three])
    execute(summed("f32[2*n]"), [three])  # nothing tells n


def adding(trips: int) -> Graph:
    """A loop that adds one so many times."""
    scalar, vector, number = (TensorProto.BOOL, []), (TensorProto.FLOAT, [2]), (TensorProto.INT64, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "one"], ["w"])],
        "body",
        [helper.make_tensor_value_info(name, *type) for name, type in (("i", number), ("go", scalar), ("v", vector))],
        [helper.make_tensor_value_info("on", *scalar), helper.make_tensor_value_info("w", *vector)],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)],
        "looping",
        [helper.make_tensor_value_info("x", *vector)],
        [helper.make_tensor_value_info("y", *vector)],
        [helper.make_tensor("trips", TensorProto.INT64, [], [trips])],
    )
    return espalier.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_what_runs_within_an_allowance_ends() -> None:
    x = np.zeros(2, np.float32)
    (y,) = run(adding(5), [x], allowance=Allowance(iterations=5))
    assert y.tolist() == [5, 5]
    for allowance in (Allowance(iterations=4), Allowance(seconds=0.05)):
        with pytest.raises(UnsupportedError, match=r"run too often|has taken 0\.05 s") as caught:
            run(adding(1 << 60), [x], allowance=allowance)
        assert caught.value.code == "E411"


def test_what_runs_within_an_allowance_is_no_larger() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(parse("f32[1]"), "x")
    graph.set_outputs([b.reduce_sum(b.expand(x, np.array([1 << 40])), keepdims=False)])
    with pytest.raises(UnsupportedError, match=r"f32\[1099511627776\], more than 8 GiB"):
        run(graph, [np.zeros(1, np.float32)], allowance=Allowance())


def choosing() -> Graph:
    """y = x's extent 5 (which it lacks) where the condition holds, else its first."""
    number = (TensorProto.INT64, [])
    branches = [
        helper.make_graph(
            [helper.make_node("Shape", ["x"], [f"s{at}"]), helper.make_node("Gather", [f"s{at}", at], [f"{at}th"])],
            at, [], [helper.make_tensor_value_info(f"{at}th", *number)],
        )
        for at in ("five", "zero")
    ]  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])],
        "choosing",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", *number)],
        [helper.make_tensor(name, TensorProto.INT64, [], [n]) for name, n in (("five", 5), ("zero", 0))],
    )
    return espalier.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def test_an_index_outside_of_known_contents_fails_where_it_is_reached() -> None:
    graph, x = choosing(), np.ones((2, 3), np.float32)
    assert execute(graph, [x, np.array(False)])[0] == 2
    with pytest.raises(InputError, match=r"E207: index 5 lies outside of an axis of 2") as caught:
        execute(graph, [x, np.array(True)])
    assert caught.value.node == "fiveth"


def test_arithmetic_on_an_extent_without_axes_is_known() -> None:
    b = Builder(Graph())
    extent = b.gather(b.shape(b.input(parse("f32[n]"), "x")), np.array(0))
    assert str(b.neg(extent).known) == "-n"
