"""Operators that read shapes, and operators that make tensors from shapes and numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.ir import dims, elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, OperandError, TypeContext, op
from espalier.ir.ops.movement import described, length, listed, unknown_shape, variables
from espalier.ir.terms import Term, Variable
from espalier.ir.types import TensorType, Type

READ = "its extent is read"


@op("shape", onnx="Shape")
class Shape(Op):
    """The extents of the axes start to end (exclusive), as i64."""

    x: In
    start: int = 0
    end: int | None = None

    def span(self, rank: int) -> tuple[int, int]:
        """The axes that are read: from, to (exclusive)."""
        start, stop, _ = slice(self.start, self.end).indices(rank)
        return start, max(start, stop)

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("x")
        if shape is None:
            return None
        start, stop = self.span(len(shape))
        axes: list[Term] = [
            Variable(extent, READ if start <= axis < stop else None) for axis, extent in enumerate(shape)
        ]
        return described(ctx, [axes], [[Variable(stop - start, "a shape")]])

    def element(self, ctx: TypeContext) -> Element:
        return elements.I64

    def infer(self, ctx: TypeContext) -> list[Type]:
        if ctx.shape("x") is None:
            return [TensorType(elements.I64, (ctx.fresh(),))]
        return super().infer(ctx)

    def content(self, ctx: TypeContext) -> NDArray[Any] | None:
        shape = ctx.shape("x")
        if shape is None:
            return None
        start, stop = self.span(len(shape))
        return dimension_array(shape[start:stop])

    def reference(self, xp: Any, x: Any) -> Any:
        start, stop = self.span(x.ndim)
        return xp.asarray(np.array(tuple(x.shape)[start:stop], np.int64))


def dimension_array(extents: dims.Shape) -> NDArray[Any]:
    """Extents as numbers if all are, else as an object array."""
    return np.array(extents, np.int64 if dims.is_static(extents) else object)


@op("size", onnx="Size")
class Size(Op):
    """The number of elements, as an i64 scalar."""

    x: In

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("x")
        return None if shape is None else described(ctx, [variables(shape, READ)], [[]])

    def infer(self, ctx: TypeContext) -> list[Type]:
        return [TensorType(elements.I64, ())]

    def content(self, ctx: TypeContext) -> NDArray[Any] | None:
        shape = ctx.shape("x")
        if shape is None:
            return None
        return dimension_array((dims.product(shape),)).reshape(())

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.asarray(np.array(math.prod(x.shape), np.int64))


@op("constant_of_shape", onnx="ConstantOfShape")
class ConstantOfShape(Op):
    """A tensor of one value. ONNX's one-element tensor `value` is the number `value` of element `dtype` here."""

    shape: In
    value: Any = 0.0
    dtype: Element = elements.F32

    symbolic = True

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        return not isinstance(self.value, str) and self.value == 0

    def element(self, ctx: TypeContext) -> Element:
        return self.dtype

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.dimensions("shape")
        if shape is None:
            return None
        axes = variables(shape)
        return described(ctx, [None], [axes], bound={"shape": axes})

    def infer(self, ctx: TypeContext) -> list[Type]:
        if ctx.content("shape") is None:
            return [TensorType(self.dtype, unknown_shape(ctx, length(ctx, "shape")))]
        return super().infer(ctx)

    def reference(self, xp: Any, shape: Any) -> Any:
        return xp.full(tuple(listed(xp, shape)), self.value, self.dtype)


@op("range", onnx="Range")
class Range(Op):
    """start, start + delta, … before limit."""

    start: In
    limit: In
    delta: In
    stash_type: int = 1

    symbolic = True

    def infer(self, ctx: TypeContext) -> list[Type]:
        contents = [ctx.content(operand) for operand in range(3)]
        extent: Dimension | None = None
        if all(content is not None and content.size == 1 for content in contents):
            scalars = [content.reshape(-1).tolist()[0] for content in contents if content is not None]
            extent = range_extent(*scalars)
        return [TensorType(ctx.element(0), (ctx.fresh() if extent is None else extent,))]

    def equation(self, ctx: TypeContext) -> Equation | None:
        found = self.infer(ctx)[0]
        extents = found.shape if isinstance(found, TensorType) else None
        if extents is None or any(ctx.content(operand) is None for operand in range(3)):
            return None
        return described(ctx, [], [variables(extents, "a range of numbers")])

    def reference(self, xp: Any, start: Any, limit: Any, delta: Any) -> Any:
        scalars = [listed(xp, bound)[0] for bound in (start, limit, delta)]
        extent = range_extent(*scalars)
        if extent is None:
            raise dims.NotANumberError(f"a range in steps of {scalars[2]}")
        if isinstance(scalars[0], dims.Dim) or start.dtype == object:
            found = xp.arange(extent) * scalars[2] + scalars[0]
            return found if delta.dtype == object else xp.astype(found, xp.element(delta))
        kind, first, step = xp.element(start), xp.reshape(start, ()), xp.reshape(delta, ())
        if kind.is_float:
            wide = elements.F32 if self.stash_type == 1 and kind.bits < 32 else kind
            first, step = xp.astype(first, wide), xp.astype(step, wide)
            return xp.astype(first + xp.astype(xp.arange(extent), wide) * step, kind)
        return first + xp.astype(xp.arange(extent), kind) * step


def range_extent(start: Any, limit: Any, delta: Any) -> Any:
    """The number of entries of a range of numbers or dimensions; None if it is not determined."""
    if isinstance(delta, dims.Dim):
        return None
    if delta == 0:
        raise OperandError("a range with steps of 0")
    if isinstance(start, float):
        return max(0, math.ceil((limit - start) / delta))
    return dims.ceil_divide(at_least_zero(limit - start if delta > 0 else start - limit), abs(delta))


def at_least_zero(extent: Dimension) -> Dimension:
    """max(0, extent), without the max where it is not needed."""
    bound, below = dims.lower_bound(extent), dims.lower_bound(-extent)
    if below is not None and below >= 0:
        return 0
    return extent if bound is not None and bound >= 0 else dims.maximum(0, extent)


@op("eye_like", onnx="EyeLike")
class EyeLike(Op):
    """Ones on the k-th diagonal of a matrix of the operand's shape, zeros elsewhere."""

    x: In
    dtype: Element | None = None
    k: int = 0

    def element(self, ctx: TypeContext) -> Element:
        return self.dtype or ctx.element("x")

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("x")
        if shape is None:
            return None
        if len(shape) != 2:
            ctx.fail(f"a matrix is needed, not rank {len(shape)}")
        axes = variables(shape, "a diagonal")
        return described(ctx, [axes], [axes])

    def reference(self, xp: Any, x: Any) -> Any:
        rows, columns = x.shape
        offset = xp.reshape(xp.arange(columns), (1, -1)) - xp.reshape(xp.arange(rows), (-1, 1))
        return xp.astype(offset == self.k, self.dtype or xp.element(x))


@op("mel_weight_matrix", onnx="MelWeightMatrix")
class MelWeightMatrix(Op):
    """Weights (spectrogram bins, mel bins) that turn a linear spectrogram into mel bins: triangles between edges."""

    num_mel_bins: In
    dft_length: In
    sample_rate: In
    lower_edge_hertz: In
    upper_edge_hertz: In
    output_datatype: Element = elements.F32

    def element(self, ctx: TypeContext) -> Element:
        return self.output_datatype

    def infer(self, ctx: TypeContext) -> list[Type]:
        bins, length_ = ctx.dimensions("num_mel_bins"), ctx.dimensions("dft_length")
        rows: Dimension = ctx.fresh() if length_ is None else dims.floor_divide(length_[0], 2) + 1
        return [TensorType(self.output_datatype, (rows, ctx.fresh() if bins is None else bins[0]))]

    def reference(self, xp: Any, *operands: Any) -> Any:
        bins, points, rate, low, high = (listed(xp, operand)[0] for operand in operands)
        rows = points // 2 + 1
        low_mel, high_mel = (2595 * math.log10(1 + hertz / 700) for hertz in (low, high))
        mels = np.arange(bins + 2) * ((high_mel - low_mel) / (bins + 2)) + low_mel
        hertz = 700 * (10 ** (mels / 2595) - 1)
        edges = (((points + 1) * hertz) // rate).astype(np.int64)
        found = np.zeros((rows, bins))
        for column in range(bins):
            lower, center, upper = edges[column : column + 3].tolist()
            if lower == center:
                found[center, column] = 1
            else:
                rising = np.arange(lower, center + 1)
                found[rising, column] = (rising - lower) / (center - lower)
            if upper > center:
                falling = np.arange(center, upper)
                found[falling, column] = (upper - falling) / (upper - center)
        return xp.astype(xp.asarray(found), self.output_datatype)
