"""Weights that sum over units, as matrices: what least squares needs, for any operator that is a sum of products.

A node y = x·W (a convolution, a matrix product, an einsum …) is linear in W. Its axis declaration says which letters of
W are shared with x and kept (groups), which W alone brings (rows), and which are summed over (columns). Running the
node with an identity in the place of W gives the columns of x themselves: for a convolution, that is im2col.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from espalier.analysis.coupling import Coupling, Indices, Unit, coordinate, positions
from espalier.ir import Node, Value
from espalier.ir.axes import Equation
from espalier.ir.constants import Array
from espalier.ir.terms import Term, Variable, leaves, letters
from espalier.ir.xp import torch as xp
from espalier.ir.zeros import PRODUCTS


@dataclass(frozen=True)
class Read:
    """One node that reads units by a weight: y = x·W, up to what it adds.

    Matrices have the shapes: of the weight (groups, rows, columns), of the operand (samples, groups, columns).
    """

    node: Node
    position: int
    """Which operand the weight is."""
    terms: tuple[Term, ...]
    """The weight's axes as declared."""
    results: tuple[Term, ...]
    groups: tuple[Variable, ...]
    rows: tuple[Variable, ...]
    columns: tuple[Variable, ...]

    @property
    def weight(self) -> Value:
        return self.node.operand(self.position)

    @property
    def factor(self) -> Value:
        """The other operand of the product."""
        return self.node.operand(1 - self.position)

    @property
    def shift(self) -> Value | None:
        """The constant that the node adds to each row, if it adds one."""
        found = self.node.operands[2] if len(self.node.operands) > 2 else None
        return found if found is not None and found.constant is not None else None

    def matrix(self, array: Array) -> Array:
        """The weight in the layout (groups, rows, columns)."""
        wanted, order = self._wanted(), self._order()
        split = array.reshape([_extent(v) for v in order]).transpose([order.index(v) for v in wanted])
        return np.ascontiguousarray(split).reshape([_size(part) for part in self._parts()])

    def unmatrix(self, matrix: Array) -> Array:
        """A matrix (groups, rows, columns) as the weight."""
        wanted, order = self._wanted(), self._order()
        split = matrix.reshape([_extent(v) for v in wanted]).transpose([wanted.index(v) for v in order])
        return np.ascontiguousarray(split).reshape([_size(tuple(letters(term))) for term in self.terms])

    def samples(self, factor: torch.Tensor, chosen: Mapping[Variable, Indices] | None = None) -> torch.Tensor:
        """The columns (samples, groups, columns) of the other operand, by running the node on an identity.

        Of units that count as samples, because the product keeps them, only the chosen indices are given.
        """
        count = _size(self.columns)
        first, *others = self.rows
        extents = {v: _extent(v) for v in self._order()} | {first: count} | dict.fromkeys(others, 1)
        wanted, order = self._wanted(), self._order()
        probe = np.broadcast_to(np.eye(count), (_size(self.groups), count, count)).reshape([extents[v] for v in wanted])
        split = np.ascontiguousarray(probe.transpose([wanted.index(v) for v in order]))
        weight = torch.tensor(split.reshape([_product(extents[v] for v in letters(t)) for t in self.terms]))
        operands = [factor, weight.to(factor)]
        found: torch.Tensor = self.node.op.reference(xp, *(operands if self.position == 1 else operands[::-1]))
        made = [v for term in self.results for v in letters(term)]
        lead = [v for v in made if v not in extents]
        found = found.reshape(self._split(found.shape, extents))
        found = found.permute([made.index(v) for v in (*lead, *self.groups, *self.rows)])
        for axis, letter in enumerate(lead):
            if chosen and any(leaf in chosen for leaf in leaves(letter)):
                found = found.index_select(axis, torch.from_numpy(positions(letter, chosen)))
        return found.reshape(-1, _size(self.groups), count)

    def _split(self, shape: Sequence[int], known: Mapping[Variable, int]) -> list[int]:
        """The extents of the letters of the result, of which each axis has at most one that the weight lacks."""
        found: list[int] = []
        for extent, term in zip(shape, self.results, strict=True):
            own = list(letters(term))
            rest = int(extent) // max(1, _product(known[v] for v in own if v in known))
            found += [known.get(v, rest) for v in own]
        return found

    def along(self, part: Sequence[Variable], chosen: Mapping[Variable, Indices]) -> Indices:
        """Which groups, rows or columns are left once only the chosen indices of units are."""
        found = np.zeros(1, np.int64)
        for letter in part:
            found = (found[:, None] * _extent(letter) + positions(letter, chosen)).reshape(-1)
        return found

    def unit_at(self, part: Sequence[Variable], unit: Unit) -> Indices:
        """For each letter, and each group, row or column, the index of the unit there; −1 where it has none."""
        found = np.meshgrid(*(coordinate(letter, unit.variable) for letter in part), indexing="ij")
        return np.stack([at.reshape(-1) for at in found])

    def _parts(self) -> tuple[tuple[Variable, ...], ...]:
        return self.groups, self.rows, self.columns

    def _wanted(self) -> list[Variable]:
        return [*self.groups, *self.rows, *self.columns]

    def _order(self) -> list[Variable]:
        return [v for term in self.terms for v in letters(term)]


def _extent(letter: Variable) -> int:
    assert isinstance(letter.extent, int)
    return letter.extent


def _product(extents: Iterable[int]) -> int:
    return int(np.prod(list(extents), dtype=np.int64))


def _size(part: Sequence[Variable]) -> int:
    return _product(_extent(letter) for letter in part)


def multiplies_two(node: Node) -> bool:
    """Whether a node sums over products of its first two operands, and of no others (as an einsum of three does)."""
    if not node.op.contracts or node.op.zero not in PRODUCTS or len(node.results) != 1:
        return False
    return len(node.operands) == 2 or not node.op.operands[-1].variadic


def reads(coupling: Coupling) -> Iterator[Read]:
    """The nodes of a graph that are a product of a constant and something computed, in order."""
    for node, equation in coupling.equations.items():
        if multiplies_two(node):
            found = _read(node, equation)
            if found is not None:
                yield found


def _read(node: Node, equation: Equation) -> Read | None:
    constant = [k for k in (0, 1) if node.operand(k).constant is not None]
    if len(constant) != 1 or any(v is not None and v.constant is None for v in node.operands[2:]):
        return None
    position = constant[0]
    terms, other, results = equation.operands[position], equation.operands[1 - position], equation.results[0]
    if terms is None or other is None or results is None:
        return None
    made = {v for term in results for v in letters(term)}
    theirs = {v for term in other for v in letters(term)}
    own = [v for term in terms for v in letters(term)]
    if len(set(own)) < len(own) or any(not isinstance(v.extent, int) for v in own):
        return None
    groups = tuple(v for v in own if v in made and v in theirs)
    rows = tuple(v for v in own if v in made and v not in theirs)
    columns = tuple(v for v in own if v not in made)
    if not rows or not columns:
        return None
    return Read(node, position, tuple(terms), tuple(results), groups, rows, columns)
