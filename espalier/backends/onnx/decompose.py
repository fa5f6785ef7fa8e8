"""Operators that ONNX lacks, as the standard operators that their references are made of.

A reference is written against primitives; run on values of a graph instead of arrays, the same lines emit nodes. So
QONNX's quantizers become divisions, roundings and clips that any runtime knows, with no second definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.errors import UnsupportedError
from espalier.ir import Builder, Graph, Node, Value, constant_value
from espalier.ir.elements import Element
from espalier.ir.op import TypeInferenceError
from espalier.passes.base import Context, parse_spec


def decompose(graph: Graph, domain: str) -> None:
    """Replace every node whose operator belongs to an ONNX domain of its own by standard ones, in place.

    Raises UnsupportedError, naming node and source, for a reference that standard operators can't express.
    """
    count = 0
    for each in graph.all_graphs():
        for node in each:
            if node.op.onnx_domain != domain:
                continue
            for old, new in zip(node.results, _emit(each, node), strict=True):
                each.replace(old, new)
            each.erase(node)
            count += 1
    if count:
        # nothing that reassociates: where a rounding follows, a last bit becomes a whole step
        for spec in ("fold_constants", "drop_unit_factor", "drop_zero_term", "common_subexpressions", "dead_code"):
            parse_spec(spec).run(graph, Context())


def _emit(graph: Graph, node: Node) -> list[Value]:
    builder = Builder(graph, node, node.location)
    operands = [None if value is None else Emitted(builder, value) for value in node.operands]
    try:
        found = node.op.reference(EmittingPrimitives(builder), *operands)
    except (Inexpressible, TypeInferenceError) as error:
        raise UnsupportedError(
            "E402",
            f"{node.op.name} has no form in standard operators: {error}",
            node=node,
            source=node.location,
            hint="Use the tvm backend, which runs it as it is.",
        ) from error
    made = found if isinstance(found, tuple) else (found,)
    return [array.value for array in made][: len(node.results)]


class Inexpressible(Exception):
    """A reference asked for what emitted values can't give: numbers, or a primitive without a standard operator."""


class Emitted:
    """A value that answers to Python's operators by emitting nodes."""

    def __init__(self, builder: Builder, value: Value) -> None:
        self.builder, self.value = builder, value

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def shape(self) -> tuple[Any, ...]:
        if self.value.shape is None:
            raise Inexpressible("the rank is not known")
        return tuple(self.value.shape)

    def lift(self, other: Any) -> Value:
        """The other operand as a value; numbers take this value's element."""
        if isinstance(other, Emitted):
            return other.value
        return constant_value(np.asarray(other, self.value.element.storage.dtype))

    def emit(self, name: str, *operands: Any, **attributes: Any) -> Emitted:
        """One node of an operator."""
        values = [self.lift(operand) for operand in operands]
        return Emitted(self.builder, getattr(self.builder, name)(*values, **attributes))

    def __add__(self, other: Any) -> Emitted:
        return self.emit("add", self, other)

    def __radd__(self, other: Any) -> Emitted:
        return self.emit("add", other, self)

    def __sub__(self, other: Any) -> Emitted:
        return self.emit("sub", self, other)

    def __rsub__(self, other: Any) -> Emitted:
        return self.emit("sub", other, self)

    def __mul__(self, other: Any) -> Emitted:
        return self.emit("mul", self, other)

    def __rmul__(self, other: Any) -> Emitted:
        return self.emit("mul", other, self)

    def __truediv__(self, other: Any) -> Emitted:
        return self.emit("div", self, other)

    def __rtruediv__(self, other: Any) -> Emitted:
        return self.emit("div", other, self)

    def __pow__(self, other: Any) -> Emitted:
        return self.emit("pow", self, other)

    def __rpow__(self, other: Any) -> Emitted:
        return self.emit("pow", other, self)

    def __neg__(self) -> Emitted:
        return self.emit("neg", self)

    def __gt__(self, other: Any) -> Emitted:
        return self.emit("greater", self, other)

    def __ge__(self, other: Any) -> Emitted:
        return self.emit("greater_or_equal", self, other)

    def __lt__(self, other: Any) -> Emitted:
        return self.emit("less", self, other)

    def __le__(self, other: Any) -> Emitted:
        return self.emit("less_or_equal", self, other)

    def __eq__(self, other: Any) -> Emitted:  # type: ignore[override]  # a comparison is a node
        return self.emit("equal", self, other)

    __hash__ = None  # type: ignore[assignment]  # == makes a node

    def __bool__(self) -> bool:
        raise Inexpressible("a value has no truth before it runs")

    def _refuse(self, *_: Any) -> Any:
        raise Inexpressible("a value has neither numbers nor these operations before it runs")

    __int__ = __float__ = __index__ = __len__ = __iter__ = __getitem__ = __array__ = _refuse
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __matmul__ = __rmatmul__ = __and__ = __or__ = __xor__ = _refuse
    __invert__ = __abs__ = __lshift__ = __rshift__ = __rand__ = __ror__ = __rxor__ = _refuse


class EmittingPrimitives:
    """The primitives of `espalier.ir.xp` that quantizers need, on emitted values."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def __getattr__(self, name: str) -> Any:
        raise Inexpressible(f"the primitive {name} has no standard operator here")

    def element(self, array: Emitted) -> Element:
        return array.value.element.storage

    def astype(self, array: Emitted, kind: Element) -> Emitted:
        if array.value.element == kind:
            return array
        return Emitted(self.builder, self.builder.cast(array.value, to=kind))

    def where(self, condition: Emitted, x: Any, y: Any) -> Emitted:
        like = x if isinstance(x, Emitted) else y
        return Emitted(self.builder, self.builder.where(condition.value, like.lift(x), like.lift(y)))

    def ones_like(self, array: Emitted) -> Emitted:
        """A scalar one: it broadcasts where it is used."""
        return Emitted(self.builder, array.lift(1))

    def zeros_like(self, array: Emitted) -> Emitted:
        """A scalar zero: it broadcasts where it is used."""
        return Emitted(self.builder, array.lift(0))

    def rint(self, array: Emitted) -> Emitted:
        return array.emit("round", array)

    def trunc(self, array: Emitted) -> Emitted:
        """sign(x)·⌊|x|⌋."""
        return array.emit("sign", array) * self.floor(self.abs(array))

    def floor(self, array: Emitted) -> Emitted:
        return array.emit("floor", array)

    def ceil(self, array: Emitted) -> Emitted:
        return array.emit("ceil", array)

    def abs(self, array: Emitted) -> Emitted:
        return array.emit("abs", array)

    def sign(self, array: Emitted) -> Emitted:
        return array.emit("sign", array)

    def log(self, array: Emitted) -> Emitted:
        return array.emit("log", array)

    def maximum(self, a: Any, b: Any) -> Emitted:
        like = a if isinstance(a, Emitted) else b
        return Emitted(self.builder, self.builder.max(like.lift(a), like.lift(b)))

    def minimum(self, a: Any, b: Any) -> Emitted:
        like = a if isinstance(a, Emitted) else b
        return Emitted(self.builder, self.builder.min(like.lift(a), like.lift(b)))

    def reshape(self, array: Emitted, shape: Sequence[int]) -> Emitted:
        target = constant_value(np.array(tuple(shape), np.int64))
        return Emitted(self.builder, self.builder.reshape(array.value, target))

    def expand_dims(self, array: Emitted, axis: int) -> Emitted:
        axes = constant_value(np.array([axis], np.int64))
        return Emitted(self.builder, self.builder.unsqueeze(array.value, axes))

    def sum(self, array: Emitted, axis: int) -> Emitted:
        axes = constant_value(np.array([axis], np.int64))
        return Emitted(self.builder, self.builder.reduce_sum(array.value, axes, keepdims=0))
