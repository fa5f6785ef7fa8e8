"""Element types: what one number of a tensor is, how many bits it has, and how numpy stores it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import ml_dtypes
import numpy as np

Kind = Literal["float", "int", "uint", "bool", "complex", "bipolar", "string"]


_ALL: dict[str, Any] = {}
"""Each element by its name."""


@dataclass(frozen=True, eq=False)
class Element:
    """A plain element type. There is one object for each name: they compare, and are looked up, by identity."""

    name: str
    kind: Kind
    bits: int
    """Bits of one element when packed."""

    def __post_init__(self) -> None:
        if _ALL.setdefault(self.name, self) is not self:
            raise ValueError(f"there is an element {self.name} already: parse({self.name!r})")

    @property
    def dtype(self) -> np.dtype[Any]:
        """How numpy stores one element; integers of odd width use the next wider type (ml_dtypes for 2 and 4 bits)."""
        return _numpy_dtype(self)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_complex(self) -> bool:
        return self.kind == "complex"

    @property
    def storage(self) -> Element:
        """The element that the bits are read as; itself, unless quantized."""
        return self

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest value of an integer, bool or bipolar element."""
        if self.kind == "int":
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        if self.kind == "uint":
            return 0, (1 << self.bits) - 1
        if self.kind in ("bool", "bipolar"):
            return (0, 1) if self.kind == "bool" else (-1, 1)
        raise TypeError(f"{self} has no integer range")

    def __reduce__(self) -> tuple[Any, ...]:
        return parse, (self.name,)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Quantized(Element):
    """Integers or small floats that stand for reals: (stored − zero point) · scale.

    Scale and zero point are ordinary values, operands of the `quantize` and `dequantize` that make and read the tensor.
    `axis` is the axis with one scale per index (None: one scale for all), `block` the number of neighbours on it that
    share one (0: none do).
    """

    stored: Element
    axis: int | None = None
    block: int = 0

    @property
    def storage(self) -> Element:
        return self.stored


@cache
def quantized(stored: Element, axis: int | None = None, block: int = 0) -> Quantized:
    """The quantized form of an element, named like ``q(i8, axis=1, block=32)``."""
    options = ("" if axis is None else f", axis={axis}") + (f", block={block}" if block else "")
    name = f"q({stored}{options})"
    found: Quantized = _ALL.get(name) or Quantized(name, stored.kind, stored.bits, stored, axis, block)
    return found


@cache
def integer(bits: int, signed: bool = True) -> Element:
    """The integer of 1 to 64 bits."""
    if not 1 <= bits <= 64:
        raise ValueError(f"an integer element has 1 to 64 bits, not {bits}")
    name = f"{'i' if signed else 'u'}{int(bits)}"
    found: Element = _ALL.get(name) or Element(name, "int" if signed else "uint", int(bits))
    return found


I4, I8, I16, I32, I64 = (integer(bits) for bits in (4, 8, 16, 32, 64))
U4, U8, U16, U32, U64 = (integer(bits, signed=False) for bits in (4, 8, 16, 32, 64))
I2, U2 = integer(2), integer(2, signed=False)
BOOL = Element("bool", "bool", 1)
BIPOLAR = Element("bipolar", "bipolar", 1)
STRING = Element("string", "string", 0)
F64, F32, F16 = Element("f64", "float", 64), Element("f32", "float", 32), Element("f16", "float", 16)
BF16 = Element("bf16", "float", 16)
C64, C128 = Element("c64", "complex", 64), Element("c128", "complex", 128)
F8E4M3FN, F8E4M3FNUZ = Element("f8e4m3fn", "float", 8), Element("f8e4m3fnuz", "float", 8)
F8E5M2, F8E5M2FNUZ = Element("f8e5m2", "float", 8), Element("f8e5m2fnuz", "float", 8)
F8E8M0, F4E2M1 = Element("f8e8m0", "float", 8), Element("f4e2m1", "float", 4)
F6E2M3, F6E3M2 = Element("f6e2m3", "float", 6), Element("f6e3m2", "float", 6)

_NUMPY: dict[Element, np.dtype[Any]] = {
    F64: np.dtype(np.float64), F32: np.dtype(np.float32), F16: np.dtype(np.float16),
    C64: np.dtype(np.complex64), C128: np.dtype(np.complex128), BOOL: np.dtype(np.bool_),
    BIPOLAR: np.dtype(np.int8), STRING: np.dtype(object), BF16: np.dtype(ml_dtypes.bfloat16),
    F8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn), F8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    F8E5M2: np.dtype(ml_dtypes.float8_e5m2), F8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    F8E8M0: np.dtype(ml_dtypes.float8_e8m0fnu), F4E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    F6E2M3: np.dtype(ml_dtypes.float6_e2m3fn), F6E3M2: np.dtype(ml_dtypes.float6_e3m2fn),
    I4: np.dtype(ml_dtypes.int4), U4: np.dtype(ml_dtypes.uint4),
    I2: np.dtype(ml_dtypes.int2), U2: np.dtype(ml_dtypes.uint2),
}  # fmt: skip
_BY_NAME = {e.name: e for e in _NUMPY}


@cache
def _numpy_dtype(element: Element) -> np.dtype[Any]:
    element = element.storage
    if element in _NUMPY:
        return _NUMPY[element]
    if not element.is_integer:
        raise ValueError(f"numpy has no type for {element}")
    width = next(width for width in (8, 16, 32, 64) if element.bits <= width)
    return np.dtype(f"{'i' if element.kind == 'int' else 'u'}{width // 8}")


@cache
def _from_dtype(dtype: np.dtype[Any]) -> Element:
    for element, numpy_dtype in _NUMPY.items():
        if numpy_dtype == dtype and element is not BIPOLAR:
            return element
    if dtype.kind in "iu":
        return integer(dtype.itemsize * 8, dtype.kind == "i")
    if dtype.kind in "OSU":
        return STRING
    raise ValueError(f"no element type for numpy's {dtype}")


def from_dtype(dtype: Any) -> Element:
    """The element that numpy (or ml_dtypes) stores as `dtype`. Raises ValueError if there is none."""
    return _from_dtype(np.dtype(dtype))


@cache
def parse(text: str) -> Element:
    """An element from its name. Raises ValueError if there is none of that name."""
    if text in _BY_NAME:
        return _BY_NAME[text]
    if match := re.fullmatch(r"([iu])(\d+)", text):
        return integer(int(match[2]), match[1] == "i")
    if match := re.fullmatch(r"q\((\w+)(?:, axis=(-?\d+))?(?:, block=(\d+))?\)", text):
        return quantized(parse(match[1]), None if match[2] is None else int(match[2]), int(match[3] or 0))
    raise ValueError(f"no element type is called {text!r}")


def packed_bytes(element: Element, count: int) -> int:
    """Bytes that `count` elements take when packed without gaps (the one place where packed size is computed)."""
    return (count * element.bits + 7) // 8
