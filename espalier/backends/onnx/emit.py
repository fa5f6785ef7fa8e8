"""The ONNX backend for artifacts: a model file that onnxruntime runs."""

from __future__ import annotations

from pathlib import Path

import onnx

from espalier.backends.base import Emission
from espalier.backends.onnx import save
from espalier.cost.device import Device
from espalier.ir import Graph

MODEL = "model.onnx"


class OnnxBackend:
    """Writes model.onnx, and its weights beside it where they exceed what one file can hold."""

    def emit(self, graph: Graph, device: Device, folder: Path) -> Emission:
        """Raises UnsupportedError, naming node and source, for what ONNX cannot say."""
        save(graph, folder / MODEL)
        data = sorted(path.name for path in folder.glob(f"{MODEL}*.data"))
        return Emission(
            engine="onnx",
            files={name: folder / name for name in (MODEL, *data)},
            section={"model": MODEL, "external_data": data},
            versions={"onnx": onnx.__version__},
        )
