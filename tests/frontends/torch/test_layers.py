"""Convolutions, pooling, norms, resampling, recurrent layers, attention and complex numbers against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.frontends.torch.support import Family, booleans, normal

SIGNAL, IMAGE, VOLUME = normal(2, 4, 11), normal(2, 4, 9, 8), normal(2, 4, 5, 6, 7)
W1, W2, W3 = normal(6, 4, 3), normal(6, 4, 3, 2), normal(6, 4, 2, 3, 2)
BIAS = normal(6)

CONVOLUTIONS = Family(
    conv1d=(F.conv1d, SIGNAL, W1, BIAS),
    conv2d=(lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=(1, 0), dilation=(1, 2)), IMAGE, W2, BIAS),
    conv3d=(lambda x, w: F.conv3d(x, w, padding=1), VOLUME, W3),
    groups=(lambda x, w: F.conv2d(x, w[:, :2], groups=2), IMAGE, W2),
    depthwise=(lambda x, w: F.conv2d(x, w[:4, :1], groups=4, padding="same"), IMAGE, W2),
    same_even=(lambda x, w: F.conv1d(x, w[..., :2], padding="same", dilation=3), SIGNAL, W1),
    valid=(lambda x, w: F.conv1d(x, w, padding="valid"), SIGNAL, W1),
    unbatched=(lambda x, w: F.conv2d(x[0], w), IMAGE, W2),
    transposed=(
        lambda x, w: F.conv_transpose2d(x, w.transpose(0, 1).contiguous(), stride=2, padding=1, output_padding=1),
        IMAGE,
        normal(6, 4, 3, 3),
    ),
    transposed1d=(lambda x: F.conv_transpose1d(x, W1.transpose(0, 1).contiguous(), BIAS, stride=3, dilation=2), SIGNAL),
    transposed_groups=(lambda x, w: F.conv_transpose2d(x, w, groups=2), IMAGE, normal(4, 3, 3, 3)),
    transposed3d=(lambda x: F.conv_transpose3d(x, W3.transpose(0, 1).contiguous(), stride=2), VOLUME),
    unfold=(lambda x: F.unfold(x, (3, 2), dilation=(1, 2), padding=1, stride=2), IMAGE),
    fold=(lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), (9, 8), 3, padding=1, stride=2), IMAGE),
    conv_int=(lambda x, w: F.conv1d(x.long(), w.long()), SIGNAL * 3, W1 * 3),
)

POOLING = Family(
    max1d=(lambda x: F.max_pool1d(x, 3, 2), SIGNAL),
    max2d=(lambda x: F.max_pool2d(x, (3, 2), stride=2, padding=(1, 0)), IMAGE),
    max2d_dilated=(lambda x: F.max_pool2d(x, 2, dilation=3), IMAGE),
    max2d_ceil=(lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), IMAGE),
    max3d=(lambda x: F.max_pool3d(x, 2), VOLUME),
    max_indices=(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), IMAGE),
    max_indices_unbatched=(lambda x: F.max_pool1d(x[0], 3, return_indices=True), SIGNAL),
    avg1d=(lambda x: F.avg_pool1d(x, 3, 2, 1), SIGNAL),
    avg2d=(lambda x: F.avg_pool2d(x, 3, 2, 1), IMAGE),
    avg2d_exclude=(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), IMAGE),
    avg2d_ceil=(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), IMAGE),
    avg2d_divisor=(lambda x: F.avg_pool2d(x, 3, divisor_override=5), IMAGE),
    avg3d=(lambda x: F.avg_pool3d(x, (1, 2, 3)), VOLUME),
    lp=(lambda x: F.lp_pool2d(x, 2, 3), IMAGE),
    adaptive1=(lambda x: F.adaptive_avg_pool2d(x, 1), IMAGE),
    adaptive_exact=(lambda x: F.adaptive_avg_pool2d(x, (3, 4)), IMAGE),
    adaptive=(lambda x: F.adaptive_avg_pool2d(x, (4, 3)), IMAGE),
    adaptive_keep=(lambda x: F.adaptive_avg_pool2d(x, (None, 2)), IMAGE),
    adaptive1d=(lambda x: F.adaptive_avg_pool1d(x, 4), SIGNAL),
    adaptive3d=(lambda x: F.adaptive_avg_pool3d(x, (2, 3, 4)), VOLUME),
    adaptive_max=(lambda x: F.adaptive_max_pool2d(x, (4, 3)), IMAGE),
    adaptive_max1=(lambda x: F.adaptive_max_pool2d(x, 1), IMAGE),
    adaptive_max_indices=(lambda x: F.adaptive_max_pool1d(x[..., :10], 5, return_indices=True), SIGNAL),
)

C = normal(4)
NORMS = Family(
    layer=(lambda x: F.layer_norm(x, (11,), normal_like(x[0, 0]), x[0, 0]), SIGNAL),
    layer_plain=(lambda x: F.layer_norm(x, (9, 8)), IMAGE),
    layer_bfloat=(lambda x: F.layer_norm(x, (8,)), normal(3, 8, dtype=torch.bfloat16)),
    rms=(lambda x: F.rms_norm(x, (11,), x[0, 0], 1e-6), SIGNAL),
    rms_default=(lambda x: F.rms_norm(x, (11,)), SIGNAL),
    batch=(lambda x, c: F.batch_norm(x, c, c.abs(), c, c), IMAGE, C),
    batch_plain=(lambda x, c: F.batch_norm(x, c, c.abs() + 1), SIGNAL, C),
    group=(lambda x, c: F.group_norm(x, 2, c, c), IMAGE, C),
    group_flat=(lambda x: F.group_norm(x[:, :, 0], 2), SIGNAL),
    instance=(lambda x: F.instance_norm(x), IMAGE),
    instance_affine=(lambda x, c: F.instance_norm(x, weight=c, bias=c), SIGNAL, C),
    instance_tracked=(lambda x, c: F.instance_norm(x, c, c.abs(), use_input_stats=False), IMAGE, C),
    local_response=(lambda x: F.local_response_norm(x, 3), IMAGE),
    weight=(lambda x: NORMED(x), SIGNAL),
)


def normal_like(x: torch.Tensor) -> torch.Tensor:
    return x.cos() + 1


NORMED = nn.utils.parametrizations.weight_norm(nn.Linear(11, 3)).requires_grad_(False)

RESAMPLING = Family(
    **{
        f"{mode}_{k}": (lambda x, mode=mode, keywords=keywords: F.interpolate(x, mode=mode, **keywords), x)
        for mode, x in (
            ("nearest", IMAGE),
            ("nearest-exact", IMAGE),
            ("bilinear", IMAGE),
            ("bicubic", IMAGE),
            ("linear", SIGNAL),
            ("trilinear", VOLUME),
            ("nearest", VOLUME),
        )
        for k, keywords in enumerate(
            [
                {"scale_factor": 2},
                {"scale_factor": 1.7},
                {"size": 5},
                {"scale_factor": 0.6, "recompute_scale_factor": True},
            ]
        )
    },
    **{
        f"{mode}_aligned": (lambda x, mode=mode: F.interpolate(x, size=(13, 5), mode=mode, align_corners=True), IMAGE)
        for mode in ("bilinear", "bicubic")
    },
    **{
        f"{mode}_antialias": (lambda x, mode=mode: F.interpolate(x, size=(4, 3), mode=mode, antialias=True), IMAGE)
        for mode in ("bilinear", "bicubic")
    },
    **{
        f"grid_{mode}_{padding}_{align}": (
            lambda x, g, m=mode, p=padding, a=align: F.grid_sample(x, g, m, p, a),
            IMAGE,
            normal(2, 3, 4, 2) * 0.7,
        )
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for align in (False, True)
    },
    affine=(lambda t: F.affine_grid(t, (2, 3, 4, 5), align_corners=False), normal(2, 2, 3)),
    nearest_1d=(lambda x: F.interpolate(x, size=7), SIGNAL),
    nearest_rounded=(lambda x: F.interpolate(x, size=2), torch.arange(28.0).reshape(1, 2, 14)),
    nearest_exact_rounded=(
        lambda x: F.interpolate(x, size=37, mode="nearest-exact"),
        torch.arange(12.0).reshape(1, 2, 6),
    ),
)

Q, K = normal(2, 4, 5, 8), normal(2, 4, 7, 8)
MASK = booleans(2, 1, 5, 7) | torch.eye(5, 7, dtype=torch.bool)
ATTENTION = Family(
    plain=(F.scaled_dot_product_attention, Q, K, K),
    causal=(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), Q),
    causal_rectangle=(lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), Q, K),
    mask=(F.scaled_dot_product_attention, Q, K, K, MASK),
    blind=(lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m & (torch.arange(5) > 1)[:, None]), Q, K, MASK),
    bias=(lambda q, k, m: F.scaled_dot_product_attention(q, k, k, torch.where(m, 0.5, float("-inf"))), Q, K, MASK),
    scale=(lambda q, k: F.scaled_dot_product_attention(q, k, k, scale=0.3), Q, K),
    three=(lambda q, k: F.scaled_dot_product_attention(q[0], k[0], k[0]), Q, K),
    grouped=(lambda q, k: F.scaled_dot_product_attention(q, k[:, :2], k[:, :2], enable_gqa=True), Q, K),
    five=(lambda q, k, m: F.scaled_dot_product_attention(q[None], k[None], k[None], m[None]), Q, K, MASK),
    wide_values=(lambda q, k: F.scaled_dot_product_attention(q, k, k.repeat(1, 1, 1, 2)), Q, K),
)


def recurrent(kind: type[nn.RNNBase], **options: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(8, 6, **options).eval().requires_grad_(False)  # type: ignore[arg-type]


class Layers(nn.Module):
    """Layers that hold parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "lstm": recurrent(nn.LSTM),
                "lstm_deep": recurrent(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
                "gru": recurrent(nn.GRU, batch_first=True),
                "gru_deep": recurrent(nn.GRU, num_layers=2, bidirectional=True, bias=False),
                "rnn": recurrent(nn.RNN),
                "rnn_relu": recurrent(nn.RNN, nonlinearity="relu", bidirectional=True),
                "mha": nn.MultiheadAttention(8, 2),
                "encoder": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
                "decoder": nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
            }
        )

    def forward(self, x: torch.Tensor) -> list[object]:
        two = {"mha": (x, x, x), "decoder": (x, x)}
        return [layer(*two.get(name, (x,))) for name, layer in self.layers.items()]


Z, V = torch.view_as_complex(normal(3, 4, 2)), torch.view_as_complex(normal(3, 4, 2, seed=1))
COMPLEX = Family(
    add=(lambda z, v: z + v * 2, Z, V),
    add_real=(lambda z, x: z + x, Z, normal(3, 4)),
    add_number=(lambda z: z + 1.5, Z),
    mul=(torch.mul, Z, V),
    mul_number=(lambda z: z * 2j, Z),
    mul_real=(lambda z, x: x * z, Z, normal(3, 4)),
    div=(torch.div, Z, V),
    div_real=(lambda z: z / 3, Z),
    sub=(lambda z, v: 1 - z - v, Z, V),
    matmul=(lambda z, v: z @ v.mT, Z, V),
    einsum=(lambda z, v: torch.einsum("ij,kj->ik", z, v), Z, V),
    conj=(lambda z: z.conj() * z, Z),
    abs=(torch.abs, Z),
    angle=(torch.angle, Z),
    real=(lambda z: z.real + z.imag, Z),
    exp=(torch.exp, Z),
    log=(torch.log, Z),
    sqrt=(torch.sqrt, Z),
    pow=(lambda z: z**2, Z),
    pow_root=(lambda z: z**0.5, Z),
    reciprocal=(torch.reciprocal, Z),
    polar=(lambda x: torch.polar(x.abs(), x), normal(3)),
    complex=(torch.complex, normal(3), normal(3, seed=1)),
    as_real=(torch.view_as_real, Z),
    as_complex=(torch.view_as_complex, normal(3, 2)),
    view=(lambda z: z.reshape(2, 6).T[1:], Z),
    cat=(lambda z, v: torch.cat([z, v.flip(1)], 1), Z, V),
    stack=(lambda z: torch.stack([z, z.conj()]), Z),
    index=(lambda z: z[[0, 2]].sum(0), Z),
    mean=(torch.mean, Z),
    from_real=(lambda x: x.to(torch.complex64) * 1j, normal(3)),
    where=(lambda z: torch.where(z.abs() > 1, z, 0), Z),
    eq=(lambda z, v: z == v, Z, V),
    sgn=(torch.sgn, Z),
    rotary=(lambda x, z: torch.view_as_real(torch.view_as_complex(x.reshape(3, 4, 2)) * z).flatten(1), normal(3, 8), Z),
    zeros=(lambda z: torch.zeros_like(z).index_put((torch.tensor([0]),), z[0]), Z),
    constant=(lambda z: z * V, Z),
    sigmoid=(torch.sigmoid, Z),
    vdot=(lambda z, v: torch.vdot(z[0], v[0]), Z, V),
    pad=(lambda z: F.pad(z, (1, 1)), Z),
)

S = normal(3, 8, 10)
FOURIER = Family(
    fft=(torch.fft.fft, S),
    ifft=(lambda z: torch.fft.ifft(z, dim=0), Z),
    rfft=(torch.fft.rfft, S),
    irfft=(lambda x: torch.fft.irfft(torch.fft.rfft(x)), S),
    irfft_odd=(lambda x: torch.fft.irfft(torch.fft.rfft(x), n=9), S),
    rfft2=(torch.fft.rfft2, S),
    irfft2=(lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=(8, 10)), S),
    fft2=(lambda z: torch.fft.fft2(z), Z),
    ortho=(lambda x: torch.fft.rfft(x, norm="ortho"), S),
    inverse_ortho=(lambda z: torch.fft.ifft(z, norm="ortho"), Z),
    inverse_forward=(lambda z: torch.fft.ifft(z, norm="forward"), Z),
    fftn=(lambda x: torch.fft.fftn(x, dim=(0, 2)), S),
    shift=(lambda x: torch.fft.fftshift(x), S),
    longer=(lambda x: torch.fft.rfft(x, n=16), S),
    hfft=(lambda z: torch.fft.hfft(z, n=6), Z),
    stft=(lambda x: torch.stft(x[0], 4, 2, window=torch.hann_window(4), return_complex=True), S),
    stft_real=(
        lambda x: torch.view_as_real(torch.stft(x[0], 6, 3, return_complex=True, center=False, window=torch.ones(6))),
        S,
    ),
    istft=(
        lambda x: torch.istft(
            torch.stft(x[0], 4, 2, window=torch.hann_window(4), return_complex=True), 4, 2, window=torch.hann_window(4)
        ),
        S,
    ),
)

FAMILIES = {
    "convolutions": CONVOLUTIONS,
    "pooling": POOLING,
    "norms": NORMS,
    "resampling": RESAMPLING,
    "attention": ATTENTION,
    "complex": COMPLEX,
    "fourier": FOURIER,
    "layers": Family(all=(Layers().eval().requires_grad_(False), normal(3, 5, 8))),
}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, cases in FAMILIES.items() for name in cases])
def test_layers(family: str, name: str) -> None:
    FAMILIES[family].check(name)
