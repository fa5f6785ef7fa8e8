from __future__ import annotations

import ast
import importlib
import pickle
from pathlib import Path

import pytest

import espalier
import espalier.errors as errors
from espalier.errors import CATALOGUE, EspalierError, InputError, VerificationError, declare

PACKAGE = Path(espalier.__file__).parent


def codes_raised() -> list[tuple[str, int, str, str]]:
    """(file, line, class name, code) of every call `SomethingError("E123", …)` in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            code = node.args[0].value
            if name.endswith("Error") and isinstance(code, str) and code[:1] == "E" and code[1:].isdigit():
                found.append((str(path.relative_to(PACKAGE)), node.lineno, name, code))
    return found


def test_every_code_that_is_raised_is_declared_for_its_class() -> None:
    calls = codes_raised()
    assert len(calls) > 10
    wrong = []
    for file, line, name, code in calls:
        kind = getattr(errors, name, None)
        if code not in CATALOGUE:
            wrong.append(f"{file}:{line}: {code} is not declared")
        elif kind is not None and kind is not CATALOGUE[code].kind:
            wrong.append(f"{file}:{line}: {code} is declared for {CATALOGUE[code].kind.__name__}, not {name}")
    assert not wrong, "\n".join(wrong)


def test_catalogue_entries_are_complete() -> None:
    for code, entry in CATALOGUE.items():
        assert entry.code == code
        assert entry.kind.exit_code in (1, 2, 3, 4, 130)
        assert entry.title and entry.title[0] == entry.title[0].lower() and not entry.title.endswith(".")
        assert entry.meaning.endswith((".", "follows.")) and entry.advice.endswith(".")


def test_a_code_cannot_be_declared_twice() -> None:
    with pytest.raises(ValueError, match="E101"):
        declare(InputError, "E101", "again", "Twice.", "Once.")


@pytest.mark.parametrize("places", [{}, {"node": "conv1", "source": "model.py:3", "hint": "copy it"}])
def test_errors_survive_a_process_boundary(places: dict[str, str]) -> None:
    error = VerificationError("E602", "the outputs differ", **places)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is VerificationError
    assert again.to_json() == error.to_json()
    assert str(again) == str(error)


def test_message_shows_place_and_hint() -> None:
    text = str(InputError("E104", "w is missing", node="conv1", source="model.py:3", hint="copy it"))
    assert text.splitlines() == ["E104: w is missing", "  at conv1", "  from model.py:3", "  hint: copy it"]


def test_artifact_errors_are_part_of_the_family() -> None:
    runtime = importlib.import_module("espalier.runtime.errors")
    assert runtime.ArtifactError is errors.ArtifactError
    assert issubclass(runtime.ArtifactError, EspalierError)
