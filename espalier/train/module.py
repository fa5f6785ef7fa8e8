"""A graph as a torch module, and back: `to_torch(graph)` trains like any module, `write_back` keeps what it learned."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from espalier.ir import Graph, Node, Value
from espalier.ir.constants import ArraySource, Constant, View, through
from espalier.ir.execute import Region
from espalier.ir.graph import constant_value
from espalier.ir.xp import torch as xp
from espalier.train.weights import looks_learned


class GraphModule(nn.Module):
    """A graph that runs and trains in torch. Build it by `to_torch`.

    `forward` takes the graph's inputs in order, as tensors, and returns a list of its outputs. Weights that are views
    of one source (tied ones) are one parameter. While training, normalisations use the batch's statistics and move
    their running ones on, as torch's own modules do.

    Attributes:
        weights: constant → the name of its parameter or buffer here (and so for what is computed from constants alone).
        views: constant → what makes it of that tensor.
        statistics: the names of the buffers that hold running statistics.
        narrow: the dtype in which convolutions and matrix products of f32 that something learned goes into are
            computed while training, by torch's autocast; None: as the graph says. Whatever lies between them stays.
    """

    def __init__(self, graph: Graph, trainable: Callable[[Value], bool]) -> None:
        super().__init__()
        self.graph = graph
        self.weights: dict[Value, str] = {}
        self.views: dict[Value, tuple[View, ...]] = {}
        self._settled: list[Node] = []
        self._nodes = graph.nodes
        constants = list(_constants(self._nodes, graph))
        statistics = _statistics(self._nodes)
        learning = {value for value in constants if value not in statistics and trainable(value)}
        tied: dict[Any, list[Value]] = {}
        for value in constants:
            held = value.constant
            assert held is not None
            # statistics are written to, so they can't be selections from a tensor that others use
            key = (id(held.source), held.views) if value in statistics else id(held.source)
            tied.setdefault(key, []).append(value)
        for values in tied.values():
            self._add(values, not learning.isdisjoint(values))
        self.statistics = {self.weights[value] for value in statistics if value.constant is not None}
        self._settle(statistics)
        self.keep_statistics(None)
        self.narrow: torch.dtype | None = None
        self._products = self._learned_products()
        self._last_use = _last_uses(self._nodes, graph)

    def _add(self, values: Sequence[Value], learns: bool) -> None:
        """One parameter or buffer for the constants of one source: what their views have in common is done once."""
        held = [value.constant for value in values if value.constant is not None]
        steps = zip(*(constant.views for constant in held), strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda step: all(view == step[0] for view in step), steps))
        name, tensor = f"weight_{len(self._parameters) + len(self._buffers)}", _tensor(held[0].base(common))
        if learns:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)
        for value, constant in zip(values, held, strict=True):
            self.weights[value], self.views[value] = name, constant.views[common:]

    def _settle(self, statistics: Set[Value]) -> None:
        """Compute once what depends only on constants that neither learn nor move, such as amounts of padding."""
        left = []
        for node in self._nodes:
            fixed = node.op.deterministic and not node.op.dequantizes and not node.regions and len(node.operands) > 0
            if not fixed or any(self._may_change(value, statistics) for value in node.operands if value is not None):
                left.append(node)
                continue
            with torch.no_grad():
                found = node.op.reference(xp, *(None if v is None else self.read(v) for v in node.operands))
            results = found if isinstance(found, tuple) else (found,)
            if not all(isinstance(result, torch.Tensor) for result in results):
                left.append(node)
                continue
            self._settled.append(node)
            for value, result in zip(node.results, results, strict=False):
                self.weights[value] = name = f"computed_{len(self._buffers)}"
                self.views[value] = ()
                self.register_buffer(name, result.clone(), persistent=False)
        self._nodes = left

    def _may_change(self, value: Value, statistics: Set[Value]) -> bool:
        return value not in self.weights or value in statistics or self.weights[value] in self._parameters

    def _learned_products(self) -> set[int]:
        """Where the nodes are that sum over products of what something learned went into, by position."""
        learned = {value for value, name in self.weights.items() if name in self._parameters}
        found = set()
        for position, node in enumerate(self._nodes):
            if not learned.isdisjoint(node.inputs):
                learned.update(node.results)
                if node.op.contracts:
                    found.add(position)
        return found

    def identity(self) -> Mapping[str, Any]:
        """What tells this module from others of its graph, as JSON: a checkpoint of another is refused."""
        return {}

    def keep_statistics(self, share: float | None) -> None:
        """Set which share of the running statistics a training step keeps; None: what each operator says."""
        self._training_ops = [node.op.training(share) for node in self._nodes]

    def read(self, value: Value) -> torch.Tensor:
        """A constant as it is now."""
        return self.view(value, getattr(self, self.weights[value]))

    def view(self, value: Value, tensor: torch.Tensor) -> torch.Tensor:
        """What a constant is of a tensor of its parameter's (or buffer's) shape."""
        found: torch.Tensor = through(self.views[value], tensor, xp)
        return found

    def parameter_of(self, value: Value) -> nn.Parameter | None:
        """The parameter behind a constant; None if it does not learn."""
        return self._parameters.get(self.weights[value])

    def forward(self, *inputs: torch.Tensor, observe: Callable[[Node, Sequence[Any]], None] | None = None) -> list[Any]:
        """The outputs. `observe` is told each node and its results, as they are computed."""
        store: dict[Value, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        for node in self._settled if observe is not None else ():
            assert observe is not None
            observe(node, [self.read(value) for value in node.results])
        for position, node in enumerate(self._nodes):
            operands = [None if v is None else self._read(v, store) for v in node.operands]
            op = self._training_ops[position] if self.training else node.op
            keywords: dict[str, Any] = {}
            if node.regions:
                keywords["regions"] = [Region(region, xp, None) for region in node.regions]
            with self._computed_in(position, operands):
                if len(node.results) == 1 and not op.moves_on:
                    results: tuple[Any, ...] = (op.first_result(xp, *operands, **keywords),)
                else:
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

    def _computed_in(self, position: int, operands: Sequence[Any]) -> AbstractContextManager[object]:
        """In what a node is computed: products under autocast if that is asked for."""
        if self.narrow is None or not self.training or position not in self._products:
            return nullcontext()
        device = next(operand.device for operand in operands if operand is not None)
        return torch.autocast(device.type, self.narrow)

    def _read(self, value: Value, store: Mapping[Value, Any]) -> Any:
        return self.read(value) if value in self.weights else store[value]

    @torch.no_grad()
    def _move_on(self, node: Node, results: Sequence[Any]) -> None:
        """Write running statistics, which are results in training, into the operands from which they come."""
        for result, position in node.op.moves_on.items():
            value = node.operand(position)
            if value.constant is not None:
                self.read(value).copy_(results[result].detach())

    def write_back(self, graph: Graph | None = None) -> Graph:
        """Put the weights as they are now into the graph (this module's own by default, or a clone of it); returns it.

        Weights that shared a source share the new one.
        """
        graph = graph or self.graph
        sources: dict[str, ArraySource] = {}
        twins = {id(own.constant): own for own in self.weights if own.constant is not None}
        for value in graph.constants():
            own, held = value if value in self.weights else twins.get(id(value.constant)), value.constant
            if own is None or held is None:
                continue
            name = self.weights[own]
            if name not in sources:
                sources[name] = ArraySource(_array(getattr(self, name), held))
            views = self.views[own]
            fresh = constant_value(Constant(sources[name], held.element, held.shape, views), name=value.name)
            graph.replace_constant(value, fresh)
        graph.epochs.weights += 1
        return graph


def to_torch(graph: Graph, trainable: Callable[[Value], bool] | None = None) -> GraphModule:
    """The graph as a torch module on the CPU, in evaluation mode. The graph itself stays as it is.

    Args:
        trainable: which constants become parameters; by default those that look learned (`espalier.train.weights`).
    """
    return GraphModule(graph, trainable or looks_learned).eval()


def _tensor(held: Constant) -> torch.Tensor:
    return xp.asarray(np.array(held.array))


def _array(tensor: torch.Tensor, held: Constant) -> NDArray[Any]:
    """The tensor's numbers in the dtype that a constant of this element has."""
    array = xp.to_numpy(tensor.detach())
    return array.astype(held.element.storage.dtype)  # a copy: training may go on


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
            if operand.constant is None:  # what was computed from constants stays
                last[operand] = node
    found: dict[Node, list[Value]] = {}
    for value, node in last.items():
        if value not in graph.outputs:
            found.setdefault(node, []).append(value)
    return found
