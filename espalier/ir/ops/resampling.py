"""Resizing by interpolation, axis by axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from espalier.ir import elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension, floor_divide
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, OperandError, TypeContext, op
from espalier.ir.ops.movement import listed
from espalier.ir.terms import Term, Variable
from espalier.ir.xp import numpy as numpy_xp

NEAREST: dict[str, Callable[[Any, Any], Any]] = {
    "round_prefer_floor": lambda xp, positions: xp.ceil(positions - 0.5),
    "round_prefer_ceil": lambda xp, positions: xp.floor(positions + 0.5),
    "floor": lambda xp, positions: xp.floor(positions),
    "ceil": lambda xp, positions: xp.ceil(positions),
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
        sizes = ctx.dimensions("sizes") if given(ctx, "sizes") else None
        moved = {axis for k, axis in enumerate(axes) if extents[k] != x[axis] or not self._keeps(ctx, k)}
        if sizes is not None:  # what is asked for may differ from what a kept aspect ratio makes of it
            moved |= {axis for axis, size in zip(axes, sizes, strict=True) if size != x[axis]}
        operand: list[Term] = [Variable(extent) for extent in x]
        result = list(operand)
        for axis in sorted(moved):
            operand[axis] = Variable(x[axis], "resized")
            result[axis] = Variable(extents[axes.index(axis)], "resized")
        found = Equation([operand, *[None] * (len(ctx.types) - 1)], [result])
        found.letters = {f"d{k}": [term] for k, term in enumerate(operand) if isinstance(term, Variable)}
        found.letters |= {f"r{k}": [term] for k in moved if isinstance(term := result[k], Variable)}
        if sizes is not None:
            found.bound["sizes"] = [result[axis] for axis in axes]
        return found

    def _keeps(self, ctx: TypeContext, k: int) -> bool:
        """Whether the k-th chosen axis, whose extent stays, is not resampled."""
        if self.coordinate_transformation_mode == "tf_crop_and_resize":
            return False
        sizes, x = ctx.dimensions("sizes") if given(ctx, "sizes") else None, ctx.shape("x")
        if self.keep_aspect_ratio_policy != "stretch" and sizes is not None and x is not None:
            pairs = self._static(sizes, x)  # one scale is for all axes, and an extent may be the same by rounding
            return pairs is not None and self._kept_ratio(*pairs)[0] == 1
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
            pairs = self._static(sizes, x)
            return [ctx.fresh() for _ in axes] if pairs is None else list(self._kept_ratio(*pairs)[1])
        if not given(ctx, "scales"):
            ctx.fail("resizing needs scales or sizes")
        scales = ctx.numbers("scales")
        if scales is None:
            return [ctx.fresh() for _ in axes]
        if scales.size != len(axes):
            ctx.fail(f"{scales.size} scales for {len(axes)} axes")
        found: list[Dimension] = []
        for axis, scale in zip(axes, scales.tolist(), strict=True):
            extent = scaled_extent(x[axis], scale)
            found.append(ctx.fresh() if extent is None else extent)
        return found

    def _static(
        self, sizes: Sequence[Dimension], x: tuple[Dimension, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The sizes and the extents of the chosen axes, if all are known."""
        extents = tuple(x[axis] for axis in self.chosen(len(x)))
        wanted, had = (tuple(n for n in each if isinstance(n, int)) for each in (sizes, extents))
        return (wanted, had) if len(wanted) == len(had) == len(extents) else None

    def _kept_ratio(self, sizes: Sequence[int], extents: Sequence[int]) -> tuple[float, list[int]]:
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
        sized = sizes is not None and 0 not in sizes.shape
        if sized:
            wanted = listed(xp, sizes)  # a dimension where an axis stays as it is
            # which entry is the nearest is decided by rounding, and so as onnxruntime computes it
            element = elements.F32 if self.mode == "nearest" else elements.F64
            if self.keep_aspect_ratio_policy != "stretch":
                scale, wanted = self._kept_ratio(wanted, extents)
                factors: list[Any] = [element.dtype.type(scale)] * len(axes)
            else:
                factors = [
                    1.0 if size == extent or extent == 0 else number(xp, size, element) / number(xp, extent, element)
                    for size, extent in zip(wanted, extents, strict=True)
                ]
        else:
            factors = list(xp.to_numpy(scales).astype(np.float32))
            wanted = [
                int(extent) if (found := scaled_extent(extent, float(scale))) is None else found  # what a Dim refuses
                for extent, scale in zip(extents, factors, strict=True)
            ]
            if crop and region != [0.0] * len(axes) + [1.0] * len(axes):
                raise OperandError("resizing a region by scales is ambiguous in ONNX; give sizes")
        y = xp.wide(x) if self.mode != "nearest" else x
        for k, axis in enumerate(axes):
            if wanted[k] == extents[k] and float(factors[k]) == 1.0 and not crop:
                continue
            y = self._along(xp, y, axis, factors[k], wanted[k], sized, (region[k], region[k + len(axes)]))
        return xp.astype(y if not xp.element(x).is_integer else xp.trunc(y), xp.element(x))

    def _along(
        self, xp: Any, x: Any, axis: int, scale: Any, count: Dimension, sized: bool, region: tuple[float, float]
    ) -> Any:
        """One axis resampled to `count` positions, which were given if `sized`.

        Where they and their weights are numbers by now, they are computed as numbers.
        """
        extent = x.shape[axis]
        at = numpy_xp if isinstance(extent, int) and isinstance(count, int) else xp
        last = number(at, extent) - 1
        wide = float(scale) if isinstance(scale, float | np.floating) else at.astype(scale, elements.F64)
        width = number(at, count) if sized else wide * (last + 1)
        positions = COORDINATES[self.coordinate_transformation_mode](
            at, at.arange(count), scale, last + 1, width, number(at, count), region
        )
        positions = at.astype(positions, elements.F64)
        if self.mode == "nearest":
            nearest = at.minimum(at.maximum(NEAREST[self.nearest_mode](at, positions), 0.0), last)
            index = at.positions(at.astype(nearest, elements.I64), extent)
            y = xp.take(x, xp.asarray(index), axis=axis)
        else:
            indices, weights = self._taps(at, positions, wide, last)
            inside = at.positions(at.astype(at.minimum(at.maximum(indices, 0.0), last), elements.I64), extent)
            y = self._weighted(xp, x, axis, inside, weights)
        if self.coordinate_transformation_mode == "tf_crop_and_resize":
            outside = at.reshape((positions < 0) | (positions > last), (-1,) + (1,) * (x.ndim - 1 - axis))
            y = xp.where(xp.asarray(outside), xp.zeros_like(y) + self.extrapolation_value, y)
        return y

    def _weighted(self, xp: Any, x: Any, axis: int, indices: Any, weights: Any) -> Any:
        """Σ over taps of weight · x at index; both are taps × positions."""
        floats = x if xp.is_floating(x) else xp.astype(x, elements.F64)
        total: Any = 0
        for tap in range(weights.shape[0]):
            factor = xp.reshape(xp.asarray(weights[tap]), (-1,) + (1,) * (x.ndim - 1 - axis))
            total = total + xp.take(floats, xp.asarray(indices[tap]), axis=axis) * xp.astype(factor, xp.element(floats))
        return total

    def _taps(self, xp: Any, positions: Any, scale: Any, last: Any) -> tuple[Any, Any]:
        """Indices (perhaps outside) and weights that make each position, in f64: taps × positions."""
        squeeze = min(float(scale), 1.0) if self.antialias else 1.0
        reach = 1 if self.mode == "linear" else 2
        first = math.floor(-reach / squeeze) + 1
        base = xp.floor(positions)
        offsets = np.arange(first, 1 - first + 1, dtype=np.float64)[:, None]
        distance = xp.abs(offsets - (positions - base)) * squeeze
        a = self.cubic_coeff_a
        if self.mode == "linear":
            weights = xp.maximum(1 - distance, 0.0)
        else:
            near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
            far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
            weights = xp.where(distance <= 1, near, xp.where(distance < 2, far, 0.0))
        indices = base + offsets
        if self.exclude_outside:
            weights = xp.where((indices < 0) | (indices > last), 0.0, weights)
        if self.antialias or self.exclude_outside:
            weights = weights / xp.sum(weights, axis=0)
        return indices, weights


def given(ctx: TypeContext, operand: str) -> bool:
    """Whether an optional operand is there and not empty (as older models write an absent one)."""
    return ctx.has(operand) and ctx.shape(operand) != (0,)


def scaled_extent(extent: Dimension, scale: float) -> Dimension | None:
    """⌊extent · scale⌋ in f32, as ONNX computes it; None for what a dimension can't say."""
    if scale == 1:
        return extent
    if isinstance(extent, int):
        return int(np.floor(np.float32(extent) * np.float32(scale)))
    ratio = Fraction(scale)
    small = ratio.numerator < 1 << 12 and ratio.denominator < 1 << 12  # exact in f32 up to extents of 1 << 12
    return floor_divide(extent * ratio.numerator, ratio.denominator) if small else None


def number(xp: Any, extent: Dimension, element: Element = elements.F64) -> Any:
    """An extent as a float; as an array of one where it is not known by now."""
    if isinstance(extent, int):
        return element.dtype.type(extent)
    return xp.astype(xp.arange(extent, extent + 1), element)


def _either(xp: Any, condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """One of two; entry by entry where the condition is not known by now."""
    if isinstance(condition, bool | np.bool_):
        return yes() if condition else no()
    return xp.where(condition, yes(), no())


def _align_corners(xp: Any, x: Any, scale: Any, extent: Any, width: Any, count: Any, region: Any) -> Any:
    return _either(xp, width == 1, lambda: x * 0.0, lambda: x * (extent - 1) / (width - 1))


def _crop(xp: Any, x: Any, scale: Any, extent: Any, width: Any, count: Any, region: tuple[float, float]) -> Any:
    begin, end = region
    return _either(
        xp, width == 1,
        lambda: x * 0.0 + 0.5 * (begin + end) * (extent - 1),
        lambda: begin * (extent - 1) + x * (end - begin) * (extent - 1) / (width - 1),
    )  # fmt: skip


def _as_scale(xp: Any, x: Any, scale: Any) -> Any:
    """Positions in the element that scales are given in."""
    kind = elements.from_dtype(np.asarray(scale).dtype) if isinstance(scale, float | np.floating) else xp.element(scale)
    return xp.astype(x, kind)


def _half_pixel(xp: Any, x: Any, scale: Any, extent: Any, width: Any, count: Any, region: Any) -> Any:
    return (_as_scale(xp, x, scale) + 0.5) / scale - 0.5


def _pytorch_half_pixel(xp: Any, x: Any, scale: Any, extent: Any, width: Any, count: Any, region: Any) -> Any:
    wanted = _half_pixel(xp, x, scale, extent, width, count, region)
    return _either(xp, count > 1, lambda: wanted, lambda: wanted * 0.0)


def _half_pixel_symmetric(xp: Any, x: Any, scale: Any, extent: Any, width: Any, count: Any, region: Any) -> Any:
    wide = float(scale) if isinstance(scale, float | np.floating) else xp.astype(scale, elements.F64)
    return extent / 2 * (1 - count / (wide * extent)) + (x + 0.5) / wide - 0.5


COORDINATES: dict[str, Callable[[Any, Any, Any, Any, Any, Any, Any], Any]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": lambda xp, x, scale, *rest: _as_scale(xp, x, scale) / scale,
    "tf_crop_and_resize": _crop,
}
"""Position in x by the primitives and (positions in the result, scale, extent, width, extent of the result, region).

The width is the extent of the result where sizes are given, and scale · extent, perhaps a fraction, where scales are.
What is a number where all extents are known is an array of one otherwise.
"""
