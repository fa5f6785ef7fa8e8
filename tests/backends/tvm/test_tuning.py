"""Choices by measurement: questions name what matters, every candidate is right, and the fastest is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.backends.tvm import build, choices, machine, products, tuning
from espalier.backends.tvm.choices import Choice, Choices
from espalier.cost.measured import Database
from espalier.ir import Builder, Graph, TensorType, elements
from espalier.ir.dims import symbol
from espalier.ir.execute import execute
from espalier.ir.graph import constant_value

TARGET = build.host_target(1)
pytestmark = pytest.mark.skipif(
    machine.of(build.instruction_sets(TARGET)).registers < 12, reason="the templates want a vector unit"
)


def graph_of(*, seed: int = 0, stride: int = 1, batch: Any = 1, name: str = "x") -> Graph:
    """A convolution with a bias and a ReLU, and a product of its pooled result."""
    draw = np.random.default_rng(seed)
    graph = Graph()
    builder = Builder(graph)
    x = builder.input(TensorType(elements.F32, (batch, 16, 16, 16)), name)
    w = constant_value(draw.normal(size=(32, 16, 3, 3)).astype(np.float32))
    bias = constant_value(draw.normal(size=32).astype(np.float32))
    y = builder.relu(builder.conv(x, w, bias, strides=[stride, stride], pads=[1, 1, 1, 1]))
    rows = builder.reshape(y, constant_value(np.array([-1 if batch != 1 else 32, 16 * 16 // stride**2])))
    matrix = constant_value(draw.normal(size=(16 * 16 // stride**2, 48)).astype(np.float32))
    graph.set_outputs([builder.matmul(rows, matrix)], ["y"])
    return graph


def asked(graph: Graph, known: dict[str, Choice] | None = None) -> Choices:
    found = Choices(known or {})
    with choices.using(found):
        build.written(graph, TARGET)
    return found


def kinds(found: Choices) -> list[str]:
    return sorted(question.kind for question in found.asked.values())


def test_the_rule_takes_the_first_of_what_it_ranks() -> None:
    with machine.made_for(machine.Machine(16, 28)):
        for rows, columns in ((49, 64), (3136, 64), (7, 512), (1, 16), (197, 192), (0, 64)):
            ranked = products.tiles(rows, columns, 16)
            assert products.tile(rows, columns, 16) == ranked[0]
            assert len(set(ranked)) == len(ranked)
            assert all(height * blocks <= 28 for height, blocks in ranked)


def test_questions_are_about_what_matters() -> None:
    first = asked(graph_of())
    assert kinds(first) in (["convolution", "tile"], ["convolution", "tile", "tile"])
    assert set(asked(graph_of(seed=1, name="other")).asked) == set(first.asked)
    strided = asked(graph_of(stride=2))
    assert kinds(strided) == ["tile", "tile"]
    assert not set(strided.asked) & set(first.asked)
    assert asked(graph_of(batch=symbol("N"))).asked == {}
    assert first.taken == {}


def test_without_choices_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices.Question, "__init__", lambda *_, **__: pytest.fail("a question was asked"))
    build.written(graph_of(), TARGET)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_candidate_is_right(stride: int) -> None:
    graph = graph_of(stride=stride)
    x = np.random.default_rng(3).normal(size=(1, 16, 16, 16)).astype(np.float32)
    (wanted,) = execute(graph, [x])
    seen = 0
    for key, question in asked(graph).asked.items():
        for candidate in question.candidates:
            found = Choices({key: candidate})
            with choices.using(found):
                compiled = build.build(graph, threads=1)
            assert found.taken == ({} if candidate == question.candidates[0] else {key: candidate})
            (result,) = compiled([x])
            np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
            seen += 1
    assert seen >= 8


def test_answers_that_are_no_candidates_are_ignored() -> None:
    graph = graph_of(stride=2)
    known: dict[str, Choice] = dict.fromkeys(asked(graph).asked, (1000, 1000, 0))
    assert asked(graph, known).taken == {}


def test_tuning_keeps_what_it_measures(tmp_path: Path) -> None:
    database, graph = Database(tmp_path / "choices.sqlite"), graph_of()
    found = tuning.tune(graph, TARGET, 1, database, 300, lambda: False)
    assert found.measured == len(found.answers) >= 2 and not found.interrupted
    kept = database.choices(tuning.place(TARGET, 1))
    assert kept == found.answers
    again = tuning.tune(graph, TARGET, 1, database, 300, lambda: False)
    assert again.measured == 0 and again.answers == kept
    assert set(asked(graph, kept).asked) <= set(kept)
    assert database.choices(tuning.place(TARGET, 2)) == {}


def test_without_time_nothing_is_measured(tmp_path: Path) -> None:
    database = Database(tmp_path / "choices.sqlite")
    found = tuning.tune(graph_of(), TARGET, 1, database, 0, lambda: False)
    assert (found.measured, found.answers, found.interrupted) == (0, {}, False)
    found = tuning.tune(graph_of(), TARGET, 1, database, 1e-6, lambda: False)
    assert (found.measured, found.answers, found.interrupted) == (0, {}, False)


def test_an_interruption_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, real, done = Database(tmp_path / "choices.sqlite"), tuning.measure, list[str]()

    def measure(question: choices.Question, *rest: Any) -> Any:
        found = real(question, *rest)
        done.append(question.key)
        return found

    monkeypatch.setattr(tuning, "measure", measure)
    found = tuning.tune(graph_of(stride=2), TARGET, 1, database, 300, lambda: len(done) == 1)
    assert found.interrupted and found.measured == 1
    assert list(database.choices(tuning.place(TARGET, 1))) == done


@pytest.mark.parametrize(
    ("first", "again", "chosen"),
    [
        ([1.0, 0.8, 0.5], [1.0, 0.5], 2),  # clearly faster, twice
        ([1.0, 0.99, 0.98], None, 0),  # not clearly
        ([1.0, 0.5, 0.8], [1.0, 1.0], 0),  # by chance
        ([1.0, 1.5, 1.2], None, 0),
    ],
)
def test_another_candidate_must_be_clearly_faster(
    first: list[float], again: list[float] | None, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([first, again])

    def in_turns(calls: Sequence[Callable[[], Any]], *_: Any) -> Any:
        row = next(given)
        assert row is not None and len(row) == len(calls)
        return np.array([row] * 5)

    monkeypatch.setattr(tuning, "_in_turns", in_turns)
    monkeypatch.setattr(tuning, "_compiled", lambda *_: lambda: None)
    question = choices.Question("tile", {}, ((4, 1, 0), (8, 1, 0), (4, 1, 1)), lambda: pytest.fail("not written"), 1e9)
    answer = tuning.measure(question, TARGET, 1, {}, lambda: False)
    assert answer is not None and answer.choice == question.candidates[chosen]
    assert [candidate for candidate, _ in answer.seconds] == list(question.candidates)
