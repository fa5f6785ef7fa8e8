"""The package of docs/extending.md, laid out as if it were installed: it works, and its mistakes are found."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import espalier.runtime
from espalier.backends.base import backend, backends
from espalier.cost.device import device, devices, faults
from espalier.errors import InputError
from espalier.frontends import load
from espalier.ir import op as operators
from espalier.passes import base as passes
from tests.documents import FILE, blocks, files, install, lay_out

PAGE = "docs/extending.md"
OPERATORS, REWRITES, TEST = "channelwise/operators.py", "channelwise/rewrites.py", "tests/test_channel_gate.py"
PASS = "channelwise/passes.py"


@pytest.fixture
def package(tmp_path: Path):
    """Lay the documented package out, with texts exchanged in one of its files, and run Python in its folder."""

    def lay(path: str = OPERATORS, old: str = "", new: str = ""):
        shown = files(PAGE)
        assert {"pyproject.toml", OPERATORS, REWRITES, PASS, TEST} == set(shown)
        assert old in shown[path]
        shown[path] = shown[path].replace(old, new) if old else shown[path]
        lay_out(shown, tmp_path)
        x = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
        np.savez(tmp_path / "inputs.npz", image=x)
        return run

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return lay


def make_model() -> str:
    """The documented program that makes a model with the operator."""
    (program,) = [text for language, text in blocks(PAGE) if language == "python" and not FILE.match(text)]
    return program


COMPILE = "espalier.cli.main('compile gated.onnx -o gated --backend onnx --passes lower_channel_gate'.split())"


def test_an_operator_is_one_class_and_a_rewrite_takes_thirty_lines() -> None:
    shown = files(PAGE)
    classes = [part for part in ast.parse(shown[OPERATORS]).body if not isinstance(part, ast.ImportFrom)]
    assert [type(part) for part in classes] == [ast.ClassDef]
    assert len(shown[REWRITES].splitlines()) <= 30


def test_the_documented_package_compiles_a_model(package, tmp_path: Path) -> None:
    run = package()
    done = run("-c", f"{make_model()}\nimport espalier.cli\n{COMPILE}")
    assert done.returncode == 0, done.stderr
    assert "lower_channel_gate" in done.stdout
    x = np.load(tmp_path / "inputs.npz")["image"]
    factor = 1 / (1 + np.exp(-2 * np.linspace(-1, 1, 3)))
    found = espalier.runtime.load(tmp_path / "gated")({"image": x})["gated"]
    np.testing.assert_allclose(found, x * factor[:, None, None], rtol=1e-5)


def test_a_wrong_rewrite_is_caught(package, tmp_path: Path) -> None:
    run = package(REWRITES, "rewriter.mul(gate, node.sharpness)", "gate")
    done = run("-c", f"{make_model()}\nimport espalier.cli\n{COMPILE}")
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("E602: rewrite 1 (lower_channel_gate, reassociates): ")
    assert "--stop-after 0" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "gated").exists()


def test_without_the_rewrite_the_artifact_is_refused(package, tmp_path: Path) -> None:
    run = package()
    done = run("-c", f"{make_model()}\nimport espalier.cli\n{COMPILE.replace('--passes lower_channel_gate', '')}")
    assert done.returncode == 2, done.stderr
    assert "ChannelGate" in done.stderr and "Traceback" not in done.stderr
    assert "channel_gate must be lowered" in done.stderr and "lower_channel_gate" in done.stderr
    assert not (tmp_path / "gated").exists()


def test_the_documented_test_passes(package) -> None:
    done = package()("-m", "pytest", "-q", "-p", "no:cacheprovider", TEST)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"), [('"n c X?, c -> n c X?"', '"n c X?, d -> n c X?"'), ("* self.sharpness", "* 1.0")]
)
def test_the_documented_test_finds_mistakes(package, old: str, new: str) -> None:
    done = package(OPERATORS, old, new)("-m", "pytest", "-q", "-p", "no:cacheprovider", TEST)
    assert done.returncode == 1, done.stdout


def test_an_operator_of_onnx_that_is_taken_is_refused(package) -> None:
    run = package(OPERATORS, 'onnx="ChannelGate", domain="com.example"', 'onnx="Relu"')
    done = run("-c", f"{make_model()}\nimport espalier.cli\nespalier.cli.main(['inspect', 'gated.onnx'])")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("E204: ") and "channelwise.operators" in done.stderr


def plug_in(folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str, text: str | None) -> None:
    """Install a distribution with one entry point, whose module holds a text (or is missing)."""
    module = f"plugin_of_{folder.name}".replace("-", "_")
    if text is not None:
        (folder / f"{module}.py").write_text(text)
    install(folder, module, {group: {name: f"{module}:Thing" if group == "espalier.backends" else module}})
    monkeypatch.syspath_prepend(folder)


CLASH = {
    "espalier.ops": """
from espalier.ir.op import In, Op, op
@op("relu")
class Relu(Op):
    x: In
    axes = "... -> ..."
""",
    "espalier.passes": """
from espalier.passes import graph_pass
@graph_pass("dead_code")
class DeadCode:
    def run(self, graph, context):
        return 0
""",
}
LOADERS = {
    "espalier.ops": operators.load_builtin_operators.__wrapped__,
    "espalier.passes": passes.load_passes.__wrapped__,
    "espalier.backends": lambda: backend("mine"),
    "espalier.devices": lambda: device("mine"),
    "espalier.frontends": lambda: load(Path("model.mine")),
}


def refusal(group: str) -> InputError:
    with pytest.raises(InputError) as caught:
        LOADERS[group]()
    return caught.value


@pytest.mark.parametrize("group", CLASH)
def test_a_name_that_is_taken_is_refused(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LOADERS[group]()
    before = dict(operators.OPS), dict(passes.PASSES)
    plug_in(tmp_path, monkeypatch, group, "mine", CLASH[group])
    error = refusal(group)
    assert error.code == "E204" and f"plugin_of_{tmp_path.name}" in error.message
    assert before == (operators.OPS, passes.PASSES)


def test_a_backend_of_a_built_in_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(tmp_path, monkeypatch, "espalier.backends", "onnx", "class Thing: pass")
    with pytest.raises(InputError) as caught:
        backends()
    assert caught.value.code == "E204"


@pytest.mark.parametrize("text", [None, "import a_module_that_nobody_has", "1 / 0"])
@pytest.mark.parametrize("group", LOADERS)
def test_a_broken_plug_in_is_named(
    group: str, text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path, monkeypatch, group, "mine", text)
    error = refusal(group)
    assert error.code == "E208" and "plugin_of_" in error.message and error.exit_code == 2


FAULTY = {
    "    return rewriter.mul(x, rewriter.reshape(factor, [-1] + [1] * (x.rank - 2)))": "    return 1 / 0",
    "    factor = rewriter.sigmoid(rewriter.mul(gate, node.sharpness))": "    factor = rewriter.conv(gate, gate)",
}


@pytest.mark.parametrize("line", FAULTY)
def test_an_exception_in_a_rule_is_the_packages(package, line: str) -> None:
    run = package(REWRITES, line, FAULTY[line])
    done = run("-c", f"{make_model()}\nimport espalier.cli\n{COMPILE}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("E215: the rule lower_channel_gate of the plug-in channelwise.rewrites failed: ")
    assert FAULTY[line].strip() in done.stderr and "rewrites.py" in done.stderr and "gated" in done.stderr


@pytest.mark.parametrize(
    ("line", "faulty", "what"),
    [
        ("xp.sigmoid(xp.wide(gate) * self.sharpness)", "xp.nosuch(gate)", "the reference of the operator channel_gate"),
        ("xp.sigmoid(xp.wide(gate) * self.sharpness)", "1 / 0", "the reference of the operator channel_gate"),
        (
            'arithmetic_element(ctx, "x", "gate", real=True)', "ctx.nothing",
            "type inference of the operator channel_gate",
        ),
    ],
)  # fmt: skip
def test_an_exception_in_an_operator_is_the_packages(package, line: str, faulty: str, what: str) -> None:
    run = package(OPERATORS, line, faulty)
    done = run("-c", f"{make_model()}\nimport espalier.cli\n{COMPILE}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"E215: {what} of the plug-in channelwise.operators failed: ")
    assert faulty in done.stderr and "operators.py" in done.stderr


FAULTY_PASS = """
from espalier.passes import graph_pass


@graph_pass("lower_channel_gate")
class Faulty:
    def run(self, graph, context):
        raise KeyError(3)
"""


def test_an_exception_in_a_graph_pass_is_the_packages(package) -> None:
    text = files(PAGE)[REWRITES]
    run = package(REWRITES, text, FAULTY_PASS)
    done = run("-c", f"{make_model()}\nimport espalier.cli\n{COMPILE}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("E215: the pass lower_channel_gate of the plug-in channelwise.rewrites failed: Key")


def test_axes_that_cannot_be_read_are_refused_at_once(package) -> None:
    run = package(OPERATORS, '"n c X?, c -> n c X?"', '"X?, c? -> X?"')
    done = run("-c", f"{make_model()}\nimport espalier.cli\nespalier.cli.main(['passes'])")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("E302: the axes of the operator 'channel_gate' (channelwise.operators): can't read")


@pytest.mark.parametrize("decorate", [dataclass(frozen=True), lambda plain: plain], ids=["frozen", "plain"])
def test_the_options_of_a_graph_pass_are_its_fields(decorate) -> None:
    @passes.graph_pass("with_options")
    @decorate
    class WithOptions:
        limit: int = 3

        def run(self, graph, context):
            return self.limit

    try:
        made = passes.parse_spec("with_options:limit=5")
        assert made.limit == made.run(None, None) == 5 and made.options == {"limit": 5}
    finally:
        del passes.PASSES["with_options"]


SHARE = """
import sys
from espalier.ir import Builder, Graph
from espalier.ir.types import parse
from espalier.passes.base import Context, lookup
from channelwise.operators import ChannelGate

graph = Graph()
build = Builder(graph)
x, gate = build.input(parse("f32[n, 3, 4, 4]"), "x"), build.input(parse("f32[3]"), "gate")
gated = [build.channel_gate(x, gate) for _ in range(3)]
graph.set_outputs([build.add(build.add(gated[0], gated[1]), gated[2])], ["y"])
print(lookup("share_gates")().run(graph, Context(stop_after=int(sys.argv[1]))), len(graph))
"""


@pytest.mark.parametrize(("limit", "printed"), [("9", "2 3"), ("1", "1 4"), ("0", "0 5")])
def test_the_documented_graph_pass_shares_nodes(package, limit: str, printed: str) -> None:
    done = package()("-c", SHARE, limit)
    assert done.stdout.strip() == printed, done.stderr


def test_a_broken_device_file_stops_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_boards").mkdir()
    (tmp_path / "broken_boards/board.toml").write_text('name = "board"')
    install(tmp_path, "boards", {"espalier.devices": {"boards": "broken_boards"}})
    monkeypatch.syspath_prepend(tmp_path)
    assert device("cpu").name == "cpu" and "board" not in devices()
    (fault,) = faults()
    assert fault.code == "E213" and fault.message.startswith("board.toml of broken_boards describes no device: ")
    assert len(fault.message.splitlines()) == 1
    with pytest.raises(InputError) as caught:
        device("board")
    assert caught.value.code == "E213"


def test_an_unknown_attribute_of_an_operator_is_named(package) -> None:
    program = make_model().replace("sharpness=2.0", "sharpnes=2.0")
    done = package()("-c", f"{program}\nimport espalier.cli\n{COMPILE}")
    assert done.returncode == 2 and done.stderr.startswith("E116: ChannelGate (channelwise.operators) has no attribute")
    assert "'sharpnes'; it has sharpness" in done.stderr
