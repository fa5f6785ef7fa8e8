"""Convolutions, pooling, resizing and sampling against PyTorch and onnxruntime, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from espalier.ir.build import Builder
from espalier.ir.dims import symbol
from espalier.ir.elements import BF16, F16, F32
from espalier.ir.graph import Graph
from espalier.ir.op import Op, TypeInferenceError
from espalier.ir.ops.convolution import Conv, ConvTranspose
from espalier.ir.ops.pooling import AveragePool, MaxPool, MaxUnpool
from espalier.ir.ops.resampling import Resize
from espalier.ir.ops.vision import DeformConv, GridSample, MaxRoiPool
from espalier.ir.types import TensorType
from espalier.ir.xp import numpy as xp

Array = np.ndarray[Any, Any]


def random(*shape: int) -> Array:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def by_onnxruntime(op: Op, *operands: Array, **attributes: Any) -> Array:
    """What onnxruntime computes for a node of the operator's attributes that are not at their defaults."""
    said = {key: value for key, value in op.attributes.items() if value != op.defaults[key]} | attributes
    names = [f"x{k}" for k in range(len(operands))]
    node = helper.make_node(str(op.onnx), names, ["y"], **said)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in zip(names, operands, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, [output]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], dict(zip(names, operands, strict=True)))[0])


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("adjust", [0, 1])
def test_conv_transpose(group: int, dilation: int, adjust: int) -> None:
    x, w, b = random(2, 4, 5, 6), random(4, 3, 3, 2), random(3 * group)
    op = ConvTranspose(
        group=group, strides=(2, 3), pads=(1, 0, 1, 0), dilations=(dilation,) * 2, output_padding=(adjust,) * 2
    )
    tensors = (torch.from_numpy(a) for a in (x, w, b))
    expected = F.conv_transpose2d(*tensors, (2, 3), (1, 0), (adjust, adjust), group, (dilation, dilation))
    close(op.reference(xp, x, w, b), expected, 1e-4)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_automatic_pads(mode: str) -> None:
    x, w = random(1, 2, 7, 8), random(3, 2, 3, 4)
    for op in (Conv(auto_pad=mode, strides=(2, 3)), MaxPool(auto_pad=mode, strides=(2, 3), kernel_shape=(3, 4))):
        operands = [x, w][: len(op.operands)]
        found = op.reference(xp, *operands)
        close(found[0] if isinstance(found, tuple) else found, by_onnxruntime(op, *operands), 1e-4)


@pytest.mark.parametrize("kind", [BF16, F16])
def test_narrow_floats_stay_narrow_and_accumulate_wide(kind: Any) -> None:
    x = np.full((1, 4096, 1, 1), 1.0).astype(kind.dtype)
    y = Conv().reference(xp, x, x)
    assert y.dtype == kind.dtype and float(y.reshape(())) == 4096.0  # in bf16 alone, the sum would stick at 256


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool_and_its_indices(ceil: int, dilation: int) -> None:
    x = random(2, 3, 9, 10)
    op = MaxPool(kernel_shape=(3, 2), strides=(2, 3), pads=(1, 1, 1, 1), dilations=(dilation,) * 2, ceil_mode=ceil)
    y, indices = op.reference(xp, x)
    expected, places = F.max_pool2d(
        torch.from_numpy(x), (3, 2), (2, 3), (1, 1), (dilation, dilation), bool(ceil), return_indices=True
    )
    close(y, expected)
    planes = np.arange(6).reshape(2, 3, 1, 1) * 90  # PyTorch counts within each plane
    close(indices, places.numpy() + planes)
    close(x.reshape(-1)[indices], y)
    columns = op.replace(storage_order=1).reference(xp, x)[1] - planes
    close(columns % 9 * 10 + columns // 9, places.numpy())


def test_padding_is_never_the_largest() -> None:
    x = np.full((1, 1, 2, 2), -128, np.int8)
    y, indices = MaxPool(kernel_shape=(3, 3), pads=(1, 1, 1, 1)).reference(xp, x)
    assert np.all(y == -128) and np.all(indices == 0)


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("counted", [0, 1])
def test_average_pool(ceil: int, counted: int) -> None:
    x = random(2, 3, 9, 10)
    op = AveragePool(kernel_shape=(3, 2), strides=(2, 3), pads=(1, 1, 1, 1), ceil_mode=ceil, count_include_pad=counted)
    expected = F.avg_pool2d(torch.from_numpy(x), (3, 2), (2, 3), (1, 1), bool(ceil), bool(counted))
    close(op.reference(xp, x), expected)


def test_unpooling_undoes_pooling() -> None:
    x = random(2, 3, 4, 6)
    y, indices = MaxPool(kernel_shape=(2, 2), strides=(2, 2)).reference(xp, x)
    back = MaxUnpool(kernel_shape=(2, 2), strides=(2, 2)).reference(xp, y, indices)
    assert np.array_equal(back[back != 0], x[back != 0]) and np.count_nonzero(back) == y.size


def test_extents_of_pooling_by_symbols() -> None:
    graph = Graph()
    x = graph.add_input(TensorType(F32, (symbol("n"), 3, symbol("h"), 224)))
    y = Builder(graph).max_pool(x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    assert str(y.type) == "f32[n, 3, floordiv(h+1, 2), 112]"


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(9, 14), (3, 4)])
def test_resize_as_pytorch(mode: str, align: bool, size: tuple[int, int]) -> None:
    x = random(2, 3, 5, 7)
    op = Resize(mode=mode, coordinate_transformation_mode="align_corners" if align else "pytorch_half_pixel")
    expected = F.interpolate(torch.from_numpy(x), size, mode="bi" + mode, align_corners=align)
    close(op.reference(xp, x, None, None, np.array([2, 3, *size])), expected)


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinates", ["asymmetric", "half_pixel", "align_corners"])
def test_resize_nearest_as_onnxruntime(nearest: str, coordinates: str) -> None:
    x, scales = random(1, 2, 5, 7), np.array([1, 1, 1.5, 1 / 3], np.float32)
    op = Resize(nearest_mode=nearest, coordinate_transformation_mode=coordinates)
    if coordinates == "align_corners":
        scales = np.array([1, 1, 2, 3], np.float32)
    roi = np.array([], np.float32)
    close(op.reference(xp, x, None, scales), by_onnxruntime(op, x, roi, scales, nearest_mode=nearest))


def test_resize_of_symbolic_extents() -> None:
    graph = Graph()
    x = graph.add_input(TensorType(F32, (symbol("n"), 3, symbol("h"), symbol("w"))))
    build = Builder(graph)
    assert str(build.resize(x, None, np.array([1, 1, 2, 0.5], np.float32)).type) == "f32[n, 3, 2*h, floordiv(w, 2)]"
    uneven = build.resize(x, None, np.array([1, 1, 1, 0.7], np.float32)).type
    assert uneven.shape[:3] == x.shape[:3] and str(uneven.shape[3]).startswith("u")


def test_resize_refuses_what_is_ambiguous() -> None:
    x, roi = random(1, 4, 4), np.array([0, 0.1, 1, 0.9], np.float32)
    op = Resize(coordinate_transformation_mode="tf_crop_and_resize", resized_axes=(1, 2))
    with pytest.raises(ValueError, match="ambiguous"):
        op.reference(xp, x, roi, np.array([2, 2], np.float32))
    graph = Graph()
    with pytest.raises(TypeInferenceError, match="scales or sizes"):
        Builder(graph).resize(graph.add_input(TensorType(F32, (2, 2))))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(mode: str, padding: str, align: int) -> None:
    for spatial in (2, 3):
        x, grid = random(2, 3, *(4, 5, 6)[:spatial]), random(2, *(3, 2, 4)[:spatial], spatial)
        op = GridSample(mode=mode, padding_mode=padding, align_corners=align)
        torch_mode = "bilinear" if mode == "linear" else mode
        tensors = (torch.from_numpy(x), torch.from_numpy(grid))
        close(op.reference(xp, x, grid), F.grid_sample(*tensors, torch_mode, padding, bool(align)), 1e-4)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample_cubic(padding: str, align: int) -> None:
    x, grid = random(2, 3, 6, 7), random(2, 3, 4, 2)
    op = GridSample(mode="cubic", padding_mode=padding, align_corners=align)
    tensors = (torch.from_numpy(x), torch.from_numpy(grid))
    close(op.reference(xp, x, grid), F.grid_sample(*tensors, "bicubic", padding, bool(align)), 1e-4)
    close(op.reference(xp, x, grid), by_onnxruntime(op, x, grid, mode="cubic", padding_mode=padding), 1e-4)


def test_deform_conv_without_offsets_is_a_convolution() -> None:
    x, w, b = random(2, 4, 6, 7), random(6, 2, 3, 3), random(6)
    plain = Conv(group=2, strides=(1, 2), pads=(1, 0, 1, 0), dilations=(1, 2))
    expected = plain.reference(xp, x, w, b)
    offset = np.zeros((2, 2 * 9 * 2, *expected.shape[2:]), np.float32)
    attributes = {key: value for key, value in plain.attributes.items() if key != "auto_pad"}
    op = DeformConv(offset_group=2, **attributes)
    close(op.reference(xp, x, w, offset, b), expected, 1e-4)
    offset[:, 0::2] += 1.0  # one row further down
    moved = np.concatenate([x[:, :, 1:], np.zeros_like(x[:, :, :1])], axis=2)
    inner = (slice(None), slice(None), slice(1, None))
    close(op.reference(xp, x, w, offset, b)[inner], plain.reference(xp, moved, w, b)[inner], 1e-4)


def test_max_roi_pool() -> None:
    x = random(2, 3, 8, 9)
    rois = np.array([[0, 0, 0, 12, 12], [1, 3, 2, 9, 7], [1, 15, 15, 20, 20]], np.float32)
    op = MaxRoiPool(pooled_shape=(2, 3), spatial_scale=0.5)
    close(op.reference(xp, x, rois), by_onnxruntime(op, x, rois))


@pytest.mark.parametrize("extents", [(4, 4), (symbol("h"), symbol("w"))])
@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("strides", (0, 1), r"strides=\(0, 1\): each must be at least 1"),
        ("dilations", (1, -1), "dilations=.*at least 1"),
        ("pads", (1,), r"pads=\(1,\) where 2 axes need 4 numbers"),
        ("pads", (0, 0, -1, 0), "pads=.*at least 0"),
        ("strides", (1, 1, 1), "strides=.* where 2 axes need 2 numbers"),
    ],
)
def test_attributes_of_windows_are_checked(name: str, numbers: Any, message: str, extents: Any) -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(F32, (1, 2, *extents)))
    w = random(2, 2, 3, 3)
    made = [lambda **a: b.conv(x, w, **a), lambda **a: b.conv_transpose(x, w, **a)]
    made += [lambda **a: b.max_pool(x, kernel_shape=(3, 3), results=1, **a)]
    made += [lambda **a: b.average_pool(x, kernel_shape=(3, 3), **a)]
    for make in made:
        with pytest.raises(TypeInferenceError, match=message):
            make(**{name: numbers})


def test_windows_have_extents() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(F32, (1, 2, 4, 4)))
    with pytest.raises(TypeInferenceError, match=r"a window of the extents \(0, 2\)"):
        b.average_pool(x, kernel_shape=(0, 2))
