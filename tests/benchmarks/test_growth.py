"""The parts of the growth benchmark that need neither data nor hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import growth_accuracy, growth_exact
from benchmarks.accuracy import Results, multiplications, packed
from benchmarks.common import Benchmark
from benchmarks.growth_accuracy import (
    BATCH,
    CONTROLS,
    EPOCHS,
    IMAGES,
    METHODS,
    Trial,
    budget,
    conclude,
    network,
    size,
    whole,
)
from espalier.ir.execute import execute


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.standard_normal((count, 3, 32, 32)).astype(np.float32), draw.integers(0, 10, count)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """As after no epoch."""
    return Trial(0, *images(BATCH), tmp_path_factory.mktemp("growth"), epochs=0)


def outputs(graph: Any) -> np.ndarray:
    (found,) = execute(graph, [images(4)[0]])
    return np.asarray(found)


@pytest.mark.parametrize("name", [*METHODS, *CONTROLS])
def test_all_methods_grow_to_one_architecture(trial: Trial, name: str) -> None:
    grown = whole({**METHODS, **CONTROLS}[name].grow(trial))
    wide = network(2, 0)
    assert multiplications(grown) == size(2)
    shapes = [sorted((v.name, v.shape) for v in graph.constants() if v.shape) for graph in (grown, wide)]
    assert shapes[0] == shapes[1]
    assert np.isfinite(outputs(grown)).all()


def test_what_they_start_from(trial: Trial) -> None:
    first, second = (outputs(member) for member in trial.members)
    single = outputs(trial.single())
    np.testing.assert_allclose(first, single, rtol=1e-4, atol=1e-4)  # the same first weights
    zeros = outputs(trial.mixture(0.0))
    np.testing.assert_allclose(zeros, (first + second) / 2, rtol=1e-4, atol=1e-4)
    assert np.abs(outputs(trial.mixture()) - zeros).max() > 1e-2
    assert np.abs(outputs(trial.random_blocks()) - zeros).max() > 1e-2
    wider = outputs(trial.net2wider())
    assert 0 < np.abs(wider - single).max() < 0.5 * np.abs(single).max()
    small = {value.name: value.array for value in trial.single().constants()}
    for value in trial.random_growth().constants():
        corner = value.array[tuple(slice(0, extent) for extent in small[value.name].shape)]
        assert (corner == small[value.name]).all()
        assert value.array.ndim < 4 or (value.array != 0).all()


def test_all_methods_train_for_the_same_flops(trial: Trial) -> None:
    full = Trial(0, np.zeros((IMAGES, 1)), np.zeros(IMAGES), trial.folder)
    wide = network(2, 0)
    for method in METHODS.values():
        steps = full.steps_left(wide, method.before)
        spent = 3 * BATCH * (method.before * full.steps(EPOCHS) * size(1) + steps * size(2))
        assert 0 <= spent - budget() <= 3 * BATCH * size(2)


def test_a_result_is_one_line_and_goes_on(trial: Trial, tmp_path: Path) -> None:
    record = growth_accuracy.measure(trial, "Net2Wider", *images(40))
    results = Results(tmp_path / "results.jsonl", growth_accuracy.KEY)
    results.add(record)
    again = Results(results.path, growth_accuracy.KEY)
    assert again.held == {"Net2Wider|0": record}
    assert again.each([{"method": "Net2Wider", "seed": 0}])[0].mean() == pytest.approx(record["accuracy"] / 100)
    assert again.each([{"method": "Net2Wider", "seed": seed} for seed in (0, 1)]) == []
    assert list(growth_accuracy.jobs(False))[:4] == [*((name, 0) for name in METHODS), ("mixture", 1)]


@pytest.mark.parametrize(("gain", "holds"), [(0.1, True), (-0.1, False)])
def test_bars_follow_the_records(tmp_path: Path, gain: float, holds: bool) -> None:
    results, draw = Results(tmp_path / "results.jsonl", growth_accuracy.KEY), np.random.default_rng(0)
    missing = Benchmark("grow")
    conclude(missing, results)
    assert {bar["holds"] for bar in missing.bars.values()} == {None}
    assert all("9 of 9 trainings" in bar["reason"] for bar in missing.bars.values())
    for name in METHODS:
        for seed in range(3):
            bits = draw.random(1000) < 0.7 + gain * (name == "mixture")
            results.add({"method": name, "seed": seed, "images": 1000, "right": packed(bits)})
    benchmark = Benchmark("grow")
    conclude(benchmark, results)
    assert set(benchmark.bars) == {"mixture_beats_net2wider", "mixture_beats_random_growth"}
    for bar in benchmark.bars.values():
        assert bar["holds"] is holds and "over_seeds" in bar["value"]
        assert bar["value"]["mean"] == pytest.approx(100 * gain, abs=4)


def test_a_model_is_exact_or_refused() -> None:
    record: dict[str, Any] = {"name": "special/gated_linear"}
    growth_exact.examine("special/gated_linear", record.update)
    cases = record["cases"]
    assert record["stage"] == "done" and record["precision"] == "f64"
    assert set(cases) == set(growth_exact.CASES) and all(growth_exact.holds(case) for case in cases.values())
    assert cases["twice as wide"]["off"] <= 1e-12 and cases["twice as wide"]["onnxruntime"] <= 1e-5
    assert cases["deeper"]["refused"].startswith("E402")


@pytest.mark.parametrize("activation", ["ReLU6", "SiLU"])
def test_layers_fit_their_activations(activation: str) -> None:
    record: dict[str, Any] = {}
    growth_exact.examine(f"activation/{activation}", record.update)
    assert record["cases"]["deeper"]["fits"] is True


def test_what_is_off_does_not_hold() -> None:
    assert not growth_exact.holds({"off": 2e-6})
    assert not growth_exact.holds({"off": 0.0, "onnxruntime": 1e-3})
    assert not growth_exact.holds({"off": 0.0, "fits": False})
    records = [
        {"name": "a", "stage": "done", "cases": {"deeper": {"off": 0.0}, "twice as wide": {"refused": "E221: so"}}},
        {"name": "b", "stage": "done", "left_out": "it draws random numbers"},
    ]
    benchmark = Benchmark("grow")
    growth_exact.conclude_exact(benchmark, records)
    (bar,) = benchmark.bars.values()
    assert bar["holds"] is True and bar["value"] == {"share": 1.0, "cases": 2, "refused": 1, "worst": 0.0}
    benchmark = Benchmark("grow")
    growth_exact.conclude_exact(benchmark, [*records, {"name": "c", "stage": "loaded", "reason": "it raised"}])
    (bar,) = benchmark.bars.values()
    assert bar["holds"] is False and "c" in bar["reason"]


def test_coefficients_are_orthogonal() -> None:
    benchmark = Benchmark("grow")
    growth_exact.measure_orthogonal(benchmark)
    bar = benchmark.bars["coefficients_orthogonal"]
    assert bar["holds"] is True and bar["value"] <= 1e-6
