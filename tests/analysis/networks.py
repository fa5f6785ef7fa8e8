"""Small networks, one for each kind of structure that couples axes, as torch modules with example inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.analysis import sequence_networks
from tests.analysis.registry import NETWORKS, example, loaded, network

__all__ = ["NETWORKS", "example", "loaded", "network", "sequence_networks"]


class Pooled(nn.Module):
    """Mean over space, then a linear layer."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(x.mean((2, 3)))
        return found


@network((2, 3, 8, 8))
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.c1, self.c2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3, padding=1), nn.Conv2d(7, 6, 3, padding=1)
        self.n1, self.n2 = nn.BatchNorm2d(7), nn.BatchNorm2d(6)
        self.head = Pooled(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.n2(self.c2(self.n1(self.c1(x)).relu()))).relu())


@network((2, 3, 6, 6))
class PaddedResidual(nn.Module):
    """A residual that is widened with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 12, 3, padding=1), Pooled(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.head((self.b(x) + F.pad(x, (0, 0, 0, 0, 3, 3))).relu())


@network((2, 3, 6, 6))
class SeparableAfterConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(10)
        self.depthwise, self.pointwise = nn.Conv2d(10, 20, 3, groups=10, padding=1), nn.Conv2d(20, 8, 1)
        self.head = Pooled(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu()
        return self.head(self.pointwise(self.depthwise(x).relu()).relu())


class Shuffle(nn.Module):
    """A channel shuffle of 4 groups between two grouped convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.g1 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, channels, 3, padding=1, groups=4)
        self.g2, self.head = nn.Conv2d(channels, 8, 3, padding=1, groups=4), Pooled(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.g1(self.stem(x)).relu()
        x = x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(self.g2(x).relu())


NETWORKS["Shuffle32"] = lambda: (Shuffle(32), (torch.randn(2, 3, 4, 4),))
NETWORKS["Shuffle24"] = lambda: (Shuffle(24), (torch.randn(2, 3, 4, 4),))


@network((2, 3, 4, 4))
class ShuffleUnits(nn.Module):
    """ShuffleNet v2: half of the channels pass by, then both halves are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 6, 1), Pooled(6)
        self.bodies = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8),
                nn.Conv2d(8, 8, 1),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for body in self.bodies:
            a, b = x.chunk(2, 1)
            x = torch.cat([a, body(b)], 1).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(self.last(x))


@network((2, 3, 6, 6))
class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * k) for k in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * k, 4, 3, padding=1) for k in range(3))
        self.last, self.head = nn.BatchNorm2d(18), Pooled(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return self.head(self.last(x).relu())


@network((3, 4))
class GatedLinear(nn.Module):
    """64 rows cut in two: half of the units gone leaves 32 exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 64), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, 1)
        return self.down(a * b.sigmoid())


@network((3, 4))
class GatedBuiltin(GatedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.glu(self.up(x), 1))


@network((2, 3, 4, 4))
class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.shuffle, self.b = nn.Conv2d(3, 20, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.shuffle(self.a(x)).relu())


@network((2, 3, 4, 4))
class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pixel_unshuffle(self.a(x).relu(), 2))


@network((2, 3, 8, 8))
class Flatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(self.conv(x).relu(), 2).flatten(1))


@network((2, 3, 6, 6))
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.down, self.up, self.head = nn.Linear(8, 4), nn.Linear(4, 8), Pooled(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        scale = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return self.head(self.last(x * scale[:, :, None, None]))


@network((2, 3, 6, 6))
class GroupNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), Pooled(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu())


@network((2, 3, 6, 6))
class GroupNormAfterConcat(nn.Module):
    """The groups' borders (8) do not meet the concat's (10)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = nn.Conv2d(3, 10, 3), nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 16), Pooled(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())


@network((2, 3, 6, 6))
class ParametricRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 8, 3), nn.PReLU(8), Pooled(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x)))


@network((1, 3, 6, 8), (1, 3, 6, 8))
class Correlation(nn.Module):
    """RAFT's: features of two images, every position against every other, pooled, and read by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 3, padding=1))
        self.context, self.motion, self.flow = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(12, 9, 1),
            nn.Conv2d(15, 2, 3, padding=1),
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        fa, fb = self.features(a).flatten(2), self.features(b).flatten(2)
        volume = (fa.transpose(1, 2) @ fb / 10**0.5).unflatten(2, (6, 8))  # [1, 48, 6, 8]
        pooled = F.avg_pool2d(volume, 2).flatten(2).transpose(1, 2).unflatten(2, (6, 8))  # [1, 12, 6, 8]
        return self.flow(torch.cat([self.motion(pooled).relu(), self.context(a).tanh()], 1))


@network((2, 5))
class Misaligned(nn.Module):
    """Twelve units seen as (3 4) by one reader and as (4 3) by another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fy, self.fz = nn.Linear(5, 12), nn.Linear(12, 6), nn.Linear(6, 2), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1)
        z = x.unflatten(1, (4, 3)).transpose(1, 2).flatten(1)
        return self.fy(self.b(y)) + self.fz(z)


@network((2, 3, 4, 4))
class SteppedChannels(nn.Module):
    """Every other channel passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 6, 3, padding=1), Pooled(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.b(x) + x[:, ::2])


@network((2, 5, 3))
class FromEnd(nn.Module):
    """Parts of an axis whose bounds count from its end, as routed and shared experts lie in the logits of a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Linear(3, 24)
        self.first, self.middle, self.last = nn.Linear(10, 4), nn.Linear(8, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixed(x)
        return self.first(y[..., :-14].relu()) + self.middle(y[..., -14:-6]) + self.last(y[..., -6:].tanh())


@network((4, 3))
class ResidualLinear(nn.Module):
    """One coordinate that one layer both sums over and makes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(x + self.b(x.sigmoid()))


@network((2, 5, 3))
class ProductOfSigmoids(nn.Module):
    """Two activations contracted where neither vanishes: not exact."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).sigmoid() @ self.b(x).sigmoid().transpose(1, 2))


@network((2, 3, 6, 6))
class Spatial(nn.Module):
    """Resizing, transposed convolution, pooling of all kinds: they keep channels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 8, 2, stride=2), nn.Conv2d(14, 5, 1)
        self.head = Pooled(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        wide = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = torch.cat([self.up(F.avg_pool2d(F.max_pool2d(x, 3, 1, 1), 3, 1, 1)), wide], 1)
        return self.head(self.b(x))


@network((2, 3, 8, 8))
class GroupedTranspose(nn.Module):
    """A transposed convolution in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.head = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 12, 2, groups=4), Pooled(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.a(x).relu()).relu())


@network((2, 3, 6, 6))
class InstanceNorm(nn.Module):
    """Statistics over positions only: channels stay apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), Pooled(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.a(x)).relu())


@network((3, 7))
class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(7, 8), nn.RMSNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


@network((3, 7))
class LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(7, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu())


@network((2, 3, 6, 6))
class Gram(nn.Module):
    """Each channel against each, flattened: one axis has the channels twice over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).flatten(2)
        return self.fc((x @ x.transpose(1, 2)).flatten(1))


@network((3, 4))
class Outer(nn.Module):
    """Products of all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu())
        return self.fc((x[:, :, None] * x[:, None]).flatten(1))


@network((3, 4))
class PairDifference(nn.Module):
    """Differences of all pairs; beside them, the numbers themselves twice, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(46, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        x = self.b(a)
        return self.fc(torch.cat([(x[:, :, None] - x[:, None]).flatten(1), a, a], 1))
