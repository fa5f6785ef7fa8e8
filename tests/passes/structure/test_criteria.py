"""Each criterion against the same scores computed by hand in torch, on a network with known layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from espalier import load
from espalier.analysis.coupling import couple
from espalier.cost.remaining import Remaining, weights
from espalier.errors import InputError
from espalier.ir import Builder, Graph, constant_value
from espalier.ir.elements import I64
from espalier.ir.types import parse as type_of
from espalier.passes import PassManager, parse_spec
from espalier.passes.structure.criteria import CRITERIA, Criterion, criterion, load_criteria, parse_criterion
from espalier.passes.structure.importance import NORMALISERS, MadeWeights, multiplies, parts_of
from espalier.passes.structure.prune import score_units
from espalier.train.data import Data
from espalier.train.evidence import Need, gather, pieces_of
from espalier.train.weights import looks_learned
from tests.passes.structure.pruning import coupled, data_of, images, net

NEEDS: dict[str, Need] = {
    "activation": "activations", "relative": "contributions", "taylor": "gradients", "obd": "squares",
}  # fmt: skip
LABELS = np.array([0, 1, 2, 3, 0, 1])


def scores(
    name: str, module: nn.Module, labels: np.ndarray | None = LABELS, **options: object
) -> dict[str, np.ndarray]:
    coupling, units = coupled(module, images())
    data = data_of(coupling.graph, images(), labels=labels)
    aggregate, normalise = options.pop("aggregate", "sum"), options.pop("normalise", "none")
    found = score_units(coupling, list(units.values()), parse_criterion(name), aggregate, normalise, data, **options)
    return {unit.name: values for unit, values in found.items()}


def losses(module: nn.Module, labels: np.ndarray | None) -> torch.Tensor:
    """Per sample, as `espalier.train.evidence` says."""
    outputs = module(images())
    if labels is None:
        return 0.5 * (outputs**2).mean(1)
    return nn.functional.cross_entropy(outputs, torch.from_numpy(labels), reduction="none")


def by_index(tensor: torch.Tensor, axis: int = 0) -> torch.Tensor:
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1).sum(1)


def members(module: nn.Module) -> list[tuple[torch.Tensor, int]]:
    """What lets the channels of the first convolution through: rows, columns, and the norm's scale."""
    return [(module.first.weight, 0), (module.norm.weight, 0), (module.second.weight, 1)]


def everything(module: nn.Module) -> list[tuple[torch.Tensor, int]]:
    return [*members(module), (module.first.bias, 0), (module.norm.bias, 0)]


def test_roles_come_from_the_declarations() -> None:
    coupling, units = coupled(net(), images())
    roles = {p.member.value.name: p.role for p in parts_of(coupling, units["first.weight.0"], looks_learned)}
    assert roles == {
        "first.weight": "row", "first.bias": "shift", "norm.weight": "scale", "norm.bias": "shift",
        "second.weight": "column",
    }  # fmt: skip


@pytest.mark.parametrize("p", [1, 2, 3])
def test_magnitude(p: int) -> None:
    module = net()
    wanted = sum(by_index(w.abs() ** p, axis) for w, axis in members(module))
    np.testing.assert_allclose(scores(f"magnitude:p={p}", module)["first.weight.0"], wanted.detach(), rtol=1e-5)


def test_batch_norm_scale() -> None:
    module = net()
    found = scores("batch_norm_scale", module)
    np.testing.assert_allclose(found["first.weight.0"], module.norm.weight.abs().detach(), rtol=1e-6)
    assert "second.weight.0" not in found  # no norm there


def test_lamp() -> None:
    module = net()
    squares = sum(by_index(w**2, axis) for w, axis in members(module)).detach().double().numpy()
    wanted = [s / squares[squares >= s].sum() for s in squares]
    np.testing.assert_allclose(scores("lamp", module)["first.weight.0"], wanted, rtol=1e-5)


def test_fpgm() -> None:
    module = net()
    wanted = np.zeros(6)
    for weight, axis in members(module):
        rows = weight.detach().double().movedim(axis, 0).reshape(6, -1)
        wanted += torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1).numpy()
    np.testing.assert_allclose(scores("fpgm", module)["first.weight.0"], wanted, rtol=1e-5)


@pytest.mark.parametrize("labels", [LABELS, None])
@pytest.mark.parametrize("form", ["", ":multivariable=true"])
def test_taylor(labels: np.ndarray | None, form: str) -> None:
    module = net()
    losses(module, labels).mean().backward()
    products = [(w * w.grad, axis) for w, axis in everything(module)]
    wanted = sum(by_index(p, axis).abs() if form else by_index(p.abs(), axis) for p, axis in products)
    found = scores(f"taylor{form}", module, labels)["first.weight.0"]
    np.testing.assert_allclose(found, wanted.detach(), rtol=1e-4)


class Masked(nn.Module):
    """Scores of which a mask sets some to a number that is not finite."""

    def __init__(self, fill: float, masked: list[bool]) -> None:
        super().__init__()
        self.net, self.fill = net(), fill
        self.register_buffer("masked", torch.tensor(masked))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).masked_fill(self.masked, self.fill)


def test_masked_scores_say_nothing() -> None:
    module = Masked(-np.inf, [True, False, False, True])
    (0.5 * (module.net(images())[:, 1:3] ** 2).sum(1) / 4).mean().backward()
    wanted = sum(by_index((w * w.grad).abs(), axis) for w, axis in everything(module.net))
    found = scores("taylor", module, None)["net.first.weight.0"]
    np.testing.assert_allclose(found, wanted.detach(), rtol=1e-4)


@pytest.mark.parametrize(("fill", "count"), [(np.inf, 1), (np.nan, 1), (-np.inf, 4)])
def test_outputs_that_are_not_finite_are_refused(fill: float, count: int) -> None:
    with pytest.raises(InputError) as caught:
        scores("taylor", Masked(fill, [k < count for k in range(4)]), None)
    assert caught.value.code == "E223"


@pytest.mark.parametrize("labels", [LABELS, None])
def test_obd_squares_the_gradient_of_each_sample(labels: np.ndarray | None) -> None:
    module = net()
    wanted = np.zeros(6)
    each = losses(module, labels)
    for k in range(len(each)):
        module.zero_grad()
        each[k].backward(retain_graph=True)
        wanted += sum(0.5 * by_index((w * w.grad) ** 2, axis) for w, axis in everything(module)).detach().numpy()
    np.testing.assert_allclose(scores("obd", module, labels)["first.weight.0"], wanted / 6, rtol=1e-4)


def test_snip_uses_the_statistics_of_the_batch() -> None:
    module = net().train()
    losses(module, LABELS).mean().backward()
    wanted = sum(by_index((w * w.grad).abs(), axis) for w, axis in everything(module)).detach()
    found = scores("snip", net())["first.weight.0"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    assert not np.allclose(found, scores("taylor", net())["first.weight.0"], rtol=1e-2)


def test_activation_is_what_the_readers_see() -> None:
    module = net()
    x = torch.relu(module.norm(module.first(images())))
    wanted = x.abs().mean((0, 2, 3)).detach()
    np.testing.assert_allclose(scores("activation", module)["first.weight.0"], wanted, rtol=1e-4)


def test_relative_importance_is_the_share_of_each_sum() -> None:
    module = net()
    x = torch.relu(module.norm(module.first(images()))).abs()
    weight = module.second.weight.abs()
    total = nn.functional.conv2d(x, weight, padding=1)
    parts = [nn.functional.conv2d(x[:, k : k + 1], weight[:, k : k + 1], padding=1) for k in range(6)]
    wanted = [float((part / total).mean().detach()) for part in parts]
    found = scores("relative", module)["first.weight.0"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["activation", "relative", "taylor", "obd"])
def test_every_sample_counts_as_much_as_any_other(name: str) -> None:
    """The last piece of 40 samples holds 8."""
    x = images(40) * torch.linspace(0.1, 3, 40)[:, None, None, None]
    coupling, units = coupled(net(), images())
    chosen = list(units.values())

    def found(x: torch.Tensor, samples: int = 0) -> np.ndarray:
        evidence = gather(coupling, data_of(coupling.graph, x), [NEEDS[name]], samples=samples)
        if name in ("taylor", "obd"):
            value = next(v for v in coupling.graph.constants() if v.name == "second.weight")
            return (evidence.gradient if name == "taylor" else evidence.square)(value)
        held = evidence.activations if name == "activation" else evidence.contributions
        return np.concatenate([held[unit] for unit in chosen if unit in held])

    alone = [found(x[k : k + 1]) for k in range(len(x))]
    np.testing.assert_allclose(found(x), np.mean(alone, axis=0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found(x, 35), np.mean(alone[:35], axis=0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found(x, 5), np.mean(alone[:5], axis=0), rtol=1e-4, atol=1e-7)


def test_no_more_samples_are_looked_at_than_were_asked_for() -> None:
    graph = coupled(net(), images())[0].graph
    data = data_of(graph, images(70))
    assert [len(x) for (x,) in pieces_of(graph, data)] == [32, 32, 6]
    assert [len(x) for (x,) in pieces_of(graph, data, 40)] == [32, 8]
    assert [len(x) for (x,) in pieces_of(graph, data, 64)] == [32, 32]
    assert [len(x) for (x,) in pieces_of(graph, data, 5)] == [5]
    small = Data([{"x": images(6).numpy()}] * 3, tuple(graph.inputs))
    assert [len(x) for (x,) in pieces_of(graph, small, 8)] == [6, 2]
    fixed = load(net(), example_inputs=(images(4),))
    data = data_of(fixed, images(12))
    for samples, wanted in ((0, 3), (9, 2), (8, 2), (3, 1)):  # it takes four at once, neither more nor less
        assert [len(x) for (x,) in pieces_of(fixed, data, samples)] == [4] * wanted


def quantized() -> tuple[Graph, np.ndarray]:
    """Two convolutions whose weights are stored as integers, and the float weights of the first."""
    graph, rng = Graph("quantized"), np.random.default_rng(3)
    b = Builder(graph)
    stored, scale = rng.integers(-99, 99, (4, 3, 1, 1)).astype(np.int8), np.array([0.1, 0.001, 0.02, 0.0004], "f4")
    shift = b.dequantize(np.arange(4, dtype=np.int32), scale, axis=0)
    x = b.relu(b.conv(b.input(type_of("f32[n, 3, 4, 4]"), "x"), b.dequantize(stored, scale, axis=0), shift))
    last = b.dequantize(rng.integers(-9, 9, (5, 4, 1, 1)).astype(np.int8), np.float32(0.1))
    graph.set_outputs([b.conv(x, last)], ["y"])
    return graph, stored * scale[:, None, None, None]


@pytest.mark.parametrize("name", ["magnitude", "lamp", "fpgm", "activation"])
def test_quantized_weights_count_as_what_they_stand_for(name: str) -> None:
    graph, weight = quantized()
    coupling = couple(graph)
    (unit,) = coupling.removable()
    data = Data([np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype("f4")], tuple(graph.inputs))
    found = score_units(coupling, [unit], parse_criterion(name), "first", "none", data)[unit]
    if name == "magnitude":
        np.testing.assert_allclose(found, np.square(weight, dtype=float).sum((1, 2, 3)), rtol=1e-5)
    assert set(np.argsort(found)[2:]) == {0, 2}  # though the integers are alike


def test_parameters_are_counted_whether_they_are_quantized_or_not() -> None:
    scales = 2 * 4
    assert Remaining(couple(quantized()[0])).parameters == 12 + 4 + 20 + scales


@pytest.mark.parametrize("place", ["row", "matrix", "flat"])
def test_quantized_weights_that_are_moved_first_are_parameters(place: str) -> None:
    graph, rng = Graph("moved"), np.random.default_rng(4)
    b, stored = Builder(graph), rng.integers(-99, 99, (7, 5)).astype(np.int8)
    x = b.input(type_of("i64[n]" if place == "row" else "f32[n, 5]"), "x")
    if place == "row":
        y = b.dequantize(b.gather(stored, x), np.float32(0.1))
    else:
        moved = b.transpose(stored) if place == "matrix" else b.reshape(stored.reshape(-1), np.array([5, 7]))
        y = b.matmul(x, b.dequantize(moved, np.float32(0.1)))
    graph.set_outputs([y], ["y"])
    assert [value.constant.size for value in weights(graph) if value.constant is not None] == [35]


def made(kind: str) -> Graph:
    """Three numbers to eight and back; what is added between, or what the last layer has, nodes make of constants."""
    graph, rng = Graph(kind), np.random.default_rng(5)
    b = Builder(graph)
    hidden = b.matmul(b.input(type_of("f32[n, 3]"), "x"), rng.normal(size=(3, 8)).astype("f4"))
    stored = constant_value(rng.integers(-9, 9, (4, 8)).astype(np.int8))
    last = b.transpose(rng.normal(size=(4, 8)).astype("f4"))
    if kind == "mask":
        hidden = b.mul(hidden, b.dequantize(np.full((1, 8), -128, np.int8), np.float32(1e4)))
    elif kind == "huge":
        column = rng.normal(size=(8, 1)).astype("f4")
        wide = b.expand(column, np.array([8, 1 << 34]))
        last = b.slice(wide, np.array([0]), np.array([4]), np.array([1]))
    elif kind == "failing":
        table = b.dequantize(b.transpose(stored), np.float32(0.1))
        last = b.gather(table, b.add(np.array([0, 1]), np.array([5, 7])), axis=1)
    elif kind == "tied":
        twice = [b.dequantize(stored, np.float32(0.1)) for _ in range(2)]
        hidden = b.relu(b.matmul(b.matmul(hidden, b.transpose(twice[0])), twice[1]))
    graph.set_outputs([b.matmul(b.relu(hidden), last)], ["y"])
    return graph


@pytest.mark.parametrize("kind", ["mask", "huge", "failing"])
def test_what_is_no_weight_or_can_not_be_computed_is_not_scored(kind: str) -> None:
    coupling = couple(made(kind))
    unit = next(unit for unit in coupling.removable() if unit.extent == 8)
    weight = next(value.array for value in coupling.graph.constants() if value.shape == (3, 8))
    found = score_units(coupling, [unit], parse_criterion("magnitude"), "sum", "none")[unit]
    rows = [np.square(weight, dtype=float).sum(0)]
    if kind == "mask":  # what follows is one, that is moved
        last = next(value.array for value in coupling.graph.constants() if value.shape == (4, 8))
        rows.append(np.square(last, dtype=float).sum(0))
    np.testing.assert_allclose(found, np.sum(rows, 0), rtol=1e-6)


def test_of_weights_made_of_one_source_only_the_first_counts() -> None:
    coupling = couple(made("tied"))
    unit = next(unit for unit in coupling.removable() if unit.extent == 4)
    assert len(parts_of(coupling, unit, looks_learned, MadeWeights(coupling.graph))) == 1


def test_sequences_are_no_weights() -> None:
    graph = Graph("sequence")
    b, rng = Builder(graph), np.random.default_rng(6)
    x = b.relu(b.matmul(b.input(type_of("f32[n, 3]"), "x"), rng.normal(size=(3, 8)).astype("f4")))
    held = b.sequence_construct(rng.normal(size=(8, 4)).astype("f4"), rng.normal(size=(8, 4)).astype("f4"))
    position = b.cast(b.reduce_sum(b.mul(x, np.float32(0)), keepdims=0), to=I64)
    graph.set_outputs([b.matmul(x, rng.normal(size=(8, 4)).astype("f4")), b.sequence_at(held, position)], ["y", "z"])
    assert MadeWeights(graph).values == set()
    assert PassManager([parse_spec("prune:ratio=0.5")]).run(graph).passes[0].details["parameters"]["removed"] > 0.2


def test_random_repeats_by_seed() -> None:
    a, b, c = (scores("random", net(), seed=seed)["first.weight.0"] for seed in (3, 3, 4))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_dead_channel_is_worth_least_and_a_duplicate_little() -> None:
    module = net()
    with torch.no_grad():
        for tensor in (module.first.weight, module.first.bias, module.norm.weight, module.norm.bias):
            tensor[2] = 0
        module.second.weight[:, 2] = 0
        module.norm.running_mean[2] = 0
    for name in ("magnitude", "batch_norm_scale", "taylor", "obd", "activation", "relative", "lamp"):
        found = scores(name, module)["first.weight.0"]
        assert found[2] == 0 and found.argmin() == 2, name
    module = net()
    with torch.no_grad():
        for weight, axis in members(module):
            rows = weight.movedim(axis, 0)
            rows[4] = rows[1]
    pair = set(np.argsort(scores("fpgm", module)["first.weight.0"])[:4])
    assert {1, 4} <= pair


@pytest.mark.parametrize(
    ("aggregate", "form"),
    [
        ("mean", lambda s: s.mean(0)),
        ("max", lambda s: s.max(0)),
        ("prod", lambda s: s.prod(0)),
        ("first", lambda s: s[0]),
    ],
)
def test_aggregation(aggregate: str, form: object) -> None:
    module = net()
    stacked = np.stack([by_index(w**2, axis).detach().numpy() for w, axis in members(module)])
    order = [0, 1, 2]  # first.weight, norm.weight, second.weight: the order of the graph
    np.testing.assert_allclose(
        scores("magnitude", module, aggregate=aggregate)["first.weight.0"], form(stacked[order]), rtol=1e-4
    )


def test_normalisation() -> None:
    plain = scores("magnitude", net())["first.weight.0"]
    for name, form in {"mean": np.mean, "sum": np.sum, "max": np.max, "std": np.std, "median": np.median}.items():
        found = scores("magnitude", net(), normalise=name)["first.weight.0"]
        np.testing.assert_allclose(found, plain / form(plain), rtol=1e-6)
    assert np.array_equal(NORMALISERS["mean"](np.zeros(3)), np.zeros(3))


def test_others_can_add_criteria_and_names_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    load_criteria()

    @criterion("last_is_best")
    class LastIsBest(Criterion):
        """Higher indices are worth more."""

        slope: float = 1.0

        def score(self, scored, aggregate, normalise):
            return self.slope * np.arange(scored.unit.extent, dtype=float)

    try:
        assert scores("last_is_best:slope=2", net())["first.weight.0"].tolist() == [0, 2, 4, 6, 8, 10]
        with pytest.raises(InputError, match="two criteria"):
            criterion("last_is_best")(type("Other", (Criterion,), {"__module__": "elsewhere"}))
    finally:
        del CRITERIA["last_is_best"]
    for text, code in (
        ("taylr", "E202"),
        ("magnitude:q=2", "E203"),
        ("magnitude:p=0", "E203"),
        ("magnitude:p=x", "E203"),
    ):
        with pytest.raises(InputError) as caught:
            parse_criterion(text)
        assert caught.value.code == code


def test_a_fault_in_somebody_elses_criterion_is_named() -> None:
    load_criteria()

    def part(self, part, evidence):
        raise ValueError("no such thing")

    criterion("faulty")(type("Faulty", (Criterion,), {"__module__": __name__, "__doc__": "It fails.", "part": part}))
    try:
        with pytest.raises(InputError, match=r"criterion faulty of the plug-in .*: ValueError: no such") as caught:
            scores("faulty", net())
    finally:
        del CRITERIA["faulty"]
    assert caught.value.code == "E215"


def test_whether_a_table_that_indices_miss_multiplies_is_not_known() -> None:
    graph = Graph()
    build = Builder(graph)
    rows = build.gather(np.ones((1, 4), np.float32), build.input(type_of("i64[3]"), "i"), axis=0)
    graph.set_outputs([build.matmul(build.matmul(rows, np.ones((4, 5), np.float32)), np.ones((5, 2), np.float32))])
    coupling = couple(graph)
    found = {
        (use.node.op.name, multiplies(use))
        for unit in coupling.units
        for member in unit.weights
        for use in coupling.uses(member, unit)
    }
    assert found == {("gather", False), ("matmul", True)}
