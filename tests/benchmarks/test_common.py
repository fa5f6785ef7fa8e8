from __future__ import annotations

import json

import pytest

from benchmarks.common import Benchmark, interleaved, machine
from benchmarks.report import page


def test_the_last_line_is_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = Benchmark("example")
    benchmark.parse(["--json", "--seed", "3"])
    benchmark.bar("speed", 2.0, "≥ 1.5", True)
    benchmark.bar("gpu", None, "≥ 1", None, "there is no GPU here")
    benchmark.finish()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[-1])
    assert result["bars"]["speed"] == {"value": 2.0, "bar": "≥ 1.5", "holds": True}
    assert result["bars"]["gpu"]["holds"] is None and result["bars"]["gpu"]["reason"] == "there is no GPU here"
    assert result["seed"] == 3 and result["machine"]["cores"] >= 1 and "numpy" in result["versions"]


def test_a_bar_that_does_not_hold_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = Benchmark("example")
    benchmark.parse([])
    benchmark.bar("speed", float("nan"), "≥ 1.5", False)
    with pytest.raises(SystemExit) as caught:
        benchmark.finish()
    assert caught.value.code == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("DOES NOT HOLD")
    assert json.loads(out[-1])["bars"]["speed"]["value"] is None


def test_an_unmeasured_bar_needs_a_reason() -> None:
    benchmark = Benchmark("example")
    with pytest.raises(ValueError, match="say why"):
        benchmark.bar("speed", None, "≥ 1", None)
    benchmark.bar("speed", 1, "≥ 1", True)
    with pytest.raises(ValueError, match="twice"):
        benchmark.bar("speed", 1, "≥ 1", True)


def test_contestants_take_turns() -> None:
    order: list[str] = []

    def run(name: str, value: float) -> float:
        order.append(name)
        return value

    medians = interleaved({"a": lambda: run("a", 1), "b": lambda: run("b", 2)}, 3)
    assert medians == {"a": 1, "b": 2} and order == ["a", "b"] * 3


def test_the_page_shows_what_does_not_hold() -> None:
    bars = {"speed": {"value": 1.23456, "bar": "≥ 2 | more", "holds": False}}
    result = {"benchmark": "example", "quick": False, "bars": bars, "machine": machine(), "versions": {"numpy": "2"}}
    text = page([{**result, "seed": 0, "seconds": 12.0}])
    assert "| speed | 1.235 | ≥ 2 \\| more | **no** |" in text
