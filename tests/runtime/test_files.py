from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.errors import ArtifactError
from espalier.runtime import files as files_module
from espalier.runtime.files import ArtifactFiles, write_artifact
from espalier.runtime.manifest import DeviceSpec, Manifest, artifact_hash, to_json

EMPTY = Manifest("onnx", (), (), DeviceSpec("cpu"), {})
FILES: dict[str, bytes | Path] = {"model.bin": b"model" * 1000, "deep/weights.bin": b"weights"}


def write(path: Path, **changes: bytes) -> Manifest:
    return write_artifact(path, EMPTY, FILES | changes)


def refused(path: Path) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        ArtifactFiles(path)
    return caught.value


@pytest.fixture(params=["network", "network.zip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_what_is_written_is_read(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "from.bin"
    copy.write_bytes(b"copied")
    manifest = write_artifact(place, EMPTY, {**FILES, "copy.bin": copy})
    read = ArtifactFiles(place)
    assert read.manifest == manifest
    assert {name: read.path(name).read_bytes() for name in manifest.files} == {**FILES, "copy.bin": b"copied"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted({"from.bin", place.name})
    read.close()


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    hashes, contents = set(), set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        hashes.add(artifact_hash(write(tmp_path / name / "network.zip")))
        contents.add((tmp_path / name / "network.zip").read_bytes())
        time.sleep(0.01)
    assert len(hashes) == len(contents) == 1


def test_an_artifact_replaces_an_artifact(place: Path) -> None:
    write(place)
    manifest = write(place, **{"model.bin": b"new"})
    read = ArtifactFiles(place)
    assert read.manifest == manifest and read.path("model.bin").read_bytes() == b"new"
    assert [entry.name for entry in place.parent.iterdir()] == [place.name]
    read.close()


def test_replacing_works_where_the_system_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoExchange:
        def __init__(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr(files_module.ctypes, "CDLL", NoExchange)
    write(tmp_path / "network")
    manifest = write(tmp_path / "network", **{"model.bin": b"new"})
    assert ArtifactFiles(tmp_path / "network").manifest == manifest
    assert [entry.name for entry in tmp_path.iterdir()] == ["network"]


@pytest.mark.parametrize("name", ["folder", "file", "file.zip", "link"])
def test_what_is_no_artifact_is_never_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    elif name == "link":
        write(tmp_path / "other")
        path.symlink_to("other")
    else:
        path.write_text("years of work")
    with pytest.raises(ArtifactError) as caught:
        write(path)
    assert caught.value.code == "E714"
    if name != "link":
        assert (path / "thesis.tex" if name == "folder" else path).read_text() == "years of work"


def test_a_failed_write_leaves_the_old_artifact_and_nothing_else(place: Path) -> None:
    old = write(place)
    with pytest.raises(ArtifactError, match="E714"):
        write_artifact(place, EMPTY, {**FILES, "x.bin": place.parent / "absent"})
    read = ArtifactFiles(place)
    assert read.manifest == old
    assert [entry.name for entry in place.parent.iterdir()] == [place.name]
    read.close()


def test_an_invalid_manifest_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="E706"):
        write_artifact(tmp_path / "network", EMPTY, {"../escape": b""})
    with pytest.raises((ArtifactError, ValueError)):
        write_artifact(tmp_path / "network", Manifest("onnx", (), (), DeviceSpec("cpu"), {"x": float("nan")}), {})
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "network"
    manifest = write(place, **{"model.bin": b"0123456789"})
    for name in manifest.files:
        path = place / name
        content = path.read_bytes()
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            error = refused(place)
            assert error.code == "E705" and error.node == name
        path.write_bytes(content)
    ArtifactFiles(place)


def _truncate(place: Path) -> None:
    (place / "model.bin").write_bytes(b"model")


def _extend(place: Path) -> None:
    with (place / "model.bin").open("ab") as stream:
        stream.write(b"!")


def _link(place: Path) -> None:
    (place.parent / "outside").write_bytes(FILES["model.bin"])  # type: ignore[arg-type]
    (place / "model.bin").unlink()
    (place / "model.bin").symlink_to("../outside")


def _link_folder(place: Path) -> None:
    (place / "deep").rename(place.parent / "elsewhere")
    (place / "deep").symlink_to("../elsewhere")


def _pipe(place: Path) -> None:
    (place / "model.bin").unlink()
    os.mkfifo(place / "model.bin")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_truncate, "E705"),
        (_extend, "E705"),
        (_link, "E706"),
        (_link_folder, "E706"),
        (_pipe, "E704"),
        (lambda place: (place / "model.bin").unlink(), "E704"),
        (lambda place: (place / "manifest.json").unlink(), "E701"),
        (lambda place: (place / "manifest.json").write_bytes(b"{"), "E702"),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage: Callable[[Path], None], code: str) -> None:
    place = tmp_path / "network"
    write(place)
    damage(place)
    assert refused(place).code == code


def test_other_paths_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent").code == "E701"
    (tmp_path / "note").write_text("no zip")
    assert refused(tmp_path / "note").code == "E701"
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "")
    assert refused(tmp_path / "other.zip").code == "E701"


def test_unlisted_files_are_not_given_out(place: Path) -> None:
    write(place)
    read = ArtifactFiles(place)
    with pytest.raises(ArtifactError, match="E710"):
        read.path("manifest.json")
    assert read.unlisted() == []
    read.close()


def repack(path: Path, manifest: Manifest, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", to_json(manifest))
        for name, data in content.items():
            archive.writestr(name, data)


def test_hostile_zips_are_refused_and_write_nothing_outside(tmp_path: Path) -> None:
    manifest = write_artifact(tmp_path / "good.zip", EMPTY, {"model.bin": b"model"})
    path = tmp_path / "bad.zip"
    for content, code in (
        ({}, "E704"),
        ({"model.bin": b"MODEL"}, "E705"),
        ({"model.bin": b"\0" * 200_000_000}, "E705"),
    ):
        repack(path, manifest, content)
        start = time.process_time()
        assert refused(path).code == code
        assert time.process_time() - start < 1
    # What the manifest does not list is never extracted, whatever it is called.
    repack(path, manifest, {"model.bin": b"model", "../../escape": b"x", "/tmp/espalier-escape": b"x"})
    read = ArtifactFiles(path)
    assert read.unlisted() == []
    read.close()
    data = bytearray((tmp_path / "good.zip").read_bytes())
    for position in range(0, len(data), 7):
        damaged = bytes(data[:position]) + bytes([data[position] ^ 0xFF]) + bytes(data[position + 1 :])
        path.write_bytes(damaged)
        try:
            opened = ArtifactFiles(path)
        except ArtifactError:
            continue
        assert opened.path("model.bin").read_bytes() == b"model"
        opened.close()


@pytest.mark.parametrize("name", ["network", "network.zip"])
def test_a_killed_write_leaves_the_old_or_the_new(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    program = (
        "import sys, itertools\n"
        "from espalier.runtime.files import write_artifact\n"
        "from espalier.runtime.manifest import *\n"
        "for k in itertools.count():\n"
        "    m = Manifest('onnx', (), (), DeviceSpec('cpu'), {'k': k})\n"
        "    write_artifact(sys.argv[1], m, {'model.bin': str(k).encode() * 50_000})\n"
        "    print(k, flush=True)\n"
    )
    for attempt in range(10):
        process = subprocess.Popen([sys.executable, "-c", program, str(place)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        read = ArtifactFiles(place)
        k = read.manifest.backend["k"]
        assert read.path("model.bin").read_bytes() == str(k).encode() * 50_000
        read.close()
