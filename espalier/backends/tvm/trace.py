"""From a graph to the DAG of tensors: by an operator's own lowering, or by running its reference on tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from espalier.backends.tvm import fuse, requirements, xp
from espalier.backends.tvm.arithmetic import as_tensor, to_element
from espalier.backends.tvm.movement import resized
from espalier.backends.tvm.tensor import Constant, Input, Tensor, Untraceable, made_by
from espalier.errors import EspalierError, InputError, InternalError, UnsupportedError
from espalier.ir import agreement, elements
from espalier.ir.axes import shape_of
from espalier.ir.dims import Dim, NotANumberError, Shape, is_static, symbol_name
from espalier.ir.elements import Element
from espalier.ir.graph import Graph, Node, Value
from espalier.ir.op import Op, OperandError, TypeContext, lookup
from espalier.ir.types import TensorType

Lowering = Callable[..., Any]
LOWERINGS: dict[str, Lowering] = {}
"""Operators with a lowering of their own; the others run their reference on tensors."""
REFUSALS = (Untraceable, NotANumberError, OperandError, ZeroDivisionError)
"""What says that operands can't be computed with, or have no form in loops. Anything else is a fault of ours."""
INLINE = 1024
"""Constants of at most this many entries are handed to references as arrays, so that they may be read."""


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Register `function(node, *operands)` for operators: tensors (or arrays) in, one or a tuple out."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            if name in LOWERINGS:
                raise ValueError(f"two lowerings for {name}")
            LOWERINGS[name] = function
        return function

    return register


def trace(graph: Graph) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a graph's inputs and outputs."""
    return checked(graph)[:2]


def checked(graph: Graph) -> tuple[list[Tensor], list[Tensor], requirements.Found]:
    """The tensors of a graph's inputs and outputs, and what must hold of the inputs' extents."""
    inputs: list[Tensor] = []
    for position, value in enumerate(graph.inputs):
        kind = value.type
        if not isinstance(kind, TensorType):
            raise UnsupportedError("E410", f"input {value.name!r} is a {kind}, not a tensor")
        if kind.shape is None:
            raise UnsupportedError(
                "E405", f"the rank of input {value.name!r} is not known", hint="Fix its shape in the model."
            )
        inputs.append(Input(kind.shape, kind.element, position))
    for value in graph.outputs:
        if not isinstance(value.type, TensorType):
            raise UnsupportedError("E410", f"output {value.name!r} is a {value.type}, not a tensor")
    symbols = {symbol_name(extent) for tensor in inputs for extent in tensor.shape if isinstance(extent, Dim)}
    with requirements.collected(name for name in symbols if name is not None) as found:
        results = run(graph, inputs)
        outputs = [as_tensor(_typed(each, value)) for each, value in zip(results, graph.outputs, strict=True)]
    return inputs, outputs, found


class Region:
    """A region as its operator's reference sees it: call it with tensors, get a list of tensors."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __call__(self, *arguments: Any) -> list[Any]:
        return run(self.graph, arguments, inside=True)

    @property
    def result_types(self) -> list[Any]:
        return [output.type for output in self.graph.outputs]


def run(graph: Graph, arguments: Sequence[Any], inside: bool = False) -> list[Any]:
    """Trace a graph on given arguments; `inside` of a region, whose symbols mean nothing outside."""
    found: dict[Value, Any] = dict(zip(graph.inputs, arguments, strict=True))
    constants: dict[Value, Any] = {}

    def read(value: Value | None) -> Any:
        if value is None:
            return None
        if value in found:
            return found[value]
        if value.constant is not None:
            if value not in constants:
                constants[value] = constant(value)
            return constants[value]
        raise UnsupportedError("E401", f"{value} has no tensor")

    for node in graph:
        results = lower(node, [read(operand) for operand in node.operands], inside)
        found.update(zip(node.results, results, strict=False))
    return [read(output) for output in graph.outputs]


def constant(value: Value) -> Any:
    """A constant as references may read it, which large ones only as a whole."""
    held = value.constant
    assert held is not None
    array = held.array
    if held.element.storage.kind in ("string", "complex"):
        return array
    tensor = as_tensor(array, held.element) if held.element.dtype == array.dtype else Constant(array, held.element)
    if isinstance(tensor, Constant):
        tensor.weights = held
    return array


def lower(node: Node, operands: Sequence[Any], inside: bool = False) -> tuple[Any, ...]:
    """The tensors of a node's results. Raises UnsupportedError naming the node for what can't be lowered."""
    contents = [result.content for result in node.results]
    if (
        contents
        and all(content is not None for content in contents)
        and not (inside and any(_symbolic(c) for c in contents))
    ):
        return tuple(contents)
    try:
        with made_by(node):
            results = _results(node, _required(node, operands))
    except (UnsupportedError, InputError) as error:  # the latter of constants
        raise _named(node, error) from error
    except REFUSALS as error:
        refused = UnsupportedError(
            "E402", f"the TVM backend can't emit this use of {node.op.name}: {error}",
            node=node.op.name, source=str(node.location),
            hint="Fix the shapes or operands it depends on in the model, or use --backend onnx.",
        )  # fmt: skip
        if isinstance(error, Untraceable) and error.tensor is not None:
            for tensor in fuse.in_order([error.tensor]):
                if isinstance(tensor, Input):
                    refused.add_note(f"input {tensor.position}")
        raise refused from error
    except EspalierError:
        raise
    except Exception as error:
        raise InternalError(
            "E901", f"the lowering of {node.op.name} failed: {type(error).__name__}: {error}",
            node=node.op.name, source=str(node.location),
        ) from error  # fmt: skip
    return tuple(_checked(node, value, result) for value, result in zip(node.results, results, strict=False))


def _required(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    """The operands, of which as much is required as the node's axes say and inference could not decide.

    In a region that may not be taken, operands get the extents that their axes say, so that nothing outside is read.
    """
    shapes = [None if operand is None or isinstance(operand, list) else np.shape(operand) for operand in operands]
    if all(shape is None or is_static(shape) for shape in shapes):
        return operands
    equation = node.op.equation(_context(node, operands, shapes))
    if equation is None:
        return operands
    for requirement in agreement.requirements(equation, shapes):
        requirements.require(requirement)
    if not requirements.path():
        return operands
    return [
        operand if terms is None or shape is None or shape_of(terms) == shape else resized(operand, shape_of(terms))
        for operand, terms, shape in zip(operands, equation.operands, shapes, strict=False)
    ]


def _context(node: Node, operands: Sequence[Any], shapes: Sequence[Shape | None]) -> TypeContext:
    """What the node's operator may know of operands as they are traced."""
    types: list[Any] = []
    for value, shape in zip(node.operands, shapes, strict=True):
        kind = None if value is None else value.type
        types.append(TensorType(kind.element, shape) if isinstance(kind, TensorType) and shape is not None else kind)

    def content(position: int) -> Any:
        operand, value = operands[position], node.operands[position]
        return operand if isinstance(operand, np.ndarray) else None if value is None else value.known

    return TypeContext(node.op, types, content, result_count=len(node.results), fresh=lambda: "unknown")


def _results(node: Node, operands: Sequence[Any]) -> tuple[Any, ...]:
    """A node's results: from symbolic contents as they are, or else as the tensors that hold them."""
    plain = [_plain(operand, value) for operand, value in zip(operands, node.operands, strict=True)]
    if not any(map(_symbolic, plain)):
        return _attempt(node, plain)
    refused: Exception | None = None
    try:
        with requirements.attempt():
            results = _attempt(node, plain)
        if all(_fits(value, result) for value, result in zip(node.results, results, strict=False)):
            return results
    except (Untraceable, TypeError) as error:  # numpy's functions refuse a symbol by TypeError
        refused = error
    try:
        return _attempt(node, [_typed(operand, value) for operand, value in zip(plain, node.operands, strict=True)])
    except Untraceable as error:
        raise (refused if isinstance(refused, NotANumberError) else error) from error


def _fits(value: Value, result: Any) -> bool:
    """Whether a result has the element that the graph says, which dimensions among the operands may have changed."""
    if isinstance(result, np.ndarray):
        return bool(result.dtype != object)
    if isinstance(result, Tensor) and isinstance(value.type, TensorType):
        return result.element == _element(value)
    return True


def _named(node: Node, error: UnsupportedError | InputError) -> EspalierError:
    if getattr(error, "node", None):
        return error
    return type(error)(error.code, str(getattr(error, "message", error)), node=node.op.name, source=str(node.location))


def _attempt(node: Node, operands: Sequence[Any]) -> tuple[Any, ...]:
    op: Any = node.op
    if node.is_a(lookup("opaque")):
        called = f"{op.domain}::{op.op_type}" if op.domain else op.op_type
        raise UnsupportedError(
            "E403", f"the meaning of {called} is not known",
            node=node.op.name, source=str(node.location),
            hint="A package can declare it (entry point espalier.ops); --backend onnx keeps it as it is.",
        )  # fmt: skip
    own = LOWERINGS.get(node.op.name)
    if own is not None:
        results = own(node, *operands)
        if results is not NotImplemented:
            return results if isinstance(results, tuple) else (results,)
    keywords: dict[str, Any] = {}
    if node.regions:
        keywords["regions"] = [Region(region) for region in node.regions]
    if type(node.op).reference is Op.reference:
        raise Untraceable("it has neither a lowering nor a reference")
    with np.errstate(all="ignore"):
        results = node.op.reference(xp, *operands, **keywords)
    return results if isinstance(results, tuple) else (results,)


def _symbolic(content: Any) -> bool:
    return (
        isinstance(content, np.ndarray)
        and content.dtype == object
        and any(isinstance(entry, Dim) for entry in content.reshape(-1).tolist())
    )


def _plain(operand: Any, value: Value | None) -> Any:
    """Contents without symbols as numbers of the value's element."""
    if isinstance(operand, np.ndarray) and operand.dtype == object and operand.size:
        entries = operand.reshape(-1).tolist()
        if not any(isinstance(entry, Dim | str | bytes) for entry in entries):
            return np.array(entries, np.int64).reshape(operand.shape).astype(_element(value).dtype)
    return operand


def _typed(operand: Any, value: Value | None) -> Any:
    """Contents with symbols as a tensor of the value's element."""
    return to_element(operand, _element(value)) if _symbolic(operand) else _plain(operand, value)


def _element(value: Value | None) -> Element:
    kind = None if value is None else value.type
    return kind.element.storage if isinstance(kind, TensorType) else elements.I64


def _checked(node: Node, value: Value, result: Any) -> Any:
    """A result, if it has the type that the graph says."""
    if result is None:
        return None
    if isinstance(result, np.ndarray | np.generic):
        result = np.asarray(result)
        if result.dtype == object:
            return result
    declared = value.type
    if not isinstance(declared, TensorType):  # sequences are lists while tracing
        return result
    shape, kind = tuple(result.shape), result.element if isinstance(result, Tensor) else None
    expected = declared.element.storage
    if (
        kind is None
        and result.dtype != expected.dtype
        or kind is not None
        and kind != expected
        and kind.dtype != expected.dtype
    ):
        raise InternalError(
            "E901", f"the lowering of {node.op.name} gives {kind or result.dtype} where the graph says {declared}",
            node=node.op.name, source=str(node.location),
        )  # fmt: skip
    wanted = declared.shape
    if wanted is not None and (
        len(wanted) != len(shape)
        or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(wanted, shape, strict=True))
    ):
        raise InternalError(
            "E901", f"the lowering of {node.op.name} gives the shape {shape} where the graph says {declared}",
            node=node.op.name, source=str(node.location),
        )  # fmt: skip
    return result
