"""Checking lowerings against torch: many small functions in one exported program, compared one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from espalier.frontends.torch import from_module
from espalier.frontends.torch.tensors import to_array
from espalier.ir.execute import execute
from espalier.ir.graph import Graph
from espalier.ir.verify import verify

Case = tuple[Callable[..., Any], tuple[Any, ...]]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def integers(
    *shape: int, low: int = -9, high: int = 10, dtype: torch.dtype = torch.int64, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def booleans(*shape: int, seed: int = 0) -> torch.Tensor:
    return integers(*shape, low=0, high=2, seed=seed).bool()


class Together(torch.nn.Module):
    """Runs all cases, each on its own stretch of the arguments; their results are the values of a dictionary."""

    def __init__(self, cases: dict[str, Case]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, *arguments: torch.Tensor) -> dict[str, Any]:
        results, position = {}, 0
        for name, (function, inputs) in self.cases.items():
            results[name] = function(*arguments[position : position + len(inputs)])
            position += len(inputs)
        return results


class Family:
    """Cases that are exported together. Tensors that a case closes over become constants."""

    def __init__(self, **cases: Any) -> None:
        self.cases: dict[str, Case] = {name: (case[0], tuple(case[1:])) for name, case in cases.items()}
        self._found: dict[str, tuple[list[Any], list[Any]]] | None = None
        self._failure: Exception | None = None

    def __iter__(self) -> Any:
        return iter(self.cases)

    def check(self, name: str) -> None:
        """Fail unless a case computes what it does in torch, in the same types."""
        if self._found is None and self._failure is None:
            try:
                self._found = self._run()
            except Exception as error:  # every case of the family fails with it
                self._failure = error
        if self._failure is not None:
            raise self._failure
        assert self._found is not None
        wanted, found = self._found[name]
        assert len(wanted) == len(found)
        for theirs, ours in zip(wanted, found, strict=True):
            assert_close(ours, theirs)

    def _run(self) -> dict[str, tuple[list[Any], list[Any]]]:
        arguments = tuple(tensor for _, inputs in self.cases.values() for tensor in inputs)
        graph = from_module(Together(self.cases).eval(), arguments)
        verify(graph)
        outputs = iter(execute(graph, [to_array(tensor) for tensor in arguments]))
        found = {}
        for name, (function, inputs) in self.cases.items():
            wanted = [to_array(leaf) for leaf in tree_leaves(function(*inputs)) if isinstance(leaf, torch.Tensor)]
            found[name] = (wanted, [next(outputs) for _ in wanted])
        return found


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    """Same shape, same dtype, and numbers equal to a tolerance relative to the largest (narrow floats: 1e-2)."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if ours.dtype.kind in "iub":
        np.testing.assert_array_equal(ours, theirs)
        return
    tolerance = tolerance if ours.dtype.itemsize > 2 else 1e-2
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    scale = np.abs(theirs[finite]).max(initial=0.0)
    assert np.abs(ours[finite] - theirs[finite]).max(initial=0.0) <= tolerance * scale


def agree(graph: Graph, module: torch.nn.Module, *inputs: torch.Tensor) -> None:
    """Fail unless a graph computes what a module does."""
    found = execute(graph, [to_array(tensor) for tensor in inputs])
    with torch.no_grad():
        wanted = [to_array(leaf) for leaf in tree_leaves(module(*inputs))]
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs)
