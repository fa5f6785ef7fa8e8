"""Random graphs over what networks are made of, in float64: every step takes values made before it.

Images are [2, channels, 4, 4], rows of tokens [2, 5, channels], vectors [2, channels].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from hypothesis import strategies as st

from espalier.ir import Builder, Graph, TensorType, Value
from espalier.ir.elements import F64

Case: TypeAlias = tuple[Graph, list[np.ndarray], np.random.Generator]
"""A graph, arrays for its inputs, and what is to be drawn from for it."""
WIDEST = 64
STEPS: dict[str, Callable[[Maker, Value], Value | None]] = {}
"""Each makes a value of another, or gives None where the value does not fit."""

UNARY = (
    "relu", "sigmoid", "tanh", "gelu", "swish", "hard_sigmoid", "hard_swish", "leaky_relu", "elu", "softplus", "abs",
    "exp", "cos", "neg", "sign", "erf", "softsign", "mish", "identity", "selu", "celu", "thresholded_relu", "shrink",
)  # fmt: skip


COMMON = ("function", "with_another", "convolution", "linear", "with_weights") * 3


@dataclass
class Maker:
    """Builds one graph. `choices` are the numbers that hypothesis drew for the step at hand."""

    choices: list[int]
    rng: np.random.Generator
    graph: Graph = field(default_factory=Graph)
    pool: list[Value] = field(default_factory=list)
    weights: int = 0

    def __post_init__(self) -> None:
        self.build = Builder(self.graph)

    def choose(self, count: int) -> int:
        """One of so many: the next of the drawn numbers."""
        return (self.choices.pop(0) if self.choices else 0) % count

    def weight(self, *shape: int, low: float = -1.0) -> Value:
        from espalier.ir.constants import constant
        from espalier.ir.graph import constant_value

        self.weights += 1
        return constant_value(constant(self.rng.uniform(low, 1.5, shape)), name=f"w{self.weights}")

    def other(self, fits: Callable[[Value], bool]) -> Value | None:
        """A value made before that fits."""
        found = [value for value in self.pool if fits(value)]
        return found[self.choose(len(found))] if found else None

    def divisor(self, number: int) -> int:
        found = [k for k in range(1, number + 1) if number % k == 0]
        return found[self.choose(len(found))]

    def factors(self, number: int) -> list[int]:
        found = []
        while number > 1 and len(found) < 3:
            found.append(self.divisor(number))
            number //= found[-1]
        return [*found, number]

    def vector(self, x: Value) -> Value:
        """Any value as a vector of its channels."""
        if x.rank == 2:
            return x
        return self.build.reduce_mean(x, np.array([2, 3] if x.rank == 4 else [1]), keepdims=0)


def step(make: Callable[[Maker, Value], Value | None]) -> Callable[[Maker, Value], Value | None]:
    STEPS[make.__name__] = make
    return make


def channel_axis(x: Value) -> int:
    return 2 if x.rank == 3 else 1


def channels(x: Value) -> int:
    return x.shape[channel_axis(x)]


def along_channels(x: Value) -> list[int]:
    """A shape that broadcasts along the channels."""
    return [-1, 1, 1] if x.rank == 4 else [-1]


# ---- layers ------------------------------------------------------------------------------------------------------


@step
def convolution(m: Maker, x: Value) -> Value | None:
    if x.rank != 4:
        return None
    wide, groups, k = channels(x), m.divisor(channels(x)), (1, 3)[m.choose(2)]
    out = groups * (1 + m.choose(max(1, 12 // groups)))
    bias = m.weight(out) if m.choose(2) else None
    return m.build.conv(x, m.weight(out, wide // groups, k, k), bias, group=groups, pads=[k // 2] * 4)


@step
def transposed_convolution(m: Maker, x: Value) -> Value | None:
    if x.rank != 4:
        return None
    groups = m.divisor(channels(x))
    out = 1 + m.choose(4)
    bias = m.weight(out * groups) if m.choose(2) else None
    return m.build.conv_transpose(x, m.weight(channels(x), out, 3, 3), bias, group=groups, pads=[1] * 4)


@step
def linear(m: Maker, x: Value) -> Value | None:
    if x.rank == 4:
        return None
    out, wide = 1 + m.choose(12), channels(x)
    if x.rank == 2 and m.choose(2):
        return m.build.gemm(x, m.weight(out, wide), m.weight(out), transB=1)
    y = m.build.matmul(x, m.weight(wide, out))
    return m.build.add(y, m.weight(out)) if m.choose(2) else y


@step
def multiplied_by_blocks(m: Maker, x: Value) -> Value | None:
    """Experts or heads with weights of their own: einsum over two factors."""
    if x.rank != 3 or channels(x) < 4:
        return None
    g = m.divisor(channels(x))
    y = m.build.reshape(x, np.array([2, 5, g, channels(x) // g]))
    y = m.build.einsum(y, m.weight(g, channels(x) // g, 3), subscripts="btgi,gio->btgo")
    return m.build.reshape(y, np.array([2, 5, -1]))


@step
def recurrence(m: Maker, x: Value) -> Value | None:
    if x.rank != 3:
        return None
    h, both = 2 + m.choose(4), m.choose(2)
    gates, kind = ((4, "lstm"), (3, "gru"), (1, "rnn"))[m.choose(3)]
    weights = [m.weight(1 + both, gates * h, channels(x)), m.weight(1 + both, gates * h, h)]
    sides = {"hidden_size": h, "direction": "bidirectional" if both else "forward"}
    seen = m.build.transpose(x, perm=[1, 0, 2])
    y = getattr(m.build, kind)(seen, *weights, m.weight(1 + both, 2 * gates * h), results=1, **sides)
    return m.build.reshape(m.build.transpose(y, perm=[2, 0, 1, 3]), np.array([2, 5, -1]))


# ---- norms -------------------------------------------------------------------------------------------------------


@step
def batch_norm(m: Maker, x: Value) -> Value | None:
    if x.rank == 3:
        return None
    c = channels(x)
    return m.build.batch_norm(x, m.weight(c), m.weight(c), m.weight(c), m.weight(c, low=0.5))


@step
def group_norm(m: Maker, x: Value) -> Value | None:
    if x.rank != 4:
        return None
    return m.build.group_norm(x, m.weight(channels(x)), m.weight(channels(x)), num_groups=m.divisor(channels(x)))


@step
def instance_norm(m: Maker, x: Value) -> Value | None:
    return None if x.rank != 4 else m.build.instance_norm(x, m.weight(channels(x)), m.weight(channels(x)))


@step
def layer_norm(m: Maker, x: Value) -> Value | None:
    if x.rank == 4:
        return None
    if m.choose(2):
        return m.build.rms_norm(x, m.weight(channels(x)))
    return m.build.layer_norm(x, m.weight(channels(x)), m.weight(channels(x)))


@step
def softmax(m: Maker, x: Value) -> Value:
    return m.build.softmax(x, axis=m.choose(x.rank - 1) + 1)


@step
def scaled_by_length(m: Maker, x: Value) -> Value:
    """Divided by a norm over the channels."""
    length = m.build.reduce_l2(x, np.array([channel_axis(x)]))
    return m.build.div(x, m.build.add(length, 0.5))


# ---- elementwise -------------------------------------------------------------------------------------------------


@step
def function(m: Maker, x: Value) -> Value:
    kind = UNARY[m.choose(len(UNARY))]
    return getattr(m.build, kind)(m.build.tanh(x) if kind == "exp" else x)


@step
def with_weights(m: Maker, x: Value) -> Value:
    """One number for each channel: added, multiplied, as a slope, as a bound, …"""
    kind = ("add", "mul", "sub", "max", "min", "prelu", "where")[m.choose(7)]
    weight = m.build.reshape(m.weight(channels(x)), np.array(along_channels(x)))
    if kind == "where":
        return m.build.where(m.build.greater(x, weight), x, m.build.mul(x, weight))
    return getattr(m.build, kind)(x, weight)


@step
def with_another(m: Maker, x: Value) -> Value | None:
    """Residuals, gates and the like: two values of one shape."""
    y = m.other(lambda y: y.shape == x.shape)
    kind = ("add", "add", "mul", "sub", "max", "min", "mean", "quotient")[m.choose(8)]
    if kind == "quotient":
        return m.build.div(x, m.build.add(m.build.sigmoid(y), 0.1))
    return getattr(m.build, kind)(x, y)


@step
def gated_by_means(m: Maker, x: Value) -> Value | None:
    """Squeeze and excite."""
    if x.rank != 4:
        return None
    squeezed = m.build.gemm(m.vector(x), m.weight(3, channels(x)), m.weight(3), transB=1)
    gate = m.build.sigmoid(m.build.gemm(squeezed, m.weight(channels(x), 3), m.weight(channels(x)), transB=1))
    return m.build.mul(x, m.build.reshape(gate, np.array([0, -1, 1, 1])))


@step
def number_added(m: Maker, x: Value) -> Value:
    return m.build.add(x, (0.0, 0.7, -1.0)[m.choose(3)])


@step
def clipped(m: Maker, x: Value) -> Value:
    return m.build.clip(x, (-0.5, 0.0, 0.1)[m.choose(3)], 1.0)


@step
def product_of_activations(m: Maker, x: Value) -> Value | None:
    """Every token against every other, over the channels or over the tokens."""
    if x.rank != 3:
        return None
    y = m.other(lambda y: y.rank == 3 and y.shape == x.shape)
    if m.choose(2):
        return m.build.matmul(x, m.build.transpose(y, perm=[0, 2, 1]))
    return m.build.matmul(m.build.softmax(m.build.matmul(x, m.build.transpose(y, perm=[0, 2, 1]))), y)


@step
def attention(m: Maker, x: Value) -> Value | None:
    if x.rank != 3 or channels(x) < 2:
        return None
    h, d, kv = 1 + m.choose(3), 1 + m.choose(3), 1 + m.choose(2)
    parts = []
    for count in (h * kv, kv, kv):
        part = m.build.matmul(x, m.weight(channels(x), count * d))
        parts.append(m.build.transpose(m.build.reshape(part, np.array([2, 5, count, d])), perm=[0, 2, 1, 3]))
    y = m.build.attention(*parts, results=1)
    return m.build.reshape(m.build.transpose(y, perm=[0, 2, 1, 3]), np.array([2, 5, -1]))


# ---- movement ----------------------------------------------------------------------------------------------------


@step
def concatenated(m: Maker, x: Value) -> Value | None:
    axis = channel_axis(x)
    y = m.other(
        lambda y: (
            y.rank == x.rank and all(a == b for k, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if k != axis)
        )
    )
    if channels(x) + channels(y) > WIDEST:
        return None
    return m.build.concat(x, y, axis=axis)


@step
def split(m: Maker, x: Value) -> Value | None:
    if channels(x) < 2:
        return None
    cut = 1 + m.choose(channels(x) - 1)
    a, b = m.build.split(x, np.array([cut, channels(x) - cut]), axis=channel_axis(x), results=2)
    m.pool.append(a)
    return b


@step
def equal_parts(m: Maker, x: Value) -> Value | None:
    if channels(x) % 2:
        return None
    a, b = m.build.split(x, axis=channel_axis(x), num_outputs=2, results=2)
    m.pool.append(a)
    return m.build.mul(a, m.build.sigmoid(b)) if m.choose(2) else b


@step
def sliced(m: Maker, x: Value) -> Value | None:
    start, step_ = m.choose(channels(x)), 1 + m.choose(3)
    ends = channels(x) - (m.choose(2) if channels(x) - start > 1 else 0)
    return m.build.slice(x, np.array([start]), np.array([ends]), np.array([channel_axis(x)]), np.array([step_]))


@step
def rotated(m: Maker, x: Value) -> Value | None:
    if channels(x) < 2:
        return None
    cut, axis = 1 + m.choose(channels(x) - 1), np.array([channel_axis(x)])
    a = m.build.slice(x, np.array([cut]), np.array([2**62]), axis)
    b = m.build.slice(x, np.array([0]), np.array([cut]), axis)
    return m.build.concat(m.build.neg(a) if m.choose(2) else a, b, axis=channel_axis(x))


@step
def padded(m: Maker, x: Value) -> Value | None:
    amounts = np.array([m.choose(4), m.choose(4)])
    value = None if m.choose(2) else m.build.identity(np.array((0.0, 0.5)[m.choose(2)]))
    mode = ("constant", "constant", "edge")[m.choose(3)]
    if channels(x) > WIDEST:
        return None
    return m.build.pad(x, amounts, value, np.array([channel_axis(x)]), mode=mode)


@step
def shuffled(m: Maker, x: Value) -> Value:
    """Channels as several factors, in another order."""
    factors = m.factors(channels(x))
    axis = channel_axis(x)
    outer, inner = list(x.shape[:axis]), list(x.shape[axis + 1 :])
    order = list(range(len(factors)))
    order = [order.pop(m.choose(len(order))) for _ in factors]
    y = m.build.reshape(x, np.array([*outer, *factors, *inner]))
    perm = [*range(axis), *(axis + k for k in order), *range(axis + len(factors), axis + len(factors) + len(inner))]
    return m.build.reshape(m.build.transpose(y, perm=perm), np.array([*outer, -1, *inner]))


@step
def reversed_(m: Maker, x: Value) -> Value:
    far = np.array([-(2**62)])
    return m.build.slice(x, np.array([-1]), far, np.array([channel_axis(x)]), np.array([-1]))


@step
def gathered(m: Maker, x: Value) -> Value:
    order = m.rng.integers(0, channels(x), 1 + m.choose(8))
    return m.build.gather(x, order, axis=channel_axis(x))


@step
def repeated(m: Maker, x: Value) -> Value | None:
    """Each channel several times over, or all of them."""
    times = 2 + m.choose(2)
    if channels(x) * times > WIDEST or x.rank == 4:
        return None
    if m.choose(2):
        return m.build.tile(x, np.array([*[1] * (x.rank - 1), times]))
    y = m.build.unsqueeze(x, np.array([-1]))
    y = m.build.expand(y, np.array([1] * x.rank + [times]))
    return m.build.reshape(y, np.array([*x.shape[:-1], -1]))


@step
def tokens_of_pixels(m: Maker, x: Value) -> Value | None:
    if x.rank != 4:
        return None
    y = m.build.transpose(m.build.reshape(x, np.array([2, channels(x), 16])), perm=[0, 2, 1])
    return m.build.matmul(m.weight(5, 16), y)


@step
def pixels_of_vector(m: Maker, x: Value) -> Value | None:
    if x.rank != 2:
        return None
    return m.build.expand(m.build.reshape(x, np.array([2, -1, 1, 1])), np.array([1, 1, 4, 4]))


@step
def vector_of(m: Maker, x: Value) -> Value | None:
    return None if x.rank == 2 else m.vector(x)


@step
def flat(m: Maker, x: Value) -> Value | None:
    """Channels and positions as one axis, then a layer."""
    if x.rank == 2 or channels(x) > 12:
        return None
    size = math.prod(x.shape[1:])
    return m.build.matmul(m.build.flatten(x), m.weight(size, 2 + m.choose(5)))


@step
def blocks_to_channels(m: Maker, x: Value) -> Value | None:
    if x.rank != 4 or channels(x) * 4 > WIDEST:
        return None
    y = m.build.space_to_depth(x, blocksize=2)
    if m.choose(2):
        y = m.build.conv(y, m.weight(8, channels(y), 1, 1))
    return m.build.depth_to_space(y, blocksize=2, mode=("DCR", "CRD")[m.choose(2)])


# ---- reductions --------------------------------------------------------------------------------------------------


@step
def pooled(m: Maker, x: Value) -> Value | None:
    if x.rank != 4:
        return None
    kind = ("max_pool", "average_pool", "lp_pool")[m.choose(3)]
    return getattr(m.build, kind)(x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


@step
def reduced(m: Maker, x: Value) -> Value:
    """Over the channels; what is left stands beside them."""
    kinds = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_l1", "reduce_sum_square", "reduce_prod", "reduce_min")
    found = getattr(m.build, kinds[m.choose(len(kinds))])(x, np.array([channel_axis(x)]))
    return m.build.mul(x, m.build.tanh(found)) if m.choose(2) else found


@step
def summed_up(m: Maker, x: Value) -> Value:
    return m.build.cum_sum(x, np.array(m.choose(x.rank - 1) + 1))


@step
def ranked(m: Maker, x: Value) -> Value | None:
    if x.rank != 2:
        return None
    return m.build.top_k(x, np.array([max(1, channels(x) // 2)]))[0]


@st.composite
def graphs(draw: st.DrawFn) -> Case:
    """A graph with an image and tokens as inputs, arrays for them, and a generator for what is to be removed."""
    names = [*sorted(STEPS), *COMMON]
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(names), st.integers(0, 30), st.lists(st.integers(0, 60), max_size=5)),
            min_size=6, max_size=14,
        )
    )  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m = Maker([], rng)
    image = m.build.input(TensorType(F64, (2, 3, 4, 4)), "image")
    tokens = m.build.input(TensorType(F64, (2, 5, 3)), "tokens")
    m.pool += [
        m.build.conv(image, m.weight(12, 3, 3, 3), m.weight(12), pads=[1] * 4),
        m.build.matmul(tokens, m.weight(3, 8)),
        m.build.gemm(m.vector(image), m.weight(6, 3), m.weight(6), transB=1),
    ]
    for name, which, choices in steps:
        m.choices = list(choices)
        made = STEPS[name](m, m.pool[-1 - which % len(m.pool)])
        if made is not None:
            m.pool.append(made)
    m.choices = []
    vectors = [m.vector(value) for value in m.pool[-4:]]
    total = m.build.sum(*(m.build.matmul(v, m.weight(channels(v), 3)) for v in vectors))
    m.graph.set_outputs([total], ["y"])
    return m.graph, [rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 5, 3))], rng
