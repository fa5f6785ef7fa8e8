"""Reductions whose reference asks how many entries there are, which only the run may know."""

from __future__ import annotations

from typing import Any

from espalier.backends.tvm import xp
from espalier.backends.tvm.arithmetic import astype
from espalier.backends.tvm.reduction import divide_by
from espalier.backends.tvm.tensor import Tensor
from espalier.backends.tvm.trace import lowers
from espalier.ir import dims
from espalier.ir.graph import Node


@lowers("reduce_mean")
def reduce_mean(node: Node, x: Any, axes: Any = None) -> Any:
    """The mean of floats over axes of unknown extents."""
    op: Any = node.op
    if not isinstance(x, Tensor) or not x.element.is_float:
        return NotImplemented
    given = () if axes is None else tuple(int(axis) % x.ndim for axis in xp.to_numpy(axes).reshape(-1).tolist())
    over = given or (() if op.noop_with_empty_axes else tuple(range(x.ndim)))
    count = dims.product(x.shape[axis] for axis in over)
    if isinstance(count, int):
        return NotImplemented
    total = xp.sum(xp.wide(x), axis=over, keepdims=bool(op.keepdims))
    return astype(divide_by(total, count), x.element)
