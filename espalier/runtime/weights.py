"""Weights of an artifact: a safetensors file of raw forms, read into aligned memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import RawIOBase
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from espalier.runtime.elements import Array, raw_dtype, raw_form
from espalier.runtime.errors import ArtifactError
from espalier.runtime.files import ArtifactFiles
from espalier.runtime.manifest import TensorSpec, check_spec

ALIGNMENT = 64
"""Bytes: what vector code may assume of every tensor."""
HEADER_LIMIT = 100_000_000
"""Bytes of a safetensors header; the format allows no more."""
SAFETENSORS_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
"""numpy's names of the types in a safetensors file."""


@dataclass(frozen=True)
class WeightsSection:
    """The weights' file and its tensors in the order in which the compiled function takes them."""

    file: str
    tensors: tuple[TensorSpec, ...]


def save_weights(path: Path, weights: Mapping[str, Array]) -> None:
    """Write weights in their raw form (`espalier.runtime.elements`); the bytes depend on names and contents alone."""
    from safetensors.numpy import save_file

    raw = {name: raw_form(array) for name, array in weights.items()}
    save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in raw.items()}, path)


def load_weights(files: ArtifactFiles, section: WeightsSection) -> list[Array]:
    """The weights in order, each at a multiple of ALIGNMENT and passed to compiled code as it is.

    Raises:
        ArtifactError: E711: a tensor is missing or differs from the manifest.
    """
    block, starts = load_block(files, section)
    found = []
    for start, spec in zip(starts, section.tensors, strict=True):
        dtype, shape = raw_dtype(spec.element), _extents(spec)
        found.append(np.ndarray(shape, dtype, block, start))
    return found


def load_block(files: ArtifactFiles, section: WeightsSection) -> tuple[Array, list[int]]:
    """The bytes of the weights in order, each at the next multiple of ALIGNMENT, and where each starts.

    They are read straight to where they stay, which the package safetensors has no way to do: nothing else of the
    weights' size is ever in memory.

    Raises:
        ArtifactError: E711: a tensor is missing or differs from the manifest.
    """
    sizes = [_size(spec) for spec in section.tensors]
    starts = list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
    total = starts.pop()
    try:
        with files.path(section.file).open("rb", buffering=0) as stream:
            data, entries = _header(stream)
            places = [data + _position(spec, entries, size) for spec, size in zip(section.tensors, sizes, strict=True)]
            if any(p + size > files.manifest.files[section.file].size for p, size in zip(places, sizes, strict=True)):
                raise ValueError("it ends too early")
            block = aligned_empty((max(total, 1),), np.dtype(np.uint8))
            for place, start, size in zip(places, starts, sizes, strict=True):
                stream.seek(place)
                _read(stream, block.data[start : start + size])
    except OSError as error:
        raise ArtifactError("E711", f"cannot read {section.file!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError("E711", f"cannot read {section.file!r}: {error}") from error
    return block, starts


def _header(stream: IO[bytes]) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file start, and its entries. Raises ValueError for anything else."""
    length = bytearray(8)
    _read(stream, memoryview(length))
    size = int.from_bytes(length, "little")
    if size > HEADER_LIMIT:
        raise ValueError("it is no safetensors file")
    text = bytearray(size)
    _read(stream, memoryview(text))
    entries = json.loads(text)
    if not isinstance(entries, dict):
        raise ValueError("it is no safetensors file")
    return 8 + size, entries


def _read(stream: IO[bytes], target: memoryview) -> None:
    """Fill memory. Raises ValueError if the file ends before."""
    while target.nbytes:
        count = cast(RawIOBase, stream).readinto(target)
        if not count:
            raise ValueError("it ends too early")
        target = target[count:]


def _position(spec: TensorSpec, entries: dict[str, Any], size: int) -> int:
    """Where a tensor's bytes start among the data. Raises ArtifactError E711 unless it is what the manifest says."""
    entry = entries.get(spec.name)
    if not isinstance(entry, dict):
        raise ArtifactError("E711", f"the weights' file has no tensor {spec.name!r}", node=spec.name)
    dtype, shape = raw_dtype(spec.element), _extents(spec)
    found = SAFETENSORS_TYPES.get(str(entry.get("dtype")))
    if found != dtype.name or entry.get("shape") != list(shape):
        message = f"the weight {spec.name!r} is {found}{entry.get('shape')}; the manifest says "
        raise ArtifactError("E711", f"{message}{spec.element}{list(shape)}", node=spec.name)
    place = entry.get("data_offsets")
    first, last = place if isinstance(place, list) and len(place) == 2 else (None, None)
    if type(first) is not int or type(last) is not int or first < 0 or last - first != size:
        raise ValueError(f"the place of the tensor {spec.name!r} is impossible")
    return first


def _extents(spec: TensorSpec) -> tuple[int, ...]:
    """A weight's shape. Raises ArtifactError E711 if it is not of numbers, E702 if it is impossible."""
    check_spec(spec, f"weight {spec.name!r}")
    if spec.shape is None or not all(isinstance(extent, int) for extent in spec.shape):
        raise ArtifactError("E711", f"the shape of the weight {spec.name!r} is not one of numbers", node=spec.name)
    return tuple(int(extent) for extent in spec.shape)


def _size(spec: TensorSpec) -> int:
    return math.prod(_extents(spec)) * raw_dtype(spec.element).itemsize


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array of anything, at a multiple of ALIGNMENT."""
    memory = np.empty(math.prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, memory, -_address(memory) % ALIGNMENT, _compact_strides(shape, dtype.itemsize))


def compact(array: Array) -> bool:
    """Whether compiled code that asks for no alignment beyond the elements' can take an array as it is."""
    # numpy calls arrays contiguous whatever the strides of axes of extent 0 or 1 are; compiled code checks them all.
    flags = array.flags
    return bool(flags.writeable and flags.aligned and array.strides == _compact_strides(array.shape, array.itemsize))


def aligned(array: Array) -> Array:
    """The array itself if compiled code can take it as it is, otherwise a copy: compact, writable, aligned."""
    if compact(array) and _address(array) % ALIGNMENT == 0:
        return array
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def _compact_strides(shape: tuple[int, ...], step: int) -> tuple[int, ...]:
    """Bytes between neighbours along each axis, from a number's bytes on; compiled code counts extents of 0 as such."""
    strides = []
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def _address(array: Array) -> int:
    # Several times as fast as array.ctypes.data, which matters to small models.
    address: int = array.__array_interface__["data"][0]
    return address
