"""ONNX's own backend cases through the importer, the exact passes and the backends.

Three shares: import and reference execution, where a node that stays opaque counts as failed; ONNX → graph → exact
passes → ONNX → onnxruntime, over the cases that onnxruntime itself passes; the TVM backend. Tolerances are each case's
own. Left out are cases on strings, sequences of strings, ImageDecoder and random generators. A wrong answer anywhere
fails the bar `never_wrong`, whatever the shares; answers outside a case's tolerance by no more than the rounding of its
largest expected element are told apart, and do not count as passed.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.common import Benchmark
from benchmarks.onnx_cases import Case, cases, compare, left_out, within_rounding

REFERENCE, EXPORT, TVM, PEER = "reference", "onnxruntime", "tvm", "peer"
BARS = {REFERENCE: 0.98, EXPORT: 0.99, TVM: 0.85}
QUICK = {REFERENCE: 8, EXPORT: 16, TVM: 150}
"""With --quick, every how many-th case is run."""
PATIENCE, QUICK_PATIENCE = 180, 20
"""Seconds after which a case counts as hung."""


class Wrong(Exception):
    """An answer that differs from the expected one."""


class Rounded(Wrong):
    """One that differs by less than rounding the largest expected element to its type can: not passed, yet not wrong.

    The expected outputs of a few cases hold such noise themselves, and a tolerance below it.
    """


def check(case: Case, run: Callable[[list[Any]], list[Any]]) -> None:
    """Run every data set of a case. Raises Wrong for other outputs than the expected ones."""
    for inputs, outputs in case.data:
        found = run(inputs)
        difference = compare(outputs, found, case.rtol, case.atol)
        if difference is not None:
            raise (Rounded if within_rounding(outputs, found) else Wrong)(difference)


def imported(case: Case) -> Any:
    from espalier.frontends import onnx as frontend

    return frontend.load(case.model)


def reference(case: Case) -> None:
    """Import and run the reference; raises if a node is opaque."""
    from espalier.ir.execute import execute
    from espalier.ir.verify import verify

    graph = imported(case)
    opaque = [node.op.op_type for each in graph.all_graphs() for node in each if node.op.name == "opaque"]
    if opaque:
        raise NotImplementedError(f"opaque: {', '.join(sorted(set(opaque)))}")
    verify(graph)
    check(case, lambda inputs: execute(graph, inputs))


def onnxruntime_runner(model: Any) -> Callable[[list[Any]], list[Any]]:
    """A function that runs a model in onnxruntime; inputs that models have as initializers need not be given."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    held = {tensor.name for tensor in model.graph.initializer}
    names = [info.name for info in model.graph.input]

    def run(inputs: list[Any]) -> list[Any]:
        inputs = [np.asarray(value) if isinstance(value, np.generic) else value for value in inputs]
        given = names if len(inputs) == len(names) else [name for name in names if name not in held]
        feed = dict(zip(given, inputs, strict=True))
        if any(isinstance(value, np.ndarray) and value.dtype.isbuiltin != 1 for value in feed.values()):
            values = {name: _ort_value(value) for name, value in feed.items()}
            return [value.numpy() for value in session.run_with_ort_values(None, values)]
        return list(session.run(None, feed))

    return run


def _ort_value(array: Any) -> Any:
    """An array for onnxruntime, also of elements that numpy itself does not have."""
    import onnxruntime
    from onnx import helper

    if array.dtype.isbuiltin == 1:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    code = helper.np_dtype_to_tensor_dtype(array.dtype)
    raw = array.view(f"u{array.dtype.itemsize}")
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, code)


def peer(case: Case) -> None:
    """onnxruntime alone."""
    check(case, onnxruntime_runner(case.model))


def simplified(case: Case) -> Any:
    """The graph after the exact passes."""
    from espalier.passes import PassManager
    from espalier.passes.pipelines import pipeline

    graph = imported(case)
    PassManager(pipeline("exact"), verify="structure").run(graph)
    return graph


def export(case: Case) -> None:
    """Import, run the exact passes, export, and run onnxruntime."""
    import onnx

    from espalier.backends.onnx import to_model

    model = to_model(simplified(case))
    onnx.checker.check_model(model)
    check(case, onnxruntime_runner(model))


def tvm(case: Case) -> str | None:
    """Import, run the exact passes, compile with TVM, and run.

    Where the shape of a result depends on what an input holds (TVM compiles none of those), the inputs that carry
    shapes, axes and the like are made constants first; then it says so.
    """
    from espalier.backends.tvm import build
    from espalier.errors import UnsupportedError
    from espalier.passes import PassManager
    from espalier.passes.pipelines import pipeline

    try:
        check(case, build.build(simplified(case), threads=1))
        return None
    except UnsupportedError:
        for inputs, outputs in case.data:
            graph = simplified(case)
            if not build.freeze(graph, inputs):
                raise
            PassManager(pipeline("exact"), verify="structure").run(graph)
            check(
                Case(case.name, case.kind, case.model, [(inputs, outputs)], case.rtol, case.atol),
                build.build(graph, threads=1),
            )
        return "frozen"


FUNCTIONS: dict[str, Callable[[Case], str | None]] = {PEER: peer, REFERENCE: reference, EXPORT: export, TVM: tvm}


@dataclass
class Outcome:
    """What became of one case in one figure."""

    kind: str
    """passed, refused, rounded, wrong, or crashed"""
    text: str = ""


def outcome(case: Case, figure: str) -> Outcome:
    """Run one case in one figure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Outcome("passed", FUNCTIONS[figure](case) or "")
    except Wrong as difference:
        return Outcome("rounded" if isinstance(difference, Rounded) else "wrong", str(difference))
    except Exception as error:  # whatever refuses a case
        return Outcome("refused", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def work(jobs: list[tuple[Case, str]], start: int, pipe: Connection) -> None:
    """The life of a worker: outcomes of the jobs from one on, in order."""
    logging = os.open(os.devnull, os.O_WRONLY)
    os.dup2(logging, 2)
    for position in range(start, len(jobs)):
        pipe.send((position, outcome(*jobs[position])))
    pipe.close()


def run_all(jobs: list[tuple[Case, str]], patience: float, tell: Callable[[int], None]) -> list[Outcome]:
    """The outcome of every job, from a process that is started again where it dies or hangs."""
    context = multiprocessing.get_context("fork")
    found: list[Outcome] = []
    while len(found) < len(jobs):
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(jobs, len(found), send))
        worker.start()
        send.close()
        try:
            while receive.poll(patience):
                position, result = receive.recv()
                assert position == len(found)
                found.append(result)
                tell(len(found))
            found.append(Outcome("crashed", f"no answer in {patience} s"))
        except EOFError:
            if len(found) < len(jobs):
                worker.join()
                found.append(Outcome("crashed", f"the process ended with {worker.exitcode}"))
        worker.kill()
        worker.join()
    return found


def main() -> None:
    benchmark = Benchmark("conformance", __doc__)
    benchmark.parser.add_argument("--only", metavar="TEXT", help="cases whose name holds this")
    benchmark.parser.add_argument("--figures", default=",".join(BARS), help="which of the three (default all)")
    arguments = benchmark.parse()
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = [name for name in BARS if name in arguments.figures.split(",")]
    omitted: Counter[str] = Counter()
    counted: list[Case] = []
    for case in cases():
        reason = left_out(case)
        if reason is None:
            counted.append(case)
        else:
            omitted[reason] += 1
    chosen = [case for case in counted if not arguments.only or arguments.only in case.name]
    total = len(counted) + sum(omitted.values())
    benchmark.details["left_out"] = dict(omitted)
    benchmark.details["figures"] = figures = {}
    wrong: dict[str, str] = {}
    patience = QUICK_PATIENCE if arguments.quick else PATIENCE
    for name in wanted:
        picked = chosen[:: QUICK[name]] if arguments.quick else chosen
        if name == EXPORT:
            peers = run_all([(case, PEER) for case in picked], patience, lambda done: None)
            picked = [case for case, alone in zip(picked, peers, strict=True) if alone.kind == "passed"]
        outcomes = run_all(
            [(case, name) for case in picked],
            patience,
            lambda done, name=name: done % 250 or benchmark.say(f"{name}: {done}"),
        )
        kinds = {kind: {} for kind in ("passed", "refused", "rounded", "wrong", "crashed")}
        for case, result in zip(picked, outcomes, strict=True):
            kinds[result.kind][case.name] = result.text
        passed = kinds.pop("passed")
        figures[name] = {"cases": len(picked), "passed": len(passed), **kinds}
        wrong.update({f"{name}: {case}": text for case, text in kinds["wrong"].items()})
        share = len(passed) / max(1, len(picked))
        words = f"≥ {BARS[name]:.0%} of {len(picked)} cases ({len(counted)} of {total} count)"
        frozen = sum(text == "frozen" for text in passed.values())
        note = f"{frozen} of them with the inputs that carry shapes made constant" if frozen else None
        benchmark.bar(name, round(share, 5), words, share >= BARS[name], note)
        for kind, names in kinds.items():
            benchmark.say(f"{name}: {kind} {len(names)}")
    benchmark.bar("never_wrong", len(wrong), "0 wrong answers", not wrong)
    for where, text in wrong.items():
        benchmark.say(f"wrong, {where}: {text}")
    benchmark.finish()


if __name__ == "__main__":
    main()
