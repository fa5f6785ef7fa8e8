"""Tied weights on their way out: a weight that is also read transposed is written once."""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_lowercase

from espalier.ir import Builder, Graph, Node, Value
from espalier.ir.clone import clone
from espalier.ir.elements import F32, F64
from espalier.ir.ops import MatMul

EINSUM_SINCE = 12
"""The version of ai.onnx that brought Einsum."""


def share_tied_weights(graph: Graph, version: int) -> Graph:
    """The graph with each product x·Wᵀ as an Einsum of x and W, where W itself is used too (a copy; else as it is).

    An embedding that also makes the logits is the common case. As MatMul, it would need a second copy of the weight.
    """
    if version < EINSUM_SINCE or not any(_tied(graph)):
        return graph
    copy = clone(graph)
    for node, whole in list(_tied(copy)):
        x = node.operand(0)
        lead = ascii_lowercase[: (x.rank or 1) - 1]
        made = Builder(copy, node, node.location).einsum(x, whole, subscripts=f"{lead}y,zy->{lead}z")
        copy.replace(node.results[0], made)
        copy.erase(node)
    return copy


def _tied(graph: Graph) -> Iterator[tuple[Node, Value]]:
    """Products by a transposed matrix that only they use so, and the constant of which it is the transpose."""
    by_source: dict[int, list[Value]] = {}
    for value in graph.constants():
        if value.constant is not None and value.rank == 2:
            by_source.setdefault(id(value.constant.source), []).append(value)
    for values in by_source.values():
        for value in values:
            whole = next((other for other in values if _is_transpose(value, other)), None)
            users = [user for user in value.uses if isinstance(user, Graph) or user.graph is graph]
            if whole is not None and all(_replaceable(user, value) for user in users):
                for user in users:
                    assert isinstance(user, Node)
                    yield user, whole


def _is_transpose(value: Value, whole: Value) -> bool:
    mine, other = value.constant, whole.constant
    if mine is None or other is None or mine.element != other.element or not mine.views:
        return False
    last, rest = mine.views[-1], mine.views[:-1]
    return last.kind == "transpose" and last.arguments[0] == (1, 0) and rest == other.views


def _replaceable(user: Node | Graph, value: Value) -> bool:
    """Whether a use is a product that Einsum can say, in an element for which runtimes have it."""
    if isinstance(user, Graph) or not user.is_a(MatMul) or user.operands[1] is not value or value is user.operands[0]:
        return False
    x = user.operand(0)
    return x.rank is not None and 1 <= x.rank <= 8 and x.element in (F32, F64)
