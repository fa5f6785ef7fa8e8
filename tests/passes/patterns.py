"""Small graphs, one for each rewrite, that contain the pattern that it looks for; extents and constants are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from espalier.ir import Builder, Graph, Value
from espalier.ir.types import parse as type_of

Pattern = Callable[["Maker"], Any]
PATTERNS: dict[str, list[Pattern]] = {}
"""Rewrite → functions that build its pattern and return the outputs."""


class Maker(Builder):
    """A builder that draws extents and constants."""

    def __init__(self, seed: int) -> None:
        super().__init__(Graph())
        self.rng = np.random.default_rng(seed)

    def extent(self, low: int = 2, high: int = 5) -> int:
        return int(self.rng.integers(low, high + 1))

    def x(self, *shape: Any, element: str = "f32") -> Value:
        """A graph input."""
        return self.input(type_of(f"{element}[{', '.join(map(str, shape))}]"), f"x{len(self.graph.inputs)}")

    def c(self, *shape: int, low: float | None = None) -> Any:
        """A constant of random numbers: normal, or uniform from `low` on."""
        found = self.rng.normal(size=shape) if low is None else self.rng.uniform(low, low + 1, shape)
        return found.astype(np.float32)

    def perm(self, rank: int) -> tuple[int, ...]:
        """A permutation that does permute."""
        while True:
            found = tuple(int(axis) for axis in self.rng.permutation(rank))
            if found != tuple(range(rank)):
                return found


def pattern(*rules: str) -> Callable[[Pattern], Pattern]:
    """Register a builder of the pattern of rewrites."""

    def register(function: Pattern) -> Pattern:
        for rule in rules:
            PATTERNS.setdefault(rule, []).append(function)
        return function

    return register


def build(function: Pattern, seed: int) -> Graph:
    """The graph that a pattern builds."""
    maker = Maker(seed)
    outputs = function(maker)
    maker.graph.set_outputs(outputs if isinstance(outputs, tuple) else (outputs,), None)
    return maker.graph


# ---- movements -----------------------------------------------------------------------------------------------


@pattern("drop_identity")
def identity(m: Maker) -> Value:
    return m.relu(m.identity(m.x(m.extent(), 3)))


@pattern("drop_dropout")
def dropout(m: Maker) -> Value:
    return m.dropout(m.x("n", m.extent()), np.float32(0.3))


@pattern("drop_noop_cast")
def noop_cast(m: Maker) -> Value:
    x = m.x(3, element="f32")
    return m.cast(x, to=x.element)


@pattern("cast_like_to_cast")
def cast_like(m: Maker) -> Value:
    return m.cast_like(m.x(m.extent(), element="i32"), m.x(2))


@pattern("merge_casts")
def casts(m: Maker) -> Value:
    wide = m.cast(m.x(m.extent(), element="f16"), to=type_of("f32[1]").element)
    return m.cast(wide, to=type_of("f64[1]").element)


@pattern("drop_noop_movement")
def noop_reshape(m: Maker) -> Value:
    return m.reshape(m.x("n", 3, m.extent()), np.array([0, 3, -1]))


@pattern("drop_noop_movement")
def noop_expand(m: Maker) -> Value:
    return m.expand(m.x(2, 3), np.array([1, 3]))


@pattern("fix_shape_operand")
def computed_reshape(m: Maker) -> Value:
    x = m.x("n", m.extent(), 4)
    batch = m.slice(m.shape(x), np.array([0]), np.array([1]))
    return m.reshape(x, m.concat(batch, np.array([-1]), axis=0))


@pattern("fix_shape_operand")
def computed_expand(m: Maker) -> Value:
    x = m.x("n", 1, 4)
    return m.expand(x, m.concat(m.slice(m.shape(x), np.array([0]), np.array([1])), np.array([m.extent(), 4]), axis=0))


@pattern("merge_reshapes")
def reshapes(m: Maker) -> Value:
    a, b = m.extent(), m.extent()
    return m.unsqueeze(m.reshape(m.x("n", a, b), np.array([0, a * b])), np.array([1]))


@pattern("unwrap_transpose")
def wrapped_transpose(m: Maker) -> Value:
    b, h, t, d = (m.extent(1) for _ in range(4))
    x = m.reshape(m.x(b, h, t, d), np.array([-1, t, d]))
    return m.reshape(m.transpose(x, perm=(0, 2, 1)), np.array([b, h, d, t]))


@pattern("drop_noop_transpose")
def noop_transpose(m: Maker) -> Value:
    return m.transpose(m.x("n", m.extent(), 3), perm=(0, 1, 2))


@pattern("transpose_to_reshape")
def unit_transpose(m: Maker) -> Value:
    k = m.extent()
    return m.reshape(m.transpose(m.x(2, 1, k), perm=(0, 2, 1)), np.array([-1]))


@pattern("merge_transposes")
def transposes(m: Maker) -> Value:
    rank = m.extent(2, 4)
    x = m.x(*(m.extent() for _ in range(rank)))
    return m.transpose(m.transpose(x, perm=m.perm(rank)), perm=m.perm(rank))


@pattern("sink_transpose")
def transposed_sum(m: Maker) -> Value:
    perm, shape = m.perm(3), [m.extent() for _ in range(3)]
    a, b = m.transpose(m.x(*shape), perm=perm), m.transpose(m.x(*shape), perm=perm)
    return m.relu(m.add(m.mul(a, m.c(*(shape[axis] for axis in perm))), b))


@pattern("flatten_concat")
def nested_concat(m: Maker) -> Value:
    inner = m.concat(m.x(2, m.extent()), m.x(2, m.extent()), axis=1)
    return m.concat(m.x(2, 1), inner, axis=-1)


@pattern("drop_split_concat")
def split_concat(m: Maker) -> Value:
    sizes = np.array([m.extent(), m.extent()])
    parts = m.split(m.x(3, int(sizes.sum())), sizes, axis=1, results=2)
    return m.concat(*parts, axis=1)


@pattern("drop_single_split")
def single_split(m: Maker) -> Value:
    k = m.extent()
    return m.split(m.x(3, k), np.array([k]), axis=1, results=1)


@pattern("drop_noop_slice")
def noop_slice(m: Maker) -> Value:
    return m.slice(m.x("n", m.extent()), np.array([0, 0]), np.array([2**40, 9]), np.array([0, 1]))


@pattern("merge_slices")
def slices(m: Maker) -> Value:
    inner = m.slice(m.x(5, 6), np.array([m.extent(0, 2)]), np.array([5]), np.array([0]))
    return m.slice(inner, np.array([5]), np.array([m.extent(0, 2)]), np.array([1]), np.array([-1]))


@pattern("slice_to_gather")
def sliced_position(m: Maker) -> Value:
    k = m.extent(0, 3)
    return m.squeeze(m.slice(m.x(2, 4, 3), np.array([k]), np.array([k + 1]), np.array([1])), np.array([1]))


@pattern("split_to_gather")
def split_positions(m: Maker) -> tuple[Value, ...]:
    parts = m.split(m.x(m.extent(), 3, 2), np.array([1, 1, 1]), axis=1, results=3)
    return tuple(m.squeeze(part, np.array([1])) for part in parts)


@pattern("drop_noop_pad")
def noop_pad(m: Maker) -> Value:
    return m.pad(m.x("n", m.extent()), np.zeros(4, np.int64))


@pattern("fold_pad_into_window")
def padded_convolution(m: Maker) -> Value:
    amounts = [0, 0, *(m.extent(0, 2) for _ in range(2)), 0, 0, *(m.extent(0, 2) for _ in range(2))]
    x = m.pad(m.x(2, 3, 5, 6), np.array(amounts))
    return m.conv(x, m.c(4, 3, 3, 3), pads=(m.extent(0, 1), 0, 0, 1))


@pattern("fold_pad_into_window")
def padded_average(m: Maker) -> Value:
    x = m.pad(m.x(2, 3, 6), np.array([0, 0, 1, 0, 0, m.extent(0, 2)]))
    return m.average_pool(x, kernel_shape=(3,), strides=(m.extent(1, 2),))


# ---- identities ----------------------------------------------------------------------------------------------


@pattern("drop_unit_factor")
def unit_factor(m: Maker) -> Value:
    return m.div(m.mul(np.ones((1, 3), np.float32), m.x("n", 3)), np.float32(1))


@pattern("drop_zero_term")
def zero_term(m: Maker) -> Value:
    return m.sub(m.add(np.zeros(3, np.float32), m.x(m.extent(), 3)), np.float32(0))


@pattern("drop_unit_power")
def unit_power(m: Maker) -> Value:
    return m.pow(m.x(m.extent()), np.float32(1))


@pattern("drop_double_negation")
def double_negation(m: Maker) -> Value:
    return m.neg(m.neg(m.x("n", m.extent())))


@pattern("drop_repeated_idempotent")
def repeated(m: Maker) -> Value:
    return m.abs(m.abs(m.floor(m.floor(m.x(m.extent())))))


@pattern("drop_single_extremum")
def single_extremum(m: Maker) -> Value:
    return m.max(m.x(m.extent()))


@pattern("drop_decided_where")
def decided(m: Maker) -> Value:
    return m.where(np.full((3,), bool(m.extent(0, 1))), m.x(2, 3), m.x(2, 3))


@pattern("merge_relu_into_clip")
def clipped_relu(m: Maker) -> Value:
    return m.clip(m.relu(m.x("n", m.extent())), None, np.float32(6))


@pattern("merge_constant_operands")
def two_constants(m: Maker) -> Value:
    return m.mul(m.c(3), m.mul(m.add(m.add(m.x(m.extent(), 3), m.c(3)), m.c(1)), m.c(3)))


@pattern("matmul_bias_to_gemm")
def biased_product(m: Maker) -> Value:
    k, n = m.extent(), m.extent()
    return m.add(m.c(n), m.matmul(m.x("n", k), m.c(k, n)))


@pattern("reshaped_matmul_to_gemm")
def reshaped_product(m: Maker) -> Value:
    h, d = m.extent(), m.extent()
    x = m.reshape(m.x(2, 3, h, d), np.array([2, 3, h * d]))
    return m.reshape(m.add(m.matmul(x, m.c(h * d, 4)), m.c(4)), np.array([6, 2, 2]))


@pattern("fold_transpose_into_gemm")
def transposed_gemm(m: Maker) -> Value:
    k = m.extent()
    return m.gemm(m.transpose(m.x(k, "n"), perm=(1, 0)), m.c(k, 3), m.c(3))


@pattern("drop_zero_state")
def zero_state(m: Maker) -> Value:
    i, h, x = m.extent(), m.extent(), m.x(4, "n", 2)
    x = m.matmul(x, m.c(2, i))
    batch = m.slice(m.shape(x), np.array([1]), np.array([2]))
    state = m.expand(np.zeros((1, 1, h), np.float32), m.concat(np.array([1]), batch, np.array([h]), axis=0))
    found = m.lstm(x, m.c(1, 4 * h, i), m.c(1, 4 * h, h), None, None, state, state, hidden_size=h, results=1)
    return found


# ---- control flow --------------------------------------------------------------------------------------------


def branch(shape: tuple[int, ...], change: Callable[[Maker, Value], Value]) -> Graph:
    """A region of one captured value."""
    inner = Maker(0)
    inner.graph.set_outputs([change(inner, inner.x(*shape))])
    return inner.graph


@pattern("inline_decided_if")
def decided_if(m: Maker) -> Value:
    shape = (m.extent(), 3)
    regions = [branch(shape, lambda b, x: b.neg(x)), branch(shape, lambda b, x: b.relu(b.neg(x)))]
    x = m.x(*shape)
    known = m.greater(m.gather(m.shape(x), np.array(0)), np.array(3))
    return getattr(m, "if")(known, x, results=1, regions=regions)


@pattern("inline_single_pass")
def single_pass(m: Maker) -> Value:
    body = Maker(0)
    body.x(element="i64")
    condition, x = body.x(element="bool"), body.x(3)
    body.graph.set_outputs([condition, body.exp(x)])
    return m.loop(np.array(1), None, m.x(3), carried=1, results=1, regions=[body.graph])


# ---- folding into weights ------------------------------------------------------------------------------------


def statistics(m: Maker, channels: int) -> list[Any]:
    return [m.c(channels), m.c(channels), m.c(channels), m.c(channels, low=0.5)]


@pattern("fold_batch_norm")
def normed_convolution(m: Maker) -> Value:
    groups, o = m.extent(1, 2), 2 * m.extent(1, 3)
    y = m.conv(m.x(2, 4, 5, 5), m.c(o, 4 // groups, 3, 3), m.c(o), group=groups)
    return m.batch_norm(y, *statistics(m, o))


@pattern("fold_batch_norm")
def normed_transposed_convolution(m: Maker) -> Value:
    groups, o = m.extent(1, 2), m.extent(1, 3)
    y = m.conv_transpose(m.x(2, 4, 5), m.c(4, o, 3), group=groups, strides=(2,))
    return m.batch_norm(y, *statistics(m, o * groups))


@pattern("fold_batch_norm_into_gemm")
def normed_gemm(m: Maker) -> Value:
    k, flag = m.extent(), m.extent(0, 1)
    y = m.gemm(m.x("n", k), m.c(4, k) if flag else m.c(k, 4), m.c(4), transB=flag)
    return m.batch_norm(y, *statistics(m, 4))


@pattern("fold_affine_into_conv")
def scaled_convolution(m: Maker) -> Value:
    y = m.conv(m.x(2, 3, 5, 5), m.c(4, 3, 2, 2))
    return m.add(m.mul(y, m.c(4, 1, 1)), m.c(1, 4, 1, 1))


@pattern("fold_scale_into_matmul")
def scaled_product(m: Maker) -> Value:
    k = m.extent()
    y = m.reshape(m.add(m.matmul(m.x("n", k), m.c(k, 6)), m.c(6)), np.array([-1, 2, 3]))
    return m.div(m.transpose(y, perm=(0, 2, 1)), np.float32(1.7))


# ---- recognition ---------------------------------------------------------------------------------------------


@pattern("recognize_gelu")
def gelu_by_erf(m: Maker) -> Value:
    x = m.x("n", m.extent())
    inside = m.div(x, math.sqrt(2)) if m.extent(0, 1) else m.mul(math.sqrt(0.5), x)
    gate = m.add(m.erf(inside), 1.0)
    orders = [
        lambda: m.mul(m.mul(x, gate), 0.5),
        lambda: m.mul(x, m.mul(gate, 0.5)),
        lambda: m.mul(m.mul(0.5, x), gate),
    ]
    return orders[m.extent(0, 2)]()


@pattern("recognize_gelu")
def gelu_by_tanh(m: Maker) -> Value:
    x, slope = m.x("n", m.extent()), math.sqrt(2 / math.pi)
    cubes = [lambda: m.pow(x, 3.0), lambda: m.mul(m.mul(x, x), x), lambda: m.mul(x, m.mul(x, x))]
    if m.extent(0, 2):
        inner = m.mul(m.add(x, m.mul(cubes[m.extent(0, 2)](), 0.044715)), slope)
    else:
        inner = m.mul(m.mul(x, slope), m.add(m.mul(m.mul(x, x), 0.044715), 1.0))
    return m.mul(m.mul(x, 0.5), m.add(1.0, m.tanh(inner)))


@pattern("recognize_gated")
def gated(m: Maker) -> Value:
    x, kind = m.x("n", m.extent()), m.extent(0, 3)
    gates = [
        lambda: m.sigmoid(x),
        lambda: m.sigmoid(m.mul(x, 1.702)),
        lambda: m.hard_sigmoid(x, alpha=1 / 6, beta=0.5),
        lambda: m.tanh(m.softplus(x)),
    ]
    return m.mul(*((x, gates[kind]()) if m.extent(0, 1) else (gates[kind](), x)))


@pattern("recognize_hard_swish")
def hard_swish(m: Maker) -> Value:
    x = m.x("n", m.extent())
    gate = m.clip(m.add(x, 3.0), np.float32(0), np.float32(6))
    orders = [lambda: m.div(m.mul(x, gate), 6.0), lambda: m.mul(x, m.div(gate, 6.0)), lambda: m.mul(gate, 1 / 6)]
    return orders[m.extent(0, 2)]()


def root_mean_square(m: Maker, t: Value, axes: Any) -> Value:
    square = m.pow(t, 2.0) if m.extent(0, 1) else m.mul(t, t)
    return m.sqrt(m.add(m.reduce_mean(square, axes), 1e-5))


@pattern("recognize_norm", "scale_norm", "shift_norm")
def spelled_layer_norm(m: Maker) -> Value:
    shape, axes = (m.extent(), m.extent()), np.array([-1] if m.extent(0, 1) else [1, 2])
    x = m.x("n", *shape)
    centred = m.sub(x, m.reduce_mean(x, axes))
    made = m.div(centred, root_mean_square(m, centred, axes))
    return m.add(m.mul(made, m.c(*shape[-len(axes) :])), m.c(*shape[-len(axes) :]))


@pattern("recognize_norm")
def spelled_rms_norm(m: Maker) -> Value:
    x, axes = m.x("n", 3, m.extent()), np.array([-1])
    root = root_mean_square(m, x, axes)
    forms = [lambda: m.div(x, root), lambda: m.mul(x, m.reciprocal(root)), lambda: m.mul(m.div(1.0, root), x)]
    return forms[m.extent(0, 2)]()


@pattern("absorb_casts_into_norm")
def wide_norm(m: Maker) -> Value:
    x, k = m.x("n", 4, element="f16"), 4
    wide = m.cast(x, to=type_of("f32[1]").element)
    return m.cast(m.rms_norm(wide, np.ones(k, np.float32)), to=x.element)


@pattern("recognize_attention")
def spelled_attention(m: Maker) -> Value:
    b, h, t, s, d = 2, m.extent(), m.extent(), m.extent(), m.extent()
    q, k, v, kind = m.x(b, h, t, d), m.x(b, s, h, d), m.x(b, h, s, m.extent()), m.extent(0, 3)
    turned = m.transpose(k, perm=(0, 2, 3, 1))
    scores = m.matmul(q, m.mul(turned, 0.5)) if m.extent(0, 1) else m.div(m.matmul(q, turned), 2.0)
    if kind == 0:
        return m.matmul(m.softmax(scores), v)
    if kind == 1:
        return m.matmul(m.softmax(m.add(scores, m.c(t, s))), v)
    mask = m.where(m.x(1, 1, t, s, element="bool"), 0.0 + np.float32(0), np.float32(-math.inf if kind == 2 else -1e9))
    weights = m.softmax(m.add(scores, mask))
    return m.matmul(m.where(m.is_nan(weights), np.float32(0), weights), v)


# ---- lowering ------------------------------------------------------------------------------------------------


@pattern("lower_gelu")
def gelu(m: Maker) -> Value:
    return m.gelu(m.x("n", m.extent()), approximate="tanh" if m.extent(0, 1) else "none")


@pattern("lower_swish")
def swish(m: Maker) -> Value:
    return m.swish(m.x("n", m.extent()), alpha=float(m.extent(1, 2)))


@pattern("lower_hard_swish", "lower_mish")
def other_activations(m: Maker) -> Value:
    return m.mish(m.hard_swish(m.x("n", m.extent())))


@pattern("put_time_first")
def batch_first(m: Maker) -> Value:
    h, i = m.extent(), m.extent()
    x, w, r = m.x(2, 3, i), m.c(1, 4 * h, i), m.c(1, 4 * h, h)
    if m.extent(0, 1):
        return m.lstm(x, w, r, None, None, m.c(2, 1, h), hidden_size=h, layout=1, results=1)
    y, state, _ = m.lstm(x, w, r, hidden_size=h, layout=1, results=3)
    return m.add(m.squeeze(y, np.array([2])), state)


@pattern("lower_rms_norm")
def rms_norm(m: Maker) -> Value:
    k = m.extent()
    return m.rms_norm(m.x("n", 3, k), m.c(k), epsilon=1e-3)


@pattern("lower_layer_norm")
def layer_norm(m: Maker) -> Value:
    k = m.extent()
    return m.layer_norm(m.x("n", 3, k), m.c(3, k), m.c(3, k) if m.extent(0, 1) else None, axis=1, results=1)


@pattern("lower_attention")
def attention(m: Maker) -> Value:
    b, h, t, s, d = 2, m.extent(), m.extent(), m.extent(), m.extent()
    masks = [None, m.c(t, s), m.x(1, 1, t, s, element="bool")]
    return m.attention(m.x(b, h, t, d), m.x(b, h, s, d), m.x(b, h, s, 3), masks[m.extent(0, 2)])
