"""ONNX's element types and ours."""

from __future__ import annotations

from onnx import TensorProto

from espalier.errors import InputError, UnsupportedError
from espalier.ir import elements as e
from espalier.ir.elements import Element

BY_CODE: dict[int, Element] = {
    TensorProto.FLOAT: e.F32, TensorProto.DOUBLE: e.F64, TensorProto.FLOAT16: e.F16, TensorProto.BFLOAT16: e.BF16,
    TensorProto.UINT8: e.U8, TensorProto.UINT16: e.U16, TensorProto.UINT32: e.U32, TensorProto.UINT64: e.U64,
    TensorProto.INT8: e.I8, TensorProto.INT16: e.I16, TensorProto.INT32: e.I32, TensorProto.INT64: e.I64,
    TensorProto.UINT2: e.U2, TensorProto.UINT4: e.U4, TensorProto.INT2: e.I2, TensorProto.INT4: e.I4,
    TensorProto.BOOL: e.BOOL, TensorProto.STRING: e.STRING,
    TensorProto.COMPLEX64: e.C64, TensorProto.COMPLEX128: e.C128,
    TensorProto.FLOAT8E4M3FN: e.F8E4M3FN, TensorProto.FLOAT8E4M3FNUZ: e.F8E4M3FNUZ,
    TensorProto.FLOAT8E5M2: e.F8E5M2, TensorProto.FLOAT8E5M2FNUZ: e.F8E5M2FNUZ,
    TensorProto.FLOAT8E8M0: e.F8E8M0, TensorProto.FLOAT4E2M1: e.F4E2M1,
    TensorProto.FLOAT6E2M3: e.F6E2M3, TensorProto.FLOAT6E3M2: e.F6E3M2,
}  # fmt: skip
CODES: dict[Element, int] = {element: code for code, element in BY_CODE.items()}


def from_code(code: int, where: str) -> Element:
    """The element of a `TensorProto.DataType`. Raises InputError E111 for what is none."""
    try:
        return BY_CODE[code]
    except KeyError:
        raise InputError("E111", f"{code} is not an element type of ONNX", node=where) from None


def code_of(element: Element) -> int:
    """The `TensorProto.DataType` that stores an element; bipolar is int8, integers of odd width are the next wider.

    Raises UnsupportedError E404 if ONNX has none.
    """
    element = element.storage
    code = CODES.get(element)
    if code is None and (element.kind == "bipolar" or element.is_integer):
        code = CODES.get(e.from_dtype(element.dtype))
    if code is None:
        raise UnsupportedError("E404", f"ONNX has no element type for {element}")
    return code
