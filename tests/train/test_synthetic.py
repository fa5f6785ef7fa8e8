"""Made-up inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from espalier.errors import InputError
from espalier.ir import Graph, TensorType, dims, elements
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
    (array,) = noise(graph_of(elements.F16, image=(2, 3, 8, 8)), 0, batches=1)[0]
    assert array.dtype == np.float16 and array.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(("element", "shape"), [(elements.I64, (2, 3)), (elements.F32, None)])
def test_noise_cannot_stand_for_everything(element: elements.Element, shape: Any) -> None:
    with pytest.raises(InputError, match="E212"):
        noise(graph_of(element, x=shape), 0)
