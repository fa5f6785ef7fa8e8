"""Pooling: windows, or whole images, reduced to one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.ir import elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension, Shape, ceil_divide, floor_divide, minimum
from espalier.ir.op import In, Op, Out, TypeContext, op
from espalier.ir.ops.convolution import check_window, counted, pairs, same_pads
from espalier.ir.terms import Term, Variable, pin
from espalier.ir.types import TensorType, Type


class WindowPool(Op):
    """Base of poolings over windows of x (n, c, spatial…); pads are all begins, then all ends."""

    x: In
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    ceil_mode: int = 0

    zero = zeros.passed

    def equation(self, ctx: TypeContext) -> Equation | None:
        rank = ctx.rank(0)
        if rank is not None and rank != len(self.kernel_shape) + 2:
            ctx.fail(f"a window of {len(self.kernel_shape)} axes slides over a tensor of rank {rank}")
        check_window(self, ctx, (1, 1, *self.kernel_shape))
        kernel = {f"K.{axis}": extent for axis, extent in enumerate(self.kernel_shape)}
        return self.declared(ctx, f"n c window(P, K) -> {', '.join(['n c P'] * ctx.result_count)}", kernel)

    def window_extent(self, axis: int, extent: Dimension, kernel: Dimension) -> Dimension:
        stride = self.strides[axis] if self.strides else 1
        dilation = self.dilations[axis] if self.dilations else 1
        if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            return ceil_divide(extent, stride)
        before, after = pairs(self.pads, len(self.kernel_shape))[axis]
        span = extent + before + after - dilation * (kernel - 1) - 1
        count = floor_divide(span, stride) + 1
        if self.ceil_mode:  # windows that would start in the right padding don't count
            count = minimum(ceil_divide(span, stride) + 1, floor_divide(extent + before - 1, stride) + 1)
        return counted(count, extent, kernel)

    def padding(self, extents: Shape) -> Sequence[tuple[Dimension, Dimension]]:
        """Positions added before and after each spatial axis."""
        spatial = len(extents)
        strides, dilations = self.strides or (1,) * spatial, self.dilations or (1,) * spatial
        same = same_pads(self.auto_pad, extents, self.kernel_shape, strides, dilations)
        return same or pairs(self.pads, spatial)

    def windows(self, xp: Any, x: Any, fill: Any, *, counted: bool = False) -> Any:
        """The windows of x as (n, c, positions…, kernel elements), padded as `padded` does."""
        x, sizes = self.padded(xp, x, fill, counted=counted)
        found = xp.windows(x, *sizes)
        return xp.reshape(found, (*x.shape[:2], *sizes[-1], math.prod(self.kernel_shape)))

    def padded(self, xp: Any, x: Any, fill: Any, *, counted: bool = False) -> tuple[Any, tuple[tuple[int, ...], ...]]:
        """x padded with `fill`, and the windows' extents, strides, dilations and counts.

        Rounding up may let windows reach beyond the padding; there the fill is 0 if `counted`.
        """
        extents = tuple(x.shape[2:])
        spatial, pads = len(extents), self.padding(extents)
        strides, dilations = self.strides or (1,) * spatial, self.dilations or (1,) * spatial
        kernel = self.kernel_shape
        counts: list[Any] = [self.window_extent(axis, extents[axis], kernel[axis]) for axis in range(spatial)]
        excess = []
        for axis in range(spatial):
            reach = (counts[axis] - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
            excess.append((0, max(0, reach - sum(pads[axis]) - extents[axis])))
        for amounts, value in ((pads, fill), (excess, 0 if counted else fill)):
            if any(not isinstance(amount, int) or amount for pair in amounts for amount in pair):
                x = xp.pad(x, [(0, 0), (0, 0), *amounts], "constant", value)
        return x, (kernel, strides, dilations, tuple(counts))


@op("max_pool", onnx="MaxPool")
class MaxPool(WindowPool):
    """The largest number of each window; ONNX MaxPool.

    `indices` are positions in the whole tensor, counted along its last spatial axis first, or along its first one if
    `storage_order` is 1.
    """

    out: Out
    indices: Out | None
    storage_order: int = 0

    monotone = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        found = super().equation(ctx)
        if found is not None and ctx.result_count > 1:
            for letter in "nc":
                pin(found.letters[letter][0], "positions in the whole tensor")
        return found

    def infer(self, ctx: TypeContext) -> list[Type]:
        found = super().infer(ctx)
        if len(found) > 1 and isinstance(found[1], TensorType):
            found[1] = TensorType(elements.I64, found[1].shape)
        return found

    def first_result(self, xp: Any, x: Any) -> Any:
        kind = xp.element(x)
        padded, sizes = self.padded(xp, x, -math.inf if kind.is_float else kind.range[0])
        return xp.window_max(padded, *sizes)

    def reference(self, xp: Any, x: Any) -> Any:
        kind = xp.element(x)
        lowest = -math.inf if kind.is_float else kind.range[0]
        windows = self.windows(xp, x, lowest)
        largest = xp.max(windows, axis=-1)
        spatial = tuple(x.shape[2:])
        places = np.arange(math.prod(spatial), dtype=np.int64)
        places = places.reshape(spatial) if self.storage_order == 0 else places.reshape(spatial[::-1]).T
        places = self.windows(xp, xp.asarray(places[None, None]), -1)
        hit = windows == xp.expand_dims(largest, -1)
        if kind.is_float:
            hit = xp.logical_or(hit, xp.isnan(windows))
        first = xp.argmax(xp.astype(xp.logical_and(hit, places >= 0), elements.I8), axis=-1)
        places = xp.where(hit, places, places)  # one for each entry of each window
        indices = xp.squeeze(xp.take_along_axis(places, xp.expand_dims(first, -1), axis=-1), axis=-1)
        planes = xp.arange(x.shape[0] * x.shape[1]) * math.prod(spatial)
        return largest, indices + xp.reshape(planes, (x.shape[0], x.shape[1], *(1,) * len(spatial)))


@op("average_pool", onnx="AveragePool")
class AveragePool(WindowPool):
    """The mean of each window, padding counted only if asked; ONNX AveragePool."""

    count_include_pad: int = 0

    def reference(self, xp: Any, x: Any) -> Any:
        wide, sizes = self.padded(xp, xp.wide(x), 0)
        total = xp.window_sum(wide, *sizes)
        ones = xp.asarray(np.ones((1, 1, *x.shape[2:]), np.float64))
        count = xp.sum(self.windows(xp, ones, 1 if self.count_include_pad else 0, counted=True), axis=-1)
        return xp.astype(total / xp.astype(count, xp.element(total)), xp.element(x))


@op("lp_pool", onnx="LpPool")
class LpPool(WindowPool):
    """The p-norm of each window; ONNX LpPool."""

    p: int = 2

    def reference(self, xp: Any, x: Any) -> Any:
        return p_norm(xp, self.windows(xp, x, 0), self.p, (-1,), keepdims=False)


def p_norm(xp: Any, array: Any, p: int, axes: tuple[int, ...], keepdims: bool) -> Any:
    """(Σ |x|ᵖ)^(1/p) over axes, in the array's element, accumulated by `wide`."""
    magnitude = xp.abs(xp.wide(array))
    if p == 1:
        total = xp.sum(magnitude, axis=axes, keepdims=keepdims)
    elif p == 2:
        total = xp.sqrt(xp.sum(magnitude * magnitude, axis=axes, keepdims=keepdims))
    else:
        total = xp.sum(magnitude**p, axis=axes, keepdims=keepdims) ** (1.0 / p)
    return xp.astype(total, xp.element(array))


class GlobalPool(Op):
    """Base of poolings over all spatial axes of x (n, c, spatial…), kept with extent 1."""

    x: In

    zero = zeros.passed

    def equation(self, ctx: TypeContext) -> Equation | None:
        rank = ctx.rank(0)
        if rank is None:
            return None
        if rank < 3:
            ctx.fail(f"a tensor of rank {rank} has no spatial axes to pool over")
        return self.declared(ctx, "n c S -> n c" + " 1" * (rank - 2))


@op("global_average_pool", onnx="GlobalAveragePool")
class GlobalAveragePool(GlobalPool):
    """The mean over all spatial axes; ONNX GlobalAveragePool."""

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.astype(xp.mean(xp.wide(x), axis=tuple(range(2, x.ndim)), keepdims=True), xp.element(x))


@op("global_max_pool", onnx="GlobalMaxPool")
class GlobalMaxPool(GlobalPool):
    """The largest number over all spatial axes; ONNX GlobalMaxPool."""

    monotone = True

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@op("global_lp_pool", onnx="GlobalLpPool")
class GlobalLpPool(GlobalPool):
    """The p-norm over all spatial axes; ONNX GlobalLpPool."""

    p: int = 2

    def reference(self, xp: Any, x: Any) -> Any:
        return p_norm(xp, x, self.p, tuple(range(2, x.ndim)), keepdims=True)


@op("max_unpool", onnx="MaxUnpool")
class MaxUnpool(Op):
    """Numbers put back to the positions that `max_pool` gave as indices, zeros elsewhere; ONNX MaxUnpool.

    Indices are positions in the whole tensor that the window's attributes say; `output_shape` puts that into a larger
    one, at its begin.
    """

    x: In
    indices: In
    output_shape: In | None
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()

    def equation(self, ctx: TypeContext) -> Equation | None:
        x = ctx.shape("x")
        if x is None:
            return None
        if len(x) != len(self.kernel_shape) + 2:
            ctx.fail(f"a window of {len(self.kernel_shape)} axes for a tensor of rank {len(x)}")
        check_window(self, ctx, (1, 1, *self.kernel_shape))
        extents = self._extents(x)
        if ctx.has("output_shape"):
            extents = ctx.dimensions("output_shape") or tuple(ctx.fresh() for _ in x)
        frozen = "positions in the whole tensor"
        taken: list[Term] = [Variable(extent, frozen) for extent in x]
        result: list[Term] = [Variable(extent, frozen) for extent in extents]
        found = Equation([taken, taken, None][: len(ctx.types)], [result])
        if ctx.has("output_shape"):
            found.bound["output_shape"] = result
        return found

    def _extents(self, shape: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
        spatial = len(self.kernel_shape)
        strides, pads = self.strides or (1,) * spatial, pairs(self.pads, spatial)
        found = [
            (extent - 1) * stride - before - after + kernel
            for extent, stride, (before, after), kernel in zip(shape[2:], strides, pads, self.kernel_shape, strict=True)
        ]
        return (*shape[:2], *found)

    def reference(self, xp: Any, x: Any, indices: Any, output_shape: Any = None) -> Any:
        extents: tuple[Any, ...] = self._extents(x.shape)
        size = math.prod(extents)
        places = xp.positions(xp.reshape(indices, (-1,)), size)
        flat = xp.scatter(xp.zeros((size,), xp.element(x)), (places,), xp.reshape(x, (-1,)))
        found = xp.reshape(flat, extents)
        if output_shape is None:
            return found
        wanted = xp.to_numpy(output_shape).tolist()
        return xp.pad(found, [(0, int(want) - have) for want, have in zip(wanted, extents, strict=True)])
