"""Reference execution: what a graph means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espalier.errors import InputError
from espalier.ir import elements
from espalier.ir.dims import Dim, Dimension, substitute, symbol_name
from espalier.ir.elements import Element
from espalier.ir.graph import Graph, Node, Value
from espalier.ir.types import TensorType, Type
from espalier.ir.xp import numpy as numpy_xp


def execute(
    graph: Graph,
    inputs: Mapping[str, Any] | Sequence[Any],
    xp: Any = numpy_xp,
    *,
    observe: Callable[[Node, Sequence[Any]], None] | None = None,
) -> list[Any]:
    """Run a graph on arrays, by input name or in order, and return its outputs as arrays of `xp`.

    `observe` is told the results of each node. Values are dropped after their last use. Raises InputError for inputs
    that don't fit the declared types, and EspalierError subclasses naming the node for what can't be run.
    """
    if isinstance(inputs, Mapping):
        missing = [value.name for value in graph.inputs if value.name not in inputs]
        unknown = [name for name in inputs if name not in {value.name for value in graph.inputs}]
        if missing or unknown:
            raise InputError("E207", f"inputs don't match: missing {missing}, unknown {unknown}")
        inputs = [inputs[value.name] for value in graph.inputs]
    if len(inputs) != len(graph.inputs):
        raise InputError("E207", f"the graph takes {len(graph.inputs)} inputs, not {len(inputs)}")
    arrays = [xp.asarray(a) if isinstance(v.type, TensorType) else a for a, v in zip(inputs, graph.inputs, strict=True)]
    check_inputs(graph, arrays, xp)
    return run(graph, arrays, xp, observe)


def check_inputs(graph: Graph, arrays: Sequence[Any], xp: Any = numpy_xp) -> None:
    """Raise InputError if arrays don't have the elements, ranks and extents that the graph's inputs declare."""
    symbols: dict[str, tuple[int, str]] = {}
    computed: list[tuple[Value, Dim, int]] = []
    for value, array in zip(graph.inputs, arrays, strict=True):
        if not isinstance(value.type, TensorType):
            continue
        if _held(array, xp) != elements.from_dtype(value.element.dtype):
            raise InputError("E207", f"input {value.name!r} holds {array.dtype}, the model wants {value.type}")
        if value.type.shape is None:
            continue
        shape: tuple[Dimension, ...] = value.type.shape
        if len(shape) != len(array.shape):
            raise InputError("E207", f"input {value.name!r} has rank {len(array.shape)}, the model wants {value.type}")
        for declared, given in zip(shape, array.shape, strict=True):
            if isinstance(declared, int) and declared != given:
                raise InputError(
                    "E207", f"input {value.name!r} has shape {tuple(array.shape)}, the model wants {value.type}"
                )
            name = symbol_name(declared) if isinstance(declared, Dim) else None
            if name is not None and symbols.setdefault(name, (given, value.name))[0] != given:
                other, where = symbols[name]
                raise InputError("E207", f"inputs {where!r} and {value.name!r} disagree on {name}: {other} and {given}")
            if isinstance(declared, Dim) and name is None:
                computed.append((value, declared, given))
    known: dict[str, Dimension] = {name: extent for name, (extent, _) in symbols.items()}
    for value, wanted, extent in computed:
        found = substitute(wanted, known)
        if isinstance(found, int) and found != extent:
            message = f"input {value.name!r} has an extent of {extent} where {wanted} is {found}"
            raise InputError("E207", f"{message}; the model wants {value.type}")


def _held(array: Any, xp: Any) -> Element | None:
    """The element that an array's dtype stands for; None for dtypes that no tensor has."""
    try:
        found: Element = xp.element(array)
    except (KeyError, ValueError):
        return None
    return elements.from_dtype(found.dtype)


@dataclass(frozen=True)
class Region:
    """A region as the reference of its operator sees it: call it with arrays, get a list of arrays."""

    graph: Graph
    xp: Any
    observe: Callable[[Node, Sequence[Any]], None] | None

    def __call__(self, *arrays: Any) -> list[Any]:
        return run(self.graph, arrays, self.xp, self.observe)

    @property
    def result_types(self) -> list[Type]:
        """The types of its outputs (what a loop that never runs stacks nothing of)."""
        return [output.type for output in self.graph.outputs]


def run(
    graph: Graph,
    arrays: Sequence[Any],
    xp: Any = numpy_xp,
    observe: Callable[[Node, Sequence[Any]], None] | None = None,
) -> list[Any]:
    """`execute` without the checks of the inputs."""
    with np.errstate(all="ignore"):  # infinities and NaN are results, not events
        return _run(graph, arrays, xp, observe)


def _run(
    graph: Graph, arrays: Sequence[Any], xp: Any, observe: Callable[[Node, Sequence[Any]], None] | None
) -> list[Any]:
    store: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    left = {value: len(value.uses) for value in graph.inputs}

    def read(value: Value | None) -> Any:
        if value is None:
            return None
        if value.constant is not None and value not in store:
            return xp.asarray(value.constant.array)
        return store[value]

    for node in graph:
        operands = [read(operand) for operand in node.operands]
        keywords: dict[str, Any] = {}
        if node.regions:
            keywords["regions"] = [Region(region, xp, observe) for region in node.regions]
        try:
            found = node.op.reference(xp, *operands, **keywords)
        except InputError as error:
            if error.node is None:
                error.node, error.source = node.results[0].name or node.op.name, str(node.location)
            raise
        results = found if isinstance(found, tuple) else (found,)
        if observe is not None:
            observe(node, results[: len(node.results)])
        for value, result in zip(node.results, results, strict=False):
            if value.uses:
                store[value] = result
                left[value] = len(value.uses)
        for operand in set(node.operands):
            if operand is not None and operand in left:
                left[operand] -= 1
                if not left[operand]:
                    del store[operand]
    return [read(output) for output in graph.outputs]
