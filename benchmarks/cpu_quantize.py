"""Quantized models for `benchmarks.cpu`: QDQ graphs by onnxruntime's quantizer and by NNCF, from one prepared file.

    python -m benchmarks.cpu_quantize STAGE NAME SEED FOLDER

`prepare` writes FOLDER/NAME-prepared.onnx (batch norms folded, shapes inferred) and calibration data of the kind that
the model takes; `onnxruntime` and `nncf` write NAME-int8-QUANTIZER.onnx and the outputs that it means: what onnxruntime
computes without optimisations. NNCF may live in the environment of peers, which has neither torch nor espalier.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_models import DEPLOYED, Arrays, Prepared, reference
from benchmarks.cpu_turns import package_version

QUANTIZERS = ("onnxruntime", "nncf")
SAMPLES = 16
OPSET = 17
"""Older files are brought to this operator set: scales per channel came with 13."""
TRANSFORMERS = ("vit_tiny", "minilm")
LIMIT = 1800


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and what it computes; `failed` says why there is none."""

    model: Path
    wanted: Path
    failed: str | None = None


def quantized(prepared: Prepared, quantizer: str, python: Path, seed: int, folder: Path) -> Quantized:
    """The quantized form of a model at batch 1, made with an interpreter that has the quantizer, or taken again."""
    stem = folder / f"{prepared.name}-int8-{quantizer}"
    made = Quantized(Path(f"{stem}.onnx"), Path(f"{stem}.wanted.npz"))
    record = Path(f"{stem}.json")
    digest = hashlib.sha256(prepared.model.read_bytes() + Path(__file__).read_bytes())
    digest.update(json.dumps([seed, quantizer, package_version(python, quantizer)]).encode())
    key = digest.hexdigest()
    if not record.exists() or json.loads(record.read_text())["key"] != key:
        record.unlink(missing_ok=True)
        failed = None
        for interpreter, stage in ((Path(sys.executable), "prepare"), (python, quantizer)):
            command = [interpreter, "-m", "benchmarks.cpu_quantize", stage, prepared.name, str(seed), str(folder)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
            except subprocess.TimeoutExpired:
                failed = f"no result within {LIMIT} s"
                break
            if done.returncode:
                failed = f"{stage}: {' '.join(done.stderr.strip().splitlines()[-1:])}"[:300]
                break
        record.write_text(json.dumps({"key": key, "failed": failed}))
    return Quantized(made.model, made.wanted, json.loads(record.read_text())["failed"])


# ---- in a process of its own -----------------------------------------------------------------------------------


def prepare_model(name: str, seed: int, folder: Path) -> None:
    """Fold and infer what both quantizers want folded and inferred, and draw calibration data."""
    import onnx
    from onnx import version_converter
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(folder / f"{name}-b1.onnx")
    standard = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if standard < OPSET:
        kept = [entry for entry in model.opset_import if entry.domain == ""]
        used = {node.domain for node in model.graph.node}
        kept += [entry for entry in model.opset_import if entry.domain and entry.domain in used]
        del model.opset_import[:]
        model.opset_import.extend(kept)
        weights = {weight.name for weight in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, 8)
        model = version_converter.convert_version(model, OPSET)
    target = folder / f"{name}-prepared.onnx"
    onnx.save(model, target)
    quant_pre_process(str(target), str(target), skip_symbolic_shape=True)
    np.savez(folder / f"{name}.calibration.npz", **calibration(name, seed, folder))


def calibration(name: str, seed: int, folder: Path) -> Arrays:
    """SAMPLES sets of inputs, as NUMBER/NAME, of the distribution that the model is measured on."""
    if name in DEPLOYED:
        import torch

        from benchmarks.zoo.deployment import MODELS

        generator = torch.Generator().manual_seed(seed + 3)
        sets = [MODELS[name].inputs(1, generator) for _ in range(SAMPLES)]
        return {f"{k}/{key}": tensor.numpy() for k, each in enumerate(sets) for key, tensor in each.items()}
    rng = np.random.default_rng(seed + 3)
    with np.load(folder / f"{name}-b1.inputs.npz") as file:
        shapes = {key: file[key].shape for key in file.files}
    return {
        f"{k}/{key}": rng.normal(size=shape).astype(np.float32) for k in range(SAMPLES) for key, shape in shapes.items()
    }


def samples(name: str, folder: Path) -> Iterator[Arrays]:
    """The sets of calibration data."""
    with np.load(folder / f"{name}.calibration.npz") as file:
        for k in range(SAMPLES):
            yield {key.partition("/")[2]: file[key] for key in file.files if key.startswith(f"{k}/")}


def with_onnxruntime(name: str, seed: int, folder: Path, target: Path) -> None:
    """Unsigned activations and signed weights per channel: the form that onnxruntime's own kernels are fastest in.

    Of transformers, the matrix products alone: rounding what lies between them would leave little of their outputs.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # no types come with it
        def __init__(self) -> None:
            self.sets = samples(name, folder)

        def get_next(self) -> Any:
            return next(self.sets, None)

    quantization.quantize_static(
        str(folder / f"{name}-prepared.onnx"), str(target), Reader(),
        quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"] if name in TRANSFORMERS else None,
    )  # fmt: skip


def with_nncf(name: str, seed: int, folder: Path, target: Path) -> None:
    """NNCF's own defaults, and its scheme for transformers where the model is one."""
    import nncf
    import onnx

    model = onnx.load(folder / f"{name}-prepared.onnx")
    kind = nncf.ModelType.TRANSFORMER if name in TRANSFORMERS else None
    found = nncf.quantize(model, nncf.Dataset(list(samples(name, folder))), subset_size=SAMPLES, model_type=kind)
    onnx.save(found, target)


WITH: dict[str, Callable[[str, int, Path, Path], None]] = {"onnxruntime": with_onnxruntime, "nncf": with_nncf}


def main() -> None:
    stage, name, seed, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    if stage == "prepare":
        prepare_model(name, seed, folder)
        return
    target = folder / f"{name}-int8-{stage}.onnx"
    WITH[stage](name, seed, folder, target)
    with np.load(folder / f"{name}-b1.inputs.npz") as file:
        wanted = reference(target, {key: file[key] for key in file.files})
    np.savez(folder / f"{name}-int8-{stage}.wanted.npz", **wanted)


if __name__ == "__main__":
    main()
