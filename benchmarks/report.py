"""Write docs/benchmarks.md from benchmarks/results/*.json.

    python -m benchmarks.report [--check]

`--check` writes nothing, and exits with 1 if the page is out of date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `python -m benchmarks.report` from the files in `benchmarks/results/`, which the benchmarks themselves save:
`python -m benchmarks.NAME --save`. A bar that does not hold is shown as such.
"""


def page(results: list[dict[str, Any]]) -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for result in results:
        machine, versions = result["machine"], result["versions"]
        kind = "quick run" if result["quick"] else "full run"
        parts.append(f"## {result['benchmark']}\n")
        parts.append(
            f"{kind}, {result['seconds']:.0f} s, seed {result['seed']}, on {machine['cores']} cores of "
            f"{machine['processor']}, {machine['memory_gib']} GiB, Python {machine['python']}\n"
        )
        parts.append("| bar | measured | required | holds |\n|---|---|---|---|")
        for name, entry in sorted(result["bars"].items()):
            holds = {True: "yes", False: "**no**", None: "not measured"}[entry["holds"]]
            reason = f": {entry['reason']}" if entry.get("reason") else ""
            cells = (name, entry["value"], entry["bar"], f"{holds}{reason}")
            parts.append(_row(cells))
        for title, table in sorted(result.get("details", {}).get("tables", {}).items()):
            parts.append(f"\n### {title}\n\n{_row(table['columns'])}\n|{'---|' * len(table['columns'])}")
            parts.extend(map(_row, table["rows"]))
        if "instruction_sets" in machine:
            parts.append(f"\nInstruction sets: {', '.join(machine['instruction_sets'])}.")
        parts.append("\n" + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + "\n")
    return "\n".join(parts)


def _row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = page([json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))])
    if arguments.check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/benchmarks.md is out of date: run `python -m benchmarks.report`")
        return
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
