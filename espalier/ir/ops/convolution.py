"""Convolutions."""

from __future__ import annotations

from typing import Any

from espalier.ir import zeros
from espalier.ir.dims import Dimension, floor_divide
from espalier.ir.op import In, Op, op


@op("conv", onnx="Conv")
class Conv(Op):
    """Convolution (cross-correlation) of x (n, g·i, spatial…) with w (g·o, i, kernel…); ONNX Conv.

    Frontends resolve ONNX's auto_pad into `pads` (all begins, then all ends) where the shapes are static.
    """

    x: In
    w: In
    b: In | None
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    auto_pad: str = "NOTSET"

    axes = "n (g i) window(P, K), (g o) i K, (g o) -> n (g o) P"
    bound = {"group": "g"}
    contracts = True
    zero = zeros.affine

    def window_extent(self, axis: int, extent: Dimension, kernel: Dimension) -> Dimension:
        stride = self.strides[axis] if self.strides else 1
        dilation = self.dilations[axis] if self.dilations else 1
        if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            return floor_divide(extent + stride - 1, stride)
        pads = self.pads[axis] + self.pads[axis + len(self.pads) // 2] if self.pads else 0
        return floor_divide(extent + pads - dilation * (kernel - 1) - 1, stride) + 1

    def reference(self, xp: Any, x: Any, w: Any, b: Any = None) -> Any:
        spatial = x.ndim - 2
        strides, dilations = self.strides or (1,) * spatial, self.dilations or (1,) * spatial
        pads = same_pads(self.auto_pad, x.shape[2:], w.shape[2:], strides, dilations) or pairs(self.pads, spatial)
        y = xp.conv(x, w, strides, pads, dilations, self.group)
        return y if b is None else y + xp.reshape(b, (1, -1) + (1,) * spatial)


def pairs(pads: tuple[int, ...], spatial: int) -> list[tuple[int, int]]:
    """ONNX's flat pads (begins, then ends) as (begin, end) per axis."""
    return [(pads[k], pads[k + spatial]) for k in range(spatial)] if pads else [(0, 0)] * spatial


def same_pads(
    auto_pad: str, extents: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> list[tuple[int, int]] | None:
    """The pads that ONNX's SAME_UPPER and SAME_LOWER mean; None for other modes."""
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    found = []
    for extent, size, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        total = max(0, (-(-extent // stride) - 1) * stride + dilation * (size - 1) + 1 - extent)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return found
