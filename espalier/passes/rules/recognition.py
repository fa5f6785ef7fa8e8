"""Recognition: activations and normalisations that exporters spelled out become one operator again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from espalier.ir import Node, Value
from espalier.ir.elements import F16, F32
from espalier.ir.ops import (
    Add,
    Cast,
    Clip,
    Div,
    Erf,
    HardSigmoid,
    LayerNorm,
    Mul,
    Pow,
    Reciprocal,
    ReduceMean,
    RmsNorm,
    Sigmoid,
    Softplus,
    Sqrt,
    Sub,
    Tanh,
)  # fmt: skip
from espalier.passes.base import REASSOCIATES
from espalier.passes.rewrite import Replacement, Rewriter, group, rewrite
from espalier.passes.rules.attention import recognize_attention
from espalier.passes.rules.matching import factors, near, plus_one, scaled_input, splat


def others(parts: list[Value], chosen: Value) -> Iterator[Value]:
    """The factors but one."""
    rest = list(parts)
    rest.remove(chosen)
    yield from rest


def is_product_root(node: Node) -> bool:
    """Whether no larger product contains this one, so that it is the place to match from."""
    result = node.results[0]
    if not result.has_one_use:
        return True
    return not any(user.is_a(Mul) or (user.is_a(Div) and user.operands[0] is result) for user in result.users)


@rewrite((Mul, Div), of=(Add, Mul, Div), semantics=REASSOCIATES)
def recognize_gelu(node: Node, rewriter: Rewriter) -> Replacement:
    """x · ½ · (1 + erf(x/√2)), and its approximation by tanh."""
    rewriter.require(is_product_root(node), "a larger product may match")
    parts, scale = factors(node.results[0])
    rewriter.require(
        len(parts) == 2 and near(scale, 0.5, node.results[0].element), "it is not half of a product of two"
    )
    for gate in parts:
        inner = plus_one(gate)
        if inner is None:
            continue
        (x,) = others(parts, gate)
        if x.shape != node.results[0].shape:
            continue  # a constant adds axes
        if (erf := inner.defined_by(Erf)) is not None:
            argument = scaled_input(erf.operand(0))
            if argument[0] is x and near(argument[1], math.sqrt(0.5), x.element):
                return rewriter.gelu(x)
        elif (tanh := inner.defined_by(Tanh)) is not None and _is_gelu_polynomial(tanh.operand(0), x):
            return rewriter.gelu(x, approximate="tanh")
    rewriter.why("no factor is 1 + erf or 1 + tanh of the other")


def _is_gelu_polynomial(value: Value, x: Value) -> bool:
    """Whether a value is √(2/π) · (x + 0.044715·x³), or √(2/π) · x · (1 + 0.044715·x²)."""
    parts, scale = factors(value)
    if not near(scale, math.sqrt(2 / math.pi), x.element):
        return False
    if len(parts) == 1 and (add := parts[0].defined_by(Add)) is not None:
        for term, rest in (tuple(add.inputs), tuple(add.inputs)[::-1]):
            cubic, factor = power_of(rest, x)
            if term is x and cubic == 3 and near(factor, 0.044715, x.element):
                return True
    if len(parts) == 2 and x in parts:
        (polynomial,) = others(parts, x)
        square = plus_one(polynomial)
        if square is not None:
            degree, factor = power_of(square, x)
            return degree == 2 and near(factor, 0.044715, x.element)
    return False


def power_of(value: Value, x: Value) -> tuple[float, float]:
    """(n, c), if the value is c · xⁿ; else (0, 0)."""
    parts, scale = factors(value)
    degree = 0.0
    for part in parts:
        power = part.defined_by(Pow)
        if part is x:
            degree += 1
        elif power is not None and power.operand(0) is x and splat(power.operand(1)) is not None:
            degree += float(splat(power.operand(1)))
        elif (inner := part.defined_by(Mul)) is not None and all(operand is x for operand in inner.inputs):
            degree += 2  # a square that others use too
        else:
            return 0.0, 0.0
    return degree, scale


@rewrite(Mul, of=(Sigmoid, HardSigmoid, Tanh), semantics=REASSOCIATES)
def recognize_gated(node: Node, rewriter: Rewriter) -> Replacement:
    """x · sigmoid(x) is swish, x · hard_sigmoid(x) is hard-swish, x · tanh(softplus(x)) is mish."""
    for x, gate in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        if (sigmoid := gate.defined_by(Sigmoid)) is not None:
            argument = scaled_input(sigmoid.operand(0))
            if sigmoid.operand(0) is x:
                return rewriter.swish(x)
            if argument[0] is x:
                return rewriter.swish(x, alpha=argument[1])
        hard = gate.defined_by(HardSigmoid)
        if hard is not None and hard.operand(0) is x:
            sixth = near(hard.alpha, 1 / 6, x.element) and near(hard.beta, 0.5, x.element)
            rewriter.require(sixth, "the hard sigmoid is another than that of hard-swish")
            return rewriter.hard_swish(x)
        if (tanh := gate.defined_by(Tanh)) is not None:
            softplus = tanh.operand(0).defined_by(Softplus)
            if softplus is not None and softplus.operand(0) is x:
                return rewriter.mish(x)
    rewriter.why("no factor is a known gate of the other")


@rewrite((Mul, Div), of=(Clip, Mul, Div), semantics=REASSOCIATES)
def recognize_hard_swish(node: Node, rewriter: Rewriter) -> Replacement:
    """x · clip(x + 3, 0, 6) / 6 is hard-swish; without the factor x, it is hard-sigmoid."""
    rewriter.require(is_product_root(node), "a larger product may match")
    element = node.results[0].element
    rewriter.require(element in (F16, F32), f"runtimes need not have them for {element}, as they have clip")
    parts, scale = factors(node.results[0])
    rewriter.require(near(scale, 1 / 6, element) and len(parts) <= 2, "it is no sixth of a product")
    for gate in parts:
        clip = gate.defined_by(Clip)
        if clip is None or splat(clip.min) != 0 or splat(clip.max) != 6:
            continue
        add = clip.operand(0).defined_by(Add)
        if add is None:
            continue
        for x, three in (tuple(add.inputs), tuple(add.inputs)[::-1]):
            if splat(three) != 3 or x.shape != node.results[0].shape:
                continue
            if len(parts) == 1:
                return rewriter.hard_sigmoid(x, alpha=1 / 6, beta=0.5)
            if next(others(parts, gate)) is x:
                return rewriter.hard_swish(x)
    rewriter.why("no factor is clip(x + 3, 0, 6)")


# ---- normalisations ------------------------------------------------------------------------------------------


def mean_over_last(value: Value) -> tuple[Value, int] | None:
    """(x, first axis), if the value is x's mean over its last axes, which are kept."""
    node = value.defined_by(ReduceMean)
    if node is None or not node.keepdims or node.operand(0).rank is None:
        return None
    x = node.operand(0)
    rank = x.rank or 0
    axes = node.axes_.known if node.axes_ is not None else None
    if axes is None or axes.dtype == object:
        return None
    found = sorted(int(axis) % rank for axis in axes.reshape(-1))
    return (x, found[0]) if found and found == list(range(rank - len(found), rank)) else None


def is_square(value: Value) -> Value | None:
    """t, if the value is t²."""
    power, product = value.defined_by(Pow), value.defined_by(Mul)
    if power is not None and splat(power.operand(1)) == 2:
        return power.operand(0)
    if product is not None and product.operand(0) is product.operand(1):
        return product.operand(0)
    return None


def root_of_mean_square(value: Value) -> tuple[Value, int, float] | None:
    """(t, first axis, ε), if the value is √(mean(t²) + ε) over the last axes."""
    sqrt, power = value.defined_by(Sqrt), value.defined_by(Pow)
    inside = sqrt.operand(0) if sqrt is not None else None
    if power is not None and splat(power.operand(1)) == 0.5:
        inside = power.operand(0)
    return mean_square(inside) if inside is not None else None


def mean_square(value: Value) -> tuple[Value, int, float] | None:
    """(t, first axis, ε), if the value is mean(t²) + ε over the last axes."""
    add = value.defined_by(Add)
    if add is None:
        return None
    for mean, epsilon in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        found, number = mean_over_last(mean), splat(epsilon)
        square = is_square(found[0]) if found is not None else None
        if found is not None and number is not None and square is not None:
            return square, found[1], float(number)
    return None


def normalized(node: Node) -> tuple[Value, int, float] | None:
    """(t, first axis, ε), if the node divides t by the root of its mean square."""
    if node.is_a(Div):
        t, found = node.operand(0), root_of_mean_square(node.operand(1))
        return found if found is not None and found[0] is t else None
    for t, inverse in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        reciprocal, division, power = inverse.defined_by(Reciprocal), inverse.defined_by(Div), inverse.defined_by(Pow)
        root = reciprocal.operand(0) if reciprocal is not None else None
        if division is not None and splat(division.operand(0)) == 1:
            root = division.operand(1)
        found = root_of_mean_square(root) if root is not None else None
        if power is not None and splat(power.operand(1)) == -0.5:
            found = mean_square(power.operand(0))
        if found is not None and found[0] is t:
            return found
    return None


def vector(value: Value, shape: Any, axis: int) -> bool:
    """Whether a value is a constant of exactly the normalised extents, so that it can be a norm's scale or bias."""
    return value.constant is not None and value.shape == tuple(shape[axis:])


@rewrite((Div, Mul), of=(Sqrt, Pow, Reciprocal, Div), semantics=REASSOCIATES)
def recognize_norm(node: Node, rewriter: Rewriter) -> Replacement:
    """(x − mean(x)) / √(var(x) + ε) is a layer norm; x / √(mean(x²) + ε) is an RMS norm. Both of unit scale."""
    found = normalized(node) or rewriter.why("it does not divide by a root mean square")
    t, axis, epsilon = found
    shape = t.shape
    rewriter.require(shape is not None and all(isinstance(d, int) for d in shape[axis:]), "the extents are not known")
    rewriter.require(t.element.is_float, "no floats")
    rewriter.require(shape == node.results[0].shape, "a constant adds axes")
    ones = np.ones(shape[axis:], t.element.dtype)
    difference = t.defined_by(Sub)
    if difference is not None:
        x, mean = difference.inputs
        over = mean_over_last(mean)
        if over is not None and over == (x, axis):
            return rewriter.layer_norm(x, ones, None, axis=axis - len(shape), epsilon=epsilon)
    return rewriter.rms_norm(t, ones, axis=axis - len(shape), epsilon=epsilon)


@rewrite(Cast, of=(LayerNorm, RmsNorm), semantics=REASSOCIATES)
def absorb_casts_into_norm(node: Node, rewriter: Rewriter) -> Replacement:
    """A norm of unit scale in f32 between casts from and to a narrower float does that by itself."""
    made = node.operand(0)
    norm = made.defined_by(LayerNorm) or made.defined_by(RmsNorm) or rewriter.why("its input is no norm")
    plain = made.has_one_use and splat(norm.scale) == 1 and len(norm.inputs) == 2
    rewriter.require(plain, "the norm is shared, or not of unit scale")
    inner = norm.operand(0).defined_by(Cast) or rewriter.why("the norm is not of a cast")
    x = inner.operand(0)
    narrow = x.element == node.to and x.element.is_float and x.element.bits < inner.to.bits == 32
    rewriter.require(narrow and norm.stash_type == 1, "the casts don't widen a float to f32 and back")
    return rewriter.node(norm.op, [x, np.ones(norm.scale.shape, x.element.dtype)]).results[0]


@rewrite(Mul, of=(LayerNorm, RmsNorm), constant=True, semantics=REASSOCIATES)
def scale_norm(node: Node, rewriter: Rewriter) -> Replacement:
    """A norm of unit scale times a constant takes it as its scale."""
    for made, factor in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        norm = made.producer
        if norm is None or not norm.is_a(LayerNorm, RmsNorm) or not made.has_one_use or made.index != 0:
            continue
        unit = splat(norm.scale) == 1 and len(norm.inputs) == 2
        if unit and vector(factor, made.shape, norm.axis % len(made.shape)):
            return rewriter.node(norm.op, [norm.operand(0), factor]).results[0]
    rewriter.why("no factor is a norm of unit scale, or the other is no constant over its axes")


@rewrite(Add, of=LayerNorm, constant=True, semantics=REASSOCIATES)
def shift_norm(node: Node, rewriter: Rewriter) -> Replacement:
    """A layer norm without bias plus a constant takes it as its bias."""
    for made, term in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        norm = made.defined_by(LayerNorm)
        if norm is None or not made.has_one_use or len(norm.inputs) != 2:
            continue
        if vector(term, made.shape, norm.axis % len(made.shape)):
            return rewriter.node(norm.op, [*norm.operands, term]).results[0]
    rewriter.why("no term is a layer norm without bias, or the other is no constant over its axes")


recognize = group(
    "recognize",
    [
        recognize_gelu,
        recognize_hard_swish,
        recognize_gated,
        recognize_norm,
        absorb_casts_into_norm,
        scale_norm,
        shift_norm,
        recognize_attention,
    ],
    "Recognise activations and normalisations that are spelled out in smaller operators.",
)
