"""Which layers a wanted ratio of signal to noise leaves as they are, when a pass makes layers coarser."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from espalier.errors import InputError
from espalier.ir import Graph
from espalier.ir.clone import clone
from espalier.passes.base import Context
from espalier.passes.samples import NoSample, Trial, run_within, try_graph
from espalier.train.evaluate import in_batches
from espalier.train.measure import first_samples, signal_to_noise

RUNS = 96
"""How many groups of neighbouring layers are looked at one by one; each takes one run of the model."""
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
        InputError: E212 if nothing can be run, or an output is not finite.
    """
    trials, shapes = _trials(graph, context), [value.shape for value in graph.inputs]
    every = range(len(gains))

    def ratio(spared: Collection[int], among: Sequence[Trial]) -> float:
        copy = clone(graph)
        change(copy, [position for position in every if position not in spared])
        call = in_batches(lambda arrays: run_within(copy, arrays), shapes)
        return worst_ratio([trial.outputs for trial in among], [call(trial.inputs) for trial in among])

    reached = ratio((), trials)
    if reached >= wanted:
        return Spared(frozenset(), reached)
    size = -(-len(gains) // RUNS)
    groups = [every[k : k + size] for k in range(0, len(gains), size)]
    noise = [10 ** (-ratio(set(every) - set(group), trials[:1]) / 10) for group in groups]
    gain = [max(sum(gains[position] for position in group), 1e-9) for group in groups]
    order = sorted(range(len(groups)), key=lambda k: (-noise[k] / gain[k], k))

    def members(chosen: Collection[int]) -> frozenset[int]:
        return frozenset(position for k in chosen for position in groups[k])

    low, high = 0, len(order)  # too few, and enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ratio(members(order[:middle]), trials) >= wanted else (middle, high)
    chosen = order[:high]
    for k in sorted(chosen, key=lambda k: (-gain[k], k)):
        fewer = [other for other in chosen if other != k]
        if ratio(members(fewer), trials) >= wanted:
            chosen = fewer
    return Spared(members(chosen), ratio(members(chosen), trials))


def worst_ratio(wanted: Sequence[Sequence[Any]], found: Sequence[Sequence[Any]]) -> float:
    """The ratio of signal to noise over all runs, in decibels, of the output in floats where it is least.

    Outputs that are zero in every run don't count.
    """
    worst = math.inf
    for a, b in zip(zip(*wanted, strict=True), zip(*found, strict=True), strict=True):
        ratio = signal_to_noise([np.asarray(each) for each in a], [np.asarray(each) for each in b])
        if ratio is not None:
            worst = min(worst, -math.inf if math.isnan(ratio) else ratio)
    return worst


def _trials(graph: Graph, context: Context) -> list[Trial]:
    """Inputs and outputs: one for each batch of the first data, or made up."""
    hint, trials = "Give some with --data.", list[Trial]()
    try:
        if context.data is None:
            trials = [try_graph(graph, context.seed + k) for k in range(MADE_UP)]
        else:
            call = in_batches(lambda arrays: run_within(graph, arrays), [value.shape for value in graph.inputs])
            for inputs, _ in first_samples(context.data, SAMPLES):
                trials.append(Trial(list(inputs), list(call(inputs))))
    except NoSample as error:
        raise InputError("E212", f"a ratio of signal to noise needs data: {error}", hint=hint) from error
    outputs = [np.asarray(output) for trial in trials for output in trial.outputs]
    if not all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f"):
        what = "made-up inputs" if context.data is None else "the data"
        raise InputError("E212", f"the model's outputs are not finite on {what}, which leaves no ratio", hint=hint)
    return trials
