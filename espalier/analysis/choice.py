"""Which units patterns of names mean."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

from espalier.analysis.coupling import Coupling, Unit
from espalier.errors import InputError


def patterns_of(text: str) -> list[str]:
    """The patterns of units' names in a text, where `;` separates them."""
    return [pattern.strip() for pattern in text.split(";") if pattern.strip()]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern, or a full name (which may have brackets), means a unit of this name."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def chosen_units(
    coupling: Coupling, only: Sequence[str] = (), ignore: Sequence[str] = (), gone: Collection[str] = ()
) -> list[Unit]:
    """The units that patterns mean; all that are not frozen if there are none.

    Args:
        gone: names of units that there were, which patterns may mean.

    Raises:
        InputError: E202 for a pattern that no unit has, E221 for a frozen unit that is asked for by its full name.
    """
    for pattern in (*only, *ignore):
        if not any(matches(name, pattern) for name in (*(unit.name for unit in coupling.units), *gone)):
            raise InputError("E202", f"no unit is called {pattern!r}", hint="`espalier inspect --units` lists them.")
    found = []
    for unit in coupling.units:
        if any(matches(unit.name, pattern) for pattern in ignore):
            continue
        if unit.verdict == "frozen":
            if unit.name in only:
                raise InputError("E221", f"{unit.name} is frozen: {unit.why()}")
        elif not only or any(matches(unit.name, pattern) for pattern in only):
            found.append(unit)
    return found
