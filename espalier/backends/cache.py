"""Machine code that was made before, in a folder of the user's own.

Who may write to such a folder decides what code runs, so one that anybody else may write to is not used. An entry is
a file that is named by the digest of all that its content was made from; it holds a digest of itself, so that one that
is damaged, cut short or mixed up is no entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import time
from pathlib import Path
from types import TracebackType

from espalier.errors import InputError

VARIABLE = "ESPALIER_KERNELS"
"""Environment variable: the folder that is used instead of the default one, or `off`."""
OFF = "off"
LIMIT = 256 << 20
"""Bytes of all entries. Those whose last use is longest ago go first."""
KEPT = 0.9
"""Of the limit, what is left where something has to go, so that this is rare."""
ENTRY = re.compile(r"[0-9a-f]{64}")
UNFINISHED = re.compile(r"[0-9a-f]{16}\.tmp")
ABANDONED = 3600.0
"""Seconds after which whoever was writing a file is gone."""


class Unsafe(OSError):
    """A folder that others may write to."""


class Cache:
    """The folder. Several processes may use it at once: an entry is written whole, or not at all."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        """Open the folder; make it if it is not there.

        Raises OSError if it cannot be used; Unsafe, one of these, if others may write to it.
        """
        self.limit = limit
        self._added = 0
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        # All files are opened by this descriptor: what was checked is what is used, wherever the path leads later.
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not _own(os.fstat(self._folder)):
            self.close()
            raise Unsafe(f"others than you may write to {folder}")

    def get(self, key: str) -> bytes | None:
        """The content of an entry, which counts as a use of it; None if there is none."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(key, flags, dir_fd=self._folder), "rb") as stream:
                about = os.fstat(stream.fileno())
                if not stat.S_ISREG(about.st_mode) or not _own(about):
                    return None
                digest, content = stream.read(32), stream.read()
                if digest != _digest(key, content):
                    return None
                os.utime(stream.fileno())
                return content
        except OSError:
            return None

    def put(self, key: str, content: bytes) -> None:
        """Keep an entry, in place of an earlier one. Where that is impossible, as on a full disk, it is not kept."""
        name = f"{secrets.token_hex(8)}.tmp"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(name, flags, 0o600, dir_fd=self._folder), "wb") as stream:
                stream.write(_digest(key, content))
                stream.write(content)
            os.replace(name, key, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._added += 1
        except OSError:
            self._remove(name)

    def close(self) -> None:
        """Let go of the folder, in which the entries are within the limit then."""
        if self._folder >= 0:
            if self._added:
                self._trim()
            os.close(self._folder)
            self._folder = -1

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _trim(self) -> None:
        entries, now = [], time.time()
        with os.scandir(self._folder) as found:
            for each in found:
                try:
                    about = each.stat(follow_symlinks=False)
                except OSError:  # another process removed it
                    continue
                if ENTRY.fullmatch(each.name):
                    entries.append((about.st_mtime_ns, about.st_size, each.name))
                elif UNFINISHED.fullmatch(each.name) and now - about.st_mtime > ABANDONED:
                    self._remove(each.name)
        total = sum(size for _, size, _ in entries)
        if total <= self.limit:
            return
        for _, size, name in sorted(entries):
            if total <= KEPT * self.limit:
                break
            self._remove(name)
            total -= size

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):  # another process removed it, or it never was
            os.unlink(name, dir_fd=self._folder)


def opened() -> Cache | None:
    """The user's cache; None if it is turned off, or if its usual folder cannot be used.

    Raises InputError E236 if the folder that ESPALIER_KERNELS names cannot be used.
    """
    asked = os.environ.get(VARIABLE)
    if asked == OFF:
        return None
    try:
        if asked:
            return Cache(Path(asked))
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Cache(home / "espalier" / "kernels")
    except (OSError, RuntimeError) as error:  # nobody may have no home
        if not asked:
            return None
        reason = str(error) if isinstance(error, Unsafe) else f"it cannot be used: {getattr(error, 'strerror', error)}"
        raise InputError(
            "E236", f"compiled kernels cannot be kept in {asked}: {reason}",
            hint=f"Name a folder of your own in {VARIABLE} (chmod go-w), or set {VARIABLE}={OFF}.",
        ) from error  # fmt: skip


def _own(about: os.stat_result) -> bool:
    """Whether nobody but this user may write to it. Groups that access control lists name show in the group's bits."""
    return about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()
