"""Families built on attention or something that takes its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo.convolutional import conv_norm


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, encoder blocks (Dosovitskiy et al., 2021)."""

    def __init__(self, size: int = 32, patch: int = 8, width: int = 32, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def partition(x: Tensor, window: int) -> Tensor:
    """[n, height, width, c] → [n·windows, window², c]."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def gather(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`."""
    x = windows.reshape(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


class WindowAttention(nn.Module):
    """Attention within windows, biased by relative position; shifted windows mask what was not adjacent."""

    index: Tensor
    mask: Tensor

    def __init__(self, width: int, heads: int, window: int, size: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = grid[:, :, None] - grid[:, None, :] + window - 1
        self.register_buffer("index", offset[0] * (2 * window - 1) + offset[1])
        region = torch.zeros(1, size, size, 1)
        if shift:
            cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
            for number, (rows, columns) in enumerate((a, b) for a in cuts for b in cuts):
                region[:, rows, columns] = number
        ids = partition(region, window).squeeze(-1)
        self.register_buffer("mask", (ids[:, None] != ids[:, :, None]).float() * -100.0)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = partition(x, self.window)
        tokens = self.window**2
        q, k, v = (
            self.qkv(x).reshape(-1, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        scores = (q * (channels // self.heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.bias[self.index.flatten()].reshape(tokens, tokens, self.heads).permute(2, 0, 1)
        if self.shift:
            windows = self.mask.shape[0]
            scores = scores.reshape(n, windows, self.heads, tokens, tokens) + self.mask[:, None]
            scores = scores.reshape(-1, self.heads, tokens, tokens)
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, tokens, channels)
        x = gather(self.project(x), self.window, height, width)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, window: int, size: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window, size, shift)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Every 2×2 neighbourhood becomes one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = (nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(parts, -1)))


class SwinTransformer(nn.Module):
    """Windowed attention at several scales (Liu et al., 2021); images of `size` pixels a side."""

    def __init__(self, size: int = 32, patch: int = 2, width: int = 16, window: int = 4) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, width, patch, patch), nn.LayerNorm(width)
        layers: list[nn.Module] = []
        size //= patch
        for stage, heads in enumerate((2, 4)):
            if stage:
                layers.append(PatchMerging(width))
                width, size = 2 * width, size // 2
            layers += [SwinBlock(width, heads, window, size, shift) for shift in (0, window // 2)]
        self.layers = nn.Sequential(*layers)
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.patches(images).permute(0, 2, 3, 1))
        return self.head(self.last(self.layers(x)).mean((1, 2)))


class HopfieldLayer(nn.Module):
    """Modern Hopfield retrieval, ξ ← softmax(β ξ Kᵀ) K repeated, per head (Ramsauer et al., 2021)."""

    def __init__(self, width: int = 24, heads: int = 3, steps: int = 3, beta: float = 0.4) -> None:
        super().__init__()
        self.heads, self.steps, self.beta = heads, steps, beta
        self.norm_state, self.norm_stored = nn.LayerNorm(width), nn.LayerNorm(width)
        self.state, self.stored = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, state: Tensor, stored: Tensor, hidden: Tensor) -> Tensor:
        """`state` [n, queries, width]; `stored` [n, patterns, width]; `hidden` [n, patterns], true where absent."""
        keys = self.stored(self.norm_stored(stored))
        values = self._split(self.value(keys))
        patterns = self._split(keys)
        xi = self._split(self.state(self.norm_state(state)))
        bias = hidden[:, None, None, :]
        for _ in range(self.steps):
            weights = (self.beta * xi @ patterns.transpose(-2, -1)).masked_fill(bias, float("-inf")).softmax(-1)
            xi = nn.functional.layer_norm(weights @ patterns, patterns.shape[-1:])
        weights = (self.beta * xi @ patterns.transpose(-2, -1)).masked_fill(bias, float("-inf")).softmax(-1)
        return self.out((weights @ values).transpose(1, 2).flatten(2))


class LambdaLayer(nn.Module):
    """Content and local position lambdas in place of attention (Bello, 2021)."""

    def __init__(
        self, inputs: int, outputs: int, keys: int = 8, heads: int = 4, depth: int = 2, reach: int = 5
    ) -> None:
        super().__init__()
        self.keys, self.heads, self.depth, self.values = (keys, heads, depth, outputs // heads)
        self.query = nn.Conv2d(inputs, keys * heads, 1, bias=False)
        self.key = nn.Conv2d(inputs, keys * depth, 1, bias=False)
        self.value = nn.Conv2d(inputs, self.values * depth, 1, bias=False)
        self.norm_query, self.norm_value = (nn.BatchNorm2d(keys * heads), nn.BatchNorm2d(self.values * depth))
        self.position = nn.Conv3d(depth, keys, (1, reach, reach), padding=(0, reach // 2, reach // 2))

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        q = self.norm_query(self.query(x)).reshape(n, self.heads, self.keys, height * width)
        k = self.key(x).reshape(n, self.depth, self.keys, height * width).softmax(-1)
        v = self.norm_value(self.value(x)).reshape(n, self.depth, self.values, height * width)
        content = torch.einsum("nukm,nuvm->nkv", k, v)
        y = torch.einsum("nhkm,nkv->nhvm", q, content)
        local = self.position(v.reshape(n, self.depth, self.values, height, width)).flatten(3)
        y = y + torch.einsum("nhkm,nkvm->nhvm", q, local)
        return y.reshape(n, self.heads * self.values, height, width)


class LambdaBlock(nn.Module):
    """A ResNet bottleneck whose 3×3 convolution is a lambda layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = conv_norm(3, 2 * width, 3, 2)
        self.reduce, self.expand = (conv_norm(2 * width, width, 1), conv_norm(width, 2 * width, 1, activation=None))
        self.mix = nn.Sequential(LambdaLayer(width, width), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = torch.relu(x + self.expand(self.mix(self.reduce(x))))
        return self.head(x.mean((2, 3)))


class DenseGraphAttention(nn.Module):
    """Graph attention over a dense adjacency matrix (Veličković et al., 2018)."""

    def __init__(self, inputs: int, outputs: int, heads: int) -> None:
        super().__init__()
        self.heads, self.project = heads, nn.Linear(inputs, heads * outputs, bias=False)
        self.source, self.target = (
            nn.Parameter(torch.zeros(heads, outputs)),
            nn.Parameter(torch.zeros(heads, outputs)),
        )

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        h = self.project(nodes).unflatten(-1, (self.heads, -1))
        scores = (h * self.source).sum(-1)[:, None] + (h * self.target).sum(-1)[None]
        scores = nn.functional.leaky_relu(scores, 0.2).masked_fill(~adjacency[:, :, None], -9e15)
        return torch.einsum("ijh,jhc->ihc", scores.softmax(1), h).flatten(1)


class EdgeGraphAttention(nn.Module):
    """The same over a list of edges [2, edges], with a softmax over each node's incoming ones."""

    def __init__(self, inputs: int, outputs: int, heads: int) -> None:
        super().__init__()
        self.heads, self.project = heads, nn.Linear(inputs, heads * outputs, bias=False)
        self.source, self.target = (
            nn.Parameter(torch.zeros(heads, outputs)),
            nn.Parameter(torch.zeros(heads, outputs)),
        )
        self.bias = nn.Parameter(torch.zeros(heads * outputs))

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        h = self.project(nodes).unflatten(-1, (self.heads, -1))
        source, target = edges[0], edges[1]
        scores = (h * self.source).sum(-1)[source] + (h * self.target).sum(-1)[target]
        scores = nn.functional.leaky_relu(scores, 0.2)
        index = target[:, None].expand(-1, self.heads)
        lowest = torch.full((nodes.shape[0], self.heads), float("-inf"), dtype=h.dtype)
        highest = lowest.scatter_reduce(0, index, scores, "amax")
        weights = torch.exp(scores - highest[target])
        total = torch.zeros_like(lowest).index_add(0, target, weights)
        messages = h[source] * (weights / (total[target] + 1e-16))[:, :, None]
        return torch.zeros_like(h).index_add(0, target, messages).flatten(1) + self.bias


class GraphNetwork(nn.Module):
    """Two layers of graph attention and a log-softmax over classes."""

    def __init__(self, layer: type[DenseGraphAttention | EdgeGraphAttention]) -> None:
        super().__init__()
        self.first, self.second = layer(12, 8, 4), layer(32, 5, 1)

    def forward(self, nodes: Tensor, graph: Tensor) -> Tensor:
        return nn.functional.elu(self.second(nn.functional.elu(self.first(nodes, graph)), graph)).log_softmax(-1)
