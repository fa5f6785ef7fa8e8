"""Normalizations, as they run in evaluation mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope, torch_dtype
from espalier.frontends.torch.tensors import number
from espalier.ir import dims
from espalier.ir.graph import Value, constant_value


def _filled(s: Scope, value: Value | None, shape: Sequence[Any], fill: float, like: Value) -> Value:
    """A weight, or one that does nothing where torch has none."""
    if value is not None:
        return s.cast(value, like.element)
    if dims.is_static(tuple(shape)):
        return constant_value(np.full(tuple(shape), fill).astype(like.element.dtype), like.element)
    return s.full(shape, fill, like.element)


@lowers("aten.layer_norm.default")
def layer_norm(
    s: Scope, x: Value, normalized: Sequence[Any], weight: Value | None = None, bias: Value | None = None,
    eps: float = 1e-5, *_: Any,
) -> Value:  # fmt: skip
    scale = _filled(s, weight, [s.dim(extent) for extent in normalized], 1, x)
    return s.b.layer_norm(x, scale, bias, axis=-len(normalized), epsilon=float(eps))


@lowers("aten.native_layer_norm.default")
def native_layer_norm(
    s: Scope, x: Value, normalized: Sequence[Any], weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, ...]:
    y = layer_norm(s, x, normalized, weight, bias, eps)
    if not (s.used(1) or s.used(2)):
        return (y,)
    axes = list(range(s.rank_of(x) - len(normalized), s.rank_of(x)))
    wide = s.wide(x)
    mean = s.b.reduce_mean(wide, s.sizes(axes))
    difference = s.b.sub(wide, mean)
    variance = s.b.reduce_mean(s.b.mul(difference, difference), s.sizes(axes))
    return y, mean, s.b.reciprocal(s.b.sqrt(s.b.add(variance, number(eps, wide.element))))


@lowers("aten.rms_norm.default")
def rms_norm(
    s: Scope, x: Value, normalized: Sequence[Any], weight: Value | None = None, eps: float | None = None
) -> Value:
    scale = _filled(s, weight, [s.dim(extent) for extent in normalized], 1, x)
    epsilon = torch.finfo(torch_dtype(x.element)).eps if eps is None else float(eps)
    return s.b.rms_norm(x, scale, axis=-len(normalized), epsilon=epsilon)


@lowers("aten._fused_rms_norm.default")
def fused_rms_norm(
    s: Scope, x: Value, normalized: Sequence[Any], weight: Value | None, eps: float | None
) -> tuple[Value, ...]:
    if s.used(1):
        s.refuse("the statistics of an RMS norm")
    return (rms_norm(s, x, normalized, weight, eps),)


@lowers("aten.group_norm.default")
def group_norm(
    s: Scope, x: Value, groups: int, weight: Value | None = None, bias: Value | None = None, eps: float = 1e-5, *_: Any
) -> Value:
    channels = s.shape_of(x)[1]
    scale, shift = _filled(s, weight, [channels], 1, x), _filled(s, bias, [channels], 0, x)
    if s.rank_of(x) == 2:  # ONNX's has at least one axis after the channels
        found = s.b.group_norm(s.unsqueeze(x, 2), scale, shift, num_groups=groups, epsilon=float(eps))
        return s.squeeze(found, 2)
    return s.b.group_norm(x, scale, shift, num_groups=groups, epsilon=float(eps))


@lowers("aten.native_group_norm.default")
def native_group_norm(
    s: Scope, x: Value, weight: Value | None, bias: Value | None, n: Any, c: Any, hw: Any, groups: int, eps: float
) -> tuple[Value, ...]:
    if s.used(1) or s.used(2):
        s.refuse("the statistics of a group norm")
    return (group_norm(s, x, groups, weight, bias, eps),)


def _batch_norm(
    s: Scope, x: Value, weight: Value | None, bias: Value | None, mean: Value, variance: Value, eps: float
) -> Value:
    channels = s.shape_of(mean)
    scale, shift = _filled(s, weight, channels, 1, mean), _filled(s, bias, channels, 0, mean)
    return s.b.batch_norm(x, scale, shift, mean, variance, epsilon=float(eps))


@lowers("aten.batch_norm.default")
def batch_norm(
    s: Scope, x: Value, weight: Value | None, bias: Value | None, mean: Value | None, variance: Value | None,
    training: bool, momentum: float, eps: float, *_: Any,
) -> Value:  # fmt: skip
    if mean is None or variance is None or training:
        return _by_statistics(s, x, weight, bias, [0, *range(2, s.rank_of(x))], eps)
    return _batch_norm(s, x, weight, bias, mean, variance, eps)


@lowers("aten._native_batch_norm_legit_no_training.default")
def batch_norm_inference(
    s: Scope, x: Value, weight: Value | None, bias: Value | None, mean: Value, variance: Value, momentum: float,
    eps: float,
) -> tuple[Value, ...]:  # fmt: skip
    return (_batch_norm(s, x, weight, bias, mean, variance, eps),)


@lowers("aten._native_batch_norm_legit.no_stats", "aten._native_batch_norm_legit_functional.default")
def batch_norm_statistics(
    s: Scope, x: Value, weight: Value | None, bias: Value | None, *arguments: Any
) -> tuple[Value, ...]:
    """With the batch's own statistics, which torch also uses in evaluation where none are tracked."""
    *tracked, training, _, eps = arguments
    if tracked and not training:
        return (_batch_norm(s, x, weight, bias, tracked[0], tracked[1], eps),)
    if any(s.used(index) for index in range(1, 5)):
        s.refuse("batch statistics as results; call module.eval() first")
    return (_by_statistics(s, x, weight, bias, [0, *range(2, s.rank_of(x))], eps),)


def _by_statistics(s: Scope, x: Value, weight: Value | None, bias: Value | None, axes: list[int], eps: float) -> Value:
    wide = s.wide(x)
    difference = s.b.sub(wide, s.b.reduce_mean(wide, s.sizes(axes)))
    variance = s.b.reduce_mean(s.b.mul(difference, difference), s.sizes(axes))
    y = s.b.div(difference, s.b.sqrt(s.b.add(variance, number(eps, wide.element))))
    shape = (s.shape_of(x)[1], *[1] * (s.rank_of(x) - 2))
    if weight is not None:
        y = s.b.mul(y, s.reshape(s.cast(weight, wide.element), shape))
    if bias is not None:
        y = s.b.add(y, s.reshape(s.cast(bias, wide.element), shape))
    return s.cast(y, x.element)


@lowers("aten.instance_norm.default")
def instance_norm(
    s: Scope, x: Value, weight: Value | None, bias: Value | None, mean: Value | None, variance: Value | None,
    use_input: bool, momentum: float, eps: float, *_: Any,
) -> Value:  # fmt: skip
    if not use_input and mean is not None and variance is not None:
        return _batch_norm(s, x, weight, bias, mean, variance, eps)
    channels = s.shape_of(x)[1]
    scale, shift = _filled(s, weight, [channels], 1, x), _filled(s, bias, [channels], 0, x)
    return s.b.instance_norm(x, scale, shift, epsilon=float(eps))


@lowers("aten._weight_norm_interface.default")
def weight_norm(s: Scope, v: Value, g: Value, dim: int = 0) -> tuple[Value, Value]:
    """v scaled to the lengths g along all axes but one."""
    axes = (
        [k for k in range(s.rank_of(v)) if k != s.axis(dim, s.rank_of(v))] if dim != -1 else list(range(s.rank_of(v)))
    )
    norm = s.b.reduce_l2(v, s.sizes(axes)) if axes else s.b.abs(v)
    return s.b.mul(v, s.b.div(g, norm)), norm
