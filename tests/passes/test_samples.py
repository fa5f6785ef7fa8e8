"""Inputs that are made up: sizes that fit the model, none empty where that can be avoided."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.ir import Builder, Graph
from espalier.ir.dims import floor_divide
from espalier.ir.elements import F32, I64
from espalier.ir.execute import execute
from espalier.ir.types import parse
from espalier.passes.samples import SAMPLES, NoSample, sensitivity, try_graph, try_sizes
from espalier.train.data import Data


def convolution(kernel: int, type: str = "f32[b, 4, t]") -> Graph:
    graph = Graph()
    builder = Builder(graph)
    x = builder.input(parse(type), "x")
    graph.set_outputs([builder.conv(x, np.ones((8, 4, kernel), np.float32))], ["y"])
    return graph


@pytest.mark.parametrize("kernel", [1, 7, 33, 200])
def test_windows_fit_into_what_is_made_up(kernel: int) -> None:
    trial = try_graph(convolution(kernel), seed=0)
    (x,), (y,) = trial
    assert x.shape[2] >= kernel and x.shape[0] != x.shape[2] and y.size and not trial.is_empty


def test_sizes_that_a_model_asks_for_are_found() -> None:
    def multiples(arrays):
        if any(extent % 32 for extent in arrays[0].shape[2:]):
            raise ValueError("no multiple of 32")
        return arrays

    (x,) = try_sizes(_inputs("f32[n, 3, h, w]"), multiples, 0).inputs
    assert x.shape[0] == 2 and x.shape[2] != x.shape[3]

    def alike(arrays):
        return [arrays[0] + arrays[1]]

    a, b = try_sizes([*_inputs("f32[n, s]"), *_inputs("f32[m, r]", "y")], alike, 0).inputs
    assert a.shape == b.shape and a.shape[0] != a.shape[1]


def _inputs(type: str, name: str = "x"):
    graph = Graph()
    return [Builder(graph).input(parse(type), name)]


def test_sizes_that_have_no_whole_part_are_left_out() -> None:
    (value,) = _inputs("f32[n, s]")
    whole = floor_divide(value.shape[1], 8)
    (x,) = try_sizes([value], lambda arrays: arrays, 0, [(floor_divide(64, whole),)]).inputs
    assert x.shape[1] >= 8


def test_the_smallest_size_is_tried_however_much_is_computed() -> None:
    (value,) = _inputs("f32[n, s]")
    huge = [(value.shape[0], 1 << 28)]
    (x,) = try_sizes([value], lambda arrays: arrays, 0, huge).inputs
    assert x.size <= 9


def test_what_never_runs_says_why_it_first_did_not() -> None:
    def refuse(arrays):
        raise ValueError(f"not {arrays[0].shape[0]}")

    with pytest.raises(NoSample, match="ValueError: not 2"):
        try_sizes(_inputs("f32[n]"), refuse, 0)
    with pytest.raises(NoSample, match="no sizes fit"):
        try_graph(convolution(5000), seed=0)


def test_empty_outputs_are_the_last_choice() -> None:
    (x,) = try_sizes(_inputs("f32[n]"), lambda arrays: [arrays[0][20:]], 0).inputs
    assert len(x) > 20
    assert try_sizes(_inputs("f32[n]"), lambda arrays: [arrays[0][:0]], 0).is_empty


def test_data_come_first() -> None:
    graph = convolution(7)
    x = np.random.default_rng(0).normal(size=(100, 4, 50)).astype(np.float32)
    trial = try_graph(graph, 0, Data({"x": x}, tuple(graph.inputs)))
    np.testing.assert_array_equal(trial.inputs[0], x[:SAMPLES])


def test_integers_that_divide_are_not_0() -> None:
    graph = Graph()
    builder = Builder(graph)
    x, divisor = (builder.input(parse("i64[64]"), name) for name in ("x", "divisor"))
    graph.set_outputs([builder.div(x, divisor)], ["y"])
    trial = try_graph(graph, seed=0)
    assert trial.inputs[1].min() == 1 and trial.outputs[0].tolist() == (trial.inputs[0] // trial.inputs[1]).tolist()


def test_a_tie_behind_quantized_inputs_counts_as_sensitive() -> None:
    """The mean of two neighbouring steps lies on the border between them, whatever the input's last bits are."""
    graph = Graph()
    b = Builder(graph)
    x = b.input(parse("f32[2, 2]"), "x")
    step, zero = np.float32(0.1), np.uint8(0)
    quantized = b.dequantize(b.quantize(x, step, zero), step, zero)
    mean = b.reduce_mean(quantized, np.array([1]), keepdims=1)
    graph.set_outputs([b.dequantize(b.quantize(mean, step, zero), step, zero)])
    inputs = [np.array([[0.3, 0.4], [0.7, 0.2]], np.float32)]
    wanted = execute(graph, inputs)
    assert sensitivity(graph, inputs, wanted, 0, seed=0) > 0.09 / 0.5
    apart = [np.array([[0.3, 0.5], [0.7, 0.3]], np.float32)]  # whole steps: nothing is on a border
    assert sensitivity(graph, apart, execute(graph, apart), 0, seed=0) < 1e-5


def test_what_is_infinite_on_the_way_does_not_move_the_rest() -> None:
    """Buckets by logarithm, as of relative positions: log 0 is clipped, and no index leaves the table."""
    graph = Graph()
    b = Builder(graph)
    middle = b.add(b.relu(b.log(b.input(parse("f32[2, 2]"), "x"))), np.float32(0.5))
    bucket = b.min(middle, np.float32(3.5))
    graph.set_outputs([b.gather(np.arange(4, dtype=np.float32), b.cast(bucket, to=I64))], ["y"])
    inputs = [np.array([[0.0, 1.5], [12.0, 30.0]], np.float32)]
    assert sensitivity(graph, inputs, execute(graph, inputs), 0, seed=0) < 1e-5


def test_counts_are_exact_and_what_must_be_positive_stays_so() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.cast(b.input(parse("i64[2, 2]"), "x"), to=F32)
    row = b.gather(np.arange(8, dtype=np.float32), b.cast(b.floor(x), to=I64))
    graph.set_outputs([b.add(row, b.log(b.exp(b.mul(x, np.float32(-7.3)))))], ["y"])
    inputs = [np.array([[0, 1], [3, 4]])]
    assert 0 < sensitivity(graph, inputs, execute(graph, inputs), 0, seed=0) < 1e-5


@pytest.mark.parametrize("kind", ["cumulative", "large"])
def test_what_rounding_moves_counts_whatever_the_shape(kind: str) -> None:
    """Sums in place, whose end is small beside what was summed; numbers so large that all of them are whole."""
    graph, rng = Graph(), np.random.default_rng(0)
    b = Builder(graph)
    x = b.input(parse("f32[2, 64]"), "x")
    if kind == "cumulative":
        steps = (rng.normal(size=(2, 64)) * 1e5).astype(np.float32)
        steps[:, -1] = 0.3 - steps[:, :-1].sum(1, dtype=float)
        inputs = [np.zeros((2, 64), np.float32)]
        last = b.slice(b.cum_sum(b.add(b.cast(x, to=F32), steps), np.array(1)), np.array([63]), np.array([64]), [1])
        graph.set_outputs([last], ["y"])
    else:
        inputs = [np.round(rng.normal(size=(2, 64)) * 1e6).astype(np.float32)]
        weight = np.round(rng.normal(size=(64, 4)) * 1e3).astype(np.float32)
        graph.set_outputs([b.cos(b.matmul(x, weight))], ["y"])
    assert sensitivity(graph, inputs, execute(graph, inputs), 0, seed=0, change=0.0) > 0.05
