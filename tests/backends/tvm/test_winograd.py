"""3 × 3 convolutions by transformed tiles: against convolutions in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.backends.tvm import build, fuse, machine, trace, winograd
from espalier.backends.tvm.tensor import Product
from espalier.ir import Builder, Graph, TensorType, Value, elements
from espalier.ir.dims import symbol

Array = np.ndarray[Any, Any]
WIDE, NARROW = machine.Machine(16, 28), machine.Machine(8, 12)
TOLERANCE = {2: 1e-6, 4: 4e-6}
"""Of the largest result, by the results of a tile's row."""


def convolved(x: Array, w: Array, pads: Sequence[int]) -> Array:
    """The convolution by its definition, in float64."""
    top, left, bottom, right = pads
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (top, bottom), (left, right)])
    height, width = (extent - 2 for extent in x.shape[2:])
    found = np.zeros((x.shape[0], w.shape[0], height, width))
    for i, j in itertools.product(range(3), range(3)):
        window = x[:, :, i : i + height, j : j + width]
        found += np.einsum("ncyx,oc->noyx", window, w[:, :, i, j].astype(np.float64))
    return found


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def graph_of(channels: int, size: tuple[int, int], batch: Any = 1) -> tuple[Graph, Builder, Value]:
    graph = Graph()
    builder = Builder(graph)
    return graph, builder, builder.input(TensorType(elements.F32, (batch, channels, *size)), "x")


def ways(graph: Graph, sizes: machine.Machine = WIDE) -> list[int]:
    """The results of a tile's row of every convolution, 0 for those by the definition."""
    with machine.made_for(sizes):
        _, outputs = trace.trace(graph)
    plans = [tensor.plan for tensor in fuse.in_order(outputs) if isinstance(tensor, Product)]
    return [plan.filter.results if isinstance(plan, winograd.Plan) else 0 for plan in plans]


def always(monkeypatch: pytest.MonkeyPatch, results: int) -> None:
    """Compute every convolution that fits in tiles of a size, whatever it costs."""
    monkeypatch.setattr(
        winograd, "cheapest", lambda ways, cost: next(way for way in ways if way.filter.results == results)
    )


def close(found: Array, wanted: Array, tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@settings(max_examples=12, deadline=None)
@given(
    results=st.sampled_from([2, 4]), channels=st.integers(1, 40), outputs=st.integers(1, 70),
    size=st.tuples(st.integers(3, 19), st.integers(3, 19)), pads=st.tuples(*[st.integers(0, 3)] * 4),
    batch=st.integers(1, 3), more=st.integers(0, 2),
)  # fmt: skip
def test_any_extents_and_padding(
    results: int, channels: int, outputs: int, size: tuple[int, int], pads: Sequence[int], batch: int, more: int
) -> None:
    """One that reads an input, and one between kernels that gives its result in blocks of channels."""
    graph, b, x = graph_of(channels, size, batch)
    first, second = normal(1, outputs, channels, 3, 3), normal(2, 20 + more, outputs, 3, 3)
    y = b.conv(x, first, pads=tuple(pads))
    graph.set_outputs([y, b.max_pool(b.conv(y, second, pads=(1, 1, 1, 1)), kernel_shape=(1, 1), results=1)])
    with pytest.MonkeyPatch.context() as patch:
        always(patch, results)
        assert ways(graph) == [results, results]
        array = normal(3, batch, channels, *size)
        one, other = build.build(graph, threads=1)([array])
    wanted = convolved(array, first, pads)
    close(one, wanted, TOLERANCE[results])
    close(other, convolved(wanted, second, (1, 1, 1, 1)), 3 * TOLERANCE[results])


@pytest.mark.parametrize("results", [2, 4])
@pytest.mark.parametrize("outputs", [24, 32])
def test_bias_residual_and_activation_in_the_same_kernel(
    monkeypatch: pytest.MonkeyPatch, results: int, outputs: int
) -> None:
    always(monkeypatch, results)
    graph, b, x = graph_of(16, (11, 13))
    w, bias, square = normal(1, outputs, 16, 3, 3), normal(2, outputs), normal(3, outputs, outputs, 3, 3)
    y = b.relu(b.conv(x, w, bias, pads=(1, 1, 1, 1)))
    z = b.relu(b.add(b.conv(y, square, bias, pads=(1, 1, 1, 1)), y))
    graph.set_outputs([b.sigmoid(b.conv(z, 0.01 * square, pads=(0, 1, 2, 1)))])
    _, outputs_of_trace = trace.trace(graph)
    kernels = [root for root in fuse.plan(outputs_of_trace).roots if not root.operands or root.ndim == 4]
    assert len(kernels) <= 4  # three convolutions, and a copy of the input in blocks
    array = normal(4, 1, 16, 11, 13)
    first = np.maximum(convolved(array, w, (1, 1, 1, 1)) + bias[:, None, None], 0)
    second = np.maximum(convolved(first, square, (1, 1, 1, 1)) + bias[:, None, None] + first, 0)
    wanted = 1 / (1 + np.exp(-convolved(second, np.float32(0.01) * square, (0, 1, 2, 1))))
    close(build.build(graph, threads=1)([array])[0], wanted, 1e-5)


@pytest.mark.parametrize("results", [2, 4])
def test_a_batch_that_only_the_run_knows(monkeypatch: pytest.MonkeyPatch, results: int) -> None:
    always(monkeypatch, results)
    graph, b, x = graph_of(20, (9, 7), symbol("n"))
    w = normal(1, 32, 20, 3, 3)
    graph.set_outputs([b.conv(x, w, pads=(1, 1, 1, 1))])
    compiled = build.build(graph, threads=2)
    for batch in (1, 2, 5):
        array = normal(batch, batch, 20, 9, 7)
        close(compiled([array])[0], convolved(array, w, (1, 1, 1, 1)), TOLERANCE[results])


@pytest.mark.parametrize("size", [(8, 8), (40, 40)])
def test_threads_share_channels_or_tiles(size: tuple[int, int]) -> None:
    """A few tiles, all of one group, and many; with the choice as it is."""
    graph, b, x = graph_of(128, size)
    w = normal(1, 96, 128, 3, 3)
    graph.set_outputs([b.relu(b.conv(x, w, pads=(1, 1, 1, 1)))])
    assert ways(graph) != [0]
    array = normal(2, 1, 128, *size)
    one, two = (build.build(graph, threads=threads)([array])[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    close(two, np.maximum(convolved(array, w, (1, 1, 1, 1)), 0), TOLERANCE[4])


def test_vectors_of_eight() -> None:
    """Code for AVX2, or what else the host has."""
    sets = [name for name in build.instruction_sets(build.host_target(1)) if not name.startswith(("avx512", "amx"))]
    graph, b, x = graph_of(40, (17, 21))
    w = normal(1, 40, 40, 3, 3)
    graph.set_outputs([b.relu(b.conv(x, w, pads=(1, 1, 1, 1)))])
    array = normal(2, 1, 40, 17, 21)
    (found,) = build.build(graph, target=build.target_with(sets), threads=1)([array])
    close(found, np.maximum(convolved(array, w, (1, 1, 1, 1)), 0), TOLERANCE[4])


@pytest.mark.parametrize("signed", [True, False])
def test_errors_grow_little_with_the_channels(signed: bool) -> None:
    graph, b, x = graph_of(256, (16, 16))
    w = normal(1, 64, 256, 3, 3)
    graph.set_outputs([b.conv(x, w, pads=(1, 1, 1, 1))])
    assert ways(graph) == [4]
    array = normal(2, 1, 256, 16, 16)
    array = array if signed else np.abs(array)
    close(build.build(graph, threads=1)([array])[0], convolved(array, w, (1, 1, 1, 1)), 1e-5)


@pytest.mark.parametrize("sizes", [WIDE, NARROW])
def test_where_it_pays(sizes: machine.Machine) -> None:
    """Many channels and positions: large tiles; weights that weigh more than positions: small ones; else none."""

    def chosen(channels: int, outputs: int, size: tuple[int, int], on: machine.Machine = sizes, **other: Any) -> int:
        graph, b, x = graph_of(channels, size)
        groups = other.get("group", 1)
        graph.set_outputs([b.conv(x, normal(1, outputs, channels // groups, 3, 3), **{"pads": (1, 1, 1, 1)} | other)])
        return ways(graph, on)[0]

    assert chosen(64, 64, (56, 56)) == 4
    assert chosen(128, 128, (28, 28)) == 4
    assert chosen(512, 512, (7, 7)) == 2
    assert chosen(3, 64, (56, 56)) == 0
    assert chosen(64, 64, (2, 2)) == 0
    assert chosen(64, 64, (56, 56), strides=(2, 2)) == 0
    assert chosen(64, 64, (56, 56), dilations=(2, 2), pads=(2, 2, 2, 2)) == 0
    assert chosen(64, 64, (56, 56), group=2) == 0
    assert chosen(64, 64, (56, 56), machine.Machine(8, 6)) == 0


def test_weights_that_are_not_finite_stay_as_they_are() -> None:
    graph, b, x = graph_of(32, (16, 16))
    w = normal(1, 32, 32, 3, 3)
    w[3, 4, 1, 1] = np.inf
    graph.set_outputs([b.conv(x, w, pads=(1, 1, 1, 1))])
    assert ways(graph) == [0]
