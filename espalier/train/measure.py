"""How far a model's outputs moved: on the first samples of the data, against the model before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.ir import Graph
from espalier.ir.execute import run
from espalier.train.data import Data
from espalier.train.evaluate import Runner, SignalToNoise, compare, in_batches

SAMPLES = 128
"""Samples that are looked at: enough to see what a pass did; the accuracy gate uses all."""


def measure(before: Graph, after: Graph, data: Data | None, samples: int = SAMPLES) -> dict[str, Any] | None:
    """The decisions of both models and the ratio of signal to what changed, in decibels (infinite: nothing did).

    Returns None without data, and for a model without float outputs no ratio.
    """
    if data is None:
        return None
    limited = Data(first_samples(data, samples), data.inputs)
    wanted, found = _Recorder(before), _Recorder(after)
    score = compare(wanted, found, limited)
    ratio = SignalToNoise()
    ratio.update(found.outputs, wanted.outputs)
    return {
        "metric": score.metric,
        "before": score.original,
        "after": score.compiled,
        "sqnr": ratio.result() if ratio.signal else None,
        "samples": sum(len(inputs[0]) if inputs and inputs[0].ndim else 1 for inputs, _ in limited.source),
    }


def in_words(measured: dict[str, Any] | None) -> str:
    """The same for people."""
    if measured is None:
        return "not measured, for want of data"
    ratio = "" if measured["sqnr"] is None else f", {measured['sqnr']:.1f} dB"
    return (
        f"{measured['metric']} {measured['before']:.4f} → {measured['after']:.4f}{ratio} "
        f"on {measured['samples']} samples"
    )


class _Recorder:
    """A graph as a runner that keeps what it returned."""

    def __init__(self, graph: Graph) -> None:
        def call(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
            with np.errstate(all="ignore"):
                return run(graph, list(inputs))

        self.run: Runner = in_batches(call, [value.shape for value in graph.inputs])
        self.outputs: list[NDArray[Any]] = []

    def __call__(self, inputs: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        outputs = self.run(inputs)
        self.outputs += [np.asarray(output) for output in outputs]
        return outputs


def first_samples(data: Data, samples: int) -> list[tuple[tuple[NDArray[Any], ...], NDArray[Any] | None]]:
    """The first samples; whole batches of what counts no samples by one axis."""
    fixed = {value.shape[0] for value in data.inputs if value.shape}
    step = next(iter(fixed)) if len(fixed) == 1 and isinstance(next(iter(fixed)), int) else 1
    found: list[tuple[tuple[NDArray[Any], ...], NDArray[Any] | None]] = []
    for batch in data:
        limit = max(1, samples // max(1, step)) * max(1, step)
        if all(array.ndim and len(array) == len(batch) for array in batch.inputs):
            cut = tuple(array[:limit] for array in batch.inputs)
            found.append((cut, None if batch.labels is None else batch.labels[:limit]))
        else:
            found.append((batch.inputs, batch.labels))
        samples -= len(batch)
        if samples <= 0:
            break
    return found
