"""Symbolic dimensions agree with the numbers that they stand for."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.ir import dims
from espalier.ir.dims import Dim, Dimension

NAMES = ("n", "m", "batch size")
OPERATIONS: list[Any] = [
    operator.add, operator.sub, operator.mul, dims.floor_divide, dims.modulo, dims.minimum, dims.maximum,
]  # fmt: skip
TEXTS = {dims.floor_divide: "//", dims.modulo: "%", dims.minimum: "min", dims.maximum: "max"}

# An expression is a number, a name, or (operation, left, right); it is evaluated both ways.
expressions = st.recursive(
    st.integers(-4, 12) | st.sampled_from(NAMES),
    lambda inner: st.tuples(st.sampled_from(OPERATIONS), inner, inner),
    max_leaves=6,
)


class Undefined(Exception):
    """A division by zero, or by something negative: of no dimension."""


def symbolic(expression: Any) -> Dimension:
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return dims.symbol(expression)
    operation, left, right = expression
    a, b = symbolic(left), symbolic(right)
    if operation in (dims.floor_divide, dims.modulo) and b == 0:
        raise Undefined
    return operation(a, b)


def number(expression: Any, bindings: dict[str, int]) -> int:
    if isinstance(expression, int):
        return expression
    if isinstance(expression, str):
        return bindings[expression]
    operation, left, right = expression
    a, b = number(left, bindings), number(right, bindings)
    if operation in (dims.floor_divide, dims.modulo):
        if b <= 0:
            raise Undefined
        return a // b if operation is dims.floor_divide else a % b
    return min(a, b) if operation is dims.minimum else max(a, b) if operation is dims.maximum else operation(a, b)


bindings = st.fixed_dictionaries({name: st.integers(1, 9) for name in NAMES})
many = settings(max_examples=400, deadline=None)


@many
@given(expressions, bindings)
def test_arithmetic_agrees_with_numbers(expression: Any, values: dict[str, int]) -> None:
    try:
        expected = number(expression, values)
        found = symbolic(expression)
    except Undefined:
        return
    assert dims.substitute(found, values) == expected


@many
@given(expressions)
def test_text_reads_back(expression: Any) -> None:
    try:
        found = symbolic(expression)
    except (Undefined, ZeroDivisionError):
        return
    assert dims.parse(str(found)) == found


@many
@given(expressions, bindings)
def test_lower_bounds_hold(expression: Any, values: dict[str, int]) -> None:
    try:
        expected = number(expression, values)
        bound = dims.lower_bound(symbolic(expression))
    except Undefined:
        return
    assert bound is None or bound <= expected


@given(expressions, expressions, bindings)
def test_common_factors_divide(left: Any, right: Any, values: dict[str, int]) -> None:
    try:
        a, b = symbolic(left), symbolic(right)
        if a == 0 or b == 0:
            return
        factor = dims.substitute(dims.common_factor(a, b), values)
        x, y = dims.substitute(a, values), dims.substitute(b, values)
    except (Undefined, ZeroDivisionError):
        return
    if factor == 0:
        assert x == y == 0
    else:
        assert x % factor == y % factor == 0


def test_equal_expressions_are_equal() -> None:
    n, m = dims.symbol("n"), dims.symbol("m")
    assert (n + m) * (n - m) == n * n - m * m
    assert n * 4 // 2 == n * 2
    assert (n * 6 + 5) // 3 == n * 2 + 1
    assert (n * m) // m == n
    assert n - n == 0
    assert type(n - n) is int
    assert (n // 2) // 3 == n // 6
    assert (n * 4 + 3) % 4 == 3
    assert (n + 3 - (n + 3) % 4) // 4 == (n + 3) // 4
    assert (n * 5 + m - (n + m) % 4) // 2 == (n + m) // 4 * 2 + n * 2
    assert (n - n % 4) % 2 == 0
    assert dims.minimum(n, n + 1) == n
    assert dims.maximum(n, n + 1) == n + 1
    assert dims.ceil_divide(n * 4 - 1, 2) == n * 2
    assert hash((n + m) - m) == hash(n)
    assert len({n + 1, 1 + n, dims.symbol("n") + 1}) == 1


def test_undecided_questions_are_errors() -> None:
    n = dims.symbol("n")
    with pytest.raises(TypeError, match="truth value"):
        bool(n)
    with pytest.raises(TypeError):
        n < 3  # type: ignore[operator]  # noqa: B015


def test_products_of_many_sums_are_refused() -> None:
    sums = ["(" + "+".join(f"{letter}{k}" for k in range(8)) + ")" for letter in "abcdef"]
    assert dims.parse("*".join(sums[:2])) == dims.parse(sums[0]) * dims.parse(sums[1])
    with pytest.raises(ValueError, match="not a dimension"):
        dims.parse("*".join(sums[:3]))
    with pytest.raises(OverflowError, match="sums of 4096 and 8 extents"):
        dims.product(dims.parse(text) for text in sums)


def test_how_far_dimensions_reach() -> None:
    n, m = dims.symbol("n"), dims.symbol("m")
    for dim, wanted in (
        (7, 7), (n, 10), (3 * n - 2, 32), (n * m, 100), (n * n * m * m, 500), (n // 2 * m, 100), (n % 4, 10),
        (dims.maximum(n, 30) * 2, 60),
    ):  # fmt: skip
        assert dims.reach(dim, 10, 500) == wanted


def test_symbols() -> None:
    n = dims.symbol("n")
    assert dims.symbols(dims.maximum(n * 2, dims.symbol("batch size")) // 3) == {"n", "batch size"}
    assert dims.symbol_name(n) == "n"
    assert dims.symbol_name(n + 1) is None
    assert dims.symbol_name(n * 1) == "n"
    assert str(dims.symbol("batch size")) == '"batch size"'
    assert str(dims.symbol("class")) == '"class"'
    assert isinstance(dims.parse('"batch size" + 1'), Dim)
    for text in ("", "n +", "n ** 2", "f(n)", "n.m", "[n]"):
        with pytest.raises(ValueError, match="not a dimension"):
            dims.parse(text)


@pytest.mark.parametrize("name", ["\U0001f600", "é", 'a "b"', "back\\slash", "line\nbreak", "class", ""])
def test_names_of_symbols_read_back(name):
    text = str(dims.symbol(name) * 2)
    assert text.isascii() and dims.parse(text) == dims.symbol(name) * 2


def test_nothing_is_divided_by_zero():
    n = dims.symbol("n")
    for divide in (dims.floor_divide, dims.modulo, dims.ceil_divide):
        for dividend in (n, n + 1, 4):
            with pytest.raises(ZeroDivisionError):
                divide(dividend, 0)
    with pytest.raises(ValueError, match="not a dimension"):
        dims.parse("floordiv(n, 0)")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("t", "min(64,t)"),
        ("min(t,u+2)", "t"),
        ("t", "min(1,t)"),
        ("t", "u"),
        ("t+1", "min(8,t+1)"),
        ("t", "2*min(64,t)"),
    ],
)
def test_broadcast_extents_are_right_wherever_they_broadcast(a: str, b: str) -> None:
    left, right = dims.parse(a), dims.parse(b)
    for t in range(70):
        for u in (0, 1, 2, 7):
            x, y, found = (dims.substitute(d, {"t": t, "u": u}) for d in (left, right, dims.broadcast(left, right)))
            assert x != y and 1 not in (x, y) or found == (y if x == 1 else x)


def test_a_part_of_an_extent_broadcasts_to_it_only_if_it_is_all_of_it() -> None:
    t = dims.symbol("t")
    assert dims.broadcast(t, dims.minimum(t, 64)) == t == dims.broadcast(dims.minimum(t, 64), t)
    assert dims.broadcast(t, dims.minimum(t, 1)) != t
