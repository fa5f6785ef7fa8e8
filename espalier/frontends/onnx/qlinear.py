"""Quantized operators of ONNX and onnxruntime, as dequantize → operator → quantize.

`QLinear…` operators compute on integers with a scale and a zero point for each tensor. The graph says the same with
`dequantize` and `quantize` around the plain operator, which is what passes and backends look for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from espalier.frontends.onnx.site import Refused, Site, adapter
from espalier.ir import elements
from espalier.ir.graph import Value, constant_value

MICROSOFT = "com.microsoft"


def dequantize(site: Site, position: int, axis: int = 1) -> Value:
    """The real numbers of the operands x, scale, zero point that begin at a position."""
    scale = site.required(position + 1)
    per_axis = scale.rank != 0 and scale.shape != (1,)
    return _real(site, site.required(position), scale, site.operand(position + 2), axis if per_axis else None)


def _real(site: Site, x: Value, scale: Value, zero: Value | None, axis: int | None) -> Value:
    scale, zero = _flat(site, scale, axis), None if zero is None else _flat(site, zero, axis)
    found: Value = site.build.dequantize(x, scale, zero, **({} if axis is None else {"axis": axis}))
    return found


def _flat(site: Site, value: Value, axis: int | None) -> Value:
    """A scale or zero point of one element without axes."""
    if axis is not None or value.shape == ():
        return value
    if value.shape != (1,):
        raise Refused(f"{site.op_type} takes one scale and one zero point here")
    if value.constant is not None:
        return constant_value(value.constant.reshape(()), name=value.name)
    return site.build.squeeze(value, np.array([0]))  # type: ignore[no-any-return]  # builders give Any


def quantize(site: Site, y: Value, position: int) -> Value:
    """The integers of y, with the scale and zero point that begin at a position."""
    scale, zero = _flat(site, site.required(position), None), site.operand(position + 1)
    found: Value = site.build.quantize(y, scale, None if zero is None else _flat(site, zero, None))
    return found


@adapter("QLinearConv")
def qlinear_conv(site: Site) -> Sequence[Value]:
    x, w = dequantize(site, 0), dequantize(site, 3, axis=0)
    bias = site.operand(8)
    if bias is not None:
        bias = _bias(site, bias, site.required(1), site.required(4))
    operands, site.operands = site.operands, [x, w, bias] if bias is not None else [x, w]
    converted = site.importer.convert_as(site, "", "Conv")
    site.operands = operands
    return [quantize(site, converted[0], 6)]


def _bias(site: Site, bias: Value, x_scale: Value, w_scale: Value) -> Value:
    """The bias, which is stored in units of x_scale · w_scale."""
    if x_scale.constant is not None and w_scale.constant is not None:
        scale = constant_value(x_scale.array.reshape(()) * w_scale.array)
    else:
        scale = site.build.mul(_flat(site, x_scale, None), w_scale)
    axis = None if scale.rank == 0 or scale.shape == (1,) else 0
    return _real(site, bias, scale, None, axis)


@adapter("QLinearMatMul")
def qlinear_matmul(site: Site) -> Sequence[Value]:
    a, b = _matrix(site, 0, -2), _matrix(site, 3, -1)
    return [quantize(site, site.build.matmul(a, b), 6)]


def _matrix(site: Site, position: int, axis: int) -> Value:
    """A matrix with one scale, or one for each row (of the left) or column (of the right)."""
    scale = site.required(position + 1)
    if scale.rank not in (0, 1):
        raise Refused("QLinearMatMul with scales for each matrix of a batch")
    return dequantize(site, position, axis)


def _binary(build: Callable[[Site], Any]) -> Callable[[Site], Sequence[Value]]:
    def convert(site: Site) -> Sequence[Value]:
        return [quantize(site, build(site)(dequantize(site, 0), dequantize(site, 3)), 6)]

    return convert


adapter("QLinearAdd", domain=MICROSOFT)(_binary(lambda site: site.build.add))
adapter("QLinearMul", domain=MICROSOFT)(_binary(lambda site: site.build.mul))


@adapter("QLinearSigmoid", domain=MICROSOFT)
def qlinear_sigmoid(site: Site) -> Sequence[Value]:
    return [quantize(site, site.build.sigmoid(dequantize(site, 0)), 3)]


@adapter("QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_leaky_relu(site: Site) -> Sequence[Value]:
    return [quantize(site, site.build.leaky_relu(dequantize(site, 0), alpha=site.get("alpha", 0.01)), 3)]


@adapter("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(site: Site) -> Sequence[Value]:
    axis, x = site.get("axis", -1), site.required(0)
    if site.get("opset", 13) < 13 and (x.rank is None or axis % x.rank != x.rank - 1):
        raise Refused("QLinearSoftmax of opset 12 over several axes")
    return [quantize(site, site.build.softmax(dequantize(site, 0), axis=axis), 3)]


@adapter("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(site: Site) -> Sequence[Value]:
    if site.get("channels_last", 0):
        raise Refused("QLinearGlobalAveragePool with channels last")
    return [quantize(site, site.build.global_average_pool(dequantize(site, 0)), 3)]


@adapter("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(site: Site) -> Sequence[Value]:
    if site.attributes.pop("channels_last", 0):
        raise Refused("QLinearAveragePool with channels last")
    operands, site.operands = site.operands, [dequantize(site, 0)]
    pooled = site.importer.convert_as(site, "", "AveragePool")
    site.operands = operands
    return [quantize(site, pooled[0], 3)]


@adapter("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(site: Site) -> Sequence[Value]:
    parts = [dequantize(site, position) for position in range(2, len(site.operands), 3)]
    return [quantize(site, site.build.concat(*parts, axis=site.get("axis")), 0)]


@adapter("QGemm", domain=MICROSOFT)
def qgemm(site: Site) -> Sequence[Value]:
    """Y = alpha · op(A) · op(B) + C; without a scale for Y the result stays real."""
    turned = site.get("transB", 0)
    a, b = dequantize(site, 0), dequantize(site, 3, axis=0 if turned else 1)
    c, alpha = site.operand(6), site.get("alpha", 1.0)
    if c is not None:
        if alpha != 1.0:
            a_scale = site.build.mul(site.required(1), np.float32(alpha))
        else:
            a_scale = site.required(1)
        c = _bias(site, c, a_scale, site.required(4)) if c.rank == 1 else None
        if c is None:
            raise Refused("QGemm with a matrix to add")
    y = site.build.gemm(a, b, c, alpha=alpha, transA=site.get("transA", 0), transB=turned)
    return [quantize(site, y, 7)] if site.operand(7) is not None else [y]


@adapter("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def microsoft_quantization(site: Site) -> Sequence[Value]:
    """The same as ONNX's, made before ONNX had 16- and 4-bit integers there."""
    keywords = {name: site.attributes[name] for name in ("axis", "block_size") if name in site.attributes}
    if site.op_type == "DequantizeLinear":
        return [site.build.dequantize(*site.operands, **keywords)]
    operands: list[Any] = [*site.operands]
    if site.operand(2) is None:
        operands = [site.required(0), site.required(1), np.zeros(site.required(1).shape or (), np.uint8)]
    return [site.build.quantize(*operands, **keywords)]


@adapter("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(site: Site) -> Sequence[Value]:
    """The left operand is quantized to uint8 with the scale that it needs at run time."""
    a, b, b_scale, b_zero, bias = (site.operand(k) for k in range(5))
    build = site.build
    integers, scale, zero = build.dynamic_quantize_linear(a)
    sums = build.cast(build.matmul_integer(integers, b, zero, b_zero), to=elements.F32)
    y = build.mul(sums, build.mul(scale, b_scale))
    return [y if bias is None else build.add(y, bias)]


@adapter("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(site: Site) -> Sequence[Value]:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (site.operand(k) for k in range(7))
    build = site.build
    sums = build.cast(build.matmul_integer(a, b, a_zero, b_zero), to=elements.F32)
    y = build.mul(sums, build.mul(a_scale, b_scale))
    return [y if bias is None else build.add(y, bias)]
