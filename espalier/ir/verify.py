"""The verifier: is a graph well formed, and do its types follow from its operators?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from espalier.errors import VerificationError
from espalier.ir.axes import DeclarationError
from espalier.ir.graph import Graph, Node, Value
from espalier.ir.inference import inferred_types, known_types, type_context
from espalier.ir.op import TypeInferenceError
from espalier.ir.types import TensorType, Type

Level = Literal["structure", "types"]


def verify(graph: Graph, level: Level = "types") -> None:
    """Raise VerificationError, naming node, source and rule, if the graph breaks a rule.

    `structure`: every operand is defined before its use and belongs here; use lists, list links and counts agree;
    operands and results number what the operator declares. `types` also re-infers every node.
    """
    graphs = [graph]
    for each in graphs:
        graphs += _verify_structure(each)
    if level == "types":
        for each in graphs:
            for node in each:
                _verify_types(each, node)


def _fail(rule: str, message: str, node: Node | None = None) -> VerificationError:
    source = str(node.location) if node is not None else None
    return VerificationError("E601", f"{message} (rule: {rule})", node=repr(node) if node else None, source=source)


def _verify_structure(graph: Graph) -> list[Graph]:
    """Check one graph; returns the regions of its nodes."""
    defined: set[Value] = set(graph.inputs)
    if len(defined) != len(graph.inputs):
        raise _fail("inputs are distinct", f"{graph} lists an input twice")
    regions: list[Graph] = []
    count, previous, node = 0, None, graph.first
    uses = listed = 0  # pairs of user and value, as operands have them and as use lists have them
    for value in defined:
        listed += len(value.uses)
    while node is not None:
        count += 1
        if count > graph.node_count:
            raise _fail("nodes are linked both ways", f"{graph} counts {graph.node_count} nodes, but lists more")
        op = node.op
        if node.graph is not graph or node.previous is not previous:
            raise _fail("nodes are linked both ways", f"the node list is broken at {node}", node)
        declared = op.operands
        operands = node.operands
        given = len(operands)
        if given > len(declared) and not (declared and declared[-1].variadic):
            raise _fail("operands as declared", f"{op.name} takes {len(declared)} operands, not {given}", node)
        for position, operand in enumerate(operands):
            if operand is None:
                port = declared[min(position, len(declared) - 1)]
                if not port.optional and not port.variadic:
                    raise _fail("operands as declared", f"{op.name} lacks its operand {port.name}", node)
                continue
            times = operand.uses.get(node)
            if times is None:
                raise _fail("use lists agree", f"{operand} does not list {node} as a user", node)
            if operand.constant is not None:
                continue
            if operand not in defined:
                raise _fail("operands are defined before use", f"operand {position} of {node} ({operand}) is not", node)
            if times == 1 or operand not in operands[:position]:
                uses += 1
            if (times != 1 or given > 1) and times != _times(operands, operand):
                raise _fail("use lists agree", f"{operand} lists {node} as a user {times} times, wrongly")
        if given < len(declared):
            missing = [port for port in declared[given:] if not port.optional and not port.variadic]
            if missing:
                raise _fail("operands as declared", f"{op.name} lacks its operand {missing[0].name}", node)
        if len(node.regions) != len(op.bodies):
            raise _fail("regions as declared", f"{op.name} has {len(op.bodies)} regions, not {len(node.regions)}", node)
        regions += node.regions
        for result in node.results:
            if result.producer is not node or result in defined:
                raise _fail("one producer each", f"{result} is not made once, by {node}", node)
            defined.add(result)
            listed += len(result.uses)
        previous, node = node, node.next
    if count != graph.node_count or graph.last is not previous:
        raise _fail("nodes are linked both ways", f"{graph} counts {graph.node_count} nodes, but lists {count}")
    for output in graph.outputs:
        if output.constant is None and output not in defined:
            raise _fail("outputs are defined", f"the output {output} is made nowhere in {graph}")
        if graph not in output.uses:
            raise _fail("use lists agree", f"the output {output} does not list its graph as a user")
    for output in dict.fromkeys(graph.outputs):
        if output.uses[graph] != _times(graph.outputs, output):
            raise _fail("use lists agree", f"{output} lists its graph as a user {output.uses[graph]} times, wrongly")
        uses += output.constant is None
    if uses != listed:
        _find_wrong_user(graph, defined)
    return regions


def _times(slots: Sequence[Value | None], value: Value) -> int:
    count = 0
    for slot in slots:
        if slot is value:
            count += 1
    return count


def _find_wrong_user(graph: Graph, values: Iterable[Value]) -> None:
    """Raise for a value that lists a user which does not use it, or does not stand in its graph."""
    for value in values:
        for user in value.uses:
            slots, home = (user.operands, user.graph) if isinstance(user, Node) else (user.outputs, user)
            if home is not graph or not _times(slots, value):
                raise _fail("use lists agree", f"{value} lists {user} as a user {value.uses[user]} times, wrongly")
    raise _fail("use lists agree", f"use lists of {graph} name users that it does not have")


def _verify_types(graph: Graph, node: Node) -> None:
    same = known_types(node)
    if same is not None and all(result.type is type for result, type in zip(node.results, same, strict=True)):
        return
    try:
        inferred = inferred_types(node, type_context(graph, node, fresh=lambda: "unknown"))
    except (TypeInferenceError, DeclarationError) as error:
        raise _fail("operands fit the operator", f"{node.op.name}: {error}", node) from None
    for result, type in zip(node.results, inferred, strict=True):
        if result.type is not type and not compatible(result.type, type):
            raise _fail(
                "types follow from operators", f"{node.op.name} makes {type}, but its result says {result.type}", node
            )


def compatible(a: Type, b: Type) -> bool:
    """Whether two types can describe one value: numbers and elements don't contradict each other."""
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a.element.storage != b.element.storage:
            return False
        if a.shape is None or b.shape is None:
            return True
        return len(a.shape) == len(b.shape) and all(
            x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in zip(a.shape, b.shape, strict=True)
        )
    if type(a) is not type(b) or isinstance(a, TensorType) or isinstance(b, TensorType):
        return False
    return compatible(a.of, b.of)
