"""Reductions, running sums, sorting, statistics and contractions against torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.frontends.torch.support import Family, booleans, integers, normal

X = normal(3, 4, 5)
M = normal(4, 5)
INT = integers(3, 4)
B = booleans(3, 4)
DISTINCT = torch.randperm(12, generator=torch.Generator().manual_seed(1)).reshape(3, 4)

REDUCTIONS = Family(
    sum=(torch.sum, X),
    sum_dim=(lambda x: x.sum(1), X),
    sum_dims=(lambda x: x.sum((0, -1), keepdim=True), X),
    sum_int=(torch.sum, INT.int()),
    sum_bool=(lambda b: b.sum(1), B),
    sum_dtype=(lambda i: i.sum(0, dtype=torch.float32), INT),
    sum_scalar=(lambda x: x[0, 0, 0].sum(), X),
    mean=(torch.mean, X),
    mean_dim=(lambda x: x.mean(-1), X),
    mean_half=(lambda x: x.mean(0), normal(3, 4, dtype=torch.float16)),
    prod=(lambda x: x.prod(), M),
    prod_dim=(lambda x: x.prod(1), M),
    amax=(lambda x: x.amax((1, 2)), X),
    amin=(lambda x: x.amin(0, keepdim=True), X),
    max=(torch.max, X),
    max_dim=(lambda x: x.max(1), X),
    min_dim=(lambda x: x.min(-1, keepdim=True), X),
    max_int=(lambda i: i.max(), INT),
    max_bool=(lambda b: b.amax(0), B),
    argmax=(torch.argmax, X),
    argmax_dim=(lambda x: x.argmax(2), X),
    argmin=(lambda x: x.argmin(0, keepdim=True), X),
    any=(torch.any, B),
    any_dim=(lambda b: b.any(1), B),
    all=(torch.all, INT),
    all_dim=(lambda b: b.all(0, keepdim=True), B),
    any_dims=(lambda b: torch.any(b, (0, 1)), B),
    var=(torch.var, X),
    var_dim=(lambda x: x.var(1), X),
    var_biased=(lambda x: x.var(-1, unbiased=False), X),
    var_correction=(lambda x: torch.var(x, (0, 1), correction=2, keepdim=True), X),
    std=(lambda x: x.std(1), X),
    var_mean=(lambda x: torch.var_mean(x, 0), X),
    std_mean=(lambda x: torch.std_mean(x, 1), X),
    norm=(torch.norm, X),
    norm_dim=(lambda x: x.norm(dim=1), X),
    norm_one=(lambda x: torch.linalg.vector_norm(x, 1, 1), X),
    norm_inf=(lambda x: torch.linalg.vector_norm(x, math.inf, -1), X),
    norm_zero=(lambda x: torch.linalg.vector_norm(x.relu(), 0, 1), X),
    norm_three=(lambda x: torch.linalg.vector_norm(x, 3, (0, 1), keepdim=True), X),
    normalize=(lambda x: F.normalize(x, dim=1), X),
    logsumexp=(lambda x: x.logsumexp(1), X),
    cosine=(lambda x: F.cosine_similarity(x, x.flip(0)), X),
    aminmax=(lambda x: torch.aminmax(x, dim=1), X),
    cumsum=(lambda x: x.cumsum(1), X),
    cumsum_int=(lambda i: i.int().cumsum(0), INT),
    cumsum_bool=(lambda b: b.cumsum(1), B),
    cumprod=(lambda x: x.cumprod(2), X),
    cummax=(lambda x: x.cummax(1), X),
    cummin=(lambda x: x.cummin(0), DISTINCT),
    count_nonzero=(torch.count_nonzero, INT),
    nansum=(torch.nansum, torch.tensor([1.0, math.nan])),
    cdist=(lambda a: torch.cdist(a, a + 1), X),
    cdist_one=(lambda a: torch.cdist(a, a + 1, p=1), M),
    dist=(lambda a: torch.dist(a, a * 2), M),
    pairwise=(lambda a: F.pairwise_distance(a, a * 2), M),
    pdist=(F.pdist, M),
    mse=(lambda a: F.mse_loss(a, a * 2), M),
    cross_entropy=(lambda a: F.cross_entropy(a, torch.tensor([0, 1, 4, 2])), M),
)

SORTING = Family(
    topk=(lambda x: x.topk(2), X),
    topk_dim=(lambda x: x.topk(2, dim=1, largest=False), X),
    topk_int=(lambda i: i.topk(3, dim=1), DISTINCT),
    sort=(lambda x: x.sort(1), X),
    sort_descending=(lambda x: x.sort(-1, descending=True), X),
    sort_stable=(lambda i: torch.sort(i, dim=1, stable=True), INT),
    argsort=(lambda x: x.argsort(0), X),
    kthvalue=(lambda x: x.kthvalue(2), X),
    median=(lambda x: x.median(1), X),
    median_all=(torch.median, M),
    msort=(torch.msort, M),
    searchsorted=(lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), x), X),
    searchsorted_right=(lambda i: torch.searchsorted(torch.tensor([-2, 0, 3]), i, right=True), INT),
    bucketize=(lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])), M),
    bucketize_right=(lambda i: torch.bucketize(i, torch.tensor([-2, 0, 3]), right=True), INT),
    histc=(lambda x: torch.histc(x, 8, -2, 2), X),
    quantile=(lambda x: x.quantile(0.3, dim=1), M),
    searchsorted_rows=(lambda x: torch.searchsorted(x.sort(1)[0], x), M),
)

CONTRACTIONS = Family(
    mm=(torch.mm, M, M.T.contiguous()),
    bmm=(torch.bmm, X, X.transpose(1, 2).contiguous()),
    matmul=(torch.matmul, X, M.T.contiguous()),
    matmul_vector=(lambda x, v: x @ v, X, normal(5)),
    vector_matmul=(lambda v, x: v @ x, normal(4), M),
    dot=(torch.dot, normal(5), normal(5)),
    vdot=(torch.vdot, normal(5), normal(5)),
    mv=(torch.mv, M, normal(5)),
    matmul_broadcast=(torch.matmul, normal(2, 1, 3, 4), normal(5, 4, 2)),
    matmul_int=(torch.matmul, INT, INT.T.contiguous()),
    matmul_int8=(torch.matmul, INT.to(torch.int8), INT.T.contiguous().to(torch.int8)),
    addmm=(lambda c, a: torch.addmm(c, a, a.T, beta=0.5, alpha=2), normal(4, 4), M),
    baddbmm=(lambda x: torch.baddbmm(x[:, :, :4], x, x.mT, beta=2, alpha=0.5), X),
    linear=(F.linear, X, normal(6, 5), normal(6)),
    linear_matrix=(F.linear, M, normal(6, 5), normal(6)),
    linear_no_bias=(F.linear, M, normal(6, 5)),
    linear_vector=(F.linear, normal(5), normal(6, 5), normal(6)),
    einsum=(lambda x, m: torch.einsum("bij,kj->bik", x, m), X, M),
    einsum_dots=(lambda x: torch.einsum("...ij, ...ij -> ...i", x, x), X),
    einsum_three=(lambda x, m: torch.einsum("bij,ij,bj->i", x, m, x[:, 0]), X, M),
    einsum_implicit=(lambda m: torch.einsum("ij,jk", m, m.T), M),
    einsum_trace=(lambda m: torch.einsum("ii->i", m[:, :4]), M),
    outer=(torch.outer, normal(3), normal(4)),
    inner=(torch.inner, M, M),
    tensordot=(lambda x, m: torch.tensordot(x, m, dims=([1, 2], [0, 1])), X, M),
    kron=(torch.kron, normal(2, 2), M),
    bilinear=(F.bilinear, M, M, normal(3, 5, 5), normal(3)),
    chain=(lambda m: torch.linalg.multi_dot([m, m.T, m]), M),
    det=(torch.det, normal(4, 4)),
    addr=(lambda c: torch.addr(c, c[:, 0], c[0]), M),
    cross=(lambda a: torch.linalg.cross(a, a.flip(1)), normal(4, 3)),
    bfloat_linear=(F.linear, normal(3, 4, dtype=torch.bfloat16), normal(5, 4, dtype=torch.bfloat16)),
)

FAMILIES = {"reductions": REDUCTIONS, "sorting": SORTING, "contractions": CONTRACTIONS}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, cases in FAMILIES.items() for name in cases])
def test_reduction(family: str, name: str) -> None:
    FAMILIES[family].check(name)
