"""What every benchmark shares: its options, its bars, and the JSON object that is its last line.

    def main() -> None:
        benchmark = Benchmark("artifact", __doc__)
        arguments = benchmark.parse()
        benchmark.bar("import_time", ratio, "≤ 0.3 × onnxruntime and torch", ratio <= 0.3)
        benchmark.finish()

The object is `{"benchmark", "quick", "bars": {name: {"value", "bar", "holds", "reason"?}}, "machine", "versions",
"seed", "seconds", "details"?}`. `holds` is null, with a reason, for what could not be measured here; `details` is in
the saved results only. `--save` writes benchmarks/results/NAME.json, from which `python -m benchmarks.report` makes
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "apache-tvm",
    "apache-tvm-ffi",
    "espalier",
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "onnxslim",
    "safetensors",
    "torch",
    "transformers",
)


class Benchmark:
    """One run of a benchmark.

    Attributes:
        parser: Takes further options before `parse`.
        bars: What was measured so far, by name.
        details: Whatever else is worth keeping, as JSON values; saved, not printed on the last line.
    """

    def __init__(self, name: str, description: str | None = None) -> None:
        self.name = name
        self.parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{name}", description=description, formatter_class=argparse.RawTextHelpFormatter
        )
        self.parser.add_argument("--quick", action="store_true", help="an honest subset, within 60 seconds")
        self.parser.add_argument("--json", action="store_true", help="print nothing but the JSON object on stdout")
        self.parser.add_argument("--seed", type=int, default=0, help="seed of everything that is random (default 0)")
        self.parser.add_argument("--save", action="store_true", help=f"keep the results in {RESULTS.name}/{name}.json")
        self.parser.add_argument("--results", type=Path, metavar="FILE", help="keep the results in FILE")
        self.bars: dict[str, dict[str, Any]] = {}
        self.details: dict[str, Any] = {}
        self.arguments = argparse.Namespace(quick=False, json=False, seed=0, save=False, results=None)
        self._start = time.perf_counter()

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Read the command line: quick, json, seed, save, results, and whatever was added to `parser`."""
        self.arguments = self.parser.parse_args(arguments)
        self._start = time.perf_counter()
        return self.arguments

    def say(self, *words: object) -> None:
        """Progress, on stderr."""
        print(*words, file=sys.stderr, flush=True)

    def bar(self, name: str, value: Any, bar: str, holds: bool | None, reason: str | None = None) -> None:
        """Record a bar: the value measured, the bar in words, whether it holds.

        Args:
            holds: None if it could not be measured here; then `reason` says why.
        """
        if name in self.bars:
            raise ValueError(f"the bar {name!r} is recorded twice")
        if holds is None and not reason:
            raise ValueError(f"the bar {name!r} was not measured: say why")
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        self.bars[name] = {"value": value, "bar": bar, "holds": None if holds is None else bool(holds)}
        if reason:
            self.bars[name]["reason"] = reason
        self.say(f"{self.name}.{name}: {value} (bar: {bar}) {_verdict(holds)}{f', {reason}' if reason else ''}")

    def result(self) -> dict[str, Any]:
        """What the last line says."""
        return {
            "benchmark": self.name,
            "quick": self.arguments.quick,
            "bars": self.bars,
            "machine": machine(),
            "versions": versions(),
            "seed": self.arguments.seed,
            "seconds": round(time.perf_counter() - self._start, 1),
        }

    def finish(self) -> None:
        """Save the results where asked to, and print the JSON object as the last line.

        Exits with 1 if a bar was measured and does not hold.
        """
        result = self.result()
        saved = json.dumps({**result, "details": self.details}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        places = [RESULTS / f"{self.name}.json"] if self.arguments.save else []
        places += [self.arguments.results] if self.arguments.results else []
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(saved, encoding="utf-8")
        if not self.arguments.json:
            for name, entry in self.bars.items():
                reason = f" — {entry['reason']}" if "reason" in entry else ""
                print(f"{_verdict(entry['holds']):14} {name}: {entry['value']} (bar: {entry['bar']}){reason}")
        print(json.dumps(result, sort_keys=True), flush=True)
        if any(entry["holds"] is False for entry in self.bars.values()):
            sys.exit(1)


def _verdict(holds: bool | None) -> str:
    return {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[holds]


def machine() -> dict[str, Any]:
    """The processor, its cores for this process, memory and system; no names of hosts or folders."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.processor()
    # Virtual machines often give a bare model name; family, model and stepping tell which processor it is.
    numbers = ", ".join(f"{name} {fields[name]}" for name in ("cpu family", "model", "stepping") if name in fields)
    return f"{fields.get('model name', platform.processor())}{f' ({numbers})' if numbers else ''}"


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def data_folder() -> Path | None:
    """The folder of real models and data that ESPALIER_DATA names; None if it is unset.

    Raises:
        FileNotFoundError: It is set to something that is no folder.
    """
    name = os.environ.get("ESPALIER_DATA")
    if not name:
        return None
    if not Path(name).is_dir():
        raise FileNotFoundError("ESPALIER_DATA is set, but is not a folder")
    return Path(name)


def interleaved(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Each contestant's median over rounds in which all take turns, so that a busy moment meets them all alike."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            taken[name].append(run())
    return {name: statistics.median(times) for name, times in taken.items()}
