"""Which PyTorch architectures go through: the classic families, and 100 model types of transformers by hash.

For each: `torch.export`, lowering, execution against torch (to 1e-4 of the largest output), all exact passes, execution
again. The bar counts those that torch.export itself accepts; what fails is listed with its reason. Each runs in a
process of its own with a time limit; finished ones are kept in a file and not run again (`--fresh` forgets them).
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark

TOLERANCE = 1e-4
SECONDS = 420.0
QUICK_SECONDS = 50.0
MEMORY_BYTES = 6 << 30
TYPES = 100
"""How many of the model types of transformers in the generated list, from its front."""
WARM_UP = ("classic/hopfield",)
PROGRESS = Path("build/architectures.jsonl")


Examine = Callable[[str, Callable[[dict[str, Any]], None]], None]
"""Takes the name of an architecture, and what is told of each stage; raises where it fails."""


def names() -> list[str]:
    """All that is measured: "classic/…" and "transformers/…"."""
    from benchmarks.zoo.classic import FAMILIES
    from benchmarks.zoo.transformers_types import selected

    return [*(f"classic/{name}" for name in FAMILIES), *(f"transformers/{name}" for name in selected(TYPES))]


def build(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Module, positional and keyword arguments."""
    from benchmarks.zoo import special
    from benchmarks.zoo.classic import FAMILIES
    from benchmarks.zoo.transformers_types import build as build_type

    kind, _, which = name.partition("/")
    if kind == "special":
        return special.build(which)
    if kind == "timm":
        from benchmarks.zoo.timm_families import build as build_family

        return build_family(which)
    return FAMILIES[which]() if kind == "classic" else build_type(which)


def examine(name: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Take one architecture through all stages, reporting each stage that it passes."""
    import numpy as np
    import torch

    from espalier.frontends.torch.convert import convert
    from espalier.frontends.torch.export import decompose
    from espalier.passes import PassManager
    from espalier.passes.pipelines import pipeline

    module, args, kwargs = build(name)
    with torch.no_grad():
        torch.manual_seed(0)
        wanted = [array(tensor) for tensor in tensors(module(*args, **kwargs))]
    inputs = [array(tensor) for tensor in tensors((args, kwargs))]
    with torch.no_grad():
        torch.manual_seed(1)
        again = [array(tensor) for tensor in tensors(module(*args, **kwargs))]
    random = any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(wanted, again, strict=True))
    report({"stage": "built", "random": random})
    start = time.perf_counter()
    with torch.no_grad():
        program = torch.export.export(module, args, kwargs, strict=False)
    report({"stage": "exported", "export_seconds": round(time.perf_counter() - start, 2)})
    start = time.perf_counter()
    graph = convert(decompose(program))
    report({"stage": "lowered", "nodes": len(graph), "lower_seconds": round(time.perf_counter() - start, 2)})
    if random:
        raise ValueError("cannot be compared: the module draws random numbers, its outputs change with the seed")
    used = used_inputs(program, inputs)
    report({"stage": "matched", "difference": compare(graph, used, wanted)})
    start = time.perf_counter()
    PassManager(pipeline("exact")).run(graph)
    report({"stage": "optimised", "nodes_after": len(graph), "pass_seconds": round(time.perf_counter() - start, 2)})
    report({"stage": "done", "difference_after": compare(graph, used, wanted)})


def used_inputs(program: Any, inputs: list[Any]) -> list[Any]:
    """The arrays of the program's tensor inputs, in order (all tensor arguments are inputs)."""
    from torch.export.graph_signature import InputKind, TensorArgument

    specs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    count = sum(isinstance(spec.arg, TensorArgument) for spec in specs)
    if count != len(inputs):
        raise ValueError(f"the program takes {count} tensors, the module {len(inputs)}")
    return inputs


def tensors(tree: Any) -> list[Any]:
    """The tensors in nested containers, in torch's order."""
    import torch

    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def array(tensor: Any) -> Any:
    """A tensor as a numpy array of its own; complex numbers as pairs."""
    from espalier.frontends.torch.tensors import to_array

    return to_array(tensor.detach().clone())


def compare(graph: Any, inputs: list[Any], wanted: list[Any]) -> float:
    """The largest difference, relative to the largest number of each output. Raises ValueError beyond the tolerance."""
    import numpy as np

    from espalier.ir.execute import execute

    found = execute(graph, inputs)
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} outputs instead of {len(wanted)}")
    worst = 0.0
    for k, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        ours = np.asarray(ours)
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise ValueError(f"output {k}: {ours.dtype}{ours.shape} instead of {theirs.dtype}{theirs.shape}")
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        finite = np.isfinite(theirs)
        if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
            raise ValueError(f"output {k} differs where torch's is not finite")
        scale = np.abs(theirs[finite]).max(initial=0.0)
        difference = np.abs(ours[finite] - theirs[finite]).max(initial=0.0)
        if not difference <= TOLERANCE * scale:
            raise ValueError(
                f"output {k} of {len(found)} differs by {difference:.3g}; the largest number is {scale:.3g}"
            )
        worst = max(worst, float(difference / scale) if scale else 0.0)
    return float(f"{worst:.3g}")


def worker(name: str, write: int, seed: int, examine: Examine) -> None:
    """In a child process: examine, writing one line of JSON per stage, and one for a failure."""
    import torch

    def report(record: dict[str, Any]) -> None:
        os.write(write, (json.dumps(record) + "\n").encode())

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    try:
        examine(name, report)
    except Exception as error:  # whatever is raised is the reason
        report({"reason": reason(error), "code": getattr(error, "code", None)})


def reason(error: BaseException) -> str:
    """The error in one line, with the place in our own code where it was raised."""
    text = " ".join(str(error).split()).replace(f"{Path.cwd()}/", "")[:700]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/espalier/" in f.filename]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def cpu_seconds(process: int) -> float:
    """That a process has used; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(name: str, limit: float, seed: int, examine: Examine = examine, wall: float | None = None) -> dict[str, Any]:
    """All that a child process reports about one architecture.

    Args:
        limit: seconds of CPU time, so that a busy machine makes no difference.
        wall: seconds that pass; by default 20 times as many.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(read)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        warnings.simplefilter("ignore")
        worker(name, write, seed, examine)
        os._exit(0)
    os.close(write)
    record: dict[str, Any] = {"name": name, "stage": "started"}
    deadline, buffer = time.monotonic() + (20 * limit if wall is None else wall), b""
    while True:
        if cpu_seconds(child) > limit or time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            record["reason"] = f"not done within {limit:.0f} s"
            break
        ready, _, _ = select.select([read], [], [], 0.5)
        if not ready:
            continue
        chunk = os.read(read, 1 << 16)
        if not chunk:
            break
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            record.update(json.loads(line))
    os.close(read)
    _, status = os.waitpid(child, 0)
    if record["stage"] != "done" and "reason" not in record:
        record["reason"] = f"the process ended with status {status}"
    record["accepted"] = record["stage"] not in ("started", "built")
    record["holds"] = record["stage"] == "done"
    return record


def preload() -> None:
    """Import what all children need, once; much of it is loaded only when a first module is exported."""
    import torch

    from benchmarks.zoo import transformers_types
    from espalier.frontends.torch import registry

    assert transformers_types.LIST.exists()
    registry.load_lowerings()
    torch.set_num_threads(1)
    for name in WARM_UP:
        examine(name, lambda record: None)


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """The records in a file of earlier runs, by name."""
    found: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            found[record["name"]] = record
    return found


def main() -> None:
    benchmark = Benchmark("architectures", __doc__)
    benchmark.parser.add_argument("--only", nargs="*", help="names or parts of names")
    benchmark.parser.add_argument("--fresh", action="store_true", help="run again what an earlier run has finished")
    benchmark.parser.add_argument("--failed", action="store_true", help="run again what failed in an earlier run")
    benchmark.parser.add_argument("--backwards", action="store_true", help="from the end, beside a run from the front")
    benchmark.parser.add_argument("--progress", type=Path, default=PROGRESS, help="where finished ones are kept")
    options = benchmark.parse()
    start = time.monotonic()
    preload()
    every = names()
    chosen = [name for name in every if not options.only or any(part in name for part in options.only)]
    if options.quick:  # in the order of a hash, as many as there is time for
        chosen.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if options.backwards:
        chosen.reverse()
    before = finished(options.progress)
    forgotten = {name for name, record in before.items() if options.fresh or options.failed and not record["holds"]}
    records: list[dict[str, Any]] = []
    for name in chosen:
        left = QUICK_SECONDS - (time.monotonic() - start) if options.quick else SECONDS
        if left <= 0:
            break
        known = {} if options.quick else finished(options.progress)  # another run may have gone on meanwhile
        record = known.get(name)
        if record is not None and name in forgotten and record == before[name]:
            record = None
        if record is None:
            began = time.monotonic()
            record = run(name, SECONDS, benchmark.arguments.seed, wall=left if options.quick else None)
            if options.quick and record.get("reason", "").startswith("not done within"):
                break  # it was cut off by the end of the quick run, not by its limit
            record["seconds"] = round(time.monotonic() - began, 1)
            if not options.quick:
                options.progress.parent.mkdir(parents=True, exist_ok=True)
                with options.progress.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
        records.append(record)
        benchmark.say(name, record["stage"], record.get("seconds", ""), record.get("reason", "")[:300])
    summarise(benchmark, records, len(every))
    benchmark.finish()


def summarise(benchmark: Benchmark, records: list[dict[str, Any]], total: int) -> None:
    """The bar and what stands behind it."""
    accepted = [record for record in records if record["accepted"]]
    good = [record for record in accepted if record["holds"]]
    lowered = [record for record in accepted if "nodes" in record]
    matched = [record for record in accepted if "difference" in record]
    wrong = [
        record for record in accepted if not record["holds"] and "differs" in record.get("reason", "")
        and "EspalierError" not in record.get("reason", "")
    ]  # fmt: skip
    ratio = len(good) / len(accepted) if accepted else float("nan")
    benchmark.bar("share", round(ratio, 4), "≥ 0.95 of what torch.export accepts", ratio >= 0.95)
    benchmark.details.update(
        architectures=total, measured=len(records), accepted=len(accepted), lowered=len(lowered), matched=len(matched),
        done=len(good), wrong=[record["name"] for record in wrong],
        refused_by_export=[{k: r.get(k) for k in ("name", "reason")} for r in records if not r["accepted"]],
        failed=[{k: record.get(k) for k in ("name", "stage", "reason")} for record in accepted if not record["holds"]],
        records=records,
    )  # fmt: skip
    benchmark.say(
        f"{len(records)} of {total} measured, {len(accepted)} accepted by torch.export, {len(lowered)} lowered, "
        f"{len(matched)} match torch, {len(good)} also after all exact passes"
    )


if __name__ == "__main__":
    main()
