"""Inferring types again where a rewrite made more of them known."""

from __future__ import annotations

from collections import deque

from espalier.ir import Graph, Node, TensorType, Type, Value
from espalier.ir.inference import infer_node, refine_type
from espalier.ir.op import TypeInferenceError


def propagate(graph: Graph, value: Value) -> list[Node]:
    """Let what became known of a value reach what depends on it; returns the nodes whose results are known better."""
    changed: list[Node] = []
    queue = deque(value.users)
    queued = set(queue)
    while queue:
        node = queue.popleft()
        queued.discard(node)
        if node.graph is graph and reinfer(graph, node):
            changed.append(node)
            following = {user: None for result in node.results for user in result.users if user not in queued}
            queue.extend(following)
            queued.update(following)
    return changed


def reinfer(graph: Graph, node: Node) -> bool:
    """Infer a node's types again; whether more extents or contents are known now. If not, the types stay."""
    before = [(result.type, result.content is None) for result in node.results]
    infer_node(graph, node)
    changed = False
    for result, (old, unknown) in zip(node.results, before, strict=True):
        try:
            refine_type(result, old)
        except TypeInferenceError:
            result.type = old
        if _known(result.type) > _known(old):
            graph.epochs.types += 1
            changed = True
        else:
            result.type = old  # other names for the same extents would only spread
        changed |= unknown and result.content is not None
    return changed


def _known(type: Type) -> int:
    """How much a type says: nothing, the rank, or so many extents."""
    if not isinstance(type, TensorType) or type.shape is None:
        return 0
    return 1 + sum(isinstance(extent, int) for extent in type.shape)
