"""The ONNX backend for artifacts: a model file that onnxruntime runs."""

from __future__ import annotations

from pathlib import Path

import onnx

from espalier.backends.base import Emission
from espalier.backends.onnx import save
from espalier.backends.onnx.decompose import decompose
from espalier.backends.onnx.lowering import for_onnxruntime
from espalier.cost.device import Device
from espalier.errors import UnsupportedError
from espalier.ir import Graph
from espalier.ir.ops.quantization import QONNX

MODEL = "model.onnx"


class OnnxBackend:
    """Writes model.onnx, and its weights beside it where they exceed what one file can hold."""

    def emit(self, graph: Graph, device: Device, folder: Path) -> Emission:
        """Raises UnsupportedError, naming node and source, for what ONNX cannot say."""
        decompose(graph, QONNX)
        for_onnxruntime(graph)
        _refuse_foreign(graph)
        save(graph, folder / MODEL)
        data = sorted(path.name for path in folder.glob(f"{MODEL}*.data"))
        section = {"model": MODEL, "external_data": data}
        return Emission(
            engine="onnx",
            files={name: folder / name for name in (MODEL, *data)},
            section=section,
            cautious={**section, "optimizations": "basic"},
            versions={"onnx": onnx.__version__},
        )


def _refuse_foreign(graph: Graph) -> None:
    """Raise UnsupportedError for nodes that no ONNX runtime knows: kept unchanged, they could be exported, not run."""
    for each in graph.all_graphs():
        for node in each:
            if node.op.name == "opaque" and node.domain not in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft"):
                raise UnsupportedError(
                    "E401",
                    f"no runtime of this backend knows {node.domain}::{node.op_type}",
                    node=node,
                    source=node.location,
                    hint="Export the model without it, or register an operator of its meaning (espalier.ops).",
                )
