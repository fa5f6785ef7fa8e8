"""What a recurrent layer's cell is, for the kernel that loops over time (`sequences`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.backends.tvm.tensor import Expr, Map, Tensor
from espalier.ir.elements import Element


class Values:
    """What a cell sees of one row and one lane of hidden units, as tensors of rank 0."""

    def __init__(self, kind: Element, read: Callable[[str, int], Expr | None]) -> None:
        self._kind, self._read = kind, read
        self._known: dict[tuple[str, int], Any] = {}

    def _value(self, name: str, k: int = 0) -> Any:
        if (name, k) not in self._known:
            entry = self._read(name, k)
            self._known[name, k] = 0 if entry is None else leaf(entry, self._kind)
        return self._known[name, k]

    def now(self, gate: int) -> Any:
        """The input's share of a gate, with its biases."""
        return self._value("now", gate)

    def before(self, gate: int) -> Any:
        """The hidden state's share of a gate."""
        return self._value("before", gate)

    def whole(self, gate: int) -> Any:
        """What goes into a gate's activation."""
        return self.now(gate) + self.before(gate)

    def extra(self, k: int) -> Any:
        """Of further numbers for each hidden unit the k-th; 0 if the layer has none."""
        return self._value("extra", k)

    def state(self, name: str) -> Any:
        """The entry of a state."""
        return self._value(name)


@dataclass(frozen=True)
class Stage:
    """A part of a cell: products of some neighbouring gates with a state, and what is computed from them.

    `finish` gives the states that it changes: "next" becomes h, others change at once, so that a stage must not change
    what it multiplies by.
    """

    gates: tuple[int, ...]
    source: str
    finish: Callable[[Values], Mapping[str, Any]]


@dataclass(frozen=True)
class Operands:
    """The operands of a layer; the states' initial values by name, "h" first."""

    x: Any
    w: Any
    r: Any
    b: Any
    lengths: Any
    initial: Mapping[str, Any]
    extras: Any = None
    """(directions, how many, hidden)."""
    apart: tuple[int, ...] = ()
    """Gates whose recurrent bias is not added to the input's share."""


def leaf(entry: Expr, kind: Element) -> Tensor:
    """A tensor of rank 0 that is an expression."""
    return Map((), kind, [], [], lambda at, index: entry, cost=1)
