"""What the templates need to know of the processor that code is made for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Dot:
    """An instruction for products of four integers of 8 bits in each lane, added to the lane's 32 bits."""

    intrinsic: str
    """LLVM's name: sum, first and second operand."""
    lanes: int
    """Lanes of one instruction; a vector of the tile takes one or more."""
    signed: bool
    """Whether the first operand's integers are read as signed; the second's always are."""


AVX512_VNNI = Dot("llvm.x86.avx512.vpdpbusd.512", 16, signed=False)
AVX_VNNI = Dot("llvm.x86.avx512.vpdpbusd.256", 8, signed=False)
SDOT = Dot("llvm.aarch64.neon.sdot.v4i32.v16i8", 4, signed=True)


@dataclass(frozen=True)
class Machine:
    """Sizes that tiles are chosen by."""

    lanes: int = 16
    """Floats of 32 bits in one vector of a tile; channels of images lie in blocks of as many."""
    registers: int = 6
    """Such vectors that a tile may accumulate in, with room left for operands."""
    dot: Dot | None = None
    """The instruction that multiplies four integers of 8 bits in each lane and adds them up, if there is one."""


def of(instruction_sets: Collection[str]) -> Machine:
    """The machine that has these instruction sets, by LLVM's names."""
    if "avx512f" in instruction_sets:
        return Machine(16, 28, AVX512_VNNI if "avx512vnni" in instruction_sets else None)
    if "neon" in instruction_sets:  # 32 registers of 4 lanes
        return Machine(8, 12, SDOT if "dotprod" in instruction_sets else None)
    if "avx2" in instruction_sets:
        return Machine(8, 12, AVX_VNNI if "avxvnni" in instruction_sets else None)
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
