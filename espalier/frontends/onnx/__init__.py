"""ONNX in: any model of opset 6 or later becomes a graph of today's operators.

`load` checks everything that a file can get wrong before it allocates (`reader`, `tensors`), walks the nodes
(`importer`), and brings each to the meaning of the newest operator set: by its schema where only the form changed
(`schemas`), by a small adapter where the meaning did (`upgrade`), by its function body where the IR has no class
(`functions`). Other dialects have an adapter each (`qlinear`, `microsoft`, `qonnx`, `finn`). What is unknown stays
`opaque`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from espalier.errors import InputError
from espalier.frontends.onnx import control, finn, microsoft, qlinear, qonnx, upgrade
from espalier.frontends.onnx.importer import Importer
from espalier.frontends.onnx.reader import not_utf8, opsets, read_model
from espalier.ir.garbage import few_collections
from espalier.ir.graph import Graph

__all__ = ["load"]

_ADAPTERS = (control, finn, microsoft, qlinear, qonnx, upgrade)  # imported for what they register


def load(source: Any, *, name: str | None = None, folder: str | os.PathLike[str] | None = None) -> Graph:
    """The graph of an ONNX model.

    Args:
        source: The path of a file, its bytes, or a ModelProto (which is not changed).
        name: What to call the graph; by default what the model calls it.
        folder: Where external data lie, if not beside the file. They are mapped when they are read, never loaded.

    Raises:
        InputError: E101 to E119, naming the node, tensor or file at fault.
        UnsupportedError: The model holds maps or sparse inputs (E410), or an unknown operator with a body that uses
            outer values (E407).
    """
    with few_collections(all_stays=True):
        model, place = read_model(source, Path(folder) if folder is not None else None)
        try:
            versions = opsets(model)
            texts = (model.graph.name, model.producer_name, model.producer_version, *versions)
            for text in texts:
                if not isinstance(text, str):
                    raise not_utf8(text)
            importer = Importer(model, place, versions, name or model.graph.name or "main")
            graph = importer.run()
            graph.metadata.update(
                opset=versions.get(""),
                opsets=dict(sorted(versions.items())),
                ir_version=model.ir_version,
                producer=" ".join(filter(None, [model.producer_name, model.producer_version])),
            )
            if importer.assumed:
                graph.metadata["assumed_types"] = sorted(importer.assumed)
            return graph
        except UnicodeDecodeError as error:
            raise InputError("E112", f"text in the model is not UTF-8: {error.object[:40]!r}") from None
        except RecursionError:
            raise InputError("E117", "the model nests graphs or functions too deep") from None
