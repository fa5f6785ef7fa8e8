"""Models of full size with random weights, on which analyses are timed: ResNet-50, Swin-T, 24 transformer layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Example = tuple[nn.Module, Any]


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride), 1×1 to four times the width; a projection where shapes change."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet50() -> Example:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)]
    return nn.Sequential(*layers).eval(), (torch.randn(1, 3, 64, 64),)


def swin_tiny() -> Example:
    """The default configuration of transformers: 96 channels, depths 2, 2, 6, 2."""
    from transformers import SwinConfig, SwinModel

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = SwinModel(SwinConfig(attn_implementation="eager"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).pooler_output

    return Pooled().eval(), (torch.randn(1, 3, 224, 224),)


def transformer24() -> Example:
    """24 pre-norm encoder layers, 256 wide, 4 heads."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 24, enable_nested_tensor=False).eval(), (torch.randn(1, 16, 256),)


MODELS: dict[str, Callable[[], Example]] = {
    "resnet50": resnet50,
    "swin_tiny": swin_tiny,
    "transformer24": transformer24,
}
