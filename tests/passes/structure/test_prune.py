"""The pass, the verb and the function: what they promise, what they report, what they refuse."""

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
from espalier.backends.onnx import save, to_model
from espalier.cli import main
from espalier.cost.remaining import Remaining
from espalier.errors import InputError, VerificationError
from espalier.ir import Builder, Graph, TensorType, constant_value, elements, verify
from espalier.ir.clone import clone
from espalier.ir.constants import constant
from espalier.ir.execute import execute
from espalier.ir.hashing import structural_hash
from espalier.passes.manager import compare_models
from espalier.passes.structure.reindex import reindex, zeroed
from tests.passes.structure.pruning import data_of, graph_of, images, net, run_pass


def extents(graph: Graph) -> dict[str, int]:
    return {unit.name: unit.extent for unit in couple(graph).removable()}


def test_half_of_each_unit_goes_and_the_rest_is_said() -> None:
    graph = graph_of(net(), images())
    report = run_pass(graph, "prune:ratio=0.5", data=data_of(graph, images()))
    assert extents(graph) == {"first.weight.0": 3, "second.weight.0": 3}
    details = report.passes[0].details
    cut = {row["unit"]: (row["extent"], row["kept"], row["verdict"]) for row in details["cut"]}
    assert cut == {"first.weight.0": (6, 3, "exact"), "second.weight.0": (5, 3, "exact")}
    assert not details["whole"]
    assert "head.weight.0" in {row["unit"] for row in details["frozen"]}
    assert details["parameters"]["after"] == Remaining(couple(graph)).parameters
    assert any(line.startswith("cut first.weight.0: 6 → 3") for line in details["summary"])
    measured = report.passes[0].measured
    assert measured is not None and measured["metric"] == "agreement" and measured["samples"] == 6
    assert "prune changes the outputs: agreement" in report.whole_model
    json.dumps(report.to_json())


def test_nothing_changes_at_ratio_0_and_the_seed_decides_what_chance_takes() -> None:
    graph = graph_of(net(), images())
    before = structural_hash(graph)
    report = run_pass(graph, "prune:ratio=0.0")
    assert structural_hash(graph) == before and report.passes[0].rewrites == 0 and "changes" not in report.whole_model
    hashes = []
    for seed in (1, 1, 2):
        graph = graph_of(net(), images())
        run_pass(graph, "prune:ratio=0.5,criterion=random", seed=seed)
        hashes.append(structural_hash(graph))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_dead_channel_goes_without_any_loss() -> None:
    module = net()
    with torch.no_grad():
        for tensor in (module.first.weight, module.first.bias, module.norm.weight, module.norm.bias):
            tensor[2] = 0
        module.norm.running_mean[2] = 0
    original, graph = graph_of(module, images()), graph_of(module, images())
    run_pass(graph, "prune:ratio=0.17,criterion=relative,only=first.weight.0", data=data_of(graph, images()))
    assert extents(graph) == {"first.weight.0": 5, "second.weight.0": 5}
    compare_models(original, graph)
    kept = next(v for v in graph.constants() if v.name == "first.weight").array
    assert np.array_equal(kept, np.delete(module.first.weight.detach().numpy(), 2, 0))


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("prune:ratio=0.5,only=second*", {"first.weight.0": 6, "second.weight.0": 3}),
        ("prune:ratio=0.5,ignore=second*", {"first.weight.0": 3, "second.weight.0": 5}),
        ("prune:ratios=first*:0.34;second*:0.6", {"first.weight.0": 4, "second.weight.0": 2}),
        ("prune:ratio=0.5,round_to=4", {"first.weight.0": 4, "second.weight.0": 4}),
    ],
)
def test_options_choose_units(spec: str, wanted: dict[str, int]) -> None:
    graph = graph_of(net(), images())
    run_pass(graph, spec)
    assert extents(graph) == wanted


def test_each_pattern_of_ratios_is_a_scope_of_its_own() -> None:
    module = net()
    with torch.no_grad():
        module.second.weight.mul_(100)
    graph = graph_of(module, images())
    run_pass(graph, "prune:ratios=first*:0.5;second*:0.5,scope=global,normalise=none")
    assert extents(graph) == {"first.weight.0": 3, "second.weight.0": 3}


def bracketed() -> Graph:
    """linear–relu–linear, with weights whose names hold brackets."""
    draw = np.random.default_rng(0)
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "l[0].w"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Gemm", ["b", "l[1].w"], ["y"]),
    ]
    ends = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)]
        for name, shape in (("x", [2, 3]), ("y", [2, 5]))
    ]
    weights = [
        onnx.numpy_helper.from_array(draw.normal(size=shape).astype("f4"), name)
        for name, shape in (("l[0].w", (3, 8)), ("l[1].w", (8, 5)))
    ]
    graph = onnx.helper.make_graph(nodes, "bracketed", *ends, weights)
    return espalier.load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"ratio": 0.5, "only": "l[0].w.1"}, 4),
        ({"ratio": 0.5, "only": "l[[]0].*"}, 4),
        ({"ratios": {"l[0].w.1": 0.25}}, 6),
        ({"ratio": 0.5, "ignore": "l[1].w.1", "ratios": {"l[0].w.1": 0.75}}, 2),
    ],
)
def test_units_are_asked_for_by_the_names_that_inspect_prints(options: dict[str, object], wanted: int) -> None:
    assert extents(espalier.prune(bracketed(), **options).graph) == {"l[0].w.1": wanted}


@pytest.mark.parametrize("options", [{"ratio": 0.5, "only": "l[1].w.1"}, {"ratio": 0.5, "ratios": {"l[1].w.1": 0.5}}])
def test_why_a_unit_that_is_asked_for_is_frozen(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=re.escape("l[1].w.1 is frozen: ")) as caught:
        espalier.prune(bracketed(), **options)
    assert caught.value.code == "E221"
    with pytest.raises(InputError) as caught:
        espalier.prune(bracketed(), ratio=0.5, ignore="l[0].w.1")
    assert caught.value.code == "E224" and "but for only, ignore" in str(caught.value.hint)


def test_approximate_units_are_left_alone_on_demand() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    graph = graph_of(module, torch.randn(2, 6))
    report = run_pass(graph, "prune:ratio=0.5,exact_only=true")
    assert [row["kept"] for row in report.passes[0].details["cut"]] == [6]
    assert "not exact" in report.passes[0].details["whole"][0]["why"]
    run_pass(graph, "prune:ratio=0.5")
    assert sorted(extents(graph).values()) == [3, 4]


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.hidden = nn.Linear(8, 16)
        self.back = nn.Linear(16, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.back(torch.relu(self.hidden(x)))
        return x @ self.embedding.weight.T


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_tied_weights_stay_tied_and_count_once(criterion: str) -> None:
    module = Tied().eval()
    tokens = torch.randint(0, 20, (3, 7))
    graph = graph_of(module, tokens)
    assert Remaining(couple(graph)).parameters == sum(p.numel() for p in module.parameters())
    graph = espalier.prune(graph, ratio=0.5, criterion=criterion, data=[tokens.numpy()]).graph
    tied = [v for v in graph.constants() if v.constant is not None and 20 in v.constant.shape]
    assert len(tied) == 2 and len({id(v.constant.source) for v in tied}) == 1  # type: ignore[union-attr]
    a, b = sorted((v.array for v in tied), key=lambda a: a.shape)
    assert a.shape == (4, 20) and np.array_equal(a.T, b)
    assert Remaining(couple(graph)).parameters == 20 * 4 + 4 * 8 + 8 + 8 * 4 + 4
    execute(graph, [tokens.numpy()])


def test_compensation_leaves_tied_weights_tied() -> None:
    module = Tied().eval()
    tokens = torch.randint(0, 20, (64, 7))
    plain = espalier.prune(graph_of(module, tokens), ratio=0.5).graph
    made = espalier.prune(graph_of(module, tokens), ratio=0.5, compensate="data", data=[tokens.numpy()])
    graph, details = made.graph, made.details
    assert Remaining(couple(graph)).parameters == details["parameters"]["after"] == Remaining(couple(plain)).parameters
    held = [{v.name: v.array for v in g.constants() if v.element.is_float} for g in (plain, graph)]
    left = [row["weight"] for row in details["not_refitted"]]
    assert left == ["permute"]  # the transposed embedding
    assert "not refitted permute: it is tied, or read by several layers" in details["summary"]
    moved = {name for name, array in held[0].items() if not np.array_equal(array, held[1][name])}
    assert moved and not moved & {"permute", "embedding.weight"}


@pytest.mark.parametrize("kept", [1, 2])
def test_channels_with_scales_of_their_own_may_go_down_to_one(kept: int) -> None:
    graph, rng = Graph("quantized"), np.random.default_rng(3)
    b = Builder(graph)
    stored = constant(rng.integers(-99, 99, (4, 3, 1, 1)).astype(np.int8), elements.quantized(elements.I8, 0))
    scale, zero = np.linspace(0.01, 0.04, 4).astype(np.float32), np.zeros(4, np.int8)
    weight = b.dequantize(constant_value(stored, name="weight"), scale, zero, axis=0)
    x = b.relu(b.conv(graph.add_input(TensorType(elements.F32, (1, 3, 4, 4)), "x"), weight))
    graph.set_outputs([b.conv(x, rng.normal(size=(5, 4, 1, 1)).astype(np.float32))], ["y"])
    original, coupling = clone(graph), couple(graph)
    unit = next(unit for unit in coupling.removable() if unit.extent == 4)
    image = rng.normal(size=(1, 3, 4, 4)).astype(np.float32)
    other = couple(original)
    zeroed(other, {other.units[coupling.units.index(unit)]: np.arange(kept, 4)})
    reindex(coupling, {unit: np.arange(kept)}, "prune")
    verify(graph, "types")
    (found,), (wanted,) = execute(graph, [image]), execute(original, [image])
    assert np.allclose(found, wanted, atol=1e-6)
    session = onnxruntime.InferenceSession(to_model(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"x": image})[0], wanted, atol=1e-5)


def test_what_comes_after_is_still_compared(tmp_path: Path) -> None:
    x = images().numpy()
    made = espalier.compile(
        graph_of(net(), images()), output=tmp_path / "a", backend="onnx", passes=["prune:ratio=0.5", "fold_norms"],
        pipeline="none", data={"x": x}, verify="all",
    )  # fmt: skip
    assert made.agreement.startswith("agrees with the model after the last pass that approximates")
    stages = made.report.whole_model.split("; then ")
    assert stages[0] == "unchanged" and stages[1].startswith("prune changes") and stages[2].startswith("agrees")
    assert made.score is not None and made.score.metric == "agreement"
    with pytest.raises(VerificationError, match="points are lost, more than 0"):
        espalier.compile(
            graph_of(net(), images(64)), output=tmp_path / "b", backend="onnx", passes=["prune:ratio=0.8"],
            data={"x": images(64).numpy()}, max_drop=0,
        )  # fmt: skip
    assert not (tmp_path / "b").exists()


# ---- the verb ------------------------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., object]:
    """A command line in a folder with a model and data: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    save(graph_of(net(), images()), "model.onnx")
    np.savez("many.npz", x=images(64).numpy())
    np.savez("labelled.npz", x=images().numpy(), labels=np.arange(6) % 4)
    np.savez("wrong.npz", x=images().numpy()[:, :2])
    np.savez("nan.npz", x=np.full((2, 3, 8, 8), np.nan, np.float32))
    np.savez("classes.npz", x=images().numpy(), labels=np.arange(6) + 90)
    broken = net()
    with torch.no_grad():
        broken.second.weight[0, 0, 0, 0] = float("nan")
    save(graph_of(broken, images()), "nan.onnx")

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def test_onnx_in_onnx_out(call: Callable[..., tuple[int, str, str]]) -> None:
    code, text, said = call("prune model.onnx --ratio 0.5 --criterion taylor --data labelled.npz -o small.onnx --json")
    assert (code, said) == (0, "")
    found = json.loads(text)
    assert {row["unit"] for row in found["cut"]} == {"first.weight.0", "second.weight.0"}
    assert found["score"]["metric"] == "top-1" and found["parameters"]["removed"] > 0.5
    before, after = onnx.load("model.onnx"), onnx.load("small.onnx")
    onnx.checker.check_model(after, full_check=True)
    assert list(before.graph.input) == list(after.graph.input)
    assert [o.name for o in before.graph.output] == [o.name for o in after.graph.output]
    assert "BatchNormalization" in {node.op_type for node in after.graph.node}
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    x = images(3, seed=5).numpy()
    (wanted,) = session.run(None, {"x": x})
    (out,) = execute(espalier.load("small.onnx"), [x])
    np.testing.assert_allclose(out, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "code", "error"),
    [
        ("--ratio 1.5", 2, "E201"),
        ("--ratio -0.1", 2, "E201"),
        ("--ratio nan", 2, "E201"),
        ("", 2, "E201"),
        ("--ratio 0.5 --macs 0.5", 2, "E201"),
        ("--ratio 0.5 --round-to 0", 2, "E201"),
        ("--ratio 0.5 --scope everywhere", 2, "E201"),
        ("--ratio 0.5 --ratios first", 2, "E201"),
        ("--ratio 0.5 --ratios first*:2", 2, "E201"),
        ("--ratio 0.5 --criterion taylr", 2, "E202"),
        ("--ratio 0.5 --only nothing*", 2, "E202"),
        ("--ratio 0.5 --ignore *", 2, "E224"),
        ("--ratio 0.5 --criterion magnitude:p=-1", 2, "E203"),
        ("--ratio 0.5 --criterion taylor", 2, "E212"),
        ("--ratio 0.5 --max-drop 3", 2, "E212"),
        ("--ratio 0.5 --criterion taylor --data wrong.npz", 2, "E206"),
        ("--ratio 0.5 --criterion taylor --data nan.npz", 2, "E206"),
        ("--ratio 0.5 --criterion taylor --data classes.npz", 2, "E206"),
        ("--ratio 0.5 --criterion taylor --data missing.npz", 2, "E206"),
        ("--macs 0.9999", 3, "E501"),
        ("--ratio 0.5 --data many.npz --max-drop 0", 4, "E604"),
    ],
)
def test_one_clear_error_and_nothing_written(
    call: Callable[..., tuple[int, str, str]], options: str, code: int, error: str
) -> None:
    found, text, said = call(f"prune model.onnx {options} -o out.onnx --json")
    assert (found, said[:4]) == (code, error), said
    assert json.loads(text)["error"]["code"] == error and not Path("out.onnx").exists()


def test_broken_weights_and_outputs_are_named(call: Callable[..., tuple[int, str, str]]) -> None:
    code, _, said = call("prune nan.onnx --ratio 0.5 -o out.onnx")
    assert code == 2 and said.startswith("E223: the weight 'second.weight'") and not Path("out.onnx").exists()
    assert call("prune model.onnx --ratio 0.5 -o out.txt")[0] == 2
    assert call("prune model.onnx --ratio 0.5 -o missing/out.onnx")[0] == 2


def test_in_python_with_a_module_and_a_mapping() -> None:
    module = net()
    found = espalier.prune(module, ratios={"first*": 0.5}, ignore=["second*"], example_inputs=(images(),))
    assert found.path is None and extents(found.graph)["first.weight.0"] == 3
    with pytest.raises(InputError, match="no criterion"):
        espalier.prune(module, ratio=0.5, criterion="best", example_inputs=(images(),))


def test_a_trained_network_loses_half_and_runs(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    model = real_data("models/akamaster_resnet20_cifar10.onnx")
    small = espalier.prune(model, ratio=0.5, output=tmp_path / "small.onnx")
    assert small.details["macs"]["removed"] == pytest.approx(0.747, abs=0.01)
    assert small.details["parameters"]["after"] < 75_000
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    (logits,) = session.run(None, {"input": x})
    (own,) = execute(small.graph, [x])
    assert logits.shape == (5, 10)
    np.testing.assert_allclose(logits, own, rtol=1e-4, atol=1e-4)
