"""Torch's symbolic integers as dimensions, and dimensions as values of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy
import torch

from espalier.errors import UnsupportedError
from espalier.ir import dims
from espalier.ir.build import Builder
from espalier.ir.dims import Atom, Dim, Dimension
from espalier.ir.graph import Value, constant_value


class Symbols:
    """The symbols of one program: what dimension each stands for, and from which value it can be computed."""

    def __init__(self) -> None:
        self.dimensions: dict[str, Dimension] = {}
        """Torch's symbol, or expression that no dimension says, as text → dimension."""
        self.sources: dict[str, tuple[Value, int | None]] = {}
        """Our symbol → the value that has it as the extent of an axis, or that holds it (axis None)."""

    def bind_shape(self, fake: Sequence[Any], value: Value) -> None:
        """Let torch's symbols that are extents of `fake` and have no dimension yet stand for those of `value`."""
        if value.shape is None:
            return
        for axis, (entry, dimension) in enumerate(zip(fake, value.shape, strict=False)):
            name = _symbol(entry)
            if name is not None:
                self.dimensions.setdefault(name, dimension)
            known = dims.symbol_name(dimension)
            if known is not None and known not in self.sources:
                self.sources[known] = (value, axis)

    def note(self, value: Value) -> Value:
        """Remember that symbols which are seen for the first time, as extents of a value, can be read off it."""
        for axis, extent in enumerate(value.shape or ()):
            name = dims.symbol_name(extent) if isinstance(extent, Dim) else None
            if name is not None:
                self.sources.setdefault(name, (value, axis))
        return value

    def adopt(self, entry: Any, dimension: Dimension | None) -> Dimension:
        """Let an extent that nothing says yet stand for a dimension (for a symbol of its own where there is none)."""
        expression = entry.node.expr
        found = dims.symbol(f"torch:{expression}") if dimension is None else dimension
        self.dimensions[str(expression)] = found
        return found

    def dimension(self, entry: Any) -> Dimension | None:
        """An int or SymInt as a dimension; None where it can't be said as a polynomial with floors."""
        if isinstance(entry, int) and not isinstance(entry, bool):
            return entry
        expression = entry.node.expr if isinstance(entry, torch.SymInt) else entry
        try:
            numerator, denominator = self._rational(sympy.sympify(expression))
        except _InexpressibleError:
            return None
        return numerator if denominator == 1 else None

    def shape(self, fake: Sequence[Any]) -> tuple[Dimension | None, ...]:
        return tuple(self.dimension(entry) for entry in fake)

    def _rational(self, expression: Any) -> tuple[Dimension, int]:
        """An expression as (dimension, divisor)."""
        if str(expression) in self.dimensions:
            return self.dimensions[str(expression)], 1
        if isinstance(expression, sympy.Symbol):
            raise _InexpressibleError(expression)
        if isinstance(expression, (sympy.Float, sympy.Rational)):
            exact = sympy.Rational(expression)
            if exact.q > 1 << 16:
                raise _InexpressibleError(expression)
            return int(exact.p), int(exact.q)
        rule = _RULES.get(type(expression).__name__)
        if rule is None:
            raise _InexpressibleError(expression)
        found: tuple[Dimension, int] = rule(*(self._rational(argument) for argument in expression.args))
        return found

    # ---- as values -----------------------------------------------------------------------------------------

    def value(self, b: Builder, dimension: Dimension) -> Value:
        """A dimension as an i64 tensor of shape [1], computed from the graph's inputs where it is symbolic."""
        if isinstance(dimension, int):
            return constant_value(np.array([dimension], np.int64))
        total: Value | None = None
        for monomial, coefficient in dimension.terms:
            term: Value | None = None if coefficient in (1, -1) and monomial else self.value(b, abs(coefficient))
            for atom, power in monomial:
                factor = self._atom(b, atom)
                for _ in range(power):
                    term = factor if term is None else b.mul(term, factor)
            assert term is not None
            if total is None:
                total = b.neg(term) if coefficient < 0 else term
            else:
                total = b.sub(total, term) if coefficient < 0 else b.add(total, term)
        assert total is not None
        return _holds(total, dimension)

    def _atom(self, b: Builder, atom: Atom) -> Value:
        if atom.kind == "symbol":
            if atom.name not in self.sources:
                raise UnsupportedError("E405", f"nothing in the program tells the extent {atom.name}")
            value, axis = self.sources[atom.name]
            if axis is not None:
                value = b.shape(value, start=axis, end=axis + 1)
            return _holds(value, dims.symbol(atom.name))
        left, right = (self.value(b, operand) for operand in atom.operands)
        return _holds(_ATOMS[atom.kind](b, left, right), Dim(((((atom, 1),), 1),)))

    def list(self, b: Builder, entries: Sequence[Dimension]) -> Value:
        """Dimensions as a one-dimensional i64 tensor: a constant where all are numbers."""
        if dims.is_static(entries):
            return constant_value(np.array(entries, np.int64))
        if len(entries) == 1:
            return self.value(b, entries[0])
        parts: list[Value] = []
        run: list[int] = []
        for entry in entries:
            if isinstance(entry, int):
                run.append(entry)
                continue
            if run:
                parts.append(constant_value(np.array(run, np.int64)))
                run = []
            parts.append(self.value(b, entry))
        if run:
            parts.append(constant_value(np.array(run, np.int64)))
        found: Value = b.concat(*parts, axis=0)
        if found.content is None:
            found.content = np.array([*entries, None], object)[:-1]
        return found


class _InexpressibleError(Exception):
    """An expression that no dimension says."""


def _symbol(entry: Any) -> str | None:
    expression = entry.node.expr if isinstance(entry, torch.SymInt) else None
    return expression.name if isinstance(expression, sympy.Symbol) else None


def _holds(value: Value, dimension: Dimension) -> Value:
    """Note what a value of shape [1] holds, where inference could not tell."""
    if value.content is None and value.constant is None:
        value.content = np.array([dimension, None], object)[:1]
    return value


Rational = tuple[Dimension, int]


def _whole(pair: Rational) -> Dimension:
    if pair[1] != 1:
        raise _InexpressibleError(pair)
    return pair[0]


def _sum(*parts: Rational) -> Rational:
    total: Dimension = 0
    divisor = 1
    for numerator, denominator in parts:
        total, divisor = total * denominator + numerator * divisor, divisor * denominator
    return _reduced(total, divisor)


def _product(*parts: Rational) -> Rational:
    total: Dimension = 1
    divisor = 1
    for numerator, denominator in parts:
        total, divisor = total * numerator, divisor * denominator
    return _reduced(total, divisor)


def _reduced(total: Dimension, divisor: int) -> Rational:
    quotient = dims.floor_divide(total, divisor)
    return (quotient, 1) if quotient * divisor == total else (total, divisor)


def _power(base: Rational, exponent: Rational) -> Rational:
    if not isinstance(exponent[0], int) or exponent[1] != 1:
        raise _InexpressibleError(base)
    if exponent[0] < 0:
        if not isinstance(base[0], int) or base[0] <= 0:
            raise _InexpressibleError(base)
        return _power((base[1], base[0]), (-exponent[0], 1))
    return _product(*[base] * exponent[0])


def _quotient(a: Rational, b: Rational) -> Rational:
    if not isinstance(b[0], int) or b[0] <= 0:
        raise _InexpressibleError(b)
    return _reduced(a[0] * b[1], a[1] * b[0])


def _extreme(function: Any) -> Any:
    def fold(*parts: Rational) -> Rational:
        total = _whole(parts[0])
        for part in parts[1:]:
            total = function(total, _whole(part))
        return total, 1

    return fold


def _floor_divide(a: Rational, b: Rational) -> Rational:
    return dims.floor_divide(a[0] * b[1], b[0] * a[1]), 1


def _ceil_divide(a: Rational, b: Rational) -> Rational:
    return dims.ceil_divide(a[0] * b[1], b[0] * a[1]), 1


# extents are not negative, so truncation is the floor
_RULES: dict[str, Any] = {
    "Add": _sum, "Mul": _product, "Pow": _power, "PowByNatural": _power,
    "FloorDiv": _floor_divide, "CleanDiv": _floor_divide, "CeilDiv": _ceil_divide,
    "floor": lambda a: _floor_divide(a, (1, 1)), "ceiling": lambda a: _ceil_divide(a, (1, 1)),
    "FloorToInt": lambda a: _floor_divide(a, (1, 1)), "TruncToInt": lambda a: _floor_divide(a, (1, 1)),
    "CeilToInt": lambda a: _ceil_divide(a, (1, 1)),
    "IntTrueDiv": _quotient, "FloatTrueDiv": _quotient,
    "ToFloat": lambda a: a, "Identity": lambda a: a,
    "Mod": lambda a, b: (dims.modulo(_whole(a), _whole(b)), 1),
    "PythonMod": lambda a, b: (dims.modulo(_whole(a), _whole(b)), 1),
    "ModularIndexing": lambda a, b, c: (dims.modulo(dims.floor_divide(_whole(a), _whole(b)), _whole(c)), 1),
    "Max": _extreme(dims.maximum), "Min": _extreme(dims.minimum),
}  # fmt: skip

_ATOMS: dict[str, Any] = {
    # ONNX's integer division truncates; what it divides is a multiple here
    "floordiv": lambda b, left, right: b.div(b.sub(left, b.mod(left, right)), right),
    "mod": lambda b, left, right: b.mod(left, right),
    "min": lambda b, left, right: b.min(left, right),
    "max": lambda b, left, right: b.max(left, right),
}  # fmt: skip
