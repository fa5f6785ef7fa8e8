"""Resizing with aligned corners by a fractional factor, as PyTorch means it."""

from __future__ import annotations

import io

import numpy as np
import onnxruntime
import pytest

import espalier
from espalier.ir.execute import execute

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("factor", [(1.7, 0.6), (2.0, 3.0)])
def test_aligned_corners_are_those_of_torch(factor: tuple[float, float], dynamic: bool) -> None:
    class Resize(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)

    x = torch.linspace(-1, 1, 2 * 3 * 7 * 9).reshape(2, 3, 7, 9)
    file = io.BytesIO()
    axes = {"x": {2: "h", 3: "w"}} if dynamic else None
    torch.onnx.export(Resize(), (x,), file, input_names=["x"], dynamic_axes=axes, dynamo=False)
    wanted = Resize()(x).numpy()
    found = execute(espalier.load(file.getvalue()), [x.numpy()])[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    session = onnxruntime.InferenceSession(file.getvalue())
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], wanted, atol=1e-5)
