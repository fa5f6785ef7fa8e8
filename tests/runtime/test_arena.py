"""Artifacts of fixed shapes: one arena for each call at once, nothing copied, nothing imported that is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import espalier
from espalier.ir import Builder, Graph
from espalier.ir.execute import execute
from espalier.ir.types import parse
from espalier.runtime import ArtifactError
from espalier.runtime import weights as weights_module
from espalier.runtime.engines import tvm as engine
from espalier.runtime.errors import REFUSAL
from espalier.runtime.files import ArtifactFiles, write_artifact
from espalier.runtime.manifest import DeviceSpec, Manifest, TensorSpec
from espalier.runtime.weights import WeightsSection, load_weights, save_weights

SHAPE = (1, 8, 16, 16)


def network(wide: int = 1) -> Graph:
    random = np.random.default_rng(0)
    made = Graph("network")
    b, x = Builder(made), made.add_input(parse("f32[1, 8, 16, 16]"), "x")
    y = x
    for _ in range(3):
        w = (random.normal(size=(8, 8, 3, 3)) / 8).astype("f4")
        y = b.relu(b.add(y, b.conv(y, w, pads=(1, 1, 1, 1))))
    flat = b.reshape(y, np.array([1, -1]))
    wanted = b.matmul(flat, (random.normal(size=(2048, 10 * wide)) / 64).astype("f4"))
    made.set_outputs([wanted, y], ["scores", "features"])
    return made


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arena") / "network"
    espalier.compile(network(), backend="tvm", output=path, verify="none")
    return path


def inputs(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=SHAPE).astype("f4")


def test_the_manifest_tells_the_arena(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arena = json.loads((compiled / "manifest.json").read_text())["backend"]["arena"]
    assert set(arena) == {"bytes", "lower_bound"}
    assert 0 < arena["lower_bound"] <= arena["bytes"] <= 1.03 * arena["lower_bound"]
    from espalier.runners import describe

    found, lines = describe(compiled, text=False, units=False, trust=False)
    assert found["backend"]["arena"] == arena
    assert any(line.startswith("arena: ") and "largest live set" in line for line in lines)


def test_sixteen_threads_get_right_answers(compiled: Path) -> None:
    model = espalier.runtime.load(compiled, threads=1)
    given = [inputs(k) for k in range(16)]
    wanted = [execute(network(), [x]) for x in given]
    wrong: list[int] = []
    barrier = threading.Barrier(16)

    def call(k: int) -> None:
        barrier.wait()
        for _ in range(20):
            found = model(given[k])
            for have, want in zip(found.values(), wanted[k], strict=True):
                if not np.allclose(have, want, rtol=1e-4, atol=1e-4):
                    wrong.append(k)

    workers = [threading.Thread(target=call, args=(k,)) for k in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert isinstance(model._engine, engine.StaticEngine)
    assert 1 <= len(model._engine._arenas) <= 16


def test_calls_one_after_another_share_one_arena_and_no_result(compiled: Path) -> None:
    model = espalier.runtime.load(compiled, threads=1)
    first = model(inputs(0))
    kept = {name: array.copy() for name, array in first.items()}
    for k in range(5):
        model(inputs(k))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
    assert isinstance(model._engine, engine.StaticEngine) and len(model._engine._arenas) == 1


def test_inputs_are_not_copied(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = espalier.runtime.load(compiled, threads=1)
    x = inputs(0)
    wanted = model(x)["scores"]
    strided = np.asfortranarray(x)
    monkeypatch.setattr(engine, "aligned", lambda array: pytest.fail("a copy"))
    room = np.empty(x.nbytes + 128, np.uint8)
    for shift in (0, 4, 36):
        start = -room.ctypes.data % 64 + shift
        view = room[start : start + x.nbytes].view("f4").reshape(SHAPE)
        view[...] = x
        np.testing.assert_array_equal(model(view)["scores"], wanted)
    monkeypatch.undo()
    np.testing.assert_array_equal(model(strided)["scores"], wanted)
    x.flags.writeable = False
    np.testing.assert_array_equal(model(x)["scores"], wanted)
    odd = np.frombuffer(b"\0" + x.tobytes(), "f4", offset=1).reshape(SHAPE)
    np.testing.assert_array_equal(model(odd)["scores"], wanted)


def test_threads_make_no_difference(compiled: Path) -> None:
    one, two = (espalier.runtime.load(compiled, threads=count)(inputs(1)) for count in (1, 2))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-6)


TORCH = """
import sys
{before}
import espalier.runtime, numpy
model = espalier.runtime.load(sys.argv[1], threads=1)
model(numpy.ones((1, 8, 16, 16), "f4"))
print("torch" in sys.modules)
import torch, tvm_ffi
x = torch.arange(6.0).reshape(2, 3)
assert torch.equal(torch.from_dlpack(tvm_ffi.from_dlpack(x)), x)
assert model(torch.ones(1, 8, 16, 16).numpy())["scores"].shape == (1, 10)
"""


@pytest.mark.parametrize(("before", "imported"), [("", "False"), ("import torch", "True")])
def test_the_runtime_imports_no_torch_and_lives_with_it(compiled: Path, before: str, imported: str) -> None:
    pytest.importorskip("torch")
    program = TORCH.format(before=before)
    command = [sys.executable, "-c", program, str(compiled)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [imported]


def test_torch_is_absent_for_one_thread_only() -> None:
    pytest.importorskip("torch")
    program = (
        "import sys, threading, importlib.util\n"
        "from espalier.runtime.ffi import _Absent\n"
        "sys.meta_path.insert(0, _Absent())\n"
        "try:\n    import torch\nexcept ImportError as error:\n    print('absent', error.name)\n"
        "found = []\n"
        "other = threading.Thread(target=lambda: found.append(importlib.util.find_spec('torch') is not None))\n"
        "other.start(); other.join(); print(found)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["absent torch", "[True]"]


MEMORY = """
import sys, numpy
import espalier.runtime
from espalier.runtime.engines import tvm
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = peak()
model = espalier.runtime.load(sys.argv[1], threads=1)
model(numpy.ones((1, 8, 16, 16), "f4"))
print(peak() - before)
"""


def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    espalier.compile(network(wide=800), backend="tvm", output=tmp_path / "large", verify="none")
    size = (tmp_path / "large" / "weights.safetensors").stat().st_size
    assert size > 64e6
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "large")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1.1 * size + 16e6


def stored(folder: Path, change: Any) -> tuple[ArtifactFiles, WeightsSection]:
    """Weights whose file was changed before its hash was taken."""
    save_weights(folder / "w", {"a": np.arange(6, dtype="f4"), "b": np.arange(4, dtype="i1")})
    data = (folder / "w").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / "w").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    manifest = Manifest("tvm", (), (), DeviceSpec("cpu"), {})
    write_artifact(folder / "artifact", manifest, {"w": folder / "w"})
    specs = (TensorSpec("a", "f32", (6,)), TensorSpec("b", "i8", (4,)))
    return ArtifactFiles(folder / "artifact"), WeightsSection("w", specs)


def test_weights_are_aligned_views_of_one_block(tmp_path: Path) -> None:
    a, b = load_weights(*stored(tmp_path, lambda header: None))
    assert a.tolist() == list(range(6)) and b.tolist() == list(range(4)) and b.dtype == np.int8
    assert all(array.ctypes.data % weights_module.ALIGNMENT == 0 for array in (a, b)) and a.base is b.base


@pytest.mark.parametrize("change", [
    lambda header: header["a"].update(data_offsets=[0, 25]),
    lambda header: header["a"].update(data_offsets=[-24, 0]),
    lambda header: header["a"].update(data_offsets=[20, 44]),
    lambda header: header["a"].update(data_offsets="all"),
    lambda header: header["a"].update(dtype="F64"),
    lambda header: header["a"].update(shape=[7]),
    lambda header: header.pop("a"),
    lambda header: header.update(a=None),
])  # fmt: skip
def test_wrong_entries_of_weights_are_refused(tmp_path: Path, change: Any) -> None:
    files, section = stored(tmp_path, change)
    with pytest.raises(ArtifactError) as caught:
        load_weights(files, section)
    assert caught.value.code == "E711"


@pytest.mark.parametrize(("changes", "words"), [
    ({"arena": {"bytes": -1, "lower_bound": 0}}, "impossible"),
    ({"arena": {"bytes": 1}}, "lacks the field"),
    ({"arena": 7}, "arena"),
])  # fmt: skip
def test_wrong_arenas_are_refused(compiled: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    files = ArtifactFiles(compiled)
    manifest = Manifest(**{**vars(files.manifest), "backend": {**files.manifest.backend, **changes}})
    write_artifact(tmp_path / "other", manifest, {name: files.path(name) for name in manifest.files})
    with pytest.raises(ArtifactError, match=words) as caught:
        espalier.runtime.load(tmp_path / "other", threads=1)
    assert caught.value.code == "E702"


def test_an_arena_that_is_too_small_is_refused_when_running(compiled: Path, tmp_path: Path) -> None:
    files = ArtifactFiles(compiled)
    backend = {**files.manifest.backend, "arena": {"bytes": 64, "lower_bound": 64}}
    manifest = Manifest(**{**vars(files.manifest), "backend": backend})
    write_artifact(tmp_path / "other", manifest, {name: files.path(name) for name in manifest.files})
    model = espalier.runtime.load(tmp_path / "other", threads=1)
    with pytest.raises(ArtifactError) as caught:
        model(inputs(0))
    assert caught.value.code == "E712"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (IndexError(f"{REFUSAL}an index lies outside of its axis"), "E709"),
        (ValueError(f"{REFUSAL}extents do not fit: u must be t"), "E709"),
        (ValueError("Mismatched x2.strides on argument #0"), "E712"),
        (RuntimeError("out of memory"), "E712"),
    ],
)
def test_only_what_the_code_refuses_is_an_input_that_does_not_fit(error: Exception, code: str) -> None:
    assert engine._failure(error).code == code


@pytest.mark.parametrize("bytes", [10**15, 10**30])
def test_an_arena_that_memory_cannot_hold(bytes: int) -> None:
    with pytest.raises(ArtifactError, match=r"E712.*no memory"):
        engine._allocated(bytes)
