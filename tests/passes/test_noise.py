"""A wanted ratio of signal to noise: which layers it leaves as they are."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import InputError
from espalier.ir import Builder, Graph, TensorType, constant_value, elements, verify
from espalier.ir.clone import clone
from espalier.ir.dims import symbol
from espalier.ir.execute import execute
from espalier.ir.ops import Cast, MatMul
from espalier.passes import noise as noise_module
from espalier.passes.base import Context, parse_spec
from espalier.passes.noise import spare, worst_ratio
from espalier.passes.rules.precision import _round_layers
from espalier.train.data import Data


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network(seed: int, scales: list[float], batch: Any = 4) -> Graph:
    """Layers side by side, summed with these scales: what each adds to the noise goes with its scale."""
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (batch, 16)), "x")
    parts = [
        b.mul(b.matmul(b.tanh(b.mul(x, np.float32(k + 1))), numbers(seed + k, 16, 8)), np.float32(scale))
        for k, scale in enumerate(scales)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = b.add(total, part)
    graph.set_outputs([total], ["y"])
    return graph


def rounded(graph: Graph, sqnr: float | None, data: Any = None) -> tuple[Graph, Context]:
    found, context = clone(graph), Context(seed=3, data=data)
    parse_spec("mixed_precision" if sqnr is None else f"mixed_precision:sqnr={sqnr}").run(found, context)
    verify(found, "types")
    return found, context


def in_bf16(graph: Graph) -> list[bool]:
    """Of each product, whether what it multiplies is rounded."""
    return [node.operand(0).defined_by(Cast) is not None for node in graph if node.is_a(MatMul)]


def ratio(graph: Graph, other: Graph, seed: int) -> float:
    given = numbers(seed, 64, 16).reshape(16, 4, 16)
    return worst_ratio([execute(graph, [x]) for x in given], [execute(other, [x]) for x in given])


def test_the_layer_that_disturbs_most_is_spared() -> None:
    graph = network(0, [1.0, 30.0, 1.0])
    found, context = rounded(graph, 60)
    assert in_bf16(found) == [True, False, True]
    assert len(context.details["in_f32"]) == 1
    assert "1 of 3 layers stay in f32, 33.3% of the multiplications" in context.details["summary"][0]


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0.01, 1.0, 20.0, 300.0]), min_size=1, max_size=5), st.integers(30, 110))
def test_the_ratio_is_reached_on_other_inputs_too(scales: list[float], wanted: int) -> None:
    graph = network(1, scales)
    found, context = rounded(graph, wanted)
    assert context.details["sqnr"] is None or context.details["sqnr"] >= wanted
    assert ratio(graph, found, 9) >= wanted - 2
    spared = in_bf16(found).count(False)
    every, _ = rounded(graph, None)
    if ratio(graph, every, 9) >= wanted + 2:
        assert not spared
    for k, narrow in enumerate(in_bf16(found)):  # none is spared that need not be
        if not narrow:
            fewer = clone(found)
            positions = [j for j, done in enumerate(in_bf16(fewer)) if not done]
            _round_layers(fewer, [positions.index(k)], {})
            assert ratio(graph, fewer, 9) < wanted + 2


def test_no_rounding_where_none_is_allowed_and_all_where_none_is_heard() -> None:
    graph = network(2, [1.0, 2.0])
    whole, told = rounded(graph, 300)
    assert in_bf16(whole) == [False, False]
    assert told.details["sqnr"] is None
    assert "no output moves" in told.details["summary"][0]
    json.loads(json.dumps(told.details, allow_nan=False))
    found, context = rounded(graph, 10)
    assert in_bf16(found) == [True, True]
    assert context.details["in_f32"] == []


def test_data_decide_where_they_are_given() -> None:
    graph = network(4, [1.0, 1.0], symbol("N"))
    ones = np.ones((32, 16), np.float32)  # bf16 holds the inputs, though not what tanh makes of them
    found, context = rounded(graph, 52, Data({"x": ones}, tuple(graph.inputs)))
    ratio = worst_ratio([execute(graph, [ones])], [execute(found, [ones])])
    assert ratio == pytest.approx(context.details["sqnr"], abs=1e-6)


def test_the_worst_output_counts() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (4, 16)), "x")
    y = b.matmul(x, numbers(0, 16, 8))
    z = b.sub(b.matmul(x, numbers(1, 16, 8)), b.add(y, b.matmul(x, numbers(1, 16, 8) - numbers(0, 16, 8))))
    graph.set_outputs([y, b.add(z, np.full(8, 1e-3, np.float32))], ["y", "z"])
    found, _ = rounded(graph, 40)
    assert not any(in_bf16(found))


def test_a_second_time_is_the_same() -> None:
    graph = network(5, [3.0, 1.0, 7.0, 0.1])
    assert in_bf16(rounded(graph, 58)[0]) == in_bf16(rounded(graph, 58)[0])


def test_groups_stand_for_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espalier.passes.noise.RUNS", 2)
    graph = network(6, [1.0, 1.0, 1.0, 50.0, 50.0])
    found, context = rounded(graph, 65)
    assert context.details["sqnr"] >= 65
    assert in_bf16(found)[:3] == [True] * 3


def test_limits_of_rewrites_hold() -> None:
    graph, context = network(7, [1.0, 30.0]), Context(stop_after=1)
    assert parse_spec("mixed_precision:sqnr=50").run(graph, context) == 1


@pytest.mark.parametrize("text", ["nan", "True", "'x'", "1e999", "[1]"])
def test_ratios_are_numbers(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(f"mixed_precision:sqnr={text}")
    assert caught.value.code in {"E201", "E203"}


def test_outputs_that_are_not_finite_leave_no_ratio() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (2, 4)), "x")
    graph.set_outputs([b.log(b.sub(b.matmul(x, numbers(0, 4, 3)), np.float32(1e6)))], ["y"])
    with pytest.raises(InputError, match="not finite") as caught:
        rounded(graph, 30)
    assert caught.value.code == "E212"


def test_models_that_nothing_made_up_runs_ask_for_data() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (1 << 20, 1 << 20)), "x")
    graph.set_outputs([b.matmul(x, np.ones((1 << 20, 1), np.float32))], ["y"])
    with pytest.raises(InputError, match="made-up inputs do not do"):
        rounded(graph, 30)


def test_nothing_to_round_needs_no_run() -> None:
    graph = Graph()
    b = Builder(graph)
    graph.set_outputs([b.exp(b.input(TensorType(elements.F32, (2,)), "x"))], ["y"])
    found, context = rounded(graph, 30)
    assert context.details["layers"] == 0
    assert context.details["in_f32"] == []
    assert len(found) == len(graph)


def test_what_rounding_makes_infinite_is_spared() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (4, 16)), "x")
    w = numbers(0, 16, 8)
    near = b.sub(b.matmul(x, w), b.matmul(x, (w * np.float32(1.0001)).astype(np.float32)))
    graph.set_outputs([b.log(b.abs(near)), b.matmul(x, w)], ["y", "z"])
    found, _ = rounded(graph, 30)
    assert not all(in_bf16(found))
    assert np.isfinite(execute(found, [numbers(5, 4, 16)])[0]).all()


def test_outputs_of_other_shapes_are_infinitely_far() -> None:
    a = np.ones((3, 2), np.float32)
    assert worst_ratio([[a]], [[a[:1]]]) == -math.inf
    assert worst_ratio([[a]], [[a]]) == math.inf


def test_outputs_in_integers_alone_leave_no_ratio() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (4, 16)), "x")
    graph.set_outputs([b.arg_max(b.matmul(x, numbers(0, 16, 8)), axis=1)], ["y"])
    with pytest.raises(InputError, match="no output in floats"):
        rounded(graph, 30)


def test_outputs_in_bf16_count() -> None:
    graph = network(3, [1.0, 30.0])
    b = Builder(graph)
    y = graph.outputs[0]
    graph.set_outputs([b.cast(y, to=elements.BF16)], ["y"])
    found, context = rounded(graph, 300)
    assert not any(in_bf16(found))
    found, context = rounded(graph, 20)
    assert all(in_bf16(found))
    assert 20 <= context.details["sqnr"] < 80


def test_a_model_that_differs_from_itself_is_refused() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (4, 16)), "x")
    noise = b.random_normal_like(x)
    graph.set_outputs([b.matmul(b.add(x, noise), numbers(0, 16, 8))], ["y"])
    with pytest.raises(InputError, match="two runs of the model itself"):
        rounded(graph, 30)


def test_spared_layers_read_what_was_not_rounded() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (4, 16)), "x")
    y = b.tanh(x)
    loud, quiet = b.mul(b.matmul(y, numbers(0, 16, 8)), np.float32(50)), b.matmul(y, numbers(1, 16, 8))
    graph.set_outputs([b.add(loud, quiet)], ["y"])
    found, _ = rounded(graph, 60)
    assert in_bf16(found) == [False, True]
    first, second = (node for node in found if node.is_a(MatMul))
    assert first.operand(1).constant is not None
    assert first.operand(0) is not second.operand(0)


def test_runs_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    count, layers = [0], 12
    run = noise_module.run_within

    def counted(graph: Graph, arrays: Any) -> Any:
        count[0] += 1
        return run(graph, arrays)

    monkeypatch.setattr(noise_module, "run_within", counted)
    rounded(network(2, [1.0 + k for k in range(layers)]), 55)
    assert count[0] <= layers + 4 * (2 + 4 + layers)


def test_other_passes_can_ask() -> None:
    graph = network(8, [1.0, 40.0])

    def drop(copy: Graph, positions: Any) -> None:
        """Zero the weights of these layers."""
        products = [node for node in copy if node.is_a(MatMul)]
        for position in positions:
            copy.set_operand(products[position], 1, constant_value(np.zeros((16, 8), np.float32)))

    spared = spare(graph, [1.0, 1.0], drop, 20.0, Context())
    assert spared.layers == {1}
    assert spared.ratio >= 20
