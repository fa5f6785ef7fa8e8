"""Functions of one number, applied to each: the base classes, and the elementary functions."""

from __future__ import annotations

from typing import Any, ClassVar

from espalier.ir import elements, zeros
from espalier.ir.elements import Element, Quantized
from espalier.ir.op import In, Op, TypeContext, op
from espalier.ir.types import Type


class Unary(Op):
    """Base of functions of one number. Narrow floats are computed in f32 and rounded once."""

    x: In

    axes = "... -> ..."
    complex_numbers: ClassVar[bool] = False
    """Whether the function is defined on complex numbers too."""

    def function(self, xp: Any, x: Any) -> Any:
        """The function; floats come in the accumulator type."""
        raise NotImplementedError(f"{self.name} has no function")

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x", real=not self.complex_numbers)

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.astype(self.function(xp, xp.wide(x) if xp.is_floating(x) else x), xp.element(x))


class Predicate(Op):
    """Base of questions about one number."""

    x: In

    axes = "... -> ..."

    def element(self, ctx: TypeContext) -> Element:
        return elements.BOOL


def arithmetic_element(ctx: TypeContext, *operands: int | str, real: bool = False) -> Element:
    """The element that operands agree on, which must be numbers (with `real`, not complex ones).

    Fails for quantized elements too: integers that stand for reals have no arithmetic.
    """
    found = [ctx.element(operand) for operand in operands if ctx.has(operand)]
    for element in found:
        if isinstance(element, Quantized):
            ctx.fail(f"{ctx.op.name} computes on numbers, not on {element}: dequantize it first")
        if element.kind in ("bool", "string") or (real and element.is_complex):
            ctx.fail(f"{ctx.op.name} is not defined on {element}")
        if element != found[0]:
            ctx.fail(f"{ctx.op.name} wants one element type, not {found[0]} and {element}")
    return found[0]


@op("identity", onnx="Identity")
class Identity(Op):
    """x itself: a tensor, a sequence or an optional."""

    x: In

    axes = "... -> ..."
    zero = zeros.passed
    moves = True
    monotone = True
    idempotent = True
    symbolic = True

    def infer(self, ctx: TypeContext) -> list[Type]:
        return [ctx.types[0]] if ctx.types[0] is not None else ctx.fail("the operand is absent")

    def reference(self, xp: Any, x: Any) -> Any:
        return x


@op("abs", onnx="Abs")
class Abs(Unary):
    """The absolute value; real for complex numbers. The most negative integer stays as it is."""

    zero = zeros.passed
    idempotent = True
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        element = arithmetic_element(ctx, "x")
        if element.is_complex:
            return elements.F64 if element == elements.C128 else elements.F32
        return element

    def reference(self, xp: Any, x: Any) -> Any:
        found = xp.abs(x)
        return found if xp.element(x).is_complex else xp.astype(found, xp.element(x))


@op("neg", onnx="Neg")
class Neg(Unary):
    """−x; integers wrap around."""

    zero = zeros.passed
    symbolic = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return -x


@op("sign", onnx="Sign")
class Sign(Unary):
    """−1, 0 or 1; NaN for NaN."""

    zero = zeros.passed
    monotone = True
    idempotent = True
    symbolic = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.sign(x)


@op("ceil", onnx="Ceil")
class Ceil(Unary):
    """The next integer from x upwards."""

    zero = zeros.passed
    monotone = True
    idempotent = True
    symbolic = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.ceil(x)


@op("floor", onnx="Floor")
class Floor(Unary):
    """The next integer from x downwards."""

    zero = zeros.passed
    monotone = True
    idempotent = True
    symbolic = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.floor(x)


@op("round", onnx="Round")
class Round(Unary):
    """The nearest integer; halves go to the even one."""

    zero = zeros.passed
    monotone = True
    idempotent = True
    symbolic = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.rint(x)


@op("sqrt", onnx="Sqrt")
class Sqrt(Unary):
    """√x; NaN below zero."""

    zero = zeros.passed
    monotone = True
    symbolic = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.sqrt(x)


@op("reciprocal", onnx="Reciprocal")
class Reciprocal(Unary):
    """1/x."""

    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.divide(xp.ones_like(x), x)


@op("exp", onnx="Exp")
class Exp(Unary):
    """eˣ."""

    monotone = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.exp(x)


@op("log", onnx="Log")
class Log(Unary):
    """The natural logarithm: −∞ at zero, NaN below."""

    monotone = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.log(x)


@op("erf", onnx="Erf")
class Erf(Unary):
    """The error function, 2/√π ∫₀ˣ exp(−t²) dt."""

    zero = zeros.passed
    monotone = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.erf(x)


@op("sin", onnx="Sin")
class Sin(Unary):
    """The sine of an angle in radians."""

    zero = zeros.passed
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.sin(x)


@op("cos", onnx="Cos")
class Cos(Unary):
    """The cosine of an angle in radians."""

    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.cos(x)


@op("tan", onnx="Tan")
class Tan(Unary):
    """The tangent of an angle in radians."""

    zero = zeros.passed
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.tan(x)


@op("asin", onnx="Asin")
class Asin(Unary):
    """The inverse sine, in radians; NaN outside of [−1, 1]."""

    zero = zeros.passed
    monotone = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.asin(x)


@op("acos", onnx="Acos")
class Acos(Unary):
    """The inverse cosine, in radians; NaN outside of [−1, 1]."""

    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.acos(x)


@op("atan", onnx="Atan")
class Atan(Unary):
    """The inverse tangent, in radians."""

    zero = zeros.passed
    monotone = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.atan(x)


@op("sinh", onnx="Sinh")
class Sinh(Unary):
    """The hyperbolic sine."""

    zero = zeros.passed
    monotone = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.sinh(x)


@op("cosh", onnx="Cosh")
class Cosh(Unary):
    """The hyperbolic cosine."""

    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.cosh(x)


@op("tanh", onnx="Tanh")
class Tanh(Unary):
    """The hyperbolic tangent."""

    zero = zeros.passed
    monotone = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.tanh(x)


@op("asinh", onnx="Asinh")
class Asinh(Unary):
    """The inverse hyperbolic sine."""

    zero = zeros.passed
    monotone = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.asinh(x)


@op("acosh", onnx="Acosh")
class Acosh(Unary):
    """The inverse hyperbolic cosine; NaN below 1."""

    monotone = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.acosh(x)


@op("atanh", onnx="Atanh")
class Atanh(Unary):
    """The inverse hyperbolic tangent; NaN outside of [−1, 1]."""

    zero = zeros.passed
    monotone = True
    complex_numbers = True

    def function(self, xp: Any, x: Any) -> Any:
        return xp.atanh(x)


@op("is_nan", onnx="IsNaN")
class IsNan(Predicate):
    """Whether x is not a number."""

    zero = zeros.passed

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.isnan(xp.wide(x))


@op("is_inf", onnx="IsInf")
class IsInf(Predicate):
    """Whether x is infinite; the attributes say which signs count."""

    detect_negative: int = 1
    detect_positive: int = 1

    zero = zeros.passed

    def reference(self, xp: Any, x: Any) -> Any:
        x = xp.wide(x)
        found = xp.isinf(x)
        if not self.detect_negative:
            found = found & (x > 0)
        if not self.detect_positive:
            found = found & (x < 0)
        return found
