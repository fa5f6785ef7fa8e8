"""Activations, softmax, and dropout that does nothing."""

from __future__ import annotations

from typing import Any

import torch

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope, dtype_element
from espalier.frontends.torch.tensors import number
from espalier.ir.graph import Value

_SELU = (1.6732632423543772, 1.0507009873554805)


@lowers("aten.gelu.default")
def gelu(s: Scope, x: Value, approximate: str = "none") -> Value:
    return s.b.gelu(x, approximate=approximate)


@lowers("aten.silu.default")
def silu(s: Scope, x: Value) -> Value:
    return s.b.swish(x)


@lowers("aten.mish.default")
def mish(s: Scope, x: Value) -> Value:
    return s.b.mish(x)


@lowers("aten.hardswish.default")
def hardswish(s: Scope, x: Value) -> Value:
    return s.b.hard_swish(x)


@lowers("aten.hardsigmoid.default")
def hardsigmoid(s: Scope, x: Value) -> Value:
    return s.b.hard_sigmoid(x, alpha=1 / 6, beta=0.5)


@lowers("aten.relu6.default")
def relu6(s: Scope, x: Value) -> Value:
    return s.b.clip(x, number(0, x.element), number(6, x.element))


@lowers("aten.leaky_relu.default")
def leaky_relu(s: Scope, x: Value, negative_slope: float = 0.01) -> Value:
    return s.b.leaky_relu(x, alpha=float(negative_slope))


@lowers("aten.prelu.default", "aten._prelu_kernel.default")
def prelu(s: Scope, x: Value, slope: Value) -> Value:
    """One slope per channel (axis 1), or one for all."""
    rank, shape = s.rank_of(x), s.shape_of(slope)
    if len(shape) == 1 and rank > 2 and shape[0] != 1:
        slope = s.reshape(slope, (*shape, *[1] * (rank - 2)))
    elif len(shape) == 1 and rank < 2 and shape[0] == 1:
        slope = s.reshape(slope, (1,) * rank)
    return s.b.prelu(x, slope)


@lowers("aten.elu.default")
def elu(s: Scope, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if abs(alpha - _SELU[0]) < 1e-6 and abs(scale - _SELU[1]) < 1e-6 and input_scale == 1:
        return selu(s, x)
    if input_scale == 1:
        y = s.b.elu(x, alpha=float(alpha))
    else:  # alpha·(exp(input_scale·x) − 1) below zero, x above
        below = s.b.elu(s.b.mul(s.b.min(x, s.zero_like(x)), number(input_scale, x.element)), alpha=float(alpha))
        y = s.b.add(s.b.relu(x), below)
    return y if scale == 1 else s.b.mul(y, number(scale, x.element))


@lowers("aten.selu.default")
def selu(s: Scope, x: Value) -> Value:
    return s.b.selu(x, alpha=_SELU[0], gamma=_SELU[1])


@lowers("aten.celu.default")
def celu(s: Scope, x: Value, alpha: float = 1.0) -> Value:
    return s.b.celu(x, alpha=float(alpha))


@lowers("aten.softplus.default")
def softplus(s: Scope, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    """log(1+exp(βx))/β; above the threshold torch returns x, from which the formula differs by less than rounding."""
    if beta != 1:
        x = s.b.mul(x, number(beta, x.element))
    y = s.b.softplus(x)
    if threshold < 16:
        y = s.b.where(s.b.greater(x, number(threshold, x.element)), x, y)
    return y if beta == 1 else s.b.div(y, number(beta, x.element))


@lowers("aten.log_sigmoid.default")
def log_sigmoid(s: Scope, x: Value) -> Value:
    return s.b.neg(s.b.softplus(s.b.neg(x)))


@lowers("aten.hardshrink.default")
def hardshrink(s: Scope, x: Value, lambd: float = 0.5) -> Value:
    return s.b.shrink(x, lambd=float(lambd), bias=0.0)


@lowers("aten.softshrink.default")
def softshrink(s: Scope, x: Value, lambd: float = 0.5) -> Value:
    return s.b.shrink(x, lambd=float(lambd), bias=float(lambd))


@lowers("aten.threshold.default")
def threshold(s: Scope, x: Value, threshold: float, value: float) -> Value:
    low = s.b.less_or_equal(x, number(threshold, x.element))
    return s.b.where(low, number(value, x.element), x)


@lowers("aten.rrelu.default")
def rrelu(s: Scope, x: Value, lower: float = 0.125, upper: float = 1 / 3, training: bool = False) -> Value:
    if training:
        s.refuse("random slopes belong to training; call module.eval() first")
    return s.b.leaky_relu(x, alpha=(lower + upper) / 2)


@lowers("aten.softmax.int", "aten._softmax.default", "aten._safe_softmax.default")
def softmax(s: Scope, x: Value, dim: int, dtype: Any = None) -> Value:
    """`dtype` is a dtype in `softmax.int`, and a flag that has no effect on results in `_softmax`."""
    element = dtype_element(dtype, s.element) if isinstance(dtype, torch.dtype) else s.element
    x = s.cast(x, element)
    if s.rank_of(x) == 0:
        return number(1, element)
    found: Value = s.b.softmax(x, axis=dim)
    if "_safe_softmax" in str(s.node.target):  # rows of −∞ become zero
        top = s.b.reduce_max(x, s.sizes([dim]))
        found = s.b.where(s.b.equal(top, number(float("-inf"), element)), s.zero_like(x), found)
    return found


@lowers("aten.log_softmax.int", "aten._log_softmax.default")
def log_softmax(s: Scope, x: Value, dim: int, dtype: Any = None) -> Value:
    if s.rank_of(x) == 0:
        return number(0, s.element)
    return s.b.log_softmax(s.cast(x, s.element), axis=dim)


@lowers(
    "aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default",
    "aten.feature_alpha_dropout.default",
)  # fmt: skip
def dropout(s: Scope, x: Value, p: float, train: bool) -> Value:
    if train and p > 0:
        s.refuse("dropout is active; call module.eval() first")
    return x


@lowers("aten.native_dropout.default")
def native_dropout(s: Scope, x: Value, p: float, train: bool | None) -> tuple[Value, Value]:
    from espalier.ir.elements import BOOL

    return dropout(s, x, p, bool(train)), s.full(s.shape, True, BOOL)
