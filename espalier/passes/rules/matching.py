"""What rules ask of values: numbers that constants are, factors of products, and what is known of their range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from espalier.ir import TensorType, Value
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


NEAR = 16
"""How many nodes rules look back through from a root: patterns are small, and chains of products may be long."""


def factors(value: Value) -> tuple[list[Value], float]:
    """The factors of a product of products that nobody else uses, and the product of its constant scalars.

    Products behind the first few (`NEAR`) are factors as they are.
    """
    found, scale, todo, split = [], 1.0, [value], 0
    while todo:
        part = todo.pop()
        node = (part.defined_by(Mul) or part.defined_by(Div)) if split < NEAR else None
        if node is None or not (part is value or part.has_one_use):
            found.append(part)
            continue
        left, right = node.inputs
        if (number := _scale(right)) is not None:
            inner, number = [left], 1 / number if node.is_a(Div) else number
        elif node.is_a(Div):
            found.append(part)
            continue
        elif (number := _scale(left)) is not None:
            inner = [right]
        else:
            inner, number = [right, left], 1.0
        split += 1
        scale *= number
        todo += inner
    return found, scale


def _scale(value: Value) -> float | None:
    """The finite number but zero that all elements of a constant are."""
    number = splat(value)
    return float(number) if number is not None and np.isfinite(number) and number != 0 else None


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

    def sources(value: Value) -> list[Value] | None:
        if value.constant is not None:
            return [] if splat(value) == 0 else None
        node = value.producer
        if node is None or not node.operands or value.index:
            return None
        if node.is_a(ConstantOfShape):
            return [] if node.value == 0 else None
        return _moved(value)

    return _holds(value, sources)


def is_finite(value: Value) -> bool:
    """Whether no element can be infinite or NaN, by what makes the value: constants, choices and movements of them."""

    def sources(value: Value) -> list[Value] | None:
        if value.constant is not None:
            return [] if np.all(np.isfinite(value.array.astype(np.float64))) else None
        choice = value.defined_by(Where)
        return _moved(value) if choice is None else [choice.x, choice.y]

    return _holds(value, sources)


def _moved(value: Value) -> list[Value] | None:
    """The values whose elements a movement gives; None if something else makes the value."""
    node = value.producer
    if node is None or not node.op.moves:
        return None
    return [v for v in node.inputs if isinstance(v.type, TensorType) and v.element == value.element] or None


def _holds(value: Value, sources: Callable[[Value], list[Value] | None]) -> bool:
    """Whether something holds of a value: by itself (`sources` is empty), or because it does of all its sources."""
    todo, seen = [value], {value}
    while todo:
        found = sources(todo.pop())
        if found is None or len(seen) > NEAR:
            return False
        todo += [v for v in found if v not in seen]
        seen.update(found)
    return True
