"""Dynamic shapes, control flow, refusals, weights, determinism, and the artifact."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.backends.tvm import build, module, trace
from espalier.backends.tvm.emit import TvmBackend
from espalier.cost.device import device
from espalier.errors import InternalError, UnsupportedError
from espalier.ir import Builder, Graph
from espalier.ir.execute import execute, run
from espalier.ir.graph import constant_value
from espalier.ir.types import parse
from espalier.passes import PassManager
from espalier.passes.pipelines import pipeline
from tests.backends.tvm.checks import agree, graph_of, same

RANDOM = np.random.default_rng(1)


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


W, BIAS, HEAD = normal(24, 3, 3, 3), normal(24), normal(24, 10)


def network(b: Builder, x: Any) -> Any:
    y = b.relu(b.conv(x, W, BIAS, pads=(1, 1, 1, 1)))
    y = b.add(y, b.sigmoid(y))
    y = b.flatten(b.global_average_pool(y))
    return b.softmax(b.matmul(y, HEAD))


def test_dynamic_batch_at_several_sizes() -> None:
    agree(network, normal(1, 3, 8, 8), types=["f32[n, 3, 8, 8]"], more=[[normal(2, 3, 8, 8)], [normal(7, 3, 8, 8)]])


def test_dynamic_spatial_axes_that_others_derive_from() -> None:
    def function(b: Builder, x: Any) -> Any:
        y = b.max_pool(b.conv(x, W, BIAS), kernel_shape=(2, 2), strides=(2, 2))
        return b.concat(y, y, axis=2), b.shape(y), b.reduce_mean(y, np.array([2, 3]))

    agree(function, normal(1, 3, 9, 8), types=["f32[n, 3, h, w]"], more=[[normal(3, 3, 12, 17)]])


def test_shapes_that_are_computed_become_symbols() -> None:
    def function(b: Builder, x: Any) -> Any:
        extents = b.shape(x)
        first = b.gather(extents, np.array([0]))
        return b.reshape(b.relu(x), b.concat(first, np.array([-1]), axis=0))

    agree(function, normal(2, 3, 4), types=["f32[n, 3, m]"], more=[[normal(5, 3, 2)]])


def test_attention_with_a_dynamic_length() -> None:
    q, k, v, o = (normal(32, 32) for _ in range(4))

    def function(b: Builder, x: Any) -> Any:
        def heads(w: Any) -> Any:
            return b.transpose(b.reshape(b.matmul(x, w), np.array([0, 0, 4, 8])), perm=(0, 2, 1, 3))

        scores = b.matmul(heads(q), b.transpose(heads(k), perm=(0, 1, 3, 2)))
        mixed = b.matmul(b.softmax(b.mul(scores, 0.35)), heads(v))
        return b.matmul(b.reshape(b.transpose(mixed, perm=(0, 2, 1, 3)), np.array([0, 0, 32])), o)

    agree(function, normal(1, 5, 32), types=["f32[n, t, 32]"], more=[[normal(2, 9, 32)]])


def test_a_branch_is_chosen_at_run_time() -> None:
    def region(name: str) -> Graph:
        inner = Graph(name)
        b = Builder(inner)
        x = b.input(parse("f32[3]"))
        inner.set_outputs([getattr(b, name)(x)])
        return inner

    graph = Graph()
    b = Builder(graph)
    chosen, x = b.input(parse("bool[]"), "c"), b.input(parse("f32[3]"), "x")
    kind = getattr(b, "if")
    graph.set_outputs([kind(chosen, x, regions=[region("exp"), region("neg")], results=1)])
    compiled = build.build(graph, threads=1)
    for flag in (True, False):
        inputs = [np.array(flag), normal(3)]
        same(execute(graph, inputs)[0], compiled(inputs)[0], 1e-6)


def test_graphs_without_nodes_and_outputs_that_are_constants() -> None:
    agree(lambda b, x: (x, b.identity(np.arange(5.0))), normal(3))


def test_one_tensor_as_two_outputs_and_empty_tensors() -> None:
    def function(b: Builder, x: Any) -> Any:
        y = b.exp(x)
        return y, y, b.relu(b.slice(y, np.array([2]), np.array([2]), np.array([0])))

    agree(function, normal(3, 4))


def test_what_depends_on_data_is_refused_by_name() -> None:
    graph = graph_of(lambda b, x: b.non_zero(x), [normal(4)])
    with pytest.raises(UnsupportedError) as caught:
        build.build(graph)
    assert "non_zero" in str(caught.value)
    assert caught.value.hint


def test_random_numbers_are_refused() -> None:
    graph = graph_of(lambda b, x: b.add(x, b.random_normal(shape=(3,))), [normal(3)])
    with pytest.raises(UnsupportedError):
        build.build(graph)


def test_a_symbol_that_no_input_gives_is_refused() -> None:
    graph = graph_of(lambda b, x: b.relu(x), [normal(4)], ["f32[2*n]"])
    with pytest.raises(UnsupportedError, match="E405"):
        build.build(graph)


def test_an_input_whose_extent_derives_from_another() -> None:
    agree(lambda b, x, y: b.concat(b.relu(x), y, axis=0), normal(3), normal(6), types=["f32[n]", "f32[2*n]"])


def test_tvm_derives_no_dimension_itself() -> None:
    """Its shape functions store in the order of addresses, so that libraries would differ from run to run."""

    def function(b: Builder, x: Any, y: Any) -> Any:
        z = b.max_pool(b.conv(x, W, strides=(2, 2)), kernel_shape=(2, 2))
        return b.concat(z, z, axis=3), b.reshape(z, np.array([0, -1])), b.relu(y)

    inputs = [normal(2, 3, 9, 8), normal(16)]
    graph = graph_of(function, inputs, ["f32[n, 3, h, w]", "f32[2*w]"])
    lowered = build.relax_pipeline()(module.write(*trace.trace(graph)).relax)
    names = [variable.name_hint for variable in lowered.get_global_vars()]
    assert [name for name in names if name.startswith("extents")] == ["extents0"]
    assert not [name for name in names if name.startswith("shape_func")]


def test_a_fault_in_a_lowering_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(node: Any, x: Any) -> Any:
        return x.no_such_attribute

    monkeypatch.setitem(trace.LOWERINGS, "relu", faulty)
    with pytest.raises(InternalError, match="E901: the lowering of relu failed: AttributeError"):
        build.build(graph_of(lambda b, x: b.relu(x), [normal(3)]))


def test_a_weight_used_twice_is_one_argument() -> None:
    held = constant_value(normal(64, 64))
    graph = graph_of(lambda b, x: b.add(b.mul(x, held), b.div(x, held)), [normal(64, 64)])
    assert len(build.build(graph, threads=1).weights) == 1


SCRIPT = """
import sys, hashlib, pathlib, numpy as np
from espalier.backends.tvm import build
from espalier.ir import Builder, Graph
from espalier.ir.types import parse
from espalier.passes import PassManager
from espalier.passes.pipelines import pipeline
graph = Graph(); b = Builder(graph); random = np.random.default_rng(0)
x = b.input(parse("f32[n, 3, 8, w]"), "x")
y = b.relu(b.conv(x, random.standard_normal((32, 3, 3, 3)).astype("f4"), strides=(2, 2)))
graph.set_outputs([b.softmax(b.flatten(b.global_average_pool(y))), b.reduce_max(y, np.array([1]))])
build.build(graph, threads=2).save(pathlib.Path(sys.argv[1]) / "model.so")
print(hashlib.sha256((pathlib.Path(sys.argv[1]) / "model.so").read_bytes()).hexdigest())
"""


def test_the_library_is_the_same_in_every_folder_and_under_every_hash_seed(tmp_path: Path) -> None:
    runs = []
    for seed, folder in (("0", "a"), ("1", "b/longer")):
        (tmp_path / folder).mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / folder)]
        runs.append(subprocess.Popen(command, env=environment, cwd=tmp_path / folder, stdout=subprocess.PIPE))
    digests = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(digests) == 1


def test_the_backend_writes_what_the_engine_reads(tmp_path: Path) -> None:
    graph = graph_of(network, [normal(2, 3, 8, 8)], ["f32[n, 3, 8, 8]"])
    emission = TvmBackend().emit(graph, device("cpu"), tmp_path)
    assert emission.engine == "tvm"
    assert set(emission.files) == {"model.so", "libtvm_runtime.so", "weights.safetensors"}
    assert all(path.is_file() for path in emission.files.values())
    assert [tensor["element"] for tensor in emission.section["weights"]["tensors"]] == ["f32"] * 2


@pytest.mark.parametrize("element", ["f32", "f64", "f16"])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_constant_zeros_are_multiplied_and_divided_by_as_other_numbers(element: str, zero: float) -> None:
    graph = Graph("zeros")
    b, x = Builder(graph), graph.add_input(parse(f"{element}[5]"), "x")
    constant = np.asarray(zero, x.element.dtype)
    graph.set_outputs([b.mul(x, constant), b.div(x, constant), b.div(constant, x)], ["product", "quotient", "inverse"])
    inputs = [np.array([1, -1, 0, np.inf, np.nan], x.element.dtype)]
    for found, wanted in zip(build.run(graph, inputs), run(graph, inputs), strict=True):
        np.testing.assert_array_equal(found, wanted)
        numbers = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(wanted[numbers]))


@pytest.mark.parametrize("group", [2, 3])
def test_a_convolution_in_groups_plus_another_one(group: int) -> None:
    graph, rng = Graph("downsampling"), np.random.default_rng(0)
    b, x = Builder(graph), graph.add_input(parse("f32[n, 6, 10, 12]"), "x")
    grouped, plain = rng.normal(size=(6, 6 // group, 3, 3)).astype("f4"), rng.normal(size=(6, 6, 1, 1)).astype("f4")
    before = b.relu(x)
    first, second = b.conv(before, grouped, pads=(1, 1, 1, 1), group=group), b.conv(before, plain)
    graph.set_outputs([b.add(first, second), b.add(second, first)], ["y", "z"])
    inputs = [rng.normal(size=(2, 6, 10, 12)).astype("f4")]
    for found, wanted in zip(build.run(graph, inputs), run(graph, inputs), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("rows", [1, 5])
def test_batches_of_matrices_that_broadcast(rows: int) -> None:
    graph = Graph("broadcast")
    b = Builder(graph)
    x, y = graph.add_input(parse(f"f32[n, {rows}, 6]"), "x"), graph.add_input(parse("f32[m, 6, 7]"), "y")
    graph.set_outputs([b.matmul(x, y)], ["z"])
    compiled = build.build(graph)
    for n, m in ((3, 3), (1, 4), (4, 1)):
        inputs = [normal(n, rows, 6), normal(m, 6, 7)]
        np.testing.assert_allclose(compiled(inputs)[0], inputs[0] @ inputs[1], atol=1e-5)
    with pytest.raises(ValueError, match="must be 1 or the extent"):
        compiled([normal(3, rows, 6), normal(2, 6, 7)])


def test_extents_that_may_be_0_or_do_not_broadcast() -> None:
    graph = Graph("broadcast")
    b = Builder(graph)
    x, y = graph.add_input(parse("f32[n, 4]"), "x"), graph.add_input(parse("f32[m, 4]"), "y")
    graph.set_outputs([b.add(x, y)], ["sum"])
    compiled = build.build(graph)
    for n, m in ((3, 3), (1, 4), (4, 1), (0, 1), (1, 0), (0, 0)):
        inputs = [normal(n, 4), normal(m, 4)]
        (found,) = compiled(inputs)
        np.testing.assert_array_equal(found, inputs[0] + inputs[1])
    with pytest.raises(ValueError, match="must be 1 or the extent"):
        compiled([normal(3, 4), normal(2, 4)])


def test_what_depends_on_whether_nothing_was_found_is_decided_when_it_runs() -> None:
    graph = Graph("guard")
    b = Builder(graph)
    x = graph.add_input(parse("f32[n, 4]"), "x")
    count = b.gather(b.shape(x), np.array(0))
    graph.set_outputs([b.where(b.equal(count, np.array(0)), np.array(-7), count)], ["count"])
    PassManager(pipeline("exact")).run(graph)
    compiled = build.build(graph)
    for n in (0, 1, 3):
        assert compiled([normal(n, 4)])[0] == execute(graph, [normal(n, 4)])[0] == (n or -7)
