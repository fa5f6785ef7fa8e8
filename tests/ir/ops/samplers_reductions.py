"""Samples of reductions, running reductions, normalisations and random numbers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from espalier.ir import elements
from espalier.ir.op import Op, lookup
from espalier.ir.ops import (
    BatchNorm,
    LayerNorm,
    LocalResponseNorm,
    LpNorm,
    MeanVarianceNorm,
    Multinomial,
    RandomNormal,
    RandomUniform,
    RmsNorm,
)
from tests.ir.ops.samples import Sample, extent, positive, sampler, shape, values

REDUCTIONS = [
    "l1", "l2", "log_sum", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square",
]  # fmt: skip


def reduction(kind: type[Op], rng: np.random.Generator) -> Sample:
    x = values(rng, shape(rng))
    if kind.name == "reduce_log_sum":
        x = np.abs(x)
    count = int(rng.integers(0, x.ndim + 1))
    axes = rng.permutation(x.ndim)[:count] - x.ndim * rng.integers(0, 2, count)
    given = [] if rng.random() < 0.2 else [axes.astype(np.int64)]
    made = kind(keepdims=int(rng.integers(2)), noop_with_empty_axes=int(rng.integers(2)))
    return Sample(made, [x, *given], macs=x.size)  # every element is added once


for _name in REDUCTIONS:
    sampler(f"reduce_{_name}")(functools.partial(reduction, lookup(f"reduce_{_name}")))


def flag(rng: np.random.Generator) -> int:
    return int(rng.integers(2))


def along(rng: np.random.Generator, rank: int) -> int:
    """A random axis, counted from either end."""
    return int(rng.integers(-rank, rank))


def arg_extreme(kind: type[Op], rng: np.random.Generator) -> Sample:
    x = values(rng, shape(rng, 1), [elements.F64, elements.I8][flag(rng)])
    return Sample(kind(axis=along(rng, x.ndim), keepdims=flag(rng), select_last_index=flag(rng)), [x])


def running(kind: type[Op], rng: np.random.Generator) -> Sample:
    x = values(rng, shape(rng, 1), [elements.F64, elements.I32][flag(rng)])
    return Sample(kind(exclusive=flag(rng), reverse=flag(rng)), [x, np.array(along(rng, x.ndim))])


def axis_function(kind: type[Op], rng: np.random.Generator) -> Sample:
    x = values(rng, shape(rng, 1))
    return Sample(kind(axis=along(rng, x.ndim)), [x])


for _names, _made in (
    (("arg_max", "arg_min"), arg_extreme),
    (("cum_sum", "cum_prod"), running),
    (("softmax", "log_softmax", "hardmax"), axis_function),
):
    for _name in _names:
        sampler(_name)(functools.partial(_made, lookup(_name)))


@sampler("lp_norm")
def lp_norm(rng: np.random.Generator) -> Sample:
    x = values(rng, shape(rng, 1))
    return Sample(LpNorm(axis=along(rng, x.ndim), p=1 + flag(rng)), [x])


@sampler("batch_norm")
def batch_norm(rng: np.random.Generator) -> Sample:
    x = values(rng, shape(rng, 1))
    channels = (x.shape[1],) if x.ndim > 1 else (1,)
    parameters = [values(rng, channels) for _ in range(3)]
    training = flag(rng)
    results = int(rng.integers(1, 4)) if training else 1
    return Sample(BatchNorm(training_mode=training), [x, *parameters, positive(rng, channels)], results)


def trailing(rng: np.random.Generator) -> tuple[Any, int, Any]:
    """x, an axis, and parameters for the axes from there on, some of them of extent 1."""
    x = values(rng, shape(rng, 1))
    axis = along(rng, x.ndim)
    normal = tuple(1 if rng.random() < 0.1 else size for size in x.shape[axis % x.ndim :])
    return x, axis, lambda: values(rng, normal)


@sampler("layer_norm")
def layer_norm(rng: np.random.Generator) -> Sample:
    x, axis, parameter = trailing(rng)
    shift = [parameter()] if flag(rng) else []
    return Sample(LayerNorm(axis=axis), [x, parameter(), *shift], int(rng.integers(1, 4)))


@sampler("rms_norm")
def rms_norm(rng: np.random.Generator) -> Sample:
    x, axis, parameter = trailing(rng)
    return Sample(RmsNorm(axis=axis), [x, parameter()])


@sampler("mean_variance_norm")
def mean_variance_norm(rng: np.random.Generator) -> Sample:
    x = values(rng, shape(rng, 2))
    count = int(rng.integers(1, x.ndim + 1))
    return Sample(MeanVarianceNorm(axis_numbers=tuple(map(int, rng.permutation(x.ndim)[:count]))), [x])


@sampler("local_response_norm")
def local_response_norm(rng: np.random.Generator) -> Sample:
    return Sample(LocalResponseNorm(size=extent(rng, 1), alpha=0.1), [values(rng, shape(rng, 2))])


@sampler("multinomial")
def multinomial(rng: np.random.Generator) -> Sample:
    return Sample(Multinomial(sample_size=extent(rng), seed=1.0), [values(rng, (extent(rng), extent(rng)))])


@sampler("random_normal")
def random_normal(rng: np.random.Generator) -> Sample:
    return Sample(RandomNormal(shape=shape(rng), seed=2.0), [])


@sampler("random_uniform")
def random_uniform(rng: np.random.Generator) -> Sample:
    return Sample(RandomUniform(shape=shape(rng), dtype=elements.F16), [])
