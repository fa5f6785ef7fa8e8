"""Elementwise operators against torch, at the edges of their domains, and on symbolic shapes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from espalier.ir import Builder, Graph, TypeInferenceError, Value, elements, to_text
from espalier.ir.dims import symbol
from espalier.ir.elements import Element
from espalier.ir.op import lookup
from espalier.ir.types import parse as type_of
from espalier.ir.xp import numpy as xp


def run(name: str, *operands: Any, **attributes: Any) -> Any:
    with np.errstate(all="ignore"):
        return lookup(name)(**attributes).reference(xp, *operands)


POINTS = [-1e30, -100.0, -20.0, -3.0, -1.0, -0.5, -1e-4, -0.0, 0.0, 1e-4, 0.5, 1.0, 1.5, 2.5, 3.0, 20.0, 100.0, 1e30]
FUNCTIONS: list[tuple[str, Any, dict[str, Any]]] = [
    *[(name, getattr(torch, name), {}) for name in (
        "abs", "neg", "sign", "ceil", "floor", "round", "sqrt", "reciprocal", "exp", "log", "erf", "sin", "cos", "tan",
        "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "sigmoid", "relu",
    )],
    ("leaky_relu", lambda x: F.leaky_relu(x, 0.1), {"alpha": 0.1}),
    ("elu", lambda x: F.elu(x, 0.7), {"alpha": 0.7}),
    ("celu", lambda x: F.celu(x, 0.7), {"alpha": 0.7}),
    ("selu", F.selu, {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}),
    ("thresholded_relu", lambda x: F.threshold(x, 1.0, 0.0), {"alpha": 1.0}),
    ("hard_sigmoid", F.hardsigmoid, {"alpha": 1 / 6, "beta": 0.5}),
    ("hard_swish", F.hardswish, {}),
    ("swish", F.silu, {}),
    ("mish", F.mish, {}),
    ("gelu", F.gelu, {}),
    ("gelu", lambda x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"}),
    ("softplus", F.softplus, {}),
    ("softsign", F.softsign, {}),
    ("shrink", lambda x: F.softshrink(x, 0.5), {"lambd": 0.5, "bias": 0.5}),
    ("shrink", lambda x: F.hardshrink(x, 0.5), {"lambd": 0.5}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "oracle", "attributes"), FUNCTIONS)
@pytest.mark.parametrize("kind", [elements.F64, elements.F32, elements.F16, elements.BF16], ids=str)
def test_functions_agree_with_torch(name: str, oracle: Any, attributes: dict[str, Any], kind: Element) -> None:
    rng = np.random.default_rng(0)
    passes_nan = name not in ("sign", "thresholded_relu", "shrink")  # torch and ONNX's formulas differ
    points = np.concatenate([POINTS, rng.standard_normal(200) * 3, [np.nan] if passes_nan else []])
    x = points.astype(kind.dtype)
    exact = torch.tensor(x.astype(np.float64))
    if name in ("gelu", "hard_swish", "swish", "mish", "softsign"):  # ∞·0 and ∞/∞ are NaN, as ONNX's formulas say
        finite = ~torch.isinf(exact)
        exact, x = exact[finite], x[finite.numpy()]
    found = run(name, x, **attributes)
    assert found.dtype == kind.dtype
    expected = oracle(exact).numpy()
    tolerance = {64: 1e-9, 32: 2e-6, 16: 1e-3 if kind == elements.F16 else 8e-3}[kind.bits]
    largest = float(ml_dtypes.finfo(kind.dtype).max)
    smallest = float(ml_dtypes.finfo(kind.dtype).tiny)
    expected = np.where(np.abs(expected) > largest, np.copysign(np.inf, expected), expected)
    both = np.isfinite(expected) | (found.astype(np.float64) != expected)
    actual = found.astype(np.float64)
    near_largest = ~np.isfinite(actual) & (np.abs(expected) > largest / 2)
    cancels = 2e-7 if name == "gelu" and kind != elements.F64 else smallest  # 1 + erf(x) near −1
    close = np.isclose(actual, expected, rtol=tolerance, atol=max(cancels, smallest), equal_nan=True)
    assert (close | near_largest | ~both).all(), [(x[k], actual[k], expected[k]) for k in np.flatnonzero(~close)]


def test_integers_divide_towards_zero_and_take_remainders_with_either_sign() -> None:
    a, b = np.array([7, -7, 7, -7, 6], np.int32), np.array([2, 2, -2, -2, 3], np.int32)
    np.testing.assert_array_equal(run("div", a, b), [3, -3, -3, 3, 2])
    np.testing.assert_array_equal(run("mod", a, b), [1, 1, -1, -1, 0])
    np.testing.assert_array_equal(run("mod", a, b, fmod=1), [1, -1, 1, -1, 0])
    assert run("div", a, b).dtype == np.int32
    with pytest.raises(ZeroDivisionError):
        run("div", a, np.zeros(5, np.int32))


def test_integers_wrap_around() -> None:
    top = np.array([127, -128], np.int8)
    np.testing.assert_array_equal(run("add", top, np.array([1, -1], np.int8)), [-128, 127])
    np.testing.assert_array_equal(run("neg", top), [-127, -128])
    np.testing.assert_array_equal(run("abs", top), [127, -128])
    np.testing.assert_array_equal(run("mul", top, top), [1, 0])
    np.testing.assert_array_equal(run("sum", top, top, top), [125, -128])


def test_shifts_beyond_the_width_leave_the_sign() -> None:
    x, by = np.array([-5, 5, -5, 5], np.int8), np.array([1, 1, 8, -1], np.int8)
    np.testing.assert_array_equal(run("bit_shift", x, by, direction="RIGHT"), [-3, 2, -1, 0])
    np.testing.assert_array_equal(run("bit_shift", x, by, direction="LEFT"), [-10, 10, 0, 0])


def test_not_a_number_is_passed_on() -> None:
    x = np.array([np.nan, 1.0], np.float32)
    for name in ("relu", "sign", "max", "min", "leaky_relu", "sigmoid"):
        assert np.isnan(run(name, x)[0]), name
    assert np.isnan(run("max", x, np.zeros(2, np.float32))[0])
    assert np.isnan(run("clip", x, np.float32(0), np.float32(1))[0])


def test_crossed_bounds_clip_to_the_upper() -> None:
    np.testing.assert_array_equal(run("clip", np.array([-1.0, 0, 9]), np.array(5.0), np.array(2.0)), [2, 2, 2])


def test_casts() -> None:
    x = np.array([1e9, -1e9, 460.0, 0.1, np.nan], np.float32)
    e4m3 = run("cast", x, to=elements.F8E4M3FN).astype(np.float32)
    np.testing.assert_array_equal(e4m3[:3], [448, -448, 448])
    assert np.isnan(e4m3[4])
    loose = run("cast", x, to=elements.F8E4M3FN, saturate=0).astype(np.float32)
    assert np.isnan(loose[:2]).all()
    np.testing.assert_array_equal(run("cast", np.array([200, 300]), to=elements.I8), [-56, 44])
    np.testing.assert_array_equal(run("cast", np.array([5, -5, 3]), to=elements.integer(3)), [-3, 3, 3])
    np.testing.assert_array_equal(run("cast", np.array([0.0, -0.0, 0.3, np.nan]), to=elements.BOOL), [0, 0, 1, 1])
    powers = run("cast", np.array([3.0, 4.0, 5.9], np.float32), to=elements.F8E8M0).astype(np.float32)
    np.testing.assert_array_equal(powers, [4, 4, 8])
    down = run("cast", np.array([3.0, 4.0, 5.9], np.float32), to=elements.F8E8M0, round_mode="down").astype(np.float32)
    np.testing.assert_array_equal(down, [2, 4, 4])
    text = np.array(["3", "-0.5e1", "INF", "nan"], object)
    np.testing.assert_array_equal(run("cast", text, to=elements.F32), np.array([3, -5, np.inf, np.nan], np.float32))
    assert run("cast", np.array([0.5, 2.0], np.float32), to=elements.STRING).tolist() == ["0.5", "2.0"]


def test_bit_casts() -> None:
    x = np.array([1.0, -2.0], np.float32)
    np.testing.assert_array_equal(run("bit_cast", x, to=elements.U32), [0x3F800000, 0xC0000000])
    nibbles = np.array([-3, 7], ml_dtypes.int4)
    np.testing.assert_array_equal(run("bit_cast", nibbles, to=elements.U4).astype(np.int64), [13, 7])


@pytest.fixture
def builder() -> Builder:
    return Builder(Graph())


def refused(builder: Builder, name: str, *types: str, **attributes: Any) -> str:
    operands = [builder.input(type_of(text)) for text in types]
    with pytest.raises(TypeInferenceError) as caught:
        getattr(builder, name)(*operands, **attributes)
    return str(caught.value)


def test_what_has_no_meaning_is_refused(builder: Builder) -> None:
    assert "one element type" in refused(builder, "add", "f32[2]", "f16[2]")
    assert "not defined on bool" in refused(builder, "add", "bool[2]", "bool[2]")
    assert "dequantize" in refused(builder, "mul", "q(i8)[2]", "q(i8)[2]")
    assert "don't broadcast" in refused(builder, "add", "f32[2]", "f32[3]")
    assert "not defined on c64" in refused(builder, "relu", "c64[2]")
    assert "no order" in refused(builder, "max", "c64[2]", "c64[2]")
    assert "truth values" in refused(builder, "logical_not", "f32[2]")
    assert "not bool" in refused(builder, "where", "i64[2]", "f32[2]", "f32[2]")
    assert "bits of integers" in refused(builder, "bitwise_and", "f32[2]", "f32[2]")
    assert "LEFT or RIGHT" in refused(builder, "bit_shift", "u8[2]", "u8[2]", direction="UP")
    assert "approximation" in refused(builder, "gelu", "f32[2]", approximate="fast")
    assert "more axes" in refused(builder, "prelu", "f32[2]", "f32[3, 2]")
    assert "differ in width" in refused(builder, "bit_cast", "f32[2]", to=elements.I64)
    assert "at least one" in refused(builder, "max")


def contents(value: Value) -> list[Any]:
    assert value.known is not None
    return list(value.known.reshape(-1).tolist())


def test_shape_arithmetic_is_tracked(builder: Builder) -> None:
    n = symbol("n")
    x = builder.input(type_of("f32[n, 3, 8]"))
    shape = builder.shape(x)
    assert contents(builder.add(shape, 1)) == [n + 1, 4, 9]
    assert contents(builder.mul(shape, np.array([2, 1, 1]))) == [n * 2, 3, 8]
    assert contents(builder.div(shape, 2)) == [n // 2, 1, 4]
    assert contents(builder.mod(shape, 2)) == [n % 2, 1, 0]
    assert contents(builder.sub(shape, shape)) == [0, 0, 0]
    assert contents(builder.reduce_prod(shape, np.array([0]), keepdims=0)) == [n * 24]
    assert contents(builder.reduce_sum(shape, np.array([0]), keepdims=0)) == [n + 11]
    assert contents(builder.equal(shape, -1)) == [False, False, False]
    assert contents(builder.where(builder.equal(shape, -1), 1, shape)) == [n, 3, 8]
    assert contents(builder.max(shape, builder.add(shape, 2))) == [n + 2, 5, 10]
    assert contents(builder.cast(builder.cast(shape, to=elements.I32), to=elements.I64)) == [n, 3, 8]
    undecided = builder.equal(shape, 5)
    assert undecided.known is None
    assert "bool[3]" in to_text(builder.graph)


def test_zero_rules_that_rest_on_operands(builder: Builder) -> None:
    from espalier.ir.inference import type_context

    x = builder.input(type_of("f32[4]"))
    for lower, upper, expected in ((0.0, 6.0, True), (1.0, 6.0, False), (None, 6.0, True), (-3.0, -1.0, False)):
        bounds = [None if bound is None else np.float32(bound) for bound in (lower, upper)]
        node = builder.clip(x, *bounds).producer
        assert node.op.zero_at(type_context(builder.graph, node), [True, None, None]) is expected
    for exponent, expected in ((2.0, True), (0.0, False), (-1.0, False)):
        node = builder.pow(x, np.float32(exponent)).producer
        assert node.op.zero_at(type_context(builder.graph, node), [True, None]) is expected
    unknown = builder.pow(x, builder.input(type_of("f32[]"))).producer
    assert not unknown.op.zero_at(type_context(builder.graph, unknown), [True, None])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_facts() -> None:
    """Monotone and idempotent functions are so, on many points, for the elements that they keep."""
    x = np.sort(np.concatenate([POINTS, np.random.default_rng(1).standard_normal(300) * 4]))
    checked = 0
    for name, _, attributes in FUNCTIONS:
        op = lookup(name)(**attributes)
        y = run(name, x, **attributes)
        known = y[~np.isnan(y)]
        rising = bool((known[1:] >= known[:-1] - 1e-12 * np.abs(known[1:])).all())
        assert rising or not op.monotone, name
        again = run(name, y, **attributes)
        same = np.array_equal(again, y, equal_nan=True)
        assert same or not op.idempotent, name
        checked += op.monotone + op.idempotent
    assert checked > 20
    assert not lookup("leaky_relu")(alpha=-1.0).monotone
