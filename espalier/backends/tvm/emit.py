"""The TVM backend: a graph in, the library, its weights and TVM's small runtime out."""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from espalier.backends import cache
from espalier.backends.base import Emission, Tuning
from espalier.backends.tvm import build, choices, cross, tuning
from espalier.cost.device import Device
from espalier.cost.measured import Database, default_path
from espalier.errors import UnsupportedError
from espalier.ir import Graph
from espalier.ir.elements import from_dtype
from espalier.runtime.cpu import default_threads
from espalier.runtime.engines.tvm import RUNTIME_LIBRARY
from espalier.runtime.weights import save_weights

LIBRARY, WEIGHTS, KERNELS = "model.so", "weights.safetensors", "kernels.json"


class TvmBackend:
    """Compiles a graph for a CPU into a Relax executable.

    The entry function `main` takes the graph's inputs and then the weights, as the section lists them, and returns a
    tuple of the outputs. Constants of at most `module.EMBEDDED_BYTES` lie in the library.
    """

    def __init__(self) -> None:
        self._choices: choices.Choices | None = None
        self._told: dict[str, Any] = {}

    def tune(self, graph: Graph, device: Device, asked: Tuning) -> None:
        """Measure the graph's kernels, and go by what is known of them from then on.

        Raises InputError E235 if the database can't be used, UnsupportedError for what can't be emitted.
        """
        start, path = time.perf_counter(), asked.database or default_path()
        threads = asked.threads or default_threads()
        target = build.host_target(os.cpu_count() or 1)
        found = tuning.Tuning()
        if asked.seconds or asked.database is not None or path.exists():
            database = Database(path, create=asked.seconds > 0)
            try:
                found = tuning.tune(graph, target, threads, database, asked.seconds, asked.stopped)
            finally:
                database.close()
        self._choices = choices.Choices(found.answers)
        self._told = {
            "measured": found.measured, "interrupted": found.interrupted, "threads": threads, "database": str(path),
            "seconds": round(time.perf_counter() - start, 1),
        }  # fmt: skip

    def emit(self, graph: Graph, device: Device, folder: Path) -> Emission:
        """Write library, weights and runtime into `folder`.

        Raises UnsupportedError, naming node and source, for what can't be emitted; E409 for what is no CPU; InputError
        E213 for instruction sets that the architecture does not have, E233 if what linking for it takes is missing,
        E236 if the folder that is asked to keep kernels cannot be used.
        """
        if device.kind != "cpu":
            raise UnsupportedError("E409", f"the TVM backend makes code for CPUs, not for {device.name}")
        asked = () if device.instruction_sets == "host" else device.instruction_sets
        target = None if device.instruction_sets == "host" else build.target_with(asked, device.architecture)
        cross.linker(cross.triple(device.architecture))  # what is missing is said before the work
        runtime = cross.runtime_library(device.machine, folder)
        with cache.opened() or nullcontext() as kept:
            with nullcontext() if self._choices is None else choices.using(self._choices):
                compiled = build.build(graph, target=target, threads=os.cpu_count())
            compiled.save(folder / LIBRARY, kept)
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
        if compiled.arena is not None:
            (folder / KERNELS).write_text(json.dumps(compiled.kernels, indent=1) + "\n", encoding="utf-8")
            files[KERNELS] = folder / KERNELS
            section["kernels"] = KERNELS
            section["arena"] = {"bytes": compiled.arena.bytes, "lower_bound": compiled.arena.lower_bound}
        versions = {package: importlib.metadata.version(package) for package in ("apache-tvm", "apache-tvm-ffi")}
        sets = tuple(dict.fromkeys([*build.instruction_sets(compiled.target), *asked]))
        chosen = self._choices or choices.Choices()
        taken = {key: list(each) for key, each in sorted(chosen.taken.items())}
        known = sum(key in chosen.known for key in chosen.asked)
        return Emission(
            engine="tvm", files=files, section=section, instruction_sets=sets, native=True, versions=versions,
            options={"choices": taken} if taken else {},
            tuning=None if self._choices is None else {"kernels": len(chosen.asked), "known": known, **self._told},
        )  # fmt: skip
