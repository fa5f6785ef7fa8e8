"""Where onnxruntime may differ, and is not wrong or not by our doing: ties of top-k, and its sigmoid.

Another run may pick, or order, other elements than ours, and everything behind them differs.
Elements that are equal but for rounding come out of a top-k in any order. `given_choices` takes the indices that
onnxruntime picked as given, computes the rest from there, and says whether the picked elements are as large as those
that the reference picks, so that neither is wrong. onnxruntime's sigmoid in float32 is a rational function, off by up
to 1e-7 of 1: by percents where the result is small. `with_exponentials` writes the formula in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.ir import Builder, Graph, Value
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.ir.ops.activations import Sigmoid
from espalier.ir.ops.sorting import TopK

TIE = 1e-5
"""How far, relative to the largest element, a picked element may be from the one that belongs there."""


def choices(graph: Graph) -> list[Value]:
    """The indices that top-k gives, in order."""
    return [node.results[1] for node in graph if isinstance(node.op, TopK) and node.results[1].users]


def with_choices(graph: Graph) -> Graph:
    """A copy that gives these indices, too, after its own outputs."""
    copy = clone(graph)
    names = [f"choice_{k}" for k in range(len(choices(copy)))]
    copy.set_outputs([*copy.outputs, *choices(copy)], [*copy.output_names, *names])
    return copy


def given_choices(graph: Graph, inputs: Sequence[Any], picked: Sequence[Any]) -> tuple[list[Any], bool]:
    """The outputs when top-k's indices are these, and whether they may be."""
    copy = clone(graph)
    own = choices(copy)
    outputs, names, nodes = list(copy.outputs), list(copy.output_names), [value.producer for value in own]
    for position, value in enumerate(own):
        fixed = copy.add_input(value.type, f"choice_{position}")
        outputs = [fixed if output is value else output for output in outputs]
        for user in value.users:
            for at, operand in enumerate(user.operands):
                if operand is value:
                    copy.set_operand(user, at, fixed)
    ranked = [node.operand(0) for node in nodes if node is not None]
    extra = [*ranked, *own]
    copy.set_outputs([*outputs, *extra], [*names, *(f"extra_{k}" for k in range(len(extra)))])
    found = execute(copy, [*inputs, *picked])
    rest, ranks, mine = np.split(np.arange(len(found)), [len(outputs), len(outputs) + len(own)])
    legal = True
    for node, x, a, b in zip(nodes, ranks, mine, picked, strict=True):
        assert node is not None
        elements, wanted = np.asarray(found[x], np.float64), np.asarray(found[a])
        axis = int(node.op.attributes["axis"])
        largest = max(float(np.abs(elements).max()), 1e-30)
        off = np.abs(np.take_along_axis(elements, wanted, axis) - np.take_along_axis(elements, np.asarray(b), axis))
        in_order = np.sort(b, axis)
        legal &= bool((off <= TIE * largest).all()) and not (np.diff(in_order, axis=axis) == 0).any()
    return [found[k] for k in rest], legal


def with_exponentials(graph: Graph) -> Graph:
    """A copy with 1 / (1 + exp(−x)) for each sigmoid."""
    copy = clone(graph)
    for node in [node for each in copy.all_graphs() for node in each if isinstance(node.op, Sigmoid)]:
        graph, (x,) = node.graph, node.inputs
        builder = Builder(graph, node, node.location)
        graph.replace(node.results[0], builder.div(1.0, builder.add(builder.exp(builder.neg(x)), 1.0)))
        graph.erase(node)
    return copy
