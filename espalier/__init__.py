"""espalier fits neural networks to devices: compression as compilation.

    artifact = espalier.compile("model.onnx", device="cpu", output="artifact")
    outputs = espalier.runtime.load("artifact")({"input": array})
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from espalier import runtime as runtime
    from espalier.driver import Artifact as Artifact
    from espalier.driver import compile as compile
    from espalier.edit import Edited as Edited
    from espalier.edit import prune as prune
    from espalier.errors import EspalierError as EspalierError
    from espalier.frontends import load as load
    from espalier.ir import Graph as Graph
    from espalier.passes import Pass as Pass

_EXPORTS = {
    "Artifact": "espalier.driver",
    "Edited": "espalier.edit",
    "EspalierError": "espalier.errors",
    "Graph": "espalier.ir",
    "Pass": "espalier.passes",
    "compile": "espalier.driver",
    "load": "espalier.frontends",
    "prune": "espalier.edit",
}
__all__ = ["Artifact", "Edited", "EspalierError", "Graph", "Pass", "compile", "load", "prune", "runtime"]


def __getattr__(name: str) -> Any:
    if name == "runtime":
        return importlib.import_module("espalier.runtime")
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'espalier' has no attribute {name!r}")
