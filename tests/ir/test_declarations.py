"""Every operator's axis declaration, checked against what the operator computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from espalier.cost.count import macs, operand_bytes
from espalier.errors import InputError
from espalier.ir import dims, zeros
from espalier.ir.axes import Equation
from espalier.ir.build import Builder
from espalier.ir.dims import Dim
from espalier.ir.elements import from_dtype
from espalier.ir.execute import execute
from espalier.ir.graph import Graph, Node
from espalier.ir.op import OPS, Op, TypeInferenceError
from espalier.ir.terms import Variable
from espalier.ir.types import TensorType, Type
from espalier.ir.xp import numpy as xp
from tests.ir.ops.samples import (
    Array,
    Sample,
    all_leaves,
    binding_with,
    context,
    coordinates,
    draw,
    equation_of,
    extent_with,
    known_contents,
    leaves_of,
    operators_with_axes,
)

OPERATORS = operators_with_axes()


def on_samples(check: Callable[[Sample, np.random.Generator], None]) -> Callable[[str], None]:
    """The check as a test over random samples of each operator with axes."""

    @pytest.mark.parametrize("name", OPERATORS)
    def test(name: str) -> None:
        @settings(max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
        @given(st.integers(0, 2**32 - 1))
        def run(seed: int) -> None:
            check(draw(name, seed), np.random.default_rng(seed))

        with np.errstate(all="ignore"):
            run()

    test.__doc__ = check.__doc__
    return test


def run_sample(sample: Sample) -> list[Array]:
    """The results that are asked for, from the reference."""
    operands = [None if a is None else xp.asarray(a) for a in sample.operands]
    found = sample.op.reference(xp, *operands)
    return list(found if isinstance(found, tuple) else (found,))[: sample.results]


def as_graph(sample: Sample) -> tuple[Graph, Node, list[Array]]:
    """A graph of the one node, and the inputs that are not constants."""
    graph = Graph("sample")
    builder = Builder(graph)
    operands: list[Any] = []
    inputs: list[Array] = []
    for array, known in zip(sample.operands, known_contents(sample), strict=True):
        if array is None or known is not None:
            operands.append(array)
        else:
            operands.append(builder.input(TensorType(from_dtype(array.dtype), array.shape), f"x{len(inputs)}"))
            inputs.append(array)
    node = builder.node(sample.op, operands, results=sample.results)
    graph.set_outputs(node.results)
    return graph, node, inputs


def check_types(sample: Sample, rng: np.random.Generator) -> None:
    """The inferred types are those of the executed results."""
    graph, node, inputs = as_graph(sample)
    for result, array in zip(node.results, execute(graph, inputs), strict=True):
        assert isinstance(array, np.ndarray | np.generic), f"{sample.op} gives {type(array)}"
        assert stored(result.type) == TensorType(from_dtype(array.dtype), array.shape), sample.op
    if sample.op.reshapes:
        np.testing.assert_array_equal(array.reshape(-1), np.reshape(sample.operands[0], -1))


def check_symbolic_types(sample: Sample, rng: np.random.Generator) -> None:
    """The types inferred for symbolic extents become those of the executed results when numbers are put in."""
    equation = equation_of(sample)
    attributes = {leaf for key, held in equation.bound.items() if key in sample.op.defaults for leaf in flat(held)}
    given = [axes for axes in equation.operands if axes is not None]
    given += [flat_terms(held) for key, held in equation.bound.items() if key not in sample.op.defaults]
    usable = {leaf for axes in given for leaf in leaves_of(axes)} - attributes
    chosen = [leaf for leaf in all_leaves(equation) if id(leaf) in usable and leaf.extent != 1 and rng.random() < 0.6]
    symbols = {id(leaf): dims.symbol(f"s{k}") for k, leaf in enumerate(chosen)}
    values = {f"s{k}": leaf.extent for k, leaf in enumerate(chosen)}
    shapes = [
        None if a is None else a.shape if axes is None else tuple(extent_with(axis, symbols) for axis in axes)
        for a, axes in zip(sample.operands, padded(equation, sample), strict=True)
    ]
    contents = known_contents(sample)
    for position, content in bound_contents(sample, equation, symbols).items():
        contents[position] = np.array(content, object).reshape(np.shape(sample.operands[position]))
    inferred = sample.op.infer(context(sample, shapes, contents))
    for type, terms, array in zip(inferred, [*equation.results, *[None] * 9], run_sample(sample), strict=False):
        assert isinstance(type, TensorType)
        assert type.element.storage == from_dtype(array.dtype)
        if type.shape is None:
            assert sample.rank_follows_extents, f"{sample.op} loses the rank of its result"
            continue
        assert len(type.shape) == array.ndim
        for axis, (extent, executed) in enumerate(zip(type.shape, array.shape, strict=True)):
            if not any("unknown" in name for name in dims.symbols(extent)):
                assert dims.substitute(extent, values) == executed, f"{sample.op}: {type} for {shapes}, axis {axis}"
            elif terms is not None:
                assert isinstance(extent, Dim)
                assert not leaves_of([terms[axis]]).isdisjoint(symbols), f"{sample.op} forgets axis {axis}"


def check_deletion(sample: Sample, rng: np.random.Generator) -> None:
    """Deleting an index of a letter deletes it from the results.

    If no result has the letter, that is the same as a zero there where the operator contracts, else it changes nothing.
    """
    equation = equation_of(sample)
    original = run_sample(sample)
    kept = [set() if terms is None else set(leaves_of(terms)) for terms in equation.results]
    statistics = leaves_of(equation.normalized)
    for leaf in all_leaves(equation):
        if leaf.pinned or int(leaf.extent) < 2:
            continue
        before, index = original, int(rng.integers(0, int(leaf.extent)))
        smaller = without(sample, equation, leaf, index)
        after = run_sample(smaller)
        types = smaller.op.infer(context(smaller))
        zeroed = run_sample(with_zeros(sample, equation, leaf, index, range(len(sample.operands))))
        for position, (new, type) in enumerate(zip(after, types, strict=True)):
            terms = equation.results[position]
            # one result may keep a letter that another sums over: attention's present keys, and its output
            lost = sample.op.contracts and id(leaf) not in kept[position] and id(leaf) not in statistics
            old = (zeroed if lost or feeds_back(equation, leaf) else before)[position]
            expected = old if terms is None else cut(old, terms, leaf, index)
            assert stored(type) == TensorType(from_dtype(new.dtype), new.shape), f"{sample.op} without index {index}"
            assert new.shape == expected.shape, f"{sample.op} without index {index} of {leaf.extent}"
            if id(leaf) not in statistics and sample.op.deterministic:
                close(new, expected, f"{sample.op} without index {index} of {leaf.extent}")


def check_zero(sample: Sample, rng: np.random.Generator) -> None:
    """Where the zero rule says that a result is zero, it is."""
    equation = equation_of(sample)
    statistics = leaves_of(equation.normalized)
    for leaf in all_leaves(equation):
        if leaf.pinned or leaf.extent == 0 or id(leaf) in statistics:
            continue
        index = int(rng.integers(0, int(leaf.extent)))
        having = [k for k, axes in enumerate(equation.operands) if id(leaf) in leaves_of(axes)]
        zeroed = [k for k in having if rng.random() < 0.7]
        changed = with_zeros(sample, equation, leaf, index, zeroed)
        states = [(k in zeroed) if k in having else None for k in range(len(sample.operands))]
        if not sample.op.zero_at(context(changed), states):
            continue
        for position, (result, terms) in enumerate(zip(run_sample(changed), equation.results, strict=True)):
            port = sample.op.results[min(position, len(sample.op.results) - 1)]
            if terms is None or id(leaf) not in leaves_of(terms) or (position and not port.variadic):
                continue
            there = marked(result.shape, terms, leaf, index)
            assert not np.any(result[there]), f"{sample.op} is not zero at index {index} for {states}"


def check_counts(sample: Sample, rng: np.random.Generator) -> None:
    """Multiply–accumulates and bytes agree with counts made otherwise."""
    graph, node, inputs = as_graph(sample)
    arrays = [a for a in (*sample.operands, *execute(graph, inputs)) if a is not None]
    bits = [from_dtype(a.dtype).bits * a.size for a in arrays]
    assert operand_bytes(node) == sum(-(-count // 8) for count in bits)
    if not sample.op.contracts:
        assert macs(node) == 0
    else:
        assert macs(node) == (sample.macs if sample.macs is not None else macs_by_running(sample)), sample.op


def check_empty(sample: Sample, rng: np.random.Generator) -> None:
    """Without any index of a letter, types still agree with execution, or the operator refuses such operands."""
    equation = equation_of(sample)
    attributes = {leaf for key, held in equation.bound.items() if key in sample.op.defaults for leaf in flat(held)}
    for leaf in all_leaves(equation):
        if leaf.pinned or int(leaf.extent) < 2 or id(leaf) in attributes:
            continue
        empty = without(sample, equation, leaf, None)
        try:
            types = empty.op.infer(context(empty))
        except TypeInferenceError:
            continue
        for type, array in zip(types, run_sample(empty), strict=True):
            assert stored(type) == TensorType(from_dtype(array.dtype), array.shape), empty.op


test_types = on_samples(check_types)
test_symbolic_types = on_samples(check_symbolic_types)
test_deletion = on_samples(check_deletion)
test_empty = on_samples(check_empty)
test_zero_rules = on_samples(check_zero)
test_counts = on_samples(check_counts)


# ---- helpers ---------------------------------------------------------------------------------------------------


def stored(type: Type) -> Type:
    """The type with the element as which numbers are stored."""
    return TensorType(type.element.storage, type.shape) if isinstance(type, TensorType) else type


def flat_terms(binding: Any) -> list[Any]:
    """The terms of a binding."""
    if isinstance(binding, list | tuple):
        return [term for part in binding for term in flat_terms(part)]
    return [binding]


def flat(binding: Any) -> set[int]:
    """The leaves of a binding, by identity."""
    return leaves_of(flat_terms(binding))


def padded(equation: Equation, sample: Sample) -> list[Any]:
    """The terms of each operand of the sample; None where axes do not describe it."""
    return [*equation.operands, *[None] * len(sample.operands)][: len(sample.operands)]


def bound_contents(sample: Sample, equation: Equation, extents: dict[int, Any]) -> dict[int, Any]:
    """Operand position → what a bound operand holds when leaves have other extents."""
    found = {}
    for key, binding in equation.bound.items():
        if key not in sample.op.defaults:
            position = sample.op.operand_position(key)
            if position < len(sample.operands) and sample.operands[position] is not None:
                found[position] = binding_with(binding, extents)
    return found


def without(sample: Sample, equation: Equation, leaf: Variable, index: int | None) -> Sample:
    """The sample without one index of a leaf (None: without any): operands and what is bound follow."""
    extents = {id(leaf): 0 if index is None else int(leaf.extent) - 1}
    operands = [
        a if a is None or axes is None else cut(a, axes, leaf, index)
        for a, axes in zip(sample.operands, padded(equation, sample), strict=True)
    ]
    for position, content in bound_contents(sample, equation, extents).items():
        old = operands[position]
        assert old is not None
        operands[position] = np.asarray(content, old.dtype).reshape(old.shape)
    attributes = {
        key: binding_with(binding, extents) for key, binding in equation.bound.items() if key in sample.op.defaults
    }
    return Sample(sample.op.replace(**attributes), operands, sample.results, known=sample.known)


def with_zeros(sample: Sample, equation: Equation, leaf: Variable, index: int, positions: Any) -> Sample:
    """The sample with zeros at one index of a leaf, in the operands at the given positions that have it."""
    operands = list(sample.operands)
    for position, axes in enumerate(padded(equation, sample)):
        array = operands[position]
        if position in positions and array is not None and axes is not None and id(leaf) in leaves_of(axes):
            operands[position] = np.where(marked(array.shape, axes, leaf, index), np.zeros((), array.dtype), array)
    return Sample(sample.op, operands, sample.results, known=sample.known)


def feeds_back(equation: Equation, leaf: Variable) -> bool:
    """Whether an operand has the leaf on two axes: then an index acts on all others too, as in recurrent weights."""
    return any(sum(id(leaf) in leaves_of([axis]) for axis in axes or ()) > 1 for axes in equation.operands)


def cut(array: Array, terms: list[Any], leaf: Variable, index: int | None) -> Array:
    """The array without the positions whose coordinate of the leaf is the index (None: is any)."""
    for axis, term in enumerate(terms):
        if id(leaf) in leaves_of([term]):
            there = coordinates(term, leaf)
            array = np.compress(there < 0 if index is None else there != index, array, axis)
    return array


def marked(shape: tuple[int, ...], terms: list[Any], leaf: Variable, index: int) -> Array:
    """Where an array has this coordinate of the leaf."""
    found = np.zeros(shape, bool)
    for axis, term in enumerate(terms):
        if id(leaf) in leaves_of([term]):
            there = coordinates(term, leaf) == index
            found |= there.reshape((-1,) + (1,) * (len(shape) - axis - 1))
    return found


def close(a: Array, b: Array, message: str) -> None:
    """Equal, or for floats equal up to rounding in a different order."""
    if a.dtype.kind in "fc":
        bound = 1e-9 if a.dtype.itemsize >= 8 else 1e-4
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound, equal_nan=True, err_msg=message)
    else:
        np.testing.assert_array_equal(a, b, err_msg=message)


def macs_by_running(sample: Sample) -> int:
    """The number of products that the operator sums: on ones, each adds one (further terms, such as biases, none)."""
    affine = sample.op.zero([True, True, *[False] * max(0, len(sample.operands) - 2)])
    operands = [
        a if a is None or a.dtype.kind in "iu" else np.full_like(a, k < 2 or affine)
        for k, a in enumerate(sample.operands)
    ]
    return round(float(np.sum(run_sample(Sample(sample.op, operands, sample.results, known=sample.known))[0])))


def test_every_operator_with_axes_has_samples() -> None:
    """An operator whose declaration says too little for a sample must have a sampler."""
    missing = []
    for name in OPERATORS:
        try:
            draw(name, 0)
        except LookupError as error:
            missing.append(str(error))
    assert not missing, "\n".join(missing)


def without_statistics(cls: type[Op]) -> Any:
    """The equation of an operator class, as if it computed no statistics and pinned nothing."""
    honest = cls.equation

    def equation(self: Op, ctx: Any) -> Equation | None:
        found = honest(self, ctx)
        if found is not None:
            found.normalized.clear()
            for leaf in all_leaves(found):
                leaf.pinned = None
        return found

    return equation


WRONG: list[tuple[str, str, Any]] = [
    ("conv", "axes", "n (i g) window(P, K), (g o) i K, (g o) -> n (g o) P"),
    ("conv", "axes", "n (g i) window(P, K), (o g) i K, (o g) -> n (o g) P"),
    ("conv", "contracts", False),
    ("group_norm", "axes", "n (c g) X?, (c g), (c g) -> n (c g) X?"),
    ("group_norm", "normalizes", ("c",)),
    ("instance_norm", "normalizes", ()),
    ("sub", "zero", zeros.either),
    ("sub", "zero", zeros.first),
    ("sigmoid", "zero", zeros.passed),
    ("batch_norm", "zero", zeros.first),
    ("reduce_max", "additive", True),
    ("reduce_mean", "additive", True),
    ("reduce_sum", "contracts", False),
    ("matmul", "contracts", False),
    ("softmax", "equation", without_statistics),
    ("layer_norm", "equation", without_statistics),
    ("cum_sum", "equation", without_statistics),
    ("arg_max", "equation", without_statistics),
    ("local_response_norm", "equation", without_statistics),
    ("gather", "equation", without_statistics),
]
CHECKS = (check_types, check_symbolic_types, check_deletion, check_zero, check_counts)


@pytest.mark.parametrize(("name", "fact", "wrong"), WRONG)
def test_wrong_declarations_are_found(name: str, fact: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above fail for declarations that say something else than the operator does."""
    cls = OPS[name]
    monkeypatch.setattr(cls, fact, wrong(cls) if wrong is without_statistics else wrong)

    def check_all() -> None:
        for seed in range(60):
            for check in CHECKS:
                check(draw(name, seed), np.random.default_rng(seed))

    found_out = (AssertionError, TypeInferenceError, InputError, ValueError, IndexError)
    with np.errstate(all="ignore"), pytest.raises(found_out):
        check_all()


def test_the_declared_operators_are_many() -> None:
    """The parametrised tests above would pass over an empty list."""
    assert len(OPERATORS) > 100
    assert set(OPERATORS) <= set(OPS)
