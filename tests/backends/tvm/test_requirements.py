"""Extents that must fit, known only at run time: refused by what is compiled and by reference execution alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import espalier
from espalier import runtime
from espalier.backends.tvm import build, trace
from espalier.errors import EspalierError, InputError
from espalier.ir import Builder, Graph, Value
from espalier.ir.execute import execute
from espalier.ir.types import parse
from espalier.runtime.errors import REFUSAL
from tests.backends.tvm.checks import graph_of, same

Shapes = list[tuple[int, ...]]
KERNEL = np.arange(72, dtype=np.float32).reshape(4, 2, 3, 3) / 72


def counted(*shape: int) -> Any:
    return (np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape) + 1) / 8


def total(b: Any, x: Any) -> Any:
    return b.reduce_sum(x, keepdims=0)


def recurrent(kind: str) -> Any:
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    w, r = counted(1, gates * 4, 3) / 40, counted(1, gates * 4, 4) / 40
    return lambda b, x, h: getattr(b, kind)(x, w, r, None, None, h, hidden_size=4, results=1)


def places(b: Any, x: Any, like: Any) -> Any:
    """Index 0 everywhere."""
    return b.expand(np.array([[0]]), b.shape(like))


CASES: dict[str, tuple[Any, list[str], list[Shapes], list[Shapes]]] = {
    "matmul": (lambda b, x, y: b.matmul(x, y), ["f32[s, t]", "f32[u, 4]"],
               [[(2, 3), (3, 4)], [(2, 0), (0, 4)]], [[(2, 3), (5, 4)], [(2, 5), (3, 4)], [(2, 1), (3, 4)]]),
    "gemm": (lambda b, x, y, c: b.gemm(x, y, c), ["f32[s, t]", "f32[u, 4]", "f32[v, 4]"],
             [[(2, 3), (3, 4), (2, 4)], [(2, 3), (3, 4), (1, 4)]],
             [[(2, 3), (4, 4), (1, 4)], [(2, 3), (3, 4), (3, 4)]]),
    "einsum": (lambda b, x, y: b.einsum(x, y, subscripts="ij,jk->ik"), ["f32[s, t]", "f32[u, v]"],
               [[(2, 3), (3, 4)]], [[(2, 3), (5, 4)], [(2, 5), (3, 4)]]),
    "attention": (lambda b, q, k, v: b.matmul(b.softmax(b.matmul(q, k)), v), ["f32[s, 4]", "f32[4, t]", "f32[u, 4]"],
                  [[(2, 4), (4, 3), (3, 4)]], [[(2, 4), (4, 3), (5, 4)]]),
    "conv channels": (lambda b, x: b.conv(x, KERNEL), ["f32[n, c, 5, 5]"], [[(1, 2, 5, 5)]],
                      [[(1, 3, 5, 5)], [(1, 1, 5, 5)]]),
    "concat": (lambda b, x, y: b.concat(x, y, axis=1), ["f32[s, 2]", "f32[u, 2]"],
               [[(2, 2), (2, 2)]], [[(2, 2), (3, 2)], [(3, 2), (2, 2)], [(1, 2), (3, 2)]]),
    "reshape": (lambda b, x: b.reshape(x, np.array([2, 6])), ["f32[s, t]"], [[(3, 4)]], [[(3, 5)], [(2, 2)]]),
    "depth_to_space": (lambda b, x: b.depth_to_space(x, blocksize=2), ["f32[n, c, h, w]"],
                       [[(1, 4, 2, 2)]], [[(1, 5, 2, 2)]]),
    "scatter": (lambda b, x, like, u: b.scatter_elements(x, places(b, x, like), u),
                ["f32[s, 3]", "f32[a, 3]", "f32[b, 3]"],
                [[(3, 3), (1, 3), (1, 3)]], [[(3, 3), (2, 3), (1, 3)], [(3, 3), (1, 3), (2, 3)]]),
    "rnn": (recurrent("rnn"), ["f32[t, b, 3]", "f32[1, c, 4]"], [[(2, 2, 3), (1, 2, 4)]], [[(2, 4, 3), (1, 2, 4)]]),
    "gru": (recurrent("gru"), ["f32[t, b, 3]", "f32[1, c, 4]"], [[(2, 2, 3), (1, 2, 4)]], [[(2, 4, 3), (1, 2, 4)]]),
    "lstm": (recurrent("lstm"), ["f32[t, b, 3]", "f32[1, c, 4]"], [[(2, 2, 3), (1, 2, 4)]], [[(2, 4, 3), (1, 2, 4)]]),
    "reflect": (lambda b, x: b.pad(x, np.array([2, 0, 1, 0]), mode="reflect"), ["f32[s, 3]"],
                [[(4, 3)], [(3, 3)]], [[(2, 3)], [(1, 3)]]),
    "conv": (lambda b, x: b.conv(x, KERNEL), ["f32[n, 2, h, w]"], [[(1, 2, 4, 4)]], [[(1, 2, 1, 1)], [(1, 2, 1, 4)]]),
    "conv and sum": (lambda b, x: total(b, b.conv(x, KERNEL)), ["f32[n, 2, h, w]"],
                     [[(1, 2, 4, 4)]], [[(1, 2, 1, 1)], [(1, 2, 1, 4)]]),
    "conv and mean": (lambda b, x: b.global_average_pool(b.conv(x, KERNEL)), ["f32[n, 2, h, w]"],
                      [[(1, 2, 4, 4)]], [[(1, 2, 1, 1)], [(1, 2, 4, 1)]]),
    "max_pool": (lambda b, x: b.max_pool(x, kernel_shape=(3, 3)), ["f32[n, 2, h, w]"],
                 [[(1, 2, 4, 4)]], [[(1, 2, 1, 1)], [(1, 2, 1, 4)]]),
    "arg_max": (lambda b, x: b.arg_max(x, axis=0), ["f32[s, 3]"], [[(2, 3)]], [[(0, 3)]]),
    "top_k": (lambda b, x: b.top_k(x, np.array([3]), axis=0), ["f32[s]"], [[(5,)]], [[(2,)]]),
    "squeeze": (lambda b, x: b.squeeze(x, np.array([0])), ["f32[s, 3]"], [[(1, 3)]], [[(2, 3)], [(0, 3)]]),
    "broadcast": (lambda b, x, y: total(b, b.add(x, y)), ["f32[s]", "f32[t]"],
                  [[(3,), (3,)], [(1,), (4,)], [(0,), (1,)]], [[(3,), (4,)], [(0,), (4,)]]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_extents_that_do_not_fit_are_refused(name: str) -> None:
    model, types, fitting, refused = CASES[name]
    graph = graph_of(model, [counted(*shape) for shape in fitting[0]], types)
    compiled = build.build(graph, threads=1)
    for shapes in fitting:
        arrays = [counted(*shape) for shape in shapes]
        for wanted, found in zip(execute(graph, arrays), compiled(arrays), strict=True):
            same(wanted, found, 1e-5)
    for shapes in refused:
        arrays = [counted(*shape) for shape in shapes]
        with pytest.raises(ValueError, match=f"{REFUSAL}.*extents do not fit"):
            compiled(arrays)
        with pytest.raises(InputError, match="E207"):
            execute(graph, arrays)


def test_what_is_known_needs_no_check() -> None:
    def model(b: Any, x: Any) -> Any:
        y = b.reshape(x, np.array([0, -1, 4]))
        y = b.softmax(b.matmul(y, b.transpose(y, perm=(0, 2, 1))))
        return b.concat(b.add(y, y), y, axis=2)

    graph = graph_of(model, [counted(2, 3, 2, 2)], ["f32[n, t, 2, 2]"])
    assert not trace.checked(graph)[2]
    fixed = graph_of(model, [counted(2, 3, 2, 2)])
    assert not trace.checked(fixed)[2]


def test_an_artifact_says_which_operator_refuses(tmp_path: Path) -> None:
    model, types, fitting, refused = CASES["matmul"]
    graph = graph_of(model, [counted(*shape) for shape in fitting[0]], types)
    espalier.compile(graph, output=tmp_path / "artifact", backend="tvm", verify="none")
    with runtime.load(tmp_path / "artifact", threads=1) as loaded:
        with pytest.raises(EspalierError, match="matmul: extents do not fit: u must be t") as caught:
            loaded(*(counted(*shape) for shape in refused[0]))
        assert caught.value.code == "E709"
        assert loaded(*(counted(*shape) for shape in fitting[0]))


def branching(then: Any, other: Any, *types: str) -> Graph:
    """If c then `then(b, *inputs)` else `other(b, *inputs)`."""
    graph = Graph("if")
    inputs = [graph.add_input(parse(type), f"x{k}") for k, type in enumerate(types)]
    condition = graph.add_input(parse("bool[]"), "c")

    def region(body: Any) -> Graph:
        inner = Graph("branch")
        held = [inner.add_input(value.type, value.name) for value in inputs]
        found: Value = body(Builder(inner), *held)
        inner.set_outputs([found], ["y"])
        return inner

    found = getattr(Builder(graph), "if")(condition, *inputs, results=1, regions=[region(then), region(other)])
    graph.set_outputs([found[0] if isinstance(found, tuple) else found], ["y"])
    return graph


BRANCHES: dict[str, tuple[Any, list[str], list[Any], list[Any]]] = {
    "index": (lambda b, x, i: b.gather(x, i), ["f32[4]", "i64[]"], [counted(4), np.array(2)],
              [counted(4), np.array(9)]),
    "index of an empty axis": (lambda b, x, i: total(b, b.gather(x, i)), ["f32[n, m]", "i64[1]"],
                               [counted(4, 2), np.array([3])], [counted(0, 3000), np.array([0])]),
    "matmul": (lambda b, x, y: total(b, b.matmul(x, y)), ["f32[s, t]", "f32[u, 4]"],
               [counted(2, 3), counted(3, 4)], [counted(2, 3000), counted(1, 4)]),
    "reshape": (lambda b, x, y: total(b, b.mul(b.reshape(x, np.array([2, 3])), y)), ["f32[s, t]", "f32[1]"],
                [counted(3, 2), counted(1)], [counted(1, 2), counted(1)]),
    "broadcast": (lambda b, x, y: total(b, b.add(x, y)), ["f32[s]", "f32[t]"],
                  [counted(3), counted(3)], [counted(3), counted(4)]),
    "arg_max": (lambda b, x, y: total(b, b.cast(b.arg_max(x, axis=0), to=y.type.element)), ["f32[s, 2]", "f32[1]"],
                [counted(3, 2), counted(1)], [counted(0, 2), counted(1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_that_are_not_taken_refuse_nothing(name: str) -> None:
    body, types, fitting, outside = BRANCHES[name]

    def plain(b: Any, x: Any, _: Any) -> Any:
        return b.reduce_sum(x, keepdims=0)

    for first in (True, False):
        graph = branching(body, plain, *types) if first else branching(plain, body, *types)
        compiled = build.build(graph, threads=1)
        for taken in (True, False):
            inputs = [*fitting, np.array(taken)]
            (wanted,), (found,) = execute(graph, inputs), compiled(inputs)
            assert found.ndim == 0
            same(wanted, found, 1e-5)
        with pytest.raises((ValueError, IndexError), match=REFUSAL):
            compiled([*outside, np.array(first)])
        inputs = [*outside, np.array(not first)]
        same(execute(graph, inputs)[0], compiled(inputs)[0], 1e-5)


def test_extents_derived_from_others_are_compared(tmp_path: Path) -> None:
    graph = graph_of(lambda b, x, y: b.concat(x, y, axis=0), [counted(2), counted(4)], ["f32[n]", "f32[2*n]"])
    espalier.compile(graph, output=tmp_path / "artifact", backend="tvm", verify="none")
    with runtime.load(tmp_path / "artifact", threads=1) as loaded:
        (found,) = loaded(counted(2), counted(4)).values()
        np.testing.assert_array_equal(found, np.concatenate([counted(2), counted(4)]))
        with pytest.raises(EspalierError, match=r"input 1 must be 2\*n") as caught:
            loaded(counted(2), counted(5))
        assert caught.value.code == "E709"
