"""Samples of pooling, resizing, sampling at positions that are data, and Fourier transforms."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.ir.ops.pooling import (
    AveragePool,
    GlobalAveragePool,
    GlobalLpPool,
    GlobalMaxPool,
    LpPool,
    MaxPool,
    MaxUnpool,
    WindowPool,
)
from espalier.ir.ops.resampling import COORDINATES, NEAREST, Resize
from espalier.ir.ops.signal import Dft, Stft
from espalier.ir.ops.vision import GridSample, MaxRoiPool, RoiAlign
from tests.ir.ops.samples import Sample, extent, sampler, values

Generator = np.random.Generator


def pool(rng: Generator, kind: type[WindowPool], **attributes: Any) -> Sample:
    spatial = int(rng.integers(1, 3))
    kernel = tuple(extent(rng, 2, 3) for _ in range(spatial))
    options: dict[str, Any] = {"strides": tuple(int(s) for s in rng.integers(1, 4, spatial))}
    if rng.random() < 0.5:
        options["dilations"] = tuple(int(d) for d in rng.integers(1, 3, spatial))
    if rng.random() < 0.3:
        options["auto_pad"] = ["SAME_UPPER", "SAME_LOWER", "VALID"][rng.integers(3)]
    elif rng.random() < 0.6:
        options["pads"] = tuple(int(p) for p in rng.integers(0, 2, 2 * spatial))
    op = kind(kernel_shape=kernel, ceil_mode=int(rng.integers(2)), **options, **attributes)
    x = values(rng, (extent(rng), extent(rng), *(7, 8)[:spatial]))
    return Sample(op, [x], int(rng.integers(1, len(kind.results) + 1)))


@sampler("max_pool")
def max_pool(rng: Generator) -> Sample:
    return pool(rng, MaxPool, storage_order=int(rng.integers(2)))


@sampler("average_pool")
def average_pool(rng: Generator) -> Sample:
    return pool(rng, AveragePool, count_include_pad=int(rng.integers(2)))


@sampler("lp_pool")
def lp_pool(rng: Generator) -> Sample:
    return pool(rng, LpPool, p=int(rng.integers(1, 4)))


@sampler("global_average_pool")
def global_average_pool(rng: Generator) -> Sample:
    return Sample(GlobalAveragePool(), [values(rng, (2, 3, 4, 5)[: extent(rng, 3, 4)])])


@sampler("global_max_pool")
def global_max_pool(rng: Generator) -> Sample:
    return Sample(GlobalMaxPool(), [values(rng, (2, 3, 4, 5)[: extent(rng, 3, 4)])])


@sampler("global_lp_pool")
def global_lp_pool(rng: Generator) -> Sample:
    return Sample(GlobalLpPool(p=extent(rng, 1, 3)), [values(rng, (2, 3, 4, 5)[: extent(rng, 3, 4)])])


@sampler("max_unpool")
def max_unpool(rng: Generator) -> Sample:
    x = values(rng, (extent(rng, 1), extent(rng, 1), 2, 3))
    op = MaxUnpool(kernel_shape=(2, 2), strides=(2, 2))
    count = x.shape[0] * x.shape[1] * 4 * 6
    places = rng.permutation(count)[: x.size].reshape(x.shape)
    wanted = np.array([*x.shape[:2], 5, 7]) if rng.random() < 0.5 else None
    return Sample(op, [x, places, wanted])


@sampler("resize")
def resize(rng: Generator) -> Sample:
    mode = ["nearest", "linear", "cubic"][rng.integers(3)]
    coordinates = sorted(COORDINATES)[rng.integers(len(COORDINATES))]
    x = values(rng, (extent(rng), extent(rng), 4, 5))
    options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    options["nearest_mode"] = sorted(NEAREST)[rng.integers(len(NEAREST))]
    options["antialias"], options["exclude_outside"] = int(rng.integers(2)), int(rng.integers(2))
    some = rng.random() < 0.5
    extents = [int(size) for size in rng.integers(2, 9, 2)]
    if some:
        options["resized_axes"] = (2, -1)
    roi = np.array([0.1, 0.2, 0.9, 1.1]) if some else np.array([0, 0, 0.1, 0.2, 1, 1, 0.9, 1.1])
    crop = coordinates == "tf_crop_and_resize"
    if crop:
        options |= {"extrapolation_value": float(rng.integers(2)), "resized_axes": (2, 3)}
        roi, some = np.array([0.1, 0.2, 0.9, 1.1]), True
    if crop or rng.random() < 0.5:
        sizes = np.array(extents if some else [*x.shape[:2], *extents])
        return Sample(Resize(**options), [x, roi if crop else None, None, sizes])
    scales = rng.choice([0.5, 0.75, 1.0, 1.5, 2.0], 2).astype(np.float32)
    whole = scales if some else np.concatenate([np.ones(2, np.float32), scales])
    return Sample(Resize(**options), [x, None, whole], known=(2,))


@sampler("grid_sample")
def grid_sample(rng: Generator) -> Sample:
    op = GridSample(
        align_corners=int(rng.integers(2)), mode=["linear", "nearest", "cubic"][rng.integers(3)],
        padding_mode=["zeros", "border", "reflection"][rng.integers(3)],
    )  # fmt: skip
    spatial = int(rng.integers(1, 4))
    n, counts = extent(rng), [extent(rng) for _ in range(spatial)]
    return Sample(op, [values(rng, (n, extent(rng), *(3, 4, 2)[:spatial])), values(rng, (n, *counts, spatial))])


def regions(rng: Generator, count: int) -> np.ndarray[Any, Any]:
    begin = rng.uniform(0, 4, (count, 2))
    return np.concatenate([begin, begin + rng.uniform(1, 4, (count, 2))], axis=1)


@sampler("roi_align")
def roi_align(rng: Generator) -> Sample:
    op = RoiAlign(
        mode=["avg", "max"][rng.integers(2)], output_height=2, output_width=3, sampling_ratio=int(rng.integers(3)),
        coordinate_transformation_mode=["half_pixel", "output_half_pixel"][rng.integers(2)],
    )  # fmt: skip
    n, count = extent(rng), extent(rng)
    return Sample(op, [values(rng, (n, extent(rng), 6, 7)), regions(rng, count), rng.integers(0, n, count)])


@sampler("max_roi_pool")
def max_roi_pool(rng: Generator) -> Sample:
    n, count = extent(rng), extent(rng)
    rois = np.concatenate([rng.integers(0, n, (count, 1)), regions(rng, count)], axis=1)
    return Sample(MaxRoiPool(pooled_shape=(2, 3), spatial_scale=0.7), [values(rng, (n, extent(rng), 6, 7)), rois])


@sampler("dft")
def dft(rng: Generator) -> Sample:
    inverse, onesided = int(rng.integers(2)), int(rng.integers(2))
    parts = 1 + inverse if onesided else int(rng.integers(1, 3))
    x = values(rng, (extent(rng), extent(rng), extent(rng), parts))
    axis = np.array([0, 1, 2, -2, -3][rng.integers(5)]) if rng.random() < 0.7 else None
    length = np.array(extent(rng, 2, 7)) if rng.random() < 0.5 else None
    return Sample(Dft(inverse=inverse, onesided=onesided), [x, length, axis])


@sampler("stft")
def stft(rng: Generator) -> Sample:
    onesided = int(rng.integers(2))
    signal = values(rng, (extent(rng), extent(rng, 8, 12), 1 if onesided else extent(rng, 1, 2)))
    length = extent(rng, 2, 6)
    window = values(rng, (length,)) if rng.random() < 0.6 else None
    given = np.array(length) if window is None or rng.random() < 0.5 else None
    return Sample(Stft(onesided=onesided), [signal, np.array(extent(rng, 1, 3)), window, given])
