"""Unification of axis terms: what it says of random chains of movements is what the movements do."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.ir import dims
from espalier.ir.ops import Concat, Expand, Flatten, Reshape, Slice, Split, Squeeze, Tile, Transpose
from espalier.ir.terms import (
    Product,
    Sum,
    Term,
    Variable,
    leaves,
    pin,
    product,
    resolve,
    segments,
    split,
    squared,
    unify,
)
from espalier.ir.xp import numpy as xp
from tests.ir.ops.samples import Sample, coordinates, equation_of, leaves_of


class Tensor:
    """Values, the axis terms that describe them, and which values came from the marked index."""

    def __init__(self, array: Any, terms: list[Term]) -> None:
        self.array, self.terms = array, terms


def apply(sample: Sample, *tensors: Tensor) -> list[Tensor]:
    """Run an operator on tensors, and unify its terms with theirs."""
    equation = equation_of(sample)
    for tensor, axes in zip(tensors, equation.operands, strict=False):
        assert axes is not None
        for mine, theirs in zip(tensor.terms, axes, strict=True):
            unify(mine, theirs)
    found = sample.op.reference(xp, *sample.operands)
    arrays = found if isinstance(found, tuple) else (found,)
    results = [axes for axes in equation.results if axes is not None]
    return [Tensor(array, axes) for array, axes in zip(arrays, results, strict=False)]


def divisors(size: int) -> list[int]:
    return [d for d in range(1, size + 1) if size % d == 0]


def random_movement(rng: np.random.Generator, x: Tensor) -> Tensor:
    """One random movement of a tensor, or of several made from it."""
    shape = x.array.shape
    kind = int(rng.integers(8))
    axis = int(rng.integers(len(shape)))
    if kind == 0:
        return apply(Sample(Transpose(perm=tuple(rng.permutation(len(shape)).tolist())), [x.array]), x)[0]
    if kind in (1, 2):  # cut an axis into factors, or join two neighbours
        factor = int(rng.choice(divisors(shape[axis])))
        target = [*shape[:axis], factor, shape[axis] // factor, *shape[axis + 1 :]]
        if kind == 2 and axis + 1 < len(shape):
            target = [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]
        return apply(Sample(Reshape(), [x.array, np.array(target)]), x)[0]
    if kind == 3:  # any other shape of the same size
        first = int(rng.choice(divisors(x.array.size)))
        return apply(Sample(Reshape(), [x.array, np.array([first, x.array.size // first])]), x)[0]
    if kind == 4:
        return apply(Sample(Flatten(axis=axis), [x.array]), x)[0]
    cut = int(rng.integers(1, shape[axis])) if shape[axis] > 1 else 0
    if not cut:
        return x
    if kind == 5:
        start, stop = np.array([cut]), np.array([shape[axis]])
        return apply(Sample(Slice(), [x.array, start, stop, np.array([axis])]), x)[0]
    halves = apply(Sample(Split(axis=axis), [x.array, np.array([cut, shape[axis] - cut])], 2), x)
    if kind == 6:
        halves = halves[::-1]
    return apply(Sample(Concat(axis=axis), [half.array for half in halves]), *halves)[0]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_random_movements(seed: int, length: int) -> None:
    """An index of an unpinned coordinate is at the same places in the result, by terms and by execution."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(rng.choice([1, 2, 3, 4, 6, 8])) for _ in range(int(rng.integers(1, 4))))
    first = Tensor(np.arange(int(np.prod(shape))).reshape(shape), [Variable(extent) for extent in shape])
    last = first
    for _ in range(length):
        last = random_movement(rng, last)
    assert [int(term.extent) for term in last.terms] == list(last.array.shape)
    for leaf in {id(leaf): leaf for term in first.terms for leaf in leaves(term)}.values():
        if leaf.pinned or leaf.extent == 1:
            continue
        index = int(rng.integers(0, int(leaf.extent)))
        taken = first.array[places(first, leaf, index)]
        np.testing.assert_array_equal(np.isin(last.array, taken), places(last, leaf, index))


def places(tensor: Tensor, leaf: Variable, index: int) -> Any:
    """Where, by its terms, a tensor has this coordinate."""
    found = np.zeros(tensor.array.shape, bool)
    for axis, term in enumerate(tensor.terms):
        if id(leaf) in leaves_of([term]):
            there = coordinates(term, leaf) == index
            found |= there.reshape((-1,) + (1,) * (found.ndim - axis - 1))
    return found


def test_heads_of_attention() -> None:
    """A projection's axis that is split into heads is a product; either factor stays free."""
    projected, heads, depth = Variable(64), Variable(8), Variable(8)
    unify(projected, product(heads, depth))
    assert list(leaves(projected)) == [heads, depth]
    assert heads.pinned is None
    assert depth.pinned is None


def test_coprime_factors_are_pinned() -> None:
    a, b, c, d = Variable(4), Variable(9), Variable(6), Variable(6)
    unify(product(a, b), product(c, d))
    assert any(leaf.pinned == "it is divided in two ways that do not align" for leaf in leaves(product(a, b)))
    e, f = Variable(5), Variable(7)
    unify(product(e, f), product(Variable(7), Variable(5)))
    assert {leaf.pinned for leaf in (e, f)} == {"it is divided in two ways that do not align"}


def test_common_factors_stay_free() -> None:
    """(4·6) against (8·3): minor ends share 3, major ends share 4; 2 is common to what is left."""
    a, b = Variable(4), Variable(6)
    unify(product(a, b), product(Variable(8), Variable(3)))
    assert [leaf.extent for leaf in leaves(product(a, b))] == [4, 2, 3]
    assert all(leaf.pinned is None for leaf in leaves(product(a, b)))


def test_segments_are_cut_where_either_ends() -> None:
    a, b, whole = Variable(3), Variable(5), Variable(8)
    unify(segments(a, b), whole)
    c, d = Variable(4), Variable(4)
    unify(segments(c, d), whole)
    assert [leaf.extent for leaf in leaves(whole)] == [3, 1, 4]
    left, right = [*leaves(a), *leaves(b)], [*leaves(c), *leaves(d)]
    assert [leaf.extent for leaf in left] == [leaf.extent for leaf in right] == [3, 1, 4]
    assert all(x is y for x, y in zip(left, right, strict=True) if x.extent != 1)  # one index alone is never removed


def test_a_cut_through_a_product_isolates_one_step() -> None:
    major, minor = Variable(3), Variable(4)
    first, second = split(product(major, minor), 6)
    assert (first.extent, second.extent) == (6, 6)
    assert sorted(int(leaf.extent) for leaf in {id(x): x for x in leaves(first)}.values()) == [1, 2, 4] or [
        int(leaf.extent) for leaf in leaves(major)
    ] == [1, 1, 1]


def test_what_stands_in_two_factors_is_squared_what_stands_in_two_segments_is_not() -> None:
    a, b, c = Variable(3), Variable(4), Variable(5)
    linked = Variable(3)
    unify(linked, a)
    assert squared(Product((a, b, c))) == squared(Sum((a, b, a))) == squared(a) == set()
    assert squared(Product((a, b, linked))) == {a}
    assert squared(Sum((c, Product((Sum((a, c)), Sum((b, linked))))))) == {a}
    chain: Term = a
    for _ in range(5000):
        chain = Sum((chain, a))
    assert squared(chain) == set()


def test_pinned_leaves_pin_what_meets_them() -> None:
    a, b, c = Variable(6, "a graph input"), Variable(2), Variable(3)
    unify(product(b, c), a)
    assert b.pinned == c.pinned == "a graph input"
    d = Variable(6)
    unify(d, a)
    assert resolve(d).pinned == "a graph input"  # type: ignore[union-attr]
    pin(d, "another reason")
    assert resolve(d).pinned == "a graph input"  # type: ignore[union-attr]


def test_different_extents_are_pinned() -> None:
    a, b = Variable(dims.symbol("n")), Variable(dims.symbol("m"))
    unify(a, b)
    assert a.pinned == b.pinned == "its extents are not known to agree"


def test_symbolic_factors() -> None:
    n = dims.symbol("n")
    batch, time, channels = Variable(n), Variable(4), Variable(6)
    joined = Variable(n * 4)
    unify(product(joined, Variable(6)), product(batch, time, channels))
    assert list(leaves(joined)) == [resolve(batch), resolve(time)]
    assert channels.pinned is None


def test_empty_and_unit_terms_vanish() -> None:
    a = Variable(3)
    assert product(Variable(1), a) is a
    assert segments(a, Variable(0)) is a
    assert product().extent == 1
    assert isinstance(product(), Product)
    assert segments().extent == 0
    assert isinstance(segments(), Sum)


def test_broadcasting_movements_mark_every_copy() -> None:
    x = Tensor(np.arange(3).reshape(1, 3), [Variable(1), Variable(3)])
    wide = apply(Sample(Expand(), [x.array, np.array([4, 3])]), x)[0]
    tiled = apply(Sample(Tile(), [wide.array, np.array([1, 2])]), wide)[0]
    narrow = apply(Sample(Squeeze(), [x.array, np.array([0])]), x)[0]
    leaf = resolve(x.terms[1])
    assert isinstance(leaf, Variable)
    for tensor in (wide, tiled, narrow):
        np.testing.assert_array_equal(places(tensor, leaf, 1), tensor.array == 1)
