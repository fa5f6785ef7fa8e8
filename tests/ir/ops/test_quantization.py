"""Quantization: exact results, types that carry the granularity, QONNX's tables, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from espalier.ir.build import Builder
from espalier.ir.elements import F4E2M1, F8E4M3FN, F8E5M2, F16, F32, I8, I32, U4, Element, integer
from espalier.ir.graph import Graph, Value, constant_value
from espalier.ir.inference import type_context
from espalier.ir.op import TypeInferenceError
from espalier.ir.ops.quantization import (
    BipolarQuant,
    Dequantize,
    FloatQuant,
    MultiThreshold,
    Quant,
    Quantize,
    TruncQuant,
    rounded,
)
from espalier.ir.types import TensorType, parse
from espalier.ir.xp import numpy as xp

Array = np.ndarray[Any, Any]


def single(*numbers: float) -> Array:
    return np.array(numbers if len(numbers) > 1 else numbers[0], np.float32)


def tensor(text: str) -> tuple[Builder, Value]:
    graph = Graph()
    return Builder(graph), graph.add_input(parse(text), "x")


@pytest.mark.parametrize(
    ("scale", "options", "element"),
    [
        ((), {}, "q(i8)"),
        ((1,), {}, "q(i8)"),
        ((4,), {"axis": -2}, "q(i8, axis=1)"),
        ((2, 4, 3), {"axis": 2, "block_size": 2}, "q(i8, axis=2, block=2)"),
    ],
)
def test_the_type_carries_the_granularity(scale: tuple[int, ...], options: dict[str, int], element: str) -> None:
    build, x = tensor("f32[2, 4, 6]")
    y = build.quantize(x, np.ones(scale, np.float32), np.zeros(scale, np.int8), **options)
    assert str(y.type) == f"{element}[2, 4, 6]"
    assert str(build.dequantize(y, np.ones(scale, np.float32), **options).type) == "f32[2, 4, 6]"


def test_scales_of_another_granularity_are_refused() -> None:
    build, x = tensor("f32[2, 4, 6]")
    y = build.quantize(x, np.ones(4, np.float32), output_dtype=I8)
    with pytest.raises(TypeInferenceError, match="don't belong"):
        build.dequantize(y, np.float32(1))
    with pytest.raises(TypeInferenceError, match="axis 3"):
        build.quantize(x, np.ones(4, np.float32), axis=3)
    with pytest.raises(TypeInferenceError):
        build.quantize(x, np.ones(5, np.float32))
    with pytest.raises(TypeInferenceError, match="is to be"):
        build.quantize(x, np.float32(1), np.int8(0), output_dtype=U4)


def test_per_axis_scales_share_the_axis() -> None:
    build, x = tensor("f32[2, 4, 6]")
    node = build.quantize(x, np.ones(4, np.float32), np.zeros(4, np.int8)).producer
    found = node.op.equation(type_context(build.graph, node))
    assert found.operands[0][1] is found.operands[1][0] is found.operands[2][0] is found.results[0][1]
    assert found.operands[0][1].pinned is None


def test_rounding_to_even_and_saturation() -> None:
    x = single(-1e30, -129.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 127.5, 1e30, np.inf)
    y = Quantize(output_dtype=I8).reference(xp, x, single(1))
    assert y.tolist() == [-128, -128, -2, -2, 0, 0, 2, 2, 127, 127, 127]
    shifted = Quantize().reference(xp, x, single(1), np.array(128, np.uint8))
    assert shifted.tolist() == [0, 0, 126, 126, 128, 128, 130, 130, 255, 255, 255]


def test_odd_widths_saturate_at_their_own_range() -> None:
    for element in (integer(3), integer(5, signed=False)):
        y = Quantize(output_dtype=element).reference(xp, single(-100, 100), single(1))
        assert tuple(y.tolist()) == element.range


def test_wide_integers_are_exact() -> None:
    x = np.array([2**31 - 200, -(2**31), 16777217], np.float64)
    y = Quantize(output_dtype=I32).reference(xp, x, np.array(1.0))
    assert y.tolist() == x.tolist()
    back = Dequantize(output_dtype=F32).reference(xp, np.array([2**24 + 1], np.int32), single(0.5))
    assert back.dtype == np.float32 and back.tolist() == [2.0**23]


def test_small_floats_saturate_or_overflow() -> None:
    x = single(1e6, -1e6, 448, 0.3)
    y = Quantize(output_dtype=F8E4M3FN).reference(xp, x, single(1))
    assert y.dtype == ml_dtypes.float8_e4m3fn and y[:3].astype(np.float32).tolist() == [448, -448, 448]
    loose = Quantize(output_dtype=F8E4M3FN, saturate=0).reference(xp, x, single(1)).astype(np.float32)
    assert np.isnan(loose[:2]).all() and loose[2] == 448


def test_the_division_is_done_in_the_precision_that_is_said() -> None:
    x, scale = single(200.1), np.array(0.1, np.float16)  # the quotient is 2001.49; f16 holds even numbers only
    assert Quantize(output_dtype=integer(16)).reference(xp, x, scale) == 2002
    assert Quantize(output_dtype=integer(16), precision=F32).reference(xp, x, scale) == 2001


def test_blocks_need_not_divide_the_axis() -> None:
    x, scales = np.arange(10, dtype=np.float32).reshape(2, 5), single(1, 2, 4, 1, 2, 4).reshape(2, 3)
    y = Quantize(axis=1, block_size=2).reference(xp, x, scales)
    assert y.tolist() == [[0, 1, 1, 2, 1], [5, 6, 4, 4, 2]]
    back = Dequantize(axis=1, block_size=2).reference(xp, y, scales)
    assert back.tolist() == [[0, 1, 2, 4, 4], [5, 6, 8, 8, 8]]
    build, value = tensor("f32[2, 5]")
    assert str(build.quantize(value, scales, axis=1, block_size=2).type) == "q(u8, axis=1, block=2)[2, 5]"


def test_dequantizing_to_f16_rounds_once() -> None:
    y = Dequantize(output_dtype=F16).reference(xp, np.array([255], np.uint8), single(300.0))
    assert y.dtype == np.float16 and np.isinf(y).all()
    y = Dequantize().reference(xp, np.array([200], np.uint8), np.array(0.1, np.float16), np.array(7, np.uint8))
    assert y == np.float16(np.float32(193) * np.float32(np.float16(0.1)))


def test_zero_stays_zero_only_without_a_zero_point() -> None:
    build, x = tensor("f32[2, 4]")
    for zero_point, stays in ((None, True), (np.int8(0), True), (np.int8(3), False)):
        node = build.quantize(x, np.float32(1), zero_point, **({} if zero_point is not None else {"output_dtype": I8}))
        node = node.producer
        states = [True, *[None] * (len(node.operands) - 1)]
        assert node.op.zero_at(type_context(build.graph, node), states) is stays


TABLE = {
    "ROUND": [6, 2, 2, 1, 1, -1, -1, -2, -2, -6],
    "CEIL": [6, 3, 2, 2, 1, -1, -1, -1, -2, -5],
    "FLOOR": [5, 2, 1, 1, 1, -1, -2, -2, -3, -6],
    "UP": [6, 3, 2, 2, 1, -1, -2, -2, -3, -6],
    "DOWN": [5, 2, 1, 1, 1, -1, -1, -1, -2, -5],
    "HALF_UP": [6, 3, 2, 1, 1, -1, -1, -2, -3, -6],
    "HALF_DOWN": [5, 2, 2, 1, 1, -1, -1, -2, -2, -5],
}
"""QONNX's documentation of IntQuant, for the numbers below."""
NUMBERS = (5.5, 2.5, 1.6, 1.1, 1.0, -1.0, -1.1, -1.6, -2.5, -5.5)


@pytest.mark.parametrize("mode", sorted(TABLE))
def test_rounding_modes_of_qonnx(mode: str) -> None:
    assert rounded(xp, np.array(NUMBERS), mode).tolist() == TABLE[mode]
    assert rounded(xp, np.array(NUMBERS), mode.lower()).tolist() == TABLE[mode]
    aliases = {"ROUND": "HALF_EVEN", "DOWN": "ROUND_TO_ZERO"}
    assert rounded(xp, np.array(NUMBERS), aliases.get(mode, mode)).tolist() == TABLE[mode]


def test_an_unknown_rounding_mode_is_refused() -> None:
    build, x = tensor("f32[3]")
    with pytest.raises(TypeInferenceError, match="HALF_ODD"):
        build.quant(x, 1.0, 0.0, 8.0, rounding_mode="HALF_ODD")


@pytest.mark.parametrize(
    ("signed", "narrow", "bits", "low", "high"),
    [(1, 0, 8, -128, 127), (1, 1, 8, -127, 127), (0, 0, 8, 0, 255), (0, 1, 8, 0, 254), (1, 0, 3, -4, 3)],
)
def test_limits_of_quant(signed: int, narrow: int, bits: int, low: int, high: int) -> None:
    op = Quant(signed=signed, narrow=narrow)
    y = op.reference(xp, single(-1e9, 1e9, np.inf, 0.3), single(0.5), single(0), single(bits))
    assert y.dtype == np.float32 and y.tolist() == [low / 2, high / 2, high / 2, 0.5]


def test_quant_clamps_before_it_rounds() -> None:
    y = Quant(rounding_mode="CEIL", signed=0).reference(xp, single(-0.5, 3.2), single(1), single(0), single(2))
    assert y.tolist() == [0.0, 3.0]
    y = Quant().reference(xp, single(1.0, -1.0), single(0.5), single(1), single(3))
    assert y.tolist() == [1.0, -1.0]


def test_one_signed_bit_is_bipolar() -> None:
    x = single(-2, -0.0, 0, 3)
    assert Quant().reference(xp, x, single(2), single(0), single(1)).tolist() == [-2, 2, 2, 2]
    assert BipolarQuant().reference(xp, x, single(2)).tolist() == [-2, 2, 2, 2]


def test_quant_per_channel() -> None:
    x, scale = np.full((1, 2, 2), 0.9, np.float32), single(0.5, 0.25).reshape(1, 2, 1)
    y = Quant().reference(xp, x, scale, single(0), single(8))
    assert y[0, :, 0].tolist() == [1.0, 1.0]
    build, value = tensor("f32[n, 2, 2]")
    node = build.quant(value, scale, 0.0, 8.0).producer
    found = node.op.equation(type_context(build.graph, node))
    assert found.operands[1][1] is found.operands[0][1] and str(node.results[0].type) == "f32[n, 2, 2]"
    with pytest.raises(TypeInferenceError):
        build.quant(value, np.ones((1, 3, 1), np.float32), 0.0, 8.0)


def test_trunc_drops_low_bits() -> None:
    x = single(0, 15, 16, 31, 100, -17)
    operands = [single(1), single(0), single(8), single(16), single(4)]
    assert TruncQuant().reference(xp, x, *operands).tolist() == [0, 0, 16, 16, 96, -32]
    assert TruncQuant(rounding_mode="ROUND").reference(xp, x, *operands).tolist() == [0, 16, 16, 32, 96, -16]


@pytest.mark.parametrize(
    ("element", "exponent", "mantissa", "bias"),
    [(F8E4M3FN, 4, 3, 7), (F8E5M2, 5, 2, 15), (F4E2M1, 2, 1, 1)],
)
def test_float_quant_is_the_small_float(element: Element, exponent: int, mantissa: int, bias: int) -> None:
    largest = float(ml_dtypes.finfo(element.dtype).max)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(2000) * np.exp(rng.standard_normal(2000) * 3)).astype(np.float32)
    x = np.concatenate([x, single(0, 1, 2, 0.5, -4, 3.999)])
    widths = [single(exponent), single(mantissa), single(bias), single(largest)]
    found = FloatQuant().reference(xp, x, single(1), *widths)
    expected = np.clip(x, -largest, largest).astype(element.dtype).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    halved = FloatQuant().reference(xp, x * 2, single(2), *widths)
    np.testing.assert_array_equal(halved, expected * 2)


def test_float_quant_that_does_not_saturate() -> None:
    widths = [single(1), single(2), single(1), single(1), single(6)]
    assert FloatQuant(saturation=0, has_inf=1).reference(xp, single(9, -9), *widths).tolist() == [np.inf, -np.inf]
    assert np.isnan(FloatQuant(saturation=0, has_nan=1).reference(xp, single(9, -9), *widths)).all()
    build, x = tensor("f32[3]")
    with pytest.raises(TypeInferenceError, match="has_inf"):
        build.float_quant(x, *widths, saturation=0)


def test_multi_threshold() -> None:
    thresholds = single(0, 1, 2, -1, 0, 1).reshape(2, 3)
    x = single(-2, 0, 1.5, 5).reshape(1, 1, 4).repeat(2, axis=1)
    op = MultiThreshold(out_scale=2.0, out_bias=-1.0)
    assert op.reference(xp, x, thresholds).tolist() == [[[-1, 1, 3, 5], [-1, 3, 5, 5]]]
    last = op.replace(data_layout="NWC").reference(xp, np.swapaxes(x, 1, 2), thresholds)
    assert np.swapaxes(last, 1, 2).tolist() == op.reference(xp, x, thresholds).tolist()
    shared = op.reference(xp, x, thresholds[:1])
    assert shared[0, 0].tolist() == shared[0, 1].tolist() == [-1, 1, 3, 5]
    build, value = tensor("f32[n, 3, 4]")
    with pytest.raises(TypeInferenceError):
        build.multi_threshold(value, thresholds)


def test_plain_integers_are_dequantized_too() -> None:
    build, _ = tensor("f32[1]")
    weights = constant_value(np.array([[1, -2], [3, 4]], np.int8))
    y = build.dequantize(weights, single(0.5, 2), np.zeros(2, np.int8), axis=0)
    assert y.type == TensorType(F32, (2, 2))
    found = Dequantize(axis=0).reference(xp, weights.array, single(0.5, 2), np.zeros(2, np.int8))
    assert found.tolist() == [[0.5, -1], [6, 8]]
