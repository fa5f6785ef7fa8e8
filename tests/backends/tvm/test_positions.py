"""Indices that come from data: right from either end, and refused outside of their axis instead of read anyhow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import espalier
from espalier.backends.tvm import build
from espalier.errors import EspalierError, InputError
from espalier.ir import Builder, Graph, Value
from espalier.ir.execute import run
from espalier.ir.types import parse
from espalier.passes import PassManager
from espalier.passes.pipelines import pipeline

X = np.arange(15, dtype="f4").reshape(5, 3)
UPDATES = -np.ones((2, 3), "f4")
INSIDE, OUTSIDE = ([4, -5], [0, 3], [-1, 2]), ([5, 0], [1, -6], [2**40, 0])


def column(b: Builder, indices: Value) -> Value:
    return b.unsqueeze(indices, np.array([1]))


USES: dict[str, Callable[[Builder, Value, Value], Value]] = {
    "gather": lambda b, x, i: b.gather(x, i),
    "gather_elements": lambda b, x, i: b.gather_elements(x, column(b, i)),
    "gather_nd": lambda b, x, i: b.gather_nd(x, column(b, i)),
    "scatter_nd": lambda b, x, i: b.scatter_nd(x, column(b, i), UPDATES),
    "scatter_elements": lambda b, x, i: b.scatter_elements(x, b.expand(column(b, i), np.array([2, 3])), UPDATES),
}


def graph(use: str, data: str = "f32[5, 3]", indices: str = "i64[2]") -> Graph:
    made = Graph(use)
    x, i = made.add_input(parse(data), "x"), made.add_input(parse(indices), "i")
    made.set_outputs([USES[use](Builder(made), x, i)], ["y"])
    return made


@pytest.mark.parametrize("use", USES)
def test_positions_count_from_either_end_and_stay_inside(use: str) -> None:
    compiled = build.build(graph(use))
    for inside in INSIDE:
        indices = np.array(inside)
        (wanted,) = run(graph(use), [X, indices])
        np.testing.assert_array_equal(compiled([X, indices])[0], wanted)
    for outside in OUTSIDE:
        indices = np.array(outside)
        with pytest.raises(IndexError, match="outside of its axis"):
            compiled([X, indices])
        with pytest.raises(InputError, match="outside of an axis of 5") as caught:
            run(graph(use), [X, indices])
        assert caught.value.node is not None
    np.testing.assert_array_equal(compiled([X, np.array([0, 1])])[0], run(graph(use), [X, np.array([0, 1])])[0])


def test_axes_of_any_extent() -> None:
    compiled = build.build(graph("gather", "f32[m, 3]", "i32[n]"))
    for extent in (1, 4):
        indices = np.array([0, -1, extent - 1, -extent], "i4")
        np.testing.assert_array_equal(compiled([X[:extent], indices])[0], X[:extent][indices])
        with pytest.raises(IndexError):
            compiled([X[:extent], np.array([extent], "i4")])


@pytest.mark.parametrize(("indices", "extent"), [([5], 5), ([-6], 5)])
def test_constants_outside_are_refused_when_compiling(indices: Any, extent: int) -> None:
    made = Graph("constant")
    b = Builder(made)
    made.set_outputs([b.gather(made.add_input(parse(f"f32[{extent}, 3]"), "x"), np.array(indices))], ["y"])
    with pytest.raises(EspalierError, match="outside of an axis of 5") as caught:
        build.build(made)
    assert caught.value.node == "gather"


def test_constants_outside_of_an_axis_of_unknown_extent() -> None:
    made = Graph("constant")
    b = Builder(made)
    made.set_outputs([b.gather(made.add_input(parse("f32[m, 3]"), "x"), np.array([3, -1]))], ["y"])
    compiled = build.build(made)
    np.testing.assert_array_equal(compiled([X])[0], X[[3, -1]])
    with pytest.raises(IndexError):
        compiled([X[:3]])


def test_an_artifact_says_so(tmp_path: Path) -> None:
    model = espalier.compile(graph("gather"), backend="tvm", output=tmp_path / "artifact").load()
    with pytest.raises(EspalierError, match="outside of its axis") as caught:
        model({"x": X, "i": np.array([9, 0])})
    assert caught.value.code == "E709"
    np.testing.assert_array_equal(model({"x": X, "i": np.array([-1, 0])})["y"], X[[-1, 0]])


@pytest.mark.parametrize(("start", "end"), [(-1, 2**63 - 1), (0, 1)])
@pytest.mark.parametrize("name", ["none", "exact"])
def test_the_first_or_last_of_an_axis_of_unknown_extent(start: int, end: int, name: str) -> None:
    made = Graph("last")
    b, x = Builder(made), made.add_input(parse("f32[b, n, 3]"), "x")
    part = b.slice(x, np.array([start]), np.array([end]), np.array([1]), np.array([1]))
    made.set_outputs([b.squeeze(part, np.array([1]))], ["y"])
    PassManager(pipeline(name)).run(made)
    assert [node.op.name for node in made] == (["gather"] if name == "exact" else ["slice", "squeeze"])
    compiled = build.build(made)
    inputs = np.arange(30, dtype="f4").reshape(2, 5, 3)
    np.testing.assert_array_equal(compiled([inputs])[0], inputs[:, start])
    with pytest.raises((IndexError, ValueError)):
        compiled([inputs[:, :0]])
