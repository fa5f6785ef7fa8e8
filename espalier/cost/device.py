"""Devices: what a model is fitted to, described by TOML files."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    instruction_sets: Literal["host"] | tuple[str, ...] = "host"
    """Extensions beyond the base instruction set; "host": those of the machine that compiles."""
    channel_multiple: int = Field(default=1, ge=1)
    """Channel counts that fill the vector units are multiples of this."""


def devices() -> dict[str, Device]:
    """All known devices by name: the built-in ones, and those of the entry-point group `espalier.devices`.

    An entry point names a package that holds .toml files. Raises InputError E213 for a broken description, E204 for a
    name that is taken, E208 for a package that can't be imported.
    """
    found: dict[str, Device] = {}
    folders = [resources.files("espalier.cost") / "devices"]
    for entry in plugins.entries("espalier.devices"):
        try:
            folders.append(resources.files(entry.value))
        except Exception as error:  # the fault is in somebody else's package, whatever it is
            raise InputError("E208", f"the plug-in {entry.name!r} ({entry.value}) cannot be loaded: {error}") from error
    for folder in folders:
        for file in sorted(folder.iterdir(), key=lambda item: item.name):
            if file.name.endswith(".toml"):
                device = parse(file.read_text(encoding="utf-8"), file.name)
                if device.name in found:
                    raise InputError("E204", f"two devices are called {device.name!r}")
                found[device.name] = device
    return found


def device(name: str) -> Device:
    """The device of that name, or described by that .toml file. Raises InputError."""
    if name.endswith(".toml"):
        try:
            return parse(Path(name).read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("E213", f"the device file {name!r} cannot be read: {error}") from None
    known = devices()
    if name not in known:
        there = f"There are {', '.join(known)}, or a .toml file."
        raise InputError("E202", f"no device is called {name!r}", hint=there)
    return known[name]


def parse(text: str, where: str) -> Device:
    """A device from TOML. Raises InputError E213 naming the key at fault."""
    try:
        return Device.model_validate(tomllib.loads(text))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise InputError("E213", f"{where} describes no device: {error}") from None
