"""Places in one arena for everything that a graph of kernels computes on the way: exact liveness, then offsets.

The offsets come from first fit in several orders (of which decreasing size is Pisarchyk and Lee's "greedy by size",
arXiv:2001.03288), and where none of them comes close to the lower bound, from a search over orders.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

ALIGNMENT = 64
"""Bytes: every place starts at a multiple, so that vectors of any width may be loaded and lines are not shared."""
CLOSE = 1.01
"""Times the lower bound: an arena that needs no search."""
FEW = 64
"""Neighbours that are looked at one by one rather than as arrays."""
ATTEMPTS, PLACINGS, LOOKS = 3000, 200_000, 64
"""Orders that a search tries, and how often it places something in all of them: what ends it first.

Looking at so many others that share a step counts as one more placing.
"""


@dataclass(frozen=True)
class Lifetime:
    """Bytes that must stay as they are from one step of the program to another, both included."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Where each lifetime's bytes lie.

    `lower_bound` is the largest sum of sizes that are live in one step, each rounded up to ALIGNMENT: no arena for
    these steps in this order can be smaller.
    """

    offsets: tuple[int, ...]
    bytes: int
    lower_bound: int


def rounded(size: int) -> int:
    """A size in bytes, rounded up to whole units of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def block(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The bytes of arrays one after another, each at a multiple of ALIGNMENT."""
    starts = list(accumulate((rounded(array.nbytes) for array in arrays), initial=0))
    found = np.zeros(max(starts[-1], 1), np.uint8)
    for array, start in zip(arrays, starts, strict=False):
        found[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return found


def largest_live_set(lifetimes: Sequence[Lifetime]) -> int:
    """Bytes of all that is live in the step in which most is, each rounded up to ALIGNMENT."""
    steps = max((lifetime.last for lifetime in lifetimes), default=-1) + 1
    change = [0] * (steps + 1)
    for lifetime in lifetimes:
        change[lifetime.first] += rounded(lifetime.size)
        change[lifetime.last + 1] -= rounded(lifetime.size)
    return max(accumulate(change), default=0)


def plan(lifetimes: Sequence[Lifetime]) -> Arena:
    """Offsets at which no two lifetimes that share a step overlap; the same for the same lifetimes."""
    bound = largest_live_set(lifetimes)
    neighbours = _neighbours(lifetimes)
    numbers = range(len(lifetimes))
    orders = [
        sorted(numbers, key=lambda k: (-lifetimes[k].size, lifetimes[k].first)),
        sorted(numbers, key=lambda k: (lifetimes[k].first, -lifetimes[k].size)),
        sorted(numbers, key=lambda k: (-lifetimes[k].last, -lifetimes[k].size)),
        sorted(numbers, key=lambda k: (lifetimes[k].first - lifetimes[k].last, -lifetimes[k].size)),
        _widest_first(lifetimes),
    ]
    found = [_placed(lifetimes, neighbours, order) for order in orders]
    best = min(range(len(found)), key=lambda k: found[k][1])
    (offsets, size), order = found[best], orders[best]
    if size > CLOSE * bound:
        offsets, size = _searched(lifetimes, neighbours, order, bound)
    return Arena(tuple(offsets), size, bound)


def _neighbours(lifetimes: Sequence[Lifetime]) -> list[np.ndarray[Any, Any]]:
    """For each lifetime, the others that share a step with it."""
    first = np.array([lifetime.first for lifetime in lifetimes], np.int64)
    last = np.array([lifetime.last for lifetime in lifetimes], np.int64)
    order = np.argsort(first, kind="stable")
    ends = np.searchsorted(first[order], last, side="right")  # those before it in the order begin early enough
    found = []
    for k in range(len(lifetimes)):
        early = order[: ends[k]]
        near = early[last[early] >= first[k]]
        found.append(near[near != k])
    return found


def _widest_first(lifetimes: Sequence[Lifetime]) -> list[int]:
    """By the largest live set that each is part of, then by size."""
    steps = max((lifetime.last for lifetime in lifetimes), default=-1) + 1
    change = np.zeros(steps + 1, np.int64)
    for lifetime in lifetimes:
        change[lifetime.first] += rounded(lifetime.size)
        change[lifetime.last + 1] -= rounded(lifetime.size)
    live = np.cumsum(change)
    widest = [int(live[each.first : each.last + 1].max()) for each in lifetimes]
    return sorted(range(len(lifetimes)), key=lambda k: (-widest[k], -lifetimes[k].size, lifetimes[k].first))


def _placed(
    lifetimes: Sequence[Lifetime], neighbours: Sequence[np.ndarray[Any, Any]], order: Sequence[int]
) -> tuple[list[int], int]:
    """First fit: each in turn goes to the lowest gap, between those placed before, that is large enough."""
    sizes = [rounded(lifetime.size) for lifetime in lifetimes]
    offsets = [-1] * len(lifetimes)
    known, lengths = np.array(offsets, np.int64), np.array(sizes, np.int64)  # the same, to look at many at a time
    size = 0
    for k in order:
        near = neighbours[k]
        if len(near) <= FEW:
            start = _lowest_gap(sorted((offsets[n], sizes[n]) for n in near.tolist() if offsets[n] >= 0), sizes[k])
        else:
            placed = near[known[near] >= 0]
            placed = placed[np.argsort(known[placed], kind="stable")]
            ends = np.concatenate(([0], np.maximum.accumulate(known[placed] + lengths[placed])))
            wide = np.flatnonzero(known[placed] - ends[:-1] >= sizes[k])
            start = int(ends[wide[0] if len(wide) else -1])
        offsets[k] = known[k] = start
        size = max(size, start + sizes[k])
    return offsets, size


def _lowest_gap(taken: Sequence[tuple[int, int]], wanted: int) -> int:
    """Where so many bytes fit between places (offset and bytes, sorted), or after them."""
    start = 0
    for offset, length in taken:
        if offset - start >= wanted:
            break
        start = max(start, offset + length)
    return start


def _searched(
    lifetimes: Sequence[Lifetime], neighbours: Sequence[np.ndarray[Any, Any]], order: list[int], bound: int
) -> tuple[list[int], int]:
    """The best of many orders, each made from the best so far by placing earlier what lies highest, or at random."""
    chance = random.Random(0)
    best, size = _placed(lifetimes, neighbours, order)
    looks = max(len(order), sum(map(len, neighbours)) // LOOKS)
    for attempt in range(min(ATTEMPTS, PLACINGS // max(looks, 1))):
        if size <= CLOSE * bound or len(order) < 2:
            break
        top = [k for k in order if best[k] + rounded(lifetimes[k].size) == size]
        moved = top[attempt % len(top)] if attempt % 2 == 0 else chance.choice(order)
        changed = [k for k in order if k != moved]
        changed.insert(chance.randrange(order.index(moved) + 1), moved)
        offsets, found = _placed(lifetimes, neighbours, changed)
        if found <= size:
            best, size, order = offsets, found, changed
    return best, size
