"""Operators whose results are ordered or chosen by the values of their operands."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.ir import elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension, Shape
from espalier.ir.op import In, Op, Out, TypeContext, op
from espalier.ir.ops.movement import at_most, axis_index, described, listed, variables
from espalier.ir.terms import Variable
from espalier.ir.types import TensorType, Type


@op("top_k", onnx="TopK")
class TopK(Op):
    """The k largest (or smallest) elements along an axis and their indices; of equals, the first come first."""

    x: In
    k: In
    values: Out
    indices: Out
    axis: int = -1
    largest: int = 1
    sorted: int = 1

    zero = zeros.first

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape, k = ctx.shape("x"), ctx.dimensions("k")
        if shape is None or k is None:
            return None
        axis = axis_index(self.axis, len(shape))
        ins = variables(shape)
        ins[axis] = Variable(shape[axis], "ranked by value")
        outs = [*ins[:axis], Variable(k[0], "ranked by value"), *ins[axis + 1 :]]
        found = described(ctx, [ins], [outs, outs])
        at_most(ctx, found, k[0], shape[axis], f"the top {k[0]} of {shape[axis]}")
        return found

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape, k = ctx.shape("x"), ctx.dimensions("k")
        if shape is not None:
            axis = axis_index(self.axis, len(shape))
            count = ctx.fresh() if k is None else k[0]
            if isinstance(count, int) and isinstance(extent := shape[axis], int) and count > extent:
                ctx.fail(f"the top {count} of {extent}")
            shape = (*shape[:axis], count, *shape[axis + 1 :])
        types: list[Type] = [TensorType(ctx.element("x"), shape), TensorType(elements.I64, shape)]
        return types[: ctx.result_count]

    def reference(self, xp: Any, x: Any, k: Any) -> Any:
        axis, count = self.axis % x.ndim, int(listed(xp, k)[0])
        order = xp.argsort(x, axis, bool(self.largest))[(slice(None),) * axis + (slice(0, count),)]
        return xp.take_along_axis(x, order, axis=axis), xp.astype(order, elements.I64)


@op("unique", onnx="Unique")
class Unique(Op):
    """The distinct elements (or slices along `axis`), where each is first, which each element is, and how often."""

    x: In
    y: Out
    indices: Out | None
    inverse_indices: Out | None
    counts: Out | None
    axis: int | None = None
    sorted: int = 1

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape = ctx.shape("x")
        distinct = ctx.fresh()
        found: Shape | None = (distinct,)
        whole: Dimension
        if self.axis is None:
            whole = ctx.fresh() if shape is None else ctx.type("x").size
        elif shape is None:
            found, whole = None, ctx.fresh()
        else:
            axis = axis_index(self.axis, len(shape))
            found, whole = (*shape[:axis], distinct, *shape[axis + 1 :]), shape[axis]
        counts = TensorType(elements.I64, (distinct,))
        types: list[Type] = [TensorType(ctx.element("x"), found), counts, TensorType(elements.I64, (whole,)), counts]
        return types[: ctx.result_count]

    def reference(self, xp: Any, x: Any) -> Any:
        found = xp.unique(x, None if self.axis is None else self.axis % x.ndim, not self.sorted)
        return found[0], *(xp.astype(indices, elements.I64) for indices in found[1:])


@op("non_zero", onnx="NonZero")
class NonZero(Op):
    """The indices of the elements that are not zero: rank × count, in row-major order."""

    x: In

    symbolic = True

    def infer(self, ctx: TypeContext) -> list[Type]:
        rank, content = ctx.rank("x"), ctx.numbers("x")
        count = ctx.fresh() if content is None else int(np.count_nonzero(content))
        return [TensorType(elements.I64, (ctx.fresh() if rank is None else rank, count))]

    def reference(self, xp: Any, x: Any) -> Any:
        if x.ndim == 0:
            return xp.zeros((0, int(bool(x))), elements.I64)
        return xp.nonzero(x)


@op("compress", onnx="Compress")
class Compress(Op):
    """The slices along `axis` (or the elements, in row-major order) where the condition holds."""

    x: In
    condition: In
    axis: int | None = None

    moves = True

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape, condition = ctx.shape("x"), ctx.numbers("condition")
        kept = ctx.fresh() if condition is None else int(np.count_nonzero(condition))
        if self.axis is None:
            return [TensorType(ctx.element("x"), (kept,))]
        if shape is None:
            return [TensorType(ctx.element("x"), None)]
        axis = axis_index(self.axis, len(shape))
        return [TensorType(ctx.element("x"), (*shape[:axis], kept, *shape[axis + 1 :]))]

    def reference(self, xp: Any, x: Any, condition: Any) -> Any:
        if self.axis is None:
            x = xp.reshape(x, (-1,))
        return xp.take(x, xp.nonzero(condition)[0], axis=(self.axis or 0) % x.ndim)


@op("non_max_suppression", onnx="NonMaxSuppression")
class NonMaxSuppression(Op):
    """(batch, class, box) of boxes in order of score that overlap no better box of their class too much."""

    boxes: In
    scores: In
    max_output_boxes_per_class: In | None
    iou_threshold: In | None
    score_threshold: In | None
    center_point_box: int = 0

    def infer(self, ctx: TypeContext) -> list[Type]:
        for operand in ("boxes", "scores"):
            if ctx.rank(operand) not in (None, 3):
                ctx.fail(f"{operand} have 3 axes, not {ctx.rank(operand)}")
        return [TensorType(elements.I64, (ctx.fresh(), 3))]

    def reference(
        self,
        xp: Any,
        boxes: Any,
        scores: Any,
        max_output_boxes_per_class: Any = None,
        iou_threshold: Any = None,
        score_threshold: Any = None,
    ) -> Any:
        limit, overlap = 0, 0.0
        if max_output_boxes_per_class is not None:
            limit = int(listed(xp, max_output_boxes_per_class)[0])
        if iou_threshold is not None:
            overlap = float(listed(xp, iou_threshold)[0])
        least = None if score_threshold is None else float(listed(xp, score_threshold)[0])
        all_boxes, all_scores = xp.to_numpy(boxes), xp.to_numpy(scores)
        chosen: list[tuple[int, int, int]] = []
        for batch, classes in enumerate(all_scores):
            corners = _corners(all_boxes[batch], self.center_point_box)
            for kind, row in enumerate(classes):
                chosen += [(batch, kind, box) for box in _best_boxes(corners, row, limit, overlap, least)]
        return xp.asarray(np.array(chosen, np.int64).reshape(-1, 3))


def _corners(boxes: NDArray[Any], center_point: int) -> NDArray[Any]:
    """(low, low, high, high) of each box."""
    if center_point:
        half = boxes[:, 2:] / 2
        return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


def _best_boxes(
    corners: NDArray[Any], scores: NDArray[Any], limit: int, overlap: float, least: float | None
) -> list[int]:
    """Indices of at most `limit` boxes, best first, none of which overlaps an earlier one by more than `overlap`."""
    order = np.argsort(-scores, kind="stable")
    if least is not None:
        order = order[scores[order] > least]
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    chosen: list[int] = []
    while len(order) and len(chosen) < limit:
        best, order = int(order[0]), order[1:]
        chosen.append(best)
        low = np.maximum(corners[best, :2], corners[order, :2])
        high = np.minimum(corners[best, 2:], corners[order, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        union = areas[best] + areas[order] - shared
        order = order[~((union > 0) & (shared > 0) & (shared > np.float32(overlap) * union))]
    return chosen
