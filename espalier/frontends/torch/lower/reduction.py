"""Reductions, running sums, sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope, dtype_element
from espalier.frontends.torch.tensors import number
from espalier.ir import dims
from espalier.ir.elements import BOOL, I32, I64
from espalier.ir.graph import Value

Axes = int | Sequence[int] | None


def axes_of(s: Scope, x: Value, axes: Axes) -> list[int]:
    """The reduced axes from the front; all of them for None and for an empty list, as torch reads it."""
    rank = s.rank_of(x)
    if axes is None or axes == [] or axes == ():
        return list(range(rank))
    return [s.axis(axis, rank) for axis in ([axes] if isinstance(axes, int) else axes)]


def reduce(s: Scope, name: str, x: Value, axes: Axes, keepdim: bool = False) -> Value:
    """One of ONNX's reductions."""
    found = axes_of(s, x, axes)
    if not found:  # a scalar is reduced over nothing, yet reduce_l1, … still apply
        y = s.reshape(x, (1,))
        return s.scalar(getattr(s.b, name)(y, s.sizes([0]), keepdims=0))
    return getattr(s.b, name)(x, s.sizes(found), keepdims=int(keepdim))


@lowers("aten.sum.default", "aten.sum.dim_IntList")
def sum_(s: Scope, x: Value, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return reduce(s, "reduce_sum", s.cast(x, s.element), dim, keepdim)


@lowers("aten.mean.default", "aten.mean.dim")
def mean(s: Scope, x: Value, dim: Axes = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return reduce(s, "reduce_mean", s.cast(x, s.element), dim, keepdim)


@lowers("aten.prod.default")
def product(s: Scope, x: Value, dtype: Any = None) -> Value:
    return reduce(s, "reduce_prod", s.cast(x, s.element), None)


@lowers("aten.prod.dim_int")
def product_axis(s: Scope, x: Value, dim: int, keepdim: bool = False, dtype: Any = None) -> Value:
    return reduce(s, "reduce_prod", s.cast(x, s.element), dim, keepdim)


def _extreme(name: str) -> Callable[..., Value]:
    def lower(s: Scope, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
        numbers = s.cast(x, I32) if x.element == BOOL else x
        return s.cast(reduce(s, name, numbers, dim, keepdim), x.element)

    return lower


lowers("aten.amax.default", "aten.max.default")(_extreme("reduce_max"))
lowers("aten.amin.default", "aten.min.default")(_extreme("reduce_min"))


def _extreme_where(values: str, indices: str) -> Callable[..., tuple[Value, Value]]:
    def lower(s: Scope, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
        numbers = s.cast(x, I32) if x.element == BOOL else x
        largest = s.cast(reduce(s, values, numbers, dim, keepdim), x.element)
        if s.rank_of(x) == 0:
            return largest, number(0, I64)
        return largest, getattr(s.b, indices)(numbers, axis=s.axis(dim, s.rank_of(x)), keepdims=int(keepdim))

    return lower


lowers("aten.max.dim")(_extreme_where("reduce_max", "arg_max"))
lowers("aten.min.dim")(_extreme_where("reduce_min", "arg_min"))


def _argument(name: str) -> Callable[..., Value]:
    def lower(s: Scope, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        numbers = s.cast(x, I32) if x.element == BOOL else x
        if s.rank_of(x) == 0:
            return number(0, I64)
        if dim is not None:
            return getattr(s.b, name)(numbers, axis=s.axis(dim, s.rank_of(x)), keepdims=int(keepdim))
        flat = s.reshape(numbers, (dims.product(s.shape_of(x)),))
        found = getattr(s.b, name)(flat, axis=0, keepdims=0)
        return s.reshape(found, s.shape) if keepdim else found

    return lower


lowers("aten.argmax.default")(_argument("arg_max"))
lowers("aten.argmin.default")(_argument("arg_min"))


def _truth(name: str) -> Callable[..., Value]:
    def lower(s: Scope, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
        found = reduce(s, name, s.cast(s.cast(x, BOOL), I32), dim, keepdim)
        return s.cast(found, s.element)

    return lower


lowers("aten.any.default", "aten.any.dim", "aten.any.dims", "aten._is_any_true.default")(_truth("reduce_max"))
lowers("aten.all.default", "aten.all.dim", "aten.all.dims", "aten._is_all_true.default")(_truth("reduce_min"))


def _count(s: Scope, x: Value, axes: list[int]) -> dims.Dimension:
    return dims.product(s.shape_of(x)[axis] for axis in axes)


@lowers("aten.var.correction", "prims.var.default")
def variance(s: Scope, x: Value, dim: Axes = None, correction: Any = None, keepdim: bool = False) -> Value:
    return _moments(s, x, dim, correction, keepdim)[0]


@lowers("aten.var_mean.correction")
def variance_and_mean(
    s: Scope, x: Value, dim: Axes = None, correction: Any = None, keepdim: bool = False
) -> tuple[Value, Value]:
    return _moments(s, x, dim, correction, keepdim)


@lowers("aten.std.correction")
def deviation(s: Scope, x: Value, dim: Axes = None, correction: Any = None, keepdim: bool = False) -> Value:
    return s.b.sqrt(_moments(s, x, dim, correction, keepdim)[0])


def _moments(s: Scope, x: Value, dim: Axes, correction: Any, keepdim: bool) -> tuple[Value, Value]:
    correction = 1 if correction is None else correction
    axes, element = axes_of(s, x, dim), x.element
    wide = s.wide(x)
    average = reduce(s, "reduce_mean", wide, axes, keepdim=True)
    difference = s.b.sub(wide, average)
    spread = reduce(s, "reduce_mean", s.b.mul(difference, difference), axes, keepdim)
    count = _count(s, x, axes)
    if correction != 0:
        if isinstance(count, int):
            left = max(count - correction, 0)
            factor = number(count / left if left else (math.inf if count else math.nan), wide.element)
            spread = s.b.mul(spread, factor)
        else:
            n = s.number(count, wide.element)
            spread = s.b.mul(spread, s.b.div(n, s.b.max(s.b.sub(n, number(correction, wide.element)), s.zero_like(n))))
    if not keepdim:
        average = s.squeeze(average, *axes)
    return s.cast(spread, element), s.cast(average, element)


@lowers("aten.linalg_vector_norm.default")
def vector_norm(
    s: Scope, x: Value, ord: float = 2, dim: Axes = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Value:
    x = s.wide(s.cast(x, dtype_element(dtype, x.element)))
    simple = {1.0: "reduce_l1", 2.0: "reduce_l2"}.get(ord)
    if simple is not None:
        found = reduce(s, simple, x, dim, keepdim)
    elif math.isinf(ord):
        found = reduce(s, "reduce_max" if ord > 0 else "reduce_min", s.b.abs(x), dim, keepdim)
    elif ord == 0:
        nonzero = s.cast(s.b.logical_not(s.b.equal(x, s.zero_like(x))), x.element)
        found = reduce(s, "reduce_sum", nonzero, dim, keepdim)
    else:
        powers = reduce(s, "reduce_sum", s.b.pow(s.b.abs(x), number(ord, x.element)), dim, keepdim)
        found = s.b.pow(powers, number(1 / ord, x.element))
    return s.cast(found, s.element)


@lowers("aten.logsumexp.default")
def logsumexp(s: Scope, x: Value, dim: Axes, keepdim: bool = False) -> Value:
    return reduce(s, "reduce_log_sum_exp", s.cast(x, s.element), dim, keepdim)


@lowers("aten.cumsum.default")
def cumsum(s: Scope, x: Value, dim: int, dtype: Any = None) -> Value:
    x = s.cast(x, s.element)
    return x if s.rank_of(x) == 0 else s.b.cum_sum(x, number(s.axis(dim, s.rank_of(x)), I64))


@lowers("aten.cumprod.default")
def cumprod(s: Scope, x: Value, dim: int, dtype: Any = None) -> Value:
    x = s.cast(x, s.element)
    return x if s.rank_of(x) == 0 else s.b.cum_prod(x, number(s.axis(dim, s.rank_of(x)), I64))


def _running_extreme(name: str) -> Callable[..., tuple[Value, Value]]:
    """Running maxima: each position looks at all before it, which costs the square of the length."""

    def lower(s: Scope, x: Value, dim: int) -> tuple[Value, Value]:
        rank = s.rank_of(x)
        if rank == 0:
            return x, number(0, I64)
        axis = s.axis(dim, rank)
        extent = s.shape_of(x)[axis]
        moved = s.unsqueeze(s.swap(x, axis, rank - 1), rank - 1)  # (…, 1, n)
        low = (
            number(-math.inf if name == "max" else math.inf, x.element)
            if x.element.is_float
            else number(x.element.range[0 if name == "max" else 1], x.element)
        )
        row, column = s.unsqueeze(s.arange(extent), 1), s.unsqueeze(s.arange(extent), 0)
        seen = s.b.where(s.b.less_or_equal(column, row), moved, low)
        values = getattr(s.b, f"reduce_{name}")(seen, s.sizes([rank]), keepdims=0)
        # torch returns the last of equals
        indices = getattr(s.b, f"arg_{name}")(seen, axis=rank, keepdims=0, select_last_index=1)
        return s.swap(values, axis, rank - 1), s.swap(indices, axis, rank - 1)

    return lower


lowers("aten.cummax.default")(_running_extreme("max"))
lowers("aten.cummin.default")(_running_extreme("min"))


@lowers("aten.topk.default")
def topk(s: Scope, x: Value, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Value, ...]:
    if s.rank_of(x) == 0:
        return x, number(0, I64)
    numbers = s.cast(x, I32) if x.element == BOOL else x
    axis = s.axis(dim, s.rank_of(x))
    values, indices = s.many.top_k(numbers, s.sizes([s.dim(k)]), axis=axis, largest=int(largest), sorted=1)
    return s.cast(values, x.element), indices


@lowers("aten.sort.default")
def sort(s: Scope, x: Value, dim: int = -1, descending: bool = False) -> tuple[Value, ...]:
    """Through top_k of all: equal numbers stay in order there."""
    if s.rank_of(x) == 0:
        return x, number(0, I64)
    return topk(s, x, s.shape_of(x)[s.axis(dim, s.rank_of(x))], dim, descending)


@lowers("aten.sort.stable")
def sort_stable(
    s: Scope, x: Value, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Value, ...]:
    return sort(s, x, dim, descending)


@lowers("aten.argsort.default")
def argsort(s: Scope, x: Value, dim: int = -1, descending: bool = False) -> Value:
    return sort(s, x, dim, descending)[1]


@lowers("aten.argsort.stable")
def argsort_stable(s: Scope, x: Value, stable: bool = True, dim: int = -1, descending: bool = False) -> Value:
    return sort(s, x, dim, descending)[1]


@lowers("aten.kthvalue.default")
def kth_value(s: Scope, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Value, ...]:
    if s.rank_of(x) == 0:
        return x, number(0, I64)
    values, indices = topk(s, x, k, dim, largest=False)
    axis = s.axis(dim, s.rank_of(x))
    found = (s.slice(values, axis, k - 1, k), s.slice(indices, axis, k - 1, k))
    return found if keepdim else tuple(s.squeeze(value, axis) for value in found)


@lowers("aten.median.dim")
def median_axis(s: Scope, x: Value, dim: int = -1, keepdim: bool = False) -> tuple[Value, ...]:
    """The lower median, as torch's; refused for an extent that is not fixed."""
    extent = s.shape_of(x)[s.axis(dim, s.rank_of(x))] if s.rank_of(x) else 1
    if not isinstance(extent, int):
        s.refuse("a median over a dynamic extent", code="E405")
    return kth_value(s, x, (extent - 1) // 2 + 1, dim, keepdim)


@lowers("aten.median.default")
def median(s: Scope, x: Value) -> Value:
    return median_axis(s, s.reshape(x, (dims.product(s.shape_of(x)),)), 0)[0]


@lowers("aten.bucketize.Tensor")
def bucketize(s: Scope, x: Value, boundaries: Value, out_int32: bool = False, right: bool = False) -> Value:
    """How many boundaries lie below each number (or at it, with `right`)."""
    element = s.common_element(0, 1)
    compare = s.b.less_or_equal if right else s.b.less
    below = compare(s.cast(boundaries, element), s.unsqueeze(s.cast(x, element), s.rank_of(x)))
    return reduce(s, "reduce_sum", s.cast(below, s.element), -1)


@lowers("aten.bucketize.Scalar")
def bucketize_scalar(s: Scope, x: Any, boundaries: Value, out_int32: bool = False, right: bool = False) -> Value:
    return bucketize(s, s.number(x, s.common_element(0, 1)), boundaries, out_int32, right)


@lowers("aten.searchsorted.Tensor")
def search_sorted(
    s: Scope, sequence: Value, x: Value, out_int32: bool = False, right: bool = False, side: str | None = None,
    sorter: Value | None = None,
) -> Value:  # fmt: skip
    if sorter is not None:
        sequence = s.b.gather_elements(sequence, sorter, axis=s.rank_of(sequence) - 1)
    element = s.common_element(0, 1)
    compare = s.b.less_or_equal if right or side == "right" else s.b.less
    wanted = s.unsqueeze(s.cast(x, element), s.rank_of(x))
    sequence = s.cast(sequence, element)
    if s.rank_of(sequence) > 1:  # one sequence per row
        sequence = s.unsqueeze(sequence, s.rank_of(sequence) - 1)
    return reduce(s, "reduce_sum", s.cast(compare(sequence, wanted), s.element), -1)


@lowers("aten._unique2.default")
def unique(
    s: Scope, x: Value, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> tuple[Value, ...]:
    numbers = s.cast(x, I32) if x.element == BOOL else x
    values, _, inverse, counts = s.many.unique(numbers, sorted=1, results=4)
    nothing = s.full((0,), 0, I64)  # what torch gives for results that were not asked for
    inverse = s.reshape(inverse, s.shape_of(x)) if return_inverse else nothing
    return s.cast(values, x.element), inverse, counts if return_counts else nothing


@lowers("aten.histc.default")
def histogram(s: Scope, x: Value, bins: int = 100, min: float = 0, max: float = 0) -> Value:
    """Counts of equal bins between two bounds, both included; the data's own bounds if they are equal."""
    flat, element = s.reshape(x, (dims.product(s.shape_of(x)), 1)), x.element
    if min == max:
        low, high = reduce(s, "reduce_min", flat, None), reduce(s, "reduce_max", flat, None)
        equal = s.b.equal(low, high)
        one = number(1, element)
        low, high = s.b.where(equal, s.b.sub(low, one), low), s.b.where(equal, s.b.add(high, one), high)
    else:
        low, high = number(min, element), number(max, element)
    wide = s.floating(flat)
    low_, high_ = s.cast(low, wide.element), s.cast(high, wide.element)
    position = s.b.div(s.b.mul(s.b.sub(wide, low_), number(bins, wide.element)), s.b.sub(high_, low_))
    index = s.b.min(s.cast(s.b.floor(position), I64), number(bins - 1, I64))
    inside = s.b.logical_and(s.b.greater_or_equal(wide, low_), s.b.less_or_equal(wide, high_))
    hits = s.b.logical_and(s.b.equal(index, s.arange(bins)), inside)
    return reduce(s, "reduce_sum", s.cast(hits, element), 0)


@lowers("aten.bincount.default")
def bincount(s: Scope, x: Value, weights: Value | None = None, minlength: int = 0) -> Value:
    largest = s.b.max(s.b.reduce_max(s.cast(x, I64), keepdims=0), number(minlength - 1, I64))
    bins = s.b.range(number(0, I64), s.b.add(largest, number(1, I64)), number(1, I64))
    hits = s.cast(s.b.equal(s.unsqueeze(s.cast(x, I64), 1), bins), s.element)
    if weights is not None:
        hits = s.b.mul(hits, s.unsqueeze(s.cast(weights, s.element), 1))
    return reduce(s, "reduce_sum", hits, 0)
