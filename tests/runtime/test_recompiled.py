"""An artifact that was compiled again to the same place runs the new code, in a process that had loaded the old one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import espalier
from espalier.ir import Builder, Graph, TensorType, elements


@pytest.mark.parametrize("backend", ["tvm", "onnx"])
def test_the_new_artifact_runs(tmp_path: Path, backend: str) -> None:
    results = []
    for factor in (2.0, 3.0):
        graph = Graph("scale")
        x = graph.add_input(TensorType(elements.F32, (4,)), "x")
        graph.set_outputs([Builder(graph).mul(x, factor)], ["y"])
        espalier.compile(graph, backend=backend, output=tmp_path / "model")
        with espalier.runtime.load(tmp_path / "model") as model:
            results.append(model({"x": np.ones(4, np.float32)})["y"].tolist())
    assert results == [[2.0] * 4, [3.0] * 4]
