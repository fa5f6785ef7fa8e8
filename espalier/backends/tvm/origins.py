"""Which nodes of the graph a kernel computes, and how much work that is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from espalier.backends.tvm.products import Plan
from espalier.backends.tvm.tensor import Constant, Input, Product, Program, Tensor
from espalier.cost.count import macs
from espalier.ir.graph import Node


def computed(roots: Sequence[Tensor], stored: Collection[Tensor]) -> list[Tensor]:
    """What a kernel computes: the roots, and all that it takes and no other kernel stores; operands first."""
    found: dict[Tensor, None] = {}
    stack = [(root, False) for root in roots]
    while stack:
        tensor, done = stack.pop()
        if done:
            found[tensor] = None
        elif tensor not in found:
            stack.append((tensor, True))
            inner = () if isinstance(tensor, Program) else tensor.operands
            stack += [(each, False) for each in inner if each not in stored and not isinstance(each, Constant | Input)]
    return list(found)


def describe(kernels: Sequence[Sequence[Tensor]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """For each kernel, by what it computes and the bytes that it reads and writes, as plain JSON values:

    `nodes`: operator, name and source line of each, in order; `macs`: the multiply–accumulates that its nodes are
    defined by, each counted in the kernel that does most of its work, None if unknown; `element`: in which those are
    done; `bytes`.
    """
    nodes = [_finished(kernel) for kernel in kernels]
    homes: dict[Node, tuple[int, int]] = {}
    for number, kernel in enumerate(kernels):
        for tensor in kernel:
            if tensor.node is not None and (tensor.node not in homes or tensor.cost > homes[tensor.node][0]):
                homes[tensor.node] = tensor.cost, number
    found = []
    for number, (kernel, size) in enumerate(zip(kernels, sizes, strict=True)):
        counts = [macs(node) for node in nodes[number] if homes[node][1] == number]
        total = sum(count for count in counts if isinstance(count, int))
        found.append({
            "nodes": [_node(node) for node in nodes[number]],
            "macs": total if all(isinstance(count, int) for count in counts) else None,
            "element": _element(kernel), "bytes": size,
        })  # fmt: skip
    return found


def _finished(kernel: Sequence[Tensor]) -> list[Node]:
    """The nodes that a kernel computes, in the order in which they are finished."""
    last_first = dict.fromkeys(tensor.node for tensor in reversed(kernel) if tensor.node is not None)
    return list(last_first)[::-1]


def _node(node: Node) -> dict[str, str]:
    place = node.location
    return {"operator": node.op.name, "name": "+".join(place.names), "source": "; ".join(place.lines)}


def _element(kernel: Sequence[Tensor]) -> str | None:
    """The element that a kernel multiplies in; None if it computes nothing."""
    products = [tensor for tensor in kernel if isinstance(tensor, Product)]
    narrow = [each.plan.element for each in products if isinstance(each.plan, Plan) and each.plan.element]
    return narrow[-1] if narrow else str((products or kernel)[-1].element) if kernel else None
