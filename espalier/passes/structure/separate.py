"""Tensors of one number everywhere, such as initial states of zeros: one for each of the units that read them.

Whoever reads such a tensor reads the same number at every place, so that it need not tie what its readers do with its
axes. Where exporters write one for several layers it would couple these. Weights that are tied by more than a fill (a
layer that is used twice, say) stay tied: their readers have the same units anyway.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import numpy as np

from espalier.analysis.coupling import Coupling, couple
from espalier.ir import Builder, Graph, Node, TensorType, Value, constant_value
from espalier.ir.constants import Constant
from espalier.ir.ops.shapes import ConstantOfShape
from espalier.ir.terms import Variable, leaves
from espalier.passes.base import Change, Context, Pass, graph_pass

Units: TypeAlias = tuple[tuple[Variable, ...], ...] | None
"""For each axis of a tensor the variables of its reader's units there; None where the reader does not say."""


@graph_pass("separate_fills")
class SeparateFills(Pass):
    """Give each unit that reads a tensor of one number everywhere one of its own."""

    def run(self, graph: Graph, context: Context) -> int:
        found = fills(graph)
        if all(value.constant is None and value.has_one_use for value in found):
            return 0
        readers = _Readers(couple(graph, apart=found))
        count = 0
        for value in reversed(found):
            stays = readers.stays(value)
            for units, reads in readers.groups(value).items():
                if units == stays:
                    continue
                if not context.may_rewrite():
                    return count
                if context.recorder is not None:
                    context.recorder(Change(self.name, self.semantics, context.rewrites, [], [], []))
                own = _another(graph, value)
                readers.units[own] = units
                for node, position in reads:
                    graph.set_operand(node, position, own)
                count += 1
        return count


def fills(graph: Graph) -> dict[Value, None]:
    """The floating-point tensors that may serve several readers and are one number everywhere, in the graph's order."""
    reads = Counter(id(v.constant.source) for node in graph for v in node.operands if v is not None and v.constant)
    found: dict[Value, None] = {}
    looked: set[Value] = set()
    for node in graph:
        floats = [operand for operand in node.inputs if _is_float(operand)]
        for held, operand in [(v.constant, v) for v in floats if v.constant is not None and v not in looked]:
            looked.add(operand)
            if reads[id(held.source)] > 1 and _is_uniform(held):
                found[operand] = None
        moved = node.op.moves and len(floats) == 1 and (floats[0] in found or _is_number(floats[0]))
        if (moved or isinstance(node.op, ConstantOfShape)) and len(node.results) == 1 and _is_float(node.results[0]):
            found[node.results[0]] = None
    return found


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.element.is_float


def _is_uniform(held: Constant) -> bool:
    """Whether all of several elements are equal; a few are looked at before all are read."""
    if held.size < 2:
        return False
    array = held.array
    first, corner = array[(0,) * array.ndim], array[tuple(slice(0, 4) for _ in array.shape)]
    return bool(np.all(corner == first)) and bool(np.all(array == first))


def _is_number(value: Value) -> bool:
    """Whether it is a constant of one element, which ties nothing itself, but is a fill once it is expanded."""
    return value.constant is not None and value.constant.size == 1


class _Readers:
    """Which units the readers of fills have."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.units: dict[Value, Units] = {}
        """Fill → the units of its readers, once it has been looked at: a fill made of another reads it for them."""
        self._first: dict[int, Units] = {}

    def groups(self, value: Value) -> dict[Units, list[tuple[Node, int]]]:
        """The reads (node and position) of a fill by the graph's own nodes, by their units."""
        found: dict[Units, list[tuple[Node, int]]] = {}
        for node in value.users:
            if node.graph is self.coupling.graph:
                for position, operand in enumerate(node.operands):
                    if operand is value:
                        found.setdefault(self._of(node, position), []).append((node, position))
        return found

    def stays(self, value: Value) -> Units:
        """The units of those readers that keep a fill: of the first that is seen of what is one weight."""
        graph = self.coupling.graph
        elsewhere = any(not isinstance(user, Node) or user.graph is not graph for user in value.uses)
        first = None if elsewhere else next(iter(self.groups(value)), None)
        held = value.constant
        self.units[value] = self._first.setdefault(id(value if held is None else held.source), first)
        return self.units[value]

    def _of(self, node: Node, position: int) -> Units:
        if node.results[0] in self.units:
            return self.units[node.results[0]]
        equation = self.coupling.equations.get(node)
        terms = None if equation is None or position >= len(equation.operands) else equation.operands[position]
        if terms is None:
            return None
        known = self.coupling.by_variable
        return tuple(tuple(leaf for leaf in leaves(term) if leaf in known) for term in terms)


def _another(graph: Graph, value: Value) -> Value:
    """A fill like this one, which shares nothing with it that would couple their readers."""
    if value.constant is not None:
        held = value.constant
        one = held.array[(0,) * len(held.shape)]
        return constant_value(np.broadcast_to(one, held.shape), held.element, value.name)
    node = value.producer
    assert node is not None
    copy = Builder(graph, node, node.location).node(node.op, node.operands)
    copy.results[0].name, copy.results[0].type = value.name, value.type
    return copy.results[0]
