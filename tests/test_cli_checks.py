"""What `compile` and `verify` say of models that nothing can be compared on, or that ties move."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from espalier.cli import main
from espalier.errors import InputError
from espalier.ir import Builder, Graph
from espalier.ir.types import parse as type_of
from espalier.passes import PassManager
from espalier.runners import compare
from espalier.train.data import Data


def save(path: str, nodes: list[onnx.NodeProto], outputs: dict[str, int], **numbers: object) -> None:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info(name, element, ["n", None]) for name, element in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def best_of(path: str, first: list[onnx.NodeProto], largest: int = 1) -> None:
    """The place of the largest of three numbers in a row, where the first and the second are x · 0.3 in two ways."""
    nodes = [
        *first,
        helper.make_node("Mul", ["x", "third"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["scores"], axis=1),
        helper.make_node("TopK", ["scores", "one"], ["value", "place"], axis=1, largest=largest),
    ]
    numbers = {"tenth": np.float32(0.1), "three": np.float32(3), "third": np.float32(0.3), "one": np.array([1])}
    save(path, nodes, {"value": TensorProto.FLOAT, "place": TensorProto.INT64}, **numbers)


def test_ties_are_no_disagreement(run) -> None:
    stepwise = [helper.make_node("Mul", ["x", "tenth"], ["t"]), helper.make_node("Mul", ["t", "three"], ["a"])]
    at_once = [helper.make_node("Identity", ["b0"], ["a"]), helper.make_node("Mul", ["x", "third"], ["b0"])][::-1]
    best_of("stepwise.onnx", stepwise)
    best_of("at_once.onnx", at_once)
    np.savez("x.npz", x=np.linspace(0.1, 7, 200, dtype=np.float32).reshape(-1, 1))
    code, said, _ = run("verify stepwise.onnx at_once.onnx --data x.npz --json")
    value, place = json.loads(said)["outputs"]
    assert code == 0 and value["difference"] < 1e-6 and place["difference"] > place["limit"] / 4 > 0
    assert run("verify stepwise.onnx at_once.onnx --data x.npz --tolerance 0")[0] == 4


def test_another_choice_is_one(run) -> None:
    rows = [helper.make_node("Add", ["x", "three"], ["a"])]
    best_of("largest.onnx", rows)
    best_of("smallest.onnx", rows, largest=0)
    np.savez("x.npz", x=np.linspace(0.1, 2, 20, dtype=np.float32).reshape(-1, 1))
    code, said, error = run("verify largest.onnx smallest.onnx --data x.npz")
    assert code == 4 and "place: off by" in said and "E605" in error


def test_outputs_of_other_shapes_are_told_in_words(run) -> None:
    save("row.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"y": TensorProto.FLOAT})
    save("twice.onnx", [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)], {"y": TensorProto.FLOAT})
    np.savez("x.npz", x=np.ones((3, 1), np.float32))
    code, said, _ = run("verify row.onnx twice.onnx --data x.npz")
    assert code == 4 and "y: float32[3, 1] against float32[3, 2]" in said
    code, said, _ = run("verify row.onnx twice.onnx --data x.npz --json")
    (row,) = json.loads(said, parse_constant=pytest.fail)["outputs"]
    assert code == 4 and row["difference"] is None and not row["agrees"]


@pytest.mark.parametrize(
    "line",
    [
        "compile m.onnx -o a --backend onnx --data none.npz", "compile m.onnx -o a --data none.npz --max-drop 1",
        "verify m.onnx m.onnx --data none.npz", "bench m.onnx --data none.npz --rounds 1",
    ],
)  # fmt: skip
def test_data_without_a_sample_are_refused(run, line: str) -> None:
    save("m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"y": TensorProto.FLOAT})
    np.savez("none.npz", x=np.ones((0, 1), np.float32))
    code, _, error = run(line)
    assert code == 2 and "E206" in error and "'none.npz' holds no data" in error and not Path("a").exists()


def test_no_samples_are_all_that_some_models_take() -> None:
    graph = Graph()
    builder = Builder(graph)
    graph.set_outputs([builder.relu(builder.input(type_of("f32[0, 3]"), "x"))], ["y"])
    assert len(list(Data({"x": np.ones((0, 3), np.float32)}, tuple(graph.inputs)))) == 1


def test_seeds_are_not_negative(run) -> None:
    save("m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"y": TensorProto.FLOAT})
    for line in ("compile m.onnx -o a --backend onnx --seed -1", "verify m.onnx m.onnx --seed -1"):
        code, _, error = run(line)
        assert code == 2 and "E201: the seed must be at least 0, not -1" in error and not Path("a").exists()
    with pytest.raises(InputError, match="the seed must be at least 0"):
        PassManager([], seed=-1).run(Graph())
    with pytest.raises(InputError, match="the seed must be at least 0"):
        compare(Path("m.onnx"), Path("m.onnx"), seed=-2)


def test_folders_and_artifacts_are_told_from_models(run):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    save("m.onnx", nodes, {"y": TensorProto.FLOAT})
    Path("folder").mkdir()
    assert run("compile m.onnx -o made --backend onnx")[0] == 0
    code, _, said = run("inspect folder")
    assert code == 2 and "E101" in said and "is a folder" in said
    code, _, said = run("inspect made --text")
    assert code == 2 and "E202" in said and "its graph is gone" in said
    assert run("inspect made")[0] == 0
