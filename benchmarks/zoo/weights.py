"""Seeded weights that leave no operator idle, so that an error anywhere shows at the outputs."""

from __future__ import annotations

import zlib

import torch


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)


def _redrawn(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A parameter with the same role: structured values (decay rates, frequencies) are kept, weak ones redrawn."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
    values = tensor.detach().float()
    usable = bool(torch.isfinite(values).all()) and float(values.abs().max()) < 100
    constant = usable and bool((values == values.flatten()[0]).all())
    if usable and constant:  # a bias, a norm's scale, a gate: keep its level, make every entry its own
        return values + 0.1 * noise
    if tensor.dim() < 2:
        return values if usable else 0.1 * noise
    spread = 1.0 / max(tensor[0].numel(), 1) ** 0.5
    return spread * noise if not usable or float(values.std()) < spread else values


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every floating parameter and every batch norm's statistics seeded, non-trivial values, in place.

    The values depend on `seed` and on each parameter's name alone. Matrices keep their own initialisation where it
    carries a signal, and get a standard deviation of 1/sqrt(fan-in) where it does not; constant parameters (biases,
    norm scales) get a tenth of a standard normal added. Returns `module` in evaluation mode.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point() and parameter.numel():
                parameter.copy_(_redrawn(parameter, _generator(name, seed)))
            elif parameter.is_complex():
                pair = torch.view_as_real(parameter)
                pair.copy_(_redrawn(pair, _generator(name, seed)))
        for name, buffer in module.named_buffers():
            generator = _generator(name, seed)
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
            elif buffer.is_floating_point() and not torch.isfinite(buffer).all():
                finite = buffer.masked_fill(~torch.isfinite(buffer), 0.0)
                if not torch.isinf(buffer).any():  # NaN marks memory that nobody wrote; an infinity is a mask's
                    buffer.copy_(finite)
    return module.eval()
