"""Folding of normalisations and constant scales into the weights before them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.ir import Node, Value
from espalier.ir.ops import Add, BatchNorm, Conv, ConvTranspose, Gemm, Mul
from espalier.passes.base import REASSOCIATES
from espalier.passes.rewrite import Replacement, Rewriter, group, rewrite


def inference_affine(norm: Node, rewriter: Rewriter) -> tuple[NDArray[Any], NDArray[Any]]:
    """The scale and shift per channel that a batch norm with constant statistics is."""
    parts = (norm.scale, norm.shift, norm.mean, norm.variance)
    rewriter.require(all(v.is_constant for v in parts), "the statistics are no constants")
    rewriter.require(not norm.training_mode, "the norm is in training mode")
    gamma, beta, mean, variance = (v.array.astype(np.float64) for v in parts)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale


def channel_constant(operand: Value | None, rank: int | None, channels: Any) -> NDArray[Any] | None:
    """A constant that varies along axis 1 of a tensor of that rank only, as a vector; None if it is something else."""
    if operand is None or not operand.is_constant or rank is None or not isinstance(channels, int):
        return None
    shape = (1,) * (rank - operand.array.ndim) + operand.array.shape
    if len(shape) != rank or any(extent != 1 for axis, extent in enumerate(shape) if axis != 1):
        return None
    return np.broadcast_to(operand.array.reshape(-1), (channels,))


def scaled(conv: Node, scale: NDArray[Any], shift: NDArray[Any], rewriter: Rewriter) -> Value:
    """The convolution (transposed or not) with its output multiplied and moved per channel."""
    weight, bias = conv.w, conv.b
    rewriter.require(weight.is_constant and (bias is None or bias.is_constant), "the weights are no constants")
    rewriter.require(conv.results[0].has_one_use, "the convolution's output is shared")
    rewriter.require(weight.element.is_float and weight.element.bits >= 16, "the weights are no floats")
    wide = weight.array.astype(np.float64)
    if conv.is_a(ConvTranspose):  # (g i) o K: scale each group's outputs
        per_group = scale.reshape(conv.group, 1, -1, *(1,) * (wide.ndim - 2))
        wide = (wide.reshape(conv.group, -1, *wide.shape[1:]) * per_group).reshape(wide.shape)
    else:
        wide = wide * scale.reshape(-1, *(1,) * (wide.ndim - 1))
    old_bias = 0.0 if bias is None else bias.array.astype(np.float64)
    dtype = weight.element.dtype
    node = rewriter.node(conv.op, [conv.x, wide.astype(dtype), (old_bias * scale + shift).astype(dtype)])
    return node.results[0]


def producer_conv(value: Value, rewriter: Rewriter) -> Node:
    """The convolution that makes a value, or no match."""
    return value.defined_by(Conv) or value.defined_by(ConvTranspose) or rewriter.why("its input is no convolution")


@rewrite(BatchNorm, semantics=REASSOCIATES)
def fold_batch_norm(norm: Node, rewriter: Rewriter) -> Replacement:
    """Scale a convolution's weights so that the batch norm after it disappears."""
    conv = producer_conv(norm.x, rewriter)
    scale, shift = inference_affine(norm, rewriter)
    return [scaled(conv, scale, shift, rewriter), *[None] * (len(norm.results) - 1)]


@rewrite(BatchNorm, semantics=REASSOCIATES)
def fold_batch_norm_into_gemm(norm: Node, rewriter: Rewriter) -> Replacement:
    """Scale a fully connected layer's weights so that the batch norm after it disappears."""
    gemm = norm.x.defined_by(Gemm) or rewriter.why("its input is no gemm")
    rewriter.require(gemm.out.has_one_use, "the gemm's output is shared")
    rewriter.require(gemm.b.is_constant and (gemm.c is None or gemm.c.is_constant), "the weights are no constants")
    rewriter.require(gemm.alpha == 1 and gemm.beta == 1, "the gemm is scaled")
    scale, shift = inference_affine(norm, rewriter)
    dtype = gemm.b.element.dtype
    weight = gemm.b.array.astype(np.float64) * (scale[:, None] if gemm.transB else scale)
    bias = (0.0 if gemm.c is None else gemm.c.array.astype(np.float64)) * scale + shift
    node = rewriter.node(gemm.op, [gemm.a, weight.astype(dtype), bias.astype(dtype)])
    return [node.results[0], *[None] * (len(norm.results) - 1)]


@rewrite(Mul, semantics=REASSOCIATES)
def fold_scale_into_conv(mul: Node, rewriter: Rewriter) -> Replacement:
    """Multiply a convolution's weights by the constant per channel that comes after it."""
    for x, factor in ((mul.a, mul.b), (mul.b, mul.a)):
        conv = x.defined_by(Conv) or x.defined_by(ConvTranspose)
        if conv is None:
            continue
        scale = channel_constant(factor, x.rank, x.shape[1] if x.rank else None)
        rewriter.require(scale is not None, "the factor is no constant per channel")
        assert scale is not None
        return scaled(conv, scale.astype(np.float64), np.zeros(len(scale)), rewriter)
    rewriter.why("neither factor is a convolution")


@rewrite(Add, semantics=REASSOCIATES)
def fold_shift_into_conv(add: Node, rewriter: Rewriter) -> Replacement:
    """Add the constant per channel that comes after a convolution to its bias."""
    for x, term in ((add.a, add.b), (add.b, add.a)):
        conv = x.defined_by(Conv) or x.defined_by(ConvTranspose)
        if conv is None:
            continue
        shift = channel_constant(term, x.rank, x.shape[1] if x.rank else None)
        rewriter.require(shift is not None, "the term is no constant per channel")
        rewriter.require(conv.b is None or conv.b.is_constant, "the bias is no constant")
        rewriter.require(conv.results[0].has_one_use, "the convolution's output is shared")
        assert shift is not None
        bias = shift if conv.b is None else conv.b.array + shift
        return rewriter.node(conv.op, [conv.x, conv.w, np.ascontiguousarray(bias)]).results[0]
    rewriter.why("neither term is a convolution")


fold_norms = group(
    "fold_norms",
    [fold_batch_norm, fold_batch_norm_into_gemm, fold_scale_into_conv, fold_shift_into_conv],
    "Fold batch norms and constant scales and shifts into the weights before them.",
)
