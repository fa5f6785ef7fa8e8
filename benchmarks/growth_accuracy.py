"""Part of bar 4 of `grow`: networks that grow from WRN-10-1 to WRN-10-2 on CIFAR-10, at equal training FLOPs.

MixtureGrowth trains two WRN-10-1 for 8 epochs each, their weights mixtures of templates, and the network that they
grow into for 8 more. Net2Wider (with noise, without which repetitions never differ) and random growth (new weights
drawn as a new layer's) train one WRN-10-1 for 8 epochs, from the same first weights as the first of those two, and what
it grows into for as many steps as the same number of multiply–accumulates allows. Everything else is the same for all:
the loop, learning rates, crops and flips, batches.

Every training goes on from its checkpoint, every result is a line of a file, with which of the 10,000 test images it
gets right, so that differences are paired, image by image. Controls are no part of the bar: the same rivals with 16
epochs before they grow and 8 after; and of the mixture, blocks of zeros (an ensemble) and random ones between the two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from benchmarks.accuracy import SEEDS, Bits, Results, difference, loaded, multiplications, packed, right
from benchmarks.common import RESULTS, Benchmark, data_folder
from benchmarks.datasets import cifar10_images
from espalier.ir import Graph

PROGRESS = RESULTS / "grow_accuracy.jsonl"
CHECKPOINTS = Path("build/growth")
EPOCHS = 8
"""Of each WRN-10-1, and of the WRN-10-2 that two become."""
RATE, GROWN_RATE = 0.1, 0.1
"""The largest learning rate before and after growth; both fall along a cosine."""
IMAGES, BATCH = 50_000, 128
SETTINGS = {"batch_size": BATCH, "momentum": 0.9, "weight_decay": 5e-4, "precision": "bf16"}
NOISE = 0.05
"""Of Net2Wider, relative to the weights."""
PASSES = 3
"""Multiply–accumulates of a training step in those of a forward pass."""
KEY = ("method", "seed")


class Block(nn.Module):
    """Norms and activations before the convolutions; a 1×1 convolution as the shortcut where the width changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(before, width, 1, stride, bias=False) if before != width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(x))
        x = x if self.short is None else self.short(y)
        return x + self.conv2(functional.relu(self.bn2(self.conv1(y))))


class WideResNet(nn.Module):
    """WRN-10: one block in each of three stages; images n×3×32×32 to scores n×10.

    The first convolution is as wide as the first stage, as growth of all units makes it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [16 * width, 16 * width, 32 * width, 64 * width]
        self.conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.stages = nn.Sequential(*(Block(widths[k], widths[k + 1], 1 if k == 0 else 2) for k in range(3)))
        self.bn, self.linear = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], 10)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(functional.relu(self.bn(self.stages(self.conv(x)))).mean((2, 3)))


@functools.cache
def architecture(width: int) -> Graph:
    return loaded(WideResNet(width))


@functools.cache
def size(width: int) -> int:
    """Multiply–accumulates of a WRN-10 for one image."""
    return multiplications(architecture(width))


def network(width: int, *seed: int) -> Graph:
    """A WRN-10 with first weights that are the seed's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        weights = {name: tensor.detach().numpy() for name, tensor in WideResNet(width).state_dict().items()}

    def own(name: str, array: NDArray[Any]) -> NDArray[Any]:
        transposed = name.endswith(".T")
        found = weights.get(name.removesuffix(".T"), array)
        return np.ascontiguousarray(found.T) if transposed else found  # an unnamed one is no weight

    return changed(architecture(width), own)


def whole(graph: Graph) -> Graph:
    """A copy without mixtures: each weight one constant."""
    from espalier.ir.clone import clone
    from espalier.passes.base import Context, parse_spec

    found = clone(graph)
    parse_spec("fold_constants").run(found, Context())
    return found


def changed(graph: Graph, make: Callable[[str, NDArray[Any]], NDArray[Any]]) -> Graph:
    """A copy in which every constant, by name, has other numbers of the same shape."""
    from espalier.ir import constant_value
    from espalier.ir.clone import clone
    from espalier.ir.constants import constant

    found = clone(graph)
    for value in list(found.constants()):
        fresh = constant_value(constant(make(value.name, value.array), value.element), name=value.name)
        found.replace(value, fresh)
    return found


@dataclass
class Trial:
    """All that one seed trains; what several methods need is trained once."""

    seed: int
    x: NDArray[Any]
    y: NDArray[Any]
    folder: Path
    epochs: int = EPOCHS
    threads: int = 1

    def trained(self, name: str, graph: Graph, steps: int, rate: float, order: int) -> Graph:
        """Train by the labels; the order of the images, and how they are cropped, is that of `order`."""
        from espalier.train.augment import CropAndFlip
        from espalier.train.recover import recover

        return recover(
            graph, None, {graph.inputs[0].name: self.x, "labels": self.y}, steps=steps, learning_rate=rate,
            augment=CropAndFlip(4), seed=10 * self.seed + order, threads=self.threads,
            checkpoint=self.folder / f"{name}_{self.seed}".replace(" ", "_"), progress=False, **SETTINGS,
        )  # fmt: skip

    def steps(self, epochs: float) -> int:
        return math.ceil(epochs * (len(self.x) // BATCH))

    @cached_property
    def members(self) -> tuple[Graph, Graph]:
        """The two WRN-10-1 of a mixture."""
        from espalier.passes.base import Context, parse_spec

        found = []
        for member in range(2):
            graph = network(1, self.seed, member)
            parse_spec("mixture").run(graph, Context(seed=10 * self.seed + member))
            found.append(self.trained(f"member {member}", graph, self.steps(self.epochs), RATE, member))
        return found[0], found[1]

    def single(self, times: int = 1) -> Graph:
        """One WRN-10-1, trained as long as one of the two, or `times` as long."""
        return self.trained(f"single {times}", network(1, self.seed, 0), self.steps(times * self.epochs), RATE, 0)

    def steps_left(self, grown: Graph, before: int) -> int:
        """What is left of the budget for a grown network, after so many times `epochs` epochs of WRN-10-1."""
        rest = (2 - before) * size(1) / multiplications(whole(grown))
        return self.steps((1 + rest) * self.epochs)

    # ---- how they grow -------------------------------------------------------------------------------------------

    def mixture(self, scale: float = 1.0) -> Graph:
        from espalier.passes.structure.mixture import grow_mixture

        return grow_mixture(*self.members, scale=scale)

    def random_blocks(self) -> Graph:
        """The ensemble as one weight for each layer, with numbers like the other ones where it has zeros."""
        draw = np.random.default_rng([self.seed, 3])

        def filled(name: str, array: NDArray[Any]) -> NDArray[Any]:
            if array.ndim < 2:
                return array
            fresh = draw.normal(0, array[array != 0].std(), array.shape)
            return np.where(array == 0, fresh, array).astype(array.dtype)

        return changed(whole(self.mixture(0.0)), filled)

    def net2wider(self, times: int = 1) -> Graph:
        from espalier.ir.clone import clone
        from espalier.passes.base import Context, parse_spec

        grown = clone(self.single(times))
        parse_spec(f"widen:factor=2,noise={NOISE}").run(grown, Context(seed=self.seed))
        return grown

    def random_growth(self, times: int = 1) -> Graph:
        """The weights of the small network are the first rows and columns of those of a fresh wide one."""
        small = {value.name: value.array for value in self.single(times).constants()}

        def cornered(name: str, array: NDArray[Any]) -> NDArray[Any]:
            found, corner = np.array(array), small[name]
            found[tuple(slice(0, extent) for extent in corner.shape)] = corner
            return found

        return changed(network(2, self.seed, 4), cornered)


@dataclass(frozen=True)
class Method:
    """How to grow, and how often `epochs` epochs of WRN-10-1 that takes."""

    grow: Callable[[Trial], Graph]
    before: int


METHODS = {
    "mixture": Method(Trial.mixture, 2),
    "Net2Wider": Method(Trial.net2wider, 1),
    "random growth": Method(Trial.random_growth, 1),
}
CONTROLS = {
    "Net2Wider after 16 epochs": Method(lambda trial: trial.net2wider(2), 2),
    "random growth after 16 epochs": Method(lambda trial: trial.random_growth(2), 2),
    "mixture with zeros between": Method(lambda trial: trial.mixture(0.0), 2),
    "mixture with random blocks between": Method(Trial.random_blocks, 2),
}
RIVALS = {"mixture_beats_net2wider": "Net2Wider", "mixture_beats_random_growth": "random growth"}


def budget() -> float:
    """Multiply–accumulates that each method may use to train.

    Mixing templates, once a step, is not counted: it is less than a thousandth of that.
    """
    return PASSES * EPOCHS * (IMAGES // BATCH) * BATCH * (2 * size(1) + size(2))


def jobs(controls: bool) -> Iterator[tuple[str, int]]:
    """All that there is to do, in order: seed by seed, controls last."""
    for methods in (METHODS, CONTROLS) if controls else (METHODS,):
        for seed in SEEDS:
            for method in methods:
                yield method, seed


def measure(trial: Trial, name: str, x: NDArray[Any], y: NDArray[Any]) -> dict[str, Any]:
    """One result."""
    method = {**METHODS, **CONTROLS}[name]
    grown = method.grow(trial)
    steps = trial.steps_left(grown, method.before)
    bits = right(whole(trial.trained(name, grown, steps, GROWN_RATE, 2)), x, y)
    per_image = method.before * trial.steps(trial.epochs) * size(1) + steps * multiplications(whole(grown))
    return {
        "method": name, "seed": trial.seed, "training_macs": PASSES * BATCH * per_image,
        "accuracy_when_grown": round(100 * float(right(whole(grown), x, y).mean()), 2),
        "accuracy": round(100 * float(bits.mean()), 2), "images": len(bits), "right": packed(bits),
    }  # fmt: skip


def measure_mixture(benchmark: Benchmark) -> None:
    """Train what is missing if that is asked for, and compare."""
    options = benchmark.arguments
    results, data = Results(options.progress, KEY), data_folder()
    if options.train and not options.quick:
        if data is None:
            raise FileNotFoundError("trainings need CIFAR-10: ESPALIER_DATA is not set")
        torch.set_num_threads(1)
        (x, y), test = cifar10_images(data, "train"), cifar10_images(data)
        trials = {seed: Trial(seed, x, y, CHECKPOINTS) for seed in SEEDS}
        for method, seed in jobs(options.controls):
            if results.key({"method": method, "seed": seed}) not in results.held:
                record = measure(trials[seed], method, *test)
                results.add(record)
                benchmark.say("mixture", *(value for key, value in record.items() if key != "right"))
    conclude(benchmark, results)


def conclude(benchmark: Benchmark, results: Results) -> None:
    """The bars."""
    bits: dict[str, list[Bits]] = {
        method: results.each([{"method": method, "seed": seed} for seed in SEEDS]) for method in (*METHODS, *CONTROLS)
    }
    differences = {
        method: difference(bits["mixture"], found)
        for method, found in bits.items()
        if method != "mixture" and found and bits["mixture"]
    }
    for name, rival in RIVALS.items():
        wanted = (
            f"mean of paired differences to {rival} over {len(SEEDS)} seeds above 0 points, after "
            f"{budget() / 1e12:.1f} T multiply–accumulates of training each"
        )
        found = differences.get(rival)
        if found is None:
            left = sum(results.key({"method": m, "seed": s}) not in results.held for m in METHODS for s in SEEDS)
            why = f"{left} of {len(METHODS) * len(SEEDS)} trainings are missing: --only mixture --train runs them"
            benchmark.bar(name, None, wanted, None, why)
        else:
            benchmark.bar(name, found, wanted, found["mean"] > 0)
    shown = [{key: value for key, value in record.items() if key != "right"} for record in results.held.values()]
    benchmark.details.update({
        "mixture": {
            "differences": differences, "accuracies": shown, "budget": budget(), "epochs": EPOCHS,
            "learning_rates": [RATE, GROWN_RATE],
        }
    })  # fmt: skip
