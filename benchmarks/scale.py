"""Long chains and large weights: what loading, verifying, rewriting and exporting cost.

A residual chain of 1,000 to 100,000 nodes goes through load, the structural verifier, the exact passes and export, the
lengths and the peers in turns, each turn in a process of its own; figures are medians of seconds of CPU. onnxscript's
optimizer and onnxslim do 10,000 nodes. A model with 3 GB of external weights goes in and out while its anonymous memory
is sampled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chains import write_chain
from benchmarks.common import Benchmark

LENGTHS = (1_000, 10_000, 100_000)
RUNS = 7
"""Runs of each length, of which medians are taken; the peers, which take a hundred times longer, have one."""
LOAD, VERIFY, RULE, WHOLE, SLOPE = 5.0, 0.5, 1.0, 30.0, 1.1
ONNXSCRIPT, ONNXSLIM, REWRITES = 10.0, 20.0, 3.0
LARGE_BYTES, PIECES, MEMORY = 3_000_000_000, 24, 0.5e9
LOCAL = ("simplify", "fold_norms", "recognize", "dead_code", "common_subexpressions", "fold_constants", "infer_types")
"""The passes that rewrite locally, each of which the bar is for."""


# ---- one measurement, in a process of its own ------------------------------------------------------------------


def measure_espalier(source: Path, target: Path, level: str) -> dict[str, Any]:
    """Seconds of CPU of every step."""
    from espalier.backends.onnx import save
    from espalier.frontends.onnx import load
    from espalier.ir import verify
    from espalier.ir.op import load_builtin_operators
    from espalier.passes import PassManager
    from espalier.passes.pipelines import pipeline

    load_builtin_operators()
    sequence = pipeline("exact")
    marks = [time.process_time()]

    def lap() -> float:
        marks.append(time.process_time())
        return marks[-1] - marks[-2]

    graph = load(source)
    found: dict[str, Any] = {"load": lap(), "nodes": len(graph)}
    verify(graph, "structure")
    found["verify"] = lap()
    report = PassManager(sequence, verify=level).run(graph)  # type: ignore[arg-type]  # from the command line
    found["passes"] = lap()
    save(graph, target)
    found["export"] = lap()
    found["whole"] = marks[-1] - marks[0]
    found["each"] = [[each.to_json(), each.seconds] for each in report.passes]
    return found


def measure_onnxscript(source: Path, target: Path, level: str) -> dict[str, Any]:
    import onnx
    import onnxscript.optimizer

    start = time.process_time()
    model = onnxscript.optimizer.optimize(onnx.load(source))
    onnx.save(model, target)
    return {"whole": time.process_time() - start}


def measure_onnxslim(source: Path, target: Path, level: str) -> dict[str, Any]:
    import onnx
    import onnxslim

    start = time.process_time()
    onnx.save(onnxslim.slim(str(source)), target)
    return {"whole": time.process_time() - start}


def measure_memory(source: Path, target: Path, level: str) -> dict[str, Any]:
    """Peak anonymous memory above that of the idle program, while a model goes in, through the passes, and out."""
    from espalier.backends.onnx import save
    from espalier.frontends.onnx import load
    from espalier.ir.op import load_builtin_operators
    from espalier.passes import PassManager
    from espalier.passes.pipelines import pipeline

    load_builtin_operators()
    sequence = pipeline("exact")
    idle = anonymous_memory()
    peak, done = [idle], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=sample)
    watcher.start()
    start = time.process_time()
    graph = load(source)
    PassManager(sequence, verify="structure").run(graph)
    save(graph, target, external_threshold=0)
    done.set()
    watcher.join()
    return {"peak": peak[0] - idle, "seconds": time.process_time() - start}


def anonymous_memory() -> int:
    """RssAnon of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell anonymous memory")


TASKS: dict[str, Callable[[Path, Path, str], dict[str, Any]]] = {
    "espalier": measure_espalier,
    "onnxscript": measure_onnxscript,
    "onnxslim": measure_onnxslim,
    "memory": measure_memory,
}


def apart(task: str, source: Path, target: Path, level: str = "structure") -> dict[str, Any]:
    """Run a task in a process of its own. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "benchmarks.scale", "--task", task, str(source), str(target), level]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{task} failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- the large model -----------------------------------------------------------------------------------------


def write_large(folder: Path, size: int, seed: int) -> Path:
    """A model of matrix products whose weights, in a file beside it, have so many bytes; written piece by piece."""
    import onnx
    from onnx import TensorProto, helper

    rows = 4096
    columns = size // PIECES // rows // 4
    rng = np.random.default_rng(seed)
    nodes, weights, outputs, offset = [], [], [], 0
    with (folder / "large.bin").open("wb") as stream:
        for k in range(PIECES):
            tensor = TensorProto(name=f"w{k}", data_type=TensorProto.FLOAT, dims=[rows, columns])
            tensor.data_location = TensorProto.EXTERNAL
            length = rows * columns * 4
            for key, value in (("location", "large.bin"), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            block = rng.normal(size=(64, columns)).astype("<f4")
            for row in range(0, rows, 64):
                stream.write((block + np.float32(row)).tobytes())
            offset += length
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", ["x", f"w{k}"], [f"y{k}"], f"product{k}"))
            outputs.append(helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, ["N", columns]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", rows])
    graph = helper.make_graph(nodes, "large", [x], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "large.onnx"
    onnx.save(model, path)
    return path


def weight_digests(path: Path) -> dict[str, str]:
    """SHA-256 of every external weight of a model."""
    import onnx

    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        digest, left = hashlib.sha256(str(list(tensor.dims)).encode()), int(entries["length"])
        with (path.parent / entries["location"]).open("rb") as stream:
            stream.seek(int(entries["offset"]))
            while left:
                part = stream.read(min(left, 1 << 24))
                digest.update(part)
                left -= len(part)
        found[tensor.name] = digest.hexdigest()
    return found


def main() -> None:
    if sys.argv[1:2] == ["--task"]:
        task, source, target, level = sys.argv[2:6]
        print(json.dumps(TASKS[task](Path(source), Path(target), level)))
        return
    benchmark = Benchmark("scale", __doc__)
    arguments = benchmark.parse()
    lengths = LENGTHS[:2] if arguments.quick else LENGTHS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chains(benchmark, folder, lengths, arguments.quick)
        large(benchmark, folder, LARGE_BYTES // 10 if arguments.quick else LARGE_BYTES, arguments.seed)
    benchmark.finish()


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure over runs of the same steps, each in a process of its own."""
    found = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "each"}
    seconds = [
        statistics.median(seconds) for seconds in zip(*([s for _, s in run["each"]] for run in runs), strict=True)
    ]
    found["each"] = [[entry, s] for (entry, _), s in zip(runs[0]["each"], seconds, strict=True)]
    return found


def chains(benchmark: Benchmark, folder: Path, lengths: tuple[int, ...], quick: bool) -> None:
    """The bars on the residual chain."""
    out, middle, longest = folder / "out.onnx", 1_000 if quick else 10_000, lengths[-1]
    for length in lengths:
        write_chain(folder / f"{length}.onnx", length)
    turns: list[tuple[str, int, str]] = []
    for number in range(1 if quick else RUNS):
        turns += [("espalier", length, "structure") for length in lengths]
        turns += [("espalier", longest, "rewrites")] * (number % 2 == 0)
        turns += [(peer, middle, "structure") for peer in ("onnxscript", "onnxslim") if number == 0]
    runs: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for turn in turns:
        task, length, level = turn
        runs.setdefault(turn, []).append(apart(task, folder / f"{length}.onnx", out, level))
    figures = {length: medians(runs["espalier", length, "structure"]) for length in lengths}
    for length, found in figures.items():
        benchmark.say(f"{length}: { ({k: round(v, 2) for k, v in found.items() if k != 'each'}) }")
    benchmark.details["chains"] = figures
    share = longest / LENGTHS[-1]
    note = f"limits scaled to {longest} nodes" if quick else None
    most = figures[longest]
    for key, limit, what in (
        ("load", LOAD, "to load"), ("verify", VERIFY, "for the structural verifier"),
        ("whole", WHOLE, "for load, all exact passes and export"),
    ):  # fmt: skip
        bound = limit * share
        words = f"≤ {bound:g} s of CPU {what} at {longest} nodes"
        benchmark.bar(key, round(most[key], 3), words, most[key] <= bound, note)
    slowest = max((seconds, str(entry.get("spec") or entry.get("name"))) for entry, seconds in most["each"])
    benchmark.bar(
        "pass", round(slowest[0], 3), f"≤ {RULE * share:g} s of CPU for each pass at {longest} nodes",
        slowest[0] <= RULE * share, f"the slowest is {slowest[1]}",
    )  # fmt: skip
    first = lengths[0]
    slope = math.log(most["whole"] / figures[first]["whole"]) / math.log(longest / first)
    benchmark.bar("slope", round(slope, 3), f"≤ {SLOPE} (log-log, {first} to {longest} nodes)", slope <= SLOPE)
    own = figures[middle]["whole"]
    for peer, factor in (("onnxscript", ONNXSCRIPT), ("onnxslim", ONNXSLIM)):
        seconds = runs[peer, middle, "structure"][0]["whole"]
        benchmark.details[peer] = seconds
        words = f"≥ {factor:g} × faster than {peer} at 10,000 nodes"
        if quick:
            reason = "measured at 1,000 nodes, where peers are not slow yet"
            benchmark.bar(peer, round(seconds / own, 2), words, None, reason)
        else:
            benchmark.bar(peer, round(seconds / own, 2), words, seconds / own >= factor)
    full = medians(runs["espalier", longest, "rewrites"])
    benchmark.details["rewrites"] = full
    ratio = full["whole"] / most["whole"]
    words = f"≤ {REWRITES:g} × the time with --verify structure"
    benchmark.bar("verify_rewrites", round(ratio, 2), words, ratio <= REWRITES)


def large(benchmark: Benchmark, folder: Path, size: int, seed: int) -> None:
    """The bars on the model with external weights."""
    source, target = write_large(folder, size, seed), folder / "copied" / "large.onnx"
    target.parent.mkdir()
    found = apart("memory", source, target)
    benchmark.details["large"] = {"bytes": size, **found}
    words = f"≤ {MEMORY / 1e9:g} GB of anonymous memory above the idle program, for {size / 1e9:g} GB of weights"
    benchmark.bar("memory", round(found["peak"] / 1e9, 3), words, found["peak"] <= MEMORY)
    before, after = weight_digests(source), weight_digests(target)
    same = sum(before[name] == after.get(name) for name in before)
    benchmark.bar("weights", same, f"all {len(before)} weights unchanged", same == len(before))


if __name__ == "__main__":
    main()
