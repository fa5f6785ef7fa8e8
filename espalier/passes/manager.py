"""The pass manager: runs passes in a legal order, holds each to its promise, and says what happened."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from espalier import plugins
from espalier.errors import EspalierError, InputError, VerificationError
from espalier.ir import Graph, to_text, verify
from espalier.ir.clone import Snapshot, clone
from espalier.ir.garbage import few_collections
from espalier.passes.base import Context, Pass, order
from espalier.passes.replay import Replayer
from espalier.passes.samples import NoSample, Trial, check_seed, run_within, sensitivity, try_graph
from espalier.train.agreement import TOLERANCE, disagreement
from espalier.train.measure import in_words, measure

VerifyLevel = Literal["none", "structure", "rewrites", "all"]


@dataclass
class PassReport:
    """What one pass did."""

    spec: str
    semantics: str
    rewrites: int
    nodes_before: int
    nodes_after: int
    seconds: float
    """Of CPU, replays of its rewrites included."""
    verify_seconds: float = 0.0
    """Of CPU, for the verifier afterwards."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why matches nearly happened."""
    untold: bool = False
    """Whether it changed something without telling the recorder, so that no replay can show that it is right."""
    measured: dict[str, Any] | None = None
    """Of a pass that approximates: how the model after it compares with the one before, on (some of) the data."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the pass itself has to say."""

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "reasons": dict(self.reasons.most_common(20))}


@dataclass
class Report:
    """What a pipeline did, and what of it was checked."""

    passes: list[PassReport] = field(default_factory=list)
    rewrites: int = 0
    replayed: int = 0
    unreplayed: dict[str, str] = field(default_factory=dict)
    """Rule → why rewrites of it could not be replayed."""
    whole_model: str = "not asked for"
    """Outcome of the comparison of the whole model before and after."""

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "passes": [p.to_json() for p in self.passes]}


@dataclass
class _Segment:
    """Passes between two that approximate: what the model was before them, and what was done until then."""

    base: Snapshot | None
    rewrites: int = 0
    start: int = 0
    passes: list[Pass] = field(default_factory=list)

    def bound(self, report: Report) -> float | None:
        """What the outputs may differ by if what changed them promises more than that real arithmetic agrees."""
        reports = report.passes[self.start :]
        changing = [p.semantics for p, done in zip(self.passes, reports, strict=False) if done.rewrites or done.untold]
        if any(semantics.kind == "reassociates" for semantics in changing):
            return None
        return min((semantics.bound for semantics in changing if semantics.kind == "grows"), default=None)


@dataclass
class PassManager:
    """Runs passes over a graph.

    Args:
        passes: in the wanted order; sorted stably by what they require and establish.
        verify: none; structure (after every pass that changed something); rewrites (also replays each kind of
            rewrite once, and checks the whole model at the end: its types always, and its outputs against the original
            model's if a change was not replayed); all (every rewrite, and the model's outputs after every pass).
        stop_after: do at most this many rewrites.
        print_after: names of passes after which `printer` gets the graph's text ("all" for every one).
        dump: a folder for the graph's text when a pass fails.
    """

    passes: Sequence[Pass]
    verify: VerifyLevel = "rewrites"
    seed: int = 0
    stop_after: int | None = None
    print_after: Sequence[str] = ()
    printer: Callable[[str], None] = print
    dump: Path | None = None
    data: Any = None
    device: Any = None
    reference: Graph | None = field(default=None, init=False)
    """After a run: what the outputs must still be. The model right after the last pass that approximates; else None."""

    def run(self, graph: Graph) -> Report:
        """Change the graph in place. Raises VerificationError if a pass breaks its promise."""
        if self.verify not in get_args(VerifyLevel):
            raise InputError("E201", f"verify={self.verify!r} is none of {', '.join(get_args(VerifyLevel))}")
        check_seed(self.seed)
        if self.stop_after is not None and self.stop_after < 0:
            raise InputError("E201", f"stop_after={self.stop_after} is negative")
        names = {each.name for each in self.passes}
        for name in self.print_after:
            if name != "all" and name not in names:
                there = f"The passes are {', '.join(sorted(names)) or 'none'}; all prints after each."
                raise InputError("E202", f"no pass {name!r} runs, after which to print", hint=there)
        with few_collections(all_stays=False):
            return self._run(graph)

    def _run(self, graph: Graph) -> Report:
        report, context = Report(), Context(self.seed, self.data, self.device, self.stop_after)
        replayer = Replayer(every=self.verify == "all", seed=self.seed)
        original = None
        if self.verify in ("rewrites", "all"):
            context.recorder, original = replayer, Snapshot(graph)
        stages: list[str] = []
        segment = _Segment(original)
        for each in order(self.passes, graph):
            approximates = each.semantics.kind == "approximates"
            if approximates:
                stages += self._finish(segment, graph, report, context)
                before = clone(graph)
            self._run_pass(each, graph, context, report, replayer)
            done = report.passes[-1]
            if approximates:
                if done.rewrites or done.untold:
                    done.measured = measure(before, graph, self.data)
                    stages.append(f"{each.name} changes the outputs: {in_words(done.measured)}")
                    self.reference = clone(graph)
                segment = _Segment(original and Snapshot(graph), context.rewrites, len(report.passes))
                continue
            segment.passes.append(each)
            if self.verify == "all" and done.rewrites and segment.base is not None:
                verify(graph, "types")
                compare_models(segment.base.graph, graph, self.seed, self.data)
        report.rewrites, report.replayed, report.unreplayed = context.rewrites, replayer.checked, replayer.unchecked
        if self.verify != "none":
            verify(graph, "types" if original is not None else "structure")
        stages += self._finish(segment, graph, report, context)
        if stages:
            report.whole_model = "; then ".join(stages)
        return report

    def _finish(self, segment: _Segment, graph: Graph, report: Report, context: Context) -> list[str]:
        """The outcome of passes that keep the outputs, where something was to be checked."""
        if segment.base is None or (segment.start and not segment.passes):
            return []
        return [self._whole_model(segment, graph, report, context.rewrites)]

    def _whole_model(self, segment: _Segment, graph: Graph, report: Report, rewrites: int) -> str:
        """Compare the outputs with those at the start if there is something that no replay has shown yet."""
        changed = [each for each in report.passes[segment.start :] if each.rewrites or each.untold]
        if not changed:
            return "unchanged"
        if self.verify == "all" or report.unreplayed or any(each.untold for each in changed):
            return self._compare(segment, graph, rewrites - segment.rewrites, segment.bound(report))
        count = rewrites - segment.rewrites
        return f"well-formed; each kind of its {count} rewrites was replayed and agrees"

    def _compare(self, segment: _Segment, graph: Graph, rewrites: int, bound: float | None) -> str:
        """`compare_models`; a failure names the first rewrite after which the model disagrees, found by bisection."""
        assert segment.base is not None
        base = segment.base.graph
        try:
            return compare_models(base, graph, self.seed, self.data, bound)
        except VerificationError as error:
            good, bad = 0, rewrites
            while bad - good > 1:
                middle = (good + bad) // 2
                trial = clone(base)
                PassManager(segment.passes, "none", self.seed, middle, data=self.data, device=self.device).run(trial)
                try:
                    compare_models(base, trial, self.seed, self.data, bound)
                    good = middle
                except VerificationError:
                    bad = middle
            bad += segment.rewrites
            error.hint = f"The first rewrite after which it disagrees is number {bad}; look with --stop-after {bad}."
            raise

    def _run_pass(self, each: Pass, graph: Graph, context: Context, report: Report, replayer: Replayer) -> None:
        context.reasons, context.details = Counter(), {}
        before, told, topology = context.rewrites, replayer.told, graph.epochs.topology
        nodes, start = len(graph), time.process_time()
        try:
            count = max(each.run(graph, context), context.rewrites - before)
            done = time.process_time()
            changed = count > 0 or graph.epochs.topology != topology
            if self.verify != "none":
                if changed:
                    verify(graph, "structure")
                if self.stop_after is None:
                    _check_established(each, graph)
        except EspalierError as error:
            self._dump(graph, each, error)
            raise
        except Exception as error:
            refusal = plugins.failure(f"the pass {each.name}", type(each).__module__, error)
            if refusal is None:
                raise
            self._dump(graph, each, refusal)
            raise refusal from error
        untold = context.recorder is not None and changed and replayer.told - told < max(count, 1)
        seconds, verifying = done - start, time.process_time() - done
        report.passes.append(
            PassReport(
                each.spec,
                str(each.semantics),
                count,
                nodes,
                len(graph),
                seconds,
                verifying,
                context.reasons,
                untold,
                details=context.details,
            )
        )
        if each.name in self.print_after or "all" in self.print_after:
            self.printer(f"# after {each.spec}\n{to_text(graph)}")

    def _dump(self, graph: Graph, each: Pass, error: EspalierError) -> None:
        if self.dump is None:
            return
        self.dump.mkdir(parents=True, exist_ok=True)
        path = self.dump / f"failed-{each.name}.txt"
        path.write_text(f"# {each.spec} failed: {error.code}\n{to_text(graph)}", encoding="utf-8")
        error.hint = f"{error.hint or ''} The graph at that moment is in {path}.".strip()


def _check_established(each: Pass, graph: Graph) -> None:
    """Raise VerificationError E602 if something that a pass says it establishes does not hold after it."""
    for predicate in each.establishes:
        if not predicate.holds(graph):
            raise VerificationError(
                "E602",
                f"{each.spec} ends without what it establishes: {predicate.name}",
                hint="Its code does not keep its promise; later passes rest on that.",
            )


def compare_models(original: Graph, changed: Graph, seed: int = 0, data: Any = None, bound: float | None = None) -> str:
    """Run both on the first samples of the data, or on the same made-up inputs; the outcome in words.

    Args:
        bound: how far apart outputs of 32 bits and more may be, relative to the largest number of each; what rounding
            explains is always allowed.

    Raises VerificationError E602 if they disagree, InputError if the original does not run on the data.
    """
    if not original.is_deterministic:
        return "not compared: the model holds random or unknown operators"
    try:
        trial = try_graph(original, seed, data)
    except NoSample as error:
        return f"not compared: {error}"
    if trial.is_empty:
        return "not compared: all outputs are empty"
    try:
        return _compare_on(trial, original, changed, seed, bound)
    except NoSample as error:
        return f"not compared: {error}"


def _compare_on(trial: Trial, original: Graph, changed: Graph, seed: int, bound: float | None) -> str:
    """`compare_models` on inputs with the original's outputs. Raises NoSample if that is too much to run."""
    inputs, wanted = trial
    found = run_within(changed, inputs)
    worst = 0.0
    for position, (name, a, b) in enumerate(zip(original.output_names, wanted, found, strict=True)):
        if not isinstance(a, np.ndarray) or a.dtype == object:
            continue
        distance, limit = disagreement(a, b)
        worst, change = max(worst, distance), 2.0**-16
        if bound is not None and 0 < limit <= TOLERANCE[4]:
            limit, change = min(limit, bound), 2.0**-20
        if limit and distance > limit:
            limit = max(limit, 2 * sensitivity(original, inputs, wanted, position, seed, change))
        if not distance <= limit:
            raise VerificationError(
                "E602",
                f"after the passes, output {name!r} is off by {distance:.3g} of its largest element (limit {limit:g})",
                node=name,
                hint="Find the rewrite with --stop-after K, or run with --verify all.",
            )
    return f"agrees (largest difference {worst:.2g} of the largest output)"
