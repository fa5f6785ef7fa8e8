"""What the tests of the TVM backend share: build a graph, compare with the reference executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from espalier.backends.tvm import build
from espalier.ir import Builder, Graph
from espalier.ir.elements import from_dtype
from espalier.ir.execute import execute
from espalier.ir.types import TensorType, parse


def graph_of(function: Callable[..., Any], inputs: Sequence[np.ndarray[Any, Any]], types: Sequence[str] = ()) -> Graph:
    """A graph whose outputs are what `function(builder, *values)` gives; `types` replace those of the arrays."""
    graph = Graph()
    builder = Builder(graph)
    given = [parse(text) for text in types] or [TensorType(from_dtype(x.dtype), x.shape) for x in inputs]
    found = function(builder, *(builder.input(type, f"x{k}") for k, type in enumerate(given)))
    graph.set_outputs(list(found) if isinstance(found, tuple) else [found])
    return graph


def agree(
    function: Callable[..., Any],
    *inputs: np.ndarray[Any, Any],
    types: Sequence[str] = (),
    more: Sequence[Sequence[np.ndarray[Any, Any]]] = (),
    tolerance: float = 1e-5,
) -> None:
    """Compiled and reference results are equal: types, shapes, numbers (floats relative to the largest)."""
    graph = graph_of(function, inputs, types)
    compiled = build.build(graph, threads=1)
    for arrays in (inputs, *more):
        wanted, found = execute(graph, list(arrays)), compiled(list(arrays))
        assert len(wanted) == len(found)
        for want, have in zip(wanted, found, strict=True):
            same(want, have, tolerance)


def same(want: Any, have: np.ndarray[Any, Any], tolerance: float) -> None:
    want = np.asarray(want)
    assert (have.dtype, have.shape) == (want.dtype, want.shape)
    if want.dtype.kind in "iub" or not want.size:
        np.testing.assert_array_equal(have, want)
        return
    a, b = want.astype(np.float64), have.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(b), np.isnan(a))
    np.testing.assert_array_equal(b[np.isinf(a)], a[np.isinf(a)])
    finite = np.isfinite(a)
    assert np.isfinite(b[finite]).all()
    if finite.any():
        assert np.abs(a[finite] - b[finite]).max() <= tolerance * max(np.abs(a[finite]).max(), 1e-30)
