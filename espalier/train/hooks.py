"""What acts on a training run between its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from espalier.train.loops import Run

_OTHER = object()
"""In the place of what is not plain."""


class Hook:
    """What acts on a run between its steps: schedules of pruning, regularisers. Derive from it; each part may stay."""

    def identity(self) -> Mapping[str, Any]:
        """What tells this hook from others of its class, for JSON: a checkpoint of a run with others is refused.

        By default all attributes that are plain: numbers, strings, truth values, None, and lists, tuples and mappings
        of them. It is asked for before the run starts; leave out what runs that may go on from each other differ in.
        """
        return {name: plain for name, value in sorted(vars(self).items()) if (plain := _plain(value)) is not _OTHER}

    def start(self, run: Run) -> None:
        """Before the first step, or the first one after a resumption (then after `restore`)."""

    def loss(self, run: Run) -> torch.Tensor | None:
        """What to add to the loss of this step."""
        return None

    def before_update(self, run: Run) -> None:
        """The gradients are there; the weights are as they were."""

    def after_update(self, run: Run) -> None:
        """The weights were updated."""

    def state(self) -> Mapping[str, torch.Tensor]:
        """What a resumed run needs."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""


class Called(Hook):
    """A function that is called after each update."""

    def __init__(self, function: Callable[[Run], None]) -> None:
        self.function = function

    def after_update(self, run: Run) -> None:
        self.function(run)


def described(hook: Hook | Callable[[Run], None]) -> list[Any]:
    """What tells a hook or a function from others: its name, and a hook's identity."""
    if not isinstance(hook, Hook):
        return [getattr(hook, "__qualname__", type(hook).__qualname__)]
    return [type(hook).__qualname__, dict(hook.identity())]


def _plain(value: Any) -> Any:
    """A value as JSON has it, or `_OTHER`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
    elif isinstance(value, Mapping):
        items = [[_plain(key), _plain(item)] for key, item in value.items()]
        return _OTHER if any(_OTHER in pair for pair in items) else items
    else:
        return _OTHER
    return _OTHER if _OTHER in items else items
