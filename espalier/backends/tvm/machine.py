"""What the templates need to know of the processor that code is made for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Sizes that tiles are chosen by."""

    lanes: int = 16
    """Floats of 32 bits in one vector of a tile; channels of images lie in blocks of as many."""
    registers: int = 6
    """Such vectors that a tile may accumulate in, with room left for operands."""
    dot: bool = False
    """Whether an instruction multiplies four integers of 8 bits in each lane and adds them up."""


def of(instruction_sets: Collection[str]) -> Machine:
    """The machine that has these instruction sets, by LLVM's names."""
    if "avx512f" in instruction_sets:
        return Machine(16, 28, "avx512vnni" in instruction_sets)
    if "avx2" in instruction_sets or "neon" in instruction_sets:
        return Machine(8, 12)
    return Machine(8, 6)


_DEFAULT = Machine()
_CURRENT = contextvars.ContextVar("machine", default=_DEFAULT)


def current() -> Machine:
    """The machine that code is being made for."""
    return _CURRENT.get()


@contextlib.contextmanager
def made_for(machine: Machine) -> Iterator[None]:
    """Make code for a machine inside."""
    token = _CURRENT.set(machine)
    try:
        yield
    finally:
        _CURRENT.reset(token)
