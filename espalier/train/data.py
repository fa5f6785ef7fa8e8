"""Data: where samples come from, whatever the verb.

A source is an `.npz` file (arrays by input name, optionally `labels`), a folder of such files, text
`package.module:function` naming a function that yields `(inputs, labels)`, or in Python any iterable of such pairs (a
DataLoader, for one). Inputs are arrays by name, or in the model's order; the first axis of each counts samples.
"""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError
from espalier.ir import TensorType, Value
from espalier.ir.elements import Element

LABELS = "labels"


@dataclass(frozen=True)
class Batch:
    """Arrays in the order of the model's inputs, and labels if there are any."""

    inputs: tuple[NDArray[Any], ...]
    labels: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.inputs[0]) if self.inputs and self.inputs[0].ndim else 1


@dataclass(frozen=True)
class Data:
    """A source of batches that can be read again and again."""

    source: Any
    inputs: tuple[Value, ...]
    """The model's inputs: names, shapes and elements that the data must fit."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches. Raises InputError E206 for data that don't fit, naming the array."""
        empty = True
        for pair in self._pairs():
            empty = False
            yield self._batch(pair)
        if empty:
            raise InputError("E206", f"{self.source!r} holds no data")

    def _pairs(self) -> Iterator[Any]:
        if isinstance(self.source, str | Path):
            path = Path(self.source)
            if path.is_dir():
                for file in sorted(path.glob("*.npz")):
                    yield _read_npz(file)
            elif path.suffix == ".npz":
                yield _read_npz(path)
            elif ":" in str(self.source):
                yield from _call(str(self.source))
            else:
                raise InputError("E206", f"{self.source!r} is no .npz file, folder or package.module:function")
        elif isinstance(self.source, Mapping):
            yield dict(self.source)
        elif isinstance(self.source, Iterable):
            yield from self.source
        else:
            raise InputError("E206", f"data of type {type(self.source).__name__} can't be read")

    def _batch(self, pair: Any) -> Batch:
        labels = None
        if isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], (Mapping, tuple, list)):
            pair, labels = pair
        elif hasattr(pair, "numpy") or isinstance(pair, np.ndarray):
            pair = [pair]
        elif isinstance(pair, tuple | list) and len(pair) == len(self.inputs) + 1:
            *pair, labels = pair
        if isinstance(pair, Mapping):
            named = dict(pair)
            labels = named.pop(LABELS, labels)
            pair = self._by_name(named)
        if isinstance(pair, np.ndarray) or hasattr(pair, "numpy"):
            pair = [pair]
        if len(pair) != len(self.inputs):
            raise InputError("E206", f"the data have {len(pair)} arrays, the model {len(self.inputs)} inputs")
        arrays = tuple(_fit(array, value) for array, value in zip(pair, self.inputs, strict=True))
        found = None if labels is None else np.asarray(labels)
        if found is not None and arrays and arrays[0].ndim and len(found) != len(arrays[0]):
            raise InputError("E206", f"{len(found)} labels for {len(arrays[0])} samples")
        return Batch(arrays, found)

    def _by_name(self, named: Mapping[str, Any]) -> Sequence[Any]:
        arrays = []
        for position, value in enumerate(self.inputs):
            key = value.name if value.name in named else f"input_{position}"
            if key not in named:
                hint = f"They hold {', '.join(sorted(named)) or 'nothing'}."
                raise InputError("E206", f"the data have no array {value.name!r}", hint=hint)
            arrays.append(named[key])
        unknown = set(named) - {v.name for v in self.inputs} - {f"input_{k}" for k in range(len(self.inputs))}
        if unknown:
            raise InputError("E206", f"the model has no input {sorted(unknown)[0]!r}")
        return arrays


def _fit(array: Any, value: Value) -> NDArray[Any]:
    """The array in the input's element. Raises InputError if rank, extents or kind differ, or a float is not finite."""
    array = np.asarray(array.detach().cpu().numpy() if hasattr(array, "detach") else array)
    if not isinstance(value.type, TensorType):
        raise InputError("E214", f"input {value.name!r} is a {value.type}; data can only be tensors")
    element, shape = value.element.storage, value.type.shape
    if shape is not None:
        fits = len(shape) == array.ndim
        # a fixed batch of 1 is fed sample by sample, so the first extent may be larger
        fits = fits and all(not isinstance(d, int) or d == n for d, n in zip(shape[1:], array.shape[1:], strict=True))
        if not fits:
            message = f"the array for {value.name!r} has shape {array.shape}, the model wants {value.type}"
            raise InputError("E206", message)
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        raise InputError("E206", f"the array for {value.name!r} holds NaN or infinite numbers")
    return array if array.dtype == element.dtype else _cast(array, element, value.name)


def _cast(array: NDArray[Any], element: Element, name: str) -> NDArray[Any]:
    """The array in another element type. Raises InputError where that would change numbers by more than rounding."""
    kind = array.dtype.kind
    takes = {"int": "biu", "uint": "biu", "bool": "b", "float": "biufV", "complex": "biufcV"}.get(element.kind, "")
    if kind not in takes:
        raise InputError("E206", f"the array for {name!r} holds {array.dtype}, the model wants {element}")
    if element.is_integer and array.size:
        low, high = element.range
        if int(array.min()) < low or int(array.max()) > high:
            message = f"the array for {name!r} holds {array.min()} to {array.max()}, more than {element} can"
            raise InputError("E206", message)
    with np.errstate(over="ignore"):
        found = array.astype(element.dtype)
    if element.kind == "float" and not np.all(np.isfinite(found)):
        raise InputError("E206", f"the array for {name!r} holds numbers that are too large for {element}")
    return found


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, LookupError, NotImplementedError) as error:
        raise InputError("E206", f"{path} cannot be read as .npz: {error}") from None


def _call(text: str) -> Iterator[Any]:
    """What a function of the user's yields; its module may lie in the working directory. Raises InputError E206."""
    module_name, _, function_name = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        yield from getattr(importlib.import_module(module_name), function_name)()
    except InputError:
        raise
    except Exception as error:  # whatever the user's code raises
        what = f"{type(error).__name__}: {error}"
        raise InputError("E206", f"the data function {text!r} cannot be used: {what}") from error
