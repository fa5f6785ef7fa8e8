"""Training runs in processes of their own, forked from one that has torch imported already."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

from espalier.train.recover import recover
from tests.train.networks import classifier, images, weights

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["espalier.train.recover", "torch._dynamo"])  # what making an optimizer imports


def start(target: Any, *arguments: Any) -> ForkServerProcess:
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def ended(process: ForkServerProcess, patience: float = 180.0) -> int | None:
    """The exit status of a process; one that hangs is killed, which shows in its status."""
    process.join(patience)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def slowly(folder: Path, output: Path) -> None:
    """60 steps with checkpoints after every second, in no less than 0.6 s; the weights go into `output`."""
    found = recover(
        classifier(), classifier(1), {"image": images(128)}, steps=60, batch_size=16, threads=1,
        hooks=[lambda run: time.sleep(0.01)], checkpoint=folder, every_steps=2,
    )  # fmt: skip
    np.savez(output, *weights(found))


def together(rank: int, port: int, folder: Path, output: Path) -> None:
    """One of two processes that train one model, as torchrun starts them."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    found = recover(
        classifier(), classifier(1), {"image": images(128)}, steps=8, batch_size=16, threads=1, checkpoint=folder,
    )  # fmt: skip
    np.savez(output, *weights(found))


def read(path: Path) -> list[Any]:
    with np.load(path) as archive:
        return [archive[name] for name in archive.files]
