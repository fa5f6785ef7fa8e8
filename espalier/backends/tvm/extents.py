"""Derived dimensions, computed by a kernel of ours, so that TVM's own lowering only meets plain symbols.

TVM's VMShapeLower would store them in the order of a hash table of addresses, and so no two libraries need be equal.
Here they are stored in the order in which `main` first needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from espalier.backends.tvm.frames import integer, sequence

Expr = Any


def bind_extents(functions: tvm.IRModule) -> tvm.IRModule:
    """A module whose `main`, a straight line of bindings, has only numbers and symbols in its shapes.

    What is derived from symbols is computed as soon as these are known, by one kernel, into a tensor of int64; a match
    binds its numbers to symbols of their own.
    """
    function = functions["main"]
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    derived = Derived(_extents(binding) for binding in bindings)
    if not derived.symbols:
        return functions
    functions = functions.clone()
    del functions["main"]
    writer = Writer(relax.BlockBuilder(functions), derived)
    with writer.builder.function("main", list(function.params), attrs=dict(function.attrs.items())):
        writer.define([extent for parameter in function.params for extent in _extents_of(parameter.ty)])
        for binding in bindings:
            writer.emit(binding)
        writer.builder.emit_func_output(writer.rewritten(function.body.body))
    return writer.builder.get()


class Derived:
    """The derived extents of a function, in the order of their first use, each with a symbol to stand for it."""

    def __init__(self, extents: Iterable[Iterable[Expr]]) -> None:
        self.symbols: list[tuple[Expr, Expr]] = []
        self._found: dict[int, list[tuple[Expr, Expr]]] = {}
        for each in extents:
            for extent in each:
                if _is_derived(extent) and self.get(extent) is None:
                    entry = (extent, tirx.Var(f"derived{len(self.symbols)}", "int64"))
                    self.symbols.append(entry)
                    self._found.setdefault(tvm_ffi.structural_hash(extent), []).append(entry)

    def get(self, extent: Expr) -> Expr | None:
        """The symbol of an extent, if it is derived."""
        for known, symbol in self._found.get(tvm_ffi.structural_hash(extent), ()):
            if tvm_ffi.structural_equal(known, extent):
                return symbol
        return None


class Writer:
    """Writes `main` again."""

    def __init__(self, builder: relax.BlockBuilder, derived: Derived) -> None:
        self.builder, self.derived = builder, derived
        self.values: dict[Expr, Expr] = {}
        """Variables of the old function → those of the new one."""
        self.known: set[Expr] = set()
        """Symbols that are bound by now."""
        self.waiting = list(derived.symbols)
        self.kernels = 0

    def define(self, symbols: Iterable[Expr]) -> None:
        """Take symbols as bound, and compute what can be computed from all that are."""
        self.known.update(symbol for symbol in symbols if isinstance(symbol, relax.Var))
        ready: list[tuple[Expr, Expr]] = []
        waiting: list[tuple[Expr, Expr]] = []
        for entry in self.waiting:
            (ready if all(symbol in self.known for symbol in _symbols(entry[0])) else waiting).append(entry)
        self.waiting = waiting
        if not ready:
            return
        sources = list(dict.fromkeys(symbol for extent, _ in ready for symbol in _symbols(extent)))
        function = _kernel(sources, [extent for extent, _ in ready])
        callee = self.builder.add_func(function, f"extents{self.kernels}")
        self.kernels += 1
        size = relax.ShapeExpr([integer(8 * len(ready))])
        storage = self.builder.emit(relax.op.memory.alloc_storage(size, 0, "global", "uint8"))
        shape = relax.ShapeExpr([integer(len(ready))])
        tensor = self.builder.emit(relax.op.memory.alloc_tensor(storage, 0, shape, "int64"))
        self.builder.emit(tvm.ir.Call(callee, [*sources, tensor], None, [relax.TupleType([])]))
        shape = self.builder.emit(relax.op.tensor_to_shape(tensor))
        self.builder.match_cast(shape, relax.ShapeType([symbol for _, symbol in ready]))

    def emit(self, binding: Any) -> None:
        """A binding, with symbols for its derived extents."""
        if isinstance(binding, relax.MatchCast):
            made = self.builder.match_cast(self.rewritten(binding.value), self.type(binding.ty))
            self.define(_extents_of(binding.ty))
        else:
            made = self.builder.emit(self.rewritten(binding.value))
        self.values[binding.var] = made

    def extent(self, extent: Expr) -> Expr:
        """An extent, or the symbol that stands for it."""
        found = self.derived.get(extent) if _is_derived(extent) else None
        return extent if found is None else found

    def rewritten(self, value: Expr) -> Expr:
        """A value with the new variables and symbols."""
        if value in self.values:
            return self.values[value]
        if isinstance(value, relax.ShapeExpr):
            return relax.ShapeExpr([self.extent(extent) for extent in value.values])
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self.rewritten(field) for field in value.fields])
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self.rewritten(value.tuple_value), value.index)
        if isinstance(value, tvm.ir.Call):
            return tvm.ir.Call(value.op, list(map(self.rewritten, value.args)), value.attrs, value.ty_args)
        return value

    def type(self, type: Any) -> Any:
        """The type of a match, which is a tensor's or a shape's."""
        extents = [self.extent(extent) for extent in _extents_of(type)]
        return relax.ShapeType(extents) if isinstance(type, relax.ShapeType) else relax.TensorType(extents, type.dtype)


def _extents(binding: Any) -> Iterable[Expr]:
    """Every extent that a binding needs."""
    if isinstance(binding, relax.MatchCast):
        yield from _extents_of(binding.ty)
    pending = [binding.value]
    while pending:
        value = pending.pop()
        if isinstance(value, relax.ShapeExpr):
            yield from value.values
        elif isinstance(value, relax.Tuple):
            pending += reversed(value.fields)
        elif isinstance(value, tvm.ir.Call):
            pending += reversed(value.args)


def _extents_of(type: Any) -> Sequence[Expr]:
    if isinstance(type, relax.TensorType):
        return () if type.shape is None else type.shape.values
    return () if type.values is None else type.values


def _is_derived(extent: Expr) -> bool:
    return not isinstance(extent, relax.Var | tirx.IntImm)


def _symbols(extent: Expr) -> list[Expr]:
    return list(tirx.analysis.undefined_vars(extent))


def _kernel(symbols: Sequence[Expr], extents: Sequence[Expr]) -> tirx.PrimFunc:
    """The function that takes symbols and stores extents."""
    found = tirx.decl_buffer([integer(len(extents))], "int64", name="y")
    stores = [tirx.BufferStore(found, extent, [integer(k)]) for k, extent in enumerate(extents)]
    attributes = tvm.ir.make_node("ir.DictAttrs", **{"tirx.noalias": True})
    return tirx.PrimFunc([*symbols, found], sequence(stores), attrs=attributes)
