"""Interpolation and sampling at computed places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope
from espalier.ir import dims
from espalier.ir.elements import F32
from espalier.ir.graph import Value, constant_value
from espalier.ir.xp import numpy as numpy_xp

_MODES: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "nearest_exact": {
        "mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil",
    },
    "linear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    "cubic": {"mode": "cubic", "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75},
}  # fmt: skip


def resize(
    s: Scope, x: Value, mode: str, align: bool, scales: Sequence[float] | None, antialias: bool = False
) -> Value:
    """To the size that torch computed; with scales, they and not the ratio of sizes place the samples."""
    shape = s.shape
    attributes = dict(_MODES[mode])
    if align:
        attributes["coordinate_transformation_mode"] = "align_corners"
    if antialias:  # torch's antialiased cubic has another constant than its plain one
        attributes |= {"antialias": 1, "exclude_outside": 1} | ({"cubic_coeff_a": -0.5} if mode == "cubic" else {})
    if scales is not None and not align:
        factors = constant_value(np.array([1.0, 1.0, *scales], np.float32), F32)
        found = s.b.resize(x, None, factors, None, **attributes)
        if found.shape is not None and all(a == b for a, b in zip(found.shape, shape, strict=True)):
            return _as_torch_picks(s, found, mode, scales)
        # a product that floating point rounds to another side of an integer: the ratio of sizes is as good
        if dims.is_static(shape) and found.shape is not None and dims.is_static(found.shape):
            assert found.producer is not None
            s.graph.erase(found.producer)
            return _as_torch_picks(s, s.b.resize(x, None, None, s.sizes(shape), **attributes), mode, scales)
        return s.typed(found, shape)
    return _as_torch_picks(s, s.b.resize(x, None, None, s.sizes(shape), **attributes), mode, scales)


def _as_torch_picks(s: Scope, found: Value, mode: str, scales: Sequence[float] | None) -> Value:
    """A resized value; by gathers where f32 rounds torch's formula for the nearest entry another way than ONNX's."""
    node: Any = found.producer
    x: Value = node.x
    extents = (*x.shape[2:], *found.shape[2:])
    if mode not in ("nearest", "nearest_exact") or not dims.is_static(extents) or 0 in extents:
        return found
    picks: dict[int, Any] = {}
    same = True
    for axis in range(2, len(x.shape)):
        extent, count = x.shape[axis], found.shape[axis]
        scale = None if scales is None else scales[axis - 2]
        ratio = np.float32(extent) / np.float32(count) if scale is None else np.float32(1.0 / scale)
        places = np.arange(count, dtype=np.float32) + np.float32(0.5 if mode == "nearest_exact" else 0)
        picks[axis] = np.minimum((places * ratio).astype(np.int64), extent - 1)
        given = (None, [count]) if node.scales is None else ([node.scales.array[axis]], None)
        operands = [None if each is None else np.asarray(each) for each in given]
        own = node.op.reference(numpy_xp, np.arange(extent), None, *operands)
        same &= np.array_equal(own, picks[axis])
    if same:
        return found
    s.graph.erase(node)
    for axis, indices in picks.items():
        x = s.b.gather(x, indices, axis=axis)
    return x


def _given(scales: Sequence[Any]) -> list[float] | None:
    """The scales, if torch was given them as numbers."""
    return [float(scale) for scale in scales] if scales and all(scale is not None for scale in scales) else None


def _register(torch_name: str, mode: str, antialias: bool = False) -> None:
    aligns = mode in ("linear", "cubic")

    def vector(s: Scope, x: Value, size: Any, *rest: Any, **keywords: Any) -> Value:
        """(size, align?, scale_factors)"""
        align = bool(rest[0]) if aligns and rest else bool(keywords.get("align_corners", False))
        factors = keywords.get("scale_factors", rest[-1] if len(rest) > (1 if aligns else 0) else None)
        return resize(s, x, mode, align, _given(factors or ()), antialias)

    def plain(s: Scope, x: Value, size: Any, *rest: Any, **keywords: Any) -> Value:
        """(size, align?, one scale per axis)"""
        align = bool(rest[0]) if aligns and rest else bool(keywords.get("align_corners", False))
        spatial = s.rank_of(x) - 2
        factors = list(rest[1 if aligns else 0 :]) or [
            keywords.get(k) for k in ("scales_d", "scales_h", "scales_w", "scales") if k in keywords
        ]
        return resize(s, x, mode, align, _given(factors) if len(factors) == spatial else None, antialias)

    pairs: tuple[tuple[str, Callable[..., Value]], ...] = (("vec", vector), ("default", plain))
    for overload, function in pairs:
        lowers(f"aten.{torch_name}.{overload}")(function)


for _n in (1, 2, 3):
    _register(f"upsample_nearest{_n}d", "nearest")
    _register(f"_upsample_nearest_exact{_n}d", "nearest_exact")
_register("upsample_linear1d", "linear")
_register("upsample_bilinear2d", "linear")
_register("upsample_trilinear3d", "linear")
_register("upsample_bicubic2d", "cubic")
_register("_upsample_bilinear2d_aa", "linear", antialias=True)
_register("_upsample_bicubic2d_aa", "cubic", antialias=True)


@lowers("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(s: Scope, x: Value, grid: Value, interpolation: int, padding: int, align: bool) -> Value:
    return s.b.grid_sample(
        x, grid, mode=("linear", "nearest", "cubic")[interpolation],
        padding_mode=("zeros", "border", "reflection")[padding], align_corners=int(align),
    )  # fmt: skip


@lowers("aten.affine_grid_generator.default")
def affine_grid(s: Scope, theta: Value, size: Sequence[Any], align: bool) -> Value:
    """The places of a regular grid over [−1, 1] in all axes, each as (x, y, …, 1), times the matrices."""
    extents = [s.dim(extent) for extent in size][2:]
    if not dims.is_static(extents):
        s.refuse("an affine grid of dynamic size", code="E405")
    lines = []
    for extent in extents:
        line = np.linspace(-1, 1, int(extent)) if extent != 1 else np.zeros(1)
        lines.append(line if align else line * ((int(extent) - 1) / int(extent)))
    axes = np.meshgrid(*lines, indexing="ij")
    places = np.stack([*reversed(axes), np.ones_like(axes[0])], axis=-1).reshape(-1, len(extents) + 1)
    base = constant_value(places.astype(theta.element.dtype), theta.element)
    return s.reshape(s.b.matmul(base, s.swap(theta, 1, 2)), s.shape)
