"""Operators of onnxruntime (domain com.microsoft) whose documented meaning plain operators have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.frontends.onnx.site import Refused, Site, adapter, scalar
from espalier.ir.elements import integer
from espalier.ir.graph import Value

DOMAIN = "com.microsoft"


def _no(site: Site, **allowed: Any) -> None:
    """Raise Refused if an attribute has another value than the one that is understood."""
    for name, value in allowed.items():
        if site.get(name, value) != value:
            raise Refused(f"{site.op_type} with {name}={site.get(name)}")


def _unused(site: Site, *positions: int) -> None:
    """Raise Refused if results at these positions are asked for."""
    for position in positions:
        if position < site.results and site.proto.output[position]:
            raise Refused(f"{site.op_type} with its result {position}")


@adapter("Gelu", domain=DOMAIN)
def gelu(site: Site) -> Sequence[Value]:
    return [site.build.gelu(site.required(0))]


@adapter("BiasGelu", domain=DOMAIN)
def bias_gelu(site: Site) -> Sequence[Value]:
    return [site.build.gelu(site.build.add(site.required(0), site.required(1)))]


@adapter("FastGelu", domain=DOMAIN)
def fast_gelu(site: Site) -> Sequence[Value]:
    x, bias = site.required(0), site.operand(1)
    return [site.build.gelu(x if bias is None else site.build.add(x, bias), approximate="tanh")]


@adapter("QuickGelu", domain=DOMAIN)
def quick_gelu(site: Site) -> Sequence[Value]:
    x, build = site.required(0), site.build
    return [build.mul(x, build.sigmoid(build.mul(x, scalar(site.get("alpha", 1.702), x.element))))]


@adapter("FusedMatMul", "TransposeMatMul", domain=DOMAIN)
def fused_matmul(site: Site) -> Sequence[Value]:
    _no(site, transBatchA=0, transBatchB=0)
    build, sides = site.build, []
    for position, name in enumerate(("transA", "transB")):
        side = site.required(position)
        if site.get(name, 0):
            rank = len(site.shape(position))
            side = build.transpose(side, perm=(*range(rank - 2), rank - 1, rank - 2)) if rank > 1 else side
        sides.append(side)
    y, alpha = build.matmul(*sides), site.get("alpha", 1.0)
    return [y if alpha == 1.0 else build.mul(y, scalar(alpha, y.element))]


@adapter("FusedGemm", domain=DOMAIN)
def fused_gemm(site: Site) -> Sequence[Value]:
    build = site.build
    names = ("alpha", "beta", "transA", "transB")
    y = build.gemm(*site.operands, **{name: site.attributes[name] for name in names if name in site.attributes})
    return [_activation(site, y)]


@adapter("FusedConv", domain=DOMAIN)
def fused_conv(site: Site) -> Sequence[Value]:
    addend = site.operand(3)
    activation: dict[str, Any] = {
        name: site.attributes.pop(name) for name in ("activation", "activation_params") if name in site.attributes
    }
    site.operands = site.operands[:3]
    y = site.importer.convert_as(site, "", "Conv")[0]
    site.attributes.update(activation)
    return [_activation(site, y if addend is None else site.build.add(y, addend))]


def _activation(site: Site, y: Value) -> Value:
    """The activation that a fused operator names."""
    name, build = site.get("activation", ""), site.build
    parameters = site.get("activation_params", ())
    found: Value
    if name == "":
        return y
    if name == "LeakyRelu":
        alpha = parameters[0] if parameters else site.get("activation_alpha", 0.01)
        found = build.leaky_relu(y, alpha=alpha)
    elif name == "Clip" and len(parameters) == 2:
        found = build.clip(y, *(scalar(bound, y.element) for bound in parameters))
    elif name == "HardSigmoid" and len(parameters) == 2:
        found = build.hard_sigmoid(y, alpha=parameters[0], beta=parameters[1])
    elif name in ("Relu", "Tanh", "Sigmoid"):
        found = getattr(build, name.lower())(y)
    else:
        raise Refused(f"{site.op_type} with the activation {name}")
    return found


@adapter("SkipLayerNormalization", domain=DOMAIN)
def skip_layer_normalization(site: Site) -> Sequence[Value]:
    """layer_norm(input + skip + bias); the fourth result is that sum."""
    _unused(site, 1, 2)
    total, build = _skip(site, 4), site.build
    y = build.layer_norm(total, site.required(2), site.operand(3), axis=-1, epsilon=site.get("epsilon", 1e-12))
    return [y, total, total, total]


@adapter("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_simplified_layer_normalization(site: Site) -> Sequence[Value]:
    _unused(site, 1, 2)
    total = _skip(site, 3)
    y = site.build.rms_norm(total, site.required(2), axis=-1, epsilon=site.get("epsilon", 1e-6))
    return [y, total, total, total]


def _skip(site: Site, bias: int) -> Value:
    build = site.build
    total: Value = build.add(site.required(0), site.required(1))
    if site.operand(bias) is not None:
        total = build.add(total, site.required(bias))
    return total


@adapter("SimplifiedLayerNormalization", domain=DOMAIN)
@adapter("SimplifiedLayerNormalization")
def simplified_layer_normalization(site: Site) -> Sequence[Value]:
    _unused(site, 1)
    keywords = {"axis": site.get("axis", -1), "epsilon": site.get("epsilon", 1e-5)}
    return [site.build.rms_norm(site.required(0), site.required(1), **keywords)]


@adapter("LayerNormalization", domain=DOMAIN)
def layer_normalization(site: Site) -> Sequence[Value]:
    _unused(site, 1, 2)
    keywords = {"axis": site.get("axis", -1), "epsilon": site.get("epsilon", 1e-5)}
    return [site.build.layer_norm(site.required(0), site.required(1), site.operand(2), **keywords)]


@adapter("EmbedLayerNormalization", domain=DOMAIN)
def embed_layer_normalization(site: Site) -> Sequence[Value]:
    """layer_norm(words[ids] + positions[0…] + segments[ids]), without a mask."""
    _unused(site, 1)
    if site.operand(7) is not None or site.operand(8) is not None:
        raise Refused("EmbedLayerNormalization with a mask or positions")
    ids, segments = site.required(0), site.operand(1)
    words, places, kinds, gamma, beta = (site.operand(k) for k in range(2, 7))
    length = site.shape(0)[1]
    if not isinstance(length, int):
        raise Refused("EmbedLayerNormalization of a length that is not known")
    build = site.build
    total = build.add(build.gather(words, ids, axis=0), build.gather(places, np.arange(length), axis=0))
    if segments is not None and kinds is not None:
        total = build.add(total, build.gather(kinds, segments, axis=0))
    y = build.layer_norm(total, gamma, beta, axis=-1, epsilon=site.get("epsilon", 1e-12))
    return [y, total, total]


@adapter("NhwcConv", domain=DOMAIN)
def channels_last_conv(site: Site) -> Sequence[Value]:
    """A convolution of channels-last data with channels-last kernels."""
    rank, build = len(site.shape(0)), site.build
    first = (0, rank - 1, *range(1, rank - 1))
    site.operands = [
        build.transpose(site.required(0), perm=first),
        build.transpose(site.required(1), perm=first),
        *site.operands[2:],
    ]
    y = site.importer.convert_as(site, "", "Conv")[0]
    return [build.transpose(y, perm=(0, *range(2, rank), 1))]


@adapter("MatMulNBits", domain=DOMAIN)
def matmul_of_few_bits(site: Site) -> Sequence[Value]:
    """y = a · dequantize(B)ᵀ with B (N, K/block, bytes) in blocks of 2, 4 or 8 bits, low bits first.

    There are N·K/block scales, and as many zero points, or else those are half the range.
    """
    n, k, block, bits = site.get("N"), site.get("K"), site.get("block_size"), site.get("bits", 4)
    if bits not in (2, 4, 8):
        raise Refused(f"MatMulNBits with bits={bits}")
    blocks, element = math.ceil(k / block), integer(bits, signed=False)
    if site.operand(3) is not None and site.required(3).element.is_float:
        raise Refused("MatMulNBits with zero points that are no integers")
    if site.operand(4) is not None:
        raise Refused("MatMulNBits with reordered columns")
    numbers = _fields(site.numbers(1).reshape(n, -1), bits)[:, :k]
    zero = np.full((n, blocks), 1 << (bits - 1), np.uint8)
    if site.operand(3) is not None:
        zero = _fields(site.numbers(3).reshape(n, -1), bits)[:, :blocks]
    build = site.build
    weights = build.dequantize(
        numbers.astype(element.dtype), build.reshape(site.required(2), np.array([n, blocks])),
        zero.astype(element.dtype), axis=1, block_size=block,
    )  # fmt: skip
    y = build.matmul(site.required(0), build.transpose(weights, perm=(1, 0)))
    return [y if site.operand(5) is None else build.add(y, site.required(5))]


def _fields(packed: Any, bits: int) -> Any:
    """The numbers of so many bits that rows of bytes hold, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (packed[..., None] >> shifts & ((1 << bits) - 1)).reshape(len(packed), -1)
