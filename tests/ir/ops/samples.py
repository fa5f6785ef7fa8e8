"""Random legal uses of every operator: derived from its declaration where that says enough, else made by a sampler.

A sampler is a function of a random generator, registered for an operator in a module `samplers_*.py` of this folder:

    @sampler("reshape")
    def reshape(rng):
        return Sample(Reshape(), [values(rng, (2, 6)), np.array([3, 4])])
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espalier.ir import axes as declarations
from espalier.ir.axes import Equation
from espalier.ir.elements import BOOL, F64, I64, Element, from_dtype
from espalier.ir.op import OPS, REQUIRED, Op, TypeContext, TypeInferenceError, load_builtin_operators
from espalier.ir.terms import Sum, Term, Variable, leaves, resolve, unify
from espalier.ir.types import TensorType

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Sample:
    """One legal use of an operator: its attributes, its operands, how many results are asked for."""

    op: Op
    operands: Sequence[Array | None]
    results: int = 1
    macs: int | None = None
    """Multiply–accumulates, counted otherwise than by axes; None: by running the operator on ones."""
    known: Sequence[int] = ()
    """Positions of further operands that inference knows the content of."""
    rank_follows_extents: bool = False
    """Whether the results' rank depends on extents, and is unknown where they are symbols."""


Sampler = Callable[[np.random.Generator], Sample]
SAMPLERS: dict[str, Sampler] = {}


def sampler(*names: str) -> Callable[[Sampler], Sampler]:
    """Register a function as the sampler of these operators."""

    def register(function: Sampler) -> Sampler:
        for name in names:
            if name in SAMPLERS:
                raise ValueError(f"two samplers for {name}")
            SAMPLERS[name] = function
        return function

    return register


@functools.cache
def operators_with_axes() -> tuple[str, ...]:
    """The names of all operators of this package that declare axes; their samplers are loaded too."""
    load_builtin_operators()
    for file in sorted(Path(__file__).parent.glob("samplers_*.py")):
        importlib.import_module(f"tests.ir.ops.{file.stem}")
    ours = (cls for cls in OPS.values() if cls.__module__.startswith("espalier.ir.ops."))
    return tuple(sorted(cls.name for cls in ours if cls.axes is not None or cls.equation is not Op.equation))


def draw(name: str, seed: int) -> Sample:
    """The sample of an operator for a seed. Raises LookupError if the operator needs a sampler and has none."""
    operators_with_axes()
    rng = np.random.default_rng([seed, *name.encode()])
    return SAMPLERS[name](rng) if name in SAMPLERS else automatic(OPS[name], rng)


# ---- values ----------------------------------------------------------------------------------------------------


def extent(rng: np.random.Generator, low: int = 2, high: int = 5) -> int:
    """A random extent from low to high."""
    return int(rng.integers(low, high + 1))


def shape(rng: np.random.Generator, low: int = 0, high: int = 4) -> tuple[int, ...]:
    """A random shape whose rank is from low to high."""
    return tuple(extent(rng) for _ in range(int(rng.integers(low, high + 1))))


def values(rng: np.random.Generator, shape: Sequence[int], element: Element = F64) -> Array:
    """Random numbers of an element: normal, integers from −9 to 9 (or 0 to 9) without 0, or truth values."""
    if element.kind == "bool":
        return rng.random(shape) < 0.5
    if element.is_integer:
        numbers = rng.integers(1, 10, shape)
        return (numbers * rng.choice([-1, 1], shape) if element.kind == "int" else numbers).astype(element.dtype)
    return np.asarray(rng.standard_normal(shape), element.dtype)


def positive(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Random numbers from 1/2 to 2."""
    return rng.uniform(0.5, 2, shape)


# ---- samples from declarations ---------------------------------------------------------------------------------


def automatic(cls: type[Op], rng: np.random.Generator) -> Sample:
    """A sample of an operator whose `axes` say all that is needed."""
    if cls.axes is None or "window(" in cls.axes:
        raise LookupError(f"{cls.name} needs a sampler: write one in tests/ir/ops/samplers_*.py")
    extents: dict[str, int] = {}
    attributes: dict[str, Any] = {}
    declared, _ = declarations.parse(cls.axes)
    for attribute, letter in cls.bound.items():
        attributes[attribute] = extents[letter] = extent(rng, 1, 4)
    if any(value is REQUIRED and key not in attributes for key, value in cls.defaults.items()):
        raise LookupError(f"{cls.name} has required attributes and needs a sampler in tests/ir/ops/samplers_*.py")
    wide = shape(rng)
    runs: dict[str, int] = {}
    operands: list[tuple[int, ...] | None] = []
    omitted = False
    for port in cls.operands:
        for _ in range(int(rng.integers(1, 4)) if port.variadic else 1):
            terms = declared[min(port.position, len(declared) - 1)]
            omitted |= port.optional and rng.random() < 0.3
            if omitted or port.position in declarations.undescribed(cls.axes):
                if not port.optional:
                    raise LookupError(f"{cls.name} takes more than axes describe and needs a sampler")
                operands.append(None)
            else:
                operands.append(_shape_of(rng, terms, extents, runs, wide))
    while operands and operands[-1] is None:
        operands.pop()
    if operands and not any(given is not None and len(given) == len(wide) for given in operands) and "..." in cls.axes:
        operands[0] = wide
    for element in (F64, I64, BOOL):
        sample = Sample(cls(**attributes), [None if s is None else values(rng, s, element) for s in operands])
        try:
            sample.op.infer(context(sample))
        except TypeInferenceError as error:
            refusal = error
        else:
            return sample
    raise LookupError(f"{cls.name} takes no operands derived from its axes and needs a sampler: {refusal}")


def _shape_of(
    rng: np.random.Generator,
    terms: Sequence[Any],
    extents: dict[str, int],
    runs: dict[str, int],
    wide: tuple[int, ...],
) -> tuple[int, ...]:
    found: list[int] = []
    for axis in terms:
        if axis.kind == "broadcast":
            rank = int(rng.integers(0, len(wide) + 1)) if rng.random() < 0.5 else len(wide)
            found += [1 if rng.random() < 0.2 else size for size in wide[len(wide) - rank :]]
        elif axis.kind == "run":
            count = runs.setdefault(axis.names[0], int(rng.integers(0, 4)))
            found += [extents.setdefault(f"{axis.names[0]}.{k}", extent(rng)) for k in range(count)]
        elif axis.kind == "one":
            found.append(1)
        else:
            parts = [extents.setdefault(name, extent(rng)) for name in axis.names]
            found.append(sum(parts) if axis.kind == "sum" else int(np.prod(parts)))
    return tuple(found)


# ---- equations of samples --------------------------------------------------------------------------------------


def context(
    sample: Sample,
    shapes: Sequence[Any] | None = None,
    contents: Sequence[Any] | None = None,
) -> TypeContext:
    """What the operator sees of a sample; with other shapes or contents if given."""
    counter = itertools.count()
    types = [None if a is None else TensorType(from_dtype(a.dtype), a.shape) for a in sample.operands]
    if shapes is not None:
        types = [t and TensorType(t.element, s) for t, s in zip(types, shapes, strict=True)]
    return TypeContext(
        sample.op,
        types,
        list(contents if contents is not None else known_contents(sample)),
        result_count=sample.results,
        fresh=lambda: f"unknown{next(counter)}",
    )


def known_contents(sample: Sample) -> list[Array | None]:
    """Integers and single numbers are known to inference, as constants are in a graph; other operands are not."""
    return [
        a if a is not None and (a.dtype.kind in "iu" or a.size == 1 or k in sample.known) else None
        for k, a in enumerate(sample.operands)
    ]


def equation_of(sample: Sample, ctx: TypeContext | None = None) -> Equation:
    """The equation of a sample, its further equal terms unified."""
    found = sample.op.equation(ctx or context(sample))
    assert found is not None, f"{sample.op} has no equation for {[a is not None and a.shape for a in sample.operands]}"
    for a, b in found.equal:
        unify(a, b)
    return found


def coordinates(term: Term, leaf: Variable) -> Array:
    """For each index of an axis, its coordinate of a leaf; −1 where it has none."""
    term = resolve(term)
    if isinstance(term, Variable):
        return np.arange(int(term.extent)) if term is leaf else np.full(int(term.extent), -1)
    parts = [coordinates(part, leaf) for part in term.parts]
    if isinstance(term, Sum):
        return np.concatenate([np.zeros(0, int), *parts])
    found, sizes = np.full(int(term.extent), -1), [len(part) for part in parts]
    for k, part in enumerate(parts):
        inner = int(np.prod(sizes[k + 1 :], dtype=int))
        spread = np.tile(np.repeat(part, inner), int(np.prod(sizes[:k], dtype=int)))
        found = np.where(spread >= 0, spread, found)
    return found


def extent_with(term: Term, extents: dict[int, Any]) -> Any:
    """The extent of a term when some leaves, by identity, have other extents."""
    term = resolve(term)
    if isinstance(term, Variable):
        return extents.get(id(term), term.extent)
    total: Any = 0 if isinstance(term, Sum) else 1
    for part in term.parts:
        size = extent_with(part, extents)
        total = total + size if isinstance(term, Sum) else total * size
    return total


def binding_with(binding: Any, extents: dict[int, Any]) -> Any:
    """What a bound attribute or operand holds when some leaves have other extents."""
    if isinstance(binding, list | tuple):
        return [binding_with(part, extents) for part in binding]
    return extent_with(binding, extents)


def all_leaves(equation: Equation) -> list[Variable]:
    """Every independent coordinate of operands and results, in order."""
    sides = [axes for axes in (*equation.operands, *equation.results) if axes is not None]
    return list({id(leaf): leaf for axes in sides for axis in axes for leaf in leaves(axis)}.values())


def leaves_of(terms: Any) -> set[int]:
    """The identities of the leaves of some terms."""
    return {id(leaf) for term in terms or () for leaf in leaves(term)}
