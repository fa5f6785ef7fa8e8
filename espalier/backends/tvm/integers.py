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

from espalier.backends.tvm import machine
from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor, astype
from espalier.backends.tvm.broadcasting import broadcast_index, by_columns
from espalier.backends.tvm.frames import Scope, integer
from espalier.backends.tvm.layout import Reach
from espalier.backends.tvm.products import Load, Plan, worth
from espalier.backends.tvm.tensor import Affine, Constant, Expr, Index, Product, Tensor
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
    found = _operands(x, w, 0)
    if found is None or any(not isinstance(end, int) or end < 0 for ends in pads for end in ends):
        return None
    a, weights, scale = found
    lanes = machine.current().lanes
    outputs, per_group, *kernel = weights.shape
    shape = (x.shape[0], outputs, *counts)
    each, spatial, zero = outputs // groups, len(kernel), int(a.zero)
    along = tuple((int(before), int(after)) for before, after in pads)
    taps = int(np.prod(kernel))
    about = ("integer convolution", strides, dilations, groups, _shift(a))
    if not worth(shape, (per_group, *kernel), elements.I32):
        return None

    def places(index: Index, steps: Index) -> list[Expr]:
        return [
            index[2 + k] * integer(strides[k]) + step * integer(dilations[k]) - integer(along[k][0])
            for k, step in enumerate(steps)
        ]

    blocks = -(-outputs // lanes)
    if groups > 1 and per_group == each == 1 and taps <= TAPS:  # as many products as sums: floats are as fast
        padded = np.zeros((blocks * lanes, *kernel), np.float32)
        padded[:outputs] = weights[:, 0]
        packed = np.moveaxis(padded.reshape(blocks, lanes, *kernel), 1, -1)

        def entries(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
            ramp = tirx.Ramp(integer(0), integer(1), lanes)
            channel = scope.kernel.composed(scope.kernel.block(index[1]), ramp, lanes)
            loaded = tirx.Cast(f"float32x{lanes}", load([index[0], channel, *places(index, position)]))
            return loaded - tirx.Broadcast(tirx.FloatImm("float32", float(zero)), lanes)

        vector = _vectors(tuple(kernel), lanes, 1, 1)
        reach = Reach(lanes, along, True, zero)
        plan = Plan(1 + spatial, 1, lanes, tuple(kernel), entries, vector, 0, reach, True, about=about)
        product = Product(shape, elements.F32, [a.stored, _flat(packed)], plan)
        return _scaled(product, scale, spatial)
    dense = groups == 1 or (per_group % lanes == 0 and each % lanes == 0)
    if not dense or not machine.current().dot or per_group * taps > LONGEST:
        return None
    channel_blocks = -(-per_group // lanes)
    quads = min(lanes, -(-per_group // 4) * 4) // 4
    filled = np.zeros((blocks * lanes, channel_blocks * quads * 4, *kernel), np.int8)
    filled[:outputs, :per_group] = weights
    filled = filled.reshape(blocks, lanes, channel_blocks, quads, 4, *kernel)
    packed = np.moveaxis(filled, (1, 3, 4), (-2, -3, -1))  # (o/l, i/l, K…, quads, l, 4)
    extents = (channel_blocks, *kernel, quads)

    def numbers(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        block = position[0]
        if groups > 1:
            block = tirx.floordiv(index[1], integer(each)) * integer(per_group // lanes) + block
        quad = tirx.Ramp(position[-1] * integer(4), integer(1), 4)
        channel = scope.kernel.composed(block, quad, lanes)
        return _four(load([index[0], channel, *places(index, position[1:-1])]), a)

    reach = Reach(lanes, along, True, zero)
    vector = _vectors(extents, lanes, 4, 1)
    plan = Plan(
        1 + spatial, 1, lanes, extents, numbers, vector, each if groups > 1 else 0, reach,
        vector_type=f"int8x{4 * lanes}", combine=dot, about=about,
    )  # fmt: skip
    product = Product(shape, elements.I32, [a.stored, _flat(packed)], plan)
    return _scaled(_centred(product, a, weights.reshape(outputs, -1).sum(1), spatial), scale, spatial)


def matrices(left: Tensor, right: Tensor, shape: Sequence[Dimension], count: Dimension) -> Tensor | None:
    """A product of a stack of matrices and one matrix, both dequantized; None if it doesn't fit."""
    found = _operands(left, right, 1)
    if found is None or not machine.current().dot or not isinstance(count, int) or count % 4 or count > LONGEST:
        return None
    a, weights, scale = found
    lanes, lead = machine.current().lanes, tuple(shape[:-2])
    if weights.ndim != 2 or not worth(shape, (count,), elements.I32):
        return None
    columns = weights.shape[1]
    blocks = -(-columns // lanes)
    filled = np.zeros((count, blocks * lanes), np.int8)
    filled[:, :columns] = weights
    packed = filled.reshape(count // 4, 4, blocks, lanes).transpose(2, 0, 3, 1)

    def numbers(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        first = broadcast_index(scope, index[:-2], left.shape[:-2], lead)
        return _four(load([*first, index[-2], tirx.Ramp(position[0] * integer(4), integer(1), 4)]), a)

    rank = len(shape)
    plan = Plan(
        rank - 2, rank - 1, lanes, (count // 4,), numbers, _vectors((count // 4,), lanes, 4, rank - 1),
        vector_type=f"int8x{4 * lanes}", combine=dot, about=("integer matrices", _shift(a)),
    )  # fmt: skip
    product = Product(tuple(shape), elements.I32, [a.stored, _flat(packed)], plan)
    return _scaled(_centred(product, a, weights.sum(0, dtype=np.int64), 0), scale, 0)


def _operands(x: Tensor, w: Tensor, axis: int) -> tuple[Affine, Any, Any] | None:
    """The first operand's integers, the second's as signed ones, and the scale of the product for each column.

    None if they are no dequantized integers of 8 bits, with one scale for the first and a zero point of 0, or half the
    range of unsigned ones, for the second, whose scales may vary along its `axis`.
    """
    a, b = x.affine, w.affine
    if a is None or b is None or a.axis is not None or not isinstance(b.stored, Constant):
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


def _vectors(extents: Sequence[int], lanes: int, packed: int, axis: int) -> Any:
    """Reads the second operand, which lies in the order of the loops: lanes, on an axis, of so many entries each."""

    def vector(scope: Scope, load: Load, index: Index, position: Index) -> Expr:
        offset = scope.kernel.block(index[axis])
        for step, extent in zip(position, extents, strict=True):
            offset = offset * integer(extent) + step
        return load([tirx.Ramp(offset * integer(lanes * packed), integer(1), lanes * packed)])

    return vector


def _flat(packed: Any) -> Tensor:
    return as_tensor(np.ascontiguousarray(packed).reshape(-1))


def _shift(a: Affine) -> int:
    """What is added to the first operand's integers so that the machine's dot product reads them rightly."""
    dot = machine.current().dot
    reads_signed = dot is not None and dot.signed
    return 128 * ((a.stored.element == elements.I8) - reads_signed)


def _four(loaded: Expr, a: Affine) -> Expr:
    """Four neighbours of the first operand as one number of 32 bits, shifted."""
    number = tirx.reinterpret("int32", loaded)
    return tirx.bitwise_xor(number, tirx.const(-2139062144, "int32")) if _shift(a) else number  # 0x80 in every byte


def dot(old: Expr, factor: Expr, vector: Expr) -> Expr:
    """Each lane's four products of a broadcast number's bytes and the lane's, added up."""
    one, lanes = machine.current().dot, machine.current().lanes
    assert one is not None
    bytes_ = tirx.reinterpret(f"{'int8' if one.signed else 'uint8'}x{4 * lanes}", factor)
    return _dots(one, lanes, old, bytes_, vector)


def _dots(dot: machine.Dot, lanes: int, old: Expr, left: Expr, right: Expr) -> Expr:
    """As many of the machine's instructions as so many lanes take."""
    if lanes == dot.lanes:
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", dot.intrinsic, old, left, right)
    types = [f"int32x{lanes // 2}", f"{'int8' if dot.signed else 'uint8'}x{2 * lanes}", f"int8x{2 * lanes}"]
    halves = [
        _dots(dot, lanes // 2, *(half(kind, whole) for kind, whole in zip(types, (old, left, right), strict=True)))
        for half in (tirx.vectorlow, tirx.vectorhigh)
    ]
    return tirx.vectorcombine(f"int32x{lanes}", *halves)


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
