"""Small artifacts for the tests of the runtime."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from espalier.runtime.files import Content, write_artifact
from espalier.runtime.manifest import DeviceSpec, Manifest, TensorSpec
from espalier.runtime.weights import save_weights

BATCH = 5


def matrices(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Weights of the two-layer network that `tvm_artifact` holds."""
    random = np.random.default_rng(seed)
    return {"first": random.normal(size=(4, 3)).astype("f4"), "second": random.normal(size=(3, 2)).astype("f4")}


def expected(x: np.ndarray[Any, Any], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    weights = matrices(seed)
    hidden = np.maximum(x @ weights["first"], 0)
    return {"hidden": hidden, "scores": hidden @ weights["second"]}


def tvm_library(folder: Path) -> Path:
    """A shared library with main(x[N, 4], first[4, 3], second[3, 2]) -> (hidden[N, 3], scores[N, 2])."""
    import tvm
    from tvm import relax

    rows = tvm.tirx.Var("rows", "int64")
    shapes = {"x": (rows, 4), "first": (4, 3), "second": (3, 2)}
    arguments = [relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in shapes.items()]
    x, first, second = arguments
    builder = relax.BlockBuilder()
    with builder.function("main", arguments):
        with builder.dataflow():
            hidden = builder.emit(relax.op.nn.relu(relax.op.matmul(x, first)))
            scores = builder.emit(relax.op.matmul(hidden, second))
            result = builder.emit_output(relax.Tuple([hidden, scores]))
        builder.emit_func_output(result)
    return build(builder.get(), folder / "model.so")


def build(module: Any, path: Path) -> Path:
    import tvm
    from tvm import relax

    target = tvm.target.Target({"kind": "llvm"})
    with target:
        module = relax.get_pipeline("zero")(module)
    relax.build(module, target=target).export_library(str(path))
    return path


def runtime_library() -> Path:
    package = importlib.util.find_spec("tvm")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "lib" / "libtvm_runtime.so"


def tvm_manifest(**changes: Any) -> Manifest:
    weights = [{"name": name, "element": "f32", "shape": list(array.shape)} for name, array in matrices().items()]
    content: dict[str, Any] = {
        "engine": "tvm",
        "inputs": (TensorSpec("x", "f32", ("N", 4)),),
        "outputs": (TensorSpec("hidden", "f32", ("N", 3)), TensorSpec("scores", "f32", ("N", 2))),
        "device": DeviceSpec("cpu", platform.machine(), platform.system(), ("sse2",)),
        "backend": {
            "library": "model.so",
            "runtime": "libtvm_runtime.so",
            "weights": {"file": "weights.safetensors", "tensors": weights},
        },
        "seeds": {"compile": 0},
    }
    return Manifest(**(content | changes))


def tvm_files(folder: Path, library: Path) -> dict[str, Content]:
    save_weights(folder / "weights.safetensors", matrices())
    return {
        "model.so": library,
        "libtvm_runtime.so": runtime_library(),
        "weights.safetensors": folder / "weights.safetensors",
    }


def onnx_artifact(
    path: Path,
    *,
    element: int = onnx.TensorProto.FLOAT,
    name: str = "f32",
    operator: str = "Identity",
    external: Mapping[str, bytes] | None = None,
    location: str = "model.data",
) -> Manifest:
    """An artifact y = Identity(x) or y = Add(x, w) with w in external data, x of shape [N, 2]."""
    inputs = [helper.make_tensor_value_info("x", element, ["N", 2])]
    outputs = [helper.make_tensor_value_info("y", element, ["N", 2])]
    node = helper.make_node(operator, ["x", "w"] if external is not None else ["x"], ["y"])
    graph = helper.make_graph([node], "g", inputs, outputs)
    if external is not None:
        weight = graph.initializer.add(name="w", data_type=element, dims=[2])
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        weight.external_data.add(key="length", value="8")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    manifest = Manifest(
        engine="onnx",
        inputs=(TensorSpec("x", name, ("N", 2)),),
        outputs=(TensorSpec("y", name, ("N", 2)),),
        device=DeviceSpec("cpu"),
        backend={"model": "model.onnx", "external_data": sorted(external or ())},
    )
    return write_artifact(path, manifest, {"model.onnx": model.SerializeToString(), **(external or {})})
