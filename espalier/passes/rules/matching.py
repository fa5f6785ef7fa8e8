"""What rules ask of values: numbers that constants are, factors of products, and what is known of their range."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from espalier.ir import Value
from espalier.ir.elements import Element
from espalier.ir.ops import (
    Add,
    ConstantOfShape,
    Div,
    Mul,
    Where,
)


def splat(value: Value | None) -> Any:
    """The one number that all elements of a constant are; None for anything else."""
    if value is None or value.constant is None or value.constant.size == 0 or value.constant.element.kind == "string":
        return None
    array = value.array
    first = array.reshape(-1)[0]
    return first if array.size == 1 or np.all(array == first) else None


def near(a: Any, b: float, element: Element) -> bool:
    """Whether a number is a constant up to two last places of the float element that it is computed with."""
    if a is None or not element.is_float:
        return False
    return math.isclose(float(a), b, rel_tol=2 * float(ml_dtypes.finfo(element.dtype).eps))


def numbers(value: Value | None) -> list[int] | None:
    """The integers that a value is known to hold, in a list; None if they aren't known."""
    if value is None or value.known is None or value.known.dtype == object:
        return None
    return [int(number) for number in value.known.reshape(-1).tolist()]


def factors(value: Value, *, root: bool = True) -> tuple[list[Value], float]:
    """The factors of a product of products that nobody else uses, and the product of its constant scalars."""
    node = value.defined_by(Mul) or value.defined_by(Div)
    if node is None or not (root or value.has_one_use):
        return [value], 1.0
    left, right = node.inputs
    found, scale = [], 1.0
    for operand, inverse in ((left, False), (right, node.is_a(Div))):
        number = splat(operand)
        if number is not None and np.isfinite(number) and number != 0:
            scale *= 1.0 / float(number) if inverse else float(number)
        elif inverse:
            return [value], 1.0
        else:
            inner, inner_scale = factors(operand, root=False)
            found += inner
            scale *= inner_scale
    return found, scale


def scaled_input(value: Value) -> tuple[Value, float]:
    """(x, c), where the value is c · x; c is 1 if no number multiplies x."""
    parts, scale = factors(value)
    return (parts[0], scale) if len(parts) == 1 and parts[0].shape == value.shape else (value, 1.0)


def plus_one(value: Value) -> Value | None:
    """t, if the value is t + 1."""
    add = value.defined_by(Add)
    if add is None:
        return None
    a, b = add.inputs
    return a if splat(b) == 1 else b if splat(a) == 1 else None


def is_zero(value: Value) -> bool:
    """Whether all elements are zero, by what makes the value: a constant, or a filling with or a movement of zeros."""
    if value.constant is not None:
        return splat(value) == 0
    node = value.producer
    if node is None or not node.operands or value.index:
        return False
    if node.is_a(ConstantOfShape):
        return bool(node.value == 0)
    return bool(node.op.moves) and all(is_zero(v) for v in node.inputs if v.element == value.element)


def is_finite(value: Value) -> bool:
    """Whether no element can be infinite or NaN, by what makes the value: constants, choices and movements of them."""
    if value.constant is not None:
        return bool(np.all(np.isfinite(value.array.astype(np.float64))))
    node = value.producer
    if node is None:
        return False
    if node.is_a(Where):
        return is_finite(node.x) and is_finite(node.y)
    return bool(node.op.moves) and all(is_finite(v) for v in node.inputs if v.element == value.element)
