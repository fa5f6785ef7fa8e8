"""Which layers a wanted ratio of signal to noise leaves as they are, when a pass makes layers coarser."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from espalier.errors import InputError
from espalier.ir import Graph
from espalier.ir.clone import clone
from espalier.passes.base import Context
from espalier.passes.samples import NoSample, Trial, run_within, try_graph
from espalier.train.evaluate import decibels, in_batches
from espalier.train.measure import first_samples

RUNS = 96
"""How many groups of neighbouring layers are looked at one by one; more layers than that are spared by groups."""
SAMPLES, MADE_UP = 8, 4
"""How many samples of data, and how many made-up inputs, the ratio is taken on."""


class Spared(NamedTuple):
    """Layers, by position, that are left as they are, and the ratio that the model has then, in decibels."""

    layers: frozenset[int]
    ratio: float


def spare(
    graph: Graph,
    gains: Sequence[float],
    change: Callable[[Graph, Collection[int]], object],
    wanted: float,
    context: Context,
) -> Spared:
    """Leave as they are the layers that disturb the outputs most for what is gained, until the ratio is as wanted.

    Each layer (or group of neighbours) is changed alone, on the first of the data or of made-up inputs; then layers are
    spared in the order of noise per gain, as few as reach the ratio on the first samples at the worst output, and those
    given back that it can do without, the largest gain first.

    Args:
        graph: The model; it is not changed.
        gains: What changing each layer gains, such as multiply–accumulates.
        change: Changes the layers at these positions in a copy of the model.
        wanted: 10·log10 Σy² / Σ(y − y′)² of every output in floats, at least.
        context: Data and seed.

    Raises:
        InputError: E212 if nothing can be run or compared, or sparing all layers does not reach the ratio.
    """
    try:
        return _spare(graph, gains, change, wanted, _trials(graph, context), context)
    except NoSample as error:
        if context.data is None:
            raise _refusal(f"made-up inputs do not do: {error}", context) from error
        raise _refusal(f"the data are too much to run: {error}", context) from error


def _spare(
    graph: Graph,
    gains: Sequence[float],
    change: Callable[[Graph, Collection[int]], object],
    wanted: float,
    trials: Sequence[Trial],
    context: Context,
) -> Spared:
    every = range(len(gains))
    signals = _powers([trial.outputs for trial in trials])

    def changed(positions: Collection[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """The model with the layers at these positions changed, to be called."""
        copy = clone(graph)
        change(copy, positions)
        return in_batches(lambda arrays: run_within(copy, arrays), [value.shape for value in graph.inputs])

    def ratio(spared: Collection[int], least: float = wanted) -> float:
        """With these layers spared; anything below `least` once that is sure."""
        call = changed([position for position in every if position not in spared])
        noises = [0.0] * len(signals)
        for trial in trials:
            found = _noises(trial.outputs, call(trial.inputs))
            noises = [a + b for a, b in zip(noises, found, strict=True)]
            if (reached := _worst(signals, noises)) < least:
                return reached
        return reached

    def noise(group: Sequence[int]) -> float:
        """Relative to the signal, on the first trial alone."""
        found = _noises(trials[0].outputs, changed(group)(trials[0].inputs))
        pairs = zip(_powers([trials[0].outputs]), found, strict=True)
        return max((added / signal for signal, added in pairs if signal), default=0.0)

    whole = ratio((), -math.inf)
    if whole >= wanted:
        return Spared(frozenset(), whole)
    size = -(-len(gains) // RUNS)
    groups = [every[k : k + size] for k in range(0, len(gains), size)]
    gain = [max(sum(gains[position] for position in group), 1e-9) for group in groups]
    each = [noise(group) / gain[k] for k, group in enumerate(groups)]
    order = sorted(range(len(groups)), key=lambda k: (-each[k], k))

    def members(chosen: Collection[int]) -> frozenset[int]:
        return frozenset(position for k in chosen for position in groups[k])

    reached = ratio(members(order))
    if reached < wanted:
        what = f"no layer is left to spare at {reached:.1f} dB of {wanted:g}"
        raise _refusal(f"{what}: two runs of the model itself differ as much", context)
    low, high = 0, len(order)  # too few, and enough
    while high - low > 1:
        middle = (low + high) // 2
        found = ratio(members(order[:middle]))
        if found >= wanted:
            high, reached = middle, found
        else:
            low = middle
    chosen = order[:high]
    for k in sorted(chosen, key=lambda k: (-gain[k], k)) if high > 1 else ():
        fewer = [other for other in chosen if other != k]
        if k != order[high - 1] and fewer and (found := ratio(members(fewer))) >= wanted:
            chosen, reached = fewer, found
    return Spared(members(chosen), reached)


def worst_ratio(wanted: Sequence[Sequence[Any]], found: Sequence[Sequence[Any]]) -> float:
    """The ratio of signal to noise over all runs, in decibels, of the output in floats where it is least.

    Outputs that are zero in every run don't count; those of another shape, or not finite, are infinitely far.
    """
    noises = [_noises(a, b) for a, b in zip(wanted, found, strict=True)]
    return _worst(_powers(wanted), [sum(each) for each in zip(*noises, strict=True)])


def _powers(runs: Sequence[Sequence[Any]]) -> list[float]:
    """Of each output, over all runs; 0 if it is not in floats."""
    outputs = zip(*runs, strict=True)
    return [sum(float(np.sum(_wide(a) ** 2)) for a in arrays if _is_float(a)) for arrays in outputs]


def _noises(wanted: Sequence[Any], found: Sequence[Any]) -> list[float]:
    """Of each output in one run."""
    noises = []
    for a, b in zip(wanted, found, strict=True):
        if not _is_float(a):
            noises.append(0.0)
        elif np.shape(a) != np.shape(b):
            noises.append(math.inf)
        else:
            noise = float(np.sum((_wide(a) - _wide(b)) ** 2))
            noises.append(noise if math.isfinite(noise) else math.inf)
    return noises


def _worst(signals: Sequence[float], noises: Sequence[float]) -> float:
    pairs = zip(signals, noises, strict=True)
    return min((decibels(signal, noise) for signal, noise in pairs if signal and noise), default=math.inf)


def _is_float(array: Any) -> bool:
    kind = np.asarray(array).dtype
    return kind.kind == "f" or kind == ml_dtypes.bfloat16


def _wide(array: Any) -> Any:
    return np.asarray(array).astype(np.float64)


def _trials(graph: Graph, context: Context) -> list[Trial]:
    """Inputs and outputs: one for each batch of the first data, or made up. Raises NoSample, and E212."""
    if context.data is None:
        trials = [try_graph(graph, context.seed + k) for k in range(MADE_UP)]
    else:
        call = in_batches(lambda arrays: run_within(graph, arrays), [value.shape for value in graph.inputs])
        batches = [list(inputs) for inputs, _ in first_samples(context.data, SAMPLES)]
        trials = [Trial(inputs, list(call(inputs))) for inputs in batches]
    floats = [np.asarray(output) for trial in trials for output in trial.outputs if _is_float(output)]
    what = "made-up inputs" if context.data is None else "the data"
    if not floats:
        raise InputError("E212", "there is no ratio of signal to noise to keep: the model has no output in floats")
    if not all(np.isfinite(_wide(output)).all() for output in floats):
        raise _refusal(f"the model's outputs are not finite on {what}", context)
    if not any(_powers([trial.outputs for trial in trials])):
        raise _refusal(f"all outputs in floats are 0, or empty, on {what}", context)
    return trials


def _refusal(why: str, context: Context) -> InputError:
    hint = "Give some with --data." if context.data is None else "Leave sqnr out, or give other data."
    return InputError("E212", f"there is no ratio of signal to noise to keep: {why}", hint=hint)
