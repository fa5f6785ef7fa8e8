"""Sampling images at positions that are data: deformed convolution, grids, regions of interest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from espalier.ir import elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension
from espalier.ir.op import In, Op, TypeContext, op
from espalier.ir.ops.convolution import check_window, pairs, window_count
from espalier.ir.terms import pin

Tap = tuple[Any, Any]
"""Whole positions on one axis, as numbers of any float element, and their weights: each batch × points."""


def gather(xp: Any, image: Any, taps: Sequence[Sequence[Tap]]) -> Any:
    """Σ weight · pixel over all combinations of one tap per axis; pixels outside count as zero.

    The image is (batch, channels, spatial…), in the element that is computed in; the result (batch, channels, points).
    """
    spatial = image.shape[2:]
    pixels = xp.reshape(image, (*image.shape[:2], math.prod(spatial)))
    total: Any = 0
    for combination in itertools.product(*taps):
        index: Any = 0
        weight: Any = 1.0
        inside: Any = None
        for (place, factor), extent in zip(combination, spatial, strict=True):
            valid = xp.logical_and(place >= 0, place <= extent - 1)
            inside = valid if inside is None else xp.logical_and(inside, valid)
            index = index * extent + xp.astype(xp.clip(place, 0, extent - 1), elements.I64)
            weight = weight * factor
        where = xp.broadcast_to(xp.expand_dims(index, 1), (*image.shape[:2], index.shape[-1]))
        found = xp.take_along_axis(pixels, where, axis=2)
        found = xp.where(xp.expand_dims(inside, 1), found, xp.zeros_like(found))
        total = total + found * xp.expand_dims(weight, 1)
    return total


def linear_taps(xp: Any, position: Any) -> list[Tap]:
    """The two neighbours of each position."""
    low = xp.floor(position)
    return [(low, 1 - (position - low)), (low + 1, position - low)]


def cubic_taps(xp: Any, position: Any, a: float = -0.75) -> list[Tap]:
    """The four neighbours of each position, by cubic convolution."""
    low = xp.floor(position)
    found = []
    for offset in range(-1, 3):
        distance = xp.abs(position - low - offset)
        if offset in (0, 1):
            weight = ((a + 2) * distance - (a + 3)) * distance * distance + 1
        else:
            weight = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        found.append((low + offset, weight))
    return found


@op("grid_sample", onnx="GridSample")
class GridSample(Op):
    """x (n, c, spatial…) at the positions of a grid (n, spatial…, rank); ONNX GridSample.

    A position has one coordinate from −1 to 1 for each axis, that of the last axis first. Positions outside read zero,
    the border, or a reflection. With `align_corners`, ±1 are the centres of the outermost pixels, else their outer
    edges.
    """

    x: In
    grid: In
    align_corners: int = 0
    mode: str = "linear"
    padding_mode: str = "zeros"

    axes = "n c S, n P coordinate -> n c P"

    def equation(self, ctx: TypeContext) -> Equation | None:
        if self.mode not in ("linear", "nearest", "cubic"):
            ctx.fail(f"nothing is sampled by {self.mode!r}")
        found = super().equation(ctx)
        if found is not None:
            rank, (coordinate,) = len(found.letters.get("S", [])), found.letters["coordinate"]
            if isinstance(coordinate.extent, int) and coordinate.extent != rank:
                ctx.fail(f"positions of {coordinate.extent} coordinates in images of {rank} axes")
            pin(coordinate, "coordinates")
            found.windows += found.letters.get("S", [])
        return found

    def reference(self, xp: Any, x: Any, grid: Any) -> Any:
        spatial, counts = x.shape[2:], grid.shape[1:-1]
        image = xp.wide(x) if xp.is_floating(x) else xp.astype(x, elements.F64)
        grid = xp.wide(grid)
        taps = []
        for axis, extent in enumerate(spatial):
            place = xp.reshape(grid[..., len(spatial) - 1 - axis], (x.shape[0], math.prod(counts)))
            place = (place + 1) / 2 * (extent - 1) if self.align_corners else ((place + 1) * extent - 1) / 2
            low, high = (0.0, extent - 1.0) if self.align_corners else (-0.5, extent - 0.5)
            place = xp.rint(place) if self.mode == "nearest" else place
            if self.mode != "cubic":  # there, PyTorch and onnxruntime leave positions and move pixels only
                place = self._inside(xp, place, low, high, extent)
            if self.mode == "nearest":
                found = [(place, xp.ones_like(place))]
            else:
                found = linear_taps(xp, place) if self.mode == "linear" else cubic_taps(xp, place)
            taps.append([(self._inside(xp, p, low, high, extent, pixels=True), weight) for p, weight in found])
        taps = [[(p, xp.astype(weight, xp.element(image))) for p, weight in found] for found in taps]
        return xp.astype(xp.reshape(gather(xp, image, taps), (*x.shape[:2], *counts)), xp.element(x))

    def _inside(self, xp: Any, place: Any, low: float, high: float, extent: int, pixels: bool = False) -> Any:
        """Positions brought into the image as `padding_mode` says."""
        if self.padding_mode == "zeros":
            return place
        if self.padding_mode == "border":
            outside = place != place if pixels else xp.logical_and(place >= low, place <= high)
            clipped = xp.clip(place, 0, extent - 1)
            return clipped if pixels else xp.where(outside, place, clipped)
        span = high - low
        if span == 0:
            return xp.zeros_like(place)
        beyond = xp.where(place < low, low - place, xp.where(place > high, place - high, xp.zeros_like(place)))
        turns = xp.trunc(beyond / span)
        rest = beyond - turns * span
        from_low = (xp.trunc(turns / 2) * 2 == turns) == (place < low)
        mirrored = xp.where(from_low, low + rest, high - rest)
        reflected = xp.where(xp.logical_or(place < low, place > high), mirrored, place)
        return xp.trunc(reflected) if pixels else reflected


@op("deform_conv", onnx="DeformConv")
class DeformConv(Op):
    """Convolution whose kernel offsets are moved by `offset` and weighted by `mask`; ONNX DeformConv.

    x (n, g·i, H, W), w (g·o, i, K, L), offset (n, groups·K·L·2, P, Q), b (g·o), mask (n, groups·K·L, P, Q). Positions
    between pixels are interpolated linearly, those outside count as zero.
    """

    x: In
    w: In
    offset: In
    b: In | None
    mask: In | None
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    offset_group: int = 1

    auto_pad: ClassVar[str] = "NOTSET"
    bound = {"group": "g"}
    contracts = True

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        return zeros.either(states[:2]) and (not ctx.has("b") or states[3] is True)

    def equation(self, ctx: TypeContext) -> Equation | None:
        check_window(self, ctx, ctx.shape("w"))
        found = self.declared(ctx, "n (g i) window(P, K), (g o) i K, n f P, (g o), n m P -> n (g o) P")
        if found is not None:
            for letter in "fm" + ("gi" if self.offset_group > 1 else ""):
                for variable in found.letters.get(letter, []):
                    pin(variable, "groups of offsets")
            found.windows += found.letters["f"] + found.letters.get("m", [])
        return found

    def window_extent(self, axis: int, extent: Dimension, kernel: Dimension) -> Dimension:
        return window_count(self, axis, extent, kernel)

    def reference(self, xp: Any, x: Any, w: Any, offset: Any, b: Any = None, mask: Any = None) -> Any:
        spatial = x.ndim - 2
        strides, dilations = self.strides or (1,) * spatial, self.dilations or (1,) * spatial
        pads, kernel, counts = pairs(self.pads, spatial), w.shape[2:], offset.shape[2:]
        n, channels, groups, taps = x.shape[0], x.shape[1], self.offset_group, math.prod(kernel)
        kind = xp.element(x)
        offset = xp.reshape(xp.wide(offset), (n, groups, taps, spatial, *counts))
        grids = []
        for axis in range(spatial):
            start = np.arange(counts[axis]) * strides[axis] - pads[axis][0]
            base = np.asarray(start.reshape((-1,) + (1,) * (spatial - 1 - axis)), np.float64)
            step = np.indices(kernel)[axis].reshape((taps,) + (1,) * spatial) * dilations[axis]
            moved = xp.astype(xp.asarray(base + step), xp.element(offset))
            grids.append(xp.reshape(offset[:, :, :, axis] + moved, (n, groups, taps * math.prod(counts))))
        values = xp.reshape(xp.wide(x), (n * groups, channels // groups, *x.shape[2:]))
        neighbours = [linear_taps(xp, xp.reshape(grid, (n * groups, taps * math.prod(counts)))) for grid in grids]
        sampled = xp.reshape(gather(xp, values, neighbours), (n, groups, channels // groups, taps, *counts))
        if mask is not None:
            sampled = sampled * xp.reshape(xp.wide(mask), (n, groups, 1, taps, *counts))
        per_group = channels // self.group
        sampled = xp.reshape(sampled, (n, self.group, per_group * taps, math.prod(counts)))
        weight = xp.reshape(xp.wide(w), (1, self.group, w.shape[0] // self.group, per_group * taps))
        y = xp.reshape(xp.matmul(weight, sampled), (n, w.shape[0], *counts))
        return xp.astype(y if b is None else y + xp.reshape(xp.wide(b), (1, -1) + (1,) * spatial), kind)


def sampled_rows(
    begin: np.float32, bin_size: np.float32, bins: int, grid: int, extent: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The two neighbours (2 × bins × grid) of the sampling points of one axis of a region, and their weights."""
    steps = (np.arange(grid, dtype=np.float32) + np.float32(0.5)) * bin_size / np.float32(max(grid, 1))
    place = begin + np.arange(bins, dtype=np.float32)[:, None] * bin_size + steps
    outside = (place < -1) | (place > extent)
    place = np.maximum(place, np.float32(0))
    low = np.minimum(place.astype(np.int64), extent - 1)
    part = np.where(low >= extent - 1, np.float32(0), place - low.astype(np.float32))
    weights = np.where(outside, np.float32(0), np.stack([1 - part, part]))
    indices = np.where(outside, 0, np.stack([low, np.minimum(low + 1, extent - 1)]))
    return indices, weights.astype(np.float32)


@op("roi_align", onnx="RoiAlign")
class RoiAlign(Op):
    """Each region (x1, y1, x2, y2) of an image of x (n, c, h, w), interpolated and pooled to bins; ONNX RoiAlign.

    rois (regions, 4) in units of 1/`spatial_scale` pixels, batch_indices (regions). A bin takes `sampling_ratio`²
    points, or, with 0, as many as its extents rounded up. The maximum is that of the weighted neighbours, as ONNX
    defines it.
    """

    x: In
    rois: In
    batch_indices: In
    coordinate_transformation_mode: str = "half_pixel"
    mode: str = "avg"
    output_height: int = 1
    output_width: int = 1
    sampling_ratio: int = 0
    spatial_scale: float = 1.0

    zero = zeros.first

    def equation(self, ctx: TypeContext) -> Equation | None:
        if self.mode.lower() not in ("avg", "max"):
            ctx.fail(f"regions are not pooled by {self.mode!r}")
        return region_equation(self, ctx, "n c h w, m corners, m -> m c p q", (self.output_height, self.output_width))

    def reference(self, xp: Any, x: Any, rois: Any, batch_indices: Any) -> Any:
        kind, image = xp.element(x), xp.wide(x)
        half = self.coordinate_transformation_mode.lower() == "half_pixel"
        corners = xp.to_numpy(rois).astype(np.float32) * np.float32(self.spatial_scale) - np.float32(0.5 * half)
        found = []
        for (x1, y1, x2, y2), batch in zip(corners, xp.to_numpy(batch_indices).tolist(), strict=True):
            rows = self._points(y1, y2, half, self.output_height, x.shape[2])
            columns = self._points(x1, x2, half, self.output_width, x.shape[3])
            found.append(self._pool(xp, image[int(batch)], rows, columns))
        empty = (0, x.shape[1], self.output_height, self.output_width)
        return xp.astype(xp.stack(found, axis=0) if found else xp.zeros(empty, kind), kind)

    def _points(
        self, begin: np.float32, end: np.float32, half: bool, bins: int, extent: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        length = end - begin if half else max(end - begin, np.float32(1))
        size = np.float32(length / np.float32(bins))
        grid = self.sampling_ratio if self.sampling_ratio > 0 else max(0, math.ceil(size))
        return sampled_rows(begin, size, bins, grid, extent)

    def _pool(self, xp: Any, image: Any, rows: Any, columns: Any) -> Any:
        """One region of one image (c, h, w) as (c, bins, bins)."""
        (row, row_weight), (column, column_weight) = rows, columns
        count = row.shape[2] * column.shape[2]
        if count == 0:
            return xp.zeros((image.shape[0], row.shape[1], column.shape[1]), xp.element(image))
        if self.mode.lower() == "avg":  # a bin is a weighted sum of pixels: two products with sparse matrices
            left, right = (
                self._matrix(index, weight, extent)
                for (index, weight), extent in zip((rows, columns), image.shape[1:], strict=True)
            )
            left, right = (xp.astype(xp.asarray(matrix), xp.element(image)) for matrix in (left, right.T))
            return xp.matmul(xp.matmul(left, image), right) / count
        pixels = xp.take(xp.take(image, xp.asarray(row.reshape(-1)), axis=1), xp.asarray(column.reshape(-1)), axis=2)
        weights = row_weight.reshape(-1, 1) * column_weight.reshape(1, -1)
        values = pixels * xp.astype(xp.asarray(weights), xp.element(image))
        values = xp.reshape(values, (image.shape[0], *row.shape, *column.shape))
        return xp.max(values, axis=(1, 3, 4, 6))

    @staticmethod
    def _matrix(index: NDArray[np.int64], weight: NDArray[np.float32], extent: int) -> NDArray[np.float64]:
        """(bins × extent): how much of each pixel goes into a bin along one axis."""
        matrix = np.zeros((index.shape[1], extent))
        bins = np.broadcast_to(np.arange(index.shape[1])[None, :, None], index.shape)
        np.add.at(matrix, (bins, index), weight)
        return matrix


@op("max_roi_pool", onnx="MaxRoiPool")
class MaxRoiPool(Op):
    """The maxima of the bins of each region (image, x1, y1, x2, y2) of x (n, c, h, w); ONNX MaxRoiPool.

    Corners are scaled, rounded, and both inside. Bins that hold no pixel are zero.
    """

    x: In
    rois: In
    pooled_shape: tuple[int, ...]
    spatial_scale: float = 1.0

    zero = zeros.first

    def equation(self, ctx: TypeContext) -> Equation | None:
        return region_equation(self, ctx, "n c h w, m corners -> m c p q", self.pooled_shape)

    def reference(self, xp: Any, x: Any, rois: Any) -> Any:
        height, width = self.pooled_shape
        found = []
        for batch, *corners in xp.to_numpy(rois).astype(np.float32):
            scaled = np.multiply(corners, np.float32(self.spatial_scale))
            x1, y1, x2, y2 = (int(math.floor(abs(c) + 0.5) * np.sign(c)) for c in scaled)
            image, rows = x[int(batch)], []
            for top, bottom in self._bins(y1, y2, height, x.shape[2]):
                cells = []
                for left, right in self._bins(x1, x2, width, x.shape[3]):
                    if bottom > top and right > left:
                        cells.append(xp.max(image[:, top:bottom, left:right], axis=(1, 2)))
                    else:
                        cells.append(xp.zeros((x.shape[1],), xp.element(x)))
                rows.append(xp.stack(cells, axis=-1))
            found.append(xp.stack(rows, axis=1))
        return xp.stack(found, axis=0) if found else xp.zeros((0, x.shape[1], height, width), xp.element(x))

    @staticmethod
    def _bins(begin: int, end: int, count: int, extent: int) -> list[tuple[int, int]]:
        """Where each bin of one axis begins and ends."""
        size = np.float32(max(end - begin + 1, 1)) / np.float32(count)
        edges = [(math.floor(np.float32(k) * size), math.ceil(np.float32(k + 1) * size)) for k in range(count)]
        return [(min(max(low + begin, 0), extent), min(max(high + begin, 0), extent)) for low, high in edges]


def region_equation(operator: Op, ctx: TypeContext, text: str, bins: Sequence[int]) -> Equation | None:
    """The axes of a pooling of regions; those of images and bins are pinned."""
    known: dict[str, Dimension] = {"p": bins[0], "q": bins[1]}
    found = operator.declared(ctx, text, known)
    if found is not None:
        for letter in ("n", "h", "w", "p", "q", "corners"):
            pin(found.letters[letter][0], "regions are data")
    return found
