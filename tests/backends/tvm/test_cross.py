"""Code for processors other than this one: devices by name, what they are refused for, and emulated runs."""

from __future__ import annotations

import platform
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import espalier
from espalier.backends.tvm import build, cross, machine
from espalier.cost.device import device, devices, parse
from espalier.errors import EspalierError, InputError
from espalier.ir import Builder, Graph, elements
from espalier.ir.execute import execute
from espalier.runtime import cpu
from tests.backends.tvm import emulation, test_packing
from tests.backends.tvm.checks import graph_of, same
from tests.backends.tvm.test_layouts import dequantized, integers, quantized

HERE = platform.machine()
on_x86_64 = pytest.mark.skipif(HERE != "x86_64", reason="the machine that compiles is not x86-64")
emulates = pytest.mark.skipif(emulation.missing() is not None, reason=str(emulation.missing()))
Network = Callable[..., Any]
Done = subprocess.CompletedProcess[str]


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolutions(b: Builder, x: Any) -> Any:
    """Dense, depthwise and pointwise ones, of channels that fill no vector too, and a classifier."""
    y = b.relu(b.conv(x, normal(1, 24, 3, 3, 3), normal(2, 24), pads=(1, 1, 1, 1), strides=(2, 2)))
    y = b.relu(b.conv(y, normal(3, 24, 1, 3, 3), pads=(1, 1, 1, 1), group=24))
    y = b.add(y, b.sigmoid(b.conv(y, normal(4, 24, 24, 1, 1))))
    y = b.max_pool(b.conv(y, normal(5, 20, 24, 3, 3)), kernel_shape=(2, 2), strides=(2, 2))
    return b.softmax(b.matmul(b.flatten(b.global_average_pool(y)), normal(6, 20, 10)))


def int8(b: Builder, x: Any) -> Any:
    """Convolutions and a product, their activations read as unsigned and as signed."""
    y = quantized(b, x, np.uint8, 117, 0.03)
    y = b.relu(b.conv(y, dequantized(b, integers(1, 32, 3, 3, 3)), normal(2, 32), pads=(1, 1, 1, 1)))
    y = quantized(b, y, np.int8, -9, 0.05)
    y = b.relu(b.conv(y, dequantized(b, integers(3, 32, 32, 1, 1, per_channel=False, kind=np.uint8))))
    y = quantized(b, y, np.uint8, 3, 0.1)
    y = b.conv(y, dequantized(b, integers(4, 32, 1, 3, 3)), pads=(1, 1, 1, 1), group=32)
    y = quantized(b, y, np.int8, 4, 0.01)
    return b.matmul(b.reshape(y, np.array([64, -1])), dequantized(b, integers(5, 50, 40, axis=1), axis=1))


def packed(b: Builder, x: Any) -> Any:
    """Floats times weights of 8, 4 and 2 bits, unpacked in registers and in panels."""
    y = b.relu(b.conv(x, test_packing.dequantized(b, elements.U4, (40, 3, 3, 3), 0), pads=(1, 1, 1, 1)))
    y = b.relu(b.conv(y, test_packing.dequantized(b, elements.I2, (32, 40, 3, 3), 0)))
    y = b.matmul(b.reshape(y, np.array([64, 32])), test_packing.dequantized(b, elements.I8, (32, 100), 1))
    y = b.matmul(b.reshape(y, np.array([4, 1600])), test_packing.dequantized(b, elements.U4, (1600, 33), 0, 32))
    return b.matmul(b.reshape(y, np.array([1, -1])), test_packing.dequantized(b, elements.U2, (132, 40), 0, 16))


def lstm(b: Builder, x: Any) -> Any:
    """Of a length and a batch that only the run knows."""
    hidden = 24
    w, r, bias = (0.3 * normal(seed, 2, *shape) for seed, shape in ((1, (96, 7)), (2, (96, hidden)), (3, (192,))))
    return b.lstm(x, w, r, bias, hidden_size=hidden, direction="bidirectional", results=2)


NETWORKS: dict[str, tuple[Network, tuple[int, ...]]] = {
    "convolutions": (convolutions, (1, 3, 20, 20)),
    "int8": (int8, (1, 3, 10, 10)),
    "packed": (packed, (1, 3, 10, 10)),
    "lstm": (lstm, (6, 3, 7)),
}


def network(name: str) -> tuple[Graph, Any]:
    function, shape = NETWORKS[name]
    x = normal(9, *shape)
    graph = graph_of(function, [x], ["f32[t, n, 7]"] if function is lstm else ())
    graph.set_outputs(list(graph.outputs), [f"y{k}" for k in range(len(graph.outputs))])
    return graph, x


def compiled(name: str, target: str, folder: Path) -> espalier.Artifact:
    graph, _ = network(name)
    return espalier.compile(graph, device=target, output=folder / f"{name}-{target}")


def assembly(graph: Graph, target: str) -> str:
    """What LLVM makes of a graph for a device."""
    asked = device(target)
    made = build.build(graph, target=build.target_with(tuple(asked.instruction_sets), asked.architecture))
    return source(made)


def source(made: build.Compiled) -> str:
    """The assembly of its kernels."""
    library = made.executable.mod if made.arena is None else made.executable
    return "".join(part.inspect_source("asm") for part in [library, *library.imports] if part.kind == "llvm")


# ---- devices -----------------------------------------------------------------------------------------------------


def test_devices_say_architecture_and_instruction_sets() -> None:
    known = devices()
    assert {"cpu", "x86-64", "x86-64-v3", "x86-64-v4", "aarch64", "aarch64-dotprod"} <= set(known)
    assert known["cpu"].machine == HERE
    assert (known["x86-64"].machine, known["x86-64"].system) == ("x86_64", "Linux")
    assert set(known["x86-64-v3"].instruction_sets) < set(known["x86-64-v4"].instruction_sets)
    assert "dotprod" in known["aarch64-dotprod"].instruction_sets


def test_an_architecture_comes_with_its_instruction_sets() -> None:
    with pytest.raises(InputError, match="lists its instruction_sets") as caught:
        parse('name = "a"\nkind = "cpu"\nbackend = "tvm"\narchitecture = "aarch64"', "a.toml")
    assert caught.value.code == "E213"


@pytest.mark.parametrize(("name", "architecture"), [("avx1024", "x86_64"), ("avx2", "aarch64"), ("neon", "x86_64")])
def test_instruction_sets_that_an_architecture_lacks_are_refused(name: str, architecture: str) -> None:
    with pytest.raises(InputError, match=f"no instruction set '{name}' of {architecture}") as caught:
        build.target_with([name], architecture)
    assert caught.value.code == "E213"


# ---- what other architectures take -------------------------------------------------------------------------------


def test_what_links_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross.shutil, "which", lambda _: None)
    monkeypatch.setattr(cross.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="nothing here links code for riscv64") as caught:
        cross.linker(cross.triple("riscv64"))
    assert caught.value.code == "E233" and "espalier[cross]" in str(caught.value.hint)


def test_a_wheel_of_tvm_is_asked_for_by_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(cross.WHEELS, str(tmp_path))
    with pytest.raises(InputError, match="no wheel to take it from") as caught:
        cross.runtime_library("riscv64", tmp_path)
    hint = str(caught.value.hint)
    assert caught.value.code == "E233" and f"--platform manylinux_2_28_riscv64 --dest {tmp_path}" in hint

    version = re.search(r"apache-tvm==(\S+)", hint)
    assert version is not None
    wheel = tmp_path / f"apache_tvm-{version[1]}-py3-none-manylinux_2_28_riscv64.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot be taken"):
        cross.runtime_library("riscv64", tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tvm/lib/libtvm_runtime.so", b"code")
    assert cross.runtime_library("riscv64", tmp_path / "out").read_bytes() == b"code"


# ---- what is chosen for a processor ------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "used"), [("aarch64", False), ("aarch64-dotprod", True)])
def test_dot_products_of_arm_are_used_where_there_are(target: str, used: bool) -> None:
    code = assembly(network("int8")[0], target)
    assert ("sdot" in code) == used
    assert re.search(r"fm(la|ul)\s+v\d+\.4s", code)


def test_short_vectors_of_dot_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX-VNNI's instruction, which AVX-512's has as a form."""
    here = set(build.instruction_sets(build.host_target(1)))
    if not {"avx512vnni", "avx512vl"} <= here and "avxvnni" not in here:
        pytest.skip("this processor has no VNNI of 256 bits")
    assert machine.of({"avx2", "avxvnni"}).dot is machine.AVX_VNNI
    monkeypatch.setattr(machine, "of", lambda _: machine.Machine(8, 12, machine.AVX_VNNI))
    graph, x = network("int8")
    made = build.build(graph)
    assert re.search(r"vpdpbusd\s.*%ymm", source(made))
    for want, have in zip(execute(graph, [x]), made([x]), strict=True):
        same(want, have, 1e-5)


# ---- x86-64 ------------------------------------------------------------------------------------------------------


def beyond(library: Path, level: str, folder: Path) -> set[str]:
    """Mnemonics of a library that GNU's assembler refuses for a processor."""
    listing = subprocess.run(
        ["objdump", "--disassemble", "--section=.text", "--no-show-raw-insn", str(library)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = {line.split("\t")[1].partition("#")[0].strip() for line in listing.splitlines() if line.count("\t") >= 1}
    # Places are of no interest. `tzcnt` is `rep bsf`, and `endbr64` does nothing, where the processor lacks them.
    found = {
        re.sub(r"<.*>", "", text)
        for text in found
        if not re.match(r"(bnd |notrack |data16 )*(j|call|endbr64|data16)", text)
    }
    found = {re.sub(r"^tzcnt", "bsf", text) for text in found if text and "(bad)" not in text}
    assert len(found) > 100
    source, lines = folder / "listing.s", sorted(found)
    source.write_text("\n".join([".text", *lines, ""]))
    command = ["as", f"-march={level}", "-o", str(folder / "listing.o"), str(source)]
    said = subprocess.run(command, check=False, capture_output=True, text=True).stderr
    numbers = [int(number) for number in re.findall(r"listing\.s:(\d+): Error", said)]
    return {lines[number - 2].split()[0] for number in numbers}


@on_x86_64
@pytest.mark.skipif(not shutil.which("objdump") or not shutil.which("as"), reason="needs GNU's objdump and as")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_baseline_holds_no_instruction_beyond_sse2(name: str, tmp_path: Path) -> None:
    artifact = compiled(name, "x86-64", tmp_path)
    assert artifact.manifest.device.instructions == ()
    assert artifact.manifest.device.architecture == "x86_64"
    assert artifact.agreement.startswith("agrees")
    assert not beyond(artifact.path / "model.so", "generic64", tmp_path)
    assert b"GLIBC_" not in (artifact.path / "model.so").read_bytes()  # no version of the C library either
    if name == "lstm":  # the same in all of them
        assert not beyond(artifact.path / "libtvm_runtime.so", "generic64", tmp_path)


@on_x86_64
@pytest.mark.skipif(not shutil.which("objdump") or not shutil.which("as"), reason="needs GNU's objdump and as")
def test_what_is_beyond_is_found(tmp_path: Path) -> None:
    artifact = compiled("convolutions", "x86-64-v3", tmp_path)
    assert {"vfmadd231ps", "vbroadcastss"} <= beyond(artifact.path / "model.so", "generic64", tmp_path)
    assert "avx2" in artifact.manifest.device.instructions and "avx512f" not in artifact.manifest.device.instructions


@on_x86_64
def test_what_this_processor_lacks_is_refused_by_name(tmp_path: Path) -> None:
    """Bulldozer's instruction sets: no processor since 2017 has all of them (sse4a is AMD's)."""
    description = tmp_path / "bulldozer.toml"
    sets = '["sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "fma4", "xop"]'
    description.write_text(
        f'name = "bulldozer"\nkind = "cpu"\nbackend = "tvm"\narchitecture = "x86_64"\ninstruction_sets = {sets}'
    )
    artifact = compiled_for(description, tmp_path)
    lacking = "this processor lacks (sse4a, )?fma4, xop, which the artifact for 'bulldozer' needs"
    assert re.match(f"not compared: {lacking}", artifact.agreement)
    with pytest.raises(EspalierError, match=lacking.removeprefix("this processor ")) as caught:
        espalier.runtime.load(artifact.path)
    assert caught.value.code == "E707" and "--device cpu" in str(caught.value.hint)


def compiled_for(description: Path, folder: Path) -> espalier.Artifact:
    return espalier.compile(network("lstm")[0], device=str(description), output=folder / "artifact")


@on_x86_64
def test_accuracy_is_promised_only_where_it_can_be_measured(tmp_path: Path) -> None:
    description = tmp_path / "bulldozer.toml"
    description.write_text(
        'name = "b"\nkind = "cpu"\nbackend = "tvm"\narchitecture = "x86_64"\ninstruction_sets = ["xop"]'
    )
    graph, x = network("lstm")
    options: dict[str, Any] = {"device": str(description), "data": [{graph.inputs[0].name: x}]}
    with pytest.raises(InputError, match="cannot be measured here: this processor lacks") as caught:
        espalier.compile(graph, output=tmp_path / "a", max_drop=1, **options)
    assert caught.value.code == "E201" and not (tmp_path / "a").exists()
    assert espalier.compile(graph, output=tmp_path / "a", **options).score is None


def test_what_the_kernel_tells_on_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, _: None) -> None:
            self.getauxval = Words()

    class Words:
        def __call__(self, kind: int) -> int:
            return {16: 1 << 1 | 1 << 20, 26: 1 << 13}[kind]  # asimd and asimddp; i8mm

    monkeypatch.setattr(cpu.ctypes, "CDLL", Library)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    cpu.instruction_sets.cache_clear()
    try:
        assert cpu.instruction_sets() == {"asimd", "asimddp", "i8mm"}
        spec = espalier.runtime.manifest.DeviceSpec("a", "aarch64", "", ("neon", "dotprod", "i8mm"))
        cpu.check_device(spec)
    finally:
        cpu.instruction_sets.cache_clear()


# ---- emulated ----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import numpy as np
sys.modules["torch"] = None  # tvm_ffi would import it if it could, which takes minutes here
from espalier import runtime

inputs, outputs, *artifacts = sys.argv[1:]
given, found = np.load(inputs), {}
for path in artifacts:
    name = path.rsplit("/", 1)[1].partition("-")[0]
    model = runtime.load(path, threads=2)
    for position, array in enumerate(model(given[name]).values()):
        found[f"{name}.{position}"] = array
np.savez(outputs, **found)
"""


def run_emulated(artifacts: list[espalier.Artifact], architecture: str, processor: str, folder: Path) -> Done:
    """The process that loads artifacts and writes what they compute to `outputs.npz`, by name and position."""
    np.savez(folder / "inputs.npz", **{name: network(name)[1] for name in NETWORKS})
    arguments = [str(folder / "inputs.npz"), str(folder / "outputs.npz"), *(str(each.path) for each in artifacts)]
    return emulation.emulated(architecture, processor, ["-c", PROGRAM, *arguments])


def check_emulated(artifacts: list[espalier.Artifact], architecture: str, processor: str, folder: Path) -> None:
    done = run_emulated(artifacts, architecture, processor, folder)
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "outputs.npz")
    wanted = {
        f"{name}.{position}": array
        for name in NETWORKS
        for position, array in enumerate(execute(network(name)[0], [network(name)[1]]))
    }
    assert set(wanted) == set(found)
    for key, array in wanted.items():
        same(array, found[key], 1e-5)


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    """ziglang and TVM's wheel, from where `make emulation` puts them."""
    monkeypatch.setenv("PYTHONPATH", str(emulation.PACKAGES))
    monkeypatch.setattr(sys, "path", [*sys.path, str(emulation.PACKAGES)])
    monkeypatch.setenv(cross.WHEELS, str(emulation.WHEELS))


def words(library: Path) -> Any:
    content = library.read_bytes()
    return np.frombuffer(content[: len(content) // 4 * 4], "<u4")


@pytest.mark.slow
@emulates
@on_x86_64
@pytest.mark.usefixtures("toolchain")
@pytest.mark.parametrize(("target", "processor"), [("aarch64", "cortex-a53"), ("aarch64-dotprod", "neoverse-n1")])
def test_networks_run_on_arm(target: str, processor: str, tmp_path: Path) -> None:
    artifacts = [compiled(name, target, tmp_path) for name in NETWORKS]
    dot = sum(int(np.sum(words(each.path / "model.so") & 0xFFE0FC00 == 0x4E809400)) for each in artifacts)  # SDOT
    assert (dot > 0) == (target == "aarch64-dotprod")
    for artifact in artifacts:
        assert (
            artifact.agreement == "not compared: the artifact is for the architecture aarch64; this machine has x86_64"
        )
    check_emulated(artifacts, "aarch64", processor, tmp_path)


@pytest.mark.slow
@emulates
@on_x86_64
@pytest.mark.usefixtures("toolchain")
def test_arm_without_dot_products_refuses_them(tmp_path: Path) -> None:
    artifact = compiled("int8", "aarch64-dotprod", tmp_path)
    done = run_emulated([artifact], "aarch64", "cortex-a53", tmp_path)
    assert "E707: this processor lacks dotprod, which the artifact for 'aarch64-dotprod' needs" in done.stderr
    with pytest.raises(EspalierError, match="is for the architecture aarch64; this machine has x86_64"):
        espalier.runtime.load(artifact.path)


@pytest.mark.slow
@emulates
@on_x86_64
@pytest.mark.usefixtures("toolchain")
def test_a_graph_without_kernels_is_linked_too(tmp_path: Path) -> None:
    """Then TVM writes C, which is compiled rather than linked."""
    graph = graph_of(lambda b, x: x, [normal(1, 3)])
    artifact = espalier.compile(graph, device="aarch64", output=tmp_path / "a")
    assert (artifact.path / "model.so").read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64


@pytest.mark.slow
@emulates
@on_x86_64
def test_the_baseline_runs_on_an_old_processor(tmp_path: Path) -> None:
    """Nehalem, of 2008, has no AVX; numpy itself wants its SSE4.2. What is compiled for newer ones dies there."""
    artifacts = [compiled(name, "x86-64", tmp_path) for name in NETWORKS]
    check_emulated(artifacts, "x86_64", "Nehalem", tmp_path)
    done = run_emulated([compiled("convolutions", "x86-64-v3", tmp_path)], "x86_64", "Nehalem", tmp_path)
    assert done.returncode == -signal.SIGILL


def test_the_host_has_no_instruction_set_that_its_system_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    here = build.instruction_sets(build.host_target(1))
    hidden = here[-1]
    monkeypatch.setattr(build, "lacking", lambda names: [name for name in names if name == hidden])
    assert build.instruction_sets(build.host_target.__wrapped__(1)) == here[:-1]
