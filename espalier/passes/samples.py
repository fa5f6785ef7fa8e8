"""Inputs made up for checks: arrays that fit a graph's input types, on which two versions are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from espalier.ir import Graph, TensorType, Value
from espalier.ir.dims import Dimension, substitute, symbols
from espalier.ir.elements import Element
from espalier.ir.execute import run
from espalier.train.agreement import disagreement

Mode = Literal["normal", "zero", "large", "extreme"]
MODES: tuple[Mode, ...] = ("normal", "zero", "large", "extreme")
_EXTENTS = (2, 3, 4, 5)


class NoSample(Exception):
    """No array can be made for an input; the text says why."""


def sample_inputs(
    values: Iterable[Value], seed: int, mode: Mode = "normal", instead: Mapping[int, int] | None = None
) -> list[Any]:
    """One array per value; symbols of all shapes get small extents, the same everywhere. Raises NoSample.

    `instead` gives known extents of values whose content is not known others.
    """
    values = list(values)
    rng = np.random.default_rng(seed)
    names = sorted({name for value in values for dim in value.shape or () for name in symbols(dim)})
    binding = {name: _EXTENTS[k % len(_EXTENTS)] for k, name in enumerate(names)}
    return [_sample(value, binding, rng, mode, instead or {}) for value in values]


def _sample(
    value: Value, binding: dict[str, int], rng: np.random.Generator, mode: Mode, instead: Mapping[int, int]
) -> Any:
    if not isinstance(value.type, TensorType) or value.type.shape is None:
        raise NoSample(f"{value} has no known shape")
    shape = [_bind(dim, binding) for dim in value.type.shape]
    if value.known is not None:
        known = [_bind(dim, binding) if value.element.is_integer else dim for dim in value.known.reshape(-1).tolist()]
        return np.array(known, value.element.dtype).reshape(shape)
    return _numbers(value.element.storage, [instead.get(extent, extent) for extent in shape], rng, mode)


def _bind(dim: Dimension, binding: dict[str, int]) -> int:
    found = substitute(dim, {name: binding.get(name, 2) for name in symbols(dim)})
    if not isinstance(found, int) or found < 0:
        raise NoSample(f"the extent {dim} has no small value")
    return found


def _numbers(element: Element, shape: list[int], rng: np.random.Generator, mode: Mode) -> Any:
    if element.is_float or element.is_complex:
        found = np.zeros(shape) if mode == "zero" else rng.standard_normal(shape)
        if element.is_complex:
            found = found + 1j * (np.zeros(shape) if mode == "zero" else rng.standard_normal(shape))
        scale = {"large": 1e3, "extreme": 1e-3}.get(mode, 1.0) if element.bits >= 16 else 1.0
        return (found * scale).astype(element.dtype)
    if element.kind == "bool":
        return rng.integers(0, 2, shape).astype(bool) if mode != "zero" else np.zeros(shape, bool)
    if element.kind == "string":
        raise NoSample("no samples of strings")
    low, high = element.range
    if mode == "extreme":
        return rng.choice(np.array([low, high], element.dtype), shape)
    if mode == "zero":
        return np.zeros(shape, element.dtype)
    top = min(high, 2 if mode == "normal" else 100)
    return rng.integers(max(low, 0), top + 1, shape).astype(element.dtype)


def sensitivity(graph: Graph, inputs: Sequence[Any], wanted: Sequence[Any], position: int, seed: int) -> float:
    """How far an output moves, relative to its largest element, when the inputs change by a few last bits.

    Where a model rounds, a sum in another order can land on the next step; the model itself does no better.
    """
    rng, worst = np.random.default_rng(seed), 0.0
    for _ in range(3):
        noise = [1 + 2.0**-16 * rng.standard_normal(a.shape) for a in inputs]
        moved = [a * e.astype(a.dtype) if a.dtype.kind == "f" else a for a, e in zip(inputs, noise, strict=True)]
        with np.errstate(all="ignore"):
            worst = max(worst, disagreement(wanted[position], run(graph, moved)[position])[0])
    return worst
