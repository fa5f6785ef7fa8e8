"""Plug-ins: what installed packages register in the entry-point groups `espalier.*`."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
from importlib.metadata import EntryPoint

from espalier.errors import InputError


def entries(group: str, name: str | None = None) -> list[EntryPoint]:
    """The entry points of a group (of that name), as installed now; of several distributions in their order."""
    return [entry for entry in _groups(_places()).get(group, ()) if name is None or entry.name == name]


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


def _places() -> tuple[tuple[str, int], ...]:
    """Where packages are looked for, and when each place last got or lost one."""
    found = []
    for path in sys.path:
        try:
            found.append((path, os.stat(path or ".").st_mtime_ns))
        except OSError:
            found.append((path, 0))
    return tuple(found)


@functools.lru_cache(maxsize=1)  # every installed package is read for this: too much for each model
def _groups(places: tuple[tuple[str, int], ...]) -> dict[str, list[EntryPoint]]:
    """Group → entry points, of our groups."""
    found: dict[str, list[EntryPoint]] = {}
    every = importlib.metadata.entry_points()
    for group in every.groups:
        if group.startswith("espalier."):
            found[group] = list(every.select(group=group))
    return found
