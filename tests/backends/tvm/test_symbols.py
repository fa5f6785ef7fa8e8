"""Numbers that come from shapes which are known when the model runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from espalier.ir import elements
from espalier.ir.dims import NotANumberError, symbol
from espalier.ir.xp import numpy as numpy_xp
from tests.backends.tvm.checks import agree, graph_of


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def extent(b: Any, x: Any, to: str) -> Any:
    return b.cast(b.shape(x, start=0, end=1), to=elements.parse(to))


@pytest.mark.parametrize("to", ["i32", "i64", "f32", "f64", "bool"])
def test_an_extent_in_any_element_is_a_result(to: str) -> None:
    agree(lambda b, x: extent(b, x, to), ones(3, 4), types=["f32[N, 4]"], more=[[ones(7, 4)]])


def test_an_extent_in_32_bits_meets_numbers_known_at_run_time() -> None:
    def model(b: Any, x: Any, k: Any) -> Any:
        n = extent(b, x, "i32")
        return b.add(n, k), b.concat(n, k, axis=0), b.where(b.less(n, k), n, k), b.cast(b.div(n, k), to=elements.F32)

    k = np.array([5], np.int32)
    agree(model, ones(3, 4), k, types=["f32[N, 4]", "i32[1]"], more=[[ones(9, 4), k]])


def test_functions_of_extents() -> None:
    def model(b: Any, x: Any) -> Any:
        n, three = b.shape(x, start=0, end=1), np.array([3], np.int64)
        apart = b.sub(n, three)
        half = b.div(b.cast(n, to=elements.F32), np.array([2], np.float32))
        return b.abs(apart), b.less(n, three), b.div(apart, np.array([2], np.int64)), b.sqrt(b.ceil(half))

    agree(model, ones(1, 4), types=["f32[N, 4]"], more=[[ones(n, 4)] for n in (2, 3, 8)])


@pytest.mark.parametrize("to", ["i32", "i64"])
def test_products_of_extents_wrap_around(to: str) -> None:
    def model(b: Any, x: Any) -> Any:
        n = extent(b, x, to)
        big = b.mul(b.mul(n, np.array([70000], n.type.element.dtype)), np.array([70000], n.type.element.dtype))
        return big, b.cast(big, to=elements.I64), b.div(big, np.array([7], n.type.element.dtype))

    agree(model, ones(1, 4), types=["f32[N, 4]"], more=[[ones(3, 4)], [ones(9, 4)]])
    graph = graph_of(model, [ones(1, 4)], ["f32[N, 4]"])
    assert (graph.outputs[0].content is None) == (to == "i32")


def test_dimensions_that_may_not_fit_are_no_integers() -> None:
    n, m = symbol("n"), symbol("m")
    held = np.array([n * m * 32, n // 2 - 1, 5], object)
    assert numpy_xp.astype(held, elements.I32).tolist() == held.tolist()
    for entry, kind in ((n * 40000, "i32"), (n + 2**31, "i32"), (n, "i16"), (n, "u32"), (n * 2**48, "i64")):
        with pytest.raises(NotANumberError):
            numpy_xp.astype(np.array([entry, None], object)[:1], elements.parse(kind))
