"""A graph as a torch module, and back: `to_torch(graph)` trains like any module, `write_back` keeps what it learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from espalier.ir import Graph, Node, Value
from espalier.ir.constants import ArraySource, Constant, View
from espalier.ir.execute import Region
from espalier.ir.graph import constant_value
from espalier.ir.xp import torch as xp

LARGEST_WEIGHT = 1e4
"""A constant with larger elements is a mask or a sentinel, not something learned."""
VIEWS: dict[str, Callable[..., torch.Tensor]] = {
    "transpose": lambda tensor, perm: tensor.permute(perm),
    "reshape": lambda tensor, shape: tensor.reshape(shape),
    "slice": lambda tensor, axis, start, stop, step: tensor[(slice(None),) * axis + (slice(start, stop, step),)],
    "take": lambda tensor, axis, indices: tensor.index_select(axis, torch.tensor(indices, device=tensor.device)),
}
"""The views of constants, as differentiable functions."""


class GraphModule(nn.Module):
    """A graph that runs and trains in torch. Build it by `to_torch`.

    `forward` takes the graph's inputs in order, as tensors, and returns a list of its outputs. Weights that are views
    of one source (tied ones) are one parameter. While training, normalisations use the batch's statistics and move
    their running ones on, as torch's own modules do.

    Attributes:
        weights: constant → the name of its parameter or buffer here.
    """

    def __init__(self, graph: Graph, trainable: Callable[[Value], bool]) -> None:
        super().__init__()
        self.graph = graph
        self.weights: dict[Value, str] = {}
        self._views: dict[Value, tuple[View, ...]] = {}
        self._nodes = graph.nodes
        self._training_ops = [node.op.training() for node in self._nodes]
        self._last_use = _last_uses(self._nodes, graph)
        self._shared: dict[int, str] = {}
        statistics = _statistics(self._nodes)
        for value in _constants(self._nodes, graph):
            self._add(value, value not in statistics and trainable(value))

    def _add(self, value: Value, learns: bool) -> None:
        held = value.constant
        assert held is not None
        name = self._shared.get(id(held.source))
        if name is None:
            name = f"weight_{len(self._shared)}"
            self._shared[id(held.source)] = name
            tensor = xp.asarray(np.array(held.base(0).array)) if held.views else xp.asarray(np.array(held.array))
            if learns:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        elif learns and name in self._buffers:  # another view of it learns
            held_before = self._buffers.pop(name)
            assert held_before is not None
            self.register_parameter(name, nn.Parameter(held_before))
        self.weights[value] = name
        self._views[value] = held.views

    def read(self, value: Value) -> torch.Tensor:
        """A constant as it is now."""
        tensor: torch.Tensor = getattr(self, self.weights[value])
        for view in self._views[value]:
            tensor = VIEWS[view.kind](tensor, *view.arguments)
        return tensor

    def parameter_of(self, value: Value) -> nn.Parameter | None:
        """The parameter behind a constant; None if it does not learn."""
        return self._parameters.get(self.weights[value])

    def forward(self, *inputs: torch.Tensor, observe: Callable[[Node, Sequence[Any]], None] | None = None) -> list[Any]:
        """The outputs. `observe` is told each node and its results, as they are computed."""
        store: dict[Value, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        for position, node in enumerate(self._nodes):
            operands = [None if v is None else self._read(v, store) for v in node.operands]
            op = self._training_ops[position] if self.training else node.op
            keywords: dict[str, Any] = {}
            if node.regions:
                keywords["regions"] = [Region(region, xp, None) for region in node.regions]
            found = op.reference(xp, *operands, **keywords)
            results = found if isinstance(found, tuple) else (found,)
            if op is not node.op:
                self._move_on(node, results)
            if observe is not None:
                observe(node, results[: len(node.results)])
            store.update((v, r) for v, r in zip(node.results, results, strict=False) if v.uses)
            for value in self._last_use.get(node, ()):
                store.pop(value, None)
        return [self._read(output, store) for output in self.graph.outputs]

    def _read(self, value: Value, store: Mapping[Value, Any]) -> Any:
        return self.read(value) if value.constant is not None else store[value]

    @torch.no_grad()
    def _move_on(self, node: Node, results: Sequence[Any]) -> None:
        """Write running statistics, which are results in training, into the operands from which they come."""
        for result, position in node.op.moves_on.items():
            value = node.operand(position)
            if value.constant is not None:
                self.read(value).copy_(results[result].detach())

    def write_back(self, graph: Graph | None = None) -> Graph:
        """Put the weights as they are now into the graph (this module's own by default); returns it.

        Weights that shared a source share the new one.
        """
        graph = graph or self.graph
        sources: dict[str, ArraySource] = {}
        for value, name in self.weights.items():
            held = value.constant
            assert held is not None
            if name not in sources:
                sources[name] = ArraySource(xp.to_numpy(getattr(self, name).detach()).copy())
            fresh = constant_value(Constant(sources[name], held.element, held.shape, held.views), name=value.name)
            for node in value.users:
                if node.graph is graph:
                    for position, operand in enumerate(node.operands):
                        if operand is value:
                            graph.set_operand(node, position, fresh)
            if graph in value.uses:
                graph.set_outputs([fresh if o is value else o for o in graph.outputs], graph.output_names)
        graph.epochs.weights += 1
        return graph


def to_torch(graph: Graph, trainable: Callable[[Value], bool] | None = None) -> GraphModule:
    """The graph as a torch module on the CPU, in evaluation mode. The graph itself stays as it is.

    Args:
        trainable: which constants become parameters; by default those that look learned (`looks_learned`).
    """
    return GraphModule(graph, trainable or looks_learned).eval()


def looks_learned(value: Value) -> bool:
    """Whether a constant is a weight: floats, more than one of them, all finite and none huge."""
    held = value.constant
    if held is None or not held.element.is_float or held.element.bits < 16 or held.size < 2:
        return False
    array = np.asarray(held.array, np.float32)
    largest = float(np.abs(array).max())
    return bool(np.isfinite(largest)) and largest < LARGEST_WEIGHT


def _statistics(nodes: Sequence[Node]) -> set[Value]:
    """The constants that hold running statistics: they move, but do not learn."""
    return {
        operand
        for node in nodes
        for position in node.op.moves_on.values()
        if position < len(node.operands) and (operand := node.operands[position]) is not None
    }


def _constants(nodes: Sequence[Node], graph: Graph) -> Iterator[Value]:
    seen: set[Value] = set()
    operands = (operand for node in nodes for operand in node.operands)
    for value in (*operands, *graph.outputs):
        if value is not None and value.constant is not None and value not in seen:
            seen.add(value)
            yield value


def _last_uses(nodes: Sequence[Node], graph: Graph) -> dict[Node, list[Value]]:
    """Node → the values that nobody needs after it."""
    last: dict[Value, Node] = {}
    for node in nodes:
        for operand in node.inputs:
            if operand.constant is None:
                last[operand] = node
    found: dict[Node, list[Value]] = {}
    for value, node in last.items():
        if value not in graph.outputs:
            found.setdefault(node, []).append(value)
    return found
