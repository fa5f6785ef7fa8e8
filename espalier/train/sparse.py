"""Sparsity while a model trains: masks that tighten, a penalty on whole indices, and gates that learn which to close.

Masks and penalties are hooks of `recover` and `train`, and of loops of your own that train a `GraphModule`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from espalier.analysis.coupling import Coupling, Indices, Member, Unit, couple
from espalier.cost.remaining import Remaining, distinct
from espalier.errors import InputError
from espalier.ir import Graph, Value
from espalier.train.hooks import Hook
from espalier.train.masks import gradual, largest, n_of_m, parse_pattern, summed_weights
from espalier.train.module import GraphModule
from espalier.train.weights import looks_learned

if TYPE_CHECKING:
    from espalier.train.loops import Run

SHARE_OF_STEPS = 0.75
"""Of a run, in which masks tighten unless said otherwise."""
EVERY = 100
TEETH = 1e5
"""M of a gate: how fine its sawtooth is."""


class KeepZeros(Hook):
    """Zeros of the weights that nodes sum over stay zeros while a model trains, and so it stays as sparse as it was.

    A hook of `recover` and `train`; in a loop of your own call `bind` once, and `step` after each update.

    Attributes:
        masks: weight → what stays, of its shape.
    """

    def __init__(self) -> None:
        self.masks: dict[Value, torch.Tensor] = {}
        self.steps_done = 0
        self._places: dict[Value, torch.Tensor] = {}
        """Where in the parameter the zeros are: tied weights get theirs once."""
        self._saved: Mapping[str, torch.Tensor] = {}

    def identity(self) -> Mapping[str, Any]:
        return {}

    def bind(self, module: GraphModule, total: int | None = None) -> None:
        """Begin with a module as it is now, which is to be trained for so many steps."""
        self.module, self.steps_done, self.masks, self._places = module, 0, {}, {}
        self.axes = {
            value: axis
            for value, axis, _ in summed_weights(module.graph)
            if value in module.weights and module.parameter_of(value) is not None
        }
        self.make_first(total)

    def make_first(self, total: int | None) -> None:
        """Make the masks with which a run of so many steps begins."""
        self.put({value: weight != 0 for value, weight in self.read().items()})

    def read(self) -> dict[Value, torch.Tensor]:
        """The weights as they are now, on the CPU."""
        return {value: self.module.read(value).detach().cpu() for value in self.axes}

    def put(self, masks: Mapping[Value, torch.Tensor]) -> None:
        """Let these be the masks from now on."""
        self.masks = dict(masks)
        for value, mask in masks.items():
            parameter = self.module.parameter_of(value)
            assert parameter is not None
            places = self.module.view(value, torch.arange(parameter.numel()).reshape(parameter.shape))
            self._places[value] = places[~mask]

    def step(self) -> None:
        """Count an update, and write zeros where masks are false."""
        self.steps_done += 1
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Write zeros where masks are false."""
        for value, places in self._places.items():
            parameter = self.module.parameter_of(value)
            assert parameter is not None
            parameter.view(-1)[places] = 0

    def start(self, run: Run) -> None:
        self.bind(run.module, run.total)
        if self._saved:
            saved, self._saved = self._saved, {}
            self.resume(saved)

    def after_update(self, run: Run) -> None:
        self.step()

    def state(self) -> Mapping[str, torch.Tensor]:
        masks = {f"mask_{k}": self.masks[v].to(torch.uint8) for k, v in enumerate(self.axes) if v in self.masks}
        return {"steps_done": torch.tensor(self.steps_done), **masks}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._saved = state  # there is no module yet

    def resume(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""
        self.steps_done = int(saved["steps_done"])
        names = {value: f"mask_{k}" for k, value in enumerate(self.axes)}
        self.put({value: saved[name].cpu().bool() for value, name in names.items() if name in saved})


class GradualMasks(KeepZeros):
    """Sparsity that grows while a model trains, along the schedule of arXiv 1710.01878.

    Args:
        final: the share of each weight's elements that is zero in the end.
        steps: after how many steps; by default three quarters of the run's, so that the rest can heal.
        initial: the share at `begin`.
        begin: the step before which nothing is masked.
        every: steps between new masks, 100 by default or a tenth of `steps` if that is less; a weight that was zeroed
            may come back if its gradient revives it.
        pattern: n and m: in the end all but n of each m along the first axis that is summed over are zero instead.

    Raises:
        InputError: E201 for what is no schedule.
    """

    def __init__(
        self,
        final: float = 0.0,
        steps: int | None = None,
        *,
        initial: float = 0.0,
        begin: int = 0,
        every: int | None = None,
        pattern: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.pattern = pattern
        self.schedule: dict[str, Any] = {
            "final": final if pattern is None else 1 - pattern[0] / pattern[1],
            "steps": steps, "initial": initial, "begin": begin, "every": every,
        }  # fmt: skip
        self.ratio = 0.0
        """The share that is gone now."""
        self._now: Mapping[str, Any] = {}
        try:
            gradual(
                0, **{**self.schedule, "steps": 1 if steps is None else steps, "every": 1 if every is None else every}
            )
        except ValueError as error:
            raise InputError("E201", str(error)) from None

    def identity(self) -> Mapping[str, Any]:
        return {**self.schedule, "pattern": self.pattern}

    def _complete(self, steps: int) -> dict[str, Any]:
        every = self.schedule["every"]
        return {**self.schedule, "steps": steps, "every": max(1, min(EVERY, steps // 10)) if every is None else every}

    def make_first(self, total: int | None) -> None:
        steps = self.schedule["steps"]
        if steps is None and total is None:
            raise InputError("E201", "in a loop of your own, say after how many steps the masks are final")
        self.ratio = 0.0
        self._now = self._complete(max(1, round(SHARE_OF_STEPS * (total or 0))) if steps is None else steps)

    def step(self) -> None:
        """Count an update, make new masks where the schedule says so, and write zeros where they are false."""
        self.steps_done += 1
        ratio, done = gradual(self.steps_done, **self._now), self.steps_done - self._now["begin"]
        if done >= 0 and (done % self._now["every"] == 0 or ratio != self.ratio or not self.masks):
            self.ratio = ratio
            self.put({value: self._mask(value, weight) for value, weight in self.read().items()})
        self.apply()

    def _mask(self, value: Value, weight: torch.Tensor) -> torch.Tensor:
        array, axis = weight.float().numpy(), self.axes[value]
        if self.pattern is None:
            return torch.from_numpy(largest(array, self.ratio))
        _, m = self.pattern
        if array.shape[axis] % m:
            return torch.ones(array.shape, dtype=torch.bool)
        return torch.from_numpy(n_of_m(array, axis, m - math.floor(self.ratio * m + 1e-9), m).copy())

    def state(self) -> Mapping[str, torch.Tensor]:
        return {**super().state(), "ratio": torch.tensor(self.ratio, dtype=torch.float64)}

    def resume(self, saved: Mapping[str, torch.Tensor]) -> None:
        super().resume(saved)
        self.ratio = float(saved["ratio"])


def sparse_hook(sparsity: float | str) -> KeepZeros:
    """The hook for a share of zeros (0.8), a pattern ("2:4"), or "keep" for those that are there. Raises InputError."""
    text = str(sparsity).strip()
    if text == "keep":
        return KeepZeros()
    if ":" in text:
        return GradualMasks(pattern=parse_pattern(text))
    try:
        return GradualMasks(float(text))
    except ValueError:
        raise InputError("E201", f"sparsity is a share, a pattern such as 2:4, or keep, not {text!r}") from None


class GroupPenalty(Hook):
    """Group sparse learning: indices that matter little are pushed to zero together, in all weights that have them.

    It adds ½·strength·Σ γ_k·w² over the weights w of each index k to the loss, where γ_k = base^((max s − s_k)/(max s −
    min s)) is held constant and s_k is the norm of all weights of the index (arXiv 2301.12900). A hook of `recover` and
    `train`; in a loop of your own call `bind` once, and add `term()` to the loss.

    Args:
        units: names of units, as `espalier inspect --units` prints them; by default all that can be removed.
    """

    def __init__(self, strength: float = 5e-4, *, base: float = 2.0**4, units: Sequence[str] | None = None) -> None:
        self.strength, self.base, self.units = strength, base, None if units is None else tuple(units)

    def identity(self) -> Mapping[str, Any]:
        return {"strength": self.strength, "base": self.base, "units": self.units}

    def bind(self, module: GraphModule) -> None:
        """Act on a module from now on. Raises InputError E202 for a unit that is not there."""
        coupling, self.module = couple(module.graph), module
        self.members: dict[Unit, list[tuple[Member, torch.Tensor]]] = {}
        by_name = {unit.name: unit for unit in coupling.units}
        for name in self.units or ():
            if name not in by_name:
                raise InputError("E202", f"no unit is called {name!r}", hint="`espalier inspect --units` lists them.")
        for unit in coupling.removable() if self.units is None else map(by_name.__getitem__, self.units):
            learned = [m for m in unit.weights if module.parameter_of(m.value) is not None]
            once = set(distinct([member.value for member in learned]))
            self.members[unit] = [
                (m, torch.from_numpy(coupling.coordinate(m.value, m.axis, unit))) for m in learned if m.value in once
            ]

    def start(self, run: Run) -> None:
        self.bind(run.module)

    def loss(self, run: Run) -> torch.Tensor | None:
        return self.term()

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

    def term(self) -> torch.Tensor | None:
        """½·strength·Σγ·w²; None if there is no unit."""
        terms = []
        for unit, members in self.members.items():
            factors = torch.cat([self.factors(unit), torch.zeros(1, dtype=torch.float64)])  # −1: has no index
            for member, places in members:
                tensor = self.module.read(member.value)
                along = factors[places].to(tensor).reshape(-1, *[1] * (tensor.ndim - member.axis - 1))
                terms.append((along * tensor * tensor).sum().float())
        return 0.5 * self.strength * torch.stack(terms).sum() if terms else None


class GateTarget(Hook):
    """Draws the share of the costs that open gates leave to a target: adds strength·(target − share)² to the loss.

    A hook for training a `GatedModule`.

    Raises:
        InputError: E201 for a target outside of 0 to 1.
    """

    def __init__(self, target: float, strength: float = 10.0) -> None:
        if not 0 < target <= 1 or not strength > 0:
            raise InputError("E201", f"target={target} is a share from 0 to 1, strength={strength} is positive")
        self.target, self.strength = target, strength

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
