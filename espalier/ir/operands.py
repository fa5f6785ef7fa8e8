"""What references raise for operands that they refuse."""

from __future__ import annotations


class OperandError(ValueError):
    """Operands that an operator's reference refuses; the text says why."""


class OutsideError(OperandError, IndexError):
    """An index that comes from data lies outside of its axis."""
