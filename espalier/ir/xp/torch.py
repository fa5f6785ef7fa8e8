"""The primitives in torch: differentiable, on any device, with torch's own convolutions, softmax and transforms.

New tensors are made on torch's default device: run under `with torch.device(…):` to execute elsewhere than on the CPU.
Integers of odd width, and of 2 and 4 bits, are held in 8 bits or the next wider type. Text cannot be held.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from espalier.ir.elements import Element
from espalier.ir.xp import numpy as numpy_xp
from espalier.ir.xp.torch_elements import (
    Array,
    asarray,
    astype,
    bitcast,
    cast,
    dtype_of,
    element,
    is_floating,
    to_numpy,
    wide,
)  # fmt: skip
from espalier.ir.xp.torch_kernels import batch_norm, batch_norm_training, layer_norm, relu, window_max, window_sum
from espalier.ir.xp.torch_products import conv, det, einsum, fft, matmul, pad, scatter, windows

Axes: TypeAlias = "int | tuple[int, ...] | None"

_OWN = {
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "bitwise_and", "bitwise_left_shift", "bitwise_or",
    "bitwise_right_shift", "bitwise_xor", "ceil", "cos", "cosh", "exp", "expm1", "floor", "fmod", "isfinite", "isinf",
    "isnan", "log", "log1p", "logical_and", "logical_not", "logical_or", "logical_xor", "ones_like", "real", "sin",
    "sinh", "sqrt", "tan", "tanh", "trunc", "zeros_like",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _OWN:
        return getattr(torch, name)
    raise AttributeError(f"no primitive is called {name!r}")


__all__ = [
    "argmax", "argmin", "argsort", "asarray", "astype", "batch_norm", "batch_norm_training", "bitcast", "cast", "conv",
    "det", "einsum", "element", "fft", "is_floating", "layer_norm", "matmul", "pad", "relu", "scatter", "to_numpy",
    "wide", "window_max", "window_sum", "windows",
]  # fmt: skip

# ---- making tensors ----------------------------------------------------------------------------------------------


def zeros(shape: Sequence[int], kind: Element) -> Array:
    return torch.zeros(tuple(shape), dtype=dtype_of(kind))


def full(shape: Sequence[int], value: Any, kind: Element) -> Array:
    """A tensor of one value."""
    return torch.full(tuple(shape), value, dtype=dtype_of(kind))


def arange(start: int, stop: int | None = None, step: int = 1) -> Array:
    return torch.arange(start) if stop is None else torch.arange(start, stop, step)


def eye(rows: int, columns: int | None = None) -> Array:
    return torch.eye(rows, rows if columns is None else columns, dtype=torch.float64)


def random_uniform(shape: Sequence[int], seed: float | None) -> Array:
    """Numbers from [0, 1), in f64; the same as numpy's for a seed."""
    return asarray(numpy_xp.random_uniform(shape, seed))


def random_normal(shape: Sequence[int], seed: float | None) -> Array:
    """Numbers from the standard normal distribution, in f64; the same as numpy's for a seed."""
    return asarray(numpy_xp.random_normal(shape, seed))


def complex_of(real: Array, imaginary: Array) -> Array:
    """Complex numbers from their parts."""
    return torch.complex(wide(real), wide(imaginary))


# ---- elementwise -------------------------------------------------------------------------------------------------

any_of, all_of = builtins.any, builtins.all


def _tensors(*operands: Any) -> list[Array]:
    """Operands as tensors: numbers take the dtype of the first tensor, as with Python's operators."""
    like = next((x for x in operands if isinstance(x, torch.Tensor)), None)
    if like is None:
        return [asarray(x) for x in operands]
    return [
        x if isinstance(x, torch.Tensor)
        else asarray(x).to(like.device) if isinstance(x, np.ndarray | np.generic)
        else torch.as_tensor(x, dtype=torch.result_type(like, x), device=like.device)
        for x in operands
    ]  # fmt: skip


def abs(array: Array) -> Array:
    return array if array.dtype == torch.bool or not _signed(array) else torch.abs(array)


def _signed(array: Array) -> bool:
    return array.dtype.is_complex or array.dtype.is_signed


def conj(array: Array) -> Array:
    return torch.conj(array).resolve_conj()


def imag(array: Array) -> Array:
    return torch.imag(array) if array.dtype.is_complex else torch.zeros_like(array)


def rint(array: Array) -> Array:
    """The nearest integer, of two the even one."""
    return torch.round(array)


def sign(array: Array) -> Array:
    """−1, 0 or 1; NaN of NaN."""
    found = torch.sign(array)
    return torch.where(torch.isnan(array), array, found) if array.dtype.is_floating_point else found


def bitwise_invert(array: Array) -> Array:
    return torch.bitwise_not(array)


def equal(a: Any, b: Any) -> Array:
    """a == b, for each element."""
    return torch.eq(*_tensors(a, b))


def maximum(a: Any, b: Any) -> Array:
    """The larger of two numbers (NaN if one is)."""
    return torch.maximum(*_tensors(a, b))


def minimum(a: Any, b: Any) -> Array:
    """The smaller of two numbers (NaN if one is)."""
    return torch.minimum(*_tensors(a, b))


def clip(array: Array, low: Any, high: Any) -> Array:
    """Limited to low and high (None: no limit)."""
    if low is not None:
        array = maximum(array, low)
    return array if high is None else minimum(array, high)


def where(condition: Any, a: Any, b: Any) -> Array:
    chosen, other = _tensors(a, b)
    return torch.where(asarray(condition), chosen, other)


def power(base: Any, exponent: Any) -> Array:
    """base ** exponent; negative powers of integers truncate towards zero instead of failing."""
    base, exponent = _tensors(base, exponent)
    whole = not (base.dtype.is_floating_point or base.dtype.is_complex)
    if whole and exponent.dtype.is_floating_point:
        return torch.pow(base.double(), exponent)
    if whole and _signed(exponent) and bool((exponent < 0).any()):
        return torch.pow(base.double(), exponent).to(base.dtype)
    return torch.pow(base, exponent)


def divide(a: Any, b: Any) -> Array:
    """a / b; of integers truncated towards zero."""
    a, b = _tensors(a, b)
    if a.dtype.is_floating_point or a.dtype.is_complex or b.dtype.is_floating_point or b.dtype.is_complex:
        return torch.true_divide(a, b)
    if bool((b == 0).any()):
        raise ZeroDivisionError("an integer is divided by zero")
    return torch.div(a, b, rounding_mode="trunc")


def erf(array: Array) -> Array:
    """The error function."""
    return torch.erf(array)


def sigmoid(array: Array) -> Array:
    """1 / (1 + exp(−x)), without overflow."""
    return torch.sigmoid(array)


# ---- reductions --------------------------------------------------------------------------------------------------


def _dims(array: Array, axis: Axes) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(array.ndim))
    return tuple(a % builtins.max(1, array.ndim) for a in ((axis,) if isinstance(axis, int) else axis))


def sum(array: Array, axis: Axes = None, keepdims: bool = False) -> Array:
    dims = _dims(array, axis)
    return torch.sum(array, dim=dims, keepdim=keepdims) if dims else array


def mean(array: Array, axis: Axes = None, keepdims: bool = False) -> Array:
    if not (array.dtype.is_floating_point or array.dtype.is_complex):
        array = array.double()
    dims = _dims(array, axis)
    return torch.mean(array, dim=dims, keepdim=keepdims) if dims else array


def prod(array: Array, axis: Axes = None, keepdims: bool = False) -> Array:
    dims = sorted(_dims(array, axis), reverse=True)
    if not dims:
        return array
    for dim in dims:
        array = torch.prod(array, dim, keepdims)
    return array


def max(array: Array, axis: Axes = None, keepdims: bool = False, initial: Any = None) -> Array:
    return _extreme(torch.amax, maximum, array, axis, keepdims, initial)


def min(array: Array, axis: Axes = None, keepdims: bool = False, initial: Any = None) -> Array:
    return _extreme(torch.amin, minimum, array, axis, keepdims, initial)


def _extreme(reduce: Any, combine: Any, array: Array, axis: Axes, keepdims: bool, initial: Any) -> Array:
    dims = _dims(array, axis)
    if initial is not None and any_of(array.shape[dim] == 0 for dim in dims):
        shape = [1 if k in dims else extent for k, extent in enumerate(array.shape)]
        made = torch.full(shape, initial, dtype=array.dtype, device=array.device)
        return made if keepdims else squeeze(made, dims)
    found = reduce(array, dims, keepdims) if dims else array
    return found if initial is None else combine(found, initial)


def any(array: Array, axis: Axes = None, keepdims: bool = False) -> Array:
    dims = _dims(array, axis)
    return torch.any(array, dims, keepdims) if dims else array != 0


def all(array: Array, axis: Axes = None, keepdims: bool = False) -> Array:
    dims = _dims(array, axis)
    return torch.all(array, dims, keepdims) if dims else array != 0


def argmax(array: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """The index of the largest number; of equals, the first."""
    return torch.argmax(array.to(torch.uint8) if array.dtype == torch.bool else array, axis, keepdims)


def argmin(array: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """The index of the smallest number; of equals, the first."""
    return torch.argmin(array.to(torch.uint8) if array.dtype == torch.bool else array, axis, keepdims)


def softmax(array: Array, axis: int) -> Array:
    """exp(x) normalised to sum 1 over an axis."""
    return torch.softmax(array, axis)


def log_softmax(array: Array, axis: int) -> Array:
    """The logarithm of softmax."""
    return torch.log_softmax(array, axis)


def logsumexp(array: Array, axis: Axes, keepdims: bool = False) -> Array:
    """log Σ exp(x) over axes, without overflow."""
    dims = _dims(array, axis)
    return torch.logsumexp(array, dims, keepdims) if dims else array


def cumsum(array: Array, axis: int) -> Array:
    return torch.cumsum(array, axis)


def cumprod(array: Array, axis: int) -> Array:
    """Running products along an axis."""
    return torch.cumprod(array, axis)


# ---- movement ----------------------------------------------------------------------------------------------------


def reshape(array: Any, shape: int | Sequence[int]) -> Array:
    return torch.reshape(asarray(array), (shape,) if isinstance(shape, int) else tuple(shape))


def transpose(array: Array, perm: Sequence[int]) -> Array:
    """Axis k of the result is axis perm[k]."""
    return torch.permute(array, tuple(perm))


def squeeze(array: Array, axis: Axes = None) -> Array:
    return torch.squeeze(array) if axis is None else torch.squeeze(array, _dims(array, axis))


def expand_dims(array: Array, axis: int | tuple[int, ...]) -> Array:
    places = (axis,) if isinstance(axis, int) else axis
    for place in sorted(place % (array.ndim + len(places)) for place in places):
        array = torch.unsqueeze(array, place)
    return array


def broadcast_to(array: Array, shape: Sequence[int]) -> Array:
    return torch.broadcast_to(array, tuple(shape))


def tile(array: Array, repeats: Sequence[int]) -> Array:
    return torch.tile(array, tuple(repeats))


def repeat(array: Array, repeats: Any, axis: int | None = None) -> Array:
    if axis is None:
        array, axis = array.reshape(-1), 0
    return torch.repeat_interleave(array, repeats if isinstance(repeats, int) else asarray(repeats), axis)


def flip(array: Array, axis: Axes = None) -> Array:
    return torch.flip(array, _dims(array, axis))


def roll(array: Array, shift: Any, axis: Axes = None) -> Array:
    return torch.roll(array, shift, axis)  # type: ignore[arg-type]  # stubs know no None  # its stub knows no None for axes


def concat(arrays: Sequence[Array], axis: int = 0) -> Array:
    return torch.cat(tuple(arrays), axis)


def stack(arrays: Sequence[Any], axis: int = 0) -> Array:
    return torch.stack([asarray(array) for array in arrays], axis)


def take(array: Array, indices: Any, axis: int) -> Array:
    """The slices at the indices of an axis; negative ones count from the end."""
    chosen = asarray(indices).to(array.device).long()
    if chosen.ndim == 1:  # half the time of advanced indexing, with its gradient
        return torch.index_select(array, axis, torch.where(chosen < 0, chosen + array.shape[axis], chosen))
    return array[(slice(None),) * (axis % array.ndim) + (chosen,)]


def positions(indices: Any, extent: int) -> Any:
    """Indices of an axis that come from data; what reads or writes there finds those that lie outside."""
    return indices


def take_along_axis(array: Array, indices: Any, axis: int) -> Array:
    """The elements at the indices of an axis, element by element; negative ones count from the end."""
    indices = asarray(indices).to(array.device).long()
    return torch.take_along_dim(array, torch.where(indices < 0, indices + array.shape[axis], indices), axis)


def tril(array: Array, k: int = 0) -> Array:
    return torch.tril(array, k)


def triu(array: Array, k: int = 0) -> Array:
    return torch.triu(array, k)


def sort(array: Array, axis: int = -1) -> Array:
    return torch.sort(array, dim=axis, stable=True).values


def argsort(array: Array, axis: int, descending: bool = False) -> Array:
    """Indices that sort an axis, stably: equal numbers stay in order."""
    return torch.argsort(array, dim=axis, descending=descending, stable=True)


def nonzero(array: Array) -> Array:
    """The indices of the elements that are not zero: rank × count."""
    return torch.nonzero(array).T


def unique(array: Array, axis: int | None, in_order: bool) -> tuple[Array, Array, Array, Array]:
    """Distinct entries (sorted, or in order of first occurrence), their first indices, inverse indices, counts."""
    _, *found = numpy_xp.unique(to_numpy(array), axis, in_order)
    first, inverse, counts = (asarray(indices).to(array.device) for indices in found)
    return take(array.reshape(-1) if axis is None else array, first, axis or 0), first, inverse, counts
