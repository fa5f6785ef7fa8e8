"""Images in blocks of channels, convolutions and products in integers: against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from espalier.backends.tvm import build, fuse, trace
from espalier.backends.tvm.tensor import Product
from espalier.ir import Builder, Graph, TensorType, Value, elements
from espalier.ir.dims import symbol
from espalier.ir.execute import execute


def graph_of(channels: int, size: tuple[int, ...] = (9, 11), batch: Any = 1) -> tuple[Graph, Builder, Value]:
    graph = Graph()
    builder = Builder(graph)
    return graph, builder, builder.input(TensorType(elements.F32, (batch, channels, *size)), "x")


def weights(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def agrees(graph: Graph, output: Value, seed: int = 0, tolerance: float = 2e-6) -> None:
    """The compiled graph computes what the reference does."""
    graph.set_outputs([output], ["y"])
    shape = [extent if isinstance(extent, int) else 3 for extent in graph.inputs[0].shape]
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    (wanted,), (found,) = execute(graph, [x]), build.run(graph, [x])
    scale = float(np.abs(wanted).max())
    assert wanted.shape == found.shape
    assert np.abs(wanted.astype(np.float64) - found).max() <= tolerance * scale


@pytest.mark.parametrize("channels", [3, 8, 16, 24, 40, 80])
def test_convolutions_one_after_another(channels: int) -> None:
    """Dense, depthwise and strided ones with padding, a residual, pooling and a product at the end."""
    graph, b, x = graph_of(3)
    y = b.relu(b.conv(x, weights(1, channels, 3, 3, 3), weights(2, channels), pads=(1, 1, 1, 1), strides=(2, 1)))
    z = b.conv(y, weights(3, channels, 1, 3, 3), pads=(1, 1, 1, 1), group=channels)
    z = b.add(b.relu(b.conv(z, weights(4, channels, channels, 1, 1), weights(5, channels))), y)
    z = b.max_pool(z, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), results=1)
    z = b.conv(b.sigmoid(z), weights(6, 21, channels, 3, 3), pads=(0, 1, 2, 1), dilations=(1, 2))
    z = b.gemm(b.flatten(b.global_average_pool(z)), weights(7, 21, 10), weights(8, 10))
    agrees(graph, z)


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_and_concatenated_channels(groups: int) -> None:
    graph, b, x = graph_of(32)
    y = b.conv(x, weights(1, 64, 32 // groups, 3, 3), pads=(1, 1, 1, 1), group=groups)
    z = b.concat(y, b.relu(x), b.conv(y, weights(2, 24, 64, 1, 1)), axis=1)
    agrees(graph, b.conv(z, weights(3, 16, 120, 3, 3), pads=(1, 1, 1, 1)))


def test_two_readers_with_other_padding_and_an_output_in_row_major_order() -> None:
    graph, b, x = graph_of(16)
    y = b.relu(b.conv(x, weights(1, 32, 16, 1, 1)))
    one = b.conv(y, weights(2, 16, 32, 3, 3), pads=(1, 1, 1, 1))
    other = b.conv(y, weights(3, 16, 32, 5, 5), pads=(2, 2, 2, 2))
    flat = b.reshape(y, np.array([1, -1]))
    total = b.add(b.add(one, other), b.reduce_sum(flat, np.array([1]), keepdims=1))
    agrees(graph, total, tolerance=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 7, 8])
@pytest.mark.parametrize("batch", [2, symbol("n")])
def test_images_of_few_channels(channels: int, batch: Any) -> None:
    """They are read as they are but for zeros around them, also beside readers that want blocks."""
    graph, b, x = graph_of(channels, batch=batch)
    y = b.sub(x, weights(1, channels, 1, 1))
    first = b.conv(y, weights(2, 20, channels, 7, 7), pads=(3, 3, 2, 3), strides=(2, 2))
    second = b.conv(y, weights(3, 20, channels, 3, 3), pads=(0, 1, 0, 1), strides=(2, 2))
    near = b.conv(y, weights(4, channels, 1, 3, 3), pads=(1, 1, 1, 1), group=channels)
    few = b.conv(b.conv(near, weights(5, 3, channels, 1, 1)), weights(6, 17, 3, 3, 3), pads=(1, 1, 1, 1))
    total = b.reduce_sum(b.relu(few), np.array([1, 2, 3]), keepdims=1)
    agrees(graph, b.add(b.add(first, second), total), tolerance=1e-5)


@pytest.mark.parametrize("channels", [32, 40, 1280])
@pytest.mark.parametrize("batch", [1, symbol("n")])
def test_positions_of_blocks_are_reduced_to_rows(channels: int, batch: Any) -> None:
    graph, b, x = graph_of(8, (7, 7), batch)
    y = b.sigmoid(b.conv(x, weights(1, channels, 8, 1, 1)))
    means, largest = b.flatten(b.global_average_pool(y)), b.reduce_max(y, np.array([2, 3]), keepdims=0)
    agrees(graph, b.add(b.gemm(means, weights(2, channels, 10)), b.gemm(largest, weights(3, channels, 10))))


@pytest.mark.parametrize("size", [(13,), (5, 6, 7)])
def test_other_numbers_of_axes(size: tuple[int, ...]) -> None:
    graph, b, x = graph_of(20, size)
    kernel = (3,) * len(size)
    y = b.relu(b.conv(x, weights(1, 36, 20, *kernel), pads=(1,) * (2 * len(size))))
    agrees(graph, b.conv(y, weights(2, 36, 1, *kernel), pads=(1, 0) * len(size), group=36))


def test_a_batch_that_only_the_run_knows() -> None:
    graph, b, x = graph_of(16, batch=symbol("n"))
    y = b.relu(b.conv(x, weights(1, 40, 16, 3, 3), pads=(1, 1, 1, 1)))
    agrees(graph, b.conv(y, weights(2, 40, 1, 3, 3), pads=(1, 1, 1, 1), group=40))


@pytest.mark.parametrize(("rows", "count", "columns"), [(7, 33, 50), (197, 64, 197), (1, 128, 80), (29, 40, 96)])
def test_products_of_what_is_computed(rows: int, count: int, columns: int) -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (2, rows, count)), "x")
    right = b.relu(b.matmul(b.transpose(x, perm=(0, 2, 1)), weights(1, rows, columns)))
    agrees(graph, b.softmax(b.matmul(x, right), axis=-1), tolerance=1e-5)


@pytest.mark.parametrize("lead", [(197,), (1, 30), (3, 20), (symbol("N"),)])
@pytest.mark.parametrize("narrow", [False, True])
def test_a_stack_of_rows_is_a_matrix(lead: tuple[Any, ...], narrow: bool) -> None:
    """Not as many products of one row each: their tiles have several rows."""
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (*lead, 1, 64)), "x")
    w = dequantized(b, integers(1, 64, 40, axis=1), axis=1) if narrow else weights(1, 40, 64).T.copy()
    y = b.add(b.matmul(quantized(b, x, np.uint8, 9) if narrow else b.relu(x), w), weights(2, 1, 40)[0])
    agrees(graph, b.transpose(y, perm=tuple(reversed(range(len(lead) + 2)))), tolerance=1e-5)
    _, outputs = trace.trace(graph)
    (product,) = (tensor for tensor in fuse.in_order(outputs) if isinstance(tensor, Product))
    assert product.shape == (*lead, 40)


# ---- integers ----------------------------------------------------------------------------------------------------


def quantized(b: Builder, x: Value, kind: type, zero: int, scale: float = 0.02) -> Value:
    """x in 8 bits and back."""
    step, shift = np.float32(scale), np.array(zero, kind)
    return b.dequantize(b.quantize(x, step, shift), step, shift)


def integers(seed: int, *shape: int, per_channel: bool = True, axis: int = 0, kind: type = np.int8) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    low = 0 if kind is np.uint8 else -127
    count = shape[axis] if per_channel else 1
    scale = rng.uniform(0.001, 0.01, count).astype(np.float32)
    zero = np.full(count, 128 if kind is np.uint8 else 0, kind)
    return {
        "array": rng.integers(low, low + 255, shape).astype(kind),
        "scale": scale if per_channel else scale[0], "zero": zero if per_channel else zero[0],
    }  # fmt: skip


def dequantized(b: Builder, held: dict[str, Any], axis: int = 0) -> Value:
    found: Value = b.dequantize(held["array"], held["scale"], held["zero"], axis=axis)
    return found


@pytest.mark.parametrize(("kind", "zero"), [(np.uint8, 0), (np.uint8, 117), (np.int8, 0), (np.int8, -9)])
@pytest.mark.parametrize("channels", [3, 20, 32])
def test_quantized_convolutions(kind: type, zero: int, channels: int) -> None:
    """Dense and depthwise, with zeros around that are not the integer 0, and quantized again."""
    graph, b, x = graph_of(channels)
    y = quantized(b, x, kind, zero)
    y = b.relu(b.conv(y, dequantized(b, integers(1, 48, channels, 3, 3)), weights(2, 48), pads=(1, 1, 1, 1)))
    y = quantized(b, y, np.uint8, 3, 0.01)
    y = b.conv(y, dequantized(b, integers(3, 48, 1, 3, 3)), pads=(1, 2, 1, 0), strides=(1, 2), group=48)
    y = quantized(b, y, kind, zero, 0.01)
    y = b.conv(y, dequantized(b, integers(4, 24, 48, 1, 1, per_channel=False, kind=np.uint8)))
    agrees(graph, y, tolerance=1e-5)


def test_quantized_groups() -> None:
    graph, b, x = graph_of(32)
    y = quantized(b, x, np.uint8, 100)
    agrees(graph, b.conv(y, dequantized(b, integers(1, 64, 16, 3, 3)), pads=(1, 1, 1, 1), group=2), tolerance=1e-5)


@pytest.mark.parametrize(("kind", "zero"), [(np.uint8, 90), (np.int8, 5)])
@pytest.mark.parametrize("transposed", [False, True])
def test_quantized_products(kind: type, zero: int, transposed: bool) -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (13, 64)), "x")
    y = quantized(b, x, kind, zero)
    if transposed:
        w = dequantized(b, integers(1, 50, 64))
        agrees(graph, b.gemm(y, w, weights(2, 50), transB=1), tolerance=1e-5)
    else:
        agrees(graph, b.matmul(y, dequantized(b, integers(1, 64, 50, axis=1), axis=1)), tolerance=1e-5)


def test_whatever_is_no_number_becomes_zero() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (4,)), "x")
    graph.set_outputs([b.quantize(x, np.float32(0.5), np.array(7, np.uint8))], ["y"])
    found = build.run(graph, [np.array([np.nan, np.inf, -np.inf, 1.25], np.float32)])[0]
    assert found.tolist() == [0, 255, 0, 9]
