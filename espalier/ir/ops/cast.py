"""Changes of the element type."""

from __future__ import annotations

from typing import Any

from espalier.ir import elements, zeros
from espalier.ir.elements import Element, Quantized
from espalier.ir.op import In, Op, TypeContext, op

ROUND_MODES = ("up", "down", "nearest")


def castable(ctx: TypeContext, to: Element, round_mode: str) -> Element:
    """The target element, if a cast goes there."""
    for element in (ctx.element(0), to):
        if isinstance(element, Quantized):
            ctx.fail(f"a cast does not reach {element}: use quantize and dequantize")
    if round_mode not in ROUND_MODES:
        ctx.fail(f"the rounding mode is one of {', '.join(ROUND_MODES)}, not {round_mode!r}")
    return to


def keeps_zero(to: Element, states: zeros.States) -> bool:
    """Whether a cast leaves zeros zero: not as text, nor where the format has no zero."""
    return states[0] is True and to.kind not in ("string", "bipolar") and to != elements.F8E8M0


@op("cast", onnx="Cast")
class Cast(Op):
    """Convert to another element; `saturate` and `round_mode` are for 8-bit floats, as ONNX's tables say."""

    x: In
    to: Element
    saturate: int = 1
    round_mode: str = "up"

    axes = "... -> ..."
    idempotent = True
    symbolic = True

    def element(self, ctx: TypeContext) -> Element:
        return castable(ctx, self.to, self.round_mode)

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        return keeps_zero(self.to, states)

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.cast(x, self.to, bool(self.saturate), self.round_mode)


@op("cast_like", onnx="CastLike")
class CastLike(Op):
    """Convert to the element of another tensor."""

    x: In
    like: In
    saturate: int = 1
    round_mode: str = "up"

    axes = "..., _ -> ..."
    idempotent = True

    def element(self, ctx: TypeContext) -> Element:
        return castable(ctx, ctx.element("like"), self.round_mode)

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        return keeps_zero(ctx.element("like"), states)

    def reference(self, xp: Any, x: Any, like: Any) -> Any:
        return xp.cast(x, xp.element(like), bool(self.saturate), self.round_mode)


@op("bit_cast", onnx="BitCast")
class BitCast(Op):
    """The same bits read as another element of the same width."""

    x: In
    to: Element

    axes = "... -> ..."
    zero = zeros.passed
    idempotent = True

    def element(self, ctx: TypeContext) -> Element:
        given = ctx.element("x")
        if "string" in (given.kind, self.to.kind) or isinstance(given, Quantized) or isinstance(self.to, Quantized):
            ctx.fail(f"the bits of {given} can't be read as {self.to}")
        if _width(given) != _width(self.to):
            ctx.fail(f"{given} and {self.to} differ in width")
        return self.to

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        return keeps_zero(self.to, states)

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.bitcast(x, self.to)


def _width(element: Element) -> int:
    return 8 if element == elements.BOOL else element.bits
