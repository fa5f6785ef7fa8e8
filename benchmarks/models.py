"""Real trained models: every ONNX file of ESPALIER_DATA, compiled for this CPU by both backends.

Each artifact is compared with onnxruntime (QONNX files: with qonnx, in its own environment; FINN's hardware form: with
a twin) on random inputs and on real ones where there are any; and on whole test sets by the number of right decisions.

An artifact agrees if no number differs by more than 1e-4 of the largest that the output has over all samples of a kind,
random or real. Where one differs by more, exact numbers decide. Of a quantized model, each quantizer must be proven to
round what it gets as the exact model would, but for ties (`benchmarks.ties`); the differences and ties are in the
results. Any other model must agree with itself in f64, computed by onnx's reference evaluator, while the reference does
not (onnxruntime's sigmoid is 0 from −18 down).

Right decisions must lie within one of the counts that round to the published share; or, where the reference itself
does not, on the same file and data, within one of the reference's.

A model that is refused counts only if the reference refuses it too, or if the refusal names an operator that only
FINN's hardware compiler knows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import ties
from benchmarks.common import Benchmark, data_folder
from benchmarks.datasets import TASKS, TWINS, decisions
from benchmarks.references import (
    Arrays,
    exact_outputs,
    hardware_operators,
    random_feeds,
    real_feeds,
    reference_name,
    reference_outputs,
    zeros,
)

BACKENDS = ("onnx", "tvm")
QUICK = ("mnist_cntk", "kws_dscnn_alibaba", "TFC_2W2A", "jsc_three_layer_keras", "qonnx_residual_block")
TOLERANCE = ties.TOLERANCE


def difference(wanted: Sequence[Arrays], found: Sequence[Arrays]) -> float:
    """Largest difference relative to the largest number that an output has over all samples."""
    worst = 0.0
    for name in wanted[0]:
        pairs = [(a[name].astype(np.float64), b[name].astype(np.float64)) for a, b in zip(wanted, found, strict=True)]
        if any(a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)) for a, b in pairs):
            return float("inf")
        scale = max(float(np.max(np.abs(a), initial=0)) for a, _ in pairs) or 1.0
        worst = max(worst, *(float(np.nanmax(np.abs(a - b), initial=0)) / scale for a, b in pairs))
    return worst


def samples_of(name: str, data: Path, like: Arrays, quick: bool) -> tuple[list[Arrays], Any]:
    """The whole test set (500 samples if `quick`) in calls of the model's batch, or of 250; and the labels."""
    samples, labels = TASKS[name].samples(data)
    if quick:
        samples, labels = samples[:500], labels[:500]
    (key, array) = next(iter(like.items()))
    from espalier.frontends import load

    fixed = load(data / "models" / f"{name}.onnx").inputs[0].shape[0]
    batch = fixed if isinstance(fixed, int) else 250
    return [{key: samples[k : k + batch].astype(array.dtype)} for k in range(0, len(samples), batch)], labels


def right(outputs: Sequence[Arrays], labels: Any) -> int:
    """How many decisions are right."""
    found = np.concatenate([next(iter(output.values())) for output in outputs])
    return int(np.sum(decisions(found) == labels))


def check(path: Path, data: Path, seed: int, quick: bool) -> dict[str, Any]:
    """One model through both backends."""
    import espalier
    from espalier.errors import EspalierError

    model, name = onnx.load(path), path.stem
    row: dict[str, Any] = {"reference": reference_name(path, model)}
    try:
        groups = {"random": random_feeds(path, model, seed)}
    except EspalierError as error:
        wanted = reference_outputs(path, model, [zeros(model)])
        refuses = isinstance(wanted, str)
        return {
            **row,
            "refused": str(error),
            "reference_refuses": refuses,
            "reference_says": wanted if refuses else "runs",
        }
    if real := real_feeds(name, data, groups["random"][0]):
        groups["real"] = real
    expected = {kind: reference_outputs(path, model, feeds) for kind, feeds in groups.items()}
    if failed := [found for found in expected.values() if isinstance(found, str)]:
        row["reference_fails"] = failed[0]
    whole, labels = samples_of(name, data, groups["random"][0], quick) if name in TASKS else ([], None)
    if whole and (TASKS[name].published or name in TWINS):
        wanted = reference_outputs(path, model, whole)
        row["of"], row["published_percent"] = len(labels), TASKS[name].published
        row["reference_right"] = None if isinstance(wanted, str) else right(wanted, labels)
        row["accepted"] = None if quick else accepted(name, len(labels), row["reference_right"])
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            try:
                artifact = espalier.compile(path, device="cpu", backend=backend, output=Path(folder) / "artifact")
            except EspalierError as error:
                row[backend] = {"refused": str(error)}
                continue
            entry: dict[str, Any] = {"compile_seconds": round(time.process_time() - start, 2)}
            run = artifact.load()
            row[backend] = entry
            found = {kind: [run(feed) for feed in feeds] for kind, feeds in groups.items()}
            if "reference_fails" not in row:
                entry.update(compared(path, backend, groups, expected, found))
            if "of" in row:
                entry["right"] = right([run(feed) for feed in whole], labels)
    return row


def compared(path: Path, backend: str, groups: Any, expected: Any, found: Any) -> dict[str, Any]:
    """How far an artifact's outputs are from the reference's; if they are far, how far both are from exact numbers.

    Args:
        groups: Samples by kind.
        expected: The reference's outputs by kind.
        found: The artifact's.
    """
    from espalier.frontends import load

    entry: dict[str, Any] = {"difference": max(difference(expected[kind], found[kind]) for kind in groups)}
    entry["agrees"] = entry["difference"] <= TOLERANCE
    if entry["agrees"] or not np.isfinite(entry["difference"]):
        return entry
    if ties.quantizers(load(path)):
        proofs = {kind: ties.stepwise(path, backend, groups[kind], found[kind]) for kind in groups}
        entry["apart"] = sum(apart(expected[kind], found[kind]) for kind in groups)
        entry["stepwise"] = proofs
        entry["agrees"] = all(proof["proven"] and proof["difference"] <= TOLERANCE for proof in proofs.values())
        entry["because"] = "agrees but for proven ties"
    else:
        exact = {kind: exact_outputs(path, feeds) for kind, feeds in groups.items()}
        entry["off_exact"] = max(difference(exact[kind], found[kind]) for kind in groups)
        entry["reference_off_exact"] = max(difference(exact[kind], expected[kind]) for kind in groups)
        entry["agrees"] = entry["off_exact"] <= TOLERANCE < entry["reference_off_exact"]
        entry["because"] = "agrees with the model in f64, which the reference does not"
    return entry


def apart(wanted: Sequence[Arrays], found: Sequence[Arrays]) -> int:
    """How many numbers differ by more than the tolerance."""
    scale = {name: max(float(np.max(np.abs(a[name]), initial=0)) for a in wanted) or 1.0 for name in wanted[0]}
    pairs = [(a[name], b[name], TOLERANCE * scale[name]) for a, b in zip(wanted, found, strict=True) for name in a]
    return sum(int(np.sum(np.abs(a - b) > limit)) for a, b, limit in pairs)


def accepted(name: str, of: int, by_reference: int | None) -> tuple[int, int] | None:
    """Fewest and most right decisions that count as the model's accuracy."""
    published = TASKS[name].accepted(of)
    if by_reference is None or (published is not None and published[0] <= by_reference <= published[1]):
        return published
    return by_reference - 1, by_reference + 1


def work(path: Path, seed: int, quick: bool) -> dict[str, Any]:
    """`check` in a process of its own, so that a crash is a result."""
    command = [sys.executable, "-m", "benchmarks.models", "--work", str(path), "--seed", str(seed)]
    process = subprocess.run([*command, *(["--quick"] if quick else [])], capture_output=True, text=True, check=False)
    for line in process.stdout.splitlines():
        if line.startswith("ROW "):
            return dict(json.loads(line[4:]))
    return {"crashed": process.stderr[-500:]}


def verdict(row: dict[str, Any], backend: str, only_finn: set[str]) -> tuple[bool, str]:
    """Whether a backend's result counts as right, and why."""
    entry = row.get(backend, {})
    if "crashed" in row:
        return False, "crashed"
    refusal = row.get("refused") or entry.get("refused")
    if refusal:
        if any(op_type in refusal for op_type in only_finn):
            return True, "refused by name: an operator that only FINN knows"
        if row.get("reference_refuses"):
            return True, f"refused, as {row['reference']} refuses it"
        return False, "refused"
    if "reference_fails" in row:
        return False, f"no reference: {row['reference_fails']}"
    return entry["agrees"], entry.get("because", "compared") if entry["agrees"] else "differs"


def accuracy_bar(benchmark: Benchmark, rows: dict[str, dict[str, Any]]) -> None:
    """The bar of whole test sets."""
    known, off, notes = 0, [], []
    for name, row in rows.items():
        if not row.get("accepted"):
            continue
        low, high = row["accepted"]
        for backend in (b for b in BACKENDS if "right" in row.get(b, {})):
            known += 1
            if not low <= row[backend]["right"] <= high:
                off.append(f"{name} ({backend}: {row[backend]['right']} for {low} to {high})")
        if (low, high) != (TASKS[name].accepted(row["of"]) or (low, high)):
            found, share = row["reference_right"], 100 * row["reference_right"] / row["of"]
            notes.append(
                f"{name}: {row['reference']} itself gets {found} of {row['of']} ({share:.2f} %) right,"
                f" not the published {row['published_percent']} %"
            )
    if known:
        reason = "; ".join([*off, *notes]) or None
        benchmark.bar("accuracy", f"{known - len(off)} of {known}", "within one prediction", not off, reason)
    else:
        benchmark.bar("accuracy", None, "within one prediction", None, "--quick uses 500 samples; no whole test set")


def main() -> None:
    benchmark = Benchmark("models", __doc__)
    benchmark.parser.add_argument("--work", type=Path, help="(internal) check one model")
    benchmark.parser.add_argument("--only", nargs="*", help="names of models; all by default")
    arguments = benchmark.parse()
    data = data_folder()
    if data is None:
        for name in ("agreement_onnx", "agreement_tvm", "accuracy"):
            benchmark.bar(name, None, "every model", None, "ESPALIER_DATA is not set")
        benchmark.finish()
        return
    if arguments.work:
        print("ROW " + json.dumps(check(arguments.work, data, arguments.seed, arguments.quick)))
        return
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted((data / "models").glob("*.onnx")):
        if (arguments.quick and path.stem not in QUICK) or (arguments.only and path.stem not in arguments.only):
            continue
        row = rows[path.stem] = work(path, arguments.seed, arguments.quick)
        only_finn = hardware_operators(onnx.load(path, load_external_data=False))
        row["holds"], row["because"] = {}, {}
        for backend in BACKENDS:
            row["holds"][backend], row["because"][backend] = verdict(row, backend, only_finn)
        benchmark.say(f"{path.stem}: {json.dumps(row)[:900]}")
    benchmark.details["models"] = rows
    for backend in BACKENDS:
        bad = [name for name, row in rows.items() if not row["holds"][backend]]
        notes = [f"{n}: {r['because'][backend]}" for n, r in rows.items() if r["because"][backend] != "compared"]
        benchmark.bar(
            f"agreement_{backend}", f"{len(rows) - len(bad)} of {len(rows)}", "agreement to 1e-4 on every model",
            not bad, "; ".join(notes) or None,
        )  # fmt: skip
    accuracy_bar(benchmark, rows)
    benchmark.finish()


if __name__ == "__main__":
    main()
