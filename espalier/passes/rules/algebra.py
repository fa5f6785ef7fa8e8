"""Algebraic identities."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from espalier.ir import Node, Value
from espalier.ir.ops import Add, Clip, Div, Gemm, MatMul, Max, Min, Mul, Neg, Pow, Relu, Sub, Transpose, Where
from espalier.passes.base import REASSOCIATES
from espalier.passes.rewrite import Replacement, Rewriter, group, rewrite
from espalier.passes.rules import movement
from espalier.passes.rules.matching import is_zero, splat


def kept(x: Value, node: Node, rewriter: Rewriter) -> Value:
    """x, if it has the shape and element of the node's result: the other operand did not broadcast it."""
    result = node.results[0]
    rewriter.require(x.shape is not None and x.shape == result.shape and x.element == result.element, "it broadcasts")
    return x


@rewrite((Mul, Div), constant=True)
def drop_unit_factor(node: Node, rewriter: Rewriter) -> Replacement:
    """x · 1 and x / 1 are x, bit for bit."""
    a, b = node.inputs
    if splat(b) == 1:
        return kept(a, node, rewriter)
    rewriter.require(node.is_a(Mul) and splat(a) == 1, "no factor is 1")
    return kept(b, node, rewriter)


@rewrite((Add, Sub), constant=True, semantics=REASSOCIATES)
def drop_zero_term(node: Node, rewriter: Rewriter) -> Replacement:
    """x + 0 and x − 0 are x (but for −0 + 0)."""
    a, b = node.inputs
    if splat(b) == 0:
        return kept(a, node, rewriter)
    rewriter.require(node.is_a(Add) and splat(a) == 0, "no term is 0")
    return kept(b, node, rewriter)


@rewrite(Pow, constant=True)
def drop_unit_power(node: Node, rewriter: Rewriter) -> Replacement:
    """x to the power of 1."""
    rewriter.require(splat(node.operand(1)) == 1, "the exponent is not 1")
    return kept(node.operand(0), node, rewriter)


@rewrite(Neg, of=Neg)
def drop_double_negation(node: Node, rewriter: Rewriter) -> Replacement:
    """−(−x) is x."""
    inner = node.operand(0).defined_by(Neg) or rewriter.why("its input is no negation")
    return inner.operand(0)


@rewrite(lambda kind: kind.idempotent and len(kind.operands) == 1, of=lambda kind: kind.idempotent)
def drop_repeated_idempotent(node: Node, rewriter: Rewriter) -> Replacement:
    """f(f(x)) is f(x) where f says that it is idempotent."""
    inner = node.operand(0).defined_by(type(node.op)) or rewriter.why("its input is not the same operator")
    rewriter.require(inner.op == node.op, "its input has other attributes")
    return rewriter.node(node.op, inner.operands).results[0]


@rewrite((Max, Min))
def drop_single_extremum(node: Node, rewriter: Rewriter) -> Replacement:
    """The largest or smallest of one."""
    rewriter.require(len(node.inputs) == 1, "several operands")
    return node.inputs[0]


@rewrite(Where)
def drop_decided_where(node: Node, rewriter: Rewriter) -> Replacement:
    """A choice whose condition is known and everywhere the same."""
    condition = splat(node.condition)
    rewriter.require(condition is not None, "the condition is not known")
    return kept(node.x if condition else node.y, node, rewriter)


@rewrite(Clip, of=Relu)
def merge_relu_into_clip(node: Node, rewriter: Rewriter) -> Replacement:
    """clip(relu(x), low, high) is clip(x, max(low, 0), high)."""
    relu = node.operand(0).defined_by(Relu) or rewriter.why("its input is no relu")
    low = splat(node.min) if node.min is not None else None
    rewriter.require(node.min is None or low is not None, "the lower bound is not constant")
    rewriter.require(low is None or low >= 0, "the lower bound is below 0")
    rewriter.require(splat(node.max) is None or splat(node.max) >= 0, "the upper bound is below 0")
    zero = np.zeros((), node.results[0].element.dtype)
    return rewriter.clip(relu.operand(0), node.min if low is not None else zero, node.max)


def in_range(both: NDArray[Any], a: NDArray[Any], b: NDArray[Any], node: Node) -> bool:
    """Whether a sum or product of float constants neither overflows nor, of factors, loses digits next to zero."""
    element = node.results[0].element
    if not element.is_float:
        return True  # integers wrap, in whatever order
    if not np.all(np.isfinite(both) | ~np.isfinite(a) | ~np.isfinite(b)):
        return False
    return node.is_a(Add) or bool(np.all((np.abs(both) >= ml_dtypes.finfo(element.dtype).tiny) | (a == 0) | (b == 0)))


@rewrite((Add, Mul), of=(Add, Mul), constant=True, semantics=REASSOCIATES)
def merge_constant_operands(node: Node, rewriter: Rewriter) -> Replacement:
    """(x + a) + b is x + (a + b), and likewise for products."""
    for x, outer in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        inner = x.defined_by(type(node.op))
        if inner is None or outer.constant is None:
            continue
        for y, constant in (tuple(inner.inputs), tuple(inner.inputs)[::-1]):
            if constant.constant is None or y.constant is not None:
                continue
            rewriter.require(inner.results[0].has_one_use, "the inner result is shared")
            rewriter.require(y.rank == node.results[0].rank, "the constants add axes")
            combine = np.add if node.is_a(Add) else np.multiply
            with np.errstate(all="ignore"):
                both = combine(constant.array, outer.array)
            rewriter.require(in_range(both, constant.array, outer.array, node), "the combined constant is out of range")
            rewriter.require(both.size <= max(constant.array.size, outer.array.size), "the constant would grow")
            return rewriter.node(node.op, [y, both]).results[0]
    rewriter.why("no constant on both levels")


@rewrite(Add, of=MatMul, semantics=REASSOCIATES)
def matmul_bias_to_gemm(node: Node, rewriter: Rewriter) -> Replacement:
    """A product of matrices plus a bias is one gemm."""
    for product, bias in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        matmul = product.defined_by(MatMul)
        if matmul is None:
            continue
        a, b = matmul.inputs
        rewriter.require(a.rank == 2 and b.rank == 2, "the factors are no matrices")
        rewriter.require(product.has_one_use, "the product is shared")
        rewriter.require(bias.rank in (0, 1, 2) and bias.element == product.element, "the bias is no matrix")
        rewriter.require(a.element.is_float, "no floats")
        rewriter.require(node.results[0].shape == product.shape, "the bias broadcasts the product")
        return rewriter.gemm(a, b, bias)
    rewriter.why("no term is a product of matrices")


@rewrite(movement.reshapes, of=Add, semantics=REASSOCIATES)
def reshaped_matmul_to_gemm(node: Node, rewriter: Rewriter) -> Replacement:
    """A product with a constant matrix plus a bias, between reshapes, is a gemm between reshapes."""
    add = node.operand(0).defined_by(Add) or rewriter.why("its input is no sum")
    rewriter.require(node.operand(0).has_one_use, "the sum is shared")
    for made, bias in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        matmul = made.defined_by(MatMul)
        if matmul is None or not made.has_one_use or bias.constant is None:
            continue
        (x, weight), inner = matmul.inputs, matmul.operand(0).producer
        rewriter.require(inner is not None and inner.op.reshapes, "the first factor is no reshape")
        rewriter.require(weight.is_constant and weight.rank == 2 and x.element.is_float, "no constant matrix of floats")
        rewriter.require(
            weight.shape[0] > 0 and made.shape is not None and 0 not in made.shape, "there are no elements"
        )
        rewriter.require(bias.shape in ((weight.shape[1],), (1,), ()), "the bias varies along other axes")
        assert inner is not None
        rows = rewriter.reshape(inner.operand(0), np.array([-1, weight.shape[0]], np.int64))
        return movement.reshape(rewriter, rewriter.gemm(rows, weight, bias), node.results[0].shape)
    rewriter.why("no term is a product of its own")


@rewrite(Gemm, of=Transpose, semantics=REASSOCIATES)
def fold_transpose_into_gemm(node: Node, rewriter: Rewriter) -> Replacement:
    """A gemm on a transposed factor transposes by itself."""
    for position, flag in ((0, "transA"), (1, "transB")):
        transpose = node.operand(position).defined_by(Transpose)
        if transpose is not None and tuple(transpose.perm) in ((), (1, 0)):
            operands = list(node.operands)
            operands[position] = transpose.operand(0)
            flipped = node.op.replace(**{flag: 1 - getattr(node.op, flag)})
            return rewriter.node(flipped, operands).results[0]
    rewriter.why("no factor is transposed")


@rewrite(lambda kind: "initial_h" in kind._operand_index)
def drop_zero_state(node: Node, rewriter: Rewriter) -> Replacement:
    """A recurrent layer that starts from zero does so by itself."""
    names = [port.name for port in node.op.operands]
    states = [names.index(name) for name in ("initial_h", "initial_c") if name in names]
    zero = [k for k in states if k < len(node.operands) and node.operands[k] is not None and is_zero(node.operand(k))]
    rewriter.require(zero, "no state is known to be zero")
    operands = [None if position in zero else operand for position, operand in enumerate(node.operands)]
    return rewriter.node(node.op, operands, results=len(node.results)).results


simplify = group(
    "simplify",
    [
        movement.drop_identity,
        movement.drop_dropout,
        movement.drop_noop_cast,
        movement.cast_like_to_cast,
        movement.merge_casts,
        movement.drop_noop_movement,
        movement.fix_shape_operand,
        movement.merge_reshapes,
        movement.unwrap_transpose,
        movement.drop_noop_transpose,
        movement.merge_transposes,
        movement.transpose_to_reshape,
        movement.sink_transpose,
        movement.flatten_concat,
        movement.drop_split_concat,
        movement.drop_single_split,
        movement.drop_noop_slice,
        movement.merge_slices,
        movement.slice_to_gather,
        movement.split_to_gather,
        movement.drop_noop_pad,
        movement.fold_pad_into_window,
        drop_unit_factor,
        drop_zero_term,
        drop_unit_power,
        drop_double_negation,
        drop_repeated_idempotent,
        drop_single_extremum,
        drop_decided_where,
        merge_relu_into_clip,
        merge_constant_operands,
        matmul_bias_to_gemm,
        reshaped_matmul_to_gemm,
        fold_transpose_into_gemm,
        drop_zero_state,
    ],
    "Algebraic identities, and movements that cancel, merge or sink, until nothing matches.",
)
