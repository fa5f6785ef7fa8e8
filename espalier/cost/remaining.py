"""What a model costs once only some indices of its units are left: counted from the terms, before anything is cut."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espalier.analysis.coupling import Coupling, Indices, extent_of
from espalier.ir import Graph, Node, TensorType, Value
from espalier.ir.axes import Binding, FromEnd
from espalier.ir.constants import through
from espalier.ir.dims import Dim, Dimension, product, substitute, symbols
from espalier.ir.op import TypeContext
from espalier.ir.terms import Product, Sum, Variable, leaves

SYMBOL = 64
"""What a symbolic extent counts as where a share of costs is asked for; a batch cancels out of shares anyway."""
Chosen = Mapping[Variable, Indices]
"""Variable of a unit → the indices that it keeps."""


@dataclass
class Remaining:
    """Costs of a graph, and of what is left of it, as numbers: symbolic extents count as `SYMBOL`.

    Multiply–accumulates are those of `Op.macs`. Weights are those that nodes of the graph itself read (see `weights`);
    those that several nodes share count once.
    """

    coupling: Coupling

    def __post_init__(self) -> None:
        self._macs: dict[Node, int] = {}
        self._touching: dict[Variable, list[Node]] = {}
        for node in self.coupling.graph:
            count = self._node(node, {})
            if count:
                self._macs[node] = count
                for variable in self._variables(node):
                    self._touching.setdefault(variable, []).append(node)
        self._weights = distinct(weights(self.coupling.graph))

    @property
    def macs(self) -> int:
        """Of the graph as it is."""
        return sum(self._macs.values())

    @property
    def parameters(self) -> int:
        """Elements of weights, as they are."""
        return sum(value.constant.size for value in self._weights if value.constant is not None)

    def macs_with(self, chosen: Chosen) -> int:
        """Multiply–accumulates once only the chosen indices are left."""
        nodes = dict.fromkeys(node for variable in chosen for node in self._touching.get(variable, ()))
        return self.macs + sum(self._node(node, chosen) - self._macs[node] for node in nodes)

    def parameters_with(self, chosen: Chosen) -> int:
        """Elements of weights once only the chosen indices are left."""
        total = 0
        for value in self._weights:
            terms = self.coupling.axes.get(value)
            shape = value.shape if terms is None else [extent_of(term, chosen) for term in terms]
            total += number(product(shape))
        return total

    def _variables(self, node: Node) -> list[Variable]:
        found = {
            leaf for value in (*node.inputs, *node.results) for term in self._terms(value) for leaf in leaves(term)
        }
        return [leaf for leaf in found if leaf in self.coupling.by_variable]

    def _terms(self, value: Value) -> Sequence[Any]:
        return self.coupling.axes.get(value, ())

    def _node(self, node: Node, chosen: Chosen) -> int:
        """A node's count, by its operator, on the types that its operands will have."""
        if not node.op.contracts or node.regions:
            return 0
        op, types = node.op, []
        for value in node.operands:
            type, terms = (
                None if value is None else value.type,
                None if value is None else self.coupling.axes.get(value),
            )
            if isinstance(type, TensorType) and terms is not None and chosen:
                type = TensorType(type.element, tuple(extent_of(term, chosen) for term in terms))
            types.append(type)
        equation = self.coupling.equations.get(node)
        if equation is not None and chosen:
            held = {name: measure(bound, chosen) for name, bound in equation.bound.items() if name in op.defaults}
            op = op.replace(**held) if held else op
        contents = [None if value is None else value.known for value in node.operands]
        count = op.macs(TypeContext(op, types, contents, result_count=len(node.results)))
        return 0 if count is None else number(count)


def measure(bound: Binding, chosen: Chosen) -> Any:
    """The extents that an attribute or operand is to hold."""
    if isinstance(bound, Variable | Product | Sum):
        return extent_of(bound, chosen)
    if isinstance(bound, FromEnd):
        return -extent_of(bound.term, chosen)
    return tuple(measure(part, chosen) for part in bound)


def number(extent: Dimension) -> int:
    """A polynomial in symbols as a number: each symbol counts as `SYMBOL`."""
    found = substitute(extent, dict.fromkeys(symbols(extent), SYMBOL)) if isinstance(extent, Dim) else extent
    return found if isinstance(found, int) else 0


def weights(graph: Graph) -> list[Value]:
    """The constants of two elements or more that count as parameters: floats, and integers that stand for some.

    Those are what a node dequantizes, perhaps after it was moved (a row looked up, say), and the matrices of products
    of integers.
    """
    found: dict[Value, None] = {}
    for node in graph:
        for value in node.inputs:
            held = value.constant
            if held is not None and held.size > 1 and (held.element.is_float or stands_for_floats(value)):
                found[value] = None
    return list(found)


def stands_for_floats(value: Value) -> bool:
    """Whether integers do, by what reads them, or them at other places."""
    seen = {value}
    waiting = [value]
    for integers in waiting:
        if not isinstance(integers.type, TensorType) or not integers.element.is_integer:
            continue
        for node in integers.users:
            first = node.operands[0] is integers
            if (first and node.op.dequantizes) or (node.op.contracts and integers.rank != 1):
                return True
            moved = node.results[0]
            if node.op.moves and (first or node.op.operands[0].variadic) and moved not in seen:
                seen.add(moved)
                waiting.append(moved)
    return False


def distinct(values: Sequence[Value]) -> list[Value]:
    """Without the values that hold the very same elements of one source as an earlier one."""
    sharing: dict[tuple[int, int], list[Value]] = {}
    for value in values:
        if value.constant is not None:
            sharing.setdefault((id(value.constant.source), value.constant.size), []).append(value)
    dropped: set[Value] = set()
    for group in sharing.values():
        seen: set[bytes] = set()
        for value in group if len(group) > 1 else ():
            key = hashlib.sha256(np.sort(elements_of(value), axis=None).tobytes()).digest()
            if key in seen:
                dropped.add(value)
            seen.add(key)
    return [value for value in values if value not in dropped]


def elements_of(value: Value) -> Indices:
    """For each element of a constant, its place in the flat array of the source."""
    held = value.constant
    assert held is not None
    whole = held.base(0)
    found: Indices = through(held.views, np.arange(whole.size, dtype=np.int64).reshape(whole.shape))
    return found
