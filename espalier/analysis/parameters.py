"""What a model computes from its constants alone."""

from __future__ import annotations

from espalier.ir import Graph, Value


def parametric(graph: Graph) -> set[Value]:
    """What nodes make of constants alone, whatever the inputs are: dequantized weights or mixed templates, say.

    Random numbers are not among them, nor what nodes with bodies give, which may read more than their operands.
    """
    found: set[Value] = set()
    for node in graph:
        fixed = all(value.constant is not None or value in found for value in node.inputs)
        if fixed and node.op.deterministic and not node.regions:
            found.update(node.results)
    return found
