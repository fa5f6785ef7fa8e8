"""Quantization without divisions, in registers and through tables, against the reference executor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.backends.tvm import build, fuse, machine, quotients, tables
from espalier.backends.tvm.quotients import Reciprocals, reciprocals
from espalier.backends.tvm.tensor import Fold, Map, Product, Tensor
from espalier.backends.tvm.trace import trace
from espalier.ir import Builder, Graph, elements
from espalier.ir.execute import execute
from tests.backends.tvm import test_layouts
from tests.backends.tvm.checks import agree, graph_of

KINDS = [np.uint8, np.int8]


def traced(graph: Graph) -> list[Tensor]:
    """The tensors of a graph's outputs."""
    return list(trace(graph)[1])


def fused(x: Any, first: Any, rest: Any) -> Any:
    """x · first + rest, rounded to f32 once, by f80 where there is one (which the tests' processors have)."""
    return (x.astype(np.longdouble) * first + rest).astype(np.float32)


def numbers(scale: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Numbers to quantize for each scale: around every half of it, anywhere, and extreme ones."""
    halves = (np.arange(-260, 260, dtype=np.float64) + 0.5) * scale.astype(np.float64)[:, None]
    around = halves.astype(np.float32).view(np.int32)[..., None] + np.arange(-3, 4, dtype=np.int32)
    anywhere = np.random.default_rng(seed).normal(size=(len(scale), 900)).astype(np.float32) * scale[:, None] * 99
    extreme = np.array([0, -0.0, 1e-45, -1e-40, 3e38, -3e38, np.inf, -np.inf, np.nan, -np.nan], np.float32)
    extreme = np.broadcast_to(extreme, (len(scale), len(extreme)))
    return np.concatenate([around.view(np.float32).reshape(len(scale), -1), anywhere, extreme], axis=1)


@settings(max_examples=40, deadline=None)
@given(
    scales=st.lists(st.floats(2.0**-90, 2.0**90, width=32), min_size=1, max_size=4),
    low=st.integers(-255, 0), span=st.sampled_from([127, 255]), seed=st.integers(0, 99),
)  # fmt: skip
def test_reciprocals_divide(scales: list[float], low: int, span: int, seed: int) -> None:
    scale = np.array(scales, np.float32)
    least = np.full(scale.shape, max(low, -span), np.float32)
    most = least + np.float32(span)
    found = reciprocals(scale, least, most)
    assert isinstance(found, Reciprocals)
    x = numbers(scale, seed)
    x = x[:, ~np.isnan(x).any(axis=0)]
    bounded = np.minimum(np.maximum(x, found.lowest[:, None]), found.highest[:, None])
    have = np.rint(fused(bounded, found.first[:, None], bounded * found.second[:, None]))
    with np.errstate(over="ignore"):
        wanted = np.clip(np.rint(x / scale[:, None]), least[:, None], most[:, None])
    np.testing.assert_array_equal(have, wanted)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-40, 3e38])
def test_extreme_scales_divide(scale: float) -> None:
    low, high = np.array([0], np.float32), np.array([255], np.float32)
    assert reciprocals(np.array([scale], np.float32), low, high) is None


def test_powers_of_two_multiply_once() -> None:
    low, high = np.array([-128], np.float32), np.array([127], np.float32)
    found = reciprocals(np.array([0.125], np.float32), low, high)
    assert found is not None and found.first == 8 and found.second == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [0, 77])
def test_every_channel_rounds_as_division_does(kind: type, zero: int) -> None:
    """Also where nothing is fused (in other kernels' machines) and for scales that are divided by."""
    random = np.random.default_rng(1)
    ordinary = np.concatenate([random.uniform(1e-3, 1, 14), 2.0 ** -np.arange(2)]).astype(np.float32)
    for scale in (ordinary, np.array([1e-38, 0.3], np.float32)):
        with np.errstate(over="ignore"):
            x = numbers(scale, 2)
        shift = np.full(scale.shape, zero, kind)
        agree(lambda b, x, scale=scale, shift=shift: b.quantize(x, scale, shift, axis=0), x)
        agree(lambda b, x, scale=scale: b.quantize(x, scale[-1], np.array(zero, kind)), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, -0.5, np.inf, np.nan])
def test_odd_scales_divide_still(kind: type, scale: float) -> None:
    x = numbers(np.array([0.5], np.float32), 4)
    agree(lambda b, x: b.quantize(x, np.float32(scale), np.array(9, kind)), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [0, -1, 77])
def test_quantized_numbers_stay_floats_in_a_kernel(kind: type, zero: int) -> None:
    """Quantized, dequantized, added, quantized: in one kernel, and equal to what the integers give."""
    x = numbers(np.array([0.037, 0.25], np.float32), 3)
    shift = np.array(zero % 256 if kind is np.uint8 else zero, np.uint8 if kind is np.uint8 else np.int8)

    def chain(b: Builder, x: Any) -> Any:
        for scale in np.array([0.037, 0.05], np.float32):
            x = b.relu(b.dequantize(b.quantize(x, scale, shift), scale, shift))
        return b.quantize(x, np.float32(0.06), shift)

    agree(chain, x)
    outputs = traced(graph_of(chain, [x]))
    assert len(fuse.plan(outputs).roots) == 1


def silu(b: Builder, x: Any, kind: type) -> Any:
    """A quantized number times its sigmoid, with quantization after each."""

    def again(x: Any, scale: float, zero: int) -> Any:
        step, shift = np.float32(scale), np.array(zero, kind)
        return b.dequantize(b.quantize(x, step, shift), step, shift)

    y = again(x, 0.05, 12)
    return b.quantize(b.mul(y, again(b.sigmoid(y), 1 / 128, 0)), np.float32(0.04), np.array(3, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_a_byte_come_from_tables(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(5).normal(size=(1, 3, 60, 50)).astype(np.float32) * 5
    graph = graph_of(lambda b, x: silu(b, x, kind), [x])
    (output,) = traced(graph)
    assert isinstance(output, Map) and output.tabulates is not None
    (found,) = build.build(graph, threads=1)([x])
    monkeypatch.setattr(tables, "LARGE", 1 << 30)
    (wanted,) = build.build(graph, threads=1)([x])
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(found)) > 50


@pytest.mark.parametrize("shape", [(64, 1), (1, 64)])
def test_functions_of_more_do_not(shape: tuple[int, ...]) -> None:
    """What differs from place to place, or follows from two tensors, has no table."""
    random = np.random.default_rng(6)
    x, y = (random.normal(size=(64, 64)).astype(np.float32) for _ in range(2))
    step, shift = np.float32(0.02), np.array(5, np.int8)
    factors = random.normal(size=shape).astype(np.float32)

    def varied(b: Builder, x: Any, y: Any) -> Any:
        x, y = (b.dequantize(b.quantize(each, step, shift), step, shift) for each in (x, y))
        return (
            b.quantize(b.mul(b.tanh(x), factors), step, shift), b.quantize(b.mul(b.sigmoid(x), y), step, shift),
            b.quantize(b.trilu(b.tanh(x)), step, shift),
        )  # fmt: skip

    outputs = traced(graph_of(varied, [x, y]))
    assert not any(isinstance(output, Map) and output.tabulates for output in outputs)


def affine(b: Builder, x: Any, kind: type, scale: Any, zero: int, axis: int = 1) -> Any:
    step = np.asarray(scale, np.float32)
    shift = np.full(step.shape, zero, kind)
    return b.dequantize(b.quantize(x, step, shift, axis=axis), step, shift, axis=axis)


def weights(b: Builder, seed: int, *shape: int) -> Any:
    random = np.random.default_rng(seed)
    scale = random.uniform(0.001, 0.01, shape[0]).astype(np.float32)
    return b.dequantize(random.integers(-127, 128, shape).astype(np.int8), scale, np.zeros(shape[0], np.int8), axis=0)


def tensors(outputs: Any, kind: type[Tensor]) -> list[Tensor]:
    return [tensor for tensor in fuse.in_order(outputs) if isinstance(tensor, kind)]


@pytest.mark.parametrize(("kind", "zero"), [(np.uint8, 0), (np.uint8, 128), (np.int8, 0)])
def test_depthwise_convolutions_take_a_scale_for_each_channel(kind: type, zero: int) -> None:
    x = np.random.default_rng(7).normal(size=(1, 32, 9, 9)).astype(np.float32)
    scales = np.linspace(0.01, 0.03, 32)

    def layer(b: Builder, x: Any) -> Any:
        return b.conv(affine(b, x, kind, scales, zero), weights(b, 8, 32, 1, 3, 3), pads=(1, 1, 1, 1), group=32)

    agree(layer, x)
    outputs = traced(graph_of(layer, [x]))
    (product,) = tensors(outputs, Product)
    assert product.operands[0].element.bits == 8


def test_dense_convolutions_do_not() -> None:
    x = np.random.default_rng(7).normal(size=(1, 32, 9, 9)).astype(np.float32)
    scales = np.linspace(0.01, 0.03, 32)
    agree(lambda b, x: b.conv(affine(b, x, np.uint8, scales, 3), weights(b, 8, 16, 32, 3, 3)), x)


@pytest.mark.parametrize("scale", [0.02, -0.02])
def test_poolings_stay_in_integers(scale: float) -> None:
    """Where the scale is positive; what the pooling leads to reads integers then."""
    x = np.random.default_rng(9).normal(size=(1, 32, 15, 15)).astype(np.float32)

    def layer(b: Builder, x: Any) -> Any:
        y = b.max_pool(affine(b, x, np.int8, scale, 3), kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
        return b.conv(y, weights(b, 8, 32, 32, 1, 1))

    agree(layer, x)
    outputs = traced(graph_of(layer, [x]))
    (pooled,) = tensors(outputs, Fold)
    assert (pooled.element == elements.I8) == (scale > 0)


def test_sums_are_quantized_before_they_are_kept() -> None:
    """Of two convolutions whose quantized results are added, the one that is kept is kept in 8 bits."""
    x = np.random.default_rng(10).normal(size=(1, 16, 20, 20)).astype(np.float32)

    def layer(b: Builder, x: Any) -> Any:
        y = affine(b, x, np.int8, 0.02, 0)
        branches = [affine(b, b.conv(y, weights(b, seed, 32, 16, 1, 1)), np.int8, 0.01, 0) for seed in (1, 2)]
        return b.relu(b.add(*branches))

    agree(layer, x, tolerance=0.02)  # of the quantized numbers few may differ by one
    with machine.made_for(machine.of(["avx512f", "avx512vnni"])):
        outputs = traced(graph_of(layer, [x]))
        roots = fuse.plan(outputs).roots
    assert [root.element for root in roots] == [elements.I8, elements.I8, elements.F32]


def test_rows_of_tables_are_dequantized_where_they_are_read() -> None:
    random = np.random.default_rng(11)
    table = random.integers(-127, 128, (300, 24)).astype(np.int8)
    scale = random.uniform(0.01, 0.1, 300).astype(np.float32)
    positions = random.integers(0, 300, (5, 7))
    for zero in (np.zeros(300, np.int8), random.integers(-9, 9, 300).astype(np.int8)):

        def rows(b: Builder, positions: Any, zero: Any = zero) -> Any:
            return b.gather(b.dequantize(table, scale, zero, axis=0), positions, axis=0)

        agree(rows, positions, tolerance=0)
        outputs = traced(graph_of(rows, [positions]))
        assert all(root.shape != table.shape for root in fuse.plan(outputs).roots)


def test_many_scales_are_looked_at_in_pieces() -> None:
    scale = np.random.default_rng(0).uniform(0.001, 0.1, quotients.PIECE + 3).astype(np.float32)
    low, high = np.full_like(scale, -128), np.full_like(scale, 127)
    whole, one = quotients.reciprocals(scale, low, high), quotients.reciprocals(scale[-1:], low[-1:], high[-1:])
    assert whole is not None and one is not None and whole.first.shape == scale.shape
    assert (whole.first[-1], whole.highest[-1]) == (one.first[0], one.highest[0])
    assert quotients.reciprocals(np.ones(quotients.MOST + 1, np.float32), low, high) is None


def test_the_largest_of_numbers_with_an_infinite_scale() -> None:
    graph, b, x = test_layouts.graph_of(4)
    step, shift = np.float32(np.inf), np.array(3, np.uint8)
    y = b.dequantize(b.quantize(x, np.float32(0.1), shift), step, shift)
    graph.set_outputs([b.max_pool(y, kernel_shape=(2, 2), results=1)], ["y"])
    image = np.random.default_rng(0).normal(size=(1, 4, 9, 11)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(build.run(graph, [image])[0], execute(graph, [image])[0])
