"""Mixed precision: what is rounded to bf16, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime

from espalier.backends.onnx import save
from espalier.ir import Builder, Graph, TensorType, Value, constant_value, elements, verify
from espalier.ir.dims import symbol
from espalier.ir.execute import execute
from espalier.ir.ops import Add, Cast, Conv, Gather, MatMul
from espalier.passes import PassManager, parse_spec


def start(*shape: Any) -> tuple[Graph, Builder, Value]:
    graph = Graph()
    builder = Builder(graph)
    return graph, builder, builder.input(TensorType(elements.F32, shape), "x")


def numbers(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def narrowed(graph: Graph) -> int:
    """The pass's rewrites; the graph is well-formed afterwards."""
    report = PassManager([parse_spec("mixed_precision")], verify="none").run(graph)
    verify(graph, "types")
    return report.rewrites


def rounded(array: Any) -> Any:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_both_factors_are_rounded_and_nothing_else() -> None:
    graph, b, x = start(1, 3, 8, 8)
    w, bias = numbers(0, 5, 3, 3, 3), numbers(1, 5)
    graph.set_outputs([b.exp(b.conv(x, w, bias))], ["y"])
    image = numbers(2, 1, 3, 8, 8)
    assert narrowed(graph) == 2
    plain, c, same = start(1, 3, 8, 8)
    plain.set_outputs([c.exp(c.conv(same, rounded(w), bias))], ["y"])
    np.testing.assert_array_equal(execute(graph, [image])[0], execute(plain, [rounded(image)])[0])


def test_a_residual_is_kept_in_bf16_only() -> None:
    graph, b, x = start(symbol("N"), 4, 8, 8)
    y = b.relu(x)
    graph.set_outputs([b.add(b.conv(y, numbers(0, 4, 4, 1, 1)), y)], ["y"])
    assert narrowed(graph) == 2
    (add,) = (node for node in graph if node.is_a(Add))
    (conv,) = (node for node in graph if node.is_a(Conv))
    wide = add.operand(1)
    assert wide is conv.operand(0)
    assert wide.producer is not None
    assert wide.producer.is_a(Cast)
    assert wide.producer.operand(0).element == elements.BF16


def test_outputs_stay_in_f32() -> None:
    graph, b, x = start(2, 6)
    y = b.relu(x)
    graph.set_outputs([y, b.matmul(y, numbers(0, 6, 3))], ["y", "z"])
    given = numbers(1, 2, 6)
    narrowed(graph)
    np.testing.assert_array_equal(execute(graph, [given])[0], np.maximum(given, 0))


def test_large_products_of_two_activations_are_rounded_too() -> None:
    graph, b, x = start(symbol("N"), 3, 40, 33)
    graph.set_outputs([b.matmul(x, b.relu(b.transpose(x, perm=(0, 1, 3, 2))))], ["y"])
    given = numbers(1, 2, 3, 40, 33)
    assert narrowed(graph) == 2
    wanted = rounded(given) @ np.maximum(rounded(given), 0).swapaxes(2, 3)
    np.testing.assert_allclose(execute(graph, [given])[0], wanted, rtol=1e-5, atol=1e-5)


def test_queries_and_keys_are_rounded_but_not_values() -> None:
    graph, b, q = start(2, 4, 40, 32)
    k, v = (b.input(TensorType(elements.F32, (2, 4, 48, 32)), name) for name in "kv")
    graph.set_outputs([b.attention(q, k, v, results=1)], ["y"])
    assert narrowed(graph) == 2
    plain, c, q = start(2, 4, 40, 32)
    k, v = (c.input(TensorType(elements.F32, (2, 4, 48, 32)), name) for name in "kv")
    plain.set_outputs([c.attention(q, k, v, results=1)], ["y"])
    given = [numbers(0, 2, 4, 40, 32), numbers(1, 2, 4, 48, 32), numbers(2, 2, 4, 48, 32)]
    wanted = execute(plain, [rounded(given[0]), rounded(given[1]), given[2]])[0]
    np.testing.assert_array_equal(execute(graph, given)[0], wanted)


def test_keys_that_are_given_back_stay_in_f32() -> None:
    graph, b, q = start(2, 4, 40, 32)
    y, key, value = b.attention(q, q, q, results=3)
    graph.set_outputs([y, key, value], ["y", "key", "value"])
    assert narrowed(graph) == 0


def test_small_products_of_two_activations_and_other_elements_stay() -> None:
    graph, b, x = start(4, 4)
    y = b.matmul(x, b.transpose(x, perm=(1, 0)))
    wide = b.matmul(b.cast(y, to=elements.F64), numbers(0, 4, 4).astype(np.float64))
    graph.set_outputs([wide], ["y"])
    assert narrowed(graph) == 0


def test_a_second_time_changes_nothing() -> None:
    graph, b, x = start(2, 6)
    graph.set_outputs([b.matmul(b.relu(b.matmul(x, numbers(0, 6, 6))), numbers(1, 6, 3))], ["y"])
    assert narrowed(graph) == 4
    assert narrowed(graph) == 0


def test_tied_weights_stay_tied() -> None:
    graph = Graph()
    b = Builder(graph)
    index = b.input(TensorType(elements.I64, (3,)), "index")
    table = constant_value(numbers(0, 10, 10), name="table")
    graph.set_outputs([b.matmul(b.gather(table, index), table)], ["y"])
    narrowed(graph)
    (gather,) = (node for node in graph if node.is_a(Gather))
    (product,) = (node for node in graph if node.is_a(MatMul))
    assert gather.operand(0) is product.operand(1)
    assert sum(constant.constant.nbytes for constant in graph.constants() if constant.constant) == 2 * 100


def test_stop_after_counts_each_rounded_tensor() -> None:
    graph, b, x = start(2, 6)
    graph.set_outputs([b.matmul(x, numbers(0, 6, 3))], ["y"])
    PassManager([parse_spec("mixed_precision")], verify="none", stop_after=1).run(graph)
    verify(graph, "types")
    assert sum(node.is_a(Cast) for node in graph) == 2


def test_regions_see_what_was_rounded_outside() -> None:
    graph, b, x = start(2, 6)
    then, other = Graph("then"), Graph("other")
    for region, seed in ((then, 1), (other, 2)):
        inner = Builder(region)
        given = inner.input(TensorType(elements.F32, (2, 6)), "x")
        region.set_outputs([inner.matmul(given, numbers(seed, 6, 3))], ["y"])
    chosen = b.greater(b.reduce_sum(x, keepdims=0), np.float32(0))
    branch = getattr(b, "if")(chosen, x, results=1, regions=[then, other])
    graph.set_outputs([b.add(branch, b.matmul(x, numbers(0, 6, 3)))], ["y"])
    before = execute(graph, [numbers(3, 2, 6)])[0]
    assert narrowed(graph) == 6
    np.testing.assert_allclose(execute(graph, [numbers(3, 2, 6)])[0], before, atol=0.1)


def test_recurrent_layers_round_inputs_and_matrices() -> None:
    graph, b, x = start(4, 2, 6)
    w, r = numbers(0, 1, 32, 6), numbers(1, 1, 32, 8)
    graph.set_outputs([b.lstm(x, w, r, numbers(2, 1, 64), hidden_size=8, results=1)], ["y"])
    assert narrowed(graph) == 3
    plain, c, same = start(4, 2, 6)
    plain.set_outputs([c.lstm(same, rounded(w), rounded(r), numbers(2, 1, 64), hidden_size=8, results=1)], ["y"])
    given = numbers(3, 4, 2, 6)
    np.testing.assert_array_equal(execute(graph, [given])[0], execute(plain, [rounded(given)])[0])


def test_onnxruntime_computes_the_same(tmp_path: Path) -> None:
    graph, b, x = start(1, 4, 9, 9)
    y = b.relu(b.conv(x, numbers(0, 8, 4, 3, 3), numbers(1, 8), pads=(1, 1, 1, 1)))
    graph.set_outputs([b.gemm(b.flatten(b.global_average_pool(y)), numbers(2, 8, 3), numbers(3, 3))], ["y"])
    narrowed(graph)
    image = numbers(4, 1, 4, 9, 9)
    save(graph, tmp_path / "narrow.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "narrow.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": image})[0], execute(graph, [image])[0], rtol=2e-2, atol=1e-3)
