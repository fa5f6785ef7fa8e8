"""Axis terms and their unification: the algebra in which operators say how the indices of tensors relate.

A term describes one axis: a `Variable` (indices without structure), a `Product` (mixed radix, major factor first) or a
`Sum` (segments one after another). A window of a convolution is a variable that is pinned for that reason.

`unify` makes two terms of equal extent the same by refining both. Refinement is monotone: an unlinked variable may be
linked to another variable, a product or a sum, never to anything else; extents shrink strictly along links, so no
occurs check is needed and every loop ends. Factors are aligned from the minor end, then from the major end, splitting
both sides by their common divisor; only what is coprime in the middle is pinned. Segments are walked together,
splitting the longer. What cannot be aligned is pinned, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from espalier.ir import dims
from espalier.ir.dims import Dimension

SEGMENT_LIMIT = 256
"""Rotations can shatter an axis into small pieces; beyond this many segments, it is pinned instead."""


class Reason(str):
    """Why something is pinned, and the node (or value) at which that was found; None if no one place is to blame."""

    __slots__ = ("where",)
    where: Any

    def __new__(cls, text: str, where: Any = None) -> Reason:
        made = super().__new__(cls, text)
        made.where = where
        return made


class Variable:
    """An axis, or a factor or segment of one. `pinned` says why its indices may not be removed (None: they may)."""

    __slots__ = ("extent", "link", "pinned")

    def __init__(self, extent: Dimension, pinned: str | None = None) -> None:
        self.extent, self.pinned = extent, pinned
        self.link: Term | None = None


class Product:
    """Index = ((i₀·n₁ + i₁)·n₂ + i₂)… over the parts' extents n: the major factor comes first."""

    __slots__ = ("extent", "parts")

    def __init__(self, parts: Iterable[Term]) -> None:
        self.parts = tuple(parts)
        self.extent: Dimension = dims.product(part.extent for part in self.parts)


class Sum:
    """The parts one after another."""

    __slots__ = ("extent", "parts")

    def __init__(self, parts: Iterable[Term]) -> None:
        self.parts = tuple(parts)
        self.extent: Dimension = 0
        for part in self.parts:
            self.extent = self.extent + part.extent


Term: TypeAlias = Variable | Product | Sum


def product(*parts: Term) -> Term:
    """The product of the parts; factors of extent 1 carry no index and are dropped."""
    kept = [part for part in parts if part.extent != 1]
    return kept[0] if len(kept) == 1 else Product(kept)


def segments(*parts: Term) -> Term:
    """The parts one after another, without empty ones."""
    kept = [part for part in parts if part.extent != 0]
    return kept[0] if len(kept) == 1 else Sum(kept)


def resolve(term: Term) -> Term:
    """What a term is now: an unlinked variable, a product or a sum."""
    if type(term) is not Variable or term.link is None:
        return term
    root: Term = term
    while type(root) is Variable and root.link is not None:
        root = root.link
    while type(term) is Variable and term.link is not None:  # path compression
        term.link, term = root, term.link
    return root


def flatten(term: Term, kind: type[Product] | type[Sum]) -> list[Term]:
    """The factors (kind Product) or segments (kind Sum) of a term, through links and nesting."""
    out, stack = [], [term]
    while stack:
        term = resolve(stack.pop())
        if type(term) is kind:
            stack.extend(reversed(term.parts))
        else:
            out.append(term)
    return out


def leaves(term: Term) -> Iterator[Variable]:
    """The independent coordinates that a term is made of, as unified so far."""
    stack = [term]
    while stack:
        current = resolve(stack.pop())
        if isinstance(current, Variable):
            yield current
        else:
            stack.extend(reversed(current.parts))


def squared(term: Term) -> set[Variable]:
    """The variables in two factors of a product: a position has two indices of theirs, as in a flattened x·xᵀ."""
    found: set[Variable] = set()
    stack = [term]
    while stack:
        current = resolve(stack.pop())
        if isinstance(current, Variable):
            continue
        stack.extend(current.parts)
        if isinstance(current, Product):
            before: set[Variable] = set()
            for part in current.parts:
                own = set(leaves(part))
                found |= before & own
                before |= own
    return found


def letters(term: Term) -> Iterable[Variable]:
    """The variables of a term as declared, not seen through links: roles belong to them."""
    return (term,) if isinstance(term, Variable) else _letters(term)


def _letters(term: Term) -> Iterator[Variable]:
    stack = [term]
    while stack:
        current = stack.pop()
        if isinstance(current, Variable):
            yield current
        else:
            stack.extend(reversed(current.parts))


def pin(term: Term, reason: str) -> None:
    """Freeze every coordinate of a term; the first reason stays."""
    for leaf in leaves(term):
        leaf.pinned = leaf.pinned or reason


def unify(a: Term, b: Term, where: Any = None) -> None:
    """Make two terms of equal extent the same, refining both; what cannot be aligned is pinned.

    `where` is the node or value that the reasons of such pins name. Terms whose extents are different expressions
    (dynamic shapes) are pinned, since nothing is known of them.
    """
    a, b = resolve(a), resolve(b)
    if type(a) is Variable and type(b) is Variable and a.extent == b.extent:  # by far the most
        if a is not b and a.extent != 1:
            b.pinned = b.pinned or a.pinned
            a.link = b
        return
    todo: list[tuple[Term, Term]] = [(a, b)]
    while todo:
        left, right = todo.pop()
        a, b = resolve(left), resolve(right)
        if a is b or a.extent == 1 or b.extent == 1:
            continue
        if a.extent != b.extent:
            reason = Reason("its extents are not known to agree", where)
            pin(a, reason)
            pin(b, reason)
        elif isinstance(a, Variable) or isinstance(b, Variable):
            _link(a, b)
        elif isinstance(a, Sum) or isinstance(b, Sum):
            _unify_segments(a, b, todo, where)
        else:
            _unify_factors(a, b, todo, where)


def _link(a: Term, b: Term) -> None:
    if not isinstance(a, Variable):
        a, b = b, a
    assert isinstance(a, Variable)
    if a.pinned:
        pin(b, a.pinned)
    if not a.pinned or isinstance(b, Variable):  # a pinned variable needs no structure
        a.link = b


def _unify_segments(a: Term, b: Term, todo: list[tuple[Term, Term]], where: Any) -> None:
    """Walk both segment lists, splitting the longer at the shorter's end."""
    left, right = flatten(a, Sum)[::-1], flatten(b, Sum)[::-1]
    if len(left) + len(right) > SEGMENT_LIMIT:
        pin(a, Reason("it falls into too many segments", where))
        pin(b, Reason("it falls into too many segments", where))
        return
    while left and right:
        x, y = left.pop(), right.pop()
        if x.extent == y.extent:
            todo.append((x, y))
        elif isinstance(at := dims.minimum(x.extent, y.extent), int) and dims.is_static((x.extent, y.extent)):
            if at < _static(x):
                x, rest = split(x, at)
                left.append(rest)
            else:
                y, rest = split(y, at)
                right.append(rest)
            todo.append((x, y))
        else:
            for term in (x, y, *left, *right):
                pin(term, Reason("its segments have unknown extents", where))
            return


def split(term: Term, at: int) -> tuple[Term, Term]:
    """Cut a term of static extent into two segments of extents `at` and the rest."""
    term = resolve(term)
    if at == 0:
        return Sum(()), term
    if at == term.extent:
        return term, Sum(())
    if isinstance(term, Variable):
        first, second = Variable(at, term.pinned), Variable(term.extent - at, term.pinned)
        term.link = Sum((first, second))
        return first, second
    if isinstance(term, Sum):
        return _split_sum(term, at)
    # (major minor): cut major; if the cut falls inside one major step, isolate that step and cut minor as well
    major, *rest = flatten(term, Product)
    minor = product(*rest)
    row, column = divmod(at, _static(minor))
    upper, tail = split(major, row)
    if column == 0:
        return _product_or_empty(upper, minor), _product_or_empty(tail, minor)
    _, lower = split(tail, 1)
    first_part, second_part = split(minor, column)
    return (
        segments(_product_or_empty(upper, minor), first_part),
        segments(second_part, _product_or_empty(lower, minor)),
    )


def _split_sum(term: Sum, at: int) -> tuple[Term, Term]:
    before: list[Term] = []
    for position, part in enumerate(term.parts):
        extent = _static(part)
        if at < extent:
            first, second = split(part, at)
            return segments(*before, first), segments(second, *term.parts[position + 1 :])
        before.append(part)
        at -= extent
    raise AssertionError("the cut lies outside of the term")


def _static(term: Term) -> int:
    if not isinstance(term.extent, int):
        raise AssertionError("only terms of static extent are split")
    return term.extent


def _product_or_empty(major: Term, minor: Term) -> Term:
    return product(major, minor) if major.extent != 0 else major


def _unify_factors(a: Term, b: Term, todo: list[tuple[Term, Term]], where: Any) -> None:
    """Align factors from the minor end, then from the major end; pin what is left between."""
    left, right = flatten(a, Product), flatten(b, Product)
    for minor_end in (True, False):
        while left and right:
            x, y = _take(left, minor_end), _take(right, minor_end)
            common = dims.common_factor(x.extent, y.extent)
            if common == 1:
                _put(x, left, minor_end)
                _put(y, right, minor_end)
                break
            todo.append((_peel(x, left, common, minor_end, todo), _peel(y, right, common, minor_end, todo)))
    for term in left + right:
        pin(term, Reason("it is divided in two ways that do not align", where))


def _peel(term: Term, parts: list[Term], extent: Dimension, minor_end: bool, todo: list[tuple[Term, Term]]) -> Term:
    """Split off a factor of this extent at one end; what remains goes back to the parts."""
    if term.extent == extent:
        return term
    rest = dims.floor_divide(term.extent, extent)
    high, low = (Variable(rest), Variable(extent)) if minor_end else (Variable(extent), Variable(rest))
    if isinstance(term, Variable):
        high.pinned = low.pinned = term.pinned
        term.link = Product((high, low))
    else:
        todo.append((term, Product((high, low))))  # a sum: its segments decide how the factors split
    _put(high if minor_end else low, parts, minor_end)
    return low if minor_end else high


def _put(term: Term, parts: list[Term], minor_end: bool) -> None:
    parts.insert(len(parts) if minor_end else 0, term)


def _take(parts: list[Term], minor_end: bool) -> Term:
    """Pop the last (or first) factor, seen through the links made meanwhile."""
    end = slice(-1, None) if minor_end else slice(0, 1)
    parts[end] = flatten(parts[end][0], Product)
    return parts.pop(-1 if minor_end else 0)
