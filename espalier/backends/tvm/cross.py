"""What code for another architecture takes: a linker for it, and TVM's runtime library for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm.support import cc

from espalier.errors import InputError, InternalError
from espalier.runtime.engines.tvm import RUNTIME_LIBRARY

WHEELS = "ESPALIER_WHEELS"
"""Environment variable: the folder that holds TVM's wheels for other architectures."""


def triple(architecture: str) -> str:
    """LLVM's name of an architecture of Linux, or of this machine and its system ("host")."""
    if architecture == "host":
        return str(tvm.get_global_func("target.llvm_get_system_triple")())
    return f"{architecture}-unknown-linux-gnu"


def linker(system: str) -> Callable[..., None] | None:
    """What links object files to a library for what LLVM calls so; None: as TVM does, for this very machine.

    Other architectures are linked by GCC for them or by the package ziglang. No library of the system is named, which
    would ask for its version: what the code calls, the runtime has loaded before.

    Raises:
        InputError: E233: neither is installed.
    """
    if system == triple("host") and cc.get_cc() is not None:
        return None
    architecture = system.partition("-")[0]
    command = _command(architecture)

    def link(output: str, files: Sequence[str], options: Sequence[str] = (), **_: Any) -> None:
        arguments = ["-shared", "-fPIC", "-nostdlib", *options, "-o", output, *files]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InternalError("E902", f"{' '.join(command)} cannot link for {architecture}: {done.stderr.strip()}")

    return link


def _command(architecture: str) -> list[str]:
    here = cc.get_cc()
    if architecture == platform.machine() and here is not None:
        return shlex.split(here)
    gcc = shutil.which(f"{architecture}-linux-gnu-gcc")
    if gcc is not None:
        return [gcc]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-gnu"]
    raise InputError(
        "E233",
        f"nothing here links code for {architecture}",
        hint=f"Run `pip install 'espalier[cross]'`, or install {architecture}-linux-gnu-gcc "
        f"(Debian's gcc-{architecture.replace('_', '-')}-linux-gnu).",
    )


def runtime_library(architecture: str, folder: Path) -> Path:
    """TVM's runtime library for an architecture of Linux; one that is not this machine's is unpacked into `folder`.

    Raises:
        InputError: E233: there is no wheel of TVM for that architecture.
    """
    distribution = importlib.metadata.distribution("apache-tvm")
    member = f"tvm/lib/{RUNTIME_LIBRARY}"
    if architecture == platform.machine():
        return Path(str(distribution.locate_file(member)))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wheels = Path(os.environ.get(WHEELS) or cache / "espalier" / "wheels")
    found = sorted(wheels.glob(f"apache_tvm-{distribution.version}-*linux*_{architecture}.whl"))
    if not found:
        raise InputError(
            "E233",
            f"an artifact for {architecture} holds TVM's runtime for it, and {wheels} has no wheel to take it from",
            hint=f"Run `pip download apache-tvm=={distribution.version} --no-deps --only-binary=:all: "
            f"--platform manylinux_2_28_{architecture} --dest {wheels}`, or name another folder in {WHEELS}.",
        )
    try:
        with zipfile.ZipFile(found[0]) as wheel:
            return Path(wheel.extract(member, folder))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        message = f"TVM's runtime for {architecture} cannot be taken from {found[0]}: {error}"
        raise InputError("E233", message, hint="Download the wheel again.") from None
