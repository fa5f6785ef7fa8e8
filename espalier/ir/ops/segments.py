"""Operators along single axes whose indices are segments: concatenation, splits, slices, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.ir import dims, elements, zeros
from espalier.ir.axes import Binding, Equation, FromEnd
from espalier.ir.dims import Dimension, Shape
from espalier.ir.op import In, Ins, Op, OperandError, Outs, TypeContext, op
from espalier.ir.ops.movement import (
    at_most,
    axis_index,
    axis_indices,
    described,
    length,
    listed,
    unknown_shape,
    variables,
)
from espalier.ir.ops.shapes import at_least_zero
from espalier.ir.terms import Sum, Term, Variable, product, segments
from espalier.ir.types import TensorType, Type


@op("concat", onnx="Concat")
class Concat(Op):
    """The operands one after another along an axis."""

    xs: Ins
    axis: int

    zero = zeros.passed
    symbolic = True
    moves = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        shapes = [ctx.shape(k) for k in range(len(ctx.types))]
        known = [shape for shape in shapes if shape is not None]
        if not known or len(known) < len(shapes):
            return None
        if len({len(shape) for shape in known}) > 1:
            ctx.fail(f"operands of different ranks: {', '.join(str(len(shape)) for shape in known)}")
        axis = axis_index(self.axis, len(known[0]))
        others: list[Term] = [Variable(_agreed(ctx, [s[k] for s in known], k, axis)) for k in range(len(known[0]))]
        parts = [Variable(shape[axis]) for shape in known]
        along = [[*others[:axis], part, *others[axis + 1 :]] for part in parts]
        return described(ctx, along, [[*others[:axis], segments(*parts), *others[axis + 1 :]]])

    def infer(self, ctx: TypeContext) -> list[Type]:
        if any(ctx.element(k).storage != ctx.element(0).storage for k in range(len(ctx.types))):
            ctx.fail(f"operands of different elements: {', '.join(str(ctx.element(k)) for k in range(len(ctx.types)))}")
        ranks = {ctx.rank(k) for k in range(len(ctx.types))} - {None}
        if None in (ctx.shape(k) for k in range(len(ctx.types))) and ranks:
            return [TensorType(ctx.element(0), unknown_shape(ctx, ranks.pop()))]
        return super().infer(ctx)

    def reference(self, xp: Any, *xs: Any) -> Any:
        return xp.concat(xs, axis=self.axis)


def _agreed(ctx: TypeContext, extents: Sequence[Dimension], k: int, axis: int) -> Dimension:
    """The one extent that all operands have on an axis: a number if one of them is."""
    numbers = {extent for extent in extents if isinstance(extent, int)}
    if len(numbers) > 1 and k != axis:
        ctx.fail(f"operands of different extents on axis {k}: {', '.join(map(str, extents))}")
    return next(iter(numbers), extents[0])


@op("split", onnx="Split")
class Split(Op):
    """Parts of the given sizes along an axis, or `num_outputs` equal parts (the last may be smaller)."""

    x: In
    split: In | None
    outs: Outs
    num_outputs: int | None = None
    axis: int = 0

    zero = zeros.passed
    symbolic = True
    moves = True

    def sizes(self, ctx: TypeContext, extent: Dimension) -> tuple[Dimension, ...] | None:
        """The parts' extents; None if only the data tell."""
        count = ctx.result_count
        if not ctx.has("split"):
            if self.num_outputs not in (None, count):
                ctx.fail(f"{count} results of a split into {self.num_outputs}")
            return equal_parts(extent, count)
        sizes = ctx.dimensions("split")
        if sizes is None:
            return None
        if len(sizes) != count:
            ctx.fail(f"{len(sizes)} sizes for {count} results")
        total = sum(sizes, start=0 * extent)
        if isinstance(total, int) and isinstance(extent, int) and total != extent:
            ctx.fail(f"sizes {list(sizes)} do not add up to {extent}")
        return sizes

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("x")
        if shape is None:
            return None
        axis = axis_index(self.axis, len(shape))
        sizes = self.sizes(ctx, shape[axis])
        if sizes is None:
            return None
        others = variables(shape)

        def along(term: Term) -> list[Term]:
            return [*others[:axis], term, *others[axis + 1 :]]

        if ctx.has("split"):
            parts = [Variable(size) for size in sizes]
            return described(ctx, [along(segments(*parts))], [along(part) for part in parts], bound={"split": parts})
        if len(sizes) > 1 and all(size == sizes[0] for size in sizes):  # equal parts must stay equal
            part = Variable(sizes[0])
            whole = product(Variable(len(sizes), "split into equal parts"), part)
            return described(ctx, [along(whole)], [along(part) for _ in sizes])
        parts = [Variable(size, "split into nearly equal parts" if len(sizes) > 1 else None) for size in sizes]
        return described(ctx, [along(segments(*parts))], [along(part) for part in parts])

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape, element = ctx.shape("x"), ctx.element("x")
        if shape is None:
            return [TensorType(element, None)] * ctx.result_count
        axis = axis_index(self.axis, len(shape))
        sizes = self.sizes(ctx, shape[axis]) or tuple(ctx.fresh() for _ in range(ctx.result_count))
        return [TensorType(element, (*shape[:axis], size, *shape[axis + 1 :])) for size in sizes]

    def reference(self, xp: Any, x: Any, split: Any = None) -> Any:
        axis = self.axis % x.ndim
        if split is None and self.num_outputs is None:
            raise OperandError("a split by neither sizes nor a number of parts")
        sizes = equal_parts(x.shape[axis], self.num_outputs or 1) if split is None else listed(xp, split)
        if sum(sizes) != x.shape[axis]:
            raise OperandError(f"sizes {list(sizes)} do not add up to {x.shape[axis]}")
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        return tuple(
            x[(slice(None),) * axis + (slice(start, start + size),)] for start, size in zip(starts, sizes, strict=True)
        )


def equal_parts(extent: Dimension, count: int) -> tuple[Dimension, ...]:
    """The extents of `count` parts; if they can't be equal, the last is smaller."""
    part = dims.ceil_divide(extent, count)
    return (*[part] * (count - 1), at_least_zero(extent - part * (count - 1)))


INFINITE = 2**31 - 1
"""Bounds of slices from here on mean the end of the axis."""


def slice_span(extent: Dimension, start: Dimension, end: Dimension, step: int) -> tuple[Dimension, Dimension] | None:
    """The first position of a slice of an axis, and the number of positions; None if that is not determined."""
    if step == 0:
        raise OperandError("a slice with steps of 0")
    low, high = (0, extent) if step > 0 else (-1, extent - 1)
    first, last = _place(start, extent), _place(end, extent)
    if first is None or last is None:
        return None
    inner, last = _clamp(first, 0, high), _clamp(last, low, high)
    # What begins beyond the end leaves a negative distance, so that a first position needs no bound from above.
    distance = last - at_least_zero(first) if step > 0 else inner - last
    return inner, dims.ceil_divide(at_least_zero(distance), abs(step))


def _place(bound: Dimension, extent: Dimension) -> Dimension | None:
    """A bound counted from the front; None if its sign is not known."""
    if isinstance(bound, int):
        if abs(bound) >= INFINITE:
            return extent if bound > 0 else -1
        return bound if bound >= 0 else extent + bound
    least, most = dims.lower_bound(bound), dims.lower_bound(-bound)
    if least is not None and least >= 0:
        return bound
    return extent + bound if most is not None and most > 0 else None


def _clamp(place: Dimension, low: int, high: Dimension) -> Dimension:
    if place == high:
        return high
    above = dims.lower_bound(place - low)
    if above is None or above < 0:
        place = dims.maximum(place, low)
    below = dims.lower_bound(high - place)
    if below is None or below < 0:
        beyond = dims.lower_bound(place - high)
        place = high if beyond is not None and beyond >= 0 else dims.minimum(place, high)
    return place


@op("slice", onnx="Slice")
class Slice(Op):
    """Positions start, start + step, … before end of some axes (all, in order, if none are named)."""

    data: In
    starts: In
    ends: In
    axes_: In | None
    steps: In | None

    zero = zeros.passed
    symbolic = True
    moves = True

    def ranges(self, ctx: TypeContext, rank: int) -> list[tuple[int, Dimension, Dimension, int]] | None:
        """(axis, start, end, step) of each sliced axis; None if they are not known."""
        starts, ends = ctx.dimensions("starts"), ctx.dimensions("ends")
        axes = ctx.numbers("axes_") if ctx.has("axes_") else None
        steps = ctx.numbers("steps") if ctx.has("steps") else None
        unknown = (ctx.has("axes_") and axes is None) or (ctx.has("steps") and steps is None)
        if starts is None or ends is None or unknown:
            return None
        where = range(len(starts)) if axes is None else axes.reshape(-1).tolist()
        by = [1] * len(starts) if steps is None else [int(step) for step in steps.reshape(-1).tolist()]
        if not len(starts) == len(ends) == len(where) == len(by):
            ctx.fail(f"{len(starts)} starts, {len(ends)} ends, {len(where)} axes, {len(by)} steps")
        if 0 in by:
            ctx.fail("a slice with steps of 0")
        return list(zip(axis_indices(where, rank), starts, ends, by, strict=True))

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("data")
        ranges = None if shape is None else self.ranges(ctx, len(shape))
        if shape is None or ranges is None:
            return None
        ins = variables(shape)
        outs = list(ins)
        bound: dict[str, list[Binding]] = {"starts": [], "ends": []}
        for axis, start, end, step in ranges:
            span = slice_span(shape[axis], start, end, step)
            if span is None:
                return None
            ins[axis], outs[axis], first, last = _sliced(shape[axis], *span, start, end, step)
            bound["starts"].append(first)
            bound["ends"].append(last)
        return described(ctx, [ins], [outs], bound=bound)

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape, element = ctx.shape("data"), ctx.element("data")
        if shape is None:
            return [TensorType(element, None)]
        ranges = self.ranges(ctx, len(shape))
        found = list(shape)
        if ranges is not None:
            for axis, start, end, step in ranges:
                span = slice_span(shape[axis], start, end, step)
                found[axis] = ctx.fresh() if span is None else span[1]
            return [TensorType(element, tuple(found))]
        axes = ctx.numbers("axes_") if ctx.has("axes_") else None
        count = length(ctx, "starts")
        if axes is not None:
            cut: Sequence[int] = axis_indices(axes.reshape(-1).tolist(), len(shape))
        else:
            cut = range(len(shape) if ctx.has("axes_") or count is None else count)
        for axis in cut:
            found[axis] = ctx.fresh()
        return [TensorType(element, tuple(found))]

    def reference(self, xp: Any, data: Any, starts: Any, ends: Any, axes_: Any = None, steps: Any = None) -> Any:
        first, last = listed(xp, starts), listed(xp, ends)
        axes = range(len(first)) if axes_ is None else listed(xp, axes_)
        by = [1] * len(first) if steps is None else listed(xp, steps)
        index, reversed_axes = [slice(None)] * data.ndim, []
        for axis, start, end, step in zip(axes, first, last, by, strict=True):
            axis = axis_index(axis, data.ndim)
            span = slice_span(data.shape[axis], start, end, step)
            if span is None or not dims.is_static(span):
                raise dims.NotANumberError("the bounds of a slice are not numbers")
            begin, count = int(str(span[0])), int(str(span[1]))
            if step < 0 and count:
                begin += (count - 1) * step
                reversed_axes.append(axis)
            index[axis] = slice(begin, begin + (count - 1) * abs(step) + 1 if count else begin, abs(step))
        data = data[tuple(index)]
        return xp.flip(data, axis=tuple(reversed_axes)) if reversed_axes else data


def _counts_from_end(bound: Dimension) -> bool:
    most = dims.lower_bound(-bound)
    return most is not None and 0 < most < INFINITE


def _sliced(
    extent: Dimension, begin: Dimension, count: Dimension, start: Dimension, end: Dimension, step: int
) -> tuple[Term, Term, Binding, Binding]:
    """The axis, the axis of the result, and what the bounds `start` and `end` follow."""
    back = _counts_from_end(start)
    if begin == 0 and count == extent and step == 1:
        whole = Variable(extent)
        return whole, whole, FromEnd(whole) if back else Sum(()), whole
    if step == 1:
        before, kept, after = Variable(begin), Variable(count), Variable(extent - count - begin)
        first = FromEnd(segments(kept, after)) if back else before
        last = FromEnd(after) if _counts_from_end(end) else segments(before, kept)
        return segments(before, kept, after), kept, first, last
    if (
        isinstance(begin, int)
        and not back
        and 0 <= begin < step
        and count == dims.floor_divide(extent, step) != 1
        and (dims.modulo(extent, step) == 0)
    ):  # one position of each step: the major factor is kept
        reason, major = "a slice steps over it", Variable(count)
        offset = Variable(begin, reason)
        minor = segments(offset, Variable(1, reason), Variable(step - begin - 1, reason))
        axis = product(major, minor)
        return axis, major, offset, axis
    reason = "a slice in steps" if step > 0 else "a slice backwards"
    return Variable(extent, reason), Variable(count, reason), Variable(start, reason), Variable(end, reason)


@op("pad", onnx="Pad")
class Pad(Op):
    """More positions before and after the given axes (all if none are given); fewer where amounts are negative."""

    data: In
    pads: In
    constant_value: In | None
    axes_: In | None
    mode: str = "constant"

    symbolic = True

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        if self.mode != "constant" or states[0] is False:
            return False
        value = ctx.numbers("constant_value") if ctx.has("constant_value") else None
        return not ctx.has("constant_value") or (value is not None and not value.astype(bool).any())

    def amounts(self, ctx: TypeContext, rank: int) -> dict[int, tuple[Dimension, Dimension]] | None:
        """Axis → amounts before and after; None if they are not known."""
        pads = ctx.dimensions("pads")
        axes = ctx.numbers("axes_") if ctx.has("axes_") else None
        if pads is None or (ctx.has("axes_") and axes is None):
            return None
        where = axis_indices(range(rank) if axes is None else axes.reshape(-1).tolist(), rank)
        if len(pads) != 2 * len(where):
            ctx.fail(f"{len(pads)} amounts for {len(where)} axes")
        return {axis: (pads[k], pads[k + len(where)]) for k, axis in enumerate(where)}

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("data")
        amounts = None if shape is None else self.amounts(ctx, len(shape))
        if shape is None or amounts is None:
            return None
        ins = variables(shape)
        outs = list(ins)
        befores: list[Binding] = []
        afters: list[Binding] = []
        for axis, (before, after) in amounts.items():
            start, end = Variable(before), Variable(after)
            befores.append(start)
            afters.append(end)
            if before == 0 and after == 0:
                continue
            least = [dims.lower_bound(amount) for amount in (before, after)]
            if self.mode == "constant" and all(bound is not None and bound >= 0 for bound in least):
                outs[axis] = segments(start, ins[axis], end)
            else:
                reason = "padded by what stands at other positions" if self.mode != "constant" else "cut off by padding"
                start.pinned = end.pinned = reason
                ins[axis] = Variable(shape[axis], reason)
                outs[axis] = Variable(at_least_zero(shape[axis] + before + after), reason)
        found = described(ctx, [ins], [outs], bound={"pads": [*befores, *afters]})
        if self.mode != "constant":
            for axis, pair in amounts.items():
                self._seen(ctx, found, axis, shape[axis], pair)
        return found

    def _seen(
        self, ctx: TypeContext, equation: Equation, axis: int, extent: Dimension, pair: tuple[Dimension, Dimension]
    ) -> None:
        """Say that there is something to copy, and of reflections that none is reflected again."""
        left = extent + sum(amount for amount in pair if isinstance(amount, int) and amount < 0)
        for amount in pair:
            if not (isinstance(amount, int) and amount <= 0):
                wanted = amount + 1 if self.mode == "reflect" else 1
                message = f"padding axis {axis} of extent {left} by {amount} positions in mode {self.mode!r}"
                at_most(ctx, equation, wanted, left, message)

    def infer(self, ctx: TypeContext) -> list[Type]:
        if self.mode not in ("constant", "reflect", "edge", "wrap"):
            ctx.fail(f"there is no padding mode {self.mode!r}")
        if ctx.element("data") == elements.STRING and self.mode == "constant" and not ctx.has("constant_value"):
            ctx.fail("padding strings needs a constant_value")
        rank = ctx.rank("data")
        if rank is None or self.amounts(ctx, rank) is None:
            return [TensorType(ctx.element("data"), unknown_shape(ctx, rank))]
        return super().infer(ctx)

    def reference(self, xp: Any, data: Any, pads: Any, constant_value: Any = None, axes_: Any = None) -> Any:
        amounts = listed(xp, pads)
        axes = range(data.ndim) if axes_ is None else listed(xp, axes_)
        pairs = [(0, 0)] * data.ndim
        for k, axis in enumerate(axes):
            pairs[axis_index(axis, data.ndim)] = (amounts[k], amounts[k + len(axes)])
        value = 0 if constant_value is None else xp.reshape(constant_value, ())
        return xp.pad(data, pairs, self.mode, value)


@op("center_crop_pad", onnx="CenterCropPad")
class CenterCropPad(Op):
    """Cropped or padded with zeros about the centre, to the given extents of some axes (all if none are named)."""

    x: In
    shape: In
    crop_axes: tuple[int, ...] | None = None

    onnx_names = {"crop_axes": "axes"}

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        return states[0] is not False

    def targets(self, ctx: TypeContext, shape: Shape) -> dict[int, Dimension] | None:
        wanted = ctx.dimensions("shape")
        if wanted is None:
            return None
        axes = axis_indices(range(len(shape)) if self.crop_axes is None else self.crop_axes, len(shape))
        if len(axes) != len(wanted):
            ctx.fail(f"{len(wanted)} extents for {len(axes)} axes")
        return dict(zip(axes, wanted, strict=True))

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("x")
        targets = None if shape is None else self.targets(ctx, shape)
        if shape is None or targets is None:
            return None
        ins = variables(shape)
        outs = list(ins)
        for axis, extent in targets.items():
            if extent != shape[axis]:
                ins[axis], outs[axis] = Variable(shape[axis], "centred"), Variable(extent, "centred")
        return described(ctx, [ins], [outs], bound={"shape": [outs[axis] for axis in targets]})

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape = ctx.shape("x")
        if shape is not None and self.targets(ctx, shape) is None:
            return [TensorType(ctx.element("x"), unknown_shape(ctx, len(shape)))]
        return super().infer(ctx)

    def reference(self, xp: Any, x: Any, shape: Any) -> Any:
        axes = range(x.ndim) if self.crop_axes is None else self.crop_axes
        pairs = [(0, 0)] * x.ndim
        for axis, extent in zip(axes, listed(xp, shape), strict=True):
            more = extent - x.shape[axis]
            before = -(-more // 2) if more < 0 else more // 2
            pairs[axis % x.ndim] = (before, more - before)
        return xp.pad(x, pairs)
