"""Activation functions."""

from __future__ import annotations

import math
from typing import Any

from espalier.ir import zeros
from espalier.ir.axes import Equation
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, TypeContext, op
from espalier.ir.ops.elementwise import Unary, arithmetic_element


def softplus(xp: Any, x: Any) -> Any:
    """log(1 + eˣ), without overflow."""
    return xp.maximum(x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))


def unit_clip(xp: Any, x: Any) -> Any:
    """x limited to [0, 1]."""
    return xp.minimum(xp.maximum(x, xp.zeros_like(x)), xp.ones_like(x))


@op("relu", onnx="Relu")
class Relu(Unary):
    """max(x, 0)."""

    zero = zeros.passed
    monotone = True
    idempotent = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.relu(x)


@op("leaky_relu", onnx="LeakyRelu")
class LeakyRelu(Unary):
    """x where x ≥ 0, else alpha·x."""

    alpha: float = 0.01

    zero = zeros.passed

    @property
    def monotone(self) -> bool:  # type: ignore[override]  # an attribute decides
        return bool(self.alpha >= 0)

    def function(self, xp: Any, x: Any) -> Any:
        return xp.where(x < 0, x * self.alpha, x)


@op("prelu", onnx="PRelu")
class Prelu(Op):
    """x where x ≥ 0, else slope·x; the slope broadcasts to x."""

    x: In
    slope: In

    axes = "..., ... -> ..."
    zero = zeros.first

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x", "slope", real=True)

    def equation(self, ctx: TypeContext) -> Equation | None:
        found, shape = super().equation(ctx), ctx.shape("x")
        if found is None or shape is None:
            return found
        result = found.results[0] or []
        if len(result) != len(shape):
            ctx.fail("the slope has more axes than x")
        for term, extent in zip(result, shape, strict=True):
            if isinstance(extent, int) and isinstance(term.extent, int) and extent != term.extent:
                ctx.fail(f"the slope has an extent of {term.extent} where x has {extent}")
        return found

    def reference(self, xp: Any, x: Any, slope: Any) -> Any:
        return xp.where(x < 0, x * slope, x)


@op("thresholded_relu", onnx="ThresholdedRelu")
class ThresholdedRelu(Unary):
    """x where x > alpha, else 0."""

    alpha: float = 1.0

    zero = zeros.passed

    @property
    def monotone(self) -> bool:  # type: ignore[override]  # an attribute decides
        return bool(self.alpha >= 0)

    def function(self, xp: Any, x: Any) -> Any:
        return xp.where(x > self.alpha, x, xp.zeros_like(x))


@op("elu", onnx="Elu")
class Elu(Unary):
    """x where x ≥ 0, else alpha·(eˣ − 1)."""

    alpha: float = 1.0

    zero = zeros.passed

    @property
    def monotone(self) -> bool:  # type: ignore[override]  # an attribute decides
        return bool(self.alpha >= 0)

    def function(self, xp: Any, x: Any) -> Any:
        return xp.where(x < 0, xp.expm1(xp.minimum(x, xp.zeros_like(x))) * self.alpha, x)


@op("celu", onnx="Celu")
class Celu(Unary):
    """max(0, x) + min(0, alpha·(e^(x/alpha) − 1))."""

    alpha: float = 1.0

    zero = zeros.passed
    monotone = True

    def function(self, xp: Any, x: Any) -> Any:
        none = xp.zeros_like(x)
        return xp.maximum(x, none) + xp.minimum(xp.expm1(x / self.alpha) * self.alpha, none)


@op("selu", onnx="Selu")
class Selu(Unary):
    """gamma·x where x > 0, else gamma·alpha·(eˣ − 1)."""

    alpha: float = 1.6732631921768188
    gamma: float = 1.0507010221481323

    zero = zeros.passed

    @property
    def monotone(self) -> bool:  # type: ignore[override]  # an attribute decides
        return bool(self.alpha >= 0 and self.gamma >= 0)

    def function(self, xp: Any, x: Any) -> Any:
        return xp.where(x > 0, x, xp.expm1(xp.minimum(x, xp.zeros_like(x))) * self.alpha) * self.gamma


@op("sigmoid", onnx="Sigmoid")
class Sigmoid(Unary):
    """1 / (1 + e⁻ˣ)."""

    monotone = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.sigmoid(x)


@op("hard_sigmoid", onnx="HardSigmoid")
class HardSigmoid(Unary):
    """alpha·x + beta, limited to [0, 1]."""

    alpha: float = 0.2
    beta: float = 0.5

    @property
    def monotone(self) -> bool:  # type: ignore[override]  # an attribute decides
        return bool(self.alpha >= 0)

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        return self.beta <= 0 and states[0] is True

    def function(self, xp: Any, x: Any) -> Any:
        return unit_clip(xp, x * self.alpha + self.beta)


@op("hard_swish", onnx="HardSwish")
class HardSwish(Unary):
    """x·max(0, min(1, x/6 + 1/2))."""

    zero = zeros.passed

    def function(self, xp: Any, x: Any) -> Any:
        return x * unit_clip(xp, x * (1 / 6) + 0.5)


@op("swish", onnx="Swish")
class Swish(Unary):
    """x·sigmoid(alpha·x); SiLU if alpha is 1."""

    alpha: float = 1.0

    zero = zeros.passed

    def function(self, xp: Any, x: Any) -> Any:
        return x * xp.sigmoid(x * self.alpha)


@op("swiglu", onnx="SwiGLU")
class Swiglu(Op):
    """gate·sigmoid(alpha·gate)·value; the shapes are the same."""

    gate: In
    value: In
    alpha: float = 1.0

    axes = "X?, X? -> X?"
    zero = zeros.either

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "gate", "value", real=True)

    def reference(self, xp: Any, gate: Any, value: Any) -> Any:
        wide = xp.wide(gate)
        return xp.astype(wide * xp.sigmoid(wide * self.alpha), xp.element(gate)) * value


@op("mish", onnx="Mish")
class Mish(Unary):
    """x·tanh(softplus(x))."""

    zero = zeros.passed

    def function(self, xp: Any, x: Any) -> Any:
        return x * xp.tanh(softplus(xp, x))


@op("gelu", onnx="Gelu")
class Gelu(Unary):
    """x·Φ(x), with Φ the normal distribution, or its approximation by tanh (`approximate` is "none" or "tanh")."""

    approximate: str = "none"

    zero = zeros.passed

    def element(self, ctx: TypeContext) -> Element:
        if self.approximate not in ("none", "tanh"):
            ctx.fail(f"GELU has no approximation {self.approximate!r}")
        return super().element(ctx)

    def function(self, xp: Any, x: Any) -> Any:
        if self.approximate == "tanh":
            return x * (xp.tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1) * 0.5
        return x * (xp.erf(x * math.sqrt(0.5)) + 1) * 0.5


@op("softplus", onnx="Softplus")
class Softplus(Unary):
    """log(1 + eˣ)."""

    monotone = True

    def function(self, xp: Any, x: Any) -> Any:
        return softplus(xp, x)


@op("softsign", onnx="Softsign")
class Softsign(Unary):
    """x / (1 + |x|)."""

    zero = zeros.passed
    monotone = True

    def function(self, xp: Any, x: Any) -> Any:
        return x / (xp.abs(x) + 1)


@op("shrink", onnx="Shrink")
class Shrink(Unary):
    """x + bias below −lambd, x − bias above lambd, 0 between."""

    lambd: float = 0.5
    bias: float = 0.0

    @property
    def monotone(self) -> bool:  # type: ignore[override]  # an attribute decides
        return bool(self.lambd >= 0 and self.bias <= self.lambd)

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        return self.lambd >= 0 and states[0] is True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.where(x < -self.lambd, x + self.bias, xp.where(x > self.lambd, x - self.bias, xp.zeros_like(x)))
