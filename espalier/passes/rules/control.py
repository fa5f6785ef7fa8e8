"""Control flow that is decided at compile time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from espalier.ir import Graph, Node, Value, constant_value
from espalier.ir.clone import Copies, clone
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
    copies, absent = Copies(), set[Value]()
    for value, argument in zip(region.inputs, arguments, strict=True):
        if argument is None:
            absent.add(value)
        else:
            copies[value] = argument
    for inner in region:
        operands = [None if operand is None or operand in absent else copies[operand] for operand in inner.operands]
        regions = [clone(each) for each in inner.regions]
        made = rewriter.node(inner.op, operands, results=len(inner.results), regions=regions)
        made.location = inner.location
        copies.update(zip(inner.results, made.results, strict=True))
    return [copies[output] for output in region.outputs if output not in absent]


inline_regions = group(
    "inline_regions", [inline_decided_if, inline_single_pass], "Inline branches and loops that are decided beforehand."
)
