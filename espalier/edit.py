"""A model in, the same kind of model out: for people who want one pass, not an artifact.

small = espalier.prune("model.onnx", ratio=0.5, output="small.onnx")
module = espalier.train.module.to_torch(small.graph)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from espalier import frontends
from espalier.backends.onnx import save
from espalier.cost.device import device as find_device
from espalier.driver import reference_runner
from espalier.errors import InputError, VerificationError
from espalier.ir import Graph
from espalier.ir.clone import clone
from espalier.passes.base import Pass, lookup, parse_spec
from espalier.passes.manager import PassManager, Report
from espalier.train.data import Data
from espalier.train.evaluate import Score, compare

CLEANING = ("dead_code", "inline_regions", "fold_constants", "dead_code")
"""What is done beforehand: shape arithmetic that is known goes, norms stay, so that the result can be trained on."""


@dataclass(frozen=True)
class Edited:
    """A model that a pass has changed."""

    graph: Graph
    report: Report
    path: Path | None = None
    """The .onnx file, if one was asked for."""
    score: Score | None = None

    @property
    def details(self) -> dict[str, Any]:
        """What the pass says of its work."""
        return self.report.passes[-1].details

    def to_json(self) -> dict[str, Any]:
        """What the verb prints with `--json`."""
        last = self.report.passes[-1]
        return {
            "model": None if self.path is None else str(self.path),
            "pass": last.spec,
            "measured": last.measured,
            "score": None if self.score is None else {**self.score.__dict__, "drop": self.score.drop},
            **{key: value for key, value in self.details.items() if key != "summary"},
        }

    def summary(self) -> list[str]:
        """The same in lines, for people."""
        lines = [*self.details.get("summary", ()), self.report.whole_model]
        if self.score is not None:
            s = self.score
            lines.append(
                f"{s.metric}: {s.original:.4f} → {s.compiled:.4f} on {s.samples} samples ({s.drop:+.2f} points lost)"
            )
        return [*lines, *([] if self.path is None else [str(self.path)])]


def prune(model: Any, *, ratios: str | Mapping[str, float] = "", **options: Any) -> Edited:
    """Remove the least important indices of units, and return (and write) the smaller model.

    Args:
        model: anything that `espalier.load` takes. A torch module needs `example_inputs`.
        ratios: units with a ratio of their own, by pattern of their names.
        options: those of the pass `prune` (ratio, macs or params; criterion, scope, …; `only` and `ignore` may be lists
            of patterns), and those of `edit`: output, data, max_drop, seed, device, example_inputs, dynamic_shapes,
            trust.

    Raises:
        InputError: the model, an option or the data are wrong. BudgetError: a target is out of reach.
        VerificationError: more accuracy was lost than `max_drop` allows. Nothing is written then.
    """
    if isinstance(ratios, Mapping):
        ratios = ";".join(f"{pattern}:{ratio}" for pattern, ratio in ratios.items())
    cls = lookup("prune")
    own = {each.name for each in fields(cls)}  # type: ignore[arg-type]  # passes are dataclasses
    chosen = {key: _as_text(key, value) for key, value in options.items() if key in own}
    rest = {key: value for key, value in options.items() if key not in own}
    return edit(model, cls(ratios=ratios, **chosen), **rest)  # type: ignore[call-arg]


def _as_text(key: str, value: Any) -> Any:
    if key in ("only", "ignore") and not isinstance(value, str):
        return ";".join(value)
    return str(value) if key == "round_to" else value


def edit(
    model: Any,
    change: Pass,
    *,
    output: str | Path | None = None,
    data: Any = None,
    max_drop: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    trust: bool = False,
) -> Edited:
    """Run one pass on a model after the lightest of cleaning; inputs, outputs and dynamic axes keep their names.

    Args:
        model: anything that `espalier.load` takes; a Graph stays as it is.
        change: the pass.
        output: an .onnx file to write.
        data: see `espalier.train.data`.
        max_drop: largest loss in points; needs data.

    Raises:
        InputError: E201 or E209 for the output, E212 for max_drop without data, and what loading and the pass raise.
        VerificationError: E604 if more was lost.
    """
    path = None if output is None else _target(Path(output))
    if max_drop is not None and data is None:
        raise InputError("E212", "max_drop needs data to measure the accuracy on", hint="Give some with --data.")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise InputError("E201", f"max_drop is in points, from 0 to 100, not {max_drop}")
    options = {"example_inputs": example_inputs, "dynamic_shapes": dynamic_shapes, "trust": trust or None}
    given = {key: value for key, value in options.items() if value is not None}
    graph = clone(model) if isinstance(model, Graph) else frontends.load(model, **given)
    original = clone(graph)
    dataset = None if data is None else Data(data, tuple(graph.inputs))
    passes: Sequence[Pass] = [*map(parse_spec, CLEANING), change]
    manager = PassManager(passes, seed=seed, data=dataset, device=find_device(device))
    report = manager.run(graph)
    score = None
    if dataset is not None:
        score = compare(reference_runner(original), reference_runner(graph), dataset)
        if max_drop is not None and score.drop > max_drop:
            raise VerificationError(
                "E604",
                f"{score.metric} fell from {score.original:.4f} to {score.compiled:.4f}: "
                f"{score.drop:.2f} points, more than {max_drop:g}",
                hint="Nothing was written. Allow more with --max-drop, or change less.",
            )
    if path is not None:
        save(graph, path)
    return Edited(graph, report, path, score)


def _target(path: Path) -> Path:
    """Raise InputError if the path can't become an ONNX file."""
    if path.suffix != ".onnx":
        raise InputError("E201", f"the output is an .onnx file, not {str(path)!r}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError("E209", f"{str(path)!r} cannot be written: no such folder, or it is one")
    return path
