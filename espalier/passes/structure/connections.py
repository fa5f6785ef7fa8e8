"""Connections of dense blocks: layers that read the outputs of all layers before them, and how to cut some of those.

A block is a chain of concatenations, each of which holds one tensor more than the one before. What a layer reads is a
segment of a concatenation's axis. To cut a connection, the layer gets a concatenation of its own without that segment,
and the weights with which it reads it go: that is the same as zeros in these weights. Whether it is, is asked of the
coupling of the part of the graph between the concatenation and the layer's contractions, where each segment is made a
unit of its own.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, Indices, Unit, couple, extent_of
from espalier.ir import Builder, Graph, Node, TensorType, Value, constant_value
from espalier.ir.clone import extract
from espalier.ir.constants import constant
from espalier.ir.terms import Product, Term, Variable, leaves, resolve
from espalier.passes.structure.reindex import _cut, _follow, _has, infer_again

CONCAT = "concat"


@dataclass(frozen=True)
class Reader:
    """What one layer of a block, or whatever follows the block, reads.

    Attributes:
        whole: the concatenation of all that it reads.
        sources: what that is made of, in its order; concatenations of concatenations are seen through.
        number: which layer of the block it is, counted from 1: it reads the block's input and the outputs of the
            layers before it. The last number is that of what follows the block.
        layers: for each of the sources, 0 for the block's input, or the number of the layer that made it.
    """

    whole: Value
    sources: tuple[Value, ...]
    number: int
    layers: tuple[int, ...]

    @property
    def axis(self) -> int:
        """The axis of concatenation, from 0 on."""
        return _axis(self.whole)

    def extent(self, source: Value) -> int:
        """How many positions of the axis a source takes."""
        found = source.shape[self.axis]
        assert isinstance(found, int)
        return found


def _axis(value: Value) -> int:
    assert value.producer is not None and value.rank is not None
    return int(value.producer.op.attributes["axis"]) % value.rank


def _sources(value: Value, axis: int) -> list[Value]:
    """The operands of a concatenation, and of those along the same axis that it is made of."""
    maker = value.producer
    if maker is None or maker.op.name != CONCAT or _axis(value) != axis:
        return [value]
    return [source for operand in maker.inputs for source in _sources(operand, axis)]


def blocks(graph: Graph) -> list[list[Reader]]:
    """The dense blocks, each as its readers from the second layer on; the last is what follows the block.

    A block has three tensors to concatenate, or more.
    """
    order = {value: k for k, value in enumerate(_values(graph))}
    wholes: dict[frozenset[Value], tuple[Value, list[Value]]] = {}
    for node in graph:
        if node.op.name != CONCAT or node.results[0].rank is None:
            continue
        value = node.results[0]
        sources = _sources(value, _axis(value))
        static = all(isinstance(source.shape[_axis(value)], int) for source in sources if source.shape)
        if len(set(sources)) == len(sources) > 1 and static and value.element.is_float:
            wholes.setdefault(frozenset(sources), (value, sources))
    by_size: dict[int, list[frozenset[Value]]] = {}
    for key in wholes:
        by_size.setdefault(len(key), []).append(key)
    found = []
    for start in by_size.get(2, ()):
        chain = [start]
        while (after := _next(chain[-1], by_size.get(len(chain[-1]) + 1, ()), order)) is not None:
            chain.append(after)
        if len(chain) < 2:
            continue
        place = {source: k for k, source in enumerate(sorted(chain[-1], key=order.__getitem__))}
        found.append(
            [
                Reader(value, tuple(sources), len(sources), tuple(place[source] for source in sources))
                for value, sources in (wholes[key] for key in chain)
            ]
        )
    return found


def _next(
    key: frozenset[Value], larger: Sequence[frozenset[Value]], order: dict[Value, int]
) -> frozenset[Value] | None:
    """The first concatenation that holds these tensors and one that was made after them."""
    last = max(order[source] for source in key)
    return next((each for each in larger if each > key and max(order[value] for value in each - key) > last), None)


def _values(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    for node in graph:
        yield from (operand for operand in node.inputs if operand.constant is not None)
        yield from node.results


def _pick(term: Term, kept: Container[Variable]) -> set[Variable] | None:
    """Coordinates that are not kept and without which a term is empty; None if there are none."""
    term = resolve(term)
    if isinstance(term, Variable):
        return None if term in kept else {term}
    found = [_pick(part, kept) for part in term.parts if part.extent]
    if isinstance(term, Product):
        return next((each for each in found if each is not None), None)
    return None if None in found else {leaf for each in found for leaf in each or ()}


class Cut:
    """A plan to cut connections of one reader.

    Args:
        coupling: of the graph; it stays good for other readers of the same graph after a cut.
        reader: whose connections.
        gone: the sources that are no longer to be read.

    Attributes:
        refused: source → why its connection must stay.
        gone: the others.
    """

    def __init__(self, coupling: Coupling, reader: Reader, gone: Sequence[Value]) -> None:
        self.graph, self.reader = coupling.graph, reader
        self.refused: dict[Value, str] = {}
        self.nodes = self._region(coupling)
        self.gone: list[Value] = []
        self.chosen: dict[Variable, Indices] = {}
        if not self.nodes:
            self.refused = dict.fromkeys(gone, "nothing but another concatenation reads it")
            return
        self._isolate()
        self._choose(list(gone))

    def _choose(self, gone: list[Value]) -> None:
        """Find the coordinates that go with the sources; those that are shared with what stays can't go."""
        while True:
            kept = {leaf for source in self.reader.sources if source not in gone for leaf in leaves(self._term(source))}
            picked = {source: _pick(self._term(source), kept) for source in gone}
            refused = {source: why for source, found in picked.items() if (why := self._why_not(found))}
            if not refused:
                break
            self.refused.update(refused)
            gone = [source for source in gone if source not in refused]
        chosen = {leaf: np.zeros(0, np.int64) for found in picked.values() for leaf in found or ()}
        results = (result for copy in self.copies.values() for result in copy.results)
        terms = (term for result in results for term in self.coupling.axes.get(result, ()))
        if any(extent_of(term, chosen) == 0 != term.extent for term in terms):
            self.refused.update(dict.fromkeys(gone, "something in the layer would have nothing left to read"))
            return
        self.gone, self.chosen = gone, chosen

    def _region(self, coupling: Coupling) -> list[Node]:
        """The nodes between the concatenation and whatever sums over its axis, in the graph's order."""
        whole = self.reader.whole
        marks = set(leaves(coupling.axes[whole][self.reader.axis]))

        def has(value: Value) -> bool:
            return any(leaf in marks for term in coupling.axes.get(value, ()) for leaf in leaves(term))

        found = {
            user: None for user in whole.users if user.op.name != CONCAT or _axis(user.results[0]) != self.reader.axis
        }
        waiting = list(found)
        while waiting:
            node = waiting.pop()
            near = [user for result in node.results if has(result) for user in result.users]
            near += [
                operand.producer
                for operand in node.inputs
                if operand.producer is not None
                and operand is not whole
                and has(operand)
                and operand not in self.reader.sources
            ]
            for each in near:
                if each not in found and each is not whole.producer:
                    found[each] = None
                    waiting.append(each)
        return [node for node in self.graph if node in found] if found else []

    def _isolate(self) -> None:
        """Couple a copy of the region in which each source is made by a weight of its own."""
        whole, axis = self.reader.whole, self.reader.axis
        inside = {result for node in self.nodes for result in node.results}
        outer = dict.fromkeys(
            v for node in self.nodes for v in node.inputs if v.constant is None and v not in inside and v is not whole
        )
        leaving = [
            value for value in inside if value.is_output or any(user not in set(self.nodes) for user in value.users)
        ]
        part = extract(self.nodes, [whole, *outer], leaving)
        self.copies = dict(zip(self.nodes, part, strict=True))
        builder = Builder(part, next(iter(part)))
        made = []
        for source in self.reader.sources:
            assert isinstance(source.type, TensorType) and source.shape is not None
            shape = tuple(1 if k == axis else extent for k, extent in enumerate(source.shape))
            ones = np.ones([self.reader.extent(source) if k == axis else 1 for k in range(len(shape))])
            given = builder.input(TensorType(source.element, shape), "")
            made.append(builder.mul(given, constant_value(constant(ones, source.element))))
        self.parts = dict(zip(self.reader.sources, made, strict=True))
        part.replace(part.inputs[0], builder.concat(*made, axis=axis))
        self.coupling = couple(part)

    def _term(self, source: Value) -> Term:
        """What the axis of a source is made of."""
        return self.coupling.axes[self.parts[source]][self.reader.axis]

    def _why_not(self, found: set[Variable] | None) -> str:
        """Why these coordinates can't go from what the layer reads; empty if they can."""
        if found is None:
            return "it shares coordinates with what stays"
        for leaf in found:
            unit = self.coupling.by_variable.get(leaf)
            if unit is None:
                return "one channel alone is no unit"
            if unit.verdict != "exact":
                return unit.why()
            if unit.silenced or not unit.readers:
                return "no weight reads it"
        for node, copy in self.copies.items():
            for value, original in zip(copy.operands, node.operands, strict=True):
                if original is None or value is None or value.constant is None or not self._has(value, found):
                    continue
                if any(user not in self.copies for user in self._sharing[id(value.constant.source)]):
                    return f"the weight {original.name!r} is used elsewhere, too"
        return ""

    @cached_property
    def _sharing(self) -> dict[int, list[Node]]:
        """Source → the nodes that use constants made of it."""
        found: dict[int, list[Node]] = {}
        for node in self.graph:
            for value in node.inputs:
                if value.constant is not None:
                    found.setdefault(id(value.constant.source), []).append(node)
        return found

    def _has(self, value: Value, found: Container[Variable]) -> bool:
        return any(leaf in found for term in self.coupling.axes.get(value, ()) for leaf in leaves(term))

    @property
    def readers(self) -> dict[Value, list[Unit]]:
        """The weights that lose what they read, in the copy of the region, and the coordinates of that."""
        found: dict[Value, list[Unit]] = {}
        for leaf in self.chosen:
            unit = self.coupling.by_variable[leaf]
            for value in unit.readers:
                found.setdefault(value, []).append(unit)
        return found

    def apply(self, by: str) -> None:
        """Cut the connections that are not refused."""
        if not self.gone:
            return
        reader, graph = self.reader, self.graph
        stay = [source for source in reader.sources if source not in self.gone]
        maker = reader.whole.producer
        assert maker is not None
        builder = Builder(graph, maker, maker.location.touched(by))
        fresh = stay[0] if len(stay) == 1 else builder.concat(*stay, axis=reader.axis)
        for node, copy in self.copies.items():
            for position, (operand, value) in enumerate(zip(list(node.operands), copy.operands, strict=True)):
                if operand is reader.whole:
                    graph.set_operand(node, position, fresh)
                elif (
                    operand is not None
                    and value is not None
                    and value.constant is not None
                    and self._has(value, self.chosen)
                ):
                    held = constant_value(_cut(self.coupling, value, self.chosen), name=operand.name)
                    graph.set_operand(node, position, held)
            equation = self.coupling.equations.get(copy)
            bound = {} if equation is None else equation.bound
            followers = {name: each for name, each in bound.items() if _has(each, self.chosen)}
            if followers:
                _follow(graph, node, followers, self.chosen)
        infer_again(graph, self.nodes, by)
        graph.epochs.weights += 1
        graph.epochs.types += 1

    def zeros(self) -> Iterator[tuple[Node, int, NDArray[Any]]]:
        """What a cut must equal: weights of the uncut graph with zeros where they read what goes, by their places."""
        gone: dict[Value, NDArray[Any]] = {}
        for value, units in self.readers.items():
            array = gone[value] = np.array(value.array)
            for unit in units:
                for axis in range(array.ndim):
                    array[(slice(None),) * axis + (self.coupling.coordinate(value, axis, unit) >= 0,)] = 0
        for node, copy in self.copies.items():
            for position, operand in enumerate(copy.operands):
                if operand in gone:
                    yield node, position, gone[operand]
