"""Arithmetic, functions of one number, comparisons, logic, casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope, dtype_element
from espalier.frontends.torch.tensors import element_of, number
from espalier.ir.elements import BOOL, I32, Element
from espalier.ir.graph import Value


def _unary(*entries: tuple[str, str]) -> None:
    """Functions that ONNX has, of numbers in the result's element."""

    def make(name: str) -> Callable[..., Value]:
        def lower(s: Scope, x: Value) -> Value:
            found: Value = getattr(s.b, name)(s.cast(x, s.element))
            return found

        lower.__name__ = name
        return lower

    for overload, name in entries:
        lowers(f"aten.{overload}.default")(make(name))


_unary(
    ("sqrt", "sqrt"), ("exp", "exp"), ("log", "log"), ("sin", "sin"), ("cos", "cos"), ("tan", "tan"), ("asin", "asin"),
    ("acos", "acos"), ("atan", "atan"), ("sinh", "sinh"), ("cosh", "cosh"), ("tanh", "tanh"), ("asinh", "asinh"),
    ("acosh", "acosh"), ("atanh", "atanh"), ("erf", "erf"), ("sigmoid", "sigmoid"), ("reciprocal", "reciprocal"),
    ("relu", "relu"), ("sign", "sign"), ("sgn", "sign"),
)  # fmt: skip


@lowers(
    "aten.alias.default", "aten.clone.default", "aten.detach.default", "aten.detach_copy.default",
    "aten.contiguous.default", "aten.lift_fresh_copy.default", "aten.lift_fresh.default", "aten.lift.default",
    "aten.resolve_conj.default", "aten.resolve_neg.default", "aten.conj.default", "aten._conj.default",
    "aten._conj_physical.default", "aten.conj_physical.default", "aten.real.default", "aten.alias_copy.default",
    "aten.positive.default", "prims.view_of.default", "prims.clone.default", "prims.copy_strided.default",
)  # fmt: skip
def same(s: Scope, x: Value, *_: Any) -> Value:
    return x


@lowers("aten._to_copy.default")
def to_copy(s: Scope, x: Value, dtype: torch.dtype | None = None) -> Value:
    return s.cast(x, dtype_element(dtype, x.element))


@lowers("prims.convert_element_type.default")
def convert_element_type(s: Scope, x: Value, dtype: torch.dtype) -> Value:
    return s.cast(x, element_of(dtype))


@lowers("aten.view.dtype")
def bit_cast(s: Scope, x: Value, dtype: torch.dtype) -> Value:
    element = element_of(dtype)
    if element.bits != x.element.bits:
        s.refuse(f"reading {x.element} as {element} changes the shape")
    found: Value = s.b.bit_cast(x, to=element)
    return found


@lowers("aten.copy.default")
def copy(s: Scope, x: Value, source: Value, *_: Any) -> Value:
    return s.expand(s.cast(source, x.element), s.shape)


@lowers("aten.abs.default", "aten.absolute.default")
def absolute(s: Scope, x: Value) -> Value:
    return x if x.element == BOOL or x.element.kind == "uint" else s.b.abs(x)


@lowers("aten.neg.default")
def negate(s: Scope, x: Value) -> Value:
    return s.b.sub(s.zero_like(x), x) if x.element.kind == "uint" else s.b.neg(x)


def _rounding(name: str) -> Callable[..., Value]:
    def lower(s: Scope, x: Value) -> Value:
        return getattr(s.b, name)(x) if x.element.is_float else x

    return lower


for _name in ("floor", "ceil", "round"):
    lowers(f"aten.{_name}.default")(_rounding(_name))


@lowers("aten.round.decimals")
def round_decimals(s: Scope, x: Value, decimals: int = 0) -> Value:
    if not x.element.is_float:
        return x
    factor = number(10.0 ** abs(decimals), x.element)
    if decimals >= 0:
        return s.b.div(s.b.round(s.b.mul(x, factor)), factor)
    return s.b.mul(s.b.round(s.b.div(x, factor)), factor)


@lowers("aten.trunc.default", "aten.fix.default")
def truncate(s: Scope, x: Value) -> Value:
    if not x.element.is_float:
        return x
    found: Value = s.b.where(s.b.less(x, s.zero_like(x)), s.b.ceil(x), s.b.floor(x))
    return found


@lowers("aten.rsqrt.default")
def rsqrt(s: Scope, x: Value) -> Value:
    return s.b.reciprocal(s.b.sqrt(s.cast(x, s.element)))


@lowers("aten.square.default")
def square(s: Scope, x: Value) -> Value:
    return s.b.mul(x, x)


@lowers("aten.exp2.default", "aten.special_exp2.default")
def exp2(s: Scope, x: Value) -> Value:
    return s.b.pow(number(2, s.element), s.cast(x, s.element))


def _logarithm(base: float) -> Callable[..., Value]:
    def lower(s: Scope, x: Value) -> Value:
        found: Value = s.b.div(s.b.log(s.cast(x, s.element)), number(math.log(base), s.element))
        return found

    return lower


lowers("aten.log2.default")(_logarithm(2))
lowers("aten.log10.default")(_logarithm(10))


@lowers("aten.log1p.default", "aten.special_log1p.default")
def log1p(s: Scope, x: Value) -> Value:
    """log(1+x), near zero as 2·atanh(x/(x+2)), which loses no digits."""
    x = s.cast(x, s.element)
    one, two = number(1, x.element), number(2, x.element)
    near = s.b.mul(two, s.b.atanh(s.b.div(x, s.b.add(x, two))))
    return s.b.where(s.b.less(s.b.abs(x), number(0.5, x.element)), near, s.b.log(s.b.add(x, one)))


@lowers("aten.expm1.default", "aten.special_expm1.default")
def expm1(s: Scope, x: Value) -> Value:
    """exp(x)−1, near zero as 2·sinh(x/2)·exp(x/2), which loses no digits."""
    x = s.cast(x, s.element)
    one, half = number(1, x.element), s.b.mul(x, number(0.5, x.element))
    near = s.b.mul(s.b.mul(number(2, x.element), s.b.sinh(half)), s.b.exp(half))
    return s.b.where(s.b.less(s.b.abs(x), one), near, s.b.sub(s.b.exp(x), one))


@lowers("aten.erfc.default", "aten.special_erfc.default")
def erfc(s: Scope, x: Value) -> Value:
    return s.b.sub(number(1, s.element), s.b.erf(s.cast(x, s.element)))


@lowers("aten.atan2.default", "aten.arctan2.default")
def arctan2(s: Scope, y: Value, x: Value) -> Value:
    y, x = s.operand(y), s.operand(x)
    return atan2(s, y, x)


def atan2(s: Scope, y: Value, x: Value) -> Value:
    """The angle of (x, y), from −π to π; the sign of a zero y counts."""
    b, zero = s.b, number(0, x.element)
    pi, half = number(math.pi, x.element), number(math.pi / 2, x.element)
    below = b.logical_or(b.less(y, zero), b.less(b.reciprocal(y), zero))
    base = b.atan(b.div(y, b.where(b.equal(x, zero), number(1, x.element), x)))
    left = b.where(below, b.sub(base, pi), b.add(base, pi))
    signed_half = b.where(below, b.neg(half), half)
    on_axis = b.where(b.equal(y, zero), y, signed_half)
    found: Value = b.where(b.less(x, zero), left, b.where(b.equal(x, zero), on_axis, base))
    return found


@lowers("aten.signbit.default")
def sign_bit(s: Scope, x: Value) -> Value:
    """Whether a number is below zero; −0 is."""
    negative = s.b.less(x, s.zero_like(x))
    if not x.element.is_float:
        return negative if x.element.kind == "int" else s.full(s.shape, False, BOOL)
    return s.b.logical_or(negative, s.b.less(s.b.reciprocal(x), s.zero_like(x)))


@lowers("aten.copysign.Tensor", "aten.copysign.Scalar")
def copy_sign(s: Scope, x: Value, sign: Any) -> Value:
    size = s.b.abs(s.operand(x))
    return s.b.where(sign_bit(s, s.operand(sign)), s.b.neg(size), size)


@lowers("aten.hypot.default")
def hypot(s: Scope, x: Value, y: Value) -> Value:
    """√(x²+y²), scaled by the larger so that squares neither overflow nor vanish."""
    return length(s, s.operand(x), s.operand(y))


def length(s: Scope, x: Value, y: Value) -> Value:
    """√(x²+y²) of values of one element."""
    top = s.b.max(s.b.abs(x), s.b.abs(y))
    scale = s.b.where(s.b.equal(top, s.zero_like(top)), number(1, top.element), top)
    a, b = s.b.div(x, scale), s.b.div(y, scale)
    return s.b.mul(top, s.b.sqrt(s.b.add(s.b.mul(a, a), s.b.mul(b, b))))


@lowers("aten.angle.default")
def angle(s: Scope, x: Value) -> Value:
    """π for numbers below zero, 0 for others."""
    x = s.cast(x, s.element)
    found = s.b.where(s.b.less(x, s.zero_like(x)), number(math.pi, x.element), s.zero_like(x))
    return s.b.where(s.b.is_nan(x), x, found)


# ---- two operands ------------------------------------------------------------------------------------------


@lowers("aten.add.Tensor", "aten.add.Scalar")
def add(s: Scope, x: Any, y: Any, alpha: Any = 1) -> Value:
    if s.element == BOOL:
        return s.b.logical_or(s.operand(x), s.operand(y))
    return s.b.add(s.operand(x), _scaled(s, s.operand(y), alpha))


@lowers("aten.sub.Tensor", "aten.sub.Scalar")
def subtract(s: Scope, x: Any, y: Any, alpha: Any = 1) -> Value:
    return s.b.sub(s.operand(x), _scaled(s, s.operand(y), alpha))


@lowers("aten.rsub.Tensor", "aten.rsub.Scalar")
def reverse_subtract(s: Scope, x: Any, y: Any, alpha: Any = 1) -> Value:
    return s.b.sub(s.operand(y), _scaled(s, s.operand(x), alpha))


def _scaled(s: Scope, x: Value, factor: Any) -> Value:
    if isinstance(factor, (int, float)) and factor == 1:
        return x
    found: Value = s.b.mul(x, s.number(factor, x.element))
    return found


@lowers("aten.mul.Tensor", "aten.mul.Scalar")
def multiply(s: Scope, x: Any, y: Any) -> Value:
    if s.element == BOOL:
        return s.b.logical_and(s.operand(x), s.operand(y))
    return s.b.mul(s.operand(x), s.operand(y))


@lowers("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor")
def divide(s: Scope, x: Any, y: Any) -> Value:
    return s.b.div(s.operand(x), s.operand(y))


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def divide_rounding(s: Scope, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return divide(s, x, y)
    if rounding_mode == "floor":
        return floor_divide(s, x, y)
    quotient: Value = s.b.div(s.operand(x), s.operand(y))
    return truncate(s, quotient)


@lowers("aten.floor_divide.default", "aten.floor_divide.Scalar")
def floor_divide(s: Scope, x: Any, y: Any) -> Value:
    x, y = s.operand(x), s.operand(y)
    if not x.element.is_float:
        rest = x if x.element.kind == "uint" else s.b.sub(x, s.b.mod(x, y))
        return s.b.div(rest, y)
    # like Python: by way of the remainder, so that a quotient just below an integer is not rounded up first
    rest, wraps = _float_remainder(s, x, y)
    quotient = s.b.div(s.b.sub(x, rest), y)
    one = number(1, x.element)
    rounded = s.b.round(s.b.where(wraps, s.b.sub(quotient, one), quotient))
    return s.b.where(s.b.equal(y, s.zero_like(y)), s.b.div(x, y), rounded)


def _float_remainder(s: Scope, x: Value, y: Value) -> tuple[Value, Value]:
    """The remainder with the sign of x, and whether it has another sign than y."""
    zero = s.zero_like(x)
    rest = s.b.mod(x, y, fmod=1)
    opposite = s.b.logical_xor(s.b.less(rest, zero), s.b.less(y, zero))
    return rest, s.b.logical_and(s.b.logical_not(s.b.equal(rest, zero)), opposite)


@lowers("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def remainder(s: Scope, x: Any, y: Any) -> Value:
    x, y = s.operand(x), s.operand(y)
    if not x.element.is_float:
        return s.b.mod(x, y)
    rest, wraps = _float_remainder(s, x, y)
    return s.b.where(wraps, s.b.add(rest, y), rest)


@lowers("aten.fmod.Tensor", "aten.fmod.Scalar")
def fmod(s: Scope, x: Any, y: Any) -> Value:
    return s.b.mod(s.operand(x), s.operand(y), fmod=1)


@lowers("aten.pow.Tensor_Tensor", "aten.pow.Tensor_Scalar", "aten.pow.Scalar")
def power(s: Scope, x: Any, y: Any) -> Value:
    return s.b.pow(s.operand(x), s.operand(y))


@lowers("aten.maximum.default", "aten.max.other", "aten.clamp_min.default", "aten.clamp_min.Tensor")
def maximum(s: Scope, x: Value, y: Any) -> Value:
    if s.element == BOOL:
        return s.b.logical_or(s.operand(x), s.operand(y))
    return s.b.max(s.operand(x), s.operand(y))


@lowers("aten.minimum.default", "aten.min.other", "aten.clamp_max.default", "aten.clamp_max.Tensor")
def minimum(s: Scope, x: Value, y: Any) -> Value:
    if s.element == BOOL:
        return s.b.logical_and(s.operand(x), s.operand(y))
    return s.b.min(s.operand(x), s.operand(y))


@lowers("aten.fmax.default", "aten.fmin.default")
def extreme_of_numbers(s: Scope, x: Value, y: Value) -> Value:
    """Like maximum and minimum, but a NaN loses."""
    x, y = s.operand(x), s.operand(y)
    found = s.b.max(x, y) if "fmax" in str(s.node.target) else s.b.min(x, y)
    if s.element.is_float:
        found = s.b.where(s.b.is_nan(x), y, s.b.where(s.b.is_nan(y), x, found))
    return found


@lowers("aten.clamp.default", "aten.clip.default", "aten.hardtanh.default", "aten.clamp.Tensor", "aten.clip.Tensor")
def clamp(s: Scope, x: Value, min: Any = None, max: Any = None) -> Value:
    if min is None and max is None and "hardtanh" in str(s.node.target):
        min, max = -1.0, 1.0
    x = s.operand(x)
    low = None if min is None else s.operand(min)
    high = None if max is None else s.operand(max)
    if all(bound is None or bound.rank == 0 for bound in (low, high)):
        return s.b.clip(x, low, high)
    if low is not None:
        x = s.b.max(x, low)
    return x if high is None else s.b.min(x, high)


# ---- comparisons, selection --------------------------------------------------------------------------------


def _comparison(name: str, negated: bool = False) -> Callable[..., Value]:
    def lower(s: Scope, x: Any, y: Any) -> Value:
        element = s.common_element(0, 1)
        if element == BOOL and name != "equal":
            element = I32
        found: Value = getattr(s.b, name)(s.operand(x, element), s.operand(y, element))
        return s.b.logical_not(found) if negated else found

    return lower


for _name, _op in (
    ("gt", "greater"),
    ("ge", "greater_or_equal"),
    ("lt", "less"),
    ("le", "less_or_equal"),
    ("eq", "equal"),
):
    lowers(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_comparison(_op))
lowers("aten.ne.Tensor", "aten.ne.Scalar")(_comparison("equal", negated=True))


@lowers("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(s: Scope, condition: Value, x: Any, y: Any) -> Value:
    return s.b.where(s.cast(condition, BOOL), s.operand(x), s.operand(y))


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(s: Scope, x: Value, mask: Value, value: Any) -> Value:
    return s.b.where(s.cast(mask, BOOL), s.operand(value), x)


@lowers("aten.isnan.default")
def is_nan(s: Scope, x: Value) -> Value:
    return s.b.is_nan(x) if x.element.is_float else s.full(s.shape, False, BOOL)


@lowers("aten.isinf.default")
def is_inf(s: Scope, x: Value) -> Value:
    return s.b.is_inf(x) if x.element.is_float else s.full(s.shape, False, BOOL)


# ---- logic and bits ----------------------------------------------------------------------------------------


def _logical(name: str) -> Callable[..., Value]:
    def lower(s: Scope, x: Any, y: Any) -> Value:
        found: Value = getattr(s.b, name)(s.operand(x, BOOL), s.operand(y, BOOL))
        return found

    return lower


def _bitwise(bits: str, logical: str) -> Callable[..., Value]:
    def lower(s: Scope, x: Any, y: Any) -> Value:
        found: Value = getattr(s.b, logical if s.element == BOOL else bits)(s.operand(x), s.operand(y))
        return found

    return lower


for _name in ("and", "or", "xor"):
    lowers(f"aten.logical_{_name}.default")(_logical(f"logical_{_name}"))
    lowers(
        f"aten.bitwise_{_name}.Tensor", f"aten.bitwise_{_name}.Scalar", f"aten.bitwise_{_name}.Scalar_Tensor",
        f"aten.__{_name}__.Tensor", f"aten.__{_name}__.Scalar",
    )(_bitwise(f"bitwise_{_name}", f"logical_{_name}"))  # fmt: skip


@lowers("aten.logical_not.default")
def logical_not(s: Scope, x: Value) -> Value:
    return s.b.logical_not(s.cast(x, BOOL))


@lowers("aten.bitwise_not.default")
def bitwise_not(s: Scope, x: Value) -> Value:
    return s.b.logical_not(x) if x.element == BOOL else s.b.bitwise_not(x)


def _power_of_two(s: Scope, y: Any, element: Element) -> Value:
    return s.b.pow(number(2, element), s.operand(y, element))


@lowers(
    "aten.bitwise_left_shift.Tensor",
    "aten.bitwise_left_shift.Tensor_Scalar",
    "aten.__lshift__.Scalar",
    "aten.__lshift__.Tensor",
)
def left_shift(s: Scope, x: Any, y: Any) -> Value:
    """As a product: ONNX shifts unsigned integers only."""
    return s.b.mul(s.operand(x), _power_of_two(s, y, s.element))


@lowers(
    "aten.bitwise_right_shift.Tensor",
    "aten.bitwise_right_shift.Tensor_Scalar",
    "aten.__rshift__.Scalar",
    "aten.__rshift__.Tensor",
)
def right_shift(s: Scope, x: Any, y: Any) -> Value:
    """As a division rounded down: the shift of torch keeps the sign."""
    return floor_divide(s, s.operand(x), _power_of_two(s, y, s.element))
