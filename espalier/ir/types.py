"""Types of values: tensors, and sequences and optionals for ONNX's sake."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from espalier.ir import dims, elements
from espalier.ir.dims import Dimension, Shape
from espalier.ir.elements import Element


@dataclass(frozen=True, slots=True)
class TensorType:
    """An element and a shape; the shape is None if not even the rank is known."""

    element: Element
    shape: Shape | None
    _hash: int | None = field(default=None, init=False, compare=False, repr=False)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, TensorType) and self.element == other.element and self.shape == other.shape

    def __hash__(self) -> int:
        found = self._hash
        if found is None:  # types are looked up far more often than made
            found = hash((self.element, self.shape))
            object.__setattr__(self, "_hash", found)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorType, (self.element, self.shape)  # hashes of texts differ between processes

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        """Whether every extent is a number."""
        return self.shape is not None and dims.is_static(self.shape)

    @property
    def size(self) -> Dimension:
        """The number of elements. Raises ValueError for an unknown rank."""
        if self.shape is None:
            raise ValueError("a tensor of unknown rank has no size")
        return dims.product(self.shape)

    def __str__(self) -> str:
        return f"{self.element}[{'*' if self.shape is None else ', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class SequenceType:
    """A list of values of one type."""

    of: Type

    def __str__(self) -> str:
        return f"seq<{self.of}>"


@dataclass(frozen=True, slots=True)
class OptionalType:
    """A value, or nothing."""

    of: Type

    def __str__(self) -> str:
        return f"optional<{self.of}>"


Type: TypeAlias = TensorType | SequenceType | OptionalType


def parse(text: str) -> Type:
    """A type from its printed form. Raises ValueError on anything else."""
    text = text.strip()
    for prefix, kind in (("seq<", SequenceType), ("optional<", OptionalType)):
        if text.startswith(prefix) and text.endswith(">"):
            return kind(parse(text[len(prefix) : -1]))
    name, bracket, rest = text.partition("[")
    if not bracket or not rest.endswith("]"):
        raise ValueError(f"not a type: {text!r}")
    element, inner = elements.parse(name.strip()), rest[:-1].strip()
    if inner == "*":
        return TensorType(element, None)
    return TensorType(element, tuple(dims.parse(part) for part in split_outside(inner)))


def split_outside(text: str, separator: str = ",") -> list[str]:
    """Split at separators that stand outside of brackets and quotes; no parts for blank text."""
    parts, depth, start, quoted, position = [], 0, 0, False, 0
    while position < len(text):
        char = text[position]
        if quoted:
            position += char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char in "([{<":
            depth += 1
        elif char in ")]}>" and text[position - 1] != "-":
            depth -= 1
        elif char == separator and not depth:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return [part.strip() for part in [*parts, text[start:]]] if text.strip() else []


def merge_shapes(known: Shape | None, inferred: Shape | None) -> Shape | None:
    """The more precise of two descriptions of one shape: numbers win over expressions.

    Raises ValueError if they contradict each other (different ranks, or different numbers at one place).
    """
    if known is None or inferred is None:
        return inferred if known is None else known
    if len(known) != len(inferred):
        raise ValueError(f"rank {len(known)} against rank {len(inferred)}")
    merged: list[Dimension] = []
    for axis, (a, b) in enumerate(zip(known, inferred, strict=True)):
        if isinstance(a, int) and isinstance(b, int) and a != b:
            raise ValueError(f"extent {a} against {b} on axis {axis}")
        merged.append(a if isinstance(a, int) else b)
    return tuple(merged)
