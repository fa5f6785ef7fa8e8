"""What runs an artifact: one module per engine, imported when an artifact names it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

from espalier.runtime.elements import Array
from espalier.runtime.errors import ArtifactError
from espalier.runtime.files import ArtifactFiles

ENGINES = {"tvm": "espalier.runtime.engines.tvm", "onnx": "espalier.runtime.engines.onnx"}


class Engine(Protocol):
    """A model that is ready to run. `run` may be called from several threads at once."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs in the manifest's order, in raw form and memory that nobody else holds, for inputs in raw form."""


@runtime_checkable
class Profiling(Protocol):
    """An engine that can tell where its time goes."""

    def profile(self, inputs: Sequence[Array]) -> list[tuple[Any, float]]:
        """What each kernel computes, as plain JSON values, and the seconds that it took in one call, in order."""


def load(files: ArtifactFiles, threads: int) -> Engine:
    """Load an artifact with the engine that it names.

    Raises:
        ArtifactError: The engine is unknown (E702), needs a package (E708), or refuses the artifact.
    """
    name = files.manifest.engine
    if name not in ENGINES:
        raise ArtifactError("E702", f"there is no engine {name!r}; this runtime has {', '.join(sorted(ENGINES))}")
    try:
        module = importlib.import_module(ENGINES[name])
    except ImportError as error:
        package = PACKAGES.get(error.name or "", error.name)
        raise ArtifactError(
            "E708", f"a {name} artifact needs the package {package}", hint=f"pip install {package}"
        ) from error
    return cast(Engine, module.load(files, threads))


PACKAGES = {"tvm_ffi": "apache-tvm-ffi", "onnxruntime": "onnxruntime"}
"""The distribution that provides a module."""
