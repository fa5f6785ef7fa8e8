"""Reductions, normalisations and random numbers against torch, and at their edges."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from espalier.ir import Builder, Graph, TypeInferenceError, elements
from espalier.ir.dims import symbols
from espalier.ir.op import lookup
from espalier.ir.types import parse as type_of
from espalier.ir.xp import numpy as xp

RNG = np.random.default_rng(3)
X = RNG.standard_normal((3, 4, 5, 6)).astype(np.float32)
T = torch.tensor(X)
C = [RNG.standard_normal(4).astype(np.float32) for _ in range(3)] + [RNG.uniform(0.5, 2, 4).astype(np.float32)]


def run(name: str, *operands: Any, **attributes: Any) -> Any:
    with np.errstate(all="ignore"):
        return lookup(name)(**attributes).reference(xp, *operands)


def agree(found: Any, expected: torch.Tensor) -> None:
    assert found.dtype == expected.numpy().dtype
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-5, atol=2e-6)


REDUCTIONS: list[tuple[str, Any]] = [
    ("sum", lambda t: t.sum((1, 3))), ("mean", lambda t: t.mean((1, 3))), ("max", lambda t: t.amax((1, 3))),
    ("min", lambda t: t.amin((1, 3))), ("prod", lambda t: t.prod(3).prod(1)),
    ("l1", lambda t: t.abs().sum((1, 3))), ("l2", lambda t: t.square().sum((1, 3)).sqrt()),
    ("sum_square", lambda t: t.square().sum((1, 3))), ("log_sum_exp", lambda t: t.logsumexp((1, 3))),
    ("log_sum", lambda t: t.sum((1, 3)).log()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "oracle"), REDUCTIONS)
def test_reductions_agree_with_torch(name: str, oracle: Any) -> None:
    agree(run(f"reduce_{name}", X, np.array([1, -1]), keepdims=0), oracle(T))
    whole = run(f"reduce_{name}", X)
    assert whole.shape == (1, 1, 1, 1)
    untouched = run(f"reduce_{name}", X, np.zeros(0, np.int64), noop_with_empty_axes=1)
    assert untouched.shape == X.shape


def test_reductions_of_nothing() -> None:
    empty = np.zeros((2, 0, 3), np.float32)
    axes = np.array([1])
    expected = {"sum": 0, "prod": 1, "max": -np.inf, "min": np.inf, "l1": 0, "l2": 0, "sum_square": 0,
                "log_sum": -np.inf, "log_sum_exp": -np.inf, "mean": np.nan}  # fmt: skip
    for name, value in expected.items():
        found = run(f"reduce_{name}", empty, axes, keepdims=0)
        np.testing.assert_array_equal(found, np.full((2, 3), value, np.float32), err_msg=name)
    assert run("reduce_max", empty.astype(np.int8), axes).tolist() == [[[-128] * 3]] * 2
    assert not run("reduce_max", empty.astype(bool), axes).any()


def test_reductions_keep_the_element() -> None:
    for dtype in (np.int32, np.uint8, np.float16, ml_dtypes.bfloat16):
        x = np.full((2, 100), 3, dtype)
        for name in ("sum", "mean", "max", "prod", "l1", "l2"):
            assert run(f"reduce_{name}", x, np.array([1])).dtype == dtype, name
    assert run("reduce_sum", np.full(100, 3, np.uint8)).item() == 300 % 256
    assert run("reduce_sum", np.array([2**64 - 1, 1], np.uint64)).item() == 0
    assert run("reduce_mean", np.array([-7, 0, 0], np.int64)).item() == -2
    ones = np.ones(4096, np.float16)
    assert run("reduce_sum", ones).item() == 4096  # adding in f16 would stop at 2048


def test_large_exponents_do_not_overflow() -> None:
    x = np.array([1000.0, 1000.0, -np.inf], np.float32)
    assert run("reduce_log_sum_exp", x).item() == pytest.approx(1000 + np.log(2))
    np.testing.assert_allclose(run("softmax", x), [0.5, 0.5, 0])
    np.testing.assert_allclose(run("log_softmax", x), [-np.log(2), -np.log(2), -np.inf], rtol=1e-6)


def test_positions_of_extremes() -> None:
    x = np.array([[1, 3, 3], [2, 2, 0]])
    np.testing.assert_array_equal(run("arg_max", x, axis=1, keepdims=0), [1, 0])
    np.testing.assert_array_equal(run("arg_max", x, axis=1, keepdims=0, select_last_index=1), [2, 1])
    np.testing.assert_array_equal(run("arg_min", x, axis=-1), [[0], [2]])
    np.testing.assert_array_equal(run("hardmax", x.astype(np.float32)), [[0, 1, 0], [1, 0, 0]])


def test_running_reductions() -> None:
    x = np.array([1, 2, 3, 4], np.int32)
    expected = {(0, 0): [1, 3, 6, 10], (1, 0): [0, 1, 3, 6], (0, 1): [10, 9, 7, 4], (1, 1): [9, 7, 4, 0]}
    for (exclusive, reverse), sums in expected.items():
        found = run("cum_sum", x, np.array(0), exclusive=exclusive, reverse=reverse)
        np.testing.assert_array_equal(found, sums)
        assert found.dtype == np.int32
    np.testing.assert_array_equal(run("cum_prod", x, np.array(-1), exclusive=1, reverse=1), [24, 12, 4, 1])


def test_normalisations_agree_with_torch() -> None:
    t = [torch.tensor(c) for c in C]
    agree(run("batch_norm", X, *C), F.batch_norm(T, t[2], t[3], t[0], t[1]))
    agree(run("instance_norm", X, *C[:2]), F.instance_norm(T, weight=t[0], bias=t[1]))
    agree(run("group_norm", X, *C[:2], num_groups=2), F.group_norm(T, 2, t[0], t[1]))
    w, b = (RNG.standard_normal((5, 6)).astype(np.float32) for _ in range(2))
    y, mean, inverse = run("layer_norm", X, w, b, axis=2)
    agree(y, F.layer_norm(T, (5, 6), torch.tensor(w), torch.tensor(b)))
    agree(mean, T.mean((2, 3), keepdim=True))
    agree(inverse, 1 / (T.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt())
    agree(run("rms_norm", X, w, axis=-2), F.rms_norm(T, (5, 6), torch.tensor(w), 1e-5))
    agree(run("lp_norm", X, axis=1), F.normalize(T, dim=1))
    agree(run("lp_norm", X, axis=1, p=1), F.normalize(T, p=1, dim=1))
    agree(run("local_response_norm", X, size=3, alpha=0.1), F.local_response_norm(T, 3, 0.1))
    agree(run("local_response_norm", X, size=4, alpha=0.1), _local_response(T, 4, 0.1))


def _local_response(t: torch.Tensor, size: int, alpha: float) -> torch.Tensor:
    """ONNX takes ⌊(size − 1)/2⌋ channels before; torch takes ⌊size/2⌋."""
    channels = range(t.shape[1])
    spans = [(max(0, c - (size - 1) // 2), c + size // 2 + 1) for c in channels]
    sums = torch.stack([t[:, first:last].square().sum(1) for first, last in spans], 1)
    return t / (1 + alpha / size * sums) ** 0.75


def test_batch_norm_in_training() -> None:
    t = [torch.tensor(c) for c in C]
    y, mean, variance = run("batch_norm", X, *C, training_mode=1, momentum=0.9)
    agree(y, F.batch_norm(T, None, None, t[0], t[1], training=True))
    agree(mean, 0.9 * t[2] + 0.1 * T.mean((0, 2, 3)))
    agree(variance, 0.9 * t[3] + 0.1 * T.var((0, 2, 3), correction=0))


def test_narrow_floats_are_normalised_in_f32() -> None:
    x = (X * 100).astype(np.float16)
    exact = torch.tensor(x.astype(np.float64))
    found = run("layer_norm", x, np.ones(6, np.float16))[0]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float64), F.layer_norm(exact, (6,)).numpy(), atol=2e-3)
    soft = run("softmax", x.astype(ml_dtypes.bfloat16), axis=1)
    assert soft.dtype == ml_dtypes.bfloat16


def test_zero_rows_have_norm_zero() -> None:
    np.testing.assert_array_equal(run("lp_norm", np.zeros((2, 3), np.float32)), np.zeros((2, 3)))


def test_types_without_known_axes() -> None:
    b = Builder(Graph())
    x, axes = b.input(type_of("f32[2, n, 4]")), b.input(type_of("i64[1]"))
    kept, dropped = b.reduce_sum(x, axes), b.reduce_sum(x, axes, keepdims=0)
    assert kept.rank == 3
    assert dropped.rank == 2
    assert all(symbols(extent) for extent in kept.shape)
    assert b.reduce_sum(x, b.input(type_of("i64[k]")), keepdims=0).shape is None
    assert b.reduce_sum(x, b.input(type_of("i64[0]"))).shape == (1, 1, 1)
    assert b.reduce_max(b.input(type_of("f32[*]"))).shape is None
    assert b.cum_sum(x, b.input(type_of("i64[]"))).shape == x.shape
    for name, attributes in (("softmax", {"axis": 3}), ("arg_max", {"axis": -4}), ("layer_norm", {"axis": 7})):
        operands = [x, np.ones(4, np.float32)] if name == "layer_norm" else [x]
        with pytest.raises(TypeInferenceError, match="no axis"):
            getattr(b, name)(*operands, **attributes)
    with pytest.raises(TypeInferenceError, match="training mode only"):
        b.batch_norm(b.input(type_of("f32[2, 4, 3]")), *C, results=3)


def test_dropout() -> None:
    x = np.ones((100, 100), np.float32)
    same, mask = run("dropout", x)
    assert same is x
    assert mask.all()
    kept, mask = run("dropout", x, np.array(0.25, np.float32), np.array(True), seed=1)
    assert 0.73 < mask.mean() < 0.77
    np.testing.assert_allclose(kept, np.where(mask, 4 / 3, 0), rtol=1e-6)
    again, _ = run("dropout", x, np.array(0.25, np.float32), np.array(True), seed=1)
    np.testing.assert_array_equal(kept, again)
    other, _ = run("dropout", x, np.array(0.25, np.float32), np.array(True), seed=2)
    assert (other != kept).any()


def test_random_numbers_have_their_distribution() -> None:
    normal = run("random_normal", shape=(100, 100), mean=3.0, scale=2.0, seed=1.0, dtype=elements.F32)
    assert normal.dtype == np.float32
    assert abs(normal.mean() - 3) < 0.1
    assert abs(normal.std() - 2) < 0.1
    uniform = run("random_uniform_like", normal, low=-1.0, high=1.0, seed=1.0)
    assert -1 <= uniform.min() < -0.99
    assert 0.99 < uniform.max() <= 1
    shares = run("bernoulli", np.full((100, 100), 0.3), seed=1.0)
    assert abs(shares.mean() - 0.3) < 0.02
    weights = np.log(np.array([[0.1, 0.2, 0.7]], np.float32))
    draws = run("multinomial", weights, sample_size=10000, seed=1.0)
    assert draws.dtype == np.int32
    np.testing.assert_allclose(np.bincount(draws[0]) / 10000, [0.1, 0.2, 0.7], atol=0.02)
    assert (run("random_normal", shape=(9,)) != run("random_normal", shape=(9,))).any()
