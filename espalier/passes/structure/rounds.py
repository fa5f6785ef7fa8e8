"""Pruning in rounds, between which the model may train: the gradual schedule of arXiv 1710.01878 for whole indices."""

from __future__ import annotations

from typing import Any

from espalier.analysis.coupling import couple
from espalier.cost.remaining import Remaining
from espalier.errors import InputError
from espalier.ir import Graph
from espalier.passes.base import Context, Pass
from espalier.passes.structure.prune import Prune, Start
from espalier.train.masks import gradual


class PruningRound(Pass):
    """One of several passes `prune` that make up one: its shares are of the model before the first of them."""

    name, semantics = Prune.name, Prune.semantics

    def __init__(self, prune: Prune, starts: list[Start]) -> None:
        self.prune, self.starts = prune, starts

    @property
    def options(self) -> dict[str, Any]:
        return self.prune.options

    @property
    def spec(self) -> str:
        return self.prune.spec

    def run(self, graph: Graph, context: Context) -> int:
        if not self.starts:
            coupling = couple(graph)
            self.starts.append(Start.of(coupling, Remaining(coupling)))
        return self.prune.cut(graph, context, self.starts[0])


def in_rounds(prune: Prune, count: int) -> list[Pass]:
    """Passes that remove more and more, in smaller and smaller steps; together as much as the one. They run in order.

    Raises InputError E201 for a count below 1.
    """
    if count < 1:
        raise InputError("E201", f"rounds={count} must be at least 1")
    starts: list[Start] = []
    found: list[Pass] = []
    for number in range(1, count + 1):

        def part(share: float, number: int = number) -> float:
            return gradual(number, final=share, steps=count, every=1)

        targets = {name: prune.options[name] for name in ("ratio", "macs", "params")}
        shares = {name: None if share is None else part(share) for name, share in targets.items()}
        ratios = ";".join(f"{pattern}:{part(ratio)!r}" for pattern, ratio in prune.own_ratios())
        found.append(PruningRound(Prune(**{**prune.options, **shares, "ratios": ratios}), starts))
    return found
