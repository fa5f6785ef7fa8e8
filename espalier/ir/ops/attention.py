"""Scaled dot-product attention."""

from __future__ import annotations

import math
from typing import Any

from espalier.ir import dims, elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension, Shape
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, Out, TypeContext, op
from espalier.ir.ops.contraction import beside, unknown_broadcasts
from espalier.ir.terms import pin, product


@op("attention", onnx="Attention")
class Attention(Op):
    """softmax(q·kᵀ·scale + bias)·v by heads, query heads sharing key heads evenly; ONNX Attention.

    q (batch, heads, queries, head), k and v (batch, key heads, keys, head), or all three (batch, positions, heads·head)
    with the numbers of heads as attributes. `past_key` and `past_value` stand before the keys and values, and come back
    with them as `present_key` and `present_value` (batch, key heads, past + keys, head). `attn_mask` broadcasts to
    (batch, heads, queries, past + keys); if its last axis is shorter, the rest is masked. `nonpad_kv_seqlen` (batch)
    says how many keys count. `qk_matmul_output` holds the scores: raw, capped, with bias, or after softmax, by mode 0
    to 3. Narrow floats are rounded at the end only.
    """

    q: In
    k: In
    v: In
    attn_mask: In | None
    past_key: In | None
    past_value: In | None
    nonpad_kv_seqlen: In | None
    out: Out
    present_key: Out | None
    present_value: Out | None
    qk_matmul_output: Out | None
    is_causal: int = 0
    kv_num_heads: int | None = None
    left_window_size: int = -1
    q_num_heads: int | None = None
    qk_matmul_output_mode: int = 0
    right_window_size: int = -1
    scale: float | None = None
    softcap: float = 0.0
    softmax_precision: Element | None = None

    contracts = True
    normalizes = ("t", "p")

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        return states[2] is True and (not ctx.has("past_value") or states[5] is True)

    def equation(self, ctx: TypeContext) -> Equation | None:
        ranks = [ctx.rank(position) for position in range(3)]
        if None in ranks:
            return None
        if ranks[0] not in (3, 4) or len(set(ranks)) > 1:
            ctx.fail(f"attention takes three operands of rank 3, or three of rank 4, not of ranks {ranks}")
        if ctx.has("past_key") != ctx.has("past_value"):
            ctx.fail("past keys and past values come together")
        if ctx.has("past_key") and ctx.has("nonpad_kv_seqlen"):
            ctx.fail("nonpad_kv_seqlen is for keys that are kept outside, past_key for those kept inside")
        known: dict[str, Dimension] = {}
        if ranks[0] == 3:
            if not self.q_num_heads or not self.kv_num_heads or self.q_num_heads % self.kv_num_heads:
                ctx.fail(f"{self.q_num_heads} query heads can't share {self.kv_num_heads} key heads")
            known = {"g": self.kv_num_heads, "r": self.q_num_heads // self.kv_num_heads}
            parts, y = ["b s (g r d)", "b t (g d)", "b t (g v)"], "b s (g r v)"
        else:
            parts, y = ["b (g r) s d", "b g t d", "b g t v"], "b (g r) s v"
        keys = "[p + t]" if ctx.has("past_key") else "t"
        parts += [self._mask(ctx, keys), "b g p d", "b g p v", "b"]
        results = [y, f"b g {keys} d", f"b g {keys} v", f"b (g r) s {keys}"]
        found = self.declared(ctx, f"{', '.join(parts)} -> {', '.join(results)}", known)
        if found is None:
            return None
        unknown_broadcasts(found)
        if 0 in (found.letters["g"][0].extent, found.letters["r"][0].extent):
            ctx.fail("there are no heads")
        if self.is_causal or self.left_window_size >= 0 or self.right_window_size >= 0 or ctx.has("nonpad_kv_seqlen"):
            for letter in "stp":
                for variable in found.letters.get(letter, []):
                    pin(variable, "positions")
        if self.scale is None:
            pin(found.letters["d"][0], "the scale of the scores follows from it")
        for variable in found.letters.get("m", []):
            pin(variable, "a mask that is shorter than the keys")
        if ranks[0] == 3:
            heads, share = found.letters["g"][0], found.letters["r"][0]
            found.bound.update({"kv_num_heads": heads, "q_num_heads": product(heads, share)})
        return found

    def _mask(self, ctx: TypeContext, keys: str) -> str:
        """The axes of the mask: aligned at the right, 1 where it broadcasts."""
        shape = ctx.shape("attn_mask") if ctx.has("attn_mask") else None
        if shape is None:
            return "_"
        if not 1 <= len(shape) <= 4:
            ctx.fail(f"the mask has rank {len(shape)}")
        whole = _key_count(ctx, len(ctx.shape("q") or ()))
        axes = ["b", "(g r)", "s"][4 - len(shape) :]
        q = ctx.shape("q") or ()
        heads = q[1] if len(q) == 4 else self.q_num_heads or 1
        wide = (*q[:1], heads, *q[-2 if len(q) == 4 else 1 :][:1])[4 - len(shape) :]
        axes = [beside(axis, extent, full) for axis, extent, full in zip(axes, shape, wide, strict=False)]
        return " ".join([*axes, keys if shape[-1] == whole else "m"])

    def macs(self, ctx: TypeContext) -> Dimension | None:
        found = self.equation(ctx)
        if found is None:
            return None
        extent: dict[str, Dimension] = {letter: variables[0].extent for letter, variables in found.letters.items()}
        keys = extent["t"] + extent.get("p", 0)
        return dims.product(extent[letter] for letter in "bgrs") * keys * (extent["d"] + extent["v"])

    def reference(
        self,
        xp: Any,
        q: Any,
        k: Any,
        v: Any,
        attn_mask: Any = None,
        past_key: Any = None,
        past_value: Any = None,
        nonpad_kv_seqlen: Any = None,
    ) -> Any:
        kind, flat = xp.element(q), q.ndim == 3
        if flat:
            q, k, v = (
                _split_heads(xp, array, heads)
                for array, heads in ((q, self.q_num_heads), (k, self.kv_num_heads), (v, self.kv_num_heads))
            )
        past = 0
        if past_key is not None:
            past = past_key.shape[2]
            k, v = xp.concat([past_key, k], axis=2), xp.concat([past_value, v], axis=2)
        present_key, present_value = k, v
        share = q.shape[1] // k.shape[1]
        if share > 1:
            k, v = xp.repeat(k, share, axis=1), xp.repeat(v, share, axis=1)

        factor = math.sqrt(self.scale if self.scale is not None else q.shape[3] ** -0.5)
        scores = xp.matmul(xp.wide(q) * factor, xp.transpose(xp.wide(k) * factor, (0, 1, 3, 2)))
        shown = [scores]
        if self.softcap:
            scores = self.softcap * xp.tanh(scores / self.softcap)
        shown.append(scores)
        bias = self._bias(xp, scores, attn_mask, past, nonpad_kv_seqlen)
        if bias is not None:
            scores = scores + bias
        shown.append(scores)
        if self.softmax_precision is not None:
            scores = xp.wide(xp.astype(scores, self.softmax_precision))
        weights = xp.softmax(scores, -1)
        if bias is not None:
            masked = xp.max(bias, axis=-1, keepdims=True) == -math.inf
            weights = xp.where(masked, xp.zeros_like(weights), weights)
        if self.softmax_precision is not None:
            weights = xp.astype(weights, self.softmax_precision)
        shown.append(weights)
        values = xp.wide(v)
        y = xp.astype(xp.matmul(xp.astype(weights, xp.element(values)), values), kind)
        if flat:
            y = xp.transpose(y, (0, 2, 1, 3))
            y = xp.reshape(y, (y.shape[0], y.shape[1], y.shape[2] * y.shape[3]))
        return y, present_key, present_value, xp.astype(shown[self.qk_matmul_output_mode], kind)

    def _bias(self, xp: Any, scores: Any, attn_mask: Any, past: int, nonpad_kv_seqlen: Any) -> Any:
        """What is added to the scores: −∞ where a key may not be seen. None if nothing is."""
        queries, keys = scores.shape[2:]
        zero = xp.zeros((), xp.element(scores))
        never = zero - math.inf
        bias = None
        if attn_mask is not None:
            missing = keys - attn_mask.shape[-1]
            if xp.element(attn_mask) == elements.BOOL:
                allowed = xp.pad(attn_mask, [(0, 0)] * (attn_mask.ndim - 1) + [(0, missing)], "constant", False)
                bias = xp.where(allowed, zero, never)
            else:
                added = xp.astype(attn_mask, xp.element(scores))
                added = xp.pad(added, [(0, 0)] * (added.ndim - 1) + [(0, missing)], "constant", -math.inf)
                bias = added
        windowed = self.is_causal or self.left_window_size >= 0 or self.right_window_size >= 0
        if nonpad_kv_seqlen is None and not windowed:
            return bias
        column = xp.reshape(xp.arange(keys), (1, 1, 1, keys))
        place = xp.reshape(xp.arange(queries), (1, 1, queries, 1)) + past
        seen = []
        if nonpad_kv_seqlen is not None:
            count = xp.reshape(xp.astype(nonpad_kv_seqlen, elements.I64), (-1, 1, 1, 1))
            place = place + count - queries
            seen.append(column < count)
        if self.is_causal:
            seen.append(column <= place)
        if self.left_window_size >= 0:
            seen.append(column >= place - self.left_window_size)
        if self.right_window_size >= 0:
            seen.append(column <= place + self.right_window_size)
        for allowed in seen:
            bias = xp.where(allowed, zero if bias is None else bias, never)
        return bias


def _key_count(ctx: TypeContext, rank: int) -> Dimension | None:
    """Past keys and keys together."""
    k: Shape = ctx.shape("k") or ()
    past = ctx.shape("past_key") if ctx.has("past_key") else None
    count = k[1 if rank == 3 else 2]
    return count if past is None else count + past[2]


def _split_heads(xp: Any, array: Any, heads: Any) -> Any:
    """(batch, positions, heads·head) as (batch, heads, positions, head)."""
    batch, positions, hidden = array.shape
    return xp.transpose(xp.reshape(array, (batch, positions, heads, hidden // heads)), (0, 2, 1, 3))
