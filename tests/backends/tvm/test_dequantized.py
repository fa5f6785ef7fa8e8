"""What moves dequantized tensors leaves them dequantized: products after it are in integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.backends.tvm import fuse, machine, trace
from espalier.backends.tvm.tensor import Product
from espalier.ir import Builder, Graph, TensorType, Value, elements
from espalier.ir.dims import symbol
from tests.backends.tvm.test_layouts import agrees, dequantized, graph_of, integers, quantized, weights

Moved = Callable[[Builder, Value], Value]


def in_integers(graph: Graph) -> list[bool]:
    """Of each product, in order, whether it is one of integers on a processor that has dot products of them."""
    with machine.made_for(machine.of(["avx512f", "avx512vnni"])):
        _, outputs, _ = trace.checked(graph)
    found = fuse.in_order(outputs)
    return [tensor.element == elements.I32 for tensor in found if isinstance(tensor, Product)]


MOVEMENTS: dict[str, Moved] = {
    "max_pool": lambda b, x: b.max_pool(x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), results=1),
    "concat": lambda b, x: b.concat(x, x, axis=1),
    "slice": lambda b, x: b.slice(x, np.array([1, 2]), np.array([9, 8]), np.array([2, 3])),
    "pad": lambda b, x: b.pad(x, np.array([0, 0, 1, 2, 0, 0, 3, 0])),
    "transpose": lambda b, x: b.transpose(x, perm=(0, 1, 3, 2)),
    "reshape": lambda b, x: b.reshape(x, np.array([1, 32, 33, 3])),
}


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("movement", MOVEMENTS)
def test_movements(movement: str, kind: type) -> None:
    graph, b, x = graph_of(32)
    y = MOVEMENTS[movement](b, quantized(b, x, kind, 5))
    agrees(graph, b.conv(y, dequantized(b, integers(1, 16, y.shape[1], 1, 1)), pads=(1, 1, 1, 1)), tolerance=1e-5)
    assert in_integers(graph) == [True]


def test_tensors_of_other_scales_are_not_one() -> None:
    graph, b, x = graph_of(32)
    y = b.concat(quantized(b, x, np.uint8, 5), quantized(b, x, np.uint8, 5, scale=0.03), axis=1)
    agrees(graph, b.conv(y, dequantized(b, integers(1, 16, 64, 1, 1))), tolerance=1e-5)
    assert in_integers(graph) == [False]


def test_padding_with_other_numbers_than_zero() -> None:
    graph, b, x = graph_of(32)
    y = b.pad(quantized(b, x, np.uint8, 5), np.array([0, 0, 1, 2, 0, 0, 3, 0]), np.array(0.5, np.float32))
    agrees(graph, b.conv(y, dequantized(b, integers(1, 16, 32, 1, 1))), tolerance=1e-5)


def test_windows_that_are_nothing_but_padding() -> None:
    """Their largest number is −∞, which no integer stands for."""
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (1, 4, symbol("H"), 5)), "x")
    y = b.max_pool(quantized(b, x, np.int8, 5), kernel_shape=(2, 2), dilations=(3, 3), pads=(3, 3, 3, 3), results=1)
    agrees(graph, b.max(y, np.float32(-9)))


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_transposed_convolutions(data: st.DataObject) -> None:
    """Of floats and of integers, as convolutions for all places between the strides."""
    draw = data.draw
    rank = draw(st.integers(1, 2), label="axes")
    groups = draw(st.sampled_from([1, 1, 2]), label="groups")
    each = draw(st.sampled_from([1, 3, 16, 20]), label="channels")
    outputs = draw(st.sampled_from([1, 4, 16, 24]), label="outputs")
    kernel = [draw(st.integers(1, 5)) for _ in range(rank)]
    strides = [draw(st.integers(1, 3)) for _ in range(rank)]
    size = tuple(draw(st.integers(4, 6)) for _ in range(rank))
    options = {
        "strides": tuple(strides), "group": groups,
        "pads": tuple(draw(st.integers(0, 1)) for _ in range(2 * rank)),
        "output_padding": tuple(draw(st.integers(0, stride - 1)) for stride in strides),
    }  # fmt: skip
    bias = [weights(2, groups * outputs)] if draw(st.booleans(), label="bias") else []
    graph, b, x = graph_of(each * groups, size, batch=symbol("N") if draw(st.booleans(), label="batch") else 2)
    shape = (each * groups, outputs, *kernel)
    if draw(st.booleans(), label="integers"):
        held = integers(1, *shape, per_channel=groups == 1 and draw(st.booleans(), label="per channel"), axis=1)
        agrees(graph, b.conv_transpose(quantized(b, x, np.uint8, 7), dequantized(b, held, 1), *bias, **options),
               tolerance=1e-5)  # fmt: skip
    else:
        agrees(graph, b.conv_transpose(x, weights(1, *shape), *bias, **options), tolerance=1e-5)


def test_a_transposed_convolution_is_in_integers_and_what_follows_it() -> None:
    graph, b, x = graph_of(32)
    y = b.conv_transpose(quantized(b, x, np.uint8, 7), dequantized(b, integers(1, 32, 16, 2, 2, axis=1), 1),
                         strides=(2, 2))  # fmt: skip
    y = b.concat(quantized(b, y, np.uint8, 3), quantized(b, b.relu(y), np.uint8, 3), axis=1)
    agrees(graph, b.conv(y, dequantized(b, integers(2, 8, 32, 3, 3)), pads=(1, 1, 1, 1)), tolerance=2e-2)
    assert in_integers(graph) == [True, True]


def test_positions_that_the_strides_leave_out() -> None:
    """Kernels shorter than the stride: no input reaches some results."""
    graph, b, x = graph_of(16, (5,))
    agrees(graph, b.conv_transpose(x, weights(1, 16, 8, 2), weights(2, 8), strides=(4,), output_padding=(3,)))


def test_what_an_output_shape_adds_at_the_end() -> None:
    graph, b, x = graph_of(16, (5, 5))
    agrees(graph, b.conv_transpose(x, weights(1, 16, 8, 3, 3), strides=(2, 2), output_shape=(10, 12)), tolerance=1e-5)
