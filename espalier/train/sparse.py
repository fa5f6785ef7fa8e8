"""Sparsity while a model trains: masks that tighten, and a penalty on whole indices.

They are hooks of `recover` and `train`, and of loops of your own that train a `GraphModule`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from espalier.analysis.choice import chosen_units
from espalier.analysis.coupling import Member, Unit, couple
from espalier.cost.remaining import distinct
from espalier.errors import InputError
from espalier.ir import Value
from espalier.train.hooks import Hook
from espalier.train.masks import gradual, largest, n_of_m, parse_pattern, summed_weights
from espalier.train.module import GraphModule

if TYPE_CHECKING:
    from espalier.train.loops import Run

SHARE_OF_STEPS = 0.75
"""Of a run, in which masks tighten unless said otherwise."""
EVERY = 100
KEEP = "keep"
"""The sparsity that a model has."""


class KeepZeros(Hook):
    """Zeros of the weights that nodes sum over stay zeros while a model trains, and so it stays as sparse as it was.

    A hook of `recover` and `train`; in a loop of your own call `bind` once, and `step` after each update.

    Attributes:
        masks: weight → what stays, of its shape, on the CPU.
    """

    def __init__(self) -> None:
        self.masks: dict[Value, torch.Tensor] = {}
        self.steps_done = 0
        self._gone: dict[str, torch.Tensor] = {}
        """Parameter → what of it is zero, where the parameter is: tied weights get all their zeros."""
        self._saved: Mapping[str, torch.Tensor] = {}

    def identity(self) -> Mapping[str, Any]:
        return {}

    def bind(self, module: GraphModule, total: int | None = None) -> None:
        """Begin with a module as it is now, which is to be trained for so many steps."""
        self.module, self.steps_done, self.masks, self._gone = module, 0, {}, {}
        self._axes = {
            value: axis
            for value, axis, _ in summed_weights(module.graph)
            if value in module.weights and module.parameter_of(value) is not None
        }
        self._begin(total)

    def step(self) -> None:
        """Count an update, and write zeros where masks are false. Raises InputError E201 before `bind`."""
        _check_bound(self)
        self.steps_done += 1
        self._apply()

    def _begin(self, total: int | None) -> None:
        """Make the masks with which a run of so many steps begins."""
        self._set({value: weight != 0 for value, weight in self._weights().items()})

    def _weights(self) -> dict[Value, torch.Tensor]:
        """The weights as they are now (without gates, if they have some), on the CPU."""
        parameters = {value: self.module.parameter_of(value) for value in self._axes}
        return {v: self.module.view(v, p.detach()).cpu() for v, p in parameters.items() if p is not None}

    def _set(self, masks: Mapping[Value, torch.Tensor]) -> None:
        self.masks, gone = dict(masks), {}
        for value, mask in masks.items():
            name, parameter = self.module.weights[value], self.module.parameter_of(value)
            assert parameter is not None
            if name not in gone:
                gone[name] = torch.zeros(parameter.shape, dtype=torch.bool)
            places = self.module.view(value, torch.arange(parameter.numel()).reshape(parameter.shape))
            gone[name].view(-1)[places[~mask]] = True
        self._gone = {name: where.to(getattr(self.module, name).device) for name, where in gone.items()}

    @torch.no_grad()
    def _apply(self) -> None:
        for name, gone in self._gone.items():
            getattr(self.module, name).masked_fill_(gone, 0)

    def start(self, run: Run) -> None:
        self.bind(run.module, run.total)
        if self._saved:
            saved, self._saved = self._saved, {}
            self._resume(saved)

    def after_update(self, run: Run) -> None:
        self.step()

    def state(self) -> Mapping[str, torch.Tensor]:
        masks = {f"mask_{k}": self.masks[v].to(torch.uint8) for k, v in enumerate(self._axes) if v in self.masks}
        return {"steps_done": torch.tensor(self.steps_done), **masks}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._saved = state  # there is no module yet

    def _resume(self, saved: Mapping[str, torch.Tensor]) -> None:
        self.steps_done = int(saved["steps_done"])
        names = {value: f"mask_{k}" for k, value in enumerate(self._axes)}
        self._set({value: saved[name].cpu().bool() for value, name in names.items() if name in saved})


class GradualMasks(KeepZeros):
    """Sparsity that grows while a model trains, along the schedule of arXiv 1710.01878.

    Args:
        final: the share of each weight's elements that is zero in the end; or a pattern such as "2:4": all but two of
            each four along the first axis that is summed over. Weights that a pattern does not fit stay as they are,
            and a warning names them.
        steps: after how many steps; by default when three quarters of the run are over, so that the rest can heal.
        initial: the share at `begin`.
        begin: the step before which nothing is masked.
        every: steps between new masks, 100 by default or a tenth of `steps` if that is less; a weight that was zeroed
            may come back if its gradient revives it. After the last of the steps masks stay.

    Raises:
        InputError: E201 for what is no schedule, or (as it begins) ends after the run.
    """

    def __init__(
        self,
        final: float | str,
        steps: int | None = None,
        *,
        initial: float = 0.0,
        begin: int = 0,
        every: int | None = None,
    ) -> None:
        super().__init__()
        self.pattern = parse_pattern(final) if isinstance(final, str) else None
        share = float(final) if self.pattern is None else 1 - self.pattern[0] / self.pattern[1]
        self.schedule: dict[str, Any] = {
            "final": share, "steps": steps, "initial": initial, "begin": begin, "every": every,
        }  # fmt: skip
        if not 0 <= initial <= share < 1:
            raise InputError("E201", f"shares of zeros are from 0 to below 1 and grow, not from {initial} to {share}")
        self.ratio = 0.0
        """The share that is gone now."""
        self._now: Mapping[str, Any] = {}
        try:
            gradual(0, **self._complete(1 if steps is None else steps))
        except ValueError as error:
            raise InputError("E201", str(error)) from None
        if begin < 0:
            raise InputError("E201", f"begin={begin} is negative")

    def identity(self) -> Mapping[str, Any]:
        return {**self.schedule, "pattern": self.pattern}

    def _complete(self, steps: int) -> dict[str, Any]:
        every = self.schedule["every"]
        return {**self.schedule, "steps": steps, "every": max(1, min(EVERY, steps // 10)) if every is None else every}

    def _begin(self, total: int | None) -> None:
        steps, begin = self.schedule["steps"], self.schedule["begin"]
        if steps is None and total is None:
            raise InputError("E201", "in a loop of your own, say after how many steps the masks are final")
        if steps is None:
            steps = max(1, round(SHARE_OF_STEPS * (total or 0)) - begin)
        if total and begin + steps > total:
            raise InputError("E201", f"masks that are final at step {begin + steps} are not in a run of {total}")
        self.ratio, self._now = 0.0, self._complete(steps)
        if self.pattern is not None:
            unfit = [v.name or "?" for v, axis in self._axes.items() if not _fits(v.shape, axis, self.pattern[1])]
            if unfit:
                n, m = self.pattern
                message = f"extents that are no multiples of {m} cannot be {n}:{m}: {', '.join(unfit)} stay as they are"
                warnings.warn(message, stacklevel=2)

    def step(self) -> None:
        """Count an update, make new masks where the schedule says so, and write zeros where they are false."""
        _check_bound(self)
        self.steps_done += 1
        done = self.steps_done - self._now["begin"]
        if 0 <= done <= self._now["steps"]:
            ratio = gradual(self.steps_done, **self._now)
            if done % self._now["every"] == 0 or ratio != self.ratio or not self.masks:
                self.ratio = ratio
                self._set({value: self._mask(value, weight) for value, weight in self._weights().items()})
        self._apply()

    def _mask(self, value: Value, weight: torch.Tensor) -> torch.Tensor:
        array, axis = weight.float().numpy(), self._axes[value]
        if self.pattern is None:
            return torch.from_numpy(largest(array, self.ratio))
        _, m = self.pattern
        if not _fits(array.shape, axis, m):
            return torch.ones(array.shape, dtype=torch.bool)
        return torch.from_numpy(n_of_m(array, axis, m - math.floor(self.ratio * m + 1e-9), m).copy())

    def state(self) -> Mapping[str, torch.Tensor]:
        return {**super().state(), "ratio": torch.tensor(self.ratio, dtype=torch.float64)}

    def _resume(self, saved: Mapping[str, torch.Tensor]) -> None:
        super()._resume(saved)
        self.ratio = float(saved["ratio"])


def _check_bound(hook: KeepZeros | GroupPenalty) -> None:
    if not hasattr(hook, "module"):
        raise InputError("E201", f"{type(hook).__name__} acts on no module yet: in a loop of your own, bind it to one")


def _fits(shape: Sequence[Any] | None, axis: int, m: int) -> bool:
    """Whether an axis falls into groups of m."""
    return shape is not None and shape[axis] % m == 0


def sparse_hook(sparsity: float | str) -> KeepZeros:
    """The hook for a share of zeros (0.8), a pattern ("2:4"), or `KEEP` for those that are there. Raises InputError."""
    if sparsity == KEEP:
        return KeepZeros()
    if isinstance(sparsity, str) and ":" in sparsity:
        return GradualMasks(sparsity)
    try:
        return GradualMasks(float(sparsity))
    except (TypeError, ValueError):
        raise InputError("E201", f"sparsity is a share, a pattern such as 2:4, or {KEEP}, not {sparsity!r}") from None


class GroupPenalty(Hook):
    """Group sparse learning: indices that matter little are pushed to zero together, in all weights that have them.

    It adds ½·strength·Σ γ_k·w² over the weights w of each index k to the loss, where γ_k = base^((max s − s_k)/(max s −
    min s)) is held constant and s_k is the norm of all weights of the index (arXiv 2301.12900). A hook of `recover` and
    `train`; in a loop of your own call `bind` once (where the module has come to stay), and add `term()` to the loss.

    Args:
        only, ignore: patterns of units' names; by default all units that can be removed.
    """

    def __init__(
        self, strength: float = 5e-4, *, base: float = 2.0**4, only: Sequence[str] = (), ignore: Sequence[str] = ()
    ) -> None:
        if not strength >= 0 or not base > 0:
            raise InputError("E201", f"strength={strength}, base={base}: one is too small")
        self.strength, self.base, self.only, self.ignore = strength, base, tuple(only), tuple(ignore)

    def identity(self) -> Mapping[str, Any]:
        return {"strength": self.strength, "base": self.base, "only": self.only, "ignore": self.ignore}

    def bind(self, module: GraphModule) -> None:
        """Act on a module from now on. Raises InputError E202 and E221 for units that patterns can't mean."""
        coupling, self.module = couple(module.graph), module
        self.members: dict[Unit, list[tuple[Member, torch.Tensor]]] = {}
        for unit in chosen_units(coupling, self.only, self.ignore):
            learned = [m for m in unit.weights if module.parameter_of(m.value) is not None]
            once = set(distinct([member.value for member in learned]))
            self.members[unit] = [
                (m, torch.from_numpy(coupling.coordinate(m.value, m.axis, unit)).to(self._read(m.value).device))
                for m in learned
                if m.value in once
            ]

    def _read(self, value: Value) -> torch.Tensor:
        """A weight as it is, without gates."""
        parameter = self.module.parameter_of(value)
        assert parameter is not None
        return self.module.view(value, parameter)

    def start(self, run: Run) -> None:
        self.bind(run.module)

    def loss(self, run: Run) -> torch.Tensor | None:
        return self.term()

    def norms(self, unit: Unit) -> torch.Tensor:
        """[extent]: the norm of all weights of each index."""
        found = list(self._squares(unit))
        return torch.stack(found).sum(0).sqrt() if found else torch.zeros(unit.extent, dtype=torch.float64)

    def _squares(self, unit: Unit) -> Iterator[torch.Tensor]:
        """[extent]: of each weight, its squares summed up by index."""
        for member, places in self.members[unit]:
            squares = self._read(member.value).detach().double().movedim(member.axis, 0) ** 2
            # the last place is for positions that have no index (−1)
            total = torch.zeros(unit.extent + 1, dtype=torch.float64, device=squares.device)
            yield total.index_add(0, places % (unit.extent + 1), squares.reshape(len(places), -1).sum(1))[:-1]

    def factors(self, unit: Unit) -> torch.Tensor:
        """[extent]: γ."""
        norms = self.norms(unit)
        spread = norms.max() - norms.min()
        return self.base ** ((norms.max() - norms) / spread.clamp_min(torch.finfo(norms.dtype).tiny))

    def term(self) -> torch.Tensor | None:
        """½·strength·Σγ·w²; None if there is no weight that learns. Raises InputError E201 before `bind`."""
        _check_bound(self)
        terms = []
        for unit, members in self.members.items():
            if not members:
                continue
            factors = self.factors(unit)
            factors = torch.cat([factors, factors.new_zeros(1)])  # −1: has no index
            for member, places in members:
                tensor = self._read(member.value).float()
                along = factors[places].to(tensor).reshape(-1, *[1] * (tensor.ndim - member.axis - 1))
                terms.append((along * tensor * tensor).sum())
        return 0.5 * self.strength * torch.stack(terms).sum() if terms else None
