"""Pruning: is removal what zeros are, how much of what torch exports can be pruned, and how fast are units found?

Bars 1 and 2 run over the classic families, 150 model types of transformers and 60 families of timm by hash, each in its
own process: export, cut exact units and compare with zeros in float64, cut half of all units by Taylor scores, run,
export to ONNX and compare with onnxruntime. Bar 1 runs over 200 random graphs, too (see benchmarks/prune_random.py).
The same models go through Torch-Pruning (magnitude, 60 s of CPU time each). Bar 3 is the accuracy of networks for
CIFAR-10 (see benchmarks/accuracy.py). Bar 5 times the analysis beside Torch-Pruning's dependency graph in turns, and on
chains of up to 100,000 nodes. Finished models are kept in a file and not run again (`--fresh` forgets them).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.architectures import finished, preload, run
from benchmarks.common import Benchmark, interleaved
from benchmarks.prune_models import examine, examine_peer

SECONDS, PEER_SECONDS, QUICK_SECONDS = 300.0, 60.0, 20.0
PROGRESS = Path("benchmarks/results/prune.jsonl")
ACCURACY_PROGRESS = Path("benchmarks/results/prune_accuracy.jsonl")
CHAINS = (1_000, 3_000, 10_000, 30_000, 100_000)


def names() -> list[str]:
    """All that is measured: "special/…", "classic/…", "transformers/…", and "timm/…" where its folder is there."""
    from benchmarks.zoo import special, timm_families
    from benchmarks.zoo.classic import FAMILIES
    from benchmarks.zoo.transformers_types import selected

    families = timm_families.selected(60) if timm_families.available() and timm_families.LIST.exists() else []
    return [
        *(f"special/{name}" for name in special.INPUTS),
        *(f"classic/{name}" for name in FAMILIES),
        *(f"transformers/{name}" for name in selected(150)),
        *(f"timm/{name}" for name in families),
    ]


# ---- speed -----------------------------------------------------------------------------------------------------------


def speed(benchmark: Benchmark, rounds: int, chains: Sequence[int]) -> None:
    """Bar 5."""
    import numpy as np
    import torch

    import espalier
    from benchmarks.chains import residual_chain
    from benchmarks.zoo.speed import MODELS
    from espalier.analysis.coupling import couple

    try:
        import torch_pruning
    except ImportError:
        torch_pruning = None
    ratios = {}
    for name, make in MODELS.items() if torch_pruning else ():
        module, example = make()
        graph = espalier.load(module, example_inputs=example)

        def ours(graph: Any = graph) -> float:
            start = time.process_time()
            couple(graph)
            return time.process_time() - start

        def theirs(module: Any = module, example: Any = example) -> float:
            start = time.process_time()
            torch_pruning.DependencyGraph().build_dependency(module, example)
            return time.process_time() - start

        ours()
        taken = interleaved({"ours": ours, "theirs": theirs}, rounds)
        ratios[name] = round(taken["ours"] / taken["theirs"], 3)
        benchmark.say(f"{name}: {taken['ours']:.3f} s against {taken['theirs']:.3f} s of Torch-Pruning")
        benchmark.details.setdefault("speed", {})[name] = taken
    if torch_pruning:
        benchmark.bar("analysis_time", ratios, "< 1 × Torch-Pruning's dependency graph", max(ratios.values()) < 1)
    else:
        benchmark.bar("analysis_time", None, "< 1 × Torch-Pruning's dependency graph", None, "no Torch-Pruning here")
    times = {}
    for nodes in chains:
        graph = espalier.load(residual_chain(nodes))
        taken = []
        for _ in range(5 if nodes <= 10_000 else 3):
            start = time.process_time()
            couple(graph)
            taken.append(time.process_time() - start)
        times[len(graph)] = min(taken)
    logs = np.log(np.array([[nodes, seconds] for nodes, seconds in times.items()]))
    slope = round(float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0]), 3)
    benchmark.bar("analysis_slope", slope, f"≤ 1.1 up to {max(times)} nodes", slope <= 1.1)
    benchmark.details["chain_seconds"] = times
    torch.set_num_threads(1)


# ---- the run ---------------------------------------------------------------------------------------------------------


def main() -> None:
    benchmark = Benchmark("prune", __doc__)
    benchmark.parser.add_argument("--only", nargs="*", help="names or parts of names")
    benchmark.parser.add_argument("--fresh", action="store_true", help="run again what an earlier run has finished")
    benchmark.parser.add_argument("--failed", action="store_true", help="run again what failed of ours")
    parts = ["zoo", "peer", "random", "speed", "accuracy"]
    benchmark.parser.add_argument("--skip", nargs="*", default=[], choices=parts, help="leave out")
    benchmark.parser.add_argument("--train", action="store_true", help="run what trainings bar 3 still lacks: days")
    benchmark.parser.add_argument("--progress", type=Path, default=PROGRESS, help="where finished ones are kept")
    benchmark.parser.add_argument("--accuracy-progress", type=Path, default=ACCURACY_PROGRESS, help="those of bar 3")
    options = benchmark.parse()
    preload()
    if "speed" not in options.skip:
        speed(benchmark, 3 if options.quick else 9, CHAINS[:3] if options.quick else CHAINS)
    if "random" not in options.skip and not options.only:
        from benchmarks.prune_random import measure_random

        measure_random(benchmark)
    if "zoo" not in options.skip:
        zoo(benchmark, options, time.monotonic())
    if "accuracy" not in options.skip and not options.only:
        from benchmarks.accuracy import accuracy

        accuracy(benchmark, options)
    benchmark.finish()


def zoo(benchmark: Benchmark, options: Any, start: float) -> None:
    """Bars 1 and 2."""
    chosen = [name for name in names() if not options.only or any(part in name for part in options.only)]
    if options.quick:  # in the order of a hash, as many as there is time for
        chosen.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    before = finished(options.progress)
    records = []
    for name in chosen:
        left = QUICK_SECONDS - (time.monotonic() - start) if options.quick else math.inf
        if left <= 0:
            break
        record = None if options.quick or options.fresh else before.get(name)
        if record is not None and options.failed and not record["holds"]:
            record = None
        if record is None or ("peer" not in record and "peer" not in options.skip):
            if record is None:
                began = time.monotonic()
                record = run(name, SECONDS, benchmark.arguments.seed, examine, left if options.quick else None)
                record["seconds"] = round(time.monotonic() - began, 1)
            if options.quick and record.get("reason", "").startswith("not done within"):
                break
            if "peer" not in options.skip:
                wall = max(left, 1.0) if options.quick else None
                record["peer"] = outcome(run(name, PEER_SECONDS, 0, examine_peer, wall))
            if not options.quick:
                options.progress.parent.mkdir(parents=True, exist_ok=True)
                with options.progress.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
        records.append(record)
        peer = record.get("peer", {}).get("outcome", "")
        benchmark.say(name, record["stage"], f"Torch-Pruning: {peer}" if peer else "", record.get("reason", "")[:300])
    summarise(benchmark, records)


def outcome(record: dict[str, Any]) -> dict[str, Any]:
    """What became of a model in Torch-Pruning: succeeded, wrong, timed out or raised."""
    reason = record.get("reason", "")
    kind = (
        "succeeded" if record["stage"] == "done"
        else "wrong" if reason.startswith("ArithmeticError") or "other shapes" in reason
        else "timed out" if reason.startswith("not done within") else "raised"
    )  # fmt: skip
    kept = {key: record[key] for key in ("groups", "parameters_removed", "masked") if key in record}
    return {"outcome": kind, **kept, **({"reason": reason[:300]} if kind != "succeeded" else {})}


def summarise(benchmark: Benchmark, records: list[dict[str, Any]]) -> None:
    from benchmarks.zoo import timm_families

    accepted = [record for record in records if record["accepted"]]
    compared = [record for record in accepted if record.get("units", {}).get("exact") and "hard_soft" in record]
    unequal = [record["name"] for record in accepted if "off zeros" in record.get("reason", "")]
    share = len(compared) / (len(compared) + len(unequal)) if compared or unequal else math.nan
    none = None if compared or unequal else "no model was compared"
    benchmark.bar(
        "hard_is_soft", round(share, 4), "1.0 of the models, ≤ 1e-10 in float64", None if none else share == 1, none
    )
    good = [record for record in accepted if record["holds"]]
    share = len(good) / len(accepted) if accepted else math.nan
    without = None if timm_families.available() else "without timm: make venv-timm"
    if not accepted:
        without = "no model was run"
    holds = share >= 0.95 if accepted else None
    benchmark.bar("coverage", round(share, 4), "≥ 0.95 of what torch.export accepts", holds, without)
    hard = [record for record in records if record["name"].startswith("special/") or record["name"] == "classic/swin"]
    lost = [record["name"] for record in hard if not record["holds"]]
    none = None if hard else "not run"
    benchmark.bar("where_others_fail", len(hard) - len(lost), "all of them", not lost if hard else None, none)
    peers = [record for record in accepted if "peer" in record]
    if peers:
        missed = [r["name"] for r in peers if r["peer"]["outcome"] == "succeeded" and not r["holds"]]
        benchmark.bar("all_that_torch_pruning_does", len(missed), "0 that only Torch-Pruning prunes", not missed)
        counts: dict[str, int] = {}
        for record in peers:
            counts[record["peer"]["outcome"]] = counts.get(record["peer"]["outcome"], 0) + 1
        benchmark.details.update(torch_pruning=counts, only_torch_pruning=missed)
        benchmark.say(f"Torch-Pruning on {len(peers)} models: {counts}")
    benchmark.details.update(
        measured=len(records), accepted=len(accepted), done=len(good), unequal=unequal,
        worst_hard_soft=max((record["hard_soft"] for record in compared), default=None),
        in_float32=[record["name"] for record in compared if record["precision"] == "f32"],
        failed=[{k: record.get(k) for k in ("name", "stage", "reason")} for record in accepted if not record["holds"]],
        records=records,
    )  # fmt: skip
    benchmark.say(f"{len(records)} measured, {len(accepted)} accepted by torch.export, {len(good)} pruned and exported")


if __name__ == "__main__":
    main()
