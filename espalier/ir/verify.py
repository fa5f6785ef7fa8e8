"""The verifier: is a graph well formed, and do its types follow from its operators?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from espalier.errors import VerificationError
from espalier.ir.axes import DeclarationError
from espalier.ir.graph import Graph, Node, Value, type_context
from espalier.ir.op import TypeInferenceError
from espalier.ir.types import TensorType, Type

Level = Literal["structure", "types"]


def verify(graph: Graph, level: Level = "types") -> None:
    """Raise VerificationError, naming node, source and rule, if the graph breaks a rule.

    `structure`: every operand is defined before its use and belongs here; use lists, list links and counts agree;
    operands and results number what the operator declares. `types` also re-infers every node.
    """
    for each in graph.all_graphs():
        _verify_structure(each)
    if level == "types":
        for each in graph.all_graphs():
            for node in each:
                _verify_types(each, node)


def _fail(rule: str, message: str, node: Node | None = None) -> VerificationError:
    source = str(node.location) if node is not None else None
    return VerificationError("E601", f"{message} (rule: {rule})", node=repr(node) if node else None, source=source)


def _verify_structure(graph: Graph) -> None:
    defined: set[int] = {id(value) for value in graph.inputs}
    if len(defined) != len(graph.inputs):
        raise _fail("inputs are distinct", f"{graph} lists an input twice")
    count, previous = 0, None
    for node in graph:
        count += 1
        op = node.op
        if node.graph is not graph or node.previous is not previous:
            raise _fail("nodes are linked both ways", f"the node list is broken at {node}", node)
        declared = op.operands
        given = len(node.operands)
        if given > len(declared) and not (declared and declared[-1].variadic):
            raise _fail("operands as declared", f"{op.name} takes {len(declared)} operands, not {given}", node)
        for position, operand in enumerate(node.operands):
            if operand is None:
                port = declared[min(position, len(declared) - 1)]
                if not port.optional and not port.variadic:
                    raise _fail("operands as declared", f"{op.name} lacks its operand {port.name}", node)
                continue
            if operand.constant is None and id(operand) not in defined:
                raise _fail("operands are defined before use", f"operand {position} of {node} ({operand}) is not", node)
            if node not in operand.uses:
                raise _fail("use lists agree", f"{operand} does not list {node} as a user", node)
        missing = [port for port in declared[given:] if not port.optional and not port.variadic]
        if missing:
            raise _fail("operands as declared", f"{op.name} lacks its operand {missing[0].name}", node)
        if len(node.regions) != len(op.bodies):
            raise _fail("regions as declared", f"{op.name} has {len(op.bodies)} regions, not {len(node.regions)}", node)
        for result in node.results:
            if result.producer is not node or id(result) in defined:
                raise _fail("one producer each", f"{result} is not made once, by {node}", node)
            defined.add(id(result))
        previous = node
    if count != graph.node_count or graph.last is not previous:
        raise _fail("nodes are linked both ways", f"{graph} counts {graph.node_count} nodes, but lists {count}")
    for output in graph.outputs:
        if output.constant is None and id(output) not in defined:
            raise _fail("outputs are defined", f"the output {output} is made nowhere in {graph}")
        if graph not in output.uses:
            raise _fail("use lists agree", f"the output {output} does not list its graph as a user")
    _verify_uses(graph)


def _verify_uses(graph: Graph) -> None:
    for value in _values(graph):
        for user, times in value.uses.items():
            slots = user.operands if isinstance(user, Node) else user.outputs
            if times != sum(slot is value for slot in slots):
                raise _fail("use lists agree", f"{value} lists {user} as a user {times} times, wrongly")


def _values(graph: Graph) -> Iterable[Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.results


def _verify_types(graph: Graph, node: Node) -> None:
    try:
        inferred = node.op.infer(type_context(graph, node, fresh=lambda: "unknown"))
    except (TypeInferenceError, DeclarationError) as error:
        raise _fail("operands fit the operator", f"{node.op.name}: {error}", node) from None
    for result, type in zip(node.results, inferred, strict=True):
        if not compatible(result.type, type):
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
