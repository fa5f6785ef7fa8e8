"""Samples of elementwise operators whose attributes or operands follow no declaration."""

from __future__ import annotations

import numpy as np

from espalier.ir import elements
from espalier.ir.ops import (
    BitCast,
    BitShift,
    Cast,
    CastLike,
    Clip,
    HardSigmoid,
    Pow,
    Prelu,
    Shrink,
    Where,
)
from tests.ir.ops.samples import Sample, extent, positive, sampler, shape, values


def narrowed(rng: np.random.Generator, wide: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to another."""
    start = int(rng.integers(0, len(wide) + 1))
    return tuple(1 if rng.random() < 0.3 else size for size in wide[start:])


@sampler("bit_cast")
def bit_cast(rng: np.random.Generator) -> Sample:
    kind = rng.choice([elements.I64, elements.U64, elements.F64])
    return Sample(BitCast(to=kind), [values(rng, shape(rng))])


@sampler("bit_shift")
def bit_shift(rng: np.random.Generator) -> Sample:
    wide = shape(rng)
    kind = [elements.I32, elements.U8][int(rng.integers(2))]
    amounts = rng.integers(0, 12, narrowed(rng, wide)).astype(kind.dtype)
    return Sample(BitShift(direction=str(rng.choice(["LEFT", "RIGHT"]))), [values(rng, wide, kind), amounts])


@sampler("cast")
def cast(rng: np.random.Generator) -> Sample:
    kinds = [elements.F32, elements.BF16, elements.I8, elements.BOOL, elements.F8E4M3FN, elements.I4]
    return Sample(Cast(to=kinds[int(rng.integers(len(kinds)))]), [values(rng, shape(rng))])


@sampler("cast_like")
def cast_like(rng: np.random.Generator) -> Sample:
    kind = [elements.F32, elements.F16, elements.I16][int(rng.integers(3))]
    return Sample(CastLike(), [values(rng, shape(rng)), values(rng, shape(rng), kind)])


@sampler("clip")
def clip(rng: np.random.Generator) -> Sample:
    bounds = [np.array(rng.normal()) if rng.random() < 0.7 else None for _ in range(2)]
    if rng.random() < 0.5:
        bounds = [np.array(0.0), np.array(6.0)]
    return Sample(Clip(), [values(rng, shape(rng)), *bounds])


@sampler("hard_sigmoid")
def hard_sigmoid(rng: np.random.Generator) -> Sample:
    return Sample(HardSigmoid(beta=float(rng.choice([-0.5, 0.0, 0.5]))), [values(rng, shape(rng))])


@sampler("pow")
def power(rng: np.random.Generator) -> Sample:
    wide = shape(rng)
    exponent = np.array(rng.choice([-1.0, 0.0, 2.0])) if rng.random() < 0.5 else values(rng, narrowed(rng, wide))
    return Sample(Pow(), [positive(rng, wide), exponent])


@sampler("prelu")
def prelu(rng: np.random.Generator) -> Sample:
    wide = shape(rng)
    return Sample(Prelu(), [values(rng, wide), values(rng, narrowed(rng, wide))])


@sampler("shrink")
def shrink(rng: np.random.Generator) -> Sample:
    return Sample(Shrink(lambd=float(rng.normal()), bias=float(rng.normal())), [values(rng, shape(rng))])


@sampler("where")
def where(rng: np.random.Generator) -> Sample:
    wide = (extent(rng), *shape(rng, high=3))
    choices = [values(rng, wide), values(rng, narrowed(rng, wide))]
    return Sample(Where(), [values(rng, narrowed(rng, wide), elements.BOOL), *choices[:: rng.choice([-1, 1])]])
