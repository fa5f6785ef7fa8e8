"""Models of full size that people deploy on CPUs, with seeded weights, on which speed is measured.

Their blocks are those of the reduced families; widths, depths and sizes are the published ones. Weights are random, but
batch norms carry the statistics of what flows through them, so that signals neither vanish nor grow on their way to the
outputs and an error anywhere shows there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.zoo.attention import VisionTransformer
from benchmarks.zoo.convolutional import (
    BasicBlock,
    Bottleneck,
    Classifier,
    InvertedResidual,
    SqueezeExcite,
    UNet,
    conv_norm,
    resnet,
)
from benchmarks.zoo.weights import randomise

CLASSES = 1000
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Deployed:
    """A model as a module, and what goes in.

    Attributes:
        build: The module with torch's own initialisation.
        inputs: Keyword arguments of `forward` for a batch, drawn from a generator.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Inputs]


def images(size: int) -> Callable[[int, torch.Generator], Inputs]:
    """Normalised images, f32[batch, 3, size, size]."""
    return lambda batch, generator: {"images": torch.randn(batch, 3, size, size, generator=generator)}


def resnet18() -> nn.Module:
    """He et al., 2016; 11.7 million parameters."""
    model = resnet(BasicBlock, (2, 2, 2, 2), 64)
    model.head = nn.Linear(512, CLASSES)
    return model


def resnet50() -> nn.Module:
    """He et al., 2016, with strides in the 3×3 convolutions; 25.6 million parameters."""
    model = resnet(Bottleneck, (3, 4, 6, 3), 64)
    model.head = nn.Linear(2048, CLASSES)
    return model


def mobilenet_v2() -> nn.Module:
    """Sandler et al., 2018, width 1.0; 3.5 million parameters."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2, activation=nn.ReLU6)]
    width = 32
    for expansion, outputs, repeats, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for index in range(repeats):
            step = stride if index == 0 else 1
            layers.append(InvertedResidual(width, width * expansion, outputs, 3, step, nn.ReLU6))
            width = outputs
    layers.append(conv_norm(width, 1280, 1, activation=nn.ReLU6))
    return Classifier(nn.Sequential(*layers), 1280, CLASSES)


def efficientnet_b0() -> nn.Module:
    """Tan and Le, 2019; 5.3 million parameters."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2, activation=nn.SiLU)]
    width = 32
    for expansion, outputs, repeats, kernel, stride in (
        (1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2),
        (6, 320, 1, 3, 1),
    ):  # fmt: skip
        for index in range(repeats):
            expanded = width * expansion
            excite = SqueezeExcite(expanded, width // 4, nn.SiLU, nn.Sigmoid)
            step = stride if index == 0 else 1
            layers.append(InvertedResidual(width, expanded, outputs, kernel, step, nn.SiLU, excite))
            width = outputs
    layers.append(conv_norm(width, 1280, 1, activation=nn.SiLU))
    return Classifier(nn.Sequential(*layers), 1280, CLASSES)


def vit_tiny() -> nn.Module:
    """Touvron et al., 2021: patches of 16 pixels, 192 wide, 3 heads, 12 blocks; 5.7 million parameters."""
    model = VisionTransformer(224, 16, 192, 3, 12)
    model.head = nn.Linear(192, CLASSES)
    return model


class SentenceEncoder(nn.Module):
    """BERT and the mean of its outputs over the tokens that the mask keeps; of MiniLM-L6's size (Wang et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
            attn_implementation="sdpa",
        )  # fmt: skip
        self.encoder = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask[:, :, None].to(hidden.dtype)
        return (hidden * kept).sum(1) / kept.sum(1)


def sentences(tokens: int) -> Callable[[int, torch.Generator], Inputs]:
    """Token numbers i64[batch, tokens], and a mask of the same shape that leaves out the last eighth."""

    def make(batch: int, generator: torch.Generator) -> Inputs:
        mask = torch.ones(batch, tokens, dtype=torch.int64)
        mask[:, tokens - tokens // 8 :] = 0
        ids = torch.randint(1000, 30000, (batch, tokens), generator=generator)
        return {"input_ids": ids, "attention_mask": mask}

    return make


class SequenceClassifier(nn.Module):
    """One LSTM layer of 256 over 128 features a step, and a class per step."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(128, 256, batch_first=True), nn.Linear(256, 64)

    def forward(self, steps: Tensor) -> Tensor:
        return self.head(self.recurrent(steps)[0])


def unet() -> nn.Module:
    """Ronneberger et al., 2015, with "same" padding, batch norms and half the published widths."""
    return UNet((32, 64, 128, 256, 512), 3)


MODELS: dict[str, Deployed] = {
    "resnet18": Deployed(resnet18, images(224)),
    "resnet50": Deployed(resnet50, images(224)),
    "mobilenet_v2": Deployed(mobilenet_v2, images(224)),
    "efficientnet_b0": Deployed(efficientnet_b0, images(224)),
    "vit_tiny": Deployed(vit_tiny, images(224)),
    "minilm": Deployed(SentenceEncoder, sentences(128)),
    "lstm": Deployed(
        SequenceClassifier, lambda batch, generator: {"steps": torch.randn(batch, 100, 128, generator=generator)}
    ),
    "unet": Deployed(unet, images(128)),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A model of `MODELS` with weights that depend on its name and the seed alone, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = randomise(MODELS[name].build(), seed)
    settle(module, MODELS[name].inputs(4, torch.Generator().manual_seed(seed + 1)))
    return module


def settle(module: nn.Module, inputs: Inputs) -> None:
    """Give every batch norm the mean and variance of what reaches it, in place."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches seen, here one
    with torch.no_grad():
        module(**inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
