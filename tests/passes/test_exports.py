"""Recognition in what torch.onnx writes: the operator comes out, the function stays, and going back costs no nodes."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from espalier.backends.onnx import to_model
from espalier.frontends.onnx import load
from espalier.ir.execute import execute
from espalier.passes import PassManager
from espalier.passes.pipelines import pipeline

torch = pytest.importorskip("torch")
F = torch.nn.functional


class Module(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def rms(module: Any, x: Any) -> Any:
    wide = x.float()
    return module.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def layer_norm(module: Any, x: Any) -> Any:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-6) * module.weight


def eager_attention(module: Any, q: Any, k: Any, v: Any) -> Any:
    return torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1) @ v


X, HEADS = (2, 3, 8), (2, 4, 5, 8)
CASES = {
    "gelu": (lambda m, x: F.gelu(x), X, "gelu", 1),
    "gelu_tanh": (lambda m, x: F.gelu(x, approximate="tanh"), X, "gelu", 1),
    "silu": (lambda m, x: F.silu(x), X, "swish", 1),
    "quick_gelu": (lambda m, x: x * torch.sigmoid(1.702 * x), X, "swish", 1),
    "hardswish": (lambda m, x: F.hardswish(x), X, "hard_swish", 1),
    "hardswish_spelled": (lambda m, x: x * F.relu6(x + 3) / 6, X, "hard_swish", 1),
    "mish": (lambda m, x: F.mish(x), X, "mish", 1),
    "layer_norm": (lambda m, x: F.layer_norm(x, (8,), m.weight, m.weight), X, "layer_norm", 1),
    "layer_norm_spelled": (layer_norm, X, "layer_norm", 1),
    "rms_norm": (rms, X, "rms_norm", 1),
    "sdpa": (lambda m, *a: F.scaled_dot_product_attention(*a), HEADS, "attention", 3),
    "attention": (eager_attention, HEADS, "attention", 3),
    "not_gelu": (lambda m, x: 0.5 * x * (1 + torch.erf(x)), X, None, 1),
    "not_silu": (lambda m, x, y: x * torch.sigmoid(y), X, None, 2),
    "not_attention": (lambda m, q, k, v: torch.softmax(q @ k.transpose(-2, -1), -2) @ v, (2, 4, 8, 8), None, 3),
}
RECOGNISED = {"gelu", "swish", "hard_swish", "mish", "layer_norm", "rms_norm", "attention"}


def export(function: Any, inputs: tuple[Any, ...], opset: int) -> onnx.ModelProto:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Module(function).eval(), inputs, stream, dynamo=False, opset_version=opset)
    return onnx.load_from_string(stream.getvalue())


@pytest.mark.parametrize("opset", [11, 14, 17])
@pytest.mark.parametrize("name", CASES)
def test_recognises_what_torch_writes(name: str, opset: int):
    function, shape, expected, count = CASES[name]
    if name == "sdpa" and opset < 14:
        pytest.skip("torch exports attention from opset 14 on")
    generator = torch.Generator().manual_seed(1)
    inputs = tuple(torch.randn(*shape, generator=generator) for _ in range(count))
    model = export(function, inputs, opset)
    graph = load(model)
    PassManager(pipeline("exact"), verify="all").run(graph)
    found = Counter(node.op.name for node in graph)
    assert {name for name in found if name in RECOGNISED} == ({expected} if expected else set())
    with torch.no_grad():
        wanted = Module(function).eval()(*inputs).numpy()
    arrays = [value.numpy() for value in inputs]
    np.testing.assert_allclose(execute(graph, arrays)[0], wanted, rtol=1e-4, atol=1e-5)
    written = to_model(graph)
    onnx.checker.check_model(written, full_check=True)
    assert written.opset_import[0].version == opset
    kinds = [sum(node.op_type != "Constant" for node in each.graph.node) for each in (written, model)]
    assert kinds[0] <= kinds[1]
    again = execute(load(written), arrays)[0]
    np.testing.assert_allclose(again, wanted, rtol=1e-4, atol=1e-5)


def test_quantized_weights_stay_quantized(tmp_path: Path) -> None:
    """A model from onnxruntime's quantizer comes out with its weights in integers, and computes the same bits."""
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    samples = np.random.default_rng(0).normal(size=(4, 2, 3, 8, 8)).astype(np.float32)

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.left, None)
            return None if sample is None else {"x": sample}

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 5)
    )
    paths = [str(tmp_path / name) for name in ("float.onnx", "quantized.onnx")]
    torch.onnx.export(network, (torch.zeros(2, 3, 8, 8),), paths[0], input_names=["x"], dynamo=False)
    quantize_static(*paths, Samples(), quant_format=QuantFormat.QDQ, per_channel=True)

    graph = load(paths[1])
    PassManager(pipeline("exact")).run(graph)
    assert all(v.constant.element.is_integer or v.constant.size <= 8 for v in graph.constants() if v.constant)
    options = SessionOptions()
    options.graph_optimization_level, options.log_severity_level = GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    sessions = [InferenceSession(m, options) for m in (paths[1], to_model(graph).SerializeToString())]
    wanted, found = (session.run(None, {"x": samples[0]})[0] for session in sessions)
    np.testing.assert_array_equal(wanted, found)
