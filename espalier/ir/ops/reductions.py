"""Reductions over axes, and running sums and products along one."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from espalier.ir import elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element, Quantized
from espalier.ir.op import In, Op, TypeContext, op
from espalier.ir.ops.elementwise import arithmetic_element
from espalier.ir.ops.movement import at_most
from espalier.ir.types import TensorType, Type


def axis_letters(rank: int) -> list[str]:
    """Letters for the axes of a tensor, in order."""
    return [f"i{k}" for k in range(rank)]


def axis_of(ctx: TypeContext, axis: int, rank: int) -> int:
    """The axis counted from the front. Fails if there is none."""
    if not -rank <= axis < rank:
        ctx.fail(f"there is no axis {axis} in rank {rank}")
    return axis % rank


def accumulator(xp: Any, x: Any) -> Any:
    """As `xp.wide`, but unsigned 64-bit integers stay so."""
    return x if xp.element(x) == elements.U64 else xp.wide(x)


class Reduce(Op):
    """Base of reductions over `axes` (all of them if absent or empty, unless `noop_with_empty_axes`)."""

    x: In
    axes_: In | None
    keepdims: int = 1
    noop_with_empty_axes: int = 0

    zero = zeros.passed
    additive: ClassVar[bool] = False
    """Whether zeros do not count, so that leaving an index out is the same as a zero there."""

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x", real=True)

    def reduced(self, ctx: TypeContext, rank: int) -> tuple[int, ...] | None:
        """The axes that are reduced; None if they are not known."""
        if not ctx.has("axes_"):
            given: tuple[int, ...] | None = ()
        else:
            numbers = ctx.numbers("axes_")
            given = (0,) if ctx.shape("axes_") == (0,) else None
            if numbers is not None:
                given = tuple(int(axis) for axis in numbers.reshape(-1).tolist())
            elif given is not None:
                given = ()
        if given is None:
            return None
        if not given:
            return () if self.noop_with_empty_axes else tuple(range(rank))
        return tuple(sorted({axis_of(ctx, axis, rank) for axis in given}))

    def equation(self, ctx: TypeContext) -> Equation | None:
        rank = ctx.rank("x")
        axes = None if rank is None else self.reduced(ctx, rank)
        if rank is None or axes is None:
            return None
        letters = axis_letters(rank)
        kept = ["1" if k in axes else letter for k, letter in enumerate(letters) if self.keepdims or k not in axes]
        found = self.declared(ctx, f"{' '.join(letters)}, _ -> {' '.join(kept)}")
        if found is not None and not self.additive:
            found.normalized += [found.letters[letters[k]][0] for k in axes]
        return found

    def infer(self, ctx: TypeContext) -> list[Type]:
        found, element, rank = self.equation(ctx), self.element(ctx), ctx.rank("x")
        if found is not None:
            return [TensorType(element, found.shapes()[0])]
        if rank is None:
            return [TensorType(element, None)]
        if self.keepdims:
            return [TensorType(element, tuple(ctx.fresh() for _ in range(rank)))]
        shape = ctx.shape("axes_")
        count: Dimension | None = shape[0] if shape is not None and len(shape) == 1 else None
        if not isinstance(count, int):
            return [TensorType(element, None)]
        return [TensorType(element, tuple(ctx.fresh() for _ in range(rank - count)))]

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        """The reduction of x, given in the accumulator type, with axes kept."""
        raise NotImplementedError(f"{self.name} has no function")

    def reference(self, xp: Any, x: Any, axes_: Any = None) -> Any:
        given = () if axes_ is None else tuple(int(axis) % x.ndim for axis in xp.to_numpy(axes_).reshape(-1).tolist())
        axes = given or (() if self.noop_with_empty_axes else tuple(range(x.ndim)))
        found = xp.astype(self.function(xp, accumulator(xp, x), axes), xp.element(x))
        return found if self.keepdims else xp.squeeze(found, axis=axes)


@op("reduce_sum", onnx="ReduceSum")
class ReduceSum(Reduce):
    """The sum; 0 of nothing."""

    contracts = True
    additive = True
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x")

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        return xp.sum(x, axis=axes, keepdims=True)


@op("reduce_mean", onnx="ReduceMean")
class ReduceMean(Reduce):
    """The mean; of integers, truncated towards zero."""

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x")

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        count = math.prod(x.shape[axis] for axis in axes)
        total = xp.sum(x, axis=axes, keepdims=True)
        if xp.element(total).is_integer:
            return xp.divide(total, xp.full((), count, xp.element(total)))
        return total / count if count else total * math.nan


class Extreme(Reduce):
    """Base of maximum and minimum, which bool has too."""

    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        return elements.BOOL if ctx.element("x") == elements.BOOL else super().element(ctx)

    def reference(self, xp: Any, x: Any, axes_: Any = None) -> Any:
        if 0 not in x.shape:
            return super().reference(xp, x, axes_)
        # nothing to compare: put one neutral position in place of each empty reduced axis
        given = () if axes_ is None else tuple(int(axis) % x.ndim for axis in xp.to_numpy(axes_).reshape(-1).tolist())
        axes = given or (() if self.noop_with_empty_axes else tuple(range(x.ndim)))
        shape = tuple(1 if k in axes else extent for k, extent in enumerate(x.shape))
        found = xp.full(shape, self.neutral(xp.element(x)), xp.element(x))
        return found if self.keepdims else xp.squeeze(found, axis=axes)

    def neutral(self, element: Element) -> Any:
        """The extreme of nothing."""
        raise NotImplementedError


@op("reduce_max", onnx="ReduceMax")
class ReduceMax(Extreme):
    """The maximum; −∞ or the smallest number of nothing."""

    def neutral(self, element: Element) -> Any:
        return -math.inf if element.is_float else element.range[0]

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        return xp.max(x, axis=axes, keepdims=True)


@op("reduce_min", onnx="ReduceMin")
class ReduceMin(Extreme):
    """The minimum; ∞ or the largest number of nothing."""

    def neutral(self, element: Element) -> Any:
        return math.inf if element.is_float else element.range[1]

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        return xp.min(x, axis=axes, keepdims=True)


@op("reduce_prod", onnx="ReduceProd")
class ReduceProd(Reduce):
    """The product; 1 of nothing."""

    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x")

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        return xp.prod(x, axis=axes, keepdims=True)


@op("reduce_l1", onnx="ReduceL1")
class ReduceL1(Reduce):
    """The sum of absolute values."""

    contracts = True
    additive = True

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        return xp.sum(xp.abs(x), axis=axes, keepdims=True)


@op("reduce_l2", onnx="ReduceL2")
class ReduceL2(Reduce):
    """The square root of the sum of squares."""

    contracts = True
    additive = True

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        x = as_float(xp, x)
        return xp.sqrt(xp.sum(x * x, axis=axes, keepdims=True))


@op("reduce_sum_square", onnx="ReduceSumSquare")
class ReduceSumSquare(Reduce):
    """The sum of squares."""

    contracts = True
    additive = True

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        return xp.sum(x * x, axis=axes, keepdims=True)


@op("reduce_log_sum", onnx="ReduceLogSum")
class ReduceLogSum(Reduce):
    """The logarithm of the sum."""

    zero = zeros.never
    contracts = True
    additive = True

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        return xp.log(as_float(xp, xp.sum(x, axis=axes, keepdims=True)))


@op("reduce_log_sum_exp", onnx="ReduceLogSumExp")
class ReduceLogSumExp(Reduce):
    """The logarithm of the sum of exponentials, without overflow."""

    zero = zeros.never

    def function(self, xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
        return xp.logsumexp(as_float(xp, x), axes, keepdims=True)


def as_float(xp: Any, x: Any) -> Any:
    """Integers as f64."""
    return x if xp.is_floating(x) else xp.astype(x, elements.F64)


class ArgExtreme(Op):
    """Base of positions of extremes along an axis."""

    x: In
    axis: int = 0
    keepdims: int = 1
    select_last_index: int = 0

    def element(self, ctx: TypeContext) -> Element:
        element = ctx.element("x")
        if not isinstance(element, Quantized) or element.axis is not None or element.block:
            arithmetic_element(ctx, "x", real=True)
        return elements.I64  # integers of one scale are in the order of what they stand for

    def equation(self, ctx: TypeContext) -> Equation | None:
        rank = ctx.rank("x")
        if rank is None:
            return None
        axis, letters = axis_of(ctx, self.axis, rank), axis_letters(rank)
        kept = ["1" if k == axis else letter for k, letter in enumerate(letters) if self.keepdims or k != axis]
        found = self.declared(ctx, f"{' '.join(letters)} -> {' '.join(kept)}")
        if found is not None:
            extent = found.letters[letters[axis]][0]
            extent.pinned = "the result holds positions on this axis"
            at_most(ctx, found, 1, extent.extent, f"nothing on axis {axis} is an extreme: its extent is 0")
        return found

    def positions(self, xp: Any, x: Any) -> Any:
        """Of the first extremes, with the axis kept."""
        raise NotImplementedError

    def reference(self, xp: Any, x: Any) -> Any:
        if self.select_last_index:
            found = x.shape[self.axis] - 1 - self.positions(xp, xp.flip(x, self.axis))
        else:
            found = self.positions(xp, x)
        found = xp.astype(found, elements.I64)
        return found if self.keepdims else xp.squeeze(found, axis=self.axis)


@op("arg_max", onnx="ArgMax")
class ArgMax(ArgExtreme):
    """The position of the first (or last) maximum."""

    def positions(self, xp: Any, x: Any) -> Any:
        return xp.argmax(x, axis=self.axis, keepdims=True)


@op("arg_min", onnx="ArgMin")
class ArgMin(ArgExtreme):
    """The position of the first (or last) minimum."""

    def positions(self, xp: Any, x: Any) -> Any:
        return xp.argmin(x, axis=self.axis, keepdims=True)


class Running(Op):
    """Base of running reductions; `exclusive` leaves out an index's own element, `reverse` runs backwards."""

    x: In
    axis: In
    exclusive: int = 0
    reverse: int = 0

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x")

    def equation(self, ctx: TypeContext) -> Equation | None:
        rank, axes = ctx.rank("x"), ctx.numbers("axis")
        if rank is None or axes is None:
            return None
        letters = axis_letters(rank)
        found = self.declared(ctx, f"{' '.join(letters)}, _ -> {' '.join(letters)}")
        if found is not None:
            axis = axis_of(ctx, int(axes.reshape(())), rank)
            found.letters[letters[axis]][0].pinned = "a running value depends on the order"
        return found

    def infer(self, ctx: TypeContext) -> list[Type]:
        self.equation(ctx)
        return [TensorType(self.element(ctx), ctx.shape("x"))]

    def run(self, xp: Any, x: Any, axis: int) -> Any:
        """The running reduction, inclusive and forwards."""
        raise NotImplementedError

    neutral: ClassVar[int] = 0
    """What an exclusive run begins with."""

    def reference(self, xp: Any, x: Any, axis: Any) -> Any:
        along = int(xp.to_numpy(axis).reshape(())) % x.ndim
        kind, run = xp.element(x), accumulator(xp, x)
        if self.reverse:
            run = xp.flip(run, along)
        if self.exclusive:
            start = xp.full((*x.shape[:along], 1, *x.shape[along + 1 :]), self.neutral, xp.element(run))
            run = xp.concat([start, run], axis=along)[(slice(None),) * along + (slice(0, x.shape[along]),)]
        run = xp.astype(self.run(xp, run, along), kind)
        return xp.flip(run, along) if self.reverse else run


@op("cum_sum", onnx="CumSum")
class CumSum(Running):
    """Running sums along an axis, which is a scalar operand."""

    zero = zeros.passed

    def run(self, xp: Any, x: Any, axis: int) -> Any:
        return xp.cumsum(x, axis=axis)


@op("cum_prod", onnx="CumProd")
class CumProd(Running):
    """Running products along an axis, which is a scalar operand."""

    neutral = 1

    def run(self, xp: Any, x: Any, axis: int) -> Any:
        return xp.cumprod(x, axis=axis)
