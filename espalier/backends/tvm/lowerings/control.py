"""Control flow: branches that both run, loops that are unrolled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm import requirements
from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor
from espalier.backends.tvm.frames import Scope, integer, sequence
from espalier.backends.tvm.tensor import Expr, Program, Tensor, Untraceable
from espalier.backends.tvm.trace import Region, lowers
from espalier.errors import UnsupportedError
from espalier.ir.graph import Node
from espalier.ir.types import TensorType

UNROLLED = 512
"""Passes of a loop beyond which it is refused rather than unrolled."""


@lowers("if")
def branches(node: Node, cond: Any, *captures: Any) -> Any:
    """Both branches, and a choice between their results, which must have the same shapes."""
    if not isinstance(cond, Tensor):
        return NotImplemented
    found = []
    for taken, region in zip((True, False), node.regions, strict=True):
        with requirements.branch(cond, taken) as required:
            found.append(([as_tensor(x) for x in Region(region)(*captures)], required))
    (then, of_then), (other, of_other) = found
    cond = _checked(cond, of_then, of_other)
    results = []
    for a, b in zip(then, other, strict=True):
        if a.shape != b.shape or a.element != b.element:
            raise UnsupportedError(
                "E407",
                f"the branches of an If give {TensorType(a.element, a.shape)} and {TensorType(b.element, b.shape)}, "
                "and the TVM backend needs one type",
                node=node.op.name, source=node.location, hint="Give both branches results of one shape.",
            )  # fmt: skip
        chosen = PRIMITIVES["reshape"](cond, (1,) * a.ndim)
        results.append(PRIMITIVES["where"](chosen, a, b))
    return tuple(results)


def _checked(cond: Tensor, then: requirements.Found, other: requirements.Found) -> Tensor:
    """The condition; the compiled model fails where a branch that is taken requires what does not hold."""
    if not then and not other:
        return cond
    path = requirements.path()

    def write(scope: Scope, inputs: Sequence[Expr], outputs: Sequence[Expr]) -> Any:
        held = [tirx.BufferLoad(buffer, [integer(0)] * len(buffer.shape)) for buffer in inputs]
        statements = []
        for taken, required in ((True, then), (False, other)):
            reached = requirements.is_taken((*path, (cond, taken)), held)
            statements += requirements.checks(scope.dim, required, reached)
        return sequence([*statements, tirx.BufferStore(outputs[0], held[-1], [integer(0)] * cond.ndim)])

    return Program([(cond.shape, cond.element)], [*(condition for condition, _ in path), cond], write)


@lowers("loop")
def loop(node: Node, trip_count: Any = None, cond: Any = None, *values: Any) -> Any:
    """Unrolled by the reference, if the number of passes is known and not large."""
    if isinstance(trip_count, np.ndarray) and trip_count.dtype != object and int(trip_count.reshape(())) <= UNROLLED:
        return NotImplemented
    if trip_count is None and isinstance(cond, np.ndarray) and not bool(cond.reshape(())):
        return NotImplemented
    if isinstance(trip_count, Tensor):
        raise Untraceable("loops are unrolled, and the number of passes of this one depends on data", trip_count)
    raise UnsupportedError(
        "E407", "the TVM backend unrolls loops, and the number of passes of this one is not known or too large",
        node=node.op.name, source=node.location, hint=f"Make the trip count a constant of at most {UNROLLED}.",
    )  # fmt: skip


@lowers("scan")
def scan(node: Node, *values: Any) -> Any:
    """Unrolled by the reference, if the number of entries is known and not large."""
    op: Any = node.op
    first = values[op.carried]
    axis = op.input_axes()[0]
    count = first.shape[axis]
    if isinstance(count, int) and count <= UNROLLED:
        return NotImplemented
    raise UnsupportedError(
        "E407", f"the TVM backend unrolls scans, and this one runs over {count} entries",
        node=node.op.name, source=node.location, hint=f"Fix the scanned axis at {UNROLLED} or fewer entries.",
    )  # fmt: skip
