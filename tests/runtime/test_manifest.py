from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import ArtifactError
from espalier.runtime.manifest import (
    FORMAT_VERSION,
    DeviceSpec,
    FileEntry,
    Manifest,
    PassRecord,
    TensorSpec,
    artifact_hash,
    from_json,
    to_json,
)

MANIFEST = Manifest(
    engine="onnx",
    inputs=(TensorSpec("x", "f32", ("N", 3)), TensorSpec('line\n"quote"', "bf16", None)),
    outputs=(TensorSpec("y", "i64", ()),),
    device=DeviceSpec("cpu", "x86_64", "Linux", ("avx2",)),
    backend={"model": "model.onnx"},
    passes=(PassRecord("fold", "BITEXACT", 3, {"nodes": [5, 2]}),),
    seeds={"compile": 7},
    versions={"espalier": "0.1.0"},
    evaluation={"accuracy": 0.97},
    files={"model.onnx": FileEntry(3, "a" * 64)},
)


def test_round_trip() -> None:
    text = to_json(MANIFEST)
    again = from_json(text)
    assert again.inputs == MANIFEST.inputs and again.passes[0].effect == {"nodes": [5, 2]}
    assert to_json(again) == text
    assert artifact_hash(again) == artifact_hash(MANIFEST)


def test_the_hash_sees_every_field() -> None:
    changes: dict[str, Any] = {
        "engine": "tvm",
        "inputs": MANIFEST.inputs[:1],
        "outputs": (),
        "device": DeviceSpec("gpu"),
        "backend": {},
        "passes": (),
        "source": {"sha256": "0"},
        "options": {"pipeline": "exact"},
        "seeds": {"compile": 8},
        "versions": {},
        "evaluation": {},
        "files": {"model.onnx": FileEntry(3, "b" * 64)},
    }
    hashes = {artifact_hash(replace(MANIFEST, **{name: value})) for name, value in changes.items()}
    assert len(hashes | {artifact_hash(MANIFEST)}) == len(changes) + 1


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_bytes_do_not_depend_on_the_hash_seed(seed: str) -> None:
    program = (
        "from espalier.runtime.manifest import *\n"
        "m = Manifest('onnx', (), (), DeviceSpec('cpu'), {k: 1 for k in {'b', 'a', 'd', 'c'}})\n"
        "print(artifact_hash(m))"
    )
    environment = os.environ | {"PYTHONHASHSEED": seed}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    expected = artifact_hash(Manifest("onnx", (), (), DeviceSpec("cpu"), {"a": 1, "b": 1, "c": 1, "d": 1}))
    assert run.stdout.strip() == expected


def changed(**entries: Any) -> bytes:
    """The manifest with other fields, and the SHA-256 that fits them."""
    content = json.loads(to_json(MANIFEST)) | entries
    del content["sha256"]
    return written(content)


def written(content: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(dump(content)).hexdigest()
    return dump({**content, "sha256": digest})


def dump(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=2) + "\n").encode()


BAD_NAMES = (
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a//b",
    "./a",
    ".",
    "",
    "a\\b",
    "C:x",
    "a\0b",
    "a\nb",
    "a/",
    "manifest.json",
)
SPEC = {"name": "x", "element": "f32", "shape": [1]}


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (b"", "E702", "not valid JSON"),
        (b"\xff\xfe\x00", "E702", "not valid JSON"),
        (b"[]", "E702", "not a JSON object"),
        (b"[" * 100_000, "E702", "not valid JSON"),
        (b'{"format": ' + b"9" * 10_000 + b"}", "E702", "not valid JSON"),
        (b'{"format": 1, "format": 1}', "E702", "twice"),
        (b'{"format": NaN}', "E702", "NaN"),
        (b'{"format": true}', "E702", "format version"),
        (b'{"format": 0}', "E702", "format version"),
        (changed(format=FORMAT_VERSION + 1, surprise=1), "E703", "this runtime reads"),
        (b'{"format": 1}', "E705", "SHA-256"),
        (written({"format": 1}), "E702", "lacks the field 'backend'"),
        (b'{"format": 1, "engine": 1e999}', "E705", "SHA-256"),
        (changed(extra=1), "E702", "unknown field 'extra'"),
        (changed(engine=3), "E702", "manifest.engine is int"),
        (changed(inputs={}), "E702", "manifest.inputs is dict"),
        (changed(inputs=[SPEC, SPEC]), "E702", "two inputs are called 'x'"),
        (changed(inputs=[SPEC | {"shape": [True]}]), "E702", "shape[0] is bool"),
        (changed(inputs=[SPEC | {"shape": [1.0]}]), "E702", "shape[0] is float"),
        (changed(inputs=[SPEC | {"shape": [-1]}]), "E702", "impossible extent -1"),
        (changed(inputs=[SPEC | {"shape": [2**63]}]), "E702", "impossible extent"),
        (changed(inputs=[SPEC | {"shape": [""]}]), "E702", "impossible extent"),
        (changed(seeds={"a": "b"}), "E702", "manifest.seeds.a is str"),
        (changed(files={"f": {"size": -1, "sha256": "a" * 64}}), "E702", "size or SHA-256"),
        (changed(files={"f": {"size": 1, "sha256": "A" * 64}}), "E702", "size or SHA-256"),
        (changed(files={"f": {"size": 1}}), "E702", "lacks the field 'sha256'"),
        *((changed(files={name: {"size": 1, "sha256": "a" * 64}}), "E706", "") for name in BAD_NAMES),
    ],
)  # fmt: skip
def test_broken_manifests_are_refused(text: bytes, code: str, words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        from_json(text)
    assert caught.value.code == code
    assert words in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(field=st.sampled_from(sorted(json.loads(to_json(MANIFEST)))), value=JSON)
def test_any_value_in_any_field_is_refused_cleanly_or_round_trips(field: str, value: Any) -> None:
    try:
        manifest = from_json(changed(**{field: value}))
    except ArtifactError as error:
        assert error.code in ("E702", "E703", "E705", "E706")
    else:
        assert from_json(to_json(manifest)) == manifest


def test_every_flipped_bit_is_refused() -> None:
    text = to_json(MANIFEST)
    for position in range(len(text)):
        for bit in range(8):
            damaged = bytearray(text)
            damaged[position] ^= 1 << bit
            with pytest.raises(ArtifactError) as caught:
                from_json(bytes(damaged))
            assert caught.value.code in ("E702", "E703", "E705")


@given(data=st.binary(max_size=200), position=st.integers(0, 10_000))
def test_damaged_text_is_refused_cleanly(data: bytes, position: int) -> None:
    text = to_json(MANIFEST)
    start = position % len(text)
    damaged = text[:start] + data + text[start + len(data) :]
    if damaged == text:
        from_json(damaged)
        return
    with pytest.raises(ArtifactError) as caught:
        from_json(damaged)
    assert caught.value.code in ("E702", "E703", "E705")
