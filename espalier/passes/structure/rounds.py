"""Pruning in rounds, between which the model trains: the gradual schedule of arXiv 1710.01878 for whole indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from espalier.analysis.coupling import couple
from espalier.cost.remaining import Remaining
from espalier.errors import InputError
from espalier.ir import Graph
from espalier.ir.clone import clone
from espalier.passes.base import Context, Pass
from espalier.passes.structure.prune import Prune, Start
from espalier.train.masks import gradual


def check_rounds(count: Any) -> None:
    """Raise InputError E201 for what is no number of rounds."""
    if type(count) is not int or count < 1:
        raise InputError("E201", f"rounds={count!r} must be a whole number from 1 on")


class PruneInRounds(Pass):
    """Remove a part, train, and so on: together as much as one `prune`, in smaller and smaller steps.

    Args:
        whole: what is to be removed in all.
        count: of rounds.
        train: a graph, the one before the first round, and the number of the round, from 0, to a copy that has learned.

    Raises:
        InputError: E201 for a count below 1.
    """

    name, semantics = Prune.name, Prune.semantics

    def __init__(self, whole: Prune, count: int, train: Callable[[Graph, Graph, int], Graph]) -> None:
        check_rounds(count)
        self.whole, self.count, self.train = whole, count, train

    @property
    def options(self) -> dict[str, Any]:
        return {**self.whole.options, "rounds": self.count}

    @property
    def spec(self) -> str:
        return self.whole.spec

    def run(self, graph: Graph, context: Context) -> int:
        """Raises what `prune` and training do; BudgetError E501 before anything is removed if all is too much."""
        original, coupling = clone(graph), couple(graph)
        costs = Remaining(coupling)
        start = Start.of(coupling, costs)
        if self.whole.ratio is None:
            self.whole.choose(coupling, costs, start, context)
        for number in range(self.count):
            self.part(number).cut(graph, context, start)
            details = context.details
            take_weights(graph, self.train(graph, original, number))
            context.details = {**details, "rounds": self.count}
        return self.count  # training changes something, too

    def part(self, number: int) -> Prune:
        """What is to be gone after a round."""

        def share(final: float) -> float:
            return gradual(number + 1, final=final, steps=self.count, every=1)

        targets = {name: self.whole.options[name] for name in ("ratio", "macs", "params")}
        shares = {name: None if final is None else share(final) for name, final in targets.items()}
        ratios = ";".join(f"{pattern}:{share(ratio)!r}" for pattern, ratio in self.whole.own_ratios())
        return Prune(**{**self.whole.options, **shares, "ratios": ratios})


def take_weights(graph: Graph, trained: Graph) -> None:
    """Let a graph have the constants of a copy of it."""
    for old, new in zip(graph.constants(), trained.constants(), strict=True):
        if old is not new:
            graph.replace_constant(old, new)
    graph.epochs.weights += 1
