"""The units of a graph as a table, for people and for programs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from espalier.analysis.coupling import Coupling, couple
from espalier.ir import Graph

SHOWN = 4
"""How many weight axes of a unit stand in a line."""


def units_table(graph: Graph) -> tuple[dict[str, Any], list[str]]:
    """Every unit with its extent, verdict, reason and members, and the same as lines to print."""
    return _table(couple(graph))


def _table(coupling: Coupling) -> tuple[dict[str, Any], list[str]]:
    rows: list[dict[str, Any]] = [
        {
            "name": unit.name,
            "extent": extent if isinstance(extent := unit.variable.extent, int) else str(extent),
            "verdict": unit.verdict,
            "why": unit.why(),
            "weights": [str(member) for member in unit.weights],
            "activations": [str(member) for member in unit.activations],
        }
        for unit in coupling.units
    ]
    counts = Counter(row["verdict"] for row in rows)
    total = {verdict: counts[verdict] for verdict in ("exact", "approximate", "frozen")}
    width = min(max((len(row["name"]) for row in rows), default=4), 48)
    lines = [f"{'unit':{width}}  extent  {'verdict':11}  weights; why"] if rows else []
    for row in rows:
        members = row["weights"]
        short = ", ".join(members[:SHOWN]) + (f" and {len(members) - SHOWN} more" if len(members) > SHOWN else "")
        lines.append(f"{row['name']:{width}}  {row['extent']!s:>6}  {row['verdict']:11}  {short}; {row['why']}")
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in total.items()))
    return {"units": rows, "counts": total}, lines
