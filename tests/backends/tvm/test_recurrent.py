"""Recurrent layers as one kernel against the reference executor, and ONNX's own cases."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper

import espalier
from espalier.backends.onnx import to_model
from espalier.backends.tvm import build, fuse, trace
from espalier.backends.tvm.tensor import Program
from espalier.frontends import onnx as frontend
from espalier.ir import Builder, Graph
from espalier.ir.execute import execute
from tests.backends.tvm.checks import agree, graph_of, same

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
STATES = {"rnn": 1, "gru": 1, "lstm": 2}
ACTIVATIONS = {"rnn": ("Tanh",), "gru": ("Sigmoid", "Tanh"), "lstm": ("Sigmoid", "Tanh", "Tanh")}


class Layer:
    """A layer with random weights; `function` builds it on its input and whatever else is no constant."""

    def __init__(
        self, kind: str, *, hidden: int = 20, inputs: int = 7, batch: int = 3, time: int = 5, seed: int = 0,
        bias: bool = True, initial: bool = True, lengths: bool = False, peepholes: bool = False,
        dtype: Any = np.float32, **attributes: Any,
    ) -> None:  # fmt: skip
        self.random, self.dtype = np.random.default_rng(seed), np.dtype(dtype)
        self.kind, self.hidden, self.inputs, self.attributes = kind, hidden, inputs, attributes
        directions = 2 if attributes.get("direction") == "bidirectional" else 1
        gates = GATES[kind]
        self.first = attributes.get("layout") == 1
        self.weights = [self.normal(directions, gates * hidden, size) for size in (inputs, hidden)]
        self.weights[1] *= self.dtype.type(min(1, 4 / hidden**0.5))  # or rounding errors would grow from step to step
        self.bias = self.normal(directions, 2 * gates * hidden) if bias else None
        state = (batch, directions, hidden) if self.first else (directions, batch, hidden)
        self.initial = [self.normal(*state) if initial else None for _ in range(STATES[kind])]
        self.lengths = self.random.integers(0, time + 1, batch).astype(np.int32) if lengths else None
        self.peepholes = [self.normal(directions, 3 * hidden)] if peepholes else []
        self.x = self.input(time, batch)

    def normal(self, *shape: int) -> Any:
        return (self.random.standard_normal(shape) * 0.5).astype(self.dtype)

    def input(self, time: int, batch: int) -> Any:
        return self.normal(batch, time, self.inputs) if self.first else self.normal(time, batch, self.inputs)

    def function(self, b: Builder, x: Any) -> Any:
        operands = [*self.weights, self.bias, self.lengths, *self.initial, *self.peepholes]
        build_layer: Callable[..., Any] = getattr(b, self.kind)
        return build_layer(x, *operands, hidden_size=self.hidden, results=1 + STATES[self.kind], **self.attributes)


def programs(layer: Layer, types: list[str] | None = None) -> list[Program]:
    """The kernels of a traced layer that loop over time."""
    _, outputs = trace.trace(graph_of(layer.function, [layer.x], types or []))
    return [tensor for tensor in fuse.in_order(outputs) if isinstance(tensor, Program)]


def check(layer: Layer, tolerance: float = 1e-5) -> None:
    """The layer is one kernel, and agrees."""
    assert len(programs(layer)) == 1
    agree(layer.function, layer.x, tolerance=tolerance)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
def test_directions_and_layouts(kind: str, direction: str, layout: int) -> None:
    check(Layer(kind, direction=direction, layout=layout))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
def test_sequences_that_end_early(kind: str, direction: str, layout: int) -> None:
    check(Layer(kind, direction=direction, layout=layout, lengths=True, batch=6, time=4))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_sequences_without_a_step_end_as_in_onnxruntime(kind: str, direction: str) -> None:
    layer = Layer(kind, direction=direction, lengths=True, batch=3, time=4)
    layer.lengths = np.array([2, 0, 4], np.int32)
    check(layer)
    graph = graph_of(layer.function, [layer.x], [])
    session = onnxruntime.InferenceSession(to_model(graph).SerializeToString())
    for wanted, found in zip(
        session.run(None, {graph.inputs[0].name: layer.x}), execute(graph, [layer.x]), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("initial", [False, True])
def test_what_may_be_left_out(kind: str, bias: bool, initial: bool) -> None:
    check(Layer(kind, bias=bias, initial=initial))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("attributes", [{}, {"direction": "bidirectional", "lengths": True}, {"clip": 0.3}])
def test_gru_that_resets_after_the_product(bias: bool, attributes: Any) -> None:
    check(Layer("gru", linear_before_reset=1, bias=bias, **attributes))


@pytest.mark.parametrize("attributes", [
    {"peepholes": True}, {"peepholes": True, "direction": "bidirectional", "bias": False}, {"input_forget": 1},
    {"input_forget": 1, "peepholes": True, "clip": 0.4}, {"clip": 0.2},
])  # fmt: skip
def test_lstm_variants(attributes: Any) -> None:
    check(Layer("lstm", **attributes))


OTHERS = ("Relu", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign")


@pytest.mark.parametrize("name", OTHERS)
def test_other_activations(name: str) -> None:
    check(Layer("rnn", activations=(name,), activation_alpha=(0.3,), activation_beta=(0.2,)))


def test_activations_that_differ_between_directions() -> None:
    given = ("HardSigmoid", "Relu", "Softsign", "Sigmoid", "Tanh", "ScaledTanh")
    check(Layer("lstm", direction="bidirectional", activations=given, lengths=True))


def test_an_activation_with_a_loop_is_left_to_the_reference() -> None:
    layer = Layer("rnn", activations=("Softplus",))
    assert not programs(layer)
    agree(layer.function, layer.x)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("hidden", [1, 16, 90])
def test_sizes(kind: str, hidden: int) -> None:
    check(Layer(kind, hidden=hidden, inputs=1, batch=1, time=1))
    check(Layer(kind, hidden=hidden, inputs=24, batch=10, time=3, direction="bidirectional"))


@pytest.mark.parametrize("kind", GATES)
def test_threads_share_the_hidden_units_of_large_layers(kind: str) -> None:
    layer = Layer(kind, hidden=300, inputs=3, batch=70, time=2, direction="bidirectional", lengths=True)
    check(layer, tolerance=2e-5)
    graph = graph_of(layer.function, [layer.x])
    for want, have in zip(execute(graph, [layer.x]), build.build(graph, threads=2)([layer.x]), strict=True):
        same(want, have, 2e-5)


SHARED = [
    ("lstm", {"hidden": 136, "batch": 1}), ("lstm", {"hidden": 360, "batch": 9, "lengths": True, "time": 4}),
    ("lstm", {"hidden": 130, "batch": 1, "direction": "reverse", "layout": 1, "peepholes": True, "time": 2}),
    ("lstm", {"hidden": 144, "batch": 2, "lengths": True, "time": 1, "bias": False}),
    ("rnn", {"hidden": 257, "batch": 1}), ("gru", {"hidden": 250, "batch": 1, "initial": False}),
    ("gru", {"hidden": 250, "batch": 3, "lengths": True}),
    ("gru", {"hidden": 150, "batch": 1, "linear_before_reset": 1, "time": 8}),
]  # fmt: skip
"""Layers whose hidden units threads share, in tiles that not every number of threads shares evenly."""


def artifact(layer: Layer, path: Path) -> Graph:
    """Write the artifact of a layer at its static shape; gives the graph."""
    graph = graph_of(layer.function, [layer.x])
    graph.set_outputs(list(graph.outputs), [f"y{k}" for k in range(len(graph.outputs))])
    espalier.compile(graph, backend="tvm", output=path, verify="none")
    return graph


@pytest.mark.parametrize(("kind", "about"), SHARED)
def test_any_number_of_threads_gives_the_same(
    kind: str, about: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    layer = Layer(kind, **about)
    graph = artifact(layer, tmp_path / "layer")
    wanted = execute(graph, [layer.x])

    def answers(threads: int) -> list[Any]:
        found = list(espalier.runtime.load(tmp_path / "layer", threads=threads)(layer.x).values())
        if Path("/proc/self/task").exists():
            assert len(list(Path("/proc/self/task").iterdir())) > threads
        return found

    found = []
    for threads in (1, 2, 3, 16):
        with ThreadPoolExecutor(1) as fresh:  # TVM's workers are a thread's own, and as many as it began with
            found.append(fresh.submit(answers, threads).result())
    for want, have in zip(wanted, found[0], strict=True):
        same(want, have, 1e-5)
    for other in found[1:]:
        for one, another in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, another)


def test_sixteen_callers_wait_for_their_own_workers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    layer = Layer("lstm", hidden=136, batch=1, time=20)
    artifact(layer, tmp_path / "layer")
    model = espalier.runtime.load(tmp_path / "layer", threads=2)
    given = [layer.input(20, 1) for _ in range(16)]
    wanted = [model(x) for x in given]
    together = threading.Barrier(16)

    def right(k: int) -> bool:
        together.wait()
        found = [model(given[k]) for _ in range(5)]
        return all(np.array_equal(each[name], wanted[k][name]) for each in found for name in each)

    with ThreadPoolExecutor(16) as callers:
        assert all(callers.map(right, range(16)))


def test_two_directions_of_dynamic_batch_and_many_units() -> None:
    layer = Layer("rnn", initial=False, hidden=2064, time=2, direction="bidirectional")
    agree(layer.function, layer.x, types=["f32[t, n, 7]"], more=[[layer.input(1, 1)]])


@pytest.mark.parametrize("kind", GATES)
def test_dynamic_time_and_batch_of_layers_whose_units_threads_share(kind: str) -> None:
    layer = Layer(kind, initial=False, hidden=260, time=2)
    more = [[layer.input(time, batch)] for time, batch in ((1, 1), (5, 1), (4, 2), (3, 7), (2, 8))]
    agree(layer.function, layer.x, types=["f32[t, n, 7]"], more=more)
    one = Layer(kind, hidden=260, time=2, batch=1)
    agree(one.function, one.x, types=["f32[t, 1, 7]"], more=[[one.input(time, 1)] for time in (1, 6)])


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("hidden", [20, 260])
def test_no_step_leaves_the_states(kind: str, hidden: int) -> None:
    layer = Layer(kind, hidden=hidden, batch=1)
    compiled = build.build(graph_of(layer.function, [layer.x], ["f32[t, 1, 7]"]), threads=2)
    y, *states = compiled([layer.input(0, 1)])
    assert y.shape == (0, 1, 1, hidden)
    for state, initial in zip(states, layer.initial, strict=True):
        np.testing.assert_array_equal(state, initial)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("kind", GATES)
def test_other_elements(kind: str, dtype: Any) -> None:
    check(Layer(kind, dtype=dtype, lengths=True), tolerance=1e-12 if dtype is np.float64 else 1e-3)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("layout", [0, 1])
def test_dynamic_time_and_batch(kind: str, layout: int) -> None:
    layer = Layer(kind, initial=False, direction="bidirectional", layout=layout)
    types = ["f32[t, n, 7]"] if layout == 0 else ["f32[n, t, 7]"]
    assert len(programs(layer, types)) == 1
    more = [[layer.input(time, batch)] for time, batch in ((1, 1), (9, 4), (2, 11), (17, 1))]
    agree(layer.function, layer.x, types=types, more=more)


def test_dynamic_lengths_and_states_as_inputs() -> None:
    random, hidden = np.random.default_rng(3), 24

    def given(time: int, batch: int) -> list[Any]:
        shapes = (time, batch, 5), (1, batch, hidden), (1, batch, hidden)
        x, h, c = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
        return [x, random.integers(0, time + 1, batch).astype(np.int32), h, c]

    w, r, bias = (random.standard_normal(s).astype(np.float32) * 0.3 for s in ((1, 96, 5), (1, 96, 24), (1, 192)))

    def function(b: Builder, x: Any, lengths: Any, h: Any, c: Any) -> Any:
        return b.lstm(x, w, r, bias, lengths, h, c, hidden_size=hidden, results=3)

    types = ["f32[t, n, 5]", "i32[n]", "f32[1, n, 24]", "f32[1, n, 24]"]
    agree(function, *given(6, 3), types=types, more=[given(1, 1), given(12, 7)])


@pytest.mark.parametrize("kind", GATES)
def test_weights_that_are_no_constants(kind: str) -> None:
    layer = Layer(kind, direction="bidirectional")

    def function(b: Builder, x: Any, w: Any, r: Any, bias: Any) -> Any:
        return getattr(b, kind)(x, w, r, bias, hidden_size=20, direction="bidirectional", results=2)

    agree(function, layer.x, *layer.weights, layer.bias)


def test_layers_after_each_other_and_results_that_nobody_reads() -> None:
    one, two = Layer("lstm", seed=1, initial=False), Layer("gru", seed=2, inputs=20, initial=False)

    def function(b: Builder, x: Any) -> Any:
        hidden = b.squeeze(one.function(b, b.relu(x))[0], np.array([1]))
        return b.tanh(two.function(b, hidden)[1])

    agree(function, one.x)


def test_a_long_sequence_compiles_in_one_go() -> None:
    layer = Layer("lstm", hidden=32, time=3000, batch=1)
    check(layer, tolerance=1e-4)


def node_cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    return [test for test in tests if any(name in test.name for name in ("_lstm_", "_gru_", "_rnn_", "simple_rnn"))]


def array(given: Any) -> Any:
    return given if isinstance(given, np.ndarray) else numpy_helper.to_array(given)


def test_onnx_has_cases_of_each_layer() -> None:
    assert len(node_cases()) >= 11


@pytest.mark.parametrize("case", node_cases(), ids=lambda case: case.name)
def test_onnx_cases(case: Any) -> None:
    compiled = build.build(frontend.load(case.model), threads=1)
    for inputs, outputs in case.data_sets:
        found = compiled([array(x) for x in inputs])
        for want, have in zip(outputs, found, strict=True):
            np.testing.assert_allclose(have, array(want), rtol=case.rtol, atol=case.atol)


def test_many_layers_at_random() -> None:
    """Attributes drawn together; each layer is compared at its static shape."""
    random = np.random.default_rng(5)

    def choice(*options: Any) -> Any:
        return options[int(random.integers(len(options)))]

    for seed in range(12):
        kind = choice(*GATES)
        extra: dict[str, Any] = {"clip": float(choice(0.3, 1.0, 3.0))} if random.random() < 0.3 else {}
        if kind == "lstm":
            extra |= {"peepholes": choice(False, True), "input_forget": choice(0, 1)}
        if kind == "gru":
            extra["linear_before_reset"] = choice(0, 1)
        layer = Layer(
            kind, seed=seed, hidden=choice(3, 17, 40), inputs=choice(2, 19), batch=choice(1, 2, 5, 9),
            time=choice(1, 4, 7), bias=choice(False, True), initial=choice(False, True), lengths=choice(False, True),
            direction=choice("forward", "reverse", "bidirectional"), layout=choice(0, 1), **extra,
        )  # fmt: skip
        graph = graph_of(layer.function, [layer.x])
        for want, have in zip(execute(graph, [layer.x]), build.build(graph, threads=1)([layer.x]), strict=True):
            same(want, have, 1e-5)
