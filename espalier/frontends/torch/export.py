"""Getting an exported program from a module or a file, decomposed only as far as lowerings demand."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from espalier.errors import InputError
from espalier.frontends.torch import registry


def export(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> ExportedProgram:
    """The module as torch.export sees it: traced without Dynamo where that works, else with it.

    Raises InputError (E115) if the module cannot be called with these arguments, and (E114) if neither way of tracing
    takes it.
    """
    reasons: list[str] = []
    first: Exception | None = None
    for strict in (False, True):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.export.export(
                    module, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=strict
                )
        except Exception as error:  # whatever the user's code or torch raises is the reason
            first = first or error
            reasons.append(_line(error))
    _check_call(module, args, kwargs)
    raise InputError(
        "E114", f"torch.export refused {type(module).__name__}: {reasons[0]}",
        hint=f"With Dynamo (strict=True) it said: {reasons[1]}" if reasons[1] != reasons[0] else None,
    ) from first  # fmt: skip


def _check_call(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> None:
    try:
        with torch.no_grad():
            module(*args, **dict(kwargs or {}))
    except Exception as error:
        raise InputError(
            "E115", f"{type(module).__name__} cannot be called with the example inputs: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    """The first line of what an error says; of dimensions that cannot be as declared also a reason and the remedy."""
    text = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    shown = text[:1]
    if shown and shown[0].startswith("Constraints violated"):
        remedy = text.index("Suggested fixes:") if "Suggested fixes:" in text else len(text)
        shown = [*text[:2], *(line for line in text[remedy:] if not line.startswith("The error above"))]
    return f"{type(error).__name__}: {' '.join(shown)}"[:1000]


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The program without in-place operators, in which what has a lowering is kept whole."""
    program = copy.copy(program)
    program._example_inputs = None  # only for guards, which torch can't generate for complex inputs
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program.run_decompositions(decomposition_table())


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """Every decomposition that torch knows, but those of overloads that a lowering takes as they are."""
    table = dict(_all_decompositions())
    for name in {**registry.REAL, **registry.COMPLEX}:
        overload = _overload(name)
        if overload is not None:
            table.pop(overload, None)
    return table


@cache
def _all_decompositions() -> dict[Any, Callable[..., Any]]:
    registry.load_lowerings()
    default = torch.export.default_decompositions()
    table: dict[Any, Callable[..., Any]] = dict(torch._decomp.global_decomposition_table["post_autograd"])
    table.update(dict(default.items()))  # type: ignore[no-untyped-call]  # torch gives it no type
    return table


def _overload(name: str) -> Any:
    """The operator overload of a dotted name; None if this torch has none."""
    parts = name.split(".")
    if len(parts) != 3:
        return None
    packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
    return getattr(packet, parts[2], None) if packet is not None else None


def read_pt2(path: str | Path, trust: bool) -> ExportedProgram:
    """The program in a .pt2 file.

    Raises InputError: E113 without `trust`, E101 and E103 for a file that can't be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("E101", f"{path} is not a file")
    if not trust:
        message = f"{path.name} may hold pickled objects, which run code when they are read"
        raise InputError("E113", message, hint="If you trust where it comes from: --trust, or trust=True in Python.")
    logger = logging.getLogger("torch.export")
    logger.addFilter(_silence)  # it logs the traceback of each way of reading that failed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:  # torch raises all kinds on broken files
        raise InputError("E103", f"torch.export cannot read {path.name}: {_line(error)}") from error
    finally:
        logger.removeFilter(_silence)


def _silence(_: logging.LogRecord) -> bool:
    return False


def symbol_namer(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> Callable[[str, int], str | None]:
    """Looks up what the user called the extent of an input's axis in `dynamic_shapes`.

    `names` are the placeholders of the tensors in `args` and then `kwargs`, flattened.
    """
    found: dict[tuple[str, int], str] = {}
    specs: list[Any] = []
    values = list(args)
    if isinstance(dynamic_shapes, Mapping):
        order = [*dynamic_shapes]
        positional = order[: len(values)] if kwargs is None else [name for name in order if name not in kwargs]
        specs += [dynamic_shapes[name] for name in positional]
        values += [(kwargs or {})[name] for name in order if name in (kwargs or {})]
        specs += [dynamic_shapes[name] for name in order if name in (kwargs or {})]
    elif dynamic_shapes is not None:
        specs = list(dynamic_shapes)
        values += list((kwargs or {}).values())
    leaves: list[Any] = []
    for value, spec in zip(values, specs, strict=False):
        _pair_leaves(value, spec, leaves)
    for name, spec in zip(names, leaves, strict=False):
        entries = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
        for axis, entry in entries:
            word = entry if isinstance(entry, str) else getattr(entry, "__name__", None)
            if isinstance(word, str) and word.isidentifier():
                found[name, int(axis)] = word
    return lambda name, axis: found.get((name, axis))


def _pair_leaves(value: Any, spec: Any, leaves: list[Any]) -> None:
    """Append the spec of each tensor inside a value, in the order of torch's pytrees."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _pair_leaves(entry, spec.get(key) if isinstance(spec, Mapping) else None, leaves)
    elif isinstance(value, (tuple, list)):
        for position, entry in enumerate(value):
            _pair_leaves(entry, spec[position] if isinstance(spec, (tuple, list)) else None, leaves)
    else:
        leaves.append(spec)
