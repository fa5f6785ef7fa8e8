"""Data: where samples come from, whatever the verb.

A source is an `.npz` file (arrays by input name, optionally `labels`), a folder of such files, text
`package.module:function` naming a function that yields `(inputs, labels)`, or in Python any iterable of such pairs (a
DataLoader, for one). Inputs are arrays by name, or in the model's order; the first axis of each counts samples.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError
from espalier.ir import TensorType, Value

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
        if isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Mapping | tuple | list | np.ndarray):
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
                raise InputError(
                    "E206", f"the data have no array {value.name!r}", hint=f"They hold {', '.join(sorted(named)) or 'nothing'}."
                )
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
            raise InputError("E206", f"the array for {value.name!r} has shape {array.shape}, the model wants {value.type}")
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        raise InputError("E206", f"the array for {value.name!r} holds NaN or infinite numbers")
    if array.dtype != element.dtype:
        if array.dtype.kind == "f" and element.is_integer:
            raise InputError("E206", f"the array for {value.name!r} holds {array.dtype}, the model wants {element}")
        array = array.astype(element.dtype)
    return array


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise InputError("E206", f"{path} cannot be read as .npz: {error}") from None


def _call(text: str) -> Iterator[Any]:
    module_name, _, function_name = text.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise InputError("E206", f"the data function {text!r} cannot be found: {error}") from None
    yield from function()
