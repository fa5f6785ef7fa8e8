"""Weights of few bits that stay packed: products of floats unpack and dequantize them in registers.

A matrix of weights, whose rows are the steps of a reduction, lies as the tile reads it. For each block of lanes
(columns) words of 8 to 32 bits follow each other, one for each lane, that hold the numbers of up to eight steps. Where
scales are shared by blocks of rows, the lanes' scales lie before the words that share them, and so do zero points
unless all are the same. So everything is read once, in order, from a buffer of bytes.

A number that lies at bit p of a word is read as the float 2^(23−p) + number by the bits of that power, put above it.
The subtraction of power and zero point is exact, so weights are those of the reference. A scale for all rows of a
column is left to what follows the product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import machine
from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor
from espalier.backends.tvm.broadcasting import by_columns
from espalier.backends.tvm.frames import integer
from espalier.backends.tvm.numbers import immediate
from espalier.backends.tvm.tensor import Affine, Constant, Expr, Tensor

Array = np.ndarray[Any, Any]

MOST = 8
"""Numbers in a word: their steps are written out."""
MANTISSA = 23
"""Bits of an f32 that numbers may lie in."""
SLACK = 1.25
"""What words that hold more numbers may take, compared with those that take the least."""
SAVED = 0.75
"""Of the bytes of floats, as many at most are worth the unpacking."""


@dataclass(frozen=True)
class Packed:
    """Packed weights, and how a product reads them."""

    data: Tensor
    """The bytes."""
    bits: int
    """Of the field that holds a number: 2, 4 or 8."""
    count: int
    """Numbers in a word, for as many steps of the reduction, one after another."""
    lanes: int
    run: int
    """Steps after which a word is not filled any further: those of the innermost loop."""
    runs: int
    share: int
    """Words that share a scale or zero point."""
    scaled: bool
    """Whether there are scales among the words."""
    zero: float | None
    """The zero point of all; None if zero points lie among the words."""
    columns: Array | None
    """What the product's columns (all, if there is one number) are to be multiplied by."""
    rows: Array | None = None
    """What the first operand's entries are to be multiplied by, for each step."""

    @property
    def words(self) -> int:
        """For each lane of a block of columns."""
        return self.runs * -(-self.run // self.count)

    @property
    def cost(self) -> int:
        """Of a vector of weights, in multiplications of vectors."""
        return 3 + self.scaled + (self.zero is None)

    @property
    def about(self) -> tuple[Any, ...]:
        """How it is read, as plain values."""
        return self.bits, self.count, self.share if self.scaled or self.zero is None else 0, self.scaled, self.zero

    def vector(self, load: Callable[[Sequence[Expr]], Expr], block: Expr, run: Expr, place: Expr, step: int) -> Expr:
        """The weights of a block of columns for a step of a word, which has a place in its run, as floats."""
        word = run * integer(-(-self.run // self.count)) + place
        lanes, width = self.lanes, self.bits * self.count // 8 * self.lanes
        ahead = (4 * self.scaled + (self.zero is None)) * lanes
        group = tirx.floordiv(word, integer(self.share)) if ahead else integer(0)
        start = block * integer(_length(self.words, width, self.share, ahead))
        first = start + group * integer(self.share * width + ahead)

        def read(byte: Expr, size: int, kind: str) -> Expr:
            return tirx.reinterpret(f"{kind}x{lanes}", load([tirx.Ramp(byte, integer(1), size)]))

        found = read(
            start + word * integer(width) + (group + integer(1)) * integer(ahead), width, f"uint{width * 8 // lanes}"
        )
        if width != 4 * lanes:
            found = tirx.Cast(f"uint32x{lanes}", found)
        fits = MANTISSA // self.bits
        if step // fits:
            found = tirx.shift_right(found, _all(step // fits * fits * self.bits, "uint32", lanes))
        bit = step % fits * self.bits
        power = 1 << (MANTISSA - bit)
        above = int(np.float32(power).view(np.uint32))
        found = (found & _all(((1 << self.bits) - 1) << bit, "uint32", lanes)) | _all(above, "uint32", lanes)
        found = tirx.reinterpret(f"float32x{lanes}", found) - _all(power + (self.zero or 0), "float32", lanes)
        if self.zero is None:
            zeros = load([tirx.Ramp(first + integer(4 * lanes * self.scaled), integer(1), lanes)])
            found = found - tirx.Cast(f"float32x{lanes}", zeros)
        if self.scaled:
            found = found * read(first, 4 * lanes, "float32")
        return found

    def finished(self, product: Tensor, spatial: int = 0) -> Tensor:
        """The product by the scales that are left; its columns lie before so many axes."""
        if self.columns is None:
            return product
        found: Tensor = PRIMITIVES["multiply"](product, by_columns(self.columns, spatial))
        return found


def matrix(w: Tensor) -> Packed | None:
    """A constant matrix (steps, columns) that is dequantized from few bits; None if it isn't, or doesn't fit."""
    found = _constant(w)
    if found is None or w.ndim != 2:
        return None
    affine, numbers, zero = found
    one = numbers[None]
    if affine.block:
        return _packed(one, zero, affine.scale, affine.block) if affine.axis == 0 else None
    if affine.axis == 0:
        return _packed(one, zero, None, rows=affine.scale)
    return _packed(one, zero, affine.scale)


def fits(w: Tensor) -> bool:
    """Whether a convolution's weights stay packed."""
    found = _constant(w)
    return found is not None and not found[0].block and found[0].axis in (None, 0)


def filters(w: Tensor, inner: int) -> Packed | None:
    """A convolution's weights (outputs, channels, K…) dequantized from few bits; None if they aren't, or don't fit.

    Steps are (channels / inner, K…, inner), the last of which make a run.
    """
    found = _constant(w) if fits(w) else None
    if found is None:
        return None
    affine, numbers, zero = found
    outputs, channels, *kernel = numbers.shape
    split = numbers.reshape(outputs, channels // inner, inner, *kernel)
    return _packed(np.moveaxis(split, (0, 2), (-1, -2)).reshape(-1, inner, outputs), zero, affine.scale)


def _constant(w: Tensor) -> tuple[Affine, Array, Array] | None:
    """What a constant is dequantized from, its integers and zero points, moved so that none are negative."""
    affine = w.affine
    if affine is None or not isinstance(w, Constant) or not isinstance(affine.stored, Constant) or not w.size:
        return None
    kind = affine.stored.element
    if not kind.is_integer or kind.bits > 8 or not np.isfinite(affine.scale).all():
        return None
    low = kind.range[0]
    numbers = (affine.stored.array.astype(np.int16) - low).astype(np.uint8)
    return affine, numbers, affine.zero.astype(np.float32) - np.float32(low)


def _packed(
    numbers: Array, zero: Array, scale: Array | None, block: int = 0, rows: Array | None = None
) -> Packed | None:
    """Pack (runs, steps of a run, columns).

    Zero points and scales are one for all or for each column, or (blocks of steps, columns) where there is a `block`.
    """
    lanes = machine.current().lanes
    runs, run, columns = numbers.shape
    bits, count = _fields(int(numbers.max()), run, block)
    blocks = -(-columns // lanes)

    def filled(array: Array) -> Array:
        """(…, columns) as (blocks, …, lanes), with zeros beyond the columns."""
        found = np.zeros((len(array), blocks * lanes), array.dtype)
        found[:, :columns] = array
        return np.ascontiguousarray(found.reshape(-1, blocks, lanes).transpose(1, 0, 2))

    words = runs * -(-run // count)
    share = block // count or words
    uniform = bool((zero == zero.flat[0]).all())
    if rows is not None and not uniform:
        return None
    ahead = [] if scale is None or not block else [filled(scale.astype("<f4"))]
    if not uniform:
        ahead.append(filled(np.broadcast_to(zero, (-(-words // share), columns)).astype(np.uint8)))
    whole = np.pad(numbers.astype(np.uint32), [(0, 0), (0, -run % count), (0, 0)]).reshape(words, count, columns)
    shifted = whole << (bits * np.arange(count, dtype=np.uint32)[:, None])
    held = filled(np.bitwise_or.reduce(shifted, axis=1).astype(f"<u{bits * count // 8}"))
    groups = [
        np.ascontiguousarray(part).reshape(blocks, -1).view(np.uint8)
        for k in range(-(-words // share))
        for part in (*(each[:, k : k + 1] for each in ahead), held[:, k * share : (k + 1) * share])
    ]
    data = np.concatenate(groups, axis=1).reshape(-1)
    if data.nbytes > SAVED * 4 * runs * run * blocks * lanes:
        return None
    return Packed(
        as_tensor(data), bits, count, lanes, run, runs, share, bool(block), float(zero.flat[0]) if uniform else None,
        None if block else scale, rows,
    )  # fmt: skip


def _fields(largest: int, run: int, block: int) -> tuple[int, int]:
    """Bits of a field, and fields of a word: as many as can be, if that takes few more bytes than the best does."""
    found = [
        (-(-run // count) * bits * count, count, bits)
        for bits in (2, 4, 8) if largest < 1 << bits
        for count in (1, 2, 4, MOST) if 8 <= bits * count <= 32 and count < 2 * run and block % count == 0
    ]  # fmt: skip
    least, *_ = min(found)
    near = [(count, -size, -bits) for size, count, bits in found if size <= SLACK * least]
    count, _, negative = max(near)
    return -negative, count


def _length(words: int, width: int, share: int, ahead: int) -> int:
    """Bytes of a block of columns."""
    return words * width + -(-words // share) * ahead


def _all(value: float, kind: str, lanes: int) -> Expr:
    return tirx.Broadcast(immediate(value, kind), lanes)
