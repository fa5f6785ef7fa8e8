"""Sparsity for training loops: masks that tighten, a penalty on whole indices, and gates that learn which to close.

All work on a `GraphModule`, whatever loop trains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from espalier.analysis.coupling import Coupling, Indices, Member, Unit
from espalier.cost.remaining import Remaining, distinct
from espalier.errors import InputError
from espalier.ir import Graph, Value
from espalier.train.masks import gradual, largest, n_of_m, summed_weights
from espalier.train.module import GraphModule
from espalier.train.weights import looks_learned

TEETH = 1e5
"""M of a gate: how fine its sawtooth is."""


class GradualMasks:
    """Unstructured (or n:m) sparsity that grows while the module trains. Call `step` after each optimiser step.

    Args:
        module: what trains.
        final: the share of each weight's elements that is zero in the end.
        steps: after how many steps.
        every: how often masks are made anew; a weight that was zeroed may come back if its gradient revives it.
        pattern: (n, m): from the first step on, all but n of each m along the first axis that is summed over instead.

    Attributes:
        masks: weight → what stays, of its shape.
        ratio: the share that is gone now.
    """

    def __init__(
        self,
        module: GraphModule,
        *,
        final: float = 0.0,
        steps: int = 1,
        initial: float = 0.0,
        begin: int = 0,
        every: int = 100,
        pattern: tuple[int, int] | None = None,
    ) -> None:
        self.module, self.pattern, self.every, self.begin = module, pattern, every, begin
        self.schedule = {"final": final, "steps": steps, "initial": initial, "begin": begin, "every": every}
        gradual(0, **self.schedule)  # type: ignore[arg-type]  # int and float values by name
        self.axes = {
            value: axis
            for value, axis, _ in summed_weights(module.graph)
            if value in module.weights and module.parameter_of(value) is not None
        }
        self.masks: dict[Value, torch.Tensor] = {}
        self.ratio = 0.0
        self.steps_done = 0

    def step(self) -> None:
        """Count a step; where the schedule says so make new masks; write zeros where they are false."""
        self.steps_done += 1
        ratio = gradual(self.steps_done, **self.schedule)  # type: ignore[arg-type]  # as above
        due = (self.steps_done - self.begin) % self.every == 0 or ratio != self.ratio or not self.masks
        if due and self.steps_done >= self.begin:
            self.ratio = ratio
            self.masks = {value: self._mask(value) for value in self.axes}
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Write zeros where masks are false (through the views, so tied weights get them once)."""
        for value, mask in self.masks.items():
            parameter = self.module.parameter_of(value)
            assert parameter is not None
            places = self.module.view(value, torch.arange(parameter.numel()).reshape(parameter.shape))
            parameter.view(-1)[places[~mask]] = 0

    def _mask(self, value: Value) -> torch.Tensor:
        array = self.module.read(value).detach().float().cpu().numpy()
        if self.pattern is None:
            return torch.from_numpy(largest(array, self.ratio))
        n, m = self.pattern
        axis = self.axes[value]
        fits = array.shape[axis] % m == 0
        return torch.from_numpy(n_of_m(array, axis, n, m).copy() if fits else np.ones(array.shape, bool))


class GroupPenalty:
    """Group sparse learning: indices that matter little are pushed to zero together, in all weights that have them.

    The gradient of each member weight w of index k grows by strength·γ_k·w with γ_k = base^((max s − s_k)/(max s −
    min s)), where s_k is the norm of all weights of the index (arXiv 2301.12900). Call `add` between `backward` and the
    optimiser's step.

    Args:
        module: what trains; the coupling is of its graph.
        units: which; by default all that can be removed.
    """

    def __init__(
        self,
        module: GraphModule,
        coupling: Coupling,
        *,
        strength: float = 5e-4,
        base: float = 2.0**4,
        units: Sequence[Unit] | None = None,
    ) -> None:
        self.module, self.strength, self.base = module, strength, base
        self.members: dict[Unit, list[tuple[Member, torch.Tensor]]] = {}
        for unit in coupling.removable() if units is None else units:
            learned = [m for m in unit.weights if module.parameter_of(m.value) is not None]
            once = set(distinct([member.value for member in learned]))
            self.members[unit] = [
                (m, torch.from_numpy(coupling.coordinate(m.value, m.axis, unit))) for m in learned if m.value in once
            ]

    def norms(self, unit: Unit) -> torch.Tensor:
        """[extent]: the norm of all weights of each index."""
        total = torch.zeros(unit.extent, dtype=torch.float64)
        for member, places in self.members[unit]:
            squares = self.module.read(member.value).detach().double().movedim(member.axis, 0) ** 2
            has = places >= 0
            total.index_add_(0, places[has], squares.reshape(len(places), -1).sum(1).cpu()[has])
        return total.sqrt()

    def factors(self, unit: Unit) -> torch.Tensor:
        """[extent]: γ."""
        norms = self.norms(unit)
        spread = norms.max() - norms.min()
        share = (norms.max() - norms) / spread if spread > 0 else torch.zeros_like(norms)
        return self.base**share

    def add(self) -> float:
        """Add to the gradients; returns ½·strength·Σγ·w², whose gradient that is (γ held constant)."""
        total = torch.zeros((), dtype=torch.float64)
        for unit, members in self.members.items():
            factors = torch.cat([self.factors(unit), torch.zeros(1, dtype=torch.float64)])  # −1: has no index
            for member, places in members:
                tensor = self.module.read(member.value)
                along = factors[places].to(tensor).reshape(-1, *[1] * (tensor.ndim - member.axis - 1))
                total = total + 0.5 * self.strength * (along * tensor * tensor).sum().cpu()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]  # torch gives it no type
        return float(total.detach())


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
        self.gates = nn.ParameterList([nn.Parameter(torch.full((unit.extent,), 0.5)) for unit in units])
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
        costs = Remaining(coupling)
        whole = costs.macs
        self.costs = [
            (whole - costs.macs_with({unit.variable: np.arange(unit.extent - 1)})) / max(1, whole) for unit in units
        ]
        """The share of the multiply–accumulates that one index of each unit takes."""

    def read(self, value: Value) -> torch.Tensor:
        tensor = super().read(value)
        for k, axis, name in self.__dict__.get("_gated", {}).get(value, ()):
            opened = gate(self.gates[k], self.slope)
            opened = torch.cat([opened, opened.new_ones(1)])  # −1: has no index
            tensor = tensor * opened[getattr(self, name)].to(tensor).reshape(-1, *[1] * (tensor.ndim - axis - 1))
        return tensor

    def share(self) -> torch.Tensor:
        """The share of the units' costs that open gates leave, weighted by what an index costs."""
        total = sum(cost * unit.extent for cost, unit in zip(self.costs, self.units, strict=True))
        left = sum(cost * gate(g, self.slope).sum() for cost, g in zip(self.costs, self.gates, strict=True))
        return torch.as_tensor(left) / max(total, 1e-12)

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
    assert coupling.graph is graph
    return GatedModule(coupling, chosen, slope).eval()
