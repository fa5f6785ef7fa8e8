"""The primitives in numpy with ml_dtypes: folds constants, computes exact integers, needs no torch.

Functions of the array API that numpy has under the same name and meaning (exp, where, concat, sum, …) are numpy's own;
only what differs stands here.
"""

from __future__ import annotations

import builtins
import functools
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from espalier.ir import dims, elements
from espalier.ir.elements import Element
from espalier.ir.operands import OutsideError
from espalier.ir.xp.formulas import FORMULAS

Array = NDArray[Any]

_OWN = {
    "abs", "acos", "acosh", "all", "any", "arange", "argmax", "argmin", "asin", "asinh", "atan", "atanh",
    "bitwise_and", "bitwise_invert", "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor",
    "broadcast_to", "ceil", "clip", "concat", "conj", "cos", "cosh", "cumsum", "exp", "expand_dims", "expm1", "eye",
    "flip", "floor", "fmod", "imag", "isfinite", "isinf", "isnan", "log", "log1p", "logical_and",
    "logical_not", "logical_or", "logical_xor", "max", "min", "ones_like", "prod", "real",
    "repeat", "reshape", "rint", "roll", "sign", "sin", "sinh", "sort", "sqrt", "squeeze", "stack", "sum", "take",
    "take_along_axis", "tan", "tanh", "tile", "tril", "triu", "trunc", "where", "zeros_like",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _OWN:
        found = getattr(np, name)
    elif name in FORMULAS:
        found = functools.partial(FORMULAS[name], sys.modules[__name__])
    else:
        raise AttributeError(f"no primitive is called {name!r}")
    if not hasattr(builtins, name):  # the functions below mean Python's own max
        globals()[name] = found
    return found


def asarray(data: Any) -> Array:
    """An array of the data as it is."""
    return np.asarray(data)


def mean(array: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """The mean over axes (all by default); of no numbers it is NaN."""
    if array.size:
        return np.asarray(np.mean(array, axis=axis, keepdims=keepdims))
    total = np.sum(array, axis=axis, keepdims=keepdims)  # numpy's mean would warn
    return np.full(np.shape(total), np.nan, np.mean(np.ones(1, array.dtype)).dtype)


def to_numpy(array: Any) -> Array:
    """The same numbers as a numpy array."""
    return np.asarray(array)


def element(array: Array) -> Element:
    """The element that the array's numbers are stored as."""
    return elements.from_dtype(array.dtype)


def is_floating(array: Array) -> bool:
    return array.dtype != object and element(array).is_float


def zeros(shape: Sequence[int], kind: Element) -> Array:
    return np.zeros(tuple(shape), kind.dtype)


def astype(array: Array, kind: Element) -> Array:
    """Convert; floats go to integers by truncation, to narrower floats by rounding to even, to bool by ≠ 0."""
    array = np.asarray(array)  # arithmetic on a dimension without axes gives no array
    if array.dtype == object and kind.is_integer:
        return _wrapped(array, kind)
    if array.dtype == kind.dtype:
        return array
    with np.errstate(all="ignore"):
        if array.dtype.kind == "c" and not kind.is_complex:
            array = array.real
        return np.asarray(array.astype(kind.dtype))


EXTENT = 1 << 16
"""What an extent is taken not to exceed when asking whether integers made of extents may wrap around."""
ELEMENTS = 1 << 40
"""What a product of extents is taken not to exceed: more elements than any memory holds."""


def _wrapped(array: Array, kind: Element) -> Array:
    """Dimensions as integers of that kind: numbers wrap around.

    Raises dims.NotANumberError for symbolic ones that may not fit where extents are up to `EXTENT` and products of them
    up to `ELEMENTS`, and in kinds without a sign.
    """
    low, span = kind.range[0], 1 << kind.bits
    found = [
        entry if isinstance(entry, dims.Dim) else (int(entry) - low) % span + low
        for entry in array.reshape(-1).tolist()
    ]
    symbolic = [entry for entry in found if isinstance(entry, dims.Dim)]
    if any(low == 0 or dims.reach(entry, EXTENT, ELEMENTS) > kind.range[1] for entry in symbolic):
        raise dims.NotANumberError(f"a dimension may not fit {kind}")
    made = np.empty(len(found), object)
    made[:] = found
    return made.reshape(array.shape)


def cast(array: Array, kind: Element, saturate: bool, round_mode: str) -> Array:
    """Convert as ONNX's Cast does: to integers of any width by dropping high bits, to 8-bit floats by its tables.

    `saturate` limits 8-bit floats to their largest number; `round_mode` ("up", "down", "nearest") is for f8e8m0. Text
    is read, and numbers written, as Python does.
    """
    if array.dtype == object and kind != elements.STRING:
        entries = array.reshape(-1).tolist()
        if kind.is_integer and not any(isinstance(entry, str) for entry in entries):
            return _wrapped(array, kind)
        read = int if kind.is_integer and all(entry.lstrip("+-").isdigit() for entry in entries) else float
        array = np.array([read(entry) for entry in entries]).reshape(array.shape)
    if kind == elements.STRING:
        plain = array.astype(np.float32) if element(array).is_float and element(array).bits < 32 else array
        return plain if plain.dtype == object else plain.astype(np.str_).astype(object)
    if kind == elements.F8E8M0:
        return _exponents(array, saturate, round_mode)
    if saturate and kind.is_float and kind.bits == 8:
        largest = ml_dtypes.finfo(kind.dtype).max
        array = np.clip(np.asarray(array, np.float64), -np.float64(largest), np.float64(largest))
    found = astype(array, kind)
    if kind.is_integer and kind.bits not in (2, 4) and kind.bits < 8 * kind.dtype.itemsize:
        low, span = kind.range[0], 1 << kind.bits
        found = ((found.astype(np.int64) - low) % span + low).astype(kind.dtype)
    return found


def _exponents(array: Array, saturate: bool, round_mode: str) -> Array:
    """Powers of two (f8e8m0) from numbers: the exponent of f32, rounded by what the mantissa holds."""
    bits = array.astype(np.float32).view(np.uint32)
    exponent, mantissa = ((bits >> 23) & 0xFF).astype(np.int32), bits & 0x7FFFFF
    up = {"up": mantissa > 0, "down": np.zeros_like(mantissa, bool), "nearest": mantissa >= 0x400000}[round_mode]
    finite = exponent < 0xFF
    rounded = exponent + (up & finite & ((exponent < 0xFE) | (not saturate)))
    if saturate:
        rounded = np.where(np.isinf(array.astype(np.float32)), 0xFE, rounded)
    return np.asarray(rounded.astype(np.uint8).view(ml_dtypes.float8_e8m0fnu))


def bitcast(array: Array, kind: Element) -> Array:
    """The same bits read as another element of the same width."""
    return np.ascontiguousarray(array).view(kind.dtype).reshape(array.shape)


def full(shape: Sequence[int], value: Any, kind: Element) -> Array:
    """An array of one value."""
    return np.full(tuple(shape), value, kind.dtype)


def equal(a: Array, b: Array) -> Array:
    """a == b; of dimensions where that is decided. Raises dims.NotANumberError where it is not."""
    if np.asarray(a).dtype == object or np.asarray(b).dtype == object:
        return np.asarray(_EQUAL(a, b), np.bool_)
    return np.asarray(np.equal(a, b))


def _decide_equal(a: Any, b: Any) -> bool:
    if isinstance(a, dims.Dim) or isinstance(b, dims.Dim):
        difference = a - b
        if isinstance(difference, int):
            return difference == 0
        for apart in (dims.lower_bound(difference), dims.lower_bound(-difference)):
            if apart is not None and apart > 0:
                return False
        raise dims.NotANumberError(f"whether {a} = {b} is not known before run time")
    return bool(a == b)


_EQUAL = np.frompyfunc(_decide_equal, 2, 1)
_MAXIMUM = np.frompyfunc(dims.maximum, 2, 1)
_MINIMUM = np.frompyfunc(dims.minimum, 2, 1)


def maximum(a: Array, b: Array) -> Array:
    """The larger of two numbers (NaN if one is), or of two dimensions."""
    symbolic = np.asarray(a).dtype == object or np.asarray(b).dtype == object
    return np.asarray(_MAXIMUM(a, b), object) if symbolic else _narrow(np.maximum, a, b)


def minimum(a: Array, b: Array) -> Array:
    """The smaller of two numbers (NaN if one is), or of two dimensions."""
    symbolic = np.asarray(a).dtype == object or np.asarray(b).dtype == object
    return np.asarray(_MINIMUM(a, b), object) if symbolic else _narrow(np.minimum, a, b)


def _narrow(function: Any, a: Array, b: Array) -> Array:
    """numpy answers in int8 for 4-bit integers."""
    found = np.asarray(function(a, b))
    kind = getattr(a, "dtype", None)
    return found.astype(kind) if kind is not None and kind == getattr(b, "dtype", None) else found


def random_generator(seed: float | None) -> np.random.Generator:
    """A source of random numbers: the same for the same seed, a new one without."""
    return np.random.default_rng(None if seed is None else list(np.float64(seed).tobytes()))


def random_uniform(shape: Sequence[int], seed: float | None) -> Array:
    """Numbers from [0, 1), in f64."""
    return random_generator(seed).random(tuple(shape))


def random_normal(shape: Sequence[int], seed: float | None) -> Array:
    """Numbers from the standard normal distribution, in f64."""
    return random_generator(seed).standard_normal(tuple(shape))


def transpose(array: Array, perm: Sequence[int]) -> Array:
    """Axis k of the result is axis perm[k]."""
    return np.transpose(array, tuple(perm))


def wide(array: Array) -> Array:
    """In the type that sums of products are accumulated in: f32 for 16- and 8-bit floats, i64 for integers."""
    kind = element(array)
    if kind.is_float and kind.bits < 32:
        return array.astype(np.float32)
    return array.astype(np.int64) if kind.is_integer or array.dtype == np.bool_ else array


def power(base: Array, exponent: Array) -> Array:
    """base ** exponent; negative powers of integers truncate towards zero instead of failing."""
    with np.errstate(all="ignore"):
        if np.asarray(base).dtype.kind in "iu" and np.any(np.asarray(exponent) < 0):
            return np.power(np.asarray(base).astype(np.float64), exponent).astype(np.asarray(base).dtype)
        return np.power(base, exponent)


def _truncated_quotient(a: Any, b: Any) -> Any:
    if not isinstance(a, dims.Dim) and not isinstance(b, dims.Dim):
        return abs(int(a)) // abs(int(b)) * (1 if (a < 0) == (b < 0) else -1)
    quotient = a // b
    least = dims.lower_bound(a), dims.lower_bound(b)
    if quotient * b != a and (least[0] is None or least[1] is None or least[0] < 0 or least[1] < 1):
        raise dims.NotANumberError(f"whether {a} / {b} is negative is not known before run time")
    return quotient


_QUOTIENT = np.frompyfunc(_truncated_quotient, 2, 1)


def divide(a: Array, b: Array) -> Array:
    """a / b; of integers and dimensions truncated towards zero.

    Raises dims.NotANumberError for dimensions that don't divide evenly and may be negative.
    """
    if np.asarray(a).dtype == object or np.asarray(b).dtype == object:
        return np.asarray(_QUOTIENT(a, b), dtype=object)
    with np.errstate(all="ignore"):
        if np.asarray(a).dtype.kind not in "iu":
            return np.asarray(np.divide(a, b))
        if np.any(np.asarray(b) == 0):
            raise ZeroDivisionError("an integer is divided by zero")
        quotient = np.floor_divide(a, b)
        below = (quotient * b != a) & ((np.asarray(a) < 0) != (np.asarray(b) < 0))
        return np.asarray(quotient + below.astype(quotient.dtype))


_ERF = np.frompyfunc(math.erf, 1, 1)


def erf(array: Array) -> Array:
    """The error function."""
    return np.asarray(_ERF(array.astype(np.float64)), np.float64).astype(array.dtype)


def sigmoid(array: Array) -> Array:
    """1 / (1 + exp(−x)), without overflow."""
    small = np.exp(-np.abs(array))  # e^−|x| keeps the precision of results near 0
    one = np.ones((), array.dtype)
    return np.asarray(np.where(array < 0, small, one) / (one + small))


def softmax(array: Array, axis: int) -> Array:
    """exp(x) normalised to sum 1 over an axis."""
    with np.errstate(invalid="ignore"):
        shifted = np.exp(array - np.max(array, axis=axis, keepdims=True)) if array.size else array
    return np.asarray(shifted / np.sum(shifted, axis=axis, keepdims=True))


def logsumexp(array: Array, axis: int | tuple[int, ...] | None, keepdims: bool = False) -> Array:
    """log Σ exp(x) over axes, without overflow."""
    top = np.max(array, axis=axis, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, np.zeros_like(top))
    with np.errstate(divide="ignore"):
        found = np.log(np.sum(np.exp(array - top), axis=axis, keepdims=True)) + top
    return np.asarray(found if keepdims else np.squeeze(found, axis=axis))


def argsort(array: Array, axis: int, descending: bool = False) -> Array:
    """Indices that sort an axis, stably: equal numbers stay in order."""
    if not descending:
        return np.argsort(array, axis=axis, kind="stable")
    flipped = np.argsort(np.flip(array, axis), axis=axis, kind="stable")
    return np.asarray(array.shape[axis] - 1 - np.flip(flipped, axis))


def nonzero(array: Array) -> Array:
    """The indices of the elements that are not zero: rank × count."""
    return np.array(np.nonzero(array), np.int64).reshape(array.ndim, -1)


def cumprod(array: Array, axis: int) -> Array:
    """Running products along an axis."""
    return np.cumprod(array, axis=axis)


def matmul(a: Array, b: Array) -> Array:
    """Matrix product over the last two axes, broadcasting the others; narrow floats accumulate in f32."""
    result = np.result_type(a, b)
    if element(a).bits < 32:
        return np.asarray(np.matmul(wide(a), wide(b))).astype(result)
    return np.asarray(np.matmul(a, b))


def einsum(text: str, *arrays: Array) -> Array:
    """Einstein summation, as numpy writes it."""
    return np.asarray(np.einsum(text, *map(wide, arrays), optimize=len(arrays) > 1)).astype(arrays[0].dtype)


def pad(array: Array, pads: Sequence[tuple[int, int]], mode: str = "constant", value: Any = 0) -> Array:
    """Add (or, with negative amounts, cut) positions at both ends of each axis.

    Modes: constant, edge, reflect (without repeating the border), wrap.
    """
    if any(before < 0 or after < 0 for before, after in pads):  # what is cut is not repeated elsewhere
        array = array[
            tuple(
                slice(max(0, -before), extent - max(0, -after))
                for (before, after), extent in zip(pads, array.shape, strict=True)
            )
        ]
    grow = [(max(0, before), max(0, after)) for before, after in pads]
    if any(map(any, grow)) and mode == "constant":
        shape = [before + extent + after for (before, after), extent in zip(grow, array.shape, strict=True)]
        inner, array = array, np.full(shape, value, array.dtype)  # much faster than numpy's own on small arrays
        array[tuple(slice(before, before + n) for (before, _), n in zip(grow, inner.shape, strict=True))] = inner
    elif any(map(any, grow)):
        array = np.pad(array, grow, mode=mode)  # type: ignore[call-overload]  # stubs want a literal
    return array


def windows(
    array: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Array:
    """All windows over the last axes: shape (…, *counts, *kernel). The array must be padded as needed."""
    spatial = len(kernel)
    lead = array.shape[: array.ndim - spatial]
    steps = array.strides[array.ndim - spatial :]
    return np.lib.stride_tricks.as_strided(
        array,
        (*lead, *counts, *kernel),
        (
            *array.strides[: array.ndim - spatial],
            *(step * stride for step, stride in zip(steps, strides, strict=True)),
            *(step * dilation for step, dilation in zip(steps, dilations, strict=True)),
        ),
        writeable=False,
    )


_UNROLLED = 1 << 22
"""Largest number of elements that a convolution copies its windows to."""


def conv(
    x: Array, w: Array, strides: Sequence[int], pads: Sequence[tuple[int, int]], dilations: Sequence[int], groups: int
) -> Array:
    """Cross-correlation: x (n, g·i, …), w (g·o, i, K…) → (n, g·o, P…), without bias, accumulated by `wide`."""
    out_type = np.result_type(x, w)
    x, w = pad(wide(x), [(0, 0), (0, 0), *pads]), wide(w)
    kernel = w.shape[2:]
    counts = [
        max(0, (extent - dilation * (size - 1) - 1) // stride + 1)
        for extent, size, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    n, per_group = x.shape[0], w.shape[1]
    x = x.reshape(n, groups, per_group, *x.shape[2:])
    w = w.reshape(groups, w.shape[0] // groups, per_group, *kernel)
    places, taps = math.prod(counts), math.prod(kernel)
    if taps > 1 and n * groups * per_group * places * taps <= _UNROLLED:  # one product for all taps
        spatial = range(3 + len(kernel), 3 + 2 * len(kernel))
        moved = windows(x, kernel, strides, dilations, counts).transpose(0, 1, 2, *spatial, *range(3, 3 + len(kernel)))
        unrolled = moved.reshape(n, groups, per_group * taps, places)
        found = np.matmul(w.reshape(groups, w.shape[1], per_group * taps), unrolled)
        return np.asarray(found.reshape(n, groups * w.shape[1], *counts), out_type)
    total = np.zeros((n, groups, w.shape[1], places), np.result_type(x, w))
    for offset in itertools.product(*map(range, kernel)):
        spans = tuple(
            slice(k * dilation, k * dilation + (count - 1) * stride + 1, stride)
            for k, dilation, count, stride in zip(offset, dilations, counts, strides, strict=True)
        )
        part = x[(slice(None), slice(None), slice(None), *spans)].reshape(n, groups, per_group, total.shape[3])
        tap: tuple[Any, ...] = (..., *offset)
        weight = w[tap]
        if 0 in part.shape:
            continue
        total += weight * part if per_group == 1 else np.matmul(weight, part)
    return total.reshape(n, groups * w.shape[1], *counts).astype(out_type)


def positions(indices: Array, extent: Any) -> Array:
    """Indices of an axis that come from data. Raises OutsideError if one lies outside."""
    if indices.size and isinstance(extent, int):
        low, high = int(indices.min()), int(indices.max())
        if low < -extent or high >= extent:
            raise OutsideError(f"index {high if high >= extent else low} lies outside of an axis of {extent}")
    return indices


def scatter(array: Array, index: tuple[Any, ...], updates: Array, reduction: str = "none") -> Array:
    """A copy with `updates` written (or added, multiplied, min, max) at the positions of an index tuple."""
    result = np.array(array)
    if reduction == "none":
        result[index] = updates
        return result
    ufunc = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}[reduction]
    ufunc.at(result, index, updates)
    return result


def fft(array: Array, axis: int, length: int | None = None, inverse: bool = False) -> Array:
    """The (inverse) discrete Fourier transform of complex numbers along an axis, in their own precision."""
    transform = np.fft.ifft if inverse else np.fft.fft
    kind = np.complex128 if array.dtype in (np.float64, np.complex128) else np.complex64
    return transform(array, n=length, axis=axis).astype(kind)


def complex_of(real: Array, imaginary: Array) -> Array:
    """Complex numbers from their parts."""
    return np.asarray(real + 1j * imaginary).astype(np.complex128 if real.dtype == np.float64 else np.complex64)


def det(array: Array) -> Array:
    """Determinants of the matrices in the last two axes."""
    return np.asarray(np.linalg.det(wide(array))).astype(array.dtype)


def unique(array: Array, axis: int | None, in_order: bool) -> tuple[Array, Array, Array, Array]:
    """Distinct entries (sorted, or in order of first occurrence), their first indices, inverse indices, counts."""
    values, first, inverse, counts = np.unique(
        array, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if in_order:
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        values, first, counts, inverse = values.take(order, axis or 0), first[order], counts[order], rank[inverse]
    return values, first, inverse, counts
