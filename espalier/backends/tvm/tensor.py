"""Tensors while a graph is lowered: a lazy expression DAG over which operators' references run as they are.

A `Tensor` behaves like an array of `xp` as far as references need (shape, ndim, operators, indexing). Nothing is
computed; each tensor says how one entry of it is computed from entries of its operands. `fuse` decides later which
tensors get a buffer, and `kernels` writes the loops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from espalier.ir import dims
from espalier.ir.constants import Constant as Weights
from espalier.ir.dims import Dim, Dimension, Shape
from espalier.ir.elements import Element

Expr = Any
Index = Sequence[Expr]

Access = Literal["same", "once", "many"]
"""How a tensor reads an operand: at its own index; each entry at most once; or some entries repeatedly."""

TRANSCENDENTAL = 8
"""Cost of an exponential and the like, in units of one addition."""


class Untraceable(Exception):
    """A reference asked for what has no form in loops: a primitive, or numbers only known when the model runs.

    `tensor` is the one whose numbers were wanted.
    """

    def __init__(self, message: str, tensor: Tensor | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor


class At(Protocol):
    """What the code of one entry may ask for."""

    def __call__(self, operand: int, index: Index) -> Expr:
        """The operand's entry at an index."""

    def whole(self, operand: int, index: Index) -> Expr:
        """The entry of an operand of integers, of at most 16 bits, as a float in f32."""

    def dim(self, dimension: Dimension) -> Expr:
        """A dimension as an expression."""

    def guard(self, condition: Expr, yes: Callable[[], Expr], no: Expr) -> Expr:
        """`yes`, which may be computed only if the condition holds; else `no`."""

    def choose(self, condition: Expr, yes: Callable[[], Expr], no: Callable[[], Expr]) -> Expr:
        """One of two, of which only the one taken may be computed."""

    def bind(self, value: Expr) -> Expr:
        """The same value, computed once even if it is used several times."""


@dataclass(frozen=True)
class Layout:
    """Where entries of (batch, channels, positions…) lie: (batch, channels / lanes, positions…, lanes).

    `halo` counts entries that lie before and after the positions of each axis, and are all `fill`.
    """

    lanes: int
    halo: tuple[tuple[int, int], ...]
    fill: int = 0

    def stored(self, shape: Shape) -> Shape:
        """The shape of the buffer."""
        positions = [extent + sum(pair) for extent, pair in zip(shape[2:], self.halo, strict=True)]
        return (shape[0], dims.ceil_divide(shape[1], self.lanes), *positions, self.lanes)


@dataclass(frozen=True)
class Affine:
    """How a tensor of floats follows from one of integers: (stored − zero) · scale, one for all or for each index."""

    stored: Tensor
    scale: np.ndarray[Any, Any]
    zero: np.ndarray[Any, Any]
    axis: int | None
    """The axis along which scale and zero point vary; None: they are numbers."""
    block: int = 0
    """Neighbours on the axis that share a scale and a zero point, which have the integers' rank then; 0: none do."""


_MAKER: ContextVar[Any] = ContextVar("maker", default=None)


@contextlib.contextmanager
def made_by(node: Any) -> Iterator[None]:
    """Tensors that are made inside are a node's."""
    token = _MAKER.set(node)
    try:
        yield
    finally:
        _MAKER.reset(token)


def maker() -> Any:
    """The node that is being lowered; None outside of nodes."""
    return _MAKER.get()


class Tensor:
    """One tensor of the DAG. `access[k]` says how operand k is read."""

    __array_ufunc__ = None  # numpy leaves operators to us
    layout: Layout | None = None
    """How its buffer is laid out; None for row-major order."""
    affine: Affine | None = None
    """What it is dequantized from."""
    narrow: Tensor | None = None
    """The tensor of bf16 whose numbers these are, in f32."""
    scaled: tuple[Tensor, float] | None = None
    """A tensor of bf16, and what its numbers were multiplied by in f32, for products to multiply by afterwards."""

    def __init__(
        self,
        shape: Shape,
        element: Element,
        operands: Sequence[Tensor] = (),
        access: Sequence[Access] = (),
        cost: int = 0,
    ) -> None:
        self.shape: Any = tuple(shape)
        self.element = element.storage
        self.operands, self.access, self.cost = tuple(operands), tuple(access), cost
        self.node = _MAKER.get()
        """The node of the graph whose lowering made it; None for inputs and copies."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def stored_shape(self) -> Any:
        """The shape of its buffer."""
        return self.shape if self.layout is None else self.layout.stored(self.shape)

    @property
    def size(self) -> Any:
        return dims.product(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.element.dtype

    @property
    def is_static(self) -> bool:
        return dims.is_static(self.shape)

    def __len__(self) -> int:
        if not self.shape or not isinstance(self.shape[0], int):
            raise Untraceable("the length of a tensor is not known before run time")
        return int(self.shape[0])

    def __bool__(self) -> bool:
        raise Untraceable("a decision depends on data that are not known before run time", self)

    def _number(self) -> Any:
        raise Untraceable("a number is needed that is not known before run time", self)

    __int__ = __float__ = __index__ = _number

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise Untraceable("numbers are needed that are not known before run time", self)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.element}[{', '.join(map(str, self.shape))}])"

    # operators: the primitives of the same names

    def __getitem__(self, key: Any) -> Any:
        from espalier.backends.tvm import selection

        return selection.getitem(self, key)


def _operator(name: str, reverse: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        from espalier.backends.tvm import arithmetic

        function = getattr(arithmetic, name)
        return function(other, self) if reverse else function(self, other)

    return method


for _name, _method in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift", "matmul": "matmul",
}.items():  # fmt: skip
    setattr(Tensor, f"__{_name}__", _operator(_method))
    setattr(Tensor, f"__r{_name}__", _operator(_method, reverse=True))
for _name, _method in {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}.items():  # fmt: skip
    setattr(Tensor, f"__{_name}__", _operator(_method))
Tensor.__hash__ = object.__hash__  # type: ignore[method-assign]  # == makes a tensor, so identity


def _unary(name: str) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        from espalier.backends.tvm import arithmetic

        return getattr(arithmetic, name)(self)

    return method


for _name, _method in {"neg": "negative", "abs": "abs", "invert": "bitwise_invert"}.items():
    setattr(Tensor, f"__{_name}__", _unary(_method))


class Input(Tensor):
    """An input of the graph (or of a region)."""

    def __init__(self, shape: Shape, element: Element, position: int) -> None:
        super().__init__(shape, element)
        self.position = position


class Constant(Tensor):
    """A constant: numbers known when compiling."""

    def __init__(self, array: np.ndarray[Any, Any], element: Element, weights: Weights | None = None) -> None:
        super().__init__(array.shape, element)
        self.array, self.weights = array, weights


class Dequantized(Constant):
    """A constant that is dequantized when its numbers are asked for: products that unpack integers never do."""

    def __init__(self, affine: Affine, element: Element, numbers: Callable[[], np.ndarray[Any, Any]]) -> None:
        Tensor.__init__(self, affine.stored.shape, element)
        self.affine, self.weights, self.numbers = affine, None, numbers

    @cached_property
    def array(self) -> np.ndarray[Any, Any]:  # type: ignore[override]  # nobody sets it
        return self.numbers()


class Map(Tensor):
    """Each entry on its own: `body(at, index)` is the expression of one."""

    def __init__(
        self,
        shape: Shape,
        element: Element,
        operands: Sequence[Tensor],
        access: Sequence[Access],
        body: Callable[[At, Index], Expr],
        cost: int = 0,
    ) -> None:
        super().__init__(shape, element, operands, access, cost)
        self.body = body
        self.whole: Callable[[At, Index], Expr] | None = None
        """Gives entries that are integers as floats, where they are not stored."""
        self.function: Callable[..., Expr] | None = None
        """(at, entries of the operands) → the entry, if it follows from theirs wherever it lies."""
        self.tabulates: Map | None = None
        """What it reads from a table."""
        self.again: Callable[[Tensor], Tensor] | None = None
        """Makes of another tensor what this is of its operand: the same entries in another order. What is narrower is
        better computed before."""


class Fold(Tensor):
    """Each entry by a loop over `extents`, with a state of one or more numbers.

    `start()` gives the state before the loop, `step(at, state, index, position)` the next one, `join(a, b)` the state
    of two stretches of positions one after the other, `finish(at, state)` the entry. `types` are the TVM types of the
    state. `rows` says that the loop runs along memory (so it, not the index, should be vectorised).
    """

    def __init__(
        self,
        shape: Shape,
        element: Element,
        operands: Sequence[Tensor],
        access: Sequence[Access],
        extents: Shape,
        types: Sequence[str],
        start: Callable[[], Sequence[Expr]],
        step: Callable[[At, Sequence[Expr], Index, Index], Sequence[Expr]],
        finish: Callable[[At, Sequence[Expr]], Expr],
        join: Callable[[Sequence[Expr], Sequence[Expr]], Sequence[Expr]] | None = None,
        rows: bool = False,
    ) -> None:
        super().__init__(shape, element, operands, access, cost=1000)
        self.extents, self.types, self.start, self.step, self.finish = tuple(extents), tuple(types), start, step, finish
        self.join, self.rows = join, rows


class Product(Tensor):
    """A contraction with many uses of each operand's entry: matrix products and convolutions, tiled by `products`.

    `plan` holds what the template needs. Every operand has a buffer.
    """

    def __init__(self, shape: Shape, element: Element, operands: Sequence[Tensor], plan: Any) -> None:
        super().__init__(shape, element, operands, ["many"] * len(operands), cost=100000)
        self.plan = plan


class Program(Tensor):
    """Results of loops written by hand (sorting, scattering): `write(scope, inputs, outputs)` gives the statement.

    The first result is the program itself; `others` are further results, `Part`s of it.
    """

    def __init__(
        self,
        types: Sequence[tuple[Shape, Element]],
        operands: Sequence[Tensor],
        write: Callable[[Any, Sequence[Any], Sequence[Any]], Any],
    ) -> None:
        super().__init__(*types[0], operands, ["many"] * len(operands), cost=100000)
        self.write = write
        self.parts: list[Tensor] = [self, *(Part(*each, self) for each in types[1:])]


class Part(Tensor):
    """A further result of a program."""

    def __init__(self, shape: Shape, element: Element, program: Program) -> None:
        super().__init__(shape, element, [program], ["many"])


class Alias(Tensor):
    """The entries of another tensor's buffer, in row-major order, under another shape."""

    def __init__(self, source: Tensor, shape: Shape) -> None:
        super().__init__(shape, source.element, [source], ["many"])


def moved(result: Tensor, sources: Sequence[Tensor], move: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """What movements make, with what it is dequantized from or widened from, which is moved in the same way.

    That is asked for only if all sources are dequantized alike, with one scale, or all are widened.
    """
    narrow = [source.narrow for source in sources if source.narrow is not None]
    if len(narrow) == len(sources):
        result.narrow = move(narrow)
    elif len(sources) == 1 and sources[0].scaled is not None:
        stored, factor = sources[0].scaled
        result.scaled = move([stored]), factor
    held = [source.affine for source in sources if source.affine is not None and source.affine.axis is None]
    if len(held) == len(sources) and not isinstance(result, Constant):
        first = held[0]
        alike = {(each.stored.element, each.scale.item(), each.zero.item()) for each in held if not each.block}
        if len(alike) == 1 and not any(each.block for each in held):
            result.affine = Affine(move([each.stored for each in held]), first.scale, first.zero, None)
    return result


def is_dimension(value: Any) -> bool:
    return isinstance(value, int | Dim) and not isinstance(value, bool)
