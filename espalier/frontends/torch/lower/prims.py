"""Primitives that some of torch's decompositions end in: the same functions as the overloads of ATen."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.frontends.torch.lower import (  # noqa: F401  # imported so that they register what `_SAME` names
    activation,
    complex,
    convolution,
    creation,
    elementwise,
    indexing,
    movement,
)
from espalier.frontends.torch.lower.reduction import reduce
from espalier.frontends.torch.registry import COMPLEX, REAL, lowers, lowers_complex
from espalier.frontends.torch.scope import Pair, Scope
from espalier.ir.dims import Dimension, product
from espalier.ir.graph import Value

_SAME = {
    **{name: f"{name}.default" for name in (
        "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "atan2", "bitwise_not", "ceil", "cos", "cosh", "erf",
        "erfc", "exp", "exp2", "expm1", "floor", "fmax", "fmin", "hypot", "log", "log10", "log1p", "log2", "maximum",
        "minimum", "neg", "reciprocal", "round", "rsqrt", "sign", "signbit", "sin", "sinh", "sqrt", "tan", "tanh",
        "trunc", "conj", "conj_physical", "imag", "real", "full", "full_like", "scalar_tensor", "as_strided", "cat",
    )},
    **{name: f"{name}.Tensor" for name in (
        "add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge", "bitwise_and", "bitwise_or", "bitwise_xor", "fmod",
        "remainder",
    )},
    "pow": "pow.Tensor_Tensor", "where": "where.self", "shift_left": "bitwise_left_shift.Tensor",
    "shift_right_arithmetic": "bitwise_right_shift.Tensor", "rev": "flip.default", "item": "item.default",
    "fill": "fill.Scalar", "empty": "empty.memory_format", "empty_permuted": "empty_permuted.default",
}  # fmt: skip

for _name, _overload in _SAME.items():
    for _table, _register in ((REAL, lowers), (COMPLEX, lowers_complex)):
        if f"aten.{_overload}" in _table:
            _register(f"prims.{_name}.default")(_table[f"aten.{_overload}"])


@lowers("prims.div.default")
def divide(s: Scope, x: Value, y: Value) -> Value:
    """Of integers truncated towards zero."""
    return s.b.div(s.operand(x), s.operand(y))


@lowers_complex("prims.div.default")
def divide_complex(s: Scope, x: Pair, y: Pair) -> Pair:
    return complex.divide(s, x, y)


@lowers("prims.device_put.default")
def device_put(s: Scope, x: Value, *_: object) -> Value:
    return x


@lowers("prims.sum.default")
def sum_(s: Scope, x: Value, axes: Sequence[int] | None, output_dtype: object = None) -> Value:
    return reduce(s, "reduce_sum", s.cast(x, s.element), axes)


@lowers("prims.prod.default")
def product_(s: Scope, x: Value, axes: Sequence[int] | None, output_dtype: object = None) -> Value:
    return reduce(s, "reduce_prod", s.cast(x, s.element), axes)


@lowers("prims.amax.default")
def amax(s: Scope, x: Value, axes: Sequence[int] | None, output_dtype: object = None) -> Value:
    return reduce(s, "reduce_max", x, axes)


@lowers("prims.amin.default")
def amin(s: Scope, x: Value, axes: Sequence[int] | None, output_dtype: object = None) -> Value:
    return reduce(s, "reduce_min", x, axes)


@lowers("prims.collapse_view.default", "prims.collapse.default")
def collapse(s: Scope, x: Value, start: int, end: int) -> Value:
    """Axes start to end (included) as one."""
    shape = s.shape_of(x)
    return s.reshape(x, (*shape[:start], product(shape[start : end + 1]), *shape[end + 1 :]))


@lowers("prims.split_dim.default")
def split_axis(s: Scope, x: Value, axis: int, outer: Dimension) -> Value:
    return s.reshape(x, s.shape)
