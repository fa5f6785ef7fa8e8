"""Made-up inputs, for what looks at data where there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError
from espalier.ir import Graph, Value
from espalier.ir.dims import substitute, symbols

SAMPLES, FEWEST, BATCH = 512, 8, 32
ELEMENTS = 2**26
"""Of all samples together, but for the fewest."""
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LEAVES = 100
SMALLEST, LARGEST = 0.05, 0.5
"""Radii of leaves, in the longer side of the image."""


def noise(graph: Graph, seed: int, samples: int = 0) -> list[list[NDArray[Any]]]:
    """Batches of inputs of mean 0 and variance 1: of images `dead_leaves`, of anything else normal numbers.

    Of extents that vary, the first axis's is the batch; others are the least power of two from 32 on that leaves
    something of every tensor.

    Args:
        samples: how many at most; 0, and by default: `SAMPLES`, fewer of large inputs.

    Raises:
        InputError: E212 for inputs that are no floats, have no known rank or no elements, or if there is no such size.
    """
    for value in graph.inputs:
        if value.shape is None or not value.element.is_float or 0 in value.shape:
            hint = "Give some with --data, and compensate=data."
            raise InputError("E212", f"noise cannot stand for the input {value.name!r}, a {value.type}", hint=hint)
    sizes = _sizes(graph)
    fixed = [value.shape[0] for value in graph.inputs if value.shape and isinstance(value.shape[0], int)]
    elements = sum(math.prod(_extents(value, sizes, 1)) for value in graph.inputs) / max([1, *fixed])
    wanted = min(samples or SAMPLES, SAMPLES)
    count = min(wanted, max(FEWEST, int(ELEMENTS / max(1.0, elements))))
    batch = max(fixed) if fixed else min(BATCH, count)
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(-(-count // batch)):
        arrays = []
        for value in graph.inputs:
            shape = _extents(value, sizes, batch)
            drawn = dead_leaves(draw, shape) if len(shape) > 3 else draw.normal(size=shape)
            arrays.append(drawn.astype(value.element.dtype))
        found.append(arrays)
    return found


def _sizes(graph: Graph) -> dict[str, int]:
    """What symbols that count no samples stand for. Raises InputError E212."""
    first = {name for value in graph.inputs for dim in (value.shape or ())[:1] for name in symbols(dim)}
    names = {name for value in graph.inputs for dim in value.shape or () for name in symbols(dim)} - first
    computed = {dim for node in graph for value in node.results for dim in value.shape or ()}
    varying = [dim for dim in computed if symbols(dim) and symbols(dim) <= names]
    for length in LENGTHS:
        sizes = dict.fromkeys(names, length)
        if all(not isinstance(extent := substitute(dim, sizes), int) or extent > 0 for dim in varying):
            return sizes
    raise InputError("E212", f"at all sizes up to {LENGTHS[-1]} the model leaves nothing of some tensor")


def _extents(value: Value, sizes: Mapping[str, int], batch: int) -> list[int]:
    found = [substitute(dim, {**dict.fromkeys(symbols(dim), batch), **sizes}) for dim in value.shape or ()]
    return [extent if isinstance(extent, int) else batch for extent in found]


def dead_leaves(draw: np.random.Generator, shape: Sequence[int]) -> NDArray[np.float32]:
    """Images (samples, channels, …) of round leaves of random colours, the later ones upon the earlier.

    They have what photographs have and Gaussian noise lacks, smooth surfaces and edges at all scales (Lee, Mumford and
    Huang, 2001); features that were learned from photographs respond to them (Baradad et al., 2021). The density of the
    radii r is ∝ r⁻³, and half of the variance of a colour is common to all channels.
    """
    samples, channels, *places = shape
    side, rank = max(*places, 1), len(places)

    def each(numbers: NDArray[Any]) -> NDArray[np.float32]:
        """(samples, n) → (samples, n, 1, …)."""
        return np.asarray(numbers, np.float32).reshape(samples, -1, *[1] * rank)

    def colour() -> NDArray[np.float32]:
        return each(math.sqrt(0.5) * (draw.normal(size=(samples, 1)) + draw.normal(size=(samples, channels))))

    where = [
        np.arange(extent, dtype=np.float32).reshape([-1 if k == axis else 1 for k in range(rank)])
        for axis, extent in enumerate(places)
    ]
    found = np.broadcast_to(colour(), shape).copy()
    for _ in range(LEAVES):
        share = draw.uniform(size=(samples, 1))
        radius = side / np.sqrt(share / LARGEST**2 + (1 - share) / SMALLEST**2)
        squares = sum((at - each(draw.uniform(0, n, (samples, 1)))) ** 2 for at, n in zip(where, places, strict=True))
        np.copyto(found, colour(), where=squares < each(radius**2))
    return found
