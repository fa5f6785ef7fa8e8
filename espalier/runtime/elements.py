"""How arrays carry each element type.

numpy lacks the small floats and integers. Where ml_dtypes is installed, arrays of its types are taken and given;
otherwise their raw form: a float's bits in a uint8 or uint16, an integer's value in an int8 or uint8.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.runtime.errors import ArtifactError

Array = NDArray[Any]


@dataclass(frozen=True)
class Storage:
    """numpy's type for the raw form, and ml_dtypes' name of the element if numpy has none of its own."""

    raw: str
    ml_dtypes_name: str | None = None

    @property
    def by_value(self) -> bool:
        """Whether the raw form holds the element's value (integers) rather than its bits (floats)."""
        return self.ml_dtypes_name is not None and "int" in self.ml_dtypes_name


STORAGE = {
    "f64": Storage("float64"),
    "f32": Storage("float32"),
    "f16": Storage("float16"),
    "bf16": Storage("uint16", "bfloat16"),
    "c64": Storage("complex64"),
    "c128": Storage("complex128"),
    "f8e4m3fn": Storage("uint8", "float8_e4m3fn"),
    "f8e4m3fnuz": Storage("uint8", "float8_e4m3fnuz"),
    "f8e5m2": Storage("uint8", "float8_e5m2"),
    "f8e5m2fnuz": Storage("uint8", "float8_e5m2fnuz"),
    "f8e8m0": Storage("uint8", "float8_e8m0fnu"),
    "f6e2m3": Storage("uint8", "float6_e2m3fn"),
    "f6e3m2": Storage("uint8", "float6_e3m2fn"),
    "f4e2m1": Storage("uint8", "float4_e2m1fn"),
    "i2": Storage("int8", "int2"),
    "i4": Storage("int8", "int4"),
    "u2": Storage("uint8", "uint2"),
    "u4": Storage("uint8", "uint4"),
    "bool": Storage("bool"),
    "bipolar": Storage("int8"),
    "string": Storage("object"),
}


@cache
def storage(element: str) -> Storage:
    """How arrays carry an element; integers of odd width travel in the next wider type.

    Raises:
        ArtifactError: E702: there is no element type of this name.
    """
    if element in STORAGE:
        return STORAGE[element]
    kind, digits = element[:1], element[1:]
    if kind in ("i", "u") and digits.isdecimal() and not digits.startswith("0") and int(digits) <= 64:
        width = next(width for width in (8, 16, 32, 64) if int(digits) <= width)
        return Storage(f"{'int' if kind == 'i' else 'uint'}{width}")
    raise ArtifactError("E702", f"there is no element type {element!r}")


@cache
def raw_dtype(element: str) -> np.dtype[Any]:
    """numpy's type for an element's raw form."""
    return np.dtype(storage(element).raw)


@cache
def value_dtype(element: str) -> np.dtype[Any]:
    """The type in which results are given: ml_dtypes' own where numpy has none and ml_dtypes is installed."""
    name = storage(element).ml_dtypes_name
    if name is None or importlib.util.find_spec("ml_dtypes") is None:
        return raw_dtype(element)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def to_raw(array: Array, element: str) -> Array:
    """An array's raw form, if it is of this element type. Raises TypeError otherwise: nothing is cast silently."""
    raw = raw_dtype(element)
    if array.dtype == raw:
        return array
    if array.dtype == value_dtype(element):
        return array.astype(raw) if storage(element).by_value else array.view(raw)
    if element == "string" and array.dtype.kind in "SUT":
        return array.astype(object)
    raise TypeError(f"{array.dtype} is not {value_dtype(element)}")


def to_value(raw: Array, element: str) -> Array:
    """The raw form as an array that computes, where that is possible."""
    dtype = value_dtype(element)
    if raw.dtype == dtype:
        return raw
    return raw.astype(dtype) if storage(element).by_value else raw.view(dtype)


def raw_form(array: Array) -> Array:
    """The raw form of an array of any of these types."""
    for element, kept in STORAGE.items():
        if kept.ml_dtypes_name is not None and array.dtype == value_dtype(element):
            return to_raw(array, element)
    return array
