"""The Relax module of a graph: one `main` that calls the kernels in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from espalier.backends.tvm import fuse, kernels, numbers, requirements
from espalier.backends.tvm.frames import dimension_expression, integer, sequence
from espalier.backends.tvm.tensor import Alias, Constant, Program, Tensor
from espalier.errors import UnsupportedError
from espalier.ir.agreement import Requirement
from espalier.ir.dims import Dimension, symbol_name
from espalier.ir.elements import Element

EMBEDDED_BYTES = 1024
"""Constants of at most this many bytes are put into the library; larger (and empty) ones become arguments."""


@dataclass
class Module:
    """A Relax module whose `main` takes the graph's inputs and then the weights."""

    relax: tvm.IRModule
    weights: list[Constant] = field(default_factory=list)


def foreign_type(element: Element) -> str | None:
    """TVM's name of an element that kernels see as raw bits, if tensors at the boundary carry it."""
    element = element.storage
    if element.is_float and numbers.buffer_type(element).startswith("uint") and element.bits in (8, 16):
        return element.dtype.name
    return None


def unknown_extent(name: str) -> UnsupportedError:
    """What to raise for a dimension that no input has."""
    return UnsupportedError(
        "E405", f"the dimension {name!r} is no extent of an input, so the compiled function can't know it",
        hint="Fix the dimension in the model, or make it an input's own axis.",
    )  # fmt: skip


class Writer:
    """Builds `main`."""

    def __init__(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], required: Mapping[Requirement, str]
    ) -> None:
        self.inputs, self.outputs, self.required = inputs, outputs, dict(required)
        self.plan = fuse.plan(outputs)
        self.results = list(outputs)
        self.builder = relax.BlockBuilder()
        self.symbols: dict[str, Any] = {}
        self.values: dict[Tensor, Any] = {}
        self.weights: list[Constant] = []
        self.given: list[tuple[Any, Dimension, int]] = []
        """Extents of inputs that are derived: the symbol for what is given, what it must be, the input's number."""

    def symbol(self, name: str) -> Any:
        if name not in self.symbols:
            raise unknown_extent(name)
        return self.symbols[name]

    def shape(self, tensor: Tensor) -> list[Any]:
        return [dimension_expression(extent, self.symbol) for extent in tensor.stored_shape]

    def type(self, tensor: Tensor, dtype: str | None = None) -> Any:
        return relax.TensorType(self.shape(tensor), dtype or numbers.buffer_type(tensor.element))

    def write(self) -> Module:
        for tensor in self.inputs:
            for extent in tensor.shape:
                name = symbol_name(extent) if not isinstance(extent, int) else None
                if name is not None and name not in self.symbols:
                    self.symbols[name] = tirx.Var(f"n{len(self.symbols)}", "int64")
        parameters = [relax.Var(f"input{k}", self._parameter(k, tensor)) for k, tensor in enumerate(self.inputs)]
        for tensor in fuse.in_order(self.results):
            if (
                isinstance(tensor, Constant)
                and tensor in self.plan.stored
                and not 0 < tensor.array.nbytes <= EMBEDDED_BYTES
            ):
                self.weights.append(tensor)
        weights = [relax.Var(f"weight{k}", self.type(tensor)) for k, tensor in enumerate(self.weights)]
        with self.builder.function("main", [*parameters, *weights]):
            self._check()
            for tensor, parameter in zip(self.inputs, parameters, strict=True):
                self.values[tensor] = self._raw(tensor, self._matched(tensor, parameter))
            self.values.update(zip(self.weights, weights, strict=True))
            for root in self.plan.roots:
                self._emit(root)
            found = [self._given(tensor) for tensor in self.results]
            self.builder.emit_func_output(relax.Tuple(found))
        return Module(self.builder.get(), self.weights)

    def _check(self) -> None:
        """Let a call fail at its start whose inputs' extents don't fit."""
        if not self.required and not self.given:
            return
        known: dict[str, Any] = {}

        def dim(extent: Dimension) -> Any:
            return dimension_expression(
                extent, lambda name: known.setdefault(name, tirx.Var(f"d{len(known)}", "int64"))
            )

        done = tirx.decl_buffer([integer(1)], "bool", name="y")
        given = [tirx.Var(f"g{k}", "int64") for k in range(len(self.given))]
        statements = [
            requirements.check(tirx.EQ(variable, dim(extent)), f"an extent of input {number} must be {extent}")
            for variable, (_, extent, number) in zip(given, self.given, strict=True)
        ]
        statements += requirements.checks(dim, self.required)
        statements.append(tirx.BufferStore(done, tirx.IntImm("bool", 1), [integer(0)]))
        attributes = tvm.ir.make_node("ir.DictAttrs", **{"tirx.noalias": True})
        function = tirx.PrimFunc([*known.values(), *given, done], sequence(statements), attrs=attributes)
        arguments = relax.Tuple([*(self.symbol(name) for name in known), *(symbol for symbol, _, _ in self.given)])
        type = relax.TensorType([integer(1)], "bool")
        self.builder.emit(relax.call_tir(self.builder.add_func(function, "check"), arguments, type))

    def _parameter(self, number: int, tensor: Tensor) -> Any:
        """The type of an input, in which each extent is a number, or a symbol of its own where it is derived."""
        extents = self.shape(tensor)
        for axis, extent in enumerate(tensor.shape):
            if not isinstance(extent, int) and symbol_name(extent) is None:
                extents[axis] = tirx.Var(f"given{len(self.given) + 1}", "int64")
                self.given.append((extents[axis], extent, number))
        return relax.TensorType(extents, foreign_type(tensor.element) or numbers.buffer_type(tensor.element))

    def _matched(self, tensor: Tensor, value: Any) -> Any:
        """An input whose derived extents have been compared with what its symbols say."""
        if all(isinstance(extent, int) or symbol_name(extent) is not None for extent in tensor.shape):
            return value
        return self.builder.match_cast(value, self.type(tensor, foreign_type(tensor.element)))

    def _raw(self, tensor: Tensor, value: Any) -> Any:
        if foreign_type(tensor.element) is None:
            return value
        return self.builder.emit(relax.op.memory.view(value, dtype=numbers.buffer_type(tensor.element)))

    def _given(self, tensor: Tensor) -> Any:
        value, name = self._value(tensor), foreign_type(tensor.element)
        return value if name is None else self.builder.emit(relax.op.memory.view(value, dtype=name))

    def _value(self, tensor: Tensor) -> Any:
        if tensor not in self.values:
            assert isinstance(tensor, Constant), tensor
            array = numbers.buffer_array(tensor.array, tensor.element)
            self.values[tensor] = relax.const(tvm.runtime.tensor(_aligned(array)), numbers.buffer_type(tensor.element))
        return self.values[tensor]

    def _emit(self, root: Tensor) -> None:
        if isinstance(root, Alias):
            source = self._value(root.operands[0])
            self.values[root] = self.builder.emit(relax.op.reshape(source, relax.ShapeExpr(self.shape(root))))
            return
        function, inputs, symbols = kernels.build(self.plan, root)
        callee = self.builder.add_func(function, f"kernel{len(self.values)}")
        arguments = relax.Tuple([*map(self._value, inputs), *(self.symbol(name) for name in symbols)])
        if not isinstance(root, Program) or len(root.parts) == 1:
            self.values[root] = self.builder.emit(relax.call_tir(callee, arguments, self.type(root)))
            return
        made = self.builder.emit(relax.call_tir(callee, arguments, [self.type(part) for part in root.parts]))
        for k, part in enumerate(root.parts):
            self.values[part] = self.builder.emit(relax.TupleGetItem(made, k))


def _aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array).reshape(array.shape)


def write(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], required: Mapping[Requirement, str] = MappingProxyType({})
) -> Module:
    """The Relax module that computes outputs from inputs of which something is required.

    Raises UnsupportedError for symbols that no input gives.
    """
    return Writer(inputs, outputs, required).write()
