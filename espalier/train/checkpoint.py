"""Checkpoints of a training run: one file, written whole or not at all, that holds nothing but numbers and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from espalier.errors import InputError

FILE = "checkpoint.safetensors"
CONTEXT = 12
"""Characters before and after a difference that a message shows."""
FORMAT = "1"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Attributes:
        tensors: weights, statistics, the optimizer's and the hooks' state, by name.
        position: step, epoch and batch that come next, and what was seen so far.
        identity: what the run is: model, data, options. Another run's checkpoint is refused.
    """

    tensors: Mapping[str, torch.Tensor]
    position: Mapping[str, Any]
    identity: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors below a name, by the rest of theirs."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint at one stroke: a crash leaves the old one or the new one.

    Raises InputError E209 if the folder can't be written.
    """
    about = {"format": FORMAT, "position": checkpoint.position, "identity": checkpoint.identity}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    content = save(tensors, {"espalier": json.dumps(about, sort_keys=True)})
    staged = folder / f".{FILE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f".{FILE}.*"):  # of runs that were killed while they wrote
            stale.unlink(missing_ok=True)
        with staged.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(folder / FILE)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise InputError("E209", f"the checkpoint in {str(folder)!r} cannot be written: {error.strerror}") from None


def read(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The folder's checkpoint; None if there is none.

    Raises:
        InputError: E232, if it is of another run (naming what differs), or is damaged.
    """
    path = folder / FILE
    if folder.exists() and not folder.is_dir():
        raise InputError("E209", f"{str(folder)!r} is a file: a checkpoint is a folder")
    if not path.exists():
        return None
    hint = "Give the run the folder of its own checkpoint, or remove this one to begin anew."
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["espalier"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        if about["format"] != FORMAT:
            raise InputError("E232", f"{path} has the format {about['format']}, this version {FORMAT}", hint=hint)
        found = Checkpoint(tensors, about["position"], about["identity"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError("E232", f"{path} is damaged: {error}", hint=hint) from None
    wanted = json.loads(json.dumps(identity))
    differing = sorted(
        key for key in wanted.keys() | found.identity.keys() if wanted.get(key) != found.identity.get(key)
    )
    if differing:
        pairs = {key: _brief(found.identity.get(key), wanted.get(key)) for key in differing}
        told = ", ".join(f"{key} ({before}, now {now})" for key, (before, now) in pairs.items())
        raise InputError("E232", f"{path} belongs to a run that differs in {told}", hint=hint)
    return found


def _brief(before: Any, now: Any) -> tuple[str, str]:
    """Two values as text, of long ones what is about the first place where they differ."""
    texts = str(before), str(now)
    same = next((k for k, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = max(0, same - CONTEXT)
    first, second = (
        ("…" if start else "") + text[start : same + CONTEXT] + ("…" if len(text) > same + CONTEXT else "")
        for text in texts
    )
    return first, second
