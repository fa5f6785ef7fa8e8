"""Axis declarations: how the indices of an operator's operands and results relate.

A declaration is one line, read like einops with the operands before the arrow and the results after it:

    "n (g i) window(P, K), (g o) i K, (g o) -> n (g o) P"

* a lower-case word is a letter: one axis, the same wherever it stands;
* `(a b)` is a product: one axis that is a pair of indices, major first;
* `[a + b]` is a sum: one axis that is segments, one after another;
* an upper-case letter is a run: zero or more axes, as many as the ranks demand, matched one by one. Runs are pinned;
* `X?` is a run that is not pinned;
* `window(P, K)` is a run of axes over which result positions P and kernel offsets K slide;
* `...` broadcasts: aligned at the right end, an axis of extent 1 matches any other;
* `1` is an axis of extent 1;
* `_` in place of an operand says that axes don't describe it (it holds a shape, a list of axes, …).

`declare` turns it into an `Equation`: a term for each axis of each operand and result, sharing variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

from espalier.ir import dims
from espalier.ir.dims import Dimension, Shape
from espalier.ir.terms import Product, Sum, Term, Variable, product, segments

Binding: TypeAlias = "Term | FromEnd | Sequence[Binding]"
"""What an attribute or a shape operand follows: the extent of a term, or a list of such."""


@dataclass(frozen=True, eq=False)
class FromEnd:
    """Minus the extent of a term: what a negative bound of a slice follows, which counts from the end of the axis."""

    term: Term


@dataclass
class Equation:
    """The axis terms of one node. Operands and results that are not described by axes have None."""

    operands: list[list[Term] | None]
    results: list[list[Term] | None]
    letters: dict[str, list[Variable]] = field(default_factory=dict)
    """The variables by letter; a run has several."""
    equal: list[tuple[Term, Term]] = field(default_factory=list)
    """Further terms that are the same."""
    ordered: list[tuple[Dimension, Dimension]] = field(default_factory=list)
    """Extents that are at most others, which are not known yet."""
    bound: dict[str, Binding] = field(default_factory=dict)
    """Attribute or operand name → the terms whose extents it holds."""
    normalized: list[Term] = field(default_factory=list)
    """Axes over which statistics are computed."""
    windows: list[Variable] = field(default_factory=list)
    """Variables that a window slides over: no iteration of their own."""

    def shapes(self) -> list[Shape | None]:
        """The shapes of the results."""
        return [None if terms is None else shape_of(terms) for terms in self.results]

    def copy(self) -> Equation:
        """The same relations of variables of its own, none of them linked yet."""
        copies = _Copies()
        return Equation(
            [None if terms is None else copies.terms(terms) for terms in self.operands],
            [None if terms is None else copies.terms(terms) for terms in self.results],
            {letter: copies.variables(held) for letter, held in self.letters.items()},
            [(copies.term(a), copies.term(b)) for a, b in self.equal],
            list(self.ordered),
            {name: copies.binding(held) for name, held in self.bound.items()},
            copies.terms(self.normalized),
            copies.variables(self.windows),
        )

    def contracted(self) -> list[Variable]:
        """The declared letters that operands have and no result has."""
        kept = {id(v) for v in self._letters(self.results)} | {id(v) for v in self.windows}
        return [v for v in self._letters(self.operands) if id(v) not in kept]

    def iterated(self) -> list[Variable]:
        """All declared letters but windows: the iteration space."""
        windows = {id(v) for v in self.windows}
        found = {id(v): v for side in (self.operands, self.results) for v in self._letters(side)}
        return [v for key, v in found.items() if key not in windows]

    @staticmethod
    def _letters(side: list[list[Term] | None]) -> list[Variable]:
        from espalier.ir.terms import letters

        found = {id(v): v for axes in side for axis in axes or () for v in letters(axis)}
        return list(found.values())


class _Copies:
    """Terms again, with variables of their own, none of them linked. No closures: each node would leave a cycle."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made: dict[Term, Term] = {}

    def term(self, term: Term) -> Term:
        found = self.made.get(term)
        if found is None:
            if type(term) is not Variable:
                assert isinstance(term, Product | Sum)
                found = type(term)(self.terms(term.parts))
            elif term.link is not None:
                found = self.term(term.link)
            else:
                found = Variable(term.extent, term.pinned)
            self.made[term] = found
        return found

    def terms(self, terms: Iterable[Term]) -> list[Term]:
        made = self.made
        return [made.get(term) or self.term(term) for term in terms]

    def variables(self, held: list[Variable]) -> list[Variable]:
        return [found for found in self.terms(held) if type(found) is Variable]

    def binding(self, binding: Binding) -> Binding:
        if isinstance(binding, FromEnd):
            return FromEnd(self.term(binding.term))
        if isinstance(binding, Variable | Product | Sum):
            return self.term(binding)
        return [self.binding(part) for part in binding]


@dataclass(frozen=True)
class _Axis:
    """One item of a declaration: kind is letter, product, sum, run, window, broadcast or one."""

    kind: str
    names: tuple[str, ...]


_ITEM = re.compile(r"window\((\w+), (\w+)\)|\(([\w ]+)\)|\[([\w +]+)\]|(\.\.\.)|([A-Z]\w*\??)|(1)\b|(\w+)")


@cache
def parse(text: str) -> tuple[tuple[tuple[_Axis, ...], ...], tuple[tuple[_Axis, ...], ...]]:
    """Operands and results of a declaration. Raises ValueError if it can't be read."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"an axis declaration needs '->': {text!r}")
    return _parse_side(left), _parse_side(right)


def _parse_side(text: str) -> tuple[tuple[_Axis, ...], ...]:
    return tuple(_parse_tensor(part) for part in re.split(r",(?![^(\[]*[)\]])", text))


def _parse_tensor(text: str) -> tuple[_Axis, ...]:
    axes, rest = [], text.strip()
    while rest:
        match = _ITEM.match(rest)
        if not match:
            raise ValueError(f"can't read {rest!r} in an axis declaration")
        window_p, window_k, factors, parts, dots, run, one, letter = match.groups()
        if window_p:
            axes.append(_Axis("window", (window_p, window_k)))
        elif factors:
            axes.append(_Axis("product", tuple(factors.split())))
        elif parts:
            axes.append(_Axis("sum", tuple(re.findall(r"\w+", parts))))
        elif dots:
            axes.append(_Axis("broadcast", ()))
        elif run:
            axes.append(_Axis("run", (run,)))
        elif one:
            axes.append(_Axis("one", ()))
        else:
            axes.append(_Axis("letter", (letter,)))
        rest = rest[match.end() :].lstrip()
    return tuple(axes)


@cache
def undescribed(text: str) -> frozenset[int]:
    """The positions of the operands that a declaration leaves out by `_`."""
    return frozenset(k for k, axes in enumerate(parse(text)[0]) if axes == (_Axis("letter", ("_",)),))


class DeclarationError(ValueError):
    """Shapes that don't fit the declaration; the text says how."""


WindowRule: TypeAlias = Callable[[int, Dimension, Dimension], Dimension]
"""(which window axis, extent slid over, kernel extent) → number of result positions."""


def declare(
    text: str,
    shapes: Sequence[Shape | None],
    known: Mapping[str, Dimension] | None = None,
    window: WindowRule | None = None,
    result_count: int | None = None,
    bound: Mapping[str, str] | None = None,
    normalizes: Sequence[str] = (),
) -> Equation:
    """The equation of a declaration for operands of these shapes (None: the operand is absent).

    `known` gives letters extents beforehand (from attributes), `bound` attributes the letters whose extents they hold;
    statistics are computed over the letters `normalizes`. Raises DeclarationError if the shapes don't fit.
    """
    operand_axes, result_axes = parse(text)
    if len(shapes) > len(operand_axes) and operand_axes:  # variadic: the last one repeats
        operand_axes += (operand_axes[-1],) * (len(shapes) - len(operand_axes))
    solver = _Solver(dict(known or {}), window)
    for axes, shape in zip(operand_axes, shapes, strict=False):
        if shape is not None:
            solver.measure(axes, shape)
    solver.solve()
    described = list(zip(operand_axes, shapes, strict=False))
    return _Declared(solver, described, result_axes[:result_count], bound or {}, normalizes)


class _Declared(Equation):
    """The equation of a declaration. Its terms are made when something asks for them; types need the shapes alone.

    Until then it belongs to one thread.
    """

    def __init__(
        self,
        solver: _Solver,
        operand_axes: Sequence[tuple[tuple[_Axis, ...], Shape | None]],
        result_axes: Sequence[tuple[_Axis, ...]],
        bound: Mapping[str, str],
        normalizes: Sequence[str],
    ) -> None:
        self._solver, self._operand_axes, self._result_axes = solver, operand_axes, result_axes
        self._bound, self._normalizes = bound, normalizes
        self._shapes: list[Shape | None] = [solver.shape(axes) for axes in result_axes]
        self.equal, self.ordered = [], []

    def __getattr__(self, name: str) -> Any:
        if name not in ("operands", "results", "letters", "bound", "normalized", "windows"):
            raise AttributeError(f"an equation has no {name!r}")
        solver = self._solver
        made: dict[str, Any] = {
            "operands": [None if shape is None else solver.terms(axes, shape) for axes, shape in self._operand_axes],
            "results": [solver.terms(axes, None) for axes in self._result_axes],
        }
        letters = made["letters"] = solver.letters
        made["windows"] = solver.windows
        made["bound"] = {attribute: letters[letter][0] for attribute, letter in self._bound.items()}
        made["normalized"] = [variable for letter in self._normalizes for variable in letters.get(letter, ())]
        self.__dict__.update({**made, **self.__dict__})  # what an operator has set itself stays
        return self.__dict__[name]

    def shapes(self) -> list[Shape | None]:
        return super().shapes() if "results" in self.__dict__ else self._shapes


class _Solver:
    """Extents of letters from shapes, then terms from letters."""

    def __init__(self, extents: dict[str, Dimension], window: WindowRule | None) -> None:
        self.extents, self.window = extents, window
        self.runs: dict[str, int] = {}
        self.broadcast: list[Dimension] = []  # extents, last axis first
        self.letters: dict[str, list[Variable]] = {}
        self.windows: list[Variable] = []
        self.pending: list[tuple[_Axis, Dimension]] = []
        self.slid: dict[tuple[str, str], list[Dimension]] = {}
        self.window_terms: dict[tuple[str, str], list[Variable]] = {}

    def measure(self, axes: tuple[_Axis, ...], shape: Shape) -> None:
        """Read letter extents off one operand's shape."""
        counts = [self._count(axis) for axis in axes]
        spare, unknown = len(shape) - sum(count for count in counts if count is not None), counts.count(None)
        if spare < 0 or unknown > 1 or (spare and not unknown):
            raise DeclarationError(f"rank {len(shape)} where {len(axes)} axes are declared")
        position = 0
        for axis, known in zip(axes, counts, strict=True):
            count = spare if known is None else known
            if known is None and axis.kind != "broadcast":
                self.runs.update(dict.fromkeys(axis.names, spare))
            self._measure_axis(axis, shape[position : position + count])
            position += count

    def _count(self, axis: _Axis) -> int | None:
        """How many axes of a tensor an item of the declaration stands for; None if only a tensor's rank tells."""
        if axis.kind == "broadcast":
            return None
        return self.runs.get(axis.names[-1]) if axis.kind in ("run", "window") else 1

    def _measure_axis(self, axis: _Axis, extents: Shape) -> None:
        if axis.kind == "letter":
            self._set(axis.names[0], extents[0])
        elif axis.kind == "run":
            for k, extent in enumerate(extents):
                self._set(f"{axis.names[0]}.{k}", extent)
        elif axis.kind == "broadcast":
            for k, extent in enumerate(reversed(extents)):
                if k == len(self.broadcast):
                    self.broadcast.append(extent)
                else:
                    self.broadcast[k] = broadcast_extent(self.broadcast[k], extent)
        elif axis.kind == "window":
            self.slid[axis.names[0], axis.names[1]] = list(extents)
        elif axis.kind == "one":
            if extents[0] != 1:
                raise DeclarationError(f"extent {extents[0]} where 1 is declared")
        else:
            self.pending.append((axis, extents[0]))

    def _set(self, name: str, extent: Dimension) -> None:
        known = self.extents.setdefault(name, extent)
        if isinstance(known, int) and isinstance(extent, int) and known != extent:
            raise DeclarationError(f"extent {extent} where axis {name.split('.')[0]!r} has {known}")
        if isinstance(extent, int):
            self.extents[name] = extent

    def solve(self) -> None:
        """Letters inside products and sums: each such axis determines its one unknown letter."""
        progress = True
        while self.pending and progress:
            progress = False
            for item in list(self.pending):
                axis, extent = item
                unknown = [name for name in axis.names if name not in self.extents]
                if len(unknown) > 1:
                    continue
                self.pending.remove(item)
                progress = True
                others = [self.extents[name] for name in axis.names if name in self.extents]
                if axis.kind == "product":
                    self._solve_product(extent, others, unknown)
                else:
                    rest: Dimension = extent
                    for other in others:
                        rest = rest - other
                    if unknown:
                        self._set(unknown[0], rest)
        if self.pending:
            raise DeclarationError(f"the factors of {self.pending[0][0].names} can't be determined")
        for (position, kernel), extents in self.slid.items():
            if self.window is None:
                raise DeclarationError("a window without a rule for its positions")
            for k, extent in enumerate(extents):
                self.extents[f"{position}.{k}"] = self.window(k, extent, self.extents[f"{kernel}.{k}"])

    def _solve_product(self, extent: Dimension, others: list[Dimension], unknown: list[str]) -> None:
        rest = dims.product(others)
        if unknown and isinstance(extent, int) and isinstance(rest, int) and (rest == 0 or extent % rest):
            raise DeclarationError(f"extent {extent} is not a multiple of {rest}")
        if unknown:
            self._set(unknown[0], dims.floor_divide(extent, rest))
        elif isinstance(extent, int) and isinstance(rest, int) and extent != rest:
            raise DeclarationError(f"extent {extent} where the declared factors make {rest}")

    def terms(self, axes: tuple[_Axis, ...], shape: Shape | None) -> list[Term]:
        """The terms of one operand (with its shape, for broadcasting) or result (None)."""
        found: list[Term] = []
        for axis in axes:
            if axis.kind == "letter":
                found.append(self._letter(axis.names[0]))
            elif axis.kind == "run":
                found += [self._letter(f"{axis.names[0]}.{k}") for k in range(self.runs.get(axis.names[0], 0))]
            elif axis.kind == "product":
                found.append(product(*(self._letter(name) for name in axis.names)))
            elif axis.kind == "sum":
                found.append(segments(*(self._letter(name) for name in axis.names)))
            elif axis.kind == "one":
                found.append(Variable(1))
            elif axis.kind == "window":
                found += self._window(axis.names[0], axis.names[1])
            else:
                for k in range(self._broadcast_rank(axes, shape) - 1, -1, -1):
                    extent = self.broadcast[k] if shape is None else shape[len(found)]
                    wide = self.broadcast[k]
                    found.append(Variable(1) if extent == 1 and wide != 1 else self._broadcast_letter(k, extent))
        return found

    def shape(self, axes: tuple[_Axis, ...]) -> Shape:
        """The extents of `terms` of a result."""
        found: list[Dimension] = []
        for axis in axes:
            if axis.kind == "letter":
                found.append(self._extent(axis.names[0]))
            elif axis.kind == "run":
                found += [self._extent(f"{axis.names[0]}.{k}") for k in range(self.runs.get(axis.names[0], 0))]
            elif axis.kind == "product":
                found.append(dims.product(self._extent(name) for name in axis.names))
            elif axis.kind == "sum":
                found.append(sum((self._extent(name) for name in axis.names), start=0))
            elif axis.kind == "one":
                found.append(1)
            elif axis.kind == "window":
                found += self.slid[axis.names[0], axis.names[1]]
            else:
                found += reversed(self.broadcast)
        return tuple(found)

    def _extent(self, name: str) -> Dimension:
        found = self.extents.get(name)
        if found is None:
            raise DeclarationError(f"the extent of axis {name.partition('.')[0]!r} is not determined")
        return found

    def _broadcast_rank(self, axes: tuple[_Axis, ...], shape: Shape | None) -> int:
        """How many axes `...` stands for in one operand, or in a result (None)."""
        if shape is None:
            return len(self.broadcast)
        return len(shape) - sum(self._count(axis) or 0 for axis in axes)

    def _window(self, position: str, kernel: str) -> list[Variable]:
        key = (position, kernel)
        if key not in self.window_terms:
            terms = [Variable(extent, "a window slides over it") for extent in self.slid[key]]
            self.window_terms[key] = terms
            self.windows += terms
            for k in range(len(terms)):  # positions and offsets belong to the iteration
                self._letter(f"{position}.{k}")
                self._letter(f"{kernel}.{k}")
        return self.window_terms[key]

    def _broadcast_letter(self, k: int, extent: Dimension) -> Variable:
        variables = self.letters.setdefault("...", [])
        while len(variables) <= k:
            variables.append(Variable(self.broadcast[len(variables)]))
        if extent != self.broadcast[k]:  # dynamic: only run time tells whether it is 1 or the same
            variables[k].pinned = reason = "broadcast that is not known before run time"
            return Variable(extent, reason)
        return variables[k]

    def _letter(self, name: str) -> Variable:
        base, _, index = name.partition(".")
        self._extent(name)
        variables = self.letters.setdefault(base, [])
        position = int(index or 0)
        while len(variables) <= position:
            pinned = "a spatial axis" if base[0].isupper() and not base.endswith("?") else None
            key = f"{base}.{len(variables)}" if index else base
            variables.append(Variable(self.extents[key], pinned))
        return variables[position]


def broadcast_extent(a: Dimension, b: Dimension) -> Dimension:
    """The extent that two axes broadcast to. Raises DeclarationError for different numbers, neither of them 1."""
    if isinstance(a, int) and isinstance(b, int) and a != b and 1 not in (a, b):
        raise DeclarationError(f"extents {a} and {b} don't broadcast")
    return dims.broadcast(a, b)


def one_differs(data: Shape, target: Shape) -> tuple[int, Dimension] | None:
    """The axis, and its extent in the target, if that is all that keeps the numbers of elements from being equal."""
    left = {axis: extent for axis, extent in enumerate(data) if not isinstance(extent, int)}
    right = [extent for extent in target if not isinstance(extent, int)]
    for axis, extent in [*left.items()]:
        if extent in right:
            right.remove(extent)
            del left[axis]
    if len(left) != 1 or len(right) != 1:
        return None
    numbers = [dims.product(extent for extent in shape if isinstance(extent, int)) for shape in (data, target)]
    ((axis, _),) = left.items()
    return (axis, right[0]) if numbers[0] == numbers[1] != 0 else None


def shape_of(terms: Sequence[Term]) -> Shape:
    """The extents of a list of axis terms."""
    return tuple(term.extent for term in terms)


__all__ = [
    "Binding", "DeclarationError", "Equation", "FromEnd", "WindowRule", "broadcast_extent", "declare", "one_differs",
    "parse", "shape_of", "undescribed",
]  # fmt: skip
