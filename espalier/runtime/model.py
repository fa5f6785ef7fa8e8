"""A loaded model: named arrays in, named arrays out, each checked against the manifest."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from espalier.runtime import cpu, engines
from espalier.runtime.elements import Array, to_raw, to_value, value_dtype
from espalier.runtime.errors import ArtifactError
from espalier.runtime.files import ArtifactFiles
from espalier.runtime.manifest import Manifest, TensorSpec


class LoadedModel:
    """An artifact that is ready to run. Calls may come from several threads at once.

    Attributes:
        manifest: What the artifact says about itself.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        try:
            threads = None if threads is None else operator.index(threads)
        except TypeError:
            raise ArtifactError("E709", f"threads is a whole number, not {threads!r}") from None
        if threads is not None and threads < 1:
            raise ArtifactError("E709", f"a model needs at least one thread, not {threads}")
        files = ArtifactFiles(path)
        try:
            self.manifest: Manifest = files.manifest
            for spec in (*self.inputs, *self.outputs):
                value_dtype(spec.element)
            cpu.check_device(self.manifest.device)
            self._engine: engines.Engine | None = engines.load(files, threads or cpu.default_threads())
        except BaseException:
            files.close()
            raise
        self._files = files

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, element types and shapes of the inputs, in order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, element types and shapes of the outputs, in order."""
        return self.manifest.outputs

    def __call__(self, *inputs: Mapping[str, Any] | Any) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: One mapping from input names to arrays, or the arrays in the order of `self.inputs`.

        Returns:
            The outputs by name, as arrays of the caller's own. Elements that numpy lacks are ml_dtypes' if that is
            installed, otherwise in raw form (`espalier.runtime.elements`).

        Raises:
            ArtifactError: E709: an input does not fit; E712: the engine failed; E713: the model is closed.
        """
        engine, raw = self._ready(inputs)
        results = engine.run(raw)
        return {spec.name: to_value(array, spec.element) for spec, array in zip(self.outputs, results, strict=True)}

    def profile(self, *inputs: Mapping[str, Any] | Any) -> list[tuple[Any, float]]:
        """Run the model once, and tell what each of its kernels computes and the seconds that it took, in order.

        Args:
            inputs: As for a call.

        Raises:
            ArtifactError: As a call does; E716: the artifact's engine can't tell.
        """
        engine, raw = self._ready(inputs)
        if not isinstance(engine, engines.Profiling):
            raise ArtifactError("E716", "only artifacts of the TVM backend whose shapes are numbers can be profiled")
        return engine.profile(raw)

    def _ready(self, inputs: tuple[Any, ...]) -> tuple[engines.Engine, list[Array]]:
        """The engine, and the raw form of inputs that fit."""
        engine = self._engine
        if engine is None:
            raise ArtifactError("E713", "the model is closed")
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            arrays = self._by_name(inputs[0])
        elif len(inputs) == len(self.inputs):
            arrays = list(inputs)
        else:
            raise ArtifactError("E709", f"the model has {len(self.inputs)} inputs; {len(inputs)} were given")
        extents: dict[str, int] = {}
        return engine, [_checked(array, spec, extents) for array, spec in zip(arrays, self.inputs, strict=True)]

    def close(self) -> None:
        """Let go of the engine, the weights and what was unpacked. Later calls are refused."""
        self._engine = None
        self._files.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name}: {describe(spec)}" for spec in self.inputs)
        outputs = ", ".join(f"{spec.name}: {describe(spec)}" for spec in self.outputs)
        return f"<model ({inputs}) -> ({outputs}) on {self.manifest.engine}>"

    def _by_name(self, arrays: Mapping[str, Any]) -> list[Any]:
        names = [spec.name for spec in self.inputs]
        missing = [name for name in names if name not in arrays]
        unknown = [name for name in arrays if name not in names]
        if missing or unknown:
            said = [f"lacks {', '.join(map(repr, missing))}"] * bool(missing)
            said += [f"has no input {', '.join(map(repr, unknown))}"] * bool(unknown)
            subject = "the call" if missing else "the model"
            raise ArtifactError("E709", f"{subject} {' and '.join(said)}", hint=f"its inputs are {', '.join(names)}")
        return [arrays[name] for name in names]


def describe(spec: TensorSpec) -> str:
    """A tensor's type as text, like ``f32[N, 3, 32, 32]``."""
    return f"{spec.element}[{'*' if spec.shape is None else ', '.join(map(str, spec.shape))}]"


def _checked(value: Any, spec: TensorSpec, extents: dict[str, int]) -> Array:
    """The raw form of an input that fits its specification; `extents` collects what varying extents are."""
    array: Array = np.asarray(value)
    try:
        raw = to_raw(array, spec.element)
    except TypeError as error:
        hint = f"cast it explicitly, for example with array.astype({str(value_dtype(spec.element))!r})"
        raise ArtifactError("E709", f"the input {spec.name!r} is {describe(spec)}: {error}", hint=hint) from None
    fits = spec.shape is None or len(spec.shape) == raw.ndim
    for wanted, given in zip(spec.shape or (), raw.shape, strict=False):
        fits = fits and (given == wanted if isinstance(wanted, int) else extents.setdefault(wanted, given) == given)
    if not fits:
        known = ", ".join(f"{name} = {extent}" for name, extent in sorted(extents.items()))
        message = f"the input {spec.name!r} is {describe(spec)}; an array of shape {list(raw.shape)} was given"
        raise ArtifactError("E709", message + (f" where {known}" if known else ""))
    return raw
