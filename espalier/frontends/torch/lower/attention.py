"""Scaled dot-product attention."""

from __future__ import annotations

import math
from typing import Any

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope
from espalier.frontends.torch.tensors import number
from espalier.ir import dims
from espalier.ir.elements import BOOL, I32
from espalier.ir.graph import Value


@lowers("aten.scaled_dot_product_attention.default")
def attention(
    s: Scope, q: Value, k: Value, v: Value, mask: Value | None = None, dropout: float = 0.0, causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Value:  # fmt: skip
    """q (…, L, E), k (…, S, E), v (…, S, Ev); the default scale 1/√E is made a number here."""
    if dropout > 0:
        s.refuse("dropout is active; call module.eval() first")
    width = s.shape_of(q)[-1]
    if scale is None and not isinstance(width, int):
        s.refuse("a default scale for a dynamic width", code="E405")
    factor = 1 / math.sqrt(width) if scale is None else float(scale)
    ranks = {s.rank_of(x) for x in (q, k, v)}
    same_batch = s.shape_of(q)[:-3] == s.shape_of(k)[:-3] == s.shape_of(v)[:-3]
    grouped = s.shape_of(q)[-3:-2] == s.shape_of(k)[-3:-2] or enable_gqa
    if ranks == {4} and same_batch and grouped and not (causal and mask is not None):
        if mask is not None and s.rank_of(mask) > 4:
            s.refuse("a mask of more axes than the scores")
        if mask is None:
            return s.b.attention(q, k, v, is_causal=int(causal), scale=factor)
        mask = mask if mask.element == BOOL else s.cast(mask, q.element)
        return sighted(s, s.b.attention(q, k, v, mask, scale=factor), mask)
    return written_out(s, q, k, v, mask, causal, factor, enable_gqa)


def sighted(s: Scope, out: Value, mask: Value) -> Value:
    """Zero where the mask hides every key, as in torch; by the formula, that would be NaN."""
    axes = s.sizes([-1])
    if mask.element == BOOL:
        if mask.constant is not None and bool(mask.array.any(-1).all()):
            return out
        return s.b.where(s.cast(s.b.reduce_max(s.cast(mask, I32), axes), BOOL), out, s.zero_like(out))
    low = number(-math.inf, mask.element)
    return s.b.where(s.b.equal(s.b.reduce_max(mask, axes), low), s.zero_like(out), out)


def written_out(
    s: Scope, q: Value, k: Value, v: Value, mask: Value | None, causal: bool, scale: float, enable_gqa: bool
) -> Value:
    """The same as products and a softmax, for other ranks and batches that broadcast."""
    if enable_gqa:
        k, v = (_repeated(s, x, s.shape_of(q)[-3]) for x in (k, v))
    scores = s.b.matmul(s.b.mul(q, number(scale, q.element)), s.swap(k, -1, -2))
    low = number(-math.inf, q.element)
    if causal:
        rows, columns = s.arange(s.shape_of(q)[-2]), s.arange(s.shape_of(k)[-2])
        seen = s.b.less_or_equal(columns, s.unsqueeze(rows, 1))
        scores = s.b.where(seen, scores, low)
    if mask is not None:
        scores = s.b.where(mask, scores, low) if mask.element == BOOL else s.b.add(scores, s.cast(mask, q.element))
    out = s.b.matmul(s.b.softmax(scores, axis=-1), v)
    return out if mask is None else sighted(s, out, mask)


def _repeated(s: Scope, x: Value, heads: Any) -> Value:
    """Each head of a key or value, as many times as queries share it."""
    *lead, own, length, width = s.shape_of(x)
    times = dims.floor_divide(heads, own)
    spread = s.expand(s.unsqueeze(x, len(lead) + 1), (*lead, own, times, length, width))
    return s.reshape(spread, (*lead, heads, length, width))


@lowers("aten._scaled_dot_product_flash_attention_for_cpu.default")
def flash_attention(
    s: Scope, q: Value, k: Value, v: Value, dropout: float = 0.0, causal: bool = False, attn_mask: Value | None = None,
    scale: float | None = None,
) -> tuple[Value, ...]:  # fmt: skip
    if s.used(1):
        s.refuse("the statistics of the softmax")
    return (attention(s, q, k, v, attn_mask, dropout, causal, scale),)
