"""Where an artifact's time goes: its kernels, what they compute by the names of the source, and shares of the best."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from espalier import runtime
from espalier.errors import InputError
from espalier.runners import check_threads, feed, is_artifact, open_runner
from espalier.runtime.cpu import default_threads

ELEMENTS = ("f32", "bf16", "i8")
"""Whose multiplications are compared with what this machine can do at best."""


def profile(
    path: Path, *, data: str | None = None, threads: int | None = None, rounds: int = 15, seed: int = 0
) -> dict[str, Any]:
    """The kernels of an artifact in the order of their calls, each with its median time over the rounds.

    `share` is that of the time of all; `compute` the share of the multiply–accumulates that this machine can do in that
    time, and `memory` of the bytes that it can read from memory: above 1 where caches hold them. Both machine's figures
    are measured now; they and the shares of them are None if the compiler's backend is not installed.

    Raises InputError E201 for what is no artifact, ArtifactError E716 for one that does not tell of its kernels.
    """
    check_threads(threads)
    if rounds < 1:
        raise InputError("E201", "a profile needs at least one round")
    if not is_artifact(path):
        raise InputError("E201", f"{path} is no artifact", hint="Compile the model; its artifact can be profiled.")
    runner = open_runner(path, threads=threads)
    arrays = feed(runner, data, seed, [])
    with runtime.load(path, threads=threads) as model:
        model.profile(arrays)  # the first call loads code and pages
        calls = [model.profile(arrays) for _ in range(rounds)]
    seconds = np.median([[each for _, each in call] for call in calls], axis=0)
    count = threads or default_threads()
    best = _best(count)
    total = float(seconds.sum())
    rows = [
        _row(number, told, float(each), total, best)
        for number, ((told, _), each) in enumerate(zip(calls[0], seconds, strict=True))
    ]
    machine = {"threads": count, **{f"{name}_per_second": best.get(name) for name in (*ELEMENTS, "bytes")}}
    return {"artifact": str(path), "total_ms": 1e3 * total, "machine": machine, "kernels": rows}


def _best(threads: int) -> Mapping[str, float]:
    if find_spec("tvm") is None:
        return {}
    from espalier.backends.tvm import probe

    return probe.peaks(threads)


def _row(
    number: int, told: Mapping[str, Any], seconds: float, total: float, best: Mapping[str, float]
) -> dict[str, Any]:
    macs, size, peak = told["macs"], told["bytes"], best.get(told["element"] or "")
    known = bool(macs) and peak is not None and seconds > 0
    return {
        "kernel": number, "ms": 1e3 * seconds, "share": seconds / total if total else 0.0,
        "macs": macs, "element": told["element"], "bytes": size,
        "compute": macs / seconds / peak if known and peak else None,
        "memory": size / seconds / best["bytes"] if "bytes" in best and seconds > 0 else None,
        "nodes": told["nodes"],
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> list[str]:
    """A profile in lines for people: the kernels that take longest first."""
    machine = found["machine"]
    said = [f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"]
    said += [
        f"{machine[key] / 1e9:.0f} {unit} at best"
        for key, unit in (*((f"{name}_per_second", f"GMAC/s ({name})") for name in ELEMENTS),
                          ("bytes_per_second", "GB/s"))
        if machine[key] is not None
    ]  # fmt: skip
    lines = [f"{found['artifact']}: {found['total_ms']:.3f} ms in {len(found['kernels'])} kernels; {', '.join(said)}"]
    lines.append(f"{'ms':>9} {'share':>6} {'compute':>7} {'memory':>7} {'MMAC':>9} {'MB':>8}  computes")
    for row in sorted(found["kernels"], key=lambda row: -row["ms"]):
        shares = ["" if row[key] is None else f"{row[key]:.0%}" for key in ("compute", "memory")]
        macs = "?" if row["macs"] is None else f"{row['macs'] / 1e6:.2f}"
        lines.append(
            f"{row['ms']:9.3f} {row['share']:6.1%} {shares[0]:>7} {shares[1]:>7} {macs:>9} {row['bytes'] / 1e6:8.2f}"
            f"  {_nodes(row['nodes'])}"
        )
    return lines


def _nodes(nodes: list[dict[str, str]]) -> str:
    said = [f"{node['operator']} {node['name']}" + (f" ({node['source']})" if node["source"] else "") for node in nodes]
    return ", ".join(said) or "copies into another layout"
