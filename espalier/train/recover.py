"""Give a model that was changed its accuracy back: by imitating the original, by labels, or by new statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from espalier.errors import InputError
from espalier.ir import Graph, Value, structural_hash
from espalier.ir.clone import clone
from espalier.train.data import Data
from espalier.train.distributed import team
from espalier.train.hooks import Hook
from espalier.train.loops import Augment, Run, Settings, as_tensor, train
from espalier.train.module import GraphModule, to_torch
from espalier.train.objectives import Distance, Imitation
from espalier.train.sparse import sparse_hook

BATCHES = 64
"""Batches that statistics are estimated from, unless said otherwise."""


def recover(
    graph: Graph,
    original: Graph | None,
    data: Any,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    labels: Literal["auto"] | bool = "auto",
    imitate: float | None = None,
    distance: Distance = "auto",
    temperature: float = 4.0,
    inner: float = 0.0,
    settings: Settings | None = None,
    hooks: Sequence[Hook | Callable[[Run], None]] = (),
    augment: Augment | None = None,
    trainable: Callable[[Value], bool] | None = None,
    module: Callable[[Graph], GraphModule] | None = None,
    sparsity: float | str | None = None,
    checkpoint: str | Path | None = None,
    every_steps: int | None = None,
    every_minutes: float = 5.0,
    progress: bool | None = None,
    **options: Any,
) -> Graph:
    """Train a graph, and return a copy with the weights that it learned; the graph itself stays as it is.

    Without labels it imitates the original's outputs. With labels it learns these, and imitates as much as `imitate`
    says.

    Args:
        graph: what to train.
        original: what it was made of; may be None if there are labels.
        data: see `espalier.train.data`.
        epochs: times through the data; or else
        steps: updates.
        labels: whether to use the data's labels: "auto" does if there are some.
        imitate: share of the original in the loss, from 0 to 1; by default 0 with labels and 1 without.
        distance: of the outputs from the original's, at this `temperature`; see `espalier.train.objectives.Imitation`.
        inner: weight of the distance between inner values of one name and shape.
        settings: how to train; further `options` are its fields (learning_rate, batch_size, seed, device, …).
        hooks: what acts between the steps; see `espalier.train.hooks.Hook`. A function is called after each.
        augment: changes the inputs of each batch; see `espalier.train.augment`.
        trainable: which constants learn; see `espalier.train.module.to_torch`.
        module: what makes the copy a module instead, such as one with gates (`espalier.train.gates.gated`).
        sparsity: how many of the weights that are summed over become zero on the way: a share, or a pattern such as
            "2:4"; "keep" keeps those that are zero. See `espalier.train.sparse.GradualMasks`.
        checkpoint: a folder. A run that was killed goes on from there, and ends with the same bits.
        every_steps: steps between checkpoints, besides `every_minutes`.
        progress: show a bar with the time left; by default on terminals.

    Raises:
        InputError: E201 for options that can't be; E206 for data that don't fit; E212 if there are neither labels nor
            an original; E226 if nothing can learn; E231 if the loss becomes infinite; E232 for a checkpoint of another
            run.
    """
    if settings is not None and (epochs is not None or steps is not None):
        raise InputError("E201", "epochs and steps are in the settings already")
    chosen = _settings(settings, epochs, steps, options)
    if imitate is not None and not 0 <= imitate <= 1:
        raise InputError("E201", f"imitate is a share from 0 to 1, not {imitate!r}")
    if distance not in ("auto", "kl", "mse"):
        raise InputError("E201", f"distance is auto, kl or mse, not {distance!r}")
    for name, number, least in (("temperature", temperature, "above"), ("inner", inner, "at least")):
        if not (number > 0 or (name == "inner" and number == 0)):
            raise InputError("E201", f"{name} is {least} 0, not {number!r}")
    dataset = data if isinstance(data, Data) else Data(data, tuple(graph.inputs))
    first = next(dataset.epoch(chosen.batch_size))
    if labels is True and first.labels is None:
        raise InputError("E206", "the data have no labels", hint="Put an array `labels` beside the inputs.")
    labelled = first.labels is not None if labels == "auto" else labels
    share = (0.0 if labelled else 1.0) if imitate is None else imitate
    if not labelled and share < 1:
        raise InputError("E212", f"imitate={share:g} leaves the rest to labels, and there are none")
    if share and original is None:
        raise InputError("E212", "there is no original to imitate, and no labels to learn from")
    teacher = None if original is None or not share else to_torch(original, lambda value: False)
    if module is not None and trainable is not None:
        raise InputError("E201", "what a module of your own learns, it says itself: give either module or trainable")
    acting = [*hooks, *([] if sparsity is None else [sparse_hook(sparsity)])]
    copy = clone(graph)
    student = to_torch(copy, trainable) if module is None else module(copy)
    check_batch(student, dataset, chosen.batch_size)
    if teacher is not None:
        _check_outputs(graph, teacher.graph)
        with team(chosen.device) as members:
            teacher.to(members.device)
    identity = {
        "graph": structural_hash(graph),
        "original": None if teacher is None else structural_hash(teacher.graph),
        "labels": labelled,
        "imitate": share,
        "distance": [distance, temperature, inner],
        "augment": None if augment is None else getattr(augment, "__qualname__", repr(augment)),
        **({"module": own} if (own := dict(student.identity())) else {}),
    }
    objective = Imitation(teacher, share, labelled, distance, temperature, inner)
    train(
        student,
        objective,
        dataset,
        chosen,
        hooks=acting,
        augment=augment,
        checkpoint=checkpoint,
        every_steps=every_steps,
        every_minutes=every_minutes,
        identity=identity,
        progress=progress,
        title="recovering",
    )
    return student.write_back()


def _settings(settings: Settings | None, epochs: float | None, steps: int | None, options: dict[str, Any]) -> Settings:
    unknown = options.keys() - Settings.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(Settings.__dataclass_fields__)
        raise InputError("E201", f"there is no option {sorted(unknown)[0]!r}", hint=f"There are {known}.")
    return Settings(epochs=epochs, steps=steps, **options) if settings is None else replace(settings, **options)


def _check_outputs(graph: Graph, original: Graph) -> None:
    if len(graph.outputs) != len(original.outputs) or len(graph.inputs) != len(original.inputs):
        message = (
            f"the model has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, "
            f"the original {len(original.inputs)} and {len(original.outputs)}"
        )
        raise InputError("E226", message, hint="Recover a model from the one that it was made of.")
    for own, other in zip(graph.inputs, original.inputs, strict=True):
        if not _alike(own, other):
            message = f"input {own.name!r} is {own.type}, the original's {other.name!r} is {other.type}"
            raise InputError("E226", message, hint="Recover a model from the one that it was made of.")


def _alike(own: Value, other: Value) -> bool:
    """Whether two inputs may be fed the same arrays."""
    if own.shape is None or other.shape is None:
        return True
    if len(own.shape) != len(other.shape) or own.element != other.element:
        return False
    pairs = zip(own.shape, other.shape, strict=True)
    return all(a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in pairs)


def check_batch(module: GraphModule, data: Data, size: int) -> None:
    """Refuse to feed a model of fixed batch with other batches, unless its outputs turn out not to depend on it.

    Raises:
        InputError: E206, naming the input.
    """
    fixed = [value for value in module.graph.inputs if value.shape and isinstance(value.shape[0], int)]
    if not fixed or fixed[0].shape is None or fixed[0].shape[0] == size:
        return
    extent = fixed[0].shape[0]
    message = (
        f"input {fixed[0].name!r} has a fixed batch of {extent}, and the model can't be fed {size} samples at once"
    )
    hint = f"Export the model with a dynamic batch, or set the batch size to {extent}."
    if not isinstance(extent, int) or extent < 1:
        raise InputError("E206", message, hint=hint)
    batch = next(data.epoch(2 * extent))
    if len(batch) < 2 * extent:
        raise InputError("E206", message, hint=hint)
    cpu = torch.device("cpu")
    parts = [batch.take(slice(0, extent)), batch.take(slice(extent, 2 * extent)), batch]
    try:
        with torch.no_grad():
            first, second, both = ([*module(*(as_tensor(a, cpu) for a in part.inputs))] for part in parts)
        agree = all(
            torch.allclose(torch.cat([a, b]).double(), c.double(), rtol=1e-3, atol=1e-4 * float(c.abs().max() + 1e-30))
            for a, b, c in zip(first, second, both, strict=True)
        )
    except (RuntimeError, ValueError, LookupError, TypeError):  # shapes that are written into the model
        agree = False
    if not agree:
        raise InputError("E206", message, hint=hint)


def reestimate_statistics(
    graph: Graph,
    data: Any,
    *,
    batch_size: int = 128,
    batches: int = BATCHES,
    seed: int = 0,
    device: str = "cpu",
) -> Graph:
    """A copy whose running statistics (of batch norms) are means over the data, as after a change they must be.

    Means and variances are cumulative averages over shuffled batches, each weighted by its samples; weights stay.

    Args:
        data: see `espalier.train.data`; labels are not used.
        batches: at most so many.

    Raises:
        InputError: E201 for options that can't be; E206 for data that don't fit.
    """
    if batch_size < 1 or batches < 1:
        raise InputError("E201", f"batch_size={batch_size} and batches={batches} must be at least 1")
    dataset = data if isinstance(data, Data) else Data(data, tuple(graph.inputs))
    copy = clone(graph)
    module = to_torch(copy, lambda value: False)
    if not module.statistics:
        return copy
    check_batch(module, dataset, batch_size)
    samples = 0
    with team(device) as members, torch.no_grad():
        module.to(members.device).train()
        for position, batch in enumerate(dataset.epoch(batch_size, seed=seed, whole=True)):
            if position == batches:
                break
            module.keep_statistics(samples / (samples + len(batch)))
            samples += len(batch)
            with members.device:
                module(*(as_tensor(array, members.device) for array in batch.inputs))
    module.eval()
    return module.write_back()
