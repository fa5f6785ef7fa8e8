"""The driver: a model goes in, passes rewrite it, a backend emits it, a checked artifact comes out."""

from __future__ import annotations

import contextlib
import math
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import espalier
from espalier import frontends, runtime
from espalier.backends.base import Emission, Tunable, Tuning
from espalier.backends.base import backend as find_backend
from espalier.cost.device import Device
from espalier.cost.device import device as find_device
from espalier.errors import EspalierError, InputError, VerificationError
from espalier.ir import Graph, TensorType, Value, structural_hash
from espalier.ir.clone import clone
from espalier.ir.execute import run
from espalier.passes.base import PASSES, parse_spec
from espalier.passes.manager import PassManager, Report, VerifyLevel
from espalier.passes.pipelines import pipeline as find_pipeline
from espalier.passes.samples import NoSample, sensitivity, try_graph
from espalier.runtime.cpu import check_device
from espalier.runtime.files import check_output, write_artifact
from espalier.runtime.manifest import DeviceSpec, Manifest, PassRecord, TensorSpec, artifact_hash
from espalier.train.agreement import disagreement
from espalier.train.data import Data, rereadable
from espalier.train.evaluate import Gate, Measure, Runner, Score, in_batches


@dataclass(frozen=True)
class Artifact:
    """A compiled model on disk."""

    path: Path
    manifest: Manifest
    report: Report
    score: Score | None = None
    agreement: str = "not checked"
    """How the artifact's outputs compare with the original model's."""
    tuning: Mapping[str, Any] | None = None
    """What was measured, if that was asked for."""

    @property
    def hash(self) -> str:
        """SHA-256 of the whole artifact: the same for the same model, data, options, seed and versions."""
        return artifact_hash(self.manifest)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.manifest.files.values())

    def load(self, *, threads: int | None = None) -> runtime.LoadedModel:
        """The artifact, ready to run."""
        return runtime.load(self.path, threads=threads)

    def to_json(self) -> dict[str, Any]:
        """What `espalier compile --json` prints."""
        return {
            "artifact": str(self.path),
            "hash": self.hash,
            "size": self.size,
            "engine": self.manifest.engine,
            "device": self.manifest.device.name,
            "agreement": self.agreement,
            "score": None if self.score is None else {**self.score.__dict__, "drop": self.score.drop},
            "tuning": self.tuning,
            "report": self.report.to_json(),
        }

    def summary(self) -> list[str]:
        """The same in lines, for people."""
        lines = [f"{self.path}: {self.size / 1e6:.2f} MB, {self.manifest.engine}, for {self.manifest.device.name}"]
        lines += [
            line
            for p in self.report.passes
            for line in (
                f"  {p.spec:28} {p.rewrites:6} rewrites, {p.nodes_before} → {p.nodes_after} nodes, {p.seconds:.2f} s",
                *(f"    {said}" for said in p.details.get("summary", ())),
            )
        ]
        if self.tuning is not None:
            t, changed = self.tuning, len(self.manifest.options.get("choices", ()))
            lines.append(
                f"tuning: {t['measured']} kernels measured in {t['seconds']:.0f} s{', interrupted' * t['interrupted']}"
                f"; {t['known']} of {t['kernels']} known, {changed} of them not as the rules choose"
            )
        lines += [f"passes: the model {self.report.whole_model}", f"artifact: {self.agreement}"]
        if self.score is not None:
            s = self.score
            lines.append(
                f"{s.metric}: {s.original:.4f} → {s.compiled:.4f} on {s.samples} samples ({s.drop:+.2f} points lost)"
            )
        return lines


def compile(
    model: Any,
    *,
    output: str | Path,
    device: str = "cpu",
    backend: str | None = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    pipeline: str = "exact",
    passes: Sequence[str] = (),
    data: Any = None,
    metric: Measure = "auto",
    max_drop: float | None = None,
    budget: str | None = None,
    verify: VerifyLevel = "rewrites",
    seed: int = 0,
    stop_after: int | None = None,
    print_after: Sequence[str] = (),
    printer: Callable[[str], None] = print,
    dump: Path | None = None,
    trust: bool = False,
    tune: float | None = None,
    choices: str | Path | None = None,
    threads: int | None = None,
) -> Artifact:
    """Compile a model for a device, and write an artifact.

    Args:
        model: anything that `espalier.load` takes; a Graph stays as it is.
        output: folder of the artifact, or a path that ends in .zip. Written whole or not at all.
        device: name of a device, or a .toml file.
        backend: name of a backend; the device's own by default.
        example_inputs: for a torch module: a tuple of tensors to export it with.
        dynamic_shapes: for a torch module: as `torch.export.export` takes them.
        pipeline: "exact", "none", or a .toml file.
        passes: specifications of further passes, such as "fold_constants:limit=1024".
        data: see `espalier.train.data`; what accuracy (with labels) or agreement is measured on.
        metric: what is measured on the data; see `espalier.train.evaluate`.
        max_drop: largest loss in points (of an error: growth in percent); needs data.
        verify: how closely passes are checked, and (unless "none") that the artifact agrees with the model, if this
            machine can run it.
        seed: seed of everything random.
        tune: seconds to measure how kernels are computed fastest on this machine; with 0, only what is known from
            earlier is taken. None: the backend's rules choose. Ctrl-C ends the measuring, and a second one all.
        choices: the database of what was measured; by default one in the user's cache, or the one that the
            environment variable ESPALIER_CHOICES names.
        threads: with how many threads kernels are measured; as many as there are cores by default.

    Raises:
        InputError: the model, the options or the data are wrong (exit code 2).
        UnsupportedError: the backend can't emit a node (2).
        VerificationError: a check failed, or more accuracy was lost than `max_drop` allows (4).
    """
    if budget is not None:
        raise InputError(
            "E211", "a budget needs a planner, which this version does not have", hint="Leave --budget out."
        )
    gate = Gate(metric, max_drop)
    gate.require(data)
    check_output(Path(output))
    target = find_device(device)
    chosen = backend or target.backend
    emitter = find_backend(chosen)
    asked = _tuning(tune, choices, threads, target)
    if asked is not None and not isinstance(emitter, Tunable):
        raise InputError("E201", f"the backend {chosen} has nothing to tune", hint="Leave --tune out.")
    sequence = [*find_pipeline(pipeline), *map(parse_spec, passes)]

    options = {"example_inputs": example_inputs, "dynamic_shapes": dynamic_shapes, "trust": trust or None}
    made_by = {
        "backend": chosen,
        "passes": [each.spec for each in sequence],
        "seed": seed,
        "stop_after": stop_after,
        "max_drop": max_drop,
    }
    original = frontends.load(model, **{key: value for key, value in options.items() if value is not None})
    graph = clone(original)
    dataset = None if data is None else Data(rereadable(data), tuple(original.inputs))
    manager = PassManager(sequence, verify, seed, stop_after, print_after, printer, dump, dataset, target)
    report = manager.run(graph)

    if asked is not None and isinstance(emitter, Tunable):
        with _interruptible(printer) as stopped:
            emitter.tune(clone(graph), target, replace(asked, stopped=stopped))
    with tempfile.TemporaryDirectory(prefix="espalier-") as work:
        emission = emitter.emit(clone(graph), target, Path(work))
        manifest = _manifest(original, emission, target, report, made_by)
        staged = Path(work) / "artifact.staged"
        manifest = write_artifact(staged, manifest, dict(emission.files))
        elsewhere = _elsewhere(manifest.device, target)
        if elsewhere is not None:
            gate.require_measurable(elsewhere)
        if verify == "none":
            agreement = "not checked"
        elif elsewhere is not None:
            agreement = f"not compared: {elsewhere}"
        else:
            trial = partial(_check, staged, manager.reference or original, seed, dataset)
            agreement, manifest = _checked(trial, staged, manifest, emission)
        if manager.reference is not None:  # the passes that approximate have their own figures
            agreement = agreement.replace("the original", "the model after the last pass that approximates")
        score = None
        if dataset is not None and elsewhere is None:
            score = gate.score(reference_runner(original), artifact_runner(staged), dataset)
            manifest = replace(manifest, evaluation={**score.__dict__})
        checked = {name: staged / name for name in manifest.files}
        manifest = write_artifact(output, manifest, checked, manifest.files)
    return Artifact(Path(output), manifest, report, score, agreement, emission.tuning)


def _tuning(seconds: float | None, database: str | Path | None, threads: int | None, device: Device) -> Tuning | None:
    """What to measure; None: nothing. Raises InputError E201 for wrong options, E234 for other machines' devices."""
    if seconds is None:
        for name, value in (("choices", database), ("threads", threads)):
            if value is not None:
                raise InputError("E201", f"{name} is about tuning, which `tune` (--tune) asks for")
        return None
    if not 0 <= seconds < math.inf:
        raise InputError("E201", f"tuning takes a number of seconds from 0 on, not {seconds}")
    if threads is not None and threads < 1:
        raise InputError("E201", f"threads must be at least 1, not {threads}")
    if device.kind != "cpu" or not device.is_host:
        raise InputError(
            "E234", f"kernels for the device {device.name} cannot be measured on this machine",
            hint="Leave --tune out, or compile for the device cpu where the artifact runs.",
        )  # fmt: skip
    return Tuning(float(seconds), None if database is None else Path(database), threads)


@contextlib.contextmanager
def _interruptible(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed inside. A second time it ends the program as usual."""
    pressed: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield lambda: False
        return

    def press(number: int, _: Any) -> None:
        signal.signal(signal.SIGINT, usual)
        pressed.append(number)
        say("tuning ends here; compiling with what was measured (Ctrl-C again ends that, too)")

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, usual)


def _manifest(graph: Graph, emission: Emission, device: Device, report: Report, made_by: Mapping[str, Any]) -> Manifest:
    """Everything that reproduces the artifact; no time and no place in it."""
    records = [
        PassRecord(p.spec, p.semantics, p.rewrites, {"nodes_before": p.nodes_before, "nodes_after": p.nodes_after})
        for p in report.passes
    ]
    return Manifest(
        engine=emission.engine,
        inputs=tuple(tensor_spec(value.name, value) for value in graph.inputs),
        outputs=tuple(tensor_spec(name, value) for name, value in zip(graph.output_names, graph.outputs, strict=True)),
        device=DeviceSpec(
            device.name,
            device.machine if emission.instruction_sets or emission.native else "",
            device.system if emission.native else "",
            emission.instruction_sets,
        ),
        backend=dict(emission.section),
        passes=tuple(records),
        source={"graph": structural_hash(graph), "name": graph.name},
        options={**made_by, **emission.options},
        seeds={"seed": made_by["seed"]},
        versions={"espalier": espalier.__version__, **emission.versions},
    )


def tensor_spec(name: str, value: Value) -> TensorSpec:
    """A value as the manifest describes it. Raises UnsupportedError for what is no tensor."""
    from espalier.errors import UnsupportedError

    if not isinstance(value.type, TensorType):
        raise UnsupportedError("E410", f"{name!r} is a {value.type}; artifacts take and give tensors", node=name)
    shape = value.type.shape
    extents = None if shape is None else tuple(d if isinstance(d, int) else str(d) for d in shape)
    return TensorSpec(name, value.element.storage.name, extents)


def _elsewhere(spec: DeviceSpec, device: Device) -> str | None:
    """Why this machine cannot run an artifact that is for such a device; None if it can.

    Raises ArtifactError E707 if it cannot, although the device is this machine.
    """
    try:
        check_device(spec)
    except runtime.ArtifactError as error:
        if device.is_host:
            raise
        return error.message
    return None


def _checked(trial: Callable[[], str], staged: Path, manifest: Manifest, emission: Emission) -> tuple[str, Manifest]:
    """What a trial of the staged artifact says; where it fails, that of one whose engine takes fewer liberties."""
    try:
        return trial(), manifest
    except EspalierError as error:
        if emission.cautious is None or error.code not in ("E603", "E712"):
            raise
        careful = replace(manifest, backend=dict(emission.cautious))
        careful = write_artifact(staged, careful, {name: staged / name for name in manifest.files})
        try:
            agreement = trial()
        except EspalierError:
            raise error from None
        reason = f"{error.code}: {error.message.splitlines()[0][:200]}"
        return f"{agreement}; only with the engine's basic optimizations ({reason})", careful


def _check(path: Path, original: Graph, seed: int, data: Data | None) -> str:
    """Compare the artifact with the original model on data or made-up inputs. Raises VerificationError E603."""
    if not original.is_deterministic:
        return "not compared: the model holds random or unknown operators"
    try:
        inputs, wanted = trial = try_graph(original, seed, data)
    except NoSample as error:
        return f"not compared: {error}"
    if trial.is_empty:
        return "not compared: all outputs are empty"
    try:
        found = artifact_runner(path)(inputs)
    except EspalierError as error:
        error.hint = f"{error.hint or ''} {_remedy(original)}".strip()
        raise
    worst = 0.0
    for position, (name, a, b) in enumerate(zip(original.output_names, wanted, found, strict=True)):
        difference, limit = disagreement(a, b)
        worst = max(worst, difference)
        if difference > limit:
            try:
                limit = max(limit, 2 * sensitivity(original, inputs, wanted, position, seed))
            except NoSample as error:
                return f"not compared: {error}"
        if not difference <= limit:
            raise VerificationError(
                "E603",
                f"output {name!r} of the artifact is off by {difference:.3g} of its largest element (limit {limit:g})",
                node=name,
                hint="Nothing was written. Find the rewrite with --stop-after K or --verify all, and report it.",
            )
    return f"agrees with the original (largest difference {worst:.2g} of the largest output)"


def _remedy(graph: Graph) -> str:
    """What may help where an engine does not take what a backend made of a graph."""
    kinds = {type(node.op) for node in graph}
    foreign = sorted((kind for kind in kinds if not kind.__module__.startswith("espalier.")), key=lambda k: k.name)
    if foreign:
        packages = {kind.__module__.partition(".")[0] for kind in foreign}
        passes = sorted(name for name, cls in PASSES.items() if cls.__module__.partition(".")[0] in packages)
        there = f"their packages have the passes {', '.join(passes)}" if passes else "their packages have no passes"
        return f"{', '.join(k.name for k in foreign)} must be lowered to operators of ONNX first: {there} (--passes)."
    return "Another --backend may run it; --verify none writes the artifact without this check."


def reference_runner(graph: Graph) -> Runner:
    """Reference execution; in pieces where the model has a fixed batch."""

    def call(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return run(graph, list(inputs))

    return in_batches(call, [value.shape for value in graph.inputs])


def artifact_runner(path: Path) -> Runner:
    """An artifact as a function on arrays in order."""
    loaded = runtime.load(path)

    def call(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        feed = {spec.name: array for spec, array in zip(loaded.inputs, inputs, strict=True)}
        return list(loaded(feed).values())

    return in_batches(call, [spec.shape for spec in loaded.inputs])
