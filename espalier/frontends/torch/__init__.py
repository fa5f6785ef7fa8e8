"""The PyTorch frontend: modules, exported programs and .pt2 files as graphs.

    graph = from_module(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})

Needs torch. Complex tensors become pairs of real ones (inputs and outputs: with a trailing axis of 2); what a module
writes into its buffers is not among the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from espalier.frontends.torch.convert import convert
from espalier.frontends.torch.export import decompose, export, read_pt2, symbol_namer
from espalier.frontends.torch.registry import lowers, lowers_complex
from espalier.ir.graph import Graph

__all__ = ["from_exported", "from_module", "load_pt2", "lowers", "lowers_complex"]


def from_module(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """The graph of a module, as it runs on example arguments.

    Args:
        module: In the mode (`eval`) in which it is to be compiled.
        args: Example positional arguments.
        kwargs: Example keyword arguments.
        dynamic_shapes: What torch.export takes: the axes that may change. Their names become symbols of the graph.
        input_names: Names of the graph's inputs; those of the parameters of `forward` by default.
        output_names: Names of its outputs; the keys of a returned dictionary, or output_K, by default.

    Raises:
        InputError: E114 and E115 if torch.export takes neither module nor arguments.
        UnsupportedError: E408 naming every operator that has no translation.
    """
    program = export(module, args, kwargs, dynamic_shapes)
    inputs = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    namer = symbol_namer(inputs, args, kwargs, dynamic_shapes)
    graph = convert(decompose(program), input_names=input_names, output_names=output_names, symbol_names=namer)
    graph.name = type(module).__name__
    return graph


def from_exported(program: ExportedProgram) -> Graph:
    """The graph of an exported program. Raises UnsupportedError (E408) for operators that have no translation."""
    return convert(decompose(program))


def load_pt2(path: str | Path, trust: bool = False) -> Graph:
    """The graph of a .pt2 file, which is read only if its origin is trusted (E113): reading may run code in it."""
    return from_exported(read_pt2(path, trust))
