"""Structured pruning: whole indices of units go, everywhere at once, and a smaller model of the same kind remains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espalier import plugins
from espalier.analysis.choice import chosen_units, matches, patterns_of
from espalier.analysis.coupling import Coupling, Unit, couple
from espalier.cost.remaining import Remaining
from espalier.errors import EspalierError, InputError, UnsupportedError
from espalier.ir import Graph
from espalier.passes.base import Context, Pass, approximates, graph_pass
from espalier.passes.structure.criteria import Criterion, parse_criterion
from espalier.passes.structure.importance import (
    AGGREGATES,
    NORMALISERS,
    MadeWeights,
    Scored,
    Scores,
    check_finite,
    parts_of,
)
from espalier.passes.structure.reindex import reindex
from espalier.passes.structure.report import Row, frozen_rows, reason_lines, total_macs, unit_row
from espalier.passes.structure.select import SCOPES, Kept, OwnRatio, Ranked, Selector, signature
from espalier.train.weights import looks_learned


@dataclass
class Start:
    """A model before the first of several rounds of pruning, and what the rounds have left of its units.

    Attributes:
        rows: unit's name → what is said of it, with its extent, in the order of the graph.
        kinds: unit's name → its class (see `signature`).
        left: unit's name → the extent that it has now.
        macs, parameters: as `Remaining` counts them.
        total: the multiply–accumulates, as a polynomial where extents vary.
    """

    rows: Mapping[str, Row]
    kinds: Mapping[str, object]
    left: dict[str, int]
    macs: int
    parameters: int
    total: int | str

    @classmethod
    def of(cls, coupling: Coupling, costs: Remaining) -> Start:
        units = coupling.removable()
        return cls(
            {unit.name: unit_row(unit, "kept", unit.extent) for unit in units},
            {unit.name: signature(coupling, unit) for unit in units},
            {unit.name: unit.extent for unit in units},
            costs.macs, costs.parameters, total_macs(coupling.graph),
        )  # fmt: skip

    def extent(self, name: str) -> int:
        """The extent of a unit at the start."""
        return int(self.rows[name]["extent"])

    def recognise(self, coupling: Coupling) -> None:
        """Give units the names that they had at the start: those of which one index is left are units no more.

        Raises UnsupportedError E412 if the others are not what was left of them, in the order of the graph.
        """
        names, units = [name for name, extent in self.left.items() if extent > 1], coupling.removable()
        if [unit.extent for unit in units] != [self.left[name] for name in names]:
            hint = "Prune it at once, without rounds."
            raise UnsupportedError(
                "E412", "the model has other units after a round of pruning than before it", hint=hint
            )
        for unit, name in zip(units, names, strict=True):
            unit.name = name


@graph_pass("prune", semantics=approximates("drop", math.inf))
class Prune(Pass):
    """Remove the least important indices of units: channels, heads, features, hidden states.

    Attributes:
        ratio: the share of each unit's indices to remove (scope=global, isomorphic: of all units' that are ranked
            together); macs, params: the share of the model's multiply–accumulates or parameters to remove instead.
        criterion: what an index is worth, such as taylor, or magnitude:p=1.
        scope: local, global or isomorphic.
        ratios: units with a ratio of their own: PATTERN:RATIO, several separated by `;`.
        aggregate, normalise: how the scores of a unit's weights become one, and comparable with other units'.
        round_to: axes of weights keep multiples of so many positions; device: of what the device says.
        only, ignore: patterns of units' names, or the names themselves (as `espalier inspect --units` prints them),
            separated by `;`.
        exact_only: leave units alone over which statistics are computed.
        compensate: let the weights that read a unit make up for what goes, by least squares on the data ("data") or
            on noise ("noise"); "" for plain removal.
        samples: how many samples of the data criteria and compensation look at; 0: all.
    """

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    criterion: str = "magnitude"
    scope: str = "local"
    ratios: str = ""
    aggregate: str = "mean"
    normalise: str = "mean"
    round_to: str = "1"
    only: str = ""
    ignore: str = ""
    exact_only: bool = False
    compensate: str = ""
    samples: int = 1024

    def __post_init__(self) -> None:
        for name in ("ratio", "macs", "params"):
            _check_share(name, getattr(self, name))
        targets = [name for name in ("ratio", "macs", "params") if getattr(self, name) is not None]
        if len(targets) > 1 or not (targets or self.ratios):
            raise InputError(
                "E201", f"prune wants one of ratio, macs and params, not {' and '.join(targets) or 'none'}"
            )
        for name, known in (
            ("scope", SCOPES),
            ("aggregate", AGGREGATES),
            ("normalise", NORMALISERS),
            ("compensate", ("", "data", "noise")),
        ):
            if getattr(self, name) not in known:
                raise InputError("E201", f"{name}={getattr(self, name)!r} is none of {', '.join(filter(None, known))}")
        if self.round_to != "device" and not (str(self.round_to).isdigit() and int(self.round_to) > 0):
            raise InputError("E201", f"round_to is a number from 1 on, or device, not {self.round_to!r}")
        if self.samples < 0:
            raise InputError("E201", f"samples={self.samples} is negative")
        self.own_ratios()
        parse_criterion(self.criterion)

    def own_ratios(self) -> list[tuple[str, float]]:
        """The patterns of `ratios` with their ratios, in order. Raises InputError."""
        found = []
        for item in filter(None, map(str.strip, self.ratios.split(";"))):
            pattern, colon, text = item.rpartition(":")
            try:
                ratio = float(text)
            except ValueError:
                colon = ""
            if not colon:
                raise InputError("E201", f"ratios are PATTERN:RATIO, separated by ';', not {item!r}")
            _check_share(f"the ratio of {pattern}", ratio)
            found.append((pattern.strip(), ratio))
        return found

    def own_ratio(self, name: str) -> OwnRatio | None:
        """What `ratios` says of a unit of this name."""
        for position, (pattern, ratio) in enumerate(self.own_ratios()):
            if matches(name, pattern):
                return OwnRatio(position, ratio)
        return None

    def run(self, graph: Graph, context: Context) -> int:
        return self.cut(graph, context)

    def cut(self, graph: Graph, context: Context, start: Start | None = None) -> int:
        """Prune; with a start, shares are of what the model had then, of which some may be gone."""
        coupling = couple(graph)
        costs = Remaining(coupling)
        if start is None:
            start = Start.of(coupling, costs)
        else:
            start.recognise(coupling)
        candidates, scores, kept = self.choose(coupling, costs, start, context)
        if not kept or not context.may_rewrite():
            context.details = _details(self, coupling, start, costs, {}, scores, candidates)
            return 0
        start.left |= {unit.name: len(indices) for unit, indices in kept.items()}
        details = _details(self, coupling, start, costs, kept, scores, candidates)
        details["not_refitted"] = self.remove(coupling, kept, context)
        details["macs"]["after"] = total_macs(graph)
        details["summary"] = _lines(details)
        context.details = details
        return 1

    def choose(
        self, coupling: Coupling, costs: Remaining, start: Start, context: Context
    ) -> tuple[list[Unit], Mapping[Unit, Scores], Kept]:
        """The units that may be pruned, their scores, and what is to stay of those that lose something.

        Raises InputError, and BudgetError E501 if a target is out of reach.
        """
        criterion = parse_criterion(self.criterion)
        data, made_up = context.data, False
        if criterion.needs and data is None and self.compensate == "noise":
            data, made_up = self.noise(coupling.graph, context.seed, self.samples), True
        if criterion.needs and data is None:
            what = f"the criterion {criterion.name} looks at {', '.join(sorted(criterion.needs))}"
            raise InputError("E212", f"{what}, which needs data", hint="Give some with --data, or use magnitude.")
        check_finite(coupling)
        candidates = self.candidates(coupling, start)
        scores = score_units(
            coupling, candidates, criterion, self.aggregate, self.normalise, data, self.samples, context.seed, made_up
        )
        if candidates and not scores:
            raise InputError(
                "E224",
                f"the criterion {criterion.name} has nothing to say about any of the {len(candidates)} units",
                hint="No weight of theirs is of the kind that it scores; use another, such as activation or random.",
            )
        return candidates, scores, self.select(coupling, scores, costs, self.multiple(context), start)

    def remove(self, coupling: Coupling, kept: Kept, context: Context) -> list[Row]:
        """Take the other indices away; gives the weights that compensation had to leave as they were, and why.

        Raises InputError E212 if data are missing.
        """
        if not self.compensate:
            reindex(coupling, kept, self.name)
            return []
        try:
            from espalier.passes.structure.compensate import compensate
            from espalier.train.evidence import pieces_of
            from espalier.train.synthetic import noise
        except ImportError:
            hint = "pip install 'espalier[torch]'"
            raise InputError("E205", "compensation runs the model with torch", hint=hint) from None
        made_up = self.compensate == "noise"
        if not made_up and context.data is None:
            raise InputError("E212", "compensate=data needs data", hint="Give some with --data, or compensate=noise.")
        graph = coupling.graph
        batches = noise(graph, context.seed, self.samples) if made_up else pieces_of(graph, context.data, self.samples)
        return compensate(coupling, kept, batches, self.name, made_up=made_up)

    @staticmethod
    def noise(graph: Graph, seed: int, samples: int) -> Any:
        """Made-up data, for criteria that look at some. Raises InputError E212."""
        from espalier.train.data import Data
        from espalier.train.synthetic import noise

        names = [value.name for value in graph.inputs]
        batches = [dict(zip(names, arrays, strict=True)) for arrays in noise(graph, seed, samples)]
        return Data(batches, tuple(graph.inputs))

    def candidates(self, coupling: Coupling, start: Start) -> list[Unit]:
        """The units that may be pruned. Raises InputError: see `chosen_units`, and E224 if there never were any."""
        for pattern, _ in self.own_ratios():
            chosen_units(coupling, [pattern], gone=start.rows)
        found = [
            unit
            for unit in chosen_units(coupling, patterns_of(self.only), patterns_of(self.ignore), start.rows)
            if not (self.exact_only and unit.verdict != "exact")
        ]
        if not found and all(extent == start.extent(name) for name, extent in start.left.items()):
            frozen = Counter[str]()
            for unit in coupling.units:
                frozen[unit.why()] += unit.extent if isinstance(unit.variable.extent, int) else 1
            if left_out := len(coupling.removable()):
                hint = f"{left_out} could be, but for only, ignore and exact_only."
            elif frozen:
                hint = f"Most indices of its {len(coupling.units)} units are frozen: {frozen.most_common(1)[0][0]}."
            else:
                hint = "No axis of a weight is known."
            raise InputError("E224", "the model has no unit that may be pruned", hint=hint)
        return found

    def select(
        self, coupling: Coupling, scores: Mapping[Unit, Scores], costs: Remaining, multiple: int, start: Start
    ) -> Kept:
        """What stays of each unit that loses something. Raises BudgetError E501 if a target is out of reach."""
        own = {unit: found for unit in scores if (found := self.own_ratio(unit.name)) is not None}
        extents = {unit: start.extent(unit.name) for unit in scores}
        vanished: list[tuple[Ranked, int]] = [
            ((start.kinds[name] if self.scope == "isomorphic" else (), self.own_ratio(name)), start.extent(name))
            for name, extent in start.left.items()
            if extent == 1
        ]
        selector = Selector(coupling, scores, self.scope, multiple, own, extents, vanished)  # type: ignore[arg-type]  # options are plain text, checked
        if self.macs is not None:
            return selector.by_cost(_left(self.macs, start.macs, costs.macs), costs.macs_with, "multiply–accumulates")
        if self.params is not None:
            target = _left(self.params, start.parameters, costs.parameters)
            return selector.by_cost(target, costs.parameters_with, "parameters")
        return selector.by_ratio(self.ratio or 0.0)

    def stays(self, unit: Unit, scores: Mapping[Unit, Scores], candidates: Sequence[Unit]) -> str:
        """Why a unit that could lose indices loses none."""
        if unit not in candidates:
            inexact = self.exact_only and unit.verdict != "exact"
            return f"not exact: {unit.why()}" if inexact else "left out by only or ignore"
        steps = f" in multiples of {self.round_to}" if str(self.round_to) != "1" else ""
        return f"none of its indices were to go{steps}" if unit in scores else f"nothing for {self.criterion} to score"

    def multiple(self, context: Context) -> int:
        """The number of positions that axes keep multiples of. Raises InputError if the device is not known."""
        if self.round_to != "device":
            return int(self.round_to)
        if context.device is None:
            raise InputError("E201", "round_to=device needs a device", hint="Give a number, or --device.")
        return int(context.device.channel_multiple)


def score_units(
    coupling: Coupling,
    units: Sequence[Unit],
    criterion: Criterion,
    aggregate: str = "mean",
    normalise: str = "mean",
    data: Any = None,
    samples: int = 0,
    seed: int = 0,
    made_up: bool = False,
) -> dict[Unit, Scores]:
    """One normalised score per index of each unit that the criterion can score; made_up: the data are noise.

    Raises InputError E205 without torch if data are needed, and what `gather` raises.
    """
    evidence = None
    if criterion.needs:
        try:
            from espalier.train.evidence import gather
        except ImportError:
            message = f"the criterion {criterion.name} runs the model with torch"
            raise InputError("E205", message, hint="pip install 'espalier[torch]'") from None
        needs: Any = criterion.needs  # `gather` says which there are; it is behind torch
        evidence = gather(coupling, data, needs, samples=samples, training=criterion.training, made_up=made_up)
    made = None if criterion.needs & {"gradients", "squares"} else MadeWeights(coupling.graph)  # they have neither
    found: dict[Unit, Scores] = {}
    for position, unit in enumerate(units):
        random = np.random.default_rng([seed, position])
        scored = Scored(unit, parts_of(coupling, unit, looks_learned, made), evidence, random)
        try:
            scores = criterion.score(scored, aggregate, normalise)
        except EspalierError:
            raise
        except Exception as error:  # a fault in somebody's criterion is no fault of ours
            fault = plugins.failure(f"the criterion {criterion.name}", type(criterion).__module__, error)
            if fault is None:
                raise
            raise fault from error
        if scores is None:
            continue
        if scores.shape != (unit.extent,) or not np.all(np.isfinite(scores)):
            raise InputError(
                "E223", f"the scores of {unit.name} by {criterion.name} are not {unit.extent} finite numbers"
            )
        found[unit] = scores
    return found


def _left(share: float, before: int, now: int) -> float:
    """The share of what there is now that must go, for a share of what there was before to be gone."""
    return max(0.0, 1 - (1 - share) * before / now) if now else share


def _check_share(name: str, share: Any) -> None:
    if share is None:
        return
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise InputError("E201", f"{name} must be at least 0 and below 1, not {share!r}")


# ---- what was done, for people and programs ------------------------------------------------------------------


def _details(
    options: Prune,
    coupling: Coupling,
    start: Start,
    costs: Remaining,
    kept: Kept,
    scores: Mapping[Unit, Scores],
    candidates: Sequence[Unit],
) -> dict[str, Any]:
    """What goes where since the start, what stays, and why."""
    chosen = {unit.variable: indices for unit, indices in kept.items()}
    after, parameters = costs.macs_with(chosen), costs.parameters_with(chosen)
    cut = {name: extent for name, extent in start.left.items() if extent < start.extent(name)}
    found: dict[str, Any] = {
        "macs": {"before": start.total, "after": total_macs(coupling.graph), "removed": _share(start.macs, after)},
        "parameters": {
            "before": start.parameters,
            "after": parameters,
            "removed": _share(start.parameters, parameters),
        },
        "cut": [{**start.rows[name], "kept": extent} for name, extent in cut.items()],
        "whole": [
            {"unit": unit.name, "extent": unit.extent, "why": options.stays(unit, scores, candidates)}
            for unit in coupling.removable()
            if unit.name not in cut
        ],
        "frozen": frozen_rows(coupling),
        "not_refitted": [],
    }
    found["summary"] = _lines(found)
    return found


def _share(before: int, after: int) -> float:
    return 1 - after / before if before else 0.0


def _lines(details: Mapping[str, Any]) -> list[str]:
    """The details for people; what is frozen by reason."""
    macs, parameters = details["macs"], details["parameters"]
    lines = [
        f"MACs {macs['before']} → {macs['after']} ({macs['removed']:.1%} removed), "
        f"parameters {parameters['before']} → {parameters['after']} ({parameters['removed']:.1%} removed)"
    ]
    lines += [
        f"cut {row['unit']}: {row['extent']} → {row['kept']}, {row['verdict']}, in {len(row['weights'])} weights"
        for row in details["cut"]
    ]
    lines += [f"whole {row['unit']}: {row['extent']}, {row['why']}" for row in details["whole"]]
    lines += reason_lines("frozen", details["frozen"])
    return [*lines, *reason_lines("not refitted", details["not_refitted"], "weight")]
