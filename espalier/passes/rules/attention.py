"""Recognition of scaled dot-product attention."""

from __future__ import annotations

import math

import numpy as np

from espalier.ir import Node, Value
from espalier.ir.elements import BOOL
from espalier.ir.ops import Add, IsNan, MatMul, Softmax, Transpose, Where
from espalier.passes.base import REASSOCIATES
from espalier.passes.rewrite import Replacement, Rewriter, rewrite
from espalier.passes.rules.matching import is_finite, scaled_input, splat
from espalier.passes.rules.movement import permutation


def sees_something(mask: Value) -> bool:
    """Whether an additive mask leaves something in each row, so that its softmax is defined."""
    if mask.constant is not None:
        return mask.element != BOOL and bool(np.all(np.any(np.isfinite(mask.array.astype(np.float64)), axis=-1)))
    return mask.element != BOOL and is_finite(mask)


def guarded_softmax(weights: Value) -> tuple[Node, bool] | None:
    """The softmax that makes weights, and whether rows that are masked entirely come out as zero."""
    guard = weights.defined_by(Where)
    if guard is None:
        softmax = weights.defined_by(Softmax)
        return None if softmax is None else (softmax, False)
    test, softmax = guard.condition.defined_by(IsNan), guard.y.defined_by(Softmax)
    if test is None or softmax is None or test.operand(0) is not guard.y or splat(guard.x) != 0:
        return None
    return softmax, True


def masked(scores: Value) -> tuple[Value, Value | None, bool]:
    """(scores, mask, whether it is a choice), where the value is scores + mask, or mask ? scores : −∞."""
    choice, added = scores.defined_by(Where), scores.defined_by(Add)
    if choice is not None and splat(choice.y) == -math.inf:
        return choice.x, choice.condition, True
    if added is None:
        return scores, None, False
    a, b = added.inputs
    inner, mask = (b, a) if scaled_input(b)[0].defined_by(MatMul) is not None else (a, b)
    spelled = mask.defined_by(Where)
    if spelled is not None and splat(spelled.x) == 0 and splat(spelled.y) == -math.inf:
        return inner, spelled.condition, True
    return inner, mask, False


@rewrite(MatMul, of=(Softmax, Where), semantics=REASSOCIATES)
def recognize_attention(node: Node, rewriter: Rewriter) -> Replacement:
    """softmax(q·kᵀ·scale + mask)·v with as many key heads as query heads is attention."""
    weights, v = node.inputs
    softmax, guarded = guarded_softmax(weights) or rewriter.why("its first factor is no softmax")
    rewriter.require(softmax.axis in (-1, 3) and weights.rank == 4 and v.rank == 4, "not over the last of four axes")
    scores, mask, choice = masked(softmax.operand(0))
    product, scale = scaled_input(scores)
    matmul = product.defined_by(MatMul) or rewriter.why("the scores are no product")
    (q, left), (turned, right) = (scaled_input(operand) for operand in matmul.inputs)
    transpose = turned.defined_by(Transpose) or rewriter.why("the keys are not transposed")
    rewriter.require(q.rank == 4 and product.shape == softmax.operand(0).shape == weights.shape, "not four axes")
    rewriter.require(q.shape[:2] == turned.shape[:2] == v.shape[:2], "batches or heads are broadcast")
    rewriter.require(scale * left * right > 0 and q.element.is_float, "the scale is not positive")
    rewriter.require(q.element.bits >= 32, "narrow floats would round at other places")
    rewriter.require(mask is None or mask.rank in (2, 3, 4), "the mask has no rows")
    whole = (
        mask is None or mask.shape[-1] == product.shape[-1]
    )  # attention takes what lies beyond a short one as masked
    rewriter.require(whole, "the mask is not known to have an entry for each key")
    defined = guarded or mask is None or (not choice and sees_something(mask))
    rewriter.require(defined, "rows that are masked entirely are not zero, as they are in attention")
    perm = permutation(transpose, rewriter)
    k = rewriter.transpose(transpose.operand(0), perm=(perm[0], perm[1], perm[3], perm[2]))
    made: Value = rewriter.attention(q, k, v, mask, scale=scale * left * right)
    return made
