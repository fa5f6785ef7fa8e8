"""What is known of a node's results from its operands: types, and the contents of small tensors that carry shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from espalier import plugins
from espalier.ir.graph import Graph, Node, Value
from espalier.ir.op import Op, TypeContext, TypeInferenceError, infer_content, may_be_known
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


class _Known:
    """What an operator infers for operands of some types, by those of their contents that it asks for."""

    __slots__ = ("positions", "results")

    def __init__(self) -> None:
        self.positions: tuple[int, ...] = ()
        """The operands whose contents some inference has asked for."""
        self.results: dict[tuple[Any, ...], list[Type]] = {}


_INFERRED: dict[tuple[Op, tuple[Type | None, ...], int], _Known] = {}
"""By operator, operand types and number of results; most nodes of a large graph repeat a few of these."""
_INFERRED_HERE: dict[tuple[int, ...], tuple[Op, tuple[Type | None, ...], list[Type]]] = {}
"""The same by identity of operator and operand types, which are kept so that identities stay theirs.

Only for operators whose results hold nothing that could be known.
"""
_INFERRED_LIMIT = 1 << 16
_CONTENTS_LIMIT = 1 << 10
"""Contents that are remembered for each key."""
_LONGEST_CONTENT = 16
"""Numbers of a content that is remembered."""


def infer_node(graph: Graph, node: Node) -> None:
    """Set the types and contents of a node's results from its operands.

    What was known before stays where it is more precise. Raises TypeInferenceError if the operands don't fit.
    """
    op, results = node.op, node.results
    same = known_types(node)
    if same is not None:
        for result, found in zip(results, same, strict=True):
            result.type = found
        return
    context = type_context(graph, node)
    inferred = inferred_types(node, context)
    for result, found in zip(results, inferred, strict=True):
        result.type = found
    first = results[0].type if results else None
    if isinstance(first, TensorType) and may_be_known(op, first):
        content = infer_content(op, numpy_xp, context, first)
        if content is not None:
            results[0].content = content
    elif context.cacheable and not context.contents_read and not node.regions:
        if len(_INFERRED_HERE) >= _INFERRED_LIMIT:
            _INFERRED_HERE.clear()
        _INFERRED_HERE[_identity(node)] = op, context.types, inferred


def known_types(node: Node) -> Sequence[Type] | None:
    """What was inferred before for this very operator and operands of these very types, if nothing else matters."""
    found = _INFERRED_HERE.get(_identity(node))
    return None if found is None else found[2]


def _identity(node: Node) -> tuple[int, ...]:
    types = [id(None if operand is None else operand.type) for operand in node.operands]
    return (id(node.op), len(node.results), *types)


def inferred_types(node: Node, context: TypeContext) -> list[Type]:
    """What the operator infers, or inferred before from equal types and equal contents as far as it asks for them."""
    if node.regions:
        return _infer(node, context)
    key = (node.op, context.types, context.result_count)
    known = _INFERRED.get(key)
    if known is not None:
        contents = _contents(context, known.positions)
        found = None if contents is None else known.results.get(contents)
        if found is not None:
            return found
    given = [type for type in context.types if type is not None]
    # A type that an operand has already is that very object: most comparisons of types then end at once.
    found = [next((type for type in given if type == new), new) for new in _infer(node, context)]
    if not context.cacheable:
        return found
    if known is None:
        if len(_INFERRED) >= _INFERRED_LIMIT:
            _INFERRED.clear()
        known = _INFERRED[key] = _Known()
    if not context.contents_read.issubset(known.positions):
        known.positions = tuple(sorted(context.contents_read.union(known.positions)))
        known.results.clear()
    contents = _contents(context, known.positions)
    if contents is not None and len(known.results) < _CONTENTS_LIMIT:
        known.results[contents] = found
    return found


def _infer(node: Node, context: TypeContext) -> list[Type]:
    """What the operator infers. Raises InputError E215 if a plug-in's fails where operands are not to blame."""
    try:
        return node.op.infer(context)
    except (AttributeError, NameError, TypeError) as error:
        what, module = f"type inference of the operator {node.op.name}", type(node.op).__module__
        if (refusal := plugins.failure(what, module, error, node)) is not None:
            raise refusal from error
        raise


def _contents(context: TypeContext, positions: tuple[int, ...]) -> tuple[Any, ...] | None:
    """The contents of operands as a key; None if one is too long for that."""
    found: list[Any] = []
    for position in positions:
        content = context.content(position)
        if content is None:
            found.append(None)
        elif content.size > _LONGEST_CONTENT:
            return None
        else:
            numbers = tuple(content.reshape(-1).tolist()) if content.dtype == object else content.tobytes()
            found.append((content.shape, content.dtype, numbers))
    return tuple(found)


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
