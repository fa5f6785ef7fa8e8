"""Load and run artifacts. Needs numpy and apache-tvm-ffi; neither the compiler nor torch nor onnx.

    model = espalier.runtime.load("resnet.espalier")
    outputs = model({"input": images})        # arrays by name

Nothing is imported until an artifact is loaded.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from espalier.runtime.errors import ArtifactError

if TYPE_CHECKING:
    from espalier.runtime.model import LoadedModel as LoadedModel

__all__ = ["ArtifactError", "LoadedModel", "load"]


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> LoadedModel:
    """Check an artifact and make it ready to run.

    The size and SHA-256 of every file are compared with the manifest before anything is loaded, and the processor's
    instruction sets with those that the artifact needs. The checks catch damage and mismatches; they are no signature,
    so load only artifacts whose manifest you trust.

    Args:
        path: The artifact's directory or zip file.
        threads: Threads to compute with; by default one for each processor of this process, or as many as
            OMP_NUM_THREADS says if those are fewer. A thread that calls models of TVM keeps the workers that its first
            one asked for: later ones get no more.

    Raises:
        ArtifactError: The artifact is broken, changed, too new, or not for this machine (codes E701 to E715).
    """
    from espalier.runtime.model import LoadedModel

    return LoadedModel(path, threads=threads)


def __getattr__(name: str) -> Any:
    if name == "LoadedModel":
        from espalier.runtime.model import LoadedModel

        return LoadedModel
    raise AttributeError(f"module 'espalier.runtime' has no attribute {name!r}")
