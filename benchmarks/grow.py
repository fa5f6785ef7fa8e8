"""Growth: does it keep the outputs, are new coefficients orthogonal, what does MixtureGrowth gain; and killed runs.

    python -m benchmarks.grow [--quick] [--json] [--seed N] [--save] [--only PART] [--train]

Bar 4 has three parts: exact and orthogonal (see benchmarks/growth_exact.py), and mixture, whose trainings are kept in a
file and run only if `--train` says so (see benchmarks/growth_accuracy.py).

Bar 7, the part kills: recovery runs that are killed end with the same bits as one that is not. A trained ResNet-20
whose weights were disturbed (where ESPALIER_DATA is set and the run is not quick; else a small convolutional network
with seeded weights) recovers on part of CIFAR-10's training set, by labels and by imitating the original at once, with
augmentation. Each of the runs is killed by SIGKILL at a random time, resumed, and compared with an uninterrupted one.
"""

from __future__ import annotations

import multiprocessing
import pkgutil
import random
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import espalier
import espalier.ir.ops
from benchmarks.artifact import network
from benchmarks.common import Benchmark, data_folder
from benchmarks.datasets import cifar10_images
from benchmarks.growth_accuracy import PROGRESS, measure_mixture
from benchmarks.growth_exact import measure_exact, measure_orthogonal

KILLS, QUICK_KILLS = 20, 3
STEPS, BATCH = 16, 32
CONTEXT = multiprocessing.get_context("forkserver")
# what making an optimizer, and loading a model, import
OPERATORS = [f"espalier.ir.ops.{module.name}" for module in pkgutil.iter_modules(espalier.ir.ops.__path__)]
CONTEXT.set_forkserver_preload(["espalier.train.recover", "torch._dynamo", "espalier.frontends.onnx", *OPERATORS])


def recover_once(model: Path, data: Path, folder: Path, output: Path, seed: int) -> None:
    """Disturb the model's weights and let it recover; a checkpoint follows each step. The weights go into `output`."""
    from espalier.train.augment import CropAndFlip
    from espalier.train.recover import recover

    original, disturbed = espalier.load(model), espalier.load(model)
    disturb(disturbed, seed)
    found = recover(
        disturbed, original, data, steps=STEPS, batch_size=BATCH, imitate=0.5, augment=CropAndFlip(2), seed=seed,
        threads=1, checkpoint=folder, every_steps=1, progress=False,
    )  # fmt: skip
    np.savez(output, **{f"{k}": array for k, array in enumerate(weights(found))})


def disturb(graph: Any, seed: int) -> None:
    """Add noise to all weights: a tenth of their own deviation."""
    from espalier.ir.xp import torch as xp
    from espalier.train.module import to_torch

    draw = np.random.default_rng(seed)
    module = to_torch(graph)
    for parameter in module.parameters():
        array = xp.to_numpy(parameter)
        noise = 0.1 * array.std() * draw.standard_normal(array.shape)
        parameter.data.copy_(xp.asarray((array + noise).astype(array.dtype)))
    module.write_back()


def weights(graph: Any) -> list[NDArray[Any]]:
    """All constants, in order."""
    values = dict.fromkeys(v for node in graph for v in node.operands if v is not None and v.constant is not None)
    return [np.asarray(value.constant.array) for value in values]


def started(*arguments: Any) -> ForkServerProcess:
    process = CONTEXT.Process(target=recover_once, args=arguments)
    process.start()
    return process


def finished(process: ForkServerProcess) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a recovery run failed with exit code {process.exitcode}")


def same(a: Path, b: Path) -> bool:
    with np.load(a) as first, np.load(b) as second:
        return first.files == second.files and all(first[k].tobytes() == second[k].tobytes() for k in first.files)


def measure_kills(benchmark: Benchmark) -> None:
    """Kill and resume; a draw that comes after the run's end is drawn again."""
    with tempfile.TemporaryDirectory(prefix="espalier-grow-") as name:
        _measure_kills(benchmark, Path(name))


def _measure_kills(benchmark: Benchmark, work: Path) -> None:
    quick, seed = benchmark.arguments.quick, benchmark.arguments.seed
    folder = None if quick else data_folder()
    model, data = work / "model.onnx", work / "data.npz"
    if folder is None:
        onnx.save(network(seed), model)
        draw = np.random.default_rng(seed)
        image = draw.standard_normal((512, 3, 16, 16)).astype(np.float32)
        np.savez(data, image=image, labels=draw.integers(0, 10, 512))
    else:
        model = folder / "models" / "akamaster_resnet20_cifar10.onnx"
        x, y = cifar10_images(folder, "train", 1024)
        np.savez(data, input=x, labels=y)
    warm = CONTEXT.Process(target=int)  # the server of forks has imported everything when this one has ended
    warm.start()
    warm.join()
    start = time.perf_counter()
    finished(started(model, data, work / "whole", work / "whole.npz", seed))
    duration = time.perf_counter() - start
    draw_time, equal, kills, points = random.Random(seed), 0, 0, []
    wanted = QUICK_KILLS if quick else KILLS
    while kills < wanted:
        place, output = work / f"run{kills}", work / f"run{kills}.npz"
        delay = draw_time.uniform(0, duration)
        process = started(model, data, place, output, seed)
        process.join(delay)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            finished(process)
            for path in (place / "checkpoint.safetensors", output):
                path.unlink(missing_ok=True)
            continue
        kills += 1
        points.append(_step(place))
        finished(started(model, data, place, output, seed))
        equal += same(work / "whole.npz", output)
        benchmark.say(f"kill {kills} after {delay:.1f} s, at step {points[-1]}: {equal} equal so far")
    benchmark.details["killed run"] = {
        "model": "ResNet-20 on 1,024 images of CIFAR-10" if folder is not None else "a small network on seeded images",
        "steps": STEPS,
        "batch size": BATCH,
        "seconds of the whole run": round(duration, 2),
        "last checkpoint at each kill": points,
    }
    benchmark.bar(
        "killed_runs_equal",
        f"{equal} of {kills}",
        f"all of {wanted} runs, killed at random times and resumed, end with the bits of an uninterrupted one",
        equal == kills == wanted,
    )


def _step(folder: Path) -> int:
    """The step of a checkpoint; 0 if there is none yet."""
    import json

    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="np") as file:
        return int(json.loads(file.metadata()["espalier"])["position"]["step"])


PARTS: Mapping[str, Callable[[Benchmark], None]] = {
    "exact": measure_exact,
    "orthogonal": measure_orthogonal,
    "mixture": measure_mixture,
    "kills": measure_kills,
}


def main() -> None:
    benchmark = Benchmark("grow", __doc__)
    benchmark.parser.add_argument("--only", choices=sorted(PARTS), action="append", help="measure these parts alone")
    benchmark.parser.add_argument("--train", action="store_true", help="run what trainings are missing: hours")
    benchmark.parser.add_argument("--controls", action="store_true", help="train what is no part of the bar, too")
    benchmark.parser.add_argument("--progress", type=Path, default=PROGRESS, help="where trainings are kept")
    arguments = benchmark.parse()
    for part, measure in PARTS.items():
        if not arguments.only or part in arguments.only:
            measure(benchmark)
    benchmark.finish()


if __name__ == "__main__":
    main()
