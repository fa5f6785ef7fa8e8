"""Every rewrite: it fires on its pattern, keeps the function (bit for bit where it says so), and comes to an end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import espalier.backends.onnx.lowering  # noqa: F401  # registers its rewrites
from espalier.ir import Graph, Node, to_text, verify
from espalier.ir.clone import clone
from espalier.ir.execute import run
from espalier.passes import PassManager, parse_spec
from espalier.passes.base import load_passes
from espalier.passes.pipelines import pipeline
from espalier.passes.rewrite import RULES
from espalier.passes.samples import sample_inputs
from tests.passes.patterns import PATTERNS, build

load_passes()
OURS = sorted(name for name, rule in RULES.items() if rule.apply.__module__.startswith("espalier."))
EVERY = sorted({function.__name__: function for found in PATTERNS.values() for function in found}.items())


def outputs(graph: Graph, seed: int = 3, special: bool = False) -> list[Any]:
    """What a graph computes on made-up inputs; with infinities, NaN and both zeros among them if asked for."""
    inputs = sample_inputs(graph.inputs, seed)
    if special:
        numbers = [np.nan, np.inf, -np.inf, -0.0, 0.0]
        for array in inputs:
            if array.dtype.kind == "f" and array.size:
                array.reshape(-1)[: len(numbers)] = numbers[: array.size]
    with np.errstate(all="ignore"):
        return run(graph, inputs)


def assert_same_bits(before: list[Any], after: list[Any]) -> None:
    """Equal in type and value, signs of zeros included; NaN is NaN."""
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
        if a.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(a)[a == a], np.signbit(b)[b == b])


def fires_on(rule: str, graph: Graph) -> int:
    return PassManager([parse_spec(rule)], verify="all").run(graph).rewrites


def test_every_rewrite_has_a_pattern():
    assert sorted(set(OURS) - set(PATTERNS)) == []
    assert sorted(set(PATTERNS) - set(OURS)) == []


@pytest.mark.parametrize("rule", OURS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_fires_and_keeps_the_function(rule: str, seed: int):
    needs = {"scale_norm": ["recognize_norm"], "shift_norm": ["recognize_norm", "scale_norm"]}
    for function in PATTERNS[rule]:
        graph = build(function, seed)
        for earlier in needs.get(rule, []):
            fires_on(earlier, graph)
        before, exact = clone(graph), RULES[rule].semantics.kind == "bit-exact"
        assert fires_on(rule, graph) >= 1, f"{rule} does not fire on\n{to_text(graph)}"
        verify(graph, "types")
        if exact:
            assert_same_bits(outputs(before, special=True), outputs(graph, special=True))
        else:
            for a, b in zip(outputs(before), outputs(graph), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "function"), EVERY)
def test_the_exact_pipeline_ends_keeps_the_function_and_is_idempotent(name: str, function: Any):
    for seed in range(2):
        graph = build(function, seed)
        before = outputs(graph)
        PassManager(pipeline("exact"), verify="all").run(graph)
        for a, b in zip(before, outputs(graph), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        text = to_text(graph)
        again = PassManager(pipeline("exact"), verify="none").run(graph)
        assert again.rewrites == 0, [(p.spec, p.rewrites) for p in again.passes if p.rewrites]
        assert to_text(graph) == text


# ---- random graphs -------------------------------------------------------------------------------------------


def random_graph(seed: int) -> Graph:
    """Some twenty nodes on [2, 3, 4] tensors (in all layouts), of the kinds that rewrites are about."""
    from tests.passes.patterns import Maker

    m = Maker(seed)
    pool = [m.x(2, 3, 4), m.x(2, 3, 4)]

    def pick() -> Any:
        return pool[int(m.rng.integers(max(0, len(pool) - 5), len(pool)))]

    for _ in range(20):
        x, kind = pick(), int(m.rng.integers(0, 11))
        if kind == 0:
            made = m.transpose(x, perm=tuple(int(a) for a in m.rng.permutation(x.rank)))
        elif kind == 1:
            made = m.reshape(x, np.array([[24], [2, 12], [4, 3, 2], [2, 3, 4], [1, 24, 1]][m.extent(0, 4)]))
        elif kind == 2:
            made = [m.relu, m.neg, m.abs, m.identity, m.sigmoid][m.extent(0, 4)](x)
        elif kind == 3:
            made = m.mul(x, [np.float32(1), np.float32(0.5), m.c(1)][m.extent(0, 2)])
        elif kind == 4:
            made = m.add(x, [np.float32(0), m.c(1), m.c(*x.shape)][m.extent(0, 2)])
        elif kind == 5:
            even = x.shape[-1] % 2 == 0
            made = m.concat(*m.split(x, axis=-1, num_outputs=2, results=2), axis=-1) if even else m.exp(x)
        elif kind == 6:
            row = m.reshape(x, np.array([1, 24]))
            made = m.unsqueeze(x, np.array([0])) if x.rank < 4 else m.squeeze(row, np.array([0]))
        elif kind == 7:
            made = m.clip(m.relu(x), None, np.float32(6))
        elif kind == 8:
            same = [y for y in pool if y.shape == x.shape]
            made = m.add(x, same[int(m.rng.integers(0, len(same)))])
        elif kind == 9:
            made = m.mul(x, m.sigmoid(x))
        else:
            made = m.matmul(m.reshape(x, np.array([-1, 4])), m.c(4, 4))
            made = m.reshape(m.add(made, m.c(4)), np.array([2, 3, 4]))
        pool.append(made)
    m.graph.set_outputs([pool[-1], pick()], ["last", "other"])
    return m.graph


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_random_graphs_come_to_an_end_and_stay_the_same(seed: int):
    graph = random_graph(seed)
    before, nodes = outputs(graph), len(graph)
    PassManager(pipeline("exact"), verify="all").run(graph)
    verify(graph, "types")
    assert len(graph) <= nodes
    for a, b in zip(before, outputs(graph), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * max(1.0, float(np.max(np.abs(a)))))
    again = PassManager(pipeline("exact"), verify="none").run(graph)
    assert again.rewrites == 0, [(p.spec, p.rewrites) for p in again.passes if p.rewrites]


# ---- near misses ---------------------------------------------------------------------------------------------


def erf_of_something_else(m: Any) -> Any:
    x, y = m.x(2, 3), m.x(2, 3)
    return m.mul(m.mul(x, m.add(m.erf(m.div(y, math.sqrt(2))), 1.0)), 0.5)


def erf_of_another_slope(m: Any) -> Any:
    x = m.x(2, 3)
    return m.mul(m.mul(x, m.add(m.erf(m.div(x, 1.5)), 1.0)), 0.5)


def mean_over_the_first_axis(m: Any) -> Any:
    x, axes = m.x(2, 3), np.array([0])
    centred = m.sub(x, m.reduce_mean(x, axes))
    return m.div(centred, m.sqrt(m.add(m.reduce_mean(m.mul(centred, centred), axes), 1e-5)))


def masked_without_guard(m: Any) -> Any:
    q, k, v = (m.x(1, 2, 3, 4) for _ in range(3))
    scores = m.matmul(q, m.transpose(k, perm=(0, 1, 3, 2)))
    mask = m.where(m.x(3, 3, element="bool"), np.float32(0), np.float32(-np.inf))
    return m.matmul(m.softmax(m.add(scores, mask)), v)


def softmax_over_queries(m: Any) -> Any:
    q, k, v = (m.x(1, 2, 3, 3) for _ in range(3))
    return m.matmul(m.softmax(m.matmul(q, m.transpose(k, perm=(0, 1, 3, 2))), axis=2), v)


def shared_convolution(m: Any) -> Any:
    y = m.conv(m.x(1, 2, 4, 4), m.c(3, 2, 3, 3))
    return m.batch_norm(y, m.c(3), m.c(3), m.c(3), m.c(3, low=0.5)), y


def broadcasting_one(m: Any) -> Any:
    return m.mul(m.x(1, 3), np.ones((2, 3), np.float32))


def unequal_splits(m: Any) -> Any:
    a, b = m.split(m.x(2, 4), np.array([1, 3]), axis=1, results=2)
    return m.concat(b, a, axis=1)


def average_that_does_not_count(m: Any) -> Any:
    x = m.pad(m.x(1, 2, 6), np.array([0, 0, 1, 0, 0, 1]))
    return m.average_pool(x, kernel_shape=(3,), pads=(1, 1), count_include_pad=0)


def undecided_if(m: Any) -> Any:
    from tests.passes.patterns import branch

    regions = [branch((3,), lambda b, x: b.neg(x)), branch((3,), lambda b, x: b.relu(x))]
    return getattr(m, "if")(m.x(element="bool"), m.x(3), results=1, regions=regions)


def rounding_cast(m: Any) -> Any:
    from espalier.ir import elements

    return m.cast(m.cast(m.x(3), to=elements.F16), to=elements.F32)


NEAR_MISSES = [
    ("recognize_gelu", erf_of_something_else),
    ("recognize_gelu", erf_of_another_slope),
    ("recognize_norm", mean_over_the_first_axis),
    ("recognize_attention", masked_without_guard),
    ("recognize_attention", softmax_over_queries),
    ("fold_batch_norm", shared_convolution),
    ("drop_unit_factor", broadcasting_one),
    ("drop_split_concat", unequal_splits),
    ("fold_pad_into_window", average_that_does_not_count),
    ("inline_decided_if", undecided_if),
    ("merge_casts", rounding_cast),
]


@pytest.mark.parametrize(("rule", "function"), NEAR_MISSES)
def test_near_misses_are_left_alone_and_say_why(rule: str, function: Any):
    report = PassManager([parse_spec(rule)], verify="none").run(build(function, 0))
    assert report.rewrites == 0
    assert any(reason.startswith(f"{rule}: ") for reason in report.passes[0].reasons)


def test_rules_are_short():
    import inspect

    lengths = sorted(len(inspect.getsource(rule.apply).splitlines()) for rule in RULES.values())
    assert lengths[len(lengths) // 2] <= 15 and lengths[-1] <= 48


def test_nodes_keep_their_places(tmp_path):
    graph = build(dict(EVERY)["normed_convolution"], 1)
    first: Node = graph.nodes[0]
    first.location = first.location._replace(names=("conv_1",))
    PassManager(pipeline("exact")).run(graph)
    assert "conv_1" in graph.nodes[0].location.names
