"""What must hold of extents when a compiled model runs: collected while a graph is traced, then checked at its start.

In a region that may not be taken, a requirement holds only if the region is: `branch` says on which condition.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from tvm import tirx
from tvm.ir import StringImm

from espalier.backends.tvm.tensor import Expr, Tensor, maker
from espalier.ir.agreement import Requirement
from espalier.ir.dims import Dimension
from espalier.runtime.errors import REFUSAL

Found = dict[Requirement, str]
"""Requirements and what has them."""
Path = tuple[tuple[Tensor, bool], ...]
"""Conditions, each a tensor of one entry, and what they must be for a region to be taken; the outermost first."""


@dataclass
class Collection:
    """What has been required so far."""

    symbols: frozenset[str]
    """Those that inputs give; of others nothing can be checked, nor computed."""
    found: Found = field(default_factory=dict)
    path: Path = ()
    outer: Collection | None = None


_CURRENT: ContextVar[Collection | None] = ContextVar("requirements", default=None)


@contextlib.contextmanager
def collected(symbols: Iterable[str]) -> Iterator[Found]:
    """What is required inside, of extents that these symbols give."""
    with _within(Collection(frozenset(symbols))) as found:
        yield found


@contextlib.contextmanager
def branch(condition: Tensor, taken: bool) -> Iterator[Found]:
    """What is required inside, where a condition says whether what is computed inside is used."""
    outer = _CURRENT.get()
    symbols = frozenset[str]() if outer is None else outer.symbols
    with _within(Collection(symbols, {}, (*path(), (condition, taken)), outer)) as found:
        yield found


@contextlib.contextmanager
def _within(collection: Collection) -> Iterator[Found]:
    token = _CURRENT.set(collection)
    try:
        yield collection.found
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def attempt() -> Iterator[None]:
    """Forget what is required inside if it fails."""
    current = _CURRENT.get()
    before = {} if current is None else dict(current.found)
    try:
        yield
    except BaseException:
        if current is not None:
            current.found.clear()
            current.found.update(before)
        raise


def path() -> Path:
    """What decides whether the region that is being traced is taken; empty outside of regions."""
    current = _CURRENT.get()
    return () if current is None else current.path


def require(requirement: Requirement) -> None:
    """Let the compiled model fail with a ValueError where the requirement does not hold."""
    current = _CURRENT.get()
    if current is None or not requirement.symbols or not requirement.symbols <= current.symbols:
        return  # of numbers, the primitives refuse what does not fit
    while current.outer is not None and requirement.left == 0:  # there are no buffers of negative extents
        current = current.outer
    node = maker()
    current.found.setdefault(requirement, "" if node is None else f"{node.op.name}: ")


def checks(dim: Callable[[Dimension], Expr], found: Mapping[Requirement, str], taken: Expr | None = None) -> list[Expr]:
    """Statements that fail where a requirement does not hold; `dim` gives extents as expressions."""
    statements = []
    for requirement, subject in found.items():
        left, right = dim(requirement.left), dim(requirement.right)
        holds = left <= right if requirement.relation == "be at most" else tirx.EQ(left, right)
        if requirement.relation == "be 1 or":
            holds = tirx.Or(tirx.EQ(left, dim(1)), holds)
        if taken is not None:
            holds = tirx.Or(tirx.Not(taken), holds)
        statements.append(check(holds, f"{subject}extents do not fit: {requirement}"))
    return statements


def check(holds: Expr, message: str) -> Expr:
    """A statement that fails, as the refusal of an input, where a condition does not hold."""
    return tirx.AssertStmt(holds, StringImm("ValueError"), [StringImm(f"{REFUSAL}{message}")])


def is_taken(path: Path, values: Iterable[Expr]) -> Expr | None:
    """Whether a region is taken, given its conditions' entries; None outside of regions."""
    found = None
    for (_, wanted), value in zip(path, values, strict=True):
        met = value if wanted else tirx.Not(value)
        found = met if found is None else tirx.And(found, met)
    return found
