"""Errors of the compiler: each has a code, a place in the user's model, advice, and an exit code.

    raise InputError("E104", "…", node=node.name, source=node.location, hint="…")

A code is declared once, in the module of its area here. `espalier explain CODE` prints the declaration.
The hundreds go by area: 1 model files, 2 usage, 3 the graph, 4 what isn't supported, 5 budgets, 6 verification,
7 artifacts (in `espalier.runtime.errors`), 8 interruptions, 9 faults of ours.
"""

from __future__ import annotations

from espalier.errors import model, refusals, usage  # what they declare is the catalogue
from espalier.errors.kinds import (
    BudgetError,
    InputError,
    InternalError,
    Interruption,
    UnsupportedError,
    VerificationError,
)
from espalier.runtime.errors import CATALOGUE, ArtifactError, EspalierError, Explanation, declare

__all__ = [
    "CATALOGUE",
    "ArtifactError",
    "BudgetError",
    "EspalierError",
    "Explanation",
    "InputError",
    "InternalError",
    "Interruption",
    "UnsupportedError",
    "VerificationError",
    "declare",
    "model",
    "refusals",
    "usage",
]
