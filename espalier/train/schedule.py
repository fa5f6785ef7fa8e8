"""Learning rates by step."""

from __future__ import annotations

import math


def learning_rate_at(step: int, total: int, largest: float, warmup: float = 0.0) -> float:
    """The learning rate of a step (from 0): a line up over the share `warmup`, then half a cosine down to 0."""
    rising = round(warmup * total)
    if step < rising:
        return largest * (step + 1) / rising
    return largest * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
