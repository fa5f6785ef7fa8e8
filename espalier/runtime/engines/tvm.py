"""Runs a compiled library with apache-tvm-ffi and TVM's small runtime library, which the artifact brings.

The manifest's backend section is a `TvmSection`:

    {"library": "model.so", "runtime": "libtvm_runtime.so", "entry": "main",
     "weights": {"file": "weights.safetensors", "tensors": [{"name": …, "element": …, "shape": […]}, …]},
     "arena": {"bytes": …, "lower_bound": …}, "kernels": "kernels.json"}

With an arena, all shapes are numbers, and `entry` is a function of the library. It takes the inputs in the manifest's
order, the bytes of the weights (if there are any; in the section's order, each at the next multiple of 64), an arena
of so many bytes (if there are any), and the tensors to write the outputs to: everything in raw form
(`espalier.runtime.elements`). It allocates nothing and keeps nothing, so calls at once only need an arena each. Inputs
need no alignment beyond their elements', and outputs are computed where the caller gets them. `kernels` names a file
that says what each call of a kernel computes, in order; the library's function `profile` does what `entry` does, and
has a last parameter, 64-bit integers (calls + 1, 2), for a clock's seconds and nanoseconds before and after each.

With `arena` null, `entry` is a function of a Relax VM. It takes the inputs in the manifest's order and then the weights
in the section's order, and returns a tensor, or a tuple with the outputs in the manifest's order. Constants may also be
embedded in the library; then `weights` is null. The weights' shapes are numbers, and each tensor of the safetensors
file holds the raw form (`espalier.runtime.elements`), written by `espalier.runtime.weights.save_weights`.

At the boundary of the VM a tensor has its own element type where TVM has one of whole bytes (bfloat16, 8-bit floats);
elements of fewer than 8 bits, bipolar ones and integers of odd width are passed in their raw form, one per element.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from espalier.runtime import cpu
from espalier.runtime.elements import Array, raw_dtype, storage
from espalier.runtime.errors import REFUSAL, ArtifactError
from espalier.runtime.ffi import import_tvm_ffi, permitted_threads
from espalier.runtime.files import ArtifactFiles
from espalier.runtime.manifest import TensorSpec, decode
from espalier.runtime.weights import WeightsSection, aligned, aligned_empty, compact, load_block, load_weights

tvm_ffi = import_tvm_ffi()

CPU_DEVICE, FIRST_DEVICE, POOLED_ALLOCATOR = 1, 0, 2
RUNTIME_LIBRARY = "libtvm_runtime.so"

_loading = threading.Lock()
_loaded_runtime: str | None = None
_pool = threading.local()


@dataclass(frozen=True)
class ArenaSection:
    """Bytes for what is computed on the way, and the fewest that any plan could do with: the largest live set."""

    bytes: int
    lower_bound: int


@dataclass(frozen=True)
class TvmSection:
    """What the manifest says for this engine; `runtime` is null if the library needs no runtime beyond tvm-ffi."""

    library: str
    runtime: str | None
    weights: WeightsSection | None = None
    entry: str = "main"
    arena: ArenaSection | None = None
    kernels: str | None = None


class StaticEngine:
    """One function, the weights, and an arena for each of the calls that there have been at once."""

    def __init__(self, files: ArtifactFiles, section: TvmSection, arena: ArenaSection, threads: int) -> None:
        manifest = files.manifest
        self._inputs, self._outputs = manifest.inputs, manifest.outputs
        for spec in (*self._inputs, *self._outputs):
            if spec.shape is None or not all(isinstance(extent, int) for extent in spec.shape):
                raise ArtifactError("E702", f"the shape of {spec.name!r} is not one of numbers, but there is an arena")
        if arena.bytes < 0:
            raise ArtifactError("E702", f"an arena of {arena.bytes} bytes is impossible")
        _prepare(files, section)
        weights = None if section.weights is None else load_block(files, section.weights)[0]
        try:
            self._library = _load_library(files.path(section.library))
            self._entry = self._library[section.entry]
        except Exception as error:
            raise ArtifactError("E712", f"TVM cannot load {section.library!r}: {error}") from error
        self._weights = () if weights is None else (tvm_ffi.from_dlpack(weights),)
        self._bytes, self._threads = arena.bytes, threads
        self._kernels = None if section.kernels is None else files.path(section.kernels)
        self._arenas: list[tuple[Any, ...]] = []
        """Those that no call uses at the moment."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return self._call(self._entry, inputs)

    def profile(self, inputs: Sequence[Array]) -> list[tuple[Any, float]]:
        """What each kernel computes, in order, and the seconds that it took in one call."""
        if self._kernels is None:
            raise ArtifactError("E716", "the artifact does not tell what its kernels compute")
        try:
            told = json.loads(self._kernels.read_bytes())
        except ValueError as error:
            raise ArtifactError("E702", f"{self._kernels.name} is not valid JSON: {error}") from None
        if not isinstance(told, list):
            raise ArtifactError("E702", f"{self._kernels.name} is not a list")
        times = np.zeros((len(told) + 1, 2), np.int64)
        self._call(self._library["profile"], inputs, tvm_ffi.from_dlpack(times))
        seconds = np.diff(times[:, 0]) + 1e-9 * np.diff(times[:, 1])
        return list(zip(told, seconds.tolist(), strict=True))

    def _call(self, entry: Any, inputs: Sequence[Array], *last: Any) -> list[Array]:
        given = [aligned_empty(cast("tuple[int, ...]", spec.shape), raw_dtype(spec.element)) for spec in self._outputs]
        tensors = [tvm_ffi.from_dlpack(array if compact(array) else aligned(array)) for array in inputs]
        results = [tvm_ffi.from_dlpack(array) for array in given]
        _use_threads(self._threads)
        try:
            arena = self._arenas.pop()
        except IndexError:
            arena = self._arena()
        try:
            entry(*tensors, *self._weights, *arena, *results, *last)
        except Exception as error:
            raise _failure(error) from error
        finally:
            self._arenas.append(arena)
        return given

    def _arena(self) -> tuple[Any, ...]:
        """The argument that is an arena; none if no bytes are needed."""
        if not self._bytes:
            return ()
        return (tvm_ffi.from_dlpack(_allocated(self._bytes)),)


class TvmEngine:
    """One Relax virtual machine and its weights."""

    def __init__(self, files: ArtifactFiles, section: TvmSection, threads: int) -> None:
        manifest = files.manifest
        library = files.path(section.library)
        _prepare(files, section)
        weights = [] if section.weights is None else load_weights(files, section.weights)
        specs = () if section.weights is None else section.weights.tensors
        try:
            self._machine = _load_library(library)["vm_load_executable"]()
            self._machine["vm_initialization"](CPU_DEVICE, FIRST_DEVICE, POOLED_ALLOCATOR)
            self._entry = self._machine[section.entry]
        except Exception as error:
            raise ArtifactError("E712", f"TVM cannot load {section.library!r}: {error}") from error
        self._weights = [_to_tensor(array, spec) for array, spec in zip(weights, specs, strict=True)]
        self._inputs, self._outputs = manifest.inputs, manifest.outputs
        self._threads = threads
        # A virtual machine has one set of registers, so calls take turns.
        self._turn = threading.Lock()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        tensors = [_to_tensor(aligned(array), spec) for array, spec in zip(inputs, self._inputs, strict=True)]
        with self._turn:
            _use_threads(self._threads)
            try:
                result = self._entry(*tensors, *self._weights)
            except Exception as error:
                raise _failure(error) from error
            results = [result] if isinstance(result, tvm_ffi.Tensor) else list(result)
            if len(results) != len(self._outputs):
                message = f"the compiled model gave {len(results)} outputs; the manifest has {len(self._outputs)}"
                raise ArtifactError("E712", message)
            # A copy: a result may share memory with a weight, a constant, or an input of the caller.
            return [_from_tensor(tensor, spec) for tensor, spec in zip(results, self._outputs, strict=True)]


def _failure(error: Exception) -> ArtifactError:
    """What to raise where compiled code failed: inputs that it refuses are E709, anything else is E712."""
    _, refused, why = str(error).partition(REFUSAL)
    if refused:
        return ArtifactError("E709", f"{REFUSAL}{why}")
    return ArtifactError("E712", f"the compiled model failed: {error}")


def _allocated(bytes: int) -> Array:
    """Bytes at a multiple of the alignment. Raises ArtifactError E712 if there is not as much memory."""
    try:
        return aligned_empty((bytes,), np.dtype(np.uint8))
    except (MemoryError, ValueError) as error:  # the latter beyond what numpy can count
        raise ArtifactError("E712", f"there is no memory for an arena of {bytes} bytes") from error


def load(files: ArtifactFiles, threads: int) -> StaticEngine | TvmEngine:
    """The engine for an artifact. Raises ArtifactError."""
    section = decode(TvmSection, files.manifest.backend, "manifest.backend")
    if section.arena is not None:
        return StaticEngine(files, section, section.arena, threads)
    return TvmEngine(files, section, threads)


def _prepare(files: ArtifactFiles, section: TvmSection) -> None:
    """Make the process ready for the artifact's code."""
    cpu.permit_tiles(files.manifest.device.instructions)
    if section.runtime is not None:
        _load_runtime(files.path(section.runtime), files.manifest.files[section.runtime].sha256)


def _load_library(path: Path) -> Any:
    """The compiled module, from a copy of its own.

    The loader of the operating system remembers libraries by path: without the copy, an artifact that was compiled
    again to the same place would run the old one's code.
    """
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        return tvm_ffi.load_module(shutil.copyfile(path, Path(folder) / path.name).as_posix())


def _load_runtime(path: Path, sha256: str) -> None:
    """Load TVM's runtime library once per process: its functions register themselves globally."""
    global _loaded_runtime
    with _loading:
        if _loaded_runtime is None:
            _loaded_runtime = _present_runtime()
        if _loaded_runtime is None:
            # TVM's own pinning puts the workers of two pools on the same cores; it is read when the pool starts.
            os.environ.setdefault("TVM_BIND_THREADS", "0")
            try:
                ctypes.CDLL(str(_same_library(path, sha256)), ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise ArtifactError("E712", f"cannot load TVM's runtime library: {error}") from error
            _loaded_runtime = sha256
        elif _loaded_runtime != sha256:
            raise ArtifactError(
                "E715", "another version of TVM's runtime library is loaded in this process than the artifact's"
            )


def _present_runtime() -> str | None:
    """SHA-256 of the runtime library that something else, such as the tvm package, has loaded into this process."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    places = {line.split(maxsplit=5)[5] for line in lines if line.endswith(f"/{RUNTIME_LIBRARY}")}
    return _sha256(Path(min(places))) if places else None


def _same_library(path: Path, sha256: str) -> Path:
    """The installed tvm package's copy of the library if it is the same, so that importing tvm later finds it."""
    package = importlib.util.find_spec("tvm")
    if package is not None and package.origin is not None:
        installed = Path(package.origin).parent / "lib" / RUNTIME_LIBRARY
        if installed.is_file() and _sha256(installed) == sha256:
            return installed
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _use_threads(count: int) -> None:
    """Set the size of the calling thread's pool of workers; TVM keeps one pool per calling thread."""
    if getattr(_pool, "threads", None) == count:
        return
    configure = tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True)
    if configure is not None:
        prefer_big_cores = 1
        with permitted_threads(count):
            configure(prefer_big_cores, count)
        _pool.threads = count


@cache
def _foreign_name(spec: TensorSpec) -> str | None:
    """TVM's name of an element of whole bytes that numpy lacks."""
    name = storage(spec.element).ml_dtypes_name
    return name if name is not None and name.startswith(("bfloat16", "float8")) else None


def _view(tensor: Any, dtype: str) -> Any:
    create = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    return create(tensor, tvm_ffi.Shape(tensor.shape), tvm_ffi.dtype(dtype), 0)


def _to_tensor(array: Array, spec: TensorSpec) -> Any:
    tensor = tvm_ffi.from_dlpack(array)
    name = _foreign_name(spec)
    return tensor if name is None else _view(tensor, name)


def _from_tensor(tensor: Any, spec: TensorSpec) -> Array:
    raw = raw_dtype(spec.element)
    if _foreign_name(spec) is not None:
        tensor = _view(tensor, raw.name)
    array = np.array(np.from_dlpack(tensor), copy=True)
    if array.dtype != raw:
        raise ArtifactError("E712", f"the output {spec.name!r} came as {array.dtype}; the manifest says {spec.element}")
    return array
