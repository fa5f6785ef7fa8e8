"""Natural scores choose where to grow; expansions keep the function; schedules and trials of candidates use them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir import Graph, structural_hash, verify
from espalier.ir.clone import clone
from espalier.passes.base import Context
from espalier.passes.structure.expansion import Expand, add_indices, expansions
from espalier.train.data import Data
from espalier.train.growth import (
    Policy,
    features,
    gains,
    grow_while_training,
    inherit,
    layers,
    natural_score,
    parameters,
    try_expansions,
)
from espalier.train.loops import Run
from espalier.train.module import to_torch
from espalier.train.recover import recover
from tests.analysis.networks import NETWORKS, loaded
from tests.passes.structure.growing import apart, family


class Net(nn.Module):
    """A narrow net, of which the second layer is the bottleneck."""

    def __init__(self, middle: int = 2) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b, self.head = nn.Conv2d(8, middle, 3), nn.Conv2d(middle, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))


def objective(module: object, inputs: object, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(module(*inputs)[0], labels)


def data(count: int = 48, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 7, 7, generator=generator).double()
    teacher = torch.randn(5, 98, generator=torch.Generator().manual_seed(0)).double()
    return x, (x.flatten(1) @ teacher.T).argmax(1)


def net() -> Graph:
    torch.manual_seed(0)
    return espalier.load(
        Net().double().eval(), example_inputs=(data()[0][:2],), dynamic_shapes=({0: torch.export.Dim("n")},)
    )


def batches() -> list:
    x, y = data()
    return [((x[:24],), y[:24]), ((x[24:],), y[24:])]


@pytest.mark.parametrize("name", NETWORKS)
def test_expansions_keep_the_function(name: str) -> None:
    graph, inputs, _ = loaded(name)
    found = expansions(graph, count=3)
    for expansion in found:
        grown = clone(graph)
        expansion.apply(grown)
        verify(grown, "types")
        assert apart(graph, grown, inputs) <= 1e-12, expansion.name
        assert structural_hash(grown) != structural_hash(graph)


def test_a_family_gets_indices_everywhere() -> None:
    graph, inputs = family("resnet_basic")
    grown = clone(graph)
    for unit in couple(graph).removable():
        add_indices(grown, unit.name, 2, 3)
    assert apart(graph, grown, inputs) <= 1e-12
    assert parameters(grown) > parameters(graph)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_layers_that_are_no_one_matrix_have_no_score(groups: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(200, 5)
    )
    graph = espalier.load(module.double().eval(), example_inputs=(data()[0][:48],))
    names = [layer.name for layer in layers(graph)]
    assert names == ["0.weight", *(["2.weight"] if groups == 1 else []), "5.weight"]
    x, y = data()
    found = gains(graph, expansions(graph, count=2), [((x,), y)], objective)
    wider = [gain.gain for gain in found if "+" in gain.name]
    assert wider and min(wider) >= 0


def test_the_score_of_a_linear_layer_is_the_formula() -> None:
    """tr(A⁻¹ Gᵀ B⁻¹ G) by hand, for a convolution by torch's own patches."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1).double()
    x = torch.randn(6, 2, 7, 7).double()
    graph = espalier.load(conv, example_inputs=(x,))
    (layer,) = layers(graph)
    patches = nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 18)
    a = torch.cat([patches, torch.ones(len(patches), 1)], 1)
    torch.testing.assert_close(features(layer, x, (4, 2, 3, 3)), a)
    score = natural_score(graph, [((x,), None)], lambda m, i, _: m(*i)[0].square().mean((1, 2, 3)).mean(), damping=0.1)
    y = conv(x).detach()
    d = (2 * y / y[0].numel()).movedim(1, -1).reshape(-1, 4)
    aa, bb, g = a.T @ a / 6, d.T @ d / len(d), d.T @ a / 6
    aa, bb = (m + 0.1 * m.diagonal().mean() * torch.eye(len(m)) for m in (aa, bb))
    wanted = torch.trace(torch.linalg.inv(aa) @ g.T @ torch.linalg.inv(bb) @ g)
    assert score.total == pytest.approx(float(wanted), rel=1e-7)


def test_gains_are_those_of_the_schur_complement_and_never_negative() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(40, 6).double(), torch.randint(3, (40,))
    graph = espalier.load(module, example_inputs=(x,))
    given, (unit,) = [((x,), y)], couple(graph).removable()
    grown = clone(graph)
    add_indices(grown, unit.name, 2, 1)
    before = natural_score(graph, given, objective)
    after = natural_score(grown, given, objective, like=before)
    (last_a, last_b) = list(before.damping.values())[-1]
    weights = {v.name: v.array for v in grown.constants() if v.array.ndim == 2}
    (first,) = [torch.from_numpy(w.copy()) for n, w in weights.items() if n.startswith("0.weight")]
    (bias,) = [torch.from_numpy(v.array.copy()) for v in grown.constants() if v.array.shape == (7,)]
    first = first if first.shape == (7, 6) else first.T
    h = torch.tanh(x @ first.T + bias)
    probabilities = (h[:, :5] @ module[2].weight.detach().T + module[2].bias.detach()).softmax(1)
    d = probabilities - nn.functional.one_hot(y, 3)
    old, new = torch.cat([h[:, :5]], 1), h[:, 5:]
    if next(layer for layer in layers(graph)[-1:]).biased:
        old = torch.cat([old, torch.ones(40, 1)], 1)
    a_oo = old.T @ old / 40 + last_a * torch.eye(old.shape[1])
    a_no, a_nn = new.T @ old / 40, new.T @ new / 40 + last_a * torch.eye(2)
    b = d.T @ d / 40 + last_b * torch.eye(3)
    schur = a_nn - a_no @ torch.linalg.solve(a_oo, a_no.T)
    r = d.T @ new / 40 - d.T @ old / 40 @ torch.linalg.solve(a_oo, a_no.T)
    gain = torch.trace(torch.linalg.solve(schur, r.T) @ torch.linalg.solve(b, r))
    assert after.total - before.total == pytest.approx(float(gain), rel=1e-6)
    for gain in gains(net(), expansions(net(), tries=2), batches(), objective):
        assert gain.gain >= -1e-9 * gain.before, gain


def test_the_pass_takes_the_best_and_keeps_the_function() -> None:
    graph, (x, y) = net(), data()
    given = Data({graph.inputs[0].name: x.numpy(), "labels": y.numpy()}, tuple(graph.inputs))
    grown = clone(graph)
    assert Expand(steps=2, count=2).run(grown, Context(data=given)) == 2
    verify(grown, "types")
    assert apart(graph, grown, [x.numpy()]) <= 1e-12
    assert parameters(grown) > parameters(graph)
    single = clone(graph)
    Expand(count=2, tries=1).run(single, Context(data=given))
    found = gains(graph, expansions(graph, count=2), batches(), objective)
    best = max(found, key=lambda gain: gain.gain)
    assert natural_score(single, batches(), objective).total > natural_score(graph, batches(), objective).total
    assert best.gain > 0
    high, context = clone(graph), Context(data=given)
    assert Expand(threshold=1e6).run(high, context) == 0
    assert "is best, but raises the score" in next(iter(context.reasons))
    assert structural_hash(high) == structural_hash(graph)


@pytest.mark.parametrize("options", [{"steps": 0}, {"count": 0}, {"tries": 0}, {"damping": 0.0}, {"threshold": 0.5}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Expand(**options)


def test_data_and_labels_are_needed() -> None:
    graph = net()
    with pytest.raises(InputError, match="needs data"):
        Expand().run(graph, Context())
    given = Data({graph.inputs[0].name: data()[0].numpy()}, tuple(graph.inputs))
    with pytest.raises(InputError, match="needs labels"):
        Expand().run(graph, Context(data=given))
    with pytest.raises(InputError, match="damping"):
        natural_score(graph, batches(), objective, damping=0)
    with pytest.raises(InputError, match="need data"):
        natural_score(graph, [], objective)
    with pytest.raises(InputError, match="no unit"):
        add_indices(graph, "nothing", 1)


class Decided(nn.Module):
    """With its softmax in the model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).softmax(-1)


def test_one_hot_labels_and_a_last_softmax_say_the_same() -> None:
    """The same expansions from the same scores, whichever way classes are written down."""
    torch.manual_seed(0)
    module, (x, y) = Net().double().eval(), data()
    shapes = ({0: torch.export.Dim("n")},)
    plain, decided = (
        espalier.load(each, example_inputs=(x[:2],), dynamic_shapes=shapes) for each in (module, Decided(module))
    )
    one_hot = nn.functional.one_hot(y, 5).numpy()
    reasons = []
    for graph, labels in ((plain, y.numpy()), (plain, one_hot), (plain, one_hot.astype("f4")), (decided, y.numpy())):
        context = Context(data=Data({graph.inputs[0].name: x.numpy(), "labels": labels}, tuple(graph.inputs)))
        assert Expand(threshold=1e6, count=2, tries=1, deeper=False).run(graph, context) == 0
        reasons.append(next(iter(context.reasons)).replace("net.", ""))
    assert len(set(reasons)) == 1


@pytest.mark.parametrize(
    "labels", [np.arange(48) + 90, np.full(48, -1), np.full(48, 0.4), np.zeros((48, 5)), np.zeros(4)]
)
def test_labels_that_do_not_fit(labels: np.ndarray) -> None:
    graph = net()
    given = Data({graph.inputs[0].name: data()[0].numpy(), "labels": labels}, tuple(graph.inputs))
    with pytest.raises(InputError) as caught:
        Expand(tries=1).run(graph, Context(data=given))
    assert caught.value.code == "E206"


def train(graph: Graph, steps: int = 30) -> Graph:
    x, y = data()
    module = to_torch(clone(graph)).train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(module, (x,), y).backward()
        optimizer.step()
    return module.write_back()


def loss(graph: Graph) -> float:
    with torch.no_grad():
        return float(objective(to_torch(graph), (data()[0],), data()[1]))


def test_growing_while_training() -> None:
    def ways(graph: Graph, number: int) -> list:
        return expansions(graph, count=2, seed=number)

    limit = parameters(net()) + 600
    policy = Policy(threshold=1.0, cooldown=1, parameters=limit)
    grown, history = grow_while_training(net(), 5, lambda g, k: train(g), ways, batches(), objective, policy)
    made = [each.number for each in history if each.expansion]
    assert made
    assert all(b - a > policy.cooldown for a, b in itertools.pairwise(made))
    assert 4 not in made  # what is added last would never learn
    assert parameters(net()) < parameters(grown) <= limit
    assert all(each.after > each.before for each in history if each.expansion)
    alone, nothing = grow_while_training(
        net(), 5, lambda g, k: train(g), ways, batches(), objective, Policy(expansions=0)
    )
    assert not any(each.expansion for each in nothing)
    assert loss(grown) < loss(alone)
    with pytest.raises(InputError):
        Policy(threshold=0.9)


def test_a_schedule_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Its training has checkpoints; all else follows from the seeds."""
    x, y = data()
    trained: list[int] = []

    def ways(graph: Graph, number: int) -> list:
        return expansions(graph, count=2, seed=number)

    def once(folder: Path | None, stop: int = 99) -> tuple[Graph, list]:
        def learn(graph: Graph, number: int) -> Graph:
            def watch(run: Run) -> None:
                trained.append(number)
                if (number, run.step) == (stop, 5):
                    raise KeyboardInterrupt

            place = None if folder is None else folder / str(number)
            return recover(
                graph, None, {graph.inputs[0].name: x.numpy(), "labels": y.numpy()}, steps=8, batch_size=16,
                learning_rate=0.05, hooks=[watch], checkpoint=place, every_steps=2, progress=False,
            )  # fmt: skip

        return grow_while_training(net(), 4, learn, ways, batches(), objective, Policy(threshold=1.0, cooldown=0))

    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            once(tmp_path, stop)
    before = len(trained)
    (grown, history), (whole, wanted) = once(tmp_path), once(None)
    assert structural_hash(grown) == structural_hash(whole) and history == wanted
    assert any(each.expansion for each in history)
    assert trained[before : before + 12] == [2] * 4 + [3] * 8  # what was done is read


def test_trials_keep_the_best_candidate() -> None:
    graph = train(net(), 20)
    ways = expansions(graph, count=6)
    found = try_expansions(graph, ways, train, loss)
    assert found.losses[found.name] == min(found.losses.values())
    assert set(found.losses) == {"", *(way.name for way in ways)}
    assert loss(found.graph) == pytest.approx(found.losses[found.name])
    broken = float("nan")
    with pytest.raises(InputError, match="no candidate"):
        try_expansions(graph, ways[:1], train, lambda graph: broken)


def test_momentum_one_inherits_everything() -> None:
    graph, x = net(), data()[0].numpy()
    assert structural_hash(inherit(graph, 1.0)) == structural_hash(graph)
    half, none = inherit(graph, 0.5, 3), inherit(graph, 0.0, 3)
    assert apart(graph, inherit(graph, 0.999), [x]) < 0.1
    held = [{v.name: v.array for v in g.constants()} for g in (graph, half, none)]
    for name, array in held[0].items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(held[1][name], (array + held[2][name]) / 2, atol=1e-12)
            same = np.array_equal(array, held[2][name])
            assert same == (array.ndim < 2)
    with pytest.raises(InputError, match="momentum"):
        inherit(graph, 1.5)
