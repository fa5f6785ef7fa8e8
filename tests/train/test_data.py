"""Data from every kind of source, fitted to a model's inputs or refused by name; evaluation on them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from espalier.errors import InputError
from espalier.ir import Value
from espalier.ir.types import parse
from espalier.train.agreement import disagreement
from espalier.train.data import Data
from espalier.train.evaluate import compare, in_batches

IMAGE, TOKENS = Value(parse("f32[n, 3]"), "image"), Value(parse("i8[n]"), "tokens")
X, T = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2], np.int8)


def refused(source: object, *inputs: Value) -> str:
    with pytest.raises(InputError) as caught:
        list(Data(source, inputs or (IMAGE, TOKENS)))
    assert caught.value.code == "E206"
    return caught.value.message + (caught.value.hint or "")


@pytest.mark.parametrize(
    "source",
    [
        {"image": X, "tokens": T},
        {"tokens": T, "input_0": X},
        [(X, T, np.array([0, 1]))],
        [((X, T), [0, 1])],
        [{"image": X, "tokens": T, "labels": np.array([0, 1])}],
        [({"image": X, "tokens": T}, np.array([0, 1]))],
        [(X, T)],
        [[X, T]],
    ],
)
def test_sources_in_python(source: object) -> None:
    (batch,) = Data(source, (IMAGE, TOKENS))
    np.testing.assert_array_equal(batch.inputs[0], X)
    np.testing.assert_array_equal(batch.inputs[1], T)
    assert [array.dtype for array in batch.inputs] == [np.float32, np.int8] and len(batch) == 2
    assert batch.labels is None or list(batch.labels) == [0, 1]


def test_data_can_be_read_again() -> None:
    data = Data([(X, [0, 1])] * 3, (IMAGE,))
    assert [len(list(data)) for _ in range(2)] == [3, 3]


def test_files_of_a_folder_in_order(tmp_path: Path) -> None:
    for k in (2, 0, 1):
        np.savez(tmp_path / f"{k}.npz", image=X + k)
    assert [batch.inputs[0][0, 0] for batch in Data(tmp_path, (IMAGE,))] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"plain text"])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    assert "x.npz" in refused(tmp_path / "x.npz", IMAGE)


def test_a_single_array_in_a_file_is_no_npz(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, X)
    assert "x.npz" in refused(tmp_path / "x.npz", IMAGE)


def test_truncated_and_pickled_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=X)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "x.npz", IMAGE)
    np.savez(tmp_path / "y.npz", image=np.array([object()]))
    refused(tmp_path / "y.npz", IMAGE)


def test_what_does_not_fit_is_named() -> None:
    assert "'tokens'" in refused({"image": X})
    assert "'other'" in refused({"image": X, "tokens": T, "other": T})
    assert "(2, 4)" in refused({"image": np.ones((2, 4), "f4")}, IMAGE)
    assert "NaN" in refused({"image": X * np.nan}, IMAGE)
    assert "3 labels for 2 samples" in refused([(X, [0, 1, 2])], IMAGE)
    assert "1 inputs" in refused([[X, X, X, X]], IMAGE)
    refused([], IMAGE)
    refused(7, IMAGE)
    refused("nothing.txt", IMAGE)


@pytest.mark.parametrize(
    "tokens", [np.array([1, 128]), np.array([-129, 0]), np.array([0.5, 1]), np.array(["a", "b"]), np.array([1j, 0])]
)
def test_numbers_are_never_changed_silently(tokens: np.ndarray) -> None:
    assert "'tokens'" in refused({"tokens": tokens}, TOKENS)


def test_numbers_that_are_too_large_for_the_model() -> None:
    assert "too large" in refused({"image": np.full((2, 3), 1e300)}, IMAGE)
    half = Value(parse("f16[n, 3]"), "image")
    assert "too large" in refused({"image": np.full((2, 3), 1e6, "f4")}, half)


def test_other_elements_are_cast_where_nothing_is_lost() -> None:
    (batch,) = Data({"tokens": np.array([-128, 127], np.int64)}, (TOKENS,))
    assert batch.inputs[0].dtype == np.int8 and list(batch.inputs[0]) == [-128, 127]
    (batch,) = Data({"image": X.astype(ml_dtypes.bfloat16)}, (IMAGE,))
    assert batch.inputs[0].dtype == np.float32


def scores(*decisions: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[list(decisions)]


def test_top_1_and_agreement() -> None:
    data = Data([(X, [0, 1]), (X, [2, 2])], (IMAGE,))
    found = compare(lambda _: [scores(0, 1)], lambda _: [scores(0, 2)], data)
    assert (found.metric, found.original, found.compiled, found.samples) == ("top-1", 0.5, 0.5, 4)
    found = compare(lambda _: [scores(0, 1)], lambda _: [scores(0, 2)], Data({"image": X}, (IMAGE,)))
    assert (found.metric, found.original, found.compiled, found.drop) == ("agreement", 1.0, 0.5, 50.0)


def test_some_labels_are_no_labels() -> None:
    with pytest.raises(InputError):
        compare(lambda _: [scores(0, 1)], lambda _: [scores(0, 1)], Data([(X, [0, 1]), {"image": X}], (IMAGE,)))


def test_agreement_of_outputs() -> None:
    assert disagreement(X, X) == (0.0, 1e-4)
    assert disagreement(X, X + 0.05)[0] == pytest.approx(0.01, rel=1e-4)
    assert disagreement(X, X[:1])[0] == np.inf
    assert disagreement(np.array([np.nan, 1.0]), np.array([np.nan, 1.0]))[0] == 0
    assert disagreement(np.array([np.nan, 1.0]), np.array([0.0, 1.0]))[0] == np.inf
    assert disagreement(np.array([0.0, 1.0]), np.array([np.nan, 1.0]))[0] != 0  # and never within a limit
    assert not disagreement(np.array([0.0, 1.0]), np.array([np.nan, 1.0]))[0] <= 1e-4
    assert disagreement(np.array([np.inf]), np.array([-np.inf]))[0] == np.inf
    assert disagreement(T, T + np.int8(1)) == (0.5, 0.0)
    assert disagreement(X.astype(np.float16), X)[1] == 1e-2


def test_more_samples_than_a_fixed_batch_take_several_calls() -> None:
    calls = []

    def double(arrays):
        calls.append([a.shape for a in arrays])
        return [arrays[0] * 2 + arrays[1], arrays[0].sum(1)]

    x, shift = np.arange(18.0).reshape(6, 3), np.array(5.0)
    run = in_batches(double, [(2, 3), ()])
    y, sums = run([x, shift])
    assert calls == [[(2, 3), ()]] * 3
    np.testing.assert_array_equal(y, x * 2 + 5)
    np.testing.assert_array_equal(sums, x.sum(1))
    assert len(run([x[:2], shift])[0]) == 2 and len(calls) == 4
    for count in (0, 1, 5):
        with pytest.raises(InputError, match=f"E206: {count} samples don't fit a model with the fixed batch 2"):
            run([x[:count], shift])
    for shapes in ([("n", 3), ()], [None, ()], [(2, 3), (3,)]):  # no fixed batch: one call, whatever comes of it
        assert len(in_batches(double, shapes)([x, shift])[0]) == 6


def test_outputs_without_an_axis_of_samples_are_not_put_together() -> None:
    with pytest.raises(InputError, match="an output has no axis of samples"):
        in_batches(lambda arrays: [arrays[0].mean()], [(2, 3)])([np.zeros((4, 3))])
    with pytest.raises(InputError, match="an output has no axis of samples"):
        in_batches(lambda arrays: [arrays[0].T], [(2, 3)])([np.zeros((4, 3))])
