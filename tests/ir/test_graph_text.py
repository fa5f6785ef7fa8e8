"""The text form, hashing, verification and execution on random graphs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import InputError
from espalier.ir import Builder, Graph, parse, structural_hash, to_text, verify
from espalier.ir.clone import clone
from espalier.ir.dims import is_static, symbol
from espalier.ir.execute import execute
from espalier.ir.graph import Location, constant_value
from espalier.ir.text import TextError, literal, parse_literal
from espalier.ir.types import TensorType
from espalier.ir.types import parse as type_of
from tests.ir.graphs import random_graph, random_inputs

seeds = st.integers(0, 2**32 - 1)
relaxed = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def weights(graph: Graph) -> dict[str, object]:
    return {value.constant.digest: value.constant for value in graph.constants() if value.constant is not None}


@relaxed
@given(seeds)
def test_text_reads_back_as_the_same_graph(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    text = to_text(graph)
    again = parse(text, weights(graph))  # type: ignore[arg-type]
    verify(again)
    assert to_text(again) == text
    assert structural_hash(again) == structural_hash(graph)
    inputs = random_inputs(graph, rng)
    for a, b in zip(execute(graph, inputs), execute(again, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


@relaxed
@given(seeds)
def test_random_graphs_verify_and_run_as_typed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    verify(graph)
    for output, array in zip(graph.outputs, execute(graph, random_inputs(graph, rng)), strict=True):
        assert isinstance(output.type, TensorType)
        assert array.dtype == output.element.dtype
        assert output.shape is not None
        assert array.ndim == output.rank
        if is_static(output.shape):
            assert array.shape == output.shape


@relaxed
@given(seeds)
def test_clones_are_equal_and_independent(seed: int) -> None:
    graph = random_graph(np.random.default_rng(seed))
    text = to_text(graph)
    copy = clone(graph)
    assert to_text(copy) == text
    verify(copy)
    copy.set_outputs([Builder(copy).relu(copy.outputs[0])])
    assert to_text(graph) == text
    verify(graph)


@relaxed
@given(seeds)
def test_hash_ignores_names_but_not_attributes_and_weights(seed: int) -> None:
    graph = random_graph(np.random.default_rng(seed))
    named = random_graph(np.random.default_rng(seed))
    for node in named:
        for result in node.results:
            result.name = "another name"
    named.name = "another"
    assert structural_hash(named) == structural_hash(graph)
    wider = Builder(named).leaky_relu(named.outputs[0], alpha=0.25)
    named.set_outputs([wider, *named.outputs[1:]])
    hashed = structural_hash(named)
    assert hashed != structural_hash(graph)
    node = wider.producer
    named.set_op(node, node.op.replace(alpha=0.5))
    assert structural_hash(named) != hashed


def test_hash_tells_inputs_that_nothing_uses() -> None:
    def build(*types: str) -> Graph:
        graph = Graph()
        inputs = [graph.add_input(type_of(text)) for text in types]
        graph.set_outputs([Builder(graph).relu(inputs[0])])
        return graph

    signatures = [("f32[2]",), ("f32[2]", "f32[3]"), ("f32[2]", "i64[3]"), ("f32[2]", "f32[3]", "f32[3]")]
    assert len({structural_hash(build(*types)) for types in signatures}) == len(signatures)


def test_names_of_any_characters_read_back() -> None:
    graph = Graph('a "graph"')
    b = Builder(graph, location=Location(("\U0001f600",), ("é\\",)))
    x = b.input(type_of("f32[3]"), "x")
    x.type = TensorType(x.element, (symbol("\U0001f600"), symbol("n") * 2))
    graph.set_outputs([b.relu(x)], ["\U0001f600\n"])
    text = to_text(graph)
    again = parse(text)
    assert text.isascii() and to_text(again) == text
    assert again.inputs[0].type == x.type and again.output_names == ["\U0001f600\n"]
    assert structural_hash(again) == structural_hash(graph)


def test_hash_of_weights_and_order() -> None:
    def build(scale: float, swapped: bool) -> Graph:
        graph = Graph()
        b = Builder(graph)
        x = b.input(type_of("f32[3]"), "x")
        made = [lambda: b.relu(x), lambda: b.mul(x, constant_value(np.full(3, scale, np.float32)))]
        parts = {k: made[k]() for k in ((1, 0) if swapped else (0, 1))}
        graph.set_outputs([b.add(parts[0], parts[1])])
        return graph

    assert structural_hash(build(1, False)) == structural_hash(build(1, True))
    assert structural_hash(build(1, False)) != structural_hash(build(2, False))
    assert structural_hash(build(1, False), weights=False) == structural_hash(build(2, False), weights=False)


def test_text_and_hash_do_not_depend_on_hash_seeds() -> None:
    program = (
        "import numpy as np; from tests.ir.graphs import random_graph;"
        "from espalier.ir import to_text, structural_hash;"
        "g = random_graph(np.random.default_rng(7), 30); print(structural_hash(g)); print(to_text(g))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p) or "."},
            capture_output=True, check=True, text=True,
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(printed) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends inside"),
        ("nonsense", "a graph begins with"),
        ('graph "g" {\n input %0 "x": f32[3]\n %1 = relu(%7) {} : f32[3] "y"\n}', "%7 is not defined"),
        ('graph "g" {\n input %0 "x": f77[3]\n}', "f77"),
        ('graph "g" {\n input %0 "x": f32[3]\n %1 = no_such(%0) {} : f32[3] "y"\n}', "no_such"),
        ('graph "g" {\n input %0 "x": f32[3]\n %1 = relu(%0) {speed=3} : f32[3] "y"\n}', "speed"),
        ('graph "g" {\n %0 = constant "w": f32[2] sha256:00\n}', "no weight with this hash"),
        ('graph "g" {\n input %0 "x": f32[3]\n %1 = relu(%0) {} : f32[3] "y"\n', "ends inside"),
        (
            'graph "g" {\n input %0 "x": f32[2]\n %1 = transpose(%0) {perm=(1, 0)} : f32[2] "y"\n}',
            "^E301: line 3: .*perm",
        ),
        ('graph "g" {\n input %0 "x": f32[3]\n %1 = relu(%0) {a=[} : f32[3] "y"\n}', "^E301: line 3: not a literal"),
        ('graph "g" {\n input %0 "x": f32[3]\n %1, %2 = relu(%0) {} : f32[3] "y"\n}', "^E301: line 3: "),
        ('graph "g" {\n %0 = constant "w": f32[2] (1, 2, 3)\n}', "^E301: line 2: "),
        ('graph "\\x" {\n}', "^E301: line 1: "),
    ],
)
def test_text_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(TextError, match=message) as caught:
        parse(text)
    assert isinstance(caught.value, InputError)
    assert caught.value.code == "E301"


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)


@given(literals)
def test_literals_read_back(value: object) -> None:
    assert repr(parse_literal(literal(value))) == repr(value)


@given(st.text(), st.binary(), st.floats())
def test_any_attributes_survive(text: str, data: bytes, number: float) -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(type_of("f32[2]"), "x")
    y = b.opaque(x, domain=text, op_type="Any", node=data, result_types=("f32[2]",), results=1)
    graph.set_outputs([b.leaky_relu(y, alpha=number)])
    again = parse(to_text(graph))
    assert [node.op for node in again] == [node.op for node in graph]
    assert to_text(again) == to_text(graph)


@given(st.text(), st.text())
def test_any_names_survive(name: str, output: str) -> None:
    graph = Graph(name)
    b = Builder(graph)
    x = b.input(type_of("f32[2]"), name)
    y = b.add(x, constant_value(np.ones(2, np.float32), name=output))
    y.name = output
    graph.set_outputs([y], [name])
    again = parse(to_text(graph), weights(graph))  # type: ignore[arg-type]
    assert to_text(again) == to_text(graph)
    assert (again.name, again.inputs[0].name, again.outputs[0].name) == (name, name, output)
    assert again.output_names == [name]
