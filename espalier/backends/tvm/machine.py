"""What the templates need to know of the processor that code is made for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Dot:
    """An instruction for products of a few narrow numbers in each lane, added to the lane's 32 bits."""

    intrinsic: str
    """LLVM's name, or that of the function: sum, first and second operand."""
    lanes: int
    """Lanes of one instruction; a vector of the tile takes one or more."""
    count: int
    """Numbers in each lane: 4 of 8 bits, 2 of 16."""
    first: str
    """TVM's type of the first operand's numbers: some instructions read unsigned integers here. Floats go by bits."""
    second: str
    sums: str
    llvm: str = ""
    """A function in LLVM's own text, called instead of the intrinsic: for types that TVM does not write."""

    @property
    def signed(self) -> bool:
        """Whether the first operand's numbers are read as signed; the second's always are."""
        return not self.first.startswith("u")

    @property
    def element(self) -> str:
        """What it multiplies, by the IR's name: of integers both kinds go by one."""
        return "i8" if self.count == 4 else "bf16"


AVX512_VNNI = Dot("llvm.x86.avx512.vpdpbusd.512", 16, 4, "uint8", "int8", "int32")
AVX_VNNI = Dot("llvm.x86.avx512.vpdpbusd.256", 8, 4, "uint8", "int8", "int32")
SDOT = Dot("llvm.aarch64.neon.sdot.v4i32.v16i8", 4, 4, "int8", "int8", "int32")
AVX512_BF16 = Dot(
    "espalier_dpbf16ps",
    16,
    2,
    "int16",
    "int16",
    "float32",
    """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define <16 x float> @espalier_dpbf16ps(<16 x float> %sum, <32 x i16> %first, <32 x i16> %second) {
  %a = bitcast <32 x i16> %first to <32 x bfloat>
  %b = bitcast <32 x i16> %second to <32 x bfloat>
  %found = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sum, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %found
}
""",
)


@dataclass(frozen=True)
class Machine:
    """Sizes that tiles are chosen by."""

    lanes: int = 16
    """Floats of 32 bits in one vector of a tile; channels of images lie in blocks of as many."""
    registers: int = 6
    """Such vectors that a tile may accumulate in, with room left for operands."""
    dot: Dot | None = None
    """The instruction that multiplies four integers of 8 bits in each lane and adds them up, if there is one."""
    bf16: Dot | None = None
    """The one that multiplies two floats of bf16 in each lane, if there is one that is fast."""
    fused: bool = False
    """Whether there are instructions that multiply floats and add, rounding once."""


def of(instruction_sets: Collection[str]) -> Machine:
    """The machine that has these instruction sets, by LLVM's names."""
    if "avx512f" in instruction_sets:
        integers = AVX512_VNNI if "avx512vnni" in instruction_sets else None
        # where there are tiles for it, the vectors' instruction takes longer than products of f32
        vectors = "avx512bf16" in instruction_sets and "amx-bf16" not in instruction_sets
        return Machine(16, 28, integers, AVX512_BF16 if vectors else None, True)
    if "neon" in instruction_sets:  # 32 registers of 4 lanes
        return Machine(8, 12, SDOT if "dotprod" in instruction_sets else None, fused=True)
    if "avx2" in instruction_sets:
        return Machine(8, 12, AVX_VNNI if "avxvnni" in instruction_sets else None, fused="fma" in instruction_sets)
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
