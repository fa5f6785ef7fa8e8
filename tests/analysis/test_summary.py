"""`espalier inspect --units`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espalier.backends.onnx import save
from espalier.cli import main
from tests.analysis.networks import loaded


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "attention.onnx"
    save(loaded("AttentionNorm")[0], path)
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code, *capsys.readouterr()


def test_lines(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, said = call(capsys, "inspect", model, "--units")
    assert (code, said) == (0, "")
    lines = text.splitlines()
    assert lines[0].split() == ["unit", "extent", "verdict", "weights;", "why"]
    assert lines[-1] == "3 exact, 1 approximate, 2 frozen"
    head = next(line for line in lines if line.startswith("q.weight.T.1.0 "))
    assert head.split()[1:3] == ["3", "exact"]
    assert "q.weight.T.1, q.bias.0, k.weight.T.1, k.bias.0 and 3 more" in head
    assert "layer_norm computes statistics over it (at layer_norm norm/layer_norm" in text


def test_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = call(capsys, "inspect", model, "--units", "--json")
    found = json.loads(text)
    assert code == 0
    assert found["counts"] == {"exact": 3, "approximate": 1, "frozen": 2}
    assert list(found["units"][0]) == ["name", "extent", "verdict", "why", "weights", "activations"]
    unit = next(unit for unit in found["units"] if unit["name"] == "v.weight.T.1.1")
    assert unit["weights"] == ["v.weight.T.1", "v.bias.0", "out.weight.T.0"]
    assert unit["extent"] == 4


def test_artifacts_have_no_units(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "compile", model, "-o", tmp_path / "artifact", "--backend", "onnx")[0] == 0
    code, _, said = call(capsys, "inspect", tmp_path / "artifact", "--units")
    assert code == 2
    assert said.startswith("E202")
