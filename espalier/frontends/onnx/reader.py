"""From a path, bytes or a protobuf message to a ModelProto that is safe to walk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no types
from onnx import ModelProto

from espalier.errors import InputError

NEWEST = onnx.defs.onnx_opset_version()
OLDEST = 1
BROADCASTING = 6
"""Opset 6 differs from 7 in how operands broadcast. Of older models, only operators are read that 6 did not change."""


def read_model(source: Any, folder: Path | None = None) -> tuple[ModelProto, Path | None]:
    """The message, and the folder of its external data (None if there is none).

    Raises InputError: E101 (cannot be opened), E102 (not a model), E103 (broken).
    """
    if isinstance(source, ModelProto):
        return source, folder
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError("E101", f"{str(path)!r} cannot be read: {error.strerror or error}") from None
        except ValueError as error:  # a null character in the path
            raise InputError("E101", f"{str(path)!r} cannot be read: {error}") from None
        return _parse(data, str(path)), folder or path.parent
    if isinstance(source, bytes | bytearray | memoryview):
        return _parse(bytes(source), "the bytes"), folder
    raise InputError("E102", f"an ONNX model is a path, bytes or a ModelProto, not {type(source).__name__}")


def _parse(data: bytes, where: str) -> ModelProto:
    try:
        model: ModelProto = ModelProto.FromString(data)
    except (DecodeError, RecursionError) as error:
        raise InputError("E103", f"{where} is not a whole ONNX file: {error}") from None
    if not model.HasField("graph"):
        raise InputError("E103", f"{where} holds no graph")
    return model


def opsets(model: ModelProto) -> dict[str, int]:
    """Operator set version by domain ("" is ai.onnx). Raises InputError E107 for versions that are not known."""
    found: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if found.setdefault(domain, entry.version) != entry.version:
            raise InputError("E107", f"the model imports two versions of {domain or 'ai.onnx'}")
    version = found.get("")
    if version is not None and not OLDEST <= version <= NEWEST:
        raise InputError("E107", f"the model needs opset {version}; {OLDEST} to {NEWEST} are supported")
    if model.ir_version > onnx.IR_VERSION:
        raise InputError("E107", f"the model's IR version {model.ir_version} is newer than {onnx.IR_VERSION}")
    return found


def not_utf8(text: object) -> InputError:
    """The error for text that protobuf gives as bytes, since it is not UTF-8."""
    return InputError("E112", f"a name in the model is not UTF-8: {text!r}")
