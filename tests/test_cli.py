"""The command line as a contract: verbs, exit codes, JSON, what is written and what is not."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import espalier.cli
from benchmarks.artifact import network
from espalier.cli import main
from espalier.cli.output import as_text
from espalier.errors import CATALOGUE, BudgetError
from espalier.passes import REASSOCIATES, approximates, rewrite
from espalier.passes.base import PASSES
from espalier.passes.rewrite import RULES
from tests.documents import ROOT, blocks


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command line in a folder with a model and data: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    onnx.save(network(seed=0), "model.onnx")
    draw = np.random.default_rng(0)
    image = draw.normal(size=(4, 3, 16, 16)).astype(np.float32)
    np.savez("inputs.npz", image=image)
    np.savez("labelled.npz", image=image, labels=np.arange(4))

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return stop.value.code, printed.out, printed.err

    return run


@pytest.fixture
def artifact(call) -> str:
    assert call("compile model.onnx -o artifact --backend onnx")[0] == 0
    return "artifact"


def documented(verb: str) -> object:
    """The JSON that docs/command-line.md shows for a verb."""
    text = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    section = text.split(f"## {verb}\n")[1].split("\n## ")[0]
    return json.loads(re.search(r"```json\n(.*?)```", section, re.DOTALL)[1])


def same_schema(shown: object, found: object, where: str = "") -> None:
    """The same keys and kinds of values; of lists the first entries, of maps that are shown empty nothing."""
    numbers = isinstance(shown, int | float) and isinstance(found, int | float)
    assert numbers or type(shown) is type(found), f"{where}: {shown!r} is shown, {found!r} found"
    if isinstance(shown, dict) and shown:
        assert list(shown) == list(found), where
        for key in shown:
            same_schema(shown[key], found[key], f"{where}.{key}")
    elif isinstance(shown, list) and shown and found:
        same_schema(shown[0], found[0], f"{where}[0]")


COMMANDS = {
    "compile": "compile model.onnx -o other --backend onnx --data labelled.npz --max-drop 5",
    "prune": "prune model.onnx --ratio 0.5 --data labelled.npz -o small.onnx",
    "grow": "grow model.onnx --factor 2 --count 1 --data labelled.npz -o grown.onnx",
    "recover": "recover model.onnx --steps 2 --data labelled.npz -o recovered.onnx",
    "run": "run artifact --inputs inputs.npz -o outputs.npz",
    "bench": "bench artifact model.onnx --rounds 1",
    "verify": "verify model.onnx artifact",
    "inspect": "inspect model.onnx",
    "passes": "passes",
    "devices": "devices",
    "explain": "explain E604",
}


def test_every_verb_prints_lines_or_one_documented_object(call, artifact: str) -> None:
    assert set(COMMANDS) == {name for name in espalier.cli.app if not name.startswith("-")}
    for verb, line in COMMANDS.items():
        code, text, said = call(line)
        assert (code, said) == (0, ""), line
        assert text.strip() and not text.startswith("{"), line
        code, text, said = call(f"{line} --json")
        assert (code, said) == (0, ""), line
        assert len(text.splitlines()) == 1
        found, shown = json.loads(text), documented(verb)
        if verb == "passes":
            found["pipelines"] = {key: found["pipelines"][key] for key in shown["pipelines"]}
            found["passes"] = [row for row in found["passes"] if row["name"] == shown["passes"][0]["name"]]
        same_schema(shown, found, verb)


def test_errors_are_documented_objects_too(call) -> None:
    code, text, said = call("inspect nothing.onnx --json")
    shown = json.loads(next(body for language, body in blocks("docs/command-line.md") if language == "json"))
    assert code == 2 and json.loads(text) == shown
    assert said.startswith("E101: ")


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("frobnicate", 2, "E201"),
        ("compile model.onnx", 2, "E201"),
        ("compile model.onnx -o out --verify loosely", 2, "E201"),
        ("compile model.onnx -o out --seed many", 2, "E201"),
        ("compile model.onnx -o out --stop-after -1 --backend onnx", 2, "E201"),
        ("compile model.onnx -o out --max-drop 1", 2, "E212"),
        ("compile model.onnx -o out --max-drop 200 --data labelled.npz", 2, "E201"),
        ("compile model.onnx -o out --budget latency=2ms", 2, "E211"),
        ("compile model.onnx -o out --device abacus", 2, "E202"),
        ("compile model.onnx -o out --backend abacus", 2, "E202"),
        ("compile model.onnx -o out --pipeline abacus", 2, "E202"),
        ("compile model.onnx -o out --pipeline missing.toml", 2, "E201"),
        ("compile model.onnx -o out --device missing.toml", 2, "E213"),
        ("compile model.onnx -o out --passes dead_cod", 2, "E202"),
        ("compile model.onnx -o out --passes dead_code:speed=3", 2, "E203"),
        ("compile model.onnx -o out --passes fold_constants:limit=many", 2, "E203"),
        ("compile model.onnx -o out --passes fold_constants:limit=1,limit=2", 2, "E203"),
        ("compile model.onnx -o out --backend onnx --print-after dead_cod", 2, "E202"),
        ("compile model.onnx -o out --data missing.npz --backend onnx", 2, "E206"),
        ("compile model.onnx -o out --data model.onnx --backend onnx", 2, "E206"),
        ("compile model.onnx -o out --data nobody:nothing --backend onnx", 2, "E206"),
        ("compile model.onnx -o model.onnx/out --backend onnx", 2, "E714"),
        ("run model.onnx --inputs labelled.npz -o missing/out.npz", 2, "E209"),
        ("run nothing --inputs inputs.npz -o out", 2, "E101"),
        ("bench", 2, "E201"),
        ("bench model.onnx --rounds 0", 2, "E201"),
        ("bench model.onnx --threads 0", 2, "E201"),
        ("verify model.onnx model.onnx --tolerance -1", 2, "E201"),
        ("passes dead_cod", 2, "E202"),
        ("explain E000", 2, "E202"),
    ],
)
def test_bad_usage_is_refused_by_code(call, line: str, code: int, error: str) -> None:
    exit_code, text, said = call(f"{line} --json")
    assert exit_code == code, said
    assert json.loads(text)["error"]["code"] == error, said
    assert said.startswith(f"{error}: ")
    assert not Path("out").exists()


def test_numbers_that_are_not_finite_are_null_in_json(call) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    code, text, _ = call("compile model.onnx -o out --backend onnx --passes prune:ratio=0.0 --data inputs.npz --json")
    assert code == 0
    json.loads(text, parse_constant=refuse)
    found = {
        "a": [math.inf, (-math.inf, 1.5)],
        "b": {"c": np.float32("nan"), math.inf: np.float32(2), "d": True, "e": 3},
    }
    wanted = {"a": [None, [None, 1.5]], "b": {"c": None, "inf": 2.0, "d": True, "e": 3}}
    assert json.loads(as_text(found), parse_constant=refuse) == wanted


def test_names_that_are_nearly_right_are_suggested(call) -> None:
    assert "Did you mean dead_code?" in call("compile model.onnx -o out --passes dead_cod")[2]
    assert "Did you mean dead_code?" in call("passes dead_cod")[2]


def test_every_code_is_explained(call) -> None:
    for code in CATALOGUE:
        found = json.loads(call(f"explain {code.lower()} --json")[1])
        assert found["code"] == code and found["advice"]


def test_run_writes_what_the_model_computes(call, artifact: str) -> None:
    call("run artifact --inputs inputs.npz -o a.npz --threads 1")
    call("run model.onnx --inputs inputs.npz -o b.npz")
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert a.files == b.files == ["scores"]
        assert a["scores"].shape == (4, 10)
        np.testing.assert_allclose(a["scores"], b["scores"], atol=1e-4 * np.abs(b["scores"]).max())


def test_more_samples_than_a_fixed_batch_are_run_one_batch_at_a_time(call) -> None:
    model = onnx.load("model.onnx")
    call("run model.onnx --inputs inputs.npz -o whole.npz")
    for batch in (1, 2):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        onnx.save(model, "fixed.onnx")
        assert call("compile fixed.onnx -o fixed --backend onnx")[0] == 0
        for which in ("fixed.onnx", "fixed"):
            assert call(f"run {which} --inputs inputs.npz -o parts.npz")[0] == 0
            with np.load("whole.npz") as whole, np.load("parts.npz") as parts:
                np.testing.assert_allclose(parts["scores"], whole["scores"], rtol=1e-4, atol=1e-5)
    with np.load("inputs.npz") as inputs:
        np.savez("odd.npz", image=inputs["image"][:3])
    code, _, said = call("run fixed --inputs odd.npz -o out.npz")
    assert (code, said[:6]) == (2, "E206: ") and "3 samples" in said and not Path("out.npz").exists()


def test_arrays_may_have_any_name(call) -> None:
    inputs, outputs = ([helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2])] for n in ("self", "file"))
    graph = helper.make_graph([helper.make_node("Neg", ["self"], ["file"])], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "neg.onnx")
    np.savez("x.npz", input_0=np.ones(2, np.float32))
    assert call("run neg.onnx --inputs x.npz -o y.npz")[0] == 0
    with np.load("y.npz") as found:
        np.testing.assert_array_equal(found["file"], [-1, -1])


def test_models_that_differ_are_told_apart(call, artifact: str) -> None:
    onnx.save(network(seed=1), "other.onnx")
    code, text, said = call("verify other.onnx artifact --json")
    assert code == 4 and json.loads(text)["agree"] is False
    assert said.startswith("E605: ") and "'scores'" in said
    assert call("verify other.onnx artifact --tolerance 1e9")[0] == 0


def test_the_first_rewrites_only(call) -> None:
    done = json.loads(call("compile model.onnx -o out --backend onnx --stop-after 1 --json")[1])
    assert done["report"]["rewrites"] == 1
    assert json.loads(call("compile model.onnx -o all --backend onnx --json")[1])["report"]["rewrites"] > 1


def test_graphs_are_printed_beside_the_result(call) -> None:
    code, text, said = call("compile model.onnx -o out --backend onnx --print-after fold_norms --json")
    assert code == 0 and json.loads(text)["artifact"] == "out"
    assert said.startswith("# after fold_norms\ngraph ") and " batch_norm(" not in said
    assert call("compile model.onnx -o out --backend onnx --print-after all")[2].count("# after ") > 5


def test_a_pipeline_from_a_file(call) -> None:
    Path("mine.toml").write_text('passes = ["fold_norms", "dead_code"]')
    done = json.loads(call("compile model.onnx -o out --backend onnx --pipeline mine.toml --json")[1])
    assert [row["spec"] for row in done["report"]["passes"]] == ["fold_norms", "dead_code"]


@pytest.fixture
def ruinous():
    """A pass that may approximate, and turns the scores around."""
    from espalier.ir.ops import Gemm

    @rewrite(Gemm, semantics=approximates("top-1", 1.0))
    def turn_around(node, rewriter):
        """Negate a gemm, once."""
        rewriter.require(node.alpha == 1.0, "done already")
        return rewriter.gemm(*node.operands, alpha=-2.0)

    yield "turn_around"
    del PASSES["turn_around"], RULES["turn_around"]


def test_the_accuracy_gate(call, ruinous: str) -> None:
    line = f"compile model.onnx -o out --backend onnx --passes {ruinous} --verify none"
    code, text, said = call(f"{line} --data inputs.npz --max-drop 10 --json")
    assert code == 4 and json.loads(text)["error"]["code"] == "E604", said
    assert "agreement went from 1.0000" in said and not Path("out").exists()
    code, text, _ = call(f"{line} --data inputs.npz --max-drop 100 --json")
    assert code == 0 and json.loads(text)["score"]["drop"] > 10


def test_a_model_that_changed_is_not_written(call, ruinous: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"compile model.onnx -o out --backend onnx --passes {ruinous} --json"
    code, text, _ = call(line)  # it said that it may change the outputs
    found = json.loads(text)
    assert code == 0 and "changes the outputs" in found["report"]["whole_model"]
    assert found["agreement"].startswith("agrees with the model after the last pass that approximates")
    shutil.rmtree("out")
    monkeypatch.setattr(PASSES[ruinous], "semantics", REASSOCIATES)
    monkeypatch.setitem(RULES, ruinous, dataclasses.replace(RULES[ruinous], semantics=REASSOCIATES))
    code, _, said = call(line)
    assert code == 4 and re.match("E60[23]: ", said) and not Path("out").exists()


def test_a_failed_pass_leaves_the_graph_behind(call, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.errors import VerificationError
    from espalier.passes.rules.cleanup import DeadCode

    def fail(self: object, graph: object, context: object) -> int:
        raise VerificationError("E606", "it went wrong")

    monkeypatch.setattr(DeadCode, "run", fail)
    code, _, said = call("compile model.onnx -o out --backend onnx --dump dumps")
    assert code == 4 and "failed-dead_code.txt" in said
    assert "conv" in Path("dumps/failed-dead_code.txt").read_text(encoding="utf-8")


def test_data_in_a_folder_and_from_a_function(call) -> None:
    Path("many").mkdir()
    for k in range(3):
        Path(f"many/{k}.npz").write_bytes(Path("labelled.npz").read_bytes())
    line = "compile model.onnx -o out --backend onnx --json --data"
    assert json.loads(call(f"{line} many")[1])["score"]["samples"] == 12
    Path("my_batches.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    with np.load('labelled.npz') as file:\n"
        "        yield {'image': file['image']}, file['labels']\n"
        "def broken():\n"
        "    yield 1 / 0\n"
    )
    score = json.loads(call(f"{line} my_batches:batches")[1])["score"]
    assert (score["samples"], score["metric"]) == (4, "top-1")
    code, text, _ = call(f"{line} my_batches:broken")
    assert code == 2 and "ZeroDivisionError" in json.loads(text)["error"]["message"]


def test_integers_that_would_wrap_around_are_refused(call) -> None:
    inputs, outputs = ([helper.make_tensor_value_info(n, onnx.TensorProto.INT8, [2])] for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "neg.onnx")
    for array, code in (([1, 2], 0), ([1, 200], 2), ([1.0, 2.0], 2)):
        np.savez("x.npz", x=np.array(array))
        assert call("run neg.onnx --inputs x.npz -o y.npz")[0] == code


def window(kernel: int, length: int | str = "t") -> onnx.ModelProto:
    """A convolution along a length that varies, without padding."""
    weight = numpy_helper.from_array(np.ones((2, 1, kernel), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", c, d])
            for n, c, d in (("x", 1, length), ("y", 2, None)))  # fmt: skip
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_window_longer_than_the_smallest_size_is_compiled_and_compared(call) -> None:
    onnx.save(window(7), "window.onnx")
    done = json.loads(call("compile window.onnx -o window --backend onnx --json")[1])
    assert done["agreement"].startswith("agrees")
    code, text, _ = call("verify window.onnx window --json")
    assert code == 0 and json.loads(text)["outputs"][0]["elements"] > 0
    assert call("bench window window.onnx --rounds 1")[0] == 0


def test_two_models_without_outputs_to_compare_do_not_agree(call) -> None:
    onnx.save(window(7), "window.onnx")
    np.savez("short.npz", x=np.ones((1, 1, 6), np.float32))
    code, text, said = call("verify window.onnx window.onnx --data short.npz --json")
    assert (code, json.loads(text)["error"]["code"]) == (2, "E206") and "empty" in said


def test_data_of_nan_are_compared(call) -> None:
    onnx.save(window(2), "window.onnx")
    np.savez("nan.npz", x=np.array([[[1, 2, np.nan, 4, np.inf, 6]]], np.float32))
    assert call("verify window.onnx window.onnx --data nan.npz")[0] == 0
    assert call("run window.onnx --inputs nan.npz -o y.npz")[0] == 0
    with np.load("y.npz") as found:
        assert np.isnan(found["y"][0, 0, 1]) and found["y"][0, 0, 0] == 3
    assert call("compile window.onnx -o out --backend onnx --data nan.npz")[0] == 2


def test_an_output_that_takes_no_more_is_named(call) -> None:
    with open("/dev/full", "w") as full:
        made = start("compile", "model.onnx", "-o", "out", "--backend", "onnx", stdout=full)
        _, said = made.communicate(timeout=120)
    assert made.returncode == 2 and said.startswith("E209: standard output cannot be written: No space"), said
    assert Path("out/manifest.json").is_file() and "Exception" not in said


def test_ctrl_c_during_the_imports(tmp_path: Path) -> None:
    """An import that takes long, at which the interrupt arrives."""
    (tmp_path / "cyclopts.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n" + REAL_CYCLOPTS)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "espalier", "passes", "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert json.loads(done.stdout)["error"]["exit_code"] == 130


REAL_CYCLOPTS = """
import importlib, sys
sys.path[:] = [p for p in sys.path if p != __file__.rpartition('/')[0]]
del sys.modules['cyclopts']
sys.modules['cyclopts'] = importlib.import_module('cyclopts')
"""


def test_without_the_compilers_packages_one_line_says_so(tmp_path: Path) -> None:
    for name in ("cyclopts", "ml_dtypes"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('it is missing', name={name!r})")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "espalier", "passes", "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("E205: the command line needs the package cyclopts; only")
    assert json.loads(done.stdout)["error"]["code"] == "E205"
    program = "import espalier\ntry: espalier.compile\nexcept Exception as error: print(error)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("E205: espalier.compile needs the package ml_dtypes; only"), done.stderr


def test_one_bad_model_leaves_the_other_rows(call, artifact: str) -> None:
    code, text, said = call("bench missing.onnx artifact model.onnx --data inputs.npz --rounds 1 --json")
    bad, first, second = json.loads(text)["rows"]
    assert code == 2 and bad["error"]["code"] == "E101" and bad["median_ms"] is None
    assert first["ratio"] == 1.0 and first["error"] is None and second["median_ms"] > 0
    assert said.startswith("E101: missing.onnx: ") and len(said.splitlines()) == 1
    np.savez("wrong.npz", image=np.zeros((4, 3, 16, 15), np.float32))
    code, text, _ = call("bench artifact --data wrong.npz --json")
    assert code == 2 and json.loads(text)["rows"][0]["error"]["code"] == "E206"


def test_model_files_have_a_row_per_engine(call, artifact: str) -> None:
    rows = json.loads(call("bench artifact model.onnx --engines onnxruntime --rounds 3 --json")[1])["rows"]
    assert [(row["model"], row["engine"]) for row in rows] == [("artifact", "onnx"), ("model.onnx", "onnxruntime")]
    code, text, _ = call("bench model.onnx --engines onnxruntime --engines torch --rounds 1 --json")
    assert code == 0 and len(json.loads(text)["rows"]) == 1
    code, text, _ = call("bench model.onnx --engines torch --rounds 1 --json")
    (row,) = json.loads(text)["rows"]
    assert code == 2 and row["engine"] == "torch" and row["error"]["code"] == "E103"
    assert call("bench model.onnx --engines tensorrt")[0] == 2


@pytest.mark.skipif(importlib.util.find_spec("openvino") is not None, reason="OpenVINO is installed")
def test_an_engine_that_is_not_installed_is_refused(call, artifact: str) -> None:
    code, text, said = call("bench model.onnx --engines openvino --json")
    (row,) = json.loads(text)["rows"]
    assert code == 2 and row["error"]["code"] == "E205" and "pip install openvino" in text + said


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_an_exported_program_is_timed_in_torch(call) -> None:
    import torch

    class Net(torch.nn.Module):
        def forward(self, a: torch.Tensor, *, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a @ b, a - 1

    program = torch.export.export(Net(), (torch.ones(2, 3),), {"b": torch.ones(3, 4)})
    torch.export.save(program, "net.pt2")
    code, text, said = call("bench net.pt2 --rounds 2 --trust --json")
    (row,) = json.loads(text)["rows"]
    assert code == 0 and row["engine"] == "torch" and row["median_ms"] > 0, said
    from espalier.runners import open_native

    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(12, dtype=np.float32).reshape(3, 4)
    runner = open_native(Path("net.pt2"), "torch", trust=True)
    found = list(runner({runner.inputs[0].name: a, runner.inputs[1].name: b}).values())
    assert np.allclose(found[0], a @ b) and np.allclose(found[1], a - 1)


def test_only_arrays_are_replaced(call) -> None:
    Path("notes.txt").write_text("mine")
    Path("folder").mkdir()
    for target in ("notes.txt", "folder", "model.onnx"):
        code, _, said = call(f"run model.onnx --inputs inputs.npz -o {target}")
        assert (code, said[:6]) == (2, "E209: ") and f".{target}." not in said
    assert Path("notes.txt").read_text() == "mine" and onnx.load("model.onnx")
    for _ in range(2):
        assert call("run model.onnx --inputs inputs.npz -o y.npz")[0] == 0


def test_messages_hold_nothing_of_our_insides(call) -> None:
    np.save("i.npy", np.zeros(3))
    assert "'i.npy' is no .npz" in call("run model.onnx --inputs i.npy -o y.npz")[2]
    said = call("compile model.onnx -o out --passes fold_constants:limit=abc")[2]
    assert "ast." not in said and "'abc' is no valid value (int is wanted)" in said


def test_weights_of_nothing_but_nan_do_not_agree_with_numbers(call) -> None:
    model = network(seed=0)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), "b"))
    onnx.save(model, "nan.onnx")
    assert call("verify model.onnx nan.onnx")[0] == 4
    assert call("verify nan.onnx nan.onnx")[0] == 0


def test_faults_of_ours_leave_a_file_and_one_line(call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("something\nunforeseen")

    monkeypatch.setattr("espalier.runners.describe", fail)
    code, text, said = call("inspect model.onnx --json")
    assert code == 1 and json.loads(text)["error"]["code"] == "E901"
    assert len(said.splitlines()) == 1 and "something unforeseen" in said
    log = Path(said.strip().rpartition(" ")[2])
    assert "RuntimeError" in log.read_text(encoding="utf-8")
    log.unlink()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BudgetError("E501", "too slow"), 3)])
def test_other_exit_codes(call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("espalier.runners.describe", fail)
    assert call("inspect model.onnx")[0] == code


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "espalier", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def test_an_interrupt_leaves_nothing_behind(call) -> None:
    Path("slow_batches.py").write_text(
        "import pathlib, time\n"
        "def batches():\n"
        "    pathlib.Path('started').touch()\n"
        "    for _ in range(600):\n"
        "        time.sleep(0.1)\n"  # a signal just before a sleep does not end it
        "    yield None\n"
    )
    line = "compile model.onnx -o out --backend onnx --data slow_batches:batches --verify none"
    # what runs the tests in the background may have told all below it to ignore interrupts
    running = start(*line.split(), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while not Path("started").exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=30)[1]
    assert (running.returncode, said) == (130, "interrupted\n")
    assert not Path("out").exists()
    assert [path for path in Path().iterdir() if path.name.startswith((".out", "espalier"))] == []


def test_a_reader_that_leaves_early() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    running = start("explain", "E101", stdout=writing)
    os.close(writing)
    assert running.communicate(timeout=60)[1] == ""
    assert running.returncode == 130


def test_help_is_quick_and_names_every_verb() -> None:
    program = (
        "import resource, sys, espalier.cli\n"
        "try: espalier.cli.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'numpy', 'onnx', 'torch', 'tvm', 'pydantic', 'networkx', 'onnxruntime'} & set(sys.modules)\n"
        "print(sorted(heavy), resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program]
    done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    assert all(verb in done[0].stdout for verb in COMMANDS)
    assert all(run.stderr.startswith("[] ") for run in done)
    assert min(float(run.stderr.split()[-1]) for run in done) < 0.4


def test_formats_that_can_run_code_need_trust(call) -> None:
    Path("model.pt2").write_bytes(b"PK\x05\x06" + bytes(18))
    for line in (
        "compile model.pt2 -o out --backend onnx",
        "inspect model.pt2",
        "run model.pt2 --inputs inputs.npz -o out",
        "verify model.pt2 model.onnx",
    ):
        code, text, _ = call(f"{line} --json")
        assert (code, json.loads(text)["error"]["code"]) == (2, "E113"), line
        code, text, _ = call(f"{line} --trust --json")
        assert (code, json.loads(text)["error"]["code"]) == (2, "E103"), line
        assert not Path("out").exists()
