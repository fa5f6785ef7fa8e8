"""Operators that the IR does not know: kept as they are, run through ONNX, exported unchanged."""

from __future__ import annotations

from typing import Any

from espalier.ir.op import Ins, Op, Outs, TypeContext, op
from espalier.ir.types import Type, parse


@op("opaque")
class Opaque(Op):
    """An ONNX node of unknown meaning. It freezes every axis that it touches."""

    xs: Ins
    ys: Outs
    domain: str
    op_type: str
    node: bytes
    """The serialized NodeProto; its own input and output names count only by position."""
    result_types: tuple[str, ...]
    """The declared types of the results, in text form."""
    opsets: tuple[tuple[str, int], ...] = ()
    """The operator set versions that the node was written for."""
    deterministic = False

    def infer(self, ctx: TypeContext) -> list[Type]:
        ctx.cacheable = False  # what is remembered would keep the serialized node
        return [parse(text) for text in self.result_types]

    def reference(self, xp: Any, *operands: Any) -> Any:
        from espalier.ir.onnx_evaluation import run_onnx_node

        arrays = [None if operand is None else xp.to_numpy(operand) for operand in operands]
        found = run_onnx_node(self.node, dict(self.opsets), arrays, len(self.result_types))
        return tuple(xp.asarray(array) for array in found)
