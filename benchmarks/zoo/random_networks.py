"""Random networks out of the pieces that real ones are made of, with extents that no block of lanes divides.

A network starts from feature maps (batch, channels, positions…) of one to three axes, or from tokens (batch, positions,
channels), and takes one piece after the other; some take it from one form to the next, as in networks: feature maps to
tokens or to a vector, tokens to a vector. Weights keep the numbers near 1, and no piece decides by a number (arg max,
rounding), so that what two runtimes compute lies close together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espalier.ir import Builder, Graph, Value
from espalier.ir.graph import constant_value
from espalier.ir.types import parse

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 20, 24, 31, 33)
WIDEST, LARGEST = 64, 20_000
"""Channels, and entries of a tensor for each of the batch, that no piece goes beyond."""
EXTENTS = {1: (7, 41), 2: (5, 15), 3: (3, 7)}
"""Positions along each axis of feature maps with so many."""
BATCH = "n"
UNARY = (
    "relu", "sigmoid", "tanh", "gelu", "hard_sigmoid", "hard_swish", "leaky_relu", "elu", "softplus", "softsign",
    "mish", "selu", "celu", "erf", "abs", "neg",
)  # fmt: skip
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Network:
    """A network while it is made: what there is so far, and the pieces that it is made of."""

    rng: np.random.Generator
    batch: int | None
    """None: dynamic."""
    graph: Graph = field(default_factory=Graph)
    maps: list[Value] = field(default_factory=list)
    tokens: list[Value] = field(default_factory=list)
    vectors: list[Value] = field(default_factory=list)
    made_of: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.build = Builder(self.graph)

    def some(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def one(self, choices: Any) -> Any:
        return choices[self.some(0, len(choices) - 1)]

    def weight(self, *shape: int, taps: int = 1) -> Value:
        """Normal numbers that keep a sum of so many products near 1."""
        return self.constant(self.rng.normal(size=shape) / math.sqrt(taps))

    def near(self, middle: float, *shape: int) -> Value:
        return self.constant(middle + self.rng.uniform(-0.3, 0.3, shape))

    def constant(self, array: Any) -> Value:
        return constant_value(np.asarray(array, np.float32))

    def extents(self, *rest: int) -> Any:
        """A shape for Reshape, whose batch stays as it is."""
        return np.array([0, *rest], np.int64)


Piece = Callable[[Network, Value], Value | None]
"""A value of a form → a value of the same form; None where it does not fit."""
OF_MAPS: list[Piece] = []
OF_TOKENS: list[Piece] = []
OF_VECTORS: list[Piece] = []


def _of(*forms: list[Piece], times: int = 1) -> Callable[[Piece], Piece]:
    def register(piece: Piece) -> Piece:
        for form in forms:
            form.extend([piece] * times)
        return piece

    return register


def _positions(x: Value) -> tuple[int, ...]:
    return tuple(int(extent) for extent in x.shape[2:])


def _fits(x: Value) -> bool:
    return math.prod(x.shape[1:]) <= LARGEST


# ---- feature maps ----------------------------------------------------------------------------------------------


def _window(m: Network, x: Value, sizes: tuple[int, ...] = (1, 2, 3, 3, 5)) -> dict[str, tuple[int, ...]] | None:
    """Kernel, strides, dilations and pads for a window over feature maps; None if nothing would be left of them."""
    kernel, strides, dilations, before, after = [], [], [], [], []
    for extent in _positions(x):
        size, dilation = m.one(sizes), m.one((1, 1, 1, 2))
        reach = (size - 1) * dilation
        first = min(m.some(0, reach), size - 1)
        last = min(reach - first if m.some(0, 3) else m.some(0, reach), size - 1)
        if extent + first + last <= reach:
            return None
        kernel.append(size)
        strides.append(m.one((1, 1, 1, 2, 3)) if extent > 6 else 1)
        dilations.append(dilation)
        before.append(first)
        after.append(last)
    return {
        "kernel": tuple(kernel), "strides": tuple(strides), "dilations": tuple(dilations),
        "pads": (*before, *after),
    }  # fmt: skip


@_of(OF_MAPS, times=5)
def convolution(m: Network, x: Value) -> Value | None:
    """Any convolution: grouped, depthwise or neither, dilated, strided, padded unevenly."""
    window, wide = _window(m, x), x.shape[1]
    if window is None:
        return None
    kernel = window.pop("kernel")
    groups = m.one([k for k in range(1, wide + 1) if wide % k == 0] if m.some(0, 2) == 0 else [1, wide])
    if groups == wide and m.some(0, 1):
        out = wide
    else:
        out = groups * m.some(1, max(1, 40 // groups)) if groups > 1 else m.one(CHANNELS)
    if out > WIDEST:
        return None
    taps = wide // groups * math.prod(kernel)
    bias = m.weight(out, taps=4) if m.some(0, 2) else None
    return m.build.conv(x, m.weight(out, wide // groups, *kernel, taps=taps), bias, group=groups, **window)


@_of(OF_MAPS, times=2)
def convolution_block(m: Network, x: Value) -> Value | None:
    """Convolution, batch norm, activation."""
    y = convolution(m, x)
    return None if y is None else function(m, batch_norm(m, y))


@_of(OF_MAPS, times=2)
def inverted_residual(m: Network, x: Value) -> Value | None:
    """1×1 up, depthwise, 1×1 down, and the input added."""
    wide = x.shape[1]
    inner, ones = min(WIDEST, wide * m.some(1, 4)), [1] * len(_positions(x))
    y = m.build.conv(x, m.weight(inner, wide, *ones, taps=wide), m.weight(inner, taps=4))
    y = m.build.clip(y, 0.0, 6.0) if m.some(0, 1) else m.build.hard_swish(y)
    size = m.one((3, 5))
    kernel = [size] * len(ones)
    taps = math.prod(kernel)
    y = m.build.conv(y, m.weight(inner, 1, *kernel, taps=taps), group=inner, pads=[size // 2] * (2 * len(ones)))
    y = m.build.relu(batch_norm(m, y))
    return m.build.add(x, m.build.conv(y, m.weight(wide, inner, *ones, taps=inner), m.weight(wide, taps=4)))


@_of(OF_MAPS)
def bottleneck(m: Network, x: Value) -> Value | None:
    """Two convolutions around an activation, added to the input or to another projection of it."""
    ones, wide, out = [1] * len(_positions(x)), x.shape[1], m.one(CHANNELS)
    three, pads = [3] * len(ones), [1] * (2 * len(ones))
    y = m.build.conv(x, m.weight(out, wide, *three, taps=wide * 3 ** len(ones)), m.weight(out, taps=4), pads=pads)
    y = m.build.relu(y)
    y = m.build.conv(y, m.weight(out, out, *three, taps=out * 3 ** len(ones)), m.weight(out, taps=4), pads=pads)
    skip = x if wide == out else m.build.conv(x, m.weight(out, wide, *ones, taps=wide))
    return m.build.relu(m.build.add(y, skip))


@_of(OF_MAPS)
def transposed_convolution(m: Network, x: Value) -> Value | None:
    wide, rank = x.shape[1], len(_positions(x))
    groups = m.one([k for k in range(1, wide + 1) if wide % k == 0])
    out = m.some(1, max(1, 24 // groups))
    stride, size = m.one((1, 2, 2, 3)), m.one((2, 3, 4))
    weight = m.weight(wide, out, *[size] * rank, taps=max(1, wide // groups * size**rank // stride**rank))
    bias = m.weight(out * groups, taps=4) if m.some(0, 1) else None
    extra = m.some(0, stride - 1)
    return m.build.conv_transpose(
        x, weight, bias, group=groups, strides=[stride] * rank, pads=[m.some(0, 1)] * (2 * rank),
        output_padding=[extra] * rank,
    )  # fmt: skip


@_of(OF_MAPS, OF_VECTORS)
def batch_norm(m: Network, x: Value) -> Value:
    c = x.shape[1]
    return m.build.batch_norm(x, m.near(1, c), m.near(0, c), m.near(0, c), m.near(1, c))


@_of(OF_MAPS)
def group_norm(m: Network, x: Value) -> Value | None:
    c = x.shape[1]
    if m.some(0, 1):
        return m.build.instance_norm(x, m.near(1, c), m.near(0, c))
    groups = m.one([k for k in range(1, c + 1) if c % k == 0])
    return m.build.group_norm(x, m.near(1, c), m.near(0, c), num_groups=groups)


@_of(OF_MAPS, times=2)
def pooling(m: Network, x: Value) -> Value | None:
    window = _window(m, x, (2, 3))
    if window is None:
        return None
    kernel = window.pop("kernel")
    ends = zip(window["pads"], 2 * kernel, strict=True)
    if any(pad >= size for pad, size in ends):
        return None
    kind = m.one(("max_pool", "max_pool", "average_pool", "average_pool", "lp_pool"))
    more = {"count_include_pad": m.some(0, 1)} if kind == "average_pool" else {}
    return getattr(m.build, kind)(x, kernel_shape=kernel, **more, **window)


@_of(OF_MAPS)
def resized(m: Network, x: Value) -> Value | None:
    rank = len(_positions(x))
    if rank == 3:
        kind = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        mode = m.one(("nearest", "linear", "cubic")) if rank == 2 else m.one(("nearest", "linear"))
        ways = ("asymmetric", "half_pixel", "align_corners") if mode != "nearest" else ("asymmetric",)
        kind = {"mode": mode, "coordinate_transformation_mode": m.one(ways)}
        kind |= {"nearest_mode": "floor"} if mode == "nearest" else {}
    scales = np.array([1, 1, *[m.one((2, 2, 1, 3))] * rank], np.float32)
    return m.build.resize(x, None, scales, **kind)


@_of(OF_MAPS, times=2)
def squeeze_and_excite(m: Network, x: Value) -> Value:
    c, ones = x.shape[1], [1] * len(_positions(x))
    if m.some(0, 1):
        y = m.build.global_average_pool(x)
    else:
        y = m.build.reduce_mean(x, np.arange(2, x.rank), keepdims=1)
    inner = m.some(1, 9)
    y = m.build.relu(m.build.conv(y, m.weight(inner, c, *ones, taps=c), m.weight(inner, taps=4)))
    y = m.build.conv(y, m.weight(c, inner, *ones, taps=inner), m.weight(c, taps=4))
    return m.build.mul(x, m.build.sigmoid(y) if m.some(0, 1) else m.build.hard_sigmoid(y))


@_of(OF_MAPS)
def padded(m: Network, x: Value) -> Value | None:
    mode = m.one(("constant", "reflect", "edge"))
    low, high = ([m.some(0, 2) for _ in _positions(x)] for _ in range(2))
    amounts = np.array([0, 0, *low, 0, 0, *high])
    if mode == "constant":
        return m.build.pad(x, amounts, m.constant(m.one((0.0, 0.5))), mode=mode)
    return m.build.pad(x, amounts, mode=mode) if min(_positions(x)) > 2 else None


@_of(OF_MAPS)
def shuffled(m: Network, x: Value) -> Value | None:
    """Groups of channels, transposed."""
    c = x.shape[1]
    groups = m.one([k for k in range(1, c + 1) if c % k == 0])
    y = m.build.reshape(x, m.extents(groups, c // groups, *_positions(x)))
    y = m.build.transpose(y, perm=[0, 2, 1, *range(3, y.rank)])
    return m.build.reshape(y, m.extents(c, *_positions(x)))


@_of(OF_MAPS)
def depth_to_space(m: Network, x: Value) -> Value | None:
    if x.rank != 4:
        return None
    if x.shape[1] % 4 == 0:
        return m.build.depth_to_space(x, blocksize=2, mode=m.one(("DCR", "CRD")))
    even = all(extent % 2 == 0 for extent in _positions(x))
    return m.build.space_to_depth(x, blocksize=2) if even and x.shape[1] * 4 <= WIDEST else None


@_of(OF_MAPS)
def turned(m: Network, x: Value) -> Value | None:
    """Positions in another order."""
    order = [int(axis) for axis in m.rng.permutation(np.arange(2, x.rank))]
    return m.build.transpose(x, perm=[0, 1, *order]) if x.rank > 3 else None


@_of(OF_MAPS)
def statistics(m: Network, x: Value) -> Value:
    """A reduction along the positions or the channels, given back to every entry."""
    kind = m.one(("reduce_mean", "reduce_max", "reduce_min", "reduce_l2", "reduce_log_sum_exp", "reduce_sum"))
    axes = np.arange(2, x.rank) if m.some(0, 1) else np.array([1])
    return m.build.add(x, m.build.tanh(getattr(m.build, kind)(x, axes, keepdims=1)))


# ---- tokens ----------------------------------------------------------------------------------------------------


@_of(OF_TOKENS, OF_VECTORS, times=2)
def linear(m: Network, x: Value) -> Value:
    wide, out = x.shape[-1], m.one(CHANNELS)
    if x.rank == 2 and m.some(0, 1):
        if m.some(0, 1):
            return m.build.gemm(x, m.weight(out, wide, taps=wide), m.weight(out, taps=4), transB=1)
        return m.build.gemm(x, m.weight(wide, out, taps=wide), m.weight(out, taps=4), alpha=0.5, beta=2.0)
    y = m.build.matmul(x, m.weight(wide, out, taps=wide))
    return m.build.add(y, m.weight(out, taps=4)) if m.some(0, 2) else y


@_of(OF_TOKENS, times=3)
def attention(m: Network, x: Value) -> Value:
    """Heads, of which several may share their keys, scaled products, a mask in part, softmax, the input added."""
    positions, wide = x.shape[1:]
    heads, each = m.one((1, 2, 3, 4)), m.one((3, 4, 5, 8))
    split = m.extents(positions, heads, each)
    parts = []
    for _ in range(3):
        part = m.build.matmul(x, m.weight(wide, heads * each, taps=wide))
        if m.some(0, 1):
            part = m.build.add(part, m.weight(heads * each, taps=4))
        parts.append(m.build.transpose(m.build.reshape(part, split), perm=[0, 2, 1, 3]))
    q, k, v = parts
    scores = m.build.matmul(q, m.build.transpose(k, perm=[0, 1, 3, 2]))
    scores = m.build.div(scores, math.sqrt(each)) if m.some(0, 1) else m.build.mul(scores, 1 / math.sqrt(each))
    if m.some(0, 2) == 0:
        scores = m.build.add(scores, m.constant(np.triu(np.full((positions, positions), -1e9), 1)))
    y = m.build.matmul(m.build.softmax(scores, axis=-1), v)
    y = m.build.reshape(m.build.transpose(y, perm=[0, 2, 1, 3]), m.extents(positions, heads * each))
    return m.build.add(x, m.build.matmul(y, m.weight(heads * each, wide, taps=heads * each)))


@_of(OF_TOKENS, times=2)
def feed_forward(m: Network, x: Value) -> Value:
    wide, inner = x.shape[2], m.one(CHANNELS)
    y = layer_norm(m, x)
    y = m.build.add(m.build.matmul(y, m.weight(wide, inner, taps=wide)), m.weight(inner, taps=4))
    y = m.build.gelu(y) if m.some(0, 1) else m.build.mul(y, m.build.sigmoid(y))
    return m.build.add(x, m.build.matmul(y, m.weight(inner, wide, taps=inner)))


@_of(OF_TOKENS)
def layer_norm(m: Network, x: Value) -> Value:
    c = x.shape[-1]
    if m.some(0, 1):
        return m.build.layer_norm(x, m.near(1, c), m.near(0, c), results=1, epsilon=1e-2)
    middle = m.build.sub(x, m.build.reduce_mean(x, np.array([-1]), keepdims=1))
    spread = m.build.reduce_mean(m.build.mul(middle, middle), np.array([-1]), keepdims=1)
    y = m.build.div(middle, m.build.sqrt(m.build.add(spread, 0.01)))
    return m.build.add(m.build.mul(y, m.near(1, c)), m.near(0, c))


@_of(OF_TOKENS)
def recurrence(m: Network, x: Value) -> Value:
    h, both, (gates, kind) = m.some(2, 19), m.some(0, 1), m.one(((4, "lstm"), (3, "gru"), (1, "rnn")))
    wide = x.shape[2]
    weights = [m.weight(1 + both, gates * h, wide, taps=wide), m.weight(1 + both, gates * h, h, taps=h)]
    more = {"linear_before_reset": m.some(0, 1)} if kind == "gru" else {}
    y = getattr(m.build, kind)(
        m.build.transpose(x, perm=[1, 0, 2]), *weights, m.weight(1 + both, 2 * gates * h, taps=4), results=1,
        hidden_size=h, direction="bidirectional" if both else m.one(("forward", "reverse")), **more,
    )  # fmt: skip
    return m.build.reshape(m.build.transpose(y, perm=[2, 0, 1, 3]), m.extents(x.shape[1], (1 + both) * h))


@_of(OF_TOKENS)
def along_time(m: Network, x: Value) -> Value | None:
    """A convolution along the positions."""
    y = convolution(m, m.build.transpose(x, perm=[0, 2, 1]))
    return None if y is None else m.build.transpose(y, perm=[0, 2, 1])


@_of(OF_TOKENS)
def gated(m: Network, x: Value) -> Value:
    """Two projections, one the other's gate."""
    wide, out = x.shape[2], m.one(CHANNELS)
    y = m.build.matmul(x, m.weight(wide, 2 * out, taps=wide))
    a, b = m.build.split(y, axis=2, num_outputs=2, results=2)
    return m.build.mul(a, m.build.sigmoid(b))


@_of(OF_TOKENS)
def mixed(m: Network, x: Value) -> Value:
    """Every position from all of them."""
    positions = x.shape[1]
    return m.build.matmul(m.weight(positions, positions, taps=positions), x)


# ---- every form ------------------------------------------------------------------------------------------------


@_of(OF_MAPS, OF_TOKENS, OF_VECTORS, times=2)
def function(m: Network, x: Value) -> Value:
    kind = m.one((*UNARY, "swish", "clip", "prelu"))
    if kind == "swish":
        return m.build.mul(x, m.build.sigmoid(x))
    if kind == "clip":
        return m.build.clip(x, -0.5, 1.5)
    if kind == "prelu":
        return m.build.prelu(x, m.near(0.3, *(x.shape[1:2] if x.rank < 3 else (x.shape[1], *[1] * (x.rank - 2)))))
    return getattr(m.build, kind)(x)


@_of(OF_MAPS, OF_TOKENS, OF_VECTORS, times=2)
def joined(m: Network, x: Value) -> Value | None:
    """Added to, multiplied with or put beside a value made before."""
    axis = 2 if x.rank == 3 and x in m.tokens else 1
    pool = m.maps if x in m.maps else m.tokens if x in m.tokens else m.vectors
    same = [y for y in pool if y is not x and y.shape == x.shape]
    if same and m.some(0, 2):
        kind = m.one(("add", "add", "mul", "sub", "max"))
        y = m.one(same)
        return getattr(m.build, kind)(x, m.build.sigmoid(y) if kind == "mul" else y)
    rest = [y for y in pool if [e for k, e in enumerate(y.shape) if k != axis] == _without(x, axis)]
    y = m.one(rest or [x])
    return m.build.concat(x, y, axis=axis) if x.shape[axis] + y.shape[axis] <= WIDEST else None


def _without(x: Value, axis: int) -> list[Any]:
    return [extent for k, extent in enumerate(x.shape) if k != axis]


@_of(OF_MAPS, OF_TOKENS, OF_VECTORS)
def parted(m: Network, x: Value) -> Value | None:
    """Split, a part of it through a function, and together again."""
    axis = m.some(1, x.rank - 1)
    if x.shape[axis] < 2:
        return None
    cut = m.some(1, x.shape[axis] - 1)
    a, b = m.build.split(x, np.array([cut, x.shape[axis] - cut]), axis=axis, results=2)
    return m.build.concat(*((function(m, a), b) if m.some(0, 1) else (b, function(m, a))), axis=axis)


@_of(OF_MAPS, OF_TOKENS, OF_VECTORS)
def sliced(m: Network, x: Value) -> Value | None:
    axis = m.some(1, x.rank - 1)
    extent = x.shape[axis]
    if extent < 4:
        return None
    step = m.one((1, 2, -1))
    if step < 0:
        return m.build.slice(x, np.array([-1]), np.array([-(2**62)]), np.array([axis]), np.array([-1]))
    start, end = m.some(0, 2), extent - m.some(0, 1)
    return m.build.slice(x, np.array([start]), np.array([end]), np.array([axis]), np.array([step]))


@_of(OF_MAPS, OF_TOKENS, OF_VECTORS)
def gathered(m: Network, x: Value) -> Value:
    axis = m.some(1, x.rank - 1)
    order = m.rng.integers(0, x.shape[axis], m.some(max(1, x.shape[axis] - 2), x.shape[axis] + 2))
    return m.build.gather(x, order, axis=axis)


@_of(OF_MAPS, OF_TOKENS, OF_VECTORS)
def softmax(m: Network, x: Value) -> Value:
    axis = m.some(1, x.rank - 1)
    return m.build.mul(m.build.softmax(x, axis=axis), float(x.shape[axis]))


@_of(OF_MAPS, OF_TOKENS, OF_VECTORS)
def scaled(m: Network, x: Value) -> Value:
    """Numbers for each channel, or one for all."""
    weight = m.near(1, 1) if m.some(0, 1) else m.near(1, x.shape[1], *[1] * (x.rank - 2))
    kind = m.one(("mul", "add", "sub", "div", "max", "min"))
    return getattr(m.build, kind)(x, weight)


# ---- from form to form -----------------------------------------------------------------------------------------


def tokens_of(m: Network, x: Value) -> Value:
    """Positions of feature maps as tokens."""
    y = m.build.reshape(x, m.extents(x.shape[1], math.prod(_positions(x))))
    return m.build.transpose(y, perm=[0, 2, 1])


def vector_of(m: Network, x: Value) -> Value:
    """All positions as one, in one of the ways that networks have."""
    maps = x in m.maps
    axes = np.arange(2, x.rank) if maps else np.array([1])
    way = m.some(0, 3)
    if way == 0 and math.prod(x.shape[1:]) <= 1000:
        return linear(m, m.build.flatten(x) if m.some(0, 1) else m.build.reshape(x, m.extents(-1)))
    if way == 1 and maps:
        return m.build.flatten(m.build.global_max_pool(x))
    if way == 2 and not maps:
        return m.build.gather(x, np.array(x.shape[1] - 1), axis=1)
    return m.build.reduce_mean(x, axes, keepdims=0)


def network(seed: int) -> tuple[Network, list[Arrays]]:
    """A network, made by that seed alone, and inputs for it: of two batches where the batch is dynamic."""
    rng = np.random.default_rng(seed)
    m = Network(rng, None if rng.integers(4) == 0 else int(rng.integers(1, 4)))
    batch = BATCH if m.batch is None else m.batch
    if m.some(0, 4):
        rank = m.one((1, 2, 2, 2, 3))
        shape = [m.one(CHANNELS[:9]), *(m.some(*EXTENTS[rank]) for _ in range(rank))]
        x = m.build.input(parse(f"f32[{', '.join(map(str, [batch, *shape]))}]"), "image")
        m.maps.append(x)
    else:
        shape = [m.some(2, 19), m.one(CHANNELS[2:])]
        x = m.build.input(parse(f"f32[{', '.join(map(str, [batch, *shape]))}]"), "tokens")
        m.tokens.append(x)
    for form, pieces in ((m.maps, OF_MAPS), (m.tokens, OF_TOKENS), (m.vectors, OF_VECTORS)):
        if x not in form:
            continue
        length = m.some(3, 7) if form is not m.vectors else m.some(0, 3)
        while length:
            piece = m.one(pieces)
            y = piece(m, x if m.some(0, 4) else m.one(form))
            if y is None or not _fits(y):
                continue
            form.append(y)
            m.made_of.append(piece.__name__)
            x, length = y, length - 1
        if form is m.maps and x.rank > 2 and m.some(0, 3) == 0 and math.prod(_positions(x)) <= 200:
            x = tokens_of(m, x)
            m.tokens.append(x)
        elif form is not m.vectors and m.some(0, 1):
            x = vector_of(m, x)
            m.vectors.append(x)
    m.graph.set_outputs([x], ["y"])
    sizes = [m.batch] if m.batch is not None else [1, 3]
    (name,) = (value.name for value in m.graph.inputs)
    return m, [{name: rng.normal(size=(size, *shape)).astype(np.float32)} for size in sizes]
