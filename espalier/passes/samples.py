"""Inputs made up for checks: arrays that fit a graph's input types, on which two versions are compared."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
import numpy.random  # numpy itself waits until it is asked for, which would be in the first check

from espalier.analysis.patterns import is_elementwise
from espalier.errors import EspalierError, InputError
from espalier.ir import Graph, Node, TensorType, Value
from espalier.ir.dims import Dim, Dimension, substitute, symbols
from espalier.ir.elements import Element
from espalier.ir.execute import Allowance, run
from espalier.train.agreement import disagreement
from espalier.train.data import Data
from espalier.train.evaluate import in_batches

Mode = Literal["normal", "zero", "large", "extreme", "special", "positive"]
MODES: tuple[Mode, ...] = ("normal", "zero", "large", "extreme")
EXACT_MODES: tuple[Mode, ...] = ("special", *MODES)
"""For what is to agree bit for bit: also zeros of both signs, infinities, NaN and subnormal numbers."""
_EXTENTS = (2, 3, 4, 5)
SIZES = (1, 8, 17, 32, 37, 67, 224)
"""Where the extents begin that inputs are made up with: windows, multiples and odd numbers want different ones."""
ELEMENTS = 1 << 22
"""Elements of all inputs together, beyond which only the smallest sizes are tried."""
COMPUTED = 1 << 27
"""Elements of anything that is computed, beyond which no sizes are tried but the smallest."""
SECONDS = 30.0
"""Processor time after which no further sizes are tried."""
SAMPLES = 8
"""How many samples of given data a check runs on."""


def check_seed(seed: int) -> None:
    """Raise InputError E201 for a seed that numpy would not take."""
    if seed < 0:
        raise InputError("E201", f"the seed must be at least 0, not {seed}")


class NoSample(Exception):
    """No array can be made for an input; the text says why."""


def sample_inputs(
    values: Iterable[Value],
    seed: int | np.random.Generator,
    mode: Mode = "normal",
    instead: Mapping[int, int] | None = None,
    extents: Mapping[str, int] | None = None,
) -> list[Any]:
    """One array per value; symbols of all shapes get small extents, the same everywhere. Raises NoSample.

    `instead` gives known extents of values whose content is not known others; `extents` are those of some symbols.
    """
    values = list(values)
    names = sorted(
        {name for value in values for dim in value.shape or () if isinstance(dim, Dim) for name in symbols(dim)}
    )
    binding = {name: _EXTENTS[k % len(_EXTENTS)] for k, name in enumerate(names)} | dict(extents or {})
    return _samples(values, binding, seed, mode, instead)


def _samples(
    values: Iterable[Value], binding: dict[str, int], seed: int | np.random.Generator, mode: Mode = "normal",
    instead: Mapping[int, int] | None = None,
) -> list[Any]:  # fmt: skip
    rng = np.random.default_rng(seed)
    return [_sample(value, binding, rng, mode, instead or {}) for value in values]


def _sample(
    value: Value, binding: dict[str, int], rng: np.random.Generator, mode: Mode, instead: Mapping[int, int]
) -> Any:
    if not isinstance(value.type, TensorType) or value.type.shape is None:
        raise NoSample(f"{value} has no known shape")
    shape = [_bind(dim, binding) for dim in value.type.shape]
    if value.known is not None:
        known = [_bind(dim, binding) if value.element.is_integer else dim for dim in value.known.reshape(-1).tolist()]
        return np.array(known, value.element.dtype).reshape(shape)
    return _numbers(value.element.storage, [instead.get(extent, extent) for extent in shape], rng, mode)


def _bind(dim: Dimension, binding: dict[str, int]) -> int:
    if isinstance(dim, int) and dim >= 0:
        return dim
    try:
        found = substitute(dim, {name: binding.get(name, 2) for name in symbols(dim)})
    except ZeroDivisionError as error:
        raise NoSample(f"the extent {dim}: {error}") from None
    if not isinstance(found, int) or found < 0:
        raise NoSample(f"the extent {dim} has no small value")
    return found


def _numbers(element: Element, shape: list[int], rng: np.random.Generator, mode: Mode) -> Any:
    if mode == "special" and element.is_float:
        choices = _special(element)
        return choices[(np.arange(math.prod(shape)) + rng.integers(len(choices))) % len(choices)].reshape(shape)
    if element.is_float or element.is_complex:
        found = np.zeros(shape) if mode == "zero" else rng.standard_normal(shape)
        if element.is_complex:
            found = found + 1j * (np.zeros(shape) if mode == "zero" else rng.standard_normal(shape))
        scale = {"large": 1e3, "extreme": 1e-3}.get(mode, 1.0) if element.bits >= 16 else 1.0
        return (found if scale == 1.0 else found * scale).astype(element.dtype)
    if element.kind == "bool":
        return rng.integers(0, 2, shape).astype(bool) if mode != "zero" else np.zeros(shape, bool)
    if element.kind == "string":
        raise NoSample("no samples of strings")
    low, high = element.range
    if mode == "extreme":
        return rng.choice(np.array([low, high], element.dtype), shape)
    if mode == "zero":
        return np.zeros(shape, element.dtype)
    top = min(high, 100 if mode == "large" else 2)
    least = -top if mode == "large" else int(mode == "positive")
    return rng.integers(max(low, least), top + 1, shape).astype(element.dtype)


@functools.cache
def _special(element: Element) -> Any:
    """Numbers of a float that break careless rewrites."""
    least = float(ml_dtypes.finfo(element.dtype).smallest_subnormal)
    with np.errstate(all="ignore"):
        return np.array([0.0, -0.0, np.inf, -np.inf, np.nan, least, -least, 1.0, -1.5]).astype(element.dtype)


class Trial(NamedTuple):
    """Inputs that a model takes, and what it gives for them, both in order."""

    inputs: list[Any]
    outputs: list[Any]

    @property
    def is_empty(self) -> bool:
        """Whether no output holds anything that could be compared."""
        return not any(np.size(output) for output in self.outputs)


def try_graph(graph: Graph, seed: int, data: Any = None) -> Trial:
    """Inputs on which two versions of a graph can be compared, with the graph's outputs by reference execution.

    The first samples of the data if there are any, else inputs that are made up (see `try_sizes`).

    Raises:
        NoSample: nothing that was made up runs, or it is too much to run; the text says why.
        InputError: the model does not run on the data.
    """

    def call(arrays: Sequence[Any]) -> list[Any]:
        return run(graph, list(arrays), allowance=Allowance())

    if isinstance(data, Data):
        inputs, within = _first_samples(data), functools.partial(run_within, graph)
        try:
            return Trial(inputs, list(in_batches(within, [value.shape for value in graph.inputs])(inputs)))
        except (ValueError, LookupError, ArithmeticError, TypeError) as error:
            raise InputError("E207", f"the model does not run on the data: {error}") from error
    return try_sizes(graph.inputs, call, seed, shapes_of(graph))


def _first_samples(data: Data) -> list[Any]:
    """Of the first batch as many samples as a fixed batch takes, or a few; all if the first axis may be no batch."""
    inputs = list(next(iter(data)).inputs)
    extents = {value.shape[0] for value in data.inputs if value.shape}
    if len(extents) != 1 or any(value.shape is None for value in data.inputs):
        return inputs
    (extent,) = extents
    count = extent if isinstance(extent, int) else SAMPLES
    return [a[:count] if value.shape else a for a, value in zip(inputs, data.inputs, strict=True)]


def shapes_of(graph: Graph) -> set[tuple[Dimension, ...]]:
    """All different shapes of a graph, if the inputs have extents that vary."""
    if not any(symbols(dim) for value in graph.inputs for dim in value.shape or ()):
        return set()
    types = {result.type for node in graph for result in node.results}
    return {type.shape for type in types if isinstance(type, TensorType) and type.shape}


def try_sizes(
    values: Sequence[Value],
    call: Callable[[list[Any]], Sequence[Any]],
    seed: int,
    shapes: Iterable[Sequence[Dimension]] = (),
) -> Trial:
    """Made-up inputs that something takes: small ones if they do, else larger ones, for extents that vary.

    Sizes for which a shape has an extent below 1 that sizes can avoid, or an output is empty, are the last choice.

    Args:
        values: The inputs.
        call: Maps arrays in their order to outputs, and raises what it likes for arrays that don't fit.
        seed: Of the arrays' content.
        shapes: Shapes of what is computed, in terms of the inputs' symbols.

    Raises:
        NoSample: none of the sizes will do; the text says why the first did not.
    """
    check_seed(seed)
    names = {name for value in values for dim in value.shape or () for name in symbols(dim)}
    shapes = list(shapes)
    dims = {dim for shape in shapes for dim in shape if symbols(dim) and symbols(dim) <= names}
    possible, hollow, large = list[dict[str, int]](), list[dict[str, int]](), list[dict[str, int]]()
    for binding in _bindings(values):
        try:
            extents = {dim: substitute(dim, dict(binding)) for dim in dims}
        except ZeroDivisionError:  # fewer positions than a part has, so that there are 0 parts
            continue
        sizes = ([extents.get(dim, dim) for dim in shape] for shape in shapes)
        most = max((math.prod(n for n in size if isinstance(n, int)) for size in sizes), default=0)
        lowest = min((extent for extent in extents.values() if isinstance(extent, int)), default=1)
        if lowest >= 0:
            (large if most > COMPUTED else possible if lowest else hollow).append(binding)
    possible = possible or large[:1]
    fallback, reason, start = None, "", time.process_time()
    modes: tuple[Mode, ...] = ("normal", "positive")  # the latter for what counts or divides
    integers = any(isinstance(value.type, TensorType) and value.element.is_integer for value in values)
    for binding, mode in itertools.product([*possible, *hollow], modes if integers else modes[:1]):
        try:
            inputs = _samples(values, binding, seed, mode)
            outputs = list(call(inputs))
        except NoSample:
            raise
        except Exception as error:  # inputs that were made up need not be ones that the model takes
            if isinstance(error, EspalierError) and error.code == "E215":  # a fault in somebody's code stays one
                raise
            reason = reason or _in_words(error)
        else:
            if all(np.size(output) for output in outputs):
                return Trial(inputs, outputs)
            if fallback is None or fallback.is_empty:
                fallback = Trial(inputs, outputs)
        if time.process_time() - start > SECONDS:
            break
    if fallback is None:
        raise NoSample(f"the model does not run on made-up inputs ({reason or 'no sizes fit its shapes'})")
    return fallback


def _in_words(error: Exception) -> str:
    if isinstance(error, EspalierError):
        return f"{error.code}: {error.message}" + (f" at {error.node}" if error.node is not None else "")
    return f"{type(error).__name__}: {str(error)[:200]}"


def _bindings(values: Sequence[Value]) -> Iterator[dict[str, int]]:
    """Symbol → extent, from small to large: all different; alike along each axis; all alike."""
    places: dict[str, set[int]] = {}
    for value in values:
        for axis, dim in enumerate(value.shape or ()):
            for name in symbols(dim):
                places.setdefault(name, set()).add(axis)
    names = sorted(places)
    batches = [name for name in names if places[name] == {0}]
    rest = [name for name in names if name not in batches]
    along = sorted({min(axes) for axes in places.values()})
    small, seen = list(itertools.islice(_extents(1), len(names))), list[dict[str, int]]()
    for size in SIZES:
        large = list(itertools.islice(_extents(size), len(names)))
        alike = dict(zip(along, large, strict=False))
        for found in (
            dict(zip([*batches, *rest], [*small[: len(batches)], *large[len(batches) :]], strict=True)),
            dict(zip([*rest, *batches], large, strict=True)),
            {name: small[0] if name in batches else alike[min(places[name])] for name in names},
            dict.fromkeys(names, large[0] if large else 0),
        ):
            total = sum(math.prod(_extent(dim, found) for dim in value.shape or ()) for value in values)
            if found not in seen and (size == 1 or total <= ELEMENTS):
                seen.append(found)
                yield found


def _extents(size: int) -> Iterator[int]:
    """Different extents from a size on: multiples of 8 or 32 from a multiple on, primes from any other."""
    if size % 8 == 0:
        return itertools.count(size, min(size, 32))
    return (n for n in itertools.count(max(size, 2)) if all(n % k for k in range(2, math.isqrt(n) + 1)))


def _extent(dim: Dimension, binding: Mapping[str, int]) -> int:
    found = substitute(dim, dict(binding))
    return found if isinstance(found, int) else 1


SENTINEL = 1e30
"""From there on numbers say that something is not there, and are none that sums are made of."""
WHOLE = 2.0**16
"""Below it a whole number is one on purpose; far above it rounding makes every number whole."""
ROUNDING = 2.0**-22
"""How far rounding may move a result, relative to the largest element: a few last bits of f32."""


def run_within(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Run a graph for a check. Raises NoSample if that is more than a check may cost; the text says why."""
    try:
        return run(graph, inputs, allowance=Allowance())
    except EspalierError as error:
        if error.code == "E411":
            raise NoSample(_in_words(error)) from error
        raise


def sensitivity(
    graph: Graph, inputs: Sequence[Any], wanted: Sequence[Any], position: int, seed: int, change: float = 2.0**-16
) -> float:
    """How far an output moves, relative to its largest element, when inputs and what is computed change by a few bits.

    Where a model rounds, a sum in another order can land on the next step; the model itself does no better. Quantized
    inputs hide their own changes, so that results change on the way, too, by what rounding them to f32 may change.

    Args:
        change: of the inputs: the standard deviation relative to each number.

    Raises:
        NoSample: that is too much to run; the text says why.
    """
    rng, worst = np.random.default_rng(seed), 0.0

    def rounded(node: Node, results: Sequence[Any]) -> Sequence[Any]:
        """Moved by rounding to f32: elementwise results each by its own, others, which may be sums, by the largest."""
        alone = is_elementwise(node.op)
        found = []
        for a in results:
            if _real(a) and not node.op.moves:
                size = np.where(np.abs(a) < SENTINEL, np.abs(a), 0.0)  # a mask, or log 0, makes no others move
                step = ROUNDING * (size if alone else size.max()) * rng.standard_normal(a.shape)
                exact = (a == np.rint(a)) & (np.abs(a) < WHOLE)  # positions and counts
                a = np.where(exact, a, a + step).astype(a.dtype)
            found.append(a)
        return found

    for _ in range(3):
        noise = [1 + change * rng.standard_normal(a.shape) for a in inputs]
        moved = [a * e.astype(a.dtype) if a.dtype.kind == "f" else a for a, e in zip(inputs, noise, strict=True)]
        worst = max(worst, disagreement(wanted[position], run_within(graph, moved)[position])[0])
        inner = disagreement(wanted[position], run(graph, inputs, observe=rounded)[position])[0]
        worst = max(worst, inner if np.isfinite(inner) else 0.0)
    return worst


def _real(a: Any) -> bool:
    """Whether it holds data in 32 bits or more: numbers of rank below 2 may say shapes and scales."""
    return isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.dtype.itemsize >= 4 and a.ndim > 1 and a.size > 0
