"""Options that several verbs have: one description each."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter

Flag: TypeAlias = Annotated[bool, Parameter(negative="", show_default=False)]
Several: TypeAlias = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
Output: TypeAlias = Annotated[Path, Parameter(name=["--output", "-o"])]
Trust: TypeAlias = Annotated[
    bool,
    Parameter(negative="", show_default=False, help="Allow formats that can run code while they load (.pt2)."),
]
Json: TypeAlias = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="Print one JSON object.")
]
Seed: TypeAlias = Annotated[int, Parameter(help="Seed of everything that is random.")]
Source: TypeAlias = Annotated[
    str | None, Parameter(help="An .npz file, a folder of arrays or images, or package.module:function.")
]
MaxDrop: TypeAlias = Annotated[
    float | None,
    Parameter(help="Largest loss in points of the metric (top-1; without labels agreement with the original)."),
]

Metric: TypeAlias = Annotated[
    str,
    Parameter(help="What is measured on the data: top-1, f1 or rmse with labels, or agreement with the original."),
]

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Seconds of a duration such as 60s, 2m or 90. Raises InputError E201."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if found is None or found[2] not in UNITS:
        from espalier.errors import InputError

        raise InputError("E201", f"{text!r} is no duration", hint="Write 60s, 2m or 0s, for example.")
    return float(found[1]) * UNITS[found[2]]


@Parameter(name="*")  # each field is an option of the verb itself
@dataclass(frozen=True, kw_only=True)
class Editing:
    """What becomes of a model that is changed, and what it is measured on."""

    output: Output
    """The .onnx file to write. Inputs and outputs keep their names, types and dynamic axes."""
    data: Source = None
    metric: Metric = "auto"
    max_drop: MaxDrop = None
    seed: Seed = 0
    trust: Trust = False
    json: Json = False

    @property
    def options(self) -> dict[str, Any]:
        """As functions of `espalier.edit` take them."""
        found = asdict(self)
        del found["json"]
        return found


@Parameter(name="*")  # each field is an option of the verb itself
@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained; `espalier.train.recover`."""

    epochs: float | None = None
    """Train so many times through the data; with labels by these, else to give what the original gives."""
    steps: int | None = None
    """Train for so many updates instead."""
    train_data: str | None = None
    """Other data to train on than those that are measured on."""
    labels: bool | None = None
    """Whether to learn the data's labels; by default if there are some."""
    imitate: float | None = None
    """Share of the original's outputs in the loss, from 0 to 1; by default 0 with labels and 1 without."""
    distance: Literal["auto", "kl", "mse"] = "auto"
    """How the distance from the original's outputs is measured."""
    temperature: float = 4.0
    """Of the softmax under the distance kl."""
    batch_size: int = 128
    """Samples of an update."""
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    """By default sgd for models with batch norms, adamw for others."""
    learning_rate: float | None = None
    """The largest one; 0.01 for sgd and 0.0003 for adamw by default. It falls to 0 along a cosine."""
    weight_decay: float | None = None
    """0.0005 for sgd and 0.01 for adamw by default."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate rises."""
    clip: float | None = None
    """Largest norm of all gradients together."""
    sparsity: str | None = None
    """Share of zeros that weights have in the end, or a pattern such as 2:4; keep keeps the zeros that are there."""
    precision: Literal["f32", "bf16"] = "f32"
    """Of convolutions and matrix products while training: bf16 is faster where the device has it."""
    checkpoint: Path | None = None
    """A folder: a run that was killed goes on from there."""
    train_on: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, …, or auto."""
    threads: int | None = None
    """Threads to train with; as many as there are cores by default."""

    @property
    def options(self) -> dict[str, Any]:
        """As `espalier.train.recover.recover` takes them, with `train_data`."""
        found = {**asdict(self), "device": self.train_on}
        del found["train_on"]
        found["labels"] = "auto" if self.labels is None else self.labels
        return found

    @property
    def given(self) -> dict[str, Any] | None:
        """The same if training was asked for, else None. Raises InputError for options of training without it."""
        if self.epochs is not None or self.steps is not None:
            return self.options
        plain = Training()
        for name, value in vars(self).items():
            if value != getattr(plain, name):
                from espalier.errors import InputError

                flag = f"--{name.replace('_', '-')}"
                raise InputError("E201", f"{flag} is about training, which --epochs or --steps asks for")
        return None
