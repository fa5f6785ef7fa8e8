"""Bar 7: an artifact runs with three packages, loads quickly, refuses damage, and is the same wherever it is made.

    python -m benchmarks.artifact [--quick] [--json] [--seed N] [--save]

A small convolutional network with seeded weights (and, where ESPALIER_DATA is set and the run is not quick, a trained
ResNet-20) is compiled with the TVM backend. A new virtual environment gets numpy, safetensors, apache-tvm-ffi and
espalier without its dependencies; there the artifact must run and give what onnxruntime gives here.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.common import Benchmark, data_folder, interleaved

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "safetensors", "apache-tvm-ffi")
IMPORT_ROUNDS, FLIPS = 7, 300
QUICK_IMPORT_ROUNDS, QUICK_FLIPS = 3, 60

RUN = """
import sys, time
start = time.perf_counter()
import numpy
import espalier.runtime
model = espalier.runtime.load(sys.argv[1], threads=1)
ready = time.perf_counter() - start
with numpy.load(sys.argv[2]) as data:
    results = model({name: data[name] for name in data})
numpy.savez(sys.argv[3], **{f"output_{k}": array for k, array in enumerate(results.values())})
print(ready)
"""

# What running a TVM artifact imports, against what running the model without espalier would.
IMPORTS = {
    "runtime": "import espalier.runtime, espalier.runtime.engines.tvm, espalier.runtime.model",
    "onnxruntime and torch": "import onnxruntime, torch",
}

COMPILE = """
import sys
import espalier
made = espalier.compile(sys.argv[1], device="cpu", backend=sys.argv[3], output=sys.argv[2], seed=int(sys.argv[4]))
print(made.hash)
"""


def network(seed: int) -> onnx.ModelProto:
    """Two convolutions with batch norms and ReLUs, pooled and classified: [N, 3, 16, 16] → [N, 10]."""
    draw = np.random.default_rng(seed)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        values = draw.normal(scale=0.2, size=shape) if len(shape) > 1 else draw.uniform(0.5, 1.5, size=shape)
        return numpy_helper.from_array(values.astype(np.float32), name)

    weights, nodes, x = [], [], "image"
    for k, (channels, filters) in enumerate(((3, 16), (16, 32))):
        weights.append(constant(f"w{k}", filters, channels, 3, 3))
        weights += [constant(f"{part}{k}", filters) for part in ("scale", "shift", "mean", "variance")]
        nodes.append(helper.make_node("Conv", [x, f"w{k}"], [f"conv{k}"], pads=[1, 1, 1, 1], strides=[k + 1, k + 1]))
        norm = [f"conv{k}", *(f"{part}{k}" for part in ("scale", "shift", "mean", "variance"))]
        nodes.append(helper.make_node("BatchNormalization", norm, [f"norm{k}"]))
        nodes.append(helper.make_node("Relu", [f"norm{k}"], [f"relu{k}"]))
        x = f"relu{k}"
    weights += [constant("w", 32, 10), constant("b", 10)]
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    nodes.append(helper.make_node("Gemm", ["features", "w", "b"], ["scores"]))
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 16, 16])
    scores = helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "network", [image], [scores], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def python(executable: Path | str, program: str, *arguments: str | Path, **variables: str) -> str:
    """Standard output of a program run by a Python, outside of the repository. Raises RuntimeError with its words."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    command = [str(executable), "-c", program, *map(str, arguments)]
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tempfile.gettempdir(), check=False
    )
    if run.returncode:
        raise RuntimeError(f"a program failed with exit code {run.returncode}:\n{run.stderr[-2000:]}")
    return run.stdout


def build(command: Sequence[str | Path], **options: Any) -> str:
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if run.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:4]))} … failed:\n{(run.stderr or run.stdout)[-2000:]}")
    return run.stdout


def clean_environment(work: Path) -> Path:
    """The Python of a new virtual environment with the runtime's packages and espalier alone."""
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "espalier", source / "espalier", ignore=shutil.ignore_patterns("__pycache__"))
    wheels = work / "wheels"
    build([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source])
    (wheel,) = wheels.glob("espalier-*.whl")
    build([sys.executable, "-m", "venv", "--without-pip", work / "clean"])
    interpreter = work / "clean" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", interpreter]
    pinned = [line for line in (ROOT / "requirements" / "development.lock").read_text().split() if _is_wanted(line)]
    # apache-tvm-ffi itself names typing_extensions, so its dependencies come with it.
    build([*pip, "install", "--quiet", *pinned])
    build([*pip, "install", "--quiet", "--no-deps", wheel])
    return interpreter


def _is_wanted(line: str) -> bool:
    return line.partition("==")[0] in PACKAGES


def compile_model(
    model: Path, output: Path, seed: int, kernels: Path | str, backend: str = "tvm", hash_seed: str = "0"
) -> str:
    """The artifact's hash, compiled in a process of its own, with kernels from this cache, or "off"."""
    variables = {"PYTHONHASHSEED": hash_seed, "ESPALIER_KERNELS": str(kernels)}
    return python(sys.executable, COMPILE, model, output, backend, str(seed), **variables).split()[-1]


def measure_clean_run(benchmark: Benchmark, interpreter: Path, artifact: Path, model: Path, work: Path) -> None:
    """The artifact in the clean environment against onnxruntime in this one."""
    import onnxruntime

    pip = [sys.executable, "-m", "pip", "--python", interpreter, "--disable-pip-version-check"]
    listed = json.loads(build([*pip, "list", "--format", "json"]))
    installed = sorted(package["name"] for package in listed)
    absent = [name for name in ("torch", "onnx", "onnxruntime", "apache-tvm") if name in installed]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    shape = [extent if isinstance(extent, int) else 4 for extent in session.get_inputs()[0].shape]
    image = np.random.default_rng(benchmark.arguments.seed).normal(size=shape).astype(np.float32)
    np.savez(work / "in.npz", **{session.get_inputs()[0].name: image})
    start = time.perf_counter()
    ready = float(python(interpreter, RUN, artifact, work / "in.npz", work / "out.npz"))
    benchmark.details["seconds until the model is ready"] = ready
    benchmark.details["seconds of the whole process"] = time.perf_counter() - start
    benchmark.details["packages of the clean environment"] = installed
    wanted = session.run(None, {session.get_inputs()[0].name: image})
    with np.load(work / "out.npz") as found:
        errors = [
            float(np.abs(found[f"output_{k}"] - array).max() / np.abs(array).max()) for k, array in enumerate(wanted)
        ]
    benchmark.bar(
        "clean_environment",
        max(errors),
        f"runs with {', '.join(PACKAGES)} alone and agrees with onnxruntime to 1e-4 of the largest output",
        not absent and max(errors) <= 1e-4,
        f"also installed: {', '.join(absent)}" if absent else None,
    )


def measure_imports(benchmark: Benchmark, interpreter: Path, rounds: int) -> None:
    """Wall time of importing what runs a TVM artifact, in the clean environment, over that of the usual two."""

    def timed(executable: Path | str, program: str) -> float:
        clocked = f"import time; start = time.perf_counter(); {program}; print(time.perf_counter() - start)"
        return float(python(executable, clocked).split()[-1])

    places = {"runtime": interpreter, "onnxruntime and torch": Path(sys.executable)}
    medians = interleaved({name: partial(timed, places[name], IMPORTS[name]) for name in IMPORTS}, rounds)
    benchmark.details["import seconds (medians)"] = medians
    ratio = medians["runtime"] / medians["onnxruntime and torch"]
    benchmark.bar("import_time", ratio, "≤ 0.3 of importing onnxruntime and torch", ratio <= 0.3)


def measure_damage(benchmark: Benchmark, artifact: Path, flips: int) -> None:
    """Flip one bit at a time, anywhere in the artifact, and load it."""
    from espalier.errors import ArtifactError
    from espalier.runtime.files import ArtifactFiles

    draw = random.Random(benchmark.arguments.seed)
    names = sorted(path.relative_to(artifact) for path in artifact.rglob("*") if path.is_file())
    refused = 0
    for k in range(flips):
        path = artifact / names[k % len(names)]
        position, bit = draw.randrange(path.stat().st_size), 1 << draw.randrange(8)
        _flip(path, position, bit)
        try:
            ArtifactFiles(artifact)
        except ArtifactError:
            refused += 1
        finally:
            _flip(path, position, bit)
    ArtifactFiles(artifact)
    benchmark.bar("flipped_bits_refused", refused / flips, f"1: all of {flips}", refused == flips)


def _flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(position)
        (byte,) = stream.read(1)
        stream.seek(position)
        stream.write(bytes([byte ^ bit]))


def measure_reproducibility(benchmark: Benchmark, models: Sequence[Path], work: Path, known: str) -> None:
    """Compile in two folders under three hash seeds, with both backends; `known` is the first model's hash.

    In the first folder kernels come from the cache, in the second one all are compiled.
    """
    seed, quick = benchmark.arguments.seed, benchmark.arguments.quick
    every = [(folder, hash_seed) for folder in ("first", "second") for hash_seed in ("0", "1", "2")]
    # The quick run compares with the artifact that was compiled before, in another folder and under hash seed 0.
    runs = [("first", "1"), ("second", "2")] if quick else every
    different, compiled = [], 0
    for model in models:
        for backend in ("tvm",) if quick else ("tvm", "onnx"):
            hashes = {known} if quick else set()
            for folder, hash_seed in runs:
                place = work / folder / f"hash-seed-{hash_seed}"
                place.mkdir(parents=True, exist_ok=True)
                copy = Path(shutil.copy(model, place))
                kernels = work / "kernels" if folder == "first" else "off"
                hashes.add(compile_model(copy, place / f"{model.stem}-{backend}", seed, kernels, backend, hash_seed))
                compiled += 1
            if len(hashes) > 1:
                different.append(f"{model.stem} with {backend}: {len(hashes)} hashes")
    benchmark.bar(
        "same_hash",
        f"{compiled + quick} compilations, {len(different)} models differ",
        "same inputs and seed give the same hash in two folders and under three hash seeds",
        not different,
        "; ".join(different) or None,
    )


def main() -> None:
    benchmark = Benchmark("artifact", __doc__)
    arguments = benchmark.parse()
    folder = data_folder()
    with tempfile.TemporaryDirectory(prefix="espalier-artifact-") as name:
        work = Path(name)
        models = [work / "network.onnx"]
        onnx.save(network(arguments.seed), models[0])
        if folder is not None and not arguments.quick:
            models.append(folder / "models" / "akamaster_resnet20_cifar10.onnx")
        artifact = work / "artifact"
        known = compile_model(models[0], artifact, arguments.seed, work / "kernels")
        interpreter = clean_environment(work)
        measure_clean_run(benchmark, interpreter, artifact, models[0], work)
        measure_imports(benchmark, interpreter, QUICK_IMPORT_ROUNDS if arguments.quick else IMPORT_ROUNDS)
        measure_damage(benchmark, artifact, QUICK_FLIPS if arguments.quick else FLIPS)
        measure_reproducibility(benchmark, models, work, known)
    benchmark.details["real models"] = "not measured: ESPALIER_DATA is unset" if folder is None else "measured"
    benchmark.details["platform"] = platform.platform()
    benchmark.finish()


if __name__ == "__main__":
    main()
