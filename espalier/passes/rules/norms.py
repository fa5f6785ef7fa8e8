"""Folding of normalisations and constant scales into the weights before them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from espalier.errors import VerificationError
from espalier.ir import Node, TensorType, Value, constant_value
from espalier.ir.constants import ComputedSource, Constant, computed
from espalier.ir.elements import Element
from espalier.ir.ops import Add, BatchNorm, Conv, ConvTranspose, Div, Gemm, MatMul, Mul
from espalier.passes.base import REASSOCIATES
from espalier.passes.rewrite import Replacement, Rewriter, group, rewrite
from espalier.passes.rules.matching import NEAR, scaled_input

Affine: TypeAlias = Callable[[], tuple[Any, Any]]
"""Computes a scale and a shift per channel, in f64."""


class NormAffine:
    """The scale and shift per channel that a batch norm of these constants is."""

    __slots__ = ("epsilon", "made", "parts")

    def __init__(self, parts: Sequence[Constant], epsilon: float) -> None:
        self.parts, self.epsilon = parts, epsilon
        self.made: tuple[Any, Any] | None = None

    def __call__(self) -> tuple[Any, Any]:
        if self.made is None:  # weights and bias both ask
            gamma, beta, mean, variance = (part.array.astype(np.float64) for part in self.parts)
            scale = gamma / np.sqrt(variance + self.epsilon)
            self.made = scale, beta - mean * scale
        return self.made


def inference_affine(norm: Node, rewriter: Rewriter) -> Affine:
    """The scale and shift per channel that a batch norm with constant statistics is, computed when they are read."""
    op: Any = norm.op
    parts = []
    for operand in norm.operands[1:]:
        if operand is None or operand.constant is None:
            rewriter.why("the statistics are no constants")
        parts.append(operand.constant)
    if op.training_mode:
        rewriter.why("the norm is in training mode")
    return NormAffine(parts, op.epsilon)


def channel_constant(operand: Value | None, rank: int | None, channels: Any) -> NDArray[Any] | None:
    """A constant that varies along axis 1 of a tensor of that rank only, as a vector; None if it is something else."""
    if operand is None or not operand.is_constant or rank is None or not isinstance(channels, int):
        return None
    shape = (1,) * (rank - operand.array.ndim) + operand.array.shape
    if len(shape) != rank or any(extent != 1 for axis, extent in enumerate(shape) if axis != 1):
        return None
    if operand.array.size not in (1, channels):
        return None  # the channels are broadcast
    return np.broadcast_to(operand.array.reshape(-1), (channels,))


class ScaledLayer:
    """The weight and the bias of a layer whose output is multiplied and moved per channel, computed when read."""

    __slots__ = ("affine", "axis", "bias", "groups", "old")

    def __init__(self, old: Constant, bias: Constant | None, affine: Affine, axis: int, groups: int) -> None:
        self.old, self.bias, self.affine, self.axis, self.groups = old, bias, affine, axis, groups

    def weight(self) -> NDArray[Any]:
        """The weight times the scale of its output channels, on `axis`; the groups follow each other on axis 0.

        Raises VerificationError E602 if it is not finite although the old one is.
        """
        with np.errstate(all="ignore"):
            found = np.asarray(self.exact_weight(), self.old.element.dtype)
        if not np.all(np.isfinite(found)) and np.all(np.isfinite(self.old.array)):
            message = f"a normalisation folded into weights takes them out of the range of {self.old.element.name}"
            raise VerificationError("E602", message, hint="Leave out fold_norms, with a pipeline of your own.")
        return found

    def exact_weight(self) -> NDArray[Any]:
        """The new weight in f64."""
        scale, shape, old = self.affine()[0], self.old.shape, self.old
        if self.axis == 0:
            return np.asarray(old.array * scale.reshape(-1, *(1,) * (len(shape) - 1)))
        factor = scale.reshape(self.groups, *(1,) * self.axis, -1, *(1,) * (len(shape) - self.axis - 1))
        wide = old.array.reshape(self.groups, -1, *shape[1:]) * factor
        return np.asarray(wide.reshape(shape))

    def moved_bias(self) -> NDArray[Any]:
        """The bias times the scale, and the shift."""
        scale, shift = self.affine()
        old: Any = 0.0
        if self.bias is not None:
            channels = self.old.shape[self.axis] * self.groups
            old = np.broadcast_to(self.bias.array.reshape(-1), channels).astype(np.float64)
        return np.asarray(old * scale + shift, self.old.element.dtype)

    def fits(self) -> bool:
        """Whether weight and bias are finite, and no channel's weights lose more digits than those of its largest.

        Elements of few bits have few exponents: a scale can move a channel among the subnormal numbers, or beyond all.
        """
        dtype = self.old.element.dtype
        with np.errstate(all="ignore"):
            bias = self.moved_bias()
            if not np.all(np.isfinite(bias)):
                return False
            if self.old.element.bits >= 32:  # most weights are: by the largest alone, without making the new ones
                scale, least = np.abs(self.affine()[0]), float(ml_dtypes.finfo(dtype).smallest_normal)
                first = self._first() * scale
                if np.all(first) and stays_normal(first, dtype) and at_most(self.old.array, float(np.max(scale))):
                    return True  # as nearly always, and much sooner known
                old = self._largest()
                new = old * scale
                dead = (old < least) | (np.abs(bias) >= np.sqrt(least))  # digits of channels that are off say nothing
                return stays_normal(np.where(dead & (new < least), 0, new), dtype)
            exact = self.exact_weight().astype(np.float64)
            rounded = exact.astype(dtype)
            if not np.all(np.isfinite(rounded)):
                return False
            rest = tuple(axis for axis in range(exact.ndim) if axis != self.axis)
            lost, largest = (
                np.max(np.abs(each), axis=rest, initial=0) for each in (rounded.astype(np.float64) - exact, exact)
            )
        return bool(np.all(lost <= float(ml_dtypes.finfo(dtype).eps) * largest))

    def _parts(self) -> NDArray[Any]:
        """The old weight by groups."""
        return self.old.array.reshape(self.groups, self.old.shape[0] // self.groups, *self.old.shape[1:])

    def _first(self) -> NDArray[Any]:
        """The magnitude of one number of the old weight in each output channel, in f64; 0 if there is none."""
        parts = self._parts()
        if not parts.size:
            return np.zeros(())
        chosen = tuple(slice(None) if axis in (0, self.axis + 1) else 0 for axis in range(parts.ndim))
        return np.abs(parts[chosen].astype(np.float64)).reshape(-1)

    def _largest(self) -> NDArray[Any]:
        """The largest magnitude of the old weight in each output channel, in f64."""
        parts = self._parts()
        rest = tuple(axis for axis in range(1, parts.ndim) if axis != self.axis + 1)
        low, high = (function(parts, axis=rest, initial=0) for function in (np.min, np.max))
        return np.maximum(-low, high).astype(np.float64).reshape(-1)


def stays_normal(magnitudes: NDArray[Any], dtype: Any) -> bool:
    """Whether numbers given in f64 are zero or normal numbers of a type."""
    limits = ml_dtypes.finfo(dtype)
    fits = (magnitudes >= float(limits.smallest_normal)) & (magnitudes <= float(limits.max))
    return bool(np.all(fits | (magnitudes == 0)))


def at_most(array: NDArray[Any], scale: float) -> bool:
    """Whether no product of an array of floats with a positive number is infinite, as far as one fast sum tells."""
    flat = array.reshape(-1)
    return 2 * float(np.vdot(flat, flat)) ** 0.5 * scale <= float(ml_dtypes.finfo(array.dtype).max)


def scales(array: NDArray[Any], scale: float) -> bool:
    """Whether no product of the floats with a number is infinite, and no slice of normal ones loses its largest."""
    if not stays_normal(np.abs(scale), array.dtype):
        return False
    lines = [(0,) * axis + (slice(None),) + (0,) * (array.ndim - axis - 1) for axis in range(array.ndim)]
    if array.size and at_most(array, abs(scale)):  # if a number of every slice stays normal, the rest is soon told
        first = [np.abs(array[line].astype(np.float64)) * abs(scale) for line in lines or [()]]
        if all(stays_normal(line, array.dtype) and np.all(line) for line in first):
            return True
    magnitudes, least = np.abs(array), ml_dtypes.finfo(array.dtype).smallest_normal
    largest = float(np.max(magnitudes, initial=0))
    smallest = float(np.min(magnitudes, initial=np.inf, where=magnitudes >= least))
    ends = np.array([largest, largest if smallest == np.inf else smallest])
    return stays_normal(ends * abs(scale), array.dtype)


def scaled(layer: Node, affine: Affine, axis: int, rewriter: Rewriter) -> Value:
    """A convolution or gemm with its output multiplied and moved per channel; axis: the weight's output channels."""
    operands = layer.operands
    weight, bias = layer.operand(1), operands[2] if len(operands) > 2 else None
    if weight.constant is None or (bias is not None and bias.constant is None):
        rewriter.why("the weights are no constants")
    if not layer.results[0].has_one_use:
        rewriter.why("the layer's output is shared")
    element, shape = weight.constant.element, weight.constant.shape
    if element.kind != "float" or element.bits < 16:
        rewriter.why("the weights are no floats")
    groups = getattr(layer.op, "group", 1) if axis == 1 else 1  # a transposed convolution has (g i) o K
    channels = shape[axis] * groups
    made = ScaledLayer(weight.constant, None if bias is None else bias.constant, affine, axis, groups)
    # no norm is trained beyond the range of f32, and to look into statistics and weights would take most of the time
    if not (affine.__class__ is NormAffine and element.bits >= 32) and not made.fits():
        rewriter.why(f"the scaled weights are out of the range of {element.name}")
    new_weight, new_bias = Value(weight.type), Value(vector_type(element, channels))
    new_weight.constant = Constant(ComputedSource(made.weight), element, shape)
    new_bias.constant = Constant(ComputedSource(made.moved_bias), element, (channels,))
    return rewriter.amend(layer, {1: new_weight, 2: new_bias}).results[0]


@functools.lru_cache(maxsize=1024)
def vector_type(element: Element, extent: int) -> TensorType:
    """The type of a vector, one object for equal ones."""
    return TensorType(element, (extent,))


def layer_before(value: Value) -> tuple[Node, int] | None:
    """The convolution that makes a value, and the axis of its weight's output channels."""
    conv = value.defined_by(Conv)
    if conv is not None:
        return conv, 0
    transposed = value.defined_by(ConvTranspose)
    return None if transposed is None else (transposed, 1)


@rewrite(BatchNorm, of=(Conv, ConvTranspose), semantics=REASSOCIATES)
def fold_batch_norm(norm: Node, rewriter: Rewriter) -> Replacement:
    """Scale a convolution's weights so that the batch norm after it disappears."""
    layer, axis = layer_before(norm.operand(0)) or rewriter.why("its input is no convolution")
    return [scaled(layer, inference_affine(norm, rewriter), axis, rewriter), *[None] * (len(norm.results) - 1)]


@rewrite(BatchNorm, of=Gemm, semantics=REASSOCIATES)
def fold_batch_norm_into_gemm(norm: Node, rewriter: Rewriter) -> Replacement:
    """Scale a fully connected layer's weights so that the batch norm after it disappears."""
    gemm = norm.x.defined_by(Gemm) or rewriter.why("its input is no gemm")
    rewriter.require(gemm.alpha == 1 and gemm.beta == 1, "the gemm is scaled")
    rewriter.require(gemm.c is None or gemm.c.rank < 2 or gemm.c.shape[0] == 1, "the bias varies along the batch")
    made = scaled(gemm, inference_affine(norm, rewriter), 0 if gemm.transB else 1, rewriter)
    return [made, *[None] * (len(norm.results) - 1)]


@rewrite((Mul, Add), of=(Conv, ConvTranspose), constant=True, semantics=REASSOCIATES)
def fold_affine_into_conv(node: Node, rewriter: Rewriter) -> Replacement:
    """Take a constant per channel after a convolution, multiplied or added, into its weights or its bias."""
    for x, operand in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        found = layer_before(x)
        if found is None or not operand.is_constant:
            continue
        vector = channel_constant(operand, x.rank, x.shape[1] if x.rank else None)
        rewriter.require(vector is not None, "the constant does not vary per channel only")
        number = np.asarray(vector, np.float64)
        if node.is_a(Add):
            return shifted(found[0], number, rewriter)
        affine = functools.partial(_plain_scale, number)
        return scaled(found[0], affine, found[1], rewriter)
    rewriter.why("no convolution and a constant")


@rewrite((Mul, Div), constant=True, semantics=REASSOCIATES)
def fold_scale_into_matmul(node: Node, rewriter: Rewriter) -> Replacement:
    """A number that multiplies a product with a constant matrix, through movements and a bias, is taken into both."""
    x, scale = scaled_input(node.results[0])
    rewriter.require(x is not node.results[0], "no number is multiplied")
    rewriter.require(x.element.is_float and x.element.bits >= 32, "narrow floats, or none")
    return scaled_copy(x, scale, rewriter)


def scaled_copy(value: Value, scale: float, rewriter: Rewriter, depth: int = NEAR) -> Value:
    """scale · value, by constants that the scale is taken into; no match where the scale would have to stay.

    It is taken through at most `depth` nodes after each other.
    """
    node = value.producer
    if value.constant is not None:
        source, factor = value.constant, value.element.dtype.type(scale)
        rewriter.require(
            scales(source.array, scale), f"the scaled numbers are out of the range of {value.element.name}"
        )
        return constant_value(computed(lambda: source.array * factor, value.element, value.shape))
    if node is None or not value.has_one_use or len(node.results) != 1:
        rewriter.why("it is no product with constants behind movements")
    rewriter.require(depth > 0, "the product with constants is too far before it")
    moved = node.op.moves and sum(v.element == value.element for v in node.inputs) == 1
    rewriter.require(moved or node.is_a(Add, MatMul), "it is no product with constants behind movements")
    operands = list(node.operands)
    last = node.is_a(MatMul)  # scale the matrix, and no factor else
    for position in (1,) if last else (0, 1) if node.is_a(Add) else (0,):
        operand = node.operand(position)
        rewriter.require(operand.is_constant or not last, "the matrix is no constant")
        operands[position] = scaled_copy(operand, scale, rewriter, depth - 1)
    return rewriter.node(node.op, operands).results[0]


def _plain_scale(scale: NDArray[Any]) -> tuple[Any, Any]:
    """A scale without a shift."""
    return scale, np.zeros_like(scale)


def shifted(layer: Node, shift: NDArray[Any], rewriter: Rewriter) -> Value:
    """A convolution with its bias moved."""
    rewriter.require(layer.b is None or layer.b.is_constant, "the bias is no constant")
    rewriter.require(layer.results[0].has_one_use, "the layer's output is shared")
    element = layer.w.element
    with np.errstate(all="ignore"):
        bias = np.ascontiguousarray(shift if layer.b is None else layer.b.array + shift, element.dtype)
    rewriter.require(np.all(np.isfinite(bias)), f"the moved bias is out of the range of {element.name}")
    return rewriter.node(layer.op, [layer.x, layer.w, bias]).results[0]


fold_norms = group(
    "fold_norms",
    [fold_batch_norm, fold_batch_norm_into_gemm, fold_affine_into_conv, fold_scale_into_matmul],
    "Fold batch norms and constant scales and shifts into the weights before them.",
)
