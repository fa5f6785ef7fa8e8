"""Torch's element types and tensors as the IR has them; constants share torch's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.errors import UnsupportedError
from espalier.ir import constants, elements
from espalier.ir.constants import Constant
from espalier.ir.elements import Element
from espalier.ir.graph import Value, constant_value

ELEMENTS: dict[torch.dtype, Element] = {
    torch.float64: elements.F64, torch.float32: elements.F32, torch.float16: elements.F16,
    torch.bfloat16: elements.BF16,
    torch.int64: elements.I64, torch.int32: elements.I32, torch.int16: elements.I16, torch.int8: elements.I8,
    torch.uint64: elements.U64, torch.uint32: elements.U32, torch.uint16: elements.U16, torch.uint8: elements.U8,
    torch.bool: elements.BOOL, torch.complex64: elements.C64, torch.complex128: elements.C128,
    torch.float8_e4m3fn: elements.F8E4M3FN, torch.float8_e4m3fnuz: elements.F8E4M3FNUZ,
    torch.float8_e5m2: elements.F8E5M2, torch.float8_e5m2fnuz: elements.F8E5M2FNUZ,
    torch.float8_e8m0fnu: elements.F8E8M0,
}  # fmt: skip
DTYPES = {element: dtype for dtype, element in ELEMENTS.items()}
_PART = {elements.C64: elements.F32, elements.C128: elements.F64}
_RAW = {1: torch.uint8, 2: torch.int16}


def element_of(dtype: torch.dtype) -> Element:
    """The element of a dtype; of a complex one, that of its parts. Raises UnsupportedError where there is none."""
    try:
        element = ELEMENTS[dtype]
    except KeyError:
        raise UnsupportedError("E404", f"torch's {dtype} has no element type here") from None
    return _PART.get(element, element)


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's memory as a numpy array of the same strides; complex numbers get a trailing axis of 2."""
    tensor = tensor.detach().cpu()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    tensor = tensor.resolve_neg()
    dtype = element_of(tensor.dtype).dtype
    try:
        array: NDArray[Any] = tensor.numpy()
    except TypeError:  # numpy itself has no such dtype; ml_dtypes does, with the same bits
        array = tensor.view(_RAW[tensor.element_size()]).numpy()
    return array.view(dtype)


class Constants:
    """The constants of one program: a tensor that occurs twice, also as a transposed view, is stored once."""

    def __init__(self) -> None:
        self._values: dict[tuple[Any, ...], Value] = {}
        self._bases: dict[tuple[Any, ...], list[tuple[torch.Tensor, Constant]]] = {}

    def value(self, tensor: torch.Tensor, name: str) -> Value:
        """The constant value of a real tensor: the same one for the same memory, shape and strides."""
        pointer = tensor.data_ptr() if tensor.layout == torch.strided and tensor.numel() else id(tensor)
        place = (pointer, tensor.dtype)
        key = (*place, tuple(tensor.shape), _strides(tensor))
        if key not in self._values:
            held = self._view(place, tensor)
            if held is None:
                array = to_array(tensor)
                array.flags.writeable = False  # weights are not copied
                held = constants.constant(array, element_of(tensor.dtype))
                self._bases.setdefault(place, []).append((tensor, held))
            self._values[key] = constant_value(held, name=name)
        return self._values[key]

    def _view(self, place: tuple[Any, ...], tensor: torch.Tensor) -> Constant | None:
        """The tensor as a transposed view of one that is known already."""
        for base, held in self._bases.get(place, ()):
            if base.dim() == tensor.dim() and sorted(_axes(base)) == sorted(_axes(tensor)):
                left = list(enumerate(_axes(base)))
                perm = []
                for axis in _axes(tensor):
                    found = next(entry for entry in left if entry[1] == axis)
                    left.remove(found)
                    perm.append(found[0])
                return held.transpose(perm)
        return None


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride()) if tensor.layout == torch.strided else ()


def _axes(tensor: torch.Tensor) -> list[tuple[int, int]]:
    return list(zip(tensor.shape, _strides(tensor), strict=False))


def number(value: Any, element: Element) -> Value:
    """A scalar constant."""
    return constant_value(np.asarray(value).astype(element.dtype), element)
