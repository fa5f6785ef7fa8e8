"""What this processor can do, compared with what an artifact needs."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from espalier.runtime.errors import ArtifactError
from espalier.runtime.manifest import DeviceSpec

# LLVM's names of instruction sets that the Linux kernel calls otherwise, both without separators.
KERNEL_NAMES = {
    "bmi": "bmi1",
    "complxnum": "fcma",
    "crc32": "sse42",
    "dotprod": "asimddp",
    "fp16fml": "asimdfhm",
    "fptoint": "frint",
    "fullfp16": "asimdhp",
    "jsconv": "jscvt",
    "lse": "atomics",
    "lzcnt": "abm",
    "neon": "asimd",
    "pclmul": "pclmulqdq",
    "prfchw": "3dnowprefetch",
    "rdm": "asimdrdm",
    "rdrnd": "rdrand",
    "sahf": "lahflm",
    "sha": "shani",
    "sse3": "pni",
}

# The kernel's names of what AT_HWCAP and AT_HWCAP2 say on aarch64, from the lowest bit on (its asm/hwcap.h).
AARCH64_HWCAP = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 "
    "sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
AARCH64_HWCAP2 = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16"
)

ADVICE = "compile the model on this machine (--device cpu), or for a device that it has (`espalier devices` lists them)"


def plain(name: str) -> str:
    """An instruction set's name in lower case without separators, so that `avx512_vnni` and `avx512vnni` are one."""
    return "".join(character for character in name.lower() if character not in "-_.")


@cache
def instruction_sets() -> frozenset[str] | None:
    """The kernel's names of this processor's instruction sets, without separators; None if it does not tell."""
    if platform.machine() == "aarch64" and (told := _auxiliary()) is not None:
        return told
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    per_core = [
        frozenset(map(plain, value.split()))
        for key, separator, value in (line.partition(":") for line in text.splitlines())
        if separator and key.strip().lower() in ("flags", "features")
    ]
    # Code may run on any core, so only what all of them have counts.
    return frozenset.intersection(*per_core) if per_core else None


def _auxiliary() -> frozenset[str] | None:
    """What the kernel told this process at its start; unlike /proc/cpuinfo, right also where QEMU emulates."""
    try:
        read = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return None
    read.restype, read.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    words = ((read(16), AARCH64_HWCAP), (read(26), AARCH64_HWCAP2))  # AT_HWCAP, AT_HWCAP2
    return frozenset(name for word, names in words for bit, name in enumerate(names.split()) if word >> bit & 1)


def check_device(device: DeviceSpec) -> None:
    """Refuse a device that is not this machine. Raises ArtifactError E707, naming what is missing."""
    for wanted, here, what in (
        (device.architecture, platform.machine(), "architecture"),
        (device.system, platform.system(), "operating system"),
    ):
        if wanted and wanted.lower() != here.lower():
            raise ArtifactError(
                "E707", f"the artifact is for the {what} {wanted}; this machine has {here}", hint=ADVICE
            )
    if not device.instructions:
        return
    present = instruction_sets()
    if present is None:
        raise ArtifactError(
            "E707", f"cannot tell whether this processor has {', '.join(device.instructions)}, which the artifact needs"
        )
    missing = lacking(device.instructions)
    if missing:
        raise ArtifactError(
            "E707",
            f"this processor lacks {', '.join(missing)}, which the artifact for {device.name!r} needs",
            hint=ADVICE,
        )


def lacking(names: Iterable[str]) -> list[str]:
    """Those of some instruction sets, by LLVM's names, that the kernel does not tell of; none if it tells nothing."""
    present = instruction_sets()
    if present is None:
        return []
    return [name for name in names if not {plain(name), KERNEL_NAMES.get(plain(name), "")} & present]


def permit_tiles(instructions: tuple[str, ...]) -> None:
    """Ask the kernel for the tile registers, if the artifact uses them: without it the first tile load is illegal.

    Raises:
        ArtifactError: E707: the kernel refuses.
    """
    if not any(plain(name).startswith("amx") for name in instructions):
        return
    system_call, request_permission, tile_data = 158, 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    if ctypes.CDLL(None).syscall(system_call, request_permission, tile_data) != 0:
        raise ArtifactError("E707", "the kernel does not permit this process to use the AMX tile registers")


def default_threads() -> int:
    """As many threads as this process has processors, or as OMP_NUM_THREADS asks for if those are fewer."""
    processors = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(processors, int(asked)) if asked.isdecimal() and int(asked) else processors
