"""Speed on the CPU: artifacts of ours beside onnxruntime, OpenVINO and torch.compile, in fp32, bf16 and int8.

Every engine runs in a process of its own, which is stopped by signal while it is not its turn. In each round every
engine has one turn of several calls; a ratio is the median over rounds, with its 95 % bootstrap interval. OpenVINO and
NNCF live in an environment of their own (`make venv-peers`); engines that are not installed are left out and named.

Models, quantized models, artifacts and measurements are kept in build/cpu, each under a hash of what it depends on, so
that a run that was interrupted goes on where it stopped; `--fresh` measures everything again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark, data_folder
from benchmarks.cpu_bars import (
    INSTRUCTIONS,
    Bars,
    answer_bars,
    compile_bars,
    memory_bars,
    random_bars,
    speed_bars,
    table,
)
from benchmarks.cpu_bars import lacks_bf16 as no_bf16
from benchmarks.cpu_models import DEPLOYED, REAL, Prepared, available, prepare
from benchmarks.cpu_quantize import QUANTIZERS, quantized
from benchmarks.cpu_random import COUNT, PATIENCE, QUICK_COUNT, check_all, key
from benchmarks.cpu_random import PRECISIONS as RANDOM_PRECISIONS
from benchmarks.cpu_runs import Case, Compiled, Runs, compile_artifact
from benchmarks.cpu_turns import OURS, PEERS, ROOT, interpreter_with
from espalier.runtime.cpu import instruction_sets, plain

FOLDER = ROOT / "build" / "cpu"
ROUNDS, QUICK_ROUNDS = 15, 5
COMPILE_LIMIT, QUICK_COMPILE_LIMIT = 900.0, 20.0
"""Seconds after which our compiler counts as failed."""
TUNE = 60
"""Seconds in which each model is tuned before it is compiled with what is known then."""
PRECISIONS = ("fp32", "bf16", "int8")
BATCHED = ("resnet18", "mobilenet_v2", "minilm", "resnet20")
BATCHES = (8, 32)


class CpuBenchmark(Benchmark):
    """A benchmark whose result tells the processor's instruction sets and the versions of the peers.

    Attributes:
        engines: Versions of the engines that ran.
    """

    def __init__(self) -> None:
        super().__init__("cpu", __doc__)
        self.engines: dict[str, str] = {}

    def result(self) -> dict[str, Any]:
        found = super().result()
        found["machine"]["instruction_sets"] = instructions()
        found["versions"].update({name: version for name, version in self.engines.items() if name != OURS})
        return found


def instructions() -> list[str]:
    """Those of this processor that matter for speed."""
    present = instruction_sets() or frozenset()
    return [name for name in INSTRUCTIONS if plain(name) in present]


class Progress:
    """Measurements by key in a file that is replaced whole, so that nothing is lost when a run is interrupted."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() and not fresh else {}

    def keep(self, key: str, found: Any) -> Any:
        self.known[key] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(self.known))
        temporary.replace(self.path)
        return found


class Measurements:
    """Everything that one run measures, model by model."""

    def __init__(self, benchmark: CpuBenchmark, runs: Runs, progress: Progress) -> None:
        self.benchmark, self.runs, self.progress = benchmark, runs, progress
        self.rows: list[dict[str, Any]] = []
        self.compiled: dict[str, dict[str, Any]] = {}
        self.memory: dict[str, dict[str, Any]] = {}
        self.crowds: dict[str, dict[str, Any]] = {}
        self.arenas: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self.random: list[dict[str, Any]] = []

    def random_networks(self, count: int) -> None:
        """So many random networks, each at both precisions."""
        seed, known = self.benchmark.arguments.seed, self.progress.known
        jobs = [(seed + k, precision) for k in range(count) for precision in RANDOM_PRECISIONS]
        keys = {job: key(*job) for job in jobs}

        def told(job: tuple[int, str], row: dict[str, Any]) -> None:
            self.progress.keep(keys[job], row)
            if not row["agrees"]:
                said = row.get("failed") or f"differs by {row['difference']:.2g}"
                self.benchmark.say(f"random network {job[0]}, {job[1]}: {said}")

        check_all((job for job in jobs if keys[job] not in known), PATIENCE, told)
        self.random = [known[keys[job]] for job in jobs]

    def model(self, name: str, threads: list[int], precisions: list[str], batches: tuple[int, ...]) -> None:
        """All cases of a model."""
        seed, say = self.benchmark.arguments.seed, self.benchmark.say
        try:
            prepared = prepare(name, 1, seed, FOLDER)
        except RuntimeError as error:
            self.left_out[name] = str(error)
            say(f"{name} is left out: {error}")
            return
        if "fp32" in precisions:
            compiled = self._compile(prepared, prepared.model, "fp32")
            self.compiled[name] = {
                "seconds": compiled.seconds, "cpu_seconds": compiled.cpu_seconds, "failed": compiled.failed,
            }  # fmt: skip
            if not self.benchmark.arguments.quick:
                warm = self._compile_warm(prepared)
                self.compiled[name] |= {"warm_seconds": warm.seconds, "warm_failed": warm.failed}
            self.arenas[name] = arena(compiled.path)
            for count in threads:
                self._row(Case(name, "fp32", 1, count), prepared, prepared.model, prepared.wanted, compiled)
            self._once(Case(name, "fp32", 1, max(threads)), prepared, compiled)
        if "bf16" in precisions and no_bf16(instructions()) is None:
            compiled = self._compile(prepared, prepared.model, "bf16")
            for count in threads:
                self._row(Case(name, "bf16", 1, count), prepared, prepared.model, prepared.wanted, compiled)
        if "int8" in precisions:
            self._integers(name, prepared, threads)
        if "fp32" in precisions:
            for batch in batches:
                larger = prepare(name, batch, seed, FOLDER)
                compiled = self._compile(larger, larger.model, "fp32")
                for count in threads:
                    self._row(Case(name, "fp32", batch, count), larger, larger.model, larger.wanted, compiled)

    def _integers(self, name: str, prepared: Prepared, threads: list[int]) -> None:
        """The QDQ models of both quantizers; the quick run takes onnxruntime's only."""
        for quantizer in QUANTIZERS[:1] if self.benchmark.arguments.quick else QUANTIZERS:
            python = interpreter_with(quantizer)
            if python is None:
                self.left_out[f"{name} by {quantizer}"] = f"{quantizer} is not installed"
                continue
            made = quantized(prepared, quantizer, python, self.benchmark.arguments.seed, FOLDER)
            if made.failed is not None:
                self.left_out[f"{name} by {quantizer}"] = made.failed
                self.benchmark.say(f"{name} is not quantized by {quantizer}: {made.failed}")
                continue
            precision = f"int8-{quantizer}"
            compiled = self._compile(prepared, made.model, precision)
            for count in threads:
                self._row(Case(name, precision, 1, count), prepared, made.model, made.wanted, compiled)

    def _compile(self, prepared: Prepared, model: Path, precision: str) -> Compiled:
        limit = QUICK_COMPILE_LIMIT if self.benchmark.arguments.quick else COMPILE_LIMIT
        compiled = compile_artifact(model, precision, FOLDER, limit)
        took = compiled.failed or f"{compiled.seconds} s ({compiled.cpu_seconds} s of CPU)"
        self.benchmark.say(f"{model.stem}, {precision}: compiled: {took}")
        return compiled

    def _compile_warm(self, prepared: Prepared) -> Compiled:
        """Compiled with a database that knows the model's kernels, or those that TUNE seconds are enough for."""
        database = ["--choices", str(FOLDER / "choices.sqlite")]
        for name, seconds in (("-tuned", TUNE), ("-warm", 0)):
            more = ["--tune", f"{seconds}s", *database]
            made = compile_artifact(prepared.model, "fp32", FOLDER, COMPILE_LIMIT + seconds, more, name)
            self.benchmark.say(f"{prepared.model.stem}{name}: compiled: {made.failed or f'{made.seconds} s'}")
            if made.failed:
                break
        return made

    def _row(self, case: Case, prepared: Prepared, model: Path, wanted: Path, compiled: Compiled) -> None:
        key = self.runs.key(case, prepared, model, compiled)
        row = self.progress.known.get(key)
        if row is None:
            self.benchmark.say(f"{case}:")
            row = self.progress.keep(key, self.runs.measure(case, prepared, model, wanted, compiled))
        self.rows.append(row)
        self.benchmark.engines.update({name: entry["version"] for name, entry in row["engines"].items()})
        said = [f"{name} {entry['median_ms']:.3f} ms" for name, entry in row["engines"].items()]
        said += [f"{name} failed: {reason}" for name, reason in row["failed"].items()]
        said += [f"÷ {name} {found['median']:.2f}" for name, found in row["ratios"].items()]
        self.benchmark.say(f"{case}: {', '.join(said)}")

    def _once(self, case: Case, prepared: Prepared, compiled: Compiled) -> None:
        """Memory, and answers to many threads."""
        key = self.runs.key(case, prepared, prepared.model, compiled)
        memory, crowd = self.progress.known.get(f"{key} memory"), self.progress.known.get(f"{key} crowd")
        if memory is None:
            found = self.runs.memory(case, prepared, prepared.model, compiled)
            memory = self.progress.keep(f"{key} memory", found)
        if crowd is None:
            crowd = self.progress.keep(f"{key} crowd", self.runs.crowd(case, prepared, prepared.model, compiled))
        self.memory[case.model], self.crowds[case.model] = memory, crowd
        self.benchmark.say(f"{case.model}: memory {memory}, 16 threads {crowd}")


def arena(artifact: Path) -> dict[str, int] | None:
    """The `arena` that the manifest's backend section tells: bytes, and the lower bound (the largest live set)."""
    try:
        manifest = json.loads((artifact / "manifest.json").read_text())
    except OSError:
        return None
    found = manifest["backend"].get("arena")
    return found if isinstance(found, dict) and {"bytes", "lower_bound"} <= set(found) else None


def main() -> None:
    benchmark = CpuBenchmark()
    add = benchmark.parser.add_argument
    add("--models", nargs="+", choices=[*DEPLOYED, *REAL], metavar="NAME", help="only these")
    add("--threads", type=int, nargs="+", metavar="N", help="default: 1 2; quick: 1")
    add("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="default: all")
    add("--without", nargs="+", choices=PEERS, default=[], metavar="ENGINE", help="leave peers out")
    add("--rounds", type=int, help=f"default: {ROUNDS}; quick: {QUICK_ROUNDS}")
    add("--no-batches", action="store_true", help="batch 1 only")
    add("--only", choices=("models", "random"), help="only the models, or only the random networks")
    add("--networks", type=int, metavar="N", help=f"random networks, default: {COUNT}; quick: {QUICK_COUNT}")
    add("--fresh", action="store_true", help="measure again what is kept in build/cpu")
    arguments = benchmark.parse()
    quick = arguments.quick
    # torch.compile takes longer than a quick run may, and so do exports from torch.
    without = [*arguments.without, *(["torch"] if quick else [])]
    names = arguments.models or ((["resnet20"] if data_folder() else ["lstm"]) if quick else available())
    threads = arguments.threads or ([1] if quick else [1, 2])
    rounds = arguments.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    runs = Runs(FOLDER, rounds, 1 if quick else 3, arguments.seed, benchmark.say, without)
    found = Measurements(benchmark, runs, Progress(FOLDER / "progress.json", arguments.fresh or quick))
    if arguments.only != "models":
        given = arguments.networks
        found.random_networks(given if given is not None else QUICK_COUNT if quick else COUNT)
    for name in names if arguments.only != "random" else ():
        batches = BATCHES if name in BATCHED and not quick and not arguments.no_batches else ()
        found.model(name, threads, arguments.precisions, batches)
    report(benchmark, found, threads)


def report(benchmark: CpuBenchmark, found: Measurements, threads: list[int]) -> None:
    """The bars, and everything behind them."""
    benchmark.details.update({
        "rows": found.rows, "compiled": found.compiled, "memory": found.memory, "threads": found.crowds,
        "random": found.random,
        "left out": {**found.runs.missing, **found.left_out}, "rounds": found.runs.rounds,
        "tables": {"Times": table(found.rows, (OURS, *PEERS))},
    })  # fmt: skip
    for name, reason in benchmark.details["left out"].items():
        benchmark.say(f"left out: {name}: {reason}")
    bars = Bars(benchmark, found.rows, len(DEPLOYED) + len(REAL), instructions())
    for count in threads:
        speed_bars(bars, count, len(BATCHED))
    compile_bars(bars, found.compiled)
    memory_bars(bars, found.memory, found.arenas)
    answer_bars(bars, found.crowds)
    random_bars(benchmark, found.random)
    benchmark.finish()


if __name__ == "__main__":
    main()
