"""Criteria: one small class each, found by name. A package of its own adds more by the entry-point group
`espalier.criteria`, which names modules (or functions) whose import registers them by `@criterion(name)`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from espalier import plugins
from espalier.errors import InputError
from espalier.passes.base import parse_options
from espalier.passes.structure.importance import NORMALISERS, Part, Scored, Scores, combined


class Criterion:
    """Base of all criteria: subclasses are frozen dataclasses whose fields are the options.

    Most score one part of a weight at a time (`part`); others override `parts` or `score`.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What must be gathered over data: see `espalier.train.evidence.Need`."""
    training: ClassVar[bool] = False
    """Whether the model runs with the batch's statistics meanwhile: before it was trained, its own mean nothing."""
    normalise: ClassVar[str | None] = None
    """The only normalisation that makes sense, if there is one."""

    def part(self, part: Part, evidence: Any) -> Scores | None:
        """One score per index from one part of a weight; None if it has nothing to say."""
        raise NotImplementedError

    def parts(self, scored: Scored) -> list[Scores]:
        """The scores of the parts that count: those that let the unit through; none if there are none."""
        found = [self.part(part, scored.evidence) for part in scored.matrices]
        return [scores for scores in found if scores is not None]

    def score(self, scored: Scored, aggregate: str, normalise: str) -> Scores | None:
        """One score per index of the unit; None if the criterion has nothing to say about it."""
        parts = self.parts(scored)
        return combined(parts, aggregate, self.normalise or normalise) if parts else None

    @classmethod
    def summary(cls) -> str:
        """The first line of the documentation."""
        return (cls.__doc__ or "").strip().splitlines()[0]


CRITERIA: dict[str, type[Criterion]] = {}


def criterion(name: str) -> Callable[[type[Any]], type[Any]]:
    """Make a class a criterion: a frozen dataclass, registered under the name. Raises InputError E204."""

    def make(cls: type[Any]) -> type[Any]:
        if name in CRITERIA and (CRITERIA[name].__module__, CRITERIA[name].__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            message = f"two criteria are called {name!r}: {CRITERIA[name].__module__} and {cls.__module__}"
            raise InputError("E204", message)
        cls.name = name
        CRITERIA[name] = made = dataclass(frozen=True)(cls)
        return made

    return make


@cache
def load_criteria() -> None:
    """Import what entry points of the group `espalier.criteria` name."""
    plugins.load_all("espalier.criteria")


def parse_criterion(text: str) -> Criterion:
    """A criterion from text such as ``magnitude:p=1`` (further options after `;`). Raises InputError."""
    load_criteria()
    name, _, rest = text.strip().partition(":")
    cls = CRITERIA.get(name.strip().replace("-", "_"))
    if cls is None:
        near = difflib.get_close_matches(name, CRITERIA, 3)
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(sorted(CRITERIA))}."
        raise InputError("E202", f"no criterion is called {name!r}", hint=hint)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # passes are dataclasses
    try:
        return cls(**parse_options(f"criterion {cls.name}", fields, rest.split(";")))
    except (TypeError, ValueError) as error:
        raise InputError("E203", f"{text!r}: {error}") from None


# ---- from the weights alone ----------------------------------------------------------------------------------


@criterion("magnitude")
class Magnitude(Criterion):
    """Σ|w|^p over the weights of an index."""

    p: float = 2.0

    def __post_init__(self) -> None:
        if not (self.p > 0 and np.isfinite(self.p)):
            raise InputError("E203", f"p must be above 0, not {self.p}")

    def part(self, part: Part, evidence: Any) -> Scores | None:
        found: Scores = (np.abs(part.weights) ** self.p).sum(1)
        return found


@criterion("lamp")
class Lamp(Magnitude):
    """Σw² by the sum of those of the indices that are no smaller (LAMP)."""

    normalise = "lamp"


@criterion("batch_norm_scale")
class Scale(Criterion):
    """|γ| of the normalisations (and other scales) that an index passes."""

    def part(self, part: Part, evidence: Any) -> Scores | None:
        found: Scores = np.abs(part.weights).sum(1)
        return found if part.role == "scale" else None


@criterion("fpgm")
class Fpgm(Criterion):
    """Σ of the distances to the other indices' weights: what is near the others can be told by them (FPGM)."""

    def part(self, part: Part, evidence: Any) -> Scores | None:
        rows = part.weights - part.weights.mean(0)  # distances stay, and cancel less in the products below
        squares = (rows * rows).sum(1)
        total = np.zeros(len(rows))
        for start in range(0, len(rows), 256):
            products = rows[start : start + 256] @ rows.T
            distances = squares[start : start + 256, None] + squares - 2 * products
            total[start : start + 256] = np.sqrt(np.maximum(distances, 0)).sum(1)
        return total


@criterion("random")
class Random(Criterion):
    """Numbers drawn from the seed: what any criterion must beat."""

    def score(self, scored: Scored, aggregate: str, normalise: str) -> Scores | None:
        return NORMALISERS[normalise](scored.random.random(scored.unit.extent))


# ---- from data -----------------------------------------------------------------------------------------------


@criterion("taylor")
class Taylor(Criterion):
    """Σ|w·g|: how much the loss changes at first order if single weights go; g is the mean gradient."""

    needs = frozenset({"gradients"})
    multivariable: bool = False
    """|Σw·g| instead: if all weights of an index go together."""

    def parts(self, scored: Scored) -> list[Scores]:
        found = [self.part(part, scored.evidence) for part in scored.parts]  # a shift goes with its index, too
        return [scores for scores in found if scores is not None]

    def part(self, part: Part, evidence: Any) -> Scores | None:
        products = part.weights * part.of(evidence.gradient(part.member.value))
        found: Scores = np.abs(products.sum(1)) if self.multivariable else np.abs(products).sum(1)
        return found


@criterion("snip")
class Snip(Taylor):
    """Σ|w·g| before training, with the batch's statistics (SNIP)."""

    training = True


@criterion("obd")
class OptimalBrainDamage(Criterion):
    """½Σw²·E[g²] with the gradients of single samples: the diagonal of the Fisher matrix for that of the Hessian."""

    needs = frozenset({"squares"})

    def parts(self, scored: Scored) -> list[Scores]:
        found = [self.part(part, scored.evidence) for part in scored.parts]
        return [scores for scores in found if scores is not None]

    def part(self, part: Part, evidence: Any) -> Scores | None:
        found: Scores = 0.5 * (part.weights**2 * part.of(evidence.square(part.member.value))).sum(1)
        return found


@criterion("activation")
class Activation(Criterion):
    """Mean |a| of what an index carries where weights read it."""

    needs = frozenset({"activations"})

    def parts(self, scored: Scored) -> list[Scores]:
        found = scored.evidence.activations.get(scored.unit)
        return [] if found is None else [found]


@criterion("relative")
class RelativeImportance(Criterion):
    """E[|w·a| of an index / Σ|w·a| of all], summed over what reads it (arXiv 2410.16151)."""

    needs = frozenset({"contributions"})

    def parts(self, scored: Scored) -> list[Scores]:
        found = scored.evidence.contributions.get(scored.unit)
        return [] if found is None else [found]


@criterion("obspa")
class OptimalBrainSurgeon(Criterion):
    """What the layers that read an index lose at least without it, by least squares over the data (OBSPA).

    It goes with the option `compensate`, by which they do lose no more.
    """

    needs = frozenset({"costs"})

    def parts(self, scored: Scored) -> list[Scores]:
        found = scored.evidence.costs.get(scored.unit)
        return [] if found is None else [found]
