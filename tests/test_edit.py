"""Models in, models out: growth that keeps the outputs, training on the command line, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import espalier
from espalier.analysis.coupling import couple
from espalier.backends.onnx import save
from espalier.cli import main
from espalier.errors import InputError, UnsupportedError, VerificationError
from espalier.ir import Builder, Graph, TensorType, constant_value, elements
from espalier.ir.dims import symbol
from espalier.ir.execute import execute
from espalier.passes.structure.widening import Widening
from tests.passes.structure.pruning import graph_of, images, net

Call = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A command line in a folder with a model and data: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    save(graph_of(net(), images()), "model.onnx")
    np.savez("inputs.npz", x=images(64).numpy())
    np.savez("labelled.npz", x=images(64).numpy(), labels=classes(images(64).numpy()))

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def classes(x: np.ndarray) -> np.ndarray:
    """Classes that can be learned: the signs of two channels' means."""
    means = x.mean((2, 3))
    return 2 * (means[:, 0] > 0) + (means[:, 1] > 0)


def extents(graph: Graph) -> dict[str, int]:
    return {unit.name: unit.extent for unit in couple(graph).removable()}


def outputs(path: str, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


# ---- grow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "--factor 1.5",
        "--to 9 --uneven 0.5",
        "--count 2",
        "--factor 2 --only first* --count 0 --kind residual",
        "--after relu --kernel 5",
    ],
)
def test_grown_models_compute_the_same(call: Call, options: str) -> None:
    code, text, said = call(f"grow model.onnx {options} -o grown.onnx --json")
    assert (code, said) == (0, ""), said
    found = json.loads(text)
    assert found["agreement"].startswith("agrees (largest difference")
    assert found["parameters"]["after"] > found["parameters"]["before"]
    before, after = onnx.load("model.onnx"), onnx.load("grown.onnx")
    onnx.checker.check_model(after, full_check=True)
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    x = images(5, seed=7).numpy()
    wanted = outputs("model.onnx", x)
    assert np.abs(outputs("grown.onnx", x) - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_what_grew_and_what_did_not_is_said(call: Call) -> None:
    code, text, _ = call("grow model.onnx --factor 2 --ignore second* --count 1 -o grown.onnx --json")
    found = json.loads(text)
    assert code == 0 and found["passes"] == ["widen:ignore=second*", "deepen:count=1,optional=true"]
    (row,) = found["widened"]
    assert (row["unit"], row["extent"], row["to"], row["verdict"]) == ("first.weight.0", 6, 12, "exact")
    assert found["kept"] == [{"unit": "second.weight.0", "extent": 5, "why": "left out by only or ignore"}]
    assert (found["frozen"][-1]["unit"], found["frozen"][-1]["extent"]) == ("head.weight.0", 4)
    assert "an output of the model" in found["frozen"][-1]["why"]
    (layer,) = found["deepened"]
    assert layer["kind"] == "identity layer" and len(layer["weights"]) > 1
    grown = espalier.load("grown.onnx")
    assert extents(grown)["first.weight.0"] == 12
    assert set(layer["weights"]) <= {value.name for value in grown.constants()}
    text = call("grow model.onnx --factor 2 --ignore second* --count 1 -o grown.onnx")[1]
    assert "widened first.weight.0: 6 → 12, in 7 weights\n" in text and "deepened after " in text
    assert "kept second.weight.0: left out" in text and "frozen head.weight.0: it is an output" in text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("", "E201: grow wants factor or to"),
        ("--factor 2 --to 9", "E201: grow wants one of factor and to"),
        ("--count 1 --uneven 0.5", "E201: uneven has no meaning without factor or to"),
        ("--factor 2 --kernel 3", "E201: kernel has no meaning without count or after"),
        ("--factor 1", "E201"),
        ("--to 3", "E201"),
        ("--to 6 --only first*", "E221: no unit of the model can be widened: kept first.weight.0: it has this extent"),
        ("--factor 2 --only head.weight.0", "E221: head.weight.0 is frozen"),
        ("--factor 2 --only head*", "E221: no unit of the model can be widened"),
        ("--factor 2 --only nothing", "E202"),
        ("--factor 1e5 --only *.weight.0", "E201: the wider model would have "),
        ("--after nothing", "E202"),
        ("--count 1 --kernel 2", "E201"),
        ("--count 1 --kind sideways", "E201"),
        ("--factor 2 --max-drop 1", "E212"),
        ("--factor 2 --epochs 1", "E212"),
        ("--factor 2 --epochs 1 --steps 3 --data inputs.npz", "E201"),
    ],
)
def test_growth_that_makes_no_sense_is_refused(call: Call, options: str, error: str) -> None:
    code, text, said = call(f"grow model.onnx {options} -o out.onnx --json")
    assert code == 2 and said.startswith(error), said
    assert json.loads(text)["error"]["code"] == error[:4] and not Path("out.onnx").exists()


@pytest.mark.parametrize("options", ["--factor 2", "--count 1"])
def test_a_model_that_holds_nan_is_not_grown(call: Call, options: str) -> None:
    graph = graph_of(net(), images())
    weight = next(value for value in graph.constants() if value.name == "second.weight")
    array = np.array(weight.array)
    array[1, 2, 0, 1] = np.nan
    graph.replace_constant(weight, constant_value(array, name=weight.name))
    save(graph, "nan.onnx")
    code, _, said = call(f"grow nan.onnx {options} -o out.onnx")
    assert code == 2 and said.startswith("E223: the weight 'second.weight'") and not Path("out.onnx").exists()


def test_what_options_could_not_do_is_said(call: Call) -> None:
    _, text, _ = call("grow model.onnx --count 50 -o out.onnx")
    assert re.search(r"^\d layers, not 50: there are no more places$", text, re.MULTILINE)
    _, text, _ = call("prune model.onnx --ratio 0.5 --round-to 64 -o out.onnx")
    assert "none of its indices were to go in multiples of 64" in text
    code, _, said = call("prune model.onnx --ratio 0.5 --rounds 0 -o out.onnx")
    assert code == 2 and said.startswith("E201: rounds=0 must be")


def test_an_original_of_other_inputs_is_refused(call: Call) -> None:
    other = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten())
    save(espalier.load(other, example_inputs=(images()[:, :1],)), "other.onnx")
    code, _, said = call("recover model.onnx --original other.onnx --data inputs.npz --steps 1 -o out.onnx")
    assert code == 2 and said.startswith("E226: input 'x' is f32["), said


def test_growth_that_changes_the_outputs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By far less than what counts as agreement elsewhere: shares of copies that add up to 1.00001."""
    factor = Widening._factor
    monkeypatch.setattr(Widening, "_factor", lambda *arguments: factor(*arguments) * 1.00001)
    with pytest.raises(VerificationError, match="E602"):
        espalier.grow(graph_of(net(), images()), factor=2, output=tmp_path / "grown.onnx")
    assert not (tmp_path / "grown.onnx").exists()


def test_growth_in_python_then_training() -> None:
    x = images(32)
    named = {"x": x.numpy(), "labels": classes(x.numpy())}
    module = net()
    grown = espalier.grow(module, factor=2, only=["first*"], uneven=0.5, count=1, example_inputs=(x,))
    (y,) = execute(grown.graph, [x.numpy()])
    with torch.no_grad():
        np.testing.assert_allclose(y, module(x).numpy(), rtol=0, atol=1e-6 * float(module(x).abs().max()))
    trained = espalier.grow(
        graph_of(module, x), factor=2, data=named, recovery={"steps": 30, "batch_size": 32, "learning_rate": 0.02}
    )
    assert trained.recovery == {"epochs": None, "steps": 30, "by": "labels"}
    assert trained.score is not None and trained.score.compiled > trained.score.original
    noisy = espalier.grow(graph_of(module, x), factor=2, noise=0.1, data=named)
    assert noisy.to_json()["measured"]["sqnr"] < 60


# ---- training on the command line ----------------------------------------------------------------------------


def test_pruning_and_recovery_by_labels_or_by_the_original(call: Call) -> None:
    line = "prune model.onnx --ratio 0.4 --seed 1 --threads 1 --batch-size 16 -o small.onnx --json"
    lost = json.loads(call(f"{line.replace('--threads 1 --batch-size 16', '')} --data labelled.npz")[1])
    assert lost["recovery"] is None
    code, text, said = call(f"{line} --data labelled.npz --steps 60 --learning-rate 0.02")
    assert (code, said) == (0, ""), said
    by_labels = json.loads(text)
    assert by_labels["recovery"] == {"epochs": None, "steps": 60, "by": "labels"}
    assert by_labels["score"]["compiled"] > lost["score"]["compiled"]
    onnx.checker.check_model(onnx.load("small.onnx"), full_check=True)
    agreement = json.loads(call("prune model.onnx --ratio 0.4 --seed 1 --data inputs.npz -o small.onnx --json")[1])
    line += " --learning-rate 0.02"
    code, text, _ = call(f"{line} --data inputs.npz --train-data labelled.npz --no-labels --epochs 12")
    found = json.loads(text)
    assert found["recovery"] == {"epochs": 12.0, "steps": None, "by": "imitating the original"}
    assert found["score"]["metric"] == "agreement"
    assert found["score"]["compiled"] > agreement["score"]["compiled"]
    text = call(f"{line.replace('--json', '')} --data labelled.npz --steps 1 --imitate 0.5 --metric f1")[1]
    assert "trained by labels and imitating the original, steps: 1\nf1: " in text
    text = call(f"{line.replace('--json', '')} --data labelled.npz --steps 4 --rounds 2 --sparsity 0.5")[1]
    assert re.search(r"trained by labels, steps: 4, rounds: 2, sparsity: 0.5, zeros in weights: (49|50)\.\d%\n", text)


def test_data_and_checkpoints_that_cannot_be_are_named(call: Call) -> None:
    line = "prune model.onnx --ratio 0.4 --steps 1 -o small.onnx"
    with np.load("inputs.npz") as held:
        np.savez("named.npz", **held, labels=np.array(["cat"] * 64))
    code, _, said = call(f"{line} --data named.npz")
    assert code == 2 and said.startswith("E206: the labels are no numbers")
    Path("file").write_text("")
    code, _, said = call(f"{line} --data inputs.npz --checkpoint file")
    assert code == 2 and said.startswith("E209: 'file' is a file")
    code, _, said = call(f"{line} --data inputs.npz --temperature 0")
    assert code == 2 and said.startswith("E201: temperature is above 0")
    assert not Path("small.onnx").exists()


def test_the_gate_comes_after_the_training(call: Call) -> None:
    line = "prune model.onnx --ratio 0.4 --data inputs.npz -o small.onnx"
    lost = json.loads(call(f"{line} --json")[1])["score"]["drop"]
    Path("small.onnx").unlink()
    line += f" --max-drop {lost / 2}"
    assert lost > 0 and call(line)[0] == 4 and not Path("small.onnx").exists()
    line += " --steps 60 --learning-rate 0.02 --batch-size 16 --threads 1"
    assert call(line)[0] == 0 and Path("small.onnx").exists()


def test_a_run_goes_on_from_its_checkpoint(call: Call) -> None:
    line = "prune model.onnx --ratio 0.4 --data labelled.npz --steps 8 --batch-size 16 --threads 1 --checkpoint kept"
    assert call(f"{line} -o a.onnx")[0] == 0
    assert call(f"{line} -o b.onnx")[0] == 0
    assert Path("kept/checkpoint.safetensors").exists()
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    code, _, said = call(f"{line} --learning-rate 0.5 -o c.onnx")
    assert code == 2 and said.startswith("E232: ") and not Path("c.onnx").exists()


def test_a_model_that_was_changed_elsewhere_recovers(call: Call) -> None:
    assert call("prune model.onnx --ratio 0.4 -o small.onnx")[0] == 0
    line = "recover small.onnx --steps 40 --batch-size 16 --learning-rate 0.02 --threads 1 -o back.onnx"
    code, text, said = call(f"{line} --original model.onnx --data inputs.npz --json")
    assert (code, said) == (0, ""), said
    found = json.loads(text)
    assert found["recovery"]["by"] == "imitating the original" and found["passes"] == []
    x = images(16, seed=3).numpy()
    wanted, before, after = (outputs(f"{name}.onnx", x) for name in ("model", "small", "back"))
    assert np.square(after - wanted).mean() < np.square(before - wanted).mean()
    code, text, _ = call(f"{line} --data labelled.npz --json")
    assert code == 0 and json.loads(text)["recovery"]["by"] == "labels"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("recover model.onnx --steps 1 --data inputs.npz", "E212: there is no original"),
        ("recover model.onnx --steps 1", "E212"),
        ("recover model.onnx --data labelled.npz", "E201: give either steps or epochs"),
        ("recover model.onnx --data labelled.npz --steps -1", "E201"),
        ("recover model.onnx --data labelled.npz --steps 1 --train-on abacus", "E201"),
        ("prune model.onnx --ratio 0.5 --batch-size 4", "E201: --batch-size is about training"),
        ("prune model.onnx --ratio 0.5 --no-labels --data labelled.npz", "E201: --labels is about training"),
        ("prune model.onnx --ratio 0.5 --metric f1", "E212"),
        ("prune model.onnx --ratio 0.5 --metric f1 --data inputs.npz", "E206: f1 needs labels"),
        ("prune model.onnx --ratio 0.5 --metric best --data inputs.npz", "E202"),
        ("prune model.onnx --ratio 0.5 --steps 1 --labels --data inputs.npz", "E206: the data have no labels"),
        ("prune model.onnx --ratio 0.5 --steps 9 --learning-rate 1e30 --data inputs.npz", "E231"),
    ],
)
def test_training_that_makes_no_sense_is_refused(call: Call, line: str, error: str) -> None:
    code, text, said = call(f"{line} -o out.onnx --json")
    assert code == 2 and said.startswith(error), said
    assert json.loads(text)["error"]["code"] == error[:4] and not Path("out.onnx").exists()


def test_unknown_options_of_training_are_named() -> None:
    with pytest.raises(InputError, match="no option 'pace'"):
        espalier.recover(graph_of(net(), images()), data={"x": images().numpy()}, steps=1, pace=3)


def test_a_model_that_no_layer_fits_into_still_becomes_wider() -> None:
    graph = Graph("linear")
    b, draw = Builder(graph), np.random.default_rng(0)
    x = b.input(TensorType(elements.F32, (symbol("n"), 4)), "x")
    hidden = b.matmul(x, draw.standard_normal((4, 6)).astype(np.float32))
    graph.set_outputs([b.matmul(hidden, draw.standard_normal((6, 3)).astype(np.float32))], ["y"])
    grown = espalier.grow(graph, factor=2.0, count=1)
    assert [row["to"] for row in grown.details["widened"]] == [12] and grown.details["deepened"] == []
    assert any(line.startswith("not deepened: no activation follows") for line in grown.summary())
    with pytest.raises(UnsupportedError, match="no activation follows"):
        espalier.grow(graph, count=1)
    with pytest.raises(InputError, match="no activation after a layer is called"):
        espalier.grow(graph, factor=2.0, after="relu")
