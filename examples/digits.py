"""Train a small network on scikit-learn's handwritten digits, compile it for this CPU, and run the artifact.

    python examples/digits.py [--output FOLDER] [--epochs N]

Prints size, latency and accuracy before (PyTorch) and after (the artifact). The compilation fails, and writes nothing,
if it costs more than half a point of accuracy.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import espalier
import espalier.runtime

MAX_DROP = 0.5
"""Points of accuracy that compiling may cost."""


class Digits(nn.Module):
    """Images [N, 1, 8, 8] between 0 and 1 in, scores [N, 10] out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            self.block(1, 32), self.block(32, 32), nn.MaxPool2d(2), self.block(32, 64), self.block(64, 64)
        )
        self.classify = nn.Linear(64, 10)

    @staticmethod
    def block(channels: int, filters: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(image).mean((2, 3)))


def train(images: np.ndarray, labels: np.ndarray, epochs: int) -> Digits:
    """A network that has seen every image `epochs` times."""
    network = Digits()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs=epochs, steps_per_epoch=len(x) // 64 + 1)
    for epoch in range(epochs):
        losses = []
        for batch in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(network(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:2}: loss {statistics.mean(losses):.4f}")
    return network.eval()


def latencies(before: Callable[[], object], after: Callable[[], object], rounds: int = 300) -> tuple[float, float]:
    """Median microseconds of a call, taking turns so that a busy moment meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, taken in zip((before, after), times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def megabytes(package: str) -> float:
    """What an installed package takes on disk."""
    files = importlib.metadata.files(package) or []
    return sum(file.size or 0 for file in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/digits"), help="folder of the artifact")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    train_x, test_x, train_y, test_y = train_test_split(images, digits.target, test_size=0.3, random_state=0)
    network = train(train_x, train_y, arguments.epochs)

    batch = torch.export.Dim("batch")
    graph = espalier.load(network, (torch.from_numpy(test_x[:2]),), dynamic_shapes={"image": {0: batch}})
    artifact = espalier.compile(
        graph, device="cpu", backend="tvm", output=arguments.output, data=[(test_x, test_y)], max_drop=MAX_DROP
    )
    print(*artifact.summary(), sep="\n")

    # From here on neither torch nor the compiler is needed.
    model = espalier.runtime.load(arguments.output, threads=1)
    one = test_x[:1]
    with torch.inference_mode():
        scores = network(torch.from_numpy(test_x)).numpy()
        before, after = latencies(lambda: network(torch.from_numpy(one)), lambda: model(one))
    (compiled_scores,) = model(test_x).values()
    accuracy, compiled_accuracy = (float((s.argmax(1) == test_y).mean()) for s in (scores, compiled_scores))

    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    files = {name: entry.size for name, entry in model.manifest.files.items()}
    library = files.pop("libtvm_runtime.so", 0)
    table = Table("", "before: PyTorch", "after: artifact", title="handwritten digits")
    table.add_row("model", f"{weights / 1e3:.0f} kB of weights", f"{sum(files.values()) / 1e3:.0f} kB, code included")
    table.add_row("runs with", f"torch, {megabytes('torch'):.0f} MB", f"its own library, {library / 1e6:.1f} MB")
    table.add_row("latency, one image, one thread", f"{before:.0f} µs", f"{after:.0f} µs")
    table.add_row(f"accuracy on {len(test_y)} images", f"{accuracy:.2%}", f"{compiled_accuracy:.2%}")
    Console().print(table)
    print(f"The artifact is in {arguments.output}; its hash is {artifact.hash[:16]}….")


if __name__ == "__main__":
    main()
