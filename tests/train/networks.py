"""Tiny networks and data to train on."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.ir import Builder, Graph
from espalier.ir.types import parse


def classifier(seed: int = 0, channels: int = 6, batch: str = "n") -> Graph:
    """Two convolutions with batch norms, pooled and classified: f32[batch, 3, 8, 8] → f32[batch, 4]."""
    draw = np.random.default_rng(seed)

    def weight(*shape: int) -> Any:
        return (draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    graph = Graph("classifier")
    x = graph.add_input(parse(f"f32[{batch}, 3, 8, 8]"), "image")
    builder = Builder(graph)
    for given, filters in ((3, channels), (channels, 8)):
        x = builder.conv(x, weight(filters, given, 3, 3), pads=(1, 1, 1, 1))
        scale = draw.uniform(0.5, 1.5, filters).astype(np.float32)
        shift = draw.normal(0, 0.1, filters).astype(np.float32)
        mean, variance = (np.full(filters, k, np.float32) for k in (0, 1))
        x = builder.relu(builder.batch_norm(x, scale, shift, mean, variance))
        x.name = f"relu_{filters}"
    pooled = builder.reduce_mean(x, np.array([2, 3]), keepdims=0)
    scores = builder.gemm(pooled, weight(4, 8), weight(4), transB=1)
    graph.set_outputs([scores], ["scores"])
    return graph


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def weights(graph: Graph) -> list[Any]:
    """All constants of floats, in order."""
    values = dict.fromkeys(v for node in graph for v in node.operands if v is not None and v.constant is not None)
    return [v.constant.array for v in values if v.constant is not None and v.constant.element.is_float]


def same_bits(a: Graph, b: Graph) -> bool:
    pairs = list(zip(weights(a), weights(b), strict=True))
    return bool(pairs) and all(x.tobytes() == y.tobytes() for x, y in pairs)
