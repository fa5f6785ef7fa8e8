"""Operators that write by position."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.backends.tvm import xp
from espalier.backends.tvm.trace import lowers
from espalier.ir import dims
from espalier.ir.graph import Node


@lowers("col2im")
def col2im(node: Node, x: Any, image_shape: Any, block_shape: Any) -> Any:
    """Each pixel of each block added at its place of the padded image."""
    op: Any = node.op
    image, block = ([int(e) for e in xp.to_numpy(s).reshape(-1)] for s in (image_shape, block_shape))
    rank = len(image)
    strides, dilations, pads = op.strides or (1,) * rank, op.dilations or (1,) * rank, op.pads or (0,) * (2 * rank)
    padded = [extent + pads[k] + pads[k + rank] for k, extent in enumerate(image)]
    counts = [max(0, (padded[k] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1) for k in range(rank)]
    n, c = x.shape[0], x.shape[1] // dims.product(block)
    kind = xp.element(x)
    blocks = xp.reshape(xp.wide(x), (n * c, *block, *counts))
    where: list[Any] = [np.arange(n * c).reshape(-1, *(1,) * (2 * rank))]
    for k in range(rank):
        places = np.arange(block[k])[:, None] * dilations[k] + np.arange(counts[k])[None, :] * strides[k]
        where.append(
            places.reshape(
                1, *(block[k] if a == k else 1 for a in range(rank)), *(counts[k] if a == k else 1 for a in range(rank))
            )
        )
    total = xp.scatter(xp.zeros((n * c, *padded), xp.element(blocks)), tuple(where), blocks, "add")
    inner = tuple(slice(pads[k], pads[k] + extent) for k, extent in enumerate(image))
    return xp.astype(xp.reshape(total, (n, c, *padded))[(slice(None), slice(None), *inner)], kind)
