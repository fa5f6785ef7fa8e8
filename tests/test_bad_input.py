"""Broken and hostile models through the real command line: one clear error, or a correct artifact, no traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import espalier.runtime
from espalier.cli import main

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def tensor(name: str, shape: object = (2, 3), kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(kind: str, inputs: str = "x", outputs: str = "y", **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"the_{kind}", **attributes)


def model(*nodes: NodeProto, inputs=None, outputs=None, weights=(), opset: int = 17, **more: object) -> ModelProto:
    inputs, outputs = [tensor("x")] if inputs is None else inputs, [tensor("y")] if outputs is None else outputs
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **more)


def external(location: str, offset: object = 0, length: object = 24) -> ModelProto:
    weight = TensorProto(name="w", data_type=FLOAT, dims=(2, 3), data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=str(value))
    return model(node("Add", "x w"), weights=[weight])


def weight(shape: tuple[int, ...], raw: bytes, kind: int = FLOAT) -> ModelProto:
    broken = TensorProto(name="w", data_type=kind, dims=shape, raw_data=raw)
    return model(node("Add", "x w"), weights=[broken])


def recursive() -> ModelProto:
    function = helper.make_function("local", "f", ["a"], ["b"], [node("f", "a", "b")], [helper.make_opsetid("", 17)])
    function.node[0].domain = "local"
    call = node("f")
    call.domain = "local"
    made = model(call, functions=[function])
    made.opset_import.append(helper.make_opsetid("local", 1))
    return made


def deep() -> bytes:
    """Graphs in graphs, deeper than protobuf reads."""
    text = b""
    for _ in range(2000):  # a graph is field 6 of an attribute, that is field 5 of a node, and that field 1 of a graph
        for tag in (0x32, 0x2A, 0x0A):
            text = bytes([tag]) + _varint(len(text)) + text
    return b"\x08\x08\x3a" + _varint(len(text)) + text


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def renamed(old: bytes, new: bytes) -> bytes:
    """A good model with some bytes exchanged."""
    made = model(node("Relu", outputs="middle"), node("Neg", "middle")).SerializeToString()
    assert len(old) == len(new) and old in made
    return made.replace(old, new)


def through_a_link(folder: Path) -> ModelProto:
    outside = folder.parent / f"{folder.name}-outside.bin"
    outside.write_bytes(bytes(24))
    (folder / "link.bin").symlink_to(outside)
    return external("link.bin")


def truncated_data(folder: Path) -> ModelProto:
    (folder / "short.bin").write_bytes(bytes(20))
    return external("short.bin")


def duplicate_results(folder: Path) -> ModelProto:
    return model(node("Relu", outputs="y"), node("Neg", outputs="y"))


Content = ModelProto | bytes
REFUSED: dict[str, tuple[str, Callable[[Path], Content]]] = {
    "empty file": ("E103", lambda _: b""),
    "no protobuf": ("E103", lambda _: b"This is text, not a model.\n" * 20),
    "truncated": ("E103", lambda _: model(node("Relu")).SerializeToString()[:-7]),
    "nested deeper than can be read": ("E103", lambda _: deep()),
    "no outputs": ("E118", lambda _: model(node("Relu"), outputs=[])),
    "empty graph": ("E118", lambda _: model(inputs=[], outputs=[])),
    "wrong shapes": ("E110", lambda _: model(node("MatMul", "x x"))),
    "declared shape contradicts": ("E110", lambda _: model(node("Relu"), outputs=[tensor("y", (7, 3))])),
    "wrong element": ("E110", lambda _: model(node("Add", "x i"), inputs=[tensor("x"), tensor("i", kind=INT64)])),
    "missing operand": ("E110", lambda _: model(node("MatMul", "x"))),
    "missing external data": ("E104", lambda _: external("gone.bin")),
    "external data upwards": ("E105", lambda _: external("../secret.bin")),
    "external data absolute": ("E105", lambda _: external("/etc/passwd")),
    "external data by drive": ("E105", lambda _: external("C:\\secret.bin")),
    "external data through a link": ("E105", through_a_link),
    "external data truncated": ("E106", truncated_data),
    "external data before its file": ("E106", lambda f: (truncated_data(f), external("short.bin", offset=-8))[1]),
    "cycle": ("E108", lambda _: model(node("Add", "x b", "a"), node("Relu", "a", "b"), node("Neg", "b"))),
    "undefined input": ("E109", lambda _: model(node("Add", "x nothing"))),
    "undefined output": ("E109", lambda _: model(node("Relu", outputs="z"))),
    "name collision": ("E109", duplicate_results),
    "input listed twice": ("E109", lambda _: model(node("Relu"), inputs=[tensor("x"), tensor("x")])),
    "output listed twice": ("E109", lambda _: model(node("Relu"), outputs=[tensor("y"), tensor("y")])),
    "opset from the future": ("E107", lambda _: model(node("Relu"), opset=999)),
    "operator of no opset": ("E107", lambda _: model(node("LayerNormalization", "x x"), opset=13)),
    "missing attribute": ("E116", lambda _: model(node("Cast"))),
    "wrong attribute type": ("E116", lambda _: model(node("Flatten", axis="one"))),
    "unknown attribute": ("E116", lambda _: model(node("Relu", slope=1.0))),
    "recursive function": ("E119", lambda _: recursive()),
    "too few bytes": ("E111", lambda _: weight((2, 3), bytes(20))),
    "unknown element": ("E111", lambda _: weight((2, 3), bytes(24), kind=99)),
    "negative extent": ("E111", lambda _: weight((-2, 3), bytes(24))),
    "huge declared tensor": ("E111", lambda _: weight((1 << 31, 1 << 20), bytes(24))),
    "unaddressable tensor": ("E117", lambda _: weight((1 << 62, 1 << 62), bytes(24))),
    "name that is not UTF-8": ("E112", lambda _: renamed(b"middle", b"mid\xff\xfee")),
    "unknown operator of ONNX": ("E401", lambda _: model(node("Frobnicate"))),
}


@pytest.fixture
def compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Compile a path through the command line: exit code, printed JSON, what it said, and the output path."""

    def call(path: Path, *options: str) -> tuple[int, dict, str, Path]:
        output = tmp_path / "artifact"
        arguments = ["compile", str(path), "-o", str(output), "--backend", "onnx", "--json", *options]
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        printed = capsys.readouterr()
        return stop.value.code, json.loads(printed.out), printed.err, output

    return call


def check_refusal(found: tuple[int, dict, str, Path], code: str) -> None:
    exit_code, printed, said, output = found
    assert exit_code == 2, said
    assert printed["error"]["code"] == code, said
    assert said.startswith(f"{code}: ") and "Traceback" not in said and len(said) < 2000
    assert said.isprintable() or set(said) - set("\n") == {c for c in said if c.isprintable()}
    assert not output.exists()
    assert [path.name for path in output.parent.iterdir() if path.name.startswith((".artifact", "espalier"))] == []


@pytest.mark.parametrize("case", REFUSED)
def test_broken_models_are_refused(case: str, tmp_path: Path, compiled) -> None:
    code, build = REFUSED[case]
    path = tmp_path / "model.onnx"
    content = build(tmp_path)
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    check_refusal(compiled(path), code)


def test_a_folder_is_no_model(tmp_path: Path, compiled) -> None:
    (tmp_path / "model.onnx").mkdir()
    check_refusal(compiled(tmp_path / "model.onnx"), "E101")


def test_a_model_that_is_not_there(tmp_path: Path, compiled) -> None:
    check_refusal(compiled(tmp_path / "model.onnx"), "E101")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_model_that_may_not_be_read(tmp_path: Path, compiled) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    path.chmod(0)
    check_refusal(compiled(path), "E101")


@pytest.mark.parametrize("name", ["weights.pt", "model.pkl"])
def test_pickles_are_not_opened(name: str, tmp_path: Path, compiled) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    check_refusal(compiled(tmp_path / name), "E113")


def test_nothing_of_an_output_is_overwritten_that_is_no_artifact(tmp_path: Path, compiled) -> None:
    (tmp_path / "model.onnx").write_bytes(model(node("Relu")).SerializeToString())
    mine = tmp_path / "artifact"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    exit_code, printed, _, _ = compiled(tmp_path / "model.onnx")
    assert (exit_code, printed["error"]["code"]) == (2, "E714")
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_a_name_with_control_characters_does_not_reach_the_terminal(tmp_path: Path, compiled) -> None:
    hostile = helper.make_node("MatMul", ["x", "x"], ["y"], name="\x1b[2J\x07evil")
    (tmp_path / "model.onnx").write_bytes(model(hostile).SerializeToString())
    found = compiled(tmp_path / "model.onnx")
    check_refusal(found, "E110")
    assert "\x1b" not in found[2] and "evil" in found[2]


def holds(tmp_path: Path, compiled, proto: ModelProto, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Compile a model that is strange but sound, and run the artifact."""
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    exit_code, printed, said, output = compiled(tmp_path / "model.onnx")
    assert exit_code == 0, said
    assert printed["artifact"] == str(output)
    return espalier.runtime.load(output)(inputs)


def test_weights_that_are_not_numbers(tmp_path: Path, compiled) -> None:
    odd = np.array([np.nan, np.inf, -np.inf], np.float32)
    proto = model(node("Add", "x w"), weights=[numpy_helper.from_array(odd, "w")])
    found = holds(tmp_path, compiled, proto, x=np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found["y"], np.broadcast_to(odd, (2, 3)))


def test_extents_of_zero(tmp_path: Path, compiled) -> None:
    inputs, outputs = [tensor("x", (0, 3))], [tensor("y", (0, 3))]
    found = holds(tmp_path, compiled, model(node("Relu"), inputs=inputs, outputs=outputs), x=np.ones((0, 3), "f4"))
    assert found["y"].shape == (0, 3)


def test_a_sum_over_nothing(tmp_path: Path, compiled) -> None:
    w = numpy_helper.from_array(np.ones((0, 4), np.float32), "w")
    proto = model(node("MatMul", "x w"), inputs=[tensor("x", (2, 0))], outputs=[tensor("y", (2, 4))], weights=[w])
    found = holds(tmp_path, compiled, proto, x=np.ones((2, 0), np.float32))
    np.testing.assert_array_equal(found["y"], np.zeros((2, 4), np.float32))


def test_a_graph_without_nodes(tmp_path: Path, compiled) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = holds(tmp_path, compiled, model(outputs=[tensor("x")]), x=x)
    np.testing.assert_array_equal(found["x"], x)


def test_names_of_any_characters(tmp_path: Path, compiled) -> None:
    names = 'a"b\\c\n', "名前/../x;rm -rf {0}"
    proto = model(
        helper.make_node("Relu", [names[0]], ["\t"]),
        helper.make_node("Neg", ["\t"], [names[1]]),
        inputs=[tensor(names[0])],
        outputs=[tensor(names[1])],
    )
    x = np.ones((2, 3), np.float32)
    found = holds(tmp_path, compiled, proto, **{names[0]: x})
    np.testing.assert_array_equal(found[names[1]], -x)
