"""Figures of models: against labels, and against the original without them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from espalier.errors import InputError
from espalier.ir import Value
from espalier.ir.types import parse
from espalier.train.data import Data
from espalier.train.evaluate import METRICS, Metric, compare, evaluate

X = np.random.default_rng(0).standard_normal((60, 5)).astype("f4")
LABELS = np.random.default_rng(1).integers(0, 5, 60)
INPUT = (Value(parse("f32[n, 5]"), "x"),)
BATCHES = Data([(X[k : k + 25], LABELS[k : k + 25]) for k in (0, 25, 50)], INPUT)
PLAIN = Data({"x": X}, INPUT)


def same(inputs: Any) -> Any:
    return [inputs[0]]


def noisy(inputs: Any) -> Any:
    return [inputs[0] + np.float32(0.1) * np.sign(inputs[0])]


def test_f1_is_the_mean_over_classes() -> None:
    found = evaluate(same, BATCHES, "f1")
    assert found.value == pytest.approx(f1_score(LABELS, X.argmax(1), average="macro")) and found.samples == 60
    few = Data([(X, np.full(60, 3))], INPUT)
    assert evaluate(same, few, "f1").value == pytest.approx(f1_score(np.full(60, 3), X.argmax(1), average="macro"))


def test_top_1_and_one_hot_labels() -> None:
    wanted = float(np.mean(X.argmax(1) == LABELS))
    assert evaluate(same, BATCHES).value == pytest.approx(wanted)
    one_hot = Data([(X, np.eye(5)[LABELS])], INPUT)
    assert evaluate(same, one_hot, "top-1").value == pytest.approx(wanted)


def test_errors_of_numbers() -> None:
    numbers = Data([(X, X[:, 0] + 2)], INPUT)
    found = evaluate(lambda inputs: [inputs[0][:, :1]], numbers, "rmse")
    assert found.value == pytest.approx(2, rel=1e-6) and found.unit == "error"
    score = compare(lambda i: [i[0][:, :1]], lambda i: [i[0][:, :1] - 1], numbers, "rmse")
    assert score.drop == pytest.approx(50, rel=1e-5)
    with pytest.raises(InputError, match="labels of shape"):
        evaluate(same, numbers, "rmse")


def test_against_the_original_without_labels() -> None:
    found = evaluate(noisy, PLAIN, "sqnr", same)
    assert found.value == pytest.approx(10 * math.log10((X**2).sum() / (0.01 * X.size)), rel=1e-5)
    assert evaluate(same, PLAIN, "sqnr", same).value == math.inf
    assert evaluate(noisy, PLAIN, "agreement", same).value == 1.0
    assert evaluate(lambda i: [-i[0]], PLAIN, original=same).value == 0.0


def test_a_users_own_figure() -> None:
    def hits(outputs: Any, labels: Any) -> float:
        return float(np.mean(outputs[0].argmax(1) == labels))

    found = evaluate(same, BATCHES, hits)
    assert (found.metric, found.value) == ("hits", pytest.approx(evaluate(same, BATCHES).value))
    assert compare(same, lambda i: [-i[0]], BATCHES, hits).original == pytest.approx(found.value)
    assert evaluate(same, PLAIN, lambda outputs, labels: 7.0 if labels is None else 0.0).value == 7.0

    class Largest(Metric):
        name, unit = "largest", "error"

        def __init__(self) -> None:
            self.value = 0.0

        def update(self, outputs: Any, wanted: Any) -> None:
            self.value = max(self.value, float(outputs[0].max()))

        def result(self) -> float:
            return self.value

    assert compare(same, lambda i: [2 * i[0]], BATCHES, Largest()).drop == pytest.approx(100)


def test_what_cannot_be_measured_is_refused() -> None:
    for measure, code in (("accuracy", "E202"), ("f1", "E206"), ("sqnr", "E212")):
        with pytest.raises(InputError) as caught:
            evaluate(same, PLAIN, measure)
        assert caught.value.code == code
    with pytest.raises(InputError) as caught:
        compare(same, same, PLAIN, "sqnr")
    assert caught.value.code == "E201"
    assert set(METRICS) == {"top-1", "f1", "rmse", "agreement", "sqnr"}


def test_scores_are_json() -> None:
    for measure in ("top-1", "f1"):
        json.dumps(compare(same, noisy, BATCHES, measure).__dict__, allow_nan=False)
