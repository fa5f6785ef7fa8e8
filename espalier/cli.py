"""The command line: parsing and printing only. What the verbs do stands in the modules that they call.

Exit codes: 0 done; 1 a fault of ours; 2 bad input or usage; 3 the budget can't be met; 4 a verification or accuracy
gate failed; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from espalier import __version__
from espalier.errors import InputError, InternalError, Interruption
from espalier.runtime.errors import EspalierError

app = App(
    name="espalier",
    help="Fit neural networks to devices.",
    version=__version__,
    help_format="plaintext",  # the others take half a second to import what prints them
    suppress_keyboard_interrupt=False,
)
Trust = Annotated[
    bool,
    Parameter(negative="", show_default=False, help="Allow formats that can run code while they load (.pt2)."),
]
Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print one JSON object.")]


@app.command(name="compile")
def compile_(
    model: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    device: str = "cpu",
    backend: str | None = None,
    pipeline: str = "exact",
    passes: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    data: str | None = None,
    budget: str | None = None,
    max_drop: float | None = None,
    verify: Literal["none", "structure", "rewrites", "all"] = "rewrites",
    seed: int = 0,
    stop_after: int | None = None,
    print_after: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    dump: Path | None = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Compile a model for a device, and write an artifact that runs.

    Parameters
    ----------
    model
        An .onnx or .pt2 file.
    output
        Folder of the artifact (or a file that ends in .zip).
    device
        A name that `espalier devices` prints, or a .toml file.
    backend
        Such as onnx or tvm; the device's own by default.
    pipeline
        Which passes: exact, none, or a .toml file with a list of them.
    passes
        Further passes, such as `fold_constants:limit=1024`.
    data
        An .npz file, a folder of such, or package.module:function; used by the accuracy gate.
    budget
        Needs a planner, which this version does not have.
    max_drop
        Largest loss in points of top-1 (of agreement with the original, without labels).
    verify
        How closely passes are checked.
    seed
        Seed of everything that is random.
    stop_after
        Do at most this many rewrites.
    print_after
        Print the graph after these passes.
    dump
        Folder for the graph when a pass fails.
    """
    from espalier.driver import compile as compile_model

    artifact = compile_model(
        model, device=device, backend=backend, output=output, pipeline=pipeline, passes=passes, data=data,
        budget=budget, max_drop=max_drop, verify=verify, seed=seed, stop_after=stop_after, print_after=print_after,
        printer=lambda text: print(_plain(text), file=sys.stderr), dump=dump, trust=trust,
    )  # fmt: skip
    _show(artifact.to_json(), json, artifact.summary())


@app.command
def prune(
    model: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    criterion: str = "magnitude",
    scope: Literal["local", "global", "isomorphic"] = "local",
    ratios: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    aggregate: Literal["mean", "sum", "max", "prod", "first"] = "mean",
    normalise: Literal["mean", "sum", "max", "std", "median", "lamp", "none"] = "mean",
    round_to: str = "1",
    only: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    ignore: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    exact_only: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    compensate: Annotated[Literal["", "data", "noise"], Parameter(show_default=False)] = "",
    samples: int = 1024,
    data: str | None = None,
    max_drop: float | None = None,
    device: str = "cpu",
    seed: int = 0,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Remove the least important channels, heads and features of a model; ONNX out, to compile or to train on.

    Parameters
    ----------
    model
        An .onnx or .pt2 file.
    output
        The .onnx file to write. Inputs and outputs keep their names, types and dynamic axes.
    ratio
        Share of each unit's indices to remove; with another scope, of all that are ranked together.
    macs
        Share of the multiply-accumulates to remove, instead of a ratio.
    params
        Share of the parameters to remove, instead of a ratio.
    criterion
        What an index is worth: magnitude (or magnitude:p=1), lamp, batch_norm_scale, fpgm, random; from data: taylor,
        snip, obd, activation, relative, obspa.
    scope
        What is ranked together: each unit for itself, all, or units that are used alike.
    ratios
        PATTERN:RATIO for units with a ratio of their own.
    aggregate
        How the scores of a unit's weights become one.
    normalise
        How units become comparable.
    round_to
        Axes of weights keep multiples of so many positions, or of what the device says (device).
    only
        Prune only units whose names match one of these patterns; `espalier inspect --units` prints the names.
    ignore
        Leave these units alone.
    exact_only
        Leave units alone over which statistics are computed.
    compensate
        Let what reads a unit make up for what goes, by least squares on the data, or on noise where there are none.
    samples
        How many samples the criterion and compensation look at; 0 for all.
    data
        An .npz file, a folder of such, or package.module:function.
    max_drop
        Largest loss in points of top-1 (of agreement with the original, without labels).
    device
        Whose multiples round_to=device means.
    seed
        Seed of everything that is random.
    """
    from espalier.edit import prune as prune_model

    found = prune_model(
        model, output=output, ratio=ratio, macs=macs, params=params, criterion=criterion, scope=scope,
        ratios=";".join(ratios), aggregate=aggregate, normalise=normalise, round_to=round_to, only=";".join(only),
        ignore=";".join(ignore), exact_only=exact_only, compensate=compensate, samples=samples, data=data,
        max_drop=max_drop, device=device, seed=seed, trust=trust,
    )  # fmt: skip
    _show(found.to_json(), json, found.summary())


@app.command
def run(
    artifact: Path,
    /,
    *,
    inputs: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    threads: int | None = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Run an artifact (or a model, by reference execution) on the arrays of an .npz file.

    Several batches of a model with a fixed batch are fed one after another.

    Parameters
    ----------
    inputs
        .npz with one array per input, by name or as input_0, input_1, …
    output
        .npz for the outputs, by name.
    threads
        How many threads; as many as there are cores by default.
    """
    from espalier.runners import check_target, open_runner, read_inputs, write_outputs

    check_target(output)
    runner = open_runner(artifact, threads=threads, trust=trust)
    found = runner(read_inputs(inputs, runner))
    write_outputs(output, found)
    shapes = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in found.items()}
    lines = [f"{name}: {s['dtype']}{s['shape']}" for name, s in shapes.items()]
    _show({"outputs": shapes, "file": str(output)}, json, lines)


@app.command
def bench(
    *models: Path, data: str | None = None, threads: int | None = None, rounds: int = 15, seed: int = 0,
    json: Json = False,
) -> None:  # fmt: skip
    """Time artifacts and models side by side: interleaved rounds, medians, ratios to the first.

    Parameters
    ----------
    models
        Artifacts; or .onnx files, run by onnxruntime.
    data
        Inputs, of which the first batch is fed; made-up ones by default.
    threads
        How many threads each engine may use.
    rounds
        Interleaved rounds that are timed.
    seed
        Seed of the inputs.
    """
    from espalier.runners import bench as measure

    rows = measure(models, data=data, threads=threads, rounds=rounds, seed=seed)
    failed = [row for row in rows if row["error"]]
    lines = [
        f"{'failed':>13}         {row['engine'] or '':12} {row['model']}" if row["error"]
        else f"{row['median_ms']:10.3f} ms  ×{row['ratio']:.2f}  {row['engine']:12} {row['model']}"
        for row in rows
    ]  # fmt: skip
    _show({"rows": rows}, json, lines)
    for row in failed:
        print(_plain(f"{row['error']['code']}: {row['model']}: {row['error']['message']}"), file=sys.stderr)
    if failed:
        raise SystemExit(2)


@app.command
def verify(
    a: Path, b: Path, /, *, data: str | None = None, tolerance: float | None = None, seed: int = 0,
    trust: Trust = False, json: Json = False,
) -> None:  # fmt: skip
    """Do two models or artifacts agree? Exit code 4 if they don't.

    Parameters
    ----------
    data
        Inputs to compare on; made-up ones by default.
    tolerance
        Largest difference relative to the largest output; 1e-4 for f32 and 1e-2 for 16-bit floats by default.
    """
    from espalier.runners import compare

    rows = compare(a, b, data=data, tolerance=tolerance, seed=seed, trust=trust)
    lines = [
        f"{row['output']}: off by {row['difference']:.3g} (limit {row['limit']:g})"
        if row["elements"] or not row["agrees"] else f"{row['output']}: empty, so there was nothing to compare"
        for row in rows
    ]  # fmt: skip
    apart = [row for row in rows if not row["agrees"]]
    _show({"agree": not apart, "outputs": rows}, json, [*lines, *([] if apart else ["They agree."])])
    if apart:
        worst = max(apart, key=lambda row: float(row["difference"]))
        print(f"E605: {a} and {b} do not agree: output {_plain(worst['output'])!r} differs most", file=sys.stderr)
        raise SystemExit(4)


@app.command
def inspect(
    model: Path, /, *, text: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    units: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    trust: Trust = False, json: Json = False,
) -> None:  # fmt: skip
    """What a model or an artifact is made of: inputs, outputs, operators, weights, MACs.

    Parameters
    ----------
    text
        Print the graph in text form instead.
    units
        Print what can be pruned or widened instead: each unit, the weights that have it, and why it is as it is.
    """
    from espalier.runners import describe

    found, printed = describe(model, text=text, units=units, trust=trust)
    _show(found, json, printed)


@app.command
def passes(name: str | None = None, /, *, json: Json = False) -> None:
    """The passes that there are, with their promises and options.

    Parameters
    ----------
    name
        Of one pass, whose options are listed.
    """
    from espalier.passes.base import PASSES, load_passes, lookup
    from espalier.passes.pipelines import PIPELINES

    load_passes()
    chosen = sorted(PASSES.items()) if name is None else [(name, lookup(name))]
    rows = [
        {"name": key, "semantics": str(cls.semantics), "summary": cls.summary(), "options": cls.option_types()}
        for key, cls in chosen
    ]
    lines = [f"{row['name']:28} {row['semantics']:13} {row['summary']}" for row in rows]
    if name is None:
        lines += [f"pipeline {key}: {' '.join(specs)}" for key, specs in PIPELINES.items()]
        _show({"passes": rows, "pipelines": PIPELINES}, json, lines)
    else:
        options = chosen[0][1].option_types()
        lines += [f"  {key}: {o['type']}, {o['default']} by default" for key, o in options.items()] or ["  no options"]
        _show({"passes": rows}, json, lines)


@app.command
def devices(*, json: Json = False) -> None:
    """The devices that there are."""
    from espalier.cost.device import devices as known
    from espalier.cost.device import faults

    rows = [device.model_dump(mode="json") for device in known().values()]
    lines = [f"{row['name']:12} {row['kind']:5} {row['backend']:9} {row['description']}" for row in rows]
    _show({"devices": rows}, json, lines)
    for error in faults():
        print(_plain(f"left out: {error}"), file=sys.stderr)


@app.command
def explain(subject: str, /, *, json: Json = False) -> None:
    """What an error code means, or how an artifact was made.

    Parameters
    ----------
    subject
        A code such as E103, or the path of an artifact.
    """
    from espalier.errors import CATALOGUE

    if subject.upper() in CATALOGUE:
        entry = CATALOGUE[subject.upper()]
        found = {"code": subject.upper(), "title": entry.title, "meaning": entry.meaning, "advice": entry.advice}
        _show(found, json, [f"{found['code']}: {entry.title}", "", entry.meaning, entry.advice])
    elif Path(subject).exists():
        from espalier.runners import explain_artifact

        manifest, lines = explain_artifact(Path(subject))
        _show(manifest, json, lines)
    else:
        raise InputError("E202", f"{subject!r} is neither an error code nor the path of an artifact")


def _show(found: Any, as_json: bool, lines: Sequence[str]) -> None:
    _print((json.dumps(found, default=str) if as_json else "\n".join(map(_plain, lines))) + "\n")


def _print(text: str) -> None:
    """Write to standard output now. Raises InputError E209 where it takes no more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        message = f"standard output cannot be written: {error.strerror}"
        hint = "What the command wrote to files is complete."
        raise InputError("E209", message, hint=hint) from None


def _plain(text: str) -> str:
    """Without control characters: names of a model may hold any, and terminals obey them."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in str(text))


def main(arguments: Sequence[str] | None = None, *, interrupted: bool = False) -> None:
    """Run the command line and exit with the code that says how it went (`interrupted`: at once)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names that the terminal's encoding lacks are no reason to fail
            stream.reconfigure(errors="backslashreplace")

    def act() -> None:
        if interrupted:
            raise KeyboardInterrupt
        app(arguments, exit_on_error=False, print_error=False)

    sys.exit(_guard(act, "--json" in arguments))


def _guard(action: Callable[[], Any], as_json: bool) -> int:
    try:
        action()
        _print("")
    except EspalierError as error:
        return _report(error, as_json)
    except CycloptsError as error:
        return _report(InputError("E201", str(error), hint="See espalier --help."), as_json)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": Interruption("E801", "interrupted").to_json()}))
        return 130
    except BrokenPipeError:  # whoever read our output is gone: so that the interpreter can flush it, send it nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 130
    except MemoryError as error:
        return _report(InputError("E117", f"there is not enough memory: {error}"), as_json)
    except Exception as error:  # a fault of ours, whatever it is: the details go to a file
        with tempfile.NamedTemporaryFile("w", prefix="espalier-", suffix=".log", delete=False, encoding="utf-8") as log:
            traceback.print_exc(file=log)
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return _report(InternalError("E901", f"a fault of espalier ({what}); the traceback is in {log.name}"), as_json)
    return 0


def _report(error: EspalierError, as_json: bool) -> int:
    print(_plain(str(error)), file=sys.stderr)
    if as_json:
        print(json.dumps({"error": error.to_json()}))
    return error.exit_code
