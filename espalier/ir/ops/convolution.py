"""Convolutions."""

from __future__ import annotations

from typing import Any

from espalier.ir import elements, zeros
from espalier.ir.axes import DeclarationError, Equation
from espalier.ir.dims import Dimension, Shape, floor_divide, is_static, maximum
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, TypeContext, op
from espalier.ir.ops.contraction import shifted
from espalier.ir.terms import pin


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

    def equation(self, ctx: TypeContext) -> Equation | None:
        check_window(self, ctx, ctx.shape("w"))
        return self.declared(ctx, POINTWISE) if pointwise(self, ctx) else super().equation(ctx)

    def window_extent(self, axis: int, extent: Dimension, kernel: Dimension) -> Dimension:
        return window_count(self, axis, extent, kernel)

    def reference(self, xp: Any, x: Any, w: Any, b: Any = None) -> Any:
        y = convolve(self, xp, x, w)
        return y if b is None else y + xp.reshape(b, (1, -1) + (1,) * (x.ndim - 2))


POINTWISE = "n (g i) S?, (g o) i K, (g o) -> n (g o) S?"


def pointwise(operator: Conv | ConvInteger, ctx: TypeContext) -> bool:
    """Whether a convolution treats each position by itself, so that its spatial axes are like the batch."""
    x, kernel = ctx.shape("x"), ctx.shape("w")
    if x is None or kernel is None or len(x) != len(kernel) or any(extent != 1 for extent in kernel[2:]):
        return False
    return not any(operator.pads) and all(stride == 1 for stride in operator.strides)


def check_window(operator: Any, ctx: TypeContext, kernel: Shape | None) -> None:
    """Fail unless strides, dilations and pads are as many as the axes that a window slides over, and possible.

    Args:
        kernel: the shape of a kernel, its spatial axes from the third on; None if its rank is not known.
    """
    spatial = None if kernel is None else len(kernel) - 2
    for name, each, least in (("strides", 1, 1), ("dilations", 1, 1), ("pads", 2, 0)):
        found = getattr(operator, name, ())
        if found and spatial is not None and len(found) != each * spatial:
            ctx.fail(f"{name}={tuple(found)} where {spatial} axes need {each * spatial} numbers")
        if any(entry < least for entry in found):
            ctx.fail(f"{name}={tuple(found)}: each must be at least {least}")
    if any(isinstance(extent, int) and extent < 1 for extent in (kernel or ())[2:]):
        ctx.fail(f"a window of the extents {(kernel or ())[2:]}: each must be at least 1")


def window_count(operator: Any, axis: int, extent: Dimension, kernel: Dimension) -> Dimension:
    """Result positions of a window on a spatial axis, by the operator's strides, pads, dilations and auto_pad."""
    stride = operator.strides[axis] if operator.strides else 1
    dilation = operator.dilations[axis] if operator.dilations else 1
    if operator.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return floor_divide(extent + stride - 1, stride)
    pads = operator.pads[axis] + operator.pads[axis + len(operator.pads) // 2] if operator.pads else 0
    count = floor_divide(extent + pads - dilation * (kernel - 1) - 1, stride) + 1
    return counted(count, extent, kernel)


def counted(count: Dimension, extent: Dimension, kernel: Dimension) -> Dimension:
    """The result positions of a window, if there can be as many."""
    if isinstance(count, int) and count < 0:
        raise DeclarationError(f"a window of {kernel} positions is larger than an axis of {extent} with its padding")
    return count


def convolve(operator: Any, xp: Any, x: Any, w: Any) -> Any:
    """The convolution that an operator's strides, pads, dilations, group and auto_pad say."""
    spatial = x.ndim - 2
    strides, dilations = operator.strides or (1,) * spatial, operator.dilations or (1,) * spatial
    pads = same_pads(operator.auto_pad, x.shape[2:], w.shape[2:], strides, dilations) or pairs(operator.pads, spatial)
    if not all(map(is_static, pads)):
        x, pads = xp.pad(x, [(0, 0), (0, 0), *pads]), [(0, 0)] * spatial
    return xp.conv(x, w, strides, pads, dilations, operator.group)


def pairs(pads: tuple[int, ...], spatial: int) -> list[tuple[int, int]]:
    """ONNX's flat pads (begins, then ends) as (begin, end) per axis."""
    return [(pads[k], pads[k + spatial]) for k in range(spatial)] if pads else [(0, 0)] * spatial


def same_pads(
    auto_pad: str,
    extents: Shape,
    kernel: Shape,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> list[tuple[Dimension, Dimension]] | None:
    """The pads that ONNX's SAME_UPPER and SAME_LOWER mean; None for other modes."""
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    found: list[tuple[Dimension, Dimension]] = []
    for extent, size, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        total = maximum(0, (-(-extent // stride) - 1) * stride + dilation * (size - 1) + 1 - extent)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return found


@op("conv_transpose", onnx="ConvTranspose")
class ConvTranspose(Op):
    """Transposed convolution of x (n, g·i, spatial…) with w (g·i, o, kernel…); ONNX ConvTranspose.

    `output_shape` (the spatial extents) overrides `pads`; `output_padding` adds positions at the end.
    """

    x: In
    w: In
    b: In | None
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    auto_pad: str = "NOTSET"
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    bound = {"group": "g"}
    contracts = True
    zero = zeros.affine

    def equation(self, ctx: TypeContext) -> Equation | None:
        x, w = ctx.shape("x"), ctx.shape("w")
        if x is None or w is None:
            return None
        if len(x) != len(w) or len(x) < 3:
            ctx.fail(f"a convolution of rank {len(x)} with weights of rank {len(w)}")
        check_window(self, ctx, w)
        positions = [f"p{axis}" for axis in range(len(x) - 2)]
        known = {p: self.extents(axis, x[axis + 2], w[axis + 2])[0] for axis, p in enumerate(positions)}
        if any(isinstance(extent, int) and extent < 0 for extent in known.values()):
            ctx.fail(f"the padding cuts off more positions than there are: {tuple(known.values())} are left")
        text = f"n (g i) S, (g i) o K, (g o) -> n (g o) {' '.join(positions)}"
        found = self.declared(ctx, text, known)
        if found is not None:  # the result's positions are those that the kernel slides over
            for p in positions:
                pin(found.letters[p][0], "a window slides over it")
                found.windows += found.letters[p]
        return found

    def extents(self, axis: int, extent: Dimension, kernel: Dimension) -> tuple[Dimension, Dimension]:
        """Result extent on a spatial axis, and how many positions are cut off before it."""
        stride = self.strides[axis] if self.strides else 1
        dilation = self.dilations[axis] if self.dilations else 1
        adjust = self.output_padding[axis] if self.output_padding else 0
        full = (extent - 1) * stride + adjust + dilation * (kernel - 1) + 1
        spatial = len(self.output_shape)
        wanted: Dimension | None = self.output_shape[axis - spatial if axis < 0 else axis] if spatial else None
        if wanted is None and self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = extent * stride
        if wanted is None:
            before, after = pairs(self.pads, len(self.pads) // 2)[axis] if self.pads else (0, 0)
            return full - before - after, before
        total = maximum(full - wanted, 0)
        half = floor_divide(total, 2)
        return wanted, half if self.auto_pad == "SAME_UPPER" else total - half

    def reference(self, xp: Any, x: Any, w: Any, b: Any = None) -> Any:
        spatial, groups = x.ndim - 2, self.group
        kernel = w.shape[2:]
        strides, dilations = self.strides or (1,) * spatial, self.dilations or (1,) * spatial
        # the same as a convolution of x, spread by the strides, with the flipped kernel
        for axis, stride in enumerate(strides):
            x = spread(xp, x, axis + 2, stride)
        pads = []
        for axis in range(spatial):
            extent = (x.shape[axis + 2] - 1) // strides[axis] + 1
            count, cut = self.extents(axis, extent, kernel[axis])
            reach = dilations[axis] * (kernel[axis] - 1)
            pads.append((reach - cut, count - x.shape[axis + 2] + cut))
        inner, outer = w.shape[0] // groups, w.shape[1]
        w = xp.transpose(xp.reshape(w, (groups, inner, outer, *kernel)), (0, 2, 1, *range(3, spatial + 3)))
        w = xp.flip(xp.reshape(w, (groups * outer, inner, *kernel)), axis=tuple(range(2, spatial + 2)))
        y = xp.conv(x, w, (1,) * spatial, pads, dilations, groups)
        return y if b is None else y + xp.reshape(b, (1, -1) + (1,) * spatial)


def spread(xp: Any, array: Any, axis: int, stride: int) -> Any:
    """Put stride − 1 zeros between neighbours on an axis."""
    if stride == 1:
        return array
    shape = array.shape
    pads = [(0, stride - 1 if k == axis + 1 else 0) for k in range(len(shape) + 1)]
    grown = xp.pad(xp.expand_dims(array, axis + 1), pads)
    grown = xp.reshape(grown, (*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]))
    return grown[(slice(None),) * axis + (slice(0, (shape[axis] - 1) * stride + 1),)]


@op("conv_integer", onnx="ConvInteger")
class ConvInteger(Op):
    """Convolution of 8-bit integers less their zero points, in i32, wrapping around; ONNX ConvInteger.

    The zero point of x is one number, that of w one number or one per result channel; padding adds x's zero point.
    """

    x: In
    w: In
    x_zero_point: In | None
    w_zero_point: In | None
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    auto_pad: str = "NOTSET"

    bound = {"group": "g"}
    contracts = True
    zero = zeros.affine

    def equation(self, ctx: TypeContext) -> Equation | None:
        check_window(self, ctx, ctx.shape("w"))
        alone = pointwise(self, ctx)
        text = f"n (g i) {'S?' if alone else 'window(P, K)'}, (g o) i K"
        for operand in ("x_zero_point", "w_zero_point"):
            shape = ctx.shape(operand) if ctx.has(operand) else None
            text += ", _" if shape is None else ", " if not shape else ", 1" if shape[0] == 1 else ", (g o)"
        found = self.declared(ctx, f"{text} -> n (g o) {'S?' if alone else 'P'}")
        if found is not None and shifted(ctx, "x_zero_point") and shifted(ctx, "w_zero_point"):
            pin(found.letters["i"][0], "zero points: what is cut out would not have been zero")
        return found

    def window_extent(self, axis: int, extent: Dimension, kernel: Dimension) -> Dimension:
        return window_count(self, axis, extent, kernel)

    def element(self, ctx: TypeContext) -> Element:
        return elements.I32

    def reference(self, xp: Any, x: Any, w: Any, x_zero_point: Any = None, w_zero_point: Any = None) -> Any:
        x, w = xp.astype(x, elements.I32), xp.astype(w, elements.I32)
        if x_zero_point is not None:
            x = x - xp.reshape(xp.astype(x_zero_point, elements.I32), ())
        if w_zero_point is not None:
            w = w - xp.reshape(xp.astype(w_zero_point, elements.I32), (-1,) + (1,) * (w.ndim - 1))
        return convolve(self, xp, x, w)
