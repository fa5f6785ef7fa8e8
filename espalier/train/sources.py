"""Where samples lie: files, folders of files or images, functions. What they hold becomes arrays, unchecked."""

from __future__ import annotations

import importlib
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InputError
from espalier.ir import TensorType, Value

IMAGES = (".png", ".jpg", ".jpeg")
PREPROCESSING = "preprocess.json"
"""The file in a folder of images that says how their numbers become a model's input."""
LABELS = "labels"


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file. Raises InputError E206."""
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, LookupError, NotImplementedError) as error:
        raise InputError("E206", f"{path} cannot be read as .npz: {error}") from None


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped. Raises InputError E206."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise InputError("E206", f"{path} cannot be read as .npy: {error}") from None


def call(text: str) -> Iterator[Any]:
    """What a function of the user's yields; its module may lie in the working directory. Raises InputError E206."""
    module_name, _, function_name = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        yield from getattr(importlib.import_module(module_name), function_name)()
    except InputError:
        raise
    except Exception as error:  # whatever the user's code raises
        what = f"{type(error).__name__}: {error}"
        raise InputError("E206", f"the data function {text!r} cannot be used: {what}") from error


def arrays_of(folder: Path, inputs: Sequence[Value]) -> dict[str, NDArray[Any]] | None:
    """The arrays of a folder that holds one .npy file for each input, by its name, and maybe labels; mapped."""
    files = {path.stem: path for path in folder.glob("*.npy")}
    wanted = {name for position, value in enumerate(inputs) for name in (value.name, f"input_{position}")}
    if not files or not files.keys() <= wanted | {LABELS} or files.keys() <= {LABELS}:
        return None
    return {name: read_npy(path) for name, path in files.items()}


@dataclass(frozen=True)
class Files:
    """A folder of files of one sample each. Samples of subfolders have these as labels."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None
    read: Callable[[Path], NDArray[Any]]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, positions: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Those samples, stacked, and their labels. Raises InputError E206 if their shapes differ."""
        samples = [self.read(self.paths[position]) for position in positions]
        for position, sample in zip(positions, samples, strict=True):
            if sample.shape != samples[0].shape:
                first, other = self.paths[positions[0]], self.paths[position]
                message = f"{first.name} has shape {samples[0].shape}, {other.name} has {sample.shape}"
                raise InputError("E206", message, hint="Samples are not resized: give all of them one size.")
        labels = None if self.labels is None else np.array([self.labels[position] for position in positions])
        return np.stack(samples), labels


def sample_files(folder: Path, inputs: Sequence[Value]) -> Files | None:
    """The folder as one of single samples: .npy files or images, in it or in a subfolder for each class.

    Classes are numbered in the order of the subfolders' names, or by the names where all of them are numbers. None if
    there are no such files. Raises InputError E206 for mixtures, and for models with several inputs.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    inside = [_samples(folder), *map(_samples, classes)]
    found = [path for paths in inside for path in paths]
    if not found:
        return None
    if inside[0] and len(inside[0]) < len(found):
        raise InputError("E206", f"{folder} holds samples both beside its subfolders and in them")
    kinds = {path.suffix.lower() == ".npy" for path in found}
    if len(kinds) > 1:
        raise InputError("E206", f"{folder} holds both arrays and images")
    if len(inputs) != 1:
        message = f"{folder} has one array for each sample; the model has {len(inputs)} inputs"
        raise InputError("E206", message, hint="Give .npz files with an array for each input.")
    labels = None
    if not inside[0]:
        named = [path.name for path in classes]
        numbers = [int(name) for name in named] if all(map(str.isdecimal, named)) else list(range(len(named)))
        labels = tuple(number for number, paths in zip(numbers, inside[1:], strict=True) for _ in paths)
    read = read_npy if kinds.pop() else _image_reader(folder, inputs[0])
    return Files(tuple(found), labels, read)


def _samples(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".npy", *IMAGES) and path.is_file())


def _image_reader(folder: Path, value: Value) -> Callable[[Path], NDArray[Any]]:
    """How an image becomes a sample of an input: (c, h, w), (h, w, c) or (h, w), whichever the input is."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        message, hint = "reading images needs Pillow", "pip install 'espalier[images]'"
        raise InputError("E205", message, hint=hint) from None
    if not isinstance(value.type, TensorType) or value.type.shape is None or value.type.rank not in (3, 4):
        raise InputError("E206", f"input {value.name!r} is {value.type}, which images can't feed")
    shape = value.type.shape[1:]
    first = len(shape) == 3 and shape[0] in (1, 3, 4)
    channels = 1 if len(shape) == 2 else shape[0] if first else shape[2]
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if not isinstance(channels, int) or channels not in modes:
        raise InputError("E206", f"input {value.name!r} is {value.type}: no axis of 1, 3 or 4 channels for images")
    scale, mean, deviation = _preprocessing(folder, value, channels)

    def read(path: Path) -> NDArray[Any]:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert(modes[channels]))
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError("E206", f"{path} cannot be read as an image: {error}") from None
        pixels = pixels.reshape(*pixels.shape[:2], channels)
        if scale is not None:
            pixels = ((pixels * scale - mean) / deviation).astype(np.float32)
        return np.moveaxis(pixels, 2, 0) if first else pixels if len(shape) == 3 else pixels[..., 0]

    return read


def _preprocessing(folder: Path, value: Value, channels: int) -> tuple[Any, Any, Any]:
    """Scale, mean and deviation for an image's numbers of 0 to 255; all None for an input of integers.

    Raises InputError E206 where floats are wanted and nothing says how.
    """
    path = folder / PREPROCESSING
    if not path.exists():
        if value.element.is_integer:
            return None, None, None
        message = f"images hold 0 to 255, and nothing says how they become {value.element} numbers for {value.name!r}"
        example = '{"scale": 0.00392156862745098, "mean": [0.5], "deviation": [0.25]}'
        hint = f"Put {PREPROCESSING} into {folder}, such as {example}: (pixel·scale − mean)/deviation."
        raise InputError("E206", message, hint=hint)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(content, Mapping)
    except (OSError, ValueError, AssertionError):
        raise InputError("E206", f"{path} is no JSON object") from None
    unknown = sorted(content.keys() - {"scale", "mean", "deviation"})
    if unknown:
        raise InputError("E206", f"{path} has an unknown entry {unknown[0]!r}; there are scale, mean and deviation")
    found = []
    for name, default in (("scale", 1.0), ("mean", 0.0), ("deviation", 1.0)):
        try:
            numbers = np.asarray(content.get(name, default), np.float64).reshape(-1)
        except (TypeError, ValueError):
            raise InputError("E206", f"{path}: {name!r} must be a number, or one for each channel") from None
        if len(numbers) not in (1, channels) or not np.isfinite(numbers).all() or (name != "mean" and 0 in numbers):
            raise InputError("E206", f"{path}: {name!r} must be a number, or one for each of {channels} channels")
        found.append(numbers)
    return found[0], found[1], found[2]
