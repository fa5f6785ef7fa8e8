"""The generated list of model types of `transformers`, and a tiny model of each.

The list is not chosen: types are taken by SHA-256 of their name, and the first 150 that build from a shrunk default
configuration and run eagerly within 20 seconds are in. `python -m benchmarks.zoo.transformers_types` makes it again;
every type before the last that is left out is listed with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import platform
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from transformers import AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING, MODEL_MAPPING_NAMES

from benchmarks.zoo.inputs import InputMaker, Plan, Signature, plans
from benchmarks.zoo.shrink import STRATEGIES, Strategy, shrink
from benchmarks.zoo.weights import randomise

LIST = Path(__file__).resolve().parent.parent / "architectures_types.json"
WANTED = 150
RUN_SECONDS = 20.0
SEARCH_SECONDS = 240
EXPORT_SECONDS = 120.0
MEMORY_BYTES = 4 << 30
PARAMETERS = 100_000_000


class FlatOutputs(torch.nn.Module):
    """A model whose output is a flat tuple of its floating tensors (of any tensors where it has no floating one)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        tensors = list(_tensors(self.model(*args, **kwargs)))
        floating = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
        return tuple(floating or tensors)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for item in output.values():
            yield from _tensors(item)
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _tensors(item)


def candidates() -> list[str]:
    """Every model type that has a base model class, by SHA-256 of its name."""
    return sorted(MODEL_MAPPING_NAMES, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def selected(count: int | None = None) -> list[str]:
    """The types in the generated list, in its order; the first so many if a count is given."""
    return [entry["type"] for entry in json.loads(LIST.read_text())["types"]][:count]


@contextlib.contextmanager
def _defined_memory() -> Iterator[None]:
    """Memory that a model allocates and never writes reads as NaN instead of as what was there before."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def tiny_model(model_type: str, strategy: Strategy) -> tuple[torch.nn.Module, PreTrainedConfig]:
    """The base model of `model_type`, shrunk, with seeded weights, in evaluation mode and float32."""
    default = CONFIG_MAPPING[model_type]()
    MODEL_MAPPING[type(default)]  # imports the model's code
    config = shrink(default, strategy)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
    if count > PARAMETERS:
        raise ValueError(f"{count} parameters after shrinking ({strategy.name})")
    torch.manual_seed(0)
    with _defined_memory():
        model = AutoModel.from_config(config, dtype=torch.float32)
    return randomise(model.float()), config


def assemble(model_type: str, strategy: str, plan: str) -> tuple[torch.nn.Module, tuple[()], dict[str, torch.Tensor]]:
    """Module, positional and keyword arguments of one recipe."""
    model, config = tiny_model(model_type, next(s for s in STRATEGIES if s.name == strategy))
    return (FlatOutputs(model).eval(), (), InputMaker(model, config, Plan.parse(plan)).make())


def build(model_type: str) -> tuple[torch.nn.Module, tuple[()], dict[str, torch.Tensor]]:
    """A tiny model of `model_type` and its example arguments, always the same ones.

    Types in the generated list follow the recipe there; others are searched for. Raises RuntimeError saying what was
    tried when no recipe runs.
    """
    if LIST.exists():
        for entry in json.loads(LIST.read_text())["types"]:
            if entry["type"] == model_type:
                return assemble(model_type, entry["strategy"], entry["plan"])
    found = next(search(model_type), None)
    assert found is not None  # search raises when nothing runs
    return assemble(model_type, found["strategy"], found["plan"])


def check(module: torch.nn.Module, arguments: dict[str, torch.Tensor]) -> tuple[float, int, bool]:
    """CPU seconds of one run, the number of outputs, and whether they are random; raises where they say nothing."""
    with torch.no_grad():
        torch.manual_seed(1)
        start = time.process_time()
        first = module(**arguments)
        seconds = time.process_time() - start
        torch.manual_seed(2)
        second = module(**arguments)
    if not first:
        raise ValueError("no tensor comes out")
    if not any(tensor.is_floating_point() for tensor in first):
        raise ValueError("no floating tensor comes out")
    for tensor in first:
        if torch.isnan(tensor).any() or torch.isposinf(tensor.real).any():
            raise ValueError("outputs are not finite")
    if all(tensor.numel() > 1 and float(tensor.float().std()) == 0 for tensor in first):
        raise ValueError("outputs are constant")
    if seconds > RUN_SECONDS:
        raise TimeoutError(f"one run takes {seconds:.0f} s")
    same = len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return seconds, len(first), not same


def search(model_type: str) -> Iterator[dict[str, Any]]:
    """Recipes that run, best first, all with the first strategy that has one whose outputs repeat.

    A model that draws random numbers in evaluation mode is in with `random` set, when nothing else runs. Raises
    RuntimeError with what was tried when there is no recipe.
    """
    failures: dict[str, str] = {}
    random: dict[str, Any] | None = None
    for strategy in STRATEGIES:
        try:
            model, config = tiny_model(model_type, strategy)
            module, signature = FlatOutputs(model).eval(), Signature(model)
        except Exception as error:  # whatever another's code raises is the reason
            failures.setdefault(line(error), strategy.name)
            continue
        found: set[tuple[str, bool]] = set()
        usual: tuple[int, int] | None = None
        for tried, plan in enumerate(plans(signature)):
            sizes = plan.length, plan.batch
            if (plan.inputs, plan.mask) in found or tried > 40 or sizes != (usual or sizes):
                continue
            try:
                arguments = InputMaker(model, config, plan).make()
                seconds, outputs, varies = check(module, arguments)
            except Exception as error:
                failures.setdefault(line(error), f"{strategy.name} {plan.name}")
                continue
            recipe = {
                "strategy": strategy.name,
                "plan": plan.name,
                "class": type(model).__name__,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "inputs": {name: list(tensor.shape) for name, tensor in arguments.items()},
                "outputs": outputs,
                "random": varies,
                "seconds": round(seconds, 2),
            }
            if varies:
                random = random or recipe
                continue
            found.add((plan.inputs, plan.mask))
            usual = sizes
            yield recipe
        if found:
            return
    if random is not None:
        yield random
        return
    raise RuntimeError(" | ".join(f"{where}: {why}" for why, where in list(failures.items())[:4]) or "nothing to try")


def line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:220]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "transformers/models" in f.filename]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def exports(module: torch.nn.Module, arguments: dict[str, torch.Tensor]) -> str:
    """Empty when `torch.export.export` accepts the module, else its reason in one line."""
    try:
        with torch.no_grad():
            torch.export.export(module, (), arguments, strict=False)
    except Exception as error:
        return line(error)
    return ""


def _worker(model_type: str, write: int) -> None:
    """In a child process: search, then export, reporting each as one line of JSON."""

    def report(record: dict[str, Any]) -> None:
        os.write(write, (json.dumps(record) + "\n").encode())

    recipes: list[dict[str, Any]] = []
    try:
        for recipe in search(model_type):
            recipes.append(recipe)
            report({"recipe": recipe})
    except Exception as error:
        report({"reason": str(error) if isinstance(error, RuntimeError) else line(error)})
        return
    report({"searched": True})
    distinct = {json.dumps(recipe["inputs"]): recipe for recipe in reversed(recipes)}
    for recipe in list(reversed(distinct.values()))[:4]:
        module, _, arguments = assemble(model_type, recipe["strategy"], recipe["plan"])
        reason = exports(module, arguments)
        report({"exported": recipe["plan"], "reason": reason})
        if not reason:
            return


def examine(model_type: str) -> dict[str, Any]:
    """Search and export `model_type` in a child process with limits on CPU time and memory."""
    read, write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(read)
        status = 1
        with contextlib.suppress(BaseException):
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
            _worker(model_type, write)
            status = 0
        os._exit(status)
    os.close(write)
    recipes, reason, exported, searched, buffer = [], "", {}, False, b""
    limit = SEARCH_SECONDS
    deadline_wall = time.monotonic() + 8 * (SEARCH_SECONDS + EXPORT_SECONDS)
    base = 0.0
    while True:
        ready, _, _ = select.select([read], [], [], 1.0)
        chunk = os.read(read, 65536) if ready else None
        if chunk == b"":
            break
        *lines, buffer = (buffer + (chunk or b"")).split(b"\n")
        for line in lines:
            record = json.loads(line)
            if "recipe" in record:
                recipes.append(record["recipe"])
            elif "searched" in record:
                searched, base, limit = True, _cpu_seconds(child), EXPORT_SECONDS
            elif "exported" in record:
                exported[record["exported"]] = record["reason"]
                base = _cpu_seconds(child)
            else:
                reason = record["reason"]
        if _cpu_seconds(child) - base > limit or time.monotonic() > deadline_wall:
            os.kill(child, signal.SIGKILL)
            reason = reason or f"no result within {limit:.0f} s of CPU"
            break
    os.close(read)
    _, status = os.waitpid(child, 0)
    if not recipes:
        return {"type": model_type, "reason": reason or f"the process ended with status {status}"}
    accepted = next((recipe for recipe in recipes if exported.get(recipe["plan"]) == ""), None)
    entry: dict[str, Any] = {"type": model_type, **(accepted or recipes[0])}
    if accepted:
        entry["exports"] = True
    else:
        fallback = f"no result within {EXPORT_SECONDS:.0f} s of CPU" if searched else "not tried"
        entry.update(exports=False, reason=exported.get(recipes[0]["plan"], fallback))
    return entry


def _cpu_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--results", type=Path, default=Path("build/zoo_types.jsonl"), help="one line per type, resumed"
    )
    parser.add_argument("--retry", nargs="*", default=[], help="types to examine again; 'rejected' for all of those")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, dict[str, Any]] = {}
    if options.results.exists():
        for line in options.results.read_text().splitlines():
            record = json.loads(line)
            known[record["type"]] = record
    again = set(options.retry)
    chosen, rejected = [], []
    for model_type in candidates():
        record = known.get(model_type)
        if record is None or model_type in again or "rejected" in again and "strategy" not in record:
            start = time.monotonic()
            record = examine(model_type)
            with options.results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            verdict = "exports" if record.get("exports") else "runs" if "strategy" in record else "rejected"
            print(f"{model_type}: {verdict} {record.get('plan', '')} {time.monotonic() - start:.0f} s "
                  f"{record.get('reason', '')[:300]}", flush=True)  # fmt: skip
        (chosen if "strategy" in record else rejected).append(record)
        if len(chosen) == WANTED:
            break
    document = {
        "selection": "the first model types of transformers by SHA-256 of their name that build and run",
        "versions": {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "limits": {"run_seconds": RUN_SECONDS, "export_seconds": EXPORT_SECONDS, "memory_bytes": MEMORY_BYTES},
        "counts": {"selected": len(chosen), "export": sum(r["exports"] for r in chosen), "rejected": len(rejected)},
        "types": chosen,
        "rejected": rejected,
    }
    LIST.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["counts"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
