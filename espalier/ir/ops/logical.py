"""Logic on truth values."""

from __future__ import annotations

from typing import Any

from espalier.ir import elements, zeros
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, TypeContext, op


def truth(ctx: TypeContext, *operands: str) -> Element:
    """Bool, if the operands are."""
    for operand in operands:
        if ctx.element(operand) != elements.BOOL:
            ctx.fail(f"{ctx.op.name} works on truth values, not on {ctx.element(operand)}")
    return elements.BOOL


class Logical(Op):
    """Base of functions of two truth values."""

    a: In
    b: In

    axes = "..., ... -> ..."
    commutative = True
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        return truth(ctx, "a", "b")


@op("logical_and", onnx="And")
class LogicalAnd(Logical):
    """Whether both hold."""

    zero = zeros.either

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.logical_and(a, b)


@op("logical_or", onnx="Or")
class LogicalOr(Logical):
    """Whether one holds."""

    zero = zeros.every

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.logical_or(a, b)


@op("logical_xor", onnx="Xor")
class LogicalXor(Logical):
    """Whether exactly one holds."""

    zero = zeros.every

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.logical_xor(a, b)


@op("logical_not", onnx="Not")
class LogicalNot(Op):
    """Whether it does not hold."""

    x: In

    axes = "... -> ..."
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        return truth(ctx, "x")

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.logical_not(x)
