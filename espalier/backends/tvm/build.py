"""Compiling for a CPU: target, Relax and TIR pipelines, the library file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TVM_BIND_THREADS", "0")  # TVM's own pinning makes two threads as slow as one

import tvm
from tvm import relax, tirx

from espalier.backends.cache import Cache
from espalier.backends.tvm import cross, extents, lowerings, machine, memory, module, numbers, objects, static, trace
from espalier.errors import EspalierError, InputError, InternalError, UnsupportedError
from espalier.ir.execute import check_inputs
from espalier.ir.graph import Graph, constant_value
from espalier.ir.inference import infer_node
from espalier.runtime.cpu import lacking

Array = np.ndarray[Any, Any]
_ = lowerings


@dataclass
class Compiled:
    """A graph's code.

    With an arena, `main` is a function of the library that takes the inputs, the block of weights, the arena and the
    tensors to write the outputs to (`static`), all as buffers hold them; `profile` takes the times of kernels, too.
    Without, it is a function of TVM's virtual
    machine that takes the inputs and then the weights.
    """

    functions: Any
    """With an arena, TVM's module of the functions; else the executable of its virtual machine."""
    target: Any
    weights: list[Array]
    """As buffers hold them: raw bits where TVM has no type."""
    graph: Graph
    arena: memory.Arena | None = None
    kernels: list[dict[str, Any]] | None = None
    """What each call of a kernel computes (`origins.describe`); known with an arena only."""

    @cached_property
    def executable(self) -> Any:
        """All functions as code for this process."""
        if self.arena is None:
            return self.functions
        with _building(), self.target:
            return tirx.build(self.functions, self.target, pipeline=objects.PIPELINE)

    def __call__(self, inputs: Sequence[Any] | Mapping[str, Any]) -> list[Array]:
        """Run in this process: arrays in, by name or in order, arrays out."""
        if self.arena is not None:
            return self._static(_inputs(self.graph, inputs), self.arena)
        machine = relax.VirtualMachine(self.executable, tvm.cpu())
        arguments = [_tensor(array) for array in [*_inputs(self.graph, inputs), *self.weights]]
        found = machine["main"](*arguments)
        outputs = []
        for tensor, value in zip(found, self.graph.outputs, strict=True):
            element = value.element
            if module.foreign_type(element) is not None:
                tensor = _viewed(tensor, numbers.buffer_type(element))
            outputs.append(numbers.from_buffer_array(tensor.numpy(), element))
        return outputs

    def _static(self, inputs: Sequence[tuple[Array, Any]], arena: memory.Arena) -> list[Array]:
        tensors = [tvm.runtime.tensor(array) for array, _ in inputs]
        if self.weights:
            tensors.append(tvm.runtime.tensor(memory.block(self.weights)))
        if arena.bytes:
            tensors.append(tvm.runtime.empty((arena.bytes,), "uint8"))
        found = [
            tvm.runtime.empty(tuple(map(int, value.shape)), numbers.buffer_type(value.element))
            for value in self.graph.outputs
        ]
        self.executable["main"](*tensors, *found)
        return [
            numbers.from_buffer_array(tensor.numpy(), value.element)
            for tensor, value in zip(found, self.graph.outputs, strict=True)
        ]

    def save(self, path: Path, kept: Cache | None = None) -> None:
        """Write the library. The same graph gives the same bytes wherever and whenever, whatever the cache holds.

        With an arena, each kernel is compiled on its own, unless the cache has it (`objects`). Raises InputError E233
        if nothing here links for the target's architecture.
        """
        linker = cross.linker(triple(self.target))
        with _building():
            if self.arena is None:
                self.functions.export_library(str(path), fcompile=linker)
            else:
                objects.link(self.functions, self.target, path, linker, kept)


def _inputs(graph: Graph, inputs: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    if isinstance(inputs, Mapping):
        missing = [value.name for value in graph.inputs if value.name not in inputs]
        if missing:
            raise InputError("E207", f"inputs are missing: {missing}")
        inputs = [inputs[value.name] for value in graph.inputs]
    arrays = [np.asarray(array) for array in inputs]
    if len(arrays) != len(graph.inputs):
        raise InputError("E207", f"the graph takes {len(graph.inputs)} inputs, not {len(arrays)}")
    check_inputs(graph, arrays)
    found = []
    for array, value in zip(arrays, graph.inputs, strict=True):
        if array.dtype != value.element.dtype:
            raise InputError("E207", f"input {value.name!r} is {array.dtype}, the model wants {value.type}")
        raw = numbers.buffer_array(array, value.element)
        found.append((raw, module.foreign_type(value.element)))
    return found


def _tensor(array: Any) -> Any:
    raw, foreign = array if isinstance(array, tuple) else (array, None)
    tensor = tvm.runtime.tensor(raw)
    return tensor if foreign is None else _viewed(tensor, foreign)


def _viewed(tensor: Any, dtype: str) -> Any:
    create = tvm.get_global_func("runtime.TVMTensorCreateView")
    return create(tensor, tvm.runtime.ShapeTuple(tensor.shape), tvm.DataType(dtype), 0)


@cache
def host_target(threads: int) -> Any:
    """The target for the machine that compiles, by the name that LLVM has for its processor.

    Without what only the name stands for: some instruction sets are hidden by the system (amx-fp16, avxifma), and then
    no artifact that needs them could be loaded.
    """
    cpu = tvm.get_global_func("target.llvm_get_system_cpu")()
    base = {"kind": "llvm", "mcpu": str(cpu), "mtriple": cross.triple("host"), "num-cores": threads}
    hidden = lacking(instruction_sets(tvm.target.Target(base)))
    return tvm.target.Target({**base, "mattr": [f"-{name}" for name in hidden]} if hidden else base)


KNOWN_SETS = (
    "sse3", "ssse3", "sse4.1", "sse4.2", "sse4a", "popcnt", "avx", "avx2", "fma", "fma4", "xop", "tbm", "f16c", "bmi",
    "bmi2", "lzcnt", "movbe", "gfni", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512ifma",
    "avx512vbmi", "avx512vbmi2", "avx512bitalg", "avx512vpopcntdq", "avx512vnni", "avx512bf16", "avx512fp16", "avxvnni",
    "avxvnniint8", "avxvnniint16", "avxifma", "avxneconvert", "amx-tile", "amx-int8", "amx-bf16", "amx-fp16",
    "neon", "rdm", "complxnum", "fullfp16", "fp16fml", "dotprod", "fptoint", "jsconv", "sha3", "bf16", "i8mm", "sve",
    "sve2",
)  # fmt: skip
"""Instruction sets, by LLVM's names, that the code generator may use; the rest of LLVM's features are tuning."""


def instruction_sets(target: Any) -> tuple[str, ...]:
    """The instruction sets without which code for a target does not run."""
    present = tvm.get_global_func("target.llvm_get_cpu_features")(target)
    return tuple(name for name in KNOWN_SETS if name in present)


def triple(target: Any) -> str:
    """Architecture and system of a target, as LLVM names them."""
    return str(target.attrs.get("mtriple") or cross.triple("host"))


def target_with(sets: Sequence[str], machine: str = "host") -> dict[str, Any]:
    """A target for an architecture, this host's or one of Linux, with the named instruction sets only.

    Raises InputError E213 for an instruction set that LLVM does not know there.
    """
    system = cross.triple(machine)
    base = {"kind": "llvm", "mtriple": system, **({"mcpu": "x86-64"} if system.startswith("x86_64") else {})}
    known = tvm.get_global_func("target.llvm_get_cpu_features")
    for name in sets:
        if name not in known(tvm.target.Target({**base, "mattr": [f"+{name}"]})):
            raise InputError("E213", f"LLVM knows no instruction set {name!r} of {system.partition('-')[0]}")
    return {**base, "mattr": [f"+{name}" for name in sets]} if sets else base


def relax_pipeline() -> Any:
    """The passes that turn `main` into what TVM's virtual machine runs."""
    steps = relax.transform

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]  # TVM has no types
    def derived_extents(functions: Any, _: Any) -> Any:
        return extents.bind_extents(functions)

    return tvm.transform.Sequential([
        steps.ToNonDataflow(), steps.RemovePurityChecking(), steps.CallTIRRewrite(), steps.StaticPlanBlockMemory(),
        steps.LowerAllocTensor(), derived_extents, steps.KillAfterLastUse(), steps.LowerRuntimeBuiltin(),
        steps.VMShapeLower(), steps.AttachGlobalSymbol(),
    ])  # fmt: skip


def build(graph: Graph, *, target: Mapping[str, Any] | None = None, threads: int | None = None) -> Compiled:
    """Compile a graph, for this host unless a TVM target says otherwise.

    Raises UnsupportedError, naming node and source, for what can't be emitted.
    """
    chosen = tvm.target.Target(dict(target)) if target is not None else host_target(threads or os.cpu_count() or 1)
    made = written(graph, chosen)
    weights = [numbers.buffer_array(tensor.array, tensor.element) for tensor in made.weights]
    if isinstance(made, static.StaticModule):
        return Compiled(made.functions, chosen, weights, graph, made.arena, made.kernels)
    with _building(), chosen:
        executable = relax.build(made.relax, chosen, relax_pipeline=relax_pipeline(), tir_pipeline=objects.PIPELINE)
    return Compiled(executable, chosen, weights, graph)


@contextmanager
def _building() -> Iterator[None]:
    try:
        yield
    except EspalierError:
        raise
    except Exception as error:
        raise InternalError("E902", f"TVM failed on a module that we wrote: {error}") from error


def written(graph: Graph, target: Any) -> static.StaticModule | module.Module:
    """The functions of a graph, for a target, as TVM takes them.

    Raises UnsupportedError, naming node and source, for what can't be emitted.
    """
    with machine.made_for(machine.of(instruction_sets(target))):
        inputs, outputs, required = trace.checked(graph)
        with _building():
            return static.write(inputs, outputs) if _is_static(graph) else module.write(inputs, outputs, required)


def _is_static(graph: Graph) -> bool:
    """Whether the shapes of inputs and outputs are numbers, and so all others."""
    shapes = [value.shape for value in (*graph.inputs, *graph.outputs)]
    return all(shape is not None and all(isinstance(extent, int) for extent in shape) for shape in shapes)


FREEZABLE = 64
"""Entries of an input of rank 0 or 1 that may say a shape, axes, scales."""


def freeze(graph: Graph, inputs: Sequence[Any]) -> bool:
    """Make constants of the inputs whose numbers decide shapes, axes and the like; whether there were any.

    The inputs stay in the signature, unused. For measuring: a model compiled so only serves these very numbers.
    """
    changed = False
    while (position := _asked_for(graph)) is not None:
        value = graph.inputs[position]
        graph.replace(value, constant_value(np.asarray(inputs[position]), value.element, value.name))
        for node in graph:
            infer_node(graph, node)
        changed = True
    return changed


def _asked_for(graph: Graph) -> int | None:
    """The input whose numbers would have to be known to lower the graph."""
    try:
        trace.trace(graph)
    except UnsupportedError as error:
        for note in getattr(error, "__notes__", ()):
            position = int(note.removeprefix("input "))
            shape = graph.inputs[position].shape
            if (
                graph.inputs[position].uses
                and len(shape) <= 1
                and all(isinstance(e, int) and e <= FREEZABLE for e in shape)
            ):
                return position
    return None


def run(graph: Graph, inputs: Sequence[Any] | Mapping[str, Any]) -> list[Array]:
    """Compile a graph and run it once in this process: arrays in, by name or in order, arrays out."""
    return build(graph)(inputs)
