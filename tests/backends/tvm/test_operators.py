"""Operators of each family against the reference executor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from espalier.backends.tvm import build
from espalier.ir import elements
from tests.backends.tvm.checks import agree, graph_of

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


UNARY = (
    "abs", "acos", "asinh", "atan", "ceil", "cos", "erf", "exp", "floor", "is_inf", "is_nan", "log", "neg",
    "reciprocal",
    "relu", "round", "sigmoid", "sign", "sin", "softplus", "sqrt", "tan", "tanh", "gelu", "hard_swish", "mish", "selu",
)  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name: str) -> None:
    special = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 88.0, -90.0, 300.0, 0.5, 2.5, -1.5], np.float32
    )
    x = np.concatenate([special, normal(50) * 3])
    agree(lambda b, x: getattr(b, name)(x), x, tolerance=2e-6)


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid"])
def test_small_results_keep_their_relative_precision(name: str) -> None:
    for value in (1e-6, -1e-4, 0.3, -20.0, -80.0):
        agree(lambda b, x: getattr(b, name)(x), np.full(5, value, np.float32), tolerance=1e-6)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "pow", "max", "min", "less", "equal", "greater_or_equal"])
def test_two_operands_broadcast(name: str) -> None:
    agree(lambda b, x, y: getattr(b, name)(x, y), np.abs(normal(2, 3, 1)) + 0.1, normal(4))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_integers_wrap_around_and_truncate(dtype: Any) -> None:
    info = np.iinfo(dtype)
    x = np.array([info.min, info.max, 3, 7, 100], dtype)
    y = np.array([info.max, 2, 3, 5, 7], dtype)
    agree(lambda b, x, y: (b.add(x, y), b.mul(x, y), b.div(x, y), b.mod(x, y)), x, y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_that_are_added_keep_signs_right(dtype: Any) -> None:
    positive, negative, one = np.array(0.0, dtype), np.array(-0.0, dtype), np.array(1.0, dtype)

    def model(b: Any, x: Any) -> Any:
        sums = [
            b.add(x, positive), b.add(positive, x), b.add(x, negative), b.add(negative, x),
            b.sub(x, positive), b.sub(positive, x), b.sub(x, negative), b.sub(negative, x),
        ]  # fmt: skip
        return tuple(b.div(one, each) for each in sums)

    agree(model, np.array([-0.0, 0.0, 1.0, -2.0], dtype))


def test_logic_and_bits() -> None:
    x, y = RANDOM.integers(0, 2, (2, 3, 4)).astype(bool)
    agree(lambda b, x, y: (b.logical_and(x, y), b.logical_or(x, y), b.logical_xor(x, y), b.logical_not(x)), x, y)
    i, j = RANDOM.integers(0, 255, (2, 9)).astype(np.uint8)
    agree(lambda b, x, y: (b.bitwise_and(x, y), b.bitwise_xor(x, y), b.bitwise_not(x)), i, j)


@pytest.mark.parametrize("name", ["f64", "f32", "f16", "bf16", "f8e4m3fn"])
def test_nan_is_not_zero_as_a_truth_value(name: str) -> None:
    x = np.array([np.nan, 0, -0.0, 1, -np.inf, 2.0**-9] * 5, np.float32).astype(elements.parse(name).dtype)
    agree(lambda b, x: (b.cast(x, to=elements.BOOL), b.where(b.cast(x, to=elements.BOOL), x, b.neg(x))), x)


NARROW = (
    "f16",
    "bf16",
    "f8e4m3fn",
    "f8e4m3fnuz",
    "f8e5m2",
    "f8e5m2fnuz",
    "f4e2m1",
    "f8e8m0",
    "i4",
    "u4",
    "i8",
    "u8",
    "bool",
    "f64",
)


@pytest.mark.parametrize("name", NARROW)
def test_casts_round_as_the_reference_does(name: str) -> None:
    special = np.array([0, -0.0, 448, 464, 1e9, -1e9, np.nan])
    x = np.concatenate([normal(200) * 10.0 ** RANDOM.integers(-6, 4, 200), special])
    if elements.parse(name).is_integer:
        x = RANDOM.integers(0, 8, 50)
    agree(lambda b, x: b.cast(x, to=elements.parse(name)), x.astype(np.float32))
    agree(lambda b, x: b.cast(b.cast(x, to=elements.parse(name)), to=elements.F32), x.astype(np.float32))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_narrow_floats_round_after_each_operator(name: str) -> None:
    kind = elements.parse(name)
    agree(
        lambda b, x, y: b.add(b.mul(x, y), x), normal(40).astype(kind.dtype), normal(40).astype(kind.dtype), tolerance=0
    )


REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l2", "reduce_log_sum_exp")


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 2], [-1, -2]])
def test_reductions(name: str, axes: list[int]) -> None:
    agree(lambda b, x: getattr(b, name)(x, np.array(axes), keepdims=0), normal(3, 5, 37))


def test_long_sums_stay_precise() -> None:
    x = np.full((200_000, 2), 0.1, np.float32)
    graph = graph_of(lambda b, x: b.reduce_mean(x, np.array([0])), [x])
    np.testing.assert_allclose(build.build(graph, threads=1)([x])[0], np.float32(0.1), rtol=1e-6)


@pytest.mark.parametrize("last", [0, 1])
def test_positions_of_extremes(last: int) -> None:
    x = RANDOM.integers(0, 4, (5, 9)).astype(np.float32)
    agree(lambda b, x: (b.arg_max(x, axis=1, select_last_index=last), b.arg_min(x, axis=0, select_last_index=last)), x)


def test_reductions_over_nothing() -> None:
    agree(lambda b, x: (b.reduce_sum(x, np.array([1])), b.reduce_max(x, np.array([1]))), np.zeros((3, 0), np.float32))


def test_movement() -> None:
    x = normal(2, 3, 4)
    agree(
        lambda b, x: (
            b.transpose(x, perm=(2, 0, 1)), b.reshape(x, np.array([4, -1])), b.concat(x, x, axis=2),
            b.tile(x, np.array([1, 2, 2])), b.expand(x, np.array([5, 2, 3, 4])),
            b.slice(x, np.array([-1]), np.array([-5]), np.array([2]), np.array([-2])),
            b.depth_to_space(b.reshape(x, np.array([1, 24, 1, 1])), blocksize=2),
        ),
        x,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_padding(mode: str) -> None:
    agree(lambda b, x: b.pad(x, np.array([1, 2, 0, 3]), mode=mode), normal(4, 5))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [[0, 2, 0, -1], [-1, -1, 1, 2]])
def test_what_is_cut_is_not_repeated_at_the_other_end(mode: str, pads: list[int]) -> None:
    agree(lambda b, x: b.pad(x, np.array(pads), mode=mode), normal(4, 6))


def test_cropping_by_negative_pads() -> None:
    agree(lambda b, x: b.pad(x, np.array([-1, 2, 0, -2])), normal(4, 5))


def test_indexing() -> None:
    x, indices = normal(5, 4), np.array([[0, -1], [3, 2]])
    agree(lambda b, x, i: (b.gather(x, i), b.gather_elements(x, i), b.gather_nd(x, i)), x, indices)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatter(reduction: str) -> None:
    x, i = normal(5, 4), np.array([[1, 0], [1, 4]])
    agree(lambda b, x, i, u: b.scatter_elements(x, i, u, axis=0, reduction=reduction), x, i, normal(2, 2))


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_keeps_the_order_of_equals(largest: int) -> None:
    x = RANDOM.integers(0, 5, (3, 17)).astype(np.float32)
    agree(lambda b, x: b.top_k(x, np.array([6]), largest=largest, results=2), x)


def test_running_sums() -> None:
    agree(lambda b, x: (b.cum_sum(x, np.array(1), reverse=1), b.cum_sum(x, np.array(0), exclusive=1)), normal(4, 6))


MATRICES = [
    ((7, 33), (33, 48)),
    ((1, 64), (64, 80)),
    ((2, 20, 30), (30, 7)),
    ((3, 1, 9, 31), (2, 31, 24)),
    ((64,), (64, 3)),
]


@pytest.mark.parametrize(("a", "b"), MATRICES)
def test_matrix_products(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    agree(lambda builder, x, y: builder.relu(builder.matmul(x, y)), normal(*a), normal(*b))
    weights = normal(*b)
    agree(lambda builder, x: builder.tanh(builder.matmul(x, weights)), normal(*a))


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm(trans: int) -> None:
    w, bias = normal(50, 30) if trans else normal(30, 50), normal(50)
    agree(lambda b, x: b.gemm(x, w, bias, alpha=0.5, beta=2.0, transB=trans), normal(20, 30))


@pytest.mark.parametrize("text", ["bij,bjk->bik", "ij,kj->ik", "ii->i", "bhqd,bhkd->bhqk", "ij->ji", "i,j->ij"])
def test_einsum(text: str) -> None:
    extents = dict(zip("bhijkqd", (2, 3, 4, 4, 5, 6, 7), strict=True))
    arrays = [normal(*(extents[c] for c in term)) for term in text.split("->")[0].split(",")]
    agree(lambda b, *xs: b.einsum(*xs, subscripts=text), *arrays)


CONVOLUTIONS = [
    ((2, 3, 9, 11), (40, 3, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 24, 13, 15), (33, 24, 3, 3), {"strides": (2, 2), "pads": (0, 1, 2, 0)}),
    ((1, 8, 12, 12), (64, 4, 3, 3), {"group": 2}),
    ((1, 64, 6, 6), (96, 32, 1, 1), {"group": 2}),
    ((2, 16, 10, 10), (16, 1, 3, 3), {"group": 16, "pads": (1, 1, 1, 1)}),
    ((1, 5, 40), (7, 5, 4), {"dilations": (3,), "auto_pad": "SAME_LOWER"}),
    ((1, 4, 5, 6, 7), (20, 4, 2, 2, 2), {}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS)
def test_convolutions(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    weights, bias = normal(*w), normal(w[0])
    agree(lambda b, x: b.relu(b.conv(x, weights, bias, **attributes)), normal(*x))
    agree(lambda b, x, w: b.conv(x, w, **attributes), normal(*x), weights)


def test_transposed_convolution_with_output_shape() -> None:
    w = normal(3, 2, 3, 3)
    agree(lambda b, x: b.conv_transpose(x, w, strides=(2, 2), output_shape=(10, 8)), normal(1, 3, 5, 4))


def test_pooling_and_norms() -> None:
    x, scale = normal(2, 6, 9, 9), normal(6)
    agree(lambda b, x: b.max_pool(x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), ceil_mode=1), x)
    agree(lambda b, x: b.average_pool(x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 0, 1, 0)), x)
    agree(lambda b, x: b.global_average_pool(x), x)
    agree(lambda b, x: b.instance_norm(x, scale, scale), x)
    agree(lambda b, x: b.group_norm(x, scale, scale, num_groups=3), x)
    agree(lambda b, x: b.local_response_norm(x, size=3), x)
    agree(lambda b, x: b.batch_norm(x, scale, scale, scale, np.abs(scale), results=1), x)
    agree(lambda b, x: b.layer_norm(x, normal(9), normal(9), results=1), x)
    agree(lambda b, x: (b.softmax(x, axis=1), b.log_softmax(x)), x)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers(direction: str) -> None:
    n, hidden = (2 if direction == "bidirectional" else 1), 5
    for name, gates, results in (("lstm", 4, 3), ("gru", 3, 2), ("rnn", 1, 2)):
        w, r, bias = normal(n, gates * hidden, 3), normal(n, gates * hidden, hidden), normal(n, 2 * gates * hidden)
        agree(
            lambda b, x, name=name, w=w, r=r, bias=bias, results=results: getattr(b, name)(
                x, w, r, bias, hidden_size=hidden, direction=direction, results=results
            ),
            normal(4, 2, 3),
        )


def test_quantization_is_exact() -> None:
    x, zero = RANDOM.integers(0, 255, (3, 40)).astype(np.uint8), np.uint8(7)
    w = RANDOM.integers(-128, 127, (40, 33)).astype(np.int8)
    agree(lambda b, x: b.matmul_integer(x, w, zero), x)
    image = RANDOM.integers(0, 255, (1, 16, 9, 9)).astype(np.uint8)
    kernel = RANDOM.integers(-128, 127, (33, 16, 3, 3)).astype(np.int8)
    agree(lambda b, x: b.conv_integer(x, kernel, zero, pads=(1, 1, 1, 1)), image)
    scale = np.array([0.1, 0.03, 0.5], np.float32)
    agree(lambda b, x: b.quantize(x, scale, np.array([1, 2, 3], np.int8), axis=0), normal(3, 50))
    agree(lambda b, x: b.dequantize(x, scale, np.array([1, 2, 3], np.uint8), axis=0), x, tolerance=0)


def test_fourier_transform() -> None:
    agree(lambda b, x: b.dft(x, None, np.array(1)), normal(2, 12, 2))


def test_determinants() -> None:
    agree(lambda b, x: b.det(x), normal(3, 4, 4))
