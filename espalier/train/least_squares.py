"""Layers as least-squares problems over data: what removing some of what they sum over costs at least."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, Indices, Unit
from espalier.ir import Graph, Node, Value
from espalier.ir.execute import Region
from espalier.ir.terms import Variable, leaves
from espalier.ir.xp import torch as xp
from espalier.train.reads import Read, reads

Batch = Sequence[NDArray[Any]]
"""Arrays in the order of the model's inputs."""
Matrix = NDArray[np.float64]
ROWS_PER_COLUMN, ROWS = 16, 4096
"""Of a batch, at most so many rows (samples at places) per unknown are summed up, and at least so many in all: that is
plenty, and neighbouring places say much the same."""


def removal_costs(
    coupling: Coupling, batches: Sequence[Batch], damping: float = 0.01, *, made_up: bool = False
) -> dict[Unit, Matrix]:
    """What removing each index of each unit costs the layers that read it, once they make up for it.

    ½·Σ W_S (H⁻¹_SS)⁻¹ W_Sᵀ with H = XᵀX + damping·mean(diag)·1, over the columns S that have the index, for each reader
    relative to the power of what it gives, and summed over readers. Indices go one after the other, the cheapest first,
    and what is left makes up for those that are gone: of two that say the same, one is cheap. So costs never fall in
    the order in which indices go. Units that no linear layer reads are left out. Where the batches are made up,
    normalisations use each batch's own statistics on the way.
    """
    layers = {read.node: read for read in reads(coupling)}
    moments = {node: Moments(read, read) for node, read in layers.items()}
    for batch in batches:
        run = Run(coupling.graph, batch, made_up)
        for node in coupling.graph:
            if node in layers:
                moments[node].add(run.get(layers[node].factor), run.get(layers[node].factor))
            run.step(node)
    live = {unit.variable: unit for unit in coupling.removable()}
    readers: dict[Unit, list[Read]] = {}
    for read in layers.values():
        for unit in {live[leaf]: None for letter in read.columns for leaf in leaves(letter) if leaf in live}:
            readers.setdefault(unit, []).append(read)
    return {
        unit: _in_turn(unit.extent, [each for read in found for each in _sums(read, unit, moments[read.node], damping)])
        for unit, found in readers.items()
    }


ROUNDS = 64
"""Indices of large units go so many rounds, several at once."""


@dataclass
class _Sum:
    """A layer y = W·x (of one group) that sums over a unit, while indices of the unit go."""

    weight: Matrix
    inverse: Matrix
    """H⁻¹."""
    at: Indices
    """The unit's index of each column, a row for each time that a column may have it; −1: none."""
    power: float

    def costs(self, extent: int) -> Matrix:
        """Of each index alone; 0 where no column has it."""
        found = np.zeros(extent)
        for columns, indices in self.blocks(extent):
            inner = self.inverse[columns[:, :, None], columns[:, None, :]]
            parts = self.weight[:, columns].transpose(1, 2, 0)
            found[indices] = 0.5 * np.einsum("isr,isr->i", parts, np.linalg.solve(inner, parts)) / self.power
        return found

    def blocks(self, extent: int) -> Iterator[tuple[Indices, Indices]]:
        """The columns of each index (a row each), and the indices: together those that have as many."""
        rows, having = np.nonzero(self.at >= 0)
        found, order = np.unique(np.stack([self.at[rows, having], having]), axis=1)
        counts = np.bincount(found, minlength=extent)
        ends = np.cumsum(counts)
        for count in np.unique(counts[counts > 0]):
            indices = np.flatnonzero(counts == count)
            yield order[(ends[indices] - count)[:, None] + np.arange(count)], indices

    def remove(self, gone: Indices) -> None:
        """Let the other columns make up for those of some indices."""
        away = np.isin(self.at, gone).any(axis=0)
        if away.any():
            step = np.linalg.solve(self.inverse[np.ix_(away, away)], self.inverse[away])
            self.weight = (self.weight - self.weight[:, away] @ step)[:, ~away]
            self.inverse = (self.inverse - self.inverse[:, away] @ step)[np.ix_(~away, ~away)]
            self.at = self.at[:, ~away]


def _sums(read: Read, unit: Unit, moments: Moments, damping: float) -> list[_Sum]:
    """A layer's groups."""
    found = []
    for own, gram in zip(read.matrix(np.asarray(read.weight.array, np.float64)), moments.gram, strict=True):
        power = float(np.einsum("rc,cd,rd->", own, gram, own)) or 1.0
        inverse = np.asarray(np.linalg.inv(damped(gram, damping)), np.float64)
        found.append(_Sum(own, inverse, read.unit_at(read.columns, unit), power))
    return found


def _in_turn(extent: int, sums: Sequence[_Sum]) -> Matrix:
    """What each index costs when its turn comes, and no less than those before it."""
    found = np.zeros(extent)
    left, level, together = np.arange(extent), 0.0, -(-extent // ROUNDS)
    while len(left):
        costs = np.sum([each.costs(extent) for each in sums], axis=0)[left]
        chosen = np.argsort(costs, kind="stable")[:together]
        for position in chosen:
            level = max(level, float(costs[position]))
            found[left[position]] = level
        if len(left) > together:
            for each in sums:
                each.remove(left[chosen])
        left = np.delete(left, chosen)
    return found


class Run:
    """Runs a graph node by node."""

    def __init__(self, graph: Graph, batch: Batch, batch_statistics: bool = False) -> None:
        self.graph, self.batch_statistics = graph, batch_statistics
        self.store: dict[Value, Any] = {
            value: xp.asarray(array) for value, array in zip(graph.inputs, batch, strict=True)
        }
        self.left = {value: len(value.uses) for value in graph.inputs}

    def get(self, value: Value) -> Any:
        return xp.asarray(value.constant.array) if value.constant is not None else self.store[value]

    @torch.no_grad()
    def step(self, node: Node) -> None:
        """Compute a node; drop what nobody needs any more."""
        operands = [None if operand is None else self.get(operand) for operand in node.operands]
        keywords = {"regions": [Region(region, xp, None) for region in node.regions]} if node.regions else {}
        op = node.op.training() if self.batch_statistics else node.op
        found = op.reference(xp, *operands, **keywords)
        for value, result in zip(node.results, found if isinstance(found, tuple) else (found,), strict=False):
            self.store[value], self.left[value] = result, len(value.uses)
        for value in set(node.inputs) & self.left.keys():
            self.left[value] -= 1
            if self.left[value] <= 0:
                del self.store[value]


class Moments:
    """Sums over the data of a layer's inputs in the original (x) and the pruned model (x'), what is chosen of it."""

    def __init__(self, old: Read, new: Read, chosen: Mapping[Variable, Indices] | None = None) -> None:
        self.old, self.new, self.chosen = old, new, chosen
        self.groups = None if chosen is None else old.along(old.groups, chosen)
        self.count = 0
        self.gram: Any = 0.0
        """x'ᵀx': (groups, columns', columns')."""
        self.cross: Any = 0.0
        """x'ᵀx: (groups, columns', columns)."""
        self.sums: tuple[Any, Any] = (0.0, 0.0)

    @torch.no_grad()
    def add(self, old: torch.Tensor, new: torch.Tensor) -> None:
        wide_new = self.new.samples(new)
        wide_old = wide_new if self.old is self.new else self.old.samples(old, self.chosen)
        rows = max(ROWS, ROWS_PER_COLUMN * wide_new.shape[2])
        if len(wide_new) > rows:
            draw = torch.Generator().manual_seed(self.count)
            chosen = torch.randperm(len(wide_new), generator=draw)[:rows]
            wide_new, wide_old = wide_new[chosen], wide_old[chosen]
        wide_new = wide_new.double()
        wide_old = wide_new if self.old is self.new else wide_old.double()
        if self.groups is not None:
            wide_old = wide_old[:, torch.from_numpy(self.groups)]
        self.count += len(wide_new)
        self.gram = self.gram + torch.einsum("ngc,ngd->gcd", wide_new, wide_new).numpy()
        if self.old is not self.new:
            self.cross = self.cross + torch.einsum("ngc,ngd->gcd", wide_new, wide_old).numpy()
        self.sums = self.sums[0] + wide_old.sum(0).numpy(), self.sums[1] + wide_new.sum(0).numpy()


def damped(gram: Matrix, damping: float) -> Matrix:
    """With inputs that never vary made harmless, as in OBC: a 1 on their diagonal."""
    mean = float(np.mean(np.diag(gram)))
    found = gram + np.eye(len(gram)) * (damping * mean)
    dead = np.diag(found) == 0
    found[dead, dead] = 1.0
    return found
