"""A model in, the same kind of model out: for people who want to prune, grow or train one, not an artifact.

small = espalier.prune("model.onnx", ratio=0.5, output="small.onnx")
module = espalier.train.module.to_torch(small.graph)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from espalier import frontends
from espalier.analysis.coupling import couple
from espalier.backends.onnx import save
from espalier.cost.device import device as find_device
from espalier.cost.remaining import Remaining
from espalier.driver import reference_runner
from espalier.errors import InputError
from espalier.ir import Graph
from espalier.ir.clone import clone
from espalier.passes.base import Pass, lookup, parse_spec
from espalier.passes.manager import PassManager, PassReport, Report
from espalier.passes.pipelines import CLEANING, SEPARATING
from espalier.passes.structure.prune import Prune
from espalier.passes.structure.report import reason_lines, total_macs
from espalier.passes.structure.rounds import PruneInRounds, check_rounds
from espalier.train.data import Data, rereadable
from espalier.train.evaluate import Gate, Measure, Score
from espalier.train.masks import summed_weights


@dataclass(frozen=True)
class Edited:
    """A model that passes or training have changed.

    Attributes:
        changes: what each of the passes that were asked for did.
        path: the .onnx file, if one was asked for.
        score: of the original and the result, on the data.
        recovery: how it was trained afterwards, as JSON.
        details: what the passes say of their work, as JSON; `summary` in it are lines.
    """

    graph: Graph
    report: Report
    changes: tuple[PassReport, ...]
    details: Mapping[str, Any]
    path: Path | None = None
    score: Score | None = None
    recovery: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """What the verb prints with `--json`."""
        return {
            "model": None if self.path is None else str(self.path),
            "passes": [change.spec for change in self.changes],
            "agreement": self.report.whole_model if self.changes else None,
            "measured": next((change.measured for change in self.changes if change.measured), None),
            "score": None if self.score is None else {**self.score.__dict__, "drop": self.score.drop},
            "recovery": self.recovery,
            **{key: value for key, value in self.details.items() if key != "summary"},
        }

    def summary(self) -> list[str]:
        """The same in lines, for people."""
        lines = list(self.details.get("summary", ()))
        if self.changes:
            lines.append(self.report.whole_model)
        if self.recovery is not None:
            count = "steps" if self.recovery["epochs"] is None else "epochs"
            told = [f"{count}: {self.recovery[count]:g}"]
            told += [f"{name}: {self.recovery[name]}" for name in ("rounds", "sparsity") if name in self.recovery]
            if "zeros" in self.recovery:
                told.append(f"zeros in weights: {self.recovery['zeros']:.1%}")
            lines.append(f"trained by {self.recovery['by']}, {', '.join(told)}")
        if self.score is not None:
            s = self.score
            lines.append(
                f"{s.metric}: {s.original:.4f} → {s.compiled:.4f} on {s.samples} samples ({s.drop:+.2f} points lost)"
            )
        return [*lines, *([] if self.path is None else [str(self.path)])]


def prune(model: Any, *, ratios: str | Mapping[str, float] = "", rounds: int = 1, **options: Any) -> Edited:
    """Remove the least important indices of units, and return (and write) the smaller model.

    Args:
        model: anything that `espalier.load` takes. A torch module needs `example_inputs`.
        ratios: units with a ratio of their own, by pattern of their names.
        rounds: prune and train (by `recovery`) in so many rounds, each a part of both; more goes in the early ones.
        options: those of the pass `prune` (ratio, macs or params; criterion, scope, …; `only` and `ignore` may be lists
            of patterns), and those of `edit`: output, data, metric, max_drop, recovery, seed, device, example_inputs,
            dynamic_shapes, trust.

    Raises:
        InputError: the model, an option or the data are wrong. BudgetError: a target is out of reach.
        VerificationError: more accuracy was lost than `max_drop` allows. Nothing is written then.
    """
    if isinstance(ratios, Mapping):
        ratios = ";".join(f"{pattern}:{ratio}" for pattern, ratio in ratios.items())
    check_rounds(rounds)
    (chosen,), rest = _sorted({**options, "ratios": ratios}, "prune")
    whole = Prune(**chosen)
    if rounds == 1:
        return edit(model, [whole], **rest)
    recovery = rest.pop("recovery", None)
    if recovery is None:
        raise InputError("E201", "rounds are of pruning and of training", hint="Say how long: give epochs or steps.")
    rest["data"] = rereadable(rest.get("data"))
    training = _Rounds(recovery, rounds, rest["data"], rest.get("seed", 0))
    found = edit(model, [PruneInRounds(whole, rounds, training)], **rest)
    return replace(found, recovery=training.told)


def grow(model: Any, **options: Any) -> Edited:
    """Make a model larger that computes the same, and return (and write) it: wider, deeper, or both.

    Args:
        model: anything that `espalier.load` takes. A torch module needs `example_inputs`.
        options: those of the pass `widen` (factor or to; only, ignore, uneven, noise), those of the pass `deepen`
            (count or after; kind, kernel), and those of `edit`: output, data, metric, max_drop, recovery, seed, device,
            example_inputs, dynamic_shapes, trust. `only`, `ignore` and `after` may be lists of patterns.

    Raises:
        InputError: the model, an option or the data are wrong, or none of the chosen units can be widened (E221).
        UnsupportedError: no layer can be inserted there (E402), if nothing else was asked for, or where `after` says.
        VerificationError: the outputs are not the same (E602). Nothing is written then.
    """
    (wider, deeper), rest = _sorted(options, "widen", "deepen")
    passes: list[Pass] = []
    if wider.get("factor") is not None and wider.get("to") is not None:
        raise InputError("E201", "grow wants one of factor and to, not both")
    for name, chosen, triggers in (("widen", wider, ("factor", "to")), ("deepen", deeper, ("count", "after"))):
        given = {key: value for key, value in chosen.items() if value is not None}
        if any(given.get(trigger, "") != "" for trigger in triggers):
            also = {"optional": True} if name == "deepen" and passes and not given.get("after") else {}
            passes.append(lookup(name)(**{**also, **given}))
        elif given:
            raise InputError("E201", f"{next(iter(given))} has no meaning without {' or '.join(triggers)}")
    if not passes:
        raise InputError("E201", "grow wants factor or to, for wider models, or count or after, for deeper ones")
    return edit(model, passes, **rest)


def recover(model: Any, original: Any = None, **options: Any) -> Edited:
    """Train a model, by labels or to give what the original gives, and return (and write) it.

    Args:
        model: anything that `espalier.load` takes.
        original: the same, of the model that it was made of; None if there are labels.
        options: those of `espalier.train.recover.recover` (epochs or steps, imitate, learning_rate, …); `train_data` to
            train on other data; and those of `edit`: output, data, metric, max_drop, seed, example_inputs,
            dynamic_shapes, trust.

    Raises:
        InputError: the models, an option or the data are wrong, or do not fit each other.
        VerificationError: the result is worse than the original (without one, than the model before) by more than
            `max_drop`. Nothing is written then.
    """
    own = set(signature(edit).parameters) - {"device"}  # which is the one to train on
    settings = {key: value for key, value in options.items() if key not in own}
    rest = {key: value for key, value in options.items() if key in own}
    return edit(model, [], original=original, recovery=settings, **rest)


def _sorted(options: Mapping[str, Any], *names: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The options of each pass of these names (but the seed, which is the run's), and the others."""
    rest, found = dict(options), []
    for name in names:
        own = [each.name for each in fields(lookup(name)) if each.name != "seed"]  # type: ignore[arg-type]  # dataclasses
        found.append({key: _as_text(key, rest.pop(key)) for key in own if key in rest})
    return found, rest


def _as_text(key: str, value: Any) -> Any:
    if key in ("only", "ignore", "after") and value is not None and not isinstance(value, str):
        return ";".join(value)
    return str(value) if key == "round_to" else value


def edit(
    model: Any,
    changes: Sequence[Pass],
    *,
    output: str | Path | None = None,
    data: Any = None,
    metric: Measure = "auto",
    max_drop: float | None = None,
    recovery: Mapping[str, Any] | None = None,
    original: Any = None,
    seed: int = 0,
    device: str = "cpu",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
) -> Edited:
    """Run passes on a model after the lightest of cleaning; inputs, outputs and dynamic axes keep their names.

    Args:
        model: anything that `espalier.load` takes; a Graph stays as it is.
        changes: the passes.
        output: an .onnx file to write.
        data: see `espalier.train.data`.
        metric: what is measured on the data; see `espalier.train.evaluate`.
        max_drop: largest loss in points (of an error: growth in percent); needs data.
        recovery: how to train afterwards: the options of `espalier.train.recover.recover`, and `train_data` if it is to
            see other data.
        original: what the result is compared with, and imitates; the model as it was by default.

    Raises:
        InputError: E201 or E209 for the output, E212 for max_drop, a metric or training without data, E221 if nothing
            could be widened, and what loading, the passes and training raise.
        VerificationError: E602 if a pass that keeps the outputs did not, E604 if more was lost.
    """
    path = None if output is None else _target(Path(output))
    gate = Gate(metric, max_drop)
    gate.require(data)
    options = {"example_inputs": example_inputs, "dynamic_shapes": dynamic_shapes, "trust": trust or None}
    given = {key: value for key, value in options.items() if value is not None}
    loaded = frontends.load(model, **given)
    graph, reference = clone(loaded), loaded if original is None else frontends.load(original, **given)
    data = rereadable(data)
    dataset = None if data is None else Data(data, tuple(graph.inputs))
    before = SEPARATING if changes else CLEANING
    passes: Sequence[Pass] = [*map(parse_spec, before), *changes]
    manager = PassManager(passes, seed=seed, data=dataset, device=find_device(device))
    report = manager.run(graph)
    done = tuple(report.passes[len(before) :])
    details = _details(done, reference, graph)
    if "widened" in details and not details["widened"]:
        lines = [line for kind in ("kept", "frozen") for line in reason_lines(kind, details[kind])]
        why = "; ".join(lines) or "it has none"
        raise InputError("E221", f"no unit of the model can be widened: {why}")

    told = None
    if recovery is not None:
        graph, told = _recovered(graph, None if original is None and not changes else reference, data, recovery, seed)
    reached = None
    if dataset is not None:
        reached = gate.score(reference_runner(reference), reference_runner(graph), dataset)
    if path is not None:
        save(graph, path)
    return Edited(graph, report, done, details, path, reached, told)


def _details(done: Sequence[PassReport], before: Graph, after: Graph) -> dict[str, Any]:
    """What the passes have to say; of those that do not count costs themselves, how these grew."""
    found: dict[str, Any] = {"summary": []}
    for change in done:
        found.update({key: value for key, value in change.details.items() if key != "summary"})
        found["summary"] += change.details.get("summary", ())
    if done and "macs" not in found:
        parameters = [Remaining(couple(graph)).parameters for graph in (before, after)]
        macs = [total_macs(graph) for graph in (before, after)]
        found = {
            "macs": {"before": macs[0], "after": macs[1]},
            "parameters": {"before": parameters[0], "after": parameters[1]},
            **found,
        }
        found["summary"].insert(0, f"MACs {macs[0]} → {macs[1]}, parameters {parameters[0]} → {parameters[1]}")
    return found


def _recovered(
    graph: Graph, original: Graph | None, data: Any, options: Mapping[str, Any], seed: int
) -> tuple[Graph, dict[str, Any]]:
    """Train a graph; what it then is, and how that came about. Raises InputError E205, E212 and what `recover` does."""
    try:
        from espalier.train.recover import recover as train
    except ImportError:
        raise InputError("E205", "recovery trains with torch", hint="pip install 'espalier[torch]'") from None
    settings = dict(options)
    source = settings.pop("train_data", None)
    source = data if source is None else rereadable(source)
    if source is None:
        raise InputError("E212", "recovery needs data to train on", hint="Give some with --data or --train-data.")
    if original is not None:
        original = clone(original)
        PassManager(list(map(parse_spec, CLEANING)), "none").run(original)
    dataset = Data(source, tuple(graph.inputs))
    labelled = settings.get("labels", "auto")
    if labelled == "auto":
        labelled = next(iter(dataset)).labels is not None
    share = settings.get("imitate")
    share = (0.0 if labelled else 1.0) if share is None else share
    if settings.get("settings") is None:
        settings.setdefault("seed", seed)
    trained = train(graph, original, dataset, **settings)
    parts = [name for name, used in (("labels", share < 1), ("imitating the original", share > 0)) if used]
    sparse = (
        {} if settings.get("sparsity") is None else {"sparsity": str(settings["sparsity"]), "zeros": _zeros(trained)}
    )
    return trained, {**_length(settings), "by": " and ".join(parts), **sparse}


def _zeros(graph: Graph) -> float:
    """The share of zeros in the weights that nodes sum over."""
    arrays = [value.array for value, _, _ in summed_weights(graph)]
    return sum(int(np.sum(array == 0)) for array in arrays) / max(1, sum(array.size for array in arrays))


def _length(options: Mapping[str, Any]) -> dict[str, Any]:
    """How long training is asked for, whether in options or in settings."""
    given = options.get("settings")
    return {name: options.get(name, getattr(given, name, None)) for name in ("epochs", "steps")}


@dataclass
class _Rounds:
    """The training between rounds of pruning: each is an equal part of the whole, with a seed of its own."""

    recovery: Mapping[str, Any]
    count: int
    data: Any
    seed: int
    told: dict[str, Any] = field(default_factory=dict)
    """How the last one was trained, for as long as all together."""

    def __post_init__(self) -> None:
        if (source := self.recovery.get("train_data")) is not None:
            self.recovery = {**self.recovery, "train_data": rereadable(source)}

    def __call__(self, graph: Graph, original: Graph, number: int) -> Graph:
        trained, told = _recovered(graph, original, self.data, self.part(graph, number), self.seed)
        self.told = {**told, **_length(self.recovery), "rounds": self.count}
        return trained

    def part(self, graph: Graph, number: int) -> dict[str, Any]:
        """The options of one. Raises InputError E201 if there are fewer steps than rounds."""
        try:
            from espalier.train.loops import Settings, total_steps
            from espalier.train.sparse import KEEP
        except ImportError:
            raise InputError("E205", "recovery trains with torch", hint="pip install 'espalier[torch]'") from None
        found = dict(self.recovery)
        own = {name: found.pop(name) for name in list(found) if name in Settings.__dataclass_fields__}
        given = found.pop("settings", None)
        settings = Settings(**{"seed": self.seed, **own}) if given is None else replace(given, **own)
        source = self.data if found.get("train_data") is None else found["train_data"]
        if source is None:
            return found  # what is missing is said where it is needed
        total = total_steps(Data(source, tuple(graph.inputs)), settings)
        if total < self.count:
            hint = "Train longer, or in fewer rounds."
            raise InputError("E201", f"{total} steps of training are too few for {self.count} rounds", hint=hint)
        steps = total * (number + 1) // self.count - total * number // self.count
        seed = settings.seed
        if number:
            seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        found["settings"] = replace(settings, steps=steps, epochs=None, seed=seed)
        if (folder := found.get("checkpoint")) is not None:
            found["checkpoint"] = Path(folder) / f"round_{number + 1}"
        if number < self.count - 1 and found.get("sparsity") != KEEP:
            found["sparsity"] = None
        return found


def _target(path: Path) -> Path:
    """Raise InputError if the path can't become an ONNX file."""
    if path.suffix != ".onnx":
        raise InputError("E201", f"the output is an .onnx file, not {str(path)!r}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError("E209", f"{str(path)!r} cannot be written: no such folder, or it is one")
    return path
