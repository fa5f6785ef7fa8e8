"""Products of tensors that are dequantized from 8 bits, in integers: four multiplications to a lane at a time.

Σ (a − z) · w over integers is exact, and one multiplication by both scales gives what the products of the dequantized
floats add up to. Weights are read as signed; activations as unsigned or signed, as the machine's dot products (VNNI of
x86, SDOT of Arm) take them. What that and the zero point add for each column is a multiple of the sum of its weights,
and is taken off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import dots, machine
from espalier.backends.tvm.arithmetic import PRIMITIVES, astype
from espalier.backends.tvm.broadcasting import by_columns
from espalier.backends.tvm.numbers import immediate
from espalier.backends.tvm.tensor import Affine, At, Constant, Expr, Index, Map, Tensor
from espalier.ir import elements
from espalier.ir.dims import Dimension

TAPS = 256
"""Products of 8 bits of which any so many add up exactly in f32."""
LONGEST = 1 << 15
"""Products of 8 bits of which any so many add up in 32 bits."""


def convolution(
    x: Tensor, w: Tensor, counts: Sequence[Dimension], strides: Sequence[int], pads: Sequence[tuple[Any, Any]],
    dilations: Sequence[int], groups: int,
) -> Tensor | None:  # fmt: skip
    """A convolution of dequantized tensors; None if it doesn't fit."""
    each = groups > 1 and w.shape[1] == w.shape[0] // groups == 1
    found = _operands(x, w, 0, each)
    if found is None or any(not isinstance(end, int) or end < 0 for ends in pads for end in ends):
        return None
    a, weights, scale = found
    outputs, per_group, *kernel = weights.shape
    taps, spatial, zero, dot = int(np.prod(kernel)), len(kernel), int(a.zero.flat[0]), machine.current().dot
    about = ("integer convolution", _shift(a))
    if np.any(a.zero != zero):
        return None  # what lies beyond the positions is one integer
    if each and taps <= TAPS:

        def floats(loaded: Expr) -> Expr:
            lanes = machine.current().lanes
            return tirx.Cast(f"float32x{lanes}", loaded) - tirx.Broadcast(immediate(zero, "float32"), lanes)

        product = dots.depthwise(
            a.stored, weights, counts, strides, pads, dilations, number=floats, fill=zero, about=about
        )
        return None if product is None else _scaled(product, scale, spatial)
    if dot is None or per_group * taps > LONGEST:
        return None
    product = dots.convolution(
        dot, a.stored, weights, counts, strides, pads, dilations, groups,
        number=lambda loaded: _four(loaded, a), fill=zero, about=about,
    )  # fmt: skip
    if product is None:
        return None
    return _scaled(_centred(product, a, weights.reshape(outputs, -1).sum(1), spatial), scale, spatial)


def matrices(left: Tensor, right: Tensor, shape: Sequence[Dimension], count: Dimension) -> Tensor | None:
    """A product of a stack of matrices and one matrix, both dequantized; None if it doesn't fit."""
    found, dot = _operands(left, right, 1), machine.current().dot
    if found is None or dot is None or not isinstance(count, int) or count > LONGEST or found[1].ndim != 2:
        return None
    a, weights, scale = found
    about = ("integer matrices", _shift(a))
    product = dots.matrices(dot, a.stored, weights, shape, number=lambda loaded: _four(loaded, a), about=about)
    return None if product is None else _scaled(_centred(product, a, weights.sum(0, dtype=np.int64), 0), scale, 0)


def _operands(x: Tensor, w: Tensor, axis: int, each: bool = False) -> tuple[Affine, Any, Any] | None:
    """The first operand's integers, the second's as signed ones, and the scale of the product for each column.

    None if they are no dequantized integers of 8 bits, with a zero point of 0, or half the range of unsigned ones, for
    the second, whose scales may vary along its `axis`. Scale and zero point of the first are numbers, or else, if each
    channel is convolved on its own (`each`), vary along the channels.
    """
    a, b = x.affine, w.affine
    if a is None or b is None or not isinstance(b.stored, Constant):
        return None
    if a.axis is not None and not (each and a.axis == 1):
        return None
    eight = (elements.U8, elements.I8)
    if a.stored.element not in eight or b.stored.element not in eight or b.axis not in (None, axis) or b.block:
        return None
    half = 128 if b.stored.element == elements.U8 else 0
    if np.any(b.zero != half):
        return None
    weights = (b.stored.array.astype(np.int16) - half).astype(np.int8)
    scale = (a.scale.astype(np.float64) * b.scale.astype(np.float64)).astype(np.float32)
    return a, weights, scale


def _shift(a: Affine) -> int:
    """What is added to the first operand's integers so that the machine's dot product reads them rightly."""
    dot = machine.current().dot
    reads_signed = dot is not None and dot.signed
    return 128 * ((a.stored.element == elements.I8) - reads_signed)


def _four(loaded: Expr, a: Affine) -> Expr:
    """Four neighbours of the first operand as one number of 32 bits, shifted."""
    number = tirx.reinterpret("int32", loaded)
    return tirx.bitwise_xor(number, tirx.const(-2139062144, "int32")) if _shift(a) else number  # 0x80 in every byte


def _centred(product: Tensor, a: Affine, sums: Any, spatial: int) -> Tensor:
    """The product without what the zero point, and reading integers shifted, have added."""
    shift = int(a.zero) + _shift(a)
    if not shift:
        return product
    moved: Tensor = PRIMITIVES["subtract"](product, by_columns((shift * sums).astype(np.int32), spatial))
    return moved


def _scaled(product: Tensor, scale: Any, spatial: int) -> Tensor:
    found: Tensor = PRIMITIVES["multiply"](astype(product, elements.F32), by_columns(scale, spatial))
    return found


def dequantized(held: Affine) -> Tensor:
    """The floats that integers stand for, whose scale and zero point are numbers or vary along an axis."""
    spread = [1] * held.stored.ndim
    if held.axis is not None:
        spread[held.axis] = -1
    shape = spread if held.axis is not None else ()
    shifted = wholes(held.stored) - held.zero.astype(np.float32).reshape(shape)  # exact: 17 bits at most
    found: Tensor = shifted * held.scale.reshape(shape)
    found.affine = held
    return found


def wholes(x: Tensor) -> Tensor:
    """Integers as floats, taken from where they are floats still if they are computed in the same kernel."""

    def body(at: At, index: Index) -> Expr:
        return at.whole(0, index)

    found = Map(x.shape, elements.F32, [x], ["same"], body, cost=1)
    found.function = lambda at, entry: tirx.Cast("float32", entry)
    return found
