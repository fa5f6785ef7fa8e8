"""What the real models should give: onnxruntime, qonnx in its own environment, or a twin; and what to feed them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.datasets import TASKS, TWINS

QONNX = Path(".venv-qonnx/bin/python")
HARDWARE = "finn.custom_op.fpgadataflow"
RUNS = 3
Arrays = dict[str, NDArray[Any]]


def is_qonnx(model: onnx.ModelProto) -> bool:
    """Whether a model holds operators that onnxruntime does not know."""
    return any(node.domain not in ("", "ai.onnx", "com.microsoft") for node in model.graph.node)


def hardware_operators(model: onnx.ModelProto) -> set[str]:
    """The operators that only FINN runs."""
    return {node.op_type for node in model.graph.node if node.domain.startswith(HARDWARE)}


def reference_name(path: Path, model: onnx.ModelProto) -> str:
    """Who says what a model gives."""
    if path.stem in TWINS:
        return "twin"
    return "qonnx" if is_qonnx(model) else "onnxruntime"


def reference_outputs(path: Path, model: onnx.ModelProto, feeds: Sequence[Arrays]) -> list[Arrays] | str:
    """The reference's outputs for each feed, or why there are none."""
    if path.stem in TWINS:
        run = TWINS[path.stem](path.parent.parent)
        (name,) = feeds[0]
        found = run(np.concatenate([feed[name] for feed in feeds]))
        parts = np.split(found, np.cumsum([len(feed[name]) for feed in feeds])[:-1])
        return [{model.graph.output[0].name: part} for part in parts]
    return qonnx_outputs(path, feeds) if is_qonnx(model) else onnxruntime_outputs(path, feeds)


def qonnx_outputs(path: Path, feeds: Sequence[Arrays]) -> list[Arrays] | str:
    """What qonnx's executor computes, node by node."""
    if not QONNX.exists():
        return "make venv-qonnx has not been run"
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(inputs, **{name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]})
        command = [str(QONNX), "-W", "ignore", "benchmarks/qonnx_reference.py", str(path), str(inputs), str(outputs)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            return f"qonnx: {process.stderr.strip().splitlines()[-1][:200]}"
        with np.load(outputs) as archive:
            arrays = {name: archive[name] for name in archive.files}
    return [{name: array[k] for name, array in arrays.items()} for k in range(len(feeds))]


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


def exact_outputs(path: Path, feeds: Sequence[Arrays]) -> list[Arrays]:
    """What the model gives in f64, by onnx's reference evaluator: its f32 weights, inputs and casts made f64."""
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(path)
    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE

    def widen(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == single:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype("f8"), tensor.name))

    for weight in model.graph.initializer:
        widen(weight)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == single:
            value.type.tensor_type.elem_type = double
    del model.graph.value_info[:]
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == single:
                attribute.i = double
    run, names = ReferenceEvaluator(model), [output.name for output in model.graph.output]
    wide = ({name: a.astype("f8") if a.dtype == "f4" else a for name, a in feed.items()} for feed in feeds)
    return [dict(zip(names, run.run(None, feed), strict=True)) for feed in wide]


def annotations(model: onnx.ModelProto) -> dict[str, str]:
    """QONNX's datatypes of tensors, by name."""
    return {
        tensor.tensor_name: entry.value
        for tensor in model.graph.quantization_annotation
        for entry in tensor.quant_parameter_tensor_names
        if entry.key == "finn_datatype"
    }


def random_feeds(path: Path, model: onnx.ModelProto, seed: int) -> list[Arrays]:
    """Random inputs: numbers of the datatype that a QONNX file declares, or else normal numbers; symbols are 2."""
    from espalier.frontends import load
    from espalier.passes.samples import sample_inputs

    inputs, kinds, feeds = load(path).inputs, annotations(model), []
    for k in range(RUNS):
        rng = np.random.default_rng(seed + k)
        made = zip((v.name for v in inputs), sample_inputs(inputs, seed + k), strict=True)
        feeds.append({name: _of_kind(kinds.get(name, ""), array, rng) for name, array in made})
    return feeds


def _of_kind(kind: str, like: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Random numbers of a QONNX datatype in the shape and dtype of an array; the array for FLOAT32 and none."""
    bits = int("".join(c for c in kind if c.isdigit()) or 0)
    if kind == "BIPOLAR":
        found = rng.choice([-1, 1], like.shape)
    elif kind == "TERNARY":
        found = rng.integers(-1, 2, like.shape)
    elif kind == "BINARY" or kind.startswith("UINT"):
        found = rng.integers(0, 2 ** (bits or 1), like.shape)
    elif kind.startswith("INT"):
        found = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), like.shape)
    else:
        return like
    return found.astype(like.dtype)


def real_feeds(name: str, data: Path, like: Arrays) -> list[Arrays]:
    """A few real samples for a model that has a task."""
    if name not in TASKS:
        return []
    samples, _ = TASKS[name].samples(data)
    (key, array), batch = next(iter(like.items())), len(next(iter(like.values())))
    return [{key: samples[k * batch : (k + 1) * batch].astype(array.dtype)} for k in range(RUNS)]


def zeros(model: onnx.ModelProto) -> Arrays:
    """Zeros for a model's inputs."""
    weights = {w.name for w in model.graph.initializer}
    return {
        v.name: np.zeros([d.dim_value or 2 for d in v.type.tensor_type.shape.dim], np.float32)
        for v in model.graph.input
        if v.name not in weights
    }
