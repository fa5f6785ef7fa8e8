"""Made-up inputs, for what looks at data where there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError
from espalier.ir import Graph

LEAVES = 100
SMALLEST, LARGEST = 0.05, 0.5
"""Radii of leaves, in the longer side of the image."""


def noise(graph: Graph, seed: int, batches: int = 16, samples: int = 32) -> list[list[NDArray[Any]]]:
    """Batches of inputs of mean 0 and variance 1: of images `dead_leaves`, of anything else normal numbers.

    Extents that are not known are `samples` on the first axis, and 32 on others.

    Raises:
        InputError: E212 for inputs that are no floats or of unknown rank.
    """
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(batches):
        arrays = []
        for value in graph.inputs:
            if value.shape is None or not value.element.is_float:
                raise InputError("E212", f"noise cannot stand for the input {value.name!r}, a {value.type}")
            shape = [d if isinstance(d, int) else samples if axis == 0 else 32 for axis, d in enumerate(value.shape)]
            drawn = dead_leaves(draw, shape) if len(shape) > 3 else draw.normal(size=shape)
            arrays.append(drawn.astype(value.element.dtype))
        found.append(arrays)
    return found


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
