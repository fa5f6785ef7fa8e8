"""Operators that a version of the operator set lacks, by a few that it has.

ONNX defines most of them by function bodies too, which the exporter falls back to; those spell out every cast and every
constant. These rules say the same in as few nodes as there are, so that an operator that passes recognised costs no
more than what the model came with.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from espalier.backends.onnx.printer import CannotPrint, print_node
from espalier.ir import Graph, Node, Value
from espalier.ir.clone import clone
from espalier.ir.elements import BOOL, F32
from espalier.ir.op import Op
from espalier.ir.ops import (
    Attention,
    Gelu,
    Gru,
    HardSwish,
    LayerNorm,
    Lstm,
    Mish,
    Recurrent,
    RmsNorm,
    Rnn,
    Swish,
)
from espalier.passes.base import BITEXACT, REASSOCIATES, Context, parse_spec
from espalier.passes.rewrite import Replacement, RewritePass, Rewriter, RewriteRule, rewrite
from espalier.passes.rules.attention import sees_something
from espalier.passes.rules.matching import splat


@rewrite(Gelu, semantics=REASSOCIATES)
def lower_gelu(node: Node, rewriter: Rewriter) -> Replacement:
    """x·½·(1 + erf(x/√2)); the approximation as x·sigmoid(2·√(2/π)·(x + 0.044715·x³)), which is the same."""
    x = node.operand(0)
    if node.approximate == "none":
        gate = rewriter.add(rewriter.erf(rewriter.mul(x, math.sqrt(0.5))), 1.0)
        return rewriter.mul(rewriter.mul(x, 0.5), gate)
    slope = 2 * math.sqrt(2 / math.pi)
    factor = rewriter.add(rewriter.mul(rewriter.mul(x, x), 0.044715 * slope), slope)
    return rewriter.mul(x, rewriter.sigmoid(rewriter.mul(x, factor)))


@rewrite(Swish, semantics=REASSOCIATES)
def lower_swish(node: Node, rewriter: Rewriter) -> Replacement:
    """x·sigmoid(alpha·x)."""
    x = node.operand(0)
    scaled = x if node.alpha == 1 else rewriter.mul(x, node.alpha)
    return rewriter.mul(x, rewriter.sigmoid(scaled))


@rewrite(HardSwish, semantics=REASSOCIATES)
def lower_hard_swish(node: Node, rewriter: Rewriter) -> Replacement:
    """x·hard_sigmoid(x)."""
    x = node.operand(0)
    return rewriter.mul(x, rewriter.hard_sigmoid(x, alpha=1 / 6, beta=0.5))


@rewrite(Mish, semantics=REASSOCIATES)
def lower_mish(node: Node, rewriter: Rewriter) -> Replacement:
    """x·tanh(softplus(x))."""
    x = node.operand(0)
    return rewriter.mul(x, rewriter.tanh(rewriter.softplus(x)))


@rewrite(RmsNorm, semantics=REASSOCIATES)
def lower_rms_norm(node: Node, rewriter: Rewriter) -> Replacement:
    """x / √(mean(x²) + ε) · scale."""
    x = widened(node.x, rewriter)
    made = narrowed(rewriter.div(x, root_mean_square(x, node, rewriter)), node.x, rewriter)
    return made if splat(node.scale) == 1 else rewriter.mul(made, node.scale)


@rewrite(LayerNorm, semantics=REASSOCIATES)
def lower_layer_norm(node: Node, rewriter: Rewriter) -> Replacement:
    """(x − mean) / √(mean((x − mean)²) + ε) · scale + shift."""
    x = widened(node.x, rewriter)
    rewriter.require(len(node.results) == 1, "its statistics are used")
    centred = rewriter.sub(x, rewriter.reduce_mean(x, trailing(node, rewriter)))
    made = narrowed(rewriter.div(centred, root_mean_square(centred, node, rewriter)), node.x, rewriter)
    made = made if splat(node.scale) == 1 else rewriter.mul(made, node.scale)
    return made if node.shift is None else rewriter.add(made, node.shift)


@rewrite(Attention, semantics=REASSOCIATES)
def lower_attention(node: Node, rewriter: Rewriter) -> Replacement:
    """softmax(q·kᵀ·scale + mask)·v, for as many key heads as query heads and nothing else asked for."""
    q, k, v = node.q, node.k, node.v
    plain = node.op.replace(scale=None) == Attention() and not any(result.uses for result in node.results[1:])
    rewriter.require(plain and all(operand is None for operand in node.operands[4:]), "it does more")
    rewriter.require(q.rank == 4 and q.shape[1] == k.shape[1] and isinstance(q.shape[3], int), "heads are shared")
    mask: Value | None = node.attn_mask
    scale = node.scale if node.scale is not None else q.shape[3] ** -0.5
    scores = rewriter.matmul(rewriter.mul(q, scale) if scale != 1 else q, rewriter.transpose(k, perm=(0, 1, 3, 2)))
    if mask is not None:
        rewriter.require(
            mask.element in (BOOL, q.element) and mask.shape[-1] == k.shape[2], "the mask is short or narrow"
        )
        scores = rewriter.where(mask, scores, -math.inf) if mask.element == BOOL else rewriter.add(scores, mask)
    weights = rewriter.softmax(scores)
    if mask is not None and not sees_something(mask):  # where nothing is seen, attention gives zero
        weights = rewriter.where(rewriter.is_nan(weights), 0.0, weights)
    return [rewriter.matmul(weights, v), *[None] * (len(node.results) - 1)]


@rewrite((Lstm, Gru, Rnn), semantics=BITEXACT)
def put_time_first(node: Node, rewriter: Rewriter) -> Replacement:
    """Transposes around a recurrent layer that has the batch first, which onnxruntime lacks."""
    rewriter.require(node.layout == 1, "time comes first already")
    operands = list(node.operands)
    for position in (0, 5, 6):  # x and the initial states
        if position < len(operands) and operands[position] is not None:
            operands[position] = rewriter.transpose(operands[position], perm=(1, 0, 2))
    made = rewriter.node(node.op.replace(layout=0), operands, results=len(node.results))
    y, *states = made.results
    return [rewriter.transpose(y, perm=(2, 0, 1, 3)), *(rewriter.transpose(each, perm=(1, 0, 2)) for each in states)]


def widened(x: Value, rewriter: Rewriter) -> Value:
    """x in f32 if it is narrower: statistics are taken in f32."""
    return rewriter.cast(x, to=F32) if x.element.bits < 32 else x


def narrowed(made: Value, x: Value, rewriter: Rewriter) -> Value:
    """What was made of widened x in x's own element."""
    return rewriter.cast(made, to=x.element) if made.element != x.element else made


def trailing(node: Node, rewriter: Rewriter) -> Any:
    """The axes that a norm takes its statistics over."""
    rewriter.require(node.x.rank is not None, "the rank is not known")
    return np.arange(node.axis % node.x.rank - node.x.rank, 0)


def root_mean_square(x: Value, norm: Node, rewriter: Rewriter) -> Value:
    """√(mean(x²) + ε) over the axes of a norm."""
    mean = rewriter.reduce_mean(rewriter.mul(x, x), trailing(norm, rewriter))
    made: Value = rewriter.sqrt(rewriter.add(mean, norm.epsilon))
    return made


LOWERINGS = (
    lower_gelu, lower_swish, lower_hard_swish, lower_mish, lower_rms_norm, lower_layer_norm, lower_attention,
)  # fmt: skip


def for_onnxruntime(graph: Graph) -> None:
    """Write in place what ONNX has but onnxruntime lacks."""
    if any(isinstance(node.op, Recurrent) and node.layout for each in graph.all_graphs() for node in each):
        _pass_of(put_time_first).run(graph, Context())


def lowered(graph: Graph, version: int) -> Graph:
    """The graph without the operators above that a version of ai.onnx lacks: a copy, or itself if it has none."""
    found = _first_nodes(graph)
    rules = tuple(
        rule
        for rule in LOWERINGS
        if any(rule.matches(kind) and not _printable(node, version) for kind, node in found.items())
    )
    if not rules:
        return graph
    copy, context = clone(graph), Context()
    for each in (_pass_of(*rules), parse_spec("simplify"), parse_spec("common_subexpressions")):
        each.run(copy, context)
    return copy


def _pass_of(*rules: RewriteRule) -> RewritePass:
    made: type[RewritePass] = type("lower", (RewritePass,), {"rules": rules})
    return made()


def _first_nodes(graph: Graph) -> dict[type[Op], Node]:
    """The first node of each operator class."""
    found: dict[type[Op], Node] = {}
    for each in graph.all_graphs():
        for node in each:
            found.setdefault(type(node.op), node)
    return found


def _printable(node: Node, version: int) -> bool:
    try:
        print_node(node, version)
    except CannotPrint:
        return False
    return True
