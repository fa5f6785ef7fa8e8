"""The cache of compiled kernels: whole, within its limit, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espalier.backends import cache
from espalier.backends.cache import Cache, Unsafe
from espalier.errors import InputError

KEY, OTHER = "a" * 64, "b" * 64


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_put_is_found_by_the_same_and_other_processes(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "kernels"
    with Cache(folder) as kept:
        assert kept.get(KEY) is None
        kept.put(KEY, b"code")
        assert kept.get(KEY) == b"code" and kept.get(OTHER) is None
        kept.put(KEY, b"")
        assert kept.get(KEY) == b""
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / KEY).stat().st_mode & 0o777 == 0o600
    assert entries(folder) == {KEY}
    with Cache(folder) as again:
        assert again.get(KEY) == b""


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "longer", "swapped", "folder", "link", "pipe"])
def test_a_damaged_entry_is_none_and_is_replaced(tmp_path: Path, damage: str) -> None:
    with Cache(tmp_path / "kernels") as kept:
        kept.put(KEY, b"code" * 100)
        kept.put(OTHER, b"other")
        path = kept_path = tmp_path / "kernels" / KEY
        content = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage == "link":
            (tmp_path / "elsewhere").write_bytes(content)
            path.symlink_to(tmp_path / "elsewhere")
        elif damage == "pipe":
            os.mkfifo(path, 0o600)
        else:
            changed = {
                "bit": content[:200] + bytes([content[200] ^ 1]) + content[201:],
                "cut": content[:200], "empty": b"", "longer": content + b"\0",
                "swapped": (tmp_path / "kernels" / OTHER).read_bytes(),
            }  # fmt: skip
            path.write_bytes(changed[damage])
            path.chmod(0o600)
        assert kept.get(KEY) is None
        kept.put(KEY, b"new")
        assert kept.get(KEY) == (None if damage == "folder" else b"new")
        assert damage == "folder" or not kept_path.is_symlink()
    assert not [name for name in entries(tmp_path / "kernels") if name.endswith(".tmp")]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "kernels"
    Cache(folder).close()
    folder.chmod(mode)
    with pytest.raises(Unsafe):
        Cache(folder)
    folder.chmod(0o755)  # others may read
    Cache(folder).close()


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(tmp_path / "kernels").close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Unsafe):
        Cache(tmp_path / "kernels")


def test_an_entry_that_others_may_write_to_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cache(tmp_path / "kernels") as kept:
        kept.put(KEY, b"code")
        (tmp_path / "kernels" / KEY).chmod(0o620)
        assert kept.get(KEY) is None
        (tmp_path / "kernels" / KEY).chmod(0o600)
        assert kept.get(KEY) == b"code"
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert kept.get(KEY) is None


def test_what_was_checked_is_what_is_used(tmp_path: Path) -> None:
    """Another folder that is put where the cache was is not looked at."""
    with Cache(tmp_path / "kernels") as kept:
        kept.put(KEY, b"code")
        (tmp_path / "kernels").rename(tmp_path / "moved")
        (tmp_path / "kernels").mkdir(mode=0o777)
        (tmp_path / "kernels" / OTHER).write_bytes((tmp_path / "moved" / KEY).read_bytes())
        assert kept.get(KEY) == b"code" and kept.get(OTHER) is None
        kept.put(OTHER, b"other")
    assert entries(tmp_path / "moved") == {KEY, OTHER}


def test_the_entries_that_nobody_used_for_longest_go_first(tmp_path: Path) -> None:
    folder, keys = tmp_path / "kernels", [f"{k:064x}" for k in range(12)]
    with Cache(folder, limit=10_000) as kept:
        for age, key in enumerate(keys[:9]):
            kept.put(key, bytes(1000))
            os.utime(folder / key, (1e9 + age, 1e9 + age))
        (folder / "mine.txt").write_bytes(bytes(50_000))
    assert len(entries(folder)) == 10  # all fit, and what is no entry is not counted
    with Cache(folder, limit=10_000) as kept:
        assert kept.get(keys[0]) is not None  # used now
        for key in keys[9:]:
            kept.put(key, bytes(1000))
    left = entries(folder)
    assert left == {"mine.txt", keys[0], *keys[5:]}
    assert sum((folder / key).stat().st_size for key in left - {"mine.txt"}) <= 0.9 * 10_000


def test_what_a_killed_process_left_goes_after_a_while(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    with Cache(folder) as kept:
        for name, age in (("0" * 16, 10.0), ("1" * 16, 2 * cache.ABANDONED)):
            (folder / f"{name}.tmp").write_bytes(b"half")
            os.utime(folder / f"{name}.tmp", (time.time() - age,) * 2)
        kept.put(KEY, b"code")
    assert entries(folder) == {KEY, f"{'0' * 16}.tmp"}


def test_a_disk_that_takes_nothing_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with Cache(tmp_path / "kernels") as kept:
        monkeypatch.setattr(os, "replace", full)
        kept.put(KEY, b"code")
        assert kept.get(KEY) is None
    assert entries(tmp_path / "kernels") == set()


WORK = """
import hashlib, random, sys
from pathlib import Path
from espalier.backends.cache import Cache
draw = random.Random(int(sys.argv[2]))
found = 0
for _ in range(12):
    with Cache(Path(sys.argv[1]), limit=40_000) as kept:
        for _ in range(10):
            number = draw.randrange(30)
            key = hashlib.sha256(b"%d" % number).hexdigest()
            content = b"%d " % number * 1000
            known = kept.get(key)
            assert known in (None, content), key
            found += known is not None
            if known is None:
                kept.put(key, content)
print(found)
"""


def test_several_processes_use_it_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(tmp_path / "kernels"), str(seed)], env=environment, stdout=subprocess.PIPE
        )
        for seed in range(4)
    ]
    found = [int(run.communicate()[0]) for run in runs]
    assert [run.returncode for run in runs] == [0] * 4 and min(found) > 0
    left = entries(tmp_path / "kernels")
    assert all(cache.ENTRY.fullmatch(name) for name in left)
    assert sum((tmp_path / "kernels" / name).stat().st_size for name in left) <= 60_000  # two may add at once


def test_the_environment_says_which_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = cache.opened()
    assert kept is not None and entries(tmp_path) == {"named"}
    kept.close()
    monkeypatch.setenv(cache.VARIABLE, "off")
    assert cache.opened() is None
    monkeypatch.delenv(cache.VARIABLE)
    kept = cache.opened()
    assert kept is not None and (tmp_path / "cache" / "espalier" / "kernels").is_dir()
    kept.close()


def test_a_folder_that_was_named_must_be_usable_and_the_usual_one_need_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, words in (("file", "be used"), ("file/below", "be used"), ("open", "others than you may write")):
        monkeypatch.setenv(cache.VARIABLE, str(tmp_path / name))
        with pytest.raises(InputError, match=words) as caught:
            cache.opened()
        assert caught.value.code == "E236" and "off" in str(caught.value.hint)
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache.opened() is None
    (tmp_path / "espalier").mkdir()
    (tmp_path / "espalier" / "kernels").mkdir()
    (tmp_path / "espalier" / "kernels").chmod(0o770)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.opened() is None
