"""Small networks, one for each kind of structure that couples axes, as torch modules with example inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import espalier
from espalier.ir import Graph

Example = tuple[nn.Module, tuple[Tensor, ...]]
NETWORKS: dict[str, Callable[[], Example]] = {}


def network(*shapes: tuple[int, ...]) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a module class under its name, with normal inputs of these shapes."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        NETWORKS[cls.__name__] = lambda: (cls(), tuple(torch.randn(*shape) for shape in shapes))
        return cls

    return register


def example(name: str, dtype: torch.dtype = torch.float64) -> Example:
    """The network of that name in evaluation mode, with seeded weights, statistics and inputs."""
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    module = module.to(dtype).eval()
    return module, tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


@functools.cache
def loaded(name: str) -> tuple[Graph, list[Any], nn.Module]:
    """Its graph (not to be changed), its inputs as arrays, and the module."""
    module, inputs = example(name)
    return espalier.load(module, example_inputs=inputs), [x.numpy() for x in inputs], module


def tokens(name: str, count: int, *shape: int) -> None:
    """Let a registered network take token indices instead."""
    make = NETWORKS[name]
    NETWORKS[name] = lambda: (make()[0], (torch.randint(count, shape),))


def heads(x: Tensor, count: int) -> Tensor:
    """[b, t, (h d)] → [b, h, t, d]."""
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in the open, [b, h, t, d] each → [b, t, (h d)]."""
    weights = (q @ k.transpose(2, 3) * 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Pooled(nn.Module):
    """Mean over space, then a linear layer."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(x.mean((2, 3)))
        return found


def classify(net: nn.Module, channels: int) -> None:
    net.head = Pooled(channels)


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


@network((2, 5, 3))
class Attention(nn.Module):
    """Attention with separate projections; `fused`: one projection, cut in three; `norm`: behind a layer norm."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 12), nn.LayerNorm(12) if norm else nn.Identity()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 2)

    def project(self, x: Tensor) -> list[Tensor]:
        return [heads(layer(x), 3) for layer in (self.q, self.k, self.v)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.out(attend(*self.project(self.norm(x)))))


NETWORKS["AttentionNorm"] = lambda: (Attention(True), (torch.randn(2, 5, 3),))


@network((2, 5, 3))
class AttentionFused(Attention):
    def __init__(self) -> None:
        super().__init__()
        del self.q, self.k, self.v
        self.qkv = nn.Linear(12, 36)

    def project(self, x: Tensor) -> list[Tensor]:
        return [heads(part, 3) for part in self.qkv(x).chunk(3, 2)]


@network((2, 5, 3))
class AttentionStacked(AttentionFused):
    """timm's: reshaped to (3 h d), the 3 moved to the front, then unbound."""

    def project(self, x: Tensor) -> list[Tensor]:
        return list(self.qkv(x).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4).unbind(0))


@network((2, 5, 3))
class AttentionBuiltin(nn.Module):
    """torch's own module and its own fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = (
            nn.Linear(3, 12),
            nn.MultiheadAttention(12, 3, batch_first=True),
            nn.Linear(12, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.inner(x, x, x, need_weights=False)[0])


@network((2, 5, 7))
class GroupedQuery(nn.Module):
    """Six query heads that share two key and value heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Linear(7, 10), nn.Linear(10, 24), nn.Linear(10, 8), nn.Linear(10, 8)
        self.out, self.head = nn.Linear(24, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        k, v = (heads(layer(x), 2).repeat_interleave(3, 1) for layer in (self.k, self.v))
        return self.head(self.out(attend(heads(self.q(x), 6), k, v)))


@network((2, 5, 7))
class GroupedQueryFused(GroupedQuery):
    """The same by torch's fused function."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = heads(self.q(x), 6), heads(self.k(x), 2), heads(self.v(x), 2)
        return self.head(self.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)))


@network((2, 5, 3))
class Rotary(Attention):
    """Queries and keys rotated by position: the halves of a head belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cosine", torch.randn(5, 4))
        self.register_buffer("sine", torch.randn(5, 4))

    def project(self, x: Tensor) -> list[Tensor]:
        q, k, v = super().project(x)
        return [*(t * self.cosine + torch.cat([-t[..., 2:], t[..., :2]], -1) * self.sine for t in (q, k)), v]


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
class ShiftedWindows(nn.Module):
    """Swin's block: a roll, windows, attention with a bias by position, windows back, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.out, self.head = (
            nn.Conv2d(3, 12, 1),
            nn.Linear(12, 36),
            nn.Linear(12, 12),
            nn.Linear(12, 2),
        )
        self.bias = nn.Parameter(torch.randn(49, 3))
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = place[:, :, None] - place[:, None] + 3
        self.register_buffer("apart", apart[0] * 7 + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x = self.patch(x).permute(0, 2, 3, 1)
        x = torch.roll(x, (-2, -2), (1, 2))
        x = x.unflatten(1, (2, 4)).unflatten(3, (2, 4)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        q, k, v = self.qkv(x).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias[self.apart.flatten()].unflatten(0, (16, 16)).permute(2, 0, 1)
        x = (((q * 0.5) @ k.transpose(2, 3) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = self.out(x).unflatten(0, (2, 2, 2)).unflatten(3, (4, 4)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return self.head(torch.roll(x, (2, 2), (1, 2)) + shortcut)


class RecurrentClassifier(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool, layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.cell = kind(5, 7, batch_first=True, bidirectional=bidirectional, num_layers=layers)
        self.fc = nn.Linear(14 if bidirectional else 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.cell(self.embed(x))[0].mean(1))


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    NETWORKS[_kind.__name__] = lambda kind=_kind: (RecurrentClassifier(kind, False), (torch.randn(2, 6, 3),))
    NETWORKS[f"{_kind.__name__}Both"] = lambda kind=_kind: (RecurrentClassifier(kind, True), (torch.randn(2, 6, 3),))
NETWORKS["LSTMDeep"] = lambda: (RecurrentClassifier(nn.LSTM, True, 2), (torch.randn(2, 6, 3),))


@network()
class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        return self.head(x + self.down(self.up(x).relu()))


tokens("TiedEmbedding", 11, 2, 5)


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


@network((2, 5, 4))
class EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(4, 3, 6)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(3, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btc,chd->bthd", x, w) for w in (self.q, self.k, self.v))
        p = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(3)
        return torch.einsum("bqhd,hdc->bqc", torch.einsum("bhqk,bkhd->bqhd", p, v), self.o)


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
