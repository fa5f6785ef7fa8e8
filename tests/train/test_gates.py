"""Gates that are trained along with a model, and what is removed when they close."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier.analysis.coupling import couple
from espalier.cost.remaining import Remaining
from espalier.errors import EspalierError, InputError
from espalier.ir import Graph, structural_hash
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.passes.structure.gates import prune_by_gates
from espalier.passes.structure.reindex import reindex
from espalier.train.gates import TEETH, GateTarget, gate, gated
from espalier.train.loops import Run
from espalier.train.recover import recover
from espalier.train.sparse import GradualMasks
from tests.passes.structure.pruning import graph_of, images, net

TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
LABELLED = {"x": images().numpy(), "labels": TARGETS.numpy()}


def test_a_gate_is_a_step_with_a_slope() -> None:
    w = torch.linspace(-2, 2, 101, dtype=torch.float64, requires_grad=True)
    opened = gate(w, 0.7)
    assert ((opened - (w > 0).double()).abs() <= 1 / TEETH).all()
    opened.sum().backward()
    torch.testing.assert_close(w.grad, torch.full_like(w, 0.7))


def test_removing_what_gates_closed_is_what_the_gates_did() -> None:
    graph = graph_of(net(), images())
    module = gated(graph, couple(graph))
    with torch.no_grad():
        module.gates[0][[1, 4]] = -0.5
        module.gates[1][0] = -0.5
        wanted = module(images())[0].numpy()
    kept = module.kept()
    assert kept["first.weight.0"].tolist() == [0, 2, 3, 5] and kept["second.weight.0"].tolist() == [1, 2, 3, 4]
    graph = module.write_back()
    coupling = couple(graph)
    by_name = {unit.name: unit for unit in coupling.units}
    reindex(coupling, {by_name[name]: indices for name, indices in kept.items()}, "gates")
    (found,) = execute(graph, [images().numpy()])
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)  # open gates are 1 to within 1e-5


def test_the_share_is_what_removal_leaves() -> None:
    graph = graph_of(net(), images())
    whole, module = Remaining(couple(graph)).macs, gated(graph, couple(graph))
    assert float(module.share().detach()) == pytest.approx(1, abs=1e-3)
    closed: dict[int, list[int]] = {0: [1, 4], 1: [0]}
    with torch.no_grad():
        for unit, indices in closed.items():
            module.gates[unit][indices] = -0.5
    share = module.share()
    share.backward()
    slopes = [float(own.grad[0]) for own in module.gates]
    kept = module.kept()

    def left(kept: dict[str, np.ndarray]) -> float:
        smaller = clone(graph)
        coupling = couple(smaller)
        reindex(coupling, {unit: kept[unit.name] for unit in coupling.units if unit.name in kept}, "gates")
        return Remaining(couple(smaller)).macs / whole

    assert float(share.detach()) == pytest.approx(left(kept), abs=1e-3)
    for k, unit in enumerate(module.units):  # what one more would take
        more = {**kept, unit.name: np.arange(len(kept[unit.name]) + 1)}
        assert slopes[k] == pytest.approx(left(more) - left(kept), abs=1e-6)
    with torch.no_grad():
        for own in module.gates:
            own.fill_(-1)
    assert left(module.kept()) == pytest.approx(module.least())


def test_gates_refuse_units_that_are_not_exact() -> None:
    graph = graph_of(net(), images())
    coupling = couple(graph)
    frozen = next(unit for unit in coupling.units if unit.verdict == "frozen")
    with pytest.raises(InputError, match="not be the same"):
        gated(graph, coupling, [frozen])


def test_gates_go_where_the_module_goes() -> None:
    """To a device without memory: what stayed behind could not be multiplied with what went."""
    graph = graph_of(net(), images())
    module = gated(graph, couple(graph))
    names = set(module.state_dict())
    module.to("meta")
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}
    for value in module.weights:
        assert module.read(value).device.type == "meta"
    assert not any("places" in name for name in names)  # what follows from the graph is not kept


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_what_gates_close_while_a_model_recovers_is_removed(target: float) -> None:
    graph = graph_of(net(channels=12, features=10), images())
    small = pruned(graph, target=target)
    left = Remaining(couple(small)).macs / Remaining(couple(graph)).macs
    assert abs(left - target) < 0.12
    assert [v.shape for v in small.inputs] == [v.shape for v in graph.inputs]


def pruned(graph: Graph, **options: Any) -> Graph:
    how = {"target": 0.5, "strength": 20, "steps": 60, "batch_size": 6, "learning_rate": 0.02}
    return prune_by_gates(graph, None, LABELLED, **{**how, **options})


def test_gates_go_on_from_their_own_checkpoints(tmp_path: Path) -> None:
    graph = graph_of(net(), images())

    class Stop(Exception):
        pass

    def watch(stop: int) -> Any:
        def stop_at(run: Run) -> None:
            if run.step == stop:
                raise Stop

        return stop_at

    whole = pruned(graph, hooks=[watch(-1)])
    for stop in (5, 40):
        with pytest.raises(Stop):
            pruned(graph, hooks=[watch(stop)], checkpoint=tmp_path, every_steps=3)
    assert structural_hash(pruned(graph, hooks=[watch(-1)], checkpoint=tmp_path)) == structural_hash(whole)
    for other in ({"only": ["first.*"]}, {"slope": 0.5}, {"target": 0.6}):
        with pytest.raises(InputError, match="E232"):
            pruned(graph, hooks=[watch(-1)], checkpoint=tmp_path, **other)


def test_only_what_was_asked_for_has_gates() -> None:
    only = pruned(graph_of(net(), images()), only=["second.*"])
    weights = {value.name: value.shape for value in only.constants()}
    assert weights["first.weight"][0] == 6 and weights["second.weight"][0] < 5


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"only": ["third"]}, "E202"), ({"target": 0.0}, "E201"), ({"target": 0.01}, "E501"),
        ({"trainable": bool}, "E201"), ({"module": None}, "E201"), ({"only": ["head*"]}, "E224"),
    ],
    ids=lambda given: given if isinstance(given, str) else next(iter(given)),
)  # fmt: skip
def test_what_gates_cannot_do_is_refused(options: dict[str, Any], code: str) -> None:
    with pytest.raises(EspalierError, match=code):
        pruned(graph_of(net(), images()), steps=1, **options)


def test_a_target_needs_gates() -> None:
    with pytest.raises(InputError, match="no gates"):
        recover(graph_of(net(), images()), None, LABELLED, steps=1, batch_size=6, hooks=[GateTarget(0.5)])


def test_gates_that_stay_open_are_noticed() -> None:
    with pytest.warns(UserWarning, match="no gate has closed"):
        pruned(graph_of(net(), images()), steps=1, learning_rate=1e-6)


def test_masks_are_of_weights_and_not_of_gates() -> None:
    graph = graph_of(net(), images())
    module = gated(graph, couple(graph))
    with torch.no_grad():
        module.gates[0][:3] = -1  # half of the first layer is closed
    masks = GradualMasks(0.5, 1)
    masks.bind(module)
    masks.step()
    module.write_back()
    for value in graph.constants():
        if value.array.ndim > 1:
            order = np.sort(np.abs(value.array[:3]), axis=None), np.sort(np.abs(value.array[3:]), axis=None)
            assert all((part == 0).any() and (part != 0).any() for part in order)
