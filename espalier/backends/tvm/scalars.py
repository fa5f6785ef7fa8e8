"""Functions of single numbers as TVM expressions, in f32 written so that loops over them can be vectorised."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from espalier.backends.tvm.numbers import immediate, is_nan, select

Expr = Any


def dtype_of(x: Expr) -> str:
    """The TVM type of an expression."""
    return str(x.ty.dtype)


def like(value: Any, x: Expr) -> Expr:
    """A number in the type of an expression."""
    return immediate(value, dtype_of(x))


def library(name: str, *arguments: Expr) -> Expr:
    """A function of the C library, in the precision of its arguments."""
    dtype = dtype_of(arguments[0])
    return tirx.call_pure_extern(dtype, name + ("f" if dtype == "float32" else ""), *arguments)


def polynomial(x: Expr, *coefficients: float) -> Expr:
    """A polynomial by Horner's rule, highest power first."""
    found = like(coefficients[0], x)
    for coefficient in coefficients[1:]:
        found = found * x + like(coefficient, x)
    return found


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger; NaN if one is."""
    if not dtype_of(a).startswith("float"):
        return tirx.max(a, b)
    if isinstance(b, tirx.FloatImm):
        return select(a < b, b, a)
    return select(tirx.Or(a > b, is_nan(a)), a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller; NaN if one is."""
    if not dtype_of(a).startswith("float"):
        return tirx.min(a, b)
    if isinstance(b, tirx.FloatImm):
        return select(a > b, b, a)
    return select(tirx.Or(a < b, is_nan(a)), a, b)


def _limit(x: Expr, low: float, high: float) -> Expr:
    """x within bounds; NaN stays."""
    x = select(x < like(low, x), like(low, x), x)
    return select(x > like(high, x), like(high, x), x)


ROUNDING = 1.5 * 2.0**23
"""Added to a small number, it leaves the nearest integer in the lowest bits of the sum."""


def exp(bind: Any, x: Expr) -> Expr:
    """eˣ; for f32 after Cephes (S. Moshier, expf.c): 2ⁿ times a polynomial in the remainder."""
    if dtype_of(x) != "float32":
        return library("exp", x)
    base, shifted = _factors(bind, x, -104.0, 89.0)
    # two factors, since 2ⁿ alone may lie beyond the normal range while the result does not
    exponent = bind(shifted - tirx.reinterpret("int32", like(ROUNDING, x)))
    half = bind(tirx.shift_right(exponent, immediate(1, "int32")))
    return base * _power_of_two(half) * _power_of_two(exponent - half)


def _normal_exp(bind: Any, x: Expr) -> Expr:
    """eˣ for what is added to 1: not below 1e-38, and infinite from 88.4 on."""
    if dtype_of(x) != "float32":
        return library("exp", x)
    base, shifted = _factors(bind, x, -87.0, 89.0)
    return base * _power_of_two(shifted)


def _factors(bind: Any, x: Expr, low: float, high: float) -> tuple[Expr, Expr]:
    """Of e to the power of x within bounds: the factor near 1, and bits of which the lowest 9 are the power of 2."""
    x = bind(x)
    bounded = bind(_limit(x, low, high))
    shifted = bind(bounded * like(math.log2(math.e), x) + like(ROUNDING, x))
    whole = bind(shifted - like(ROUNDING, x))
    rest = bind((bounded - whole * like(0.693359375, x)) - whole * like(-2.12194440e-4, x))
    terms = polynomial(
        rest, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
    )
    base = terms * rest * rest + rest + like(1.0, x)
    return base, bind(tirx.reinterpret("int32", shifted))


def _power_of_two(exponent: Expr) -> Expr:
    """2 to an integer's power; what lies above its lowest 9 bits goes nowhere."""
    return tirx.reinterpret("float32", tirx.shift_left(exponent + immediate(127, "int32"), immediate(23, "int32")))


def tanh(bind: Any, x: Expr) -> Expr:
    """tanh x; for f32 1 − 2/(e²ˣ + 1), near 0 a polynomial (Cephes, tanhf.c)."""
    if dtype_of(x) != "float32":
        return library("tanh", x)
    x = bind(x)
    size = bind(tirx.abs(x))
    square = bind(x * x)
    near = polynomial(
        square, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1
    )
    small = near * square * x + x
    large = like(1.0, x) - like(2.0, x) / (_normal_exp(bind, size + size) + like(1.0, x))
    signed = select(x < like(0.0, x), like(0.0, x) - large, large)
    return select(size < like(0.625, x), small, signed)


def sigmoid(bind: Any, x: Expr) -> Expr:
    """1/(1 + e⁻ˣ)."""
    return like(1.0, x) / (like(1.0, x) + _normal_exp(bind, like(0.0, x) - x))


def erf(bind: Any, x: Expr) -> Expr:
    """The error function; for f32 x·P(x²)/Q(x²), fitted at Chebyshev nodes up to 3.8 and above 1 beyond (≤ 5e-7)."""
    if dtype_of(x) != "float32":
        return library("erf", x)
    x = bind(_limit(bind(x), -4.4, 4.4))
    square = bind(x * x)
    above = polynomial(
        square, 2.15105288e-6, 2.86509758e-4, 3.61505927e-3, 5.23106798e-2, 1.86249083e-1, 1.12837915
    )  # fmt: skip
    below = polynomial(square, 3.92137277e-5, 1.13509912e-3, 1.46672349e-2, 1.12491766e-1, 4.98391907e-1, 1.0)
    return _limit(bind(x * above / below), -1.0, 1.0)


def fraction_even(x: Expr) -> Expr:
    """x rounded to the nearest integer, halves to even."""
    return tirx.nearbyint(x)


def integer_power(bind: Any, base: Expr, exponent: Expr) -> Expr:
    """base ** exponent of integers by squaring; negative exponents as if divided, towards zero."""
    found = like(1, base)
    factor = base
    bits = int(dtype_of(exponent).lstrip("uint"))
    used = min(bits - (0 if dtype_of(exponent).startswith("u") else 1), 63)
    for k in range(used):
        bit = tirx.shift_right(exponent, like(k, exponent)) & like(1, exponent)
        found = bind(select(tirx.NE(bit, like(0, exponent)), found * factor, found))
        if k + 1 < used:
            factor = bind(factor * factor)
    if dtype_of(exponent).startswith("u"):
        return found
    odd = tirx.NE(exponent & like(1, exponent), like(0, exponent))
    negative = select(tirx.EQ(base, like(1, base)), like(1, base), like(0, base))
    if not dtype_of(base).startswith("u"):
        minus = select(odd, like(-1, base), like(1, base))
        negative = select(tirx.EQ(base, like(-1, base)), minus, negative)
    return select(exponent < like(0, exponent), negative, found)
