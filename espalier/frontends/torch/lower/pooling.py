"""Pooling over windows of fixed and of adapted size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from espalier.frontends.torch.lower.convolution import Numbers, each
from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope
from espalier.frontends.torch.tensors import number
from espalier.ir import dims
from espalier.ir.elements import I64
from espalier.ir.graph import Value, constant_value


def _with_batch(s: Scope, x: Value, spatial: int, pool: Callable[[Value], Value]) -> Value:
    """Apply to (n, c, …), also where torch leaves out the batch."""
    if s.rank_of(x) == spatial + 2:
        return pool(x)
    return s.squeeze(pool(s.unsqueeze(x, 0)), 0)


def _spatial(s: Scope) -> int:
    return next(n for n in (1, 2, 3) if f"pool{n}d" in str(s.node.target))


def _attributes(n: int, kernel: Numbers, stride: Numbers | None, padding: Numbers, ceil_mode: bool) -> dict[str, Any]:
    shape = each(kernel, n)
    strides = shape if stride is None or stride == [] or stride == () else each(stride, n)
    pads = each(padding, n)
    return {"kernel_shape": shape, "strides": strides, "pads": (*pads, *pads), "ceil_mode": int(ceil_mode)}


@lowers(*(f"aten.max_pool{n}d.default" for n in (1, 2, 3)))
def max_pool(
    s: Scope, x: Value, kernel: Numbers, stride: Numbers | None = None, padding: Numbers = 0, dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> Value:  # fmt: skip
    n = _spatial(s)
    attributes = _attributes(n, kernel, stride, padding, ceil_mode)
    return _with_batch(s, x, n, lambda y: s.b.max_pool(y, dilations=each(dilation, n), **attributes))


@lowers(
    "aten.max_pool1d_with_indices.default",
    "aten.max_pool2d_with_indices.default",
    "aten.max_pool3d_with_indices.default",
)
def max_pool_with_indices(
    s: Scope, x: Value, kernel: Numbers, stride: Numbers | None = None, padding: Numbers = 0, dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> tuple[Value, ...]:  # fmt: skip
    """Torch counts indices within a channel, ONNX within the tensor."""
    if not s.used(1):
        return (max_pool(s, x, kernel, stride, padding, dilation, ceil_mode),)
    n = _spatial(s)
    batched = s.rank_of(x) == n + 2
    if not batched:
        x = s.unsqueeze(x, 0)
    attributes = _attributes(n, kernel, stride, padding, ceil_mode)
    values, indices = s.many.max_pool(x, dilations=each(dilation, n), results=2, **attributes)
    indices = s.b.mod(indices, s.number(dims.product(s.shape_of(x)[2:]), I64))
    return (values, indices) if batched else (s.squeeze(values, 0), s.squeeze(indices, 0))


@lowers(*(f"aten.avg_pool{n}d.default" for n in (1, 2, 3)))
def average_pool(
    s: Scope, x: Value, kernel: Numbers, stride: Numbers | None = None, padding: Numbers = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    n = _spatial(s)
    attributes = _attributes(n, kernel, stride, padding, ceil_mode)
    if divisor_override is not None:
        if ceil_mode:
            s.refuse("a divisor of one's own together with ceil_mode")
        factor = number(math.prod(attributes["kernel_shape"]) / divisor_override, x.element)
        return _with_batch(
            s, x, n, lambda y: s.b.mul(s.b.average_pool(y, count_include_pad=1, **attributes), factor)
        )  # fmt: skip
    return _with_batch(s, x, n, lambda y: s.b.average_pool(y, count_include_pad=int(count_include_pad), **attributes))


def _sizes(s: Scope, x: Value, size: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Extents in and out of the pooled axes."""
    n = _spatial(s)
    wanted = [size] * n if isinstance(size, int) else list(size) * (n if len(size) == 1 else 1)
    inner = list(s.shape_of(x)[-n:])
    return inner, [extent if goal is None else s.dim(goal) for extent, goal in zip(inner, wanted, strict=True)]


@lowers(
    *(f"aten.adaptive_avg_pool{n}d.default" for n in (1, 2, 3)),
    *(f"aten._adaptive_avg_pool{n}d.default" for n in (2, 3)),
)
def adaptive_average_pool(s: Scope, x: Value, size: Sequence[Any]) -> Value:
    """One position: the global mean; whole windows: an average pool; else means as a product with a matrix per axis."""
    inner, outer = _sizes(s, x, size)
    n = len(inner)
    if inner == outer:
        return x
    if all(goal == 1 for goal in outer):
        return _with_batch(s, x, n, s.b.global_average_pool)
    if not dims.is_static(inner) or not dims.is_static(outer):
        s.refuse("adaptive pooling of a dynamic extent to other than one position", code="E405")
    if all(extent % goal == 0 for extent, goal in zip(inner, outer, strict=True)):
        steps = [extent // goal for extent, goal in zip(inner, outer, strict=True)]
        return _with_batch(s, x, n, lambda y: s.b.average_pool(y, kernel_shape=steps, strides=steps))
    rank = s.rank_of(x)
    wide = s.wide(x)
    for axis, extent, goal in zip(range(rank - n, rank), inner, outer, strict=True):
        matrix = np.zeros((extent, goal))
        for column, (start, stop) in enumerate(_bins(extent, goal)):
            matrix[start:stop, column] = 1 / (stop - start)
        weights = constant_value(matrix.astype(wide.element.dtype), wide.element)
        wide = s.swap(s.b.matmul(s.swap(wide, axis, rank - 1), weights), axis, rank - 1)
    return s.cast(wide, x.element)


def _bins(extent: int, goal: int) -> list[tuple[int, int]]:
    """Torch's windows, which may overlap."""
    return [(k * extent // goal, -(-(k + 1) * extent // goal)) for k in range(goal)]


@lowers(*(f"aten.adaptive_max_pool{n}d.default" for n in (1, 2, 3)))
def adaptive_max_pool(s: Scope, x: Value, size: Sequence[Any]) -> tuple[Value, ...]:
    inner, outer = _sizes(s, x, size)
    n, rank = len(inner), s.rank_of(x)
    if s.used(1):
        return _adaptive_with_indices(s, x, inner, outer)
    if all(goal == 1 for goal in outer):
        return (_with_batch(s, x, n, s.b.global_max_pool),)
    if not dims.is_static(inner) or not dims.is_static(outer):
        s.refuse("adaptive pooling of a dynamic extent to other than one position", code="E405")
    if all(extent % goal == 0 for extent, goal in zip(inner, outer, strict=True)):
        steps = [extent // goal for extent, goal in zip(inner, outer, strict=True)]
        return (_with_batch(s, x, n, lambda y: s.b.max_pool(y, kernel_shape=steps, strides=steps)),)
    for axis, extent, goal in zip(range(rank - n, rank), inner, outer, strict=True):
        parts = [s.b.reduce_max(s.slice(x, axis, *bounds), s.sizes([axis])) for bounds in _bins(extent, goal)]
        x = s.concat(parts, axis)
    return (x,)


def _adaptive_with_indices(s: Scope, x: Value, inner: list[Any], outer: list[Any]) -> tuple[Value, ...]:
    if not dims.is_static(inner) or any(extent % goal for extent, goal in zip(inner, outer, strict=True)):
        s.refuse("indices of adaptive pooling unless all windows are equal")
    steps = [extent // goal for extent, goal in zip(inner, outer, strict=True)]
    return max_pool_with_indices(s, x, steps, steps)
