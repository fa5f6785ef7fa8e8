"""Ways to make a model larger that change nothing yet, and the pass that takes the one from which most is to be had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from espalier.analysis.choice import chosen_units, patterns_of
from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir import Graph
from espalier.passes.base import GROWS, Context, Pass, graph_pass
from espalier.passes.structure.deepen import insert, spots
from espalier.passes.structure.widen import makers_of, rewrite_rows
from espalier.passes.structure.widening import Repetition, Widening

if TYPE_CHECKING:
    import torch

    from espalier.train.growth import Expansion


def add_indices(graph: Graph, name: str, count: int, seed: int = 0) -> None:
    """Give a unit new indices, made by weights drawn anew, which nothing reads yet: what does has zeros there.

    Raises InputError E202 if there is no such unit, E221 if it may not get any.
    """
    coupling = couple(graph)
    unit = next((unit for unit in coupling.units if unit.name == name), None)
    if unit is None:
        raise InputError("E202", f"no unit is called {name!r}", hint="`espalier inspect --units` lists them.")
    rng = np.random.default_rng(seed)
    old, new = np.arange(unit.extent), rng.integers(0, unit.extent, count)
    shares = np.concatenate([np.ones(unit.extent), np.zeros(count)])
    plan = Widening(coupling, {unit: Repetition(np.concatenate([old, new]), shares)})
    if unit.verdict != "exact" or plan.refused:
        raise InputError("E221", f"{name} can't get new indices: {plan.refused.get(unit) or unit.why()}")
    read = {(scaling.place.value, scaling.place.axis) for scaling in plan.scalings[unit]}
    makers = [maker for maker in makers_of(coupling, plan.accepted) if (maker.value, maker.axis) not in read]
    plan.apply("add_indices")
    for maker in makers:
        held = maker.node.operand(maker.operand)
        deviation = float(held.array.std()) or 1.0

        def drawn(rows: Any, deviation: float = deviation) -> Any:
            return rng.normal(0, deviation, rows.shape)

        rewrite_rows(graph, held, maker.axis, maker.new, drawn)


def expansions(
    graph: Graph, *, count: int = 4, tries: int = 1, deeper: bool = True, only: str = "", seed: int = 0
) -> list[Expansion]:
    """The ways to expand a graph: new indices for each unit that may have them, and layers after each activation.

    Args:
        count: indices that a unit gets.
        tries: how often the weights that make them are drawn, each a way of its own.
        deeper: whether to insert layers.
        only: patterns of units' names, separated by `;`.
    """
    from espalier.ir.clone import clone
    from espalier.train.growth import Expansion

    coupling = couple(graph)
    found = []
    for unit in chosen_units(coupling, patterns_of(only)):
        if unit.verdict != "exact" or not any(makers_of(coupling, {unit: _one_more(unit.extent)})):
            continue
        try:
            add_indices(clone(graph), unit.name, count)
        except InputError:
            continue
        for k in range(tries):

            def wider(target: Graph, name: str = unit.name, draw: int = seed + k) -> None:
                add_indices(target, name, count, draw)

            found.append(Expansion(f"{unit.name}+{count}" + (f" (draw {k + 1})" if tries > 1 else ""), wider))
    for k, spot in enumerate(spots(coupling) if deeper else ()):

        def deep(target: Graph, place: int = k) -> None:
            chosen = list(spots(couple(target)))[place]
            insert(target, chosen, np.random.default_rng(seed), Context(seed=seed))

        found.append(Expansion(f"a layer after {spot.value.name or spot.node.op.name}", deep))
    return found


def _one_more(extent: int) -> Repetition:
    return Repetition(np.append(np.arange(extent), 0), np.append(np.ones(extent), 0.0))


@graph_pass("expand", semantics=GROWS)
class Expand(Pass):
    """Expand where the natural score of the data's gradients rises most: new indices of a unit, or a layer.

    Outputs stay as they are until the model is trained on. Needs data with labels of classes.

    Attributes:
        steps: how many expansions, one after the other.
        count: indices that a unit gets.
        tries: how often the weights that make them are drawn, of which the best are taken.
        deeper: whether to consider layers.
        damping: of the curvature, relative to its mean.
        threshold: what the score must be multiplied by, at least.
        only: patterns of units' names, separated by `;`.
    """

    steps: int = 1
    count: int = 4
    tries: int = 2
    deeper: bool = True
    damping: float = 0.01
    threshold: float = 1.0
    only: str = ""

    def __post_init__(self) -> None:
        for name in ("steps", "count", "tries"):
            if getattr(self, name) < 1:
                raise InputError("E201", f"{name}={getattr(self, name)} is not positive")
        if not self.damping > 0 or not self.threshold >= 1:
            raise InputError("E201", f"damping={self.damping} or threshold={self.threshold} is too small")

    def run(self, graph: Graph, context: Context) -> int:
        if context.data is None:
            raise InputError("E212", "expand looks at gradients, which needs data with labels")
        from espalier.train.growth import gains

        batches = _batches(context.data)
        done = 0
        while done < self.steps:
            found = expansions(
                graph, count=self.count, tries=self.tries, deeper=self.deeper, only=self.only, seed=context.seed + done
            )
            scored = gains(graph, found, batches, _mean_cross_entropy, damping=self.damping)
            best = max(zip(scored, found, strict=True), key=lambda entry: entry[0].gain, default=None)
            if best is None:
                context.reasons["no unit and no activation can be expanded"] += 1
                break
            gain, expansion = best
            if not gain.after > self.threshold * gain.before:
                context.reasons[
                    f"{gain.name} is best, but raises the score {gain.before:.3g} by {gain.gain:.3g} only"
                ] += 1
                break
            if not context.may_rewrite():
                break
            expansion.apply(graph)
            done += 1
        return done


def _batches(data: Any) -> list[tuple[list[torch.Tensor], torch.Tensor | None]]:
    import torch

    from espalier.train.objectives import as_labels

    found: list[tuple[list[torch.Tensor], torch.Tensor | None]] = []
    for batch in data:
        if batch.labels is None:
            raise InputError("E212", "expand needs labels", hint="Give an array `labels` with the data.")
        inputs = [torch.from_numpy(np.array(array)) for array in batch.inputs]
        found.append((inputs, as_labels(batch.labels)))
    return found


def _mean_cross_entropy(module: Any, inputs: Any, labels: Any) -> torch.Tensor:
    from espalier.train.objectives import cross_entropy

    scores = module(*inputs)[0]
    if not scores.is_floating_point():
        raise InputError("E226", "the first output is no score of classes, so that labels say nothing about it")
    return cross_entropy(scores, labels).mean()
