"""Networks of attention and recurrence: heads, gates, tables of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.analysis.registry import NETWORKS, network, tokens


def heads(x: Tensor, count: int) -> Tensor:
    """[b, t, (h d)] → [b, h, t, d]."""
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in the open, [b, h, t, d] each → [b, t, (h d)]."""
    weights = (q @ k.transpose(2, 3) * 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


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
