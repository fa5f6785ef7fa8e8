"""Networks whose units are not simply channels: where pruners that follow tensors instead of coordinates go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.weights import randomise


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels c = group·width + k of n×c×h×w as k·groups + group."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def normed(before: int, width: int, kernel: int = 1, **options: Any) -> nn.Sequential:
    """A convolution of the same padding without bias, and a batch norm."""
    convolution = nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))


class ShuffleUnit(nn.Module):
    """ShuffleNet V2: half of the channels pass, or, with stride 2, all go both ways (arXiv 1807.11164)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, width // 2
        own = before if stride > 1 else half
        self.way = nn.Sequential(
            normed(own, half),
            nn.ReLU(),
            normed(half, half, 3, stride=stride, groups=half),
            normed(half, half),
            nn.ReLU(),
        )
        if stride > 1:
            self.short = nn.Sequential(
                normed(before, before, 3, stride=2, groups=before), normed(before, half), nn.ReLU()
            )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1) if self.stride == 1 else (self.short(x), x)
        return shuffled(torch.cat([a, self.way(b)], 1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(normed(3, 16, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        units, before = [], 16
        for width, count in ((32, 3), (64, 4)):
            units += [ShuffleUnit(before if k == 0 else width, width, 2 if k == 0 else 1) for k in range(count)]
            before = width
        self.units, self.last, self.head = (
            nn.Sequential(*units),
            nn.Sequential(normed(64, 96), nn.ReLU()),
            nn.Linear(96, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.units(self.stem(x))).mean((2, 3)))


class ChannelShuffle(nn.Module):
    """Grouped convolutions with a shuffle between them (arXiv 1707.01083)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.a, self.b = nn.Conv2d(24, 24, 1, groups=4), nn.Conv2d(24, 24, 1, groups=4)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffled(self.a(self.stem(x).relu()), 4)
        return self.head(self.b(y).relu()).mean((2, 3))


class SubPixel(nn.Module):
    """Super-resolution: channels that become pixels, inside and at the end (arXiv 1609.05158)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 5, padding=2), nn.Conv2d(24, 32, 3, padding=1)
        self.c, self.up = nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.c(self.up(self.b(self.a(x).tanh())).tanh()))


class GatedLinear(nn.Module):
    """A projection to 64 features, of which one half gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 64), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, gate = self.up(x).chunk(2, -1)
        return self.down(a * functional.silu(gate))


class LstmClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(24, 4)
        self.lstm = nn.LSTM(16, 24, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.table(tokens))[0][:, -1])


class EinsumAttention(nn.Module):
    """Attention whose heads are axes of the weights themselves."""

    def __init__(self, width: int = 24, heads: int = 4, size: int = 6) -> None:
        super().__init__()
        shapes = {"query": (width, heads, size), "key": (width, heads, size), "value": (width, heads, size)}
        for name, shape in (shapes | {"out": (heads, size, width)}).items():
            setattr(self, name, nn.Parameter(torch.randn(shape) / width**0.5))
        self.stem, self.head = nn.Linear(10, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (torch.einsum("btd,dhe->bhte", x, w) for w in (self.query, self.key, self.value))
        weights = torch.einsum("bhte,bhse->bhts", q, k).softmax(-1)
        mixed = torch.einsum("bhts,bhse->bthe", weights, v)
        return self.head(x + torch.einsum("bthe,hed->btd", mixed, self.out))


class TiedLanguageModel(nn.Module):
    """A transformer whose embedding is its output layer, too."""

    def __init__(self, tokens: int = 60, width: int = 24) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 48, 0.0, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(self.table(tokens))))


class OpticalFlow(nn.Module):
    """As RAFT (arXiv 2003.12039): all-pairs correlation of two images' features, looked up around the flow so far, and
    a convolutional gated unit that updates the flow a few times with the same weights."""

    def __init__(self, width: int = 16, hidden: int = 12, radius: int = 1, rounds: int = 3) -> None:
        super().__init__()
        self.radius, self.rounds, self.hidden = radius, rounds, hidden
        self.encoder = self._encoder(width, nn.InstanceNorm2d)
        self.context = self._encoder(2 * hidden, nn.BatchNorm2d)
        seen = (2 * radius + 1) ** 2
        self.motion = nn.Conv2d(seen + 2, 14, 3, padding=1)
        both = hidden + hidden + 14 + 2
        self.z, self.r, self.q = (nn.Conv2d(both, hidden, 3, padding=1) for _ in range(3))
        self.flow = nn.Sequential(nn.Conv2d(hidden, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 2, 3, padding=1))

    @staticmethod
    def _encoder(width: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
        first = nn.Conv2d(3, 10, 3, 2, 1)
        return nn.Sequential(first, norm(10), nn.ReLU(), nn.Conv2d(10, width, 3, 2, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = self.encoder(first), self.encoder(second)
        n, c, h, w = a.shape
        pairs = torch.einsum("nci,ncj->nij", a.flatten(2), b.flatten(2)) / c**0.5
        pairs = pairs.reshape(n * h * w, 1, h, w)
        state, context = self.context(first).split(self.hidden, 1)
        state, context = state.tanh(), context.relu()
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        here = torch.stack([columns, rows]).to(a.dtype)[None].expand(n, -1, -1, -1)
        there = here
        for _ in range(self.rounds):
            flow = there - here
            motion = self.motion(torch.cat([self.look(pairs, there), flow], 1)).relu()
            seen = torch.cat([context, motion, flow], 1)
            joined = torch.cat([state, seen], 1)
            update, reset = self.z(joined).sigmoid(), self.r(joined).sigmoid()
            candidate = self.q(torch.cat([reset * state, seen], 1)).tanh()
            state = (1 - update) * state + update * candidate
            there = there + self.flow(state)
        return there - here

    def look(self, pairs: Tensor, there: Tensor) -> Tensor:
        """Correlations [n, places, h, w] around where each pixel went, between the pixels."""
        n, _, h, w = there.shape
        steps = torch.arange(-self.radius, self.radius + 1, dtype=there.dtype)
        around = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
        at = there.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2) + around
        grid = 2 * at / torch.tensor([w - 1.0, h - 1.0], dtype=there.dtype) - 1
        found = functional.grid_sample(pairs, grid, align_corners=True)
        return found.reshape(n, h, w, -1).permute(0, 3, 1, 2)


Example = tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]


def _normal(*shape: int, seed: int = 11) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _tokens(limit: int, *shape: int) -> Tensor:
    return torch.randint(1, limit, shape, generator=torch.Generator().manual_seed(11))


INPUTS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "shufflenet_v2": (ShuffleNetV2, (_normal(2, 3, 64, 64),)),
    "channel_shuffle": (ChannelShuffle, (_normal(2, 3, 12, 12),)),
    "pixel_shuffle": (SubPixel, (_normal(2, 3, 12, 12),)),
    "gated_linear": (GatedLinear, (_normal(3, 7, 12),)),
    "lstm_classifier": (LstmClassifier, (_tokens(50, 2, 9),)),
    "einsum_attention": (EinsumAttention, (_normal(2, 7, 10),)),
    "tied_embeddings": (TiedLanguageModel, (_tokens(60, 2, 9),)),
    "raft": (OpticalFlow, (_normal(1, 3, 32, 40), _normal(1, 3, 32, 40, seed=12))),
}
"""Name → how the module is made, and its inputs."""


def build(name: str) -> Example:
    """A module with seeded weights, positional and keyword arguments; always the same ones."""
    make, inputs = INPUTS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    return randomise(module), tuple(tensor.clone() for tensor in inputs), {}
