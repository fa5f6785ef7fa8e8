"""The classic families: small networks of each kind, with seeded weights and example inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.zoo import attention, convolutional, scientific, sequence
from benchmarks.zoo.weights import randomise

Example = tuple[nn.Module, tuple[torch.Tensor, ...], dict[str, Any]]


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(11))


def _tokens(limit: int, *shape: int) -> torch.Tensor:
    return torch.randint(1, limit, shape, generator=torch.Generator().manual_seed(11))


def _adjacency(nodes: int) -> torch.Tensor:
    """Boolean [nodes, nodes], with every self-loop."""
    links = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(3)) < 0.3
    return links | torch.eye(nodes, dtype=torch.bool)


def _family(make: Callable[[], nn.Module], *inputs: torch.Tensor) -> Callable[[], Example]:
    def build() -> Example:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = make()
        return randomise(module), tuple(tensor.clone() for tensor in inputs), {}

    return build


IMAGE = _normal(2, 3, 64, 64)
HIDDEN = torch.tensor([[False] * 10, [False] * 7 + [True] * 3])

EDGES = _adjacency(14).nonzero().T.contiguous()

FAMILIES: dict[str, Callable[[], Example]] = {
    "resnet_basic": _family(lambda: convolutional.resnet(convolutional.BasicBlock), IMAGE),
    "resnet_bottleneck": _family(lambda: convolutional.resnet(convolutional.Bottleneck), IMAGE),
    "densenet": _family(convolutional.densenet, IMAGE),
    "hardnet": _family(convolutional.hardnet, IMAGE),
    "mobilenet_v2": _family(convolutional.mobilenet_v2, IMAGE),
    "mobilenet_v3": _family(convolutional.mobilenet_v3, IMAGE),
    "efficientnet": _family(convolutional.efficientnet, IMAGE),
    "unet": _family(convolutional.UNet, IMAGE),
    "cnn_3d": _family(convolutional.VideoNet, _normal(2, 3, 6, 16, 16)),
    "inception": _family(convolutional.inception, IMAGE),
    "lstm": _family(lambda: sequence.Recurrent(nn.LSTM, False), _tokens(40, 2, 9)),
    "lstm_bidirectional": _family(lambda: sequence.Recurrent(nn.LSTM, True), _tokens(40, 2, 9)),
    "gru": _family(lambda: sequence.Recurrent(nn.GRU, False), _tokens(40, 2, 9)),
    "gru_bidirectional": _family(lambda: sequence.Recurrent(nn.GRU, True), _tokens(40, 2, 9)),
    "tdnn": _family(sequence.time_delay, _normal(2, 20, 40)),
    "ecapa_tdnn": _family(sequence.EcapaTdnn, _normal(2, 20, 40)),
    "graph_attention": _family(
        lambda: attention.GraphNetwork(attention.DenseGraphAttention), _normal(14, 12), _adjacency(14)
    ),
    "graph_attention_edges": _family(
        lambda: attention.GraphNetwork(attention.EdgeGraphAttention), _normal(14, 12), EDGES
    ),
    "vit": _family(attention.VisionTransformer, _normal(2, 3, 32, 32)),
    "swin": _family(attention.SwinTransformer, _normal(2, 3, 32, 32)),
    "kan": _family(scientific.spline_network, 0.5 * _normal(5, 6)),
    "hopfield": _family(attention.HopfieldLayer, _normal(2, 4, 24), _normal(2, 10, 24) + 0.5, HIDDEN),
    "pointer_network": _family(sequence.PointerNetwork, _normal(3, 6, 2)),
    "lambda_layer": _family(attention.LambdaBlock, _normal(2, 3, 20, 20)),
    "complex_mask": _family(scientific.SpectrumMask, _normal(2, 17, 12, 2)),
    "complex_mask_wave": _family(scientific.WaveMask, _normal(2, 320)),
    "fourier_operator": _family(scientific.FourierOperator2d, _normal(2, 16, 14, 1)),
}  # fmt: skip
