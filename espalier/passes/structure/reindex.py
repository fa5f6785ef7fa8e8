"""The one mechanism under pruning and growth: every axis that has a unit gets the chosen indices of it.

Fewer indices prune, repeated ones widen. Constants get views, attributes and shape operands that follow a term get its
new extent, and types are inferred again along what changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from espalier.analysis.coupling import Coupling, Indices, Unit, describe, positions
from espalier.cost.remaining import measure
from espalier.errors import InputError
from espalier.ir import Builder, Graph, Node, Value, constant_value
from espalier.ir.axes import Binding, FromEnd
from espalier.ir.constants import Constant, constant
from espalier.ir.dims import floor_divide, product
from espalier.ir.inference import infer_node
from espalier.ir.terms import Product, Sum, Variable, flatten, leaves

Selection = Mapping[Unit, Indices]
"""Unit → the indices that it is to have, in order; those of today may be left out or stand several times."""


def reindex(coupling: Coupling, selection: Selection, by: str) -> None:
    """Give units other indices, everywhere at once. The coupling is spent afterwards.

    Args:
        coupling: of the graph to change, which must not have changed since.
        selection: the indices that each unit is to have.
        by: the pass that does so, for the nodes' provenance.

    Raises:
        InputError: for a frozen unit, for indices that a unit does not have, and where a unit would become empty.
    """
    chosen = {unit.variable: checked(unit, indices) for unit, indices in selection.items()}
    graph = coupling.graph
    dirty: set[Node] = set()
    for value in {member.value: None for unit in selection for member in unit.weights}:
        dirty.update(replace_here(graph, value, _cut(coupling, value, chosen)))
    for node, equation in coupling.equations.items():
        followers = {name: bound for name, bound in equation.bound.items() if _has(bound, chosen)}
        if followers:
            _follow(graph, node, followers, chosen)
            dirty.add(node)
    infer_again(graph, dirty, by)
    graph.epochs.weights += 1
    graph.epochs.types += 1


def checked(unit: Unit, indices: Any) -> Indices:
    """The indices as an array, if the unit can have them. Raises InputError."""
    found = np.asarray(indices, np.int64).reshape(-1)
    if unit.verdict == "frozen":
        raise InputError(
            "E221", f"{unit.name} is frozen: {unit.why()}", hint="`espalier inspect --units` lists others."
        )
    if not len(found):
        raise InputError("E222", f"{unit.name} would lose all of its {unit.extent} indices")
    if found.min() < 0 or found.max() >= unit.extent:
        raise InputError(
            "E222", f"{unit.name} has the indices 0 to {unit.extent - 1}, not {found.min()} to {found.max()}"
        )
    return found


def without(unit: Unit, removed: Any) -> Indices:
    """The indices that a unit keeps if some are removed."""
    keep = np.ones(unit.extent, bool)
    keep[np.asarray(removed, np.int64)] = False
    return np.flatnonzero(keep)


def zeroed(coupling: Coupling, removed: Mapping[Unit, Any]) -> None:
    """Write zeros where indices of exact units would be removed: what removal must equal.

    Zeros go to the weights that read a unit and, where a node sums over it without a weight, to those that produce it.
    The coupling is spent afterwards.
    """
    slices: dict[Value, list[tuple[Unit, Indices]]] = {}
    for unit, indices in removed.items():
        for value in {**unit.readers, **coupling.producers(unit, unit.silenced)}:
            slices.setdefault(value, []).append((unit, np.asarray(indices, np.int64)))
    for value, parts in slices.items():
        assert value.constant is not None
        array = np.array(value.array)
        for axis in range(array.ndim):
            for unit, indices in parts:
                gone = np.isin(coupling.coordinate(value, axis, unit), indices)
                array[(slice(None),) * axis + (gone,)] = 0
        replace_here(coupling.graph, value, constant(array, value.constant.element))


def _cut(coupling: Coupling, value: Value, chosen: Mapping[Variable, Indices]) -> Constant:
    held = value.constant
    assert held is not None
    for axis, term in enumerate(coupling.axes[value]):
        if any(leaf in chosen for leaf in leaves(term)):
            held = held.take(axis, positions(term, chosen).tolist())
    return held


def replace_here(graph: Graph, old: Value, new: Constant) -> list[Node]:
    """Let this graph (but no copy of it that shares the constant) use another constant; gives the users."""
    return graph.replace_constant(old, constant_value(new, name=old.name))


def _has(bound: Binding, chosen: Mapping[Variable, Indices]) -> bool:
    if isinstance(bound, Variable | Product | Sum):
        return any(leaf in chosen for leaf in leaves(bound))
    if isinstance(bound, FromEnd):
        return _has(bound.term, chosen)
    return any(_has(part, chosen) for part in bound)


def _follow(graph: Graph, node: Node, followers: Mapping[str, Binding], chosen: Mapping[Variable, Indices]) -> None:
    """Give attributes and operands that hold extents the new ones."""
    attributes = {name: measure(bound, chosen) for name, bound in followers.items() if name in node.op.defaults}
    if attributes:
        graph.set_op(node, node.op.replace(**attributes))
    for name, bound in followers.items():
        if name not in node.op.defaults:
            position = node.op.operand_position(name)
            graph.set_operand(node, position, _extents(graph, node, node.operand(position), bound, chosen))


def _extents(graph: Graph, node: Node, old: Value, bound: Binding, chosen: Mapping[Variable, Indices]) -> Value:
    """An operand that holds extents, with those that changed; entries that copy or follow (0, −1) stay as they are."""
    content = old.known
    if content is None or not isinstance(bound, list | tuple):
        raise InputError("E221", f"the extents that {describe(node)} reads are not known", node=node.op.name)
    if old.constant is not None:
        pairs = zip(content.reshape(-1).tolist(), bound, strict=True)
        fresh = [measure(part, chosen) if entry == measure(part, {}) else entry for entry, part in pairs]
        return constant_value(np.array(fresh, content.dtype).reshape(content.shape), name=old.name)
    entries = zip(content.reshape(-1).tolist(), bound, strict=True)
    stays = (1, 1, 0)
    columns = zip(
        *(_correction(node, part, chosen) if entry == measure(part, {}) else stays for entry, part in entries),
        strict=True,
    )
    divisor, factor, offset = (constant_value(np.array(c, np.int64).reshape(content.shape)) for c in columns)
    builder = Builder(graph, node, node.location)
    found: Value = builder.add(builder.mul(builder.div(old, divisor), factor), offset)
    return found


def _correction(node: Node, bound: Binding, chosen: Mapping[Variable, Indices]) -> tuple[int, int, int]:
    """Numbers d, f, o such that extent / d · f + o is the new extent, whatever the symbols in it are."""
    was, new = measure(bound, {}), measure(bound, chosen)
    if isinstance(was, int) and isinstance(new, int):
        return 1, 0, new
    if isinstance(difference := new - was, int):
        return 1, 1, difference
    term = bound.term if isinstance(bound, FromEnd) else bound
    factors = flatten(term, Product) if isinstance(term, Variable | Product | Sum) else []
    static = [factor for factor in factors if isinstance(factor.extent, int)]
    divisor, factor = (product(measure(part, held) for part in static) for held in ({}, chosen))
    if isinstance(divisor, int) and isinstance(factor, int) and divisor and floor_divide(was, divisor) * factor == new:
        return divisor, factor, 0
    raise InputError("E221", f"the extent {was} that {describe(node)} reads cannot follow to {new}", node=node.op.name)


def infer_again(graph: Graph, dirty: Iterable[Node], by: str) -> None:
    """Infer types anew at the nodes that changed, and at whatever reads what became different there."""
    waiting = set(dirty)
    for node in graph:
        if node not in waiting:
            continue
        before = [(result.type, result.content) for result in node.results]
        for result in node.results:
            result.content = None
        infer_node(graph, node)
        for result, (type, content) in zip(node.results, before, strict=True):
            if result.type != type or not _same(result.content, content):
                node.location = node.location.touched(by)
                waiting.update(result.users)


def _same(a: Any, b: Any) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))
