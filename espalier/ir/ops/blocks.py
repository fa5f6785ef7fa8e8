"""Operators that move blocks of pixels into channels, and back."""

from __future__ import annotations

from typing import Any

from espalier.ir import zeros
from espalier.ir.axes import Equation
from espalier.ir.op import In, Op, TypeContext, op
from espalier.ir.ops.movement import unknown_shape
from espalier.ir.types import TensorType, Type


class _Blocks(Op):
    """Base of moves between channels and blocks of blocksize × blocksize pixels."""

    x: In
    mode: str = "DCR"
    blocksize: int

    bound = {"blocksize": "a"}
    zero = zeros.passed
    moves = True

    def pin_blocks(self, ctx: TypeContext, text: str) -> Equation | None:
        if self.mode not in ("DCR", "CRD"):
            ctx.fail(f"mode is DCR or CRD, not {self.mode}")
        found = self.declared(ctx, text, {"b": self.blocksize})
        for letter in () if found is None else (*found.letters["a"], *found.letters["b"]):
            letter.pinned = "the pixels of a block"
        return found

    def infer(self, ctx: TypeContext) -> list[Type]:
        if ctx.shape("x") is None:
            return [TensorType(ctx.element("x"), unknown_shape(ctx, 4))]
        return super().infer(ctx)


@op("depth_to_space", onnx="DepthToSpace")
class DepthToSpace(_Blocks):
    """Channels (blocksize, blocksize, c), or (c, blocksize, blocksize) in mode CRD, to blocks of pixels."""

    def equation(self, ctx: TypeContext) -> Equation | None:
        return self.pin_blocks(ctx, f"n ({'a b c' if self.mode == 'DCR' else 'c a b'}) h w -> n c (h a) (w b)")

    def reference(self, xp: Any, x: Any) -> Any:
        n, c, h, w = x.shape
        size = self.blocksize
        depth = c // size**2
        if self.mode == "DCR":
            blocks = xp.transpose(xp.reshape(x, (n, size, size, depth, h, w)), (0, 3, 4, 1, 5, 2))
        else:
            blocks = xp.transpose(xp.reshape(x, (n, depth, size, size, h, w)), (0, 1, 4, 2, 5, 3))
        return xp.reshape(blocks, (n, depth, h * size, w * size))


@op("space_to_depth", onnx="SpaceToDepth")
class SpaceToDepth(_Blocks):
    """Blocks of pixels to channels (blocksize, blocksize, c), or (c, blocksize, blocksize) in mode CRD."""

    def equation(self, ctx: TypeContext) -> Equation | None:
        return self.pin_blocks(ctx, f"n c (h a) (w b) -> n ({'a b c' if self.mode == 'DCR' else 'c a b'}) h w")

    def reference(self, xp: Any, x: Any) -> Any:
        n, c, height, width = x.shape
        size = self.blocksize
        h, w = height // size, width // size
        blocks = xp.reshape(x, (n, c, h, size, w, size))
        order = (0, 3, 5, 1, 2, 4) if self.mode == "DCR" else (0, 1, 3, 5, 2, 4)
        return xp.reshape(xp.transpose(blocks, order), (n, c * size**2, h, w))
