"""Random graphs: every kind of operand, constants small and large, several results, regions, symbolic extents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from espalier.ir import Builder, Dim, Graph, Value, elements
from espalier.ir.dims import Shape, product, symbol, symbol_name
from espalier.ir.graph import Location
from espalier.ir.types import TensorType

Generator = np.random.Generator
Step = Callable[[Builder, Generator, Value], "Value | tuple[Value, ...] | None"]
STEPS: list[Step] = []


def step(function: Step) -> Step:
    """Register a way to go on from a value of f32; None if it doesn't fit."""
    STEPS.append(function)
    return function


def weight(rng: Generator, *shape: int) -> np.ndarray[Any, Any]:
    return (rng.standard_normal(shape) / 2).astype(np.float32)


@step
def activation(b: Builder, rng: Generator, x: Value) -> Value:
    kind = rng.choice(["relu", "sigmoid", "tanh", "gelu", "neg", "identity", "hard_swish"])
    return getattr(b, str(kind))(x)


@step
def scalar(b: Builder, rng: Generator, x: Value) -> Value:
    return getattr(b, str(rng.choice(["add", "mul", "sub", "max"])))(x, np.float32(rng.normal()))


@step
def residual(b: Builder, rng: Generator, x: Value) -> Value:
    return b.add(x, b.clip(x, np.float32(-1), np.float32(6)))


@step
def dense(b: Builder, rng: Generator, x: Value) -> Value | None:
    if not x.rank or not isinstance(x.shape[-1], int):
        return None
    return b.matmul(x, weight(rng, x.shape[-1], int(rng.integers(2, 9))))


@step
def convolution(b: Builder, rng: Generator, x: Value) -> Value | None:
    if x.rank != 4 or not all(isinstance(extent, int) and extent > 0 for extent in x.shape[1:]):
        return None
    channels = x.shape[1]
    group = channels if rng.random() < 0.3 else 1
    bias = weight(rng, channels) if rng.random() < 0.5 else None
    return b.conv(x, weight(rng, channels, channels // group, 3, 3), bias, pads=(1, 1, 1, 1), group=group)


@step
def normalization(b: Builder, rng: Generator, x: Value) -> Value | None:
    if not x.rank or x.rank < 2 or not isinstance(x.shape[1], int):
        return None
    c = x.shape[1]
    return b.batch_norm(x, weight(rng, c), weight(rng, c), weight(rng, c), np.abs(weight(rng, c)) + 1)


@step
def normalize(b: Builder, rng: Generator, x: Value) -> Value | None:
    if not x.rank:
        return None
    return getattr(b, str(rng.choice(["softmax", "log_softmax"])))(x, axis=int(rng.integers(x.rank)))


@step
def transpose(b: Builder, rng: Generator, x: Value) -> Value | None:
    return b.transpose(x, perm=tuple(rng.permutation(x.rank).tolist())) if x.rank else None


@step
def flatten(b: Builder, rng: Generator, x: Value) -> Value | None:
    return b.flatten(x, axis=int(rng.integers(x.rank + 1))) if x.rank else None


@step
def reshape(b: Builder, rng: Generator, x: Value) -> Value | None:
    if not x.rank or not isinstance(x.shape[-1], int) or x.shape[-1] == 0:
        return None
    size = x.shape[-1]
    factor = int(rng.choice([d for d in range(1, size + 1) if size % d == 0]))
    return b.reshape(x, np.array([*[0] * (x.rank - 1), factor, size // factor]))


@step
def reshape_by_shape(b: Builder, rng: Generator, x: Value) -> Value | None:
    if not x.rank or x.rank < 2:
        return None
    head = b.slice(b.shape(x), np.array([0]), np.array([1]))
    return b.reshape(x, b.concat(head, np.array([-1]), axis=0))


@step
def halves(b: Builder, rng: Generator, x: Value) -> tuple[Value, ...] | None:
    axes = [k for k, extent in enumerate(x.shape or ()) if isinstance(extent, int) and extent >= 2]
    if not axes:
        return None
    axis = int(rng.choice(axes))
    first = int(rng.integers(1, x.shape[axis]))
    made: tuple[Value, ...] = b.split(x, np.array([first, x.shape[axis] - first]), axis=axis, results=2)
    return (*made, b.concat(*made[::-1], axis=axis))


@step
def reduction(b: Builder, rng: Generator, x: Value) -> Value | None:
    if not x.rank:
        return None
    kind = str(rng.choice(["reduce_sum", "reduce_mean", "reduce_max"]))
    axis = np.array([int(rng.integers(-x.rank, x.rank))])
    return getattr(b, kind)(x, axis, keepdims=int(rng.integers(2)))


@step
def widened(b: Builder, rng: Generator, x: Value) -> Value:
    return b.cast(b.sqrt(b.abs(b.cast(x, to=elements.F64))), to=elements.F32)


@step
def branch(b: Builder, rng: Generator, x: Value) -> Value:
    regions = []
    for name, slope in (("then", 0.1), ("else", 0.2)):
        region = Graph(name)
        inner = Builder(region)
        region.set_outputs([inner.leaky_relu(inner.input(x.type, "x"), alpha=slope)])
        regions.append(region)
    found: Value = getattr(b, "if")(np.array(bool(rng.integers(2))), x, regions=regions, results=1)
    return found


def random_graph(rng: Generator, size: int = 12, *, symbolic: bool | None = None, steps: Any = None) -> Graph:
    """A graph of about `size` steps on f32 values, with one or two inputs and one to three outputs.

    `symbolic` says whether the batch extent is a symbol (by default, at random); `steps` narrows what may happen.
    """
    graph = Graph("random")
    builder = Builder(graph)
    batch: Any = symbol("n") if (rng.random() < 0.5 if symbolic is None else symbolic) else 2
    shapes: list[Shape] = [(batch, 4, 6, 6), (batch, 3, 8), (batch, 6)]
    found = [
        builder.input(TensorType(elements.F32, shapes[int(rng.integers(len(shapes)))]), f"input {k}")
        for k in range(int(rng.integers(1, 3)))
    ]
    chosen = list(steps or STEPS)
    for number in range(size):
        lines = (f'file "{number}".py:{number}',) if rng.random() < 0.3 else ()
        builder.location = Location((f"node {number}",), lines)
        x = found[-1] if rng.random() < 0.7 else found[int(rng.integers(len(found)))]
        if isinstance(count := product(x.shape), int) and count > 4096:
            continue
        made = chosen[int(rng.integers(len(chosen)))](builder, rng, x)
        found += [] if made is None else [made] if isinstance(made, Value) else list(made)
    count = int(rng.integers(1, 4))
    graph.set_outputs(found[-count:], [f"output {k}" for k in range(len(found[-count:]))])
    return graph


def random_inputs(graph: Graph, rng: Generator, extent: int = 3) -> list[np.ndarray[Any, Any]]:
    """Numbers for each input; every symbol gets the same extent."""
    made = []
    for value in graph.inputs:
        shape = [extent if isinstance(size, Dim) and symbol_name(size) else size for size in value.shape]
        made.append(rng.standard_normal(shape).astype(value.element.dtype))
    return made


__all__ = ["STEPS", "random_graph", "random_inputs", "step"]
