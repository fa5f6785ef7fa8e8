"""The training loop: seeded, resumable bit for bit after a kill, on one device or several processes.

Everything random in a step follows from the seed and the step's number, and the order of the samples from the seed and
the epoch's, so that a run that was stopped at any time goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from espalier.errors import InputError
from espalier.ir.xp import torch as xp
from espalier.train import checkpoint as checkpoints
from espalier.train.checkpoint import Checkpoint
from espalier.train.data import Batch, Data
from espalier.train.distributed import Team, team
from espalier.train.hooks import Called, Hook, described
from espalier.train.module import GraphModule
from espalier.train.progress import progress_bar
from espalier.train.schedule import learning_rate_at
from espalier.train.weights import NO_LEARNING

Objective: TypeAlias = Callable[[GraphModule, Sequence[torch.Tensor], torch.Tensor | None], torch.Tensor]
"""Module, inputs and labels (if the data have some) to a loss."""
Augment: TypeAlias = Callable[[tuple[NDArray[Any], ...], np.random.Generator], tuple[NDArray[Any], ...]]
"""Inputs of a batch to other ones of the same shapes, by a source of random numbers."""
HALF_EPSILON = 1e-4
"""Of AdamW for weights in f16, where 1e-8 is 0 and the squares of small gradients are, too."""
LOOK = 20
"""Steps between looks at the loss: each makes a GPU wait."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: updates in all; or else
        epochs: times through the data.
        batch_size: samples of an update, over all processes.
        optimizer: "sgd" (Nesterov momentum) or "adamw"; "auto" is "sgd" for models with running statistics (batch
            norms) and "adamw" for others, transformers among them.
        learning_rate: the largest one; it falls to 0 along a cosine. By default 0.01 for "sgd", 0.0003 for "adamw".
        momentum: of "sgd".
        weight_decay: of weights with two axes or more, so not of norms and biases. By default 0.0005 and 0.01.
        warmup: share of the steps over which the learning rate rises from 0.
        clip: largest norm of all gradients together; None: any.
        seed: of everything random.
        precision: "bf16" computes convolutions and matrix products of f32 in bf16, which is faster where the device has
            it; all else, such as weights, their updates, statistics and the loss, stays as it is, as with "f32".
        threads: of the CPU; as many as torch uses by default. The last digits depend on it.
        device: see `espalier.train.distributed.team`.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 128
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    warmup: float = 0.0
    clip: float | None = None
    seed: int = 0
    precision: Literal["f32", "bf16"] = "f32"
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise InputError("E201", "give either steps or epochs")
        ranges = {
            "steps": self.steps is None or self.steps >= 0,
            "epochs": self.epochs is None or 0 <= self.epochs < float("inf"),
            "batch_size": self.batch_size >= 1,
            "optimizer": self.optimizer in ("auto", "sgd", "adamw"),
            "learning_rate": self.learning_rate is None or 0 < self.learning_rate < float("inf"),
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay is None or 0 <= self.weight_decay < float("inf"),
            "warmup": 0 <= self.warmup <= 1,
            "clip": self.clip is None or self.clip > 0,
            "seed": self.seed >= 0,
            "precision": self.precision in ("f32", "bf16"),
            "threads": self.threads is None or self.threads >= 1,
        }
        for name, holds in ranges.items():
            if not holds:
                raise InputError("E201", f"{name} can't be {getattr(self, name)!r}")


@dataclass
class Run:
    """A training run, as hooks see it."""

    module: GraphModule
    optimizer: torch.optim.Optimizer
    total: int
    team: Team
    step: int = 0
    """Updates that were made."""
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that were used."""
    loss: torch.Tensor | None = None
    """The last step's, without gradient."""
    losses: list[float] = field(default_factory=list)
    """The mean loss of each stretch of `LOOK` steps."""
    _sum: torch.Tensor | None = None
    _count: int = 0


def train(
    module: GraphModule,
    objective: Objective,
    data: Data,
    settings: Settings,
    *,
    hooks: Sequence[Hook | Callable[[Run], None]] = (),
    augment: Augment | None = None,
    checkpoint: str | Path | None = None,
    every_steps: int | None = None,
    every_minutes: float = 5.0,
    identity: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    title: str = "training",
) -> Run:
    """Train a module in place.

    Args:
        hooks: what acts between steps; a plain function is called after each update.
        augment: changes the inputs of each batch.
        checkpoint: folder of this run's checkpoint; if there is one, the run goes on from it.
        every_steps: steps between checkpoints, besides `every_minutes` and the end.
        identity: what makes this run another one than others, besides weights, data, settings and hooks.
        progress: show a bar; by default on terminals.

    Raises:
        InputError: E206 for data that don't fit; E231 if the loss becomes infinite or NaN; E232 if the checkpoint is
            another run's.
    """
    folder = None if checkpoint is None else Path(checkpoint)
    acting = [hook if isinstance(hook, Hook) else Called(hook) for hook in hooks]
    with team(settings.device) as members, _steady(members.device):
        if settings.batch_size % members.size:
            message = f"batches of {settings.batch_size} can't be shared evenly by {members.size} processes"
            raise InputError("E201", message)
        known = None
        if folder is not None:
            known = {**_identity(module, data, settings), **(identity or {}), "processes": members.size}
            known["hooks"] = [described(hook) for hook in hooks]
        saved = None if folder is None or known is None else checkpoints.read(folder, known)
        with _threads(settings.threads or (None if saved is None else saved.position["threads"])):
            module.to(members.device)
            total = total_steps(data, settings) if saved is None else int(saved.position["total"])
            run = Run(module, _optimizer(module, settings), total, members)
            if saved is not None:
                _restore(run, saved, acting)
            for hook in acting:
                hook.start(run)
            bar_shown = progress if members.rank == 0 else False
            with progress_bar(title, total, run.step, bar_shown) as bar, _narrow(module, settings):
                keep = _Keeper(run, acting, folder, known or {}, every_steps, every_minutes)
                _loop(run, objective, data, settings, acting, augment, bar, keep)
        module.eval()
        return run


def _loop(
    run: Run,
    objective: Objective,
    data: Data,
    settings: Settings,
    hooks: Sequence[Hook],
    augment: Augment | None,
    bar: Callable[[int, float | None], None],
    keep: Callable[[], None],
) -> None:
    rank, share, device = run.team.rank, settings.batch_size // run.team.size, run.team.device
    kind = _kind(run.module, settings)
    parameters = [parameter for parameter in run.module.parameters() if parameter.requires_grad]
    statistics = [buffer for name, buffer in run.module.named_buffers() if name in run.module.statistics]
    batches = _batches(run, data, settings)
    laid_out = _layout(run.module, device)
    if run.step < run.total and not parameters:
        raise InputError("E226", "the model has no weights that could learn", hint=NO_LEARNING)
    while run.step < run.total:
        batch = next(batches)
        _seed(_mixed(settings.seed, 3, run.step, rank))
        inputs = batch.inputs
        if augment is not None:
            inputs = augment(inputs, np.random.default_rng([settings.seed, 1, run.step]))
        if run.team.size > 1:
            if len(batch) % run.team.size:
                raise InputError("E206", f"a batch of {len(batch)} can't be shared by {run.team.size} processes")
            share = len(batch) // run.team.size
            shared = Batch(tuple(inputs), batch.labels).take(slice(rank * share, (rank + 1) * share))
            inputs, labels = shared.inputs, shared.labels
        else:
            labels = batch.labels
        run.module.train()
        rate = learning_rate_at(run.step, run.total, settings.learning_rate or kind.learning_rate, settings.warmup)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        with device:
            loss = objective(
                run.module,
                [laid_out(as_tensor(array, device)) for array in inputs],
                None if labels is None else as_tensor(labels, device),
            )
            added = [term for hook in hooks if (term := hook.loss(run)) is not None]
            run.optimizer.zero_grad(set_to_none=True)
            (loss if not added else loss + torch.stack(added).sum()).backward()  # type: ignore[no-untyped-call]  # torch has no types there
        run.loss = loss.detach()
        run.team.average([*(p.grad for p in parameters if p.grad is not None), *statistics, run.loss])
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(parameters, settings.clip)
        for hook in hooks:
            hook.before_update(run)
        run.optimizer.step()
        run.step, run.batch = run.step + 1, run.batch + 1
        for hook in hooks:
            hook.after_update(run)
        _account(run)
        bar(run.step, run.losses[-1] if run.losses else None)
        keep()


def _account(run: Run) -> None:
    """Sum up the loss, and look at it now and then."""
    assert run.loss is not None
    run._sum = run.loss if run._sum is None else run._sum + run.loss
    run._count += 1
    if run._count == LOOK or run.step == run.total:
        mean = float(run._sum) / run._count
        if not np.isfinite(mean):
            raise InputError(
                "E231",
                f"the loss is {mean} in the steps before step {run.step}",
                hint="Lower learning_rate, or give clip, the largest norm of the gradients.",
            )
        run.losses.append(mean)
        run._sum, run._count = None, 0


def _batches(run: Run, data: Data, settings: Settings) -> Iterator[Batch]:
    """The batches of epoch after epoch, from where the run stands.

    A source that draws numbers itself meets the same seeds at each batch, also where batches are skipped.
    """
    while True:
        found = iter(data.epoch(settings.batch_size, seed=settings.seed, number=run.epoch, whole=True))
        for position in itertools.count():
            _seed(_mixed(settings.seed, 2, run.epoch, position))
            batch = next(found, None)
            if batch is None:
                break
            if position >= run.batch:
                yield batch
        if not position:
            raise InputError("E206", "an epoch has no batches")
        run.epoch, run.batch = run.epoch + 1, 0


def total_steps(data: Data, settings: Settings) -> int:
    """How many updates a run makes."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    batches = data.batches(settings.batch_size)
    if batches is None:  # only reading tells
        batches = sum(1 for _ in data.epoch(settings.batch_size, whole=True))
    return round(settings.epochs * batches)


@dataclass(frozen=True)
class _Kind:
    name: str
    learning_rate: float
    weight_decay: float


_KINDS = {kind.name: kind for kind in (_Kind("sgd", 0.01, 5e-4), _Kind("adamw", 3e-4, 0.01))}


def _kind(module: GraphModule, settings: Settings) -> _Kind:
    automatic = "sgd" if module.statistics else "adamw"
    return _KINDS[automatic if settings.optimizer == "auto" else settings.optimizer]


def _optimizer(module: GraphModule, settings: Settings) -> torch.optim.Optimizer:
    kind = _kind(module, settings)
    decay = kind.weight_decay if settings.weight_decay is None else settings.weight_decay
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]] or [{"params": [nn.Parameter(torch.zeros(()))]}]
    rate = settings.learning_rate or kind.learning_rate
    if kind.name == "sgd":
        return torch.optim.SGD(groups, rate, settings.momentum, nesterov=settings.momentum > 0)
    half = any(parameter.dtype == torch.float16 for parameter in parameters)
    return torch.optim.AdamW(groups, rate, eps=HALF_EPSILON if half else 1e-8)


class _Keeper:
    """Writes checkpoints: every so many steps or minutes, and at the end."""

    def __init__(
        self,
        run: Run,
        hooks: Sequence[Hook],
        folder: Path | None,
        identity: Mapping[str, Any],
        steps: int | None,
        minutes: float,
    ) -> None:
        self.run, self.hooks, self.folder, self.identity = run, hooks, folder, identity
        self.steps, self.minutes, self.written = steps, minutes, time.monotonic()

    def __call__(self) -> None:
        run = self.run
        if self.folder is None or run.team.rank:
            return
        due = run.step == run.total or (self.steps is not None and run.step % self.steps == 0)
        due = due or time.monotonic() - self.written >= 60 * self.minutes
        # the loss since the last look must be known to be finite
        if due and (run._sum is None or bool(torch.isfinite(run._sum))):
            checkpoints.write(self.folder, _snapshot(run, self.hooks, self.identity))
            self.written = time.monotonic()


def _snapshot(run: Run, hooks: Sequence[Hook], identity: Mapping[str, Any]) -> Checkpoint:
    tensors = {f"model/{name}": tensor for name, tensor in run.module.state_dict().items()}
    for name, parameter in run.module.named_parameters():
        for key, held in run.optimizer.state.get(parameter, {}).items():
            if isinstance(held, torch.Tensor):
                tensors[f"optimizer/{name}/{key}"] = held
    for number, hook in enumerate(hooks):
        tensors.update({f"hook/{number}/{name}": tensor for name, tensor in hook.state().items()})
    if run._sum is not None:
        tensors["loss"] = run._sum
    position = {
        "step": run.step,
        "epoch": run.epoch,
        "batch": run.batch,
        "total": run.total,
        "losses": run.losses,
        "count": run._count,
        "threads": torch.get_num_threads(),
    }
    return Checkpoint(tensors, position, identity)


def _restore(run: Run, saved: Checkpoint, hooks: Sequence[Hook]) -> None:
    with torch.no_grad():
        held = run.module.state_dict()
        for name, tensor in saved.part("model/").items():
            held[name].copy_(tensor)
    for name, parameter in run.module.named_parameters():
        state = saved.part(f"optimizer/{name}/")
        if state:
            # a step's number stays where torch wants it
            run.optimizer.state[parameter] = {
                key: tensor if key == "step" else tensor.to(parameter.device) for key, tensor in state.items()
            }
    for number, hook in enumerate(hooks):
        hook.restore(saved.part(f"hook/{number}/"))
    position = saved.position
    run.step, run.epoch, run.batch = position["step"], position["epoch"], position["batch"]
    run.losses, run._count = list(position["losses"]), position["count"]
    run._sum = saved.tensors["loss"].to(run.team.device) if "loss" in saved.tensors else None


def _identity(module: GraphModule, data: Data, settings: Settings) -> dict[str, Any]:
    """What tells this run from others: its weights at the start, its first samples, its settings."""
    weights = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        weights.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        weights.update(np.ascontiguousarray(xp.to_numpy(tensor)).reshape(-1).view(np.uint8).data)
    samples = hashlib.sha256()
    _seed(_mixed(settings.seed, 2, 0, 0))
    first = next(data.epoch(settings.batch_size, seed=settings.seed))
    for array in (*first.inputs, *(() if first.labels is None else (first.labels,))):
        samples.update(f"{array.shape}{array.dtype}".encode())
        samples.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    found = asdict(settings)
    del found["threads"]
    return {**found, "weights": weights.hexdigest(), "data": samples.hexdigest(), "torch": torch.__version__}


def as_tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device."""
    return xp.asarray(np.ascontiguousarray(array)).to(device)


def _layout(module: GraphModule, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """How inputs lie in memory: images with their channels last, where a CPU convolves them (a third faster)."""
    if device.type == "cpu" and any(node.op.name == "conv" and node.operand(0).rank == 4 for node in module.graph):
        return lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    return lambda x: x


def _mixed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


def _seed(number: int) -> None:
    """Seed torch's numbers, and those that a user's data may draw from."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


@contextmanager
def _steady(device: torch.device) -> Iterator[None]:
    """Algorithms that give the same bits each time, where torch has them; and torch's random numbers left alone."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()
    memory: Any = torch.utils.deterministic  # its types lack its property
    filling = memory.fill_uninitialized_memory
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filling
        torch.set_rng_state(numbers[0])
        random.setstate(numbers[1])
        np.random.set_state(numbers[2])


@contextmanager
def _narrow(module: GraphModule, settings: Settings) -> Iterator[None]:
    before = module.narrow
    module.narrow = torch.bfloat16 if settings.precision == "bf16" else None
    try:
        yield
    finally:
        module.narrow = before


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
