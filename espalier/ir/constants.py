"""Constant tensors: lazy, shared, and changed by views that touch no bytes until somebody reads them.

A `Constant` is a source (an array in memory, or a stretch of a file that is mapped when read) and a list of views
(transposes, slices, selections, reshapes) on it. It is immutable; a view makes another constant.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError
from espalier.ir import elements
from espalier.ir.elements import Element
from espalier.ir.xp import numpy

Array = NDArray[Any]
SMALL = 1024
"""Constants of at most this many elements are written inline in the text form, and tracked as shape contents."""


class Source(Protocol):
    """Where the elements come from."""

    def read(self) -> Array:
        """The array; mapped rather than loaded where possible, never to be written to."""
        ...


@dataclass(frozen=True, slots=True)
class ArraySource:
    """An array in memory."""

    array: Array

    def read(self) -> Array:
        return self.array


Stamp: TypeAlias = tuple[int, int]
"""A file's size in bytes and when it was last written, in nanoseconds."""


def stamp(path: Path) -> Stamp:
    """What tells that a file is still the same. Raises OSError."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def map_bytes(path: Path, offset: int, count: int, when: Stamp) -> Array:
    """Bytes of a file, mapped. Raises InputError E104 or E106 if the file is gone or is not what it was at `when`."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != when:
                message = f"{path.name} has changed since the model was loaded"
                raise InputError("E106", message, hint="Load the model again, and leave its data alone until then.")
            mapped = np.memmap(file, np.uint8, "r", offset, (count,)) if count else np.zeros(0, np.uint8)
    except OSError as error:
        raise InputError("E104", f"{path.name}, which was there when the model was loaded: {error.strerror}") from None
    return mapped.view(np.ndarray)


@dataclass(frozen=True, slots=True)
class FileSource:
    """Little-endian elements in a file, mapped on each read. The reader of the model has checked path and extent."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    when: Stamp
    """The file's stamp when the model was loaded; a later one is refused."""

    def read(self) -> Array:
        mapped = map_bytes(self.path, self.offset, math.prod(self.shape) * self.dtype.itemsize, self.when)
        return mapped.view(self.dtype).reshape(self.shape)


class ComputedSource:
    """An array that is computed when it is first read, and kept."""

    __slots__ = ("_array", "_compute")

    def __init__(self, compute: Callable[[], Array]) -> None:
        self._compute: Callable[[], Array] | None = compute
        self._array: Array | None = None

    @property
    def is_read(self) -> bool:
        """Whether it has been computed."""
        return self._array is not None

    def read(self) -> Array:
        if self._array is None:
            assert self._compute is not None
            self._array, self._compute = self._compute(), None
        return self._array


@dataclass(frozen=True, slots=True)
class View:
    """One step from a constant to another: the name of the step and its arguments."""

    kind: str
    arguments: tuple[Any, ...]
    before: tuple[int, ...] = field(compare=False)
    """The shape that it is applied to."""

    def positions(self, extent: int) -> Sequence[int]:
        """The positions of its axis, of this extent, that a slice or a selection keeps."""
        _, *rest = self.arguments
        return range(*slice(*rest).indices(extent)) if self.kind == "slice" else tuple(rest[0])


VIEWS: dict[str, Callable[..., Any]] = {
    "transpose": lambda xp, array, perm: xp.transpose(array, perm),
    "reshape": lambda xp, array, shape: xp.reshape(array, shape),
    "slice": lambda xp, array, axis, start, stop, step: array[(slice(None),) * axis + (slice(start, stop, step),)],
    "take": lambda xp, array, axis, indices: xp.take(array, indices, axis=axis),
}
"""The steps, as functions of the primitives (`espalier.ir.xp`), an array of theirs, and the step's arguments."""


def through(views: Sequence[View], array: Any, xp: Any = numpy) -> Any:
    """What views make of an array, by the primitives of its library; in torch that has gradients."""
    for view in views:
        array = VIEWS[view.kind](xp, array, *view.arguments)
    return array


class Constant:
    """An immutable tensor of known element and shape whose bytes are read only when needed."""

    __slots__ = ("__weakref__", "_digest", "element", "shape", "source", "views")

    def __init__(
        self, source: Source, element: Element, shape: tuple[int, ...], views: tuple[View, ...] = (), digest: str = ""
    ) -> None:
        self.source, self.element, self.shape, self.views, self._digest = source, element, shape, views, digest

    @property
    def array(self) -> Array:
        """The elements, as a read-only array (mapped from the file where the views allow it)."""
        array: Array = self.source.read()
        if self.views:
            array = through(self.views, array)
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        return array

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take when packed."""
        return elements.packed_bytes(self.element.storage, self.size)

    @property
    def digest(self) -> str:
        """SHA-256 over element, shape and content: equal constants have equal digests, whatever their views."""
        if not self._digest:
            digest = hashlib.sha256(f"{self.element}{list(self.shape)}".encode())
            array = self.array
            if array.dtype == object:
                digest.update(repr(array.tolist()).encode())
            elif array.flags.c_contiguous:
                if array.size:
                    digest.update(array.reshape(-1).view(np.uint8).data)
            else:
                for part in _rows(array):
                    digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            self._digest = digest.hexdigest()
        return self._digest

    def transpose(self, perm: Sequence[int]) -> Constant:
        """Axis `k` of the result is axis `perm[k]` of this."""
        if sorted(perm) != list(range(len(self.shape))):
            raise ValueError(f"{tuple(perm)} is no permutation of the axes of {self.shape}")
        return self._view("transpose", tuple(perm), shape=tuple(self.shape[k] for k in perm))

    def reshape(self, shape: Sequence[int]) -> Constant:
        """The same elements in row-major order under another static shape of the same size."""
        if math.prod(shape) != self.size:
            raise ValueError(f"{self.shape} can't be reshaped to {tuple(shape)}")
        return self._view("reshape", tuple(shape), shape=tuple(shape))

    def slice(self, axis: int, start: int, stop: int, step: int = 1) -> Constant:
        """Positions start, start+step, … below stop of one axis."""
        extent = len(range(*slice(start, stop, step).indices(self.shape[axis])))
        return self._view("slice", axis, start, stop, step, shape=_with(self.shape, axis, extent))

    def take(self, axis: int, indices: Sequence[int]) -> Constant:
        """The given positions of one axis, in that order.

        Selections go before a transpose that was last, and follow each other by axis, so that views of one source that
        lose the same indices stay comparable.
        """
        indices = tuple(int(index) for index in indices)
        if self.views:
            last, before = self.views[-1], self.base(len(self.views) - 1)
            if last.kind == "transpose":
                return before.take(last.arguments[0][axis], indices).transpose(last.arguments[0])
            if last.kind == "take" and last.arguments[0] == axis:
                return before.take(axis, [last.arguments[1][index] for index in indices])
            if last.kind == "take" and last.arguments[0] > axis:
                return before.take(axis, indices).take(*last.arguments)
        return self._view("take", axis, indices, shape=_with(self.shape, axis, len(indices)))

    def base(self, count: int) -> Constant:
        """The constant after the first `count` of its views."""
        shape = self.views[count].before if count < len(self.views) else self.shape
        return Constant(self.source, self.element, shape, self.views[:count])

    def _view(self, kind: str, *arguments: Any, shape: tuple[int, ...]) -> Constant:
        return Constant(self.source, self.element, shape, (*self.views, View(kind, arguments, self.shape)))

    def __repr__(self) -> str:
        return f"Constant({self.element}{list(self.shape)})"


def _with(shape: tuple[int, ...], axis: int, extent: int) -> tuple[int, ...]:
    return (*shape[:axis], extent, *shape[axis + 1 :])


def _rows(array: Array, limit: int = 1 << 20) -> Sequence[Array]:
    """The array cut along its first axis, so that no copy of a part needs much memory."""
    rows = max(1, limit // max(1, array[:1].size)) if array.ndim else 1
    return [array] if not array.ndim else [array[k : k + rows] for k in range(0, len(array), rows)]


def constant(array: Any, element: Element | None = None) -> Constant:
    """A constant from anything numpy understands; `element` says more than the dtype can (bipolar, 3-bit, …).

    An array that somebody may still write to is copied, a read-only one is kept: whoever owns large weights passes
    views that are not writeable.
    """
    given, array = array, np.asarray(array)
    if element is None:
        element = elements.from_dtype(array.dtype)
    elif array.dtype != element.dtype:
        array = array.astype(element.dtype)
    if element is elements.STRING and array.dtype != object:
        array = array.astype(object)
    if array.flags.writeable and (array is given or not array.flags.owndata):
        array = array.copy("K")
    return Constant(ArraySource(array), element, array.shape)


def from_file(path: Path, offset: int, element: Element, shape: tuple[int, ...], when: Stamp) -> Constant:
    """A constant whose little-endian elements lie in a file, one after another; the file must stay as it was."""
    return Constant(FileSource(path, offset, element.dtype, shape, when), element, shape)


def computed(compute: Callable[[], Array], element: Element, shape: tuple[int, ...]) -> Constant:
    """A constant whose elements are computed when somebody reads them: `compute` gives the array."""
    return Constant(ComputedSource(compute), element, shape)
