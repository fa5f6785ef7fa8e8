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
    from espalier.edit import grow as grow
    from espalier.edit import prune as prune
    from espalier.edit import recover as recover
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
    "grow": "espalier.edit",
    "load": "espalier.frontends",
    "prune": "espalier.edit",
    "recover": "espalier.edit",
}
__all__ = [
    "Artifact", "Edited", "EspalierError", "Graph", "Pass", "compile", "grow", "load", "prune", "recover", "runtime",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "runtime":
        return importlib.import_module("espalier.runtime")
    if name in _EXPORTS:
        try:
            module = importlib.import_module(_EXPORTS[name])
        except ModuleNotFoundError as error:
            raise only_runtime(f"espalier.{name}", error) from None
        return getattr(module, name)
    raise AttributeError(f"module 'espalier' has no attribute {name!r}")


def only_runtime(what: str, error: ModuleNotFoundError) -> EspalierError:
    """The refusal of what needs a package that is not installed. Raises the error itself for a module of ours."""
    from espalier.errors import InputError

    if (error.name or "espalier").partition(".")[0] == "espalier":
        raise error
    message = f"{what} needs the package {error.name}; only what espalier.runtime needs seems to be installed here"
    return InputError("E205", message, hint="Install the compiler: pip install espalier, without --no-deps.")
