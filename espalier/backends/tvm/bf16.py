"""Products of floats that bf16 holds: two multiplications to a lane at a time, added up in f32.

A tensor that was widened from bf16 is read as it lies in its buffer, and constants whose numbers bf16 holds are packed
in it. Products of two such numbers are exact in f32. The instruction takes subnormal numbers for zeros, and rounds the
sum of two products once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from tvm import tirx

from espalier.backends.tvm import dots, machine, winograd
from espalier.backends.tvm.arithmetic import elementwise
from espalier.backends.tvm.fuse import CHEAP
from espalier.backends.tvm.machine import Dot
from espalier.backends.tvm.movement import pad
from espalier.backends.tvm.numbers import immediate, widened
from espalier.backends.tvm.tensor import Constant, Expr, Tensor
from espalier.ir import elements
from espalier.ir.dims import Dimension


def convolution(
    x: Tensor, w: Tensor, counts: Sequence[Dimension], strides: Sequence[int], pads: Sequence[tuple[Any, Any]],
    dilations: Sequence[int], groups: int,
) -> Tensor | None:  # fmt: skip
    """A convolution of a widened tensor; None if it doesn't fit."""
    dot, stored = machine.current().bf16, x.narrow
    if dot is None or stored is None or any(not isinstance(end, int) or end < 0 for ends in pads for end in ends):
        return None
    outputs, per_group = w.shape[:2]
    if not isinstance(w, Constant) or w.element != x.element:
        return None
    if groups > 1 and per_group == outputs // groups == 1:
        return dots.depthwise(
            stored, w.array, counts, strides, pads, dilations, number=widened, about=("bf16 convolution",)
        )
    weights = exactly(w.array)
    if weights is None:
        return None
    transformed = winograd.convolution(x, w, counts, strides, pads, dilations, groups, x.element)
    if transformed is not None:
        return transformed
    if groups == 1 and per_group % 2:  # the last channel is a pair with zeros: nobody knows what lies behind it
        more = [(0, 0), (0, 1), *[(0, 0)] * (x.ndim - 2)]
        stored, weights = pad(stored, more), np.pad(weights, more)
    return dots.convolution(
        dot, stored, weights, counts, strides, pads, dilations, groups, number=_pair, about=("bf16 convolution",)
    )


def matrices(left: Tensor, right: Tensor, shape: Sequence[Dimension]) -> Tensor | None:
    """A product of a stack of widened matrices and one matrix, or another such stack; None if it doesn't fit."""
    dot, stored = machine.current().bf16, left.narrow
    if dot is not None and not isinstance(right, Constant):
        return _stacks(dot, left, right, shape)
    if dot is None or stored is None or not isinstance(right, Constant) or right.ndim != 2:
        return None
    weights = exactly(right.array)
    if weights is None or weights.shape[0] % dot.count:
        return None
    return dots.matrices(dot, stored, weights, shape, number=_pair, about=("bf16 matrices",))


def _stacks(dot: Dot, left: Tensor, right: Tensor, shape: Sequence[Dimension]) -> Tensor | None:
    """A product of two stacks of widened matrices, or of multiples of such; None if it doesn't fit.

    What they were multiplied by multiplies the sums, which so are infinite beyond f32, however small it is.
    """
    first, second = _stored(left), _stored(right)
    if first is None or second is None:
        return None
    (x, one), (y, other) = first, second
    if not isinstance(y.shape[-2], int) or x.shape[-1] != y.shape[-2]:
        return None
    product = dots.stacks(dot, x, y, shape, about=("bf16 stacks",))
    if product is None or one == other == 1:
        return product
    factor = float(np.float32(one * other))
    if not factor or not math.isfinite(factor):
        return None
    # with a cost that keeps it in the product's kernel, even where several read it
    return elementwise(elements.F32, lambda at, x: x * immediate(factor, "float32"), product, cost=CHEAP + 1)


def _stored(tensor: Tensor) -> tuple[Tensor, float] | None:
    """The tensor of bf16 that a tensor is a multiple of, and the factor."""
    return (tensor.narrow, 1.0) if tensor.narrow is not None else tensor.scaled


def exactly(array: np.ndarray[Any, Any]) -> Any:
    """Numbers in bf16; None if that does not hold them."""
    with np.errstate(all="ignore"):
        narrow = array.astype(ml_dtypes.bfloat16)
    return narrow if np.array_equal(narrow.astype(array.dtype), array) else None


def _pair(loaded: Expr) -> Expr:
    """Two neighbours as one number of 32 bits."""
    return tirx.reinterpret("int32", loaded)
