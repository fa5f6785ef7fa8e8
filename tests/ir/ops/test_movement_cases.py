"""ONNX's own test cases of the operators that move, index, rank and make tensors, and of sequences and control flow."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from espalier.frontends.onnx import load
from espalier.ir import TensorType, Value
from espalier.ir.execute import execute

OPERATORS = (
    "CenterCropPad", "Col2Im", "Compress", "Concat", "ConstantOfShape", "DepthToSpace",
    "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND", "If", "Loop", "MelWeightMatrix",
    "NonMaxSuppression", "NonZero", "OneHot", "OptionalGetElement", "OptionalHasElement", "Pad", "Range",
    "Reshape", "ReverseSequence", "Scan", "ScatterElements", "ScatterND", "SequenceInsert",
    "SequenceMap", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "SplitToSequence", "Squeeze",
    "TensorScatter", "Tile", "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze",
)  # fmt: skip
REFUSED = {
    "test_scan_sum": "Scan of opset 8 with a batch axis",
}


@functools.cache
def cases() -> dict[str, list[Any]]:
    """ONNX's cases by the operator of their first node."""
    from onnx.backend.test.loader import load_model_tests

    found: dict[str, list[Any]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in load_model_tests(kind="node"):
            if "_expanded" not in case.name and case.name not in REFUSED:
                for kind in {node.op_type for node in case.model.graph.node}:
                    found.setdefault(kind, []).append(case)
    return found


def plain(data: Any) -> Any:
    """Arrays from arrays and messages; lists from sequences; None from empty optionals."""
    if data is None or isinstance(data, np.ndarray):
        return data
    if isinstance(data, list | tuple):
        return [plain(entry) for entry in data]
    readers = {
        "TensorProto": numpy_helper.to_array,
        "SequenceProto": numpy_helper.to_list,
        "OptionalProto": numpy_helper.to_optional,
    }
    return readers.get(type(data).__name__, np.asarray)(data)


def compare(found: Any, expected: Any, rtol: float, atol: float) -> None:
    if isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            compare(a, b, rtol, atol)
    elif expected is None:
        assert found is None
    else:
        assert found.dtype == expected.dtype and found.shape == expected.shape
        if expected.dtype == object:
            assert np.array_equal(found, expected)
        else:
            wide = np.complex128 if expected.dtype.kind == "c" else np.float64
            np.testing.assert_allclose(found.astype(wide), expected.astype(wide), rtol, atol)


def check_type(value: Value, found: Any) -> None:
    if isinstance(value.type, TensorType) and found is not None:
        assert value.element.dtype == found.dtype
        if value.shape is not None:
            assert len(value.shape) == found.ndim
            assert all(not isinstance(a, int) or a == b for a, b in zip(value.shape, found.shape, strict=True))


@pytest.mark.slow  # ONNX computes all of its 1,900 cases to give one
@pytest.mark.parametrize("operator", OPERATORS)
def test_cases_of_onnx(operator: str) -> None:
    assert cases().get(operator), f"ONNX has no cases of {operator}"
    for case in cases()[operator]:
        graph = load(case.model)
        assert not any(node.op.name == "opaque" for each in graph.all_graphs() for node in each), case.name
        for inputs, expected in case.data_sets:
            results = execute(graph, [plain(data) for data in inputs])
            for value, found, wanted in zip(graph.outputs, results, expected, strict=True):
                compare(found, plain(wanted), case.rtol, case.atol)
                check_type(value, found)
