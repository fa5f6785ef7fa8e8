"""Constants as ONNX tensors: inside the model, or streamed to a file beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from espalier.frontends.onnx.elements import CODES, code_of
from espalier.frontends.onnx.tensors import PackedSource
from espalier.ir import elements
from espalier.ir.constants import Constant, FileSource
from espalier.ir.graph import Graph

ALIGNMENT = 4096
"""Where large tensors begin in a data file, so that readers can map them."""
INLINE = 1024
"""Tensors of fewer bytes stay in the model: readers want shapes and scalars at hand."""
PIECE = 1 << 24


def used_files(graph: Graph) -> set[Path]:
    """The files that constants of a graph are mapped from."""
    sources = (value.constant.source for value in graph.constants() if value.constant is not None)
    return {source.path.resolve() for source in sources if isinstance(source, FileSource | PackedSource)}


def write_tensor(constant: Constant, name: str, tensor: TensorProto, data: DataFile | None = None) -> None:
    """Fill an empty message with the constant as ONNX stores it, in the data file if there is one and it is large."""
    element = constant.element.storage
    tensor.name = name
    tensor.data_type = code_of(element)
    tensor.dims.extend(constant.shape)
    if element is elements.STRING:
        tensor.string_data.extend(str(text).encode() for text in constant.array.reshape(-1).tolist())
        return
    if data is not None and constant.nbytes >= INLINE:
        offset, length = data.append(constant)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", data.path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return
    tensor.raw_data = b"".join(pieces(constant))


def pieces(constant: Constant) -> Iterator[Any]:
    """The bytes of a constant as ONNX lays them out, in order, some megabytes at a time."""
    element, array = constant.element.storage, constant.array
    if element.bits < 8 and element in CODES and element is not elements.BOOL:
        yield pack(np.ascontiguousarray(array).reshape(-1), element.bits).tobytes()
        return
    if array.flags.c_contiguous:
        if array.nbytes <= PIECE:
            yield array.tobytes()
        else:
            flat = array.reshape(-1).view(np.uint8)
            for start in range(0, len(flat), PIECE):
                yield flat[start : start + PIECE].data
        return
    rows = max(1, PIECE // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data


def pack(flat: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Elements of less than 8 bits, packed from the low bits up."""
    codes = flat.view(np.uint8) & np.uint8((1 << bits) - 1)
    if bits not in (2, 4):
        raised = ((codes[:, None] >> np.arange(bits, dtype=np.uint8)) & 1).reshape(-1)
        return np.packbits(raised, bitorder="little")
    per_byte = 8 // bits
    padded = np.zeros(-(-len(codes) // per_byte) * per_byte, np.uint8)
    padded[: len(codes)] = codes
    found = np.zeros(len(padded) // per_byte, np.uint8)
    for k in range(per_byte):
        found |= padded[k::per_byte] << np.uint8(k * bits)
    return found


class DataFile:
    """A file of weights beside a model: written under a temporary name, which `commit` replaces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        handle, self._temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        self._stream = os.fdopen(handle, "wb")
        self._committed = False

    def append(self, constant: Constant) -> tuple[int, int]:
        """Write a constant; returns where it begins and how many bytes it has."""
        position = self._stream.tell()
        offset = -(-position // ALIGNMENT) * ALIGNMENT
        self._stream.write(b"\0" * (offset - position))
        for piece in pieces(constant):
            self._stream.write(piece)
        return offset, self._stream.tell() - offset

    def commit(self) -> None:
        """Give the file its name."""
        self._stream.close()
        os.chmod(self._temporary, 0o644)
        os.replace(self._temporary, self.path)
        self._committed = True

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            self._stream.close()
            os.unlink(self._temporary)
