"""Gates on whole indices, which are trained along with a model: what they close can be removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from espalier.analysis.coupling import Coupling, Indices, Unit
from espalier.cost.remaining import Remaining
from espalier.errors import InputError
from espalier.ir import Graph, Value
from espalier.train.hooks import Hook
from espalier.train.module import GraphModule
from espalier.train.weights import looks_learned

if TYPE_CHECKING:
    from espalier.train.loops import Run

TEETH = 1e5
"""M of a gate: how fine its sawtooth is."""
OPEN = 0.1
"""What gates are at first: at 0 they close."""


class GateTarget(Hook):
    """Draws the multiply–accumulates that open gates leave to a share: adds strength·(target − share)² to the loss.

    A hook for training a `GatedModule`.

    Raises:
        InputError: E201 for a target outside of 0 to 1, or (as it begins) a module without gates.
    """

    def __init__(self, target: float, strength: float = 10.0) -> None:
        if not 0 < target <= 1 or not strength > 0:
            raise InputError("E201", f"target={target} is a share from 0 to 1, strength={strength} is positive")
        self.target, self.strength = target, strength

    def start(self, run: Run) -> None:
        if not isinstance(run.module, GatedModule):
            raise InputError("E201", "this module has no gates: `gated` makes one that has")

    def loss(self, run: Run) -> torch.Tensor | None:
        assert isinstance(run.module, GatedModule)
        return self.strength * run.module.penalty(self.target)


class _Gate(torch.autograd.Function):
    """step(w) + sawtooth(w)·h: a step to within 1/M, whose slope is h."""

    @staticmethod
    def forward(context: Any, w: torch.Tensor, slope: float) -> torch.Tensor:
        context.slope = slope
        return (w > 0).to(w.dtype) + (TEETH * w - torch.floor(TEETH * w)) / TEETH * slope

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] * context.slope, None


def gate(w: torch.Tensor, slope: float = 1.0) -> torch.Tensor:
    """1 where w > 0 and else 0, to within slope/M; its derivative is `slope` everywhere (You et al., AAAI 2020)."""
    found: torch.Tensor = _Gate.apply(w, slope)  # type: ignore[no-untyped-call]  # torch gives it no type
    return found


class GatedModule(GraphModule):
    """A graph whose units have a gate for each index, which is trained along: what is closed in the end can be removed.

    A gate multiplies the weights that read its index, and where nodes sum over the unit without a weight those that
    produce it: exactly what removing an exact unit takes away. Build it by `gated(graph, coupling)`.
    """

    def __init__(self, coupling: Coupling, units: Sequence[Unit], slope: float) -> None:
        super().__init__(coupling.graph, looks_learned)
        self.coupling, self.units, self.slope = coupling, list(units), slope
        self.gates = nn.ParameterList([nn.Parameter(torch.full((unit.extent,), OPEN)) for unit in units])
        self._gated: dict[Value, list[tuple[int, int, str]]] = {}
        """Constant → the units that gate it: their position, the axis, and the buffer of its places' indices."""
        for k, unit in enumerate(units):
            for value in {**unit.readers, **coupling.producers(unit, unit.silenced)}:
                for axis in range(value.rank or 0):
                    places = coupling.coordinate(value, axis, unit)
                    if (places >= 0).any():
                        name = f"places_{len(self._buffers)}"
                        self.register_buffer(name, torch.from_numpy(places), persistent=False)
                        self._gated.setdefault(value, []).append((k, axis, name))
        self._costs = Remaining(coupling)
        self._known: tuple[tuple[int, ...], float, list[float]] = ((), 0.0, [])

    def identity(self) -> Mapping[str, Any]:
        return {"gates": [unit.name for unit in self.units], "slope": self.slope}

    def read(self, value: Value) -> torch.Tensor:
        tensor = super().read(value)
        for k, axis, name in self.__dict__.get("_gated", {}).get(value, ()):
            opened = gate(self.gates[k], self.slope)
            opened = torch.cat([opened, opened.new_ones(1)])  # −1: has no index
            tensor = tensor * opened[getattr(self, name)].to(tensor).reshape(-1, *[1] * (tensor.ndim - axis - 1))
        return tensor

    def share(self) -> torch.Tensor:
        """The share of the model's multiply–accumulates that open gates leave, with its slope along each gate."""
        counts = tuple(max(1, int((gate_ > 0).sum())) for gate_ in self.gates)
        if counts != self._known[0]:
            self._known = (counts, self._left(counts), self._marginal(counts))
        _, left, marginal = self._known
        moved = [
            cost * (gate(own, self.slope).sum() - count)
            for cost, own, count in zip(marginal, self.gates, counts, strict=True)
        ]
        return left + torch.stack(moved).sum()

    def least(self) -> float:
        """The share that is left if each unit keeps one index."""
        return self._left([1] * len(self.units))

    def _left(self, counts: Sequence[int]) -> float:
        """The share of the multiply–accumulates that so many indices of each unit take."""
        kept = {unit.variable: np.arange(count) for unit, count in zip(self.units, counts, strict=True)}
        return self._costs.macs_with(kept) / max(1, self._costs.macs)

    def _marginal(self, counts: Sequence[int]) -> list[float]:
        """What one index of each unit takes of it, beside so many of the others."""
        found = []
        for k, (unit, count) in enumerate(zip(self.units, counts, strict=True)):
            at = min(count, unit.extent - 1)
            pair = [self._left([*counts[:k], other, *counts[k + 1 :]]) for other in (at, at + 1)]
            found.append(pair[1] - pair[0])
        return found

    def penalty(self, target: float) -> torch.Tensor:
        """|target − share|²: add λ times this to the loss."""
        return (target - self.share()) ** 2

    def kept(self) -> Mapping[str, Indices]:
        """Unit's name → the indices whose gates are open; of a unit with none the one that is nearest to opening."""
        found = {}
        for unit, values in zip(self.units, self.gates, strict=True):
            open_ = torch.nonzero(values.detach() > 0)[:, 0].cpu().numpy()
            found[unit.name] = open_ if len(open_) else np.array([int(values.argmax())])
        return found


def gated(graph: Graph, coupling: Coupling, units: Sequence[Unit] | None = None, slope: float = 1.0) -> GatedModule:
    """A graph with a gate for each index of its exact units (or of those given). Raises InputError E221 for others."""
    chosen = [unit for unit in coupling.units if unit.verdict == "exact"] if units is None else list(units)
    for unit in chosen:
        if unit.verdict != "exact":
            raise InputError("E221", f"a gate on {unit.name} would not be the same as removal: {unit.why()}")
    if not slope > 0:
        raise InputError("E201", f"slope={slope} is not positive: gates would not learn")
    assert coupling.graph is graph
    return GatedModule(coupling, chosen, slope).eval()
