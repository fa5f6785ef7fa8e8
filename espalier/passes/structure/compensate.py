"""Optimal-brain compensation (OBSPA): what is removed from a unit is made up for by the weights that still read it.

Each weight that sums over a unit is a linear layer y = W·x. Without some of its columns, the rest can do as well as
least squares allows: W' minimises ‖W·x − W'·x'‖² + λ‖W' − W_kept‖² over the data, x being the layer's inputs in the
original and x' those in the pruned model, layer after layer. Where nothing upstream has changed, that is the update of
the optimal brain surgeon for groups of weights; with λ → ∞ it is plain deletion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, Indices, Unit, couple
from espalier.errors import InputError
from espalier.ir import Graph, Node, Value
from espalier.ir.clone import clone
from espalier.ir.constants import constant
from espalier.ir.execute import Region
from espalier.ir.terms import Variable, leaves
from espalier.ir.xp import torch as xp
from espalier.passes.structure.reads import Read, reads
from espalier.passes.structure.reindex import reindex, replace_here, without

Batch = Sequence[NDArray[Any]]
"""Arrays in the order of the model's inputs."""
Matrix = NDArray[np.float64]


def removal_costs(coupling: Coupling, batches: Sequence[Batch], damping: float = 0.01) -> dict[Unit, Matrix]:
    """What removing each index of each unit costs the layers that read it, once they make up for it.

    ½·Σ W_S (H⁻¹_SS)⁻¹ W_Sᵀ with H = XᵀX + damping·mean(diag)·1, over the columns S that have the index, for each reader
    relative to the power of what it gives, and summed over readers. Units that no linear layer reads are left out.
    """
    layers = {read.node: read for read in reads(coupling)}
    moments = {node: _Moments(read, read) for node, read in layers.items()}
    for batch in batches:
        run = _Run(coupling.graph, batch)
        for node in coupling.graph:
            if node in layers:
                moments[node].add(run.get(layers[node].factor), run.get(layers[node].factor))
            run.step(node)
    live = {unit.variable: unit for unit in coupling.removable()}
    found: dict[Unit, Matrix] = {}
    for node, read in layers.items():
        units = {live[leaf]: None for letter in read.columns for leaf in leaves(letter) if leaf in live}
        weight = read.matrix(np.asarray(read.weight.array, np.float64))
        for own, gram in zip(weight, moments[node].gram, strict=True):
            power = float(np.einsum("rc,cd,rd->", own, gram, own)) or 1.0
            inverse = np.linalg.inv(_damped(gram, damping))
            for unit in units:
                at = read.unit_at(read.columns, unit)
                costs = found.setdefault(unit, np.zeros(unit.extent))
                for index in range(unit.extent):
                    gone = np.flatnonzero(at == index)
                    if len(gone):
                        solved = np.linalg.solve(inverse[np.ix_(gone, gone)], own[:, gone].T)
                        costs[index] += 0.5 * float(np.sum(own[:, gone].T * solved)) / power
    return found


def compensate(
    graph: Graph,
    removed: Mapping[str, Any],
    batches: Sequence[Batch],
    by: str,
    damping: float = 0.01,
    *,
    made_up: bool = False,
) -> Graph:
    """A copy of the graph without the given indices of units, in which what reads them makes up for what went.

    Running statistics of normalisations move by as much as those of the data did.

    Args:
        graph: the original; it stays as it is.
        removed: unit name → indices to remove.
        batches: inputs on which the layers are matched; noise is better than nothing.
        by: the pass, for the nodes' provenance.
        damping: λ, as a share of the mean of the diagonal of XᵀX.
        made_up: the batches are noise. Normalisations then use the batch's statistics on the way, so that what they
            give has the spread that it has on real data, and changes of statistics are scaled to the real ones.

    Raises:
        InputError: for units that the graph lacks or that are frozen, and if there are no batches.
    """
    if not batches:
        raise InputError("E206", "compensation needs data, or noise in their place")
    pruned = clone(graph)
    partners = dict(zip(pruned.nodes, graph.nodes, strict=True))
    before, after = couple(graph), couple(pruned)
    units, own = ({unit.name: unit for unit in found.units} for found in (before, after))
    for name in removed:
        if name not in units:
            raise InputError(
                "E701", f"the model has no unit {name!r}", hint="`espalier inspect MODEL --units` lists them."
            )
    chosen = {units[name].variable: without(units[name], indices) for name, indices in removed.items()}
    reindex(after, {own[name]: chosen[units[name].variable] for name in removed}, by)
    _Repair(pruned, partners, before, chosen, damping, made_up).run(batches)
    return pruned


class _Run:
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


class _Moments:
    """Sums over the data of a layer's inputs in the original (x) and the pruned model (x')."""

    def __init__(self, old: Read, new: Read, groups: Indices | None = None) -> None:
        self.old, self.new, self.groups = old, new, groups
        self.count = 0
        self.gram: Any = 0.0
        """x'ᵀx': (groups, columns', columns')."""
        self.cross: Any = 0.0
        """x'ᵀx: (groups, columns', columns)."""
        self.sums: tuple[Any, Any] = (0.0, 0.0)

    @torch.no_grad()
    def add(self, old: torch.Tensor, new: torch.Tensor) -> None:
        wide_new = self.new.samples(new).double()
        wide_old = wide_new if self.old is self.new else self.old.samples(old).double()
        if self.groups is not None:
            wide_old = wide_old[:, torch.from_numpy(self.groups)]
        self.count += len(wide_new)
        self.gram = self.gram + torch.einsum("ngc,ngd->gcd", wide_new, wide_new).numpy()
        if self.old is not self.new:
            self.cross = self.cross + torch.einsum("ngc,ngd->gcd", wide_new, wide_old).numpy()
        self.sums = self.sums[0] + wide_old.sum(0).numpy(), self.sums[1] + wide_new.sum(0).numpy()


def _damped(gram: Matrix, damping: float) -> Matrix:
    """With inputs that never vary made harmless, as in OBC: a 1 on their diagonal."""
    mean = float(np.mean(np.diag(gram)))
    found = gram + np.eye(len(gram)) * (damping * mean)
    dead = np.diag(found) == 0
    found[dead, dead] = 1.0
    return found


@dataclass
class _Repair:
    """Runs the original and the pruned graph side by side, and mends the pruned one on the way."""

    pruned: Graph
    partners: Mapping[Node, Node]
    before: Coupling
    chosen: Mapping[Variable, Indices]
    damping: float
    made_up: bool
    runs: list[tuple[_Run, _Run]] = field(default_factory=list)
    """Of each batch: the original's, the pruned graph's."""

    def run(self, batches: Sequence[Batch]) -> None:
        old_reads = {read.node: read for read in reads(self.before)}
        new_reads = {read.node: read for read in reads(couple(self.pruned))}
        graphs = (self.before.graph, self.pruned)
        self.runs = [(_Run(graphs[0], batch, self.made_up), _Run(graphs[1], batch, self.made_up)) for batch in batches]
        changed = False
        for node in self.pruned:
            partner = self.partners.get(node)
            if partner is not None:
                old, new = old_reads.get(partner), new_reads.get(node)
                if old is not None and new is not None:
                    changed = changed or self.shrinks(old)
                    if changed:
                        self.refit(old, new)
                if changed:
                    self.move_statistics(partner, node)
            for original, pruned in self.runs:
                if partner is not None:
                    original.step(partner)
                pruned.step(node)

    def shrinks(self, read: Read) -> bool:
        """Whether a layer loses some of what it sums over."""
        return any(leaf in self.chosen for letter in read.columns for leaf in leaves(letter))

    def refit(self, old: Read, new: Read) -> None:
        """Solve for the layer's weights, and for what it adds, if it adds something."""
        groups, rows, columns = (old.along(part, self.chosen) for part in (old.groups, old.rows, old.columns))
        moments = _Moments(old, new, groups)
        for original, pruned in self.runs:
            moments.add(original.get(old.factor), pruned.get(new.factor))
        weight = old.matrix(np.asarray(old.weight.array, np.float64))[groups][:, rows]
        means = [total / moments.count for total in moments.sums]
        shifted = new.shift is not None or any(user.op.moves_on for user in new.node.results[0].users)
        found = []
        for group, own in enumerate(weight):
            gram, cross = moments.gram[group], moments.cross[group]
            if shifted:
                gram = gram - moments.count * np.outer(means[1][group], means[1][group])
                cross = cross - moments.count * np.outer(means[1][group], means[0][group])
            pull = self.damping * float(np.mean(np.diag(gram))) or 1.0
            wanted = cross @ own.T + pull * own[:, columns].T
            found.append(np.linalg.solve(gram + pull * np.eye(len(gram)), wanted).T)
        solved = np.stack(found)
        self.put(new.weight, new.unmatrix(solved))
        if new.shift is not None and new.shift.constant is not None:
            moved = np.einsum("grc,gc->gr", weight, means[0]) - np.einsum("grc,gc->gr", solved, means[1])
            if new.shift.constant.size == moved.size:
                self.put(new.shift, new.shift.array + moved.reshape(new.shift.array.shape))

    def put(self, value: Value, array: NDArray[Any]) -> None:
        held = value.constant
        assert held is not None
        replace_here(self.pruned, value, constant(array.astype(held.element.dtype), held.element))

    def move_statistics(self, old: Node, new: Node) -> None:
        """Let running means move, and running variances scale, by as much as those of the data did."""
        if not old.op.moves_on or any(old.operand(k).constant is None for k in old.op.moves_on.values()):
            return
        at_mean, at_variance = old.op.moves_on.values()
        was, now = (
            np.mean([self.statistics(run, node) for run in side], axis=0)
            for node, side in zip((old, new), zip(*self.runs, strict=True), strict=True)
        )
        kept = self.before.positions(old.operand(at_mean), 0, self.chosen)
        held = {k: np.asarray(old.operand(k).array, np.float64)[kept] for k in (at_mean, at_variance)}
        was = was[:, kept]
        ratio = np.where(was[1] > 0, held[at_variance] / np.where(was[1] > 0, was[1], 1), 1)
        step = np.sqrt(ratio) if self.made_up else 1.0
        self.put(new.operand(at_mean), held[at_mean] + step * (now[0] - was[0]))
        self.put(new.operand(at_variance), ratio * now[1])

    @staticmethod
    @torch.no_grad()
    def statistics(run: _Run, node: Node) -> list[Matrix]:
        """The batch's own mean and variance at a normalisation."""
        op = node.op.training().replace(momentum=0.0)
        found = op.reference(xp, *(None if operand is None else run.get(operand) for operand in node.operands))
        return [np.asarray(xp.to_numpy(found[result]), np.float64) for result in node.op.moves_on]
