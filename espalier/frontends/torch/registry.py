"""Which function lowers which ATen overload."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

Lowering = Callable[..., Any]
Function = TypeVar("Function", bound=Lowering)

REAL: dict[str, Lowering] = {}
"""Overload ("aten.add.Tensor") → lowering on values of real elements."""
COMPLEX: dict[str, Lowering] = {}
"""Overload → lowering where an operand or a result is complex: those are `Pair`s of real values."""


def lowers(*overloads: str) -> Callable[[Function], Function]:
    """Register a function `(scope, *arguments of the overload) -> value or tuple of values` for real tensors."""
    return _register(REAL, overloads)


def lowers_complex(*overloads: str) -> Callable[[Function], Function]:
    """Register a function for the same overloads where complex tensors come in or out."""
    return _register(COMPLEX, overloads)


def _register(table: dict[str, Lowering], overloads: tuple[str, ...]) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        for overload in overloads:
            if overload in table:
                raise ValueError(f"two lowerings of {overload}: {table[overload].__name__} and {function.__name__}")
            table[overload] = function
        return function

    return register


@cache
def load_lowerings() -> None:
    """Import every module of `espalier.frontends.torch.lower`."""
    package = importlib.import_module("espalier.frontends.torch.lower")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
