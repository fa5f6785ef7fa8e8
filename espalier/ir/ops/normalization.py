"""Normalisations: by statistics over axes, and softmax and its kin."""

from __future__ import annotations

from typing import Any

from espalier.ir import elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Shape
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, Out, TypeContext, op
from espalier.ir.ops.elementwise import arithmetic_element
from espalier.ir.ops.reductions import axis_letters, axis_of
from espalier.ir.terms import Term, Variable
from espalier.ir.types import TensorType, Type


def per_channel(xp: Any, values: Any, rank: int) -> Any:
    """Values of axis 1, shaped to broadcast against a tensor of this rank."""
    return xp.reshape(values, (-1,) + (1,) * (rank - 2)) if rank > 1 else xp.reshape(values, ())


def variance(xp: Any, x: Any, mean: Any, axes: tuple[int, ...]) -> Any:
    """The population variance over axes, kept."""
    return xp.mean((x - mean) * (x - mean), axis=axes, keepdims=True)


@zeros.ZeroRule
def batch_norm_zero(states: zeros.States) -> bool:
    """scale·(x − mean)/σ + shift: the shift, and the scale or the difference."""
    x, scale, shift, mean = states[:4]
    return shift is True and (scale is True or (x is True and mean is True))


@op("batch_norm", onnx="BatchNormalization")
class BatchNorm(Op):
    """scale·(x − mean)/√(variance + epsilon) + shift per channel, x being (n, c, …).

    In training mode, mean and variance are those of x; the further results are the operands' moved on by `momentum`.
    """

    x: In
    scale: In
    shift: In
    mean: In
    variance: In
    out: Out
    running_mean: Out | None
    running_variance: Out | None
    epsilon: float = 1e-5
    momentum: float = 0.9
    training_mode: int = 0

    zero = batch_norm_zero
    moves_on = {1: 3, 2: 4}

    def training(self, keep: float | None = None) -> BatchNorm:
        return self.replace(training_mode=1, momentum=self.momentum if keep is None else keep)

    def equation(self, ctx: TypeContext) -> Equation | None:
        if ctx.rank("x") == 1:  # a batch of numbers, of one channel
            found = self.declared(ctx, "n, 1, 1, 1, 1 -> n, 1, 1")
        else:
            found = self.declared(ctx, "n c X?, c, c, c, c -> n c X?, c, c")
        if found is not None and self.training_mode:
            found.normalized += found.letters["n"] + found.letters.get("X?", [])
        return found

    def infer(self, ctx: TypeContext) -> list[Type]:
        found, element = self.equation(ctx), arithmetic_element(ctx, "x", real=True)
        if ctx.result_count > 1 and not self.training_mode:
            ctx.fail("batch normalisation has running statistics in training mode only")
        kinds = [element, ctx.element("mean"), ctx.element("variance")][: ctx.result_count]
        shapes = found.shapes() if found else [None] * len(kinds)
        return [TensorType(kind, shape) for kind, shape in zip(kinds, shapes, strict=True)]

    def reference(self, xp: Any, x: Any, scale: Any, shift: Any, mean: Any, variance: Any) -> Any:
        parts = [xp.wide(operand) for operand in (x, scale, shift, mean, variance)]
        kind, exact = xp.element(x), max(map(xp.element, parts), key=lambda element: element.bits)
        wide, factor, offset, *running = (xp.astype(part, exact) for part in parts)
        if not self.training_mode:
            return xp.astype(xp.batch_norm(wide, factor, offset, *running, self.epsilon), kind)
        found, *current = xp.batch_norm_training(wide, factor, offset, self.epsilon)
        moved = [
            xp.astype(old * self.momentum + xp.reshape(new, old.shape) * (1 - self.momentum), xp.element(given))
            for old, new, given in zip(running, current, (mean, variance), strict=True)
        ]
        return xp.astype(found, kind), *moved


def aligned(ctx: TypeContext, terms: list[Term], shape: Shape) -> list[Term]:
    """Terms of an operand that broadcasts to a tensor of the given terms, aligned at the right end."""
    if len(shape) > len(terms):
        ctx.fail(f"an operand of rank {len(shape)} does not broadcast to rank {len(terms)}")
    found: list[Term] = []
    for term, extent in zip(terms[len(terms) - len(shape) :], shape, strict=True):
        if extent == term.extent:
            found.append(term)
        elif extent == 1:
            found.append(Variable(1))
        elif isinstance(extent, int) and isinstance(term.extent, int):
            ctx.fail(f"an extent of {extent} does not broadcast to {term.extent}")
        else:
            found.append(Variable(extent, "broadcast that is not known before run time"))
    return found


@zeros.ZeroRule
def scaled(states: zeros.States) -> bool:
    """scale·normalised + shift: zero where scale and shift are."""
    return states[1] is True and all(state is True for state in states[2:])


class TrailingNorm(Op):
    """Base of normalisations over the axes from `axis` on."""

    zero = scaled

    def trailing(self, ctx: TypeContext, axis: int, statistics: int) -> Equation | None:
        """The equation: further operands broadcast to x; results are x's axes, then statistics of the leading axes."""
        shapes = [ctx.shape(k) if ctx.has(k) else () for k in range(len(ctx.types))]
        if any(shape is None for shape in shapes):
            return None
        shape = shapes[0] or ()
        first = axis_of(ctx, axis, len(shape))
        letters: list[Variable] = [Variable(extent) for extent in shape]
        terms: list[Term] = list(letters)
        operands: list[list[Term] | None] = [terms]
        for position, other in enumerate(shapes[1:], 1):
            operands.append(aligned(ctx, terms, other or ()) if ctx.has(position) else None)
        means: list[Term] = [*terms[:first], *(Variable(1) for _ in terms[first:])]
        results: list[list[Term] | None] = [terms, *[means] * statistics]
        named = dict(zip(axis_letters(len(letters)), ([letter] for letter in letters), strict=True))
        return Equation(operands, results, letters=named, normalized=terms[first:])


@op("layer_norm", onnx="LayerNormalization")
class LayerNorm(TrailingNorm):
    """(x − mean)/√(variance + epsilon)·scale + shift, with statistics over the axes from `axis` on.

    The statistics are in f32 (or in x's element if `stash_type` is 0); they are further results: the means and the
    inverse standard deviations.
    """

    x: In
    scale: In
    shift: In | None
    out: Out
    mean: Out | None
    inverse_deviation: Out | None
    axis: int = -1
    epsilon: float = 1e-5
    stash_type: int = 1

    def equation(self, ctx: TypeContext) -> Equation | None:
        return self.trailing(ctx, self.axis, ctx.result_count - 1)

    def infer(self, ctx: TypeContext) -> list[Type]:
        found, element = self.equation(ctx), arithmetic_element(ctx, "x", "scale", "shift", real=True)
        kinds = [element] + [stashed(element, self.stash_type)] * (ctx.result_count - 1)
        shapes = [ctx.shape("x"), *[None] * (len(kinds) - 1)]
        if found is not None:
            shapes = found.shapes()
        return [TensorType(kind, shape) for kind, shape in zip(kinds, shapes, strict=True)]

    def reference(self, xp: Any, x: Any, scale: Any, shift: Any = None) -> Any:
        kind = xp.element(x)
        stash = stashed(kind, self.stash_type)
        wide, first = xp.wide(x), self.axis % x.ndim
        if kind.bits >= 32 and xp.element(scale) == kind:
            found, mean, inverse = xp.layer_norm(wide, first, self.epsilon, scale, shift)
        else:  # narrow floats are rounded before the scale
            found, mean, inverse = xp.layer_norm(wide, first, self.epsilon)
            found = xp.astype(found, kind) * scale
            found = found if shift is None else found + shift
        return found, xp.astype(mean, stash), xp.astype(inverse, stash)


def stashed(element: Element, stash_type: int) -> Element:
    """The element of statistics: f32 (1), bf16 (16), or x's own where that is wider."""
    if element == elements.F64:
        return element
    return elements.BF16 if stash_type == 16 else elements.F32


@op("rms_norm", onnx="RMSNormalization")
class RmsNorm(TrailingNorm):
    """x/√(mean of x² + epsilon)·scale, with means over the axes from `axis` on."""

    x: In
    scale: In
    axis: int = -1
    epsilon: float = 1e-5
    stash_type: int = 1

    zero = zeros.either

    def equation(self, ctx: TypeContext) -> Equation | None:
        return self.trailing(ctx, self.axis, 0)

    def element(self, ctx: TypeContext) -> Element:
        arithmetic_element(ctx, "x", real=True)
        return arithmetic_element(ctx, "scale", real=True)

    def reference(self, xp: Any, x: Any, scale: Any) -> Any:
        wide, axes = xp.wide(x), tuple(range(self.axis % x.ndim, x.ndim))
        root = xp.sqrt(xp.mean(wide * wide, axis=axes, keepdims=True) + self.epsilon)
        return xp.astype(wide / root, xp.element(scale)) * scale


@op("instance_norm", onnx="InstanceNormalization")
class InstanceNorm(Op):
    """scale·(x − mean)/√(variance + epsilon) + shift, with statistics over the axes after (n, c)."""

    x: In
    scale: In
    shift: In
    epsilon: float = 1e-5

    axes = "n c X?, c, c -> n c X?"
    normalizes = ("X?",)
    zero = scaled

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x", "scale", "shift", real=True)

    def reference(self, xp: Any, x: Any, scale: Any, shift: Any) -> Any:
        found, *_ = xp.layer_norm(xp.wide(x), 2, self.epsilon)
        found = found * per_channel(xp, xp.wide(scale), x.ndim) + per_channel(xp, xp.wide(shift), x.ndim)
        return xp.astype(found, xp.element(x))


@op("group_norm", onnx="GroupNormalization")
class GroupNorm(Op):
    """scale·(x − mean)/√(variance + epsilon) + shift, with statistics over each of `num_groups` groups of channels."""

    x: In
    scale: In
    shift: In
    num_groups: int
    epsilon: float = 1e-5
    stash_type: int = 1

    axes = "n (g c) X?, (g c), (g c) -> n (g c) X?"
    bound = {"num_groups": "g"}
    normalizes = ("c", "X?")
    zero = scaled

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x", "scale", "shift", real=True)

    def reference(self, xp: Any, x: Any, scale: Any, shift: Any) -> Any:
        grouped = xp.reshape(xp.wide(x), (x.shape[0], self.num_groups, x.shape[1] // self.num_groups, *x.shape[2:]))
        found, *_ = xp.layer_norm(grouped, 2, self.epsilon)
        found = xp.astype(xp.reshape(found, x.shape), xp.element(x))
        return found * per_channel(xp, scale, x.ndim) + per_channel(xp, shift, x.ndim)


class AlongAxis(Op):
    """Base of functions of all numbers along one axis that keep the shape."""

    x: In
    axis: int = -1

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x", real=True)

    def equation(self, ctx: TypeContext) -> Equation | None:
        rank = ctx.rank("x")
        if rank is None:
            return None
        letters = axis_letters(rank)
        normalized = [letters[axis_of(ctx, self.axis, rank)]]
        found = self.declared(ctx, f"{' '.join(letters)} -> {' '.join(letters)}")
        if found is not None:
            found.normalized += [found.letters[letter][0] for letter in normalized]
        return found


@op("softmax", onnx="Softmax")
class Softmax(AlongAxis):
    """exp(x) normalised to sum 1 over an axis.

    ONNX defines it by a body of older operators, so 16-bit floats round after each of its steps.
    """

    def reference(self, xp: Any, x: Any) -> Any:
        kind = xp.element(x)
        if kind.bits >= 32 or 0 in x.shape:
            return xp.softmax(x, self.axis)
        wide = xp.wide(x)
        powers = xp.astype(xp.exp(wide - xp.max(wide, axis=self.axis, keepdims=True)), kind)
        total = xp.astype(xp.sum(xp.wide(powers), axis=self.axis, keepdims=True), kind)
        return xp.astype(xp.wide(powers) / xp.wide(total), kind)


@op("log_softmax", onnx="LogSoftmax")
class LogSoftmax(AlongAxis):
    """The logarithm of softmax."""

    def reference(self, xp: Any, x: Any) -> Any:
        if 0 in x.shape:
            return x
        return xp.astype(xp.log_softmax(xp.wide(x), self.axis), xp.element(x))


@op("hardmax", onnx="Hardmax")
class Hardmax(AlongAxis):
    """1 at the first maximum along an axis, 0 elsewhere."""

    idempotent = True

    def reference(self, xp: Any, x: Any) -> Any:
        if 0 in x.shape:
            return x
        axis = self.axis % x.ndim
        positions = xp.reshape(xp.arange(x.shape[axis]), (-1,) + (1,) * (x.ndim - axis - 1))
        return xp.astype(xp.argmax(x, axis=axis, keepdims=True) == positions, xp.element(x))


@op("lp_norm", onnx="LpNormalization")
class LpNorm(AlongAxis):
    """x divided by its 1-norm or 2-norm along an axis; 0 where that is 0."""

    p: int = 2

    zero = zeros.passed

    def element(self, ctx: TypeContext) -> Element:
        if self.p not in (1, 2):
            ctx.fail(f"the norm is of order 1 or 2, not {self.p}")
        return super().element(ctx)

    def reference(self, xp: Any, x: Any) -> Any:
        wide = xp.wide(x)
        size = xp.abs(wide) if self.p == 1 else wide * wide
        norm = xp.sum(size, axis=self.axis, keepdims=True)
        norm = norm if self.p == 1 else xp.sqrt(norm)
        found = xp.where(norm == 0, xp.zeros_like(wide), wide / xp.where(norm == 0, xp.ones_like(norm), norm))
        return xp.astype(found, xp.element(x))


@op("mean_variance_norm", onnx="MeanVarianceNormalization")
class MeanVarianceNorm(Op):
    """(x − mean)/(deviation + 1e-9), with statistics over `axis_numbers`."""

    x: In
    axis_numbers: tuple[int, ...] = (0, 2, 3)

    onnx_names = {"axis_numbers": "axes"}

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x", real=True)

    def equation(self, ctx: TypeContext) -> Equation | None:
        rank = ctx.rank("x")
        if rank is None:
            return None
        letters = axis_letters(rank)
        found = self.declared(ctx, f"{' '.join(letters)} -> {' '.join(letters)}")
        if found is not None:
            found.normalized += [found.letters[letters[axis_of(ctx, axis, rank)]][0] for axis in self.axis_numbers]
        return found

    def reference(self, xp: Any, x: Any) -> Any:
        wide, axes = xp.wide(x), tuple(axis % x.ndim for axis in self.axis_numbers)
        mean = xp.mean(wide, axis=axes, keepdims=True)
        found = (wide - mean) / (xp.sqrt(variance(xp, wide, mean, axes)) + 1e-9)
        return xp.astype(found, xp.element(x))


@op("local_response_norm", onnx="LRN")
class LocalResponseNorm(Op):
    """x/(bias + alpha/size·Σ x²)^beta, the sum going over `size` neighbouring channels."""

    x: In
    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0

    zero = zeros.passed

    def element(self, ctx: TypeContext) -> Element:
        return arithmetic_element(ctx, "x", real=True)

    def equation(self, ctx: TypeContext) -> Equation | None:
        found = self.declared(ctx, "n c X? -> n c X?")
        if found is not None:
            found.letters["c"][0].pinned = "neighbouring channels are normalised together"
        return found

    def reference(self, xp: Any, x: Any) -> Any:
        wide, channels = xp.wide(x), x.shape[1]
        before, after = (self.size - 1) // 2, self.size // 2
        squares = xp.pad(wide * wide, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))
        total = xp.zeros_like(wide)
        for offset in range(self.size):
            total = total + squares[:, offset : offset + channels]
        return xp.astype(wide / (total * (self.alpha / self.size) + self.bias) ** self.beta, xp.element(x))
