"""Weights of an artifact: a safetensors file of raw forms, read into aligned memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from espalier.runtime.elements import Array, raw_dtype, raw_form
from espalier.runtime.errors import ArtifactError
from espalier.runtime.files import ArtifactFiles
from espalier.runtime.manifest import TensorSpec, check_spec

ALIGNMENT = 64
"""Bytes: what vector code may assume of every tensor."""


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
    """The weights in order, each in memory of its own that is aligned and may be passed to compiled code.

    Raises:
        ArtifactError: E711: a tensor is missing or differs from the manifest.
    """
    from safetensors import SafetensorError, safe_open

    path = files.path(section.file)
    loaded = []
    try:
        with safe_open(path, framework="numpy") as source:
            for spec in section.tensors:
                check_spec(spec, f"weight {spec.name!r}")
                array = cast(Array, source.get_tensor(spec.name))
                if array.dtype != raw_dtype(spec.element) or array.shape != spec.shape:
                    message = f"the weight {spec.name!r} is {array.dtype}{list(array.shape)}; the manifest says "
                    raise ArtifactError("E711", f"{message}{spec.element}{list(spec.shape or ())}", node=spec.name)
                loaded.append(aligned(array))
    except SafetensorError as error:
        raise ArtifactError("E711", f"cannot read {section.file!r}: {error}") from error
    return loaded


def aligned(array: Array) -> Array:
    """The array itself if compiled code can take it as it is, otherwise a copy: compact, writable, aligned."""
    # numpy calls arrays contiguous whatever the strides of axes of extent 0 or 1 are; compiled code checks them all.
    compact = array.strides == _compact_strides(array) and array.flags.writeable
    if compact and _address(array) % ALIGNMENT == 0:
        return array
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    copy: Array = np.ndarray(array.shape, array.dtype, memory, -_address(memory) % ALIGNMENT)
    copy[...] = array
    return copy


def _compact_strides(array: Array) -> tuple[int, ...]:
    strides, step = [], array.itemsize
    for extent in reversed(array.shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def _address(array: Array) -> int:
    # Several times as fast as array.ctypes.data, which matters to small models.
    address: int = array.__array_interface__["data"][0]
    return address
