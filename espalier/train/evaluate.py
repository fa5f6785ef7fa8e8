"""Evaluation: top-1 against labels, or agreement with the original without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError
from espalier.train.data import Data

Runner: TypeAlias = Callable[[Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]
"""Arrays in input order in, arrays in output order out."""


@dataclass(frozen=True)
class Score:
    """Two models on the same samples. Figures are shares between 0 and 1."""

    metric: str
    """"top-1" with labels; "agreement" (same largest logit as the original) without."""
    original: float
    compiled: float
    samples: int

    @property
    def drop(self) -> float:
        """How much was lost, in points (percent of the samples)."""
        return 100 * (self.original - self.compiled)


def in_batches(call: Runner, shapes: Sequence[Sequence[Any] | None]) -> Runner:
    """Feed a model of fixed batch in pieces of that batch, and put the outputs together.

    Args:
        call: The model.
        shapes: Those of its inputs; their first extent counts samples. Inputs without axes go to each call.

    Raises:
        InputError: E206 (when called), if the samples don't fill the last batch, or an output has no axis of samples.
    """
    sampled = [position for position, shape in enumerate(shapes) if shape is None or len(shape)]
    extents = {None if shape is None else shape[0] for shape in shapes if shape is None or len(shape)}
    fixed = extents.pop() if len(extents) == 1 else None
    if not isinstance(fixed, int) or fixed < 1:
        return call

    def pieces(inputs: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        counts = {len(inputs[position]) if inputs[position].ndim else fixed for position in sampled}
        count = counts.pop()
        if counts or count == fixed:
            return call(inputs)
        if not count or count % fixed:
            raise InputError("E206", f"{count} samples don't fit a model with the fixed batch {fixed}")
        parts = []
        for start in range(0, count, fixed):
            piece = [a[start : start + fixed] if k in sampled else a for k, a in enumerate(inputs)]
            parts.append(call(piece))
            if any(not a.ndim or len(a) != fixed for a in map(np.asarray, parts[-1])):
                message = f"{count} samples can't be fed in pieces of {fixed}: an output has no axis of samples"
                raise InputError("E206", message)
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    return pieces


def compare(original: Runner, compiled: Runner, data: Data) -> Score:
    """Run both on all data. The first output's last axis (or its sign, if that has extent 1) is the decision."""
    right_original = right_compiled = total = 0
    metric = ""
    for batch in data:
        labelled = batch.labels is not None
        if metric and metric != ("top-1" if labelled else "agreement"):
            raise InputError("E206", "some of the data have labels, and some have none")
        metric = "top-1" if labelled else "agreement"
        wanted, found = _decide(original(batch.inputs)[0]), _decide(compiled(batch.inputs)[0])
        reference = _labels(batch.labels, wanted) if batch.labels is not None else wanted
        right_original += int(np.sum(wanted == reference))
        right_compiled += int(np.sum(found == reference))
        total += wanted.size
    return Score(metric, right_original / total, right_compiled / total, total)


def _labels(labels: NDArray[Any], decisions: NDArray[Any]) -> NDArray[Any]:
    if labels.shape != decisions.shape and labels.ndim == decisions.ndim + 1:
        labels = np.argmax(labels, axis=-1)  # one-hot
    if labels.shape != decisions.shape:
        raise InputError("E206", f"labels of shape {labels.shape} for decisions of shape {decisions.shape}")
    return labels


def _decide(output: NDArray[Any]) -> NDArray[Any]:
    output = np.asarray(output)
    if output.dtype.kind in "iub":
        return output.reshape(len(output), -1)[:, 0] if output.ndim > 1 and output[0].size == 1 else output
    if output.ndim and output.shape[-1] > 1:
        return np.asarray(np.argmax(output, axis=-1))
    return np.asarray(output.reshape(output.shape[:-1] or output.shape) > 0)
