"""The manifest: everything that there is to say about an artifact, as plain data with a canonical JSON form.

Whatever depends on the clock or on where the artifact was made stays out, so that compiling the same model with the
same options and seed gives the same bytes, and `artifact_hash` the same answer. Timings belong in reports.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import PurePosixPath
from typing import Any, TypeAlias, TypeVar

from espalier.runtime.errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_LIMIT = 64 << 20
"""Bytes; a manifest that claims to be larger is refused before it is parsed."""

Json: TypeAlias = Any
"""Whatever JSON can say."""


@dataclass(frozen=True)
class TensorSpec:
    """An input, an output or a weight.

    `element` is the IR's name of the element type: f64 f32 f16 bf16, c64 c128, f8e4m3fn f8e4m3fnuz f8e5m2 f8e5m2fnuz
    f8e8m0, f6e2m3 f6e3m2, f4e2m1, i2 … i64, u2 … u64, bool, string. An extent is a number, or a text for one that
    varies: equal texts have equal extents in one call. The shape is None where even the rank varies.
    """

    name: str
    element: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class DeviceSpec:
    """What the artifact was compiled for, and needs.

    `architecture` and `system` are as `platform.machine()` and `platform.system()` give them, or empty if any will do.
    `instructions` are the instruction sets that the code may use, by LLVM's or the Linux kernel's names.
    """

    name: str
    architecture: str = ""
    system: str = ""
    instructions: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassRecord:
    """A pass that ran: its specification with all options, and what it did.

    `effect` holds reproducible figures only, such as nodes before and after, or accuracy before and after.
    """

    specification: str
    semantics: str
    rewrites: int
    effect: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256, in lower-case hexadecimal, of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    `engine` names what runs the artifact, and `backend` is that engine's own section (`espalier.runtime.engines`).
    `source`, `options`, `seeds` and `versions` say how to make the artifact again: the content hash of the model, the
    options of the compilation, seeds by name, versions of the packages that took part. `evaluation` holds measured
    accuracy or agreement, if data were given.
    """

    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: DeviceSpec
    backend: Mapping[str, Json]
    passes: tuple[PassRecord, ...] = ()
    source: Mapping[str, Json] = field(default_factory=dict)
    options: Mapping[str, Json] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, Json] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format: int = FORMAT_VERSION


def to_json(manifest: Manifest) -> bytes:
    """The file's content: the manifest in canonical form, with its own SHA-256 as the field `sha256`."""
    return _canonical({**_encode(manifest), "sha256": artifact_hash(manifest)})


def artifact_hash(manifest: Manifest) -> str:
    """SHA-256 of the manifest's canonical form, and so, through the files' hashes, of the whole artifact."""
    return hashlib.sha256(_canonical(_encode(manifest))).hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    """Sorted keys, two spaces, ASCII, one newline at the end."""
    return (json.dumps(content, sort_keys=True, indent=2, allow_nan=False) + "\n").encode("ascii")


def from_json(text: bytes) -> Manifest:
    """Parse and validate a manifest.

    Raises:
        ArtifactError: It is not JSON or a field is wrong (E702), it is of a newer format (E703), or it was changed
            after it was written (E705).
    """
    if len(text) > MANIFEST_LIMIT:
        raise ArtifactError("E702", f"the manifest has {len(text)} bytes; more than {MANIFEST_LIMIT} are refused")
    try:
        # Nesting beyond the interpreter's limit and integers of thousands of digits are refused by the parser itself.
        content = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError("E702", f"the manifest is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ArtifactError("E702", "the manifest is not a JSON object")
    version = content.get("format")
    if type(version) is not int or version < 1:
        raise ArtifactError("E702", f"the manifest's format version is {version!r}; expected a positive integer")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            "E703",
            f"the artifact has format {version}; this runtime reads formats up to {FORMAT_VERSION}",
            hint="install a newer espalier here",
        )
    _check_unchanged(content, text)
    manifest = decode(Manifest, {name: value for name, value in content.items() if name != "sha256"}, "manifest")
    validate(manifest)
    return manifest


def _check_unchanged(content: dict[str, Any], text: bytes) -> None:
    """Raises ArtifactError E705 unless the text is exactly what `to_json` wrote."""
    body = {name: value for name, value in content.items() if name != "sha256"}
    try:
        digest = hashlib.sha256(_canonical(body)).hexdigest()
        same = content.get("sha256") == digest and _canonical(content) == text
    except (ValueError, RecursionError):  # such as 1e999, which parses to a number that JSON cannot say
        same = False
    if not same:
        raise ArtifactError("E705", "the manifest differs from what was compiled (SHA-256)", node=MANIFEST_NAME)


def validate(manifest: Manifest) -> None:
    """Check what types alone do not say. Raises ArtifactError E702, or E706 for a path that leads out."""
    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        names = [spec.name for spec in specs]
        repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
        if repeated:
            raise ArtifactError("E702", f"two {kind}s are called {min(repeated)!r}")
        for spec in specs:
            check_spec(spec, f"{kind} {spec.name!r}")
    for name, entry in manifest.files.items():
        check_file_name(name)
        if entry.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise ArtifactError("E702", f"the entry of the file {name!r} has an invalid size or SHA-256", node=name)


def check_spec(spec: TensorSpec, where: str) -> None:
    """Check that a tensor's extents are possible. Raises ArtifactError E702."""
    for extent in spec.shape or ():
        if extent == "" or (isinstance(extent, int) and not 0 <= extent < 1 << 63):
            raise ArtifactError("E702", f"{where} has an impossible extent {extent!r}")


def check_file_name(name: str) -> None:
    """Check that a name is a relative POSIX path that stays inside. Raises ArtifactError E706."""
    path = PurePosixPath(name)
    plain = bool(name) and str(path) == name and not path.is_absolute() and ".." not in path.parts and name != "."
    if not plain or "\\" in name or ":" in name or any(ord(character) < 32 for character in name):
        raise ArtifactError("E706", f"the file name {name!r} is not a plain path inside the artifact")
    if name == MANIFEST_NAME:
        raise ArtifactError("E706", "the manifest lists itself")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        return {entry.name: _encode(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _encode(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(entry) for entry in value]
    return value


T = TypeVar("T")


def decode(kind: type[T], value: Any, where: str) -> T:
    """A dataclass of this module's kind from parsed JSON, strictly. Raises ArtifactError E702 naming the field."""
    return typing.cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _decode_fields(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        for choice in arguments:
            if choice is type(None) and value is None:
                return None
            json_kind = list if typing.get_origin(choice) is tuple else dict if is_dataclass(choice) else choice
            if isinstance(value, json_kind):
                return _decode(choice, value, where)
    elif origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], entry, f"{where}[{index}]") for index, entry in enumerate(value))
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _decode(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    elif type(value) is kind:
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise ArtifactError("E702", f"{where} is {type(value).__name__}; expected {expected}")


def _decode_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ArtifactError("E702", f"{where} is {type(value).__name__}; expected an object")
    known = {entry.name: entry for entry in fields(kind)}
    if unknown := sorted(set(value) - set(known)):
        raise ArtifactError("E702", f"{where} has an unknown field {unknown[0]!r}")
    required = {name for name, entry in known.items() if entry.default is MISSING and entry.default_factory is MISSING}
    if missing := sorted(required - set(value)):
        raise ArtifactError("E702", f"{where} lacks the field {missing[0]!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _decode(hints[name], entry, f"{where}.{name}") for name, entry in value.items()})
