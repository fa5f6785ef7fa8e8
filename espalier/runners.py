"""Models and artifacts as things that run: for the verbs `run`, `bench`, `verify`, `inspect` and `explain`."""

from __future__ import annotations

import json
import math
import operator
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier import frontends, runtime
from espalier.analysis.summary import units_table
from espalier.cost.count import macs
from espalier.cost.remaining import distinct
from espalier.cost.remaining import weights as weights_of
from espalier.errors import EspalierError, InputError
from espalier.ir import Graph, TensorType, Type, Value, to_text
from espalier.ir.dims import Dimension
from espalier.ir.execute import execute
from espalier.ir.types import parse as parse_type
from espalier.passes.base import parse_spec
from espalier.passes.manager import PassManager
from espalier.passes.pipelines import SEPARATING
from espalier.passes.samples import NoSample, Trial, sensitivity, shapes_of, try_sizes
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
    shapes: Collection[Sequence[Dimension]] = ()
    """Shapes of what is computed, in terms of the inputs' symbols."""
    graph: Graph | None = None
    """The graph that it executes, if it does."""

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


def open_runner(path: Path, *, threads: int | None = None, trust: bool = False) -> Runner:
    """An artifact through the runtime; a model by reference execution.

    Raises InputError or ArtifactError if the path can't be opened.
    """
    check_threads(threads)
    if is_artifact(path):
        loaded = runtime.load(path, threads=threads)
        inputs = tuple(Value(type_of(spec), spec.name) for spec in loaded.inputs)
        outputs = [type_of(spec) for spec in loaded.outputs]
        shapes = [type.shape for type in outputs if isinstance(type, TensorType) and type.shape is not None]
        return Runner(str(path), loaded.manifest.engine, inputs, loaded, shapes)
    graph = frontends.load(path, **({"trust": True} if trust else {}))
    return Runner(str(path), "reference", tuple(graph.inputs), partial(run_graph, graph), shapes_of(graph), graph)


def check_threads(threads: int | None) -> None:
    """Raise InputError E201 for a number of threads that there can't be."""
    if threads is not None and threads < 1:
        raise InputError("E201", f"threads must be at least 1, not {threads}")


def run_graph(graph: Graph, arrays: Arrays) -> Arrays:
    """Reference execution by name. Raises InputError for inputs that the model does not take."""
    try:
        with np.errstate(all="ignore"):
            found = execute(graph, arrays)
    except (ValueError, LookupError, ArithmeticError, TypeError) as error:
        message = f"the model does not run on these inputs: {error}"
        raise InputError("E207", message, hint="`espalier inspect MODEL` lists its inputs.") from error
    return dict(zip(graph.output_names, found, strict=True))


Native = Callable[[Path, Graph, int | None], Callable[[Arrays], Sequence[NDArray[Any]]]]
"""Opens a model file, whose graph is given, in an engine of others: a call that gives the outputs in order."""


def _onnxruntime(path: Path, graph: Graph, threads: int | None) -> Callable[[Arrays], Sequence[NDArray[Any]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what fails is reported by whoever calls
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its idle workers would slow the others down
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = list(graph.output_names)
    return lambda arrays: session.run(names, arrays)


def _openvino(path: Path, graph: Graph, threads: int | None) -> Callable[[Arrays], Sequence[NDArray[Any]]]:
    import openvino

    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads, "ENABLE_HYPER_THREADING": True}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    count = len(compiled.outputs)

    def call(arrays: Arrays) -> list[NDArray[Any]]:
        found = request.infer(arrays, share_inputs=True)
        return [found[k] for k in range(count)]

    return call


def _torch(path: Path, graph: Graph, threads: int | None) -> Callable[[Arrays], Sequence[NDArray[Any]]]:
    import torch
    import torch._inductor.config as inductor
    from torch.utils import _pytree as pytree

    from espalier.frontends.torch.export import read_pt2

    program = read_pt2(path, trust=True)  # the graph came from this file, so its origin has been accepted
    if threads is not None:
        torch.set_num_threads(threads)
    inductor.freezing = True
    compiled = torch.compile(program.module())
    form, names = program.call_spec.in_spec, [value.name for value in graph.inputs]

    def call(arrays: Arrays) -> list[NDArray[Any]]:
        args, kwargs = pytree.tree_unflatten([torch.from_numpy(arrays[name]) for name in names], form)
        with torch.inference_mode():
            return [tensor.numpy() for tensor in pytree.tree_leaves(compiled(*args, **kwargs))]

    return call


NATIVE: dict[str, tuple[str, Native]] = {
    "onnxruntime": (".onnx", _onnxruntime),
    "openvino": (".onnx", _openvino),
    "torch": (".pt2", _torch),
}
"""Engines of others: the files that each takes, and how it opens them."""


def engines_for(path: Path, chosen: Sequence[str] = ()) -> list[str]:
    """The engines of others for a file: those chosen (that take it, if any does), or those installed that take it.

    None for an artifact.

    Raises InputError E201 for engines that there are not.
    """
    unknown = [name for name in chosen if name not in NATIVE]
    if unknown:
        raise InputError("E201", f"there is no engine {unknown[0]!r}", hint=f"There are {', '.join(NATIVE)}.")
    if is_artifact(path):
        return []
    fitting = [name for name, (suffix, _) in NATIVE.items() if path.suffix == suffix]
    if chosen:
        return [name for name in fitting if name in chosen] or list(chosen)
    return [name for name in fitting if find_spec(name) is not None]


def open_native(path: Path, engine: str, *, threads: int | None = None, trust: bool = False) -> Runner:
    """A model file in an engine of others.

    Raises InputError if the engine is not installed (E205), or if it or espalier does not take the file.
    """
    suffix, opener = NATIVE[engine]
    if path.suffix != suffix:
        raise InputError("E103", f"{engine} takes {suffix} files, not {path}", hint="Leave --engines out.")
    if find_spec(engine) is None:
        raise InputError("E205", f"timing {path} in {engine} needs it installed", hint=f"pip install {engine}")
    graph = frontends.load(path, **({"trust": True} if trust else {}))
    try:
        native = opener(path, graph, threads)
    except EspalierError:
        raise
    except Exception as error:  # engines have their own exceptions for models that they do not take
        raise InputError("E103", f"{engine} does not take {path}: {error}") from error

    def call(arrays: Arrays) -> Arrays:
        try:
            return dict(zip(graph.output_names, native(arrays), strict=True))
        except Exception as error:  # of their own kinds, most of them for inputs that the model does not take
            raise InputError("E207", f"{engine} does not run {path} on these inputs: {error}") from error

    return Runner(str(path), engine, tuple(graph.inputs), call, shapes_of(graph))


def read_inputs(path: Path, runner: Runner) -> Arrays:
    """The arrays of an .npz file, fitted to the inputs. Raises InputError E206."""
    batch = next(iter(Data(path, runner.inputs, finite=False)))
    return {value.name: array for value, array in zip(runner.inputs, batch.inputs, strict=True)}


def check_target(path: Path) -> None:
    """Raise InputError E209 if outputs can't go to a path: only a file of arrays is replaced."""
    if path.is_dir():
        raise InputError("E209", f"{path} cannot be written: it is a folder", hint="Give the name of an .npz file.")
    if path.exists() and not _is_npz(path):
        hint = "Choose another path with -o, or remove the file."
        raise InputError("E209", f"{path} exists and is no .npz file; nothing else is replaced", hint=hint)


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return path.is_file() and all(name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def write_outputs(path: Path, arrays: Arrays) -> None:
    """Write an .npz file at once: a crash leaves the old file or the new one. Raises InputError E209."""
    check_target(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:  # numpy.savez takes no array called "file"
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError("E209", f"{path} cannot be written: {reason}") from None
    finally:
        temporary.unlink(missing_ok=True)


def made_up(runner: Runner, seed: int, inputs: Sequence[Value] | None = None) -> Trial:
    """Random inputs that the runner takes, of these types if given. Raises InputError if none are found."""
    names = [value.name for value in runner.inputs]

    def call(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return list(runner(dict(zip(names, arrays, strict=True))).values())

    try:
        return try_sizes(inputs or runner.inputs, call, seed, runner.shapes)
    except NoSample as error:
        message = f"no inputs can be made up for {runner.name}: {error}"
        raise InputError("E212", message, hint="Give some with --data.") from None


def bench(
    paths: Sequence[Path], *, engines: Sequence[str] = (), data: str | None = None, threads: int | None = None,
    rounds: int = 15, seed: int = 0, trust: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Interleaved timing of whole calls: median milliseconds of each, and ratios to the first that runs.

    Artifacts run in the runtime; model files in each engine that takes them and is chosen or else installed, or by
    reference execution if none does. The first batch of the data goes in, or made-up inputs: the same for all that take
    the same. What can't be opened or run has its error in its row. Raises InputError for wrong options.
    """
    if not paths or rounds < 1:
        raise InputError("E201", "bench needs at least one model or artifact, and one round")
    check_threads(threads)
    contestants: list[tuple[Path, str | None]] = []
    for path in paths:
        contestants += [(path, engine) for engine in engines_for(path, engines)] or [(path, None)]
    errors: dict[int, EspalierError] = {}
    calls: dict[int, tuple[Runner, Arrays, int]] = {}
    fed: list[Arrays] = []
    for k, (path, engine) in enumerate(contestants):
        try:
            if engine is None:
                runner = open_runner(path, threads=threads, trust=trust)
            else:
                runner = open_native(path, engine, threads=threads, trust=trust)
            arrays = feed(runner, data, seed, fed)
            start = time.perf_counter()
            runner(arrays)
            calls[k] = runner, arrays, max(1, min(1000, math.ceil(0.02 / max(1e-9, time.perf_counter() - start))))
        except EspalierError as error:
            errors[k] = error
    times: dict[int, list[float]] = {k: [] for k in calls}
    for _ in range(rounds):
        for k, (runner, arrays, repeats) in calls.items():
            if k in errors:
                continue
            try:
                start = time.perf_counter()
                for _ in range(repeats):
                    runner(arrays)
                times[k].append(1e3 * (time.perf_counter() - start) / repeats)
            except EspalierError as error:
                errors[k] = error
    first = next((times[k] for k in calls if k not in errors), [])
    return [
        {
            "model": str(path),
            "engine": calls[k][0].engine if k in calls else engine,
            "median_ms": None if k in errors else float(np.median(times[k])),
            "ratio": None if k in errors else float(np.median(np.array(times[k]) / np.array(first))),
            "rounds": rounds,
            "error": errors[k].to_json() if k in errors else None,
        }
        for k, (path, engine) in enumerate(contestants)
    ]


def feed(runner: Runner, data: str | None, seed: int, fed: list[Arrays]) -> Arrays:
    """Inputs that the runner takes, those of an earlier one if possible; it has been called with them once."""
    if data is not None:
        batch = next(iter(Data(data, runner.inputs, finite=False)))
        arrays = {value.name: array for value, array in zip(runner.inputs, batch.inputs, strict=True)}
        runner(arrays)
        return arrays
    types = {v.name: v.element.storage.dtype for v in runner.inputs if isinstance(v.type, TensorType)}
    for arrays in fed:
        if types == {name: array.dtype for name, array in arrays.items()}:
            with suppress(EspalierError):
                runner(arrays)
                return arrays
    found = made_up(runner, seed).inputs
    fed.append({value.name: array for value, array in zip(runner.inputs, found, strict=True)})
    return fed[-1]


def compare(
    a: Path, b: Path, *, data: str | None = None, tolerance: float | None = None, seed: int = 0, trust: bool = False
) -> list[dict[str, Any]]:
    """Largest difference per output over all data (or made-up inputs), relative to the largest element.

    NaN agrees with NaN, and an infinite number with itself. Where no tolerance is given and the first is a model, an
    output may differ by what rounding in it moves (see `sensitivity`). Raises InputError if all outputs are empty.
    """
    if tolerance is not None and not tolerance >= 0:
        raise InputError("E201", f"the tolerance must be at least 0, not {tolerance}")
    first, second = (open_runner(path, trust=trust) for path in (a, b))
    if len(first.inputs) != len(second.inputs):
        raise InputError("E201", f"{a} has {len(first.inputs)} inputs, {b} has {len(second.inputs)}")
    names = [[value.name for value in runner.inputs] for runner in (first, second)]
    rows: dict[str, dict[str, Any]] = {}
    tied = first.graph if tolerance is None and first.graph is not None and first.graph.is_deterministic else None
    for inputs in _feeds(first, second, data, seed):
        wanted, found = (
            each(dict(zip(of, inputs, strict=True))) for each, of in zip((first, second), names, strict=True)
        )
        if len(wanted) != len(found):
            raise InputError("E201", f"{a} has {len(wanted)} outputs, {b} has {len(found)}")
        for position, (name, array) in enumerate(wanted.items()):
            other = found[name] if name in found else list(found.values())[position]
            row = rows.setdefault(
                name, {"output": name, "difference": 0.0, "limit": 0.0, "agrees": True, "elements": 0, "misfit": None}
            )
            difference, limit = disagreement(array, other)
            limit = limit if tolerance is None else tolerance
            if not difference <= limit and tied is not None and np.shape(array) == np.shape(other):
                with suppress(NoSample, EspalierError):
                    limit = max(limit, 2 * sensitivity(tied, inputs, list(wanted.values()), position, seed))
            row["agrees"] &= difference <= limit
            row["limit"] = max(row["limit"], limit)
            row["difference"] = max(row["difference"], math.inf if math.isnan(difference) else difference)
            row["elements"] += int(np.size(array))
            row["misfit"] = row["misfit"] or _misfit(array, other)
    if all(row["agrees"] and not row["elements"] for row in rows.values()):
        message = f"nothing was compared: all outputs of {a} are empty on these inputs"
        raise InputError("E206" if data else "E212", message, hint="Give other inputs with --data.")
    return list(rows.values())


def _misfit(a: Any, b: Any) -> str | None:
    """What makes two outputs incomparable, in words; None if nothing does."""
    (a, b), kinds = (np.asarray(a), np.asarray(b)), ("biu", "fV", "c", "OSU")
    apart = next(k for k in kinds if a.dtype.kind in k) != next(k for k in kinds if b.dtype.kind in k)
    return f"{a.dtype}{list(a.shape)} against {b.dtype}{list(b.shape)}" if apart or a.shape != b.shape else None


def _feeds(first: Runner, second: Runner, data: str | None, seed: int) -> Iterator[Sequence[Any]]:
    """Inputs for both: all data, or made-up ones that the first takes."""
    if data is not None:
        yield from (batch.inputs for batch in Data(data, first.inputs, finite=False))
        return
    inputs = [Value(_narrower(a.type, b.type), a.name) for a, b in zip(first.inputs, second.inputs, strict=True)]
    for k in range(2):
        yield made_up(first, seed + k, inputs).inputs


def _narrower(a: Type, b: Type) -> Type:
    """The type with those extents of the other one that are numbers, where its own vary."""
    if not isinstance(a, TensorType) or not isinstance(b, TensorType) or a.shape is None or b.shape is None:
        return a
    if len(a.shape) != len(b.shape):
        return a
    return TensorType(a.element, tuple(n if isinstance(n, int) else m for m, n in zip(a.shape, b.shape, strict=True)))


def describe(
    path: Path, *, text: bool = False, units: bool = False, trust: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Facts about a model (or about its units), and the same as lines to print."""
    if (units or text) and is_artifact(path):
        gone = "units are" if units else "graph is"
        raise InputError("E202", f"{path} is an artifact: its {gone} gone", hint="Inspect the model it was made of.")
    if is_artifact(path):
        return explain_artifact(path)
    graph = frontends.load(path, **({"trust": True} if trust else {}))
    if text:
        return {"text": to_text(graph)}, [to_text(graph)]
    if units:
        PassManager(list(map(parse_spec, SEPARATING)), "none").run(graph)  # so that names are those that verbs know
        return units_table(graph)
    counts = Counter(node.op.name for each in graph.all_graphs() for node in each)
    held = [value.constant for value in graph.constants() if value.constant is not None]
    weights = {(id(each.source), each.views): each for each in held}.values()  # tied ones count once
    learned = distinct([value for each in graph.all_graphs() for value in weights_of(each)])
    counted = [macs(node) for node in graph]
    zero: Dimension = 0
    total = reduce(operator.add, (m for m in counted if m is not None), zero)
    found: dict[str, Any] = {
        "name": graph.name,
        "inputs": {value.name: str(value.type) for value in graph.inputs},
        "outputs": {name: str(value.type) for name, value in zip(graph.output_names, graph.outputs, strict=True)},
        "nodes": sum(counts.values()),
        "operators": dict(counts.most_common()),
        "parameters": sum(w.constant.size for w in learned if w.constant is not None),
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
    if (arena := manifest["backend"].get("arena")) is not None:
        bound = arena["lower_bound"]
        lines += [f"arena: {arena['bytes'] / 1e6:.2f} MB (the largest live set: {bound / 1e6:.2f} MB)"]
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
