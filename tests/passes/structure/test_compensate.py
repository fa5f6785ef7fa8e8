"""What least squares promises: nothing is lost that the rest can say, and without data's word it is plain deletion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir import Builder, Graph, TensorType, constant_value, dims, elements, structural_hash, verify
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.passes import PassManager, parse_spec
from espalier.passes.structure.compensate import compensate
from espalier.passes.structure.reindex import reindex, without
from espalier.train.data import Data
from espalier.train.least_squares import removal_costs

RNG = np.random.default_rng(5)
GROUPS = [1, 2]


def network(groups: int = 1, norm: bool = False, duplicate: bool = False) -> Graph:
    """conv → (norm) → relu → (grouped) conv with bias → mean → linear; channels 1 and 3 may be the same."""
    graph = Graph("network")
    b = Builder(graph)
    first = RNG.normal(size=(8, 3, 3, 3))
    if duplicate:
        first[3] = first[1]
    x = b.conv(graph.add_input(TensorType(elements.F64, (dims.symbol("n"), 3, 10, 10)), "x"), first, pads=(1, 1, 1, 1))
    if norm:
        parts = (RNG.normal(size=8), RNG.normal(size=8), RNG.normal(size=8), RNG.uniform(0.5, 2, 8))
        x = b.batch_norm(x, *parts)
    x = b.relu(x)
    x = b.conv(x, RNG.normal(size=(6, 8 // groups, 3, 3)), RNG.normal(size=6), group=groups)
    x = b.reduce_mean(b.relu(x), np.array([2, 3]), keepdims=0)
    graph.set_outputs([b.matmul(x, RNG.normal(size=(6, 4)))], ["y"])
    return graph


def layer() -> tuple[Graph, Any]:
    """linear → relu → linear, and the weight of the last."""
    graph = Graph("layer")
    b = Builder(graph)
    hidden = b.matmul(graph.add_input(TensorType(elements.F64, (dims.symbol("n"), 5)), "x"), RNG.normal(size=(5, 7)))
    weight = RNG.normal(size=(7, 3))
    graph.set_outputs([b.matmul(b.relu(hidden), weight)], ["y"])
    return graph, weight


def batches(count: int = 3) -> list[list[Any]]:
    return [[RNG.normal(size=(16, 3, 10, 10))] for _ in range(count)]


def first_unit(graph: Graph) -> Any:
    return couple(graph).removable()[0]


def deleted(graph: Graph, removed: dict[str, list[int]]) -> Graph:
    copy = clone(graph)
    coupling = couple(copy)
    units = {unit.name: unit for unit in coupling.units}
    reindex(coupling, {units[name]: without(units[name], gone) for name, gone in removed.items()}, "prune")
    return copy


def compensated(graph: Graph, removed: dict[str, list[int]], data: list[Any], **options: float) -> Graph:
    copy = clone(graph)
    coupling = couple(copy)
    units = {unit.name: unit for unit in coupling.units}
    kept = {units[name]: without(units[name], gone) for name, gone in removed.items()}
    compensate(coupling, kept, data, "prune", **options)
    return copy


def error(graph: Graph, other: Graph, inputs: list[Any]) -> float:
    a, b = execute(graph, inputs)[0], execute(other, inputs)[0]
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_a_copy_of_another_channel_costs_nothing() -> None:
    graph, data = network(duplicate=True), batches()
    unit = first_unit(graph)
    costs = removal_costs(couple(graph), data, damping=1e-9)
    by_name = {found.name: cost for found, cost in costs.items()}[unit.name]
    assert np.argmin(by_name) in (1, 3)  # once it is gone, the other one says what no other says
    small = compensated(graph, {unit.name: [3]}, data, damping=1e-12)
    verify(small, "types")
    assert error(graph, small, batches(1)[0]) < 1e-6
    assert error(graph, deleted(graph, {unit.name: [3]}), batches(1)[0]) > 1e-2


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
def test_making_up_is_better_than_deletion_on_data_not_seen(groups: int, norm: bool) -> None:
    graph = network(groups, norm)
    unit = first_unit(graph)
    removed = {unit.name: list(range(unit.extent // 2))}
    small = compensated(graph, removed, batches())
    verify(small, "types")
    unseen = batches(1)[0]
    assert error(graph, small, unseen) < 0.8 * error(graph, deleted(graph, removed), unseen)


def test_without_a_word_from_the_data_it_is_deletion() -> None:
    graph = network()
    removed = {first_unit(graph).name: [0, 5]}
    data = batches(1)
    bias_only = compensated(graph, removed, data, damping=1e12)
    wanted, found = deleted(graph, removed), bias_only
    weights = [[v.array for v in g.constants() if v.rank == 4] for g in (wanted, found)]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_layer_is_the_least_squares_solution() -> None:
    """One layer, checked against numpy's own solver."""
    graph, weight = layer()
    x = RNG.normal(size=(200, 5))
    small = compensated(graph, {first_unit(graph).name: [2, 4]}, [[x]], damping=1e-12)
    inputs = np.maximum(x @ graph.constants()[0].array, 0)
    kept = np.delete(inputs, [2, 4], axis=1)
    wanted = np.linalg.lstsq(kept, inputs @ weight, rcond=None)[0]
    np.testing.assert_allclose(small.constants()[1].array, wanted, atol=1e-6)


def test_of_channels_that_come_in_pairs_one_of_each_goes() -> None:
    """Each alone costs nothing; once it is gone, its twin costs much."""
    first = RNG.normal(size=(6, 4))
    graph = Graph("pairs")
    b = Builder(graph)
    x = graph.add_input(TensorType(elements.F64, (dims.symbol("n"), 6)), "x")
    hidden = b.relu(b.matmul(x, np.concatenate([first, first[:, ::-1]], axis=1)))
    graph.set_outputs([b.matmul(hidden, RNG.normal(size=(8, 5)))], ["y"])
    data = [RNG.normal(size=(400, 6))]
    (costs,) = removal_costs(couple(graph), [data], damping=1e-9).values()
    cheap = set(np.argsort(costs)[:4].tolist())
    assert all(len(cheap & {k, 7 - k}) == 1 for k in range(4))
    assert np.sort(costs)[3] < 1e-6 * np.sort(costs)[4]
    small = compensated(graph, {first_unit(graph).name: sorted(cheap)}, [data], damping=1e-9)
    assert error(graph, small, data) < 1e-5


def test_costs_in_turn_are_those_of_least_squares() -> None:
    """The error of the best other weights on the data: for the first that goes, and for the first two."""
    graph, weight = layer()
    x = RNG.normal(size=(300, 5))
    (costs,) = removal_costs(couple(graph), [[x]], damping=1e-12).values()
    inputs = np.maximum(x @ graph.constants()[0].array, 0)
    power = float(np.sum((inputs @ weight) ** 2))

    def loss(gone: list[int]) -> float:
        kept = np.delete(inputs, gone, axis=1)
        best = np.linalg.lstsq(kept, inputs @ weight, rcond=None)[0]
        return 0.5 * float(np.sum((inputs @ weight - kept @ best) ** 2)) / power

    order = np.argsort(costs)[:2].tolist()
    np.testing.assert_allclose(costs[order[0]], min(loss([k]) for k in range(7)), rtol=1e-6)
    np.testing.assert_allclose(costs[order[1]], loss(order) - loss(order[:1]), rtol=1e-6)


def test_units_that_a_layer_keeps_are_samples_to_it() -> None:
    """A matrix that mixes places, not channels, as in MLP mixers: channels that go are rows of its inputs that go."""
    graph = Graph("mixer")
    b = Builder(graph)
    x = graph.add_input(TensorType(elements.F64, (dims.symbol("n"), 6, 5)), "x")
    wide = b.matmul(x, RNG.normal(size=(5, 8)))
    mixed = b.matmul(
        b.relu(b.matmul(b.transpose(wide, perm=(0, 2, 1)), RNG.normal(size=(6, 10)))), RNG.normal(size=(10, 6))
    )
    y = b.add(wide, b.transpose(mixed, perm=(0, 2, 1)))
    graph.set_outputs([b.matmul(y, RNG.normal(size=(8, 3)))], ["y"])
    channels, hidden = ({unit.extent: unit for unit in couple(graph).removable()}[extent] for extent in (8, 10))
    removed, data = {channels.name: [0, 3], hidden.name: [1, 7, 8]}, [RNG.normal(size=(64, 6, 5))]
    small = compensated(graph, removed, [data])
    assert error(graph, small, data) < error(graph, deleted(graph, removed), data)


@pytest.mark.parametrize("third", ["constant", "computed"])
def test_in_a_product_of_three_the_weight_only_loses_indices(third: str) -> None:
    """A third factor is nothing that is added."""
    graph = Graph("three")
    b = Builder(graph)
    x = graph.add_input(TensorType(elements.F64, (dims.symbol("n"), 5)), "x")
    factor = b.matmul(x, RNG.normal(size=(5, 3))) if third == "computed" else RNG.normal(size=3)
    hidden = b.relu(b.matmul(x, RNG.normal(size=(5, 7))))
    letters = "ne" if third == "computed" else "e"
    graph.set_outputs([b.einsum(hidden, RNG.normal(size=(7, 3)), factor, subscripts=f"nd,de,{letters}->ne")], ["y"])
    data = Data([RNG.normal(size=(16, 5))], tuple(graph.inputs))
    plain, made = clone(graph), clone(graph)
    PassManager([parse_spec("prune:ratio=0.5")]).run(plain)
    report = PassManager([parse_spec("prune:ratio=0.5,compensate=data")], data=data).run(made)
    assert structural_hash(made) == structural_hash(plain) != structural_hash(graph)
    assert any(row["why"].startswith("what reads it is no product") for row in report.passes[0].details["not_refitted"])
    with pytest.raises(InputError, match="relative has nothing to say"):
        PassManager([parse_spec("prune:ratio=0.5,criterion=relative")], data=data).run(graph)


def test_operators_without_operands_are_no_layers() -> None:
    graph = Graph("noisy")
    b = Builder(graph)
    x = graph.add_input(TensorType(elements.F64, (dims.symbol("n"), 5)), "x")
    hidden = b.relu(b.matmul(x, RNG.normal(size=(5, 8))))
    noise = b.random_normal(shape=(3,), dtype=elements.F64)
    graph.set_outputs([b.add(b.matmul(hidden, RNG.normal(size=(8, 3))), noise)], ["y"])
    data = Data([RNG.normal(size=(16, 5))], tuple(graph.inputs))
    report = PassManager([parse_spec("prune:ratio=0.5,criterion=obspa,compensate=data")], data=data).run(graph)
    assert report.passes[0].details["parameters"] == {"before": 64, "after": 32, "removed": 0.5}


def test_without_data_it_is_refused() -> None:
    graph = network()
    with pytest.raises(InputError, match="data"):
        compensated(graph, {first_unit(graph).name: [0]}, [])


@pytest.mark.parametrize("spec", ["compensate=data", "compensate=noise", "criterion=obspa,compensate=data"])
def test_as_an_option_of_prune(spec: str) -> None:
    graph, data = network(norm=True), batches()

    def pruned(options: str) -> Graph:
        copy = clone(graph)
        PassManager([parse_spec(f"prune:ratio=0.5,{options}")], data=Data(data, tuple(copy.inputs))).run(copy)
        verify(copy, "types")
        return copy

    unseen = batches(1)[0]
    assert error(graph, pruned(spec), unseen) < error(graph, pruned(spec.partition("compensate")[0]), unseen)


@pytest.mark.parametrize("criterion", ["obspa", "activation"])
def test_noise_stands_for_data_that_a_criterion_looks_at(criterion: str) -> None:
    graph, unseen = network(norm=True), batches(1)[0]

    def pruned(seed: int) -> Graph:
        copy = clone(graph)
        spec = parse_spec(f"prune:ratio=0.5,criterion={criterion},compensate=noise")
        PassManager([spec], seed=seed).run(copy)
        return copy

    assert structural_hash(pruned(1)) == structural_hash(pruned(1)) != structural_hash(pruned(2))
    assert error(graph, pruned(1), unseen) < 1
    with pytest.raises(InputError, match="needs data"):
        PassManager([parse_spec(f"prune:ratio=0.5,criterion={criterion}")]).run(clone(graph))


def test_many_rows_are_thinned_out_and_still_say_the_same() -> None:
    graph = network()
    removed = {first_unit(graph).name: [0, 5]}
    data = [[RNG.normal(size=(160, 3, 10, 10))]]  # 16,000 rows of 72 columns
    small = compensated(graph, removed, data)
    parts = compensated(graph, removed, [[data[0][0][k : k + 32]] for k in range(0, 160, 32)])  # 5 × 3,200: all rows
    unseen = batches(1)[0]
    assert error(graph, small, unseen) < 1.05 * error(graph, parts, unseen)


def test_compensation_wants_data_or_noise() -> None:
    with pytest.raises(InputError, match="needs data"):
        PassManager([parse_spec("prune:ratio=0.5,compensate=data")]).run(network())
    with pytest.raises(InputError, match="is none of data, noise"):
        parse_spec("prune:ratio=0.5,compensate=hope")


def test_removal_counts_every_place_of_a_unit_in_pairs() -> None:
    graph = Graph("pairs")
    b = Builder(graph)
    x = b.matmul(graph.add_input(TensorType(elements.F64, (dims.symbol("n"), 5)), "x"), RNG.normal(size=(5, 4)))
    pairs = b.mul(b.unsqueeze(x, np.array([2])), b.unsqueeze(x, np.array([1])))
    weight = RNG.normal(size=(4, 4, 3))
    weight[0, 0] = 0  # but its pairs with the others say something
    graph.set_outputs([b.einsum(pairs, weight, subscripts="bij,ijk->bk")], ["y"])
    coupling = couple(graph)
    (costs,) = removal_costs(coupling, [[RNG.normal(size=(64, 5))]]).values()
    assert costs.shape == (4,)
    assert np.all(costs > 1e-6)


def test_what_two_layers_read_stays_one_weight() -> None:
    graph = Graph("twice")
    b = Builder(graph)
    x = b.matmul(graph.add_input(TensorType(elements.F64, (dims.symbol("n"), 5)), "x"), RNG.normal(size=(5, 8)))
    weight, bias = (constant_value(RNG.normal(size=shape), name="w") for shape in ((8, 8), (8,)))
    for _ in range(2):
        x = b.relu(b.gemm(x, weight, bias))
    graph.set_outputs([b.matmul(x, constant_value(RNG.normal(size=(8, 3)), name="last"))], ["y"])
    unit = first_unit(graph)
    data = [[RNG.normal(size=(64, 5))]]
    small, plain = compensated(graph, {unit.name: [1, 4]}, data), deleted(graph, {unit.name: [1, 4]})
    a, b_ = ([node for node in g if node.op.name == "gemm"] for g in (small, plain))
    assert a[0].operands[1] is a[1].operands[1] and a[0].operands[2] is a[1].operands[2]
    assert np.array_equal(a[0].operand(1).array, b_[0].operand(1).array)
    assert not np.array_equal(small.nodes[-1].operand(1).array, plain.nodes[-1].operand(1).array)  # of one reader


@pytest.mark.parametrize("how", ["data", "noise"])
def test_what_is_not_finite_is_refused_and_named(how: str) -> None:
    graph = Graph("logarithms")
    b = Builder(graph)
    x = b.log(graph.add_input(TensorType(elements.F32, (dims.symbol("n"), 5)), "x"))
    hidden = b.relu(b.matmul(x, RNG.normal(size=(5, 6)).astype(np.float32)))
    graph.set_outputs([b.matmul(hidden, RNG.normal(size=(6, 3)).astype(np.float32))], ["y"])
    data = None
    if how == "data":
        data = Data({"x": RNG.normal(size=(32, 5)).astype(np.float32)}, tuple(graph.inputs))
    with pytest.raises(InputError, match=rf"E223.*on the {how}, what goes into or comes out of mat_?mul"):
        PassManager([parse_spec(f"prune:ratio=0.5,compensate={how}")], "none", data=data).run(graph)
