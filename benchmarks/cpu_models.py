"""Model files for `benchmarks.cpu`: exported once, checked against torch, with inputs and the outputs to expect.

    python -m benchmarks.cpu_models NAME BATCH SEED FOLDER

makes FOLDER/NAME-bBATCH.onnx with fixed shapes, NAME-bBATCH.inputs.npz, NAME-bBATCH.wanted.npz (what onnxruntime
computes without optimisations) and, once all are there, NAME-bBATCH.json: what was checked, and what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import data_folder

DEPLOYED = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "vit_tiny", "minilm", "lstm", "unet")
"""The names of `benchmarks.zoo.deployment`, which takes seconds to import."""
REAL = {
    "resnet20": "akamaster_resnet20_cifar10.onnx",
    "ultraface": "ultraface_rfb320.onnx",
    "proxyless": "proxyless_gaze_face_detection.onnx",
}
"""Models in the folder that ESPALIER_DATA names."""
OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of an export from torch, relative to the largest output."""
SOURCES = ("cpu_models.py", "zoo/deployment.py", "zoo/convolutional.py", "zoo/attention.py", "zoo/weights.py")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Prepared:
    """The files of one model at one batch.

    Attributes:
        state: The torch module's weights; None for models that came as ONNX files.
        facts: Parameters, largest relative difference from torch, and the like.
    """

    name: str
    batch: int
    model: Path
    inputs: Path
    wanted: Path
    state: Path | None
    facts: dict[str, Any]


def available() -> list[str]:
    """All models, or those without the real ones where ESPALIER_DATA is unset."""
    return [*DEPLOYED, *(REAL if data_folder() is not None else ())]


def prepare(name: str, batch: int, seed: int, folder: Path) -> Prepared:
    """The files of a model, made in a process of its own unless they are there and still what would be made.

    Raises RuntimeError if the model can't be made or does not agree with torch.
    """
    stem = f"{name}-b{batch}"
    record = folder / f"{stem}.json"
    key = fingerprint(name, batch, seed)
    if not record.exists() or json.loads(record.read_text())["key"] != key:
        record.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.cpu_models", name, str(batch), str(seed), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{stem} cannot be made: {done.stderr.strip().splitlines()[-1:]}")
    facts = json.loads(record.read_text())
    state = folder / f"{name}.pt"
    return Prepared(
        name, batch, folder / f"{stem}.onnx", folder / f"{stem}.inputs.npz", folder / f"{stem}.wanted.npz",
        state if name in DEPLOYED else None, facts,
    )  # fmt: skip


def fingerprint(name: str, batch: int, seed: int) -> str:
    """What the files of a model depend on, as a hash."""
    from importlib.metadata import version

    here = Path(__file__).parent
    digest = hashlib.sha256(json.dumps([name, batch, seed, version("torch"), version("onnxruntime")]).encode())
    for source in SOURCES:
        digest.update((here / source).read_bytes())
    if name in REAL:
        digest.update(real_model(name).read_bytes())
    return digest.hexdigest()


def real_model(name: str) -> Path:
    data = data_folder()
    if data is None:
        raise RuntimeError(f"{name} needs ESPALIER_DATA")
    return data / "models" / REAL[name]


# ---- in a process of its own -----------------------------------------------------------------------------------


def make(name: str, batch: int, seed: int, folder: Path) -> dict[str, Any]:
    """Write a model, its inputs and its outputs; say what was checked."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}-b{batch}"
    path = Path(f"{stem}.onnx")
    maker = export if name in DEPLOYED else fix_batch
    inputs, facts = maker(name, batch, seed, path)
    np.savez(f"{stem}.inputs.npz", **inputs)
    wanted = reference(path, inputs)
    if not all(np.isfinite(array).all() for array in wanted.values()):
        raise RuntimeError(f"{name} has outputs that are not finite")
    np.savez(f"{stem}.wanted.npz", **wanted)
    return facts


def export(name: str, batch: int, seed: int, path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Export a torch model, and compare the file with it."""
    import torch

    from benchmarks.zoo.deployment import MODELS, build

    module = build(name, seed)
    torch.save(module.state_dict(), path.parent / f"{name}.pt")
    inputs = MODELS[name].inputs(batch, torch.Generator().manual_seed(seed + 2))
    torch.onnx.export(
        module, (), str(path), kwargs=inputs, input_names=list(inputs), output_names=["output"], dynamo=True,
        opset_version=OPSET, external_data=False, verbose=False,
    )  # fmt: skip
    with torch.no_grad():
        expected = module(**inputs).numpy()
    arrays = {key: tensor.numpy() for key, tensor in inputs.items()}
    (found,) = reference(path, arrays).values()
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the export of {name} is off by {difference:g} of the largest output")
    return arrays, {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "difference from torch": difference,
    }


def fix_batch(name: str, batch: int, seed: int, path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Copy a real model with a number in place of its batch symbol."""
    import onnx

    model = onnx.load(real_model(name))
    (image,) = (value for value in model.graph.input if value.name not in {w.name for w in model.graph.initializer})
    extents = image.type.tensor_type.shape.dim
    if not extents[0].dim_param and extents[0].dim_value != batch:
        raise RuntimeError(f"{name} has the batch {extents[0].dim_value}, not {batch}")
    symbol = extents[0].dim_param
    for value in (*model.graph.input, *model.graph.output):
        for extent in value.type.tensor_type.shape.dim:
            if symbol and extent.dim_param == symbol:
                extent.dim_value = batch
    if symbol:
        del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    shape = [extent.dim_value for extent in extents]
    parameters = sum(int(np.prod(weight.dims)) for weight in model.graph.initializer)
    arrays: Arrays = {image.name: np.random.default_rng(seed + 2).normal(size=shape).astype(np.float32)}
    return arrays, {"parameters": parameters}


def reference(path: Path, inputs: Arrays) -> Arrays:
    """The outputs by name that onnxruntime computes without optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def main() -> None:
    name, batch, seed, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    facts = make(name, batch, seed, folder)
    record = folder / f"{name}-b{batch}.json"
    temporary = record.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"key": fingerprint(name, batch, seed), **facts}))
    temporary.replace(record)


if __name__ == "__main__":
    main()
