"""Random networks (`benchmarks.zoo.random_networks`) through our artifacts and onnxruntime, in fp32 and int8.

In fp32 our outputs and onnxruntime's without optimisations may differ by 1e-4 of the largest. In int8 the same network,
quantized by onnxruntime's own static quantizer in one of several ways, must give the same, or differ by what
`benchmarks.ties` proves to be ties: every result of a quantizer is then what the exact number before it, or one within
rounding of that, is quantized to.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_runs import compiler_key

COUNT, QUICK_COUNT = 200, 2
PRECISIONS = ("fp32", "int8")
PATIENCE = 120.0
"""Seconds after which a network counts as hung."""
CALIBRATION = 4
Row = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]


def ways(seed: int) -> dict[str, Any]:
    """How a network is quantized."""
    from onnxruntime.quantization import QuantFormat, QuantType

    rng = np.random.default_rng([seed, 8])
    found: dict[str, Any] = {"quant_format": QuantFormat.QDQ, "per_channel": bool(rng.integers(2))}
    found["reduce_range"] = bool(rng.integers(3) == 0)
    found["activation_type"] = (QuantType.QUInt8, QuantType.QInt8)[rng.integers(2)]
    unsigned = found["activation_type"] == QuantType.QUInt8 and not found["per_channel"] and rng.integers(4) == 0
    found["weight_type"] = QuantType.QUInt8 if unsigned else QuantType.QInt8
    symmetric = bool(rng.integers(2)) and found["activation_type"] == QuantType.QInt8
    found["extra_options"] = {"ActivationSymmetric": symmetric, "DedicatedQDQPair": bool(rng.integers(4) == 0)}
    return found


def quantize(source: Path, target: Path, feeds: Sequence[Arrays], seed: int) -> dict[str, Any]:
    """Write the QDQ form of a model; returns in which way it was made."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rng = np.random.default_rng([seed, 9])
    drawn = [
        {name: rng.normal(size=array.shape).astype(np.float32) for name, array in feed.items()}
        for feed in feeds
        for _ in range(CALIBRATION)
    ]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # no types come with it
        def __init__(self) -> None:
            self.sets = iter(drawn)

        def get_next(self) -> Any:
            return next(self.sets, None)

    chosen = ways(seed)
    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    try:
        quantization.quantize_static(str(prepared), str(target), Reader(), **chosen)
    except ValueError:  # the quantizer divides biases of grouped transposed convolutions by scales of another shape
        chosen["per_channel"] = False
        quantization.quantize_static(str(prepared), str(target), Reader(), **chosen)
    return chosen


def check(seed: int, precision: str) -> Row:
    """One network at one precision.

    Returns:
        `network` (its seed), `precision`, `made_of`, `difference` relative to the largest output, `agrees` and, if it
        is not plain agreement, `because`; for int8 `ways`; `failed` where there is no answer of ours.
    """
    import onnx

    import espalier
    from benchmarks.models import compared, difference
    from benchmarks.references import onnxruntime_outputs
    from benchmarks.zoo.random_networks import network
    from espalier.backends.onnx import to_model
    from espalier.errors import EspalierError

    made, feeds = network(seed)
    row: Row = {"network": seed, "precision": precision, "made_of": made.made_of, "agrees": False}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "fp32.onnx"
        onnx.save(to_model(made.graph), path)
        if precision == "int8":
            source, path = path, Path(folder) / "int8.onnx"
            row["ways"] = {name: str(way) for name, way in quantize(source, path, feeds, seed).items()}
        wanted = onnxruntime_outputs(path, feeds)
        if isinstance(wanted, str):
            return {**row, "failed": wanted}
        try:
            run = espalier.compile(path, device="cpu", backend="tvm", output=Path(folder) / "artifact").load()
        except EspalierError as error:
            return {**row, "failed": f"{type(error).__name__}: {error}"[:500]}
        found = [run(feed) for feed in feeds]
        row.update(compared(path, "tvm", {"random": feeds}, {"random": wanted}, {"random": found}))
        row["same"] = difference(wanted, found) == 0.0
    return row


def key(seed: int, precision: str) -> str:
    """What a row depends on, as a hash."""
    here = Path(__file__).parent
    digest = hashlib.sha256(compiler_key().encode())
    for name in ("cpu_random.py", "zoo/random_networks.py", "ties.py", "models.py", "references.py"):
        digest.update((here / name).read_bytes())
    digest.update(json.dumps([seed, precision, version("onnxruntime")]).encode())
    return f"random {digest.hexdigest()}"


def check_all(jobs: Iterable[tuple[int, str]], patience: float, tell: Callable[[tuple[int, str], Row], None]) -> None:
    """`check` of all jobs in another process, which is started again where it ends or hangs."""
    context = multiprocessing.get_context("spawn")
    pool: ProcessPoolExecutor | None = None
    try:
        for job in jobs:
            pool = pool or ProcessPoolExecutor(1, context)
            try:
                row = pool.submit(check, *job).result(patience)
            except (BrokenProcessPool, TimeoutError) as error:
                said = f"no answer in {patience:g} s" if isinstance(error, TimeoutError) else "the process died"
                row = {"network": job[0], "precision": job[1], "agrees": False, "failed": said}
                for process in list(pool._processes.values()):
                    process.kill()
                pool.shutdown()
                pool = None
            except Exception as error:  # whatever a fault of ours raises
                said = f"{type(error).__name__}: {error}"[:500]
                row = {"network": job[0], "precision": job[1], "agrees": False, "failed": said}
            tell(job, row)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
