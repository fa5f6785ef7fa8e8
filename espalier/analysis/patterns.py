"""What kind of work a node is, read off its operator's axis declaration."""

from __future__ import annotations

from enum import Enum

from espalier.ir import Graph, Node
from espalier.ir.axes import parse
from espalier.ir.inference import type_context
from espalier.ir.op import Op, TypeInferenceError


class Pattern(Enum):
    """Kinds of work, as they matter for fusing."""

    ELEMENTWISE = "elementwise"
    """Each result element depends on the operand elements at the same (broadcast) index only."""
    MOVEMENT = "movement"
    """Elements come out as they went in, at other places."""
    REDUCTION = "reduction"
    """Statistics or sums over axes."""
    CONTRACTION = "contraction"
    """Sums of products: convolutions and matrix products."""
    OTHER = "other"


def is_elementwise(op: Op | type[Op]) -> bool:
    """Whether each result element depends on the operand elements at the same (broadcast) index only."""
    if op.axes is None:
        return False
    operands, results = parse(op.axes)
    return all(len(axes) == 1 and axes[0].kind == "broadcast" for axes in (*operands, *results))


def has_windows(op: Op | type[Op]) -> bool:
    """Whether windows slide over an operand, as its declaration says: a kernel of one position is one, too."""
    return op.axes is not None and any(axis.kind == "window" for axes in parse(op.axes)[0] for axis in axes)


def pattern(graph: Graph, node: Node) -> Pattern:
    """The kind of work of a node."""
    op = node.op
    if op.moves:
        return Pattern.MOVEMENT
    if is_elementwise(op):
        return Pattern.ELEMENTWISE
    if op.contracts:
        return Pattern.CONTRACTION
    try:
        equation = op.equation(type_context(graph, node, fresh=lambda: "unknown"))
    except TypeInferenceError:
        return Pattern.OTHER
    if equation is not None and (equation.normalized or equation.contracted()):
        return Pattern.REDUCTION
    return Pattern.OTHER
