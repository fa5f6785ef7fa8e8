"""Resizing as onnxruntime does it, and with aligned corners by a fractional factor as PyTorch means it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import espalier
from espalier.ir.execute import execute

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("factor", [(1.7, 0.6), (2.0, 3.0)])
def test_aligned_corners_are_those_of_torch(factor: tuple[float, float], dynamic: bool) -> None:
    class Resize(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)

    x = torch.linspace(-1, 1, 2 * 3 * 7 * 9).reshape(2, 3, 7, 9)
    file = io.BytesIO()
    axes = {"x": {2: "h", 3: "w"}} if dynamic else None
    torch.onnx.export(Resize(), (x,), file, input_names=["x"], dynamic_axes=axes, dynamo=False)
    wanted = Resize()(x).numpy()
    found = execute(espalier.load(file.getvalue()), [x.numpy()])[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    session = onnxruntime.InferenceSession(file.getvalue())
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], wanted, atol=1e-5)


def resized(scale: float, extent: int | str, producer: str = "") -> onnx.ModelProto:
    shape = ["a", "b", extent]
    node = onnx.helper.make_node(
        "Resize", ["x", "", "s"], ["y"], name="up", mode="linear", coordinate_transformation_mode="align_corners"
    )
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, shape)],
        [onnx.helper.make_tensor_value_info("y", 1, [None] * 3)],
        [onnx.numpy_helper.from_array(np.array([1, 1, scale], np.float32), "s")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    model.producer_name = producer
    return model


@pytest.mark.parametrize(("scale", "extent"), [(1.7, 7), (0.6, 9), (1.5, "n")])
def test_aligned_corners_by_a_fraction_are_refused_by_name(scale: float, extent: int | str, tmp_path: Path) -> None:
    with pytest.raises(espalier.EspalierError, match=r"(?s)E403.*Resize.*from up.*--backend onnx keeps it as it is"):
        espalier.compile(resized(scale, extent), output=tmp_path / "a", backend="tvm")
    (node,) = espalier.load(resized(scale, extent))
    assert node.op.name == "opaque"


@pytest.mark.parametrize(("scale", "extent"), [(1.5, 8), (2.0, "n"), (0.25, 8), (1.7, 10)])
@pytest.mark.parametrize("producer", ["", "pytorch"])
def test_aligned_corners_by_a_whole_width_are_those_of_onnxruntime(
    scale: float, extent: int | str, producer: str
) -> None:
    model = resized(scale, extent, producer)
    x = np.random.default_rng(0).standard_normal((1, 2, extent if isinstance(extent, int) else 5)).astype(np.float32)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(execute(espalier.load(model), [x])[0], wanted, atol=1e-5)


@pytest.mark.parametrize("producer", ["", "pytorch"])
def test_each_of_two_like_nodes_is_looked_at(producer: str) -> None:
    model = resized(2.0, 5, producer)
    again = model.graph.node.add()
    again.CopyFrom(model.graph.node[0])
    again.name, again.input[2], again.output[0] = "again", "t", "z"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 1, 1.5], np.float32), "t"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, [None] * 3))
    graph = espalier.load(model)
    if not producer:
        assert [node.op.name for node in graph] == ["resize", "opaque"]
        return
    x = np.linspace(-1, 1, 5, dtype=np.float32).reshape(1, 1, 5) ** 3
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    for a, b in zip(execute(graph, [x]), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def sized(extents: tuple[int, int], sizes: tuple[int, int], **attributes: object) -> onnx.ModelProto:
    """A model that resizes two axes."""
    roi = "roi" if attributes["coordinate_transformation_mode"] == "tf_crop_and_resize" else ""
    node = onnx.helper.make_node("Resize", ["x", roi, "", "sizes"], ["y"], axes=[2, 3], **attributes)
    numbers = {"roi": np.array([0.1, 0.2, 0.8, 0.9], np.float32), "sizes": np.array(sizes)}
    graph = onnx.helper.make_graph(
        [node], "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 1, *extents])],
        [onnx.helper.make_tensor_value_info("y", 1, [None] * 4)],
        [onnx.numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def both(model: onnx.ModelProto, extents: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What the reference and onnxruntime give."""
    x = np.arange(extents[0] * extents[1], dtype=np.float32).reshape(1, 1, *extents)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return execute(espalier.load(model), [x])[0], session.run(None, {"x": x})[0]


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "tf_crop_and_resize"]
)
def test_kept_aspect_ratios(coordinates: str, policy: str) -> None:
    model = sized(
        (9, 7), (5, 20), mode="linear", coordinate_transformation_mode=coordinates, keep_aspect_ratio_policy=policy
    )
    found, wanted = both(model, (9, 7))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("nearest", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
def test_the_nearest_entry_is_that_of_onnxruntime(coordinates: str, nearest: str) -> None:
    """Where a place falls on an entry, or between two, rounding decides."""
    for extents, sizes in (((14, 7), (18, 1)), ((21, 6), (3, 37)), ((14, 9), (9, 13)), ((14, 13), (2, 26))):
        model = sized(extents, sizes, mode="nearest", coordinate_transformation_mode=coordinates, nearest_mode=nearest)
        np.testing.assert_array_equal(*both(model, extents))
