"""What passes say of the units that they change, and of those that they leave alone: as JSON, and as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espalier.analysis.coupling import Coupling, Unit
from espalier.cost.count import macs
from espalier.ir import Graph
from espalier.ir.dims import Dimension

Row = dict[str, Any]
SHOWN = 3
"""Units that are named for one reason; the rest is counted."""


def total_macs(graph: Graph) -> int | str:
    """Multiply–accumulates of all nodes where they are known: a number, or a polynomial in the extents that vary."""
    total: Dimension = 0
    for node in graph:
        count = macs(node)
        total = total if count is None else total + count
    return as_json(total)


def as_json(dimension: Dimension) -> int | str:
    """An extent as JSON has it."""
    return dimension if isinstance(dimension, int) else str(dimension)


def unit_row(unit: Unit, key: str, extent: int) -> Row:
    """A unit that gets another extent, which stands under this key."""
    return {
        "unit": unit.name,
        "extent": unit.extent,
        key: extent,
        "verdict": unit.verdict,
        "weights": [str(member) for member in unit.weights],
    }


def frozen_rows(coupling: Coupling) -> list[Row]:
    """The units that must stay, and why."""
    return [
        {"unit": unit.name, "extent": as_json(unit.variable.extent), "why": unit.why()}
        for unit in coupling.units
        if unit.verdict == "frozen"
    ]


def reason_lines(kind: str, rows: Sequence[Mapping[str, Any]], key: str = "unit") -> list[str]:
    """Rows of a unit (or what else stands under the key) and a reason as a line for each reason, without the places."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row["why"].partition(" (at ")[0], []).append(row[key])
    return [
        f"{kind} {', '.join(names[:SHOWN])}"
        + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        + f": {why}"
        for why, names in reasons.items()
    ]
