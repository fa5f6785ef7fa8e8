"""Data on the command line: what is run, and what is compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.artifact import network
from tests.cli.commands import start


def window(kernel: int, length: int | str = "t") -> onnx.ModelProto:
    """A convolution along a length that varies, without padding."""
    weight = numpy_helper.from_array(np.ones((2, 1, kernel), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", c, d])
            for n, c, d in (("x", 1, length), ("y", 2, None)))  # fmt: skip
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_run_writes_what_the_model_computes(call, artifact: str) -> None:
    call("run artifact --inputs inputs.npz -o a.npz --threads 1")
    call("run model.onnx --inputs inputs.npz -o b.npz")
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert a.files == b.files == ["scores"]
        assert a["scores"].shape == (4, 10)
        np.testing.assert_allclose(a["scores"], b["scores"], atol=1e-4 * np.abs(b["scores"]).max())


def test_more_samples_than_a_fixed_batch_are_run_one_batch_at_a_time(call) -> None:
    model = onnx.load("model.onnx")
    call("run model.onnx --inputs inputs.npz -o whole.npz")
    for batch in (1, 2):
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        onnx.save(model, "fixed.onnx")
        assert call("compile fixed.onnx -o fixed --backend onnx")[0] == 0
        for which in ("fixed.onnx", "fixed"):
            assert call(f"run {which} --inputs inputs.npz -o parts.npz")[0] == 0
            with np.load("whole.npz") as whole, np.load("parts.npz") as parts:
                np.testing.assert_allclose(parts["scores"], whole["scores"], rtol=1e-4, atol=1e-5)
    with np.load("inputs.npz") as inputs:
        np.savez("odd.npz", image=inputs["image"][:3])
    code, _, said = call("run fixed --inputs odd.npz -o out.npz")
    assert (code, said[:6]) == (2, "E206: ") and "3 samples" in said and not Path("out.npz").exists()


def test_arrays_may_have_any_name(call) -> None:
    inputs, outputs = ([helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2])] for n in ("self", "file"))
    graph = helper.make_graph([helper.make_node("Neg", ["self"], ["file"])], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "neg.onnx")
    np.savez("x.npz", input_0=np.ones(2, np.float32))
    assert call("run neg.onnx --inputs x.npz -o y.npz")[0] == 0
    with np.load("y.npz") as found:
        np.testing.assert_array_equal(found["file"], [-1, -1])


def test_models_that_differ_are_told_apart(call, artifact: str) -> None:
    onnx.save(network(seed=1), "other.onnx")
    code, text, said = call("verify other.onnx artifact --json")
    assert code == 4 and json.loads(text)["agree"] is False
    assert said.startswith("E605: ") and "'scores'" in said
    assert call("verify other.onnx artifact --tolerance 1e9")[0] == 0


def test_data_in_a_folder_and_from_a_function(call) -> None:
    Path("many").mkdir()
    for k in range(3):
        Path(f"many/{k}.npz").write_bytes(Path("labelled.npz").read_bytes())
    line = "compile model.onnx -o out --backend onnx --json --data"
    assert json.loads(call(f"{line} many")[1])["score"]["samples"] == 12
    Path("my_batches.py").write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    with np.load('labelled.npz') as file:\n"
        "        yield {'image': file['image']}, file['labels']\n"
        "def broken():\n"
        "    yield 1 / 0\n"
    )
    score = json.loads(call(f"{line} my_batches:batches")[1])["score"]
    assert (score["samples"], score["metric"]) == (4, "top-1")
    code, text, _ = call(f"{line} my_batches:broken")
    assert code == 2 and "ZeroDivisionError" in json.loads(text)["error"]["message"]


def test_integers_that_would_wrap_around_are_refused(call) -> None:
    inputs, outputs = ([helper.make_tensor_value_info(n, onnx.TensorProto.INT8, [2])] for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "neg.onnx")
    for array, code in (([1, 2], 0), ([1, 200], 2), ([1.0, 2.0], 2)):
        np.savez("x.npz", x=np.array(array))
        assert call("run neg.onnx --inputs x.npz -o y.npz")[0] == code


def test_a_window_longer_than_the_smallest_size_is_compiled_and_compared(call) -> None:
    onnx.save(window(7), "window.onnx")
    done = json.loads(call("compile window.onnx -o window --backend onnx --json")[1])
    assert done["agreement"].startswith("agrees")
    code, text, _ = call("verify window.onnx window --json")
    assert code == 0 and json.loads(text)["outputs"][0]["elements"] > 0
    assert call("bench window window.onnx --rounds 1")[0] == 0


def test_two_models_without_outputs_to_compare_do_not_agree(call) -> None:
    onnx.save(window(7), "window.onnx")
    np.savez("short.npz", x=np.ones((1, 1, 6), np.float32))
    code, text, said = call("verify window.onnx window.onnx --data short.npz --json")
    assert (code, json.loads(text)["error"]["code"]) == (2, "E206") and "empty" in said


def test_data_of_nan_are_compared(call) -> None:
    onnx.save(window(2), "window.onnx")
    np.savez("nan.npz", x=np.array([[[1, 2, np.nan, 4, np.inf, 6]]], np.float32))
    assert call("verify window.onnx window.onnx --data nan.npz")[0] == 0
    assert call("run window.onnx --inputs nan.npz -o y.npz")[0] == 0
    with np.load("y.npz") as found:
        assert np.isnan(found["y"][0, 0, 1]) and found["y"][0, 0, 0] == 3
    assert call("compile window.onnx -o out --backend onnx --data nan.npz")[0] == 2


def test_an_output_that_takes_no_more_is_named(call) -> None:
    with open("/dev/full", "w") as full:
        made = start("compile", "model.onnx", "-o", "out", "--backend", "onnx", stdout=full)
        _, said = made.communicate(timeout=120)
    assert made.returncode == 2 and said.startswith("E209: standard output cannot be written: No space"), said
    assert Path("out/manifest.json").is_file() and "Exception" not in said


def test_only_arrays_are_replaced(call) -> None:
    Path("notes.txt").write_text("mine")
    Path("folder").mkdir()
    for target in ("notes.txt", "folder", "model.onnx"):
        code, _, said = call(f"run model.onnx --inputs inputs.npz -o {target}")
        assert (code, said[:6]) == (2, "E209: ") and f".{target}." not in said
    assert Path("notes.txt").read_text() == "mine" and onnx.load("model.onnx")
    for _ in range(2):
        assert call("run model.onnx --inputs inputs.npz -o y.npz")[0] == 0


def test_weights_of_nothing_but_nan_do_not_agree_with_numbers(call) -> None:
    model = network(seed=0)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), "b"))
    onnx.save(model, "nan.onnx")
    assert call("verify model.onnx nan.onnx")[0] == 4
    assert call("verify nan.onnx nan.onnx")[0] == 0
