"""Several processes that train one model, as torchrun starts them; or one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from espalier.errors import InputError


@dataclass(frozen=True)
class Team:
    """The processes of a run. The first one (rank 0) writes and shows progress."""

    rank: int
    size: int
    device: torch.device

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their means over all processes. Each process must give the same ones."""
        kinds: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors if self.size > 1 else ():
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for group in kinds.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            flat /= self.size
            for tensor, mean in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
                tensor.detach().copy_(mean.reshape(tensor.shape))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def team(device: str) -> Iterator[Team]:
    """Join the other processes of torchrun, if there are any.

    Args:
        device: "cpu", "cuda" (under torchrun: each process its own), "cuda:1", or "auto": a GPU where there is one.

    Raises:
        InputError: E201, if there is no such device.
    """
    chosen = _device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    joins = size > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        several = dist.is_available() and dist.is_initialized()
        yield Team(dist.get_rank() if several else 0, dist.get_world_size() if several else 1, chosen)
    finally:
        if joins:
            dist.destroy_process_group()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError("E201", f"there is no device {name!r} to train on: {reason}", hint="Use cpu.") from None
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen
