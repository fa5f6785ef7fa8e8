"""A graph whose shapes are numbers as one function that calls its kernels: no virtual machine, and no allocation.

`main` takes the graph's inputs, the block of weights and the arena (where there are any), and the tensors to write the
outputs to. Kernels are functions of plain pointers, to places in these, so calls from several threads need no more
than an arena for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx

from espalier.backends.tvm import fuse, kernels, memory, numbers, objects, origins
from espalier.backends.tvm.frames import integer, loop, sequence
from espalier.backends.tvm.module import unknown_extent
from espalier.backends.tvm.tensor import Alias, Constant, Expr, Map, Product, Program, Tensor
from espalier.ir import dims

INT32 = tvm.ir.PrimType("int32")
CPU = {"device_type": 1, "device_id": 0}
STACK_BYTES = 1024
"""TVM puts a kernel's own buffers of fewer bytes on the stack."""


@dataclass
class StaticModule:
    """What `write` makes. `weights` lie in the block of weights one after another, each at a multiple of 64 bytes."""

    functions: tvm.IRModule
    weights: list[Constant]
    arena: memory.Arena
    kernels: list[dict[str, Any]]
    """What each of the calls computes, in order, as plain JSON values (`origins`)."""


@dataclass
class Step:
    """A call of a kernel."""

    callee: str
    arguments: list[Any]
    """Tensors, own buffers, and numbers of outputs."""
    touched: list[Any]
    """Tensors and own buffers whose bytes the kernel reads or writes."""
    computed: list[Tensor]
    """Tensors that it computes, those without bytes of their own included."""


@dataclass(eq=False)
class Own:
    """A buffer of a kernel's own."""

    size: int


def write(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> StaticModule:
    """The functions that compute outputs from inputs, all of whose extents are numbers.

    Raises UnsupportedError for symbols of what is computed on the way.
    """
    return Writer(inputs, outputs).write()


class Writer:
    """Collects the steps, then gives everything its place."""

    def __init__(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.inputs = {tensor: number for number, tensor in enumerate(inputs)}
        self.plan = fuse.plan(outputs)
        self.results = list(outputs)
        self.steps: list[Step] = []
        self.functions: dict[str, tirx.PrimFunc] = {}
        self.known: dict[int, list[tuple[str, Any]]] = {}
        self.shares: dict[Tensor, Tensor] = {}
        """What is computed in place → the operand whose bytes it takes over."""
        self.given: dict[Tensor, int] = {}
        """What is computed into an output's memory → the output's number."""
        self.last_reads: dict[Tensor, int] = {}
        """The number of the last kernel that reads a tensor's bytes."""

    def write(self) -> StaticModule:
        for number, tensor in enumerate(self.results):
            base = _base(tensor)
            if not isinstance(base, Constant) and base not in self.inputs and _size(base) == _size(tensor):
                self.given.setdefault(base, number)
        made = [(root, *kernels.build(self.plan, root)) for root in self.plan.roots if not isinstance(root, Alias)]
        copied = [number for number, tensor in enumerate(self.results) if self.given.get(_base(tensor)) != number]
        for number, (_, _, operands, symbols) in enumerate(made):
            if symbols:
                raise unknown_extent(symbols[0])
            self.last_reads.update((_base(operand), number) for operand in operands)
        self.last_reads.update((_base(self.results[number]), len(made)) for number in copied)
        for number, (root, function, operands, _) in enumerate(made):
            self._kernel(number, root, function, operands)
        for number in copied:
            self._copy(number)
        weights = [t for t in fuse.in_order(self.results) if isinstance(t, Constant) and t in self.plan.stored]
        return self._placed(weights)

    # ---- kernels -----------------------------------------------------------------------------------------------

    def _kernel(self, number: int, root: Tensor, function: tirx.PrimFunc, operands: Sequence[Tensor]) -> None:
        made = root.parts if isinstance(root, Program) else [root]
        over = self._in_place(number, root, function, operands)
        if over is not None:
            self.shares[root] = _base(operands[over])
        function, own = with_pointers(function)
        touched = [*operands, *made, *own]
        computed = origins.computed(made, self.plan.stored)
        self.steps.append(Step(self._added(function), touched, touched, computed))

    def _copy(self, number: int) -> None:
        """A step that writes an output which has bytes elsewhere: an input, a constant, or another output."""
        tensor = self.results[number]
        count = integer(math.prod(_extents(tensor)))
        dtype = numbers.buffer_type(tensor.element)
        source, target = (tirx.decl_buffer([count], dtype, name=name) for name in ("x", "y"))
        place = tirx.Var("i", "int64")
        body = loop(place, count, tirx.BufferStore(target, tirx.BufferLoad(source, [place]), [place]))
        function, _ = with_pointers(tirx.PrimFunc([source, target], body, attrs=attributes()))
        self.steps.append(Step(self._added(function), [tensor, number], [tensor], []))

    def _added(self, function: tirx.PrimFunc) -> str:
        """The function's name in the module; equal functions are one."""
        alike = self.known.setdefault(tvm_ffi.structural_hash(function), [])
        for name, other in alike:
            if tvm_ffi.structural_equal(function, other):
                return name
        name = objects.kernel_name(function)
        self.functions[name] = function
        alike.append((name, function))
        return name

    def _in_place(self, number: int, root: Tensor, function: tirx.PrimFunc, operands: Sequence[Tensor]) -> int | None:
        """The operand whose bytes a kernel may take over: nobody reads them later, and entry k needs only entry k."""
        if not isinstance(root, Map) or root in self.given:
            return None
        if any(isinstance(fold, Product) for fold in self.plan.fused.get(root, ())):
            return None  # its tiles may overlap
        bases = [_base(operand) for operand in operands]
        for k, (operand, base) in enumerate(zip(operands, bases, strict=True)):
            if isinstance(base, Constant) or base in self.inputs or base in self.given:
                continue
            dies = self.last_reads[base] == number and sum(other is base for other in bases) == 1
            alike = operand.layout == root.layout and _extents(operand) == _extents(root)
            if dies and alike and _size(base) == _size(root) and _entry_by_entry(function, k):
                return k
        return None

    # ---- places ------------------------------------------------------------------------------------------------

    def _placed(self, weights: list[Constant]) -> StaticModule:
        spans: dict[Any, tuple[int, int]] = {}
        for number, step in enumerate(self.steps):
            for tensor in step.touched:
                holder = self._holder(tensor)
                if not (isinstance(holder, Constant) or holder in self.inputs or holder in self.given):
                    spans[holder] = (spans.get(holder, (number, number))[0], number)
        arena = memory.plan([
            memory.Lifetime(holder.size if isinstance(holder, Own) else _size(holder), *span)
            for holder, span in spans.items()
        ])  # fmt: skip
        starts = list(accumulate((memory.rounded(_size(weight)) for weight in weights), initial=0))
        block = tirx.decl_buffer([integer(max(starts[-1], 1))], "uint8", name="weights")
        room = tirx.decl_buffer([integer(max(arena.bytes, 1))], "uint8", name="arena")
        taken = [parameter(tensor, f"input{k}") for k, tensor in enumerate(self.inputs)]
        given = [parameter(tensor, f"output{k}") for k, tensor in enumerate(self.results)]
        places: dict[Any, Expr] = {tensor: address(buffer) for tensor, buffer in zip(self.inputs, taken, strict=True)}
        places.update((tensor, address(given[number])) for tensor, number in self.given.items())
        places.update((holder, address(room, at)) for holder, at in zip(spans, arena.offsets, strict=True))
        places.update((weight, address(block, at)) for weight, at in zip(weights, starts, strict=False))
        calls = [
            called(step.callee, [
                address(given[argument]) if isinstance(argument, int) else places[self._holder(argument)]
                for argument in step.arguments
            ])
            for step in self.steps
        ]  # fmt: skip
        parameters = [*taken, *[block] * bool(weights), *[room] * bool(arena.bytes), *given]
        main = tirx.PrimFunc(parameters, sequence([*calls, tirx.Evaluate(integer(0))]), attrs=attributes("main"))
        functions = {**self.functions, "main": main, "profile": _profile(calls, parameters)}
        sizes = [sum(_size(each) for each in step.touched if isinstance(each, Tensor)) for step in self.steps]
        told = origins.describe([step.computed for step in self.steps], sizes)
        module = tvm.IRModule({tvm.ir.GlobalVar(name): function for name, function in functions.items()})
        return StaticModule(module, weights, arena, told)

    def _holder(self, tensor: Any) -> Any:
        """The tensor whose bytes a tensor lies in."""
        if isinstance(tensor, Tensor):
            tensor = _base(tensor)
            while tensor in self.shares:
                tensor = self.shares[tensor]
        return tensor


MONOTONIC = 1
"""Linux's number of a clock that only goes forward."""


def _profile(calls: Sequence[Any], parameters: Sequence[Expr]) -> tirx.PrimFunc:
    """`main`, with a last parameter for the clock before the first call and after each: seconds and nanoseconds."""
    times = tirx.decl_buffer([integer(len(calls) + 1), integer(2)], "int64", name="times")

    def clock(row: int) -> Any:
        place = tirx.address_of(tirx.BufferLoad(times, [integer(row), integer(0)]))
        return tirx.Evaluate(tirx.call_extern("int32", "clock_gettime", tirx.IntImm("int32", MONOTONIC), place))

    timed = [statement for row, each in enumerate(calls, 1) for statement in (each, clock(row))]
    body = sequence([clock(0), *timed, tirx.Evaluate(integer(0))])
    return tirx.PrimFunc([*parameters, times], body, attrs=attributes("profile"))


def _base(tensor: Tensor) -> Tensor:
    while isinstance(tensor, Alias):
        tensor = tensor.operands[0]
    return tensor


def _extents(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor's buffer. Raises UnsupportedError E405 for an extent that no input gives."""
    for extent in tensor.stored_shape:
        if isinstance(extent, dims.Dim):
            raise unknown_extent(str(extent))
    return tuple(map(int, tensor.stored_shape))


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor's buffer."""
    return math.prod(_extents(tensor)) * _bytes(numbers.buffer_type(tensor.element))


def _bytes(dtype: str) -> int:
    return 1 if dtype == "bool" else int(np.dtype(dtype).itemsize)


def parameter(tensor: Tensor, name: str) -> Expr:
    """A parameter of `main`, from which no alignment is asked beyond that of its entries."""
    dtype = numbers.buffer_type(tensor.element)
    return tirx.decl_buffer(list(map(integer, _extents(tensor))), dtype, name=name, data_alignment=_bytes(dtype))


def address(buffer: Expr, offset: int = 0) -> Expr:
    rank = len(buffer.shape)
    return tirx.address_of(tirx.BufferLoad(buffer, [integer(0)] * (rank - 1) + [integer(offset)] * bool(rank)))


def attributes(symbol: str | None = None) -> Any:
    named = {} if symbol is None else {"global_symbol": symbol}
    return tvm.ir.make_node("ir.DictAttrs", **{"tirx.noalias": True, **named})


def called(callee: str, arguments: Sequence[Expr]) -> Any:
    """A call of a kernel, and the return if it fails."""
    failed = tirx.call_extern("int32", callee, *arguments) != tirx.IntImm("int32", 0)
    return tirx.IfThenElse(failed, tirx.Evaluate(tirx.tvm_throw_last_error()), None)


def with_pointers(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, list[Own]]:
    """A function of pointers instead of buffers.

    Its own buffers that are too large for the stack become parameters, too, unless each thread needs one.
    """
    pointers = [_pointer(buffer, number) for number, buffer in enumerate(function.params)]
    declared = [
        tirx.DeclBuffer(buffer, data=pointer) for buffer, pointer in zip(function.params, pointers, strict=True)
    ]
    own: list[Own] = []

    def hoisted(statement: Any) -> Any:
        """The statement with parameters for the buffers that it allocates outside of threads' loops."""
        if isinstance(statement, tirx.SeqStmt):
            return tirx.SeqStmt([hoisted(each) for each in statement.seq])
        if isinstance(statement, tirx.For) and statement.kind != tirx.ForKind.PARALLEL:
            variable, least, extent = statement.loop_var, statement.min, statement.extent
            return tirx.For(variable, least, extent, statement.kind, hoisted(statement.body))
        if not isinstance(statement, tirx.AllocBuffer):
            return statement
        buffer = statement.buffer
        if not all(isinstance(extent, tirx.IntImm) for extent in buffer.shape) or "x" in str(buffer.dtype):
            return statement  # vectors are meant to stay in registers
        size = math.prod(map(int, buffer.shape)) * _bytes(str(buffer.dtype))
        if size < STACK_BYTES:
            return statement
        own.append(Own(size))
        pointers.append(_pointer(buffer, len(pointers)))
        return tirx.DeclBuffer(buffer, data=pointers[-1])

    # TVM tells LLVM that buffers of different names never overlap, which holds within one kernel; across kernels their
    # places are used again. So none may become part of `main`, which is what this intrinsic prevents, and all it does.
    apart = tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.localescape"))
    body = sequence([apart, *declared, hoisted(function.body), tirx.Return(tirx.IntImm("int32", 0))])
    for key in ("device_type", "device_id"):  # what a thread's buffers are asked for with
        body = tirx.AttrStmt("default", key, tirx.IntImm("int32", CPU[key]), body)
    return tirx.PrimFunc(pointers, body, ret_type=INT32, attrs=attributes()), own


def _pointer(buffer: Expr, number: int) -> Expr:
    return tirx.Var(f"p{number}", tvm.ir.PointerType(tvm.ir.PrimType(str(buffer.dtype)), "global"))


def _entry_by_entry(function: tirx.PrimFunc, k: int) -> bool:
    """Whether a kernel reads parameter k only where it then writes its result, which is the last parameter.

    Kernels of maps write each entry once, apart from what surrounds the entries, which they fill with an immediate and
    never read. LLVM takes the two for different memory, and without that would make no vectors; still, whatever order
    it finds, the write of an entry needs what all reads of that entry give, and nothing else needs them.
    """
    source, target = function.params[k], function.params[-1]
    reads: list[Any] = []
    stores: list[Any] = []

    seen: set[Any] = set()

    def visit(node: Any) -> Any:
        if isinstance(node, tvm.ir.TensorLoad) and node.source.same_as(source):
            reads.append(node)
        elif isinstance(node, tirx.BufferStore) and node.buffer.same_as(target):
            stores.append(node)
        elif isinstance(node, tvm.ir.Expr) and node in seen:
            return tvm_ffi.WalkResult.SKIP
        elif isinstance(node, tvm.ir.Expr):
            seen.add(node)
        return None

    tvm_ffi.structural_walk(function.body, visit, order="pre")
    stores = [store for store in stores if not isinstance(store.value, tirx.Broadcast)]
    if len(stores) != 1:
        return False
    place = list(stores[0].indices)
    return all(tvm_ffi.structural_equal(list(read.indices), place) for read in reads)
