"""Data: where samples come from, whatever the verb.

A source is one of

- an `.npz` file: arrays by input name, optionally `labels`;
- a folder of such files; or of one `.npy` file for each input, by its name (and `labels.npy`);
- a folder of single samples, as `.npy` arrays or `.png` and `.jpg` images; subfolders are classes;
- text `package.module:function`, a function that yields `(inputs, labels)`;
- in Python, arrays by name, or any iterable of such pairs (a DataLoader, for one).

Inputs are arrays by name, or in the model's order; the first axis of each counts samples. Nothing is resized,
normalised or made up, and arrays that don't fit the model are refused by name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError
from espalier.ir import TensorType, Value
from espalier.ir.elements import Element
from espalier.train.sources import LABELS, arrays_of, call, read_npz, sample_files

BUFFER = 256 << 20
"""Bytes of samples that are held to shuffle what can only be read in order."""
FILES = 128
"""Single samples in a batch, where nobody says how many."""


@dataclass(frozen=True)
class Batch:
    """Arrays in the order of the model's inputs, and labels if there are any."""

    inputs: tuple[NDArray[Any], ...]
    labels: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.inputs[0]) if self.inputs and self.inputs[0].ndim else 1

    def take(self, positions: Any) -> Batch:
        """Some of the samples."""
        inputs = tuple(array[positions] if array.ndim else array for array in self.inputs)
        return Batch(inputs, None if self.labels is None else self.labels[positions])


class Table(Protocol):
    """Samples that can be read in any order."""

    def __len__(self) -> int: ...

    def take(self, positions: Any) -> Any: ...


@dataclass(frozen=True)
class Data:
    """A source of batches that can be read again and again."""

    source: Any
    inputs: tuple[Value, ...]
    """The model's inputs: names, shapes and elements that the data must fit."""
    finite: bool = True
    """Whether NaN and infinite numbers are refused."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches as the source gives them. Raises InputError E206 for data that don't fit, naming the array."""
        empty = True
        for pair in self._pairs():
            batch = self._batch(pair)
            if len(batch) or any(0 in (value.shape or ())[:1] for value in self.inputs):
                empty = False
                yield batch
        if empty:
            hint = "An iterator is used up after it was read once: give a list, or a function." if _once(self) else None
            raise InputError("E206", f"{_named(self.source)} holds no data", hint=hint)

    def epoch(self, size: int, *, seed: int | None = None, number: int = 0, whole: bool = False) -> Iterator[Batch]:
        """Batches of `size` samples, once through the data.

        What has its own batches and order (a DataLoader) keeps them. Arrays and files are shuffled as a whole; what can
        only be read in order, within a buffer of 256 MiB.

        Args:
            seed: of the order, which is another one in each epoch; None keeps the source's.
            number: of the epoch.
            whole: leave out a last batch that is smaller than `size` (unless there is no other).

        Raises:
            InputError: E206, for data that don't fit.
        """
        if self.has_batches:
            yield from self
            return
        draw = None if seed is None else np.random.default_rng([seed, number])
        found = self._from_table(size, draw) if self._table is not None else self._from_stream(size, draw)
        for position, batch in enumerate(found):
            if len(batch) < size and whole and position:
                return
            yield batch

    @property
    def has_batches(self) -> bool:
        """Whether the source batches and shuffles by itself, as a DataLoader does."""
        return hasattr(self.source, "batch_size") and hasattr(self.source, "dataset")

    def __len__(self) -> int:
        """The number of samples. Raises TypeError if only reading them tells."""
        if self._table is None:
            raise TypeError("how many samples there are is not known before they are read")
        return len(self._table)

    def batches(self, size: int) -> int | None:
        """How many whole batches an epoch has (at least one); None if only reading tells."""
        if self.has_batches:
            return len(self.source) if hasattr(self.source, "__len__") else None
        return None if self._table is None else max(1, len(self._table) // size)

    @functools.cached_property
    def _table(self) -> Table | None:
        if isinstance(self.source, Mapping):
            return self._batch(dict(self.source))
        if isinstance(self.source, list | tuple) and len(self.source) == 1:
            return self._batch(self.source[0])
        if isinstance(self.source, str | Path):
            path = Path(self.source)
            if path.is_dir():
                named = arrays_of(path, self.inputs)
                return sample_files(path, self.inputs) if named is None else self._batch(named)
            if path.suffix == ".npz":
                return self._batch(read_npz(path))
        return None

    def _from_table(self, size: int, draw: np.random.Generator | None) -> Iterator[Batch]:
        table = self._table
        assert table is not None
        counts = {len(array) for array in table.inputs if array.ndim} if isinstance(table, Batch) else set()
        if len(counts) > 1:
            raise InputError("E206", f"the arrays have {' and '.join(map(str, sorted(counts)))} samples")
        order = np.arange(len(table)) if draw is None else draw.permutation(len(table))
        if not len(order):
            raise InputError("E206", f"{_named(self.source)} holds no data")
        for start in range(0, len(order), size):
            found = table.take(order[start : start + size])
            yield found if isinstance(found, Batch) else self._batch(found)

    def _from_stream(self, size: int, draw: np.random.Generator | None) -> Iterator[Batch]:
        samples = (batch.take(slice(k, k + 1)) for batch in self for k in range(len(batch)))
        mixed = samples if draw is None else _mixed(samples, draw, size)
        while True:
            chosen = list(itertools.islice(mixed, size))
            if not chosen:
                return
            yield _joined(chosen)

    def _pairs(self) -> Iterator[Any]:
        if isinstance(self.source, str | Path):
            path = Path(self.source)
            if path.is_dir():
                yield from self._folder(path)
            elif path.suffix == ".npz":
                yield read_npz(path)
            elif ":" in str(self.source):
                yield from call(str(self.source))
            else:
                raise InputError("E206", f"{_named(self.source)} is no .npz file, folder or package.module:function")
        elif isinstance(self.source, Mapping):
            yield dict(self.source)
        elif isinstance(self.source, Iterable):
            yield from self.source
        else:
            raise InputError("E206", f"data of type {type(self.source).__name__} can't be read")

    def _folder(self, path: Path) -> Iterator[Any]:
        archives = sorted(path.glob("*.npz"))
        for file in archives:
            yield read_npz(file)
        table = None if archives else self._table
        if isinstance(table, Batch):
            yield table.inputs, table.labels
        elif table is not None:
            for start in range(0, len(table), FILES):
                yield table.take(range(start, min(len(table), start + FILES)))

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
        arrays = tuple(_fit(array, value, self.finite) for array, value in zip(pair, self.inputs, strict=True))
        found = None if labels is None else np.asarray(labels)
        if found is not None and arrays and arrays[0].ndim and len(found) != len(arrays[0]):
            raise InputError("E206", f"{len(found)} labels for {len(arrays[0])} samples")
        if found is not None and found.dtype.kind not in "biuf":
            hint = "Give the number of each class, from 0 on."
            raise InputError("E206", f"the labels are no numbers, but {found.dtype}", hint=hint)
        if found is not None and found.dtype.kind == "f" and not np.all(np.isfinite(found)):
            raise InputError("E206", f"the array {LABELS!r} holds NaN or infinite numbers")
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


def _named(source: Any) -> str:
    return repr(str(source)) if isinstance(source, str | Path) else f"a {type(source).__name__}"


def _fit(array: Any, value: Value, finite: bool) -> NDArray[Any]:
    """The array in the input's element. Raises InputError if rank, extents or kind differ, or it must be `finite`."""
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
    if finite and array.dtype.kind == "f" and not np.all(np.isfinite(array)):
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
    if element.kind == "float" and np.any(np.isfinite(array.astype(np.float64)) & ~np.isfinite(found)):
        raise InputError("E206", f"the array for {name!r} holds numbers that are too large for {element}")
    return found


def _joined(batches: Sequence[Batch]) -> Batch:
    """Single samples as one batch. Raises InputError E206 if their shapes differ, or some have no labels."""
    first = batches[0]
    inputs = []
    for position, array in enumerate(first.inputs):
        arrays = [batch.inputs[position] for batch in batches]
        shapes = {each.shape for each in arrays}
        if len(shapes) > 1:
            message = f"samples of one batch have the shapes {' and '.join(map(str, sorted(shapes)))}"
            raise InputError("E206", message, hint="Use batches of one size, as a DataLoader gives them.")
        inputs.append(np.concatenate(arrays) if array.ndim else array)
    labels = [batch.labels for batch in batches if batch.labels is not None]
    if labels and len(labels) < len(batches):
        raise InputError("E206", "some of the data have labels, and some have none")
    return Batch(tuple(inputs), np.concatenate(labels) if labels else None)


def _mixed(samples: Iterator[Batch], draw: np.random.Generator, size: int) -> Iterator[Batch]:
    """Single samples in another order: each comes from a buffer that is full while there are more."""
    held: list[Batch] = []
    for sample in samples:
        held.append(sample)
        nbytes = sum(array.nbytes for array in sample.inputs)
        if len(held) > max(2 * size, BUFFER // max(1, nbytes)):
            place = int(draw.integers(len(held)))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()
    for place in draw.permutation(len(held)):
        yield held[place]


def rereadable(source: Any) -> Any:
    """An iterator's items as a list, since iterators are used up after they were read once; all else as it is."""
    return list(source) if isinstance(source, Iterator) else source


def _once(data: Data) -> bool:
    return isinstance(data.source, Iterator)
