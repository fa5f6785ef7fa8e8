"""One measurement of `benchmarks.cpu`: a model at one precision, batch and number of threads, in every engine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_models import Prepared
from benchmarks.cpu_turns import (
    OURS,
    PEERS,
    ROOT,
    EngineFailure,
    EngineProcess,
    distance,
    interpreters,
    package_version,
    ratio,
    take_turns,
)

LOAD_LIMIT, CALL_LIMIT = 900.0, 300.0
"""Seconds that loading (torch compiles in it) and a turn may take."""
CROWD, CROWD_CALLS = 16, 4
OPTIONS: dict[str, tuple[str, ...]] = {"fp32": (), "int8": (), "bf16": ("--passes", "mixed_precision:sqnr=30.5")}
"""What `espalier compile` is told for a precision."""


@dataclass(frozen=True)
class Case:
    """What is measured: `precision` is fp32, bf16, int8-onnxruntime or int8-nncf."""

    model: str
    precision: str
    batch: int
    threads: int

    def __str__(self) -> str:
        return f"{self.model}, {self.precision}, batch {self.batch}, {self.threads} threads"


@dataclass(frozen=True)
class Compiled:
    """An artifact of ours and what it took; `failed` says why there is none."""

    path: Path
    key: str
    seconds: float | None = None
    cpu_seconds: float | None = None
    failed: str | None = None


# ---- artifacts -------------------------------------------------------------------------------------------------


@cache
def compiler_key() -> str:
    """Everything of ours that decides what comes out: sources, versions, this processor."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "espalier").rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.relative_to(ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    packages = ("apache-tvm", "apache-tvm-ffi", "numpy", "onnx")
    digest.update(json.dumps([platform.python_version(), *map(version, packages)]).encode())
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    digest.update("".join(flags[:1]).encode())
    return digest.hexdigest()


def compile_artifact(
    model: Path, precision: str, folder: Path, limit: float, more: Sequence[str] = (), name: str = ""
) -> Compiled:
    """The artifact of a model file, as `espalier compile MODEL -o ARTIFACT` makes it in a process of its own.

    One that the same sources made of the same file before is taken again, with the times that it took then. After
    `limit` seconds it counts as failed. `more` are further options, and `name` what the artifact's name ends in then;
    only with these, kernels that were compiled before are taken from a cache.
    """
    digest = hashlib.sha256(model.read_bytes())
    digest.update(" ".join([compiler_key(), precision, *more]).encode())
    key = digest.hexdigest()
    stem = model.stem if precision.startswith("int8") else f"{model.stem}-{precision}"
    path = folder / "artifacts" / f"{stem}{name}"
    record = path.with_suffix(".json")
    if record.exists():
        known = json.loads(record.read_text())
        if known["key"] == key:
            return Compiled(path, **known)
    record.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
    options = OPTIONS[precision.partition("-")[0]]
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "espalier", "compile", str(model), "-o", str(path), "--json", *options, *more]
    environment = os.environ | {"ESPALIER_KERNELS": str(folder / "kernels") if more else "off"}
    with open(path.with_suffix(".log"), "w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log, text=True)
        code, cpu_seconds = _wait(process, limit)
        seconds = time.perf_counter() - start
        log.seek(0)
        said = log.read().strip()
    if code is None:
        return Compiled(path, key, failed=f"no artifact within {limit:g} s")  # another run may have more time
    if code:
        made = Compiled(path, key, failed=said[-300:] or f"exit code {code}")
    else:
        made = Compiled(path, key, round(seconds, 2), round(cpu_seconds, 2))
    known = {"key": key, "seconds": made.seconds, "cpu_seconds": made.cpu_seconds, "failed": made.failed}
    record.write_text(json.dumps(known))
    return made


def _wait(process: subprocess.Popen[str], limit: float) -> tuple[int | None, float]:
    """The exit code (None if it was ended at the limit), and its seconds of CPU."""
    end = time.monotonic() + limit
    try:
        while time.monotonic() < end:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, usage.ru_utime + usage.ru_stime
            time.sleep(0.02)
        return None, limit
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


# ---- one case --------------------------------------------------------------------------------------------------


class Runs:
    """Measures cases, with everything that they share.

    Attributes:
        rounds: In which every engine has a turn.
        fresh: Processes whose peak memory is taken, of which the median counts.
        missing: Why engines are left out.
    """

    def __init__(
        self, folder: Path, rounds: int, fresh: int, seed: int, say: Callable[..., None], without: Sequence[str]
    ) -> None:
        self.folder, self.rounds, self.fresh, self.seed, self.say = folder, rounds, fresh, seed, say
        self.pythons, self.missing = interpreters()
        for engine in without:
            self.pythons.pop(engine, None)
            self.missing[engine] = "left out of this run"
        self._installed: dict[str, str] = {}

    def measure(self, case: Case, prepared: Prepared, model: Path, wanted: Path, compiled: Compiled) -> dict[str, Any]:
        """A row: times of every engine, ratios, distances from the outputs that are wanted."""
        row: dict[str, Any] = {
            "model": case.model, "precision": case.precision, "batch": case.batch, "threads": case.threads,
            "engines": {}, "failed": {}, "ratios": {}, "best_peer": None,
        }  # fmt: skip
        processes: dict[str, EngineProcess] = {}
        try:
            for engine in self.engines(case, prepared):
                if engine == OURS and compiled.failed is not None:
                    row["failed"][engine] = f"not compiled: {compiled.failed}"
                    continue
                processes[engine] = EngineProcess(engine, self.pythons[engine], case.threads, self.folder)
                task = self.task(engine, case, prepared, model, compiled)
                try:
                    said = processes[engine].ask(task, LOAD_LIMIT)
                    answers = self._answers(processes[engine], engine, wanted)
                    row["engines"][engine] = {
                        "version": said["version"], "load_seconds": round(said["seconds"], 3), **answers,
                    }  # fmt: skip
                except EngineFailure as error:
                    row["failed"][engine] = str(error)
            asks = {engine: _timer(processes[engine]) for engine in row["engines"]}
            times, failed = take_turns(asks, self.rounds, self.say)
            row["failed"].update(failed)
        finally:
            for process in processes.values():
                process.close()
        row["engines"] = {engine: found for engine, found in row["engines"].items() if engine in times}
        for engine, taken in times.items():
            row["engines"][engine].update(ms=[round(ms, 5) for ms in taken], median_ms=statistics.median(taken))
        self._compare(row, times)
        return row

    def engines(self, case: Case, prepared: Prepared) -> list[str]:
        """Those that are installed and have this case."""
        found = [engine for engine in (OURS, *PEERS) if engine in self.pythons]
        if prepared.state is None or case.precision.startswith("int8"):
            found = [engine for engine in found if engine != "torch"]  # there is no torch module of that file
        if case.precision == "bf16":
            found = [engine for engine in found if engine != "onnxruntime"]  # its CPU kernels compute in fp32
        return found

    def task(self, engine: str, case: Case, prepared: Prepared, model: Path, compiled: Compiled) -> dict[str, Any]:
        """What an engine's process is told to load."""
        return {
            "do": "load", "engine": engine, "name": case.model, "model": str(model), "artifact": str(compiled.path),
            "inputs": str(prepared.inputs), "state": None if prepared.state is None else str(prepared.state),
            "threads": case.threads, "precision": case.precision,
        }  # fmt: skip

    def _answers(self, process: EngineProcess, engine: str, wanted: Path) -> dict[str, Any]:
        target = self.folder / f"{engine}.{os.getpid()}.npz"
        try:
            process.ask({"do": "outputs", "to": str(target)}, CALL_LIMIT)
            with np.load(wanted) as reference, np.load(target) as found:
                expected = [reference[name] for name in reference.files]
                return distance(expected, [found[f"output_{k}"] for k in range(len(found.files))])
        finally:
            target.unlink(missing_ok=True)

    def _compare(self, row: dict[str, Any], times: dict[str, list[float]]) -> None:
        peers = [engine for engine in times if engine != OURS]
        if peers:
            row["best_peer"] = min(peers, key=lambda engine: statistics.median(times[engine]))
        if OURS in times:
            row["ratios"] = {engine: ratio(times[OURS], times[engine], self.seed) for engine in peers}

    def memory(self, case: Case, prepared: Prepared, model: Path, compiled: Compiled) -> dict[str, Any]:
        """Peak resident bytes of fresh processes that load and run, ours and onnxruntime's."""
        found: dict[str, Any] = {}
        for engine in (OURS, "onnxruntime"):
            if engine not in self.pythons or (engine == OURS and compiled.failed is not None):
                continue
            peaks = []
            try:
                for _ in range(self.fresh):
                    with EngineProcess(engine, self.pythons[engine], case.threads, self.folder) as process:
                        process.ask(self.task(engine, case, prepared, model, compiled), LOAD_LIMIT)
                        process.ask({"do": "time", "repeats": 2}, CALL_LIMIT)
                        peaks.append(process.ask({"do": "memory"}, CALL_LIMIT)["peak"])
                found[engine] = int(statistics.median(peaks))
            except EngineFailure as error:
                found[f"{engine} failed"] = str(error)
        return found

    def key(self, case: Case, prepared: Prepared, model: Path, compiled: Compiled) -> str:
        """What a row depends on, as a hash: one that was measured before is taken again as long as it is the same."""
        facts: list[Any] = [str(case), self.rounds, self.seed, prepared.facts["key"], compiled.key]
        facts += [hashlib.sha256(model.read_bytes()).hexdigest()]
        facts += [(engine, self.installed(engine)) for engine in self.engines(case, prepared)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def installed(self, engine: str) -> str:
        """The version of an engine's package."""
        if engine not in self._installed:
            self._installed[engine] = package_version(self.pythons[engine], engine)
        return self._installed[engine]

    def crowd(self, case: Case, prepared: Prepared, model: Path, compiled: Compiled) -> dict[str, Any]:
        """Wrong answers of ours when 16 threads call it at once."""
        if compiled.failed is not None:
            return {"failed": compiled.failed}
        try:
            with EngineProcess(OURS, self.pythons[OURS], case.threads, self.folder) as process:
                process.ask(self.task(OURS, case, prepared, model, compiled), LOAD_LIMIT)
                asked = {"do": "crowd", "threads": CROWD, "calls": CROWD_CALLS}
                return {"wrong": process.ask(asked, LOAD_LIMIT)["wrong"], "calls": CROWD * CROWD_CALLS}
        except EngineFailure as error:
            return {"failed": str(error)}


def _timer(process: EngineProcess) -> Callable[[int], list[float]]:
    def timed(repeats: int) -> list[float]:
        found: list[float] = process.ask({"do": "time", "repeats": repeats}, CALL_LIMIT)["ms"]
        return found

    return timed
