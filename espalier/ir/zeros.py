"""Zero rules: is an operator's result zero at an index, given which operands are zero there?

A state is True (the operand is zero at that index), False (it may not be), or None (the operand lacks the index). Exact
pruning rests on them: a removed channel must look like a channel of zeros to whatever reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

States: TypeAlias = Sequence[bool | None]


@dataclass(frozen=True)
class ZeroRule:
    """A rule as an object, so that a class attribute holds it without becoming a method."""

    decide: Callable[[States], bool]

    def __call__(self, states: States) -> bool:
        return self.decide(states)


@ZeroRule
def every(states: States) -> bool:
    """Sums: zero where all terms are."""
    return all(state is True for state in states)


@ZeroRule
def either(states: States) -> bool:
    """Products: zero where one factor is."""
    return any(state is True for state in states)


@ZeroRule
def affine(states: States) -> bool:
    """x·w + further terms."""
    return either(states[:2]) and every(states[2:])


PRODUCTS = (either, affine)
"""How operators say that they multiply their first two operands with each other."""


@ZeroRule
def passed(states: States) -> bool:
    """Movements and functions with f(0) = 0: zero where the operands that have the index are."""
    return True in states and False not in states


@ZeroRule
def padded(states: States) -> bool:
    """As `passed`; an index that no operand has is zero too."""
    return False not in states


@ZeroRule
def first(states: States) -> bool:
    """Zero where the first operand is, whatever the others (a numerator, a multiplied scale)."""
    return states[0] is True


@ZeroRule
def never(states: States) -> bool:
    """f(0) ≠ 0, or nothing is known."""
    return False
