"""Arrays of no entries, whichever of their extents is 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import espalier
from espalier import runtime
from espalier.ir.execute import execute
from espalier.runtime.weights import aligned, aligned_empty, compact
from tests.backends.tvm.checks import graph_of


def counted(*shape: int) -> Any:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("model", "types", "cases"),
    [
        (
            lambda b, past, new: b.concat(past, new, axis=2),
            ["f32[b, 2, past, 4]", "f32[b, 2, new, 4]"],
            [[(1, 2, 0, 4), (1, 2, 3, 4)], [(1, 2, 2, 4), (1, 2, 3, 4)], [(0, 2, 2, 4), (0, 2, 1, 4)]],
        ),
        (lambda b, x: b.relu(x), ["f32[s, t]"], [[(2, 0)], [(0, 2)], [(0, 0)], [(2, 3)]]),
        (lambda b, x, y: b.matmul(x, y), ["f32[2, 0]", "f32[0, 4]"], [[(2, 0), (0, 4)]]),
        (lambda b, x: b.reduce_sum(x, keepdims=0), ["f32[2, 0, 3]"], [[(2, 0, 3)]]),
    ],
)
def test_an_inner_extent_may_be_0(
    tmp_path: Path, model: Any, types: list[str], cases: list[list[tuple[int, ...]]]
) -> None:
    graph = graph_of(model, [counted(*shape) for shape in cases[0]], types)
    espalier.compile(graph, output=tmp_path / "artifact", backend="tvm", verify="none")
    with runtime.load(tmp_path / "artifact", threads=1) as loaded:
        for shapes in cases:
            arrays = [counted(*shape) for shape in shapes]
            for wanted, found in zip(execute(graph, arrays), loaded(*arrays).values(), strict=True):
                assert found.shape == np.shape(wanted)
                np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("shape", [(2, 0), (0, 2), (3, 0, 4), (0,), (2, 3)])
def test_strides_are_products_of_extents(shape: tuple[int, ...]) -> None:
    made = aligned_empty(shape, np.dtype(np.float32))
    wanted = tuple(4 * int(np.prod(shape[axis + 1 :], dtype=int)) for axis in range(len(shape)))
    assert made.strides == wanted
    assert compact(made)
    assert aligned(np.zeros(shape, np.float32)).strides == wanted
