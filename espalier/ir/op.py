"""Operators: what an operator class declares, and the registry that finds it.

An operator is one class. Its annotations say its operands (`In`, `In | None`, `Ins`), results (`Out`, `Out | None`,
`Outs`; one result `out` if none is declared), regions (`Body`) and attributes (everything else); its `axes` say how
their indices relate; `reference` says what it computes. An instance holds the attributes and never changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import pkgutil
import types as python_types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from espalier import plugins
from espalier.errors import InputError
from espalier.ir import axes, zeros
from espalier.ir.axes import DeclarationError, Equation, declare, undescribed
from espalier.ir.constants import SMALL
from espalier.ir.dims import Dim, Dimension, Shape, product, symbol
from espalier.ir.elements import Element
from espalier.ir.operands import OperandError as OperandError
from espalier.ir.types import TensorType, Type


class In:
    """Marks an operand (`In | None`: it may be absent)."""


class Ins:
    """Marks any number of operands; only the last may be so."""


class Out:
    """Marks a result (`Out | None`: it may be left out)."""


class Outs:
    """Marks any number of results."""


class Body:
    """Marks a region: a graph that the operator runs."""


@dataclass(frozen=True)
class Port:
    """An operand or a result of an operator class."""

    name: str
    position: int
    optional: bool
    variadic: bool


class TypeInferenceError(OperandError):
    """Operands that an operator can't take; the text says why."""


class TypeContext:
    """What an operator may know about its operands while it infers types."""

    def __init__(
        self,
        op: Op,
        types: Sequence[Type | None],
        contents: Sequence[NDArray[Any] | None] | Callable[[int], NDArray[Any] | None] = (),
        *,
        result_count: int = 1,
        region_results: Sequence[Sequence[Type]] = (),
        fresh: Callable[[], str] | None = None,
    ) -> None:
        self.op, self.types, self._contents = op, tuple(types), contents
        self.cacheable = True
        """Whether equal types, and equal contents of `contents_read`, would give the same again."""
        self.contents_read: set[int] = set()
        """The operands whose contents the inference so far rests on."""
        self.result_count, self.region_results = result_count, region_results
        self._fresh = fresh or (lambda: "unknown")

    def _position(self, operand: int | str) -> int:
        return operand if isinstance(operand, int) else self.op.operand_position(operand)

    def has(self, operand: int | str) -> bool:
        """Whether an optional operand is there."""
        position = self._position(operand)
        return position < len(self.types) and self.types[position] is not None

    def type(self, operand: int | str) -> TensorType:
        """The type of an operand that is a tensor."""
        position = self._position(operand)
        found = self.types[position] if position < len(self.types) else None
        if not isinstance(found, TensorType):
            raise TypeInferenceError(f"operand {operand} is {'absent' if found is None else found}, not a tensor")
        return found

    def shape(self, operand: int | str) -> Shape | None:
        """Its shape; None if the rank is unknown."""
        return self.type(operand).shape

    def element(self, operand: int | str) -> Element:
        return self.type(operand).element

    def rank(self, operand: int | str) -> int | None:
        return self.type(operand).rank

    def content(self, operand: int | str) -> NDArray[Any] | None:
        """What the operand holds, if known: an array of numbers, or an object array with `Dim` entries (small only)."""
        position = self._position(operand)
        if position >= len(self.types) or self.types[position] is None:
            return None
        self.contents_read.add(position)
        if callable(self._contents):
            return self._contents(position)
        return self._contents[position] if position < len(self._contents) else None

    def numbers(self, operand: int | str) -> NDArray[Any] | None:
        """Its content if that is numbers only."""
        content = self.content(operand)
        if content is not None and content.dtype == object:
            flat = content.reshape(-1).tolist()
            if any(isinstance(entry, Dim) for entry in flat):
                return None
            return np.array(flat, np.int64).reshape(content.shape)
        return content

    def dimensions(self, operand: int | str) -> tuple[Dimension, ...] | None:
        """Its content as dimensions (of a scalar: one)."""
        content = self.content(operand)
        if content is None:
            return None
        return tuple(d if isinstance(d, Dim) else int(d) for d in content.reshape(-1).tolist())

    def fresh(self) -> Dim:
        """A symbol for an extent that only the data determine."""
        self.cacheable = False
        return symbol(self._fresh())

    def fail(self, message: str) -> typing.NoReturn:
        raise TypeInferenceError(message)


class Op:
    """Base of all operators; see the module's text. Instances are immutable and compare by class and attributes."""

    name: ClassVar[str] = ""
    onnx: ClassVar[str | None] = None
    """The ONNX operator of the same meaning at the current opset: same attribute names, operands in the same order."""
    onnx_domain: ClassVar[str] = ""
    onnx_names: ClassVar[Mapping[str, str]] = {}
    """Attribute → its name in ONNX, where that one is taken here."""
    operands: ClassVar[tuple[Port, ...]] = ()
    results: ClassVar[tuple[Port, ...]] = ()
    bodies: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Attribute → default; `REQUIRED` where there is none."""
    attribute_types: ClassVar[Mapping[str, Any]] = {}
    """Attribute → what its annotation says."""

    axes: ClassVar[str | None] = None
    """The axis declaration; operators whose axes depend on attributes or ranks override `equation` instead."""
    bound: ClassVar[Mapping[str, str]] = {}
    """Attribute → letter whose extent it is."""
    contracts: ClassVar[bool] = False
    """Whether letters that no result has are summed over products (so that MACs are the iteration space)."""
    normalizes: ClassVar[tuple[str, ...]] = ()
    """Letters over which statistics are computed."""
    zero: ClassVar[zeros.ZeroRule] = zeros.never
    """Is the result zero at an index, given which operands are zero there? (see `zeros`)"""
    symbolic: ClassVar[bool] = False
    """Whether `reference` also works on object arrays of dimensions: shape arithmetic."""
    commutative: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    dequantizes: ClassVar[bool] = False
    """Whether the first operand stands for the result: nodes on constants stay, so that weights stay quantized."""
    moves: ClassVar[bool] = False
    """Whether it only moves elements: values come out as they went in, whatever their element type."""
    reshapes: ClassVar[bool] = False
    """Whether the result is the first operand's elements in the same row-major order."""
    moves_on: ClassVar[Mapping[int, int]] = {}
    """Of an operator with running statistics: result of its training form → the operand that it is to replace."""
    monotone: ClassVar[bool] = False
    idempotent: ClassVar[bool] = False

    def __init__(self, **attributes: Any) -> None:
        unknown = attributes.keys() - self.defaults.keys()
        if unknown:
            raise TypeError(f"{self.name} has no attribute {sorted(unknown)[0]!r}; it has {sorted(self.defaults)}")
        for key, default in self.defaults.items():
            value = freeze(attributes.get(key, default))
            if value is REQUIRED:
                raise TypeError(f"{self.name} needs the attribute {key!r}")
            object.__setattr__(self, key, value)
        object.__setattr__(self, "_key", self._identity())
        object.__setattr__(self, "_hash", hash((self.name, self._key)))

    _key: tuple[Any, ...]
    _hash: int

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"{self.name} never changes; use op.replace({key}=…)")

    @property
    def attributes(self) -> dict[str, Any]:
        """Attribute values by name, in the order of declaration."""
        return {key: self.__dict__[key] for key in self.defaults}

    def replace(self, **changes: Any) -> typing.Self:
        """The same operator with some attributes changed."""
        return type(self)(**{**self.attributes, **changes})

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Op) and type(self) is type(other) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def _identity(self) -> tuple[Any, ...]:
        # repr tells 0.0 from -0.0 and 1 from 1.0 and True, and equates NaN with itself
        values = [self.__dict__[key] for key in self.defaults]
        return tuple([value if type(value) in (int, str) else (type(value), repr(value)) for value in values])

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.attributes.items())})"

    @classmethod
    def operand_position(cls, name: str) -> int:
        return cls._operand_index[name]

    required_results: ClassVar[int] = 1
    """How many results a node has at least."""
    _operand_index: ClassVar[Mapping[str, int]] = {}
    _result_index: ClassVar[Mapping[str, int]] = {}

    # ---- what may be overridden ----------------------------------------------------------------------------

    def equation(self, ctx: TypeContext) -> Equation | None:
        """The axis terms for operands of these types; None if axes say nothing here (unknown rank, data-indexed).

        The default reads `axes`. Raises TypeInferenceError if the operands don't fit.
        """
        return None if self.axes is None else self.declared(ctx, self.axes)

    def declared(self, ctx: TypeContext, text: str, known: Mapping[str, Dimension] | None = None) -> Equation | None:
        """The equation of a declaration, for `equation` of operators whose declaration depends on attributes or ranks.

        `known` gives letters extents beforehand, besides `bound`. None if a rank is unknown.
        """
        shapes: list[Shape | None] = []
        skipped = undescribed(text)
        for position, operand in enumerate(ctx.types):
            if operand is None or position in skipped:
                shapes.append(None)
            elif not isinstance(operand, TensorType) or operand.shape is None:
                return None
            else:
                shapes.append(operand.shape)
        extents = {**(known or {}), **{letter: getattr(self, attribute) for attribute, letter in self.bound.items()}}
        try:
            return declare(
                text, shapes, extents, self.window_extent, ctx.result_count, self.bound, self.normalizes
            )  # fmt: skip
        except DeclarationError as error:
            raise TypeInferenceError(str(error)) from None

    def window_extent(self, axis: int, extent: Dimension, kernel: Dimension) -> Dimension:
        """Result positions of a window on spatial axis `axis`, for declarations with `window(…)`."""
        raise NotImplementedError(f"{self.name} declares a window without window_extent")

    def zero_at(self, ctx: TypeContext, states: zeros.States) -> bool:
        """Is the result zero at an index where the operands are as `states` say?

        The default asks `zero`; operators for which operands or attributes decide (the bounds of a clip) override.
        """
        return self.zero(states)

    def training(self, keep: float | None = None) -> Op:
        """The operator as it acts while the model trains: with the batch's statistics, say. Itself, by default.

        `keep` is the share of its running statistics that a step keeps, where that is not to be its own.
        """
        return self

    def element(self, ctx: TypeContext) -> Element:
        """The element of the results; the first operand's if not said otherwise."""
        return ctx.element(0)

    def infer(self, ctx: TypeContext) -> list[Type]:
        """The result types. The default derives the shapes from the axes, and the element from `element`."""
        found, element = self.equation(ctx), self.element(ctx)
        if found is None:
            return [TensorType(element, None)] * ctx.result_count
        return [TensorType(element, shape) for shape in found.shapes()]

    def macs(self, ctx: TypeContext) -> Dimension | None:
        """Multiply-accumulates of one execution: the iteration space of what contracts, else none. None if unknown."""
        if not self.contracts:
            return 0
        found = self.equation(ctx)
        return None if found is None else product(variable.extent for variable in found.iterated())

    def content(self, ctx: TypeContext) -> NDArray[Any] | None:
        """What the (first) result holds, if the operands' types tell; only shape queries say something here."""
        return None

    def reference(self, xp: Any, *operands: Any) -> Any:
        """What the operator computes: arrays of `xp` in, one array or a tuple of arrays out.

        Absent optional operands are None. Operators with regions also get `regions=[callable, …]`.
        """
        raise NotImplementedError(f"{self.name} has no reference")

    def first_result(self, xp: Any, *operands: Any, **keywords: Any) -> Any:
        """The first result alone; operators override it where the others cost much."""
        found = self.reference(xp, *operands, **keywords)
        return found[0] if isinstance(found, tuple) else found


REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()
OPS: dict[str, type[Op]] = {}


def op(name: str, *, onnx: str | None = None, domain: str = "") -> Callable[[type[Any]], type[Any]]:
    """Register an operator class under a name (and the ONNX operator that it is)."""

    def register(cls: type[Op]) -> type[Op]:
        known = OPS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError("E204", f"two operators are called {name!r}: {known.__module__} and {cls.__module__}")
        try:
            axes.parse(cls.axes or "->")
        except ValueError as error:
            raise InputError("E302", f"the axes of the operator {name!r} ({cls.__module__}): {error}") from None
        cls.name, cls.onnx, cls.onnx_domain = name, onnx, domain
        _collect(cls)
        OPS[name] = cls
        onnx_operators.cache_clear()
        return cls

    return register


def _collect(cls: type[Op]) -> None:
    """Read operands, results, regions and attributes off the annotations."""
    operands: list[Port] = []
    results: list[Port] = []
    bodies: list[str] = []
    defaults: dict[str, Any] = {}
    attribute_types: dict[str, Any] = {}
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Op) and base is not Op:
            hints.update(inspect.get_annotations(base, eval_str=True))
    for key, hint in hints.items():
        if typing.get_origin(hint) is ClassVar:
            continue
        union = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, python_types.UnionType) else (hint,)
        optional = type(None) in union
        if In in union or Ins in union:
            operands.append(Port(key, len(operands), optional, Ins in union))
        elif Out in union or Outs in union:
            results.append(Port(key, len(results), optional, Outs in union))
        elif Body in union:
            bodies.append(key)
        else:
            defaults[key], attribute_types[key] = freeze(getattr(cls, key, REQUIRED)), hint
    cls.operands, cls.bodies = tuple(operands), tuple(bodies)
    cls.defaults, cls.attribute_types = defaults, attribute_types
    cls.results = tuple(results) or (Port("out", 0, optional=False, variadic=False),)
    cls.required_results = sum(not port.optional and not port.variadic for port in cls.results)
    cls._operand_index = {port.name: port.position for port in cls.operands}
    cls._result_index = {port.name: port.position for port in cls.results}
    for name in (*cls._operand_index, *cls._result_index, *defaults, *bodies):
        if name not in NamedParts.__dict__:
            setattr(NamedParts, name, property(functools.partial(_part, name=name)))


class NamedParts:
    """Base of nodes: a property for every operand, result, attribute and region of any operator, by its name.

    Properties rather than `__getattr__`, which would make every other read of a node several times slower.
    """

    __slots__ = ()
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def _part(node: Any, name: str) -> Any:
    """What a node's operator calls by that name. Raises AttributeError if it is nothing."""
    op: Op = node.op
    for index, ports, values in (
        (op._operand_index, op.operands, node.operands),
        (op._result_index, op.results, node.results),
    ):
        if name in index:
            position = index[name]
            if ports[position].variadic:
                return values[position:]
            return values[position] if position < len(values) else None
    if name in op.defaults:
        return op.__dict__[name]
    if name in op.bodies:
        return node.regions[op.bodies.index(name)]
    raise AttributeError(f"{op.name} has no operand, result, attribute or region {name!r}")


def freeze(value: Any) -> Any:
    """Lists as tuples and numpy scalars as numbers, so that attributes hash and print."""
    if isinstance(value, list | tuple):
        return tuple([freeze(entry) for entry in value])
    if isinstance(value, np.generic):
        return value.item()
    return value


@functools.cache
def load_builtin_operators() -> None:
    """Import every module of `espalier.ir.ops`, and what entry points of the group `espalier.ops` name."""
    package = importlib.import_module("espalier.ir.ops")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"espalier.ir.ops.{module.name}")
    plugins.load_all("espalier.ops")


def lookup(name: str) -> type[Op]:
    """The operator class of that name. Raises KeyError if there is none."""
    if name not in OPS:
        load_builtin_operators()
    return OPS[name]


@functools.cache
def onnx_operators() -> Mapping[tuple[str, str], type[Op]]:
    """(domain, ONNX operator type) → operator class."""
    load_builtin_operators()
    found: dict[tuple[str, str], type[Op]] = {}
    for cls in OPS.values():
        if cls.onnx and (first := found.setdefault((cls.onnx_domain, cls.onnx), cls)) is not cls:
            where = f"{first.__module__} and {cls.__module__}"
            raise InputError("E204", f"two classes are the ONNX operator {cls.onnx_domain}::{cls.onnx}: {where}")
    return found


def may_be_known(operator: Op, result: TensorType) -> bool:
    """Whether `infer_content` could find out what a result of this type holds."""
    if type(operator).content is not Op.content:
        return True
    return operator.symbolic and result.is_static and math.prod(result.shape or ()) <= SMALL


_AS_IT_IS = contextlib.nullcontext()


def infer_content(operator: Op, xp: Any, ctx: TypeContext, result: TensorType) -> NDArray[Any] | None:
    """What a node's result holds, where shape arithmetic on known contents determines it; for what `may_be_known`."""
    known = operator.content(ctx)
    if known is not None or not operator.symbolic:
        return known
    contents = []
    for position, type in enumerate(ctx.types):
        content = ctx.content(position) if type is not None else None
        if content is None and type is not None:
            return None
        contents.append(content)
    try:
        with _AS_IT_IS if operator.moves else np.errstate(all="ignore"):
            found = operator.reference(xp, *contents)
            found = np.asarray(found[0] if isinstance(found, tuple) else found)
            if found.dtype == object and result.element.is_integer:
                found = xp.astype(found, result.element)  # Python's integers don't wrap by themselves
    except (TypeError, ValueError, ArithmeticError):
        return None  # a number is needed (NotANumberError is a TypeError), or a run that gets here fails (OperandError)
    return found if found.shape == result.shape else None
