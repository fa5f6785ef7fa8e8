"""Counts that follow from axis declarations and types alone: multiply–accumulates, and bytes touched."""

from __future__ import annotations

from espalier.ir import dims, elements
from espalier.ir.dims import Dimension
from espalier.ir.graph import Graph, Node
from espalier.ir.inference import type_context
from espalier.ir.types import TensorType, Type


def macs(node: Node, graph: Graph | None = None) -> Dimension | None:
    """Multiply–accumulates of a node, by its operator: the product of the iteration extents if it contracts, else 0.

    A padded position counts like any other. None if the axes are not known (an operand of unknown rank).
    """
    owner = graph or node.graph
    if owner is None:
        raise ValueError(f"{node} stands in no graph")
    return node.op.macs(type_context(owner, node))


def operand_bytes(node: Node) -> Dimension | None:
    """Bytes of all operands and results of a node, packed, each as often as it is listed. None for unknown ranks."""
    total: Dimension = 0
    for value in (*node.inputs, *node.results):
        size = packed_bytes(value.type)
        if size is None:
            return None
        total = total + size
    return total


def packed_bytes(type: Type) -> Dimension | None:
    """Bytes of a tensor of this type without gaps; None for an unknown rank, and for what is no tensor."""
    if not isinstance(type, TensorType) or type.shape is None:
        return None
    element, size = type.element.storage, type.size
    if isinstance(size, int):
        return elements.packed_bytes(element, size)
    return dims.ceil_divide(size * element.bits, 8)
