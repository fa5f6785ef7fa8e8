"""Small networks whose scores can be computed by hand, as graphs."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import espalier
from espalier.analysis.coupling import Coupling, Unit, couple
from espalier.ir import Graph
from espalier.ir.clone import clone
from espalier.passes.base import parse_spec
from espalier.passes.manager import PassManager, Report
from espalier.train.data import Data


class Net(nn.Module):
    """conv–norm–relu–conv–relu, mean, linear: the units are the channels of both convolutions."""

    def __init__(self, channels: int = 6, features: int = 5, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, features, 3, padding=1)
        self.head = nn.Linear(features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x))
        return self.head(x.mean((2, 3)))


def net(seed: int = 0, **sizes: int) -> Net:
    """With weights, and statistics, that are all different."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = Net(**sizes)
        for tensor in (*found.parameters(), found.norm.running_mean):
            tensor.data.normal_(0, 0.5)
        found.norm.running_var.uniform_(0.5, 2)
    return found.eval()


def images(count: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


_EXPORTED: dict[object, Graph] = {}


def graph_of(module: nn.Module, *inputs: torch.Tensor) -> Graph:
    """The module as a graph with a dynamic batch, of its own; exported once for the same weights."""
    shapes = tuple((tuple(x.shape), x.dtype) for x in inputs)
    key = (type(module), shapes, tuple(t.numpy().tobytes() for t in module.state_dict().values()))
    if key not in _EXPORTED:
        dynamic = ({0: torch.export.Dim("n", min=1)},) * len(inputs)
        _EXPORTED[key] = espalier.load(module, example_inputs=inputs, dynamic_shapes=dynamic)
    return clone(_EXPORTED[key])


def coupled(module: nn.Module, *inputs: torch.Tensor) -> tuple[Coupling, dict[str, Unit]]:
    coupling = couple(graph_of(module, *inputs))
    return coupling, {unit.name: unit for unit in coupling.removable()}


def data_of(graph: Graph, *arrays: torch.Tensor, labels: np.ndarray | None = None) -> Data:
    named = {value.name: array.numpy() for value, array in zip(graph.inputs, arrays, strict=True)}
    return Data({**named, "labels": labels} if labels is not None else named, tuple(graph.inputs))


def run_pass(graph: Graph, spec: str, **options: object) -> Report:
    return PassManager([parse_spec(spec)], **options).run(graph)  # type: ignore[arg-type]
