"""Samples of quantization."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from espalier.ir.elements import I8, U8, Element
from espalier.ir.ops.quantization import (
    ROUNDINGS,
    BipolarQuant,
    Dequantize,
    FloatQuant,
    MultiThreshold,
    Quant,
    Quantize,
    TruncQuant,
)
from tests.ir.ops.samples import Sample, extent, positive, sampler, values

Generator = np.random.Generator


def granularity(rng: Generator) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]:
    """Shapes of a tensor and its scales, and the attributes that say so."""
    whole = [extent(rng) for _ in range(3)]
    axis = int(rng.integers(-3, 3))
    kind = int(rng.integers(4))
    if kind == 0:
        return tuple(whole), (), {}
    if kind == 1:
        return tuple(whole), (whole[axis],), {"axis": axis}
    block = extent(rng, 2, 3)
    if kind == 2:
        whole[axis] = block * extent(rng)
    scales = list(whole)
    scales[axis] = math.ceil(whole[axis] / block)
    return tuple(whole), tuple(scales), {"axis": axis, "block_size": block}


@sampler("quantize")
def quantize(rng: Generator) -> Sample:
    whole, scales, options = granularity(rng)
    element: Element = (U8, I8)[rng.integers(2)]
    zero_point = values(rng, scales, element) if rng.random() < 0.6 else None
    if rng.random() < 0.3:
        zero_point = np.zeros(scales, element.dtype)
    return Sample(Quantize(**options), [values(rng, whole), positive(rng, scales), zero_point])


@sampler("dequantize")
def dequantize(rng: Generator) -> Sample:
    whole, scales, options = granularity(rng)
    zero_point = values(rng, scales, I8) if rng.random() < 0.6 else None
    return Sample(Dequantize(**options), [values(rng, whole, I8), positive(rng, scales), zero_point])


def beside(rng: Generator, whole: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to another."""
    kept = whole[int(rng.integers(0, len(whole) + 1)) :]
    return tuple(1 if rng.random() < 0.4 else size for size in kept)


def options(rng: Generator) -> dict[str, Any]:
    return {
        "signed": int(rng.integers(2)), "narrow": int(rng.integers(2)),
        "rounding_mode": ROUNDINGS[rng.integers(len(ROUNDINGS))],
    }  # fmt: skip


@sampler("quant")
def quant(rng: Generator) -> Sample:
    whole = (extent(rng), extent(rng), extent(rng))
    zero_point = np.zeros(()) if rng.random() < 0.5 else np.rint(values(rng, beside(rng, whole)))
    operands = [values(rng, whole), positive(rng, beside(rng, whole)), zero_point, np.array(float(extent(rng, 1, 8)))]
    return Sample(Quant(**options(rng)), operands)


@sampler("bipolar_quant")
def bipolar_quant(rng: Generator) -> Sample:
    whole = (extent(rng), extent(rng), extent(rng))
    return Sample(BipolarQuant(), [values(rng, whole), positive(rng, beside(rng, whole))])


@sampler("trunc_quant")
def trunc_quant(rng: Generator) -> Sample:
    whole = (extent(rng), extent(rng), extent(rng))
    scale = positive(rng, beside(rng, whole))
    operands = [values(rng, whole), scale, np.zeros(()), np.array(8.0), scale * 4, np.array(4.0)]
    return Sample(TruncQuant(**options(rng)), operands)


@sampler("float_quant")
def float_quant(rng: Generator) -> Sample:
    whole = (extent(rng), extent(rng), extent(rng))
    widths = [np.array(float(extent(rng, 2, 4))), np.array(float(extent(rng, 1, 3))), np.array(1.0), np.array(6.0)]
    op = FloatQuant(saturation=int(rng.integers(2)), has_inf=1, rounding_mode=ROUNDINGS[rng.integers(len(ROUNDINGS))])
    return Sample(op, [values(rng, whole), positive(rng, beside(rng, whole)), *widths])


@sampler("multi_threshold")
def multi_threshold(rng: Generator) -> Sample:
    c, last = extent(rng), rng.random() < 0.5
    x = values(rng, (2, 3, c) if last else (2, c, 3))
    thresholds = np.sort(values(rng, (c if rng.random() < 0.7 else 1, extent(rng))), axis=1)
    return Sample(MultiThreshold(out_scale=0.5, out_bias=-1.0, data_layout="NHC" if last else "NCH"), [x, thresholds])
