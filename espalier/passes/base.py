"""What a pass is: its options, its promise, the predicates that order it, and the registry that finds it."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import math
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

from espalier import plugins
from espalier.errors import InputError
from espalier.ir import Graph, Node


@dataclass(frozen=True)
class Semantics:
    """What a pass promises about the function that the graph computes; the manager checks it."""

    kind: Literal["bit-exact", "reassociates", "approximates", "grows"]
    metric: str = ""
    bound: float = 0.0

    def __str__(self) -> str:
        if self.kind != "approximates":
            return self.kind
        return (
            f"approximates({self.metric})"
            if self.bound == math.inf
            else f"approximates({self.metric} ≤ {self.bound:g})"
        )


BITEXACT = Semantics("bit-exact")
"""The same bits from the reference executor, NaN payloads aside."""
REASSOCIATES = Semantics("reassociates")
"""Equal in real arithmetic for finite values."""
GROWS = Semantics("grows", bound=1e-6)
"""The function is preserved at insertion, to within `bound` of the largest output; new parameters can learn."""


def approximates(metric: str, bound: float) -> Semantics:
    """Outputs change, by at most `bound` in `metric`; infinite: by what the options ask for, and is measured."""
    return Semantics("approximates", metric, bound)


@dataclass(frozen=True)
class Predicate:
    """A checkable fact about a graph that passes require, establish or break."""

    name: str
    holds: Callable[[Graph], bool] = field(compare=False)


@dataclass
class Context:
    """What a pass may use besides the graph, and where it reports."""

    seed: int = 0
    data: Any = None
    device: Any = None
    stop_after: int | None = None
    """Do at most this many rewrites in all (numbered from 1)."""
    rewrites: int = 0
    """Rewrites done so far."""
    recorder: Callable[[Change], None] | None = None
    """Told of each rewrite before the old nodes go."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why matches nearly happened, by reason, in the pass that runs."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the pass that runs has to say of its work, as JSON; `summary` in it are lines for people."""

    def may_rewrite(self) -> bool:
        """Whether the limit of rewrites still leaves one; counts it."""
        if self.stop_after is not None and self.rewrites >= self.stop_after:
            return False
        self.rewrites += 1
        return True


class Change(NamedTuple):
    """One rewrite: values before, and what stands for them now."""

    rule: str
    semantics: Semantics
    number: int
    old: Sequence[Any]
    new: Sequence[Any]
    created: Sequence[Node]


class Pass:
    """Base of all passes: subclasses are frozen dataclasses whose fields are the options."""

    name: ClassVar[str] = ""
    semantics: ClassVar[Semantics] = BITEXACT
    requires: ClassVar[tuple[Predicate, ...]] = ()
    establishes: ClassVar[tuple[Predicate, ...]] = ()
    breaks: ClassVar[tuple[Predicate, ...]] = ()

    def run(self, graph: Graph, context: Context) -> int:
        """Change the graph; return the number of rewrites done."""
        raise NotImplementedError

    @property
    def options(self) -> dict[str, Any]:
        """Option values by name."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # @graph_pass makes every pass a dataclass
        return {f.name: getattr(self, f.name) for f in fields}

    @property
    def spec(self) -> str:
        """The text that makes this pass again: the name, then the options that differ from their defaults."""
        changed = [
            f"{f.name}={_print_option(getattr(self, f.name))}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]  # passes are dataclasses
            if getattr(self, f.name) != f.default
        ]
        return self.name + (":" + ",".join(changed) if changed else "")

    @classmethod
    def summary(cls) -> str:
        """The first line of the documentation."""
        return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""

    @classmethod
    def option_types(cls) -> dict[str, dict[str, Any]]:
        """Option → its type in words, and its default (None for one that must be given)."""
        return {
            f.name: {
                "type": f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type)),
                "default": None if f.default is dataclasses.MISSING else f.default,
            }
            for f in dataclasses.fields(cls)  # type: ignore[arg-type]  # passes are dataclasses
        }

    @classmethod
    def search_space(cls) -> Mapping[str, Sequence[Any]]:
        """Option → values worth trying, for the planner; from the fields' metadata."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # passes are dataclasses
        return {f.name: f.metadata["search"] for f in fields if "search" in f.metadata}


PASSES: dict[str, type[Pass]] = {}


@dataclass(frozen=True)
class Origin:
    """Where in the code a pass is defined."""

    module: str
    file: str
    line: int
    spec: Any = field(compare=False)
    """The module's import specification: another one each time that the module is loaded."""

    def redefines(self, other: Origin) -> bool:
        """Whether this is the same definition run again: after a reload, in a loop, in another cell of a notebook."""
        if self.module != other.module:
            return False
        return self == other or self.spec is not other.spec or self.file != other.file

    def __str__(self) -> str:
        return f"{self.module} (line {self.line})"


def origin() -> Origin:
    """Of the code that declares passes by functions of `base` and `rewrite`."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__") in _DECLARING:
        frame = frame.f_back
    found = frame.f_globals
    return Origin(str(found.get("__name__")), frame.f_code.co_filename, frame.f_lineno, found.get("__spec__"))


_DECLARING = (__name__, "espalier.passes.rewrite")
_ORIGINS: dict[type[Pass], Origin] = {}


def register(cls: type[Pass]) -> type[Pass]:
    """Make a pass class known under its name. Raises InputError E204 if another pass has it."""
    here, known = origin(), PASSES.get(cls.name)
    there = None if known is None else _ORIGINS.get(known)
    if there is not None and not here.redefines(there):
        raise InputError("E204", f"two passes are called {cls.name!r}: {there} and {here}")
    if known is not None:
        _ORIGINS.pop(known, None)
    PASSES[cls.name], _ORIGINS[cls] = cls, here
    return cls


def graph_pass(
    name: str,
    *,
    semantics: Semantics = BITEXACT,
    requires: Sequence[Predicate] = (),
    establishes: Sequence[Predicate] = (),
    breaks: Sequence[Predicate] = (),
) -> Callable[[type[Any]], type[Any]]:
    """Make a class with `run(graph, context)` a pass: a frozen dataclass, registered under the name."""

    def make(cls: type[Any]) -> type[Any]:
        cls.name, cls.semantics = name, semantics
        cls.requires, cls.establishes, cls.breaks = tuple(requires), tuple(establishes), tuple(breaks)
        cls = _frozen(cls)
        if not issubclass(cls, Pass):
            names = {key: getattr(cls, key) for key in ("__doc__", "__module__", "__qualname__")}
            cls = _frozen(type(cls.__name__, (cls, Pass), names))
        return register(cls)

    return make


def _frozen(cls: type[Any]) -> type[Any]:
    """The class as a frozen dataclass of its own annotations."""
    parameters = cls.__dict__.get("__dataclass_params__")
    return cls if parameters is not None and parameters.frozen else dataclass(frozen=True)(cls)


@cache
def load_passes() -> None:
    """Import the built-in rules and what entry points of the group `espalier.passes` name."""
    package = importlib.import_module("espalier.passes.rules")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"espalier.passes.rules.{module.name}")
    structure = importlib.import_module("espalier.passes.structure")
    for name in structure.PASSES:
        importlib.import_module(f"espalier.passes.structure.{name}")
    plugins.load_all("espalier.passes")


def lookup(name: str) -> type[Pass]:
    """The pass class of that name. Raises InputError, with the nearest names, if there is none."""
    load_passes()
    if name not in PASSES:
        near = difflib.get_close_matches(name, PASSES, 3)
        hint = f"Did you mean {', '.join(near)}?" if near else "`espalier passes` lists them."
        raise InputError("E202", f"no pass is called {name!r}", hint=hint)
    return PASSES[name]


def parse_spec(spec: str) -> Pass:
    """A pass from text such as ``prune:ratio=0.5,criterion=taylor``. Raises InputError."""
    name, _, rest = spec.strip().partition(":")
    cls = lookup(name.strip().replace("-", "_"))
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # passes are dataclasses
    try:
        made = cls(**parse_options(f"pass {cls.name}", fields, rest.split(",")))
    except (TypeError, ValueError) as error:
        raise InputError("E203", f"{spec!r}: {error}") from None
    return made


def parse_options(owner: str, fields: Mapping[str, dataclasses.Field[Any]], items: Iterable[str]) -> dict[str, Any]:
    """Options from texts such as ``ratio=0.5``, as the types of the fields' defaults. Raises InputError E203."""
    options: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in items)):
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in fields:
            raise InputError("E203", f"the {owner} has no option {key!r}", hint=f"It has {sorted(fields) or 'none'}.")
        if key in options:
            raise InputError("E203", f"the {owner} has its option {key!r} twice")
        options[key] = _parse_option(owner, fields[key], value.strip())
    return options


def _parse_option(owner: str, option: dataclasses.Field[Any], text: str) -> Any:
    """The text as the type of the option's default."""
    default = option.default
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if isinstance(default, str):
            return text
        value = ast.literal_eval(text)
        if isinstance(default, float) and isinstance(value, int):
            value = float(value)
        if default is not None and default is not dataclasses.MISSING and not isinstance(value, type(default)):
            raise ValueError
        return value
    except (KeyError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        wanted = "a number or a list" if default in (None, dataclasses.MISSING) else type(default).__name__
        message = f"option {option.name} of {owner}: {text!r} is no valid value ({wanted} is wanted)"
        raise InputError("E203", message) from None


def _print_option(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def order(passes: Iterable[Pass], graph: Graph) -> list[Pass]:
    """Sort stably, so that what a pass requires holds when it runs. Raises InputError if no order does."""
    waiting, sorted_passes = list(passes), []
    needed = {predicate for p in waiting for predicate in p.requires}
    state = {predicate for predicate in needed if predicate.holds(graph)}
    while waiting:
        ready = next((p for p in waiting if set(p.requires) <= state), None)
        if ready is None:
            lacking = {q.name for p in waiting for q in p.requires if q not in state}
            names = ", ".join(p.name for p in waiting)
            raise InputError("E210", f"nothing before {names} establishes: {', '.join(sorted(lacking))}")
        waiting.remove(ready)
        sorted_passes.append(ready)
        state = (state - set(ready.breaks)) | set(ready.establishes)
    return sorted_passes
