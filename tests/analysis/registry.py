"""The networks of the tests by name: torch modules with example inputs, and the graphs of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import espalier
from espalier.ir import Graph

Example = tuple[nn.Module, tuple[Tensor, ...]]
NETWORKS: dict[str, Callable[[], Example]] = {}


def network(*shapes: tuple[int, ...]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a module class under its name, with normal inputs of these shapes."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        NETWORKS[cls.__name__] = lambda: (cls(), tuple(torch.randn(*shape) for shape in shapes))
        return cls

    return register


def example(name: str, dtype: torch.dtype = torch.float64) -> Example:
    """The network of that name in evaluation mode, with seeded weights, statistics and inputs."""
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    module = module.to(dtype).eval()
    return module, tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


@functools.cache
def loaded(name: str) -> tuple[Graph, list[Any], nn.Module]:
    """Its graph (not to be changed), its inputs as arrays, and the module."""
    module, inputs = example(name)
    return espalier.load(module, example_inputs=inputs), [x.numpy() for x in inputs], module


def tokens(name: str, count: int, *shape: int) -> None:
    """Let a registered network take token indices instead."""
    make = NETWORKS[name]
    NETWORKS[name] = lambda: (make()[0], (torch.randint(count, shape),))
