"""Spline networks, Fourier operators and complex-valued networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class SplineLinear(nn.Module):
    """A Kolmogorov–Arnold layer: a B-spline on every edge beside a SiLU branch (Liu et al., 2024).

    The bases come from the Cox–de Boor recursion on a uniform grid over [-1, 1] extended by the spline's order.
    """

    grid: Tensor

    def __init__(self, inputs: int, outputs: int, intervals: int = 5, order: int = 3) -> None:
        super().__init__()
        self.order = order
        step = 2.0 / intervals
        knots = torch.arange(-order, intervals + order + 1) * step - 1.0
        self.register_buffer("grid", knots.expand(inputs, -1).contiguous())
        self.base = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.spline = nn.Parameter(torch.randn(outputs, inputs, intervals + order) / inputs**0.5)
        self.scale = nn.Parameter(torch.ones(outputs, inputs))

    def bases(self, x: Tensor) -> Tensor:
        """[n, inputs] → [n, inputs, intervals + order]."""
        x, grid = x[:, :, None], self.grid
        values = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            rising = (x - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)])
            falling = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k])
            values = rising * values[:, :, :-1] + falling * values[:, :, 1:]
        return values

    def forward(self, x: Tensor) -> Tensor:
        base = nn.functional.linear(nn.functional.silu(x), self.base)
        weights = (self.spline * self.scale[:, :, None]).flatten(1)
        return base + nn.functional.linear(self.bases(x).flatten(1), weights)


def spline_network(widths: Sequence[int] = (6, 10, 10, 4)) -> nn.Module:
    return nn.Sequential(*(SplineLinear(a, b) for a, b in pairwise(widths)))


class SpectralConv2d(nn.Module):
    """Learned complex weights on the lowest frequencies of a real 2-D Fourier transform (Li et al., 2021)."""

    def __init__(self, width: int, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        shape = (width, width, rows, columns)
        self.low = nn.Parameter(torch.randn(*shape, dtype=torch.cfloat) / width)
        self.high = nn.Parameter(torch.randn(*shape, dtype=torch.cfloat) / width)

    def forward(self, x: Tensor) -> Tensor:
        n, width, height, length = x.shape
        spectrum = torch.fft.rfft2(x)
        result = torch.zeros(n, width, height, length // 2 + 1, dtype=torch.cfloat)
        top = spectrum[:, :, : self.rows, : self.columns]
        bottom = spectrum[:, :, -self.rows :, : self.columns]
        result[:, :, : self.rows, : self.columns] = torch.einsum("bixy,ioxy->boxy", top, self.low)
        result[:, :, -self.rows :, : self.columns] = torch.einsum("bixy,ioxy->boxy", bottom, self.high)
        return torch.fft.irfft2(result, s=(height, length))


class FourierOperator2d(nn.Module):
    """The 2-D Fourier neural operator: lift, four spectral layers with pointwise skips, project; padded borders."""

    def __init__(self, channels: int = 1, width: int = 8, modes: int = 4, depth: int = 4, pad: int = 3) -> None:
        super().__init__()
        self.pad = pad
        self.lift = nn.Linear(channels + 2, width)
        self.spectral = nn.ModuleList(SpectralConv2d(width, modes, modes) for _ in range(depth))
        self.local = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth))
        self.project = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, field: Tensor) -> Tensor:
        """`field` [n, height, width, channels] on a regular grid of the unit square → [n, height, width, 1]."""
        n, height, width, _ = field.shape
        rows = torch.linspace(0, 1, height)[None, :, None, None].expand(n, -1, width, -1)
        columns = torch.linspace(0, 1, width)[None, None, :, None].expand(n, height, -1, -1)
        x = self.lift(torch.cat([field, rows, columns], -1)).permute(0, 3, 1, 2)
        x = nn.functional.pad(x, (0, self.pad, 0, self.pad))
        for index, (spectral, local) in enumerate(zip(self.spectral, self.local, strict=True)):
            x = spectral(x) + local(x)
            if index + 1 < len(self.spectral):
                x = nn.functional.gelu(x)
        return self.project(x[..., : -self.pad, : -self.pad].permute(0, 2, 3, 1))


class ComplexConv2d(nn.Module):
    """(a + ib) * (x + iy) by two real convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.real, self.imaginary = (nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        real = self.real(z.real) - self.imaginary(z.imag)
        return torch.complex(real, self.real(z.imag) + self.imaginary(z.real))


class ComplexMask(nn.Module):
    """A bounded complex ratio mask, tanh(|m|)·m/|m|, from complex convolutions (Choi et al., 2019)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter, self.leave = ComplexConv2d(1, width), ComplexConv2d(width, 1)
        self.slope = nn.Parameter(torch.full((1,), 0.2))

    def forward(self, spectrum: Tensor) -> Tensor:
        """`spectrum` complex [n, frequencies, frames] → the masked spectrum, complex."""
        z = self.enter(spectrum[:, None])
        z = torch.complex(nn.functional.prelu(z.real, self.slope), nn.functional.prelu(z.imag, self.slope))
        mask = self.leave(z).squeeze(1)
        size = mask.abs()
        return spectrum * (torch.tanh(size) / (size + 1e-6)) * mask


class SpectrumMask(nn.Module):
    """`ComplexMask` on a spectrogram given as pairs [n, frequencies, frames, 2]; pairs and magnitudes come out."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = ComplexMask()

    def forward(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        masked = self.mask(torch.view_as_complex(pairs))
        return torch.view_as_real(masked), masked.abs()


class WaveMask(nn.Module):
    """Short-time Fourier transform, `ComplexMask`, inverse transform: [n, samples] → [n, samples]."""

    window: Tensor

    def __init__(self, size: int = 64, hop: int = 16) -> None:
        super().__init__()
        self.size, self.hop, self.mask = size, hop, ComplexMask()
        self.register_buffer("window", torch.hann_window(size))

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(wave, self.size, self.hop, window=self.window, return_complex=True)
        return torch.istft(self.mask(spectrum), self.size, self.hop, window=self.window, length=wave.shape[-1])
