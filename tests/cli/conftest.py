"""A command line that is called in a folder with a model and data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.artifact import network
from espalier.cli import main


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
