"""Which single weights stay: by magnitude, in all or in each group of M, and how the share grows over time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.cost.remaining import elements_of
from espalier.errors import InputError
from espalier.ir import Graph, Node, Value, constant_value
from espalier.ir.constants import ArraySource, Constant
from espalier.ir.inference import type_context
from espalier.ir.op import TypeInferenceError
from espalier.ir.terms import letters

Mask = NDArray[np.bool_]
"""Of a weight's shape: what stays."""


def largest(array: NDArray[Any], ratio: float) -> Mask:
    """All but the share `ratio` of elements, rounded down, whose magnitudes are smallest (of equal ones the first)."""
    keep = np.ones(array.size, bool)
    order = np.argsort(np.abs(array), axis=None, kind="stable")
    keep[order[: math.floor(ratio * array.size + 1e-9)]] = False
    return keep.reshape(array.shape)


def n_of_m(array: NDArray[Any], axis: int, n: int, m: int) -> Mask:
    """The n largest magnitudes of each m consecutive elements along an axis, whose extent m must divide."""
    moved = np.moveaxis(np.abs(array), axis, -1)
    groups = moved.reshape(-1, m)
    keep = np.ones(groups.shape, bool)
    np.put_along_axis(keep, np.argsort(groups, axis=1, kind="stable")[:, : m - n], False, axis=1)
    return np.moveaxis(keep.reshape(moved.shape), -1, axis)


def parse_pattern(text: str) -> tuple[int, int]:
    """n and m of ``n:m``, such as 2:4. Raises InputError E201."""
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise InputError("E201", f"a pattern is n:m with 0 < n < m, such as 2:4, not {text!r}")
    return int(match[1]), int(match[2])


def summed_weights(graph: Graph) -> Iterator[tuple[Value, int, Node]]:
    """The float weights that nodes sum over products with, each once: (weight, first axis summed over, node)."""
    seen: set[Value] = set()
    for node in graph:
        if not node.op.contracts or node.regions:
            continue
        try:
            equation = node.op.equation(type_context(graph, node, lambda: "unknown"))
        except TypeInferenceError:
            continue
        for value, terms in zip(node.operands, equation.operands if equation else (), strict=False):
            if value is None or terms is None or value.constant is None or value in seen:
                continue
            summed = {id(letter) for letter in equation.contracted()} if equation else set()
            axes = [k for k, term in enumerate(terms) if any(id(letter) in summed for letter in letters(term))]
            if axes and value.constant.element.is_float and value.constant.element.bits >= 16 and len(terms) > 1:
                seen.add(value)
                yield value, axes[0], node


def gradual(step: int, *, final: float, steps: int, initial: float = 0.0, begin: int = 0, every: int = 100) -> float:
    """The share that is gone at a step: s = final + (initial − final)·(1 − t)³, constant between updates.

    Args:
        step: the step of training.
        final: the share at `begin + steps`, and after it.
        steps: how long it takes.
        initial: the share at `begin`, and before it.
        every: the masks change at multiples of this after `begin`.

    Source: arXiv 1710.01878. Raises ValueError for shares outside of [0, 1) and steps below 1.
    """
    if not (0 <= initial < 1 and 0 <= final < 1 and steps >= 1 and every >= 1):
        raise ValueError(f"no schedule goes from {initial} to {final} in {steps} steps, every {every}")
    done = min(max(step - begin, 0), steps)
    done = steps if done == steps else done // every * every
    return final + (initial - final) * (1 - done / steps) ** 3


def apply_masks(graph: Graph, masks: Mapping[Value, Mask]) -> None:
    """Write zeros into weights where their masks are false. Those that share a source go on sharing one."""
    by_source: dict[int, list[Value]] = {}
    for value in graph.constants():
        if value.constant is not None:
            by_source.setdefault(id(value.constant.source), []).append(value)
    for values in by_source.values():
        masked = [value for value in values if value in masks]
        if not masked:
            continue
        first = values[0].constant
        assert first is not None
        base = np.array(first.base(0).array)
        flat = base.reshape(-1)
        for value in masked:
            flat[elements_of(value)[~masks[value]]] = 0
        source = ArraySource(base)
        for value in values:
            held = value.constant
            assert held is not None
            masked_one = constant_value(Constant(source, held.element, held.shape, held.views), name=value.name)
            graph.replace_constant(value, masked_one)
    graph.epochs.weights += 1
