"""Removal equals zeros; order does not matter; norms see the kept part; what is not to be had is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.cutting import by_name, check_all, difference, draw, hard, hard_is_soft
from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir import structural_hash
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.passes.structure.reindex import reindex, without
from tests.analysis.networks import NETWORKS, loaded


@pytest.mark.parametrize("name", NETWORKS)
def test_removal_equals_zeros(name: str) -> None:
    graph, inputs, _ = loaded(name)
    assert check_all(graph, inputs, np.random.default_rng(0))[0] >= 1


@pytest.mark.parametrize("name", NETWORKS)
def test_removal_changes_what_is_computed(name: str) -> None:
    """Else the test above would compare a graph with itself."""
    graph, inputs, _ = loaded(name)
    removed = draw(couple(graph).removable(), 0.5, np.random.default_rng(1))
    found = hard(graph, removed)
    assert difference(execute(graph, inputs), execute(found, inputs)) > 1e-6
    assert sum(c.array.size for c in found.constants()) < sum(c.array.size for c in graph.constants())


@pytest.mark.parametrize("name", NETWORKS)
def test_order_does_not_matter(name: str) -> None:
    """Factors of extent 1 carry no index, so that others may change their names: here they stay above."""
    graph, inputs, _ = loaded(name)
    removed = draw(couple(graph).removable(), 0.4, np.random.default_rng(2), least=2)
    at_once = hard(graph, removed)
    for order in (list(removed), list(removed)[::-1]):
        step = clone(graph)
        for unit_name in order:
            step = hard(step, {unit_name: removed[unit_name]})
        assert structural_hash(step) == structural_hash(at_once)
        assert difference(execute(step, inputs), execute(at_once, inputs)) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_removed_changes_nothing(name: str) -> None:
    graph, _, _ = loaded(name)
    same = hard(graph, {unit.name: [] for unit in couple(graph).removable()})
    assert structural_hash(same) == structural_hash(graph)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_cut_can_be_cut_again(name: str) -> None:
    graph, inputs, _ = loaded(name)
    rng = np.random.default_rng(3)
    before = [(unit.name, unit.verdict) for unit in couple(graph).removable()]
    graph = hard(graph, draw(couple(graph).removable(), 0.3, rng, least=2))
    assert [(unit.name, unit.verdict) for unit in couple(graph).removable()] == before
    check_all(graph, inputs, rng)


def test_half_of_a_gated_layer_is_half() -> None:
    graph, _, _ = loaded("GatedLinear")
    found = hard(graph, {"up.weight.0.0": range(16)})
    shapes = {c.name: c.shape for c in found.constants() if c.name}
    assert shapes["up.weight"] == (32, 4)
    assert shapes["down.weight"] == (3, 16)


def test_tied_weights_stay_tied() -> None:
    graph, inputs, module = loaded("TiedEmbedding")
    found = hard(graph, {"table.weight.1": [0, 3, 5]})
    tables = [c for c in found.constants() if c.name.startswith("table")]
    assert len({id(c.constant.source) for c in tables}) == 1
    assert {c.shape for c in tables} == {(11, 5), (5, 11)}
    keep = [1, 2, 4, 6, 7]
    with torch.no_grad():
        table, up, down = module.table.weight[:, keep], module.up.weight[:, keep], module.down.weight[keep]
        x = table[torch.from_numpy(inputs[0])]
        x = x + (x @ up.T + module.up.bias).relu() @ down.T + module.down.bias[keep]
        np.testing.assert_allclose(execute(found, inputs)[0], x @ table.T, rtol=1e-12)


class TestApproximate:
    """Units under statistics: the graph is what the definition of the norm yields on the kept part."""

    keep = [0, 2, 3, 7]

    def narrow(self, module: nn.Module, norm: nn.Module) -> nn.Module:
        """The module `b(act(norm(a(x))))` rebuilt by hand with the kept units only."""
        keep = self.keep
        with torch.no_grad():
            for name, weight in module.norm.named_parameters():
                getattr(norm, name).copy_(weight[keep])
        narrow = copy.deepcopy(module)
        narrow.a, narrow.b, narrow.norm = self.layer(module.a, keep, 0), self.layer(module.b, keep, 1), norm.double()
        return narrow

    @staticmethod
    @torch.no_grad()
    def layer(old: nn.Linear, keep: list[int], axis: int) -> nn.Linear:
        weight = old.weight[keep] if axis == 0 else old.weight[:, keep]
        new = nn.Linear(weight.shape[1], weight.shape[0]).double()
        new.weight.copy_(weight)
        new.bias.copy_(old.bias[keep] if axis == 0 else old.bias)
        return new

    @pytest.mark.parametrize(
        ("name", "norm"), [("LayerNorm", nn.LayerNorm(4)), ("RootMeanSquare", nn.RMSNorm(4, eps=None))]
    )
    def test_norms_over_all_units(self, name: str, norm: nn.Module) -> None:
        graph, inputs, module = loaded(name)
        (unit,) = couple(graph).removable()
        assert unit.verdict == "approximate"
        found = hard(graph, {unit.name: [1, 4, 5, 6]})
        wanted = self.narrow(module, norm)(torch.from_numpy(inputs[0])).detach().numpy()
        np.testing.assert_allclose(execute(found, inputs)[0], wanted, rtol=1e-12)

    def test_group_norm_within_groups_and_whole_groups(self) -> None:
        graph, inputs, module = loaded("GroupNorm")
        found = hard(graph, {"conv.weight.0.1": [1], "conv.weight.0.0": [2]})  # 3 groups of 4 → 2 groups of 3
        keep = [0, 2, 3, 4, 6, 7]
        with torch.no_grad():
            x = torch.nn.functional.conv2d(
                torch.from_numpy(inputs[0]), module.conv.weight[keep], module.conv.bias[keep]
            )
            x = nn.functional.group_norm(x, 2, module.norm.weight[keep], module.norm.bias[keep]).relu()
            x = x.mean((2, 3)) @ module.head.fc.weight[:, keep].T + module.head.fc.bias
        np.testing.assert_allclose(execute(found, inputs)[0], x, rtol=1e-12)

    def test_groups_that_lie_across_a_concat(self) -> None:
        """a has 10 channels, b 6, groups 8: channel 2 + k of both groups; group 0's 0 and 1 with group 1's."""
        graph, inputs, module = loaded("GroupNormAfterConcat")
        found = hard(graph, {"a.weight.0.0": [1], "a.weight.0.1": [0, 3]})
        keep = [0, 3, 4, 6, 7, 8, 11, 12, 14, 15]
        with torch.no_grad():
            x = torch.from_numpy(inputs[0])
            x = torch.cat([module.a(x), module.b(x)], 1)[:, keep]
            x = nn.functional.group_norm(x, 2, module.norm.weight[keep], module.norm.bias[keep]).relu()
            x = x.mean((2, 3)) @ module.head.fc.weight[:, keep].T + module.head.fc.bias
        np.testing.assert_allclose(execute(found, inputs)[0], x, rtol=1e-12)

    def test_a_product_of_activations(self) -> None:
        graph, inputs, module = loaded("ProductOfSigmoids")
        found = hard(graph, {"a.weight.T.1": [1, 4]})
        keep = [0, 2, 3, 5]
        with torch.no_grad():
            x = torch.from_numpy(inputs[0])
            x = module.c(module.a(x)[..., keep].sigmoid() @ module.b(x)[..., keep].sigmoid().transpose(1, 2))
        np.testing.assert_allclose(execute(found, inputs)[0], x, rtol=1e-12)


class TestRefusals:
    def test_a_frozen_unit(self) -> None:
        graph, _, _ = loaded("Flatten")
        with pytest.raises(InputError, match=r"fc\.weight\.0 is frozen: it is an output of the model"):
            hard(graph, {"fc.weight.0": [0]})

    @pytest.mark.parametrize("indices", [range(6), [6], [-1]])
    def test_indices_that_cannot_be(self, indices: list[int]) -> None:
        graph, _, _ = loaded("Flatten")
        coupling = couple(graph)
        unit = by_name(coupling)["conv.weight.0"]
        kept = [] if len(indices) == 6 else indices
        before = structural_hash(graph)
        with pytest.raises(InputError) as caught:
            reindex(coupling, {unit: kept}, "test")
        assert caught.value.code == "E222"
        assert structural_hash(graph) == before


def test_repeated_indices_widen() -> None:
    """The same mechanism grows: with halved readers, a unit that stands twice computes what it did."""
    graph, inputs, module = loaded("Flatten")
    coupling = couple(graph)
    unit = by_name(coupling)["conv.weight.0"]
    wide = clone(graph)
    again = couple(wide)
    reindex(again, {by_name(again)[unit.name]: [*range(6), 2]}, "test")
    assert {c.shape for c in wide.constants() if c.name == "fc.weight"} == {(4, 112)}
    extra = execute(wide, inputs)[0] - execute(graph, inputs)[0]
    only = execute(hard(graph, {unit.name: [0, 1, 3, 4, 5]}), inputs)[0] - module.fc.bias.detach().numpy()
    np.testing.assert_allclose(extra, only, rtol=1e-10)
    assert without(unit, [0, 5]).tolist() == [1, 2, 3, 4]
    assert hard_is_soft(wide, inputs, {unit.name: [6]}) < 1e-12
