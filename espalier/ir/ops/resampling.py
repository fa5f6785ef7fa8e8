"""Resizing by interpolation, axis by axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.ir import zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension, floor_divide
from espalier.ir.op import In, Op, OperandError, TypeContext, op
from espalier.ir.ops.movement import listed
from espalier.ir.terms import Term, Variable

Floats = NDArray[np.float64]
NEAREST: dict[str, Callable[[Floats], Floats]] = {
    "round_prefer_floor": lambda positions: np.ceil(positions - 0.5),
    "round_prefer_ceil": lambda positions: np.floor(positions + 0.5),
    "floor": lambda positions: np.floor(positions),
    "ceil": lambda positions: np.ceil(positions),
}
"""The index next to each position, by ONNX's nearest_mode."""


@op("resize", onnx="Resize")
class Resize(Op):
    """x interpolated to other extents, given by `scales` or `sizes` of some axes (all by default); ONNX Resize.

    `resized_axes` is ONNX's `axes`. `roi` (begins, then ends, as fractions) counts for tf_crop_and_resize only, and
    then with `sizes` only: ONNX's text and its implementations disagree about what it means with `scales`.
    """

    x: In
    roi: In | None
    scales: In | None
    sizes: In | None
    antialias: int = 0
    resized_axes: tuple[int, ...] | None = None
    coordinate_transformation_mode: str = "half_pixel"
    cubic_coeff_a: float = -0.75
    exclude_outside: int = 0
    extrapolation_value: float = 0.0
    keep_aspect_ratio_policy: str = "stretch"
    mode: str = "nearest"
    nearest_mode: str = "round_prefer_floor"

    onnx_names = {"resized_axes": "axes"}

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        extrapolates = self.coordinate_transformation_mode == "tf_crop_and_resize" and self.extrapolation_value != 0
        return states[0] is True and not extrapolates

    def chosen(self, rank: int) -> list[int]:
        """The axes that scales and sizes are for."""
        axes = range(rank) if self.resized_axes is None else self.resized_axes
        return [axis + rank if axis < 0 else axis for axis in axes]

    def equation(self, ctx: TypeContext) -> Equation | None:
        x = ctx.shape("x")
        if x is None:
            return None
        if self.mode not in ("nearest", "linear", "cubic") or self.coordinate_transformation_mode not in COORDINATES:
            ctx.fail(f"nothing is resized by {self.mode} with {self.coordinate_transformation_mode}")
        axes, extents = self.chosen(len(x)), self._extents(ctx, x)
        moved = {axis for k, axis in enumerate(axes) if extents[k] != x[axis] or not self._keeps(ctx, k)}
        operand: list[Term] = [Variable(extent) for extent in x]
        result = list(operand)
        for axis in sorted(moved):
            operand[axis] = Variable(x[axis], "resized")
            result[axis] = Variable(extents[axes.index(axis)], "resized")
        found = Equation([operand, *[None] * (len(ctx.types) - 1)], [result])
        found.letters = {f"d{k}": [term] for k, term in enumerate(operand) if isinstance(term, Variable)}
        found.letters |= {f"r{k}": [term] for k in moved if isinstance(term := result[k], Variable)}
        if ctx.has("sizes") and self.keep_aspect_ratio_policy == "stretch" and ctx.numbers("sizes") is not None:
            found.bound["sizes"] = [result[axis] for axis in axes]
        return found

    def _keeps(self, ctx: TypeContext, k: int) -> bool:
        """Whether the k-th chosen axis, whose extent stays, is not resampled."""
        if self.coordinate_transformation_mode == "tf_crop_and_resize":
            return False
        scales = ctx.numbers("scales") if given(ctx, "scales") else None
        return scales is None or float(scales[k]) == 1.0

    def _extents(self, ctx: TypeContext, x: tuple[Dimension, ...]) -> list[Dimension]:
        """The extents of the chosen axes in the result."""
        axes = self.chosen(len(x))
        if given(ctx, "sizes"):
            sizes = ctx.dimensions("sizes")
            if sizes is not None and len(sizes) != len(axes):
                ctx.fail(f"{len(sizes)} sizes for {len(axes)} axes")
            if sizes is None:
                return [ctx.fresh() for _ in axes]
            if self.keep_aspect_ratio_policy == "stretch":
                return list(sizes)
            extents = [x[axis] for axis in axes]
            static = [(s, e) for s, e in zip(sizes, extents, strict=True) if isinstance(s, int) and isinstance(e, int)]
            if len(static) < len(axes):
                return [ctx.fresh() for _ in axes]
            return list(self._kept_ratio([s for s, _ in static], [e for _, e in static])[1])
        if not given(ctx, "scales"):
            ctx.fail("resizing needs scales or sizes")
        scales = ctx.numbers("scales")
        if scales is None:
            return [ctx.fresh() for _ in axes]
        if scales.size != len(axes):
            ctx.fail(f"{scales.size} scales for {len(axes)} axes")
        found: list[Dimension] = []
        for axis, scale in zip(axes, scales.tolist(), strict=True):
            extent, ratio = x[axis], Fraction(scale)
            if isinstance(extent, int):
                found.append(scaled_extent(extent, scale))
            elif ratio.numerator < 1 << 12 and ratio.denominator < 1 << 12:
                found.append(floor_divide(extent * ratio.numerator, ratio.denominator))
            else:
                found.append(ctx.fresh())
        return found

    def _kept_ratio(self, sizes: list[int], extents: list[int]) -> tuple[float, list[int]]:
        choose = min if self.keep_aspect_ratio_policy == "not_larger" else max
        scale = choose(size / extent for size, extent in zip(sizes, extents, strict=True))
        return scale, [math.floor(scale * extent + 0.5) for extent in extents]

    def reference(self, xp: Any, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
        axes = self.chosen(x.ndim)
        extents = [x.shape[axis] for axis in axes]
        crop = self.coordinate_transformation_mode == "tf_crop_and_resize"
        region = [0.0] * len(axes) + [1.0] * len(axes)
        if crop:
            if roi is None:
                raise OperandError("tf_crop_and_resize needs a region of interest")
            region = xp.to_numpy(roi).astype(np.float64).tolist()
        if sizes is not None and 0 not in sizes.shape:
            wanted = listed(xp, sizes)  # a dimension where an axis stays as it is
            factors: list[Any] = [
                1.0 if size == extent or extent == 0 else int(size) / int(extent)
                for size, extent in zip(wanted, extents, strict=True)
            ]
            if self.keep_aspect_ratio_policy != "stretch":
                scale, wanted = self._kept_ratio(wanted, extents)
                factors = [scale] * len(axes)
        else:
            factors = list(xp.to_numpy(scales).astype(np.float32))
            wanted = [scaled_extent(extent, float(scale)) for extent, scale in zip(extents, factors, strict=True)]
            if crop and region != [0.0] * len(axes) + [1.0] * len(axes):
                raise OperandError("resizing a region by scales is ambiguous in ONNX; give sizes")
        y = xp.wide(x) if self.mode != "nearest" else x
        for k, axis in enumerate(axes):
            if wanted[k] == extents[k] and float(factors[k]) == 1.0 and not crop:
                continue
            y = self._along(xp, y, axis, factors[k], wanted[k], (region[k], region[k + len(axes)]))
        return xp.astype(y if not xp.element(x).is_integer else xp.trunc(y), xp.element(x))

    def _along(self, xp: Any, x: Any, axis: int, scale: Any, count: int, region: tuple[float, float]) -> Any:
        """One axis resampled to `count` positions."""
        extent = x.shape[axis]
        positions = COORDINATES[self.coordinate_transformation_mode](
            np.arange(count), scale, extent, float(scale) * extent, count, region
        )
        positions = np.asarray(positions, np.float64)
        if self.mode == "nearest":
            y = xp.take(x, xp.asarray(np.clip(self._nearest(positions), 0, extent - 1)), axis=axis)
        else:
            indices, weights = self._taps(positions, float(scale), extent)
            y = self._weighted(xp, x, axis, np.clip(indices, 0, extent - 1), weights)
        if self.coordinate_transformation_mode == "tf_crop_and_resize":
            outside = (positions < 0) | (positions > extent - 1)
            outside = outside.reshape((-1,) + (1,) * (x.ndim - 1 - axis))
            y = xp.where(xp.asarray(outside), xp.zeros_like(y) + self.extrapolation_value, y)
        return y

    def _weighted(self, xp: Any, x: Any, axis: int, indices: NDArray[np.int64], weights: Floats) -> Any:
        """Σ over taps of weight · x at index; both are taps × positions."""
        floats = x if xp.is_floating(x) else xp.astype(x, xp.element(xp.asarray(weights)))
        total: Any = 0
        for index, weight in zip(indices, weights, strict=True):
            factor = xp.astype(xp.asarray(weight.reshape((-1,) + (1,) * (x.ndim - 1 - axis))), xp.element(floats))
            total = total + xp.take(floats, xp.asarray(index), axis=axis) * factor
        return total

    def _nearest(self, positions: Floats) -> NDArray[np.int64]:
        return NEAREST[self.nearest_mode](positions).astype(np.int64)

    def _taps(self, positions: Floats, scale: float, extent: int) -> tuple[NDArray[np.int64], Floats]:
        """Indices (perhaps outside) and weights that make each position: taps × positions."""
        squeeze = min(scale, 1.0) if self.antialias else 1.0
        reach = 1 if self.mode == "linear" else 2
        first = math.floor(-reach / squeeze) + 1
        base = np.floor(positions)
        offsets = np.arange(first, 1 - first + 1)[:, None]
        distance = np.abs(offsets - (positions - base)) * squeeze
        a = self.cubic_coeff_a
        if self.mode == "linear":
            weights = np.clip(1 - distance, 0, 1)
        else:
            near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
            far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
            weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        indices = (base + offsets).astype(np.int64)
        if self.exclude_outside:
            weights = np.where((indices < 0) | (indices >= extent), 0.0, weights)
        if self.antialias or self.exclude_outside:
            weights = weights / weights.sum(axis=0)
        return indices, weights


def given(ctx: TypeContext, operand: str) -> bool:
    """Whether an optional operand is there and not empty (as older models write an absent one)."""
    return ctx.has(operand) and ctx.shape(operand) != (0,)


def scaled_extent(extent: int, scale: float) -> int:
    """⌊extent · scale⌋ in f32, as ONNX computes it; an extent that is not known may stay as it is."""
    return extent if scale == 1 else int(np.floor(np.float32(extent) * np.float32(scale)))


def _align_corners(x: Any, scale: Any, extent: int, width: float, count: int, region: Any) -> Any:
    return x * (extent - 1) / (width - 1) if width != 1 else x * 0.0


def _crop(x: Any, scale: Any, extent: int, width: float, count: int, region: tuple[float, float]) -> Any:
    begin, end = region
    if width == 1:
        return x * 0.0 + 0.5 * (begin + end) * (extent - 1)
    return begin * (extent - 1) + x * (end - begin) * (extent - 1) / (width - 1)


def _half_pixel(x: Any, scale: Any, extent: int, width: float, count: int, region: Any) -> Any:
    half = type(scale)(0.5)
    return (x.astype(np.asarray(scale).dtype) + half) / scale - half


def _half_pixel_symmetric(x: Any, scale: Any, extent: int, width: float, count: int, region: Any) -> Any:
    return extent / 2 * (1 - count / width) + (x + 0.5) / float(scale) - 0.5


COORDINATES: dict[str, Callable[[Any, Any, int, float, int, Any], Any]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda x, *rest: _half_pixel(x, *rest) if rest[3] > 1 else x * 0.0,
    "align_corners": _align_corners,
    "asymmetric": lambda x, scale, *rest: x.astype(np.asarray(scale).dtype) / scale,
    "tf_crop_and_resize": _crop,
}
"""Position in x by (positions in the result, scale, extent, scale · extent, extent of the result, region)."""
