"""The command line's `compile --tune` and `bench --profile`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import espalier
from benchmarks.artifact import network
from espalier.cli import main
from espalier.cli.options import seconds
from espalier.cost.count import macs
from espalier.errors import InputError
from tests.documents import ROOT

Call = Callable[[str], tuple[int, str, str]]


def fixed() -> onnx.ModelProto:
    """The network for one image at a time."""
    model = network(seed=0)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line in a folder with a model: exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPALIER_CHOICES", str(tmp_path / "own.sqlite"))
    onnx.save(fixed(), "model.onnx")
    onnx.save(network(seed=0), "varying.onnx")

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(shlex.split(line))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def told(call: Call, line: str) -> dict[str, Any]:
    code, text, said = call(f"{line} --json")
    assert (code, said) == (0, ""), said
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize(("text", "wanted"), [("60s", 60), ("2m", 120), ("0s", 0), ("90", 90), ("1.5 min", 90)])
def test_durations(text: str, wanted: float) -> None:
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "soon", "-5s", "5 days", "1e3s", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InputError) as caught:
        seconds(text)
    assert caught.value.code == "E201"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--tune soon", "E201"),
        ("--choices choices.sqlite", "E201"),
        ("--threads 2", "E201"),
        ("--tune 1s --threads 0", "E201"),
        ("--tune 1s --backend onnx", "E201"),
        ("--tune 1s --device x86-64", "E234"),
        ("--tune 0s --device aarch64", "E234"),
        ("--tune 0s --choices nothing.sqlite", "E235"),
        ("--tune 1s --choices model.onnx", "E235"),
    ],
)
def test_what_is_refused(call: Call, options: str, error: str) -> None:
    code, printed, said = call(f"compile model.onnx -o out {options}")
    assert (code, printed) == (2, "") and said.startswith(f"{error}: "), said
    assert not Path("out").exists() and not Path("nothing.sqlite").exists()


def test_the_same_answers_give_the_same_artifact(call: Call) -> None:
    plain = told(call, "compile model.onnx -o plain")
    assert plain["tuning"] is None and not Path("own.sqlite").exists()
    nothing = told(call, "compile model.onnx -o nothing --tune 0s --threads 1")
    assert nothing["hash"] == plain["hash"] and nothing["tuning"]["measured"] == 0
    assert not Path("own.sqlite").exists()
    first = told(call, "compile model.onnx -o first --tune 5m --threads 1")
    tuning = first["tuning"]
    assert 0 < tuning["kernels"] == tuning["known"] <= tuning["measured"] and not tuning["interrupted"]
    assert first["agreement"].startswith("agrees") and tuning["database"] == os.environ["ESPALIER_CHOICES"]
    assert Path("own.sqlite").exists()
    with sqlite3.connect("own.sqlite") as connection:  # as another machine might have measured
        rows = connection.execute("SELECT question, kind, seconds FROM choices").fetchall()
        for question, kind, measured in rows:
            choice = json.loads(measured)[-1 if kind == "tile" else 0][0]
            connection.execute("UPDATE choices SET choice = ? WHERE question = ?", (json.dumps(choice), question))
    hashes = set()
    for name in ("second", "third"):
        found = told(call, f"compile model.onnx -o {name} --tune 0s --choices own.sqlite --threads 1")
        assert found["tuning"]["measured"] == 0 and found["tuning"]["known"] > 0
        assert found["agreement"].startswith("agrees")
        hashes.add(found["hash"])
    assert len(hashes) == 1 and hashes != {plain["hash"]}
    chosen = json.loads(Path("second/manifest.json").read_text())["options"]["choices"]
    assert chosen and set(chosen) <= {question for question, kind, _ in rows if kind == "tile"}
    assert told(call, "compile model.onnx -o later")["hash"] == plain["hash"]  # which reads no database
    code, text, _ = call("compile model.onnx -o lines --tune 0s --choices own.sqlite --threads 1")
    assert code == 0 and f"known, {len(chosen)} of them not as the rules choose" in text


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "espalier", *arguments], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_answers(path: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < deadline:
        if path.exists():
            with sqlite3.connect(path) as connection:
                try:
                    if connection.execute("SELECT count(*) FROM choices").fetchone()[0]:
                        return
                except sqlite3.OperationalError:
                    pass
        time.sleep(0.05)
    pytest.fail("nothing was measured")


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_tuning_and_a_second_one_all(tmp_path: Path, times: int) -> None:
    wide = network(seed=0)
    for value in (*wide.graph.input, *wide.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 16  # so that there is time for both
    onnx.save(wide, tmp_path / "model.onnx")
    line = "compile model.onnx -o out --tune 1h --threads 1 --choices choices.sqlite --json"
    running = start(tmp_path, *line.split())
    wait_for_answers(tmp_path / "choices.sqlite", running)
    running.send_signal(signal.SIGINT)
    if times == 2:
        assert running.stderr is not None
        assert running.stderr.readline().startswith("tuning ends here")
        running.send_signal(signal.SIGINT)
    printed, said = running.communicate(timeout=240)
    if times == 2:
        assert (running.returncode, said) == (130, "interrupted\n")
        assert not (tmp_path / "out").exists()
        return
    assert running.returncode == 0 and "compiling with what was measured" in said
    found = json.loads(printed)
    assert found["tuning"]["interrupted"] and found["tuning"]["measured"] >= 1
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_profile_names_nodes_and_counts_all_work(call: Call) -> None:
    assert call("compile model.onnx -o artifact")[0] == 0
    found = told(call, "bench artifact --profile --threads 1 --rounds 3")
    graph = espalier.load("model.onnx")
    counted = [macs(node) for node in graph if node.op.name != "batch_norm"]
    assert sum(row["macs"] for row in found["kernels"]) == sum(count for count in counted if isinstance(count, int))
    names = {(node["operator"], node["name"]) for row in found["kernels"] for node in row["nodes"]}
    assert len([name for operator, name in names if operator == "conv"]) == 2 and all(name for _, name in names)
    assert {"conv", "relu", "global_average_pool", "gemm"} <= {operator for operator, _ in names}
    assert abs(sum(row["share"] for row in found["kernels"]) - 1) < 1e-6
    assert abs(sum(row["ms"] for row in found["kernels"]) - found["total_ms"]) < 1e-6
    assert found["machine"]["threads"] == 1
    assert found["machine"]["f32_per_second"] > 1e9 and found["machine"]["bytes_per_second"] > 1e8
    convolution = next(row for row in found["kernels"] if any(n["operator"] == "conv" for n in row["nodes"]))
    assert convolution["element"] == "f32" and 0 < convolution["compute"] < 10
    assert convolution["bytes"] >= 4 * (3 * 16 * 16 + 16 * 16 * 16)
    code, text, _ = call("bench artifact --profile --threads 1 --rounds 1")
    assert code == 0 and len(text.splitlines()) == len(found["kernels"]) + 2


def test_a_profile_compares_with_what_is_multiplied(call: Call) -> None:
    assert call("compile model.onnx --passes mixed_precision -o narrow")[0] == 0
    found = told(call, "bench narrow --profile --threads 1 --rounds 1")
    best = found["machine"]["bf16_per_second"]
    elements = {row["element"] for row in found["kernels"] if any(n["operator"] == "conv" for n in row["nodes"])}
    assert elements <= {"bf16", "f32"} and ("bf16" in elements) == (best is not None)
    for row in found["kernels"]:
        if row["element"] == "bf16" and row["macs"]:
            assert row["compute"] == pytest.approx(row["macs"] / row["ms"] * 1e3 / best)


def test_a_profile_of_what_tells_nothing_is_refused(call: Call) -> None:
    assert call("compile varying.onnx -o varying --verify none")[0] == 0
    assert call("compile model.onnx -o onnx --backend onnx")[0] == 0
    for line, error in (
        ("bench varying --profile", "E716"), ("bench onnx --profile", "E716"), ("bench model.onnx --profile", "E201"),
        ("bench onnx varying --profile", "E201"), ("bench onnx --profile --rounds 0", "E201"),
    ):  # fmt: skip
        code, printed, said = call(line)
        assert (code, printed) == (2, "") and said.startswith(f"{error}: "), (line, said)


def test_profiled_calls_compute_what_others_do(call: Call) -> None:
    assert call("compile model.onnx -o artifact")[0] == 0
    image = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    with espalier.runtime.load("artifact", threads=1) as model:
        before = model(image)["scores"]
        rows = model.profile({"image": image})
        assert all(taken >= 0 for _, taken in rows) and sum(taken for _, taken in rows) > 0
        np.testing.assert_array_equal(model(image)["scores"], before)
        with pytest.raises(espalier.runtime.ArtifactError) as caught:
            model.profile(image[:, :2])
        assert caught.value.code == "E709"
    with pytest.raises(espalier.runtime.ArtifactError) as caught:
        model.profile(image)
    assert caught.value.code == "E713"
