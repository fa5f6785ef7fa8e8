"""Single weights that become zero: how many, which, where, and that shapes and ties stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import espalier
from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir.execute import execute
from espalier.passes.base import parse_spec
from espalier.train.masks import gradual, largest, n_of_m
from tests.passes.structure.pruning import data_of, graph_of, images, net, run_pass

WEIGHTS = ("first.weight", "second.weight", "head.weight")


def weights(graph) -> dict[str, np.ndarray]:
    return {v.name: v.array for v in graph.constants() if v.array.ndim > 1}


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 5))
def test_the_smallest_go(size: int, ratio: float, seed: int) -> None:
    array = np.random.default_rng(seed).normal(size=size)
    keep = largest(array, ratio)
    assert np.sum(~keep) == int(ratio * size + 1e-9)
    if not keep.all():
        assert np.abs(array[~keep]).max() <= np.abs(array[keep]).min()


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 1), st.integers(0, 5))
def test_n_of_each_m_stay(groups: int, n: int, axis: int, seed: int) -> None:
    shape = [3, 3]
    shape[axis] = 4 * groups
    array = np.random.default_rng(seed).normal(size=shape)
    keep = n_of_m(array, axis, n, 4)
    grouped = np.moveaxis(keep, axis, -1).reshape(-1, 4)
    assert (grouped.sum(1) == n).all()
    magnitudes = np.moveaxis(np.abs(array), axis, -1).reshape(-1, 4)
    for row, kept in zip(magnitudes, grouped, strict=True):
        assert row[~kept].max() <= row[kept].min()


def test_each_weight_loses_its_share_and_biases_none() -> None:
    graph = graph_of(net(), images())
    report = run_pass(graph, "sparsify:ratio=0.75", data=data_of(graph, images()))
    for name, array in weights(graph).items():
        assert np.sum(array == 0) == int(0.75 * array.size), name
    assert all(np.all(v.array != 0) for v in graph.constants() if v.array.ndim == 1)
    assert report.passes[0].measured is not None and "sparsify changes the outputs" in report.whole_model
    before = weights(graph)
    again = run_pass(graph, "sparsify:ratio=0.75")
    assert again.passes[0].rewrites == 0
    assert all(np.array_equal(before[name], array) for name, array in weights(graph).items())


def test_globally_the_smallest_of_all_go() -> None:
    graph = graph_of(net(), images())
    every = np.concatenate([np.abs(array).reshape(-1) for array in weights(graph).values()])
    run_pass(graph, "sparsify:ratio=0.5,scope=global")
    left = np.concatenate([np.abs(array).reshape(-1) for array in weights(graph).values()])
    assert np.sum(left == 0) == every.size // 2
    np.testing.assert_allclose(np.sort(left[left > 0]), np.sort(every)[every.size // 2 :])


def test_two_of_four_along_what_is_summed_over() -> None:
    module = net(channels=8, features=8)
    graph = graph_of(module, images())
    report = run_pass(graph, "sparsify:pattern=2:4")
    found = weights(graph)
    assert [row["weight"] for row in report.passes[0].details["skipped"]] == ["first.weight"]  # of 3 channels
    second, head = found["second.weight"], next(a for name, a in found.items() if name.startswith("head"))
    assert ((second != 0).reshape(8, 2, 4, 3, 3).sum(2) == 2).all()
    columns = head if head.shape == (4, 8) else head.T
    assert ((columns != 0).reshape(4, 2, 4).sum(2) == 2).all()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.embedding(tokens)) @ self.embedding.weight.T


def test_tied_weights_get_the_same_zeros() -> None:
    tokens = torch.randint(0, 20, (3, 7))
    graph = graph_of(Tied().eval(), tokens)
    run_pass(graph, "fold_constants")
    run_pass(graph, "sparsify:ratio=0.5")
    tied = [v for v in graph.constants() if 20 in v.array.shape]
    assert len(tied) == 2 and len({id(v.constant.source) for v in tied}) == 1
    assert all(np.sum(v.array == 0) == 80 for v in tied)
    execute(graph, [tokens.numpy()])
    assert couple(graph).units


@pytest.mark.parametrize(
    "spec",
    ["sparsify", "sparsify:ratio=1.0", "sparsify:ratio=0.5,pattern=2:4", "sparsify:pattern=4:2", "sparsify:pattern=x"],
)
def test_wrong_options(spec: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(spec)
    assert caught.value.code == "E201"


def test_the_gradual_schedule_is_the_published_one() -> None:
    found = [gradual(step, final=0.875, steps=1000, every=100) for step in range(0, 1001, 100)]
    wanted = [0, 0.237, 0.427, 0.575, 0.686, 0.766, 0.819, 0.851, 0.868, 0.874, 0.875]
    np.testing.assert_allclose(found, wanted, atol=6e-4)
    assert gradual(150, final=0.875, steps=1000) == found[1] and gradual(9999, final=0.875, steps=1000) == 0.875
    assert gradual(5, final=0.9, steps=10, initial=0.3, begin=10) == pytest.approx(0.3)
    with pytest.raises(ValueError):
        gradual(0, final=1.0, steps=10)


def test_a_graph_that_was_cloned_keeps_its_weights() -> None:
    graph = graph_of(net(), images())
    before = {name: array.copy() for name, array in weights(graph).items()}
    other = espalier.prune(graph, ratio=0.5).graph
    run_pass(other, "sparsify:ratio=0.9")
    assert all(np.array_equal(before[name], array) for name, array in weights(graph).items())
