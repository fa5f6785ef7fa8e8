"""The database of measured choices: shared, whole, and clear about what it cannot read."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from espalier.cost.measured import Answer, Database, Place, default_path
from espalier.errors import InputError

HERE = Place("a processor", 1, "a compiler")


def answer(question: str, choice: tuple[int | str, ...] = (7, 4)) -> Answer:
    return Answer(question, "tile", {"result": [1, 2]}, choice, [((7, 4), 1e-3), (choice, 9e-4)])


def refused(path: Path, *, create: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        Database(path, create=create)
    assert caught.value.code == "E235" and str(path) in caught.value.message
    return caught.value.message


def test_what_is_kept_is_known_in_its_place_only(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "choices.sqlite"
    first = Database(path)
    assert first.choices(HERE) == {}
    first.keep(HERE, answer("a"))
    first.keep(HERE, answer("b", ("transformed", 4, 25)))
    first.keep(HERE, answer("a", (14, 2)))
    again = Database(path, create=False)
    assert again.choices(HERE) == {"a": (14, 2), "b": ("transformed", 4, 25)}
    for other in (
        Place("another", 1, "a compiler"), Place("a processor", 2, "a compiler"), Place("a processor", 1, "another")
    ):  # fmt: skip
        assert again.choices(other) == {}


def fill(path: Path, name: str) -> None:
    database = Database(path)
    for k in range(40):
        database.keep(HERE, answer(f"{name}{k}"))


def test_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "choices.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=fill, args=(path, name)) for name in "xyz"]
    for each in writers:
        each.start()
    for each in writers:
        each.join(120)
        assert each.exitcode == 0
    assert len(Database(path).choices(HERE)) == 120


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "choices.sqlite"
    path.write_bytes(b"something that took a day to make " * 100)
    refused(path)
    assert path.read_bytes().startswith(b"something")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    assert "something else" in refused(other)
    later = tmp_path / "later.sqlite"
    with sqlite3.connect(later) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "another version" in refused(later)
    refused(tmp_path / "nothing.sqlite", create=False)
    assert not (tmp_path / "nothing.sqlite").exists()
    refused(path / "below" / "choices.sqlite")


def test_a_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "choices.sqlite"
    database = Database(path)
    for k in range(200):
        database.keep(HERE, answer(f"question {k}"))
    database.close()
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Database(path).choices(HERE)
    assert caught.value.code == "E235"


def test_an_unreadable_choice_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "choices.sqlite"
    Database(path).keep(HERE, answer("a"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE choices SET choice = '[1, '")
    with pytest.raises(InputError) as caught:
        Database(path).choices(HERE)
    assert caught.value.code == "E235"


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ESPALIER_CHOICES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "espalier" / "choices.sqlite"
    monkeypatch.setenv("ESPALIER_CHOICES", "elsewhere.sqlite")
    assert default_path() == Path("elsewhere.sqlite")
