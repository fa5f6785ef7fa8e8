"""ONNX out: a graph as a model that any runtime of ONNX reads, in the operator set that it came in.

`opsets` finds the lowest operator set that can say every node, `printer` writes a node as a schema of that version
wants it (attributes that are operands today go back to attributes), `exporter` names values and walks regions, and
`weights` stores constants, beside the model where it would be too large.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from onnx import ModelProto

from espalier.backends.onnx.exporter import Exporter
from espalier.backends.onnx.weights import DataFile, used_files
from espalier.errors import InputError
from espalier.ir.graph import Graph

__all__ = ["save", "to_model"]

PROTOBUF_LIMIT = (1 << 31) - 1
"""No protobuf message may have more bytes."""
MARGIN = 1 << 28
"""Bytes left for everything but the weights."""


def to_model(graph: Graph, *, opset: int | None = None) -> ModelProto:
    """The graph as an ONNX model with its weights inside.

    Inputs, outputs and dynamic dimensions keep their names, nodes the names that they came with.

    Args:
        graph: Is not changed.
        opset: The version of ai.onnx. By default the graph's own (21 if it has none), or the lowest above it that has
            an operator for every node, counting operators that ONNX defines by others.

    Raises:
        UnsupportedError: E401 or E402, naming the node, for what ONNX (or the given opset) cannot say; E404 for element
            types that ONNX lacks.
        InputError: E209 if the weights exceed what a message can hold; `save` can store them beside it.
    """
    size = sum(value.constant.nbytes for value in graph.constants() if value.constant is not None)
    if size > PROTOBUF_LIMIT - MARGIN:
        raise InputError("E209", f"{size} bytes of weights do not fit into one message", hint="Use save(graph, path).")
    return Exporter(graph, opset).run()


def save(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    external_threshold: int = PROTOBUF_LIMIT - MARGIN,
) -> None:
    """Write the graph as an .onnx file, with the weights in `<name>.data` beside it if they exceed the threshold.

    They are copied in pieces, straight from the files that they are mapped from. Both files appear whole or not at all.

    Raises:
        UnsupportedError: As `to_model`.
        InputError: E209 if a file cannot be written.
    """
    path = Path(path)
    size = sum(value.constant.nbytes for value in graph.constants() if value.constant is not None)
    try:
        if size <= min(external_threshold, PROTOBUF_LIMIT - MARGIN):
            _replace(path, Exporter(graph, opset).run().SerializeToString())
            return
        target = _data_path(path, used_files(graph))
        with DataFile(target) as data:
            model = Exporter(graph, opset, data).run()
            serialized = model.SerializeToString()
            data.commit()
        _replace(path, serialized)
    except OSError as error:
        raise InputError("E209", f"{str(path)!r} cannot be written: {error.strerror or error}") from None


def _data_path(path: Path, used: set[Path]) -> Path:
    """A name beside the model for its data that no weight of the graph is mapped from."""
    number = 0
    while True:
        found = path.with_name(f"{path.name}{f'.{number}' if number else ''}.data")
        if not found.exists() or found.resolve() not in used:
            return found
        number += 1


def _replace(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
