"""Comparisons, and the choice between two tensors."""

from __future__ import annotations

from typing import Any

from espalier.ir import elements, zeros
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, TypeContext, op


class Comparison(Op):
    """Base of comparisons of two numbers."""

    a: In
    b: In

    axes = "..., ... -> ..."
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        if ctx.element("a") != ctx.element("b"):
            ctx.fail(f"{self.name} compares values of one element type, not {ctx.element('a')} and {ctx.element('b')}")
        return elements.BOOL


@op("equal", onnx="Equal")
class Equal(Comparison):
    """Whether a = b; NaN equals nothing."""

    commutative = True

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.equal(a, b)


@op("greater", onnx="Greater")
class Greater(Comparison):
    """Whether a > b."""

    zero = zeros.every

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return a > b


@op("greater_or_equal", onnx="GreaterOrEqual")
class GreaterOrEqual(Comparison):
    """Whether a ≥ b."""

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return a >= b


@op("less", onnx="Less")
class Less(Comparison):
    """Whether a < b."""

    zero = zeros.every

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return a < b


@op("less_or_equal", onnx="LessOrEqual")
class LessOrEqual(Comparison):
    """Whether a ≤ b."""

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return a <= b


@zeros.ZeroRule
def branches(states: zeros.States) -> bool:
    """Zero where both choices are."""
    return states[1] is True and states[2] is True


@op("where", onnx="Where")
class Where(Op):
    """x where the condition holds, else y."""

    condition: In
    x: In
    y: In

    axes = "..., ..., ... -> ..."
    zero = branches
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        if ctx.element("condition") != elements.BOOL:
            ctx.fail(f"the condition is {ctx.element('condition')}, not bool")
        if ctx.element("x") != ctx.element("y"):
            ctx.fail(f"the choices have one element type, not {ctx.element('x')} and {ctx.element('y')}")
        return ctx.element("x")

    def reference(self, xp: Any, condition: Any, x: Any, y: Any) -> Any:
        return xp.where(condition, x, y)
