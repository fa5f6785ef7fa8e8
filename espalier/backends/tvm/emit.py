"""The TVM backend: a graph in, the library, its weights and TVM's small runtime out."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espalier.backends.base import Emission
from espalier.backends.tvm import build
from espalier.cost.device import Device
from espalier.errors import UnsupportedError
from espalier.ir import Graph
from espalier.ir.elements import from_dtype
from espalier.runtime.engines.tvm import RUNTIME_LIBRARY
from espalier.runtime.weights import save_weights

LIBRARY, WEIGHTS = "model.so", "weights.safetensors"


class TvmBackend:
    """Compiles a graph for a CPU into a Relax executable.

    The entry function `main` takes the graph's inputs and then the weights, as the section lists them, and returns a
    tuple of the outputs. Constants of at most `module.EMBEDDED_BYTES` lie in the library.
    """

    def emit(self, graph: Graph, device: Device, folder: Path) -> Emission:
        """Write library, weights and runtime into `folder`.

        Raises UnsupportedError, naming node and source, for what can't be emitted; E409 for what is no CPU.
        """
        if device.kind != "cpu":
            raise UnsupportedError("E409", f"the TVM backend makes code for CPUs, not for {device.name}")
        target = None if device.instruction_sets == "host" else build.target_with(device.instruction_sets)
        compiled = build.build(graph, target=target, threads=os.cpu_count())
        compiled.save(folder / LIBRARY)
        runtime = Path(str(importlib.metadata.distribution("apache-tvm").locate_file("tvm"))) / "lib" / RUNTIME_LIBRARY
        files: dict[str, Path] = {LIBRARY: folder / LIBRARY, RUNTIME_LIBRARY: runtime}
        section: dict[str, Any] = {"library": LIBRARY, "runtime": RUNTIME_LIBRARY, "entry": "main", "weights": None}
        if compiled.weights:
            names = [f"weight_{k:05}" for k in range(len(compiled.weights))]
            save_weights(folder / WEIGHTS, dict(zip(names, compiled.weights, strict=True)))
            files[WEIGHTS] = folder / WEIGHTS
            tensors: list[Mapping[str, Any]] = [
                {"name": name, "element": str(from_dtype(array.dtype)), "shape": list(array.shape)}
                for name, array in zip(names, compiled.weights, strict=True)
            ]
            section["weights"] = {"file": WEIGHTS, "tensors": tensors}
        versions = {package: importlib.metadata.version(package) for package in ("apache-tvm", "apache-tvm-ffi")}
        sets = build.instruction_sets(compiled.target)
        return Emission(
            engine="tvm", files=files, section=section, instruction_sets=sets, native=True, versions=versions
        )
