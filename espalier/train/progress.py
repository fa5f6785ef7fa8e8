"""A bar with the time left, on terminals."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    title: str, total: int, done: int = 0, show: bool | None = None
) -> Iterator[Callable[[int, float | None], None]]:
    """Gives a function of (steps that are done, loss). Silent where standard error is no terminal, unless `show`."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda step, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, completed=done, loss="")

        def update(step: int, loss: float | None) -> None:
            progress.update(task, completed=step, loss="" if loss is None else f"loss {loss:.4g}")

        yield update
