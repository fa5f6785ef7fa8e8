"""Plug-ins: what installed packages register in the entry-point groups `espalier.*`."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import sys
import traceback
from importlib.metadata import EntryPoint
from typing import Any

from espalier.errors import InputError


def entries(group: str, name: str | None = None) -> list[EntryPoint]:
    """The entry points of a group (of that name), as installed now; of several distributions in their order."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for place, when in _places():
        for distribution, its in _installed(place, when):
            found.setdefault(distribution, its)  # of two versions, the one that an import would find
    every = (entry for its in found.values() for entry in its if entry.group == group)
    return [entry for entry in every if name is None or entry.name == name]


def load_all(group: str) -> None:
    """Import what the entry points of a group name; what they register by that is theirs to know.

    Raises InputError E208 for one that can't be imported, and lets through the InputError that one raises itself.
    """
    for entry in entries(group):
        try:
            entry.load()
        except InputError:
            raise
        except Exception as error:  # the fault is in somebody else's package, whatever it is
            raise InputError("E208", f"the plug-in {entry.name!r} ({entry.value}) cannot be loaded: {error}") from error


def failure(what: str, module: str, error: Exception, node: Any = None) -> InputError | None:
    """The error E215 for an exception in somebody else's code, naming its line; None if the module is one of ours.

    Args:
        what: What failed, such as "the rule lower_gate".
        module: Full name of the module that holds it.
        node: The node at which it failed.
    """
    if module.partition(".")[0] == "espalier":
        return None
    frames = traceback.extract_tb(error.__traceback__)
    root = os.path.dirname(getattr(sys.modules.get(module), "__file__", None) or "")
    frame = next((f for f in reversed(frames) if root and f.filename.startswith(root)), frames[-1] if frames else None)
    where = f" (line {frame.lineno} of {frame.filename}: {frame.line})" if frame else ""
    message = f"{what} of the plug-in {module} failed: {type(error).__name__}: {error}{where}"
    hint = "Leave it out with --passes, or repair the package."
    return InputError("E215", message, node=node, source=getattr(node, "location", None), hint=hint)


def _places() -> tuple[tuple[str, int], ...]:
    """Where packages are looked for, and when each place last got or lost one."""
    found = []
    for path in sys.path:
        try:
            found.append((path, os.stat(path or ".").st_mtime_ns))
        except OSError:
            found.append((path, 0))
    return tuple(found)


@functools.lru_cache(maxsize=256)  # every installed package is read for this: too much for each model
def _installed(place: str, when: int) -> tuple[tuple[str, tuple[EntryPoint, ...]], ...]:
    """The distributions in one place that have entry points of ours, by name; `when` it last changed."""
    found = []
    for distribution in importlib.metadata.distributions(path=[place]):
        ours = tuple(entry for entry in distribution.entry_points if entry.group.startswith("espalier."))
        if ours:
            found.append((_normal(distribution.name), ours))
    return tuple(found)


def _normal(name: str) -> str:
    """A distribution's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
