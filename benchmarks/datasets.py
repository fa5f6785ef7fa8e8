"""The real data sets and what the trained models expect of them."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = tuple[NDArray[Any], NDArray[Any]]
Twin = Callable[[NDArray[Any]], NDArray[Any]]


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
    return cifar10_images(data)


def cifar10_images(data: Path, part: str = "test", count: int | None = None) -> Samples:
    """The first images of a part, n×3×32×32, normalised as ImageNet's."""
    x, y = (array[:count] for array in cifar10(data, part))
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


def trained_intrusions(data: Path) -> Twin:
    """The network whose folded form FINN stored, from its training's weights, in f64: 2-bit weights and activations.

    It takes n×600 of −1 and 1, of which the last 7 are padding, and gives n×1 of −1 and 1.
    """
    import torch

    file = data / "models" / "finn_cybsec_mlp_state_dict.pth"
    # the file holds numpy scalars, which torch does not load as weights alone
    (state,) = torch.load(file, map_location="cpu", weights_only=False)["models_state_dict"]
    state = {name: array.numpy().astype(np.float64) for name, array in state.items()}

    def run(x: NDArray[Any]) -> NDArray[Any]:
        y = (x[:, :593].astype(np.float64) + 1) / 2
        for layer in (0, 4, 8, 12):  # linear, batch norm, (dropout), quantized ReLU
            weight = state[f"{layer}.weight"]
            scale = np.abs(weight).max()
            y = y @ (np.clip(np.rint(weight / scale), -1, 1) * scale).T + state[f"{layer}.bias"]
            if layer == 12:
                return np.where(y >= 0, np.float32(1), np.float32(-1))
            norm, learnt = f"{layer + 1}.", f"{layer + 3}.act_quant.fused_activation_quant_proxy.tensor_quant"
            y = (y - state[norm + "running_mean"]) / np.sqrt(state[norm + "running_var"] + 1e-5)
            y = y * state[norm + "weight"] + state[norm + "bias"]
            step = abs(state[f"{learnt}.scaling_impl.value"]) / 3
            y = np.clip(np.rint(np.maximum(y, 0) / step), 0, 3) * step
        raise AssertionError

    return run


TWINS = {"finn_cybsec_PE_SIMD": trained_intrusions}
"""Model that no public tool runs → the same network from elsewhere: n inputs to n outputs."""


@dataclass(frozen=True)
class Task:
    """A model's real data, and the share of its decisions that are right."""

    samples: Callable[[Path], Samples]
    published: str | None = None
    """Right decisions on the whole test set, in percent, to as many digits as are known."""

    def accepted(self, of: int) -> tuple[int, int] | None:
        """Fewest and most right decisions that round to the published share, and one more either way."""
        if self.published is None:
            return None
        share, unit = Fraction(self.published) / 100, Fraction(1, 100 * 10 ** len(self.published.partition(".")[2]))
        return math.ceil((share - unit / 2) * of) - 1, math.floor((share + unit / 2) * of) + 1


TASKS = {
    "akamaster_resnet20_cifar10": Task(cifar10_normalised, "91.73"),
    "akamaster_resnet56_cifar10": Task(cifar10_normalised, "93.39"),
    "mlperf_tiny_resnet8_cifar10": Task(cifar10_raw, "87.19"),
    "kws_dscnn_alibaba": Task(keywords, "90.8"),
    "mnist_cntk": Task(mnist, "98.91"),
    "TFC_1W1A": Task(mnist_unit, "93.17"),
    "TFC_2W2A": Task(mnist_unit, "96.60"),
    "finn_tfc_streamlined": Task(mnist),
    "unsw_nb15-mlp-w2a2": Task(intrusions, "91.83"),
    "finn_cybsec_PE_SIMD": Task(intrusions),
}
"""Model → its task. Shares: the models' own documentation, or a run of onnxruntime or qonnx over the same data."""


def decisions(outputs: NDArray[Any]) -> NDArray[Any]:
    """The class of the largest output, the sign of a single one, or a class that is given as an integer."""
    outputs = outputs.reshape(len(outputs), -1)
    if outputs.shape[1] > 1:
        return np.asarray(np.argmax(outputs, axis=1))
    return np.asarray(outputs[:, 0] if outputs.dtype.kind in "iu" else outputs[:, 0] > 0)
