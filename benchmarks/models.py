"""Real trained models: every ONNX file of ESPALIER_DATA, compiled for this CPU by both backends.

Each artifact is compared with onnxruntime (QONNX files: with qonnx, in its own environment) on random inputs and on
real ones where there are any, to 1e-4 of the largest output; and on whole test sets by the number of right decisions.
A model that is refused counts only if the reference refuses it too, or knows one of its operators no better than we do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.common import Benchmark, data_folder
from benchmarks.datasets import TASKS, decisions

BACKENDS = ("onnx", "tvm")
QUICK = ("mnist_cntk", "kws_dscnn_alibaba", "TFC_2W2A", "jsc_three_layer_keras", "qonnx_residual_block")
QONNX = Path(".venv-qonnx/bin/python")
TOLERANCE = 1e-4
RANDOM_RUNS = 3
Arrays = dict[str, NDArray[Any]]


def is_qonnx(model: onnx.ModelProto) -> bool:
    """Whether a model holds operators that onnxruntime does not know."""
    return any(node.domain not in ("", "ai.onnx", "com.microsoft") for node in model.graph.node)


def reference_outputs(path: Path, model: onnx.ModelProto, feeds: Sequence[Arrays]) -> list[Arrays] | str:
    """The reference's outputs for each feed, or why there are none."""
    if not is_qonnx(model):
        return onnxruntime_outputs(path, feeds)
    if not QONNX.exists():
        return "make venv-qonnx has not been run"
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(inputs, **{name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]})
        command = [str(QONNX), "benchmarks/qonnx_reference.py", str(path), str(inputs), str(outputs)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            return f"qonnx: {process.stderr.strip().splitlines()[-1][:200]}"
        with np.load(outputs) as archive:
            return [{name: archive[name][k] for name in archive.files} for k in range(len(feeds))]


def onnxruntime_outputs(path: Path, feeds: Sequence[Arrays]) -> list[Arrays] | str:
    """What onnxruntime computes without optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds]
    except Exception as error:  # onnxruntime's own exceptions
        return f"onnxruntime: {error}"[:200]


def random_feeds(path: Path, seed: int) -> list[Arrays]:
    """Random inputs: normal numbers; symbols are 2."""
    from espalier.frontends import load
    from espalier.passes.samples import sample_inputs

    inputs = load(path).inputs
    return [
        dict(zip((v.name for v in inputs), sample_inputs(inputs, seed + k), strict=True)) for k in range(RANDOM_RUNS)
    ]


def real_feeds(name: str, data: Path, like: Arrays) -> list[Arrays]:
    """A few real samples for a model that has a task."""
    if name not in TASKS:
        return []
    samples, _ = TASKS[name].samples(data)
    (key, array), batch = next(iter(like.items())), len(next(iter(like.values())))
    return [{key: samples[k * batch : (k + 1) * batch].astype(array.dtype)} for k in range(RANDOM_RUNS)]


def difference(wanted: Arrays, found: Arrays) -> float:
    """Largest difference relative to the largest output."""
    worst = 0.0
    for name, a in wanted.items():
        b = found[name]
        if a.shape != b.shape:
            return float("inf")
        scale = float(np.max(np.abs(a), initial=0)) or 1.0
        worst = max(worst, float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0)) / scale)
    return worst


def right_decisions(
    name: str, data: Path, run: Callable[[Arrays], Arrays], like: Arrays, quick: bool
) -> dict[str, Any]:
    """How many decisions of an artifact are right, and how many should be."""
    task = TASKS[name]
    samples, labels = task.samples(data)
    if quick:
        samples, labels = samples[:500], labels[:500]
    (key, array) = next(iter(like.items()))
    from espalier.frontends import load

    fixed = load(data / "models" / f"{name}.onnx").inputs[0].shape[0]
    batch = fixed if isinstance(fixed, int) else 250
    feeds = ({key: samples[k : k + batch].astype(array.dtype)} for k in range(0, len(samples), batch))
    outputs = [next(iter(run(feed).values())) for feed in feeds]
    right = int(np.sum(decisions(np.concatenate(outputs)) == labels))
    return {"right": right, "of": len(labels), "expected": None if quick else task.right}


def check(path: Path, data: Path, seed: int, quick: bool) -> dict[str, Any]:
    """One model through both backends."""
    import espalier
    from espalier.errors import EspalierError

    model, row = onnx.load(path), {}
    name = path.stem
    try:
        feeds = random_feeds(path, seed)
    except EspalierError as error:
        wanted = onnxruntime_outputs(path, [zeros(model)]) if not is_qonnx(model) else "not tried"
        return {"refused": str(error), "reference": wanted if isinstance(wanted, str) else "runs"}
    feeds += real_feeds(name, data, feeds[0])
    wanted = reference_outputs(path, model, feeds)
    if isinstance(wanted, str):
        row["reference"] = wanted
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            try:
                artifact = espalier.compile(path, device="cpu", backend=backend, output=Path(folder) / "artifact")
            except EspalierError as error:
                row[backend] = {"refused": str(error)}
                continue
            entry: dict[str, Any] = {"compile_seconds": round(time.process_time() - start, 2)}
            run = artifact.load()
            found = [run(feed) for feed in feeds]
            if not isinstance(wanted, str):
                entry["difference"] = max(difference(a, b) for a, b in zip(wanted, found, strict=True))
            if name in TASKS:
                entry.update(right_decisions(name, data, run, feeds[0], quick))
            row[backend] = entry
    return row


def zeros(model: onnx.ModelProto) -> Arrays:
    """Zeros for a model's inputs."""
    weights = {w.name for w in model.graph.initializer}
    return {
        v.name: np.zeros([d.dim_value or 2 for d in v.type.tensor_type.shape.dim], np.float32)
        for v in model.graph.input
        if v.name not in weights
    }


def work(path: Path, data: Path, seed: int, quick: bool) -> dict[str, Any]:
    """`check` in a process of its own, so that a crash is a result."""
    command = [sys.executable, "-m", "benchmarks.models", "--work", str(path), "--seed", str(seed)]
    process = subprocess.run([*command, *(["--quick"] if quick else [])], capture_output=True, text=True, check=False)
    for line in process.stdout.splitlines():
        if line.startswith("ROW "):
            return dict(json.loads(line[4:]))
    return {"crashed": process.stderr[-500:]}


def fine(row: dict[str, Any], backend: str) -> bool:
    """Whether a backend's result counts as right."""
    if "refused" in row:
        return row["reference"] != "runs"
    entry = row.get(backend, {"refused": "crashed"})
    if "refused" in entry:
        return False
    return "reference" in row or entry["difference"] <= TOLERANCE


def main() -> None:
    benchmark = Benchmark("models", __doc__)
    benchmark.parser.add_argument("--work", type=Path, help="(internal) check one model")
    benchmark.parser.add_argument("--only", nargs="*", help="names of models; all by default")
    arguments = benchmark.parse()
    data = data_folder()
    if data is None:
        for name in ("agreement_onnx", "agreement_tvm", "accuracy"):
            benchmark.bar(name, None, "every model", None, "ESPALIER_DATA is not set")
        benchmark.finish()
        return
    if arguments.work:
        print("ROW " + json.dumps(check(arguments.work, data, arguments.seed, arguments.quick)))
        return
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted((data / "models").glob("*.onnx")):
        if (arguments.quick and path.stem not in QUICK) or (arguments.only and path.stem not in arguments.only):
            continue
        rows[path.stem] = work(path, data, arguments.seed, arguments.quick)
        benchmark.say(f"{path.stem}: {json.dumps(rows[path.stem])[:400]}")
    benchmark.details["models"] = rows
    for backend in BACKENDS:
        bad = [name for name, row in rows.items() if not fine(row, backend)]
        benchmark.bar(
            f"agreement_{backend}", f"{len(rows) - len(bad)} of {len(rows)}", "agreement to 1e-4 on every model",
            not bad, f"not {', '.join(bad)}" if bad else None,
        )  # fmt: skip
    off = [
        f"{name} ({backend}: {entry['right']} for {entry['expected']})"
        for name, row in rows.items()
        for backend in BACKENDS
        if (entry := row.get(backend, {})).get("expected") is not None and abs(entry["right"] - entry["expected"]) > 1
    ]
    known = sum(row.get(b, {}).get("expected") is not None for row in rows.values() for b in BACKENDS)
    if known:
        benchmark.bar(
            "accuracy", f"{known - len(off)} of {known}", "within one prediction", not off, "; ".join(off) or None
        )
    else:
        benchmark.bar("accuracy", None, "within one prediction", None, "--quick uses 500 samples; no whole test set")
    benchmark.finish()


if __name__ == "__main__":
    main()
