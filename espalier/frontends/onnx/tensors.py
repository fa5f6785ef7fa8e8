"""Weights of an ONNX model as constants: checked before anything is allocated, mapped rather than loaded."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, numpy_helper

from espalier.errors import InputError
from espalier.frontends.onnx.elements import BY_CODE, from_code
from espalier.ir import constants, elements
from espalier.ir.constants import ArraySource, Constant
from espalier.ir.elements import Element

DENSE_LIMIT = 1 << 28
"""Elements that a sparse tensor may have once it is dense."""


@dataclass(frozen=True, slots=True)
class PackedSource:
    """Elements of 2, 4 or 6 bits, packed in a file from the low bits up, unpacked on each read."""

    path: Path
    offset: int
    element: Element
    shape: tuple[int, ...]
    when: constants.Stamp

    def read(self) -> NDArray[Any]:
        count = math.prod(self.shape)
        packed = constants.map_bytes(self.path, self.offset, elements.packed_bytes(self.element, count), self.when)
        return unpack(packed, self.element, count).reshape(self.shape)


def unpack(packed: NDArray[Any], element: Element, count: int) -> NDArray[Any]:
    """`count` elements of less than 8 bits from their packed bytes."""
    bits = element.bits
    if bits not in (2, 4):
        tensor = TensorProto(dims=[count], raw_data=packed.tobytes(), data_type=_code(element))
        return numpy_helper.to_array(tensor)
    per_byte = 8 // bits
    parts = np.empty((len(packed), per_byte), np.uint8)
    for k in range(per_byte):
        parts[:, k] = (packed >> (k * bits)) & ((1 << bits) - 1)
    flat = parts.reshape(-1)[:count]
    if element.is_float:
        return flat.view(ml_dtypes.float4_e2m1fn)
    if element.kind == "int":
        sign = 1 << (bits - 1)
        return ((flat ^ sign).view(np.int8) - np.int8(sign)).astype(element.dtype)
    return flat.astype(element.dtype)


def _code(element: Element) -> int:
    from espalier.frontends.onnx.elements import code_of

    return code_of(element)


_PLAIN = {
    code: (element, element.dtype.newbyteorder("<"), element.dtype.itemsize)
    for code, element in BY_CODE.items()
    if element.bits >= 8 and element is not elements.STRING
}
"""Elements of whole bytes by their code, with numpy's type of their little-endian form."""


def read_tensor(tensor: TensorProto, folder: Path | None, name: str = "") -> Constant:
    """The constant that a TensorProto holds or points to; `folder` is where external data lie.

    Raises InputError: E104, E105, E106 for external data, E111 where bytes and type don't agree.
    """
    plain = _PLAIN.get(tensor.data_type)
    if plain is not None and tensor.HasField("raw_data") and not tensor.data_location:  # most of a large model
        raw, shape = tensor.raw_data, tuple(tensor.dims)
        element, dtype, size = plain
        if math.prod(shape) * size == len(raw) and raw:
            return Constant(ArraySource(np.frombuffer(raw, dtype).reshape(shape)), element, shape)
    name = name or tensor.name or "a tensor"
    element = from_code(tensor.data_type, name)
    shape = tuple(tensor.dims)
    if any(extent < 0 for extent in shape):
        raise InputError("E111", f"the shape {list(shape)} has a negative extent", node=name)
    count = math.prod(shape)
    if count > 1 << 62:
        raise InputError("E117", f"the shape {list(shape)} has more elements than can be addressed", node=name)
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external(tensor, folder, name, element, shape)
    if tensor.HasField("raw_data") and element is not elements.STRING:
        raw = tensor.raw_data
        if len(raw) != _bytes(element, count):
            raise InputError("E111", f"{len(raw)} bytes do not hold {element}{list(shape)}", node=name)
        if element.bits >= 8 or element is elements.BOOL:
            return constants.constant(
                _shaped(np.frombuffer(raw, element.dtype.newbyteorder("<")), shape, name), element
            )
        return constants.constant(_shaped(unpack(np.frombuffer(raw, np.uint8), element, count), shape, name), element)
    return constants.constant(_shaped(_typed(tensor, name, element, count), shape, name), element)


_NUMBERS = {"int": np.int64, "float": np.float32, "string": object}


def read_value(attribute: str, value: Any, folder: Path | None, name: str) -> Constant:
    """The constant that a Constant holds by one of its attributes. Raises InputError as `read_tensor` does."""
    if attribute == "value":
        return read_tensor(value, folder, name)
    if attribute == "sparse_value":
        return read_sparse(value, folder)
    return constants.constant(np.array(value, _NUMBERS[attribute.removeprefix("value_").rstrip("s")]))


def _bytes(element: Element, count: int) -> int:
    return count if element is elements.BOOL else elements.packed_bytes(element, count)


def _shaped(flat: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[Any]:
    try:
        return flat.reshape(shape)
    except ValueError as error:
        raise InputError("E111", f"{flat.size} elements do not fill {list(shape)} ({error})", node=name) from None


def _typed(tensor: TensorProto, name: str, element: Element, count: int) -> NDArray[Any]:
    """The elements from the typed fields (`float_data`, …)."""
    if element is elements.STRING:
        try:
            strings = [text.decode("utf-8") for text in tensor.string_data]
        except UnicodeDecodeError:
            raise InputError("E112", "a string in the tensor is not UTF-8", node=name) from None
        array = np.empty(len(strings), object)
        array[:] = strings
        return array
    field = _FIELDS.get(tensor.data_type, "int32_data")
    held = len(getattr(tensor, field))
    if element.is_complex:
        held //= 2
    elif element.bits < 8 and element is not elements.BOOL:
        held = max(held * 8 // element.bits, 0)
        wrong = not count <= held < count + 8
    if element.bits >= 8 or element is elements.BOOL:
        wrong = held != count
    if wrong:
        raise InputError("E111", f"{held} elements do not fill {element}{list(tensor.dims)}", node=name)
    if element is elements.I64:
        return np.array(tensor.int64_data, np.int64)
    if element is elements.F32:
        return np.array(tensor.float_data, np.float32)
    try:
        return numpy_helper.to_array(tensor).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError("E111", f"the data do not fit {element}{list(tensor.dims)} ({error})", node=name) from None


_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data", TensorProto.COMPLEX64: "float_data", TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data", TensorProto.INT64: "int64_data", TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}  # fmt: skip


def _external(
    tensor: TensorProto, folder: Path | None, name: str, element: Element, shape: tuple[int, ...]
) -> Constant:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if element is elements.STRING:
        raise InputError("E111", "strings cannot be stored in another file", node=name)
    path = external_path(entries.get("location", ""), folder, name)
    try:
        offset = int(entries.get("offset", 0) or 0)
        length = int(entries["length"]) if entries.get("length") else None
    except ValueError:
        raise InputError("E106", f"offset or length of {name!r} is not a number", node=name) from None
    needed, when = _bytes(element, math.prod(shape)), constants.stamp(path)
    size = when[0]
    if offset < 0 or (length is not None and length < 0):
        raise InputError("E106", f"offset {offset} or length {length} of {name!r} is negative", node=name)
    if length is not None and length != needed:
        raise InputError("E106", f"{element}{list(shape)} takes {needed} bytes, not {length}", node=name)
    if offset + needed > size:
        raise InputError("E106", f"{name!r} ends at byte {offset + needed} of {path.name}, which has {size}", node=name)
    if element.bits < 8 and element is not elements.BOOL:
        return Constant(PackedSource(path, offset, element, shape, when), element, shape)
    return constants.from_file(path, offset, element, shape, when)


def external_path(location: str, folder: Path | None, name: str) -> Path:
    """The file that holds a weight, after four checks: the text, every link on the way, the target, the kind of file.

    Raises InputError E104 or E105.
    """
    if folder is None:
        raise InputError(
            "E104", f"the data of {name!r} lie in {location!r}, but the model did not come from a file", node=name,
            hint="Give the model's path, or pass folder=…, the folder that holds the data.",
        )  # fmt: skip
    parts = PureWindowsPath(location).parts  # splits at both kinds of slash
    if not location or "\0" in location or Path(location).is_absolute() or PureWindowsPath(location).anchor:
        raise InputError("E105", f"the location {location!r} of {name!r} is absolute or empty", node=name)
    if ".." in parts or PureWindowsPath(location).drive:
        raise InputError("E105", f"the location {location!r} of {name!r} leads upwards", node=name)
    path = folder / location
    step = folder
    for part in Path(location).parts:
        step = step / part
        if step.is_symlink():
            raise InputError("E105", f"the location {location!r} of {name!r} goes through a link", node=name)
    root = os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(path)]) != root:
        raise InputError("E105", f"the location {location!r} of {name!r} lies outside of {str(folder)!r}", node=name)
    try:
        status = path.lstat()
    except OSError as error:
        raise InputError(
            "E104", f"{location!r}, which holds {name!r}: {error.strerror}", node=name,
            hint="The model's external data belong beside its file, under the names that it gives them.",
        ) from None  # fmt: skip
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise InputError("E105", f"the location {location!r} of {name!r} is not a plain file of its own", node=name)
    return path


def read_sparse(sparse: SparseTensorProto, folder: Path | None) -> Constant:
    """A sparse tensor as a dense constant. Raises InputError E111 or E117."""
    name, shape = sparse.values.name or "a sparse tensor", tuple(sparse.dims)
    if any(extent < 0 for extent in shape) or math.prod(shape) > DENSE_LIMIT:
        raise InputError("E117", f"a sparse tensor of shape {list(shape)} is too large to be made dense", node=name)
    values, indices = read_tensor(sparse.values, folder, name), read_tensor(sparse.indices, folder, name).array
    size = math.prod(shape)
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        inside = bool(np.all((indices >= 0) & (indices < np.array(shape))))
        flat = np.ravel_multi_index(tuple(indices.T), shape) if inside else np.array([size])
    else:
        flat = indices.reshape(-1)
    if len(flat) != values.size or (len(flat) and (flat.min() < 0 or flat.max() >= size)):
        raise InputError("E111", "the indices of a sparse tensor do not fit its shape or values", node=name)
    dense = np.zeros(size, values.element.dtype)
    dense[flat] = values.array.reshape(-1)
    return constants.constant(dense.reshape(shape), values.element)
