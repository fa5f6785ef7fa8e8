"""The arena: exact liveness, places that never overlap, kernels in place, and outputs where the caller wants them."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.backends.tvm import build, memory, static
from espalier.ir import Builder, Graph, Value
from espalier.ir.execute import execute
from espalier.ir.graph import constant_value
from espalier.ir.types import parse

Make = Callable[[Builder, Value], Any]


def lifetimes(seed: int, count: int) -> list[memory.Lifetime]:
    """Of a chain of tensors of which some are read again later."""
    chance = random.Random(seed)
    found = []
    for k in range(count):
        size = chance.choice([1, 49, 196, 784, 3136]) * chance.choice([4, 64, 256, 1000])
        later = k + 1 if chance.random() < 0.7 else k + chance.randint(1, 12)
        found.append(memory.Lifetime(size, k, min(later, count)))
    return found


@pytest.mark.parametrize("count", [0, 1, 8, 30, 120])
def test_places_do_not_overlap_and_come_close_to_the_bound(count: int) -> None:
    for seed in range(12):
        given = lifetimes(seed, count)
        arena = memory.plan(given)
        ends = [offset + each.size for offset, each in zip(arena.offsets, given, strict=True)]
        for (i, a), (j, b) in itertools.combinations(enumerate(given), 2):
            if a.first <= b.last and b.first <= a.last:
                assert ends[i] <= arena.offsets[j] or ends[j] <= arena.offsets[i]
        live = [sum(memory.rounded(x.size) for x in given if x.first <= t <= x.last) for t in range(count + 1)]
        assert arena.lower_bound == max(live)
        assert max(ends, default=0) <= arena.bytes <= 1.03 * arena.lower_bound
        assert all(offset % memory.ALIGNMENT == 0 for offset in arena.offsets)
        assert memory.plan(given) == arena


def test_the_search_finds_what_first_fit_misses() -> None:
    chance = random.Random(3)
    improved = 0
    for _ in range(20):
        given = []
        for _ in range(24):
            first = chance.randrange(24)
            given.append(memory.Lifetime(chance.randint(1, 100_000), first, min(23, first + chance.randrange(9))))
        order = sorted(range(24), key=lambda k: -given[k].size)
        plain = memory._placed(given, memory._neighbours(given), order)[1]
        improved += memory.plan(given).bytes < plain
        assert memory.plan(given).bytes <= plain
    assert improved


def graph(make: Make, type: str = "f32[1, 8, 12, 12]") -> Graph:
    made = Graph("g")
    outputs = make(Builder(made), made.add_input(parse(type), "x"))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    made.set_outputs(outputs, [f"y{k}" for k in range(len(outputs))])
    return made


def agree(make: Make, type: str = "f32[1, 8, 12, 12]", seed: int = 0) -> build.Compiled:
    made = graph(make, type)
    x = np.random.default_rng(seed).normal(size=tuple(made.inputs[0].shape)).astype("f4")
    compiled = build.build(made, threads=1)
    assert compiled.arena is not None
    for want, have in zip(execute(made, [x]), compiled([x]), strict=True):
        np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5)
    return compiled


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(sum(shape)).normal(size=shape) / 8).astype("f4")


def far(b: Builder, x: Value) -> Value:
    """What no kernel fuses with anything else: running sums."""
    result: Value = b.cum_sum(x, np.array(x.type.rank - 1))
    return result


def networks() -> dict[str, Make]:
    def residual(b: Builder, x: Value) -> Any:
        for _ in range(3):
            y = b.relu(b.conv(x, weight(8, 8, 3, 3), pads=(1, 1, 1, 1)))
            x = b.relu(b.add(x, b.conv(y, weight(8, 8, 3, 3), pads=(1, 1, 1, 1))))
        return x

    def branches(b: Builder, x: Value) -> Any:
        parts = [b.conv(x, weight(4, 8, 1, 1)), b.conv(x, weight(8, 8, 3, 3), pads=(1, 1, 1, 1)), b.relu(x)]
        return b.softmax(b.concat(*parts, axis=1), axis=1)

    def attention(b: Builder, x: Value) -> Any:
        x = b.reshape(x, np.array([8, 12, 12]))
        scores = b.softmax(b.matmul(x, b.transpose(x, perm=(0, 2, 1))), axis=-1)
        return b.matmul(scores, x)

    return {"residual": residual, "branches": branches, "attention": attention}


@pytest.mark.parametrize("name", networks())
def test_networks_agree_and_their_arena_is_close_to_the_bound(name: str) -> None:
    compiled = agree(networks()[name])
    assert compiled.arena is not None and 0 < compiled.arena.bytes <= 1.03 * compiled.arena.lower_bound


@pytest.mark.parametrize("make", [
    lambda b, x: x,
    lambda b, x: [x, x],
    lambda b, x: [b.relu(x), x],
    lambda b, x: (lambda y: [y, y, b.reshape(y, np.array([-1]))])(b.relu(x)),
    lambda b, x: (lambda y: [y, far(b, y)])(b.relu(x)),
    lambda b, x: [constant_value(weight(3, 5)), b.relu(x)],
    lambda b, x: [b.reshape(x, np.array([8, -1])), b.reshape(constant_value(weight(4, 6)), np.array([3, 8]))],
    lambda b, x: list(b.top_k(x, np.array([3]), axis=-1)),
    lambda b, x: b.reduce_sum(x),
    lambda b, x: b.slice(x, np.array([0]), np.array([0]), np.array([1])),
])  # fmt: skip
def test_outputs_may_be_inputs_constants_and_one_another(make: Make) -> None:
    agree(make)


def in_place(make: Make) -> int:
    """Kernels that take over the bytes of an operand."""
    made = graph(make)
    with build.machine.made_for(build.machine.of(())):
        writer = static.Writer(*build.trace.trace(made))
        writer.write()
    agree(make)
    return len(writer.shares)


def test_kernels_work_in_place_where_nobody_reads_the_operand_later() -> None:
    assert in_place(lambda b, x: far(b, b.exp(far(b, x)))) == 1
    assert in_place(lambda b, x: far(b, b.add(b.exp(far(b, x)), x))) == 1
    # Read again later, read elsewhere as well, of another shape: each needs bytes of its own.
    assert in_place(lambda b, x: (lambda y: b.add(far(b, b.exp(y)), y))(far(b, x))) == 0
    assert in_place(lambda b, x: (lambda y: far(b, b.add(y, b.transpose(y, perm=(0, 1, 3, 2)))))(far(b, x))) == 0
    assert in_place(lambda b, x: far(b, b.transpose(far(b, x), perm=(0, 1, 3, 2)))) == 0


def test_large_buffers_of_kernels_lie_in_the_arena() -> None:
    """The serial sort of a long axis needs a spare copy: bytes of the arena, not of the heap."""
    compiled = agree(lambda b, x: b.top_k(b.reshape(x, np.array([-1])), np.array([7]), axis=-1)[0], "f32[40, 100]")
    assert compiled.arena is not None and compiled.arena.bytes >= 2 * 8 * 4000
    assert "TVMBackendAllocWorkspace" not in compiled.executable.inspect_source("ll")


def test_small_kernels_are_not_taken_apart_by_the_optimizer() -> None:
    """Places of the arena are used again: a kernel may not read one before another has written it there."""
    rng = np.random.default_rng(0)

    def scores(b: Builder, x: Value) -> Value:
        q, k = (
            b.transpose(
                b.reshape(b.matmul(x, rng.normal(size=(5, 12)).astype("f4")), np.array([0, 6, 3, 4])), perm=perm
            )
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1])
        )
        return b.softmax(b.matmul(q, k), axis=-1)

    compiled = agree(scores, "f32[1, 6, 5]")
    library = compiled.executable.inspect_source("ll")
    calls = [line for line in library.splitlines() if " call " in line and "@kernel_" in line]
    assert len(calls) >= 5


def test_inputs_need_no_alignment_beyond_their_elements() -> None:
    import tvm
    import tvm_ffi

    for make in networks().values():
        made = graph(make)
        compiled = build.build(made, threads=1)
        assert compiled.arena is not None
        x = np.random.default_rng(0).normal(size=(1, 8, 12, 12)).astype("f4")
        room = np.empty(x.nbytes + 128, np.uint8)
        start = -room.ctypes.data % 64 + 4
        shifted = room[start : start + x.nbytes].view("f4").reshape(x.shape)
        shifted[...] = x
        tensors = [tvm_ffi.from_dlpack(shifted)]
        tensors += [tvm.runtime.tensor(memory.block(compiled.weights))] if compiled.weights else []
        output = tvm.runtime.empty(tuple(map(int, made.outputs[0].shape)), "float32")
        compiled.executable["main"](*tensors, tvm.runtime.empty((compiled.arena.bytes,), "uint8"), output)
        np.testing.assert_array_equal(output.numpy(), compiled([x])[0])


def test_libraries_are_the_same_each_time(tmp_path: Path) -> None:
    for name, make in networks().items():
        for k in range(2):
            build.build(graph(make), threads=1).save(tmp_path / f"{name}{k}.so")
        assert (tmp_path / f"{name}0.so").read_bytes() == (tmp_path / f"{name}1.so").read_bytes()


def test_shapes_that_vary_have_no_arena() -> None:
    made = graph(lambda b, x: b.relu(x), "f32[n, 3]")
    compiled = build.build(made)
    assert compiled.arena is None
    x = np.arange(6, dtype="f4").reshape(2, 3) - 3
    np.testing.assert_array_equal(compiled([x])[0], np.maximum(x, 0))


def test_planning_thousands_of_nested_lifetimes_is_quick() -> None:
    count = 3000
    nested = [
        memory.Lifetime(64 * (1 + k * 37 % 101), k, count - 1 - k)
        if k < count // 2
        else memory.Lifetime(64 * (1 + k * 37 % 101), k, k + 1)
        for k in range(count)
    ]
    start = time.process_time()
    plan = memory.plan(nested)
    assert time.process_time() - start < 8  # where each is looked at by each in turn, it takes 20
    assert plan.bytes <= 1.01 * plan.lower_bound
    middle = count // 2 - 1
    taken = sorted(
        (offset, offset + memory.rounded(each.size))
        for offset, each in zip(plan.offsets, nested, strict=True)
        if each.first <= middle <= each.last
    )
    assert len(taken) == count // 2
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(taken))


def test_first_fit_of_few_and_of_many_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    begins, lengths = chance.integers(0, 60, 150), chance.integers(0, 40, 150)
    lifetimes = [
        memory.Lifetime(int(size), int(first), int(first + length))
        for size, first, length in zip(chance.integers(0, 5000, 150), begins, lengths, strict=True)
    ]
    found = []
    for few in (0, 1000):
        monkeypatch.setattr(memory, "FEW", few)
        found.append(memory.plan(lifetimes))
    assert found[0].bytes == found[1].bytes
