"""The cells of recurrent layers: what each computes from its gates, as the reference does, on tensors of one entry.

`sequences` makes a kernel of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from espalier.backends.tvm import fuse, xp
from espalier.backends.tvm.arithmetic import as_tensor
from espalier.backends.tvm.cells import Operands, Stage, Values
from espalier.backends.tvm.numbers import immediate
from espalier.backends.tvm.sequences import Layer
from espalier.backends.tvm.tensor import Constant, Map
from espalier.backends.tvm.trace import lowers
from espalier.ir import elements
from espalier.ir.graph import Node


@lowers("rnn")
def rnn(node: Node, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None) -> Any:
    """See `Rnn.reference`."""
    op: Any = node.op

    def cell(direction: int) -> list[Stage]:
        (f,) = op.functions(xp, direction)
        return [Stage((0,), "h", lambda v: {"next": f(v.whole(0))})]

    return lowered(op, Operands(x, w, r, b, lengths, {"h": h}), cell)


@lowers("gru")
def gru(node: Node, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None) -> Any:
    """See `Gru.reference`. Unless the reset comes after the product, it takes a product of its own."""
    op: Any = node.op

    def mixed(v: Values, update: Any, new: Any) -> Any:
        return (1 - update) * new + update * v.state("h")

    def late(direction: int) -> list[Stage]:
        f, g = op.functions(xp, direction)

        def finish(v: Values) -> Mapping[str, Any]:
            recalled = f(v.whole(1)) * (v.before(2) + v.extra(0))
            return {"next": mixed(v, f(v.whole(0)), g(v.now(2) + recalled))}

        return [Stage((0, 1, 2), "h", finish)]

    def early(direction: int) -> list[Stage]:
        f, g = op.functions(xp, direction)
        return [
            Stage((0, 1), "h", lambda v: {"update": f(v.whole(0)), "reset": f(v.whole(1)) * v.state("h")}),
            Stage((2,), "reset", lambda v: {"next": mixed(v, v.state("update"), g(v.whole(2)))}),
        ]

    if not op.linear_before_reset:
        return lowered(op, Operands(x, w, r, b, lengths, {"h": h}), early)
    hidden = r.shape[2]
    bias = None if b is None else xp.reshape(b[:, 5 * hidden :], (-1, 1, hidden))
    return lowered(op, Operands(x, w, r, b, lengths, {"h": h}, bias, (2,)), late)


@lowers("lstm")
def lstm(
    node: Node, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, h: Any = None, c: Any = None, p: Any = None
) -> Any:
    """See `Lstm.reference`."""
    op: Any = node.op

    def cell(direction: int) -> list[Stage]:
        (f, g), (show,) = op.functions(xp, direction)[:2], op.replace(clip=None).functions(xp, direction)[2:]

        def finish(v: Values) -> Mapping[str, Any]:
            held = v.state("c")
            taken = f(v.whole(0) + v.extra(0) * held)
            kept = 1 - taken if op.input_forget else f(v.whole(2) + v.extra(2) * held)
            held = kept * held + taken * g(v.whole(3))
            return {"next": f(v.whole(1) + v.extra(1) * held) * show(held), "c": held}

        return [Stage((0, 1, 2, 3), "h", finish)]

    extras = None if p is None else xp.reshape(p, (p.shape[0], 3, -1))
    return lowered(op, Operands(x, w, r, b, lengths, {"h": h, "c": c}, extras), cell)


def lowered(op: Any, given: Operands, cell: Callable[[int], list[Stage]]) -> Any:
    """The results of a layer; NotImplemented if its extents or activations don't fit."""
    given = replace(given, w=_known(given.w), r=_known(given.r), b=_known(given.b))
    x, hidden = given.x, given.r.shape[2]
    static = [*given.w.shape, *given.r.shape]
    if not all(isinstance(extent, int) for extent in static) or 0 in x.shape[:2] or not xp.element(x).is_float:
        return NotImplemented
    stages = [cell(direction) for direction in range(op.directions)]
    if not all(map(_is_pointwise, (stage for each in stages for stage in each))):
        return NotImplemented
    named = op.named()
    layer = Layer(op, given, int(hidden), stages if any(each != named[0] for each in named) else stages[:1])
    return tuple(xp.astype(part, xp.element(x)) for part in layer.program().parts)


def _known(operand: Any) -> Any:
    """A constant that has been dequantized as an array, which is packed now and not when the model runs."""
    return operand.array if isinstance(operand, Constant) else operand


def _is_pointwise(stage: Stage) -> bool:
    """Whether what a stage computes has no loops."""
    values = Values(elements.F32, lambda name, k: immediate(0, "float32"))
    found = fuse.in_order([as_tensor(value) for value in stage.finish(values).values()])
    return all(isinstance(tensor, Map) or tensor.size == 1 and not tensor.operands for tensor in found)
