"""The usual sequences of passes, by name."""

from __future__ import annotations

import tomllib
from pathlib import Path

from espalier.errors import InputError
from espalier.passes.base import Pass, parse_spec

CLEANING = ("dead_code", "inline_regions", "fold_constants", "shapes_of_inputs", "dead_code")
"""What is done before a model is trained: shape arithmetic that is known goes, norms stay."""
SEPARATING = (*CLEANING, "shapes_of_inputs:expressions=true", "dead_code", "separate_fills")
"""What is done before units are named and changed."""
PIPELINES: dict[str, tuple[str, ...]] = {
    "none": (),
    "exact": (
        "dead_code",
        "inline_regions",
        "fold_constants",
        "simplify",
        "fold_constants",
        "fold_norms",
        "recognize",
        "common_subexpressions",
        "simplify",
        "fold_constants",
        "common_subexpressions",
        "dead_code",
    ),
}
"""Name → pass specifications, in order."""


def pipeline(name: str) -> list[Pass]:
    """The passes of a named pipeline, or of a TOML file with `passes = ["spec", …]`. Raises InputError."""
    if name in PIPELINES:
        return [parse_spec(spec) for spec in PIPELINES[name]]
    path = Path(name)
    if path.suffix != ".toml":
        hint = f"There are {', '.join(PIPELINES)}, or a .toml file."
        raise InputError("E202", f"no pipeline is called {name!r}", hint=hint)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("E201", f"the pipeline file {name!r} cannot be read: {error}") from None
    specs = content.get("passes")
    if set(content) != {"passes"} or not isinstance(specs, list) or not all(isinstance(spec, str) for spec in specs):
        raise InputError("E201", f"{name!r} must hold exactly one list of texts called passes")
    return [parse_spec(spec) for spec in specs]
