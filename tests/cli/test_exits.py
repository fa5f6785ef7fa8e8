"""Exit codes, interrupts and faults, and what the command line needs to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from espalier.errors import BudgetError
from tests.cli.commands import COMMANDS, start
from tests.documents import ROOT

REAL_CYCLOPTS = """
import importlib, sys
sys.path[:] = [p for p in sys.path if p != __file__.rpartition('/')[0]]
del sys.modules['cyclopts']
sys.modules['cyclopts'] = importlib.import_module('cyclopts')
"""


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


def test_messages_hold_nothing_of_our_insides(call) -> None:
    np.save("i.npy", np.zeros(3))
    assert "'i.npy' is no .npz" in call("run model.onnx --inputs i.npy -o y.npz")[2]
    said = call("compile model.onnx -o out --passes fold_constants:limit=abc")[2]
    assert "ast." not in said and "'abc' is no valid value (int is wanted)" in said


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


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    program = (
        "import sys, espalier.cli\n"
        "try: espalier.cli.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'numpy', 'onnx', 'torch', 'tvm', 'pydantic', 'networkx', 'onnxruntime'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in COMMANDS)
    assert done.stderr == "[]\n"


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
