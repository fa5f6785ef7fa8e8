"""Matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope
from espalier.frontends.torch.tensors import number
from espalier.ir import dims
from espalier.ir.elements import I32, I64
from espalier.ir.graph import Value, constant_value


def matmul(s: Scope, a: Value, b: Value) -> Value:
    """Matrix product like numpy's; small integers go through wider ones, which wrap to the same result."""
    if a.element.kind in ("int", "uint", "bool") and a.element not in (I32, I64):
        return s.cast(s.b.matmul(s.cast(a, I32), s.cast(b, I32)), a.element)
    return s.b.matmul(a, b)


def transposed(s: Scope, w: Value) -> Value:
    """The last two axes exchanged; of a constant as a view of the same memory."""
    rank = s.rank_of(w)
    perm = [*range(rank - 2), rank - 1, rank - 2]
    if w.constant is not None:
        return constant_value(w.constant.transpose(perm), name=f"{w.name}.T" if w.name else "")
    return s.transpose(w, perm)


@lowers(
    "aten.mm.default",
    "aten.bmm.default",
    "aten.matmul.default",
    "aten.mv.default",
    "aten.dot.default",
    "aten.vdot.default",
    "aten.linalg_matmul.default",
)
def product(s: Scope, a: Value, b: Value, *_: Any) -> Value:
    return matmul(s, a, b)


@lowers("aten.linear.default")
def linear(s: Scope, x: Value, weight: Value, bias: Value | None = None) -> Value:
    if s.rank_of(x) == 2 and s.rank_of(weight) == 2 and bias is not None and x.element.is_float:
        return s.b.gemm(x, weight, bias, transB=1)
    if s.rank_of(weight) == 1:
        y = matmul(s, x, weight)
    else:
        y = matmul(s, x, transposed(s, weight))
    return y if bias is None else s.b.add(y, bias)


@lowers("aten.addmm.default")
def addmm(s: Scope, c: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    if a.element.is_float:
        return s.b.gemm(a, b, c, alpha=float(alpha), beta=float(beta))
    return _added(s, c, matmul(s, a, b), beta, alpha)


@lowers("aten.baddbmm.default", "aten.addmv.default", "aten.addbmm.default")
def batched_addmm(s: Scope, c: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    y = matmul(s, a, b)
    if "addbmm" in str(s.node.target) and "baddbmm" not in str(s.node.target):
        y = s.b.reduce_sum(y, s.sizes([0]), keepdims=0)
    return _added(s, c, y, beta, alpha)


def _added(s: Scope, c: Value, y: Value, beta: Any, alpha: Any) -> Value:
    if alpha != 1:
        y = s.b.mul(y, s.number(alpha, y.element))
    if beta == 0:
        return y
    return s.b.add(c if beta == 1 else s.b.mul(c, s.number(beta, c.element)), y)


@lowers("aten.addr.default")
def outer_sum(s: Scope, c: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    return _added(s, c, s.b.mul(s.unsqueeze(a, 1), b), beta, alpha)


@lowers("aten.einsum.default")
def einsum(s: Scope, equation: str, operands: Sequence[Value], path: Any = None) -> Value:
    text = equation.replace(" ", "")
    if s.element.is_float or s.element in (I32, I64):
        return s.b.einsum(*operands, subscripts=text)
    return s.cast(s.b.einsum(*(s.cast(x, I32) for x in operands), subscripts=text), s.element)


@lowers("aten._grouped_mm.default")
def grouped_matmul(
    s: Scope, a: Value, b: Value, offsets: Value | None = None, bias: Value | None = None, out_dtype: Any = None
) -> Value:
    """Rows of `a` are in groups that end at `offsets`; each group has its own matrix of `b` (groups, in, out).

    Every row meets every matrix, and those of other groups are dropped: right for any offsets, at the cost of the
    number of groups.
    """
    if offsets is None and s.rank_of(a) == 3 and s.rank_of(b) == 3:
        return s.cast(matmul(s, a, b), s.element)
    if offsets is None or s.rank_of(a) != 2 or s.rank_of(b) != 3:
        s.refuse("grouped products other than of rows in groups")
    return s.cast(grouped_rows(s, a, b, offsets), s.element)


@lowers("transformers.grouped_mm_fallback.default")
def grouped_matmul_of_transformers(s: Scope, a: Value, b: Value, offsets: Value) -> Value:
    """What the transformers package calls where torch's own grouped product can't be traced."""
    return grouped_rows(s, a, b, offsets)


def grouped_rows(s: Scope, a: Value, b: Value, offsets: Value) -> Value:
    """a (rows, in), b (groups, in, out), offsets (groups): → (rows, out); rows after the last group are zero."""
    rows, groups = s.shape_of(a)[0], s.shape_of(b)[0]
    row = s.unsqueeze(s.arange(rows), 1)
    group = s.b.reduce_sum(s.cast(s.b.less_or_equal(s.cast(offsets, I64), row), I64), s.sizes([1]), keepdims=0)
    member = s.b.equal(s.unsqueeze(s.arange(groups), 1), group)  # (groups, rows)
    every = s.b.matmul(s.unsqueeze(a, 0), b)  # (groups, rows, out)
    kept = s.b.where(s.unsqueeze(member, 2), every, s.zero_like(every))
    return s.b.reduce_sum(kept, s.sizes([0]), keepdims=0)


@lowers("aten.tensordot.default")
def tensordot(s: Scope, a: Value, b: Value, axes_a: Sequence[int], axes_b: Sequence[int]) -> Value:
    rank_a, rank_b = s.rank_of(a), s.rank_of(b)
    over_a, over_b = [s.axis(k, rank_a) for k in axes_a], [s.axis(k, rank_b) for k in axes_b]
    kept_a = [k for k in range(rank_a) if k not in over_a]
    kept_b = [k for k in range(rank_b) if k not in over_b]
    size = dims.product(s.shape_of(a)[k] for k in over_a)
    left = s.reshape(s.transpose(a, [*kept_a, *over_a]), (dims.product(s.shape_of(a)[k] for k in kept_a), size))
    right = s.reshape(s.transpose(b, [*over_b, *kept_b]), (size, dims.product(s.shape_of(b)[k] for k in kept_b)))
    return s.reshape(matmul(s, left, right), s.shape)


@lowers("aten.linalg_det.default", "aten._linalg_det.default", "aten.det.default")
def determinant(s: Scope, x: Value) -> Any:
    found = s.b.det(x)
    if "_linalg_det" in str(s.node.target):
        if s.used(1) or s.used(2):
            s.refuse("the factors of the decomposition")
        return found, x, x
    return found


@lowers("aten._cdist_forward.default")
def distances(s: Scope, a: Value, b: Value, p: float, compute_mode: Any = None) -> Value:
    """p-norms of the differences of all rows of a (…, n, d) and b (…, m, d)."""
    rank = s.rank_of(a)
    difference = s.b.abs(s.b.sub(s.unsqueeze(a, rank - 1), s.unsqueeze(b, s.rank_of(b) - 2)))
    return row_norms(s, difference, p)


def row_norms(s: Scope, x: Value, p: float) -> Value:
    """p-norms of non-negative numbers along the last axis."""
    axes = s.sizes([-1])
    if p == 0:
        return s.b.reduce_sum(s.cast(s.b.greater(x, s.zero_like(x)), x.element), axes, keepdims=0)
    simple = {1: "reduce_l1", 2: "reduce_l2", math.inf: "reduce_max"}.get(p)
    if simple is not None:
        return getattr(s.b, simple)(x, axes, keepdims=0)
    powers = s.b.reduce_sum(s.b.pow(x, number(p, x.element)), axes, keepdims=0)
    return s.b.pow(powers, number(1 / p, x.element))


@lowers("aten._pdist_forward.default")
def pairwise_distances(s: Scope, x: Value, p: float = 2) -> Value:
    """The distances of each row to those after it, as one vector."""
    rows = s.shape_of(x)[0]
    if not isinstance(rows, int):
        s.refuse("distances within a dynamic number of rows", code="E405")
    first, second = np.triu_indices(rows, 1)
    a, b = (s.b.gather(x, constant_value(index.astype(np.int64)), axis=0) for index in (first, second))
    return row_norms(s, s.b.abs(s.b.sub(a, b)), p)


@lowers("aten._trilinear.default")
def trilinear(
    s: Scope, a: Value, b: Value, c: Value, expand_a: Sequence[int], expand_b: Sequence[int], expand_c: Sequence[int],
    sums: Sequence[int], unroll: int = 1,
) -> Value:  # fmt: skip
    """The sum over axes of the product of three tensors, each with axes inserted: one einsum."""
    rank = s.rank_of(a) + len(expand_a)
    letters = "abcdefghijklmnopqrstuvwxyz"[:rank]
    texts = [
        "".join(x for k, x in enumerate(letters) if k not in inserted) for inserted in (expand_a, expand_b, expand_c)
    ]
    result = "".join(letter for k, letter in enumerate(letters) if k not in sums)
    return s.b.einsum(a, b, c, subscripts=f"{','.join(texts)}->{result}")
