"""What an index of a unit is worth: the parts of weights that have it, and how scores of parts become one score.

A criterion scores each weight's part of a unit (an array of one number per index); the parts' scores are aggregated
into the unit's, and those are normalised within the unit, so that units can be ranked against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, Indices, Member, Unit, Use
from espalier.analysis.parameters import parametric
from espalier.cost.remaining import distinct
from espalier.errors import EspalierError, InputError
from espalier.ir import Graph, Node, TensorType, Value
from espalier.ir.clone import extract
from espalier.ir.execute import Allowance, run
from espalier.ir.xp import numpy as xp
from espalier.passes.samples import NoSample, sample_inputs
from espalier.train.weights import holds_weights

Scores = NDArray[np.float64]
"""One number per index of a unit; what is least worth is removed first."""
Role = Literal["row", "column", "scale", "shift", "statistic"]
"""Of a weight, towards a unit: nodes keep it (row), or sum over it (column); a weight with one number per index
multiplies (scale) or does not (shift); running statistics are no weights that learn."""


@dataclass(frozen=True)
class Part:
    """One axis of one weight that has a unit."""

    member: Member
    role: Role
    places: Indices
    """For each position along the axis, the index of the unit there; −1 where the axis does not have it."""
    extent: int
    made: NDArray[Any] | None = None
    """The numbers of a weight that nodes make of constants (a quantized one, say); None for a constant's own."""

    @cached_property
    def weights(self) -> Scores:
        """[extent, elements per index]."""
        return self.of(self.member.value.array if self.made is None else self.made)

    def of(self, array: Any) -> Scores:
        """An array of the weight's shape as [extent, elements per index], in 64-bit floats."""
        rows = np.moveaxis(np.asarray(array), self.member.axis, 0)
        rows = rows.reshape(len(rows), -1)
        order = np.argsort(self.places, kind="stable")[int(np.sum(self.places < 0)) :]
        return rows[order].astype(np.float64).reshape(self.extent, -1)


@dataclass(frozen=True)
class Scored:
    """What a criterion may look at to score a unit."""

    unit: Unit
    parts: Sequence[Part]
    """Of weights that learn: rows, columns and scales first, then shifts; statistics are left out."""
    evidence: Any
    """What was gathered over data (see `espalier.train.evidence`); None if the criterion needs nothing."""
    random: np.random.Generator

    @property
    def matrices(self) -> list[Part]:
        """The parts that let a unit through: rows, columns and scales, no shifts."""
        return [part for part in self.parts if part.role != "shift"]


def parts_of(
    coupling: Coupling, unit: Unit, learned: Callable[[Value], bool], made: MadeWeights | None = None
) -> list[Part]:
    """The parts of the weights that learn, each element once: of tied weights only the first.

    With `made`, also of those that nodes make of constants of which none is such a weight of the unit itself.
    """
    values = distinct([member.value for member in unit.weights if learned(member.value)])
    found = []
    for member in unit.weights:
        if member.value in values:
            role = role_of(coupling, member, unit)
            if role != "statistic":
                places = coupling.coordinate(member.value, member.axis, unit)
                found.append(Part(member, role, places, unit.extent))
    if made is None:
        return found
    own = {part.member.value for part in found if part.role != "shift"}
    taken: set[int] = set()
    for member in unit.activations:
        if member.value in made.values and own.isdisjoint(made.origins(member.value)):
            role, sources = role_of(coupling, member, unit), made.sources(member.value)
            array = made.array(member.value) if role in ("row", "column") and taken.isdisjoint(sources) else None
            if array is not None and holds_weights(array):
                taken |= sources
                places = coupling.coordinate(member.value, member.axis, unit)
                found.append(Part(member, role, places, unit.extent, array))
    return found


class MadeWeights:
    """What nodes make of constants alone and others read together with what is computed: dequantized weights, say."""

    def __init__(self, graph: Graph) -> None:
        self.values: set[Value] = set()
        """The floats that were made so, and are read by something that is not."""
        fixed = parametric(graph)
        self._order = {node: k for k, node in enumerate(graph) if fixed.issuperset(node.results)}
        read = {value for node in graph if node not in self._order for value in node.inputs if value in fixed}
        tensors = (value for value in read if isinstance(value.type, TensorType) and value.element.is_float)
        self.values.update(value for value in tensors if self.origins(value))

    def origins(self, value: Value) -> list[Value]:
        """The constants that a value was made of."""
        return list(dict.fromkeys(v for node in self._before(value) for v in node.inputs if v.constant is not None))

    def sources(self, value: Value) -> set[int]:
        """What tells it from others that hold the same elements: the sources of origins that are as large."""
        size = math.prod(extent for extent in value.shape or () if isinstance(extent, int))
        held = (origin.constant for origin in self.origins(value))
        return {id(constant.source) for constant in held if constant is not None and constant.size >= size}

    def array(self, value: Value) -> NDArray[Any] | None:
        """Its numbers; None if they can't be computed, or not within what a check may cost."""
        try:
            return np.asarray(run(extract(self._before(value), [], [value]), [], allowance=Allowance())[0])
        except (EspalierError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError, NotImplementedError):
            return None

    def _before(self, value: Value) -> list[Node]:
        """The nodes that made it, in order."""
        found: set[Node] = set()
        stack = [value]
        while stack:
            node = stack.pop().producer
            if node is not None and node not in found:
                found.add(node)
                stack.extend(node.inputs)
        return sorted(found, key=self._order.__getitem__)


def role_of(coupling: Coupling, member: Member, unit: Unit) -> Role:
    """What a weight does with a unit, by the declarations of the operators that use it."""
    uses = list(coupling.uses(member, unit))
    if any(use.operand in use.node.op.moves_on.values() for use in uses):
        return "statistic"
    if any(not use.kept for use in uses):
        return "column"
    shape = member.value.shape or ()
    if all(extent == 1 for axis, extent in enumerate(shape) if axis != member.axis):
        return "scale" if any(multiplies(use) for use in uses) else "shift"
    return "row"


def multiplies(use: Use) -> bool:
    """Whether an operand is a factor of its node's result: with the other constants zero, the result varies with the
    computed operands, and vanishes once this one is zero too. Tried out on made-up inputs."""
    node = use.node
    computed = [operand for operand in node.inputs if operand.constant is None]
    if use.operand is None or not computed or node.regions:
        return False
    own = node.operand(use.operand)
    try:
        first, second = (sample_inputs(computed, seed) for seed in (1, 2))
        ones = np.ones(own.shape, own.element.dtype)
        with np.errstate(all="ignore"):
            a, b = (_result(node, use.operand, ones, dict(zip(computed, s, strict=True))) for s in (first, second))
            gone = _result(node, use.operand, np.zeros_like(ones), dict(zip(computed, first, strict=True)))
    except (NoSample, ValueError, TypeError, ArithmeticError, LookupError):
        return False
    return not np.array_equal(a, b) and bool(np.all(np.isfinite(a))) and not np.any(gone)


def _result(node: Node, own: int, array: Any, computed: dict[Value, Any]) -> NDArray[Any]:
    """The node's first result with one constant replaced, and those others that have its shape zero."""
    operands: list[Any] = []
    for position, value in enumerate(node.operands):
        if position == own:
            operands.append(array)
        elif value is None or value in computed:
            operands.append(None if value is None else computed[value])
        else:
            constant = xp.asarray(value.array)
            operands.append(np.zeros_like(constant) if constant.shape == np.shape(array) else constant)
    found = node.op.reference(xp, *operands)
    return np.asarray(found[0] if isinstance(found, tuple) else found)


# ---- scores of parts become one ------------------------------------------------------------------------------

AGGREGATES: dict[str, Callable[[Scores], Scores]] = {
    "mean": lambda scores: scores.mean(0),
    "sum": lambda scores: scores.sum(0),
    "max": lambda scores: scores.max(0),
    "prod": lambda scores: scores.prod(0),
    "first": lambda scores: scores[0],
}
"""How the scores [parts, indices] of a unit's parts become one score per index."""


def _divided(by: Callable[[Scores], Any]) -> Callable[[Scores], Scores]:
    def normalise(scores: Scores) -> Scores:
        divisor = float(by(scores))
        return scores / divisor if divisor > 0 else scores

    return normalise


def _lamp(scores: Scores) -> Scores:
    """Each score by the sum of those that are no smaller (arXiv 2010.07611)."""
    order = np.argsort(scores, kind="stable")
    rest = np.cumsum(scores[order][::-1])[::-1]
    found = np.zeros_like(scores)
    found[order] = np.divide(scores[order], rest, out=np.zeros_like(rest), where=rest > 0)
    return found


NORMALISERS: dict[str, Callable[[Scores], Scores]] = {
    "mean": _divided(np.mean),
    "sum": _divided(np.sum),
    "max": _divided(np.max),
    "std": _divided(np.std),
    "median": _divided(np.median),
    "lamp": _lamp,
    "none": lambda scores: scores,
}
"""How the scores of a unit are made comparable with those of others."""


def combined(parts: Sequence[Scores], aggregate: str, normalise: str) -> Scores:
    """One normalised score per index, from those of the parts (at least one)."""
    return NORMALISERS[normalise](AGGREGATES[aggregate](np.stack(parts)))


def check_finite(coupling: Coupling) -> None:
    """Raise InputError E223, naming the weight, if one that has a unit holds NaN, or infinity as a factor of a sum.

    (Infinity elsewhere is what masks hold.)
    """
    for value in {member.value: None for unit in coupling.units for member in unit.weights}:
        held = value.constant
        if held is None or not held.element.is_float:
            continue
        array = np.asarray(held.array, np.float32) if held.element.bits < 32 else held.array
        summed = any(user.op.contracts for user in value.users)
        wrong = ~np.isfinite(array) if summed else np.isnan(array)
        if wrong.any():
            place = tuple(int(k) for k in np.argwhere(wrong)[0])
            users = ", ".join(f"{user.op.name} {user.location}" for user in value.users[:2])
            raise InputError(
                "E223",
                f"the weight {value.name!r} of {users} holds {array[place]} at {list(place)}",
                node=value.name,
                hint="Train or export the model again.",
            )
