"""The pass manager: runs passes in a legal order, holds each to its promise, and says what happened."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from espalier.errors import EspalierError, InputError, VerificationError
from espalier.ir import Graph, to_text, verify
from espalier.ir.clone import clone
from espalier.ir.execute import run
from espalier.passes.base import Context, Pass, order
from espalier.passes.replay import Replayer
from espalier.passes.samples import NoSample, sample_inputs, sensitivity
from espalier.train.agreement import disagreement

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

    def run(self, graph: Graph) -> Report:
        """Change the graph in place. Raises VerificationError if a pass breaks its promise."""
        if self.verify not in get_args(VerifyLevel):
            raise InputError("E201", f"verify={self.verify!r} is none of {', '.join(get_args(VerifyLevel))}")
        if self.stop_after is not None and self.stop_after < 0:
            raise InputError("E201", f"stop_after={self.stop_after} is negative")
        names = {each.name for each in self.passes}
        for name in self.print_after:
            if name != "all" and name not in names:
                there = f"The passes are {', '.join(sorted(names)) or 'none'}; all prints after each."
                raise InputError("E202", f"no pass {name!r} runs, after which to print", hint=there)
        with _relaxed_garbage_collection():
            return self._run(graph)

    def _run(self, graph: Graph) -> Report:
        report, context = Report(), Context(self.seed, self.data, self.device, self.stop_after)
        replayer = Replayer(every=self.verify == "all", seed=self.seed)
        original = None
        if self.verify in ("rewrites", "all"):
            context.recorder, original = replayer, clone(graph)
        for each in order(self.passes, graph):
            self._run_pass(each, graph, context, report, replayer)
            if self.verify == "all" and report.passes[-1].rewrites and original is not None:
                verify(graph, "types")
                report.whole_model = compare_models(original, graph, self.seed)
        report.rewrites, report.replayed, report.unreplayed = context.rewrites, replayer.checked, replayer.unchecked
        if self.verify != "none":
            verify(graph, "types" if original is not None else "structure")
        if original is not None:
            report.whole_model = self._whole_model(original, graph, report, context.rewrites)
        return report

    def _whole_model(self, original: Graph, graph: Graph, report: Report, rewrites: int) -> str:
        """Compare the outputs with the original's if there is something to compare that no replay has shown yet."""
        changed = [each for each in report.passes if each.rewrites or each.untold]
        loose = [each.spec for each in changed if each.semantics.startswith("approximates")]
        if loose:
            return f"not compared: {', '.join(loose)} may change the outputs"
        if not changed:
            return "unchanged"
        if self.verify == "all" or report.unreplayed or any(each.untold for each in changed):
            return self._compare(original, graph, rewrites)
        return f"well-formed; each kind of its {rewrites} rewrites was replayed and agrees"

    def _compare(self, original: Graph, graph: Graph, rewrites: int) -> str:
        """`compare_models`; a failure names the first rewrite after which the model disagrees, found by bisection."""
        try:
            return compare_models(original, graph, self.seed)
        except VerificationError as error:
            good, bad = 0, rewrites
            while bad - good > 1:
                middle = (good + bad) // 2
                trial = clone(original)
                PassManager(self.passes, "none", self.seed, middle, data=self.data, device=self.device).run(trial)
                try:
                    compare_models(original, trial, self.seed)
                    good = middle
                except VerificationError:
                    bad = middle
            error.hint = f"The first rewrite after which it disagrees is number {bad}; look with --stop-after {bad}."
            raise

    def _run_pass(self, each: Pass, graph: Graph, context: Context, report: Report, replayer: Replayer) -> None:
        context.reasons = Counter()
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
        untold = context.recorder is not None and changed and replayer.told - told < max(count, 1)
        seconds, verifying = done - start, time.process_time() - done
        report.passes.append(
            PassReport(
                each.spec, str(each.semantics), count, nodes, len(graph), seconds, verifying, context.reasons, untold
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


def compare_models(original: Graph, changed: Graph, seed: int = 0) -> str:
    """Run both on the same made-up inputs; the outcome in words. Raises VerificationError E602 if they disagree."""
    try:
        inputs = sample_inputs(original.inputs, seed)
        with np.errstate(all="ignore"):
            wanted = run(original, inputs)
    except NoSample as error:
        return f"not compared: {error}"
    except Exception as error:  # inputs that were made up need not be ones that the model takes
        return f"not compared: the original does not run on made-up inputs ({type(error).__name__}: {str(error)[:200]})"
    if not all(node.op.deterministic for node in original):
        return "not compared: the model holds random or unknown operators"
    with np.errstate(all="ignore"):
        found = run(changed, inputs)
    worst = 0.0
    for position, (name, a, b) in enumerate(zip(original.output_names, wanted, found, strict=True)):
        if not isinstance(a, np.ndarray) or a.dtype == object:
            continue
        distance, limit = disagreement(a, b)
        worst = max(worst, distance)
        if limit and distance > limit:
            limit = max(limit, 2 * sensitivity(original, inputs, wanted, position, seed))
        if not distance <= limit:
            raise VerificationError(
                "E602",
                f"after the passes, output {name!r} is off by {distance:.3g} of its largest element (limit {limit:g})",
                node=name,
                hint="Find the rewrite with --stop-after K, or run with --verify all.",
            )
    return f"agrees (largest difference {worst:.2g} of the largest output)"


@contextmanager
def _relaxed_garbage_collection() -> Iterator[None]:
    """Large graphs are many small objects; collecting them over and over costs more than all passes."""
    old = gc.get_threshold()
    gc.set_threshold(200_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*old)
