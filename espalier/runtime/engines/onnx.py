"""Runs an ONNX artifact with onnxruntime, where that is installed.

The manifest's backend section is an `OnnxSection`: the model's file, the files of its external data, and whether
onnxruntime does all its optimizations, or only the basic ones, which compute the same.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from espalier.runtime.elements import Array, raw_dtype, storage
from espalier.runtime.errors import ArtifactError
from espalier.runtime.files import ArtifactFiles
from espalier.runtime.manifest import TensorSpec, decode

# Numbers of TensorProto.DataType for elements that numpy lacks.
ONNX_TYPES = {
    "bf16": 16,
    "f8e4m3fn": 17,
    "f8e4m3fnuz": 18,
    "f8e5m2": 19,
    "f8e5m2fnuz": 20,
}
LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
}
"""By what the manifest calls them."""


@dataclass(frozen=True)
class OnnxSection:
    """What the manifest says for this engine."""

    model: str
    external_data: tuple[str, ...] = ()
    optimizations: str = "all"


class OnnxEngine:
    """One onnxruntime session."""

    def __init__(self, files: ArtifactFiles, section: OnnxSection, threads: int) -> None:
        path = files.path(section.model)
        for name in section.external_data:
            files.path(name)
        # The model names its data files itself, so an unlisted and unchecked one must not lie within its reach.
        if unlisted := files.unlisted():
            raise ArtifactError("E710", f"the artifact holds {unlisted[0]!r}, which its manifest does not list")
        self._inputs, self._outputs = files.manifest.inputs, files.manifest.outputs
        for spec in (*self._inputs, *self._outputs):
            if storage(spec.element).ml_dtypes_name is not None and spec.element not in ONNX_TYPES:
                raise ArtifactError("E712", f"onnxruntime passes no {spec.element}, the type of {spec.name!r}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what fails is raised
        if section.optimizations not in LEVELS:
            raise ArtifactError("E702", f"optimizations are {' or '.join(LEVELS)}, not {section.optimizations!r}")
        options.graph_optimization_level = LEVELS[section.optimizations]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ArtifactError("E712", f"onnxruntime cannot load {section.model!r}: {_text(error)}") from error
        names = {value.name for value in self._session.get_outputs()}
        if missing := [spec.name for spec in self._outputs if spec.name not in names]:
            raise ArtifactError("E702", f"the model has no output {missing[0]!r}, which the manifest lists")

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        specs = (*self._inputs, *self._outputs)
        names = [spec.name for spec in self._outputs]
        feeds = {spec.name: array for array, spec in zip(inputs, self._inputs, strict=True)}
        try:
            if not any(spec.element in ONNX_TYPES for spec in specs):
                return [np.array(array) for array in self._session.run(names, feeds)]
            wrapped = {spec.name: _to_value(feeds[spec.name], spec) for spec in self._inputs}
            values = self._session.run_with_ort_values(names, wrapped)
        except Exception as error:
            raise ArtifactError("E712", f"onnxruntime failed: {_text(error)}") from error
        return [_from_value(value, spec) for value, spec in zip(values, self._outputs, strict=True)]


def _text(error: Exception) -> str:
    return "; ".join(filter(None, map(str.strip, str(error).splitlines())))


def load(files: ArtifactFiles, threads: int) -> OnnxEngine:
    """The engine for an artifact. Raises ArtifactError."""
    return OnnxEngine(files, decode(OnnxSection, files.manifest.backend, "manifest.backend"), threads)


def _to_value(array: Array, spec: TensorSpec) -> Any:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if spec.element in ONNX_TYPES:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_TYPES[spec.element])
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: Any, spec: TensorSpec) -> Array:
    if spec.element not in ONNX_TYPES:
        return np.array(value.numpy())
    raw, shape = raw_dtype(spec.element), tuple(value.shape())
    # onnxruntime itself gives no numpy array for some of these, so the bits are read where they lie.
    memory = (ctypes.c_char * (math.prod(shape) * raw.itemsize)).from_address(value.data_ptr())
    return np.frombuffer(memory, raw).reshape(shape).copy()
