"""Models in: whatever holds a model becomes a graph. Each kind has a module of its own, imported when it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from espalier import plugins
from espalier.errors import InputError
from espalier.ir.graph import Graph

__all__ = ["load"]

_TORCH_FILES = (".pt2",)
_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")
GROUP = "espalier.frontends"


def load(model: Any, example_inputs: Any = None, **options: Any) -> Graph:
    """The graph of a model, whatever holds it.

    Args:
        model: The path of an .onnx or .pt2 file, an ONNX ModelProto or its bytes, an onnx_graphsurgeon.Graph, a
            torch.nn.Module (with example inputs), a torch.export.ExportedProgram, a Graph (returned as it is), or what
            a plug-in reads (entry-point group espalier.frontends, see below).
        example_inputs: For a module: its positional arguments, a tuple, or keyword arguments, a dict.
        options: For the frontend: `name`, `folder` (ONNX), `kwargs`, `dynamic_shapes` (modules), `trust` (.pt2).

    A plug-in's entry point is named after a file suffix without its dot, or after the class `module.Class` of what it
    reads; it is called as `read(model, **options)`, with `example_inputs` if there are any, and returns a Graph.

    Raises:
        InputError: E101 to E119; E102 if no frontend reads models of this kind.
        UnsupportedError: The model holds what no graph can say, such as maps.
    """
    if isinstance(model, Graph):
        return model
    if isinstance(model, str | os.PathLike):
        return _load_file(Path(model), example_inputs, options)
    if isinstance(model, bytes | bytearray | memoryview):
        return _onnx(model, options)
    for cls in type(model).__mro__:
        name = f"{cls.__module__}.{cls.__qualname__}"
        known = _OBJECTS.get(name)
        if known is not None:
            return known(model, example_inputs, options)
        plugin = _plugin(name)
        if plugin is not None:
            return plugin(model, example_inputs, options)
    raise InputError("E102", f"no frontend reads a {type(model).__module__}.{type(model).__qualname__}")


def _load_file(path: Path, example_inputs: Any, options: dict[str, Any]) -> Graph:
    suffix = path.suffix.lower()
    if suffix in _TORCH_FILES:
        from espalier.frontends import torch

        return torch.load_pt2(path, **options)
    plugin = _plugin(suffix.removeprefix(".")) if suffix else None
    if plugin is not None:
        return plugin(path, example_inputs, options)
    if path.is_dir():
        hint = "Name the model's file. A compiled artifact is run, verified and inspected, not compiled."
        raise InputError("E101", f"{str(path)!r} is a folder, and no model", hint=hint)
    if suffix in _PICKLES:
        hint = "Load it in Python and give the module with example inputs, or export it to .onnx or .pt2."
        raise InputError(
            "E113", f"{str(path)!r} may hold pickled objects, by its name",
            hint=f"{hint} Rename it if it is an ONNX model.",
        )  # fmt: skip
    if suffix not in (".onnx", ".pb", ".model", ""):
        if not path.exists():
            raise InputError("E101", f"{str(path)!r} does not exist")
        hint = "Files that end in .onnx or .pt2 are read; a plug-in can read others. Artifacts are run, not compiled."
        raise InputError("E102", f"no frontend reads files like {path.name!r}", hint=hint)
    return _onnx(path, options)


def _onnx(source: Any, options: dict[str, Any]) -> Graph:
    from espalier.frontends import onnx

    # Reading an ONNX model runs no code, so there is nothing to trust.
    return onnx.load(source, **{name: value for name, value in options.items() if name != "trust"})


def _module(module: Any, example_inputs: Any, options: dict[str, Any]) -> Graph:
    from espalier.frontends import torch

    if example_inputs is None and not options.get("kwargs"):
        raise InputError("E115", f"{type(module).__name__} needs example inputs", hint="load(module, (x, …))")
    if isinstance(example_inputs, dict):
        return torch.from_module(module, (), **{"kwargs": example_inputs, **options})
    args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    return torch.from_module(module, args if example_inputs is not None else (), **options)


def _exported(program: Any, example_inputs: Any, options: dict[str, Any]) -> Graph:
    from espalier.frontends import torch

    return torch.from_exported(program, **options)


def _surgeon(graph: Any, example_inputs: Any, options: dict[str, Any]) -> Graph:
    from espalier.frontends import graphsurgeon

    return graphsurgeon.from_graphsurgeon(graph, **options)


_OBJECTS: dict[str, Callable[[Any, Any, dict[str, Any]], Graph]] = {
    "onnx.onnx_ml_pb2.ModelProto": lambda model, _, options: _onnx(model, options),
    "torch.nn.modules.module.Module": _module,
    "torch.export.exported_program.ExportedProgram": _exported,
    "onnx_graphsurgeon.ir.graph.Graph": _surgeon,
}
"""Full name of a class → how its objects (and those of subclasses) are read; by name, so that nothing is imported."""


def _plugin(name: str) -> Callable[[Any, Any, dict[str, Any]], Graph] | None:
    """The reader that an installed package registers under a name. Raises InputError E204 or E208."""
    entries = plugins.entries(GROUP, name)
    if not entries:
        return None
    if len({entry.value for entry in entries}) > 1:
        raise InputError("E204", f"several packages read {name!r}: {', '.join(sorted(e.value for e in entries))}")
    try:
        read = entries[0].load()
    except Exception as error:  # whatever a plug-in's module raises
        raise InputError("E208", f"the frontend {entries[0].value} cannot be imported: {error}") from error

    def call(model: Any, example_inputs: Any, options: dict[str, Any]) -> Graph:
        given = {} if example_inputs is None else {"example_inputs": example_inputs}
        found = read(model, **given, **options)
        if not isinstance(found, Graph):
            raise InputError("E208", f"the frontend {entries[0].value} returned a {type(found).__name__}, not a Graph")
        return found

    return call
