"""Ties of top-k are told from wrong picks, and onnxruntime's coarse sigmoid from a wrong one."""

from __future__ import annotations

import numpy as np

from benchmarks.choices import given_choices, with_choices, with_exponentials
from benchmarks.prune_models import agreement, through_onnxruntime
from espalier.ir import Builder, Graph, TensorType, elements
from espalier.ir.execute import execute

X = np.array([[1.0, 3.0, 3.0, 2.0, 3.0]], np.float32)
TABLE = np.array([[10.0], [20.0], [30.0], [40.0], [50.0]], np.float32)


def picking() -> Graph:
    """The rows of a table at the two largest of five."""
    graph = Graph("picking")
    b = Builder(graph)
    _, indices = b.top_k(graph.add_input(TensorType(elements.F32, (1, 5)), "x"), np.array([2]))
    graph.set_outputs([b.gather(TABLE, indices)], ["y"])
    return graph


def test_indices_are_given_too() -> None:
    (rows, indices) = execute(with_choices(picking()), [X])
    assert indices.tolist() == [[1, 2]] and rows.ravel().tolist() == [20, 30]


def test_what_is_as_large_may_be_picked_and_is_then_computed_with() -> None:
    for picked in ([[4, 1]], [[2, 4]]):
        (rows,), legal = given_choices(picking(), [X], [np.array(picked)])
        assert legal and rows.ravel().tolist() == [10 * (k + 1) for k in picked[0]]


def test_smaller_elements_or_one_element_twice_may_not() -> None:
    for picked in ([[1, 3]], [[0, 1]], [[1, 1]]):
        assert not given_choices(picking(), [X], [np.array(picked)])[1]


def test_onnxruntime_computes_the_formula_of_the_sigmoid_as_we_do() -> None:
    x = np.linspace(-14, -11, 24, dtype=np.float32)
    graph = Graph("sigmoid")
    b = Builder(graph)
    graph.set_outputs([b.sigmoid(graph.add_input(TensorType(elements.F32, x.shape), "x"))], ["y"])
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    for each in (graph, with_exponentials(graph)):
        np.testing.assert_allclose(execute(each, [x])[0], exact, rtol=1e-5)
    assert agreement(graph, [x])[0] > 1e-3 > 1e-5 > agreement(with_exponentials(graph), [x])[0]
    assert set(through_onnxruntime(graph, [x], random=False)) == {"onnxruntime", "with_sigmoid"}
