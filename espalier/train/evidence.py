"""What data tell about weights and units, gathered in one sweep for all of them.

With labels the loss is cross-entropy (of the first output; its last axis are the classes). Without, it is the energy of
the outputs, ½·mean y²: what changes it changes what the model says, and unlike the distance to the model's own outputs
it has a gradient where the model stands. Scores that a mask has set to −∞ count as 0 there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, Member, Unit
from espalier.errors import InputError
from espalier.ir import Graph, Node, Value
from espalier.ir.constants import View, through
from espalier.ir.xp import torch as xp
from espalier.train.data import Batch, Data
from espalier.train.least_squares import removal_costs
from espalier.train.module import to_torch
from espalier.train.objectives import as_labels, cross_entropy
from espalier.train.reads import multiplies_two

Need = Literal["gradients", "squares", "activations", "contributions", "costs"]
Array = NDArray[np.float64]
PIECE = 32
"""Samples that are run at once, where the model's batch is not fixed."""


@dataclass
class Evidence:
    """Means over samples."""

    samples: int = 0
    loss: str = ""
    """"cross-entropy" or "output energy"."""
    activations: dict[Unit, Array] = field(default_factory=dict)
    """Unit → mean absolute value at each index, where nodes read it (or else wherever it is)."""
    contributions: dict[Unit, Array] = field(default_factory=dict)
    """Unit → each index's mean share of what its readers sum up, summed over them."""
    costs: dict[Unit, Array] = field(default_factory=dict)
    """Unit → what removing each index costs its readers once they make up for it."""
    _gradients: dict[str, Array] = field(default_factory=dict)
    _squares: dict[str, Array] = field(default_factory=dict)
    _sources: dict[Value, str] = field(default_factory=dict)
    _views: dict[Value, tuple[View, ...]] = field(default_factory=dict)

    def gradient(self, value: Value) -> Array:
        """Of the loss by a constant; of tied weights through all uses."""
        return self._view(self._gradients, value)

    def square(self, value: Value) -> Array:
        """The mean over samples of the squared gradient of each sample's loss."""
        return self._view(self._squares, value)

    def _view(self, held: Mapping[str, Array], value: Value) -> Array:
        found: Array = through(self._views[value], held[self._sources[value]])
        return found


def gather(
    coupling: Coupling,
    data: Data,
    needs: Collection[Need],
    *,
    samples: int = 0,
    training: bool = False,
    made_up: bool = False,
) -> Evidence:
    """Run the model on data, forwards and (for gradients) backwards.

    Args:
        coupling: of the graph.
        needs: what is asked for.
        samples: at most so many (of a model of fixed batch whole batches, and at least one); 0: all.
        training: normalise with the batch's statistics, as before any training one must.
        made_up: the data are noise: the same, for another reason.

    Raises:
        InputError: E206 for data or labels that don't fit; E223 if outputs (but for some that are −∞) or gradients are
            not finite; E226 if no output can be differentiated.
    """
    if set(needs) == {"costs"}:
        return Evidence(costs=removal_costs(coupling, pieces_of(coupling.graph, data, samples), made_up=made_up))
    module = to_torch(coupling.graph)
    module.train(training or made_up)
    evidence = Evidence(_sources=dict(module.weights), _views=dict(module.views))
    watcher = _Watcher(coupling, needs)
    backward = "gradients" in needs or "squares" in needs
    parameters = dict(module.named_parameters())
    for each, held in (("gradients", evidence._gradients), ("squares", evidence._squares)):
        if each in needs:
            held.update({name: np.zeros(tuple(p.shape)) for name, p in parameters.items()})
    fixed = _fixed_batch(coupling.graph.inputs)
    size = fixed or (1 if "squares" in needs else PIECE)
    for piece in _pieces(data, size, samples, whole=fixed is not None):
        inputs = [xp.asarray(np.array(array)) for array in piece.inputs]
        with torch.set_grad_enabled(backward):
            outputs = module(*inputs, observe=watcher.observe)
        if backward:
            losses, evidence.loss = _losses(coupling.graph.output_names, outputs, piece)
            _accumulate(evidence, losses, parameters, coupling)
        watcher.sum_up(inputs, len(piece))
        evidence.samples += len(piece)
    for array in (*evidence._gradients.values(), *evidence._squares.values()):
        array /= max(1, evidence.samples)
    evidence.activations, evidence.contributions = watcher.means()
    if "costs" in needs:
        evidence.costs = removal_costs(coupling, pieces_of(coupling.graph, data, samples), made_up=made_up)
    return evidence


def _accumulate(
    evidence: Evidence, losses: torch.Tensor, parameters: Mapping[str, torch.Tensor], coupling: Coupling
) -> None:
    """Add the gradients of the losses, and the squares of each one's."""
    leaves = list(parameters.values())
    if not losses.requires_grad:
        raise InputError("E226", "no weight has a gradient from the outputs", hint="Use a criterion without gradients.")
    rounds: list[torch.Tensor] = list(losses) if evidence._squares else [losses.sum()]
    for k, loss in enumerate(rounds):
        found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
            loss, leaves, retain_graph=k + 1 < len(rounds), allow_unused=True
        )
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is None:
                continue
            array = gradient.detach().to(torch.float64).numpy()
            if not np.all(np.isfinite(array)):
                value = next(v for v, source in evidence._sources.items() if source == name)
                raise InputError("E223", f"the gradient of {value.name!r} is not finite", node=value.name)
            if evidence._gradients:
                evidence._gradients[name] += array
            if evidence._squares:
                evidence._squares[name] += array * array


def _losses(names: Sequence[str], outputs: Sequence[Any], piece: Batch) -> tuple[torch.Tensor, str]:
    """One loss per sample."""
    floats = {
        n: y for n, y in zip(names, outputs, strict=True) if isinstance(y, torch.Tensor) and y.is_floating_point()
    }
    for name, output in floats.items():
        finite = torch.isfinite(output)
        if not (finite | torch.isneginf(output)).all() or not (finite.any() or output.numel() == 0):
            raise InputError("E223", f"output {name!r} of the model is not finite on the data", node=name)
    if piece.labels is not None:
        if not outputs or not isinstance(outputs[0], torch.Tensor) or not outputs[0].is_floating_point():
            raise InputError("E226", f"output {names[0]!r} is no score of classes, so that labels say nothing about it")
        return cross_entropy(outputs[0].double(), as_labels(piece.labels)), "cross-entropy"
    if not floats:
        raise InputError("E226", "no output is a float, so that there is no gradient")
    losses = torch.zeros(len(piece), dtype=torch.float64)
    for output in floats.values():
        energy = 0.5 * torch.where(torch.isneginf(output), 0, output).double() ** 2
        if output.ndim and len(output) == len(piece):
            losses = losses + energy.reshape(len(piece), -1).mean(1)
        else:  # no axis of samples
            losses = losses + energy.mean()
    return losses, "output energy"


class _Watcher:
    """Sums what units carry, and what share of their readers' sums each index has."""

    def __init__(self, coupling: Coupling, needs: Collection[Need]) -> None:
        self.coupling = coupling
        self.carried: dict[Unit, list[tuple[Value, int]]] = {}
        self.readers: list[tuple[Node, int, int]] = []
        """Nodes that sum over products of a computed operand and a weight, with the positions of both."""
        self.store: dict[Value, torch.Tensor] = {}
        self.sums: dict[Unit, Array] = {}
        self.shares: dict[Unit, Array] = {}
        self.samples = 0
        if "activations" in needs:
            self.carried = {unit: carried(coupling, unit) for unit in coupling.removable()}
        if "contributions" in needs:
            self.readers = list(linear_readers(coupling))
        self.wanted = {value for places in self.carried.values() for value, _ in places}
        self.wanted |= {node.operand(x) for node, x, _ in self.readers}

    def observe(self, node: Node, results: Sequence[Any]) -> None:
        self.store.update((v, r.detach()) for v, r in zip(node.results, results, strict=False) if v in self.wanted)
        for result in results:
            if isinstance(result, torch.Tensor) and result.requires_grad:
                result.register_hook(_finite)  # type: ignore[no-untyped-call]  # torch gives it no type

    def sum_up(self, inputs: Sequence[torch.Tensor], samples: int) -> None:
        """Add what was observed in one run, of so many samples, and forget it."""
        self.samples += samples
        self.store.update((v, t) for v, t in zip(self.coupling.graph.inputs, inputs, strict=True) if v in self.wanted)
        for unit, places in self.carried.items():
            for value, axis in places:
                tensor = self.store[value].abs().double().movedim(axis, 0)
                along = self._by_index(unit, value, axis, tensor.reshape(len(tensor), -1).mean(1).numpy())
                self.sums[unit] = self.sums.get(unit, np.zeros(unit.extent)) + samples / len(places) * along
        for node, x, w in self.readers:
            self._share(node, x, w, samples)
        self.store.clear()

    def _by_index(self, unit: Unit, value: Value, axis: int, along: Array, mean: bool = True) -> Array:
        places = self.coupling.coordinate(value, axis, unit)
        has = places >= 0
        total: Array = np.bincount(places[has], along[has].astype(np.float64), unit.extent).astype(np.float64)
        return total / max(1, int(has.sum()) // unit.extent) if mean else total

    def _share(self, node: Node, x: int, w: int, samples: int) -> None:
        """|x|·|w| summed over one index, by |x|·|w| summed over all: the product rule gives it for all at once."""
        value, weight = node.operand(x), node.operand(w)
        computed = self.store[value].abs().double().requires_grad_()
        constant = xp.asarray(np.array(weight.array)).abs().double()
        operands: list[Any] = [None] * len(node.operands)
        operands[x], operands[w] = computed, constant
        with torch.enable_grad():
            total = node.op.reference(xp, *operands)
        shares = torch.where(total > 0, 1 / total, torch.zeros_like(total)) / max(1, total.numel())
        (back,) = torch.autograd.grad(total, computed, shares)
        product = (back * computed.detach()).numpy()
        for axis in range(product.ndim):
            for unit in self.coupling.of(value, axis):
                if unit.verdict == "frozen" or weight not in unit.readers:
                    continue
                along = np.moveaxis(product, axis, 0).reshape(product.shape[axis], -1).sum(1)
                found = self._by_index(unit, value, axis, along, mean=False)
                self.shares[unit] = self.shares.get(unit, np.zeros(unit.extent)) + samples * found

    def means(self) -> tuple[dict[Unit, Array], dict[Unit, Array]]:
        sums, shares = (
            {unit: total / max(1, self.samples) for unit, total in each.items()} for each in (self.sums, self.shares)
        )
        return sums, shares


def _finite(gradient: torch.Tensor) -> torch.Tensor:
    """Where a derivative does not exist (a root at 0, where a channel is dead) it counts as 0."""
    return torch.nan_to_num(gradient, 0.0, 0.0, 0.0)


def carried(coupling: Coupling, unit: Unit) -> list[tuple[Value, int]]:
    """Where the numbers of a unit are: (value, axis) of what its readers read, or else of all computed values."""
    readers = {user for weight in unit.readers for user in weight.users}
    found, read = [], []
    for value, axis in unit.activations:
        if isinstance(value.shape[axis], int) and (value.element.is_float or value.element.is_integer):
            found.append((value, axis))
            if any(use.node in readers and not use.kept for use in coupling.uses(Member(value, axis), unit)):
                read.append((value, axis))
    return read or found


def linear_readers(coupling: Coupling) -> Iterator[tuple[Node, int, int]]:
    """Nodes that sum products of one computed operand and one weight, and the positions of the two."""
    reading = {node for unit in coupling.removable() for weight in unit.readers for node in weight.users}
    for node in coupling.graph:
        if node in reading and multiplies_two(node):
            factors = [k for k, v in enumerate(node.operands) if v is not None][:2]
            computed = [k for k in factors if node.operand(k).constant is None]
            constants = [k for k in factors if (held := node.operand(k).constant) is not None and held.element.is_float]
            if len(computed) == len(constants) == 1:
                yield node, computed[0], constants[0]


def pieces_of(graph: Graph, data: Data, samples: int = 0) -> list[Sequence[NDArray[Any]]]:
    """The inputs of at most so many samples (0: all), in pieces that the model takes: see `gather`."""
    fixed = _fixed_batch(graph.inputs)
    return [piece.inputs for piece in _pieces(data, fixed or PIECE, samples, whole=fixed is not None)]


def _fixed_batch(inputs: Sequence[Value]) -> int | None:
    extents = {
        None if value.shape is None else value.shape[0] for value in inputs if value.shape is None or value.shape
    }
    fixed = extents.pop() if len(extents) == 1 else None
    return fixed if isinstance(fixed, int) and fixed > 0 else None


def _pieces(data: Data, size: int, samples: int, whole: bool) -> Iterator[Batch]:
    """The data in pieces of at most that many samples, until there were enough: the last one is cut.

    Where that can't be (whole pieces are wanted, or inputs count their samples differently) it is left out, unless it
    is the only one.
    """
    seen = 0
    for batch in data:
        divisible = len({len(array) for array in batch.inputs if array.ndim}) == 1
        step = size if divisible else max(1, len(batch))
        for start in range(0, max(1, len(batch)), step):
            piece = batch.take(slice(start, start + step)) if divisible and len(batch) > step else batch
            left = samples - seen
            if samples and len(piece) > left:
                if divisible and not whole:
                    piece = piece.take(slice(0, left))
                elif seen:
                    return
            yield piece
            seen += len(piece)
            if samples and seen >= samples:
                return
