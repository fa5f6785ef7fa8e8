"""Building graphs: one method call per node, with types inferred at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from espalier.ir import elements
from espalier.ir.graph import Graph, Location, Node, Value, as_value
from espalier.ir.inference import infer_node
from espalier.ir.op import Op, lookup
from espalier.ir.types import TensorType, Type


class Builder:
    """Adds nodes to a graph, before a given node or at the end.

    `builder.conv(x, w, b, strides=(2, 2))` adds a node of the operator registered as "conv" and returns its result, or
    a tuple of results if there are several. Operands may be values, arrays, numbers or None; keyword arguments are
    attributes. `results=n` asks for the first n results of an operator with optional or variadic ones. Raises
    TypeInferenceError if the operands don't fit.
    """

    def __init__(self, graph: Graph, before: Node | None = None, location: Location | None = None) -> None:
        self.graph, self.before, self.location = graph, before, location

    def input(self, type: Type, name: str = "") -> Value:
        """A new graph input."""
        return self.graph.add_input(type, name)

    def node(
        self, op: Op, operands: Sequence[Any], *, results: int | None = None, regions: Sequence[Graph] = ()
    ) -> Node:
        """Add a node of an operator instance; None for absent operands."""
        values = [
            v if v is None or isinstance(v, Value) else as_value(v, _like(v, operands) if type(v) in _NUMBERS else None)
            for v in operands
        ]
        while values and values[-1] is None:
            values.pop()
        count = op.required_results if results is None else results
        node = Node(op, values, [_UNKNOWN] * count, regions, self.location)
        infer_node(self.graph, node)
        return self.graph.insert(node, self.before)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            kind = lookup(name)
        except KeyError:
            raise AttributeError(f"no operator is called {name!r}") from None

        def build(*operands: Any, results: int | None = None, regions: Sequence[Graph] = (), **attributes: Any) -> Any:
            made = self.node(kind(**attributes), operands, results=results, regions=regions)
            return made.results[0] if len(made.results) == 1 else tuple(made.results)

        return build


_NUMBERS: dict[type, tuple[str, ...]] = {
    bool: ("bool",),
    int: ("int", "uint", "float", "complex"),
    float: ("float", "complex"),
}
"""Python's numbers, and the kinds of elements that can hold them."""


def _like(number: Any, operands: Sequence[Any]) -> Value | None:
    """The tensor whose element a number takes: the first that can hold such a number."""
    tensors = [v for v in operands if isinstance(v, Value) and isinstance(v.type, TensorType)]
    fitting = [v for v in tensors if v.element.storage.kind in _NUMBERS[type(number)]]
    return next(iter(fitting or tensors), None)


_UNKNOWN: Type = TensorType(elements.F32, None)  # until infer_node has looked, at once
