"""Sparsity without structure, or with n of m: single weights become zero, and shapes stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.errors import InputError
from espalier.ir import Graph, Value
from espalier.passes.base import Context, Pass, approximates, graph_pass
from espalier.train.masks import Mask, apply_masks, largest, n_of_m, parse_pattern, summed_weights
from espalier.train.weights import looks_learned


@graph_pass("sparsify", semantics=approximates("drop", math.inf))
class Sparsify(Pass):
    """Set the weights of smallest magnitude to zero: a share of them, or all but n of each m that are summed.

    Attributes:
        ratio: the share of each weight's elements (scope=global: of all weights' elements) that becomes zero.
        pattern: n:m instead, such as 2:4: along the first axis that is summed over, at most n of m are not zero.
        scope: local or global.
    """

    ratio: float | None = None
    pattern: str = ""
    scope: str = "local"

    def __post_init__(self) -> None:
        if (self.ratio is None) == (not self.pattern):
            raise InputError("E201", "sparsify wants a ratio, or a pattern such as 2:4")
        ratio: Any = self.ratio
        if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1):
            raise InputError("E201", f"ratio must be at least 0 and below 1, not {ratio!r}")
        if self.scope not in ("local", "global"):
            raise InputError("E201", f"scope={self.scope!r} is none of local, global")
        if self.pattern:
            parse_pattern(self.pattern)

    def run(self, graph: Graph, context: Context) -> int:
        found = [(value, axis) for value, axis, _ in summed_weights(graph) if _is_weight(value)]
        if not found:
            raise InputError("E224", "the model has no weight that nodes sum over", hint="Quantized weights stay.")
        masks, skipped = self.masks([value for value, _ in found], [axis for _, axis in found])
        zeros = {value: int(mask.size - mask.sum()) for value, mask in masks.items()}
        context.details = {
            "zeros": sum(zeros.values()),
            "elements": sum(mask.size for mask in masks.values()),
            "weights": [
                {
                    "weight": v.name,
                    "elements": m.size,
                    "zeros": zeros[v],
                    "axis": dict(found)[v] if self.pattern else None,
                }
                for v, m in masks.items()
            ],
            "skipped": [{"weight": value.name, "why": why} for value, why in skipped.items()],
        }
        context.details["summary"] = [
            f"{context.details['zeros']} of {context.details['elements']} weights are zero",
            *(f"dense {row['weight']}: {row['why']}" for row in context.details["skipped"]),
        ]
        changed = {v: m for v, m in masks.items() if not m.all() and np.any(np.asarray(v.array)[~m] != 0)}
        if not changed or not context.may_rewrite():
            return 0
        apply_masks(graph, changed)
        return 1

    def masks(self, values: Sequence[Value], axes: Sequence[int]) -> tuple[dict[Value, Mask], dict[Value, str]]:
        """The masks, and why some weights get none."""
        masks: dict[Value, Mask] = {}
        skipped: dict[Value, str] = {}
        if self.pattern:
            n, m = parse_pattern(self.pattern)
            for value, axis in zip(values, axes, strict=True):
                extent = value.array.shape[axis]
                if extent % m:
                    skipped[value] = f"axis {axis}, which is summed over, has the extent {extent}, no multiple of {m}"
                else:
                    masks[value] = n_of_m(_numbers(value), axis, n, m)
        elif self.scope == "local":
            masks = {value: largest(_numbers(value), self.ratio or 0.0) for value in values}
        else:
            every = largest(np.concatenate([_numbers(value).reshape(-1) for value in values]), self.ratio or 0.0)
            ends = np.cumsum([value.array.size for value in values])
            parts = np.split(every, ends[:-1])
            masks = {value: part.reshape(value.array.shape) for value, part in zip(values, parts, strict=True)}
        return masks, skipped


def _numbers(value: Value) -> Any:
    return np.asarray(value.array, np.float32) if value.element.bits < 32 else value.array


def _is_weight(value: Value) -> bool:
    """Whether a constant is learned. Raises InputError E223 for NaN."""
    if np.isnan(_numbers(value)).any():
        raise InputError("E223", f"the weight {value.name!r} holds NaN", node=value.name)
    return looks_learned(value)
