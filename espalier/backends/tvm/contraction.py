"""Primitives that multiply and add up: matrix products, Einstein sums, convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor, astype, elementwise, primitive, promoted, to_element
from espalier.backends.tvm.broadcasting import broadcast_index, broadcast_shapes
from espalier.backends.tvm.movement import pad, reshape, transpose
from espalier.backends.tvm.numbers import cast_type, expression_type, immediate
from espalier.backends.tvm.reduction import LONG
from espalier.backends.tvm.selection import getitem
from espalier.backends.tvm.tensor import Alias, At, Expr, Fold, Index, Tensor, Untraceable, moved
from espalier.ir import elements
from espalier.ir.dims import Dimension
from espalier.ir.elements import Element


def product_element(kind: Element) -> Element:
    """What products of an element are added up in: integers in their own, which wrap around either way."""
    if kind.is_float and kind.bits < 32:
        return elements.F32
    return elements.I64 if kind.kind == "bool" or kind.bits not in (8, 16, 32, 64) else kind


def _accumulator(kind: Element, count: Dimension) -> str:
    dtype = expression_type(kind)
    return "float64" if dtype == "float32" and not (isinstance(count, int) and count <= 4 * LONG) else dtype


@primitive
def matmul(a: Any, b: Any) -> Tensor:
    """Matrix product over the last two axes, broadcasting the others; narrow floats accumulate in f32."""
    kind = promoted(a, b)
    inner = product_element(kind)
    left, right = as_tensor(to_element(a, inner)), as_tensor(to_element(b, inner))
    drop = []
    if left.ndim == 1:
        left, drop = PRIMITIVES["expand_dims"](left, 0), [-2]
    if right.ndim == 1:
        right, drop = PRIMITIVES["expand_dims"](right, 1), [*drop, -1]
    count = left.shape[-1] if isinstance(left.shape[-1], int) else right.shape[-2]
    if isinstance(left.shape[-1], int) and isinstance(right.shape[-2], int) and left.shape[-1] != right.shape[-2]:
        raise Untraceable(f"matrices of {left.shape} and {right.shape} can't be multiplied")
    lead = broadcast_shapes(left.shape[:-2], right.shape[:-2])
    found = batched(left, right, (*lead, left.shape[-2], right.shape[-1]), count, inner)
    if drop:
        found = PRIMITIVES["squeeze"](found, axis=tuple(axis % (len(lead) + 2) for axis in drop))
    result: Tensor = astype(found, kind)
    return result


def batched(left: Tensor, right: Tensor, shape: Sequence[Dimension], count: Dimension, kind: Element) -> Tensor:
    """The product of two stacks of matrices, whose leading axes broadcast to those of `shape`."""
    shape = tuple(shape)
    from espalier.backends.tvm import bf16, floats, integers

    stack = right.ndim == 2 and len(shape) > 2 and shape[-2] == 1 and left.shape[:-2] == shape[:-2]
    if stack and 0 not in left.shape:
        flat = (*left.shape[:-2], left.shape[-1])  # a stack of rows is a matrix
        rows = moved(Alias(left, flat), [left], lambda sources: Alias(sources[0], flat))
        merged: Tensor = reshape(batched(rows, right, (*shape[:-2], shape[-1]), count, kind), shape)
        return merged

    narrow = integers.matrices(left, right, shape, count)
    if narrow is None:
        narrow = bf16.matrices(left, right, shape)
    if narrow is not None:
        return narrow
    tiled = floats.matrices(left, right, shape, count, kind)
    if tiled is not None:
        return tiled
    state = _accumulator(kind, count)
    lead = shape[:-2]

    def step(at: At, s: Sequence[Expr], index: Index, position: Index) -> Sequence[Expr]:
        first = [*broadcast_index(at, index[:-2], left.shape[:-2], lead), index[-2], position[0]]
        second = [*broadcast_index(at, index[:-2], right.shape[:-2], lead), position[0], index[-1]]
        return [s[0] + cast_type(at(0, first), state) * cast_type(at(1, second), state)]

    dtype = expression_type(kind)
    return Fold(shape, kind, [left, right], ["many", "many"], (count,), [state], lambda: [immediate(0, state)], step,
                lambda at, s: cast_type(s[0], dtype))  # fmt: skip


@primitive
def conv(
    x: Any, w: Any, strides: Sequence[int], pads: Sequence[tuple[int, int]], dilations: Sequence[int], groups: int
) -> Tensor:
    """Cross-correlation: x (n, g·i, …), w (g·o, i, K…) → (n, g·o, P…), without bias."""
    kind = promoted(x, w)
    inner = product_element(kind)
    source = as_tensor(to_element(x, inner))
    weights = as_tensor(to_element(w, inner))
    spatial = source.ndim - 2
    outputs, per_group, kernel = weights.shape[0], weights.shape[1], weights.shape[2:]
    counts = [
        (extent + sum(ends) - dilation * (size - 1) - 1) // stride + 1
        for extent, ends, size, stride, dilation in zip(source.shape[2:], pads, kernel, strides, dilations, strict=True)
    ]
    counts = [max(0, count) if isinstance(count, int) else count for count in counts]
    from espalier.backends.tvm import bf16, floats, integers, packing, winograd

    for narrow in (integers.convolution, bf16.convolution):
        tiled = narrow(source, weights, counts, strides, pads, dilations, groups)
        if tiled is not None:
            summed: Tensor = astype(tiled, kind)
            return summed
    if source.affine is not None or not packing.fits(weights):
        tiled = winograd.convolution(source, weights, counts, strides, pads, dilations, groups, inner)
    if tiled is None:
        tiled = floats.convolution(source, weights, counts, strides, pads, dilations, groups, inner)
    if tiled is not None:
        product: Tensor = astype(tiled, kind)
        return product
    source = pad(source, [(0, 0), (0, 0), *[tuple(pair) for pair in pads]])
    each = outputs // groups
    state = _accumulator(inner, int(np.prod([per_group, *kernel])))

    def step(at: At, s: Sequence[Expr], index: Index, position: Index) -> Sequence[Expr]:
        channel = position[0]
        if groups != 1:
            group = index[1] if each == 1 else index[1] // immediate(each, "int64")
            channel = group if per_group == 1 else group * immediate(per_group, "int64") + channel
        places = []
        for k in range(spatial):
            place = index[2 + k] if strides[k] == 1 else index[2 + k] * immediate(strides[k], "int64")
            offset = position[1 + k] if dilations[k] == 1 else position[1 + k] * immediate(dilations[k], "int64")
            places.append(place + offset)
        one, other = at(0, [index[0], channel, *places]), at(1, [index[1], *position])
        return [s[0] + cast_type(one, state) * cast_type(other, state)]

    dtype = expression_type(inner)
    shape, extents = (source.shape[0], outputs, *counts), (per_group, *kernel)
    found = Fold(shape, inner, [source, weights], ["many", "many"], extents, [state],
                 lambda: [immediate(0, state)], step, lambda at, s: cast_type(s[0], dtype))  # fmt: skip
    pooled: Tensor = astype(found, kind)
    return pooled


@primitive
def einsum(text: str, *arrays: Any) -> Tensor:
    """Einstein summation, as numpy writes it; two operands at a time."""
    terms, _, result = text.replace(" ", "").partition("->")
    inputs = terms.split(",")
    tensors = [as_tensor(array) for array in arrays]
    kind = tensors[0].element
    wide = product_element(kind)
    operands = [astype(tensor, wide) for tensor in tensors]
    ranks = [tensor.ndim - len(each.replace("...", "")) for each, tensor in zip(inputs, operands, strict=True)]
    dots = [
        chr(0x100 + k) for k in range(max([0, *(r for r, each in zip(ranks, inputs, strict=True) if "..." in each)]))
    ]
    inputs = [
        each.replace("...", "".join(dots[len(dots) - r :])) if "..." in each else each
        for each, r in zip(inputs, ranks, strict=True)
    ]
    if "->" not in text:
        letters = "".join(inputs)
        result = "".join(dots) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1 and c not in dots))
    result = result.replace("...", "".join(dots))
    current, tensor = inputs[0], operands[0]
    current, tensor = _diagonal(current, tensor)
    for k in range(1, len(inputs)):
        other, right = _diagonal(inputs[k], operands[k])
        later = "".join(inputs[k + 1 :]) + result
        kept = [c for c in dict.fromkeys(current + other) if c in later]
        tensor = _contract(current, tensor, other, right, kept, wide)
        current = "".join(kept)
    summed = tuple(a for a, c in enumerate(current) if c not in result)
    if summed:
        tensor = PRIMITIVES["sum"](tensor, axis=summed)
        current = "".join(c for c in current if c in result)
    tensor = transpose(tensor, [current.index(c) for c in result])
    made: Tensor = astype(tensor, kind)
    return made


def _diagonal(letters: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Letters that occur twice in one operand: its diagonal."""
    for c in dict.fromkeys(letters):
        while letters.count(c) > 1:
            a, b = letters.index(c), letters.rindex(c)
            tensor = transpose(tensor, [*(k for k in range(tensor.ndim) if k not in (a, b)), a, b])
            extent = tensor.shape[-1]
            if not isinstance(extent, int):
                extent = tensor.shape[-2]
            flat = reshape(tensor, (*tensor.shape[:-2], tensor.shape[-2] * tensor.shape[-1]))
            tensor = getitem(flat, (Ellipsis, slice(0, None, extent + 1)))
            letters = "".join(x for k, x in enumerate(letters) if k not in (a, b)) + c
    return letters, tensor


def _contract(a: str, left: Tensor, b: str, right: Tensor, kept: list[str], kind: Element) -> Any:
    extents = {c: e for letters, t in ((a, left), (b, right)) for c, e in zip(letters, t.shape, strict=True)}
    extents |= {c: e for letters, t in ((a, left), (b, right)) for c, e in zip(letters, t.shape, strict=True) if e != 1}
    summed = [c for c in dict.fromkeys(a + b) if c not in kept]
    shape = tuple(extents[c] for c in kept)
    if not summed:
        spread = [_spread(letters, t, kept) for letters, t in ((a, left), (b, right))]
        return elementwise(kind, lambda at, x, y: x * y, *spread)
    batch = [c for c in kept if c in a and c in b]
    rows, columns = [c for c in kept if c in a and c not in b], [c for c in kept if c in b and c not in a]
    both = [c for c in summed if c in a and c in b]
    if both == summed and all(left.shape[a.index(c)] == right.shape[b.index(c)] for c in [*batch, *both]):
        first = transpose(left, [a.index(c) for c in [*batch, *rows, *summed]])
        second = transpose(right, [b.index(c) for c in [*batch, *summed, *columns]])
        groups = [[extents[c] for c in letters] for letters in (batch, rows, summed, columns)]
        n, i, s, o = (_product(group) for group in groups)
        found = batched(
            reshape(first, (*groups[0], i, s)), reshape(second, (*groups[0], s, o)), (*groups[0], i, o), s, kind
        )
        del n
        found = reshape(found, (*groups[0], *groups[1], *groups[3]))
        order = [*batch, *rows, *columns]
        return transpose(found, [order.index(c) for c in kept])
    state = _accumulator(kind, 0)

    def place(letters: str, tensor: Tensor, index: Index, position: Index) -> list[Expr]:
        where = dict(zip([*kept, *summed], [*index, *position], strict=True))
        return [immediate(0, "int64") if e == 1 else where[c] for c, e in zip(letters, tensor.shape, strict=True)]

    def step(at: At, s: Sequence[Expr], index: Index, position: Index) -> Sequence[Expr]:
        x, y = at(0, place(a, left, index, position)), at(1, place(b, right, index, position))
        return [s[0] + cast_type(x, state) * cast_type(y, state)]

    dtype = expression_type(kind)
    return Fold(shape, kind, [left, right], ["many", "many"], tuple(extents[c] for c in summed), [state],
                lambda: [immediate(0, state)], step, lambda at, s: cast_type(s[0], dtype))  # fmt: skip


def _product(extents: Sequence[Dimension]) -> Dimension:
    from espalier.ir import dims

    return dims.product(extents)


def _spread(letters: str, tensor: Tensor, kept: Sequence[str]) -> Any:
    order = [c for c in kept if c in letters]
    tensor = transpose(tensor, [letters.index(c) for c in order])
    shape = [tensor.shape[order.index(c)] if c in order else 1 for c in kept]
    return reshape(tensor, shape)
