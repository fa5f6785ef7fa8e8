"""Zero rules: is an operator's result zero at an index, given which operands are zero there?

A state is True (the operand is zero at that index), False (it may not be), or None (the operand lacks the index). Exact
pruning rests on them: a removed channel must look like a channel of zeros to whatever reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

States: TypeAlias = Sequence[bool | None]
ZeroRule: TypeAlias = Callable[[States], bool]


def every(states: States) -> bool:
    """Sums: zero where all terms are."""
    return all(state is True for state in states)


def either(states: States) -> bool:
    """Products: zero where one factor is."""
    return any(state is True for state in states)


def affine(states: States) -> bool:
    """x·w + further terms."""
    return either(states[:2]) and every(states[2:])


def passed(states: States) -> bool:
    """Movements and functions with f(0) = 0: zero where the operands that have the index are."""
    return True in states and False not in states


def padded(states: States) -> bool:
    """As `passed`; an index that no operand has is zero too."""
    return False not in states


def first(states: States) -> bool:
    """Zero where the first operand is, whatever the others (a numerator, a multiplied scale)."""
    return states[0] is True


def never(states: States) -> bool:
    """f(0) ≠ 0, or nothing is known."""
    return False
