"""ONNX's own test cases of sums of products, windows, resampling, recurrence, attention, transforms, quantization."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.frontends.onnx import load
from espalier.ir.execute import execute
from tests.ir.ops.test_movement_cases import cases, check_type, compare, plain

OPERATORS = (
    "AffineGrid", "Attention", "AveragePool", "CausalConvWithState", "Conv", "ConvInteger", "ConvTranspose", "DFT",
    "DeformConv", "DequantizeLinear", "Det", "DynamicQuantizeLinear", "Einsum", "GRU", "Gemm", "GlobalAveragePool",
    "GlobalMaxPool", "GridSample", "LSTM", "LinearAttention", "LpPool", "MatMul", "MatMulInteger", "MaxPool",
    "MaxUnpool", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "RNN", "Resize", "RoiAlign", "RotaryEmbedding",
    "STFT", "TfIdfVectorizer",
)  # fmt: skip


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
                wanted = np.asarray(plain(wanted))
                # ONNX's own results in bf16 carry the error of sums that it rounds after every term
                rtol = max(case.rtol, 2**-6 if wanted.dtype.name == "bfloat16" else 0)
                compare(found, wanted, rtol, case.atol)
                check_type(value, found)
