"""Fourier transforms of complex tensors as pairs of real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from espalier.frontends.torch.lower.complex import join, parts
from espalier.frontends.torch.registry import lowers_complex
from espalier.frontends.torch.scope import Pair, Scope
from espalier.frontends.torch.tensors import number
from espalier.ir import dims
from espalier.ir.elements import I64
from espalier.ir.graph import Value


def _scaled(s: Scope, z: Pair, factor: float) -> Pair:
    if factor == 1:
        return z
    scale = number(factor, z.element)
    return Pair(s.b.mul(z.real, scale), s.b.mul(z.imag, scale))


def _factor(s: Scope, extents: Sequence[dims.Dimension], normalization: int) -> Any:
    """What torch multiplies an unscaled transform with: 1, 1/√n or 1/n."""
    if normalization == 0:
        return 1
    if not dims.is_static(tuple(extents)):
        s.refuse("a scaled transform over a dynamic extent", code="E405")
    count = int(dims.product(extents))
    return 1 / math.sqrt(count) if normalization == 1 else 1 / count


def _transform(s: Scope, z: Value, axis: int, inverse: bool) -> Value:
    """One axis of a tensor with a trailing axis of parts; the inverse is scaled by 1/n, as ONNX has it."""
    return s.b.dft(z, None, number(axis, I64), inverse=int(inverse))


@lowers_complex("aten._fft_r2c.default")
def real_to_complex(s: Scope, x: Value, axes: Sequence[int], normalization: int, onesided: bool) -> Pair:
    rank = s.rank_of(x)
    order = [s.axis(axis, rank) for axis in axes]
    factor = _factor(s, [s.shape_of(x)[axis] for axis in order], normalization)
    z = s.b.dft(s.unsqueeze(x, rank), None, number(order[-1], I64), onesided=int(onesided))
    for axis in reversed(order[:-1]):
        z = _transform(s, z, axis, False)
    return _scaled(s, parts(s, z), factor)


def _c2c(s: Scope, z: Pair, axes: Sequence[int], normalization: int, forward: bool) -> Pair:
    order = [s.axis(axis, z.rank) for axis in axes]
    shape = s.shape_of(z.real)
    extents = [shape[axis] for axis in order]
    if not order:
        return z
    joined = join(s, z)
    for axis in order:
        joined = _transform(s, joined, axis, not forward)
    if not forward:  # each inverse has scaled by 1/n already
        if normalization == 2:
            return parts(s, joined)
        if not dims.is_static(tuple(extents)):
            s.refuse("an unscaled inverse transform over a dynamic extent", code="E405")
        count = int(dims.product(extents))
        return _scaled(s, parts(s, joined), count if normalization == 0 else math.sqrt(count))
    return _scaled(s, parts(s, joined), _factor(s, extents, normalization))


@lowers_complex("aten._fft_c2c.default")
def complex_to_complex(s: Scope, z: Any, axes: Sequence[int], normalization: int, forward: bool) -> Pair:
    if isinstance(z, Value):
        z = Pair(z, s.full(s.shape_of(z), 0, z.element))
    return _c2c(s, z, axes, normalization, forward)


@lowers_complex("aten._fft_c2r.default")
def complex_to_real(s: Scope, z: Pair, axes: Sequence[int], normalization: int, size: Any) -> Value:
    """Completes the half spectrum by its mirror image; what the imaginary parts then leave is dropped."""
    order = [s.axis(axis, z.rank) for axis in axes]
    z = _c2c(s, z, order[:-1], normalization, False)
    axis, count = order[-1], s.dim(size)
    if not isinstance(count, int):
        s.refuse("an inverse real transform of dynamic length", code="E405")
    half = count // 2 + 1
    given = s.shape_of(z.real)[axis]
    if given != half:
        z = Pair(s.slice(z.real, axis, 0, half), s.slice(z.imag, axis, 0, half))
    last = half - 1 if count % 2 == 0 else half  # the mirror image leaves out the first and, if even, the middle
    if last > 1:
        mirrored = [_reversed(s, part, axis, 1, last) for part in (z.real, z.imag)]
        z = Pair(s.concat([z.real, mirrored[0]], axis), s.concat([z.imag, s.b.neg(mirrored[1])], axis))
    found = parts(s, _transform(s, join(s, z), axis, True)).real
    if normalization == 2:
        return found
    return s.b.mul(found, number(count if normalization == 0 else math.sqrt(count), found.element))


def _reversed(s: Scope, x: Value, axis: int, start: int, stop: int) -> Value:
    """Positions stop−1, …, start of an axis."""
    return s.b.slice(x, s.sizes([stop - 1]), s.sizes([start - 1]), s.sizes([axis]), s.sizes([-1]))
