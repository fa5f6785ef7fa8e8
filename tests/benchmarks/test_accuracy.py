"""Bar 3 of `prune`: which trainings are run, and what they are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.accuracy import (
    OWN_RECOVERIES,
    PEER_RECOVERIES,
    Results,
    above,
    best,
    difference,
    failed_rivals,
    jobs,
    packed,
    recovery,
    unpacked,
)


def test_the_best_of_both_sides_with_the_first_seed_go_on(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    first = (*OWN_RECOVERIES, *PEER_RECOVERIES)
    asked = [job for job in jobs(True, results) if job["kind"] == "3b"]
    assert [(job["method"], job["seed"]) for job in asked] == [(method, 0) for method in first]
    for method, accuracy in zip(first[:-1], (88.0, 90.0, 87.0, 80.0, 89.0, 85.0, 84.0, 83.0), strict=True):
        assert best(results, PEER_RECOVERIES) is None
        results.add({**recovery(method, 0), "accuracy": accuracy})
    results.add({**recovery(first[-1], 0), "reason": "it raised"})
    again = Results(tmp_path / "results.jsonl")
    chosen = [[*OWN_RECOVERIES][1], PEER_RECOVERIES[1]]
    assert [best(again, [*OWN_RECOVERIES]), best(again, PEER_RECOVERIES)] == chosen
    assert failed_rivals(again) == [f"{first[-1]}: it raised"]
    asked = [job for job in jobs(True, again) if job["kind"] == "3b" and job["seed"] == 2]
    assert [job["method"] for job in asked] == chosen


def test_differences_are_paired_and_kept_whole() -> None:
    draw = np.random.default_rng(0)
    better = [draw.random(1000) < 0.9 for _ in range(3)]
    worse = [bits & (draw.random(1000) < 0.9) for bits in better]
    found = difference(better, worse)
    assert above(found) and not above(difference(worse, better)) and not above(difference(better, better))
    assert abs(found["mean"] - 100 * np.mean([a.mean() - b.mean() for a, b in zip(better, worse, strict=True)])) < 1e-3
    assert np.array_equal(unpacked(packed(better[0]), 1000), better[0])
