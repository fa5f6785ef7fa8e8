"""What the tests of growth share: classic families in f64, and how far two graphs are apart."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from benchmarks.cutting import difference
from benchmarks.zoo.classic import FAMILIES
from espalier.ir import Graph
from espalier.ir.execute import execute


class Double(nn.Module):
    """A module whose complex weights and buffers are of double precision too."""

    @staticmethod
    def of(module: nn.Module) -> nn.Module:
        module = module.double().eval()
        for part in module.modules():
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is not None and tensor.is_complex():
                    held = tensor.detach().to(torch.complex128)
                    setattr(part, name, nn.Parameter(held) if name in part._parameters else held)
        return module


QUICK = {"resnet_basic", "densenet", "mobilenet_v3", "lstm_bidirectional", "vit", "kan", "fourier_operator"}
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
"""The classic families, for `parametrize`; most of them take long to export."""


@functools.cache
def family(name: str) -> tuple[Graph, list[Any]]:
    """A classic family's graph (not to be changed) in f64, and inputs."""
    module, inputs, _ = FAMILIES[name]()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    return espalier.load(Double.of(module), example_inputs=inputs), [x.numpy() for x in inputs]


def apart(a: Graph, b: Graph, inputs: list[Any]) -> float:
    """The largest difference of outputs, relative to the largest number of each; b must compute finite numbers."""
    wanted, found = execute(a, inputs), execute(b, inputs)
    assert all(np.isfinite(y).all() for y in found if y.dtype.kind in "fc")
    pairs = [(x, y) for x, y in zip(found, wanted, strict=True)]
    real = [
        part for x, y in pairs for part in ([(x.real, y.real), (x.imag, y.imag)] if x.dtype.kind == "c" else [(x, y)])
    ]
    return difference([x for x, _ in real], [y for _, y in real])


def size(graph: Graph) -> int:
    """Numbers in all constants."""
    return sum(value.array.size for value in graph.constants())
