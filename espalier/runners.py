"""Models and artifacts as things that run: for the verbs `run`, `bench`, `verify`, `inspect` and `explain`."""

from __future__ import annotations

import json
import math
import operator
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier import frontends, runtime
from espalier.analysis.summary import units_table
from espalier.cost.count import macs
from espalier.errors import InputError
from espalier.ir import Graph, Type, Value, to_text
from espalier.ir.dims import Dimension
from espalier.ir.execute import execute
from espalier.ir.types import parse as parse_type
from espalier.passes.samples import NoSample, sample_inputs
from espalier.runtime.manifest import TensorSpec
from espalier.runtime.manifest import to_json as manifest_json
from espalier.train.agreement import disagreement
from espalier.train.data import Data
from espalier.train.evaluate import in_batches

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Runner:
    """Something that maps arrays by name to arrays by name; more samples than a fixed batch take several calls."""

    name: str
    engine: str
    inputs: tuple[Value, ...]
    call: Callable[[Arrays], Arrays]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        order, names = [value.name for value in self.inputs], list[str]()
        if set(inputs) != set(order):
            return self.call(dict(inputs))

        def ordered(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
            found = self.call(dict(zip(order, arrays, strict=True)))
            names[:] = found
            return list(found.values())

        shapes = [value.shape for value in self.inputs]
        outputs = in_batches(ordered, shapes)([inputs[name] for name in order])
        return dict(zip(names, outputs, strict=True))


def is_artifact(path: Path) -> bool:
    """Whether a path is an artifact rather than a model file."""
    return (path / "manifest.json").is_file() or path.suffix == ".zip"


def open_runner(path: Path, *, threads: int | None = None, native: bool = False, trust: bool = False) -> Runner:
    """An artifact through the runtime; a model by reference execution, or (`native`) by onnxruntime.

    Raises InputError or ArtifactError if the path can't be opened.
    """
    if threads is not None and threads < 1:
        raise InputError("E201", f"threads must be at least 1, not {threads}")
    if is_artifact(path):
        loaded = runtime.load(path, threads=threads)
        inputs = tuple(Value(type_of(spec), spec.name) for spec in loaded.inputs)
        return Runner(str(path), loaded.manifest.engine, inputs, loaded)
    if native and path.suffix == ".onnx":
        return _onnxruntime(path, threads)
    graph = frontends.load(path, **({"trust": True} if trust else {}))
    return Runner(str(path), "reference", tuple(graph.inputs), lambda arrays: run_graph(graph, arrays))


def run_graph(graph: Graph, arrays: Arrays) -> Arrays:
    """Reference execution by name. Raises InputError for inputs that the model does not take."""
    try:
        with np.errstate(all="ignore"):
            found = execute(graph, arrays)
    except (ValueError, LookupError, ArithmeticError, TypeError) as error:
        message = f"the model does not run on these inputs: {error}"
        raise InputError("E207", message, hint="Give inputs that it takes, with --data or --inputs.") from error
    return dict(zip(graph.output_names, found, strict=True))


def _onnxruntime(path: Path, threads: int | None) -> Runner:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("E205", "timing an .onnx file needs onnxruntime", hint="pip install onnxruntime") from None
    graph = frontends.load(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own exceptions for models that it does not take
        raise InputError("E103", f"onnxruntime does not take {path}: {error}") from error
    names = [output.name for output in session.get_outputs()]

    def call(arrays: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, arrays), strict=True))

    return Runner(str(path), "onnxruntime", tuple(graph.inputs), call)


def read_inputs(path: Path, runner: Runner) -> Arrays:
    """The arrays of an .npz file, fitted to the inputs. Raises InputError E206."""
    batch = next(iter(Data(path, runner.inputs)))
    return {value.name: array for value, array in zip(runner.inputs, batch.inputs, strict=True)}


def write_outputs(path: Path, arrays: Arrays) -> None:
    """Write an .npz file at once: a crash leaves the old file or the new one. Raises InputError E209."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:  # numpy.savez takes no array called "file"
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        raise InputError("E209", f"{path} cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def made_up(inputs: Sequence[Value], seed: int) -> Arrays:
    """Random inputs that fit. Raises InputError if none can be made."""
    try:
        return {v.name: a for v, a in zip(inputs, sample_inputs(inputs, seed), strict=True)}
    except NoSample as error:
        raise InputError("E212", f"no inputs can be made up: {error}", hint="Give some with --data.") from None


def bench(
    paths: Sequence[Path], *, threads: int | None = None, rounds: int = 15, seed: int = 0
) -> list[dict[str, Any]]:
    """Interleaved timing of whole calls: median milliseconds of each, and ratios to the first. Raises InputError."""
    if not paths or rounds < 1:
        raise InputError("E201", "bench needs at least one model or artifact, and one round")
    runners = [open_runner(path, threads=threads, native=True) for path in paths]
    inputs = [made_up(runner.inputs, seed) for runner in runners]
    repeats = []
    for runner, arrays in zip(runners, inputs, strict=True):
        runner(arrays)
        start = time.perf_counter()
        runner(arrays)
        repeats.append(max(1, min(1000, math.ceil(0.02 / max(1e-9, time.perf_counter() - start)))))
    times: list[list[float]] = [[] for _ in runners]
    for _ in range(rounds):
        for k, (runner, arrays) in enumerate(zip(runners, inputs, strict=True)):
            start = time.perf_counter()
            for _ in range(repeats[k]):
                runner(arrays)
            times[k].append(1e3 * (time.perf_counter() - start) / repeats[k])
    ratios = [float(np.median(np.array(t) / np.array(times[0]))) for t in times]
    return [
        {"model": r.name, "engine": r.engine, "median_ms": float(np.median(t)), "ratio": ratio, "rounds": rounds}
        for r, t, ratio in zip(runners, times, ratios, strict=True)
    ]


def compare(
    a: Path, b: Path, *, data: str | None = None, tolerance: float | None = None, seed: int = 0, trust: bool = False
) -> list[dict[str, Any]]:
    """Largest difference per output over all data (or made-up inputs), relative to the largest element."""
    if tolerance is not None and not tolerance >= 0:
        raise InputError("E201", f"the tolerance must be at least 0, not {tolerance}")
    first, second = (open_runner(path, trust=trust) for path in (a, b))
    if len(first.inputs) != len(second.inputs):
        raise InputError("E201", f"{a} has {len(first.inputs)} inputs, {b} has {len(second.inputs)}")
    batches = [batch.inputs for batch in Data(data, first.inputs)] if data else None
    feeds = [dict(zip((v.name for v in first.inputs), batch, strict=True)) for batch in batches or []]
    feeds = feeds or [made_up(first.inputs, seed + k) for k in range(2)]
    rows: dict[str, dict[str, Any]] = {}
    for feed in feeds:
        wanted, found = first(feed), second(dict(zip((v.name for v in second.inputs), feed.values(), strict=True)))
        if len(wanted) != len(found):
            raise InputError("E201", f"{a} has {len(wanted)} outputs, {b} has {len(found)}")
        for position, name in enumerate(wanted):
            other = found[name] if name in found else list(found.values())[position]
            difference, limit = disagreement(wanted[name], other)
            limit = limit if tolerance is None else tolerance
            worst = max(difference, rows.get(name, {}).get("difference", 0.0))
            rows[name] = {"output": name, "difference": worst, "limit": limit, "agrees": worst <= limit}
    return list(rows.values())


def describe(
    path: Path, *, text: bool = False, units: bool = False, trust: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Facts about a model (or about its units), and the same as lines to print."""
    if units and is_artifact(path):
        raise InputError("E202", f"{path} is an artifact: its units are gone", hint="Inspect the model it was made of.")
    if is_artifact(path):
        return explain_artifact(path)
    graph = frontends.load(path, **({"trust": True} if trust else {}))
    if text:
        return {"text": to_text(graph)}, [to_text(graph)]
    if units:
        return units_table(graph)
    counts = Counter(node.op.name for each in graph.all_graphs() for node in each)
    weights = [value.constant for value in graph.constants() if value.constant is not None]
    counted = [macs(node) for node in graph]
    zero: Dimension = 0
    total = reduce(operator.add, (m for m in counted if m is not None), zero)
    found: dict[str, Any] = {
        "name": graph.name,
        "inputs": {value.name: str(value.type) for value in graph.inputs},
        "outputs": {name: str(value.type) for name, value in zip(graph.output_names, graph.outputs, strict=True)},
        "nodes": sum(counts.values()),
        "operators": dict(counts.most_common()),
        "parameters": sum(w.size for w in weights),
        "weight_bytes": sum(w.nbytes for w in weights),
        "macs": total if isinstance(total, int) else str(total),
        "macs_unknown_nodes": counted.count(None),
        "opaque": sorted({f"{n.domain}::{n.op_type}" for n in graph if n.op.name == "opaque"}),
        "metadata": dict(graph.metadata),
    }
    lines = [f"{key}: {value}" for key, value in found.items() if not isinstance(value, dict)]
    for key in ("metadata", "inputs", "outputs", "operators"):
        lines += [f"{key}:", *(f"  {name}: {value}" for name, value in found[key].items())]
    return found, lines


def explain_artifact(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest of an artifact whose files were checked, and its story in lines."""
    manifest = json.loads(manifest_json(runtime.load(path).manifest))
    size = sum(entry["size"] for entry in manifest["files"].values())
    lines = [f"{path}: {size / 1e6:.2f} MB, {manifest['engine']}, for {manifest['device']['name']}"]
    for role in ("inputs", "outputs"):
        lines += [f"{role}:", *(f"  {s['name']}: {s['element']}{_extents(s['shape'])}" for s in manifest[role])]
    lines.append("passes:")
    for p in manifest["passes"]:
        effect = ", ".join(f"{key.replace('_', ' ')} {p['effect'][key]}" for key in sorted(p["effect"], reverse=True))
        lines.append(f"  {p['specification']:28} {p['rewrites']:6} rewrites, {effect}")
    for section in ("evaluation", "options", "seeds", "versions", "source"):
        lines += [f"{section}: {', '.join(f'{k} {v}' for k, v in manifest[section].items())}"] * bool(manifest[section])
    return manifest, [*lines, f"hash: {manifest['sha256']}"]


def _extents(shape: Sequence[int | str] | None) -> str:
    return "[*]" if shape is None else f"[{', '.join(map(str, shape))}]"


def type_of(spec: TensorSpec) -> Type:
    """The IR type of a manifest's tensor."""
    return parse_type(f"{spec.element}{_extents(spec.shape)}")
