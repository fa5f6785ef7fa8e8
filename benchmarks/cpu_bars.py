"""The bars of `benchmarks.cpu`, from rows of measurements alone.

A row is what `Runs.measure` returns: model, precision, batch, threads, the engines with their milliseconds per round,
what failed, and the ratios of ours to each peer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import Benchmark
from benchmarks.cpu_turns import OURS, geometric_mean

Row = dict[str, Any]
MEAN, WORST, INTEGER_MEAN, BATCH_MEAN = 1.00, 1.25, 0.95, 1.05
COMPILE_RESNET50, COMPILE_ANY, COMPILE_WARM = 30.0, 60.0, 15.0
ARENA = 1.03
TOLERANCE, SIGNAL = 1e-4, 30.0
"""Largest relative difference in fp32; least signal-to-noise ratio in dB in bf16 and int8."""
OPTIMIZED = "onnxruntime with optimizations"
NETWORKS = 200
"""How many random networks the bar is about."""
LEAST_SIGNAL, NEAR = 15.0, 0.5
"""In dB, for int8 where onnxruntime's is below the other; and what counts as equal: ties fall either way."""
FAST = 0.8
"""OpenVINO's bf16 must take at most this share of its fp32 time for bf16 to count as fast on a CPU."""
INSTRUCTIONS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""The instruction sets that matter here, by the kernel's names."""


def lacks_bf16(present: Sequence[str]) -> str | None:
    """Why bf16 cannot be fast with these instruction sets; None if it may be."""
    if "amx_bf16" in present or "avx512_bf16" in present or "bf16" in present:
        return None
    return "this CPU has no bf16 instructions"


def lacks_int8(present: Sequence[str]) -> str | None:
    """Why int8 cannot be fast with these instruction sets; None if it may be."""
    if {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(present):
        return None
    return "this CPU has no instructions that multiply and add 8-bit integers"


def select(rows: Sequence[Row], threads: int, precision: str, batch: int | None = 1) -> list[Row]:
    """Rows of that precision (int8 means both quantizers) and batch (None: larger than 1)."""
    return [
        row
        for row in rows
        if row["threads"] == threads
        and row["precision"].partition("-")[0] == precision
        and (row["batch"] > 1 if batch is None else row["batch"] == batch)
    ]


def label(row: Row) -> str:
    """How a row is called in a bar."""
    parts = [row["model"]]
    parts += [row["precision"].partition("-")[2]] if "-" in row["precision"] else []
    parts += [f"batch {row['batch']}"] if row["batch"] > 1 else []
    return " ".join(parts)


def best(row: Row) -> str | None:
    """The peer that is fastest."""
    found: str | None = row["best_peer"]
    return found


def against(peer: str) -> Callable[[Row], str | None]:
    """That peer, where it ran."""
    return lambda row: peer if peer in row["engines"] else None


def interval(found: Mapping[str, float]) -> str:
    """A median with its 95 % interval, as text."""
    return f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


class Bars:
    """Records bars about rows; what is measured on some models only says so.

    Attributes:
        wanted: How many models there are in all; fewer make a reason.
    """

    def __init__(self, benchmark: Benchmark, rows: Sequence[Row], wanted: int, instructions: Sequence[str]) -> None:
        self.benchmark, self.rows, self.wanted, self.instructions = benchmark, rows, wanted, instructions

    def mean(self, name: str, rows: Sequence[Row], peer: Callable[[Row], str | None], limit: float, what: str) -> None:
        """The geometric mean of ours ÷ a peer. Models that we fail on fail the bar."""
        words = f"geometric mean ≤ {limit:.2f} × {what}"
        pairs, broken = self._pairs(rows, peer)
        if not pairs:
            holds = False if broken else None
            self.benchmark.bar(name, None, words, holds, self._note(rows, broken) or f"{what} did not run")
            return
        found = geometric_mean([(row["engines"][OURS]["ms"], row["engines"][to]["ms"]) for row, to in pairs])
        holds = found["median"] <= limit and not broken
        self.benchmark.bar(name, interval(found), words, holds, self._note([row for row, _ in pairs], broken))

    def each(self, name: str, rows: Sequence[Row], peer: Callable[[Row], str | None], limit: float, what: str) -> None:
        """No single ratio above a limit."""
        words = f"every model ≤ {limit:.2f} × {what}"
        pairs, broken = self._pairs(rows, peer)
        if not pairs:
            holds = False if broken else None
            self.benchmark.bar(name, None, words, holds, self._note(rows, broken) or f"{what} did not run")
            return
        ratios = {label(row): row["ratios"][to] for row, to in pairs}
        above = [key for key, found in ratios.items() if found["median"] > limit]
        worst = max(ratios, key=lambda key: ratios[key]["median"])
        note = self._note([row for row, _ in pairs], broken)
        said = [f"above: {', '.join(above)}"] if above else []
        said += [note] if note else []
        value = f"{interval(ratios[worst])} ({worst}); {len(ratios) - len(above)} of {len(ratios)} hold"
        self.benchmark.bar(name, value, words, not above and not broken, "; ".join(said) or None)

    def missing(self, names: Mapping[str, str], reason: str) -> None:
        """Bars that can't be measured here, with their words."""
        for name, words in names.items():
            self.benchmark.bar(name, None, words, None, reason)

    def _pairs(self, rows: Sequence[Row], peer: Callable[[Row], str | None]) -> tuple[list[tuple[Row, str]], list[Row]]:
        """Rows where we and the peer ran, with the peer; and those where we failed."""
        broken = [row for row in rows if OURS in row["failed"]]
        both = [(row, to) for row in rows if OURS in row["engines"] and (to := peer(row)) is not None]
        return both, broken

    def _note(self, rows: Sequence[Row], broken: Sequence[Row]) -> str | None:
        said = []
        if broken:
            said.append("ours failed on " + ", ".join(f"{label(row)} ({row['failed'][OURS][:120]})" for row in broken))
        models = sorted({row["model"] for row in [*rows, *broken]})
        if len(models) < self.wanted:
            said.append(f"measured on {', '.join(models) or 'no model'} only")
        few = sorted({label(row) for row in rows if OURS in row["engines"] and len(row["engines"][OURS]["ms"]) < 5})
        if few:
            said.append(f"too slow for more than a few rounds: {', '.join(few)}")
        return "; ".join(said) or None


def speed_bars(bars: Bars, threads: int, batch_models: int) -> None:
    """Bars 1 to 4 at one number of threads."""
    rows, end = bars.rows, f"{threads}_threads" if threads > 1 else "1_thread"
    plain = select(rows, threads, "fp32")
    bars.mean(f"fp32_mean_{end}", plain, best, MEAN, "the best peer")
    bars.each(f"fp32_each_{end}", plain, best, WORST, "the best peer")

    halves = select(rows, threads, "bf16")
    reason = lacks_bf16(bars.instructions) or slow_bf16(halves, plain) or (None if halves else "not asked for")
    words = {
        f"bf16_mean_{end}": f"geometric mean ≤ {MEAN:.2f} × OpenVINO's bf16",
        f"bf16_each_{end}": f"every model ≤ {WORST:.2f} × OpenVINO's bf16",
    }
    if reason:
        bars.missing(words, reason)
    else:
        bars.mean(f"bf16_mean_{end}", halves, against("openvino"), MEAN, "OpenVINO's bf16")
        bars.each(f"bf16_each_{end}", halves, against("openvino"), WORST, "OpenVINO's bf16")

    integers = select(rows, threads, "int8")
    reason = lacks_int8(bars.instructions) or (None if integers else "not asked for")
    words = {
        f"int8_each_{end}": f"every model ≤ {MEAN:.2f} × onnxruntime's int8",
        f"int8_mean_{end}": f"geometric mean ≤ {INTEGER_MEAN:.2f} × OpenVINO's int8",
    }
    if reason:
        bars.missing(words, reason)
    else:
        bars.each(f"int8_each_{end}", integers, against("onnxruntime"), MEAN, "onnxruntime's int8")
        bars.mean(f"int8_mean_{end}", integers, against("openvino"), INTEGER_MEAN, "OpenVINO's int8")

    batches = select(rows, threads, "fp32", None)
    if batches:
        several = Bars(bars.benchmark, rows, batch_models, bars.instructions)
        several.mean(f"batch_mean_{end}", batches, best, BATCH_MEAN, "the best peer at batch 8 and 32")
    else:
        words = {f"batch_mean_{end}": f"geometric mean ≤ {BATCH_MEAN:.2f} × the best peer at batch 8 and 32"}
        bars.missing(words, "not asked for")


def slow_bf16(halves: Sequence[Row], plain: Sequence[Row]) -> str | None:
    """Why bf16 does not count as fast here, measured on OpenVINO; None if it does, or if that was not measured."""
    pairs = [
        (half["engines"]["openvino"]["ms"], full["engines"]["openvino"]["ms"])
        for half in halves
        for full in plain
        if half["model"] == full["model"] and "openvino" in half["engines"] and "openvino" in full["engines"]
    ]
    if not pairs:
        return None
    share = geometric_mean(pairs)["median"]
    return None if share <= FAST else f"bf16 is not fast here: OpenVINO takes {share:.2f} of its fp32 time"


def compile_bars(bars: Bars, compiled: Mapping[str, Mapping[str, Any]]) -> None:
    """Bar 5: wall seconds of `espalier compile`, by model, at batch 1 in fp32."""
    times = {name: entry["seconds"] for name, entry in compiled.items() if entry["seconds"] is not None}
    failed = [name for name, entry in compiled.items() if entry["failed"]]
    words = f"≤ {COMPILE_RESNET50:g} s for ResNet-50, without tuning"
    if "resnet50" in compiled:
        seconds = times.get("resnet50")
        holds = seconds is not None and seconds <= COMPILE_RESNET50
        bars.benchmark.bar("compile_resnet50", seconds, words, holds)
    else:
        bars.benchmark.bar("compile_resnet50", None, words, None, "not in this run")
    words = f"≤ {COMPILE_ANY:g} s for every model"
    worst = max(times, key=lambda name: times[name], default=None)
    said = [f"failed: {', '.join(failed)}"] if failed else []
    said += [f"{len(compiled)} of {bars.wanted} models"] if len(compiled) < bars.wanted else []
    bars.benchmark.bar(
        "compile_each", None if worst is None else f"{times[worst]:.1f} s ({worst})", words,
        worst is not None and times[worst] <= COMPILE_ANY and not failed, "; ".join(said) or None,
    )  # fmt: skip
    words = f"≤ {COMPILE_WARM:g} s for every model with a warm database"
    warm = {name: entry["warm_seconds"] for name, entry in compiled.items() if "warm_seconds" in entry}
    if not warm:
        bars.missing({"compile_warm": words}, "not in this run")
        return
    failed = [name for name in warm if compiled[name]["warm_failed"]]
    known = {name: seconds for name, seconds in warm.items() if seconds is not None}
    worst = max(known, key=lambda name: known[name], default=None)
    said = [f"failed: {', '.join(failed)}"] if failed else []
    said += [f"{len(warm)} of {bars.wanted} models"] if len(warm) < bars.wanted else []
    bars.benchmark.bar(
        "compile_warm", None if worst is None else f"{known[worst]:.1f} s ({worst})", words,
        worst is not None and known[worst] <= COMPILE_WARM and not failed, "; ".join(said) or None,
    )  # fmt: skip


def memory_bars(bars: Bars, memory: Mapping[str, Mapping[str, Any]], arenas: Mapping[str, Any]) -> None:
    """Bar 6: peak resident memory by model and engine; the arena and its lower bound, where artifacts tell them."""
    words = "peak resident memory ≤ onnxruntime's on every model, in fresh processes that load and run"
    pairs = {name: (e[OURS], e["onnxruntime"]) for name, e in memory.items() if OURS in e and "onnxruntime" in e}
    if pairs:
        above = [name for name, (ours, peer) in pairs.items() if ours > peer]
        worst = max(pairs, key=lambda name: pairs[name][0] / pairs[name][1])
        ours, peer = pairs[worst]
        value = f"{ours / peer:.2f} ({worst}: {ours / 2**20:.0f} against {peer / 2**20:.0f} MiB)"
        value += f"; {len(pairs) - len(above)} of {len(pairs)} hold"
        bars.benchmark.bar("memory", value, words, not above, f"above: {', '.join(above)}" if above else None)
    else:
        bars.missing({"memory": words}, "not measured on any model")
    words = "arena ≤ 1.03 × the largest live set on every model"
    told = {name: entry["bytes"] / entry["lower_bound"] for name, entry in arenas.items() if entry}
    if not told:
        bars.missing({"arena": words}, "artifacts do not tell their arena and its lower bound")
        return
    worst = max(told, key=lambda name: told[name])
    bars.benchmark.bar(
        "arena", f"{told[worst]:.3f} ({worst})", words, told[worst] <= ARENA and len(told) == len(arenas)
    )


def answer_bars(bars: Bars, crowds: Mapping[str, Mapping[str, Any]]) -> None:
    """Bar 7: ours against onnxruntime without optimisations, and many threads at once."""
    for precision, words, right in (
        ("fp32", f"off by ≤ {TOLERANCE:g} of the largest output on every model", _close),
        ("bf16", f"signal to noise ≥ {SIGNAL:g} dB against fp32 on every model", _clear),
        (
            "int8",
            f"signal to noise against the QDQ graph's meaning ≥ {SIGNAL:g} dB, or {NEAR:g} from what {OPTIMIZED} has",
            _as_clear,
        ),
    ):
        rows = [row for row in bars.rows if row["precision"].partition("-")[0] == precision]
        if not rows:
            bars.missing({f"right_{precision}": words}, "not measured in this run")
            continue
        wrong = sorted({label(row) for row in rows if OURS in row["engines"] and not right(row["engines"])})
        failed = sorted({label(row) for row in rows if OURS in row["failed"]})
        said = [f"wrong: {', '.join(wrong)}"] if wrong else []
        said += [f"failed: {', '.join(failed)}"] if failed else []
        every = {label(row) for row in rows}
        value = f"{len(every - {*wrong, *failed})} of {len(every)}"
        bars.benchmark.bar(f"right_{precision}", value, words, not said, "; ".join(said) or None)
    words = "16 threads that call one artifact get what calls one by one get"
    done = {name: entry for name, entry in crowds.items() if "wrong" in entry}
    if not crowds:
        bars.missing({"threads": words}, "not measured in this run")
    else:
        calls, wrong_calls = sum(e["calls"] for e in done.values()), sum(e["wrong"] for e in done.values())
        failed = [name for name in crowds if name not in done]
        bars.benchmark.bar(
            "threads", f"{calls - wrong_calls} of {calls} calls", words, not wrong_calls and not failed and calls > 0,
            f"failed: {', '.join(failed)}" if failed else None,
        )  # fmt: skip


def random_bars(benchmark: Benchmark, rows: Sequence[Row]) -> None:
    """Bar 7, too: random networks, as `cpu_random.check` tells of each at each precision."""
    words = f"{NETWORKS} random networks agree with onnxruntime: fp32 within {TOLERANCE:g}, int8 but for proven ties"
    if not rows:
        benchmark.bar("random_graphs", None, words, None, "not in this run")
        return
    said, good, fewest = [], [], NETWORKS
    for precision in sorted({row["precision"] for row in rows}):
        every = [row for row in rows if row["precision"] == precision]
        right = sum(bool(row["agrees"]) for row in every)
        ties = sum(bool(row["agrees"]) and "because" in row for row in every)
        fewest = min(fewest, len(every))
        good.append(f"{precision}: {right} of {len(every)}{f' ({ties} but for proven ties)' if ties else ''}")
        wrong = [row for row in every if not row["agrees"]]
        said += [f"{precision} {row['network']} ({row.get('failed', 'differs')[:80]})" for row in wrong]
    wrong_ones = f"wrong: {', '.join(said)}" if said else None
    few = f"{fewest} networks only" if fewest < NETWORKS else None
    reason = "; ".join(filter(None, (wrong_ones, few))) or None
    benchmark.bar("random_graphs", ", ".join(good), words, not said, reason)


def _close(engines: Mapping[str, Mapping[str, Any]]) -> bool:
    return bool(engines[OURS]["difference"] <= TOLERANCE)


def _clear(engines: Mapping[str, Mapping[str, Any]]) -> bool:
    return bool(engines[OURS]["sqnr"] >= SIGNAL)


def _as_clear(engines: Mapping[str, Mapping[str, Any]]) -> bool:
    """Ties of roundings, which no two orders of sums decide alike, grow in deep networks; onnxruntime shows how far."""
    peer = engines.get("onnxruntime", {}).get("sqnr", math.inf)
    return bool(engines[OURS]["sqnr"] >= min(SIGNAL, max(LEAST_SIGNAL, peer - NEAR)))


# ---- tables ----------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], engines: Sequence[str]) -> dict[str, Any]:
    """Median milliseconds by engine and our ratio to the best peer, for `benchmarks.report`."""
    lines = []
    for row in rows:
        cells = [row["model"], row["precision"], str(row["batch"]), str(row["threads"])]
        for engine in engines:
            found = row["engines"].get(engine)
            cells.append(f"{found['median_ms']:.2f}" if found else "failed" if engine in row["failed"] else "–")
        found = row["ratios"].get(row["best_peer"])
        cells.append(interval(found) if found else "–")
        lines.append(cells)
    columns = ["model", "precision", "batch", "threads", *(f"{engine}, ms" for engine in engines), "ours ÷ best peer"]
    return {"columns": columns, "rows": lines}
