"""Simplification: node counts, agreement and time of the exact passes beside onnxslim and onnxsim.

Every tool runs at its defaults, in a process of its own with one OpenMP thread, on the same files: the real models that
ESPALIER_DATA holds, and the classic families as torch.onnx exports them. The tools take turns, each in a new process
every time; a model's time is the median of all rounds. Models that onnxruntime refuses to run
(exporters write a few that are invalid) and those in dialects of quantization are simplified, but not compared. Counted
are the nodes of the result (constants aside) as long as it holds standard operators only, at the operator set version
of the input; subgraphs count too.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.common import Benchmark, data_folder

TOOLS = ("espalier", "onnxslim", "onnxsim")
QUICK = ("mnist_cntk", "akamaster_resnet20_cifar10", "ultraface_rfb320", "resnet", "mobilenet_v2", "lstm", "vit")
TOLERANCE = 1e-4
ROUNDS, QUICK_ROUNDS = 11, 1


# ---- one tool, in a process of its own -------------------------------------------------------------------------


def simplifier(tool: str) -> Callable[[Path, Path], None]:
    """A function from a model file to a simplified one, with the tool imported already."""
    if tool == "espalier":
        from espalier import load
        from espalier.backends.onnx import save
        from espalier.ir.op import load_builtin_operators
        from espalier.passes import PassManager
        from espalier.passes.pipelines import pipeline

        load_builtin_operators()
        sequence = pipeline("exact")

        def run_espalier(source: Path, target: Path) -> None:
            graph = load(source)
            PassManager(sequence).run(graph)
            save(graph, target)

        return run_espalier
    if tool == "onnxslim":
        import onnxslim

        return lambda source, target: onnxslim.slim(str(source), str(target))
    import onnxsim

    def run_onnxsim(source: Path, target: Path) -> None:
        model, _ = onnxsim.simplify(str(source))
        onnx.save(model, target)

    return run_onnxsim


def work(tool: str, listing: Path) -> None:
    """Simplify every model of a listing; one line of JSON each."""
    run = simplifier(tool)
    for source, target in json.loads(listing.read_text()):
        start = time.process_time()
        try:
            run(Path(source), Path(target))
            row: dict[str, Any] = {"seconds": time.process_time() - start}
        except Exception as error:  # tools fail in their own ways; a failure is a result here
            traceback.print_exc()
            row = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print("ROW " + json.dumps({"model": Path(source).stem, **row}), flush=True)


# ---- the models ------------------------------------------------------------------------------------------------


def models(folder: Path, quick: bool) -> list[Path]:
    """The model files; the torch families are exported into `folder`."""
    data = data_folder()
    found = sorted((data / "models").glob("*.onnx")) if data is not None else []
    found = [path for path in found if not quick or path.stem in QUICK]
    return found + export_families(folder, quick)


def export_families(folder: Path, quick: bool) -> list[Path]:
    """The classic families through torch.onnx; what it can't export is left out."""
    import torch

    from benchmarks.zoo.classic import FAMILIES

    found = []
    for name, build in sorted(FAMILIES.items()):
        if quick and name not in QUICK:
            continue
        module, args, kwargs = build()
        path = folder / f"{name}.onnx"
        try:
            torch.onnx.export(
                module, args, str(path), kwargs=kwargs, dynamo=True, optimize=False, opset_version=18,
                external_data=False, verbose=False,
            )  # fmt: skip
            found.append(path)
        except Exception as error:  # torch.onnx has many kinds of refusals
            print(f"torch.onnx does not export {name}: {type(error).__name__}", file=sys.stderr)
    return found


def node_count(model: onnx.ModelProto) -> int:
    """Nodes but constants, those of subgraphs included."""

    def count(graph: onnx.GraphProto) -> int:
        inner = sum(count(a.g) for node in graph.node for a in node.attribute if a.HasField("g"))
        return inner + sum(node.op_type != "Constant" for node in graph.node)

    return count(model.graph)


def standard(model: onnx.ModelProto) -> bool:
    """Whether it holds operators of ONNX itself only."""
    return all(node.domain in ("", "ai.onnx") for node in model.graph.node) and not model.functions


def opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def session(path: Path) -> Any:
    """An onnxruntime session without optimisations; None if onnxruntime does not take the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:
        return None


def feed(made: Any, seed: int) -> dict[str, Any]:
    """Random inputs for a session; symbolic extents are 2."""
    rng = np.random.default_rng(seed)
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64, "tensor(bool)": bool}
    found = {}
    for value in made.get_inputs():
        shape = [extent if isinstance(extent, int) else 2 for extent in value.shape]
        kind = kinds.get(value.type, np.float32)
        numbers = rng.integers(0, 2, shape) if kind in (np.int64, bool) else rng.normal(size=shape)
        found[value.name] = numbers.astype(kind)
    return found


def runs(path: Path) -> bool | None:
    """Whether onnxruntime runs the model on random inputs; None if it refuses to load it (as it does with dialects)."""
    made = session(path)
    if made is None:
        return None
    try:
        made.run(None, feed(made, 0))
    except Exception:  # exporters write some models that are invalid
        return False
    return True


def difference(original: Path, simplified: Path, seed: int) -> float | None:
    """Largest difference of outputs relative to the largest output; None if the original does not run."""
    first, second = session(original), session(simplified)
    if first is None:
        return None
    if second is None:
        return float("inf")
    inputs = feed(first, seed)
    try:
        wanted = first.run(None, inputs)
    except Exception:
        return None
    try:
        found = second.run([output.name for output in first.get_outputs()], inputs)
    except Exception:
        return float("inf")
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        if np.shape(a) != np.shape(b):
            return float("inf")
        if np.size(a):
            scale = float(np.max(np.abs(a))) or 1.0
            worst = max(worst, float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))) / scale)
    return worst


# ---- the comparison --------------------------------------------------------------------------------------------


def measure(benchmark: Benchmark, folder: Path, quick: bool) -> dict[str, dict[str, Any]]:
    """Model → tool → nodes, seconds, difference."""
    paths = models(folder, quick)
    rows: dict[str, dict[str, Any]] = {}
    for path in paths:
        model = onnx.load(path)
        rows[path.stem] = {"before": node_count(model), "standard": standard(model), "runs": runs(path)}
    seconds: dict[tuple[str, str], list[float]] = {}
    ended: dict[str, str] = {}
    turns = [
        TOOLS[(first + k) % len(TOOLS)] for first in range(QUICK_ROUNDS if quick else ROUNDS) for k in range(len(TOOLS))
    ]
    for tool in turns:
        for row in turn(tool, paths, folder, ended):
            rows[row["model"]][tool] = row
            seconds.setdefault((row.pop("model"), tool), []).append(row.get("seconds", math.nan))
    for tool in TOOLS:
        for path in paths:
            row = rows[path.stem].setdefault(tool, {"failed": f"the process ended: {ended.get(tool)}"})
            row.update({"seconds": float(np.median(seconds[path.stem, tool]))} if "seconds" in row else {})
            if "failed" in row:
                benchmark.say(f"{tool} fails on {path.stem}: {row['failed'][:150]}")
                continue
            target = folder / tool / path.name
            model = onnx.load(target)
            row["nodes"], row["standard"] = node_count(model), standard(model)
            row["same opset"] = opset(model) == opset(onnx.load(path))
            row["difference"] = difference(path, target, benchmark.arguments.seed)
    return rows


def turn(tool: str, paths: list[Path], folder: Path, ended: dict[str, str]) -> list[dict[str, Any]]:
    """One process of a tool that simplifies every model; what it tells of each, and the end of its errors."""
    targets, listing = folder / tool, folder / f"{tool}.json"
    shutil.rmtree(targets, ignore_errors=True)  # writing over a file costs more than writing one
    targets.mkdir()
    listing.write_text(json.dumps([[str(path), str(targets / path.name)] for path in paths]))
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.simplify", "--work", tool, "--listing", str(listing)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    ended[tool] = process.stderr[-300:]
    return [json.loads(line[4:]) for line in process.stdout.splitlines() if line.startswith("ROW ")]


def main() -> None:
    benchmark = Benchmark("simplify", __doc__)
    benchmark.parser.add_argument("--work", choices=TOOLS, help="(internal) simplify the models of a listing")
    benchmark.parser.add_argument("--listing", type=Path, help="(internal) the listing")
    arguments = benchmark.parse()
    if arguments.work:
        work(arguments.work, arguments.listing)
        return
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(benchmark, Path(temporary), arguments.quick)
    report(benchmark, rows)


def report(benchmark: Benchmark, rows: dict[str, dict[str, Any]]) -> None:
    """The table, and the bars."""
    benchmark.details["models"] = rows
    more, wrong, times = [], [], dict.fromkeys(TOOLS, 0.0)
    for name, row in rows.items():
        ours = row["espalier"]
        benchmark.say(
            f"{name:32} {row['before']:5}",
            *(f"{tool} {row[tool].get('nodes', 'failed')}" for tool in TOOLS),
            f"difference {ours.get('difference')}",
        )
        if not _counted(row):
            continue
        fine = [row[tool]["nodes"] for tool in TOOLS[1:] if _valid(row[tool])]
        if "failed" in ours or not ours["standard"] or not ours["same opset"] or (fine and ours["nodes"] > min(fine)):
            more.append(name)
        if "failed" in ours or (ours["difference"] is not None and not ours["difference"] <= TOLERANCE):
            wrong.append(name)
        if all("seconds" in row[tool] for tool in TOOLS):
            for tool in TOOLS:
                times[tool] += row[tool]["seconds"]
    counted = sum(map(_counted, rows.values()))
    benchmark.details["more nodes"], benchmark.details["wrong"] = more, wrong
    benchmark.details["not counted"] = [name for name, row in rows.items() if not _counted(row)]
    benchmark.bar(
        "node_counts", f"{counted - len(more)} of {counted}", "≤ onnxslim's and onnxsim's on every model",
        not more, f"more on {', '.join(more)}" if more else None,
    )  # fmt: skip
    agreeing = f"{counted - len(wrong)} of {counted}"
    benchmark.bar("agreement", agreeing, "outputs equal to 1e-4 on every model", not wrong)
    peers = min(times["onnxslim"], times["onnxsim"])
    benchmark.bar(
        "time", {tool: round(seconds, 2) for tool, seconds in times.items()}, "total CPU time ≤ each of theirs",
        times["espalier"] <= peers,
    )  # fmt: skip
    benchmark.finish()


def _counted(row: dict[str, Any]) -> bool:
    """Dialects of quantization have no standard form in the other tools; what onnxruntime can't run has no meaning."""
    return bool(row["standard"]) and row["runs"] is not False


def _valid(row: dict[str, Any]) -> bool:
    """Whether a peer's result counts: it was made, holds standard operators only, and computes the same."""
    right = row.get("difference") is None or row["difference"] <= TOLERANCE
    return "failed" not in row and bool(row["standard"]) and right


if __name__ == "__main__":
    main()
