"""What is known of a node's results from its operands: types, and the contents of small tensors that carry shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from espalier.ir.graph import Graph, Node, Value
from espalier.ir.op import Op, TypeContext, TypeInferenceError, infer_content
from espalier.ir.types import TensorType, Type, merge_shapes
from espalier.ir.xp import numpy as numpy_xp


def type_context(graph: Graph, node: Node, fresh: Callable[[], str] | None = None) -> TypeContext:
    """What `infer` of a node's operator gets to see; `fresh` names new symbols (by default, the graph does)."""
    operands = node.operands

    def content(position: int) -> NDArray[Any] | None:
        operand = operands[position]
        return None if operand is None else operand.known

    return TypeContext(
        node.op,
        [None if operand is None else operand.type for operand in operands],
        content,
        result_count=len(node.results),
        region_results=[[output.type for output in region.outputs] for region in node.regions],
        fresh=fresh or graph.fresh_symbol,
    )


_INFERRED: dict[tuple[Op, tuple[Type | None, ...], int], list[Type]] = {}
"""Result types of nodes whose operand types alone determine them; most nodes of a large graph repeat a few of these."""
_INFERRED_HERE: dict[tuple[int, ...], tuple[Op, list[Type | None], list[Type]]] = {}
"""The same by identity of operator and operand types, which are kept so that identities stay theirs.

Only for operators whose results hold nothing that could be known.
"""
_INFERRED_LIMIT = 1 << 16


def infer_node(graph: Graph, node: Node) -> None:
    """Set the types and contents of a node's results from its operands.

    What was known before stays where it is more precise. Raises TypeInferenceError if the operands don't fit.
    """
    op, results = node.op, node.results
    types = [None if operand is None else operand.type for operand in node.operands]
    identity = (id(op), len(results), *map(id, types))
    same = _INFERRED_HERE.get(identity)
    if same is not None:
        for result, found in zip(results, same[2], strict=True):
            result.type = found
        return
    context = type_context(graph, node)
    inferred = inferred_types(node, context)
    for result, found in zip(results, inferred, strict=True):
        result.type = found
    first = results[0].type if results else None
    if isinstance(first, TensorType):
        content = infer_content(op, numpy_xp, context, first)
        if content is not None:
            results[0].content = content
    plain = context.cacheable and not op.symbolic and not node.regions and type(op).content is Op.content
    if plain:
        if len(_INFERRED_HERE) >= _INFERRED_LIMIT:
            _INFERRED_HERE.clear()
        _INFERRED_HERE[identity] = op, types, inferred


def inferred_types(node: Node, context: TypeContext) -> list[Type]:
    """What the operator infers, or inferred before from equal operand types where it rests on nothing else."""
    if node.regions:
        return node.op.infer(context)
    key = (node.op, context.types, context.result_count)
    found = _INFERRED.get(key)
    if found is None:
        found = node.op.infer(context)
        if context.cacheable:
            if len(_INFERRED) >= _INFERRED_LIMIT:
                _INFERRED.clear()
            _INFERRED[key] = found
    return found


def refine_type(value: Value, declared: Type) -> None:
    """Let a value's type take what a declaration knows better. Raises TypeInferenceError if they contradict."""
    inferred = value.type
    if isinstance(inferred, TensorType) and isinstance(declared, TensorType):
        if inferred.element.storage != declared.element.storage:
            raise TypeInferenceError(f"declared as {declared}, but it is {inferred}")
        try:
            value.type = TensorType(inferred.element, merge_shapes(declared.shape, inferred.shape))
        except ValueError as error:
            raise TypeInferenceError(f"declared as {declared}, but it is {inferred}: {error}") from None
