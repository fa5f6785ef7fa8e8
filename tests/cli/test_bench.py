"""Rows of the verb bench: artifacts and model files, and engines that are not there."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest


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
