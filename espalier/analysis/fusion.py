"""Fusion regions: which nodes one kernel should compute together.

A region has at most one anchor (a contraction or a reduction); the elementwise nodes that follow it on the same
elements join it, and so do elementwise nodes that feed only it. A region depends on regions before it alone, so that
there is never a circle.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from espalier.analysis.patterns import Pattern, pattern
from espalier.ir import Graph, Node, Value


@dataclass
class Region:
    """Nodes that one kernel computes, in order; `anchor` is the contraction or reduction among them, if any."""

    nodes: list[Node] = field(default_factory=list)
    anchor: Node | None = None


def fusion_regions(graph: Graph) -> list[Region]:
    """The regions of a graph, in the order of their first nodes. Every node is in exactly one."""
    regions: list[Region] = []
    home: dict[Node, int] = {}
    for node in graph:
        kind = pattern(graph, node)
        joined = None
        if kind is Pattern.ELEMENTWISE:
            joined = _epilogue(node, home, regions)
        elif kind in (Pattern.CONTRACTION, Pattern.REDUCTION):
            joined = _prologue(node, home, regions)
        if joined is None:
            joined = len(regions)
            regions.append(Region())
        region = regions[joined]
        region.nodes.append(node)
        if kind in (Pattern.CONTRACTION, Pattern.REDUCTION):
            region.anchor = node
        home[node] = joined
    return regions


def _epilogue(node: Node, home: dict[Node, int], regions: list[Region]) -> int | None:
    """The region that ends with a producer whose result nobody else needs and that has the same shape."""
    for value in node.inputs:
        if value.has_one_use and value.shape == node.results[0].shape and _ends(value, home, regions):
            candidate = home[value.producer]  # type: ignore[index]  # _ends has looked
            if _after(node, candidate, home):
                return candidate
    return None


def _prologue(node: Node, home: dict[Node, int], regions: list[Region]) -> int | None:
    """The region of elementwise nodes alone that feeds only this anchor, through its first operand."""
    first: Value | None = node.operands[0] if node.operands else None
    if first is None or not first.has_one_use or not _ends(first, home, regions):
        return None
    candidate = home[first.producer]  # type: ignore[index]  # _ends has looked
    return candidate if regions[candidate].anchor is None and _after(node, candidate, home) else None


def _ends(value: Value, home: dict[Node, int], regions: list[Region]) -> bool:
    """Whether a value is made by the last node of a region, and not by moving elements."""
    producer = value.producer
    return producer is not None and not producer.op.moves and producer is regions[home[producer]].nodes[-1]


def _after(node: Node, candidate: int, home: dict[Node, int]) -> bool:
    """Whether all operands of a node come from the candidate or from regions before it."""
    return all(home[v.producer] <= candidate for v in node.inputs if v.producer is not None)
