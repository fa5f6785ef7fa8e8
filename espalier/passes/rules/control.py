"""Control flow that is decided at compile time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from espalier.ir import Graph, Node, Value, constant_value
from espalier.ir.clone import clone
from espalier.ir.ops import If, Loop
from espalier.passes.rewrite import Replacement, Rewriter, group, rewrite
from espalier.passes.rules.matching import numbers


@rewrite(If)
def inline_decided_if(node: Node, rewriter: Rewriter) -> Replacement:
    """A branch whose condition is known stands in the place of the choice."""
    condition = numbers(node.cond) or rewriter.why("the condition is not known")
    return inlined(node.then_branch if condition[0] else node.else_branch, node.captures, rewriter)


@rewrite(Loop)
def inline_single_pass(node: Node, rewriter: Rewriter) -> Replacement:
    """A loop of exactly one pass that stacks nothing is its body."""
    allowed = node.cond is None or numbers(node.cond) == [1]
    rewriter.require(numbers(node.trip_count) == [1] and allowed, "it is not known to make one pass")
    rewriter.require(len(node.results) == node.carried, "it stacks results")
    first = [constant_value(np.array(0, np.int64)), constant_value(np.array(True))]
    return inlined(node.body, [*first, *node.values], rewriter)[1:]


def inlined(region: Graph, arguments: Sequence[Value | None], rewriter: Rewriter) -> list[Value]:
    """The outputs of a region, its nodes copied to where the rewriter stands."""
    place = dict(zip(region.inputs, arguments, strict=True))
    for inner in region:
        operands = [None if operand is None else place.get(operand, operand) for operand in inner.operands]
        copies = [clone(each) for each in inner.regions]
        made = rewriter.node(inner.op, operands, results=len(inner.results), regions=copies)
        place.update(zip(inner.results, made.results, strict=True))
    outputs = [place.get(output, output) for output in region.outputs]
    return [output for output in outputs if output is not None]


inline_regions = group(
    "inline_regions", [inline_decided_if, inline_single_pass], "Inline branches and loops that are decided beforehand."
)
