"""Evaluation: against labels (top-1, F1, error), or against the original without them (agreement, signal to noise)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError, VerificationError
from espalier.train.data import Batch, Data

Runner: TypeAlias = Callable[[Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]
"""Arrays in input order in, arrays in output order out."""


@dataclass(frozen=True)
class Evaluation:
    """One model's figure."""

    metric: str
    value: float
    unit: Literal["share", "dB", "error"]
    samples: int


@dataclass(frozen=True)
class Score:
    """Two models on the same samples. Shares are between 0 and 1."""

    metric: str
    """"top-1" with labels; "agreement" (same largest logit as the original) without; or what was asked for."""
    original: float
    compiled: float
    samples: int

    @property
    def drop(self) -> float:
        """How much was lost, in points (percent of the samples)."""
        return 100 * (self.original - self.compiled)


class ErrorScore(Score):
    """The same where less is better."""

    @property
    def drop(self) -> float:
        """How much the error grew, in percent of the original's."""
        return 100 * (self.compiled / self.original - 1) if self.original else 100 * self.compiled


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


class Metric:
    """Something that is measured over batches; derive from it for one of your own.

    Attributes:
        name: what it is called.
        needs: "labels", or "original": what outputs are compared with.
        unit: "share" (0 to 1, more is better), "dB" (more is better) or "error" (less is better).
    """

    name = ""
    needs: Literal["labels", "original"] = "labels"
    unit: Literal["share", "dB", "error"] = "share"

    def update(self, outputs: Sequence[NDArray[Any]], wanted: Any) -> None:
        """Take in a batch: outputs, and labels or the original's outputs. Raises InputError E206 for misfits."""
        raise NotImplementedError

    def result(self) -> float:
        """The figure over all batches so far."""
        raise NotImplementedError


class Top1(Metric):
    """The share of decisions that are right."""

    name = "top-1"

    def __init__(self) -> None:
        self.right = self.total = 0

    def update(self, outputs: Sequence[NDArray[Any]], wanted: Any) -> None:
        found = _decide(outputs[0])
        self.right += int(np.sum(found == _labels(wanted, found)))
        self.total += found.size

    def result(self) -> float:
        return self.right / self.total


class F1(Metric):
    """The mean over classes of the harmonic mean of precision and recall; of classes that occur in either."""

    name = "f1"

    def __init__(self) -> None:
        self.counts: dict[int, list[int]] = {}
        """Class → right decisions, decisions for it, labels of it."""

    def update(self, outputs: Sequence[NDArray[Any]], wanted: Any) -> None:
        found = np.asarray(_decide(outputs[0])).astype(np.int64)
        labels = _labels(wanted, found).astype(np.int64)
        for kind in np.union1d(found, labels).tolist():
            counts = self.counts.setdefault(kind, [0, 0, 0])
            counts[0] += int(np.sum((found == kind) & (labels == kind)))
            counts[1] += int(np.sum(found == kind))
            counts[2] += int(np.sum(labels == kind))

    def result(self) -> float:
        return float(np.mean([2 * right / (chosen + given) for right, chosen, given in self.counts.values()]))


class RootMeanSquare(Metric):
    """The root of the mean squared difference of the first output and the labels, in the labels' unit."""

    name, unit = "rmse", "error"

    def __init__(self) -> None:
        self.sum, self.total = 0.0, 0

    def update(self, outputs: Sequence[NDArray[Any]], wanted: Any) -> None:
        found, labels = np.asarray(outputs[0], np.float64), np.asarray(wanted, np.float64)
        if found.size != labels.size or len(found) != len(labels):
            raise InputError("E206", f"labels of shape {labels.shape} for outputs of shape {found.shape}")
        self.sum += float(np.sum((found - labels.reshape(found.shape)) ** 2))
        self.total += found.size

    def result(self) -> float:
        return math.sqrt(self.sum / self.total)


class Agreement(Top1):
    """The share of decisions that are the original's."""

    name, needs = "agreement", "original"

    def update(self, outputs: Sequence[NDArray[Any]], wanted: Any) -> None:
        super().update(outputs, _decide(wanted[0]))


class SignalToNoise(Metric):
    """10·log10 Σy² / Σ(y − y′)² over all float outputs, y being the original's; infinite if nothing differs."""

    name, needs, unit = "sqnr", "original", "dB"

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def update(self, outputs: Sequence[NDArray[Any]], wanted: Any) -> None:
        for found, original in zip(outputs, wanted, strict=True):
            original = np.asarray(original)
            if original.dtype.kind not in "fV":  # V are numpy's narrow floats
                continue
            wide = original.astype(np.float64)
            self.signal += float(np.sum(wide**2))
            self.noise += float(np.sum((np.asarray(found).astype(np.float64) - wide) ** 2))

    def result(self) -> float:
        return decibels(self.signal, self.noise)


def decibels(signal: float, noise: float) -> float:
    """10·log10 of the ratio of two sums of squares; infinite without noise, −∞ under noise without end or signal."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


class Function(Metric):
    """A user's function of outputs and labels (None without) that gives a batch's figure; the mean over samples."""

    def __init__(self, function: Callable[[Sequence[NDArray[Any]], Any], float]) -> None:
        self.function, self.name = function, getattr(function, "__name__", type(function).__name__)
        self.sum, self.total = 0.0, 0

    def update(self, outputs: Sequence[NDArray[Any]], wanted: Any) -> None:
        count = len(outputs[0]) if np.ndim(outputs[0]) else 1
        self.sum += float(self.function(outputs, wanted)) * count
        self.total += count

    def result(self) -> float:
        return self.sum / self.total


METRICS: Mapping[str, Callable[[], Metric]] = {
    metric.name: metric for metric in (Top1, F1, RootMeanSquare, Agreement, SignalToNoise)
}
Measure: TypeAlias = str | Metric | Callable[[Sequence[NDArray[Any]], Any], float]
"""A name in `METRICS`, "auto" (top-1 with labels, agreement without), a metric, or a user's function."""


def find_metric(measure: Measure, labelled: bool) -> Metric:
    """A new metric. Raises InputError: E202 for an unknown name; E206 if it needs labels, and there are none."""
    if measure == "auto":
        measure = "top-1" if labelled else "agreement"
    if isinstance(measure, str):
        if measure not in METRICS:
            raise InputError("E202", f"no metric is called {measure!r}", hint=f"There are {', '.join(METRICS)}.")
        measure = METRICS[measure]()
    found = measure if isinstance(measure, Metric) else Function(measure)
    if found.needs == "labels" and not labelled and not isinstance(found, Function):
        raise InputError("E206", f"{found.name} needs labels, and the data have none")
    return found


def evaluate(model: Runner, data: Data, measure: Measure = "auto", original: Runner | None = None) -> Evaluation:
    """A figure of one model on all data.

    Args:
        original: what "agreement" and "sqnr" compare with.

    Raises:
        InputError: E202 for an unknown metric; E206 for data that don't fit; E212 if an original is needed.
    """
    metric: Metric | None = None
    labelled, samples = False, 0
    for batch in data:
        if metric is None:
            labelled = batch.labels is not None
            metric = find_metric(measure, labelled)
            if metric.needs == "original" and original is None:
                raise InputError("E212", f"{metric.name} compares with the original, and there is none")
        _check_labels(labelled, batch)
        wanted = batch.labels if metric.needs == "labels" or original is None else original(batch.inputs)
        metric.update(model(batch.inputs), wanted)
        samples += len(batch)
    assert metric is not None  # data without batches are refused
    return Evaluation(metric.name, metric.result(), metric.unit, samples)


def compare(original: Runner, compiled: Runner, data: Data, measure: Measure = "auto") -> Score:
    """Run both on all data. The first output's last axis (or its sign, if that has extent 1) is the decision.

    Raises InputError: E201 for a metric that has no figure of the original; else as `evaluate`.
    """
    metrics: tuple[Metric, Metric] | None = None
    labelled, samples = False, 0
    for batch in data:
        if metrics is None:
            labelled = batch.labels is not None
            first, second = find_metric(measure, labelled), find_metric(measure, labelled)
            if first is second:
                second = copy.deepcopy(first)
            if first.unit == "dB":
                raise InputError("E201", f"{first.name} is no figure of the original", hint="Use `evaluate`.")
            metrics = first, second
        _check_labels(labelled, batch)
        outputs, found = original(batch.inputs), compiled(batch.inputs)
        wanted = batch.labels if metrics[0].needs == "labels" else outputs
        metrics[0].update(outputs, wanted)
        metrics[1].update(found, wanted)
        samples += _decide(outputs[0]).size if isinstance(metrics[0], Top1) else len(batch)
    assert metrics is not None
    kind = ErrorScore if metrics[0].unit == "error" else Score
    return kind(metrics[0].name, metrics[0].result(), metrics[1].result(), samples)


@dataclass(frozen=True)
class Gate:
    """What a changed model is measured by, and how much of it may be lost, in points.

    Raises InputError E201 if that is out of range.
    """

    measure: Measure = "auto"
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise InputError("E201", f"max_drop is in points, from 0 to 100, not {self.max_drop}")

    def require(self, data: object) -> None:
        """Raise InputError E212 if something is asked for and there are no data."""
        if data is None and (self.max_drop is not None or self.measure != "auto"):
            what = "max_drop" if self.max_drop is not None else "a metric"
            raise InputError("E212", f"{what} needs data to measure the accuracy on", hint="Give some with --data.")

    def require_measurable(self, elsewhere: str) -> None:
        """Raise InputError E201 if something is asked for; `elsewhere`: why it cannot be measured on this machine."""
        if self.max_drop is not None or self.measure != "auto":
            what = "max_drop" if self.max_drop is not None else "a metric"
            message = f"{what} needs the artifact's accuracy, which cannot be measured here: {elsewhere}"
            raise InputError("E201", message, hint="Leave it out, or compile on such a machine.")

    def score(self, original: Runner, changed: Runner, data: Data) -> Score:
        """Both models' figures. Raises VerificationError E604 if more was lost; else as `compare`."""
        found = compare(original, changed, data, self.measure)
        if self.max_drop is not None and found.drop > self.max_drop:
            raise VerificationError(
                "E604",
                f"{found.metric} went from {found.original:.4f} to {found.compiled:.4f}: "
                f"{found.drop:.2f} points are lost, more than {self.max_drop:g}",
                hint="Nothing was written. Allow more with --max-drop, change less, or train longer.",
            )
        return found


def _check_labels(labelled: bool, batch: Batch) -> None:
    if labelled != (batch.labels is not None):
        raise InputError("E206", "some of the data have labels, and some have none")


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
