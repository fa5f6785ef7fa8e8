"""Masks and penalties in training loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier.errors import InputError
from espalier.ir import Graph, structural_hash
from espalier.passes.base import parse_spec
from espalier.passes.manager import PassManager
from espalier.passes.pipelines import CLEANING
from espalier.train.hooks import Hook
from espalier.train.loops import Run
from espalier.train.module import to_torch
from espalier.train.recover import recover
from espalier.train.sparse import GradualMasks, GroupPenalty
from tests.passes.structure.pruning import graph_of, images, net

TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
LABELLED = {"x": images().numpy(), "labels": TARGETS.numpy()}


def train(module: torch.nn.Module, steps: int, rate: float = 0.05, after=lambda: None, before=lambda: None) -> float:
    optimiser = torch.optim.SGD(module.parameters(), rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(images())[0], TARGETS)
        loss.backward()
        before()
        optimiser.step()
        after()
    return float(loss.detach())


def test_masks_tighten_along_the_schedule_and_hold() -> None:
    module = to_torch(graph_of(net(), images()))
    masks = GradualMasks(0.8, 8, every=2)
    masks.bind(module)
    shares = []

    def step() -> None:
        masks.step()
        shares.append(masks.ratio)
        for value in masks.masks:
            zeros = int((module.read(value) == 0).sum())
            assert zeros >= int(masks.ratio * module.read(value).numel())

    train(module, 12, after=step)
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 0.8 and len(set(shares)) == 5
    graph = module.write_back()
    sparse = [v for v in graph.constants() if v.array.ndim > 1]
    assert all(np.sum(v.array == 0) == int(0.8 * v.array.size) for v in sparse)


@pytest.mark.filterwarnings("ignore:extents that are no multiples")
def test_masks_by_pattern() -> None:
    module = to_torch(graph_of(net(channels=8, features=8), images()))
    masks = GradualMasks("2:4", 1)
    masks.bind(module)
    train(module, 3, after=masks.step)
    found = {value.name: module.read(value).detach() for value in masks.masks}
    assert ((found["second.weight"] != 0).reshape(8, 2, 4, 9).sum(2) == 2).all()
    assert (found["first.weight"] != 0).all()  # 3 channels are no multiple of 4


def test_the_penalty_adds_its_definition_to_the_gradients() -> None:
    graph = graph_of(net(), images())
    module = to_torch(graph)
    penalty = GroupPenalty(0.01, base=16.0)
    penalty.bind(module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalty.term().backward()
    source = net()
    rows = [source.first.weight, source.first.bias, source.norm.weight, source.norm.bias]
    rows.append(source.second.weight.movedim(1, 0))
    squares = sum((w.detach() ** 2).reshape(6, -1).sum(1) for w in rows)
    s = squares.sqrt()
    gamma = 16.0 ** ((s.max() - s) / (s.max() - s.min()))
    values = {value.name: value for value in module.weights if value.constant is not None}
    gradient = module.parameter_of(values["first.weight"]).grad
    torch.testing.assert_close(gradient, 0.01 * gamma[:, None, None, None] * source.first.weight.detach())
    gradient = module.parameter_of(values["first.bias"]).grad
    torch.testing.assert_close(gradient, 0.01 * gamma * source.first.bias.detach())
    statistics = {"norm.running_mean", "norm.running_var"}
    assert all(module.parameter_of(values[name]) is None for name in statistics & values.keys())


def test_the_penalty_parts_the_weak_from_the_strong() -> None:
    graph = graph_of(net(), images())
    module = to_torch(graph)
    penalty = GroupPenalty(0.02, only=["first.weight.0"])
    penalty.bind(module)
    (unit,) = penalty.members
    before = penalty.norms(unit)
    recover(graph, None, LABELLED, steps=60, batch_size=6, hooks=[penalty])
    (unit,) = penalty.members  # of the module that was trained
    after = penalty.norms(unit)
    weakest, strongest = int(before.argmin()), int(before.argmax())
    assert after[weakest] / before[weakest] < 0.5 * after[strongest] / before[strongest]


def test_the_penalty_refuses_units_that_are_not_there() -> None:
    with pytest.raises(InputError, match="no unit is called 'third'"):
        GroupPenalty(only=["third"]).bind(to_torch(graph_of(net(), images())))


class Stop(Exception):
    """A kill, for tests within one process."""


class StopAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def identity(self) -> dict[str, Any]:
        return {}

    def after_update(self, run: Run) -> None:
        if run.step == self.step:
            raise Stop


def zeros(graph: Graph) -> dict[str, float]:
    return {value.name: float((value.array == 0).mean()) for value in graph.constants() if value.array.ndim > 1}


@pytest.mark.filterwarnings("ignore:extents that are no multiples")
@pytest.mark.parametrize(("sparsity", "share"), [(0.6, 0.6), ("0.25", 0.25), ("1:4", 0.75), ("2:4", 0.5)])
def test_recovered_models_are_as_sparse_as_asked_for(sparsity: float | str, share: float) -> None:
    graph = graph_of(net(channels=8, features=8), images())
    found = zeros(recover(graph, None, LABELLED, steps=24, batch_size=6, sparsity=sparsity))
    if isinstance(sparsity, str) and ":" in sparsity:
        assert found.pop("first.weight") == 0  # 3 channels are no multiple of 4
    for name, ratio in found.items():
        assert ratio == pytest.approx(share, abs=0.05), name


def test_zeros_are_kept_if_that_is_asked_for() -> None:
    graph = graph_of(net(), images())
    sparse = recover(graph, None, LABELLED, steps=1, batch_size=6, hooks=[GradualMasks(0.5, 1)])
    before = {v.name: v.array != 0 for v in sparse.constants() if v.array.ndim > 1}
    kept, free = (recover(sparse, None, LABELLED, steps=5, batch_size=6, sparsity=s) for s in ("keep", None))
    for value in kept.constants():
        if value.array.ndim > 1:
            np.testing.assert_array_equal(value.array != 0, before[value.name])
    assert max(zeros(free).values()) < 0.1 < min(zeros(kept).values())


@pytest.mark.filterwarnings("ignore:extents that are no multiples")
@pytest.mark.parametrize("sparsity", ["0.6", "2:4", "keep"])
def test_masks_go_on_after_a_kill(sparsity: str, tmp_path: Path) -> None:
    graph = graph_of(net(channels=8, features=8), images())
    if sparsity == "keep":
        graph = recover(graph, None, LABELLED, steps=1, batch_size=6, sparsity=0.5)

    def once(folder: Path | None, stop: int = 0) -> Graph:
        hooks = [StopAt(stop)]
        return recover(
            graph, None, LABELLED, steps=21, batch_size=6, hooks=hooks, sparsity=sparsity, checkpoint=folder,
            every_steps=2,
        )  # fmt: skip

    whole = once(None)
    for stop in (3, 12, 20):
        with pytest.raises(Stop):
            once(tmp_path, stop)
    assert structural_hash(once(tmp_path)) == structural_hash(whole)
    with pytest.raises(InputError, match="E232"):
        recover(graph, None, LABELLED, steps=21, batch_size=6, hooks=[StopAt(0)], checkpoint=tmp_path)


@pytest.mark.parametrize("sparsity", ["much", 1.0, -0.1, "4:2", "nan", (2, 4)])
def test_other_sparsities_are_refused(sparsity: float | str) -> None:
    with pytest.raises(InputError, match="E201"):
        recover(graph_of(net(), images()), None, LABELLED, steps=2, batch_size=6, sparsity=sparsity)


def test_a_hook_serves_several_runs() -> None:
    graph, hook = graph_of(net(), images()), GradualMasks(0.5)
    first, second = (recover(graph, None, LABELLED, steps=8, batch_size=6, hooks=[hook]) for _ in range(2))
    assert structural_hash(first) == structural_hash(second)


class Tokens(torch.nn.Module):
    """Layers on tokens, whose weights stand transposed in the graph, and an embedding that is tied to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = torch.nn.Embedding(24, 8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(self.embedding(x))) @ self.embedding.weight.T


@pytest.mark.parametrize("sparsity", [0.5, "2:4", "keep"])
def test_transposed_and_tied_weights_become_sparse(sparsity: float | str) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 24, (6, 5))
    graph = graph_of(Tokens().eval(), tokens)
    PassManager([*map(parse_spec, CLEANING)]).run(graph)  # a transposed weight is a view of it
    name = graph.inputs[0].name
    if sparsity == "keep":
        graph = recover(graph, graph, {name: tokens.numpy()}, steps=1, batch_size=6, sparsity=0.5)
    found = recover(graph, graph, {name: tokens.numpy()}, steps=8, batch_size=6, sparsity=sparsity)
    shares = {value.name: (value.array == 0).mean() for value in found.constants() if value.array.ndim == 2}
    assert len(shares) >= 2 and all(share >= 0.5 for share in shares.values())
    tied = [v for v in found.constants() if v.array.size == 24 * 8]
    assert len({id(v.constant.source) for v in tied}) == 1


def test_where_the_schedule_ends_masks_stay() -> None:
    module = to_torch(graph_of(net(), images()))
    masks = GradualMasks(0.5, 6, every=2)
    masks.bind(module)
    held: list[dict[str, np.ndarray]] = []

    def step() -> None:
        masks.step()
        held.append({v.name: mask.numpy().copy() for v, mask in masks.masks.items()})

    train(module, 12, rate=0.5, after=step)
    assert any(not np.array_equal(held[3][name], held[5][name]) for name in held[5])
    assert all(np.array_equal(later[name], held[5][name]) for later in held[6:] for name in held[5])


def test_schedules_end_with_the_run() -> None:
    graph = graph_of(net(), images())

    def once(masks: GradualMasks) -> dict[str, float]:
        return zeros(recover(graph, None, LABELLED, steps=20, batch_size=6, hooks=[masks]))

    for masks in (GradualMasks(0.6), GradualMasks(0.6, begin=10), GradualMasks(0.6, 10, begin=10)):
        assert all(share == pytest.approx(0.6, abs=0.05) for share in once(masks).values())
    for masks in (GradualMasks(0.6, 21), GradualMasks(0.6, 11, begin=10)):
        with pytest.raises(InputError, match="final at step 21"):
            once(masks)
    with pytest.raises(InputError, match="say after how many steps"):
        GradualMasks(0.6).bind(to_torch(graph))


@pytest.mark.parametrize(
    "options", [{"final": "2:0"}, {"final": 0.5, "steps": 0}, {"final": 0.5, "begin": -1}], ids=str
)
def test_schedules_that_are_none_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="E201"):
        GradualMasks(**options)


def test_weights_that_a_pattern_does_not_fit_are_named() -> None:
    with pytest.warns(UserWarning, match=r"first\.weight stay"):
        recover(graph_of(net(channels=8, features=8), images()), None, LABELLED, steps=2, batch_size=6, sparsity="2:4")


def test_the_penalty_goes_where_the_module_goes() -> None:
    """As `train` asks for it: with the device of the module as the default."""
    module = to_torch(graph_of(net(), images())).to("meta")
    penalty = GroupPenalty()
    with torch.device("meta"):
        penalty.bind(module)
        assert penalty.term().device.type == "meta"


@pytest.mark.parametrize("act", [lambda: GradualMasks(0.5).step(), lambda: GroupPenalty().term()])
def test_hooks_that_are_not_bound_say_so(act: Any) -> None:
    with pytest.raises(InputError, match="bind it"):
        act()
