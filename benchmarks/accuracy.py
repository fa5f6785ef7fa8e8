"""Bar 3 of `prune`: what is left of the accuracy of ResNet-20 and ResNet-56, trained elsewhere on CIFAR-10.

Without training (3a): optimal-brain compensation, on images of the training set and on noise, against plain deletion by
magnitude, the same with new batch-norm statistics, and Torch-Pruning's magnitude, at equal multiply–accumulates. With
training (3b): ours and Torch-Pruning's criteria, for the same epochs by the same loop, each of all units and of those
inside blocks alone; and ours as `recover` trains where it has the original, which it imitates beside the labels (that
costs its multiply–accumulates, forwards). The best of ours (of three) and of theirs (of six) with the first seed go on.
That seed counts, too, which favours the side that had more to choose from. Every result keeps which of the 10,000 test
images it gets right, so that differences are paired, image by image. Results are kept in a file, trainings go on from
their checkpoints.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from benchmarks.common import Benchmark, data_folder
from benchmarks.datasets import cifar10_images
from espalier.ir import Graph

MODELS = {"resnet20": ("resnet20-12fca82f.th", 3), "resnet56": ("resnet56-4bfd9763.th", 9)}
"""Name → its weights and the blocks of each of its three stages."""
SHARES = (0.3, 0.5)
"""Of the multiply–accumulates, that go."""
SEEDS = (0, 1, 2)
IMAGES, STATISTICS_IMAGES = 256, 8192
"""Images of the training set that compensation sees, and that new statistics are estimated from."""
RECOVERED_SHARE, EPOCHS = 0.5, 15.0
CHECKPOINTS = Path("build/recoveries")
RECOVERY = {"batch_size": 128, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "precision": "bf16"}
INSIDE = " inside blocks"
BETWEEN = "layer*.conv1.weight.0"
"""The units between the two convolutions of each block."""
PEER_CRITERIA = ("magnitude", "batch_norm_scale", "taylor")
STUDENT = {2: 4.302653}
"""Quantiles at 97.5 % of Student's t, by degrees of freedom."""
Bits = NDArray[np.bool_]


class Block(nn.Module):
    """Two convolutions beside a shortcut without weights: every other pixel, new channels zero (option A)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            side = self.added // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, self.added - side))
        return functional.relu(y + x)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels; images n×3×32×32 to scores n×10."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        before = 16
        for stage, width in enumerate((16, 32, 64), 1):
            made = [Block(before if k == 0 else width, width, 2 if k == 0 and stage > 1 else 1) for k in range(blocks)]
            setattr(self, f"layer{stage}", nn.Sequential(*made))
            before = width
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def trained(data: Path, name: str) -> CifarResNet:
    """A network with its trained weights, in evaluation mode."""
    file, blocks = MODELS[name]
    # the file holds the state of an optimizer, too, which torch does not load as weights alone
    state = torch.load(data / "models" / file, map_location="cpu", weights_only=False)["state_dict"]
    module = CifarResNet(blocks)
    module.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return module.eval()


@dataclass
class Task:
    """One network, and how much of it goes."""

    data: Path
    model: str
    share: float
    threads: int = 1

    def module(self) -> CifarResNet:
        return trained(self.data, self.model)

    def graph(self) -> Graph:
        return loaded(self.module())

    def images(self, seed: int, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Images of the training set, and their labels, in a random order."""
        x, y = cifar10_images(self.data, "train")
        chosen = np.random.default_rng([seed, 5]).permutation(len(x))[:count]
        return x[chosen], y[chosen]


def loaded(module: nn.Module) -> Graph:
    """A network as a graph whose batch varies, with its batch norms."""
    import espalier
    from espalier.passes.base import parse_spec
    from espalier.passes.manager import PassManager
    from espalier.passes.pipelines import CLEANING

    batch = torch.export.Dim("n", min=2, max=4096)
    shapes = {"x": {0: batch}}
    graph = espalier.load(module.eval(), example_inputs=(torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes)
    PassManager(list(map(parse_spec, CLEANING)), "none").run(graph)
    return graph


def multiplications(graph: Graph) -> int:
    """Multiply–accumulates for one image."""
    from espalier.cost.count import macs
    from espalier.ir.dims import substitute, symbols

    total = 0
    for node in graph:
        count = macs(node)
        if count is not None:
            found = count if isinstance(count, int) else substitute(count, dict.fromkeys(symbols(count), 1))
            assert isinstance(found, int)
            total += found
    return total


def ours(task: Task, seed: int, spec: str, images: bool) -> Graph:
    """Cut by the pass, at the share of multiply–accumulates."""
    from espalier.passes.base import Context, parse_spec
    from espalier.train.data import Data

    graph = task.graph()
    data = Data({graph.inputs[0].name: task.images(seed, IMAGES)[0]}, tuple(graph.inputs)) if images else None
    parse_spec(f"prune:macs={task.share},{spec}").run(graph, Context(seed=seed, data=data))
    return graph


def with_new_statistics(task: Task, seed: int, graph: Graph) -> Graph:
    from espalier.train.recover import reestimate_statistics

    return reestimate_statistics(graph, {graph.inputs[0].name: task.images(seed, STATISTICS_IMAGES)[0]}, seed=seed)


def peer(task: Task, seed: int, criterion: str = "magnitude", inside: bool = False) -> Graph:
    """Torch-Pruning's pruner at the ratio whose multiply–accumulates come nearest."""
    before = multiplications(task.graph())
    low, high, best = 0.0, 1.0, (math.inf, task.graph())
    for _ in range(7):
        ratio = (low + high) / 2
        graph = loaded(cut_by_peer(task, seed, criterion, ratio, inside))
        removed = 1 - multiplications(graph) / before
        best = min(best, (abs(removed - task.share), graph), key=lambda pair: pair[0])
        low, high = (ratio, high) if removed < task.share else (low, ratio)
    return best[1]


def cut_by_peer(task: Task, seed: int, criterion: str, ratio: float, inside: bool = False) -> nn.Module:
    """One cut; inside: only between the two convolutions of each block, as people do where shortcuts are in the way."""
    import torch_pruning

    importances = {
        "magnitude": lambda: torch_pruning.importance.MagnitudeImportance(p=2),
        "batch_norm_scale": torch_pruning.importance.BNScaleImportance,
        "taylor": torch_pruning.importance.TaylorImportance,
    }
    torch.manual_seed(seed)
    module = task.module()
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    kept = [module.linear, *([module.conv1, *(block.conv2 for block in blocks)] if inside else [])]
    pruner = torch_pruning.pruner.MagnitudePruner(
        module, torch.zeros(2, 3, 32, 32), importances[criterion](), pruning_ratio=ratio, ignored_layers=kept
    )
    if criterion == "taylor":
        x, y = task.images(seed, IMAGES)
        for start in range(0, len(x), 128):
            scores = module(torch.from_numpy(x[start : start + 128]))
            functional.cross_entropy(scores, torch.from_numpy(y[start : start + 128].astype(np.int64))).backward()
    pruner.step()
    for block in blocks:  # the shortcut knows how many channels it adds
        if block.stride > 1:
            block.added = block.conv2.out_channels - block.conv1.in_channels
    return module


METHODS: dict[str, Callable[[Task, int], Graph]] = {
    "original": lambda task, seed: task.graph(),
    "deletion": lambda task, seed: ours(task, seed, "criterion=magnitude", False),
    "deletion and statistics": lambda task, seed: with_new_statistics(
        task, seed, ours(task, seed, "criterion=magnitude", False)
    ),
    "Torch-Pruning": peer,
    "Torch-Pruning inside blocks": lambda task, seed: peer(task, seed, inside=True),
    "obspa data": lambda task, seed: ours(task, seed, "criterion=obspa,compensate=data", True),
    "obspa noise": lambda task, seed: ours(task, seed, "criterion=obspa,compensate=noise", False),
}
"""What 3a compares."""
SURE = {"original", "deletion", "Torch-Pruning", "Torch-Pruning inside blocks"}
"""They draw nothing, so that one seed is all seeds."""
OURS = ("obspa data", "obspa noise")
OTHERS = ("deletion", "deletion and statistics", "Torch-Pruning", "Torch-Pruning inside blocks")


def recovered(task: Task, seed: int, method: str, folder: Path) -> Graph:
    """Cut, then train by the labels for as many epochs, with crops and flips: the same for all, but for what one of
    ours imitates."""
    from espalier.train.augment import CropAndFlip
    from espalier.train.recover import recover

    if method in OWN_RECOVERIES:
        graph = ours(task, seed, f"criterion=obspa,compensate=data{OWN_RECOVERIES[method]}", True)
    else:
        graph = peer(task, seed, method.removesuffix(INSIDE).partition(": ")[2], method.endswith(INSIDE))
    x, y = cifar10_images(task.data, "train")
    return recover(
        graph, task.graph(), {graph.inputs[0].name: x, "labels": y}, epochs=EPOCHS, augment=CropAndFlip(4), seed=seed,
        imitate=IMITATED if method == IMITATING else 0.0, threads=task.threads, checkpoint=folder, progress=False,
        **RECOVERY,
    )  # fmt: skip


IMITATED, IMITATING = 0.9, "ours imitating the original"
"""The original's share in the loss."""
OWN_RECOVERIES = {"ours": "", f"ours{INSIDE}": f",only={BETWEEN}", IMITATING: ",scope=isomorphic"}
"""Method → what is pruned. The scope of the last one kept most of the accuracy on images of the training set; it was
not trained by the labels alone, so that the two changes are not told apart."""
PEER_RECOVERIES = tuple(f"Torch-Pruning: {each}{where}" for where in ("", INSIDE) for each in PEER_CRITERIA)


def right(graph: Graph, x: NDArray[Any], y: NDArray[Any]) -> Bits:
    """Which images are classified rightly, by onnxruntime."""
    import onnxruntime

    from espalier.backends.onnx import to_model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_model(graph).SerializeToString(), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: x[k : k + 200]})[0].argmax(1) for k in range(0, len(x), 200)]
    return np.asarray(np.concatenate(parts) == y)


def packed(bits: Bits) -> str:
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpacked(text: str, count: int) -> Bits:
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:count].astype(bool)


def difference(first: list[Bits], second: list[Bits]) -> dict[str, Any]:
    """In points, paired by image and seed: the mean, and its 95 % intervals over seeds and over images."""
    points = 100 * np.array([np.asarray(a, float) - np.asarray(b, float) for a, b in zip(first, second, strict=True)])
    mean, seeds, images = float(points.mean()), points.mean(1), points.mean(0)
    over_images = 1.959964 * float(images.std(ddof=1)) / math.sqrt(len(images))
    found = {"mean": round(mean, 3), "over_images": [round(mean - over_images, 3), round(mean + over_images, 3)]}
    if len(seeds) - 1 in STUDENT:
        wide = STUDENT[len(seeds) - 1] * float(seeds.std(ddof=1)) / math.sqrt(len(seeds))
        found["over_seeds"] = [round(mean - wide, 3), round(mean + wide, 3)]
    return found


def above(found: dict[str, Any]) -> bool:
    """Whether both intervals lie above 0."""
    return all(found[key][0] > 0 for key in ("over_images", "over_seeds") if key in found)


class Results:
    """What was measured, one line each; `parts` of a record tell it from others."""

    def __init__(self, path: Path, parts: Sequence[str] = ("kind", "model", "share", "method", "seed")) -> None:
        self.path, self.parts = path, parts
        self.held: dict[str, dict[str, Any]] = {}
        if path.exists():
            lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            self.held = {self.key(record): record for record in lines}

    def key(self, record: dict[str, Any]) -> str:
        return "|".join(str(record[part]) for part in self.parts)

    def add(self, record: dict[str, Any]) -> None:
        self.held[self.key(record)] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def bits(self, kind: str, model: str, share: float, method: str) -> list[Bits]:
        """One per seed; empty if a seed is missing."""
        seeds = (0,) * len(SEEDS) if kind == "3a" and method in SURE else SEEDS
        job = {"kind": kind, "model": model, "share": share, "method": method}
        return self.each([{**job, "seed": seed} for seed in seeds])

    def each(self, jobs: Sequence[dict[str, Any]]) -> list[Bits]:
        """Which images each of some records gets right; empty if one is missing."""
        keys = [self.key(job) for job in jobs]
        if any(key not in self.held or "right" not in self.held[key] for key in keys):
            return []
        return [unpacked(self.held[key]["right"], self.held[key]["images"]) for key in keys]


def jobs(train: bool, results: Results) -> Iterator[dict[str, Any]]:
    """All that there is to do, in order; what comes late depends on earlier results."""
    for model in MODELS:
        for share in SHARES:
            for method in METHODS:
                for seed in SEEDS[:1] if method in SURE else SEEDS:
                    yield {"kind": "3a", "model": model, "share": share, "method": method, "seed": seed}
    for seed in SEEDS if train else ():
        for methods in (tuple(OWN_RECOVERIES), PEER_RECOVERIES):
            for method in methods if seed == SEEDS[0] else (best(results, methods),):
                if method is not None:
                    yield recovery(method, seed)


def recovery(method: str, seed: int) -> dict[str, Any]:
    return {"kind": "3b", "model": "resnet20", "share": RECOVERED_SHARE, "method": method, "seed": seed}


def best(results: Results, methods: Sequence[str]) -> str | None:
    """The one of them that is best with the first seed, once all are measured."""
    held = {method: results.held.get(results.key(recovery(method, SEEDS[0]))) for method in methods}
    found = {method: record["accuracy"] for method, record in held.items() if record and "accuracy" in record}
    return max(found, key=lambda method: found[method]) if found and all(held.values()) else None


def training_cost(results: Results, method: str) -> float:
    """Multiply–accumulates of an image in training, by those of the original's forward run; backwards count twice."""
    removed = results.held[results.key(recovery(method, SEEDS[0]))]["macs_removed"]
    return round(3 * (1 - removed) + (method == IMITATING), 3)


def failed_rivals(results: Results) -> list[str]:
    """Torch-Pruning's criteria that did not get through with the first seed, with the reasons."""
    held = {method: results.held.get(results.key(recovery(method, SEEDS[0])), {}) for method in PEER_RECOVERIES}
    return [f"{method}: {record['reason']}" for method, record in held.items() if "reason" in record]


def measure(data: Path, job: dict[str, Any], folder: Path, images: int | None) -> dict[str, Any]:
    """One result."""
    task = Task(data, job["model"], job["share"])
    torch.manual_seed(job["seed"])
    if job["kind"] == "3a":
        graph = METHODS[job["method"]](task, job["seed"])
    else:
        name = "_".join(str(job[part]) for part in ("model", "share", "method", "seed")).replace(": ", "_")
        graph = recovered(task, job["seed"], job["method"], folder / name)
    x, y = cifar10_images(data, "test", images)
    bits = right(graph, x, y)
    removed = 1 - multiplications(graph) / multiplications(task.graph())
    return {
        **job, "macs_removed": round(removed, 4), "accuracy": round(100 * float(bits.mean()), 2),
        "images": len(bits), "right": packed(bits),
    }  # fmt: skip


def accuracy(benchmark: Benchmark, options: Any) -> None:
    """Bar 3: run what is missing (in a quick run nothing), and compare."""
    torch.set_num_threads(1)
    results, data = Results(options.accuracy_progress), data_folder()
    for job in [] if options.quick or data is None else jobs(options.train, results):
        if results.key(job) in results.held:
            continue
        try:
            record = measure(data, job, CHECKPOINTS, None)
        except Exception as error:  # Torch-Pruning may not be able to
            if "Torch-Pruning" not in job["method"]:
                raise
            record = {**job, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        results.add(record)
        told = {key: value for key, value in record.items() if key != "right"}
        benchmark.say("accuracy", *told.values())
    conclude(benchmark, results)


def conclude(benchmark: Benchmark, results: Results) -> None:
    """The bars."""
    found: dict[str, Any] = {}
    missing = []
    for model in MODELS:
        for share in SHARES:
            for method in OURS:
                for other in OTHERS:
                    sides = [results.bits("3a", model, share, each) for each in (method, other)]
                    name = f"{model}, {share:.0%}: {method} − {other}"
                    if all(sides):
                        found[name] = difference(*sides)
                    else:
                        missing.append(name)
    behind = [name for name, entry in found.items() if not above(entry)]
    wanted = "intervals of all paired differences above 0"
    why = f"{len(missing)} not measured here" if missing else f"not: {'; '.join(behind)}" if behind else None
    holds = False if behind else None if missing else True
    benchmark.bar("accuracy_without_training", {k: v["mean"] for k, v in found.items()}, wanted, holds, why)
    chosen = [best(results, methods) for methods in (tuple(OWN_RECOVERIES), PEER_RECOVERIES)]
    sides = [results.bits("3b", "resnet20", RECOVERED_SHARE, method) for method in chosen if method]
    wanted = "the best of ours ≥ Torch-Pruning's best criterion after 15 epochs"
    if len(sides) == 2 and all(sides):
        gap = difference(*sides)
        benchmark.details["recovery"] = {
            "of": chosen[0], "against": chosen[1], **gap, "chosen_among": [[*OWN_RECOVERIES], PEER_RECOVERIES],
            "training_cost": {method: training_cost(results, method) for method in chosen if method},
        }  # fmt: skip
        failed = "; ".join(failed_rivals(results))
        wanted = f"{chosen[0]} ≥ {chosen[1]}: the best of each side after 15 epochs"
        benchmark.bar("accuracy_with_recovery", gap["mean"], wanted, gap["mean"] >= 0, failed or None)
    else:
        benchmark.bar("accuracy_with_recovery", None, wanted, None, "trainings are missing: --train runs them")
    shown = [{key: value for key, value in record.items() if key != "right"} for record in results.held.values()]
    benchmark.details.update(differences=found, accuracies=shown)
    benchmark.details["tables"] = {**benchmark.details.get("tables", {}), **tables(results)}


def tables(results: Results) -> dict[str, dict[str, Any]]:
    """What is right of 10,000 images of CIFAR-10, in percent, by method."""
    cases = [(model, share) for model in MODELS for share in SHARES]
    plain = [
        [method, *(_mean(results.bits("3a", model, share, method)) for model, share in cases)] for method in METHODS
    ]
    trained = []
    for method in (*OWN_RECOVERIES, *PEER_RECOVERIES):
        held = [results.held.get(results.key(recovery(method, seed)), {}) for seed in SEEDS]
        if "accuracy" in held[0]:
            removed, cost = held[0]["macs_removed"], training_cost(results, method)
            trained.append([method, *(record.get("accuracy", "") for record in held), removed, cost])
    return {
        "Accuracy without training (means of seeds)": {
            "columns": ["multiply–accumulates removed", *(f"{model}, {share:.0%}" for model, share in cases)],
            "rows": plain,
        },
        f"Accuracy of ResNet-20 after {EPOCHS:g} epochs": {
            "columns": [
                "method", *(f"seed {seed}" for seed in SEEDS), "multiply–accumulates removed",
                "those of an image in training, by those of the original's run",
            ],
            "rows": trained,
        },
    }  # fmt: skip


def _mean(found: list[Bits]) -> float | str:
    return round(100 * float(np.mean(found)), 2) if found else ""
