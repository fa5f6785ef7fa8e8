"""What a backend is: graph in, the files of an artifact out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from espalier import plugins
from espalier.cost.device import Device
from espalier.errors import InputError
from espalier.ir import Graph


@dataclass
class Emission:
    """What a backend made, before it becomes an artifact."""

    engine: str
    """The runtime's engine that loads it."""
    files: Mapping[str, Path]
    """Name within the artifact → file that was written."""
    section: Mapping[str, Any] = field(default_factory=dict)
    """What the engine needs to know, as plain JSON values."""
    cautious: Mapping[str, Any] | None = None
    """The section of an engine that takes fewer liberties: for where it fails otherwise, or computes something else."""
    instruction_sets: tuple[str, ...] = ()
    """Extensions without which the code does not run."""
    native: bool = False
    """Whether it holds machine code."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages whose version the result depends on."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the result depends on besides graph and device, as plain JSON values."""
    tuning: Mapping[str, Any] | None = None
    """What was measured for it, if it was tuned, as plain JSON values."""


class Backend(Protocol):
    """Lowers a graph for a device."""

    def emit(self, graph: Graph, device: Device, folder: Path) -> Emission:
        """Write what the artifact needs into `folder`. The graph is the backend's to change.

        Raises UnsupportedError, naming node and source, for what it can't emit.
        """
        ...


@dataclass(frozen=True)
class Tuning:
    """How kernels are to be measured."""

    seconds: float
    """What that may take; with 0, what is known is taken, and nothing is measured."""
    database: Path | None = None
    """The file of what is known; None: the user's own."""
    threads: int | None = None
    """How many run a kernel; None: as many as the runtime takes by default."""
    stopped: Callable[[], bool] = lambda: False
    """Asked again and again: whether to end now, and keep what was measured."""


@runtime_checkable
class Tunable(Protocol):
    """A backend that can choose by measurements."""

    def tune(self, graph: Graph, device: Device, tuning: Tuning) -> None:
        """Measure, on this machine, what `emit` then goes by.

        Raises InputError E235 if the database can't be used, UnsupportedError for what can't be emitted.
        """
        ...


BUILT_IN = {
    "onnx": "espalier.backends.onnx.emit:OnnxBackend",
    "tvm": "espalier.backends.tvm.emit:TvmBackend",
}


def backends() -> dict[str, str]:
    """Name → "module:class" of every backend, those of the entry-point group `espalier.backends` included."""
    found = dict(BUILT_IN)
    for entry in plugins.entries("espalier.backends"):
        if found.setdefault(entry.name, entry.value) != entry.value:
            raise InputError("E204", f"two backends are called {entry.name!r}: {found[entry.name]} and {entry.value}")
    return found


def backend(name: str) -> Backend:
    """The backend of that name. Raises InputError if there is none, or if what it needs is not installed."""
    known = backends()
    if name not in known:
        raise InputError("E202", f"no backend is called {name!r}", hint=f"There are {', '.join(sorted(known))}.")
    module, _, attribute = known[name].partition(":")
    try:
        made: Backend = getattr(importlib.import_module(module), attribute)()
    except Exception as error:
        if name not in BUILT_IN:  # the fault is in somebody else's package, whatever it is
            raise InputError("E208", f"the plug-in {name!r} ({known[name]}) cannot be loaded: {error}") from error
        if not isinstance(error, ImportError) or (error.name or "").startswith("espalier"):
            raise  # a fault of ours, not a missing package
        raise InputError(
            "E205", f"the backend {name} needs a package that is not installed: {error.name or error}",
            hint=f"pip install 'espalier[{name}]'",
        ) from error  # fmt: skip
    return made
