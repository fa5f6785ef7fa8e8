"""Folders of arrays and images, and epochs over every kind of source."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from espalier.errors import InputError
from espalier.ir import Value
from espalier.ir.types import parse
from espalier.train import data as module
from espalier.train.data import Data

NUMBERS = (Value(parse("f32[n, 3]"), "x"),)
X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)


def of_type(text: str) -> tuple[Value, ...]:
    return (Value(parse(text), "image"),)


def refused(source: Any, inputs: tuple[Value, ...], code: str = "E206") -> str:
    with pytest.raises(InputError) as caught:
        list(Data(source, inputs).epoch(2))
    assert caught.value.code == code
    return caught.value.message + (caught.value.hint or "")


def stacked(batches: Any) -> tuple[Any, Any]:
    batches = list(batches)
    return np.concatenate([b.inputs[0] for b in batches]), np.concatenate([b.labels for b in batches])


def test_a_folder_with_an_array_for_each_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "labels.npy", Y)
    data = Data(tmp_path, NUMBERS)
    (batch,) = data
    assert len(data) == len(batch) == 20
    np.testing.assert_array_equal(batch.inputs[0], X)
    np.testing.assert_array_equal(batch.labels, Y)


def test_a_folder_of_single_arrays_by_class(tmp_path: Path) -> None:
    for k, kind in enumerate(["cat", "ant", "cat", "bee"]):
        (tmp_path / kind).mkdir(exist_ok=True)
        np.save(tmp_path / kind / f"{k}.npy", X[k])
    images, labels = stacked(Data(tmp_path, NUMBERS))
    np.testing.assert_array_equal(images, X[[1, 3, 0, 2]])
    assert labels.tolist() == [0, 1, 2, 2]
    shuffled, mixed = stacked(Data(tmp_path, NUMBERS).epoch(3, seed=1))
    assert {(row[0], label) for row, label in zip(shuffled, mixed, strict=True)} == {(3, 0), (9, 1), (0, 2), (6, 2)}


def test_classes_that_are_numbers_are_their_labels(tmp_path: Path) -> None:
    for kind in (10, 2, 0):
        (tmp_path / str(kind)).mkdir()
        np.save(tmp_path / str(kind) / "a.npy", X[kind])
    images, labels = stacked(Data(tmp_path, NUMBERS))
    assert {label: row[0] for row, label in zip(images, labels.tolist(), strict=True)} == {0: 0, 2: 6, 10: 30}


@pytest.mark.parametrize(
    ("type", "wanted"),
    [("f32[n, 3, 5, 6]", (0, 3, 1, 2)), ("f32[n, 5, 6, 3]", (0, 1, 2, 3)), ("f32[n, 3, h, w]", (0, 3, 1, 2))],
)
def test_images_become_what_preprocessing_says(type: str, wanted: tuple[int, ...], tmp_path: Path) -> None:
    for k, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    (tmp_path / "preprocess.json").write_text(json.dumps({"scale": 1 / 255, "mean": [0.1, 0.2, 0.3], "deviation": 2}))
    (batch,) = Data(tmp_path, of_type(type))
    expected = ((PIXELS / 255 - [0.1, 0.2, 0.3]) / 2).transpose(wanted)
    assert batch.inputs[0].dtype == np.float32 and batch.labels is None
    np.testing.assert_allclose(batch.inputs[0], expected, rtol=1e-6)


def test_integers_take_images_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "0.png")
    (batch,) = Data(tmp_path, of_type("u8[n, 5, 6, 3]"))
    np.testing.assert_array_equal(batch.inputs[0][0], PIXELS[0])
    (batch,) = Data(tmp_path, of_type("u8[n, 1, 5, 6]"))
    np.testing.assert_array_equal(batch.inputs[0][0, 0], np.asarray(Image.fromarray(PIXELS[0]).convert("L")))


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "0.png")
    floats = of_type("f32[n, 3, 5, 6]")
    assert "preprocess.json" in refused(tmp_path, floats)  # 0…255 is not passed on as if it were normalised
    for content in ("[]", "{", '{"size": 3}', '{"mean": [1, 2]}', '{"scale": 0}', '{"mean": "x"}'):
        (tmp_path / "preprocess.json").write_text(content)
        assert "preprocess.json" in refused(tmp_path, floats)
    (tmp_path / "preprocess.json").write_text("{}")
    assert "(1, 3, 5, 6)" in refused(tmp_path, of_type("f32[n, 3, 7, 6]"))
    assert "channels" in refused(tmp_path, of_type("f32[n, 2, 5, 6]"))
    assert "2 inputs" in refused(tmp_path, (*floats, *NUMBERS))
    Image.fromarray(PIXELS[0, :4]).save(tmp_path / "1.png")
    assert "not resized" in refused(tmp_path, of_type("f32[n, 3, h, w]"))
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    assert "1.png" in refused(tmp_path, floats)


def test_mixed_and_empty_folders_are_refused(tmp_path: Path) -> None:
    assert "no data" in refused(tmp_path, NUMBERS)
    np.save(tmp_path / "a.npy", X[0])
    (tmp_path / "deeper").mkdir()
    np.save(tmp_path / "deeper" / "b.npy", X[0])
    assert "both" in refused(tmp_path, NUMBERS)
    (tmp_path / "a.npy").write_bytes(b"no array")
    (tmp_path / "deeper" / "b.npy").unlink()
    assert "a.npy" in refused(tmp_path, NUMBERS)


def sources(tmp_path: Path) -> dict[str, Any]:
    np.savez(tmp_path / "x.npz", x=X, labels=Y)
    (tmp_path / "files").mkdir()
    (tmp_path / "samples").mkdir()
    for k in range(4):
        np.savez(tmp_path / "files" / f"{k}.npz", x=X[5 * k : 5 * k + 5], labels=Y[5 * k : 5 * k + 5])
    for k in range(20):
        (tmp_path / "samples" / str(k)).mkdir()
        np.save(tmp_path / "samples" / str(k) / "x.npy", X[k])
    (tmp_path / "own_data.py").write_text(
        "import numpy as np\ndef batches():\n    x = np.arange(60, dtype='f4').reshape(20, 3)\n"
        "    for k in (0, 7, 14):\n        yield (x[k:k + 7],), np.arange(20)[k:k + 7]\n"
    )
    return {
        "npz": tmp_path / "x.npz",
        "files": tmp_path / "files",
        "samples": tmp_path / "samples",
        "function": "own_data:batches",
        "list": [(X[:9], Y[:9]), (X[9:], Y[9:])],
        "mapping": {"x": X, "labels": Y},
    }


@pytest.mark.parametrize("kind", ["npz", "files", "samples", "function", "list", "mapping"])
def test_epochs_hold_every_sample_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_data", None)
    data = Data(sources(tmp_path)[kind], NUMBERS)
    assert [len(batch) for batch in data.epoch(6)] == [6, 6, 6, 2]
    assert [len(batch) for batch in data.epoch(6, whole=True)] == [6, 6, 6]
    assert [len(batch) for batch in data.epoch(64, whole=True)] == [20]
    if kind != "samples":  # whose folders are in the order of their names
        np.testing.assert_array_equal(stacked(data.epoch(6))[0], X)
    orders = []
    for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0)):
        images, labels = stacked(data.epoch(6, seed=seed, number=number))
        np.testing.assert_array_equal(images, X[labels])
        assert sorted(labels.tolist()) == list(range(20))
        orders.append(labels.tolist())
    assert orders[0] == orders[1] and orders[0] != orders[2] != orders[3] != orders[0]
    assert data.batches(6) == (None if kind in ("files", "function", "list") else 3)


def test_a_full_buffer_gives_samples_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER", 0)
    data = Data([(X[k : k + 1], Y[k : k + 1]) for k in range(20)], NUMBERS)
    found = [stacked(data.epoch(2, seed=0, number=k))[1].tolist() for k in range(2)]
    assert sorted(found[0]) == sorted(found[1]) == list(range(20)) and found[0] != found[1] != list(range(20))


def test_an_iterator_is_read_once_and_says_so() -> None:
    data = Data(iter([(X, Y)]), NUMBERS)
    assert len(list(data.epoch(5))) == 4
    assert "used up" in refused(data.source, NUMBERS)


def test_loaders_keep_their_batches() -> None:
    import torch

    pairs = [(X[k], int(k)) for k in range(20)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=7)
    data = Data(loader, NUMBERS)
    assert data.has_batches and data.batches(128) == 3
    assert [len(batch) for batch in data.epoch(128)] == [7, 7, 6]


def test_samples_of_several_shapes_and_partial_labels_are_refused() -> None:
    lengths = (Value(parse("f32[n, k]"), "x"),)
    assert "(1, 2) and (1, 3)" in refused([(X[:1, :2], Y[:1]), (X[:1], Y[:1])], lengths)
    assert "some have none" in refused([(X[:1], Y[:1]), {"x": X[:1]}], NUMBERS)
    two = (*NUMBERS, Value(parse("f32[m, 3]"), "z"))
    assert "20 and 19 samples" in refused({"x": X, "z": X[1:]}, two).replace("19 and 20", "20 and 19")
