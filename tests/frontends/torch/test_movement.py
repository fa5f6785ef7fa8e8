"""Views, copies, indexing, scatters and tensors made from numbers against torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.frontends.torch.support import Family, booleans, normal

X = normal(3, 4, 5)
M = normal(4, 6)
IMAGE = normal(2, 4, 6, 8)
B = booleans(4, 6)
ROWS = torch.tensor([0, 2, 2, -1])
INDEX = torch.tensor([[0, 1, 2], [2, 0, 1]])


def changed(x: torch.Tensor, change: object) -> torch.Tensor:
    """A copy, after an in-place change."""
    x = x.clone()
    change(x)  # type: ignore[operator]
    return x


VIEWS = Family(
    view=(lambda x: x.view(12, 5), X),
    view_infer=(lambda x: x.view(-1, 2), X),
    reshape=(lambda x: x.transpose(0, 1).reshape(4, -1), X),
    flatten=(lambda x: x.flatten(1), X),
    unflatten=(lambda x: x.unflatten(1, (2, 2)), X),
    permute=(lambda x: x.permute(2, 0, -2), X),
    transpose=(lambda x: x.transpose(-1, 0), X),
    t=(lambda m: m.t(), M),
    movedim=(lambda x: x.movedim(0, -1), X),
    unsqueeze=(lambda x: x.unsqueeze(-2), X),
    squeeze=(lambda x: x[:1].squeeze(), X),
    squeeze_dim=(lambda x: x[:1].squeeze(0).squeeze(0), X),
    expand=(lambda x: x[:, :1].expand(-1, 7, -1), X),
    expand_new=(lambda x: x.expand(2, -1, -1, -1), X),
    slice=(lambda x: x[1:, ::2, -3:-1], X),
    slice_none=(lambda x: x[:, None, 1], X),
    select=(lambda x: x.select(1, -2), X),
    narrow=(lambda x: x.narrow(1, 1, 2), X),
    split=(lambda x: x.split(2, 2), X),
    split_sizes=(lambda x: x.split([1, 3], 1), X),
    chunk=(lambda x: x.chunk(3, 1), X),
    tensor_split=(lambda x: torch.tensor_split(x, 3, dim=2), X),
    unbind=(lambda x: x.unbind(1), X),
    cat=(lambda x: torch.cat([x, x + 1], 1), X),
    cat_empty=(lambda x: torch.cat([torch.zeros(0), x[0, 0]], 0), X),
    cat_empty_of_another_rank=(lambda x: torch.cat([torch.zeros(0), x, x + 1], 2), X),
    cat_promotes=(lambda x, b: torch.cat([x, b], 1), M, B),
    stack=(lambda x: torch.stack([x, -x], -1), X),
    flip=(lambda x: x.flip(0, 2), X),
    roll=(lambda x: x.roll((1, -2), (0, 2)), X),
    roll_flat=(lambda x: x.roll(3), X),
    rot90=(lambda x: x.rot90(1, (1, 2)), X),
    repeat=(lambda x: x.repeat(2, 1, 3, 1), X),
    tile=(lambda x: torch.tile(x, (2, 1)), X),
    repeat_interleave=(lambda x: x.repeat_interleave(3, 1), X),
    repeat_tensor=(lambda m: torch.repeat_interleave(m, torch.tensor([2, 0, 1, 3]), dim=0), M),
    unfold=(lambda x: x.unfold(2, 3, 2), X),
    diagonal=(lambda x: x.diagonal(1, 1, 2), X),
    diagonal_negative=(lambda m: m.diagonal(-2), M),
    diag=(lambda m: torch.diag(m[0]), M),
    diag_embed=(lambda m: torch.diag_embed(m, 1), M),
    tril=(lambda x: x.tril(-1), X),
    triu=(lambda b: b.triu(1), B),
    tril_indices=(lambda m: m + torch.tril_indices(3, 4).sum(), M),
    trace=(torch.trace, M),
    pad=(lambda x: F.pad(x, (1, 2)), X),
    pad_value=(lambda x: F.pad(x, (0, 1, 2, -1), value=-math.inf), X),
    pad_reflect=(lambda x: F.pad(x, (2, 1, 1, 1), mode="reflect"), IMAGE),
    pad_replicate=(lambda x: F.pad(x, (2, 1, 0, 3), mode="replicate"), IMAGE),
    pad_circular=(lambda x: F.pad(x, (2, 1), mode="circular"), X),
    pad_reflect_1d=(lambda x: F.pad(x, (1, 2), mode="reflect"), X),
    pad_bool=(lambda b: F.pad(b, (1, 1), value=True), B),
    pixel_shuffle=(lambda x: F.pixel_shuffle(x, 2), IMAGE),
    pixel_unshuffle=(lambda x: F.pixel_unshuffle(x, 2), IMAGE),
    channel_shuffle=(lambda x: F.channel_shuffle(x, 2), IMAGE),
    meshgrid=(lambda x: torch.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"), X),
    as_strided=(lambda x: x.as_strided((3, 4), (5, 2), 1), X),
    broadcast_tensors=(lambda x: torch.broadcast_tensors(x, x[:, :1]), X),
    block_diag=(lambda m: torch.block_diag(m, m[:2]), M),
    contiguous=(lambda x: x.mT.contiguous(), X),
    window_partition=(lambda x: x.view(2, 4, 3, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 4, 4), IMAGE),
    swapaxes=(lambda x: torch.swapaxes(x, 0, 1), X),
    ravel=(torch.ravel, X),
    scalar=(lambda x: x[0, 0, 0].unsqueeze(0), X),
    empty_slice=(lambda x: x[:, 4:].sum(), X),
)

INDEXING = Family(
    gather=(lambda m: m.gather(1, torch.tensor([[0, 1], [5, 0]])), M),
    gather_axis0=(lambda m: m.gather(0, INDEX), M),
    take_along=(lambda m: torch.take_along_dim(m, m.argsort(1), 1), M),
    index_select=(lambda m: m.index_select(1, torch.tensor([5, 0, 0])), M),
    embedding=(lambda m: F.embedding(INDEX, m, padding_idx=0), M),
    take=(lambda m: m.take(INDEX), M),
    one=(lambda m: m[ROWS], M),
    one_last=(lambda x: x[:, :, ROWS], X),
    two=(lambda x: x[ROWS, torch.tensor([0, 3, 1, 2])], X),
    two_broadcast=(lambda x: x[:, ROWS[:, None], INDEX[0]], X),
    apart=(lambda x: x[torch.tensor([0, 1]), :, torch.tensor([3, 4])], X),
    computed=(lambda m: m[m[:, 0].argsort()], M),
    mask_rows=(lambda m: m[torch.tensor([True, False, True, True])], M),
    mask_last=(lambda m: m[:, torch.tensor([True] * 3 + [False] * 3)], M),
    where_indices=(lambda b: torch.where(b, 1, 2), B),
    one_hot=(lambda i: F.one_hot(i, 4), INDEX),
    put=(lambda m: changed(m, lambda y: y.__setitem__(ROWS, 7.0)), M),
    put_two=(lambda x: changed(x, lambda y: y.__setitem__((slice(None), ROWS[:3], INDEX[0]), x[:, :3, 0])), X),
    put_mask=(lambda m, b: changed(m, lambda y: y.__setitem__(b, -1.0)), M, B),
    put_accumulate=(lambda m: m.index_put((ROWS,), m[:, :] * 2, accumulate=True), M),
    put_middle=(lambda x: changed(x, lambda y: y.__setitem__((slice(None), ROWS[:3]), 0.5)), X),
    slice_assign=(lambda m: changed(m, lambda y: y.__setitem__((slice(1, 3), slice(None, None, 2)), 9.0)), M),
    slice_assign_tensor=(lambda m: changed(m, lambda y: y[:, 2:4].copy_(m[:, :2])), M),
    select_assign=(lambda m: changed(m, lambda y: y.__setitem__((slice(None), -1), 3.0)), M),
    add_inplace=(lambda m: changed(m, lambda y: y[:, 1].add_(5)), M),
    fill_diagonal=(lambda m: m.diagonal_scatter(torch.zeros(4)), M),
    diagonal_offset=(lambda m: m.diagonal_scatter(torch.ones(3), -1), M),
    scatter=(lambda m: m.scatter(1, INDEX, m[:2, :3] * 3), M),
    scatter_value=(lambda m: m.scatter(1, INDEX, 4.0), M),
    scatter_add=(lambda m: m.scatter_add(0, INDEX, m), M),
    scatter_reduce=(lambda m: m.scatter_reduce(1, INDEX, m, "amax"), M),
    scatter_mean=(lambda m: m.scatter_reduce(1, INDEX, m, "mean", include_self=False), M),
    scatter_prod=(lambda m: m.scatter_reduce(0, INDEX, m, "prod"), M),
    scatter_amin_alone=(lambda m: m.scatter_reduce(0, INDEX, m, "amin", include_self=False), M),
    scatter_multiply=(lambda m: m.scatter(1, INDEX, 2.0, reduce="multiply"), M),
    index_add=(lambda m: m.index_add(0, ROWS.clamp(min=0), m, alpha=2), M),
    index_copy=(lambda m: m.index_copy(1, INDEX[0], m[:, 3:]), M),
    index_fill=(lambda m: m.index_fill(0, INDEX[0], 1.5), M),
    slice_scatter=(lambda m: m.slice_scatter(m[:2], 0, 1, 3), M),
    select_scatter=(lambda m: m.select_scatter(m[0], 0, -1), M),
    masked_scatter=(lambda m, b: m.masked_scatter(b, m * 2), M, B),
    embedding_bag=(lambda m: F.embedding_bag(torch.tensor([0, 1, 3, 3]), m, torch.tensor([0, 1]), mode="sum"), M),
    bag_mean=(lambda m: F.embedding_bag(INDEX, m), M),
    bag_max=(lambda m: F.embedding_bag(INDEX, m, mode="max"), M),
)

DATA_DEPENDENT = Family(
    nonzero=(lambda b: b.nonzero(), B),
    mask=(lambda m, b: m[b], M, B),
    mask_sum=(lambda m, b: m[b].sum() * 2, M, B),
    masked_select=(lambda m, b: m.masked_select(b) + 1, M, B),
    argwhere=(torch.argwhere, B),
    unique=(lambda i: torch.unique(i), INDEX),
    unique_inverse=(lambda i: torch.unique(i, return_inverse=True, return_counts=True), INDEX),
    nonzero_tuple=(lambda m, b: m[torch.where(b)] * 2, M, B),
)

CREATION = Family(
    zeros=(lambda x: torch.zeros(2, 3) + x[0, 0, 0], X),
    full_like=(lambda x: torch.full_like(x, 2), X),
    ones_like_int=(lambda x: torch.ones_like(x, dtype=torch.int32), X),
    new_zeros=(lambda x: x.new_zeros(2), X),
    new_ones=(lambda x: x.new_ones(2, dtype=torch.long), X),
    new_full=(lambda x: x.new_full((2, 2), 3.5), X),
    arange=(lambda x: torch.arange(5) + x[0, 0], X),
    arange_float=(lambda x: torch.arange(0.0, 1.0, 0.1).sum() + x, X),
    arange_step=(lambda x: torch.arange(10, 0, -3) + x[0, 0, 0], X),
    eye=(lambda x: torch.eye(4, 5) + x, X),
    linspace=(lambda x: torch.linspace(-1, 1, 5) + x, X),
    scalar=(lambda x: torch.tensor(3.0) + x, X),
    closure=(lambda x: x + M[:, :5], X),
    tri=(lambda x: torch.ones(4, 5).tril() * x, X),
    zeros_like=(torch.zeros_like, X),
    hann=(lambda x: x * torch.hann_window(5), X),
    logspace=(lambda x: x * torch.logspace(0, 1, 5), X),
    vander=(lambda x: torch.vander(x[0, 0]), X),
    empty_bool=(lambda x: torch.zeros(3, dtype=torch.bool) | (x[0, 0, 0] > 0), X),
)

FAMILIES = {"views": VIEWS, "indexing": INDEXING, "data_dependent": DATA_DEPENDENT, "creation": CREATION}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, cases in FAMILIES.items() for name in cases])
def test_movement(family: str, name: str) -> None:
    FAMILIES[family].check(name)
