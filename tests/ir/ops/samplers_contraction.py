"""Samples of sums of products: matrix products, convolutions, recurrent layers, attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from espalier.ir.elements import I8, U8
from espalier.ir.ops.attention import Attention
from espalier.ir.ops.contraction import Det, Einsum, Gemm, MatMul, MatMulInteger
from espalier.ir.ops.convolution import Conv, ConvInteger, ConvTranspose
from espalier.ir.ops.recurrent import Gru, Lstm, Recurrent, Rnn
from espalier.ir.ops.vision import DeformConv
from tests.ir.ops.samples import Sample, extent, sampler, values

Generator = np.random.Generator


def maybe(rng: Generator, made: Any) -> Any:
    """The operand, or nothing."""
    return made if rng.random() < 0.6 else None


def batches(rng: Generator) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast, and what they broadcast to."""
    wide = tuple(extent(rng) for _ in range(int(rng.integers(0, 3))))
    sides = []
    for _ in range(2):
        kept = wide[int(rng.integers(0, len(wide) + 1)) :]
        sides.append(tuple(1 if rng.random() < 0.2 else size for size in kept))
    return sides[0], sides[1], np.broadcast_shapes(*sides)


@sampler("matmul")
def matmul(rng: Generator) -> Sample:
    m, k, n = extent(rng), extent(rng), extent(rng)
    left, right, _ = batches(rng)
    a = (k,) if rng.random() < 0.2 else (*left, m, k)
    b = (k,) if rng.random() < 0.2 else (*right, k, n)
    return Sample(MatMul(), [values(rng, a), values(rng, b)])


@sampler("gemm")
def gemm(rng: Generator) -> Sample:
    m, k, n = extent(rng), extent(rng), extent(rng)
    op = Gemm(transA=int(rng.integers(2)), transB=int(rng.integers(2)), alpha=0.5, beta=2.0)
    a, b = (k, m) if op.transA else (m, k), (n, k) if op.transB else (k, n)
    c = [(), (1,), (n,), (m, 1), (1, n), (m, n), (1, 1)][rng.integers(7)]
    return Sample(op, [values(rng, a), values(rng, b), maybe(rng, values(rng, c))], macs=m * k * n)


@sampler("det")
def det(rng: Generator) -> Sample:
    n = extent(rng)
    return Sample(Det(), [values(rng, (*batches(rng)[0], n, n))])


@sampler("einsum")
def einsum(rng: Generator) -> Sample:
    i, j, k, n = (extent(rng) for _ in range(4))
    cases: list[tuple[str, list[tuple[int, ...]], int]] = [
        ("ij,jk->ik", [(i, j), (j, k)], i * j * k),
        ("ij , jK", [(i, j), (j, k)], i * j * k),
        ("nij,nkj->nik", [(n, i, j), (n, k, j)], n * i * j * k),
        ("...ij,...jk->...ik", [(n, i, j), (2, 1, j, k)], 2 * n * i * j * k),
        ("ij,kj,nj->ikn", [(i, j), (k, j), (n, j)], i * j * k * n),
        ("ij->ji", [(i, j)], i * j),
        ("ij->", [(i, j)], i * j),
        ("...i,...i->...", [(n, k, i), (n, k, i)], n * k * i),
    ]
    text, shapes, macs = cases[rng.integers(len(cases))]
    return Sample(Einsum(subscripts=text), [values(rng, shape) for shape in shapes], macs=macs)


@sampler("matmul_integer")
def matmul_integer(rng: Generator) -> Sample:
    m, k, n = extent(rng), extent(rng), extent(rng)
    left, right, wide = batches(rng)
    rows = [(), (1,), (m,), (*left, m, 1)][rng.integers(4)]
    columns = [(), (1,), (n,), (*right, 1, n)][rng.integers(4)]
    operands = [values(rng, (*left, m, k), U8), values(rng, (*right, k, n), I8)]
    if rng.random() < 0.7:
        operands += [values(rng, rows, U8), values(rng, columns, I8)]
    return Sample(MatMulInteger(), operands, macs=math.prod(wide) * m * k * n)


def window(rng: Generator, spatial: int) -> dict[str, Any]:
    """Strides, pads and dilations of a window."""
    return {
        "strides": tuple(int(s) for s in rng.integers(1, 3, spatial)) if rng.random() < 0.7 else (),
        "pads": tuple(int(p) for p in rng.integers(0, 2, 2 * spatial)) if rng.random() < 0.5 else (),
        "dilations": tuple(int(d) for d in rng.integers(1, 3, spatial)) if rng.random() < 0.5 else (),
    }


def images(rng: Generator) -> tuple[int, int, int, int, tuple[int, ...], tuple[int, ...]]:
    """Batch, groups, channels per group in and out, extents, kernel extents."""
    spatial = int(rng.integers(1, 3))
    kernel = tuple(extent(rng, 1, 3) for _ in range(spatial))
    return extent(rng, 1), extent(rng, 1, 3), extent(rng, 1), extent(rng, 1), (6, 7)[:spatial], kernel


@sampler("conv")
def conv(rng: Generator) -> Sample:
    n, g, i, o, extents, kernel = images(rng)
    options = window(rng, len(extents))
    if rng.random() < 0.2:
        options = {"strides": options["strides"], "auto_pad": ["SAME_UPPER", "SAME_LOWER", "VALID"][rng.integers(3)]}
    op = Conv(group=g, **options)
    counts = [op.window_extent(axis, extents[axis], kernel[axis]) for axis in range(len(extents))]
    macs = n * g * i * o * math.prod(kernel) * math.prod(int(count) for count in counts)
    x, w = (n, g * i, *extents), (g * o, i, *kernel)
    return Sample(op, [values(rng, x), values(rng, w), maybe(rng, values(rng, (g * o,)))], macs=macs)


@sampler("conv_integer")
def conv_integer(rng: Generator) -> Sample:
    floats = conv(rng)
    x, w = (values(rng, operand.shape, element) for operand, element in zip(floats.operands[:2], (U8, I8), strict=True))
    zero_points = [values(rng, (), U8), values(rng, [(), (1,), (w.shape[0],)][rng.integers(3)], I8)]
    operands = [x, w, *(zero_points if rng.random() < 0.7 else [])]
    return Sample(ConvInteger(**floats.op.attributes), operands, macs=floats.macs)


@sampler("conv_transpose")
def conv_transpose(rng: Generator) -> Sample:
    n, g, i, o, _, kernel = images(rng)
    spatial = len(kernel)
    extents, options = (3, 4)[:spatial], window(rng, spatial)
    if rng.random() < 0.3:
        options["output_padding"] = (1,) * spatial
    if rng.random() < 0.3:
        options |= {"pads": (), "output_shape": (7, 9)[:spatial], "strides": (2,) * spatial}
    elif rng.random() < 0.3:
        options |= {"pads": (), "auto_pad": ["SAME_UPPER", "SAME_LOWER"][rng.integers(2)]}
    op = ConvTranspose(group=g, **options)
    macs = n * g * i * o * math.prod(extents) * math.prod(kernel)
    x, w = (n, g * i, *extents), (g * i, o, *kernel)
    return Sample(op, [values(rng, x), values(rng, w), maybe(rng, values(rng, (g * o,)))], macs=macs)


@sampler("deform_conv")
def deform_conv(rng: Generator) -> Sample:
    n, g, i, o, groups = extent(rng, 1, 2), extent(rng, 1, 2), extent(rng), extent(rng), 1
    if rng.random() < 0.5:
        groups = g * i
    op = DeformConv(group=g, offset_group=groups, **window(rng, 2))
    counts = [int(op.window_extent(axis, size, 2)) for axis, size in enumerate((5, 6))]
    offset, mask = values(rng, (n, groups * 8, *counts)), values(rng, (n, groups * 4, *counts))
    operands = [values(rng, (n, g * i, 5, 6)), values(rng, (g * o, i, 2, 2)), offset]
    operands += [maybe(rng, values(rng, (g * o,))), maybe(rng, mask)]
    return Sample(op, operands, macs=n * g * i * o * 4 * math.prod(counts))


def recurrent(rng: Generator, kind: type[Recurrent], states: int, **attributes: Any) -> Sample:
    t, b, i, h = extent(rng), extent(rng), extent(rng), extent(rng)
    direction = ["forward", "reverse", "bidirectional"][rng.integers(3)]
    layout, n, rows = int(rng.integers(2)), 2 if direction == "bidirectional" else 1, kind.gates * h
    batch_first = layout == 1
    operands: list[Any] = [values(rng, (b, t, i) if batch_first else (t, b, i))]
    operands += [values(rng, (n, rows, i)), values(rng, (n, rows, h)), maybe(rng, values(rng, (n, 2 * rows)))]
    operands.append(maybe(rng, rng.integers(1, t + 1, b).astype(np.int32)))
    operands += [maybe(rng, values(rng, (b, n, h) if batch_first else (n, b, h))) for _ in range(states)]
    if kind is Lstm:
        operands.append(maybe(rng, values(rng, (n, 3 * h))))
    op = kind(direction=direction, layout=layout, hidden_size=maybe(rng, h), clip=maybe(rng, 1.5), **attributes)
    return Sample(op, operands, int(rng.integers(1, len(kind.results) + 1)), macs=t * b * n * rows * (i + h))


@sampler("rnn")
def rnn(rng: Generator) -> Sample:
    return recurrent(rng, Rnn, 1)


@sampler("gru")
def gru(rng: Generator) -> Sample:
    return recurrent(rng, Gru, 1, linear_before_reset=int(rng.integers(2)))


@sampler("lstm")
def lstm(rng: Generator) -> Sample:
    return recurrent(rng, Lstm, 2, input_forget=int(rng.integers(2)))


@sampler("attention")
def attention(rng: Generator) -> Sample:
    b, g, r, s, t, d, v = (extent(rng, 1, 3) for _ in range(7))
    flat, past = rng.random() < 0.5, extent(rng, 1, 3) if rng.random() < 0.4 else 0
    heads = {"q_num_heads": g * r, "kv_num_heads": g} if flat else {}
    shapes = [(b, g * r, s, d), (b, g, t, d), (b, g, t, v)]
    if flat:
        shapes = [(b, s, g * r * d), (b, t, g * d), (b, t, g * v)]
    keys = t + past
    masks = [(keys,), (s, keys), (1, keys), (g * r, 1, keys), (b, 1, s, keys), (b, g * r, s, keys)]
    mask = values(rng, masks[rng.integers(len(masks))])
    operands: list[Any] = [values(rng, shape) for shape in shapes]
    operands.append(maybe(rng, mask if rng.random() < 0.5 else mask < 1))
    if past:
        operands += [values(rng, (b, g, past, d)), values(rng, (b, g, past, v))]
    elif rng.random() < 0.3:
        operands += [None, None, rng.integers(1, t + 1, b)]
    op = Attention(
        scale=maybe(rng, 0.7), softcap=2.0 if rng.random() < 0.3 else 0.0, is_causal=int(rng.integers(2)),
        left_window_size=int(rng.integers(-1, 2)), qk_matmul_output_mode=int(rng.integers(4)), **heads,
    )  # fmt: skip
    return Sample(op, operands, int(rng.integers(1, 5)), macs=b * g * r * s * keys * (d + v))
