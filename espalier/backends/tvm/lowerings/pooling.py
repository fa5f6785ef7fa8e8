"""Poolings as one loop over each window, without the windows in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from espalier.backends.tvm.arithmetic import astype
from espalier.backends.tvm.integers import dequantized
from espalier.backends.tvm.numbers import expression_type, immediate, is_nan, select
from espalier.backends.tvm.tensor import At, Expr, Fold, Index, Tensor
from espalier.backends.tvm.trace import lowers
from espalier.ir import elements
from espalier.ir.graph import Node


def _place(op: Any, rank: int, index: Index, position: Index) -> list[Expr]:
    """Where a window's element lies on the spatial axes of the padded tensor."""
    strides, dilations = op.strides or (1,) * rank, op.dilations or (1,) * rank
    return [
        index[2 + k] * immediate(strides[k], "int64") + position[k] * immediate(dilations[k], "int64")
        for k in range(rank)
    ]


def _both(conditions: Sequence[Expr]) -> Expr:
    found = conditions[0]
    for condition in conditions[1:]:
        found = tirx.And(found, condition)
    return found


def _inside(at: At, x: Tensor, pads: Sequence[tuple[Any, Any]], place: Sequence[Expr]) -> tuple[list[Expr], Expr]:
    """The position in x itself, and whether it exists."""
    here, bounds = [], []
    for k, entry in enumerate(place):
        own = entry - at.dim(pads[k][0])
        here.append(own)
        bounds += [own >= immediate(0, "int64"), own < at.dim(x.shape[2 + k])]
    return here, _both(bounds)


@lowers("max_pool")
def max_pool(node: Node, x: Any) -> Any:
    """The largest number of each window, before it is dequantized if it is; the reference also finds positions."""
    op: Any = node.op
    if len(node.results) > 1 or not isinstance(x, Tensor):
        return NotImplemented
    rank, held = x.ndim - 2, x.affine
    pads = op.padding(tuple(x.shape[2:]))
    counts = [op.window_extent(k, x.shape[2 + k], op.kernel_shape[k]) for k in range(rank)]
    ordered = held is not None and held.axis in (None, 1) and np.all((held.scale > 0) & np.isfinite(held.scale))
    if held is not None and ordered and _reaches(op, x, pads, counts):
        return dequantized(dataclasses.replace(held, stored=_largest(op, held.stored, pads, counts)))
    return _largest(op, x, pads, counts)


def _reaches(op: Any, x: Tensor, pads: Sequence[tuple[Any, Any]], counts: Sequence[Any]) -> bool:
    """Whether every window is known to hold an entry of the tensor."""
    facts = (*x.shape[2:], *counts, *(end for pair in pads for end in pair))
    if not all(isinstance(fact, int) for fact in facts):
        return False
    strides = op.strides or (1,) * len(counts)
    dense = op.dilations is None or set(op.dilations) <= {1}
    return dense and all(
        pads[k][0] < op.kernel_shape[k] and (count - 1) * strides[k] - pads[k][0] < x.shape[2 + k]
        for k, count in enumerate(counts)
    )


def _largest(op: Any, x: Tensor, pads: Sequence[tuple[Any, Any]], counts: Sequence[Any]) -> Tensor:
    rank, kind = x.ndim - 2, x.element
    dtype = expression_type(kind)
    lowest = immediate(-math.inf if kind.is_float else kind.range[0], dtype)

    def step(at: At, state: Sequence[Expr], index: Index, position: Index) -> Sequence[Expr]:
        here, inside = _inside(at, x, pads, _place(op, rank, index, position))
        entry = at.bind(at.guard(inside, lambda: at(0, [*index[:2], *here]), lowest))
        larger = entry > state[0]
        return [select(tirx.Or(larger, is_nan(entry)) if kind.is_float else larger, entry, state[0])]

    return Fold(
        (*x.shape[:2], *counts), kind, [x], ["many"], tuple(op.kernel_shape), [dtype], lambda: [lowest], step,
        lambda at, state: state[0],
    )  # fmt: skip


@lowers("average_pool")
def average_pool(node: Node, x: Any) -> Any:
    """The mean of each window, over what lies in the tensor (or, if asked, in its padding)."""
    op: Any = node.op
    if not isinstance(x, Tensor) or not x.element.is_float:
        return NotImplemented
    rank = x.ndim - 2
    source: Any = astype(x, elements.F32) if x.element.bits < 32 else x
    pads = op.padding(tuple(x.shape[2:]))
    counts = [op.window_extent(k, x.shape[2 + k], op.kernel_shape[k]) for k in range(rank)]
    dtype = expression_type(source.element)
    none, one = immediate(0, dtype), immediate(1, dtype)

    def step(at: At, state: Sequence[Expr], index: Index, position: Index) -> Sequence[Expr]:
        place = _place(op, rank, index, position)
        here, inside = _inside(at, source, pads, place)
        counted = inside
        if op.count_include_pad:  # rounding up may lead beyond the padding, which never counts
            ends = [at.dim(sum(pads[k]) + source.shape[2 + k]) for k in range(rank)]
            counted = _both([entry < end for entry, end in zip(place, ends, strict=True)])
        entry = at.guard(inside, lambda: at(0, [*index[:2], *here]), none)
        return [state[0] + entry, state[1] + select(counted, one, none)]

    found = Fold(
        (*x.shape[:2], *counts), source.element, [source], ["many"], tuple(op.kernel_shape), [dtype, dtype],
        lambda: [none, none], step, lambda at, state: tirx.div(state[0], state[1]),
    )  # fmt: skip
    return astype(found, x.element)
