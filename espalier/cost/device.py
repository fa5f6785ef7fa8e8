"""Devices: what a model is fitted to, described by TOML files."""

from __future__ import annotations

import platform
import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from espalier import plugins
from espalier.errors import InputError


class Device(BaseModel):
    """One device. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    kind: Literal["cpu", "gpu", "fpga"]
    backend: str
    """The backend that is used unless another is asked for."""
    architecture: Literal["host", "x86_64", "aarch64"] = "host"
    """As Linux names it; "host": that of the machine that compiles."""
    instruction_sets: Literal["host"] | tuple[str, ...] = "host"
    """Extensions beyond the base instruction set, by LLVM's names; "host": those of the machine that compiles."""
    channel_multiple: int = Field(default=1, ge=1)
    """Channel counts that fill the vector units are multiples of this."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.architecture != "host" and self.instruction_sets == "host":
            raise ValueError("a device with an architecture lists its instruction_sets, if only the empty list")
        return self

    @property
    def machine(self) -> str:
        """The architecture, as `platform.machine()` gives it."""
        return platform.machine() if self.architecture == "host" else self.architecture

    @property
    def is_host(self) -> bool:
        """Whether it is the machine that compiles, with all that it can do."""
        return self.architecture == "host" and self.instruction_sets == "host"

    @property
    def system(self) -> str:
        """The operating system, as `platform.system()` gives it."""
        return platform.system() if self.architecture == "host" else "Linux"


def devices() -> dict[str, Device]:
    """All known devices by name: the built-in ones, and those of the entry-point group `espalier.devices`.

    An entry point names a package that holds .toml files. What is broken is left out; see `faults`.
    """
    return {name: found[0] for name, found in _survey()[0].items()}


def faults() -> list[InputError]:
    """What is broken: E213 a description, E204 a name that is taken, E208 a package that can't be imported."""
    return _survey()[1]


def _survey() -> tuple[dict[str, tuple[Device, str]], list[InputError]]:
    """Name → device and the package that describes it, and what is broken, naming package and file."""
    found: dict[str, tuple[Device, str]] = {}
    broken: list[InputError] = []
    folders = [("espalier", resources.files("espalier.cost") / "devices")]
    for entry in plugins.entries("espalier.devices"):
        try:
            folders.append((entry.value, resources.files(entry.value)))
        except Exception as error:  # the fault is in somebody else's package, whatever it is
            message = f"the plug-in {entry.name!r} ({entry.value}) cannot be loaded: {error}"
            broken.append(InputError("E208", message))
    for package, folder in folders:
        for file in sorted(folder.iterdir(), key=lambda item: item.name.removesuffix(".toml")):
            if not file.name.endswith(".toml"):
                continue
            try:
                device = parse(file.read_text(encoding="utf-8"), f"{file.name} of {package}")
            except InputError as error:
                broken.append(error)
            except (OSError, UnicodeDecodeError) as error:
                broken.append(InputError("E213", f"{file.name} of {package} cannot be read: {error}"))
            else:
                if device.name in found:
                    both = f"{found[device.name][1]} and {package}"
                    broken.append(InputError("E204", f"two devices are called {device.name!r}: those of {both}"))
                found.setdefault(device.name, (device, package))
    return found, broken


def device(name: str) -> Device:
    """The device of that name, or described by that .toml file. Raises InputError."""
    if name.endswith(".toml"):
        try:
            return parse(Path(name).read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("E213", f"the device file {name!r} cannot be read: {error}") from None
    known, broken = _survey()
    for fault in broken:
        if f"{name!r}" in fault.message or fault.message.startswith(f"{name}.toml "):
            raise fault
    if name not in known:
        there = f"There are {', '.join(known)}, or a .toml file."
        there += "".join(f" Left out: {fault.message}." for fault in broken)
        raise InputError("E202", f"no device is called {name!r}", hint=there)
    return known[name][0]


def parse(text: str, where: str) -> Device:
    """A device from TOML. Raises InputError E213 naming the key at fault."""
    try:
        return Device.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError("E213", f"{where} describes no device: {error}") from None
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise InputError("E213", f"{where} describes no device: {said}") from None
