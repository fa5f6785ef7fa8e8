"""What was measured on devices, in one SQLite file that models share.

A question is what is to be chosen for one kernel; who asks it says what it depends on. The answers of a place, which is
a processor, a number of threads and a compiler, hold there only.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from espalier.errors import InputError

VARIABLE = "ESPALIER_CHOICES"
"""Environment variable: the file that is used unless another is named."""
FORMAT = 1
WAIT = 60.0
"""Seconds to wait for another process that is writing."""
SCHEMA = """
CREATE TABLE choices (
    device TEXT NOT NULL, threads INTEGER NOT NULL, compiler TEXT NOT NULL, question TEXT NOT NULL,
    kind TEXT NOT NULL, facts TEXT NOT NULL, choice TEXT NOT NULL, seconds TEXT NOT NULL,
    PRIMARY KEY (device, threads, compiler, question)
) WITHOUT ROWID
"""
Choice: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True)
class Place:
    """Where answers hold."""

    device: str
    """The processor and its instruction sets."""
    threads: int
    compiler: str
    """Everything else that decides what code a candidate becomes."""


@dataclass(frozen=True)
class Answer:
    """What was chosen for a question, and the candidates' times in seconds, as far as they were measured."""

    question: str
    kind: str
    facts: Mapping[str, Any]
    choice: Choice
    seconds: Sequence[tuple[Choice, float]]


def default_path() -> Path:
    """The file in the user's cache, or the one that ESPALIER_CHOICES names."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(VARIABLE) or cache / "espalier" / "choices.sqlite")


class Database:
    """The file. Several processes may use it at once; each answer is written whole, when it is known."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the file; make it, and its folder, if it is not there and may be created.

        Raises InputError E235 if it can't be used.
        """
        self.path = path
        try:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            mode = "rwc" if create else "ro"
            name = f"{path.absolute().as_uri()}?mode={mode}"
            self._connection = sqlite3.connect(name, timeout=WAIT, isolation_level=None, uri=True)
        except (sqlite3.Error, OSError) as error:
            raise self._refused(error) from error
        try:
            self._prepare(create)
        except sqlite3.Error as error:
            self._connection.close()
            raise self._refused(error) from error

    def _prepare(self, create: bool) -> None:
        run = self._connection.execute
        run("BEGIN IMMEDIATE" if create else "BEGIN")  # nobody sees a file that is half prepared
        version = run("PRAGMA user_version").fetchone()[0]
        tables = run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version not in (0, FORMAT) or (version == 0 and tables):
            raise sqlite3.DatabaseError("it is a database of something else, or of another version of espalier")
        if version == 0 and create:
            run(SCHEMA)
            run(f"PRAGMA user_version = {FORMAT}")
        run("COMMIT")

    def choices(self, place: Place) -> dict[str, Choice]:
        """What is known of a place: question → choice. Raises InputError E235."""
        try:
            rows = self._connection.execute(
                "SELECT question, choice FROM choices WHERE device = ? AND threads = ? AND compiler = ?",
                (place.device, place.threads, place.compiler),
            ).fetchall()
            return {question: tuple(json.loads(choice)) for question, choice in rows}
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._refused(error) from error

    def keep(self, place: Place, answer: Answer) -> None:
        """Write an answer, in place of an earlier one. Raises InputError E235."""
        texts = (json.dumps(each, default=str) for each in (answer.facts, answer.choice, answer.seconds))
        row = (place.device, place.threads, place.compiler, answer.question, answer.kind, *texts)
        try:
            self._connection.execute("INSERT OR REPLACE INTO choices VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _refused(self, error: Exception) -> InputError:
        return InputError(
            "E235", f"the measured choices in {self.path} cannot be used: {error}",
            hint="Remove the file, which loses what was measured, or name another one with --choices.",
        )  # fmt: skip
