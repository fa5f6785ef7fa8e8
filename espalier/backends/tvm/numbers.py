"""How elements are computed with: which TVM type an expression has, which a buffer has, and the way between them.

Floats of 16 bits and fewer are computed in f32 and rounded to their element wherever the reference rounds; they lie in
buffers as f16, or as raw bits for the formats that the code generator should not touch (bf16, 8, 6 and 4 bits).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tvm import tirx

from espalier.errors import UnsupportedError
from espalier.ir import elements
from espalier.ir.elements import Element

Expr = Any
Bind = Callable[[Any], Any]
"""Computes an expression once, and gives what stands for its value."""


def expression_type(element: Element) -> str:
    """The TVM type of expressions that stand for numbers of an element."""
    element = element.storage
    if element.kind == "bool":
        return "bool"
    if element.kind == "float":
        return "float64" if element.bits == 64 else "float32"
    if element.kind in ("int", "uint", "bipolar"):
        width = max(8, element.dtype.itemsize * 8)
        return f"{'uint' if element.kind == 'uint' else 'int'}{width}"
    raise UnsupportedError(
        "E404", f"the TVM backend does not compute in {element}", hint="Cast in the model, or choose another backend."
    )


def buffer_type(element: Element) -> str:
    """The TVM type of a buffer that holds numbers of an element."""
    element = element.storage
    if element == elements.F16:
        return "float16"
    if element == elements.BF16:
        return "uint16"
    if element.kind == "float" and element.bits <= 8:
        return "uint8"
    return expression_type(element)


def buffer_array(array: np.ndarray[Any, Any], element: Element) -> np.ndarray[Any, Any]:
    """An array of an element's numbers as it lies in buffers: contiguous, raw bits where TVM has no type."""
    wanted = np.dtype(buffer_type(element))
    array = np.ascontiguousarray(array).reshape(array.shape)
    return array if array.dtype == wanted else array.view(wanted)


def from_buffer_array(array: np.ndarray[Any, Any], element: Element) -> np.ndarray[Any, Any]:
    """What `buffer_array` made, back in the element's own numpy type."""
    return array if array.dtype == element.dtype else array.view(element.dtype)


def immediate(value: Any, dtype: str) -> Expr:
    """A number as an expression of a TVM type."""
    if dtype == "bool":
        return tirx.IntImm("bool", int(bool(value)))
    if dtype.startswith("float"):
        value = float(value)
        if math.isnan(value) or math.isinf(value):
            bits = np.array(value, dtype).view(f"uint{dtype[5:]}")
            return tirx.reinterpret(dtype, immediate(int(bits), f"uint{dtype[5:]}"))
        return tirx.FloatImm(dtype, value)
    value = int(value)
    if dtype == "uint64" and value >= 1 << 63:
        high = tirx.IntImm("uint64", value >> 32)
        return tirx.shift_left(high, tirx.IntImm("uint64", 32)) + tirx.IntImm("uint64", value & 0xFFFFFFFF)
    if dtype.startswith("u"):
        value %= 1 << int(dtype[4:])
    return tirx.IntImm(dtype, value)


def cast_type(expression: Expr, dtype: str) -> Expr:
    """A TVM cast, left out where it changes nothing."""
    return expression if str(expression.ty.dtype) == dtype else tirx.Cast(dtype, expression)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Both are computed, one is taken: for expressions that may always be evaluated."""
    return tirx.Select(condition, yes, no)


def is_nan(x: Expr) -> Expr:
    """Whether a float is NaN, read off its bits (simplifiers take x ≠ x for false)."""
    if str(x.ty.dtype) == "float64":
        return (tirx.reinterpret("uint64", x) & immediate((1 << 63) - 1, "uint64")) > immediate(0x7FF << 52, "uint64")
    return (tirx.reinterpret("uint32", x) & immediate(0x7FFFFFFF, "uint32")) > immediate(0x7F800000, "uint32")


def is_number(x: Expr) -> Expr:
    """Whether an f32 is not NaN, in one comparison (generated code compares in order)."""
    return tirx.LE(x, immediate(math.inf, "float32"))


def is_nonzero(x: Expr) -> Expr:
    """Whether a float is not 0, which NaN is not, read off its bits (generated code compares in order)."""
    if str(x.ty.dtype) == "float64":
        return (tirx.reinterpret("uint64", x) & immediate((1 << 63) - 1, "uint64")) > immediate(0, "uint64")
    return (tirx.reinterpret("uint32", x) & immediate(0x7FFFFFFF, "uint32")) > immediate(0, "uint32")


def is_inf(x: Expr) -> Expr:
    """Whether a float is infinite."""
    if str(x.ty.dtype) == "float64":
        return tirx.EQ(
            tirx.reinterpret("uint64", x) & immediate((1 << 63) - 1, "uint64"), immediate(0x7FF << 52, "uint64")
        )
    return tirx.EQ(tirx.reinterpret("uint32", x) & immediate(0x7FFFFFFF, "uint32"), immediate(0x7F800000, "uint32"))


class SmallFloat(NamedTuple):
    """A float format of at most 8 bits: how its bits are read, and what lies beyond its range."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float
    overflow: int
    """The bits (without sign) of what is too large: NaN, infinity, or the largest number."""
    nan: int
    """The bits of NaN; −1 if there is none."""
    signed_zero: bool
    infinity: int
    """The bits of infinity; −1 if there is none."""


@cache
def small_float(element: Element) -> SmallFloat:
    """The format of an 8-, 6- or 4-bit float with a sign."""
    dtype = element.dtype
    info = ml_dtypes.finfo(dtype)
    magnitude = 1 << (element.bits - 1)

    def bits_of(value: float) -> int:
        return int(np.array([value], np.float32).astype(dtype).view(np.uint8)[0])

    with np.errstate(all="ignore"):
        nan = np.array([np.nan], np.float32).astype(dtype)
        infinite = np.array([np.inf], np.float32).astype(dtype)
        negative_zero = bits_of(-0.0) == magnitude
        has_infinity = bool(np.isinf(infinite.astype(np.float32))[0])
        overflow = bits_of(float(info.max) * 4)
    has_nan = bool(np.isnan(nan.astype(np.float32))[0])
    exponent_bits = element.bits - 1 - info.nmant
    one = bits_of(1.0)
    return SmallFloat(
        exponent_bits, info.nmant, one >> info.nmant, float(info.max),
        overflow, int(nan.view(np.uint8)[0]) if has_nan else -1, negative_zero,
        int(infinite.view(np.uint8)[0]) if has_infinity else -1,
    )  # fmt: skip


def _bits(x: Expr) -> Expr:
    return tirx.reinterpret("uint32", x)


def _u32(value: int) -> Expr:
    return immediate(value, "uint32")


def _shift_left(x: Expr, by: int) -> Expr:
    return tirx.shift_left(x, _u32(by))


def _shift_right(x: Expr, by: int) -> Expr:
    return tirx.shift_right(x, _u32(by))


def _round_mantissa(bits: Expr, kept: int) -> Expr:
    """The bits of an f32 rounded to even at `kept` mantissa bits (infinity if that overflows)."""
    drop = 23 - kept
    odd = _shift_right(bits, drop) & _u32(1)
    return (bits + (_u32((1 << (drop - 1)) - 1) + odd)) & _u32(0xFFFFFFFF ^ ((1 << drop) - 1))


def encode(element: Element, x: Expr, bind: Bind) -> Expr:
    """An f32 as the bits of a narrower float, rounded to even; what is too large becomes what the format has for it."""
    if element == elements.BF16:
        x = bind(x)
        rounded = _shift_right(_round_mantissa(_bits(x), 7), 16)
        sign_nan = (_shift_right(_bits(x), 16) & _u32(0x8000)) | _u32(0x7FC0)
        return tirx.Cast("uint16", select(is_nan(x), sign_nan, rounded))
    if element == elements.F8E8M0:  # a power of two, or NaN
        x = bind(x)
        return tirx.Cast("uint8", select(is_nan(x), _u32(0xFF), _shift_right(_bits(x), 23) & _u32(0xFF)))
    form = small_float(element)
    x = bind(x)
    sign = bind(_shift_right(_bits(x), 31))
    magnitude = bind(_bits(x) & _u32(0x7FFFFFFF))
    smallest_exponent = 1 - form.bias
    step = 2.0 ** (smallest_exponent - form.mantissa_bits)
    # subnormal: adding a power of two lets the FPU round at the right place
    magic = np.float32(step * (1 << 23))
    small = _bits(tirx.reinterpret("float32", magnitude) + immediate(magic, "float32")) - _u32(
        int(magic.view(np.uint32))
    )
    normal = _shift_right(_round_mantissa(magnitude, form.mantissa_bits), 23 - form.mantissa_bits) - _u32(
        ((127 - form.bias) << form.mantissa_bits) % (1 << 32)
    )
    limit = int(np.float32(2.0**smallest_exponent).view(np.uint32))
    code = bind(select(magnitude < _u32(limit), small, normal))
    top = _encode_exact(form, form.largest)
    code = bind(select(code > _u32(top), _u32(form.overflow), code))
    code = bind(select(magnitude >= _u32(0x7F800000), _u32(form.overflow), code))
    signed = code | _shift_left(sign, element.bits - 1)
    if not form.signed_zero:
        signed = select(tirx.EQ(code, _u32(0)), _u32(0), signed)
    if form.overflow == form.nan and form.nan == 1 << (element.bits - 1):
        signed = select(tirx.EQ(code, _u32(form.nan)), _u32(form.nan), signed)
    nan = form.nan if form.nan >= 0 else 1 << (element.bits - 1)
    keep_sign = form.nan >= 0 and form.nan != 1 << (element.bits - 1)
    nan_code = _u32(nan) | _shift_left(sign, element.bits - 1) if keep_sign else _u32(nan)
    return tirx.Cast("uint8", select(is_nan(x), nan_code, signed))


def _encode_exact(form: SmallFloat, value: float) -> int:
    mantissa, exponent = math.frexp(value)
    return ((exponent - 1 + form.bias) << form.mantissa_bits) + int((mantissa * 2 - 1) * (1 << form.mantissa_bits))


def decode(element: Element, raw: Expr, bind: Bind) -> Expr:
    """The bits of a narrow float as an f32, exactly."""
    wide = bind(tirx.Cast("uint32", raw))
    if element == elements.BF16:
        return tirx.reinterpret("float32", _shift_left(wide, 16))
    if element == elements.F8E8M0:
        power = select(tirx.EQ(wide, _u32(0)), _u32(0x400000), _shift_left(wide, 23))
        return tirx.reinterpret("float32", select(tirx.EQ(wide, _u32(0xFF)), _u32(0x7FC00000), power))
    form = small_float(element)
    width = element.bits - 1
    magnitude = bind(wide & _u32((1 << width) - 1))
    sign = _shift_left(_shift_right(wide, width) & _u32(1), 31)
    normal = _shift_left(magnitude + _u32((127 - form.bias) << form.mantissa_bits), 23 - form.mantissa_bits)
    step = immediate(2.0 ** (1 - form.bias - form.mantissa_bits), "float32")
    small = _bits(tirx.Cast("float32", tirx.Cast("int32", magnitude)) * step)
    found = select(magnitude < _u32(1 << form.mantissa_bits), small, normal)
    if form.infinity >= 0:
        found = select(tirx.EQ(magnitude, _u32(form.infinity)), _u32(0x7F800000), found)
        found = select(magnitude > _u32(form.infinity), _u32(0x7FC00000), found)
    value = found | sign
    if form.nan >= 0 and form.infinity < 0:
        compared = wide if form.nan == 1 << width else magnitude
        value = select(tirx.EQ(compared, _u32(form.nan)), _u32(0x7FC00000), value)
    return tirx.reinterpret("float32", value)


def widened(raw: Expr) -> Expr:
    """A vector of bf16, by its bits, as floats."""
    lanes = raw.ty.dtype.lanes
    wide = tirx.Cast(f"uint32x{lanes}", raw)
    return tirx.reinterpret(f"float32x{lanes}", tirx.shift_left(wide, tirx.Broadcast(_u32(16), lanes)))


def load(element: Element, raw: Expr, bind: Bind) -> Expr:
    """A buffer's entry as an expression."""
    element = element.storage
    if element == elements.F16:
        return tirx.Cast("float32", raw)
    if buffer_type(element) != expression_type(element):
        return decode(element, raw, bind)
    return wrap(raw, element) if element.is_integer and element.bits in (2, 4) else raw


def store(element: Element, x: Expr, bind: Bind) -> Expr:
    """An expression as a buffer's entry; numbers are already rounded to the element."""
    element = element.storage
    if element == elements.F16:
        return tirx.Cast("float16", x)
    if buffer_type(element) != expression_type(element):
        return encode(element, x, bind)
    if element.is_integer and element.bits in (2, 4):  # ml_dtypes leaves the other bits of the byte 0
        return x & immediate((1 << element.bits) - 1, expression_type(element))
    return x


def rounded(element: Element, x: Expr, bind: Bind) -> Expr:
    """An f32 rounded to a narrower float, still as f32; other expressions as they are."""
    element = element.storage
    if element == elements.F16:
        return tirx.Cast("float32", tirx.Cast("float16", x))
    if buffer_type(element) != expression_type(element):
        return decode(element, encode(element, x, bind), bind)
    return x


def _round_to_odd(x: Expr, bind: Bind) -> Expr:
    """An f64 as an f32 whose later rounding to fewer bits gives what one rounding of the f64 would."""
    x = bind(x)
    near = bind(tirx.Cast("float32", x))
    back = bind(tirx.Cast("float64", near))
    bits = _bits(near)
    too_far = tirx.abs(back) > tirx.abs(x)
    down = select(too_far, bits - _u32(1), bits)
    inexact = tirx.And(tirx.NE(back, x), tirx.Not(is_nan(x)))
    return tirx.reinterpret("float32", select(inexact, down | _u32(1), bits))


def convert(x: Expr, source: Element, target: Element, bind: Bind) -> Expr:
    """A number in another element: floats truncated to integers, rounded to even to narrower floats, ≠ 0 to bool."""
    source, target = source.storage, target.storage
    if source == target:
        return x
    here, there = expression_type(source), expression_type(target)
    if target.kind == "bool":
        return is_nonzero(x) if here.startswith("float") else tirx.NE(x, immediate(0, here))
    if source.kind == "bool":
        x, here = tirx.Cast("int32", x), "int32"
    if target.is_float:
        if there == "float64" or here == "float32":
            return rounded(target, cast_type(x, there), bind)
        if target == elements.F32:
            return tirx.Cast("float32", x)
        wide = x if here == "float64" else tirx.Cast("float64", x)
        return rounded(target, _round_to_odd(wide, bind), bind)
    if source.is_float:
        return _truncate(bind(x), target, there)
    return wrap(cast_type(x, there), target)


def _truncate(x: Expr, target: Element, there: str) -> Expr:
    """A float as an integer, towards zero; modulo the width where it fits 64 bits, the smallest integer where not."""
    here = str(x.ty.dtype)
    if there == "uint64":
        half = immediate(2.0**63, here)
        high = tirx.Cast("uint64", tirx.Cast("int64", x - half)) + immediate(1 << 63, "uint64")
        return select(x >= half, high, tirx.Cast("uint64", tirx.Cast("int64", _fit(x, here))))
    wide = "int32" if there == "int32" else "int64"
    limit = 2.0**31 if wide == "int32" else 2.0**63
    fits = tirx.And(x < immediate(limit, here), x >= immediate(-limit, here))
    whole = tirx.Cast(wide, select(fits, x, immediate(0, here)))
    whole = select(fits, whole, tirx.min_value(wide))
    return wrap(cast_type(whole, there), target)


def _fit(x: Expr, here: str) -> Expr:
    fits = tirx.And(x < immediate(2.0**63, here), x >= immediate(-(2.0**63), here))
    return select(fits, x, immediate(0, here))


def wrap(x: Expr, element: Element) -> Expr:
    """An integer modulo the width of its element, where that is narrower than the TVM type."""
    element = element.storage
    if not element.is_integer:
        return x
    dtype = expression_type(element)
    width = int(dtype.lstrip("uint"))
    if element.bits == width:
        return x
    spare = immediate(width - element.bits, dtype)
    return tirx.shift_right(tirx.shift_left(x, spare), spare)
