"""What a lowering works with: a builder, and the types that torch computed for its node."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from espalier.errors import UnsupportedError
from espalier.frontends.torch.symbols import Symbols
from espalier.frontends.torch.tensors import DTYPES, element_of, number
from espalier.ir import dims
from espalier.ir.build import Builder
from espalier.ir.dims import Dimension, Shape
from espalier.ir.elements import BOOL, F32, F64, I32, I64, U8, Element
from espalier.ir.graph import Graph, Value, constant_value
from espalier.ir.types import TensorType

LAST = (1 << 63) - 1
"""What torch (and ONNX's Slice) write for "to the end"."""


@dataclass(frozen=True)
class Pair:
    """A complex tensor: its real and its imaginary part, of one shape."""

    real: Value
    imag: Value

    @property
    def rank(self) -> int:
        return len(self.real.shape)

    @property
    def element(self) -> Element:
        """The element of the parts."""
        return self.real.element


Scalar = "Value | Dimension | float | bool"


class One:
    """Builds nodes of one result: `one.relu(x)` is a value."""

    def __init__(self, builder: Builder, symbols: Symbols) -> None:
        self._builder, self._symbols = builder, symbols

    def __getattr__(self, name: str) -> Callable[..., Value]:
        found: Callable[..., Value] = getattr(self._builder, name)

        def build(*operands: Any, **attributes: Any) -> Value:
            return self._symbols.note(found(*operands, **attributes))

        return build


class Many:
    """Builds nodes of several results: `many.top_k(x, k)` is a tuple of values."""

    def __init__(self, builder: Builder, symbols: Symbols) -> None:
        self._builder, self._symbols = builder, symbols

    def __getattr__(self, name: str) -> Callable[..., tuple[Value, ...]]:
        found: Callable[..., Any] = getattr(self._builder, name)

        def build(*operands: Any, **attributes: Any) -> tuple[Value, ...]:
            made = found(*operands, **attributes)
            return tuple(map(self._symbols.note, made if isinstance(made, tuple) else (made,)))

        return build


class Scope:
    """Helpers for lowering one node. Operands and results are values; extents are numbers or dimensions."""

    def __init__(self, graph: Graph, symbols: Symbols, builder: Builder, node: torch.fx.Node, location: Any) -> None:
        self.graph, self.symbols, self.builder, self.node, self.location = graph, symbols, builder, node, location
        self.b, self.many = One(builder, symbols), Many(builder, symbols)

    # ---- what torch says ------------------------------------------------------------------------------------

    @property
    def fakes(self) -> tuple[Any, ...]:
        """Torch's own results: fake tensors with dtypes and symbolic shapes."""
        found = self.node.meta.get("val")
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    @property
    def element(self) -> Element:
        """The element of the (first) result; of a complex one, that of its parts."""
        return element_of(self.fakes[0].dtype)

    @property
    def shape(self) -> Shape:
        """The shape of the (first) result. Refuses extents that no dimension says."""
        return self.known_shape(self.fakes[0].shape)

    def known_shape(self, entries: Sequence[Any]) -> Shape:
        found = self.symbols.shape(entries)
        if any(entry is None for entry in found):
            self.refuse(f"the shape {tuple(entries)} can't be said in the sizes of the inputs", code="E405")
        return tuple(entry for entry in found if entry is not None)

    @property
    def rank(self) -> int:
        return len(self.fakes[0].shape)

    def argument_fake(self, index: int) -> Any:
        """What torch knows of an argument of the node: a fake tensor, or the argument itself."""
        argument = self.node.args[index]
        return argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument

    def common_element(self, *indices: int) -> Element:
        """The element in which torch compares or combines the arguments at these positions."""
        fakes = [self.argument_fake(index) for index in indices]
        dtype = torch.result_type(*fakes) if len(fakes) == 2 else fakes[0].dtype
        return element_of(dtype)

    def refuse(self, reason: str, code: str = "E408") -> NoReturn:
        """Refuse this use of the operator, saying why and where."""
        raise UnsupportedError(code, f"{self.node.target}: {reason}", node=self.node.name, source=self.location)

    # ---- values ---------------------------------------------------------------------------------------------

    def shape_of(self, value: Value) -> Shape:
        if value.shape is None:
            self.refuse(f"the rank of {value} is unknown")
        return tuple(value.shape)

    def rank_of(self, value: Value) -> int:
        return len(self.shape_of(value))

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front."""
        return int(axis) % rank if rank else 0

    def cast(self, value: Value, element: Element) -> Value:
        """Convert like torch: floats to integers by truncation, anything to bool by ≠ 0."""
        if value.element == element:
            return value
        if (
            value.is_constant
            and value.constant is not None
            and value.constant.size <= 1
            and value.element.kind != "complex"
        ):
            return number(value.array, element)
        found = self.b.cast(value, to=element)
        return found

    def number(self, scalar: Any, element: Element) -> Value:
        """A scalar argument (number, dimension, or a value of one element) as a scalar value."""
        if isinstance(scalar, Value):
            return self.cast(self.scalar(scalar), element)
        if isinstance(scalar, dims.Dim):
            return self.cast(self.scalar(self.symbols.value(self.builder, scalar)), element)
        return number(scalar, element)

    def scalar(self, value: Value) -> Value:
        """A tensor of one element without axes."""
        return value if value.rank == 0 else self.reshape(value, ())

    def operand(self, operand: Any, element: Element | None = None) -> Value:
        """An operand that may be a tensor or a number, converted to the element (the result's by default)."""
        element = element or self.element
        return self.cast(operand, element) if isinstance(operand, Value) else self.number(operand, element)

    def sizes(self, entries: Sequence[Dimension]) -> Value:
        """A shape, axes, pads, … as an i64 operand."""
        return self.symbols.list(self.builder, entries)

    def dim(self, entry: Any) -> Dimension:
        """An integer argument as a dimension; a value that the program computes gets a symbol."""
        if isinstance(entry, Value):
            if entry.known is not None:
                found = entry.known.reshape(-1).tolist()[0]
                return found if isinstance(found, dims.Dim) else int(found)
            return self.symbol_for(entry)
        return entry if isinstance(entry, dims.Dim) else int(entry)

    def symbol_for(self, value: Value) -> dims.Dim:
        """A new symbol that stands for the number that a value holds."""
        symbol = dims.symbol(self.graph.fresh_symbol())
        value = self.reshape(self.cast(value, I64), (1,))
        self.symbols.sources[str(symbol)] = (value, None)
        return symbol

    # ---- movement -------------------------------------------------------------------------------------------

    def reshape(self, value: Value, shape: Sequence[Dimension]) -> Value:
        """Row-major reshape. Symbolic extents are copied or left to be inferred where that suffices."""
        shape, old = tuple(shape), value.shape
        if old is not None and tuple(old) == shape:
            return value
        written: list[Dimension] = list(shape)
        symbolic = [k for k, extent in enumerate(shape) if not isinstance(extent, int)]
        if len(symbolic) > 1 and old is not None and 0 not in shape:
            for k in symbolic:
                if k < len(old) and old[k] == shape[k] and tuple(old[:k]) == shape[:k]:
                    written[k] = 0
        left = [k for k in symbolic if written[k] != 0]
        if len(left) == 1 and 0 not in shape:
            written[left[0]] = -1
        found = self.b.reshape(value, self.sizes(written), allowzero=int(0 in shape))
        return self.typed(found, shape)

    def typed(self, value: Value, shape: Sequence[Dimension]) -> Value:
        """Give a value the shape that it is known to have, where inference could not tell."""
        if value.shape is None or not dims.is_static(value.shape):
            value.type = TensorType(value.element, tuple(shape))
        return value

    def transpose(self, value: Value, perm: Sequence[int]) -> Value:
        perm = tuple(perm)
        if perm == tuple(range(len(perm))):
            return value
        found = self.b.transpose(value, perm=perm)
        return found

    def swap(self, value: Value, a: int, b: int) -> Value:
        """Exchange two axes."""
        rank = self.rank_of(value)
        perm = list(range(rank))
        a, b = self.axis(a, rank), self.axis(b, rank)
        perm[a], perm[b] = perm[b], perm[a]
        return self.transpose(value, perm)

    def unsqueeze(self, value: Value, *axes: int) -> Value:
        """Insert axes of extent 1, counted in the result."""
        if not axes:
            return value
        found = self.b.unsqueeze(value, self.sizes(axes))
        return found

    def squeeze(self, value: Value, *axes: int) -> Value:
        """Drop axes of extent 1."""
        if not axes:
            return value
        found = self.b.squeeze(value, self.sizes(axes))
        return found

    def slice(self, value: Value, axis: int, start: Dimension, stop: Dimension, step: int = 1) -> Value:
        """Positions start, start+step, … below stop (both counted from the front, or negative numbers from the end)."""
        extent = self.shape_of(value)[axis]
        if start == 0 and step == 1 and (stop == extent or isinstance(stop, int) and stop >= LAST):
            return value
        if isinstance(extent, int) and isinstance(stop, int):
            stop = min(stop, extent)
            if start == 0 and step == 1 and stop == extent:
                return value
        found = self.b.slice(value, self.sizes([start]), self.sizes([stop]), self.sizes([axis]), self.sizes([step]))
        return found

    def select(self, value: Value, axis: int, index: Dimension) -> Value:
        """One position of an axis, which goes away."""
        found = self.b.gather(value, self.scalar(self.sizes([index])), axis=axis)
        return found

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        if len(values) == 1:
            return values[0]
        found = self.b.concat(*values, axis=axis)
        return found

    def expand(self, value: Value, shape: Sequence[Dimension]) -> Value:
        """Broadcast to a shape."""
        if value.shape is not None and tuple(value.shape) == tuple(shape):
            return value
        found = self.b.expand(value, self.sizes(shape))
        return self.typed(found, shape)

    def full(self, shape: Sequence[Dimension], scalar: Any, element: Element | None = None) -> Value:
        """A tensor of one number; stored as a scalar that is expanded."""
        return self.expand(self.number(scalar, element or self.element), shape)

    def arange(self, stop: Dimension, element: Element = I64) -> Value:
        """0, 1, … below stop."""
        if isinstance(stop, int):
            return constant_value(np.arange(stop).astype(element.dtype), element)
        found = self.b.range(self.number(0, I64), self.number(stop, I64), self.number(1, I64))
        return self.cast(self.typed(found, (stop,)), element)

    def broadcast_shape(self, *shapes: Shape) -> Shape:
        """The shape that shapes broadcast to; of two symbolic extents that differ, the first is taken."""
        rank = max(map(len, shapes))
        result: list[Dimension] = [1] * rank
        for shape in shapes:
            for k, extent in enumerate(shape, rank - len(shape)):
                if result[k] == 1 or isinstance(extent, int) and extent != 1:
                    result[k] = extent
        return tuple(result)

    # ---- arithmetic -----------------------------------------------------------------------------------------

    def numeric(self, value: Value) -> Value:
        """Bools as integers, for operators that take numbers only."""
        return self.cast(value, U8) if value.element == BOOL else value

    def floating(self, value: Value) -> Value:
        """Integers as the default float, for functions of reals."""
        return value if value.element.is_float else self.cast(value, F32)

    def zero_like(self, value: Value) -> Value:
        return number(0, value.element)

    def used(self, index: int) -> bool:
        """Whether anything reads this result of the node."""
        return any(user.args[1] == index for user in self.node.users if user.target is operator.getitem)

    def wide(self, value: Value) -> Value:
        """16-bit and narrower floats as f32: the precision in which torch computes composites of them."""
        return self.cast(value, F32) if value.element.is_float and value.element.bits < 32 else value


def dtype_element(dtype: torch.dtype | None, default: Element) -> Element:
    """The element that a `dtype` argument asks for."""
    return default if dtype is None else element_of(dtype)


def torch_dtype(element: Element) -> torch.dtype:
    return DTYPES[element]


def index_element(element: Element) -> bool:
    """Whether ONNX takes it for indices."""
    return element in (I32, I64)


__all__ = ["F64", "LAST", "Pair", "Scope", "dtype_element", "index_element", "torch_dtype"]
