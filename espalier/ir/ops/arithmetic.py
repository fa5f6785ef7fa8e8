"""Arithmetic on two or more operands that broadcast."""

from __future__ import annotations

from typing import Any

from espalier.ir import zeros
from espalier.ir.elements import Element, Quantized
from espalier.ir.op import In, Ins, Op, TypeContext, op
from espalier.ir.ops.elementwise import Unary, arithmetic_element


class Binary(Op):
    """Base of functions of two numbers of one element type."""

    a: In
    b: In

    axes = "..., ... -> ..."
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "a", "b")


class Variadic(Op):
    """Base of functions of one or more numbers of one element type."""

    xs: Ins

    axes = "... -> ..."
    zero = zeros.every
    commutative = True
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        if not ctx.types:
            ctx.fail(f"{self.name} takes at least one operand")
        return arithmetic_element(ctx, *range(len(ctx.types)))


@zeros.ZeroRule
def numerator(states: zeros.States) -> bool:
    """0/b is 0, unless b is zero too."""
    return states[0] is True and states[1] is not True


@op("add", onnx="Add")
class Add(Binary):
    """a + b; integers wrap around."""

    zero = zeros.every
    commutative = True

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return a + b


@op("sub", onnx="Sub")
class Sub(Binary):
    """a − b; integers wrap around."""

    zero = zeros.every

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return a - b


@op("mul", onnx="Mul")
class Mul(Binary):
    """a·b; integers wrap around."""

    zero = zeros.either
    commutative = True

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return a * b


@op("div", onnx="Div")
class Div(Binary):
    """a/b; the quotient of integers is truncated towards zero."""

    zero = numerator

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.divide(a, b)


@op("mod", onnx="Mod")
class Mod(Binary):
    """The remainder of a/b: with the sign of b, or with that of a if `fmod`."""

    fmod: int = 0

    zero = numerator

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.astype(xp.fmod(a, b), xp.element(a)) if self.fmod else a % b


@op("pow", onnx="Pow")
class Pow(Op):
    """base ** exponent in the base's element type; the exponent may have another."""

    base: In
    exponent: In

    axes = "..., ... -> ..."
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        arithmetic_element(ctx, "exponent")
        return arithmetic_element(ctx, "base")

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        exponent = ctx.numbers("exponent")
        return states[0] is True and exponent is not None and bool((exponent > 0).all())

    def reference(self, xp: Any, base: Any, exponent: Any) -> Any:
        return xp.astype(xp.power(base, exponent), xp.element(base))


def extreme_element(ctx: TypeContext, element: Element) -> Element:
    """The element, if its numbers have an order."""
    return ctx.fail(f"{element} has no order") if element.is_complex else element


@op("max", onnx="Max")
class Max(Variadic):
    """The largest operand; NaN if one is."""

    monotone = True

    def element(self, ctx: TypeContext) -> Element:
        return extreme_element(ctx, super().element(ctx))

    def reference(self, xp: Any, *xs: Any) -> Any:
        found = xs[0]
        for x in xs[1:]:
            found = xp.maximum(found, x)
        return found


@op("min", onnx="Min")
class Min(Variadic):
    """The smallest operand; NaN if one is."""

    monotone = True

    def element(self, ctx: TypeContext) -> Element:
        return extreme_element(ctx, super().element(ctx))

    def reference(self, xp: Any, *xs: Any) -> Any:
        found = xs[0]
        for x in xs[1:]:
            found = xp.minimum(found, x)
        return found


@op("sum", onnx="Sum")
class Sum(Variadic):
    """The sum of the operands."""

    def reference(self, xp: Any, *xs: Any) -> Any:
        if len(xs) == 1:
            return xs[0]
        total = xp.wide(xs[0])
        for x in xs[1:]:
            total = total + xp.wide(x)
        return xp.astype(total, xp.element(xs[0]))


@op("mean", onnx="Mean")
class Mean(Variadic):
    """The mean of the operands."""

    symbolic = False

    def reference(self, xp: Any, *xs: Any) -> Any:
        total = xp.wide(xs[0])
        for x in xs[1:]:
            total = total + xp.wide(x)
        return xp.astype(total / len(xs), xp.element(xs[0]))


@op("clip", onnx="Clip")
class Clip(Op):
    """x limited to [min, max], both scalars and optional; max wins if they are crossed."""

    x: In
    min: In | None
    max: In | None

    axes = "..., _, _ -> ..."
    monotone = True
    idempotent = True
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x", "min", "max", real=True)

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        if states[0] is not True:
            return False
        lower, upper = ctx.numbers("min"), ctx.numbers("max")
        if (ctx.has("min") and lower is None) or (ctx.has("max") and upper is None):
            return False
        return (lower is None or bool((lower <= 0).all())) and (upper is None or bool((upper >= 0).all()))

    def reference(self, xp: Any, x: Any, min: Any = None, max: Any = None) -> Any:
        if min is not None:
            x = xp.maximum(x, xp.reshape(min, ()))
        return x if max is None else xp.minimum(x, xp.reshape(max, ()))


@op("bit_shift", onnx="BitShift")
class BitShift(Op):
    """x shifted by y bits (`direction` LEFT or RIGHT), signed numbers arithmetically; too far leaves the sign."""

    x: In
    y: In
    direction: str

    axes = "..., ... -> ..."
    zero = zeros.first

    def element(self, ctx: TypeContext) -> Element:
        element = integer_element(ctx, "x", "y")
        if self.direction not in ("LEFT", "RIGHT"):
            ctx.fail(f"the direction of a shift is LEFT or RIGHT, not {self.direction!r}")
        return element

    def reference(self, xp: Any, x: Any, y: Any) -> Any:
        kind = xp.element(x)
        possible = (y >= 0) & (y < kind.bits)
        by = xp.where(possible, y, xp.zeros_like(y))
        if self.direction == "LEFT":
            found, beyond = xp.bitwise_left_shift(x, by), xp.zeros_like(x)
        else:
            found = xp.bitwise_right_shift(x, by)
            beyond = -xp.astype(x < 0, kind) if kind.kind == "int" else xp.zeros_like(x)
        return xp.where(possible, found, beyond)


def integer_element(ctx: TypeContext, *operands: int | str) -> Element:
    """The element that operands agree on, which must be integers or bool."""
    found = [ctx.element(operand) for operand in operands]
    for element in found:
        if isinstance(element, Quantized) or not (element.is_integer or element.kind == "bool"):
            ctx.fail(f"{ctx.op.name} works on the bits of integers, not on {element}")
        if element != found[0]:
            ctx.fail(f"{ctx.op.name} wants one element type, not {found[0]} and {element}")
    return found[0]


class Bitwise(Op):
    """Base of bitwise functions of two integers."""

    a: In
    b: In

    axes = "..., ... -> ..."
    commutative = True

    def element(self, ctx: TypeContext) -> Element:
        return integer_element(ctx, "a", "b")


@op("bitwise_and", onnx="BitwiseAnd")
class BitwiseAnd(Bitwise):
    """Bits that both operands have."""

    zero = zeros.either

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.bitwise_and(a, b)


@op("bitwise_or", onnx="BitwiseOr")
class BitwiseOr(Bitwise):
    """Bits that one of the operands has."""

    zero = zeros.every

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.bitwise_or(a, b)


@op("bitwise_xor", onnx="BitwiseXor")
class BitwiseXor(Bitwise):
    """Bits that exactly one operand has."""

    zero = zeros.every

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.bitwise_xor(a, b)


@op("bitwise_not", onnx="BitwiseNot")
class BitwiseNot(Unary):
    """Every bit flipped."""

    def element(self, ctx: TypeContext) -> Element:
        return integer_element(ctx, "x")

    def function(self, xp: Any, x: Any) -> Any:
        return xp.bitwise_invert(x)
