"""Narrower floats where products are taken."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from espalier.cost.count import macs
from espalier.errors import InputError
from espalier.ir import Builder, Graph, Node, Value, constant_value, elements
from espalier.ir.constants import Constant, computed
from espalier.ir.dims import substitute, symbols
from espalier.ir.ops import Attention, Cast, Conv, MatMul
from espalier.ir.ops.recurrent import Recurrent
from espalier.ir.zeros import PRODUCTS
from espalier.passes.base import Context, Pass, approximates, graph_pass
from espalier.passes.noise import spare

LARGE = 32
"""Rows and columns of a product of two activations from which on these are rounded."""
LONG = 16
"""Multiplications for each entry of such a product."""


@graph_pass("mixed_precision", semantics=approximates("rounding to bf16", math.inf))
class MixedPrecision(Pass):
    """Round what layers with constant weights multiply to bf16; they add up, and all else is computed, in f32.

    So are large matrices that are both activations, and the queries and keys of attention, but not its other product.
    Each rounded tensor becomes a cast to bf16 and back, which everything that reads it reads (but for layers that are
    left in f32), so that it need not be kept in f32 too.

    Attributes:
        sqnr: ratio of signal to noise, in decibels, that every output keeps on the first samples of the data, or on
            made-up inputs without. Layers whose rounding disturbs the outputs most stay in f32, those that take few
            multiplications first. None rounds all.
    """

    sqnr: float | None = None

    def __post_init__(self) -> None:
        wanted: Any = self.sqnr
        if isinstance(wanted, bool) or not isinstance(wanted, int | float | None) or not math.isfinite(wanted or 0):
            raise InputError("E201", f"sqnr={wanted} is no number of decibels")

    def run(self, graph: Graph, context: Context) -> int:
        layers, spared = _layers(graph), frozenset[int]()
        if self.sqnr is not None and not layers:
            context.details = _details([], [], math.inf)
        elif self.sqnr is not None:
            narrowed: dict[Constant, Constant] = {}  # one for all copies of the graph that are tried

            def change(copy: Graph, positions: Collection[int]) -> None:
                _round_layers(copy, positions, narrowed)

            spared, ratio = spare(graph, [_gain(node) for node in layers], change, self.sqnr, context)
            context.details = _details([layers[k] for k in sorted(spared)], layers, ratio)
        return _round_layers(graph, [k for k in range(len(layers)) if k not in spared], {}, context)


def _layers(graph: Graph) -> list[Node]:
    """The nodes that multiply something that can be rounded, in order."""
    return [node for each in graph.all_graphs() for node in each if _factors(node)]


def _work(node: Node) -> float:
    """Multiply–accumulates, for extents of 1 where they vary."""
    count = macs(node)
    if not isinstance(count, int):
        count = 1 if count is None else substitute(count, dict.fromkeys(symbols(count), 1))
    return max(1.0, float(count)) if isinstance(count, int) else 1.0


def _gain(node: Node) -> float:
    """What rounding a layer gains: its work, and little of it where f32 has Winograd's way of fewer multiplications."""
    op = node.op
    few = isinstance(op, Conv) and op.group == 1 and {*(op.strides or ()), *(op.dilations or ())} <= {1}
    return _work(node) / (8 if few and node.operand(1).shape[2:] == (3, 3) else 1)


def _round_layers(
    graph: Graph, positions: Collection[int], narrowed: dict[Constant, Constant], context: Context | None = None
) -> int:
    """Round what the layers at these positions multiply, for all but the other layers; the number of tensors."""
    layers = _layers(graph)
    spared = set(layers) - {layers[k] for k in positions}
    factors: dict[tuple[Graph, Value], None] = {}
    for k in positions:
        owner = layers[k].graph
        assert owner is not None
        factors.update(((owner, value), None) for value in _factors(layers[k]))
    for each in graph.all_graphs():
        each.renumber()
    for count, (owner, value) in enumerate(factors):
        if context is not None and not context.may_rewrite():
            return count
        _round(owner, value, spared, narrowed)
    return len(factors)


def _details(spared: Sequence[Node], layers: Sequence[Node], ratio: float) -> dict[str, Any]:
    """What stays in f32, for the report."""
    share = sum(map(_work, spared)) / sum(map(_work, layers)) if layers else 0.0
    names = [node.results[0].name or node.op.name for node in spared]
    said = "no output moves" if ratio == math.inf else f"{ratio:.1f} dB"
    line = f"{len(spared)} of {len(layers)} layers stay in f32, {share:.1%} of the multiplications: {said}"
    return {
        "layers": len(layers), "in_f32": names, "share_in_f32": round(share, 4),
        "sqnr": None if ratio == math.inf else ratio, "summary": [line],
    }  # fmt: skip


def _factors(node: Node) -> list[Value]:
    """The operands in f32 that a node multiplies, if all but one are constant, or none of large matrices is.

    Those that are rounded already are left out. A recurrent layer multiplies its input by one matrix, and its state,
    which is not rounded, by another. Of attention these are queries and keys.
    """
    recurrent, attention = node.is_a(Recurrent), node.is_a(Attention)
    multiplies = attention or (node.op.contracts and node.op.zero in PRODUCTS)
    if not recurrent and (not multiplies or len(node.results) != 1):
        return []
    found = [value for value in node.operands[: 3 if recurrent else 2] if value is not None]
    if any(value.element != elements.F32 for value in found):
        return []
    weighted = not attention and [_origin(value).is_constant for value in found].count(False) == 1
    if not weighted and not _large(node):
        return []
    return [value for value in found if _origin(value) is value]


def _large(node: Node) -> bool:
    """Whether a node multiplies two activations, stacks of matrices that are known to be large enough.

    Attention with further keys before these, or whose keys do not all count, is not looked into.
    """
    attention = node.is_a(Attention)
    if not attention and not node.is_a(MatMul):
        return False
    a, b, *more = node.operands
    if any(value is not None for value in more[2:]):
        return False
    if a is None or b is None or a.rank is None or b.rank is None or min(a.rank, b.rank) < 2:
        return False
    if _origin(a).is_constant or _origin(b).is_constant:
        return False
    heads = (node.op.q_num_heads or 1) if isinstance(node.op, Attention) and a.rank == 3 else 1
    extents = ((a.shape[-2], LARGE), (a.shape[-1], LONG * heads), (b.shape[-2 if attention else -1], LARGE))
    return all(isinstance(extent, int) and extent >= least for extent, least in extents)


def _origin(value: Value) -> Value:
    """What a value is rounded from; itself if it is not rounded."""
    wide = value.defined_by(Cast)
    return wide.operand(0) if wide is not None and wide.operand(0).element == elements.BF16 else value


def _round(graph: Graph, value: Value, spared: Collection[Node], narrowed: dict[Constant, Constant]) -> None:
    """Let the nodes of a graph that read a value read it rounded, but for those that are spared."""
    users = [node for node in value.users if node.graph is graph and node not in spared]
    if value.producer is not None:
        after, location = value.producer.next, value.producer.location
    else:
        after = min(users, key=lambda node: node.position) if value.is_constant else graph.first
        location = (after or users[0]).location
    builder = Builder(graph, after, location.touched("mixed_precision"))
    if value.constant is None:
        narrow = builder.cast(value, to=elements.BF16)
    else:
        if value.constant not in narrowed:
            narrowed[value.constant] = _narrowed(value.constant)
        narrow = constant_value(narrowed[value.constant], name=value.name)
    wide = builder.cast(narrow, to=elements.F32)
    for node in users:
        for position, operand in enumerate(node.operands):
            if operand is value:
                graph.set_operand(node, position, wide)


def _narrowed(constant: Constant) -> Constant:
    return computed(lambda: constant.array.astype(elements.BF16.dtype), elements.BF16, constant.shape)
