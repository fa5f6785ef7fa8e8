"""A stand-in for torchvision, with just what timm asks for when it is imported.

timm builds its models from torch alone, but imports data sets and transforms at the same time. torchvision's wheels
want a torch of their own build, so that a class of each name that timm wants stands for it, which refuses to be made.
"""

from __future__ import annotations

import enum
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

DATA_SETS = ("CIFAR10", "CIFAR100", "FashionMNIST", "ImageFolder", "ImageNet", "INaturalist", "KMNIST", "MNIST",
             "Places365", "QMNIST")  # fmt: skip


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Absent:
    """Stands for what no model is built from."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} needs torchvision itself")


class FrozenBatchNorm2d(torch.nn.Module):
    """Batch normalisation with fixed statistics and affine numbers, by the formula; inputs n×c×h×w."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, level in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), level))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


def install() -> None:
    """Make `import torchvision` give the stand-in, unless the real one is loaded already."""
    if "torchvision" in sys.modules:
        return
    root = _module("torchvision", __version__="0.0.0")
    root.ops = _module("torchvision.ops")
    root.ops.misc = _module("torchvision.ops.misc", FrozenBatchNorm2d=FrozenBatchNorm2d)
    root.datasets = _module("torchvision.datasets", **{name: type(name, (Absent,), {}) for name in DATA_SETS})
    root.transforms = _module("torchvision.transforms", ToTensor=type("ToTensor", (Absent,), {}))
    root.transforms.functional = _module("torchvision.transforms.functional", InterpolationMode=InterpolationMode)


def _module(name: str, **contents: Any) -> Any:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    for key, value in contents.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module
