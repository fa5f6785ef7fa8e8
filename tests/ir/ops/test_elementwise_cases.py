"""ONNX's own test cases of elementwise operators, reductions and normalisations, read by the frontend."""

from __future__ import annotations

import pytest

from espalier.frontends.onnx import load
from espalier.ir.execute import execute
from espalier.ir.op import OPS, load_builtin_operators
from tests.ir.ops.test_movement_cases import cases, check_type, compare, plain

load_builtin_operators()
FILES = (
    "activations", "arithmetic", "cast", "comparison", "elementwise", "logical", "normalization", "reductions",
)  # fmt: skip
MODULES = {f"espalier.ir.ops.{name}" for name in FILES}
OPERATORS = sorted(cls.onnx for cls in OPS.values() if cls.__module__ in MODULES and cls.onnx)
RANDOM = ("Bernoulli", "Dropout")


@pytest.mark.slow  # ONNX computes all of its 1,900 cases to give one
@pytest.mark.parametrize("operator", OPERATORS)
def test_cases_of_onnx(operator: str) -> None:
    assert cases().get(operator), f"ONNX has no cases of {operator}"
    for case in cases()[operator]:
        if any(node.op_type in RANDOM for node in case.model.graph.node):
            continue
        graph = load(case.model)
        assert not any(node.op.name == "opaque" for each in graph.all_graphs() for node in each), case.name
        for inputs, expected in case.data_sets:
            results = execute(graph, [plain(data) for data in inputs])
            for value, found, wanted in zip(graph.outputs, results, expected, strict=True):
                compare(found, plain(wanted), case.rtol, case.atol)
                check_type(value, found)
