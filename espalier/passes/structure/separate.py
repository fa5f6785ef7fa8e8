"""Tensors of one number everywhere, such as initial states of zeros: one for each of the units that read them.

Whoever reads such a tensor reads the same number at every place, so that it need not tie what its readers do with its
axes. Where exporters write one for several layers it would couple these. Weights that are tied by more than a fill (a
layer that is used twice, say) stay tied: their readers have the same units anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, couple
from espalier.ir import Builder, Graph, Node, TensorType, Value, constant_value
from espalier.ir.constants import ComputedSource, Constant
from espalier.ir.ops.shapes import ConstantOfShape
from espalier.ir.terms import Variable, leaves
from espalier.passes.base import Change, Context, Pass, graph_pass

Units: TypeAlias = frozenset[Variable] | None
"""The variables of the units that a reader has on a tensor's axes; None where it does not say, or is not this graph's.
"""


class Read(NamedTuple):
    """An operand of a node."""

    node: Node
    position: int


@graph_pass("separate_fills")
class SeparateFills(Pass):
    """Give each unit that reads a tensor of one number everywhere one of its own."""

    def run(self, graph: Graph, context: Context) -> int:
        found = fills(graph)
        reads = _reads(graph, found)
        shared = Counter(_weight(value) for value, own in reads.items() for _ in {read.node for read in own})
        if all(count < 2 for count in shared.values()):
            return 0
        readers = _readers(couple(graph, apart=found), reads)
        stays = _stays(graph, readers)
        count = 0
        made: dict[tuple[Value, Units], Node] = {}
        for value, groups in readers.items():
            for units, group in groups.items():
                own = value
                if units != stays[_weight(value)]:
                    if not context.may_rewrite():
                        return count
                    own = self._another(graph, value, context)
                    count += 1
                    if own.producer is not None:
                        made[value, units] = own.producer
                for node, position in group:
                    reader = made.get((node.results[0], units), node) if node.results else node
                    graph.set_operand(reader, position, own)
        return count

    def _another(self, graph: Graph, value: Value, context: Context) -> Value:
        """A fill like this one, which shares nothing with it that would couple their readers."""
        node, held = value.producer, value.constant
        if held is not None:
            one = held.array[(0,) * len(held.shape)]
            own = constant_value(np.broadcast_to(one, held.shape), held.element, value.name)
        else:
            assert node is not None
            build = Builder(graph, node, node.location.touched(self.name))
            own = build.node(node.op, node.operands, results=len(node.results)).results[0]
            own.name = value.name
            graph.set_type(own, value.type)
        if context.recorder is not None:
            created = [] if own.producer is None else [own.producer]
            context.recorder(Change(self.name, self.semantics, context.rewrites, [value], [own], created))
        return own


def fills(graph: Graph) -> dict[Value, None]:
    """The floating-point tensors that may serve several readers and are one number everywhere, in the graph's order."""
    constants = {value: value.constant for node in graph for value in node.inputs if value.constant is not None}
    uses = Counter[int]()
    for value, held in constants.items():
        uses[id(held.source)] += sum(value.uses.values())
    found: dict[Value, None] = {}
    looked: set[Value] = set()
    for node in graph:
        floats = [operand for operand in node.inputs if _is_float(operand)]
        for operand in floats:
            if operand in constants and operand not in looked:
                looked.add(operand)
                if uses[id(constants[operand].source)] > 1 and _is_uniform(constants[operand]):
                    found[operand] = None
        moved = node.op.moves and len(floats) == 1 and (floats[0] in found or _is_number(floats[0]))
        if (moved or isinstance(node.op, ConstantOfShape)) and len(node.results) == 1 and _is_float(node.results[0]):
            found[node.results[0]] = None
    return found


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.element.is_float


def _is_number(value: Value) -> bool:
    """Whether it is a constant of one element, which ties nothing itself, but is a fill once it is expanded."""
    return value.constant is not None and value.constant.size == 1


def _is_uniform(held: Constant) -> bool:
    """Whether all of several elements have the same bits; a few are looked at before all are read."""
    if held.size < 2 or (isinstance(held.source, ComputedSource) and not held.source.is_read):
        return False
    bits: NDArray[Any] = held.array.view(f"u{held.array.itemsize}")
    first, corner = bits[(0,) * bits.ndim], bits[tuple(slice(0, 4) for _ in bits.shape)]
    return bool(np.all(corner == first)) and bool(np.all(bits == first))


def _weight(value: Value) -> int:
    """What views of one source have in common."""
    return id(value if value.constant is None else value.constant.source)


def _reads(graph: Graph, found: Mapping[Value, None]) -> dict[Value, list[Read]]:
    """Fill → who reads it in the graph itself."""
    reads: dict[Value, list[Read]] = {value: [] for value in found}
    for node in graph:
        for position, operand in enumerate(node.operands):
            if operand is not None and operand in reads:
                reads[operand].append(Read(node, position))
    return reads


def _readers(coupling: Coupling, reads: dict[Value, list[Read]]) -> dict[Value, dict[Units, list[Read]]]:
    """Fill → its reads by their units, last fills first. A fill that is made of another reads it for its readers."""
    found: dict[Value, dict[Units, list[Read]]] = {}
    for value in reversed(reads):
        groups: dict[Units, list[Read]] = {}
        for read in reads[value]:
            made = found.get(read.node.results[0]) if read.node.results else None
            for units in made or [_units(coupling, read)]:
                groups.setdefault(units, []).append(read)
        found[value] = groups
    return found


def _units(coupling: Coupling, read: Read) -> Units:
    equation = coupling.equations.get(read.node)
    terms = None if equation is None else dict(enumerate(equation.operands)).get(read.position)
    if terms is None:
        return None
    return frozenset(leaf for term in terms for leaf in leaves(term) if leaf in coupling.by_variable)


def _stays(graph: Graph, readers: Mapping[Value, Mapping[Units, list[Read]]]) -> dict[int, Units]:
    """The units whose readers keep what is one weight: none if an output or a body reads it, else the first."""
    found: dict[int, Units] = {}
    for value, groups in readers.items():
        if any(not isinstance(user, Node) or user.graph is not graph for user in value.uses):
            found[_weight(value)] = None
        else:
            found.setdefault(_weight(value), next(iter(groups), None))
    return found
