"""How fast this machine multiplies and reads at best: what a profile's shares are shares of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from espalier.backends.tvm import build, dots, machine, objects
from espalier.backends.tvm.frames import integer, knowing, loop, sequence
from espalier.backends.tvm.numbers import immediate
from espalier.backends.tvm.static import attributes
from espalier.backends.tvm.tensor import Expr
from espalier.runtime.ffi import permitted_threads

STEPS = 100_000
"""Steps of a thread in a run."""
CHAINS = 12
"""Registers that each step changes: enough to hide how long an instruction takes."""
READ = 128 << 20
"""Bytes that are read in a run: more than caches hold."""
RUNS = 9


def peaks(threads: int) -> dict[str, float]:
    """Multiply–accumulates in a second by element ("f32"; "i8", "bf16" where there are dot products), and "bytes" read.

    Each is the best of some runs, so one of this machine as it is at the moment.
    """
    with permitted_threads(threads):
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
    target = build.host_target(threads)
    current = machine.of(build.instruction_sets(target))
    lanes = current.lanes
    with machine.made_for(current):
        half = tirx.Broadcast(immediate(0.5, "float32"), lanes)
        seconds = _run(target, threads, "float32", STEPS, lambda total, place: total * half + half)
        found = {"f32": threads * STEPS * CHAINS * lanes / seconds}
        for name, dot, one in (("i8", current.dot, 0x01010101), ("bf16", current.bf16, 0x3F803F80)):
            if dot is not None:
                found[name] = _products(target, threads, dot, one)
    steps = READ // (4 * threads * CHAINS * lanes)
    source = tirx.decl_buffer([integer(threads * steps * CHAINS * lanes)], "float32", name="x")

    def added(total: Expr, place: Expr) -> Expr:
        return total + tirx.BufferLoad(source, [tirx.Ramp(place * integer(lanes), integer(1), lanes)])

    array = tvm.runtime.tensor(np.ones(threads * steps * CHAINS * lanes, np.float32))
    seconds = _run(target, threads, "float32", steps, added, [(source, array)])
    return {**found, "bytes": threads * steps * CHAINS * lanes * 4 / seconds}


def _products(target: Any, threads: int, dot: machine.Dot, ones: int) -> float:
    """Multiply–accumulates in a second by an instruction; `ones` are the bits of a lane's narrow numbers, all 1."""
    lanes = machine.current().lanes
    factor, whole = tirx.Broadcast(immediate(ones, "int32"), lanes), f"{dot.second}x{dot.count * lanes}"
    seconds = _run(
        target, threads, dot.sums, STEPS,
        lambda total, place: dots.multiplied(dot, total, factor, tirx.reinterpret(whole, total)), functions=dot.llvm,
    )  # fmt: skip
    return threads * STEPS * CHAINS * lanes * dot.count / seconds


def _run(
    target: Any, threads: int, dtype: str, steps: int, step: Callable[[Expr, Expr], Expr],
    given: Sequence[tuple[Expr, Any]] = (), functions: str = "",
) -> float:  # fmt: skip
    """Seconds in which every thread does so many steps on each of its registers; `step(register, number)`."""
    lanes = machine.of(build.instruction_sets(target)).lanes
    out = tirx.decl_buffer([integer(threads * lanes)], dtype, name="y")
    cells = [tirx.decl_buffer([integer(1)], f"{dtype}x{lanes}", name=f"s{k}") for k in range(CHAINS)]
    whole = [integer(0)]
    held = [tirx.BufferLoad(cell, whole) for cell in cells]
    thread, number = (tirx.Var(name, "int64") for name in "ti")
    first = (thread * integer(steps) + number) * integer(CHAINS)
    inner = sequence([
        tirx.BufferStore(cell, step(old, first + integer(k)), whole)
        for k, (cell, old) in enumerate(zip(cells, held, strict=True))
    ])  # fmt: skip
    total = held[0]
    for each in held[1:]:
        total = total + each
    start = tirx.Broadcast(immediate(0, dtype), lanes)
    ramp = tirx.Ramp(thread * integer(lanes), integer(1), lanes)
    body = loop(thread, integer(threads), sequence([
        *map(tirx.AllocBuffer, cells), *(tirx.BufferStore(cell, start, whole) for cell in cells),
        loop(number, integer(steps), inner), tirx.BufferStore(out, total, [ramp]),
    ]), "parallel" if threads > 1 else "serial")  # fmt: skip
    body = knowing(functions, body)
    main = tirx.PrimFunc([*(buffer for buffer, _ in given), out], body, attrs=attributes("main"))
    with target:
        entry = tirx.build(tvm.IRModule({tvm.ir.GlobalVar("main"): main}), target, pipeline=objects.PIPELINE)["main"]
    arguments = [*(array for _, array in given), tvm.runtime.empty((threads * lanes,), dtype)]
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        entry(*arguments)
        times.append(time.perf_counter() - begin)
    return min(times)
