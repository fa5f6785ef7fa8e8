"""Engines in processes of their own that take turns, and the statistics of their times."""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
OURS = "espalier"
PEERS = ("onnxruntime", "openvino", "torch")
BURST, LEAST, MOST = 0.06, 3, 50
"""Seconds that an engine's turn should take, and the fewest and most calls in it."""
HOPELESS, FEW = 8.0, 3
"""An engine so many times slower than the fastest takes part in so few rounds: its ratio is far from any bar."""
RESAMPLES = 2000


class EngineFailure(Exception):
    """An engine refused, crashed, or took too long."""


class EngineProcess:
    """An engine's process. It is stopped by signal whenever it is not its turn, so that idle workers take no time."""

    def __init__(self, engine: str, python: Path, threads: int, folder: Path) -> None:
        self.engine = engine
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONHASHSEED": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TVM_NUM_THREADS": str(threads),
        }  # fmt: skip
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.cpu_engine"], cwd=ROOT, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def ask(self, task: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """Let it run, ask, wait for the answer, stop it. Raises EngineFailure, after which the process is gone."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            self._signal(signal.SIGCONT)
            stdin.write(json.dumps(task) + "\n")
            stdin.flush()
            ready, _, _ = select.select([stdout], [], [], limit)
            line = stdout.readline() if ready else None
        except OSError as error:
            line = f'{{"failed": {json.dumps(str(error))}}}'
        if line is None:
            self.close()
            raise EngineFailure(f"no answer within {limit:g} s")
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip()[-300:]
            self.close()
            raise EngineFailure(f"the process ended with {code}: {said}")
        found: dict[str, Any] = json.loads(line)
        if "failed" in found:
            self.close()
            raise EngineFailure(found["failed"])
        self._signal(signal.SIGSTOP)
        return found

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def interpreters() -> tuple[dict[str, Path], dict[str, str]]:
    """The Python that has each engine, and why the others are left out."""
    found, missing = {OURS: Path(sys.executable)}, {}
    for engine in PEERS:
        python = interpreter_with(engine)
        if python is None:
            missing[engine] = f"{engine} is not installed (`make venv-peers` makes the environment of peers)"
        elif engine == "torch" and shutil.which("c++") is None and shutil.which("g++") is None:
            missing[engine] = "torch.compile needs a C++ compiler"
        else:
            found[engine] = python
    return found, missing


def interpreter_with(package: str) -> Path | None:
    """This Python if it has a package, or that of the environment of peers, or None."""
    places = (Path(sys.executable), ROOT / ".venv-peers" / "bin" / "python")
    return next((python for python in places if python.exists() and _imports(python, package)), None)


def _imports(python: Path, package: str) -> bool:
    """Whether an interpreter has a package, without importing it."""
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", program], check=False).returncode == 0


def package_version(python: Path, package: str) -> str:
    """The version of a package that an interpreter has."""
    program = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


# ---- rounds ----------------------------------------------------------------------------------------------------


def take_turns(
    ask: Mapping[str, Callable[[int], list[float]]], rounds: int, say: Callable[..., None] = lambda *words: None
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds of each engine per round, and what went wrong with those that dropped out.

    `ask` times so many calls of an engine. In a round every engine has one turn of several calls, whose median counts;
    the order rotates. Engines that are hopelessly slower than the fastest take part in the first few rounds only.
    """
    failed: dict[str, str] = {}
    times: dict[str, list[float]] = {engine: [] for engine in ask}
    first: dict[str, float] = {}

    def turn(engine: str, repeats: int) -> float | None:
        try:
            return statistics.median(ask[engine](repeats))
        except EngineFailure as error:
            failed[engine] = str(error)
            return None

    for engine in ask:
        taken = turn(engine, 1)
        if taken is not None:
            first[engine] = taken
    fastest = min(first.values(), default=1.0)
    for k in range(rounds):
        order = [engine for engine in ask if engine in first and engine not in failed]
        order = order[k % max(1, len(order)) :] + order[: k % max(1, len(order))]
        for engine in order:
            hopeless = first[engine] > HOPELESS * fastest
            if hopeless and k >= FEW:
                continue
            taken = turn(engine, 1 if hopeless else repeats_for(first[engine]))
            if taken is not None:
                times[engine].append(taken)
        say(f"  round {k + 1}", *(f"{engine} {times[engine][-1]:.3f}" for engine in order if times[engine]))
    return {engine: found for engine, found in times.items() if found and engine not in failed}, failed


def repeats_for(ms: float) -> int:
    """Calls in one turn of an engine that takes so long."""
    return max(LEAST, min(MOST, math.ceil(1e3 * BURST / max(ms, 1e-6))))


# ---- statistics ------------------------------------------------------------------------------------------------


def ratio(ours: Sequence[float], peer: Sequence[float], seed: int = 0) -> dict[str, float]:
    """The median of ours ÷ peer over the rounds that both took part in, and its 95 % bootstrap interval."""
    count = min(len(ours), len(peer))
    if not count:
        raise ValueError("no rounds in common")
    ratios = np.array(ours[:count]) / np.array(peer[:count])
    low, high = np.percentile(_medians(ratios, seed), [2.5, 97.5])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high), "rounds": count}


def geometric_mean(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 0) -> dict[str, float]:
    """The geometric mean over models of the median ratio; its interval comes from resampling every model's rounds."""
    if not pairs:
        raise ValueError("no ratios")
    every = [np.array(ours[: len(peer)]) / np.array(peer[: len(ours)]) for ours, peer in pairs]
    drawn = np.mean([np.log(_medians(ratios, seed + k)) for k, ratios in enumerate(every)], axis=0)
    low, high = np.exp(np.percentile(drawn, [2.5, 97.5]))
    middle = math.exp(statistics.fmean(math.log(float(np.median(ratios))) for ratios in every))
    return {"median": middle, "low": float(low), "high": float(high), "models": len(every)}


def _medians(ratios: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Medians of resamples."""
    picks = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    found: NDArray[np.float64] = np.median(ratios[picks], axis=1)
    return found


def distance(wanted: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> dict[str, float]:
    """The largest difference relative to the largest element, and the signal-to-noise ratio in dB, at the worst output.

    Outputs of other shapes, and NaN where there was none, are infinitely far.
    """
    worst, least = 0.0, math.inf
    if len(wanted) != len(found):
        return {"difference": math.inf, "sqnr": -math.inf}
    for a, b in zip(wanted, found, strict=True):
        if np.shape(a) != np.shape(b):
            return {"difference": math.inf, "sqnr": -math.inf}
        x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if not x.size:
            continue
        noise = float(np.sum((x - y) ** 2))
        if not math.isfinite(noise):
            return {"difference": math.inf, "sqnr": -math.inf}
        worst = max(worst, float(np.abs(x - y).max()) / (float(np.abs(x).max()) or 1.0))
        signal_power = float(np.sum(x**2))
        least = min(least, 10 * math.log10(signal_power / noise) if noise and signal_power else math.inf)
    return {"difference": worst, "sqnr": least}
