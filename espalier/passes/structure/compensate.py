"""Optimal-brain compensation (OBSPA): what is removed from a unit is made up for by the weights that still read it.

Each weight that sums over a unit is a linear layer y = W·x. Without some of its columns, the rest can do as well as
least squares allows: W' minimises ‖W·x − W'·x'‖² + λ‖W' − W_kept‖² over the data, x being the layer's inputs in the
original and x' those in the pruned model, layer after layer. Where nothing upstream has changed, that is the update of
the optimal brain surgeon for groups of weights; with λ → ∞ it is plain deletion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, Indices, couple
from espalier.cost.remaining import elements_of
from espalier.errors import InputError
from espalier.ir import Graph, Node, Value
from espalier.ir.clone import clone
from espalier.ir.constants import constant
from espalier.ir.terms import Variable, leaves, letters
from espalier.ir.xp import torch as xp
from espalier.passes.structure.importance import MadeWeights
from espalier.passes.structure.reindex import Selection, checked, reindex, replace_here
from espalier.passes.structure.report import Row
from espalier.train.least_squares import Batch, Matrix, Moments, Run
from espalier.train.reads import Read, reads

SHARED = "it is tied, or read by several layers"
NOT_LINEAR = "what reads it is no product of it and something computed (it is quantized, say)"
DAMPING, MADE_UP_DAMPING = 0.01, 0.1


def compensate(
    coupling: Coupling,
    kept: Selection,
    batches: Sequence[Batch],
    by: str,
    *,
    damping: float | None = None,
    made_up: bool = False,
) -> list[Row]:
    """As `reindex`, for indices that leave: but the weights that read a unit make up for what went.

    Running statistics of normalisations move by as much as those of the data did. The coupling is spent afterwards.
    Weights that are tied to others, or that several nodes read, stay as plain deletion leaves them: what suits one of
    their readers does not suit the rest. So do those that no layer is linear in. Gives a row (weight, why) for each.

    Args:
        coupling: of the graph to change.
        kept: the indices that units are to keep.
        batches: inputs on which the layers are matched; noise is better than nothing.
        by: the pass, for the nodes' provenance.
        damping: λ, as a share of the mean of the diagonal of XᵀX; by default 0.01, and 0.1 on noise, whose XᵀX is only
            roughly that of data.
        made_up: the batches are noise. Normalisations then use the batch's statistics on the way, so that what they
            give has the spread that it has on real data, and changes of statistics are scaled to the real ones.

    Raises:
        InputError: as `reindex`, and if there are no batches.
    """
    if not batches:
        raise InputError("E212", "compensation needs data, or noise in their place")
    graph = coupling.graph
    original = clone(graph)
    before = couple(original)
    partners = dict(zip(graph.nodes, original.nodes, strict=True))
    chosen = {
        own.variable: checked(unit, kept[unit])
        for unit, own in zip(coupling.units, before.units, strict=True)
        if unit in kept
    }
    reindex(coupling, kept, by)
    pull = (MADE_UP_DAMPING if made_up else DAMPING) if damping is None else damping
    return _Repair(graph, partners, before, chosen, pull, made_up, shared(graph)).run(batches)


def shared(graph: Graph) -> set[Value]:
    """The constants that are read more than once, or that have elements of their source in common with others."""
    used = [operand for each in graph.all_graphs() for node in each for operand in node.operands if operand is not None]
    counts = Counter(value for value in (*used, *graph.outputs) if value.constant is not None)
    by_source: dict[int, list[Value]] = {}
    for value in counts:
        assert value.constant is not None
        by_source.setdefault(id(value.constant.source), []).append(value)
    found = {value for value, count in counts.items() if count > 1}
    for values in by_source.values():
        if len(values) > 1:
            elements = [np.unique(elements_of(value)) for value in values]
            distinct, times = np.unique(np.concatenate(elements), return_counts=True)
            common = distinct[times > 1]
            found.update(v for v, own in zip(values, elements, strict=True) if np.isin(own, common).any())
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
    shared: set[Value]
    """Constants that must stay as they are."""
    left: dict[Value, None] = field(default_factory=dict)
    """Those of them that would have been changed."""
    runs: list[tuple[Run, Run]] = field(default_factory=list)
    """Of each batch: the original's, the pruned graph's."""

    def run(self, batches: Sequence[Batch]) -> list[Row]:
        old_reads = {read.node: read for read in reads(self.before)}
        new_reads = {read.node: read for read in reads(couple(self.pruned))}
        graphs = (self.before.graph, self.pruned)
        self.runs = [(Run(graphs[0], batch, self.made_up), Run(graphs[1], batch, self.made_up)) for batch in batches]
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
        return [
            *({"weight": value.name, "why": SHARED} for value in self.left),
            *({"weight": value.name, "why": NOT_LINEAR} for value in dict.fromkeys(self.unsolved(old_reads))),
        ]

    def unsolved(self, solved: Mapping[Node, Read]) -> Iterator[Value]:
        """The weights with which other nodes sum over what units have lost, and those that such weights are made of."""
        for variable in self.chosen:
            readers = self.before.by_variable[variable].readers
            yield from (weight for weight in readers if solved.keys().isdisjoint(weight.users))
        made = MadeWeights(self.before.graph)
        for node, equation in self.before.equations.items():
            if node in solved or not node.op.contracts:
                continue
            summed = {letter for letter in equation.contracted() if any(leaf in self.chosen for leaf in leaves(letter))}
            for value, terms in zip(node.operands, equation.operands, strict=False):
                if value in made.values and any(letter in summed for term in terms or () for letter in letters(term)):
                    yield from (origin for origin in made.origins(value) if len(origin.shape or ()) > 1)

    def own(self, *values: Value) -> bool:
        """Whether values may be changed; if not, they are noted."""
        kept = [value for value in values if value in self.shared]
        self.left.update(dict.fromkeys(kept))
        return not kept

    def shrinks(self, read: Read) -> bool:
        """Whether a layer loses some of what it sums over."""
        return any(leaf in self.chosen for letter in read.columns for leaf in leaves(letter))

    def refit(self, old: Read, new: Read) -> None:
        """Solve for the layer's weights, and for what it adds, if it adds something."""
        if not self.own(new.weight):
            return
        shift = new.shift if new.shift is not None and self.own(new.shift) else None
        groups, rows, columns = (old.along(part, self.chosen) for part in (old.groups, old.rows, old.columns))
        moments = Moments(old, new, self.chosen)
        for original, pruned in self.runs:
            moments.add(original.get(old.factor), pruned.get(new.factor))
        weight = old.matrix(np.asarray(old.weight.array, np.float64))[groups][:, rows]
        means = [total / moments.count for total in moments.sums]
        shifted = shift is not None or any(user.op.moves_on for user in new.node.results[0].users)
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
        self.check(old.node, solved)
        self.put(new.weight, new.unmatrix(solved))
        if shift is not None and shift.constant is not None:
            moved = np.einsum("grc,gc->gr", weight, means[0]) - np.einsum("grc,gc->gr", solved, means[1])
            if shift.constant.size == moved.size:
                self.put(shift, shift.array + moved.reshape(shift.array.shape))

    def check(self, node: Node, *arrays: NDArray[Any]) -> None:
        """Raises InputError E223 for numbers that are not finite."""
        if not all(np.isfinite(array).all() for array in arrays):
            what = "noise" if self.made_up else "data"
            message = f"on the {what}, what goes into or comes out of {node.op.name} {node.location} is not finite"
            raise InputError("E223", message, hint="Compensation needs inputs on which all tensors are finite.")

    def put(self, value: Value, array: NDArray[Any]) -> None:
        held = value.constant
        assert held is not None
        replace_here(self.pruned, value, constant(array.astype(held.element.dtype), held.element))

    def move_statistics(self, old: Node, new: Node) -> None:
        """Let running means move, and running variances scale, by as much as those of the data did."""
        if not old.op.moves_on or any(old.operand(k).constant is None for k in old.op.moves_on.values()):
            return
        at_mean, at_variance = old.op.moves_on.values()
        if not self.own(new.operand(at_mean), new.operand(at_variance)):
            return
        was, now = (
            np.mean([self.statistics(run, node) for run in side], axis=0)
            for node, side in zip((old, new), zip(*self.runs, strict=True), strict=True)
        )
        self.check(new, was, now)
        kept = self.before.positions(old.operand(at_mean), 0, self.chosen)
        held = {k: np.asarray(old.operand(k).array, np.float64)[kept] for k in (at_mean, at_variance)}
        was = was[:, kept]
        ratio = np.where(was[1] > 0, held[at_variance] / np.where(was[1] > 0, was[1], 1), 1)
        step = np.sqrt(ratio) if self.made_up else 1.0
        self.put(new.operand(at_mean), held[at_mean] + step * (now[0] - was[0]))
        self.put(new.operand(at_variance), ratio * now[1])

    @staticmethod
    @torch.no_grad()
    def statistics(run: Run, node: Node) -> list[Matrix]:
        """The batch's own mean and variance at a normalisation."""
        op = node.op.training().replace(momentum=0.0)
        found = op.reference(xp, *(None if operand is None else run.get(operand) for operand in node.operands))
        return [np.asarray(xp.to_numpy(found[result]), np.float64) for result in node.op.moves_on]
