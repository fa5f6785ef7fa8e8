"""Parts of bar 4 of `grow`: do wider and deeper models give the same outputs, are new coefficients orthogonal?

Exact: the classic families, those of benchmarks/zoo/special and deployment, and the real ONNX models where
ESPALIER_DATA is set are widened to twice and, unevenly, to one and a half times their units, and deepened wherever a
layer fits, all by `espalier.grow`. A case is exact if no number is further from the original's than 1e-6 of the largest
that the output has. Rounding alone exceeds that in float32 (the same sums in another order), so float64 decides,
computed by the reference executor; onnxruntime, which knows nothing of units, runs the exported float32 models of both,
and may not find them further apart than 1e-4. How many of them are within 1e-6 there is in the results, and so is each
refusal.

Orthogonal: networks that become mixtures and grow, by random weights and by the library's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.architectures import array, preload, run, tensors, used_inputs
from benchmarks.common import Benchmark, data_folder
from benchmarks.cutting import difference
from benchmarks.prune_models import draws, onnxruntime_outputs, widened

EXACT, ELSEWHERE, COSINE = 1e-6, 1e-4, 1e-6
CASES = {
    "twice as wide": {"factor": 2.0},
    "1.5 times, unevenly": {"factor": 1.5, "uneven": 0.5},
    "deeper": {"count": 0},
}
"""What is done → the options of `espalier.grow`."""
REFUSALS = ("E221", "E402")
QUICK = (
    "activation/ReLU", "activation/GELU", "activation/Hardswish", "special/gated_linear", "special/channel_shuffle",
    "classic/lstm", "special/einsum_attention", "classic/mobilenet_v3", "classic/vit", "classic/resnet_basic",
)  # fmt: skip
"""What a quick run begins with, as far as its time goes."""
SECONDS, QUICK_SECONDS = 600.0, 18.0
Reporter = Callable[[dict[str, Any]], None]


def names() -> list[str]:
    """All that is measured: "activation/…", "classic/…", "special/…", "deployment/…"; "onnx/…" of ESPALIER_DATA."""
    from benchmarks.zoo import deployment, special
    from benchmarks.zoo.classic import FAMILIES

    data = data_folder()
    files = sorted((data / "models").glob("*.onnx")) if data is not None else []
    return [
        *(f"activation/{name}" for name in ACTIVATIONS),
        *(f"classic/{name}" for name in FAMILIES),
        *(f"special/{name}" for name in special.INPUTS),
        *(f"deployment/{name}" for name in deployment.MODELS),
        *(f"onnx/{path.stem}" for path in files),
    ]


# ---- the models ------------------------------------------------------------------------------------------------------

ACTIVATIONS = {"ReLU": True, "ReLU6": True, "GELU": False, "SiLU": False, "Hardswish": False}
"""Module of torch → whether it applied twice is what it is once, so that an identity layer may follow it."""


def build(name: str) -> tuple[Any, list[Any]]:
    """A graph, and arrays that go into it."""
    import espalier

    kind, _, which = name.partition("/")
    if kind == "onnx":
        from espalier.passes.samples import sample_inputs

        graph = espalier.load(file_of(name))
        return graph, list(sample_inputs(graph.inputs, 0))
    return exported(*module_of(kind, which))


def file_of(name: str) -> Path:
    """The file of "onnx/…". Raises FileNotFoundError without ESPALIER_DATA."""
    data = data_folder()
    if data is None:
        raise FileNotFoundError("ESPALIER_DATA is not set")
    return data / "models" / f"{name.partition('/')[2]}.onnx"


def onnxruntime_takes(path: Path) -> bool:
    """Whether it runs a file, on zeros."""
    import onnx

    from benchmarks.references import onnxruntime_outputs, zeros

    return not isinstance(onnxruntime_outputs(path, [zeros(onnx.load(path))]), str)


def module_of(kind: str, which: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Module, positional and keyword arguments."""
    import torch
    from torch import nn

    if kind == "activation":
        from benchmarks.zoo.weights import randomise

        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), getattr(nn, which)(), nn.Conv2d(8, 6, 3)]
        return randomise(nn.Sequential(*layers, getattr(nn, which)(), nn.Flatten(), nn.Linear(216, 4))), (
            torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        ), {}  # fmt: skip
    if kind == "deployment":
        from benchmarks.zoo import deployment

        return deployment.build(which), (), deployment.MODELS[which].inputs(1, torch.Generator().manual_seed(1))
    from benchmarks.architectures import build as build_family

    return build_family(f"{kind}/{which}")


def exported(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Any]]:
    import torch

    from espalier.frontends.torch.convert import convert
    from espalier.frontends.torch.export import decompose

    with torch.no_grad():
        program = torch.export.export(module.eval(), args, kwargs, strict=False)
    return convert(decompose(program)), used_inputs(program, [array(tensor) for tensor in tensors((args, kwargs))])


# ---- exact -----------------------------------------------------------------------------------------------------------


def examine(name: str, report: Reporter) -> None:
    """Each case of one model; see `case`."""
    import numpy as np

    from espalier.errors import EspalierError
    from espalier.ir.execute import execute

    try:
        graph, inputs = build(name)
    except EspalierError as error:
        if not name.startswith("onnx/") or onnxruntime_takes(file_of(name)):
            raise
        report({"stage": "done", "left_out": f"onnxruntime refuses it, too: {' '.join(str(error).split())[:300]}"})
        return
    if draws(graph):
        report({"stage": "done", "left_out": "it draws random numbers"})
        return
    try:
        wide, kind = widened(graph), "f64"
        fed = [a.astype(np.float64) if a.dtype == np.float32 else a for a in inputs]
        wanted = execute(wide, fed)
    except Exception:  # a model with types of its own: as it is, then
        wide, kind, fed = graph, "f32", inputs
        wanted = execute(wide, fed)
    report({"stage": "loaded", "precision": kind})
    try:
        elsewhere = onnxruntime_outputs(graph, inputs)
    except Exception as error:  # onnxruntime's own exceptions
        elsewhere = None
        report({"onnxruntime_fails": " ".join(str(error).split())[:200]})
    cases = {}
    for what, options in CASES.items():
        cases[what] = case(options, (wide, fed, wanted), (graph, inputs, elsewhere))
        if name.startswith("activation/") and what == "deeper":
            cases[what]["fits"] = activation_fits(wide, name.partition("/")[2], cases[what])
        report({"cases": cases})
    report({"stage": "done"})


def case(options: dict[str, Any], exact: tuple[Any, Any, Any], single: tuple[Any, Any, Any]) -> dict[str, Any]:
    """What became of one model: how far its outputs are off, or why it was refused.

    Args:
        exact: the graph, its inputs and its outputs, in float64 where that is possible.
        single: the same as it is, with onnxruntime's outputs (or None).
    """
    import espalier
    from espalier.errors import EspalierError
    from espalier.ir.execute import execute

    graph, inputs, wanted = exact
    try:
        grown = espalier.grow(graph, **options)
    except EspalierError as error:
        if error.code not in REFUSALS:
            raise
        return {"refused": " ".join(str(error).split())[:700]}
    details = grown.details
    found = {"off": difference(execute(grown.graph, inputs), wanted)}
    for key in ("widened", "refused", "kept", "frozen"):
        if key in details:
            found[f"units_{key}"] = len(details[key])
    if details.get("refused"):
        found["why"] = sorted({row["why"] for row in details["refused"]})
    if "deepened" in details:
        found["layers"] = sorted(row["kind"] for row in details["deepened"])
    graph, inputs, wanted = single
    if wanted is not None:
        found["onnxruntime"] = difference(onnxruntime_outputs(espalier.grow(graph, **options).graph, inputs), wanted)
    return found


def activation_fits(graph: Any, activation: str, found: dict[str, Any]) -> bool:
    """Whether identity layers stand after activations that allow it, residual bodies after others.

    Where an identity layer would change the outputs, asking for one must be refused.
    """
    import espalier
    from espalier.errors import UnsupportedError

    if ACTIVATIONS[activation]:
        return set(found["layers"]) == {"identity layer"}
    try:
        espalier.grow(graph, count=0, kind="identity")
    except UnsupportedError:
        return set(found["layers"]) == {"residual body"}
    return False


def holds(found: dict[str, Any]) -> bool:
    """Whether a case is exact, or refused."""
    if "refused" in found:
        return True
    return found["off"] <= EXACT and found.get("onnxruntime", 0.0) <= ELSEWHERE and found.get("fits", True)


def measure_exact(benchmark: Benchmark) -> None:
    """The bar growth_is_exact."""
    quick, start = benchmark.arguments.quick, time.monotonic()
    preload()
    records = []
    for name in QUICK if quick else names():
        left = QUICK_SECONDS - (time.monotonic() - start) if quick else None
        if left is not None and left <= 0:
            break
        record = run(name, SECONDS, benchmark.arguments.seed, examine, left)
        if quick and record.get("reason", "").startswith("not done within"):
            break  # it was cut off by the end of the quick run
        records.append(record)
        shown = {what: found.get("off", "refused") for what, found in record.get("cases", {}).items()}
        benchmark.say(name, record["stage"], record.get("precision", ""), shown, record.get("reason", "")[:300])
    conclude_exact(benchmark, records)


def conclude_exact(benchmark: Benchmark, records: Sequence[dict[str, Any]]) -> None:
    """The bar, and what stands behind it. A model of which a case raises, or takes too long, does not hold."""
    found = [(r["name"], what, each) for r in records for what, each in r.get("cases", {}).items()]
    lost = [f"{name}, {what}" for name, what, each in found if not holds(each)]
    lost += [record["name"] for record in records if record["stage"] != "done"]
    refused = [{"name": name, "case": what, "why": each["refused"]} for name, what, each in found if "refused" in each]
    compared = [each for _, _, each in found if "off" in each]
    elsewhere = [each["onnxruntime"] for each in compared if "onnxruntime" in each]
    total = len(found) + sum(record["stage"] != "done" for record in records)
    value = {
        "share": round(1 - len(lost) / total, 4) if total else None, "cases": total, "refused": len(refused),
        "worst": max((each["off"] for each in compared), default=None),
    }  # fmt: skip
    wanted = "all outputs within 1e-6 of the largest in float64, or refused with the reason"
    why = f"not: {'; '.join(lost)}" if lost else None if total else "no model was compared"
    benchmark.bar("growth_is_exact", value, wanted, not lost if total else None, why)
    benchmark.details["exact"] = {
        "models": len(records),
        "in_float32": [record["name"] for record in records if record.get("precision") == "f32"],
        "onnxruntime": {
            "compared": len(elsewhere),
            "within_1e-6": sum(off <= EXACT for off in elsewhere),
            "worst": max(elsewhere, default=None),
        },
        "refused": refused,
        "left_out": {record["name"]: record["left_out"] for record in records if "left_out" in record},
        "records": records,
    }


# ---- orthogonal ------------------------------------------------------------------------------------------------------


def measure_orthogonal(benchmark: Benchmark) -> None:
    """The bar coefficients_orthogonal."""
    from benchmarks.growth_accuracy import network
    from espalier.errors import UnsupportedError
    from espalier.passes.base import Context, parse_spec
    from espalier.passes.structure.mixture import MEMBERS, grow_mixture

    def members(templates: int, seed: int) -> Iterator[Any]:
        for member in range(2):
            graph = network(1, seed, member)
            parse_spec(f"mixture:templates={templates}").run(graph, Context(seed=2 * seed + member))
            yield graph

    worst, vectors = 0.0, 0
    for templates in (MEMBERS, MEMBERS + 1, 2 * MEMBERS):
        for seed in range(3):
            both = list(members(templates, benchmark.arguments.seed + seed))
            off, count = cosines(both, grow_mixture(*both))
            worst, vectors = max(worst, off), vectors + count
    refused = []
    for templates in range(1, MEMBERS):
        try:
            grow_mixture(*members(templates, 0))
        except UnsupportedError as error:
            refused.append(f"{templates} templates: {error.message}")
    wanted = f"cosines of {vectors} new coefficients with all before ≤ 1e-6, and fewer than {MEMBERS} templates refused"
    good = vectors > 0 and worst <= COSINE and len(refused) == MEMBERS - 1
    benchmark.bar("coefficients_orthogonal", worst, wanted, good)
    benchmark.details["orthogonal"] = {"vectors": vectors, "refused": refused}


def cosines(members: Sequence[Any], grown: Any) -> tuple[float, int]:
    """The largest cosine of a new member's coefficients with an earlier member's, and how many are new."""
    import numpy as np

    from espalier.passes.structure.mixture import mixes

    held = {value.name: value.array.astype(np.float64) for value in grown.constants()}
    worst, count = 0.0, 0
    for pair in zip(*map(mixes, members), strict=True):
        before = [each.coefficients.array.astype(np.float64) for each in pair]
        for member in (2, 3):
            fresh = held.get(f"{pair[0].weight.name}.coefficients.{member}")
            if fresh is None:
                continue
            for other in before:
                worst = max(worst, abs(float(fresh @ other)) / float(np.linalg.norm(fresh) * np.linalg.norm(other)))
            before.append(fresh)
            count += 1
    return worst, count
