"""Reference execution: what a graph means."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espalier import plugins
from espalier.errors import EspalierError, InputError, UnsupportedError
from espalier.ir import elements
from espalier.ir.agreement import requirements
from espalier.ir.dims import Dim, Dimension, substitute, symbol_name
from espalier.ir.elements import Element
from espalier.ir.graph import Graph, Node, Value
from espalier.ir.op import TypeContext, TypeInferenceError
from espalier.ir.operands import OutsideError
from espalier.ir.types import TensorType, Type
from espalier.ir.xp import numpy as numpy_xp


def execute(
    graph: Graph,
    inputs: Mapping[str, Any] | Sequence[Any],
    xp: Any = numpy_xp,
    *,
    observe: Callable[[Node, Sequence[Any]], Sequence[Any] | None] | None = None,
) -> list[Any]:
    """Run a graph on arrays, by input name or in order, and return its outputs as arrays of `xp`.

    `observe` is told the results of each node; what it returns, if anything, takes their place. Values are dropped
    after their last use. Raises InputError for inputs that don't fit the declared types, and EspalierError subclasses
    naming the node for what can't be run.
    """
    if isinstance(inputs, Mapping):
        missing = [value.name for value in graph.inputs if value.name not in inputs]
        unknown = [name for name in inputs if name not in {value.name for value in graph.inputs}]
        if missing or unknown:
            raise InputError("E207", f"inputs don't match: missing {missing}, unknown {unknown}")
        inputs = [inputs[value.name] for value in graph.inputs]
    if len(inputs) != len(graph.inputs):
        raise InputError("E207", f"the graph takes {len(graph.inputs)} inputs, not {len(inputs)}")
    arrays = [xp.asarray(a) if isinstance(v.type, TensorType) else a for a, v in zip(inputs, graph.inputs, strict=True)]
    check_inputs(graph, arrays, xp)
    return run(graph, arrays, xp, observe)


def check_inputs(graph: Graph, arrays: Sequence[Any], xp: Any = numpy_xp) -> None:
    """Raise InputError if arrays don't have the elements, ranks and extents that the graph's inputs declare."""
    symbols: dict[str, tuple[int, str]] = {}
    computed: list[tuple[Value, Dim, int]] = []
    for value, array in zip(graph.inputs, arrays, strict=True):
        if not isinstance(value.type, TensorType):
            continue
        if _held(array, xp) != elements.from_dtype(value.element.dtype):
            raise InputError("E207", f"input {value.name!r} holds {array.dtype}, the model wants {value.type}")
        if value.type.shape is None:
            continue
        shape: tuple[Dimension, ...] = value.type.shape
        if len(shape) != len(array.shape):
            raise InputError("E207", f"input {value.name!r} has rank {len(array.shape)}, the model wants {value.type}")
        for declared, given in zip(shape, array.shape, strict=True):
            if isinstance(declared, int) and declared != given:
                raise InputError(
                    "E207", f"input {value.name!r} has shape {tuple(array.shape)}, the model wants {value.type}"
                )
            name = symbol_name(declared) if isinstance(declared, Dim) else None
            if name is not None and symbols.setdefault(name, (given, value.name))[0] != given:
                other, where = symbols[name]
                raise InputError("E207", f"inputs {where!r} and {value.name!r} disagree on {name}: {other} and {given}")
            if isinstance(declared, Dim) and name is None:
                computed.append((value, declared, given))
    known: dict[str, Dimension] = {name: extent for name, (extent, _) in symbols.items()}
    for value, wanted, extent in computed:
        found = substitute(wanted, known)
        if isinstance(found, int) and found != extent:
            message = f"input {value.name!r} has an extent of {extent} where {wanted} is {found}"
            raise InputError("E207", f"{message}; the model wants {value.type}")


def _held(array: Any, xp: Any) -> Element | None:
    """The element that an array's dtype stands for; None for dtypes that no tensor has."""
    try:
        found: Element = xp.element(array)
    except (KeyError, ValueError):
        return None
    return elements.from_dtype(found.dtype)


@dataclass
class Allowance:
    """How much a run may cost that nobody asked for, such as that of a check: it must end, whatever the model says.

    Raises UnsupportedError E411, naming the node, at the first of these.
    """

    seconds: float = 600.0
    """Of processor time, from now on; looked at between nodes."""
    iterations: int = 1 << 20
    """How often regions are run, all together."""
    size: int = 1 << 33
    """Bytes of one result, as far as the types tell them."""
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self._end = time.process_time() + self.seconds

    def allow(self, node: Node) -> None:
        """Raise if the node would be too much."""
        if time.process_time() > self._end:
            raise self._error(node, f"reference execution has taken {self.seconds:g} s of processor time")
        for result in node.results:
            type = result.type
            if isinstance(type, TensorType) and type.shape is not None and type.is_static:
                count = math.prod(extent for extent in type.shape if isinstance(extent, int))
                if count * type.element.storage.dtype.itemsize > self.size:
                    raise self._error(node, f"a result is a {type}, more than {self.size >> 30} GiB")

    def iterate(self, node: Node) -> None:
        """Raise if one more run of a region of the node would be too much."""
        self.iterations -= 1
        if self.iterations < 0 or time.process_time() > self._end:
            raise self._error(node, "its body is run too often for reference execution")

    def _error(self, node: Node, why: str) -> UnsupportedError:
        return UnsupportedError("E411", why, node=node, source=node.location)


def _check_extents(node: Node, operands: Sequence[Any], xp: Any) -> bool:
    """Whether extents of a node's operands vary; if so, let its operator see them, which refuses what doesn't fit.

    Of fixed extents it has, before. Raises InputError E207, naming the node.
    """
    kinds = [None if value is None else value.type for value in node.operands]
    if all(not isinstance(kind, TensorType) or kind.is_static for kind in kinds):
        return False
    types = [
        TensorType(kind.element, tuple(array.shape)) if isinstance(kind, TensorType) and array is not None else kind
        for kind, array in zip(kinds, operands, strict=True)
    ]
    shapes = [type.shape if isinstance(type, TensorType) else None for type in types]
    if any(0 in shape for shape in shapes if shape is not None):
        return True  # inference can't divide by them
    context = TypeContext(
        node.op, types, lambda position: xp.to_numpy(operands[position]), result_count=len(node.results),
        region_results=[[output.type for output in region.outputs] for region in node.regions],
    )  # fmt: skip
    try:
        node.op.infer(context)
        equation = node.op.equation(context)
    except TypeInferenceError as error:
        raise _misfit(node, f"{node.op.name}: {error}") from error
    for requirement in () if equation is None else requirements(equation, shapes):
        if not requirement.symbols:
            raise _misfit(node, f"{node.op.name}: extents do not fit: {requirement}")
    return True


def _misfit(node: Node, message: str) -> InputError:
    name = node.results[0].name if node.results else ""
    return InputError("E207", message, node=name or node.op.name, source=node.location)


@dataclass(frozen=True)
class Region:
    """A region as the reference of its operator sees it: call it with arrays, get a list of arrays."""

    graph: Graph
    xp: Any
    observe: Callable[[Node, Sequence[Any]], Sequence[Any] | None] | None
    node: Node | None = None
    allowance: Allowance | None = None

    def __call__(self, *arrays: Any) -> list[Any]:
        if self.allowance is not None and self.node is not None:
            self.allowance.iterate(self.node)
        return _run(self.graph, arrays, self.xp, self.observe, self.allowance)

    @property
    def result_types(self) -> list[Type]:
        """The types of its outputs (what a loop that never runs stacks nothing of)."""
        return [output.type for output in self.graph.outputs]


def run(
    graph: Graph,
    arrays: Sequence[Any],
    xp: Any = numpy_xp,
    observe: Callable[[Node, Sequence[Any]], Sequence[Any] | None] | None = None,
    allowance: Allowance | None = None,
) -> list[Any]:
    """`execute` without the checks of the inputs, within an allowance if one is given."""
    with np.errstate(all="ignore"):  # infinities and NaN are results, not events
        return _run(graph, arrays, xp, observe, allowance)


def _run(
    graph: Graph,
    arrays: Sequence[Any],
    xp: Any,
    observe: Callable[[Node, Sequence[Any]], Sequence[Any] | None] | None,
    allowance: Allowance | None,
) -> list[Any]:
    store: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    left = {value: len(value.uses) for value in graph.inputs}

    def read(value: Value | None) -> Any:
        if value is None:
            return None
        if value.constant is not None and value not in store:
            return xp.asarray(value.constant.array)
        return store[value]

    for node in graph:
        if allowance is not None:
            allowance.allow(node)
        operands = [read(operand) for operand in node.operands]
        keywords: dict[str, Any] = {}
        if node.regions:
            keywords["regions"] = [Region(region, xp, observe, node, allowance) for region in node.regions]
        varies = _check_extents(node, operands, xp)
        try:
            found = node.op.reference(xp, *operands, **keywords)
        except OutsideError as error:
            name = node.results[0].name or node.op.name
            raise InputError("E207", str(error), node=name, source=node.location) from error
        except (ValueError, IndexError) as error:
            if not varies:
                raise
            raise _misfit(node, f"{node.op.name} does not take these extents: {error}") from error
        except Exception as error:
            what, module = f"the reference of the operator {node.op.name}", type(node.op).__module__
            if not isinstance(error, EspalierError) and (refusal := plugins.failure(what, module, error, node)):
                raise refusal from error
            raise
        results = found if isinstance(found, tuple) else (found,)
        if observe is not None:
            changed = observe(node, results[: len(node.results)])
            results = results if changed is None else tuple(changed)
        for value, result in zip(node.results, results, strict=False):
            if value.uses:
                store[value] = result
                left[value] = len(value.uses)
        for operand in set(node.operands):
            if operand is not None and operand in left:
                left[operand] -= 1
                if not left[operand]:
                    del store[operand]
    return [read(output) for output in graph.outputs]
