"""What a kernel is written with."""

from __future__ import annotations

import pytest
from tvm import tirx

from espalier.backends.tvm.frames import Kernel, Scope, integer
from espalier.backends.tvm.tensor import Map, Tensor
from espalier.errors import UnsupportedError
from espalier.ir.elements import F32


def chosen(x: Tensor, cost: int) -> Map:
    """Entries of x from one of two places."""

    def body(at, index):
        (i,) = index
        yes, no = (lambda: at(0, [i + integer(1)])), (lambda: at(0, [i + integer(2)]))
        return at.choose(i < integer(3), yes, no)

    return Map((8,), F32, [x], ["many"], body, cost)


@pytest.mark.parametrize("cost", [0, 1])
def test_both_branches_count_as_read(cost: int) -> None:
    """With cost 1, values are bound in the branches, which are then statements."""
    x: Tensor = Map((8,), F32, [], [], lambda at, index: tirx.Cast("float32", index[0]), 0)
    for _ in range(6):
        x = chosen(x, cost)
    scope = Scope(Kernel())
    scope.read(x, [tirx.Var("i", "int64")])
    assert scope.reads == 2**7 - 1
    for _ in range(6):
        x = chosen(x, cost)
    with pytest.raises(UnsupportedError, match="grows too large"):
        Scope(Kernel()).read(x, [tirx.Var("i", "int64")])
