"""Measures what the static rules choose by estimate: the candidates of each question, in turns, on this machine.

Every candidate is the very kernel of the model, compiled on its own. Before each call the nearer caches are emptied, as
other kernels empty them in the model; kernels that are shorter than a clock can tell are called many times.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from espalier.backends.tvm import build, choices, machine, numbers, objects, static
from espalier.backends.tvm.choices import Choice, Choices, Question
from espalier.backends.tvm.frames import integer, loop, sequence
from espalier.cost.measured import Answer, Database, Place
from espalier.ir.graph import Graph
from espalier.runtime.ffi import permitted_threads

Array = np.ndarray[Any, Any]
CLEARLY = 0.97
"""Of the time of what the rule chooses, what another candidate must not exceed."""
LEAST = 100e-6
"""Seconds that a clock can tell well enough."""
SPEED = 4e9
"""Multiplications of vectors in a second, roughly: to guess how often to repeat."""
ROUNDS, FEWEST, ROUND_SECONDS = 25, 5, 0.4
"""In which each candidate has a turn: as many as take so long together."""
ATTEMPTS = 4
"""Calls of which one will not be disturbed by other programs."""
EMPTYING = 4 << 20
"""Bytes that are written over to empty the caches of one core."""


@dataclass
class Tuning:
    """How a model was tuned."""

    measured: int = 0
    """Kernels that were measured now, equal ones once."""
    interrupted: bool = False
    answers: dict[str, Choice] = field(default_factory=dict)


def place(target: Any, threads: int) -> Place:
    """Where what is measured for a target holds."""
    device = f"{target.attrs.get('mcpu', '')} {' '.join(build.instruction_sets(target))}"
    return Place(device, threads, objects.compiler())


def tune(
    graph: Graph, target: Any, threads: int, database: Database, seconds: float, stopped: Callable[[], bool]
) -> Tuning:  # fmt: skip
    """Measure for so long what is not known yet of a graph's kernels, the longest first.

    Each answer is written as soon as it is known. Raises UnsupportedError for what can't be emitted.
    """
    end, here = time.monotonic() + seconds, place(target, threads)
    known = database.choices(here)
    found = Tuning(answers=known)
    left = seconds > 0
    while left:
        survey = Choices(known)
        with choices.using(survey):
            build.written(graph, target)
        left = False
        for question in _longest_first(survey):
            if question.key in known:
                continue
            found.interrupted = stopped()
            if found.interrupted or time.monotonic() >= end:
                return found
            answer = measure(question, target, threads, known, lambda: stopped() or time.monotonic() >= end)
            if answer is None:
                found.interrupted = stopped()
                return found
            database.keep(here, answer)
            known[question.key] = answer.choice
            found.measured += 1
            left = left or question.kind == "convolution"  # another kind of kernel asks other questions
    return found


def _longest_first(survey: Choices) -> list[Question]:
    return sorted(survey.asked.values(), key=lambda each: -each.steps * survey.times[each.key])


def measure(
    question: Question, target: Any, threads: int, known: Mapping[str, Choice], stopped: Callable[[], bool]
) -> Answer | None:  # fmt: skip
    """The fastest candidate: what the rule chooses, unless another is clearly faster. None if it was stopped."""
    with permitted_threads(threads):
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
    buffers: dict[Any, Any] = {}
    repeats = max(1, min(10_000, math.ceil(LEAST * SPEED / max(question.steps, 1.0))))
    calls: list[Callable[[], Any]] = []
    for candidate in question.candidates:
        if stopped():
            return None
        calls.append(_compiled({**known, question.key: candidate}, question, target, repeats, buffers))
    times = _in_turns(calls, threads, stopped)
    if times is None:
        return None
    ratios = np.median(times / times[:, :1], axis=0)
    best = int(np.argmin(ratios))
    if best and ratios[best] < CLEARLY:  # the least of many is low by chance, too
        again = _in_turns([calls[0], calls[best]], threads, stopped)
        if again is None:
            return None
        best = best if float(np.median(again[:, 1] / again[:, 0])) < CLEARLY else 0
    else:
        best = 0
    medians = np.median(times, axis=0) / repeats
    seconds = [(each, float(f"{median:.3g}")) for each, median in zip(question.candidates, medians, strict=True)]
    return Answer(question.key, question.kind, question.facts, question.candidates[best], seconds)


def _in_turns(calls: Sequence[Callable[[], Any]], threads: int, stopped: Callable[[], bool]) -> Array | None:
    """(rounds, calls): seconds. None if it was stopped."""
    clock = time.perf_counter if threads > 1 else time.thread_time  # which leaves other programs out
    room = np.zeros(EMPTYING, np.uint8)
    rows: list[list[float]] = []
    begin = time.perf_counter()
    while len(rows) <= ROUNDS and (len(rows) <= FEWEST or time.perf_counter() - begin < ROUND_SECONDS):
        if stopped():
            return None
        rows.append([_undisturbed(call, clock, room) for call in calls])
    return np.array(rows[1:])  # the first one loads code and pages


def _undisturbed(call: Callable[[], Any], clock: Callable[[], float], room: Array) -> float:
    """Seconds of a call for which the system took the processor from none of our threads, if there is such a call."""
    for _ in range(ATTEMPTS):
        room += 1
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        start = clock()
        call()
        taken = clock() - start
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before:
            break
    return taken


def _compiled(
    known: Mapping[str, Choice], question: Question, target: Any, repeats: int, buffers: dict[Any, Any]
) -> Callable[[], Any]:  # fmt: skip
    """A call of the kernel as these choices make it, `repeats` times."""
    with choices.using(Choices(known)), machine.made_for(machine.of(build.instruction_sets(target))):
        kernel = question.kernel()
    function, own = static.with_pointers(kernel.function)
    parameters = [static.parameter(tensor, f"b{k}") for k, tensor in enumerate(kernel.tensors)]
    rooms = [tirx.decl_buffer([integer(each.size)], "uint8", name=f"r{k}") for k, each in enumerate(own)]
    callee = f"{objects.PREFIX}measured"
    call = static.called(callee, [*map(static.address, parameters), *map(static.address, rooms)])
    body = loop(tirx.Var("n", "int64"), integer(repeats), call)
    main = tirx.PrimFunc([*parameters, *rooms], sequence([body, tirx.Evaluate(integer(0))]),
                         attrs=static.attributes("main"))  # fmt: skip
    functions = tvm.IRModule({tvm.ir.GlobalVar(callee): function, tvm.ir.GlobalVar("main"): main})
    with target:
        library = tirx.build(functions, target, pipeline=objects.PIPELINE)
    arguments = [
        _filled(k, tuple(map(int, tensor.stored_shape)), numbers.buffer_type(tensor.element), buffers)
        for k, tensor in enumerate(kernel.tensors)
    ]
    arguments += [tvm.runtime.empty((max(each.size, 1),), "uint8") for each in own]
    entry = library["main"]
    return lambda: entry(*arguments)


def _filled(position: int, shape: tuple[int, ...], dtype: str, buffers: dict[Any, Any]) -> Any:
    """A buffer of numbers from 0.5 to 1.5, or of zeros, which are valid indices, for integers."""
    key = position, shape, dtype
    if key not in buffers:
        kind = np.dtype(dtype)
        array = np.zeros(shape, kind)
        if kind.kind == "f":
            array += np.random.default_rng(position).random(shape, np.float32).astype(kind) + kind.type(0.5)
        buffers[key] = tvm.runtime.tensor(array)
    return buffers[key]
