"""Shapes that broadcast: what they give, and where an operand is read."""

from __future__ import annotations

from typing import Any, Protocol

from tvm import tirx

from espalier.backends.tvm.numbers import immediate
from espalier.backends.tvm.requirements import require
from espalier.backends.tvm.tensor import Expr, Index, Untraceable
from espalier.ir import dims
from espalier.ir.agreement import Requirement
from espalier.ir.dims import Dimension, Shape


class Extents(Protocol):
    """As much of `tensor.At` as finding places needs; kernels' scopes have it too."""

    def dim(self, dimension: Dimension) -> Expr: ...


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The shape that shapes broadcast to. Dimensions not known to agree are required to."""
    rank = max(map(len, shapes), default=0)
    result: list[Dimension] = []
    for axis in range(-rank, 0):
        found: Dimension = 1
        for shape in shapes:
            extent = shape[axis] if -axis <= len(shape) else 1
            if extent == 1 or extent == found:
                continue
            if found != 1 and isinstance(found, int) and isinstance(extent, int):
                raise Untraceable(f"shapes {shapes} don't broadcast")
            found = dims.broadcast(found, extent)
        result.append(found)
    for shape in shapes:
        for extent, whole in zip(reversed(shape), reversed(result), strict=False):
            if extent not in (1, whole):
                require(Requirement(extent, "be 1 or", whole))
    return tuple(result)


def broadcast_index(at: Extents, index: Index, shape: Shape, result: Shape) -> list[Expr]:
    """Where an operand of `shape` is read for an entry of the broadcast result."""
    found = []
    for entry, extent, whole in zip(
        index[len(index) - len(shape) :], shape, result[len(result) - len(shape) :], strict=True
    ):
        if extent == whole:
            found.append(entry)
        elif extent == 1:
            found.append(immediate(0, "int64"))
        else:  # 1 or the whole extent, known only at run time
            found.append(tirx.min(entry, at.dim(extent) - 1))
    return found


def by_columns(numbers: Any, spatial: int) -> Any:
    """Numbers for each column (or one for all), to be broadcast against columns that lie before so many axes."""
    return numbers.reshape(-1, *(1,) * spatial) if numbers.size > 1 else numbers.reshape(())
