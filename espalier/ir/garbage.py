"""Garbage collection while large graphs are made."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

OBJECTS = 1_000_000
"""New objects after which a collection looks for garbage among them."""


@contextlib.contextmanager
def few_collections(*, all_stays: bool) -> Iterator[None]:
    """With fewer collections: large graphs are many small objects, and looking through them time and again costs most.

    Args:
        all_stays: What is made is no garbage: none is looked for, and at the end it counts as old, without a look at
            every object.
    """
    thresholds = gc.get_threshold()
    enabled = gc.isenabled() and thresholds[0] > 0
    if enabled:
        gc.set_threshold(0 if all_stays else max(OBJECTS, thresholds[0]), 50, 1000)
    try:
        yield
    finally:
        if enabled and all_stays and not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        gc.set_threshold(*thresholds)
