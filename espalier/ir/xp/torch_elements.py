"""Elements in torch: which dtype holds which element, conversions, and the way from and to numpy."""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import numpy as np
import torch

from espalier.errors import UnsupportedError
from espalier.ir import elements
from espalier.ir.elements import Element
from espalier.ir.xp import numpy as numpy_xp

Array: TypeAlias = torch.Tensor

_DTYPES: dict[Element, torch.dtype] = {
    elements.F64: torch.float64, elements.F32: torch.float32, elements.F16: torch.float16,
    elements.BF16: torch.bfloat16,
    elements.F8E4M3FN: torch.float8_e4m3fn, elements.F8E4M3FNUZ: torch.float8_e4m3fnuz,
    elements.F8E5M2: torch.float8_e5m2, elements.F8E5M2FNUZ: torch.float8_e5m2fnuz,
    elements.F8E8M0: torch.float8_e8m0fnu, elements.BOOL: torch.bool, elements.C64: torch.complex64,
    elements.C128: torch.complex128, elements.I8: torch.int8, elements.I16: torch.int16, elements.I32: torch.int32,
    elements.I64: torch.int64, elements.U8: torch.uint8, elements.U16: torch.uint16, elements.U32: torch.uint32,
    elements.U64: torch.uint64, elements.BIPOLAR: torch.int8,
}  # fmt: skip
_ELEMENTS = {dtype: kind for kind, dtype in _DTYPES.items() if kind is not elements.BIPOLAR}
_HELD_AS = {
    kind.dtype: np.dtype(f"u{kind.bits // 8}")
    for kind in _DTYPES
    if kind.is_float and kind.dtype.type.__module__.startswith("ml_dtypes")
}
"""ml_dtypes' types → integers of the same bits, as which they pass between numpy and torch."""


def dtype_of(kind: Element) -> torch.dtype:
    """How torch stores an element. Raises UnsupportedError E404 if it can't."""
    kind = kind.storage
    if kind in _DTYPES:
        return _DTYPES[kind]
    if kind.is_integer:
        width = next(width for width in (8, 16, 32, 64) if kind.bits <= width)
        return _DTYPES[elements.integer(width, kind.kind == "int")]
    raise UnsupportedError(
        "E404", f"torch has no element type {kind}", hint="Run this graph with the primitives of numpy."
    )


def element(array: Array) -> Element:
    """The element that the tensor's numbers are stored as."""
    return _ELEMENTS[array.dtype]


def is_floating(array: Array) -> bool:
    return array.dtype.is_floating_point


def asarray(data: Any) -> Array:
    """A tensor of the data as it is. Raises UnsupportedError for what torch can't hold."""
    if isinstance(data, torch.Tensor):
        return data
    array = np.asarray(data)
    if array.dtype == object or array.dtype.kind in "SU":
        raise UnsupportedError("E410", "torch has no tensors of text or of dimensions")
    kind = elements.from_dtype(array.dtype)
    if array.dtype in _HELD_AS:
        held = np.ascontiguousarray(array).view(_HELD_AS[array.dtype]).reshape(array.shape)
        return _shared(held).view(dtype_of(kind))
    if kind.is_integer and kind.bits < 8:
        array = array.astype(np.int8 if kind.kind == "int" else np.uint8)
    elif kind not in _DTYPES:
        dtype_of(kind)
    if any(step < 0 for step in array.strides) or not array.dtype.isnative:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return _shared(array)


def _shared(array: np.ndarray[Any, Any]) -> Array:
    """A tensor on the array's memory where that is the CPU's."""
    if array.flags.writeable:
        return torch.as_tensor(array)
    with warnings.catch_warnings():  # constants are read-only; nothing here writes to what it was given
        warnings.simplefilter("ignore")
        return torch.as_tensor(array)


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """The same numbers as a numpy array."""
    if not isinstance(array, torch.Tensor):
        return np.asarray(array)
    array = array.detach().cpu().resolve_conj()
    kind = element(array)
    if kind.dtype in _HELD_AS:
        held = array.contiguous().view(torch.uint16 if array.itemsize == 2 else torch.uint8)
        return np.asarray(held.numpy().view(kind.dtype))
    return np.asarray(array.numpy())


def astype(array: Array, kind: Element) -> Array:
    """Convert; floats go to integers by truncation, to narrower floats by rounding to even, to bool by ≠ 0."""
    if array.dtype.is_complex and not kind.is_complex:
        array = array.real
    found = array.to(dtype_of(kind))
    return _wrapped(found, kind) if kind.is_integer else found


def _wrapped(array: Array, kind: Element) -> Array:
    """Integers of 2 and 4 bits without their high bits (as numpy's; those of odd width fill what they are held in)."""
    if kind.bits not in (2, 4):
        return array
    low, span = kind.range[0], 1 << kind.bits
    return ((array.to(torch.int16) - low) % span + low).to(array.dtype)


def cast(array: Array, kind: Element, saturate: bool, round_mode: str) -> Array:
    """Convert as ONNX's Cast does; see the primitive of numpy."""
    source = element(array)
    if kind.is_float and kind.bits >= 16 and (source.is_float or source.is_integer or source == elements.BOOL):
        return array.to(dtype_of(kind))
    return asarray(numpy_xp.cast(to_numpy(array), kind, saturate, round_mode)).to(array.device)


def bitcast(array: Array, kind: Element) -> Array:
    """The same bits read as another element of the same width."""
    return array.contiguous().view(dtype_of(kind))


def wide(array: Array) -> Array:
    """In the type that sums of products are accumulated in: f32 for 16- and 8-bit floats, i64 for integers."""
    if array.dtype.is_floating_point:
        return array.float() if array.itemsize < 4 else array
    return array if array.dtype.is_complex else array.long()
