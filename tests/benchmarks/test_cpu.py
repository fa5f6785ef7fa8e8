"""The parts of the CPU benchmark that need no engine, and its processes with the one that is always there."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import cpu_bars, cpu_turns
from benchmarks.common import Benchmark, machine
from benchmarks.cpu_engine import aligned
from benchmarks.cpu_turns import EngineFailure, EngineProcess, distance, geometric_mean, ratio, take_turns
from benchmarks.report import page


def test_a_ratio_is_the_median_over_rounds_with_an_interval_around_it() -> None:
    peer = [1.0] * 15
    ours = [1.2] * 7 + [1.1] + [0.9] * 7
    found = ratio(ours, peer)
    assert found["median"] == pytest.approx(1.1)
    assert found["low"] == pytest.approx(0.9) and found["high"] == pytest.approx(1.2)
    steady = ratio([2.0] * 15, peer)
    assert steady["low"] == steady["median"] == steady["high"] == 2.0


def test_rounds_are_compared_pairwise() -> None:
    """A machine that slows down meets both engines, so that the ratio stays."""
    assert ratio([1, 2, 4, 8, 16], [2, 4, 8, 16, 32])["high"] == 0.5
    assert ratio([3.0, 3.0, 3.0], [1.0] * 15)["rounds"] == 3


def test_a_geometric_mean_weighs_ratios() -> None:
    found = geometric_mean([([2.0] * 5, [1.0] * 5), ([1.0] * 5, [2.0] * 5)])
    assert found["median"] == pytest.approx(1.0) and found["models"] == 2
    assert found["low"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no ratios"):
        geometric_mean([])


def test_distance_takes_the_worst_output() -> None:
    a = [np.array([1.0, -2.0]), np.array([4.0])]
    assert distance(a, a) == {"difference": 0.0, "sqnr": math.inf}
    found = distance(a, [a[0], np.array([4.4])])
    assert found["difference"] == pytest.approx(0.1) and found["sqnr"] == pytest.approx(20.0)
    for wrong in ([a[0]], [a[0], np.array([[4.0]])], [a[0], np.array([np.nan])]):
        assert distance(a, wrong) == {"difference": math.inf, "sqnr": -math.inf}


def test_engines_take_turns_in_a_rotating_order() -> None:
    order: list[str] = []

    def engine(name: str, ms: float) -> Any:
        def ask(repeats: int) -> list[float]:
            order.append(name)
            return [ms] * repeats

        return ask

    times, failed = take_turns({"a": engine("a", 1.0), "b": engine("b", 2.0)}, 3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"] and not failed
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_a_hopeless_engine_takes_part_in_few_rounds_and_a_failed_one_in_none() -> None:
    calls = {"broken": 0}

    def broken(repeats: int) -> list[float]:
        calls["broken"] += 1
        if calls["broken"] > 2:
            raise EngineFailure("out of memory")
        return [1.0]

    asks = {"fast": lambda n: [1.0] * n, "slow": lambda n: [100.0] * n, "broken": broken}
    times, failed = take_turns(asks, 15)
    assert len(times["fast"]) == 15 and len(times["slow"]) == cpu_turns.FEW
    assert failed == {"broken": "out of memory"} and "broken" not in times


def test_more_calls_fit_into_a_turn_of_a_faster_engine() -> None:
    assert cpu_turns.repeats_for(1000.0) == cpu_turns.LEAST
    assert cpu_turns.repeats_for(6.0) == 10
    assert cpu_turns.repeats_for(0.001) == cpu_turns.MOST


def test_inputs_are_aligned_copies() -> None:
    array = np.arange(15, dtype=np.int64).reshape(3, 5)
    copy = aligned(array)
    assert copy.ctypes.data % 64 == 0 and copy is not array and np.array_equal(copy, array)


# ---- bars ------------------------------------------------------------------------------------------------------


def row(model: str, ours: float | None, peers: dict[str, float], **options: Any) -> dict[str, Any]:
    """A row as `Runs.measure` makes it, of engines that take the same in all of 15 rounds."""
    taken = {**({} if ours is None else {"espalier": ours}), **peers}
    engines = {
        name: {"ms": [ms] * 15, "median_ms": ms, "version": "1", "difference": 1e-6, "sqnr": 60.0}
        for name, ms in taken.items()
    }
    made = {"model": model, "precision": "fp32", "batch": 1, "threads": 1, "engines": engines}
    made["failed"] = {"espalier": "refused"} if ours is None else {}
    made["best_peer"] = min(peers, key=lambda name: peers[name]) if peers else None
    made["ratios"] = {name: ratio([ours] * 15, [ms] * 15) for name, ms in peers.items()} if ours else {}
    return {**made, **options}


def speed(rows: list[dict[str, Any]], instructions: tuple[str, ...] = ("avx512_vnni",)) -> dict[str, Any]:
    benchmark = Benchmark("example")
    cpu_bars.speed_bars(cpu_bars.Bars(benchmark, rows, 2, instructions), 1, 1)
    return benchmark.bars


def test_fp32_is_compared_with_the_best_peer_of_each_model() -> None:
    bars = speed([
        row("a", 1.0, {"onnxruntime": 2.0, "openvino": 1.0}), row("b", 1.0, {"onnxruntime": 1.0, "openvino": 2.0}),
    ])  # fmt: skip
    assert bars["fp32_mean_1_thread"] == {
        "value": "1.000 [1.000, 1.000]", "bar": "geometric mean ≤ 1.00 × the best peer", "holds": True
    }  # fmt: skip
    assert bars["fp32_each_1_thread"]["holds"] is True


def test_one_slow_model_breaks_the_bar_on_each_but_not_the_mean() -> None:
    bars = speed([row("a", 1.0, {"onnxruntime": 2.0}), row("b", 1.3, {"onnxruntime": 1.0})])
    assert bars["fp32_mean_1_thread"]["holds"] is True
    assert bars["fp32_each_1_thread"]["holds"] is False
    assert bars["fp32_each_1_thread"]["reason"] == "above: b"


def test_a_model_that_we_fail_on_fails_the_bars() -> None:
    bars = speed([row("a", 1.0, {"onnxruntime": 2.0}), row("b", None, {"onnxruntime": 1.0})])
    assert bars["fp32_mean_1_thread"]["holds"] is False and bars["fp32_each_1_thread"]["holds"] is False
    assert "ours failed on b (refused)" in bars["fp32_mean_1_thread"]["reason"]


def test_what_was_not_measured_is_null_and_says_why() -> None:
    bars = speed([row("a", 1.0, {"onnxruntime": 2.0})])
    assert bars["fp32_mean_1_thread"]["holds"] is True
    assert bars["fp32_mean_1_thread"]["reason"] == "measured on a only"
    assert bars["int8_each_1_thread"]["holds"] is None and bars["batch_mean_1_thread"]["holds"] is None
    assert bars["bf16_mean_1_thread"]["reason"] == "this CPU has no bf16 instructions"
    assert speed([row("a", 1.0, {})])["fp32_mean_1_thread"]["holds"] is None
    integers = [row("a", 1.0, {"onnxruntime": 2.0}, precision="int8-nncf")]
    assert "8-bit" in speed(integers, ())["int8_each_1_thread"]["reason"]


def test_bf16_counts_where_openvino_gains_by_it() -> None:
    plain = row("a", 2.0, {"openvino": 2.0})
    slow, fast = (row("a", 1.0, {"openvino": ms}, precision="bf16") for ms in (1.9, 1.0))
    assert speed([plain, slow], ("avx512_bf16",))["bf16_mean_1_thread"]["holds"] is None
    assert speed([plain, fast], ("amx_bf16",))["bf16_mean_1_thread"]["holds"] is True


def test_int8_is_held_against_onnxruntime_on_every_model_and_openvino_in_the_mean() -> None:
    rows = [
        row("a", 1.0, {"onnxruntime": 1.1, "openvino": 1.02}, precision="int8-onnxruntime"),
        row("a", 1.0, {"onnxruntime": 0.9, "openvino": 1.02}, precision="int8-nncf"),
    ]
    bars = speed(rows)
    assert bars["int8_each_1_thread"]["holds"] is False and "a nncf" in bars["int8_each_1_thread"]["reason"]
    assert bars["int8_mean_1_thread"]["holds"] is False


def test_batches_have_a_bar_of_their_own() -> None:
    bars = speed([row("a", 1.04, {"onnxruntime": 1.0}, batch=8), row("a", 3.0, {"onnxruntime": 3.0}, batch=32)])
    assert bars["batch_mean_1_thread"]["holds"] is True and bars["fp32_mean_1_thread"]["holds"] is None


def others(rows: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    benchmark = Benchmark("example")
    bars = cpu_bars.Bars(benchmark, rows, 2, ())
    cpu_bars.compile_bars(bars, given.get("compiled", {}))
    cpu_bars.memory_bars(bars, given.get("memory", {}), given.get("arenas", {}))
    cpu_bars.answer_bars(bars, given.get("crowds", {}))
    return benchmark.bars


def test_compile_time_memory_and_arena() -> None:
    done = {"failed": None}
    bars = others(
        [], compiled={"resnet50": {"seconds": 31.0, **done}, "lstm": {"seconds": 2.0, **done}},
        memory={"lstm": {"espalier": 2**20, "onnxruntime": 2**21}},
        arenas={"lstm": {"bytes": 102, "lower_bound": 100}},
    )  # fmt: skip
    assert bars["compile_resnet50"]["holds"] is False and bars["compile_each"]["holds"] is True
    assert bars["memory"]["holds"] is True and bars["arena"]["holds"] is True
    broken = others([], compiled={"lstm": {"seconds": None, "failed": "refused"}}, arenas={"lstm": None})
    assert broken["compile_each"]["holds"] is False and broken["arena"]["holds"] is None
    assert bars["compile_warm"]["holds"] is None
    for seconds, failed, holds in ((14.0, None, True), (16.0, None, False), (None, "refused", False)):
        again = {"seconds": 2.0, "failed": None, "warm_seconds": seconds, "warm_failed": failed}
        assert others([], compiled={"lstm": again})["compile_warm"]["holds"] is holds


def test_a_wrong_answer_at_any_number_of_threads_counts() -> None:
    wrong = row("a", 1.0, {"onnxruntime": 1.0})
    wrong["engines"]["espalier"]["difference"] = 0.1
    right = row("a", 1.0, {"onnxruntime": 1.0}, threads=2)
    assert others([wrong, right])["right_fp32"]["holds"] is False
    assert others([right])["right_fp32"]["holds"] is True
    assert others([row("a", None, {"onnxruntime": 1.0})])["right_fp32"]["holds"] is False
    assert others([], crowds={"a": {"wrong": 1, "calls": 64}})["threads"]["holds"] is False
    assert others([], crowds={"a": {"failed": "crashed"}})["threads"]["holds"] is False
    assert others([], crowds={"a": {"wrong": 0, "calls": 64}})["threads"]["holds"] is True


def test_ties_of_roundings_may_cost_what_they_cost_onnxruntime() -> None:
    cases = [(31.0, 50.0, True), (20.0, 19.0, True), (20.0, 21.0, False), (20.0, None, False), (9.0, 8.0, False)]
    for ours, peer, holds in cases:
        found = row("a", 1.0, {"onnxruntime": 1.0} if peer else {"openvino": 1.0}, precision="int8-nncf")
        found["engines"]["espalier"]["sqnr"] = ours
        if peer:
            found["engines"]["onnxruntime"]["sqnr"] = peer
        assert others([found])["right_int8"]["holds"] is holds


def test_the_page_shows_the_table() -> None:
    table = cpu_bars.table([row("lstm", 1.5, {"onnxruntime": 1.0})], ("espalier", "onnxruntime", "torch"))
    result = {"benchmark": "cpu", "quick": True, "bars": {}, "machine": {**machine(), "instruction_sets": ["avx2"]}}
    result |= {"versions": {}, "seed": 0, "seconds": 1.0, "details": {"tables": {"Times": table}}}
    text = page([result])
    assert "| lstm | fp32 | 1 | 1 | 1.50 | 1.00 | – | 1.500 [1.500, 1.500] |" in text and "avx2" in text


# ---- processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def doubling(tmp_path: Path) -> dict[str, Any]:
    """The task of loading a model that doubles its input."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", x=np.arange(4, dtype=np.float32))
    made = {"do": "load", "engine": "onnxruntime", "model": str(tmp_path / "m.onnx"), "precision": "fp32"}
    return {**made, "inputs": str(tmp_path / "in.npz"), "threads": 1}


def test_an_engine_answers_and_stands_still_between_turns(doubling: dict[str, Any], tmp_path: Path) -> None:
    with EngineProcess("onnxruntime", Path(sys.executable), 1, tmp_path) as process:
        assert process.ask(doubling, 60)["seconds"] > 0
        assert len(process.ask({"do": "time", "repeats": 3}, 60)["ms"]) == 3
        pid = process._process.pid
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        process.ask({"do": "outputs", "to": str(tmp_path / "out.npz")}, 60)
        assert np.load(tmp_path / "out.npz")["output_0"].tolist() == [0, 2, 4, 6]
        assert process.ask({"do": "crowd", "threads": 4, "calls": 2}, 60) == {"wrong": 0}
        assert process.ask({"do": "memory"}, 60)["peak"] > 1e6
    assert not Path(f"/proc/{pid}").exists()


def test_failures_of_engines_are_told(doubling: dict[str, Any], tmp_path: Path) -> None:
    idle = EngineProcess("onnxruntime", Path(sys.executable), 1, tmp_path)
    with idle, pytest.raises(EngineFailure, match="nothing is loaded"):
        idle.ask({"do": "time", "repeats": 1}, 60)
    with EngineProcess("onnxruntime", Path(sys.executable), 1, tmp_path) as process:
        process.ask(doubling, 60)
        process._process.send_signal(signal.SIGKILL)
        with pytest.raises(EngineFailure):
            process.ask({"do": "time", "repeats": 1}, 60)


def test_a_run_that_measured_nothing_says_so() -> None:
    benchmark = Benchmark("example")
    bars = cpu_bars.Bars(benchmark, [], 11, ())
    cpu_bars.speed_bars(bars, 2, 4)
    cpu_bars.memory_bars(bars, {}, {})
    cpu_bars.answer_bars(bars, {})
    assert all(entry["holds"] is None and entry["reason"] for entry in benchmark.bars.values())


# ---- random networks -------------------------------------------------------------------------------------------


def random_row(network: int, precision: str, **more: Any) -> dict[str, Any]:
    return {"network": network, "precision": precision, "agrees": True, "difference": 0.0, **more}


def test_one_network_that_disagrees_breaks_the_bar() -> None:
    rows = [random_row(k, precision) for k in range(cpu_bars.NETWORKS) for precision in ("fp32", "int8")]
    rows[1] = random_row(0, "int8", because="agrees but for proven ties")
    benchmark = Benchmark("example")
    cpu_bars.random_bars(benchmark, rows)
    bar = benchmark.bars["random_graphs"]
    assert bar["holds"] is True and "reason" not in bar
    assert bar["value"] == "fp32: 200 of 200, int8: 200 of 200 (1 but for proven ties)"
    for broken in (
        random_row(7, "fp32", agrees=False, difference=0.1),
        random_row(7, "fp32", agrees=False, failed="E4"),
    ):
        benchmark = Benchmark("example")
        cpu_bars.random_bars(benchmark, [*rows[:14], broken, *rows[15:]])
        assert benchmark.bars["random_graphs"]["holds"] is False
        assert "fp32 7" in benchmark.bars["random_graphs"]["reason"]
    benchmark = Benchmark("example")
    cpu_bars.random_bars(benchmark, rows[:4])
    assert benchmark.bars["random_graphs"]["reason"] == "2 networks only"
    benchmark = Benchmark("example")
    cpu_bars.random_bars(benchmark, [])
    assert benchmark.bars["random_graphs"]["holds"] is None


def test_random_networks_follow_from_their_seed_and_use_every_piece() -> None:
    from benchmarks.zoo.random_networks import OF_MAPS, OF_TOKENS, network
    from espalier.ir.hashing import structural_hash

    made = [network(seed)[0] for seed in range(150)]
    used = {name for each in made for name in each.made_of}
    assert {piece.__name__ for piece in [*OF_MAPS, *OF_TOKENS]} <= used
    assert any(each.batch is None for each in made) and {value.rank for each in made for value in each.maps} >= {
        3,
        4,
        5,
    }
    again, feeds = network(7)
    assert structural_hash(again.graph) == structural_hash(made[7].graph)
    (first, second) = (next(iter(each[0].values())) for each in (feeds, network(7)[1]))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_random_network_agrees_with_onnxruntime(precision: str) -> None:
    from benchmarks.cpu_random import check

    found = check(6, precision)
    assert found["agrees"] and found["difference"] <= 1e-4


def test_a_wrong_artifact_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import espalier
    from benchmarks.cpu_random import check

    plain = espalier.compile

    def compile_wrongly(*given: Any, **options: Any) -> Any:
        artifact = plain(*given, **options)

        class Wrong:
            def load(self) -> Any:
                run = artifact.load()
                return lambda feed: {name: array * np.float32(1.001) for name, array in run(feed).items()}

        return Wrong()

    monkeypatch.setattr(espalier, "compile", compile_wrongly)
    for precision in ("fp32", "int8"):
        assert not check(6, precision)["agrees"]


def test_a_process_that_dies_is_a_result() -> None:
    from benchmarks import cpu_random

    rows: dict[Any, Any] = {}
    cpu_random.check_all([(0, "no precision"), (2, "fp32")], 0.001, lambda job, found: rows.update({job: found}))
    assert all("no answer" in found["failed"] and not found["agrees"] for found in rows.values()) and len(rows) == 2
