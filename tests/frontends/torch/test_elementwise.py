"""Arithmetic, functions, comparisons, logic, casts and activations against torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.frontends.torch.support import Family, booleans, integers, normal

X = normal(3, 4)
Y = normal(3, 4, seed=1)
POSITIVE = normal(3, 4).abs() + 0.1
UNIT = torch.tanh(normal(3, 4))
INT = integers(3, 4)
J = integers(3, 4, seed=1) * 2 + 1
B = booleans(3, 4)
ODD = torch.tensor([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 7.0])
SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.0, -1.0])
AXES = (
    torch.tensor([0.0, -0.0, 1.0, 0.0, -1.0, -0.0, 2.0, -2.0]),
    torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, -3.0, -1.0, -1.0]),
)

ARITHMETIC = Family(
    add=(torch.add, X, Y),
    add_alpha=(lambda x, y: torch.add(x, y, alpha=0.5), X, Y),
    add_scalar=(lambda x: x + 2, INT),
    add_float_to_int=(lambda x: x + 1.5, INT),
    add_int_tensor=(lambda x, i: x + i, X, INT),
    add_bool=(torch.add, B, ~B),
    add_half=(lambda x: x + 1, normal(3, dtype=torch.float16)),
    add_bfloat=(lambda x: x * 1.1, normal(3, dtype=torch.bfloat16)),
    sub=(torch.sub, X, Y),
    rsub=(lambda x: 3 - x, X),
    mul=(torch.mul, X, Y),
    mul_bool=(torch.mul, B, B),
    mul_bool_int=(lambda b, i: b * i, B, INT),
    div=(torch.div, X, Y),
    div_int=(lambda i, j: i / j, INT, J),
    div_floor=(lambda x, y: torch.div(x, y, rounding_mode="floor"), X, Y),
    div_trunc=(lambda x, y: torch.div(x, y, rounding_mode="trunc"), X, Y),
    div_floor_int=(lambda i, j: i // j, INT, J),
    div_trunc_int=(lambda i, j: torch.div(i, j, rounding_mode="trunc"), INT, J),
    div_floor_near=(lambda x: x // 0.1, torch.tensor([1.0, 0.3, -1.0, 0.7])),
    floor_by_zero=(lambda x: x // 0.0, ODD),
    remainder=(torch.remainder, X, Y),
    remainder_int=(torch.remainder, INT, J),
    fmod=(torch.fmod, X, Y),
    fmod_int=(torch.fmod, INT, J),
    pow=(lambda x, y: x**y, POSITIVE, Y),
    pow_scalar=(lambda x: x**3, X),
    pow_base=(lambda x: 2.0**x, X),
    pow_int=(lambda i: i**2, INT),
    maximum=(torch.maximum, X, Y),
    maximum_nan=(lambda x: torch.maximum(x, torch.zeros(6)), SPECIAL),
    fmax=(lambda x: torch.fmax(x, torch.zeros(6)), SPECIAL),
    fmin=(lambda x: torch.fmin(x, torch.zeros(6)), SPECIAL),
    minimum=(torch.minimum, INT, J),
    clamp=(lambda x: x.clamp(-0.5, 0.5), X),
    clamp_min=(lambda x: x.clamp(min=0), X),
    clamp_int=(lambda i: i.clamp(-2, 3), INT),
    clamp_tensor=(lambda x, y: torch.clamp(x, min=y, max=y.abs()), X, Y),
    clamp_int_float=(lambda i: i.clamp(-1.5, 2.5), INT),
    atan2=(torch.atan2, X, Y),
    atan2_axes=(torch.atan2, *AXES),
    lerp=(lambda x, y: torch.lerp(x, y, 0.3), X, Y),
    addcmul=(lambda x, y: torch.addcmul(x, y, y, value=2), X, Y),
    addcdiv=(lambda x, y: torch.addcdiv(x, y, y.exp()), X, Y),
    hypot=(torch.hypot, X, Y),
    shift_left=(lambda i: i << 2, INT),
    shift_right=(lambda i: i >> 1, INT),
    copysign=(torch.copysign, X, Y),
    logaddexp=(torch.logaddexp, X, Y),
    xlogy=(torch.xlogy, POSITIVE, POSITIVE),
    uint8_wraps=(lambda i: i + 200, integers(5, low=0, high=200, dtype=torch.uint8)),
    heaviside=(torch.heaviside, X, Y),
    zero_dim=(lambda x: x * torch.tensor(2.0, dtype=torch.float64), X),
)

FUNCTIONS = Family(
    **{
        name: (getattr(torch, name), X)
        for name in (
            "abs",
            "neg",
            "exp",
            "sin",
            "cos",
            "tan",
            "atan",
            "sinh",
            "cosh",
            "tanh",
            "asinh",
            "erf",
            "erfc",
            "sigmoid",
            "sign",
            "floor",
            "ceil",
            "round",
            "trunc",
            "frac",
            "square",
            "exp2",
            "expm1",
            "relu",
            "positive",
            "deg2rad",
            "sinc",
            "isnan",
            "isinf",
            "isfinite",
            "signbit",
            "sgn",
            "nan_to_num",
        )
    },
    **{
        name: (getattr(torch, name), POSITIVE)
        for name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal")
    },
    **{name: (getattr(torch, name), UNIT) for name in ("asin", "acos", "atanh", "logit")},
    acosh=(torch.acosh, POSITIVE + 1),
    round_even=(torch.round, ODD),
    round_decimals=(lambda x: torch.round(x, decimals=2), X),
    log1p_small=(torch.log1p, torch.tensor([1e-7, -1e-7, 1e-3, 3.0])),
    expm1_small=(torch.expm1, torch.tensor([1e-7, -1e-6, 2.0])),
    nan_to_num_special=(torch.nan_to_num, SPECIAL),
    isnan_special=(torch.isnan, SPECIAL),
    isinf_special=(torch.isinf, SPECIAL),
    isfinite_special=(torch.isfinite, SPECIAL),
    sin_int=(torch.sin, INT),
    sqrt_int=(torch.sqrt, INT.abs()),
    abs_int=(torch.abs, INT),
    isnan_int=(torch.isnan, INT),
    floor_int=(torch.floor, INT),
    sigmoid_half=(torch.sigmoid, normal(5, dtype=torch.float16)),
    neg_uint8=(torch.neg, integers(5, low=0, dtype=torch.uint8)),
    exp_double=(torch.exp, normal(4, dtype=torch.float64)),
)

LOGIC = Family(
    **{name: (getattr(torch, name), X, Y) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    gt_scalar=(lambda i: i > 1.5, INT),
    eq_scalar=(lambda i: i == 2, INT),
    lt_mixed=(lambda i, x: i < x, INT, X),
    eq_bool=(torch.eq, B, ~B),
    gt_bool=(torch.gt, B, ~B),
    where=(torch.where, B, X, Y),
    where_scalar=(lambda b, x: torch.where(b, x, 0.0), B, X),
    where_promotes=(torch.where, B, INT, X),
    masked_fill=(lambda x, b: x.masked_fill(b, -1e9), X, B),
    masked_fill_inf=(lambda x, b: x.masked_fill(b, float("-inf")), X, B),
    and_bool=(lambda a: a & ~a, B),
    or_bool=(lambda a, b: a | b, B, ~B),
    xor_int=(lambda i, j: i ^ j, INT, J),
    and_int=(lambda i: i & 6, INT),
    or_int=(lambda i, j: i | j, INT, J),
    not_int=(lambda i: ~i, INT),
    logical_and=(torch.logical_and, X, INT),
    logical_or=(torch.logical_or, X, B),
    logical_not=(torch.logical_not, INT),
    logical_xor=(torch.logical_xor, B, INT),
    isin=(lambda i: torch.isin(i, torch.tensor([1, 2])), INT),
    isclose=(torch.isclose, X, X + 1e-9),
)

CASTS = Family(
    to_int=(lambda x: (x * 10).int(), X),
    to_long=(lambda x: (x * 10).long(), X),
    to_bool=(lambda x: x.bool(), INT),
    to_half=(lambda x: x.half(), X),
    to_bfloat=(lambda x: x.to(torch.bfloat16), X),
    to_double=(lambda i: i.double(), INT),
    to_uint8=(lambda i: i.to(torch.uint8), integers(5, low=0)),
    bool_to_float=(lambda b: b.float(), B),
    type_as=(lambda x, i: x.type_as(i), X * 5, INT),
    view_dtype=(lambda x: x.view(torch.int32), X),
    half_matmul=(lambda x: x @ x.T, normal(3, 4, dtype=torch.float16)),
    float8=(lambda x: x.to(torch.float8_e4m3fn).float(), X),
    bfloat_roundtrip=(lambda x: x.to(torch.bfloat16).float() * 3, X),
)

ACTIVATIONS = Family(
    gelu=(F.gelu, X),
    gelu_tanh=(lambda x: F.gelu(x, approximate="tanh"), X),
    silu=(F.silu, X),
    mish=(F.mish, X),
    hardswish=(F.hardswish, X * 3),
    hardsigmoid=(F.hardsigmoid, X * 3),
    hardtanh=(F.hardtanh, X),
    hardtanh_bounds=(lambda x: F.hardtanh(x, -0.2, 0.4), X),
    relu6=(F.relu6, X * 5),
    leaky_relu=(lambda x: F.leaky_relu(x, 0.2), X),
    prelu=(lambda x: F.prelu(x, torch.tensor([0.25])), X),
    prelu_channels=(lambda x: F.prelu(x, torch.tensor([0.25, 0.5, -0.1])), normal(2, 3, 4, 4)),
    elu=(F.elu, X),
    elu_alpha=(lambda x: F.elu(x, 0.5), X),
    selu=(F.selu, X),
    celu=(lambda x: F.celu(x, 0.7), X),
    softplus=(F.softplus, X * 5),
    softplus_beta=(lambda x: F.softplus(x, beta=2.5), X),
    softplus_threshold=(lambda x: F.softplus(x, threshold=1.0), X),
    logsigmoid=(F.logsigmoid, X),
    softsign=(F.softsign, X),
    tanhshrink=(F.tanhshrink, X),
    softshrink=(F.softshrink, X),
    hardshrink=(F.hardshrink, X),
    threshold=(lambda x: F.threshold(x, 0.1, 7.0), X),
    glu=(F.glu, X),
    softmax=(lambda x: F.softmax(x, 0), X),
    softmax_last=(lambda x: x.softmax(-1), normal(2, 3, 4)),
    log_softmax=(lambda x: F.log_softmax(x, 1), X),
    softmax_dtype=(lambda x: F.softmax(x, -1, dtype=torch.float32), normal(3, 4, dtype=torch.float16)),
    softmin=(lambda x: F.softmin(x, 1), X),
    softmax_scalar=(lambda x: F.softmax(x.sum(), 0), X),
    dropout=(lambda x: F.dropout(x, 0.5, training=False), X),
    rrelu=(F.rrelu, X),
    gelu_bfloat=(F.gelu, normal(6, dtype=torch.bfloat16)),
)

FAMILIES = {
    "arithmetic": ARITHMETIC,
    "functions": FUNCTIONS,
    "logic": LOGIC,
    "casts": CASTS,
    "activations": ACTIVATIONS,
}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, cases in FAMILIES.items() for name in cases])
def test_elementwise(family: str, name: str) -> None:
    FAMILIES[family].check(name)
