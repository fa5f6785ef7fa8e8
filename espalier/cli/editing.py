"""The verbs that take a model and give one back: prune, grow, recover."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from espalier.cli.options import Editing, Flag, Several, Training
from espalier.cli.output import show

if TYPE_CHECKING:
    from espalier.edit import Edited


def prune(
    model: Path,
    /,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    criterion: str = "magnitude",
    scope: Literal["local", "global", "isomorphic"] = "local",
    ratios: Several = (),
    aggregate: Literal["mean", "sum", "max", "prod", "first"] = "mean",
    normalise: Literal["mean", "sum", "max", "std", "median", "lamp", "none"] = "mean",
    round_to: str = "1",
    only: Several = (),
    ignore: Several = (),
    exact_only: Flag = False,
    compensate: Annotated[Literal["", "data", "noise"], Parameter(show_default=False)] = "",
    samples: int = 1024,
    rounds: int = 1,
    device: str = "cpu",
    editing: Editing,
    training: Training | None = None,
) -> None:
    """Remove the least important channels, heads and features of a model; ONNX out, to compile or to train on.

    Parameters
    ----------
    model
        An .onnx or .pt2 file.
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
    rounds
        Prune and train in so many rounds, each of a part of both; more goes in the early ones.
    device
        Whose multiples round_to=device means.
    """
    from espalier.edit import prune as prune_model

    found = prune_model(
        model, ratio=ratio, macs=macs, params=params, criterion=criterion, scope=scope, ratios=";".join(ratios),
        aggregate=aggregate, normalise=normalise, round_to=round_to, only=only, ignore=ignore, exact_only=exact_only,
        compensate=compensate, samples=samples, rounds=rounds, device=device, recovery=_recovery(training),
        **editing.options,
    )  # fmt: skip
    _show(found, editing)


def grow(
    model: Path,
    /,
    *,
    factor: float | None = None,
    to: int | None = None,
    only: Several | None = None,
    ignore: Several | None = None,
    uneven: float | None = None,
    noise: float | None = None,
    count: int | None = None,
    after: Several | None = None,
    kind: Literal["auto", "identity", "residual"] | None = None,
    kernel: int | None = None,
    editing: Editing,
    training: Training | None = None,
) -> None:
    """Make a model wider (factor, to) or deeper (count, after) without changing its outputs; ONNX out, to train on.

    Parameters
    ----------
    model
        An .onnx or .pt2 file.
    factor
        Widen units (channels, heads, features, hidden states) to so many times their extent.
    to
        Widen units to this extent instead.
    only
        Widen only units whose names match one of these patterns; `espalier inspect --units` prints the names.
    ignore
        Leave these units alone.
    uneven
        How unequally the copies of an index share its part, from 0 to below 1: so that they learn different things.
    noise
        Standard deviation of what is added to the new weights, relative to theirs. The outputs change then.
    count
        Insert so many layers, spread over the activations that follow layers; 0 for one after each.
    after
        Patterns of the names of activations; without count, a layer is inserted after each that one of them matches.
    kind
        Identity layers, residual bodies whose last layer is zero, or what keeps the outputs there (auto).
    kernel
        Extent of inserted convolutions' kernels, odd; 0 for that of the layer before.
    """
    from espalier.edit import grow as grow_model

    found = grow_model(
        model, factor=factor, to=to, only=only, ignore=ignore, uneven=uneven, noise=noise, count=count, after=after,
        kind=kind, kernel=kernel, recovery=_recovery(training), **editing.options,
    )  # fmt: skip
    _show(found, editing)


def recover(
    model: Path,
    /,
    *,
    original: Path | None = None,
    editing: Editing,
    training: Training | None = None,
) -> None:
    """Train a model that was changed: to give what the original gives, or by labels; ONNX out.

    Parameters
    ----------
    model
        An .onnx or .pt2 file.
    original
        The model that it was made of, to be imitated and compared with.
    """
    from espalier.edit import recover as recover_model

    found = recover_model(model, original, **(training or Training()).options, **editing.options)
    _show(found, editing)


def _recovery(training: Training | None) -> dict[str, object] | None:
    return None if training is None else training.given


def _show(found: Edited, editing: Editing) -> None:
    show(found.to_json(), editing.json, found.summary())
