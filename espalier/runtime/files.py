"""An artifact on disk: written whole or not at all, read only after its hashes are checked.

A directory, or one zip with the same content, holds manifest.json and the files that it lists.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import IO

from espalier.runtime.errors import ArtifactError
from espalier.runtime.manifest import (
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    check_file_name,
    from_json,
    to_json,
    validate,
)

CHUNK = 1 << 20
Content = bytes | Path
"""A file's content: its bytes, or the path of a file to copy."""


def write_artifact(
    path: str | os.PathLike[str],
    manifest: Manifest,
    files: Mapping[str, Content],
    measured: Mapping[str, FileEntry] = MappingProxyType({}),
) -> Manifest:
    """Write an artifact under a temporary name beside `path` and rename it, so that a crash leaves the old or the new.

    Args:
        path: The directory to make, or a zip if it ends in ".zip". An artifact that is there is replaced.
        manifest: Its `files` are filled in here.
        files: Contents by name, a relative POSIX path.
        measured: Sizes and digests that are known, by name; others are measured.

    Returns:
        The manifest as written.

    Raises:
        ArtifactError: E714: the path holds something that is no artifact, or the disk refuses. E702, E706: the
            manifest is not valid.
    """
    target = Path(path)
    for name in files:
        check_file_name(name)
    check_output(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_beside(target) as work:
            folder = work / "artifact"
            folder.mkdir()
            entries = {
                name: _write(folder / name, content, measured.get(name)) for name, content in sorted(files.items())
            }
            manifest = replace(manifest, files=entries)
            text = to_json(manifest)
            validate(from_json(text))
            _write(folder / MANIFEST_NAME, text)
            if target.suffix == ".zip":
                _pack(folder, [MANIFEST_NAME, *entries], work / "artifact.zip")
                os.replace(work / "artifact.zip", target)
            else:
                _exchange(folder, target)
            _sync(target.parent)
    except OSError as error:
        raise ArtifactError("E714", f"cannot write {target}: {error.strerror or error}") from error
    return manifest


class ArtifactFiles:
    """A checked artifact: `manifest`, and the verified files it lists."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        source = Path(path)
        try:
            if source.is_dir():
                self._root = source
                self.manifest = from_json(_read_manifest(source / MANIFEST_NAME, source))
                for name, entry in self.manifest.files.items():
                    self._check(name, entry)
            elif source.is_file() and zipfile.is_zipfile(source):
                self._unpacked = tempfile.TemporaryDirectory(prefix="espalier-")
                self._root = Path(self._unpacked.name)
                self.manifest = _unpack(source, self._root)
            else:
                reason = "is neither a directory nor a zip file" if source.exists() else "does not exist"
                raise ArtifactError("E701", f"{source} {reason}")
        except BaseException:
            self.close()
            raise

    def path(self, name: str) -> Path:
        """Where a file lies that the manifest lists. Raises ArtifactError E710 for any other."""
        if name not in self.manifest.files:
            raise ArtifactError("E710", f"the manifest uses the file {name!r} but does not list it", node=name)
        return self._root / name

    def unlisted(self) -> list[str]:
        """Names of the files in the artifact's directory that the manifest does not list."""
        present = (
            str(Path(folder, name).relative_to(self._root).as_posix())
            for folder, _, names in os.walk(self._root)
            for name in names
        )
        return sorted(set(present) - {MANIFEST_NAME, *self.manifest.files})

    def close(self) -> None:
        """Remove what was unpacked from a zip. Libraries that are loaded stay usable."""
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None

    def _check(self, name: str, entry: FileEntry) -> None:
        place = self._root
        for part in Path(name).parts:
            place /= part
            try:
                mode = place.lstat().st_mode
            except OSError as error:
                raise ArtifactError("E704", f"cannot read the file {name!r}: {error.strerror}", node=name) from None
            if stat.S_ISLNK(mode):
                raise ArtifactError("E706", f"the file {name!r} is or goes through a link", node=name)
        if not stat.S_ISREG(mode):
            raise ArtifactError("E704", f"{name!r} is not a plain file", node=name)
        with place.open("rb") as stream:
            _compare(name, entry, _measure(stream))


def _read_manifest(path: Path, artifact: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MANIFEST_LIMIT + 1)
    except OSError as error:
        raise ArtifactError("E701", f"{artifact} has no readable {MANIFEST_NAME}: {error.strerror}") from None


def _measure(stream: IO[bytes], copy: Callable[[bytes], object] | None = None, limit: int | None = None) -> FileEntry:
    """Size and SHA-256 of a stream, optionally copying it; stops once it is longer than `limit`."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if limit is not None and size > limit:
            break
        if copy is not None:
            copy(chunk)
    return FileEntry(size, digest.hexdigest())


def _compare(name: str, expected: FileEntry, found: FileEntry) -> None:
    if found.size != expected.size:
        message = f"the file {name!r} has {found.size} bytes where the manifest says {expected.size}"
        raise ArtifactError("E705", message, node=name)
    if found.sha256 != expected.sha256:
        raise ArtifactError("E705", f"the file {name!r} differs from what was compiled (SHA-256)", node=name)


def _unpack(source: Path, folder: Path) -> Manifest:
    """Extract exactly the files that the manifest lists, checking them on the way."""
    try:
        with zipfile.ZipFile(source) as archive:
            if MANIFEST_NAME not in archive.namelist():
                raise ArtifactError("E701", f"{source} holds no {MANIFEST_NAME}")
            with archive.open(MANIFEST_NAME) as stream:
                manifest = from_json(stream.read(MANIFEST_LIMIT + 1))
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(set(names)) < len(names):
                raise ArtifactError("E702", f"{source} holds two files of one name")
            for name, entry in manifest.files.items():
                if name not in names:
                    raise ArtifactError("E704", f"the zip lacks the file {name!r}", node=name)
                place = folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                # A zip can claim a small size and unpack to a large one: reading stops past the manifest's size.
                with archive.open(name) as stream, place.open("xb") as copy:
                    _compare(name, entry, _measure(stream, copy.write, limit=entry.size))
            return manifest
    except ArtifactError:
        raise
    except Exception as error:  # a damaged zip makes zipfile raise nearly anything
        raise ArtifactError("E705", f"{source} cannot be unpacked: {error}") from error


def _pack(folder: Path, names: list[str], target: Path) -> None:
    """A zip whose bytes depend on the content alone: fixed order, dates and modes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with (folder / name).open("rb") as source, archive.open(entry, "w", force_zip64=True) as copy:
                shutil.copyfileobj(source, copy, CHUNK)
    _sync(target)


def _write(path: Path, content: Content, entry: FileEntry | None = None) -> FileEntry:
    """Write a file; its size and digest, which are as given or measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as target:
        if isinstance(content, bytes):
            target.write(content)
            entry = entry or FileEntry(len(content), hashlib.sha256(content).hexdigest())
        else:
            with content.open("rb") as source:
                if entry is None:
                    entry = _measure(source, target.write)
                else:
                    shutil.copyfileobj(source, target, CHUNK)
        target.flush()
        os.fsync(target.fileno())
    return entry


def check_output(target: Path) -> None:
    """Refuse a path that holds something that is no artifact. Raises ArtifactError E714."""
    if target.suffix == ".zip":
        replaceable = not target.exists() or (target.is_file() and _is_packed_artifact(target))
    else:
        replaceable = not target.exists() or (
            target.is_dir() and (not any(target.iterdir()) or (target / MANIFEST_NAME).is_file())
        )
    if target.is_symlink() or not replaceable:
        raise ArtifactError(
            "E714", f"{target} exists and is not an artifact", hint="choose another path, or remove what is there"
        )


def _is_packed_artifact(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return MANIFEST_NAME in archive.namelist()


@contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    """A new directory on the same file system as `target`, with the usual permissions."""
    work = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _exchange(new: Path, target: Path) -> None:
    """Put `new` where `target` is in one step; what was there goes where `new` was."""
    _sync(new)
    if not target.exists():
        os.rename(new, target)
        return
    current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    if rename and rename(current_folder, os.fsencode(new), current_folder, os.fsencode(target), exchange) == 0:
        return
    # This system or file system cannot exchange: two renames, between which a crash leaves the old one set aside.
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.old")
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside)


def _sync(path: Path) -> None:
    """Make a file or directory entry durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
