"""Bar 3 of `prune`: which trainings are run, and what they are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.accuracy import (
    RECOVERIES,
    Results,
    above,
    best_rival,
    difference,
    failed_rivals,
    jobs,
    packed,
    recovery,
    unpacked,
)


def test_the_best_rival_of_the_first_seed_goes_on(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    asked = [job for job in jobs(True, results) if job["kind"] == "3b"]
    assert [(job["method"], job["seed"]) for job in asked] == [*((m, 0) for m in RECOVERIES), ("ours", 1), ("ours", 2)]
    for method, accuracy in zip(RECOVERIES[:-1], (90.0, 80.0, 89.0, 85.0), strict=True):
        assert best_rival(results) is None
        results.add({**recovery(method, 0), "accuracy": accuracy})
    results.add({**recovery(RECOVERIES[-1], 0), "reason": "it raised"})
    again = Results(tmp_path / "results.jsonl")
    assert best_rival(again) == RECOVERIES[2] and failed_rivals(again) == [f"{RECOVERIES[-1]}: it raised"]
    asked = [job for job in jobs(True, again) if job["kind"] == "3b" and job["seed"] == 2]
    assert [job["method"] for job in asked] == ["ours", RECOVERIES[2]]


def test_differences_are_paired_and_kept_whole() -> None:
    draw = np.random.default_rng(0)
    better = [draw.random(1000) < 0.9 for _ in range(3)]
    worse = [bits & (draw.random(1000) < 0.9) for bits in better]
    found = difference(better, worse)
    assert above(found) and not above(difference(worse, better)) and not above(difference(better, better))
    assert abs(found["mean"] - 100 * np.mean([a.mean() - b.mean() for a, b in zip(better, worse, strict=True)])) < 1e-3
    assert np.array_equal(unpacked(packed(better[0]), 1000), better[0])
