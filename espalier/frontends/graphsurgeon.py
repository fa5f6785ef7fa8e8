"""onnx-graphsurgeon's graphs in, through the ONNX models that they export to."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon

from espalier.errors import InputError
from espalier.frontends import onnx
from espalier.ir.graph import Graph


def from_graphsurgeon(surgeon: Any, **options: Any) -> Graph:
    """The graph of an `onnx_graphsurgeon.Graph`, which is not changed.

    Raises:
        InputError: E110 if onnx-graphsurgeon cannot export it, for instance because an input has no element type; and
            as for an ONNX model.
    """
    try:
        model = onnx_graphsurgeon.export_onnx(surgeon)
    except Exception as error:  # it raises whatever the graph's state leads to
        raise InputError("E110", f"onnx-graphsurgeon cannot export the graph: {error}") from error
    return onnx.load(model, **options)
