"""The command line: parsing and printing only. What the verbs do stands in the modules that they call.

Exit codes: 0 done; 1 a fault of ours; 2 bad input or usage; 3 the budget can't be met; 4 a verification or accuracy
gate failed; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, CycloptsError

from espalier import __version__
from espalier.cli.editing import grow, prune, recover
from espalier.cli.options import Flag, Json, MaxDrop, Metric, Output, Seed, Several, Source, Trust, seconds
from espalier.cli.output import as_text, plain, show, write
from espalier.errors import InputError, InternalError, Interruption
from espalier.runtime.errors import EspalierError

app = App(
    name="espalier",
    help="Fit neural networks to devices.",
    version=__version__,
    help_format="plaintext",  # the others take half a second to import what prints them
    suppress_keyboard_interrupt=False,
)


@app.command(name="compile")
def compile_(
    model: Path,
    /,
    *,
    output: Output,
    device: str = "cpu",
    backend: str | None = None,
    pipeline: str = "exact",
    passes: Several = (),
    data: Source = None,
    budget: str | None = None,
    metric: Metric = "auto",
    max_drop: MaxDrop = None,
    verify: Literal["none", "structure", "rewrites", "all"] = "rewrites",
    seed: Seed = 0,
    stop_after: int | None = None,
    print_after: Several = (),
    dump: Path | None = None,
    tune: str | None = None,
    choices: Path | None = None,
    threads: int | None = None,
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
        A further pass, such as `fold_constants:limit=1024`; give the option again for each.
    budget
        Needs a planner, which this version does not have.
    verify
        How closely passes are checked.
    stop_after
        Do at most this many rewrites.
    print_after
        Print the graph after these passes.
    dump
        Folder for the graph when a pass fails.
    tune
        Measure for so long (60s, 2m) how kernels are computed fastest here; 0s takes what was measured before.
    choices
        The file of what was measured; one in the user's cache by default.
    threads
        Measure with so many threads; as many as there are cores by default.
    """
    from espalier.driver import compile as compile_model

    artifact = compile_model(
        model, device=device, backend=backend, output=output, pipeline=pipeline, passes=passes, data=data,
        budget=budget, metric=metric, max_drop=max_drop, verify=verify, seed=seed, stop_after=stop_after,
        print_after=print_after, printer=lambda text: print(plain(text), file=sys.stderr), dump=dump, trust=trust,
        tune=None if tune is None else seconds(tune), choices=choices, threads=threads,
    )  # fmt: skip
    show(artifact.to_json(), json, artifact.summary())


for edit in (prune, grow, recover):
    app.command(edit)


@app.command
def run(
    artifact: Path,
    /,
    *,
    inputs: Path,
    output: Output,
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
    show({"outputs": shapes, "file": str(output)}, json, lines)


@app.command
def bench(
    *models: Path, engines: Several = (), data: str | None = None, threads: int | None = None, rounds: int = 15,
    profile: Flag = False, seed: Seed = 0, trust: Trust = False, json: Json = False,
) -> None:  # fmt: skip
    """Time artifacts and models side by side: interleaved rounds, medians, ratios to the first.

    Parameters
    ----------
    models
        Artifacts; or .onnx files, run by onnxruntime and OpenVINO; or .pt2 files, compiled by torch.
    engines
        Which of them run model files: onnxruntime, openvino, torch; all that are installed by default.
    data
        Inputs, of which the first batch is fed; made-up ones by default.
    threads
        How many threads each engine may use.
    rounds
        Interleaved rounds that are timed.
    profile
        Tell of one artifact where the time goes instead: each kernel, the nodes that it computes, shares of the best.
    seed
        Seed of the inputs.
    """
    if profile:
        if len(models) != 1 or engines:
            raise InputError("E201", "a profile is of one artifact, and of no engine of others")
        from espalier.profile import profile as take
        from espalier.profile import table

        found = take(models[0], data=data, threads=threads, rounds=rounds, seed=seed)
        show(found, json, table(found))
        return
    from espalier.runners import bench as measure

    rows = measure(models, engines=engines, data=data, threads=threads, rounds=rounds, seed=seed, trust=trust)
    failed = [row for row in rows if row["error"]]
    lines = [
        f"{'failed':>13}         {row['engine'] or '':12} {row['model']}" if row["error"]
        else f"{row['median_ms']:10.3f} ms  ×{row['ratio']:.2f}  {row['engine']:12} {row['model']}"
        for row in rows
    ]  # fmt: skip
    show({"rows": rows}, json, lines)
    for row in failed:
        print(plain(f"{row['error']['code']}: {row['model']}: {row['error']['message']}"), file=sys.stderr)
    if failed:
        raise SystemExit(2)


@app.command
def verify(
    a: Path, b: Path, /, *, data: str | None = None, tolerance: float | None = None, seed: Seed = 0,
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
        f"{row['output']}: {row['misfit'] or 'off by {:.3g} (limit {:g})'.format(row['difference'], row['limit'])}"
        if row["elements"] or not row["agrees"] else f"{row['output']}: empty, so there was nothing to compare"
        for row in rows
    ]  # fmt: skip
    apart = [row for row in rows if not row["agrees"]]
    show({"agree": not apart, "outputs": rows}, json, [*lines, *([] if apart else ["They agree."])])
    if apart:
        worst = max(apart, key=lambda row: float(row["difference"]))
        print(f"E605: {a} and {b} do not agree: output {plain(worst['output'])!r} differs most", file=sys.stderr)
        raise SystemExit(4)


@app.command
def inspect(
    model: Path, /, *, text: Flag = False,
    units: Flag = False,
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
    show(found, json, printed)


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
        show({"passes": rows, "pipelines": PIPELINES}, json, lines)
    else:
        options = chosen[0][1].option_types()
        lines += [f"  {key}: {o['type']}, {o['default']} by default" for key, o in options.items()] or ["  no options"]
        show({"passes": rows}, json, lines)


@app.command
def devices(*, json: Json = False) -> None:
    """The devices that there are."""
    from espalier.cost.device import devices as known
    from espalier.cost.device import faults

    rows = [device.model_dump(mode="json") for device in known().values()]
    lines = [f"{row['name']:15} {row['kind']:5} {row['backend']:9} {row['description']}" for row in rows]
    show({"devices": rows}, json, lines)
    for error in faults():
        print(plain(f"left out: {error}"), file=sys.stderr)


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
        show(found, json, [f"{found['code']}: {entry.title}", "", entry.meaning, entry.advice])
    elif Path(subject).exists():
        from espalier.runners import explain_artifact

        manifest, lines = explain_artifact(Path(subject))
        show(manifest, json, lines)
    else:
        raise InputError("E202", f"{subject!r} is neither an error code nor the path of an artifact")


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
        write("")
    except EspalierError as error:
        return _report(error, as_json)
    except CycloptsError as error:
        return _report(InputError("E201", str(error), hint="See espalier --help."), as_json)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        if as_json:
            print(as_text({"error": Interruption("E801", "interrupted").to_json()}))
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
    print(plain(str(error)), file=sys.stderr)
    if as_json:
        print(as_text({"error": error.to_json()}))
    return error.exit_code
