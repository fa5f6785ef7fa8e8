"""Processors that this machine is not: QEMU, and a Python of another architecture, kept in `build/emulation`.

`make emulation` fills the folder, on a Debian machine for x86-64 and without root, from Debian's packages (QEMU; Python
and the C library for aarch64) and from PyPI (numpy, safetensors and apache-tvm-ffi for aarch64; TVM's wheel for it;
ziglang, which links for it).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "build" / "emulation"
ROOT, SITE, WHEELS, PACKAGES = (FOLDER / name for name in ("root", "site", "wheels", "packages"))
STAMP = FOLDER / "complete"
PYTHON_OF_DEBIAN = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
PACKAGES_OF_RUNTIME = ("numpy", "safetensors", "apache-tvm-ffi", "typing_extensions")


def missing() -> str | None:
    """Why nothing can be emulated here; None if it can."""
    return None if STAMP.exists() else "QEMU and a Python for aarch64 are not there: run `make emulation`"


def emulated(architecture: str, processor: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run Python on a processor of QEMU's; for x86_64 it is this machine's, with its packages.

    It finds numpy, safetensors, apache-tvm-ffi and espalier.runtime.
    """
    emulator = str(_emulator(architecture))
    if architecture == "x86_64":
        command = [emulator, "-cpu", processor, sys.executable, *arguments]
        path = [REPOSITORY]
    else:
        command = [emulator, "-cpu", processor, "-L", str(ROOT), str(_python()), *arguments]
        path = [SITE, REPOSITORY]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def _emulator(architecture: str) -> Path:
    names = (f"qemu-{architecture}{suffix}" for suffix in ("-static", ""))
    return next(path for name in names if (path := FOLDER / "usr" / "bin" / name).exists())


def _python() -> Path:
    return next((ROOT / "usr" / "bin").glob("python3.[0-9]*[0-9]"))


def prepare() -> None:
    """Fill the folder."""
    if platform.machine() != "x86_64" or shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SystemExit("the emulated processors are set up on Debian for x86-64 (apt-get and dpkg-deb)")
    shutil.rmtree(FOLDER, ignore_errors=True)
    for package in _debian("arm64", PYTHON_OF_DEBIAN):
        _unpack(package, ROOT)
    for package in _debian("amd64", ("qemu-user-static",)):
        _unpack(package, FOLDER, ("./usr/bin/qemu-aarch64", "./usr/bin/qemu-x86_64"))
    version = _python().name.removeprefix("python")
    foreign = ["--no-deps", "--only-binary=:all:", "--python-version", version]
    foreign += [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28)]
    _pip("install", "--target", SITE, *foreign, *map(_pinned, PACKAGES_OF_RUNTIME))
    _pip("download", "--dest", WHEELS, *foreign, _pinned("apache-tvm"))
    _pip("install", "--target", PACKAGES, "-r", REPOSITORY / "requirements" / "emulation.lock")
    shutil.rmtree(FOLDER / "apt")
    STAMP.touch()


def _debian(architecture: str, names: Sequence[str]) -> list[Path]:
    """Packages with what they depend on, for an architecture, by an apt that keeps its books in the folder."""
    books = FOLDER / "apt" / architecture
    for place in ("state/lists/partial", "cache/archives/partial"):
        (books / place).mkdir(parents=True)
    (books / "status").touch()
    settings = {
        "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Sandbox::User": "",
        "Dir::State": books / "state", "Dir::State::status": books / "status", "Dir::Cache": books / "cache",
    }  # fmt: skip
    (books / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    variables = {**os.environ, "APT_CONFIG": str(books / "apt.conf")}
    for step in (["update"], ["install", "--yes", "--no-install-recommends", "--download-only", *names]):
        subprocess.run(["apt-get", "--quiet", *step], env=variables, check=True)
    return sorted((books / "cache" / "archives").glob("*.deb"))


def _unpack(package: Path, folder: Path, only: tuple[str, ...] = ("./",)) -> None:
    """Unpack those of a package's files whose names begin so."""
    folder.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                if member.name.startswith(only) and (member.isdir() or member.isreg() or member.issym()):
                    archive.extract(member, folder, filter="tar")
    if process.returncode:
        raise SystemExit(f"{package} cannot be unpacked")


def _pinned(package: str) -> str:
    """In the version that is installed here."""
    return f"{package}=={importlib.metadata.version(package)}"


def _pip(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], check=True)


if __name__ == "__main__":
    prepare()
