"""Complex numbers as pairs of real tensors, and the discrete Fourier transform as products with its matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor, filled, primitive
from espalier.backends.tvm.arithmetic import astype as real_astype
from espalier.backends.tvm.tensor import Tensor, Untraceable
from espalier.ir import elements
from espalier.ir.elements import Element


class Pair(Tensor):
    """A complex tensor: two real ones. It never has a buffer of its own."""

    is_pair = True

    real: Any
    imaginary: Any

    def __init__(self, real: Tensor, imaginary: Tensor) -> None:
        super().__init__(real.shape, elements.C128 if real.element == elements.F64 else elements.C64)
        self.real, self.imaginary = real, imaginary

    def each(self, function: Callable[[Tensor], Any]) -> Pair:
        return Pair(function(self.real), function(self.imaginary))

    def __getitem__(self, key: Any) -> Any:
        return self.each(lambda part: part[key])


def pair(value: Any, like: Pair) -> Pair:
    """A number, array or tensor as a pair."""
    if isinstance(value, Pair):
        return value
    kind = like.real.element
    if isinstance(value, Tensor):
        return Pair(real_astype(value, kind), filled(value.shape, 0, kind))
    array = np.asarray(value)
    return Pair(as_tensor(np.real(array).astype(kind.dtype)), as_tensor(np.imag(array).astype(kind.dtype)))


def binary(name: str, a: Any, b: Any) -> Pair:
    """add, subtract, multiply and divide of complex tensors."""
    like = a if isinstance(a, Pair) else b
    x, y = pair(a, like), pair(b, like)
    if name in ("add", "subtract"):
        function = PRIMITIVES[name]
        return Pair(function(x.real, y.real), function(x.imaginary, y.imaginary))
    if name == "divide":
        size = y.real * y.real + y.imaginary * y.imaginary
        x, y = Pair(x.real / size, x.imaginary / size), Pair(y.real, -y.imaginary)
    return Pair(x.real * y.real - x.imaginary * y.imaginary, x.real * y.imaginary + x.imaginary * y.real)


def astype(array: Pair, kind: Element) -> Any:
    if not kind.is_complex:
        return real_astype(array.real, kind)
    part = elements.F64 if kind == elements.C128 else elements.F32
    return array.each(lambda x: real_astype(x, part))


def reduce(name: str, array: Pair, axis: Any, keepdims: bool) -> Pair:
    if name != "sum":
        raise Untraceable(f"{name} of complex numbers")
    return array.each(lambda part: PRIMITIVES["sum"](part, axis=axis, keepdims=keepdims))


@primitive
def complex_of(real: Any, imaginary: Any) -> Pair:
    """Complex numbers from their parts."""
    parts = [as_tensor(part) for part in (real, imaginary)]
    kind = elements.F64 if elements.F64 in [part.element for part in parts] else elements.F32
    x, y = (real_astype(part, kind) for part in parts)
    shape = (x + y).shape
    return Pair(PRIMITIVES["broadcast_to"](x, shape), PRIMITIVES["broadcast_to"](y, shape))


@primitive
def real(array: Any) -> Any:
    return array.real if isinstance(array, Pair) else array


@primitive
def imag(array: Any) -> Any:
    return array.imaginary if isinstance(array, Pair) else filled(array.shape, 0, array.element)


@primitive
def conj(array: Any) -> Any:
    return Pair(array.real, -array.imaginary) if isinstance(array, Pair) else array


def _movement(name: str) -> None:
    original = PRIMITIVES[name]

    def operation(first: Any, *arguments: Any, **keywords: Any) -> Any:
        if isinstance(first, Pair):
            return first.each(lambda part: original(part, *arguments, **keywords))
        if isinstance(first, list | tuple) and any(isinstance(x, Pair) for x in first):
            like = next(x for x in first if isinstance(x, Pair))
            parts = [pair(x, like) for x in first]
            return Pair(
                original([p.real for p in parts], *arguments, **keywords),
                original([p.imaginary for p in parts], *arguments, **keywords),
            )
        return original(first, *arguments, **keywords)

    operation.__name__ = name
    PRIMITIVES[name] = operation


for _name in ("transpose", "reshape", "squeeze", "expand_dims", "flip", "concat", "stack", "tile", "pad", "take"):
    _movement(_name)


@primitive
def fft(array: Any, axis: int, length: int | None = None, inverse: bool = False) -> Pair:
    """The (inverse) discrete Fourier transform along an axis: products with cosines and sines, accumulated in f64."""
    source = array if isinstance(array, Pair) else Pair(as_tensor(array), filled(array.shape, 0, array.element))
    axis = axis % source.ndim
    extent = source.shape[axis]
    count = extent if length is None else length
    if not isinstance(count, int) or not isinstance(extent, int):
        raise Untraceable("a Fourier transform of a length that is not known")
    if count != extent:
        if count < extent:
            source = source[(slice(None),) * axis + (slice(0, count),)]
        else:
            grow = [(0, count - extent if a == axis else 0) for a in range(source.ndim)]
            source = source.each(lambda part: PRIMITIVES["pad"](part, grow))
    kind = source.real.element
    order = [*(a for a in range(source.ndim) if a != axis), axis]
    rows = source.each(lambda part: real_astype(PRIMITIVES["transpose"](part, order), elements.F64))
    angles = (np.outer(np.arange(count), np.arange(count)) % max(count, 1)) * (2 * np.pi / max(count, 1))
    scale = 1 / count if inverse else 1.0
    cosine, sine = np.cos(angles) * scale, np.sin(angles) * (scale if inverse else -scale)
    product = PRIMITIVES["matmul"]
    found = Pair(
        product(rows.real, cosine) - product(rows.imaginary, sine),
        product(rows.real, sine) + product(rows.imaginary, cosine),
    )
    back: Sequence[int] = [order.index(a) for a in range(source.ndim)]
    return found.each(lambda part: real_astype(PRIMITIVES["transpose"](part, back), kind))
