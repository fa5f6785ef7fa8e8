"""Speed on the CPU: artifacts of ours beside onnxruntime, OpenVINO and torch.compile, in fp32, bf16 and int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark, data_folder
from benchmarks.cpu_models import available, prepare
from benchmarks.cpu_runs import Case, Runs, compile_artifact
from benchmarks.cpu_turns import ROOT

FOLDER = ROOT / "build" / "cpu"
ROUNDS, QUICK_ROUNDS = 15, 5


def main() -> None:
    benchmark = Benchmark("cpu", __doc__)
    benchmark.parser.add_argument("--models", nargs="+", metavar="NAME", help="only these")
    benchmark.parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default 1 2")
    benchmark.parser.add_argument("--without", nargs="+", default=[], metavar="ENGINE", help="leave engines out")
    arguments = benchmark.parse()
    names = arguments.models or (["resnet20" if data_folder() else "lstm"] if arguments.quick else available())
    runs = Runs(FOLDER, QUICK_ROUNDS if arguments.quick else ROUNDS, arguments.seed, benchmark.say, arguments.without)
    rows: list[dict[str, Any]] = []
    for name in names:
        prepared = prepare(name, 1, arguments.seed, FOLDER)
        compiled = compile_artifact(prepared.model, "fp32", FOLDER)
        benchmark.say(name, compiled)
        for threads in arguments.threads:
            case = Case(name, "fp32", 1, threads)
            row = runs.measure(case, prepared, Path(prepared.model), prepared.wanted, compiled)
            rows.append(row)
            benchmark.say(case, {engine: round(e["median_ms"], 3) for engine, e in row["engines"].items()})
            benchmark.say(row["failed"], {e: r["median"] for e, r in row["ratios"].items()})
    benchmark.details["rows"] = rows
    benchmark.finish()


if __name__ == "__main__":
    main()
