"""What an adapter of one ONNX operator gets to see, and the table of adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from espalier.ir.build import Builder
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element
from espalier.ir.graph import Location, Value

if TYPE_CHECKING:
    from espalier.frontends.onnx.importer import Importer, Scope


class Absent:
    """Stands for an operand that a function was called without."""


ABSENT: Final = Absent()


class Refused(Exception):
    """An adapter can't express the node: it stays opaque. If `fatal`, the node makes no sense at all."""

    def __init__(self, message: str, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


@dataclass
class Site:
    """One node to be converted. Adapters read it, add nodes by `build`, and return the results."""

    importer: Importer
    scope: Scope
    proto: NodeProto
    domain: str
    op_type: str
    version: int
    attributes: dict[str, Any]
    raw: Mapping[str, AttributeProto]
    operands: list[Value | None]
    results: int
    location: Location

    @property
    def build(self) -> Builder:
        """Adds nodes to the graph, with this node's location."""
        return Builder(self.scope.graph, location=self.location)

    def operand(self, position: int) -> Value | None:
        """An operand; None if it is absent."""
        return self.operands[position] if position < len(self.operands) else None

    def required(self, position: int) -> Value:
        """An operand that must be there. Raises Refused."""
        value = self.operand(position)
        if value is None:
            raise Refused(f"{self.op_type} lacks operand {position}", fatal=True)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return self.attributes.get(name, default)

    def shape(self, position: int) -> tuple[Dimension, ...]:
        """The shape of an operand whose rank must be known. Raises Refused."""
        shape = self.required(position).shape
        if shape is None:
            raise Refused(f"{self.op_type} needs the rank of operand {position}")
        return tuple(shape)

    def numbers(self, position: int) -> NDArray[Any]:
        """The numbers of a constant operand. Raises Refused."""
        value = self.required(position)
        if value.constant is None:
            raise Refused(f"{self.op_type} needs operand {position} to be constant")
        return value.array

    def element(self, position: int) -> Element:
        return self.required(position).element

    def same(self) -> Sequence[Value] | None:
        """Convert the node generically, with what the adapter changed in `attributes`, `operands` and `op_type`."""
        kind = self.importer.operators.get((self.domain, self.op_type))
        return None if kind is None else self.importer._as_it_is(self, kind, None)


Results: TypeAlias = "Sequence[Value | None] | Sequence[Value]"
"""The results of a node; None for those that nobody reads."""
Adapter: TypeAlias = Callable[[Site], "Results | None"]
ADAPTERS: dict[tuple[str, str], list[tuple[int, Adapter]]] = {}
"""(domain, operator) → (first version that it is not for, adapter); tried in order, None from one means the next.

None after the last means that nodes of this version, these attributes and as many operands and results need no adapter:
the importer remembers that.
"""
ALWAYS = 1 << 30


def adapter(*op_types: str, domain: str = "", before: int = ALWAYS) -> Callable[[Adapter], Adapter]:
    """Register an adapter of operators for operator set versions below one."""

    def register(function: Adapter) -> Adapter:
        for op_type in op_types:
            ADAPTERS.setdefault((domain, op_type), []).append((before, function))
        return function

    return register


def scalar(value: Any, element: Element) -> NDArray[Any]:
    """A number as a tensor without axes."""
    return np.asarray(value).astype(element.dtype)
