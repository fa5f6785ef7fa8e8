"""Made-up inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from espalier.errors import InputError
from espalier.ir import Builder, Graph, TensorType, dims, elements
from espalier.train.synthetic import dead_leaves, noise

SHAPES: dict[str, tuple[Any, ...]] = {
    "image": (dims.symbol("n"), 3, 16, 20),
    "volume": (dims.symbol("n"), 2, 8, 8, 8),
    "rows": (dims.symbol("n"), 5),
    "dot": (dims.symbol("n"), 3, 1, 1),
}


def graph_of(element: elements.Element, **shapes: Any) -> Graph:
    graph = Graph("inputs")
    for name, shape in shapes.items():
        graph.add_input(TensorType(element, shape), name)
    return graph


def alike(a: Any, b: Any) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_noise_has_mean_0_and_variance_1_and_is_the_seeds() -> None:
    graph = graph_of(elements.F32, **SHAPES)
    batches, again, other = (noise(graph, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(batches[-1][0], again[-1][0])
    assert not np.array_equal(batches[-1][0], other[-1][0]) and not np.array_equal(batches[-1][0], batches[0][0])
    for position, shape in enumerate(SHAPES.values()):
        array = np.concatenate([batch[position] for batch in batches])
        assert array.dtype == np.float32 and array.shape == (16 * 32, *shape[1:])
        assert abs(array.mean()) < 0.1 and abs(array.std() - 1) < 0.05
    rows = np.concatenate([batch[2] for batch in batches])
    assert abs(alike(rows[:, 1:], rows[:, :-1])) < 0.1


def test_leaves_have_edges_and_surfaces_and_channels_alike() -> None:
    images = dead_leaves(np.random.default_rng(0), (64, 3, 32, 32))
    steps = np.diff(images, axis=3)
    assert 0.6 < (steps == 0).mean() < 0.95  # surfaces of one colour
    assert np.abs(steps[steps != 0]).mean() > 0.5  # and between them edges
    for axis in (2, 3):
        first, second = (np.take(images, range(k, k + 31), axis) for k in (0, 1))
        assert alike(first, second) > 0.65
    assert 0.35 < alike(images[:, 0], images[:, 1]) < 0.65
    assert abs(alike(images[:32], images[32:])) < 0.1


def test_noise_of_fixed_batch_and_of_other_floats() -> None:
    batches = noise(graph_of(elements.F16, image=(2, 3, 8, 8)), 0, samples=5)
    assert [(array.dtype, array.shape) for (array,) in batches] == [(np.dtype(np.float16), (2, 3, 8, 8))] * 3


@pytest.mark.parametrize("samples", [1, 33, 1000])
def test_as_many_samples_as_asked_for_and_fewer_large_ones(samples: int) -> None:
    n = dims.symbol("n")
    found = noise(graph_of(elements.F32, x=(n, 3)), 0, samples)
    assert sum(len(arrays[0]) for arrays in found) in range(min(samples, 512), min(samples, 512) + 32)
    found = noise(graph_of(elements.F32, x=(n, 2**21)), 0, samples)
    assert sum(len(arrays[0]) for arrays in found) == min(samples, 32)


def test_sizes_leave_something_of_every_tensor() -> None:
    """A length that varies counts the same wherever it stands, and is long enough for what slides over it."""
    n, length = dims.symbol("n"), dims.symbol("t")
    graph = graph_of(elements.F32, sound=(n, 1, length), twice=(n, 1, 2 * length))
    b = Builder(graph)
    slid = b.conv(graph.inputs[0], np.ones((2, 1, 100), np.float32))
    graph.set_outputs([slid], ["y"])
    sound, twice = noise(graph, 0, samples=2)[0]
    assert sound.shape == (2, 1, 128) and twice.shape == (2, 1, 256)
    slid = b.conv(graph.inputs[0], np.ones((2, 1, 5000), np.float32))
    graph.set_outputs([slid], ["y"])
    with pytest.raises(InputError, match="leaves nothing"):
        noise(graph, 0)


@pytest.mark.parametrize(
    ("element", "shape"), [(elements.I64, (2, 3)), (elements.F32, None), (elements.F32, (0, 3, 8, 8))]
)
def test_noise_cannot_stand_for_everything(element: elements.Element, shape: Any) -> None:
    with pytest.raises(InputError, match="E212"):
        noise(graph_of(element, x=shape), 0)
