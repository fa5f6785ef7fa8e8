"""Convolutions, and their windows as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.frontends.torch.lower.movement import pad
from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope
from espalier.ir import dims
from espalier.ir.elements import F64, I64
from espalier.ir.graph import Value, constant_value

Numbers = int | Sequence[int]


def each(entry: Numbers, count: int) -> tuple[int, ...]:
    """One number per spatial axis."""
    if isinstance(entry, int):
        return (entry,) * count
    return tuple(entry) * count if len(entry) == 1 else tuple(entry)


def convolve(
    s: Scope, x: Value, w: Value, bias: Value | None, stride: Numbers, padding: Numbers | str, dilation: Numbers,
    transposed: bool, output_padding: Numbers, groups: int,
) -> Value:  # fmt: skip
    spatial = s.rank_of(w) - 2
    batched = s.rank_of(x) == spatial + 2
    if not x.element.is_float:
        # exact for sums below 2⁵³; ONNX convolves floats only
        found = convolve(s, _as_float(s, x), _as_float(s, w), None if bias is None else _as_float(s, bias),
                         stride, padding, dilation, transposed, output_padding, groups)  # fmt: skip
        return s.cast(s.b.round(found), x.element)
    if not batched:
        x = s.unsqueeze(x, 0)
    strides, dilations = each(stride, spatial), each(dilation, spatial)
    if isinstance(padding, str):
        begins, ends = _named_padding(s, padding, w, dilations)
    else:
        begins = ends = each(padding, spatial)
    if not isinstance(groups, int):
        s.refuse(f"{groups} groups, which only run time knows; export with that axis fixed", code="E405")
    attributes: dict[str, Any] = {"strides": strides, "pads": (*begins, *ends), "dilations": dilations, "group": groups}
    if transposed:
        y = s.b.conv_transpose(x, w, bias, output_padding=each(output_padding, spatial), **attributes)
    else:
        y = s.b.conv(x, w, bias, **attributes)
    return y if batched else s.squeeze(y, 0)


def _as_float(s: Scope, x: Value) -> Value:
    return s.cast(x, F64)


def _named_padding(
    s: Scope, padding: str, w: Value, dilations: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if padding == "valid":
        return (0,) * len(dilations), (0,) * len(dilations)
    kernel = s.shape_of(w)[2:]
    if not dims.is_static(kernel):
        s.refuse('padding="same" for a kernel of dynamic size', code="E405")
    totals = [dilation * (int(size) - 1) for size, dilation in zip(kernel, dilations, strict=True)]
    return tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)


@lowers("aten.convolution.default", "aten._convolution.default", "aten._convolution.deprecated")
def convolution(
    s: Scope, x: Value, w: Value, bias: Value | None, stride: Numbers, padding: Numbers, dilation: Numbers,
    transposed: bool, output_padding: Numbers, groups: int, *_: Any,
) -> Value:  # fmt: skip
    return convolve(s, x, w, bias, stride, padding, dilation, transposed, output_padding, groups)


@lowers(*(f"aten.conv{n}d.{overload}" for n in (1, 2, 3) for overload in ("default", "padding")))
def conv(
    s: Scope, x: Value, w: Value, bias: Value | None = None, stride: Numbers = 1, padding: Numbers | str = 0,
    dilation: Numbers = 1, groups: int = 1,
) -> Value:  # fmt: skip
    return convolve(s, x, w, bias, stride, padding, dilation, False, 0, groups)


@lowers("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    s: Scope, x: Value, w: Value, bias: Value | None = None, stride: Numbers = 1, padding: Numbers = 0,
    output_padding: Numbers = 0, groups: int = 1, dilation: Numbers = 1,
) -> Value:  # fmt: skip
    return convolve(s, x, w, bias, stride, padding, dilation, True, output_padding, groups)


@lowers("aten.im2col.default")
def im2col(s: Scope, x: Value, kernel: Numbers, dilation: Numbers, padding: Numbers, stride: Numbers) -> Value:
    """(n, c, h, w) → (n, c·kh·kw, positions), by two gathers."""
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = (each(entry, 2) for entry in (kernel, dilation, padding, stride))
    batched = s.rank_of(x) == 4
    if not batched:
        x = s.unsqueeze(x, 0)
    x = pad(s, x, (pw, pw, ph, ph), "constant")
    n, c, h, w = s.shape_of(x)
    x = s.b.gather(x, _window_positions(s, h, kh, dh, sh), axis=2)  # n c kh oh w
    x = s.b.gather(x, _window_positions(s, w, kw, dw, sw), axis=4)  # n c kh oh kw ow
    x = s.transpose(x, (0, 1, 2, 4, 3, 5))
    shape = s.shape_of(x)
    x = s.reshape(x, (n, c * kh * kw, shape[4] * shape[5]))
    return x if batched else s.squeeze(x, 0)


def _window_positions(s: Scope, extent: dims.Dimension, kernel: int, dilation: int, stride: int) -> Value:
    """kernel × positions: where each offset of each window lies."""
    count = dims.floor_divide(extent - dilation * (kernel - 1) - 1, stride) + 1
    offsets = np.arange(kernel)[:, None] * dilation
    if isinstance(count, int):
        return constant_value(offsets + np.arange(count) * stride)
    return s.b.add(constant_value(offsets), s.b.mul(s.arange(count), s.number(stride, I64)))


@lowers("aten.col2im.default")
def col2im(
    s: Scope, x: Value, size: Sequence[Any], kernel: Numbers, dilation: Numbers, padding: Numbers, stride: Numbers
) -> Value:
    (ph, pw) = each(padding, 2)
    batched = s.rank_of(x) == 3
    if not batched:
        x = s.unsqueeze(x, 0)
    y = s.b.col2im(
        x, s.sizes([s.dim(extent) for extent in size]), s.sizes(each(kernel, 2)), strides=each(stride, 2),
        dilations=each(dilation, 2), pads=(ph, pw, ph, pw),
    )  # fmt: skip
    return y if batched else s.squeeze(y, 0)
