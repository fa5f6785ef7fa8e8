"""Transforms of one axis for Winograd's minimal filtering (see `winograd`).

The points of m = 4 are 0, ±√½, ±√2 and ∞: with them, rounding errors are about those of the definition, and several
times smaller than with the usual 0, ±1, ±2 and ∞ (Barabasz et al., "Error analysis and improving the accuracy of
Winograd convolution for deep neural networks", 2020, explain why).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from tvm import tirx

from espalier.backends.tvm.numbers import immediate
from espalier.backends.tvm.tensor import Expr

Array = np.ndarray[Any, Any]
Keep: TypeAlias = Callable[[Expr], Expr]
"""Puts a vector in a register of its own."""
Transform: TypeAlias = Callable[[Sequence[Expr], Keep], list[Expr]]

KERNEL = 3
"""Extent of the kernels that are transformed."""


@dataclass(frozen=True)
class Filter:
    """How a row of m results is computed from one of m + 2 entries."""

    results: int
    points: tuple[float, ...]
    """Where polynomials are evaluated, apart from ∞."""
    into: Transform
    """A row of entries → their numbers at the points."""
    back: Transform
    """Products at the points → the results."""
    into_cost: int
    """Steps that transforming a tile of a block of channels takes, …"""
    back_cost: int
    """… and transforming back and finishing the results."""

    @property
    def size(self) -> int:
        return self.results + KERNEL - 1

    @property
    def weights(self) -> Array:
        """(m + 2, 3): a row of the kernel → its numbers at the points."""
        rows = []
        for point in self.points:
            others = [point - other for other in self.points if other != point]
            rows.append([point**k / np.prod(others) for k in range(KERNEL)])
        return np.array([*rows, [0.0] * (KERNEL - 1) + [1.0]])


def _number(like: Expr, value: float) -> Expr:
    kind = like.ty.dtype
    return tirx.Broadcast(immediate(value, "float32"), kind.lanes)


def _into_4(d: Sequence[Expr], keep: Keep) -> list[Expr]:
    # with points ±a and ±b, ab = 1: x ∏ (x ∓ p) over the other points, even and odd parts apart
    low, high, total = (_number(d[0], value) for value in (0.5, 2.0, 2.5))
    small, large = (_number(d[0], value) for value in (np.sqrt(0.5), np.sqrt(2.0)))
    even, odd = keep(d[4] - high * d[2]), keep(small * keep(d[3] - high * d[1]))
    others, rest = keep(d[4] - low * d[2]), keep(large * keep(d[3] - low * d[1]))
    return [
        keep(keep(d[0] + d[4]) - total * d[2]), keep(even + odd), keep(even - odd), keep(others + rest),
        keep(others - rest), keep(keep(d[1] + d[5]) - total * d[3]),
    ]  # fmt: skip


def _back_4(p: Sequence[Expr], keep: Keep) -> list[Expr]:
    even, odd = keep(p[1] + p[2]), keep(p[1] - p[2])
    others, rest = keep(p[3] + p[4]), keep(p[3] - p[4])
    low, high = _number(p[0], 0.5), _number(p[0], 2.0)
    small, large = (_number(p[0], value) for value in (np.sqrt(0.5), np.sqrt(2.0)))
    smaller, larger = (_number(p[0], value) for value in (np.sqrt(0.125), np.sqrt(8.0)))
    return [
        keep(keep(p[0] + even) + others), keep(large * rest + keep(small * odd)),
        keep(high * others + keep(low * even)), keep(larger * rest + keep(smaller * odd + p[5])),
    ]  # fmt: skip


def _into_2(d: Sequence[Expr], keep: Keep) -> list[Expr]:
    return [keep(d[2] - d[0]), keep(d[1] + d[2]), keep(d[2] - d[1]), keep(d[3] - d[1])]


def _back_2(p: Sequence[Expr], keep: Keep) -> list[Expr]:
    return [keep(keep(p[0] + p[1]) + p[2]), keep(keep(p[1] - p[2]) + p[3])]


FILTERS = {
    2: Filter(2, (0.0, 1.0, -1.0), _into_2, _back_2, 75, 75),
    4: Filter(4, (0.0, np.sqrt(0.5), -np.sqrt(0.5), np.sqrt(2.0), -np.sqrt(2.0)), _into_4, _back_4, 250, 280),
}
"""By the results of a tile's row."""
