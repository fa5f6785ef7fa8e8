"""The real data sets and what the trained models expect of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = tuple[NDArray[Any], NDArray[Any]]


def cifar10(data: Path, part: str = "test") -> Samples:
    """Images n×32×32×3 as uint8, labels 0…9. The test set has 10,000."""
    from PIL import Image

    with zipfile.ZipFile(data / "cifar10.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(f"{part}_") and n.endswith(".webp"))
        strips = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
        labels = np.load(io.BytesIO(archive.read(f"{part}_y.npy")))
    return np.concatenate([strip.reshape(-1, 32, 32, 3) for strip in strips]), labels


def cifar10_normalised(data: Path) -> Samples:
    """n×3×32×32, normalised as ImageNet's."""
    x, y = cifar10(data)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return np.ascontiguousarray(((x / 255.0 - mean) / deviation).transpose(0, 3, 1, 2), np.float32), y


def cifar10_raw(data: Path) -> Samples:
    """n×3×32×32, 0…255."""
    x, y = cifar10(data)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32), y


def mnist(data: Path) -> Samples:
    """n×1×28×28, 0…255; the test set has 10,000."""
    with np.load(data / "mnist.npz") as archive:
        return archive["x_test"].astype(np.float32)[:, None], archive["y_test"]


def mnist_unit(data: Path) -> Samples:
    """n×1×28×28, 0…1."""
    x, y = mnist(data)
    return x / np.float32(255), y


def keywords(data: Path) -> Samples:
    """n×49×10×1 of MFCCs; 1,000 samples of 12 keywords."""
    with np.load(data / "kws01_mfcc.npz") as archive:
        x, y = archive["x"], archive["y"]
    return ((x.astype(np.float32) - 83) * np.float32(0.5847029))[..., None], y


def intrusions(data: Path) -> Samples:
    """n×600 of −1 and 1; 82,332 connections, normal or attack."""
    with np.load(data / "tabular" / "unsw_nb15_test_binarized.npz") as archive:
        bits, y = np.unpackbits(archive["x_packed"], axis=1)[:, :593], archive["y"]
    return np.pad(bits.astype(np.float32), ((0, 0), (0, 7))) * 2 - 1, y


@dataclass(frozen=True)
class Task:
    """A trained model's data, and how many of its decisions are right by the reference."""

    samples: Callable[[Path], Samples]
    right: int
    """Correct predictions on the whole test set."""


TASKS = {
    "akamaster_resnet20_cifar10": Task(cifar10_normalised, 9173),
    "akamaster_resnet56_cifar10": Task(cifar10_normalised, 9339),
    "mlperf_tiny_resnet8_cifar10": Task(cifar10_raw, 8719),
    "kws_dscnn_alibaba": Task(keywords, 908),
    "mnist_cntk": Task(mnist, 9891),
    "TFC_1W1A": Task(mnist_unit, 9317),
    "TFC_2W2A": Task(mnist_unit, 9660),
    "unsw_nb15-mlp-w2a2": Task(intrusions, 75605),
}
"""Model → its task. Figures: the models' own documentation, or a run of onnxruntime or qonnx over the same data."""


def decisions(outputs: NDArray[Any]) -> NDArray[Any]:
    """The class of the largest output, or the sign of a single one."""
    outputs = outputs.reshape(len(outputs), -1)
    return np.asarray(outputs[:, 0] > 0) if outputs.shape[1] == 1 else np.asarray(np.argmax(outputs, axis=1))
