"""The generated list of model families of `timm`, and a small model of each.

A family is a module of `timm.models`. The list is not chosen: families are taken by SHA-256 of their name, and the
first 60 whose smallest architecture builds and runs eagerly within 20 seconds are in.
`python -m benchmarks.zoo.timm_families` makes it again; every family before the last that is left out is listed with
the reason. timm lies in a folder of its own (`make venv-timm`), since a stand-in takes the place of torchvision there.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures import run
from benchmarks.zoo import torchvision_standin
from benchmarks.zoo.transformers_types import FlatOutputs, check, exports
from benchmarks.zoo.weights import randomise

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / ".venv-timm"
LIST = ROOT / "benchmarks" / "architectures_timm.json"
WANTED = 60
SEARCH_SECONDS = 400.0
PARAMETERS = 40_000_000
SIDES = (64, 96, 128, 160, 192, 224, 256)
"""Sides of square images, in pixels, of which the first that a model takes is used."""
CLASSES = 10
BATCH = 2


def available() -> bool:
    """Whether timm's folder is there."""
    return (PACKAGES / "timm").is_dir()


def enter() -> Any:
    """Import timm in this process, which is not one for other models from then on. Raises FileNotFoundError."""
    if not available():
        raise FileNotFoundError("timm is not there: make venv-timm")
    torchvision_standin.install()
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
    import timm

    return timm


def candidates() -> list[str]:
    """Every family, by SHA-256 of its name."""
    return sorted(enter().list_modules(), key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def selected(count: int | None = None) -> list[str]:
    """The families in the generated list, in its order; the first so many if a count is given."""
    return [entry["family"] for entry in json.loads(LIST.read_text())["families"]][:count]


def smallest(family: str) -> tuple[str, int]:
    """The architecture of a family with the fewest parameters, and their number.

    timm's own test architectures go first where a family has some. Raises ValueError if none can be built.
    """
    timm = enter()
    every = timm.list_models(module=family)
    counts = {}
    for name in [name for name in every if name.startswith("test_")] or every:
        try:
            with torch.device("meta"):
                module = timm.create_model(name, pretrained=False, num_classes=CLASSES)
        except Exception:  # it can't be built without memory, or at all: another one then
            continue
        counts[name] = sum(parameter.numel() for parameter in module.parameters())
    if not counts:
        raise ValueError(f"none of {len(every)} architectures can be counted")
    return min(counts.items(), key=lambda item: (item[1], item[0]))


def assemble(architecture: str, side: int, sized: bool) -> tuple[torch.nn.Module, tuple[torch.Tensor], dict[str, Any]]:
    """Module, positional and keyword arguments of one recipe; sized: the module is told the side of the images."""
    timm = enter()
    torch.manual_seed(0)
    told = {"img_size": side} if sized else {}
    module = timm.create_model(architecture, pretrained=False, num_classes=CLASSES, **told)
    images = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(11))
    return randomise(FlatOutputs(module)), (images,), {}


def build(family: str) -> tuple[torch.nn.Module, tuple[torch.Tensor], dict[str, Any]]:
    """A small model of a family in the generated list and its example arguments, always the same ones."""
    entry = next(entry for entry in json.loads(LIST.read_text())["families"] if entry["family"] == family)
    return assemble(entry["architecture"], entry["side"], entry["sized"])


def examine(family: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Find the recipe of a family, and see whether torch.export takes it."""
    architecture, count = smallest(family)
    if count > PARAMETERS:
        raise ValueError(f"the smallest architecture, {architecture}, has {count} parameters")
    failures: dict[str, None] = {}
    for side in SIDES:
        for sized in (True, False):
            try:
                module, arguments, _ = assemble(architecture, side, sized)
                named = dict(zip(inspect.signature(module.model.forward).parameters, arguments, strict=False))
                seconds, outputs, varies = check(module, named)
            except Exception as error:  # whatever another's code raises is the reason
                failures.setdefault(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")
                continue
            recipe = {"architecture": architecture, "parameters": count, "side": side, "sized": sized}
            report({"stage": "built", **recipe, "outputs": outputs, "random": varies, "seconds": round(seconds, 2)})
            report({"stage": "done", "export": exports(module, named)})
            return
    raise ValueError(" | ".join(list(failures)[-3:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=Path("build/zoo_timm.jsonl"), help="one line each, resumed")
    options = parser.parse_args()
    timm = enter()
    torch.set_num_threads(1)
    known = {}
    if options.results.exists():
        known = {(r := json.loads(line))["name"]: r for line in options.results.read_text().splitlines()}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    chosen: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for family in candidates():
        record = known.get(family)
        if record is None:
            record = run(family, SEARCH_SECONDS, 0, examine)
            with options.results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(family, record["stage"], record.get("architecture"), record.get("reason", ""), flush=True)
        if "architecture" in record:
            kept = {key: record[key] for key in ("architecture", "parameters", "side", "sized", "outputs", "random")}
            refused = record.get("export", record.get("reason", ""))
            entry = {"family": family, **kept, "exports": not refused}
            chosen.append({**entry, "reason": refused} if refused else entry)
        else:
            rejected.append({"family": family, "reason": record["reason"]})
        if len(chosen) == WANTED:
            break
    document = {
        "selection": "the first families of timm by SHA-256 of their name whose smallest architecture builds and runs",
        "versions": {"timm": timm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "limits": {"parameters": PARAMETERS, "search_seconds": SEARCH_SECONDS},
        "counts": {"selected": len(chosen), "export": sum(e["exports"] for e in chosen), "rejected": len(rejected)},
        "families": chosen,
        "rejected": rejected,
    }
    LIST.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["counts"]))


if __name__ == "__main__":
    main()
