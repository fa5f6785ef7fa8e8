"""The code blocks of the documents. One whose first line is a comment with a path is that file; others are run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^# ([\w./-]+\.\w+)\n")


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a page."""
    return FENCE.findall((ROOT / page).read_text(encoding="utf-8"))


def files(page: str) -> dict[str, str]:
    """The files that a page shows, by their paths."""
    return {found[1]: text for _, text in blocks(page) if (found := FILE.match(text))}


def lay_out(shown: dict[str, str], folder: Path) -> None:
    """Write files, and the metadata that installing their pyproject.toml would leave beside them."""
    for name, text in shown.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if "pyproject.toml" in shown:
        project = tomllib.loads(shown["pyproject.toml"])["project"]
        install(folder, project["name"], project["entry-points"])


def install(folder: Path, name: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Make a folder, once it is on the import path, look like a place where a distribution is installed."""
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
