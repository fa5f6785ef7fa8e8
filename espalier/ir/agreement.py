"""What extents must be for a node to have a meaning, beyond what its types say: what is left to check when it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from espalier.ir import dims
from espalier.ir.axes import Equation, shape_of
from espalier.ir.dims import Dimension, Shape

Relation = Literal["be", "be at most", "be 1 or"]
"""What the left dimension must do with the right one."""


class Requirement(NamedTuple):
    """`left` must `relation` `right`, which is not known to hold; of numbers, it is known not to."""

    left: Dimension
    relation: Relation
    right: Dimension

    def __str__(self) -> str:
        broadcast = self.relation == "be 1 or" and not isinstance(self.right, int)
        right = "the extent that it broadcasts with" if broadcast else self.right
        return f"{self.left} must {self.relation} {right}"

    @property
    def symbols(self) -> set[str]:
        """The names of the symbols that decide it."""
        return dims.symbols(self.left) | dims.symbols(self.right)


def requirements(equation: Equation, shapes: Sequence[Shape | None]) -> Iterator[Requirement]:
    """What an equation for operands of these shapes says of extents and inference could not decide.

    An axis has the extent of its term: of a letter that several operands have, of a product, of segments. Terms said to
    be the same have the same extent. No result has an extent below 0, as that of a window too large would be.
    """
    for terms, shape in zip(equation.operands, shapes, strict=False):
        if terms is not None and shape is not None:
            for term, extent in zip(terms, shape, strict=False):
                yield from _open(extent, "be", term.extent)
    for a, b in equation.equal:
        yield from _open(a.extent, "be", b.extent)
    for small, large in equation.ordered:
        yield from _open(small, "be at most", large)
    for terms in equation.results:
        for extent in shape_of(terms or ()):
            yield from _open(0, "be at most", extent)


def settled(found: Iterable[Requirement]) -> dict[str, int]:
    """The symbols for which an equality leaves one value: an axis `d` that weights of 24 rows read has 24."""
    values: dict[str, int] = {}
    for left, relation, right in found:
        names = dims.symbols(spare := right - left)
        if relation != "be" or len(names) != 1:
            continue
        (name,) = names
        try:
            at = [dims.substitute(spare, {name: number}) for number in (1, 2)]
            if isinstance(at[0], int) and isinstance(at[1], int) and at[0] != at[1]:
                value = 1 - at[0] // (at[1] - at[0])
                if value >= 0 and dims.substitute(spare, {name: value}) == 0:
                    values[name] = value
        except ZeroDivisionError:  # quotients are not linear anyway
            continue
    return values


def _open(left: Dimension, relation: Relation, right: Dimension) -> Iterator[Requirement]:
    """A requirement, unless it is known to hold."""
    spare = right - left
    least = dims.lower_bound(spare)
    if spare != 0 if relation == "be" else least is None or least < 0:
        yield Requirement(left, relation, right)
