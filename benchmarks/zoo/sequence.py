"""Recurrent, time-delay and pointer networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Embedding, a stack of recurrent layers, a tagger per step and a summary of the final states."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU], bidirectional: bool, width: int = 16) -> None:
        super().__init__()
        ways = 2 if bidirectional else 1
        self.embed = nn.Embedding(40, 12, padding_idx=0)
        self.recurrent = cell(12, width, 2, batch_first=True, dropout=0.1, bidirectional=bidirectional)
        self.tags, self.summary = nn.Linear(ways * width, 7), nn.Linear(ways * width, 3)
        self.ways = ways

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        steps, state = self.recurrent(self.embed(tokens))
        hidden = state[0] if isinstance(state, tuple) else state
        last = torch.cat(list(hidden[-self.ways :]), -1)
        return self.tags(steps), self.summary(last)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over time, [n, c, t] → [n, 2c]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(-1), x.std(-1)], -1)


def time_delay(inputs: int = 20, width: int = 24) -> nn.Module:
    """The x-vector network: dilated convolutions over time, pooled statistics (Snyder et al., 2018)."""
    layers: list[nn.Module] = []
    for channels, kernel, dilation in ((width, 5, 1), (width, 3, 2), (width, 3, 3), (width, 1, 1), (2 * width, 1, 1)):
        layers += [nn.Conv1d(inputs, channels, kernel, dilation=dilation), nn.ReLU(), nn.BatchNorm1d(channels)]
        inputs = channels
    head = [nn.Linear(4 * width, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Linear(width, 8)]
    return nn.Sequential(*layers, StatisticsPooling(), *head)


class DilatedUnit(nn.Sequential):
    """Convolution over time with "same" padding, activation, batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel - 1) // 2
        conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=padding, padding_mode="reflect")
        super().__init__(conv, nn.ReLU(), nn.BatchNorm1d(outputs))


class Res2Block(nn.Module):
    """Res2Net hierarchy of dilated convolutions, squeeze and excitation, shortcut (Desplanques et al., 2020)."""

    def __init__(self, width: int, kernel: int, dilation: int, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.enter, self.leave = DilatedUnit(width, width), DilatedUnit(width, width)
        part = width // scale
        self.units = nn.ModuleList(DilatedUnit(part, part, kernel, dilation) for _ in range(scale - 1))
        self.gate = nn.Sequential(
            nn.Conv1d(width, width // 4, 1), nn.ReLU(), nn.Conv1d(width // 4, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(self.scale, 1))
        outputs = [parts[0]]
        for index, unit in enumerate(self.units, 1):
            outputs.append(unit(parts[index] if index == 1 else parts[index] + outputs[-1]))
        y = self.leave(torch.cat(outputs, 1))
        return x + y * self.gate(y.mean(-1, keepdim=True))


class AttentiveStatistics(nn.Module):
    """Channel- and context-dependent attention over time, then weighted mean and standard deviation."""

    def __init__(self, width: int, hidden: int = 12) -> None:
        super().__init__()
        self.enter, self.leave = (DilatedUnit(3 * width, hidden), nn.Conv1d(hidden, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True).expand_as(x)
        deviation = x.var(-1, unbiased=False, keepdim=True).clamp(min=1e-4).sqrt().expand_as(x)
        weights = self.leave(torch.tanh(self.enter(torch.cat([x, mean, deviation], 1)))).softmax(-1)
        first = (weights * x).sum(-1)
        second = (weights * (x - first[:, :, None]).square()).sum(-1).clamp(min=1e-4).sqrt()
        return torch.cat([first, second], -1)


class EcapaTdnn(nn.Module):
    """Emphasised channel attention, propagation and aggregation (Desplanques et al., 2020)."""

    def __init__(self, inputs: int = 20, width: int = 32, embedding: int = 16) -> None:
        super().__init__()
        self.enter = DilatedUnit(inputs, width, 5)
        self.blocks = nn.ModuleList(Res2Block(width, 3, dilation) for dilation in (2, 3, 4))
        self.aggregate = DilatedUnit(3 * width, 3 * width)
        self.pool, self.norm = AttentiveStatistics(3 * width), nn.BatchNorm1d(6 * width)
        self.project = nn.Linear(6 * width, embedding)

    def forward(self, features: Tensor) -> Tensor:
        x, outputs = self.enter(features), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        pooled = self.pool(self.aggregate(torch.cat(outputs, 1)))
        return nn.functional.normalize(self.project(self.norm(pooled)), dim=-1)


class PointerNetwork(nn.Module):
    """A decoder that points at one input per step, each at most once (Vinyals et al., 2015)."""

    def __init__(self, width: int = 16, steps: int = 6) -> None:
        super().__init__()
        self.steps = steps
        self.embed = nn.Linear(2, width)
        self.encoder, self.decoder = (nn.LSTM(width, width, batch_first=True), nn.LSTMCell(width, width))
        self.start = nn.Parameter(torch.zeros(width))
        self.keys, self.query = (nn.Linear(width, width, bias=False), nn.Linear(width, width))
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """`points` [n, count, 2] → probabilities [n, steps, count] and choices [n, steps]."""
        inputs = self.embed(points)
        encoded, (hidden, cell) = self.encoder(inputs)
        h, c, keys = hidden[0], cell[0], self.keys(encoded)
        current = self.start.expand(points.shape[0], -1)
        visited = torch.zeros(points.shape[:2], dtype=torch.bool)
        scores, choices = [], []
        for _ in range(self.steps):
            h, c = self.decoder(current, (h, c))
            logits = self.score(torch.tanh(keys + self.query(h)[:, None])).squeeze(-1)
            probabilities = (10.0 * torch.tanh(logits)).masked_fill(visited, float("-inf")).softmax(-1)
            choice = probabilities.argmax(-1, keepdim=True)
            visited = visited.scatter(1, choice, True)
            current = inputs.gather(1, choice[:, :, None].expand(-1, -1, inputs.shape[-1])).squeeze(1)
            scores.append(probabilities)
            choices.append(choice.squeeze(1))
        return torch.stack(scores, 1), torch.stack(choices, 1)
