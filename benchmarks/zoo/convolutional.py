"""Convolutional families, reduced in width and depth: their blocks are the published ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int] = 3,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution with "same" padding and no bias, batch norm, activation."""
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sizes[0] // 2, sizes[1] // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, sizes, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Classifier(nn.Module):
    """Features, global average pooling, a linear layer."""

    def __init__(self, features: nn.Module, width: int, classes: int = 10) -> None:
        super().__init__()
        self.features, self.head = features, nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(self.features(images), 1), 1))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al., 2016)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(inputs, width, 3, stride), conv_norm(width, width, 3, activation=None))
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions, four times as wide at the ends (He et al., 2016)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.body = nn.Sequential(
            conv_norm(inputs, width, 1),
            conv_norm(width, width, 3, stride),
            conv_norm(width, outputs, 1, activation=None),
        )
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    same = inputs == outputs and stride == 1
    return nn.Identity() if same else conv_norm(inputs, outputs, 1, stride, activation=None)


def resnet(block: type[BasicBlock | Bottleneck], depths: Sequence[int] = (2, 2, 1, 1), width: int = 8) -> nn.Module:
    layers: list[nn.Module] = [conv_norm(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            outputs = width << stage
            layers.append(block(inputs, outputs, 2 if stage and not index else 1))
            inputs = outputs * block.expansion
    return Classifier(nn.Sequential(*layers), inputs)


class DenseLayer(nn.Module):
    """Norm, activation, 1×1, norm, activation, 3×3; its output is appended to its input (Huang et al., 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet(depths: Sequence[int] = (3, 4, 3), growth: int = 8) -> nn.Module:
    width = 2 * growth
    layers: list[nn.Module] = [conv_norm(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            layers.append(DenseLayer(width, growth))
            width += growth
        if stage + 1 < len(depths):
            transition = [
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            layers.extend(transition)
            width //= 2
    return Classifier(nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU()), width)


class HarmonicBlock(nn.Module):
    """Layer k reads layer k − 2ⁿ for every 2ⁿ that divides k, so few tensors live long (Chao et al., 2019)."""

    def __init__(self, inputs: int, growth: int, depth: int, multiplier: float = 1.6) -> None:
        super().__init__()
        widths: list[int] = [inputs]
        self.links: list[list[int]] = []
        layers = []
        for index in range(1, depth + 1):
            powers = [1 << n for n in range(index.bit_length()) if index % (1 << n) == 0]
            links = [index - power for power in powers]
            width = int(growth * multiplier ** (len(powers) - 1) + 1) // 2 * 2
            layers.append(conv_norm(sum(widths[link] for link in links), width, 3, activation=nn.ReLU6))
            self.links.append(links)
            widths.append(width)
        self.layers = nn.ModuleList(layers)
        self.kept = [index for index in range(1, depth + 1) if index % 2 == 1 or index == depth]
        self.width = sum(widths[index] for index in self.kept)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer, links in zip(self.layers, self.links, strict=True):
            given = [outputs[link] for link in links]
            outputs.append(layer(torch.cat(given, 1) if len(given) > 1 else given[0]))
        return torch.cat([outputs[index] for index in self.kept], 1)


def hardnet() -> nn.Module:
    layers: list[nn.Module] = [conv_norm(3, 8, 3, 2, activation=nn.ReLU6), conv_norm(8, 16, 3, activation=nn.ReLU6)]
    width = 16
    for growth, depth, outputs in ((6, 4, 24), (8, 8, 40), (10, 4, 48)):
        block = HarmonicBlock(width, growth, depth)
        layers += [nn.MaxPool2d(2), block, conv_norm(block.width, outputs, 1, activation=nn.ReLU6)]
        width = outputs
    return Classifier(nn.Sequential(*layers), width)


class SqueezeExcite(nn.Module):
    """Channel gates from globally pooled features (Hu et al., 2018)."""

    def __init__(self, width: int, squeezed: int, activation: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.reduce, self.expand = (nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1))
        self.activation, self.gate = activation(), gate()

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.activation(self.reduce(pooled))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, (squeeze and excite,) project without activation (Sandler et al., 2018)."""

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        excite: SqueezeExcite | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(conv_norm(inputs, expanded, 1, activation=activation))
        layers.append(conv_norm(expanded, expanded, kernel, stride, groups=expanded, activation=activation))
        if excite is not None:
            layers.append(excite)
        layers.append(conv_norm(expanded, outputs, 1, activation=None))
        self.body, self.residual = (nn.Sequential(*layers), stride == 1 and inputs == outputs)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [conv_norm(3, 8, 3, 2, activation=nn.ReLU6)]
    width = 8
    for expansion, outputs, repeats, stride in ((1, 8, 1, 1), (6, 12, 2, 2), (6, 16, 2, 2), (6, 24, 2, 2)):
        for index in range(repeats):
            step = stride if index == 0 else 1
            layers.append(InvertedResidual(width, width * expansion, outputs, 3, step, nn.ReLU6))
            width = outputs
    layers.append(conv_norm(width, 64, 1, activation=nn.ReLU6))
    return Classifier(nn.Sequential(*layers), 64)


def mobilenet_v3() -> nn.Module:
    layers: list[nn.Module] = [conv_norm(3, 8, 3, 2, activation=nn.Hardswish)]
    width = 8
    rows: tuple[tuple[int, int, int, bool, type[nn.Module], int], ...] = (
        (3, 16, 8, True, nn.ReLU, 2),
        (3, 36, 12, False, nn.ReLU, 2),
        (3, 44, 12, False, nn.ReLU, 1),
        (5, 48, 20, True, nn.Hardswish, 2),
        (5, 120, 20, True, nn.Hardswish, 1),
    )
    for kernel, expanded, outputs, gated, activation, stride in rows:
        excite = SqueezeExcite(expanded, max(expanded // 4 // 8 * 8, 8), nn.ReLU, nn.Hardsigmoid) if gated else None
        layers.append(InvertedResidual(width, expanded, outputs, kernel, stride, activation, excite))
        width = outputs
    layers.append(conv_norm(width, 6 * width, 1, activation=nn.Hardswish))
    model = Classifier(nn.Sequential(*layers), 6 * width)
    head = [nn.Linear(6 * width, 64), nn.Hardswish(inplace=True), nn.Dropout(0.2), nn.Linear(64, 10)]
    model.head = nn.Sequential(*head)  # type: ignore[assignment]  # the base has one layer
    return model


def efficientnet() -> nn.Module:
    layers: list[nn.Module] = [conv_norm(3, 8, 3, 2, activation=nn.SiLU)]
    width = 8
    for expansion, outputs, repeats, kernel, stride in (
        (1, 8, 1, 3, 1),
        (6, 12, 2, 3, 2),
        (6, 20, 2, 5, 2),
        (6, 32, 1, 3, 2),
    ):
        for index in range(repeats):
            expanded = width * expansion
            excite = SqueezeExcite(expanded, max(width // 4, 1), nn.SiLU, nn.Sigmoid)
            step = stride if index == 0 else 1
            layers.append(InvertedResidual(width, expanded, outputs, kernel, step, nn.SiLU, excite))
            width = outputs
    layers.append(conv_norm(width, 64, 1, activation=nn.SiLU))
    return Classifier(nn.Sequential(*layers), 64)


class UNet(nn.Module):
    """Contracting and expanding paths joined at every scale (Ronneberger et al., 2015)."""

    def __init__(self, widths: Sequence[int] = (8, 16, 32, 48), classes: int = 3) -> None:
        super().__init__()
        self.down = nn.ModuleList(self._pair(a, b) for a, b in zip((3, *widths), widths, strict=False))
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in steps)
        self.merge = nn.ModuleList(self._pair(2 * b, b) for _, b in steps)
        self.head = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def _pair(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv_norm(inputs, outputs), conv_norm(outputs, outputs))

    def forward(self, images: Tensor) -> Tensor:
        skips: list[Tensor] = []
        x = images
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


class VideoNet(nn.Module):
    """3-D convolutions as in C3D (Tran et al., 2015), then a residual block factored into space and time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(8, 16, 3, padding=1, bias=False), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2),
        )  # fmt: skip
        self.space = nn.Conv3d(16, 24, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.norm = nn.BatchNorm3d(24)
        self.time = nn.Conv3d(24, 16, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.last = nn.BatchNorm3d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, clips: Tensor) -> Tensor:
        x = self.stem(clips)
        x = torch.relu(x + self.last(self.time(torch.relu(self.norm(self.space(x))))))
        return self.head(nn.functional.adaptive_avg_pool3d(x, 1).flatten(1))


class InceptionBlock(nn.Module):
    """Parallel 1×1, 5×5, double 3×3 and pooled branches (Szegedy et al., 2016, figure 5)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.one = conv_norm(inputs, width, 1)
        self.five = nn.Sequential(conv_norm(inputs, width // 2, 1), conv_norm(width // 2, width, 5))
        self.twice = nn.Sequential(
            conv_norm(inputs, width, 1), conv_norm(width, width + 4, 3), conv_norm(width + 4, width, 3)
        )
        self.pooled = conv_norm(inputs, width // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(nn.functional.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.one(x), self.five(x), self.twice(x), pooled], 1)


class InceptionReduction(nn.Module):
    """Strided convolutions beside a strided maximum, concatenated."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.short = conv_norm(inputs, width, 3, 2)
        self.long = nn.Sequential(
            conv_norm(inputs, width // 2, 1), conv_norm(width // 2, width // 2), conv_norm(width // 2, width, 3, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.short(x), self.long(x), nn.functional.max_pool2d(x, 3, 2, 1)], 1)


class InceptionFactored(nn.Module):
    """7×7 kernels factored into 1×7 and 7×1 (Szegedy et al., 2016, figure 6)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.one = conv_norm(inputs, width, 1)
        self.seven = nn.Sequential(
            conv_norm(inputs, width // 2, 1),
            conv_norm(width // 2, width // 2, (1, 7)),
            conv_norm(width // 2, width, (7, 1)),
        )
        self.pooled = conv_norm(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.seven(x), self.pooled(nn.functional.avg_pool2d(x, 3, 1, 1))], 1)


def inception() -> nn.Module:
    stem = nn.Sequential(
        conv_norm(3, 8, 3, 2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5), conv_norm(8, 16, 3)
    )
    body = nn.Sequential(stem, InceptionBlock(16, 8), InceptionReduction(28, 16), InceptionFactored(60, 16))
    return Classifier(body, 48)
