"""The reference executor refuses inputs that don't fit."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.errors import InputError
from espalier.ir import Builder, Graph
from espalier.ir.execute import execute
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
