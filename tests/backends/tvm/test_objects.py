"""Kernels are compiled apart, once, and taken from the cache; what comes out does not depend on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import tirx

import espalier
from espalier.backends.cache import Cache
from espalier.backends.onnx.emit import OnnxBackend
from espalier.backends.tvm import build, objects
from espalier.cost.device import device
from espalier.ir import Builder, Graph
from espalier.ir.execute import execute
from tests.backends.tvm.checks import graph_of, same

RANDOM = np.random.default_rng(5)
X = RANDOM.standard_normal((1, 16, 12, 12)).astype(np.float32)


def network(blocks: int = 2, channels: int = 16, slope: float = 0.1, seed: int = 0) -> Graph:
    """Blocks that are all alike but for their weights."""
    draw = np.random.default_rng(seed)

    def function(b: Builder, x: Any) -> Any:
        for _ in range(blocks):
            w = 0.1 * draw.standard_normal((channels, 16, 1, 1)).astype("f4")
            y = b.leaky_relu(b.conv(x, w), alpha=slope)
            x = y if channels != 16 else b.softmax(y, axis=3)
        return x

    return graph_of(function, [X])


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the functions of each object file that is compiled."""
    done: list[list[str]] = []
    compile_one = tirx.build

    def counted(functions: Any, *arguments: Any, **options: Any) -> Any:
        done.append(sorted(str(variable.name_hint) for variable in functions.functions))
        return compile_one(functions, *arguments, **options)

    monkeypatch.setattr(objects.tirx, "build", counted)
    return done


def library(graph: Graph, path: Path, kept: Cache | None = None, **options: Any) -> bytes:
    build.build(graph, threads=1, **options).save(path, kept)
    return path.read_bytes()


def test_the_library_is_the_same_whatever_the_cache_holds(tmp_path: Path, compilations: list[list[str]]) -> None:
    without = library(network(), tmp_path / "without.so")
    count = len(compilations)
    with Cache(tmp_path / "kernels") as kept:
        assert library(network(), tmp_path / "cold.so", kept) == without
        assert len(compilations) == 2 * count
        assert library(network(seed=1), tmp_path / "warm.so", kept) == without  # weights are no part of it
        assert len(compilations) == 2 * count
    for path in (tmp_path / "kernels").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with Cache(tmp_path / "kernels") as kept:
        assert library(network(), tmp_path / "damaged.so", kept) == without
        assert len(compilations) == 3 * count


def test_kernels_that_are_alike_are_compiled_once(tmp_path: Path, compilations: list[list[str]]) -> None:
    library(network(blocks=2), tmp_path / "two.so")
    few = len(compilations)
    library(network(blocks=6), tmp_path / "six.so")
    assert len(compilations) - few <= few + 1
    assert ["main", "profile"] in compilations
    assert all(len(names) == 1 for names in compilations if names != ["main", "profile"])


def test_models_share_kernels(tmp_path: Path, compilations: list[list[str]]) -> None:
    with Cache(tmp_path / "kernels") as kept:
        library(network(blocks=4), tmp_path / "four.so", kept)
        compilations.clear()
        library(network(blocks=6), tmp_path / "six.so", kept)
        assert compilations == [["main", "profile"]]
        compilations.clear()
        library(network(blocks=1, channels=32), tmp_path / "other.so", kept)
        assert len(compilations) >= 2


def test_another_number_target_or_compiler_is_another_kernel(
    tmp_path: Path, compilations: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(graph: Graph, **options: Any) -> int:
        compilations.clear()
        library(graph, tmp_path / "model.so", kept, **options)
        return len(compilations)

    with Cache(tmp_path / "kernels") as kept:
        assert compiled(network()) > 1
        assert compiled(network()) == 0
        assert compiled(network(slope=float(np.nextafter(np.float32(0.1), np.float32(1))))) > 0
        assert compiled(network(), target=build.target_with(())) > 1
        assert compiled(network(), target=build.target_with(())) == 0
        monkeypatch.setattr(objects, "compiler", lambda: "another")
        assert compiled(network()) > 1


def test_digests_tell_all_numbers_apart() -> None:
    def function(value: float) -> Any:
        buffer = tirx.decl_buffer([1], "float64", name="y")
        return tirx.PrimFunc([buffer], tirx.BufferStore(buffer, tirx.FloatImm("float64", value), [0]))

    values = [0.0, -0.0, 5e-324, 1e-323]
    values += [x for base in (0.1, 1 / 3, 1e300) for x in (base, float(np.nextafter(base, 1e301)))]
    assert len({objects.digest(function(value)) for value in values}) == len(values)
    assert objects.digest(function(0.1)) == objects.digest(function(0.1))


def test_what_is_linked_computes_what_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_KERNELS", str(tmp_path / "kernels"))
    graph = network(blocks=3)
    graph.set_outputs(list(graph.outputs), ["y"])
    for place in ("cold", "warm"):
        made = espalier.compile(graph, output=tmp_path / place)
        (found,) = made.load(threads=1)(X).values()
        np.testing.assert_array_equal(found, build.build(graph, threads=1)([X])[0])
        same(execute(graph, [X])[0], found, 1e-5)
    assert (tmp_path / "cold" / "model.so").read_bytes() == (tmp_path / "warm" / "model.so").read_bytes()


def test_nobody_sees_kernels_from_outside(tmp_path: Path) -> None:
    library(network(), tmp_path / "model.so")
    listed = subprocess.run(
        ["readelf", "--dyn-syms", "--wide", tmp_path / "model.so"], check=True, capture_output=True, text=True
    )
    assert "__tvm_ffi_main" in listed.stdout and "__tvm_ffi_profile" in listed.stdout
    assert objects.PREFIX not in listed.stdout


SCRIPT = """
import hashlib, pathlib, sys, numpy as np
from espalier.backends.cache import Cache
from espalier.backends.tvm import build
from espalier.ir import Builder, Graph
from espalier.ir.types import parse
graph = Graph(); b = Builder(graph); random = np.random.default_rng(0)
x = b.input(parse("f32[1, 3, 8, 8]"), "x")
y = b.relu(b.conv(x, random.standard_normal((32, 3, 3, 3)).astype("f4"), strides=(2, 2)))
graph.set_outputs([b.softmax(b.flatten(b.global_average_pool(y))), b.reduce_max(y, np.array([1]))])
kept = Cache(pathlib.Path(sys.argv[2])) if sys.argv[2:] else None
for k in range(2):
    build.build(graph, threads=2).save(pathlib.Path(sys.argv[1]) / "model.so", kept)
    print(hashlib.sha256((pathlib.Path(sys.argv[1]) / "model.so").read_bytes()).hexdigest())
print("torch" in sys.modules)
"""


def test_the_library_is_the_same_in_every_folder_and_under_every_hash_seed(tmp_path: Path) -> None:
    printed = []
    for seed, folder, kept in (("0", "a", True), ("1", "b/longer", True), ("2", "c", False)):
        (tmp_path / folder).mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / folder), *[str(tmp_path / "kernels")] * kept]
        run = subprocess.run(command, env=environment, cwd=tmp_path / folder, capture_output=True, check=True)
        printed.append(run.stdout.split())
    assert len({digest for lines in printed for digest in lines[:2]}) == 1
    assert {lines[2] for lines in printed} == {b"False"}  # compiling imports no torch


def test_the_command_line_goes_by_the_environment(tmp_path: Path) -> None:
    espalier_command = [sys.executable, "-m", "espalier", "compile", "model.onnx", "-o", "artifact"]
    graph = network()
    graph.set_outputs(list(graph.outputs), ["y"])
    emission = OnnxBackend().emit(graph, device("cpu"), tmp_path)
    (tmp_path / next(iter(emission.files))).replace(tmp_path / "model.onnx")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)

    def compiled(kernels: str) -> tuple[int, str]:
        environment = {**os.environ, "ESPALIER_KERNELS": kernels, "PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run(
            espalier_command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    code, said = compiled("open")
    assert code == 2 and said.startswith("E236: ")
    assert not (tmp_path / "artifact").exists() and not list((tmp_path / "open").iterdir())
    assert compiled("own") == (0, "") and list((tmp_path / "own").iterdir())
    assert compiled("off") == (0, "") and not (tmp_path / "off").exists()
