"""One engine with one model in a process of its own, driven by lines of JSON on stdin and stdout.

    {"do": "load", "engine": "onnxruntime", "model": …, "inputs": …, "threads": 1, "precision": "fp32", …}
    {"do": "time", "repeats": 5}        milliseconds of every call, after one that is not timed
    {"do": "outputs", "to": FILE}       the outputs, in order, as output_0, output_1, … of an .npz file
    {"do": "crowd", "threads": 16}      calls from that many threads at once, compared with calls one by one
    {"do": "memory"}                    the largest resident set of this process so far, in bytes
    {"do": "quit"}

Each gets one line back; {"failed": …} if it went wrong. Only numpy and the engine are imported, so that memory is the
engine's own and the environments of peers need nothing else.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Call = Callable[[dict[str, Array]], Sequence[Array]]
ALIGNMENT = 64
PR_SET_PDEATHSIG = 1


# ---- the engines -----------------------------------------------------------------------------------------------


def load_espalier(task: dict[str, Any]) -> tuple[Call, str]:
    """An artifact through espalier's runtime; the compiler stays out of this process."""
    from espalier import __version__, runtime

    model = runtime.load(task["artifact"], threads=task["threads"])
    names = [spec.name for spec in model.outputs]

    def call(inputs: dict[str, Array]) -> list[Array]:
        outputs = model(inputs)
        return [outputs[name] for name in names]

    return call, __version__


def load_onnxruntime(task: dict[str, Any]) -> tuple[Call, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task["threads"], 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(task["model"], options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: session.run(names, inputs), onnxruntime.__version__


def load_openvino(task: dict[str, Any]) -> tuple[Call, str]:
    """The CPU plug-in at the precision that is asked for: left alone it would choose bf16 where the CPU has it."""
    import openvino

    floats = "bf16" if task["precision"] == "bf16" else "f32"
    settings = {
        "INFERENCE_NUM_THREADS": task["threads"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": floats,
        "ENABLE_HYPER_THREADING": True,  # two threads on one core are what a machine may have
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits for whatever else runs on its core; ours may move, too
    }
    compiled = openvino.Core().compile_model(task["model"], "CPU", settings)
    request = compiled.create_infer_request()
    count = len(compiled.outputs)

    def call(inputs: dict[str, Array]) -> list[Array]:
        found = request.infer(inputs, share_inputs=True, share_outputs=True)
        return [found[k] for k in range(count)]

    return call, openvino.__version__.partition("-")[0]


def load_torch(task: dict[str, Any]) -> tuple[Call, str]:
    """torch.compile with freezing, of the module that the file was exported from."""
    import torch
    import torch._inductor.config as inductor

    from benchmarks.zoo.deployment import MODELS

    if task["state"] is None:
        raise ValueError("the model came as an ONNX file: there is no torch module of it")
    torch.set_num_threads(task["threads"])
    inductor.freezing = True
    kind = torch.bfloat16 if task["precision"] == "bf16" else torch.float32
    module = MODELS[task["name"]].build()
    module.load_state_dict(torch.load(task["state"], weights_only=True))
    compiled = torch.compile(module.eval().to(kind), dynamic=False)

    def call(inputs: dict[str, Array]) -> list[Array]:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        tensors = {name: t.to(kind) if t.is_floating_point() else t for name, t in tensors.items()}
        with torch.inference_mode():
            found = compiled(**tensors)
        outputs = [found] if isinstance(found, torch.Tensor) else list(found)
        return [output.float().numpy() for output in outputs]

    return call, torch.__version__


ENGINES: dict[str, Callable[[dict[str, Any]], tuple[Call, str]]] = {
    "espalier": load_espalier,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "torch": load_torch,
}


# ---- what they are asked ---------------------------------------------------------------------------------------


def aligned(array: Array) -> Array:
    """A copy whose first element is at a multiple of 64 bytes, which all engines can take without a copy."""
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy: Array = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Worker:
    """A loaded model and the inputs that it is called with."""

    def __init__(self, task: dict[str, Any]) -> None:
        with np.load(task["inputs"]) as file:
            self.inputs = {name: aligned(file[name]) for name in file.files}
        start = time.perf_counter()
        self.call, self.version = ENGINES[task["engine"]](task)
        self.outputs = [np.array(array) for array in self.call(self.inputs)]
        self.seconds = time.perf_counter() - start

    def time(self, repeats: int) -> list[float]:
        self.call(self.inputs)
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.call(self.inputs)
            found.append(1e3 * (time.perf_counter() - start))
        return found

    def crowd(self, threads: int, calls: int) -> int:
        """How many of the answers that threads get at once differ from those of calls one by one."""
        given = [{name: aligned(np.roll(a, k, -1)) for name, a in self.inputs.items()} for k in range(threads)]
        alone = [[np.array(array) for array in self.call(inputs)] for inputs in given]
        wrong, barrier = [0] * threads, threading.Barrier(threads)

        def act(k: int) -> None:
            barrier.wait()
            for _ in range(calls):
                try:
                    found = self.call(given[k])
                    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(alone[k], found, strict=True))
                except Exception:  # whatever it is, this thread got no answer
                    same = False
                wrong[k] += not same

        workers = [threading.Thread(target=act, args=(k,)) for k in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(wrong)


def peak_memory() -> int:
    """VmHWM of this process, in bytes. (The kernel's ru_maxrss would count the parent that forked it, too.)"""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell peak memory")


def answer(worker: Worker | None, task: dict[str, Any]) -> tuple[Worker | None, dict[str, Any]]:
    """Do one task; the worker, and what to say."""
    if task["do"] == "load":
        worker = Worker(task)
        return worker, {"seconds": worker.seconds, "version": worker.version}
    if task["do"] == "memory":
        return worker, {"peak": peak_memory()}
    if worker is None:
        raise ValueError("nothing is loaded")
    if task["do"] == "time":
        return worker, {"ms": worker.time(task["repeats"])}
    if task["do"] == "outputs":
        np.savez(task["to"], **{f"output_{k}": array for k, array in enumerate(worker.outputs)})
        return worker, {}
    if task["do"] == "crowd":
        return worker, {"wrong": worker.crowd(task["threads"], task["calls"])}
    raise ValueError(f"unknown task {task['do']!r}")


def main() -> None:
    # A stopped process would outlive a benchmark that is killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # What engines print goes to stderr, so that stdout holds answers only.
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)
        worker: Worker | None = None
        for line in sys.stdin:
            task = json.loads(line)
            if task["do"] == "quit":
                break
            try:
                worker, said = answer(worker, task)
            except Exception as error:  # engines fail in their own ways; a failure is a result here
                said = {"failed": f"{type(error).__name__}: {error}"[:500]}
            print(json.dumps(said), file=out, flush=True)


if __name__ == "__main__":
    main()
