"""Blocked layouts: how images lie in the buffers between kernels.

Every tensor of the DAG is indexed as the graph does, (batch, channels, positions…). A layout only says where an entry
lies in its buffer, so nothing but the reads and writes of buffers knows it, and no kernel exists just to convert.
Convolutions want channels in blocks of the vector's width, and zeros around the positions that they reach beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from espalier.backends.tvm.tensor import (
    Alias,
    At,
    Constant,
    Expr,
    Fold,
    Index,
    Input,
    Layout,
    Map,
    Part,
    Product,
    Program,
    Tensor,
)


@dataclass(frozen=True)
class Reach:
    """What a convolution asks of the tensor that it reads."""

    lanes: int
    """Channels of a block; 1: each channel lies apart, for images of fewer channels than would fill a vector."""
    pads: tuple[tuple[int, int], ...]
    """Zeros that it reads before and after each axis of positions."""
    always: bool
    """Whether it can't read any other layout."""
    fill: int = 0
    """What it reads there instead of zeros: the zero point of integers."""


def stage(outputs: Sequence[Tensor], order: Sequence[Tensor]) -> bool:
    """Give layouts to what convolutions read, through a copy where other readers need it as it is.

    True if copies were made: the tensors in order are others then.
    """
    readers = _readers(order)
    wanted, copied = set(outputs), False
    for tensor in order:
        asking: dict[tuple[int, int], list[tuple[Tensor, Reach]]] = {}
        for reader, position in readers[tensor]:
            if (reach := _reach(reader, position)) is not None:
                fill = reach.fill if any(map(any, reach.pads)) else 0
                asking.setdefault((reach.lanes, fill), []).append((reader, reach))
        for lanes in sorted(lanes for lanes, fill in asking if not fill):
            others = [key for key in asking if key[0] == lanes and key[1]]  # bare readers take any halo
            if others and not any(any(map(any, reach.pads)) for _, reach in asking[lanes, 0]):
                asking[others[0]] += asking.pop((lanes, 0))
        fixed = _fixed(tensor, readers[tensor], wanted)
        for (_, fill), group in asking.items():
            pads = tuple(
                (max(before for before, _ in ends), max(after for _, after in ends))
                for ends in zip(*(reach.pads for _, reach in group), strict=True)
            )
            found = Layout(group[0][1].lanes, pads, fill)
            if not fixed:
                tensor.layout, fixed = found, True  # the next group needs another
            elif any(map(any, pads)) or any(reach.always for _, reach in group):
                copy, copied = _copy(tensor), True
                copy.layout = found
                for reader, _ in group:
                    reader.operands = (copy, *reader.operands[1:])
    return copied


def spread(outputs: Sequence[Tensor], order: Sequence[Tensor], roots: Sequence[Tensor]) -> None:
    """Give layouts to what is computed from tensors that have one, entry by entry or window by window."""
    readers = _readers(order)
    wanted, stored = set(outputs), set(roots)
    near: dict[Tensor, Layout] = {}
    for tensor in order:
        if tensor.layout is not None:
            near[tensor] = tensor.layout
            continue
        found = None
        if isinstance(tensor, Product) and (reach := _reach(tensor, 0)) is not None:
            found = Layout(tensor.plan.lanes, ((0, 0),) * len(reach.pads))
        for operand in tensor.operands if isinstance(tensor, Map | Fold) else ():
            layout = near.get(operand)
            if layout is None or layout.lanes == 1:
                continue
            if operand.ndim == tensor.ndim and operand.shape[:2] == tensor.shape[:2]:
                found = Layout(layout.lanes, ((0, 0),) * (tensor.ndim - 2))
        if found is None or not isinstance(tensor.shape[1], int) or 2 * tensor.shape[1] < found.lanes:
            continue
        if tensor not in stored:
            near[tensor] = found
        elif not _fixed(tensor, readers[tensor], wanted):
            near[tensor] = tensor.layout = found


def _readers(order: Sequence[Tensor]) -> dict[Tensor, list[tuple[Tensor, int]]]:
    """Who reads each tensor, and as which operand."""
    readers: dict[Tensor, list[tuple[Tensor, int]]] = {tensor: [] for tensor in order}
    for tensor in order:
        for position, operand in enumerate(tensor.operands):
            readers[operand].append((tensor, position))
    return readers


def _reach(reader: Tensor, position: int) -> Reach | None:
    return reader.plan.reach if isinstance(reader, Product) and position == 0 else None


def _fixed(tensor: Tensor, readers: Sequence[tuple[Tensor, int]], wanted: set[Tensor]) -> bool:
    """Whether somebody needs a tensor in row-major order."""
    if isinstance(tensor, Input | Constant | Program | Part | Alias) or tensor in wanted:
        return True
    return any(
        isinstance(reader, Program | Alias) or (isinstance(reader, Product) and _reach(reader, position) is None)
        for reader, position in readers
    )


def _copy(tensor: Tensor) -> Map:
    def body(at: At, index: Index) -> Expr:
        return at(0, index)

    return Map(tensor.shape, tensor.element, [tensor], ["same"], body)


def zeros_around(tensor: Tensor) -> bool:
    """Whether a tensor's buffer has zeros around its positions."""
    return tensor.layout is not None and any(pair != (0, 0) for pair in tensor.layout.halo)
