"""Products of bf16: against the reference, by the machine's instructions where it has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.backends.tvm import build, machine
from espalier.ir import Builder, Graph, TensorType, Value, elements
from espalier.ir.dims import symbol
from espalier.ir.execute import execute
from espalier.passes import PassManager, parse_spec
from tests.backends.tvm.test_layouts import agrees, graph_of, weights

Network = Callable[[Builder, Value], Value]
NARROW = tvm.target.Target(build.target_with(["avx512f", "avx512bw", "avx512vl", "avx512bf16"], "x86_64"))


def narrowed(graph: Graph, y: Value, tolerance: float = 2e-6) -> None:
    """Round what is multiplied, and compare the compiled graph with the reference of the rounded one."""
    graph.set_outputs([y], ["y"])
    PassManager([parse_spec("mixed_precision")], verify="none").run(graph)
    agrees(graph, graph.outputs[0], tolerance=tolerance)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    """Of one to three axes, with odd channels, groups, strides, dilations and padding."""
    draw = data.draw
    rank = draw(st.integers(1, 3), label="axes")
    groups = draw(st.sampled_from([1, 1, 1, 2]), label="groups")
    each = draw(st.sampled_from([1, 3, 6, 16, 17, 32, 33]), label="channels")
    outputs = draw(st.sampled_from([1, 5, 16, 20, 32]), label="outputs") * groups
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    size = tuple(draw(st.integers(6, 9)) for _ in range(rank))
    options = {
        "strides": tuple(draw(st.integers(1, 2)) for _ in range(rank)),
        "dilations": tuple(draw(st.integers(1, 2)) for _ in range(rank)),
        "pads": tuple(draw(st.integers(0, 2)) for _ in range(2 * rank)),
        "group": groups,
    }
    graph, b, x = graph_of(each * groups, size)
    narrowed(graph, b.relu(b.conv(x, weights(1, outputs, each, *kernel), weights(2, outputs), **options)))


@pytest.mark.parametrize("channels", [16, 24, 50])
def test_depthwise_ones_between_dense_ones(channels: int) -> None:
    graph, b, x = graph_of(3)
    y = b.relu(b.conv(x, weights(1, channels, 3, 3, 3), weights(2, channels), pads=(1, 1, 1, 1)))
    y = b.relu(b.conv(y, weights(3, channels, 1, 3, 3), pads=(1, 1, 1, 1), group=channels))
    narrowed(graph, b.add(b.conv(y, weights(4, channels, channels, 1, 1)), y), tolerance=1e-2)  # roundings may flip


def test_large_ones_of_three_by_three_are_transformed_where_that_pays() -> None:
    graph, b, x = graph_of(64, (24, 24))
    narrowed(graph, b.conv(x, weights(1, 64, 64, 3, 3), pads=(1, 1, 1, 1)), tolerance=2e-5)


@pytest.mark.parametrize(("steps", "columns"), [(2, 1), (16, 40), (17, 16), (64, 33), (130, 64)])
def test_matrices(steps: int, columns: int) -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (2, 7, steps)), "x")
    narrowed(graph, b.add(b.matmul(x, weights(1, columns, steps).T.copy()), weights(2, 1, columns)[0]))


def products_agree(graph: Graph, shapes: list[tuple[int, ...]], rounded: int, tolerance: float = 2e-6) -> None:
    """The compiled graph, in which so many tensors are rounded, computes what the reference does."""
    report = PassManager([parse_spec("mixed_precision")], verify="none").run(graph)
    assert report.rewrites == rounded
    given = [np.random.default_rng(seed).normal(size=shape).astype(np.float32) for seed, shape in enumerate(shapes)]
    (wanted,), (found,) = execute(graph, given), build.run(graph, given)
    assert wanted.shape == found.shape
    assert np.abs(wanted - found).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("left", "right", "rounded"),
    [
        ((70, 32), (32, 32), 2),
        ((2, 3, 40, 37), (2, 3, 37, 50), 2),  # a row without a neighbour, a block that is no whole one
        ((3, 50, 65), (3, 65, 33), 2),  # three blocks: a fourth is computed in vain
        ((1, 40, 64), (4, 64, 48), 2),  # three whole ones
        ((4, 40, 64), (64, 48), 2),
        ((2, 1, 33, 64), (3, 64, 36), 2),
        ((2, 700, 64), (2, 64, 5), 0),
        ((2, 3, 1024), (2, 1024, 64), 0),
        ((2, 64, 8), (2, 8, 64), 0),
    ],
)
def test_products_of_two_activations(left: tuple[int, ...], right: tuple[int, ...], rounded: int) -> None:
    graph = Graph()
    b = Builder(graph)
    x, y = (b.input(TensorType(elements.F32, shape), name) for shape, name in ((left, "x"), (right, "y")))
    graph.set_outputs([b.relu(b.matmul(x, y))], ["z"])
    products_agree(graph, [left, right], rounded)
    assert ("espalier_dpbf16ps" in str(build.written(graph, NARROW).functions)) == bool(rounded)


@pytest.mark.parametrize(
    ("left", "right", "rounded"),
    [
        (("N", 40, 64), ("N", 64, 40), 2),
        (("N", 3, 40, 33), (1, 3, 33, 48), 2),
        ((2, "N", 40), (2, 40, "N"), 0),
        ((2, 40, "N"), (2, "N", 40), 0),
    ],
)
def test_products_of_extents_that_the_run_knows(left: Any, right: Any, rounded: int) -> None:
    graph = Graph()
    b = Builder(graph)
    sides = [[symbol(e) if isinstance(e, str) else e for e in shape] for shape in (left, right)]
    x, y = (b.input(TensorType(elements.F32, tuple(shape)), name) for shape, name in zip(sides, "xy", strict=True))
    graph.set_outputs([b.matmul(b.relu(x), y)], ["z"])
    shapes = [tuple(5 if isinstance(e, str) else e for e in shape) for shape in (left, right)]
    products_agree(graph, shapes, rounded)


@pytest.mark.parametrize(("rows", "columns"), [(symbol("N"), 33), (45, 20), (45, 8), (45, 5), (3, 40)])
def test_products_of_a_model_of_bf16(rows: Any, columns: int) -> None:
    """Of rows that the run knows, of few columns, of too few columns or rows for the instruction."""
    graph = Graph()
    b = Builder(graph)
    x, y = (b.input(TensorType(elements.BF16, (2, *s)), n) for s, n in (((rows, 41), "x"), ((41, columns), "y")))
    graph.set_outputs([b.cast(b.matmul(x, y), to=elements.F32)], ["z"])
    random = np.random.default_rng(0)
    shapes = ((2, rows if isinstance(rows, int) else 45, 41), (2, 41, columns))
    given = [random.normal(size=shape).astype(elements.BF16.dtype) for shape in shapes]
    (found,) = build.run(graph, given)
    wanted = given[0].astype(np.float64) @ given[1].astype(np.float64)
    np.testing.assert_allclose(found, wanted, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("past", ["a row before", "a row after"])
def test_what_lies_beside_a_row_without_a_neighbour_does_not_matter(past: str) -> None:
    """It is not multiplied by 0, which of an infinity is no number."""
    graph = Graph()
    b = Builder(graph)
    x, y = b.input(TensorType(elements.F32, (40, 33)), "x"), b.input(TensorType(elements.F32, (33, 40)), "y")
    graph.set_outputs([b.matmul(x, y)], ["z"])
    PassManager([parse_spec("mixed_precision")], verify="none").run(graph)
    left, right = np.ones((40, 33), np.float32), np.ones((33, 40), np.float32)
    left[7, 32 if past == "a row before" else 0] = np.inf
    right[32, 9] = np.inf
    (found,) = build.run(graph, [left, right])
    assert np.all(found[7] == np.inf)
    assert np.all(found[:, 9] == np.inf)
    assert np.all(np.delete(np.delete(found, 7, 0), 9, 1) == 33)


@pytest.mark.parametrize(
    ("queries", "keys", "head", "share", "rank", "mask"),
    [
        (40, 40, 32, 1, 4, "causal"),
        (33, 71, 27, 1, 4, "added"),
        (48, 50, 64, 2, 4, "chosen"),
        (35, 64, 16, 1, 3, "none"),
        (64, 33, 20, 2, 3, "added"),
    ],
)
def test_attention(queries: int, keys: int, head: int, share: int, rank: int, mask: str) -> None:
    """Queries and keys are rounded before they are scaled; the product is scaled here."""
    graph = Graph()
    b = Builder(graph)
    heads = 4
    if rank == 4:
        shapes: list[tuple[int, ...]] = [(2, heads, queries, head), *[(2, heads // share, keys, head)] * 2]
        options: dict[str, Any] = {}
    else:
        shapes = [(2, queries, heads * head), *[(2, keys, heads // share * head)] * 2]
        options = {"q_num_heads": heads, "kv_num_heads": heads // share}
    operands: list[Any] = [b.input(TensorType(elements.F32, s), n) for s, n in zip(shapes, "qkv", strict=True)]
    if mask in ("added", "chosen"):
        numbers = np.random.default_rng(7).normal(size=(queries, keys)).astype(np.float32)
        operands.append(numbers if mask == "added" else numbers > 0.1)
    graph.set_outputs([b.attention(*operands, is_causal=int(mask == "causal"), scale=0.3, results=1, **options)], ["y"])
    products_agree(graph, shapes, rounded=2, tolerance=5e-6)


def test_attention_to_past_keys_stays_in_f32() -> None:
    graph = Graph()
    b = Builder(graph)
    shapes = [(1, 2, 40, 32)] * 3 + [(1, 2, 9, 32)] * 2
    q, k, v, past_key, past_value = (
        b.input(TensorType(elements.F32, s), n) for s, n in zip(shapes, "qkvxy", strict=True)
    )
    graph.set_outputs([b.attention(q, k, v, None, past_key, past_value, results=1)], ["y"])
    products_agree(graph, shapes, rounded=0)


@pytest.mark.parametrize("hidden", [8, 40, 192])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_recurrent_layers(kind: str, hidden: int) -> None:
    """Their matrices lie in bf16, and are widened for each product."""
    graph = Graph()
    b = Builder(graph)
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[kind] * hidden
    x = b.input(TensorType(elements.F32, (5, 1, 10)), "x")
    w, r = weights(1, 1, gates, 10), 0.3 * weights(2, 1, gates, hidden)
    narrowed(graph, getattr(b, kind)(x, w, r, weights(3, 1, 2 * gates), hidden_size=hidden, results=1), tolerance=1e-5)


def test_extents_that_the_run_knows() -> None:
    graph, b, x = graph_of(16, batch=symbol("N"))
    y = b.relu(b.conv(x, weights(1, 32, 16, 3, 3), pads=(1, 1, 1, 1)))
    narrowed(graph, b.matmul(b.flatten(b.global_average_pool(y)), weights(2, 10, 32).T.copy()), tolerance=1e-2)


def test_infinities_and_nan() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (32, 34)), "x")
    graph.set_outputs([b.matmul(x, np.abs(weights(1, 40, 34)).T.copy())], ["y"])
    PassManager([parse_spec("mixed_precision")], verify="none").run(graph)
    given = np.ones((32, 34), np.float32)
    given[3, 5], given[4, 6], given[5, 7] = np.inf, -np.inf, np.nan
    (found,) = build.run(graph, [given])
    assert np.all(found[3] == np.inf)
    assert np.all(found[4] == -np.inf)
    assert np.isnan(found[5]).all()
    assert np.isfinite(np.delete(found, [3, 4, 5], 0)).all()


def test_a_model_of_bf16_takes_the_same_way() -> None:
    """Its own products are the same, and then rounded."""
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.BF16, (8, 64)), "x")
    w = weights(1, 48, 64).T.astype(elements.BF16.dtype)
    graph.set_outputs([b.matmul(x, w)], ["y"])
    given = np.random.default_rng(0).normal(size=(8, 64)).astype(elements.BF16.dtype)
    (found,) = build.run(graph, [given])
    wanted = given.astype(np.float64) @ w.astype(np.float64)
    np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("layer", ["conv", "matmul", "products", "attention"])
def test_the_instruction_is_used_where_the_processor_has_it(layer: str) -> None:
    graph = Graph()
    b = Builder(graph)
    if layer == "conv":
        y: Any = b.conv(b.input(TensorType(elements.F32, (1, 32, 8, 8)), "x"), weights(1, 32, 32, 1, 1))
    elif layer == "matmul":
        y = b.matmul(b.input(TensorType(elements.F32, (16, 32)), "x"), weights(1, 32, 32))
    else:
        x = b.input(TensorType(elements.F32, (1, 2, 48, 32)), "x")
        y = b.attention(x, x, x) if layer == "attention" else b.matmul(x, b.transpose(x, perm=(0, 1, 3, 2)))
    graph.set_outputs([y], ["y"])
    PassManager([parse_spec("mixed_precision")], verify="none").run(graph)
    assert "espalier_dpbf16ps" in str(build.written(graph, NARROW).functions)
    others = tvm.target.Target(build.target_with(["avx512f", "avx512bw", "avx512vl"], "x86_64"))
    assert "espalier_dpbf16ps" not in str(build.written(graph, others).functions)


def test_tiles_for_matrices_leave_the_vectors_instruction_alone() -> None:
    assert machine.of(["avx512f", "avx512bf16"]).bf16 is not None
    assert machine.of(["avx512f", "avx512bf16", "amx-bf16"]).bf16 is None
    assert machine.of(["avx512f"]).bf16 is None
