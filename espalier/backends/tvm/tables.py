"""Functions of one number of 8 bits, read from tables that the model makes of them when it runs.

Between a dequantization and the next quantization lie often an activation or more, that take many instructions for
each entry. There are 256 entries to compute: the same expressions give them.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx

from espalier.backends.tvm.arithmetic import PRIMITIVES, as_tensor, elementwise
from espalier.backends.tvm.tensor import At, Constant, Expr, Index, Map, Tensor

LARGE = 4096
"""Entries from which on a table is worth being made."""
COSTLY = 12
"""Additions that an entry must take to be read from a table."""
LONGEST = 64
"""Tensors that a function may go through."""


def tabulated(result: Map) -> Tensor:
    """The same integers of 8 bits, from a table if they are a costly function of others entry by entry."""
    if not isinstance(result.size, int) or result.size < LARGE:
        return result
    chain: list[Map] = []
    source = _source(result, chain)
    if source is None or sum(each.cost for each in chain) < COSTLY:
        return result
    every = np.arange(256, dtype=np.uint8).view(source.element.dtype)
    made: dict[Tensor, Tensor] = {source: as_tensor(every)}
    for each in chain:
        assert each.function is not None
        operands = [
            as_tensor(operand.array.reshape(()), operand.element) if isinstance(operand, Constant)
            else made[_before(operand)] for operand in each.operands
        ]  # fmt: skip
        made[each] = elementwise(each.element, each.function, *operands, cost=each.cost)

    def body(at: At, index: Index) -> Expr:
        return at(1, [tirx.Cast("int32", tirx.Cast("uint8", at(0, index)))])

    where = PRIMITIVES["reshape"](source, result.shape)
    found = Map(result.shape, result.element, [where, made[result]], ["same", "many"], body, cost=3)
    found.tabulates = result
    return found


def _before(tensor: Tensor) -> Tensor:
    """What a table has replaced, or else the tensor."""
    return tensor.tabulates if isinstance(tensor, Map) and tensor.tabulates is not None else tensor


def _source(result: Map, chain: list[Map]) -> Tensor | None:
    """The one tensor of 8 bits that each entry follows from; what lies between, operands first, goes to the chain."""
    sources: set[Tensor] = set()
    seen: set[Tensor] = set()
    through: set[Tensor] = {result}
    """Of 8 bits, but followed further."""
    stack: list[tuple[Tensor, bool]] = [(result, False)]
    extents = [extent for extent in result.shape if extent != 1]
    while stack:
        tensor, done = stack.pop()
        if done:
            assert isinstance(tensor, Map)
            chain.append(tensor)
            continue
        if tensor in seen or isinstance(tensor, Constant) and tensor.size == 1:
            continue
        seen.add(tensor)
        if [extent for extent in tensor.shape if extent != 1] != extents or len(seen) > LONGEST:
            return None
        if tensor not in through and tensor.element.is_integer and tensor.element.bits == 8:
            sources.add(tensor)
            if len(sources) > 1:
                return None
        elif isinstance(tensor, Map) and tensor.function is not None:
            stack.append((tensor, True))
            for operand in tensor.operands:
                before = _before(operand)
                if before is not operand:
                    through.add(before)
                stack.append((before, False))
        else:
            return None
    return sources.pop() if sources else None
