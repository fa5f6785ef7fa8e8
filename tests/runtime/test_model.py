from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import espalier.runtime
from espalier.errors import ArtifactError
from espalier.runtime import cpu, elements
from espalier.runtime.files import write_artifact
from espalier.runtime.manifest import DeviceSpec, Manifest, TensorSpec, to_json
from espalier.runtime.weights import aligned, save_weights


def code_of(error: pytest.ExceptionInfo[ArtifactError]) -> str:
    return error.value.code


def x(rows: int = 5, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype("f4")


def test_a_tvm_artifact_runs(artifact: Path, artifacts: ModuleType) -> None:
    with espalier.runtime.load(artifact, threads=1) as model:
        assert [spec.name for spec in model.inputs] == ["x"]
        for rows in (5, 1, 33, 0):
            results = model({"x": x(rows)})
            assert list(results) == ["hidden", "scores"]
            for name, wanted in artifacts.expected(x(rows)).items():
                np.testing.assert_allclose(results[name], wanted, rtol=1e-5, atol=1e-5)
        by_position = model(x())
        np.testing.assert_array_equal(by_position["scores"], model({"x": x()})["scores"])
        assert "x: f32[N, 4]" in repr(model)
    with pytest.raises(ArtifactError) as caught:
        model({"x": x()})
    assert code_of(caught) == "E713"


def test_a_zipped_artifact_runs(tmp_path: Path, library: Path, artifacts: ModuleType) -> None:
    path = tmp_path / "network.zip"
    write_artifact(path, artifacts.tvm_manifest(), artifacts.tvm_files(tmp_path, library))
    model = espalier.runtime.load(path, threads=1)
    path.unlink()
    np.testing.assert_allclose(model({"x": x()})["scores"], artifacts.expected(x())["scores"], rtol=1e-5, atol=1e-5)
    folder = model._files._root
    assert folder.exists()
    model.close()
    assert not folder.exists()


def test_any_memory_layout_is_taken(artifact: Path, artifacts: ModuleType) -> None:
    wanted = artifacts.expected(x(6))["scores"]
    strided = np.repeat(x(6), 2, axis=0)[::2]
    transposed = np.asfortranarray(x(6))
    memory = np.zeros(6 * 4 * 4 + 1, np.uint8)
    shifted = memory[1:].view(np.uint8)
    shifted[:] = np.frombuffer(x(6).tobytes(), np.uint8)
    odd = np.ndarray((6, 4), np.float32, buffer=shifted.data)
    frozen = x(6)
    frozen.flags.writeable = False
    with espalier.runtime.load(artifact, threads=1) as model:
        for array in (strided, transposed, odd, frozen, aligned(x(6)), x(6).tolist()):
            array = np.asarray(array, np.float32) if isinstance(array, list) else array
            np.testing.assert_allclose(model({"x": array})["scores"], wanted, rtol=1e-5, atol=1e-5)


def test_odd_strides_of_short_axes_are_made_compact() -> None:
    """Axes of extent 0 or 1 may have any stride in numpy, also in arrays that happen to be aligned."""
    memory = aligned(np.zeros((64, 4), "f4"))
    for array in (memory[::3][:1], memory[:0], memory[::16], np.empty((0, 4), "f4"), np.empty((3, 0, 4), "f4"), memory):
        made = aligned(array)
        assert made.shape == array.shape and made.__array_interface__["data"][0] % 64 == 0
        step = made.itemsize
        for extent, stride in zip(reversed(made.shape), reversed(made.strides), strict=True):
            assert stride == step
            step *= extent
    assert aligned(memory) is memory


def test_results_are_the_callers_own(artifact: Path) -> None:
    with espalier.runtime.load(artifact, threads=1) as model:
        first = model({"x": x()})
        kept = first["hidden"].copy()
        model({"x": x(seed=1)})
        np.testing.assert_array_equal(first["hidden"], kept)
        first["hidden"][:] = 7
        np.testing.assert_array_equal(model({"x": x()})["hidden"], kept)


@pytest.mark.parametrize("kind", ["tvm", "onnx"])
def test_threads_may_call_at_once(kind: str, artifact: Path, tmp_path: Path, artifacts: ModuleType) -> None:
    if kind == "onnx":
        artifacts.onnx_artifact(tmp_path / "onnx")
    model = espalier.runtime.load(artifact if kind == "tvm" else tmp_path / "onnx", threads=1)
    inputs = [x(k % 7 + 1, seed=k)[:, : 4 if kind == "tvm" else 2] for k in range(60)]
    wrong: list[int] = []

    def work(start: int) -> None:
        for k in range(start, 60, 4):
            wanted = artifacts.expected(inputs[k])["scores"] if kind == "tvm" else inputs[k]
            found = model(inputs[k])["scores" if kind == "tvm" else "y"]
            if not np.allclose(found, wanted, rtol=1e-5, atol=1e-5):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    model.close()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (({},), "lacks 'x'"),
        (({"x": x(), "z": x()},), "no input 'z'"),
        (({"X": x()},), "lacks 'x' and has no input 'X'"),
        ((), "1 inputs; 0 were given"),
        ((x(), x()), "1 inputs; 2 were given"),
        ((x().astype("f8"),), "f32[N, 4]: float64 is not float32"),
        ((x().astype(">f4"),), ">f4 is not float32"),
        ((x().view("i4"),), "int32 is not float32"),
        ((x()[:, :3],), "shape [5, 3]"),
        ((x()[0],), "shape [4]"),
        ((np.array("text"),), "is not float32"),
        ((object(),), "object is not float32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(artifact: Path, inputs: tuple[Any, ...], words: str) -> None:
    with espalier.runtime.load(artifact, threads=1) as model, pytest.raises(ArtifactError) as caught:
        model(*inputs)
    assert code_of(caught) == "E709"
    assert words in caught.value.message


def rewritten(artifact: Path, **changes: Any) -> Path:
    """The artifact with another manifest, whose hashes are right."""
    content = json.loads((artifact / "manifest.json").read_text()) | changes
    del content["sha256"]
    body = json.dumps(content, sort_keys=True, indent=2) + "\n"
    content["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    (artifact / "manifest.json").write_text(json.dumps(content, sort_keys=True, indent=2) + "\n")
    return artifact


def section(**changes: Any) -> dict[str, Any]:
    weights = [
        {"name": "first", "element": "f32", "shape": [4, 3]},
        {"name": "second", "element": "f32", "shape": [3, 2]},
    ]
    whole = {"library": "model.so", "runtime": "libtvm_runtime.so", "entry": "main"}
    return whole | {"weights": {"file": "weights.safetensors", "tensors": weights}} | changes


def weight(name: str, shape: list[Any], element: str = "f32") -> dict[str, Any]:
    tensors = [
        {"name": name, "element": element, "shape": shape},
        {"name": "second", "element": "f32", "shape": [3, 2]},
    ]
    return section(weights={"file": "weights.safetensors", "tensors": tensors})


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"engine": "magic"}, "E702", "there is no engine 'magic'"),
        ({"backend": section(library="other.so")}, "E710", "does not list it"),
        ({"backend": section(library="/lib/x86_64-linux-gnu/libm.so.6")}, "E710", "does not list it"),
        ({"backend": section(weights={"file": "../weights", "tensors": []})}, "E710", "does not list it"),
        ({"backend": section(extra=1)}, "E702", "unknown field"),
        ({"backend": {}}, "E702", "lacks the field"),
        ({"backend": section(entry="absent")}, "E712", "cannot load"),
        ({"backend": section(library="weights.safetensors")}, "E712", "cannot load"),
        ({"backend": weight("third", [4, 3])}, "E711", "third"),
        ({"backend": weight("first", [3, 4])}, "E711", "float32[4, 3]"),
        ({"backend": weight("first", [4, 3], "f64")}, "E711", "f64"),
        ({"backend": weight("first", [-4, 3])}, "E702", "impossible extent"),
        ({"backend": section(weights={"file": "model.so", "tensors": weight("first", [4, 3])["weights"]["tensors"]})},
         "E711", "cannot read"),
        ({"inputs": [{"name": "x", "element": "f99", "shape": [1]}]}, "E702", "no element type 'f99'"),
        ({"device": {"name": "a", "architecture": "sparc"}}, "E707", "sparc"),
        ({"device": {"name": "a", "system": "Plan9"}}, "E707", "Plan9"),
        ({"device": {"name": "a", "instructions": ["sse2", "avx1024"]}}, "E707", "lacks avx1024"),
        ({"outputs": [{"name": "hidden", "element": "f32", "shape": None}]}, None, "gave 2 outputs"),
    ],
)  # fmt: skip
def test_wrong_manifests_are_refused(artifact: Path, changes: dict[str, Any], code: str | None, words: str) -> None:
    if code is None:
        model = espalier.runtime.load(rewritten(artifact, **changes), threads=1)
        with pytest.raises(ArtifactError, match="E712") as caught:
            model({"x": x()})
    else:
        with pytest.raises(ArtifactError) as caught:
            espalier.runtime.load(rewritten(artifact, **changes), threads=1)
        assert code_of(caught) == code
    assert words in caught.value.message


def test_nothing_is_loaded_from_a_changed_library(artifact: Path) -> None:
    data = bytearray((artifact / "model.so").read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / "model.so").write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        espalier.runtime.load(artifact)
    assert code_of(caught) == "E705"
    assert str(artifact / "model.so") not in Path("/proc/self/maps").read_text()


def test_equal_symbols_must_have_equal_extents(tmp_path: Path, artifacts: ModuleType) -> None:
    manifest = artifacts.onnx_artifact(tmp_path / "onnx")
    manifest = replace(manifest, inputs=(TensorSpec("x", "f32", ("N", "N")),))
    (tmp_path / "onnx" / "manifest.json").write_bytes(to_json(manifest))
    model = espalier.runtime.load(tmp_path / "onnx", threads=1)
    model(np.ones((2, 2), "f4"))
    with pytest.raises(ArtifactError) as caught:
        model(np.ones((3, 2), "f4"))
    assert "f32[N, N]; an array of shape [3, 2] was given where N = 3" in caught.value.message


ONNX_NUMBERS = {
    "f32": 1, "u8": 2, "i8": 3, "i16": 5, "i32": 6, "i64": 7, "bool": 9, "f16": 10, "f64": 11, "bf16": 16,
    "f8e4m3fn": 17, "f8e5m2": 19,
}  # fmt: skip
BITS = {"bf16": "uint16", "f8e4m3fn": "uint8", "f8e5m2": "uint8"}


@pytest.mark.parametrize("element", ONNX_NUMBERS)
@pytest.mark.parametrize("engine", ["tvm", "onnx"])
def test_every_element_goes_through_unchanged(
    engine: str, element: str, tmp_path: Path, artifacts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "identity"
    if engine == "onnx":
        artifacts.onnx_artifact(path, element=ONNX_NUMBERS[element], name=element)
    else:
        tvm = pytest.importorskip("tvm")
        from tvm import relax

        dtype = elements.value_dtype(element).name
        argument = relax.Var("x", relax.TensorType((tvm.tirx.Var("n", "int64"), 2), dtype))
        builder = relax.BlockBuilder()
        with builder.function("main", [argument]):
            with builder.dataflow():
                result = builder.emit_output(relax.op.permute_dims(relax.op.permute_dims(argument)))
            builder.emit_func_output(result)
        library = artifacts.build(builder.get(), tmp_path / "model.so")
        spec = (TensorSpec("x", element, ("N", 2)),)
        backend = {"library": "model.so", "runtime": "libtvm_runtime.so"}
        manifest = Manifest("tvm", spec, (TensorSpec("y", element, ("N", 2)),), DeviceSpec("cpu"), backend)
        write_artifact(path, manifest, {"model.so": library, "libtvm_runtime.so": artifacts.runtime_library()})
    value = np.array([[0, 1], [1, 0], [3, 2]]).astype(elements.value_dtype(element))
    with espalier.runtime.load(path, threads=1) as model:
        result = model(value)["y"]
        assert result.dtype == value.dtype and result.tobytes() == value.tobytes()
        if element in BITS:
            raw = value.view(BITS[element])
            assert model(raw)["y"].dtype == value.dtype
            # Without ml_dtypes the raw bits come back.
            monkeypatch.setattr(elements.importlib.util, "find_spec", lambda name: None)
            elements.value_dtype.cache_clear()
            try:
                result = model(raw)["y"]
            finally:
                elements.value_dtype.cache_clear()
            assert result.dtype == raw.dtype and result.tobytes() == raw.tobytes()


def test_weights_of_small_elements_are_stored_in_raw_form(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    weights = {
        "b": np.array([1.5, -2], ml_dtypes.bfloat16),
        "i": np.array(-3, ml_dtypes.int4),
        "f": np.ones((2, 2), "f4").T,
    }
    save_weights(tmp_path / "w", weights)
    save_weights(tmp_path / "v", dict(reversed(weights.items())))
    assert (tmp_path / "w").read_bytes() == (tmp_path / "v").read_bytes()
    stored = load_file(tmp_path / "w")
    assert stored["b"].dtype == np.uint16 and stored["b"].view(ml_dtypes.bfloat16).tolist() == [1.5, -2]
    assert stored["i"].dtype == np.int8 and stored["i"].shape == () and stored["i"] == -3


def test_external_data_must_be_listed(tmp_path: Path, artifacts: ModuleType) -> None:
    data = np.array([1, 2], "f4").tobytes()
    good = tmp_path / "good"
    artifacts.onnx_artifact(good, operator="Add", external={"model.data": data})
    with espalier.runtime.load(good, threads=1) as model:
        np.testing.assert_array_equal(model(np.zeros((1, 2), "f4"))["y"], [[1, 2]])
    unlisted = tmp_path / "unlisted"
    artifacts.onnx_artifact(unlisted, operator="Add", external={}, location="model.data")
    (unlisted / "model.data").write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        espalier.runtime.load(unlisted)
    assert code_of(caught) == "E710"
    outside = tmp_path / "outside"
    artifacts.onnx_artifact(outside, operator="Add", external={}, location="../secret")
    (tmp_path / "secret").write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        espalier.runtime.load(outside)
    assert code_of(caught) == "E712"


def test_a_missing_package_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "espalier.runtime.engines.tvm", raising=False)
    monkeypatch.setitem(sys.modules, "tvm_ffi", None)
    with pytest.raises(ArtifactError) as caught:
        espalier.runtime.load(artifact)
    assert code_of(caught) == "E708" and caught.value.hint == "pip install apache-tvm-ffi"


def test_thread_counts_are_positive(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="at least one thread"):
        espalier.runtime.load(artifact, threads=0)


CPUINFO = """processor\t: 0
flags\t\t: fpu sse2 pni ssse3 sse4_1 sse4_2 avx2 bmi1 abm avx512f avx512_vnni
processor\t: 1
flags\t\t: fpu sse2 pni ssse3 sse4_1 sse4_2 avx2 bmi1 abm avx512f
"""


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("avx2", "sse4.2", "sse3", "bmi", "lzcnt", "avx512f"), None),
        (("avx2", "avx512vnni"), "avx512vnni"),  # one core lacks it
        (("avx512-vnni",), "avx512-vnni"),
        (("amx-tile",), "amx-tile"),
    ],
)
def test_instruction_sets_go_by_llvms_or_the_kernels_names(
    names: tuple[str, ...], missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu.Path, "read_text", lambda *_, **__: CPUINFO)
    cpu.instruction_sets.cache_clear()
    try:
        if missing is None:
            cpu.check_device(DeviceSpec("cpu", instructions=names))
        else:
            with pytest.raises(ArtifactError, match=f"lacks {missing}"):
                cpu.check_device(DeviceSpec("cpu", instructions=names))
    finally:
        cpu.instruction_sets.cache_clear()


def test_unknown_processors_are_refused_rather_than_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "instruction_sets", lambda: None)
    cpu.check_device(DeviceSpec("cpu"))
    with pytest.raises(ArtifactError, match="cannot tell"):
        cpu.check_device(DeviceSpec("cpu", instructions=("avx2",)))


# Absent in an environment with the runtime's three packages alone; tvm_ffi would import torch if it could.
ABSENT = ("cyclopts", "ml_dtypes", "networkx", "onnx", "onnxruntime", "pydantic", "rich", "scipy", "torch", "tvm")
PROGRAM = """
import sys
{before}
import espalier.runtime, numpy
model = espalier.runtime.load(sys.argv[1], threads=1)
print(model(numpy.ones((2, 4), "f4"))["scores"].shape)
{after}
"""


@pytest.mark.parametrize("order", ["alone", "tvm before", "tvm after"])
def test_the_runtime_stands_alone_and_lives_with_tvm(artifact: Path, order: str) -> None:
    absent = f"sys.modules.update(dict.fromkeys({ABSENT}))"
    before = {"alone": absent, "tvm before": "import tvm", "tvm after": ""}[order]
    program = PROGRAM.format(before=before, after="import tvm" if order == "tvm after" else "")
    run = subprocess.run([sys.executable, "-c", program, str(artifact)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(2, 2)"


def test_another_runtime_library_in_the_process_is_refused(artifact: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    manifest = json.loads((artifact / "manifest.json").read_text())
    content: dict[str, bytes | Path] = {name: artifact / name for name in manifest["files"]}
    content["libtvm_runtime.so"] = (artifact / "libtvm_runtime.so").read_bytes() + b"\0"
    loaded = espalier.runtime.load(artifact, threads=1)
    write_artifact(other, loaded.manifest, content)
    with pytest.raises(ArtifactError) as caught:
        espalier.runtime.load(other, threads=1)
    assert code_of(caught) == "E715"


def test_importing_the_runtime_is_light() -> None:
    program = "import sys, espalier.runtime; print('numpy' in sys.modules, 'zipfile' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert run.stdout.split() == ["False", "False"]


THREADS = """
import os, sys
import numpy as np
import espalier.runtime
model = espalier.runtime.load(sys.argv[1], threads=int(sys.argv[2]) if sys.argv[2] else None)
model(np.zeros((5, 4), np.float32))
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize(
    ("asked", "variables", "least", "most"),
    [
        ("3", {}, 3, 99),
        ("3", {"OMP_NUM_THREADS": "1"}, 3, 99),
        ("3", {"TVM_NUM_THREADS": "1"}, 1, 2),
        ("1", {}, 1, 2),
        ("", {"OMP_NUM_THREADS": "1"}, 1, 2),
        ("", {"OMP_NUM_THREADS": "many"}, 1, 99),
    ],
)
def test_as_many_threads_as_asked_for(
    asked: str, variables: dict[str, str], least: int, most: int, artifact: Path
) -> None:
    """Whatever TVM would take for the number of cores; its own variable stays in force."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "TVM_NUM_THREADS")}
    environment = {**kept, "OPENBLAS_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(artifact), asked],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert least <= int(done.stdout) <= most
