"""Primitives that compute each entry on its own: arithmetic, comparison, logic, conversions."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import scalars
from espalier.backends.tvm.broadcasting import broadcast_index, broadcast_shapes
from espalier.backends.tvm.numbers import (
    convert,
    expression_type,
    immediate,
    is_nan,
    rounded,
    select,
    wrap,
)
from espalier.backends.tvm.tensor import TRANSCENDENTAL, Access, At, Constant, Expr, Index, Map, Tensor, Untraceable
from espalier.errors import UnsupportedError
from espalier.ir import dims, elements
from espalier.ir.dims import Dim, Dimension, Shape
from espalier.ir.elements import Element
from espalier.ir.xp import numpy as numpy_xp

PRIMITIVES: dict[str, Callable[..., Any]] = {}
"""The names of `xp` that tensors know."""


def primitive(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a primitive; without a tensor, or an array and an unknown extent, among its arguments it is numpy's."""
    name = function.__name__

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        everything = (*arguments, *keywords.values())
        if any(map(_traced, everything)):
            return function(*arguments, **keywords)
        if any(map(_is_unknown_shape, everything)) and any(map(_is_content, arguments)):
            return function(*(as_tensor(a) if _is_content(a) else a for a in arguments), **keywords)
        return getattr(numpy_xp, name)(*arguments, **keywords)

    PRIMITIVES[name] = call
    return call


def _traced(argument: Any) -> bool:
    return isinstance(argument, Tensor) or (isinstance(argument, list | tuple) and any(map(_traced, argument)))


def _is_unknown_shape(argument: Any) -> bool:
    return isinstance(argument, list | tuple) and any(isinstance(entry, Dim) for entry in argument)


def _is_content(argument: Any) -> bool:
    return isinstance(argument, np.ndarray) and argument.dtype != object


def as_tensor(value: Any, element: Element | None = None) -> Tensor:
    """A tensor from a tensor, an array, or a number (of the element given)."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype == object:
        return from_dimensions(array)
    if element is not None and not isinstance(value, np.ndarray | np.generic):
        array = array.astype(element.dtype)
    known = _LITERALS.get(id(array))
    if known is None or known.array is not array:
        known = Constant(array, element or elements.from_dtype(array.dtype))
        _LITERALS[id(array)] = known
    return known


_LITERALS: weakref.WeakValueDictionary[int, Constant] = weakref.WeakValueDictionary()
"""One tensor for each array, so that a shared weight stays one."""


def from_dimensions(array: np.ndarray[Any, Any]) -> Tensor:
    """An integer tensor of dimensions."""
    entries: list[Dimension] = [entry if isinstance(entry, Dim) else int(entry) for entry in array.reshape(-1).tolist()]
    shape = array.shape

    def body(at: At, index: Index) -> Expr:
        found = at.dim(entries[-1])
        position = flat_index(at, index, shape)
        for k in reversed(range(len(entries) - 1)):
            found = select(tirx.EQ(position, immediate(k, "int64")), at.dim(entries[k]), found)
        return found

    return Map(shape, elements.I64, (), (), body)


def flat_index(at: At, index: Index, shape: Sequence[Dimension]) -> Expr:
    """The row-major position of an index."""
    position: Expr = immediate(0, "int64")
    for entry, extent in zip(index, shape, strict=True):
        position = (
            entry if isinstance(position, tirx.IntImm) and int(position) == 0 else position * at.dim(extent) + entry
        )
    return position


def elementwise(element: Element, function: Callable[..., Expr], *operands: Any, cost: int = 1) -> Map:
    """`function(at, *entries)` on tensors and arrays that broadcast; its result is rounded to the element."""
    tensors = [as_tensor(operand) for operand in operands]
    shape = broadcast_shapes(*(tensor.shape for tensor in tensors))
    access: list[Access] = [
        "same" if tensor.shape == shape or tensor.size == shape_size(shape) else "many" for tensor in tensors
    ]

    def body(at: At, index: Index) -> Expr:
        entries = [at(k, broadcast_index(at, index, tensor.shape, shape)) for k, tensor in enumerate(tensors)]
        return rounded(element, wrap(function(at, *entries), element), at.bind)

    found = Map(shape, element, tensors, access, body, cost)
    found.function = function
    return found


def shape_size(shape: Shape) -> Dimension:
    return dims.product(shape)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float) and not isinstance(value, np.generic)


def promoted(*operands: Any) -> Element:
    """The element that operands meet at, as numpy has it: Python's numbers take that of the arrays."""
    strong = [operand for operand in operands if not _is_scalar(operand)]
    found = [operand.element if isinstance(operand, Tensor) else _element(operand) for operand in strong]
    if all(element == found[0] for element in found):
        element = found[0]
    else:
        element = elements.from_dtype(np.result_type(*(each.dtype for each in found)))
    weak = [operand for operand in operands if _is_scalar(operand)]
    if any(isinstance(operand, float) for operand in weak) and not element.is_float and not element.is_complex:
        return elements.F64
    if element.kind == "bool" and any(not isinstance(operand, bool) for operand in weak):
        return elements.I64
    return element


def _element(value: Any) -> Element:
    array = np.asarray(value)
    return elements.I64 if array.dtype == object else elements.from_dtype(array.dtype)


def to_element(value: Any, element: Element) -> Any:
    """An operand in an element: tensors converted lazily, the rest at once."""
    if isinstance(value, Tensor):
        return astype(value, element)
    array = np.asarray(value)
    return astype(from_dimensions(array), element) if array.dtype == object else numpy_xp.astype(array, element)


def _binary(
    a: Any, b: Any, function: Callable[[At, Expr, Expr], Expr], result: Element | None = None, cost: int = 1
) -> Tensor:
    element = promoted(a, b)
    if element.is_complex:
        raise UnsupportedError("E404", "the TVM backend does not compute in complex numbers here")
    return elementwise(result or element, function, to_element(a, element), to_element(b, element), cost=cost)


def _arithmetic(name: str, function: Callable[[Expr, Expr], Expr]) -> None:
    def operation(a: Any, b: Any) -> Any:
        if any(getattr(x, "is_pair", False) for x in (a, b)):
            from espalier.backends.tvm import fourier

            return fourier.binary(name, a, b)
        if promoted(a, b).kind == "bool":
            if name == "multiply":
                return _binary(a, b, lambda at, x, y: tirx.And(x, y))
            if name == "add":
                return _binary(a, b, lambda at, x, y: tirx.Or(x, y))
        found = _binary(a, b, lambda at, x, y: function(x, y))
        scales = name == "multiply" and isinstance(a, Tensor) and isinstance(b, float)
        if scales and a.narrow is not None and found.element == elements.F32:
            found.scaled = a.narrow, float(np.float32(b))
        return found

    operation.__name__ = name
    PRIMITIVES[name] = operation
    globals()[name] = operation


def _opaque(value: Expr) -> Expr:
    """A constant 0 that TVM does not compute with: it would make x · 0 zero for all x, and refuse x / 0."""
    if not isinstance(value, tirx.FloatImm) or value.value:
        return value
    dtype = scalars.dtype_of(value)
    bits = dtype.removeprefix("float")
    negative = tirx.reinterpret(dtype, immediate(-(2 ** (int(bits) - 1)), f"int{bits}"))  # TVM has none of 0 bits only
    return negative if math.copysign(1, value.value) < 0 else negative * immediate(-1, dtype)


def _unless(neutral: float, value: Expr) -> Expr:
    """`_opaque`, except of a zero that changes no operand: TVM would also drop the other one, which turns −0 into 0."""
    alike = isinstance(value, tirx.FloatImm) and math.copysign(1, value.value) == math.copysign(1, neutral)
    return value if alike else _opaque(value)


_arithmetic("add", lambda a, b: _unless(-0.0, a) + _unless(-0.0, b))
_arithmetic("subtract", lambda a, b: _opaque(a) - _unless(0.0, b))
_arithmetic("multiply", lambda a, b: _opaque(a) * _opaque(b))
add: Any
subtract: Any
multiply: Any


def _nonzero(b: Expr) -> Expr:
    """A divisor that does not fault: 1 instead of 0."""
    return select(tirx.EQ(b, scalars.like(0, b)), scalars.like(1, b), b)


@primitive
def divide(a: Any, b: Any) -> Any:
    """a / b; of integers truncated towards zero."""
    if any(getattr(x, "is_pair", False) for x in (a, b)):
        from espalier.backends.tvm import fourier

        return fourier.binary("divide", a, b)
    if promoted(a, b).is_integer:
        return _binary(a, b, lambda at, x, y: tirx.truncdiv(x, _nonzero(y)), cost=4)
    return _binary(a, b, lambda at, x, y: tirx.div(_opaque(x), _opaque(y)), cost=2)


def true_divide(a: Any, b: Any) -> Any:
    """a / b as Python means it: integers give f64."""
    element = promoted(a, b)
    if element.is_integer or element.kind == "bool":
        return divide(to_element(a, elements.F64), to_element(b, elements.F64))
    return divide(a, b)


def floor_divide(a: Any, b: Any) -> Any:
    """⌊a/b⌋."""
    if promoted(a, b).is_integer:
        return _binary(a, b, lambda at, x, y: tirx.floordiv(x, _nonzero(y)), cost=4)
    return _binary(a, b, lambda at, x, y: tirx.floor(tirx.div(x, y)), cost=3)


def remainder(a: Any, b: Any) -> Any:
    """a − b·⌊a/b⌋: the sign is b's."""
    if promoted(a, b).is_integer:
        return _binary(a, b, lambda at, x, y: tirx.floormod(x, _nonzero(y)), cost=4)

    def of_floats(at: At, x: Expr, y: Expr) -> Expr:
        y = at.bind(y)
        rest = at.bind(scalars.library("fmod", x, y))
        zero = scalars.like(0.0, rest)
        return select(tirx.And(tirx.NE(rest, zero), tirx.NE(*_comparable(rest < zero, y < zero))), rest + y, rest)

    return _binary(a, b, of_floats, cost=TRANSCENDENTAL)


@primitive
def fmod(a: Any, b: Any) -> Any:
    """The remainder with a's sign."""
    if promoted(a, b).is_integer:
        return _binary(a, b, lambda at, x, y: tirx.truncmod(x, _nonzero(y)), cost=4)
    return _binary(a, b, lambda at, x, y: scalars.library("fmod", x, y), cost=TRANSCENDENTAL)


@primitive
def power(base: Any, exponent: Any) -> Any:
    """base ** exponent; negative powers of integers truncate towards zero."""
    element = promoted(base, exponent)
    if element.is_integer:
        return _binary(base, exponent, lambda at, x, y: scalars.integer_power(at.bind, x, y), cost=TRANSCENDENTAL)
    number = exponent if not isinstance(exponent, Tensor) and np.size(exponent) == 1 else None
    if number is not None and float(np.asarray(number, np.float64).reshape(())) == 2.0:
        base, shape = to_element(base, element), np.shape(number)
        return elementwise(
            element, lambda at, x: at.bind(x) * at.bind(x), broadcast_to(base, broadcast_shapes(base.shape, shape))
        )
    return _binary(base, exponent, lambda at, x, y: scalars.library("pow", x, y), cost=2 * TRANSCENDENTAL)


@primitive
def broadcast_to(array: Any, shape: Sequence[Dimension]) -> Tensor:
    """Repeat axes of extent 1."""
    x, target = as_tensor(array), tuple(shape)
    if x.shape == target:
        return x
    result = broadcast_shapes(x.shape, target)
    access: Access = "same" if x.size == dims.product(result) else "many"
    return Map(result, x.element, [x], [access], lambda at, index: at(0, broadcast_index(at, index, x.shape, result)))


def _comparison(name: str, function: Callable[[Expr, Expr], Expr]) -> None:
    def operation(a: Any, b: Any) -> Any:
        return _binary(a, b, lambda at, x, y: function(*_comparable(x, y)), elements.BOOL)

    operation.__name__ = name
    globals()[name] = primitive(operation) if hasattr(numpy_xp, name) else operation
    PRIMITIVES[name] = globals()[name]


def _comparable(x: Expr, y: Expr) -> tuple[Expr, Expr]:
    if scalars.dtype_of(x) == "bool":
        return tirx.Cast("int8", x), tirx.Cast("int8", y)
    return x, y


def _differ(x: Expr, y: Expr) -> Expr:
    """x ≠ y, which holds where one is NaN: generated code would compare in order."""
    found = tirx.NE(x, y)
    if scalars.dtype_of(x).startswith("float"):
        return tirx.Or(found, tirx.Or(is_nan(x), is_nan(y)))
    return found


for _name, _function in {
    "less": lambda x, y: x < y, "less_equal": lambda x, y: x <= y, "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y, "equal": tirx.EQ, "not_equal": _differ,
}.items():  # fmt: skip
    _comparison(_name, _function)


def _extreme(name: str, function: Callable[[Expr, Expr], Expr]) -> None:
    def operation(a: Any, b: Any) -> Any:
        if promoted(a, b).kind == "bool":
            return _binary(a, b, lambda at, x, y: tirx.Or(x, y) if name == "maximum" else tirx.And(x, y))
        return _binary(a, b, lambda at, x, y: function(at.bind(x), at.bind(y)))

    operation.__name__ = name
    primitive(operation)


_extreme("maximum", scalars.maximum)
_extreme("minimum", scalars.minimum)


@primitive
def clip(array: Any, low: Any, high: Any) -> Any:
    """Limited to [low, high]."""
    found = array
    if low is not None:
        found = PRIMITIVES["maximum"](found, low)
    return found if high is None else PRIMITIVES["minimum"](found, high)


def _bitwise(name: str, integer: Callable[[Expr, Expr], Expr], boolean: Callable[[Expr, Expr], Expr] | None) -> None:
    def operation(a: Any, b: Any) -> Any:
        if promoted(a, b).kind == "bool":
            if boolean is None:
                raise Untraceable(f"{name} is not defined on bool")
            return _binary(a, b, lambda at, x, y: boolean(x, y))
        return _binary(a, b, lambda at, x, y: integer(x, y))

    operation.__name__ = name
    globals()[name] = primitive(operation)


def _shift(function: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    def shifted(x: Expr, y: Expr) -> Expr:
        """As numpy: shifts by the width or more leave nothing but the sign."""
        width = int(scalars.dtype_of(x).lstrip("uint"))
        inside = tirx.And(y >= scalars.like(0, y), y < scalars.like(width, y))
        moved = function(x, select(inside, y, scalars.like(0, y)))
        gone = scalars.like(0, x)
        if function is tirx.shift_right and not scalars.dtype_of(x).startswith("u"):
            gone = select(x < gone, scalars.like(-1, x), gone)
        return select(inside, moved, gone)

    return shifted


_bitwise("bitwise_and", lambda x, y: x & y, tirx.And)
_bitwise("bitwise_or", lambda x, y: x | y, tirx.Or)
_bitwise("bitwise_xor", lambda x, y: x ^ y, lambda x, y: tirx.NE(*_comparable(x, y)))
_bitwise("bitwise_left_shift", _shift(tirx.shift_left), None)
_bitwise("bitwise_right_shift", _shift(tirx.shift_right), None)


def _logical(name: str, function: Callable[[Expr, Expr], Expr]) -> None:
    def operation(a: Any, b: Any) -> Any:
        return elementwise(
            elements.BOOL, lambda at, x, y: function(x, y), to_element(a, elements.BOOL), to_element(b, elements.BOOL)
        )

    operation.__name__ = name
    primitive(operation)


_logical("logical_and", tirx.And)
_logical("logical_or", tirx.Or)
_logical("logical_xor", lambda x, y: tirx.NE(*_comparable(x, y)))


@primitive
def logical_not(array: Any) -> Any:
    return elementwise(elements.BOOL, lambda at, x: tirx.Not(x), to_element(array, elements.BOOL))


@primitive
def bitwise_invert(array: Any) -> Any:
    if array.element.kind == "bool":
        return logical_not(array)
    return elementwise(array.element, lambda at, x: tirx.bitwise_not(x), array)


def negative(array: Any) -> Any:
    """−x."""
    if array.element.is_float:  # not 0 − x, which loses the sign of zero
        return elementwise(array.element, lambda at, x: x * scalars.like(-1.0, x), array)
    return elementwise(array.element, lambda at, x: scalars.like(0, x) - x, array)


@primitive
def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds, else `no`."""
    element = promoted(yes, no)
    chosen = to_element(condition, elements.BOOL)
    return elementwise(
        element, lambda at, c, x, y: select(c, x, y), chosen, to_element(yes, element), to_element(no, element)
    )


@primitive
def astype(array: Any, kind: Element) -> Any:
    """Convert; see `numbers.convert`."""
    if getattr(array, "is_pair", False):
        from espalier.backends.tvm import fourier

        return fourier.astype(array, kind)
    kind = kind.storage
    if array.element == kind:
        return array
    expression_type(kind)
    source = array.element
    found = Map(
        array.shape, kind, [array], ["same"], lambda at, index: convert(at.bind(at(0, index)), source, kind, at.bind),
        cost=1 if min(source.bits, kind.bits) >= 16 or source.is_integer else 4,
    )  # fmt: skip
    if (source, kind) == (elements.BF16, elements.F32):
        found.narrow = array
    return found


@primitive
def wide(array: Any) -> Any:
    """In the type that sums of products are accumulated in."""
    kind = array.element
    if kind.is_float and kind.bits < 32:
        return astype(array, elements.F32)
    return astype(array, elements.I64) if kind.is_integer or kind.kind == "bool" else array


@primitive
def element(array: Any) -> Element:
    found: Element = array.element
    return found


@primitive
def is_floating(array: Any) -> bool:
    return bool(array.element.is_float)


@primitive
def to_numpy(array: Any) -> Any:
    if isinstance(array, Constant):
        return array.array
    raise Untraceable("numbers are needed that are not known before run time", array)


@primitive
def asarray(array: Any) -> Any:
    return array


@primitive
def zeros_like(array: Any) -> Any:
    return filled(array.shape, 0, array.element)


@primitive
def ones_like(array: Any) -> Any:
    return filled(array.shape, 1, array.element)


def filled(shape: Sequence[Dimension], value: Any, kind: Element) -> Tensor:
    """A tensor of one number."""
    number = (
        float(np.asarray(value).astype(kind.dtype).astype(np.float64))
        if kind.is_float
        else np.asarray(value).astype(kind.dtype).item()
    )
    return Map(tuple(shape), kind, (), (), lambda at, index: immediate(number, expression_type(kind)))
