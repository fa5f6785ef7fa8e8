"""What is chosen for each kernel: what the static rules say, or what has been measured to be faster.

A rule whose choice decides how fast a kernel is asks here: `pick(ruled, ask)`. As a rule that returns what it was
given. Inside of `using(choices)`, the choices answer instead: from what is known, if it is among the candidates that
the question names, otherwise as ruled. They remember what they were asked, so that it can be measured (`tuning`).
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tvm import tirx

from espalier.backends.tvm.tensor import Tensor

Choice: TypeAlias = tuple[int | str, ...]
"""A candidate, such as ("tile", 7, 4): plain values, as JSON holds them."""


@dataclass(frozen=True)
class Kernel:
    """A kernel, and the tensors whose buffers are its parameters, in order."""

    function: tirx.PrimFunc
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Question:
    """What is to be chosen."""

    kind: str
    facts: Mapping[str, Any]
    """Everything that it depends on which of the candidates is fastest, as JSON values."""
    candidates: tuple[Choice, ...]
    """What the static rule chooses, and then the others."""
    kernel: Callable[[], Kernel]
    """Writes the kernel in question, by the choices that are in use."""
    steps: float
    """How long it takes, very roughly, in multiplications of vectors."""

    @property
    def key(self) -> str:
        """The question as a digest of kind and facts: the same for the same question about another model."""
        text = json.dumps([self.kind, self.facts], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Choices:
    """Answers to questions by key, where they are known."""

    known: Mapping[str, Choice] = field(default_factory=dict)
    asked: dict[str, Question] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    """How often each question was asked."""
    taken: dict[str, Choice] = field(default_factory=dict)
    """The answers that are not what the static rule says."""

    def pick(self, question: Question) -> Choice:
        """The answer."""
        key, ruled = question.key, question.candidates[0]
        self.asked.setdefault(key, question)
        self.times[key] = self.times.get(key, 0) + 1
        found = self.known.get(key, ruled)
        if found == ruled or found not in question.candidates:
            return ruled
        self.taken[key] = found
        return found


_CURRENT: contextvars.ContextVar[Choices | None] = contextvars.ContextVar("choices", default=None)


@contextlib.contextmanager
def using(choices: Choices) -> Iterator[Choices]:
    """Answer by these choices inside."""
    token = _CURRENT.set(choices)
    try:
        yield choices
    finally:
        _CURRENT.reset(token)


def pick(ruled: Choice, ask: Callable[[], Question | None]) -> Choice:
    """What to choose where the static rule says `ruled`; `ask` tells the question, or None where there is none."""
    choices = _CURRENT.get()
    question = None if choices is None else ask()
    return ruled if choices is None or question is None else choices.pick(question)


def described(tensor: Tensor) -> list[Any]:
    """A tensor's element, shape and layout, as facts."""
    layout = tensor.layout
    lies = None if layout is None else [layout.lanes, *map(list, layout.halo)]
    return [str(tensor.element), list(tensor.shape), lies]


def following(root: Tensor, product: Tensor, stored: Sequence[Tensor] | set[Tensor]) -> list[Any]:
    """What a kernel computes from a product: the steps' costs and elements, and the tensors that they read besides."""
    found: list[Any] = []
    seen: set[Tensor] = set()
    stack = [root]
    while stack:
        tensor = stack.pop()
        if tensor in seen or tensor is product:
            continue
        seen.add(tensor)
        if tensor in stored and tensor is not root:
            found.append(described(tensor))
            continue
        if tensor.cost:
            found.append([tensor.cost, str(tensor.element)])
        stack.extend(reversed(tensor.operands))
    return found
