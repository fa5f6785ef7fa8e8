"""Augmentations of images: what `augment=` takes; anything of the same signature will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError


@dataclass(frozen=True)
class CropAndFlip:
    """Images (n, c, h, w) moved by up to `padding` pixels, with zeros behind them, and mirrored half of the time.

    Attributes:
        padding: largest move along each axis.
        flip: whether to mirror.
        position: of the input.
    """

    padding: int = 4
    flip: bool = True
    position: int = 0

    def __call__(self, inputs: tuple[NDArray[Any], ...], draw: np.random.Generator) -> tuple[NDArray[Any], ...]:
        """Raises InputError E206 if the input is no batch of images."""
        images = inputs[self.position]
        if images.ndim != 4:
            raise InputError("E206", f"an input of shape {images.shape} is no batch of images (n, c, h, w)")
        count, _, height, width = images.shape
        margin = ((0, 0), (0, 0), (self.padding, self.padding), (self.padding, self.padding))
        padded = np.pad(images, margin)
        moved = draw.integers(0, 2 * self.padding + 1, (count, 2))
        mirrored = np.less(draw.random(count), 0.5)
        found = np.empty_like(images)
        for k, (y, x) in enumerate(moved):
            image = padded[k, :, y : y + height, x : x + width]
            found[k] = image[:, :, ::-1] if self.flip and mirrored[k] else image
        return (*inputs[: self.position], found, *inputs[self.position + 1 :])
