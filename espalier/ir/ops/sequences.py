"""Sequences and optionals, for ONNX's sake. At run time a sequence is a list, and an empty optional is None."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from espalier.ir import elements, types
from espalier.ir.dims import Dim, modulo
from espalier.ir.elements import Element
from espalier.ir.op import In, Ins, Op, OperandError, TypeContext, op
from espalier.ir.ops.movement import axis_index, listed
from espalier.ir.types import OptionalType, SequenceType, TensorType, Type


def widen(a: Type, b: Type, fresh: Callable[[], Dim]) -> Type:
    """The most precise type that values of either type have: extents that differ become fresh symbols.

    Raises ValueError if there is none (different elements, or a tensor and a sequence).
    """
    if a == b:
        return a
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a.element.storage != b.element.storage:
            raise ValueError(f"{a} and {b} have different elements")
        element = a.element if a.element == b.element else a.element.storage
        if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
            return TensorType(element, None)
        return TensorType(element, tuple(x if x == y else fresh() for x, y in zip(a.shape, b.shape, strict=True)))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        return SequenceType(widen(a.of, b.of, fresh))
    if isinstance(a, OptionalType) or isinstance(b, OptionalType):
        held, other = (type.of if isinstance(type, OptionalType) else type for type in (a, b))
        return OptionalType(widen(held, other, fresh))
    raise ValueError(f"nothing is both {a} and {b}")


def widen_all(ctx: TypeContext, given: list[Type]) -> Type:
    """The type of a sequence's entries."""
    found = given[0]
    for other in given[1:]:
        try:
            found = widen(found, other, ctx.fresh)
        except ValueError as error:
            ctx.fail(str(error))
    return found


def sequence_of(ctx: TypeContext, operand: int) -> Type:
    """The type of the entries of an operand that is a sequence."""
    found = ctx.types[operand] if operand < len(ctx.types) else None
    if not isinstance(found, SequenceType):
        ctx.fail(f"operand {operand} is {'absent' if found is None else found}, not a sequence")
    return found.of


@op("sequence_construct", onnx="SequenceConstruct")
class SequenceConstruct(Op):
    """The operands as a sequence."""

    xs: Ins

    def infer(self, ctx: TypeContext) -> list[Type]:
        return [SequenceType(widen_all(ctx, [ctx.type(k) for k in range(len(ctx.types))]))]

    def reference(self, xp: Any, *xs: Any) -> Any:
        return list(xs)


@op("sequence_empty", onnx="SequenceEmpty")
class SequenceEmpty(Op):
    """A sequence of no tensors (of f32 unless said otherwise)."""

    dtype: Element | None = None

    def infer(self, ctx: TypeContext) -> list[Type]:
        return [SequenceType(TensorType(self.dtype or elements.F32, None))]

    def reference(self, xp: Any) -> Any:
        return []


@op("sequence_at", onnx="SequenceAt")
class SequenceAt(Op):
    """The entry at a position; negative ones count from the end."""

    sequence: In
    position: In

    def infer(self, ctx: TypeContext) -> list[Type]:
        return [sequence_of(ctx, 0)]

    def reference(self, xp: Any, sequence: Any, position: Any) -> Any:
        return sequence[listed(xp, position)[0]]


@op("sequence_insert", onnx="SequenceInsert")
class SequenceInsert(Op):
    """A sequence with a tensor inserted before a position (at the end if there is none)."""

    sequence: In
    tensor: In
    position: In | None

    def infer(self, ctx: TypeContext) -> list[Type]:
        return [SequenceType(widen_all(ctx, [sequence_of(ctx, 0), ctx.type("tensor")]))]

    def reference(self, xp: Any, sequence: Any, tensor: Any, position: Any = None) -> Any:
        place = len(sequence) if position is None else listed(xp, position)[0]
        if not -len(sequence) <= place <= len(sequence):
            raise IndexError(f"position {place} in a sequence of {len(sequence)}")
        result = list(sequence)
        result.insert(place, tensor)
        return result


@op("sequence_erase", onnx="SequenceErase")
class SequenceErase(Op):
    """A sequence without the entry at a position (the last if there is none)."""

    sequence: In
    position: In | None

    def infer(self, ctx: TypeContext) -> list[Type]:
        return [SequenceType(sequence_of(ctx, 0))]

    def reference(self, xp: Any, sequence: Any, position: Any = None) -> Any:
        result = list(sequence)
        del result[-1 if position is None else listed(xp, position)[0]]
        return result


@op("sequence_length", onnx="SequenceLength")
class SequenceLength(Op):
    """The number of entries, as an i64 scalar."""

    sequence: In

    def infer(self, ctx: TypeContext) -> list[Type]:
        sequence_of(ctx, 0)
        return [TensorType(elements.I64, ())]

    def reference(self, xp: Any, sequence: Any) -> Any:
        return xp.full((), len(sequence), elements.I64)


@op("split_to_sequence", onnx="SplitToSequence")
class SplitToSequence(Op):
    """Parts along an axis, as a sequence: of given sizes, of one size (the last may be smaller), or slices."""

    x: In
    split: In | None
    axis: int = 0
    keepdims: int = 1

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape, element = ctx.shape("x"), ctx.element("x")
        if shape is None:
            return [SequenceType(TensorType(element, None))]
        axis = axis_index(self.axis, len(shape))
        if not ctx.has("split"):
            part = (1,) if self.keepdims else ()
            return [SequenceType(TensorType(element, (*shape[:axis], *part, *shape[axis + 1 :])))]
        sizes = ctx.dimensions("split")
        equal = sizes is not None and len(set(sizes)) == 1
        if equal and sizes and ctx.shape("split") == () and sizes[0] != 0:
            equal = modulo(shape[axis], sizes[0]) == 0
        kept = sizes[0] if sizes and equal else ctx.fresh()
        return [SequenceType(TensorType(element, (*shape[:axis], kept, *shape[axis + 1 :])))]

    def reference(self, xp: Any, x: Any, split: Any = None) -> Any:
        axis = self.axis % x.ndim
        extent = operator.index(x.shape[axis])  # which refuses a symbol: a list has a length
        if split is None:
            sizes: Any = [1] * extent
        elif split.ndim == 0:
            size = listed(xp, split)[0]
            sizes = [size] * (extent // size) + [extent % size] * (extent % size > 0)
        else:
            sizes = listed(xp, split)
        if sum(sizes) != extent:
            raise OperandError(f"sizes {list(sizes)} do not add up to {extent}")
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        lead = (slice(None),) * axis
        if split is None and not self.keepdims:
            return [x[(*lead, start)] for start in starts]
        return [x[(*lead, slice(start, start + size))] for start, size in zip(starts, sizes, strict=True)]


@op("concat_from_sequence", onnx="ConcatFromSequence")
class ConcatFromSequence(Op):
    """The entries one after another along an axis, or stacked along a new one."""

    sequence: In
    axis: int
    new_axis: int = 0

    def infer(self, ctx: TypeContext) -> list[Type]:
        entry = sequence_of(ctx, 0)
        if not isinstance(entry, TensorType):
            ctx.fail(f"entries are {entry}, not tensors")
        if entry.shape is None:
            return [TensorType(entry.element, None)]
        axis = axis_index(self.axis, len(entry.shape) + self.new_axis)
        after = axis if self.new_axis else axis + 1
        return [TensorType(entry.element, (*entry.shape[:axis], ctx.fresh(), *entry.shape[after:]))]

    def reference(self, xp: Any, sequence: Any) -> Any:
        if self.new_axis:
            return xp.stack(sequence, axis=self.axis)
        return xp.concat(sequence, axis=self.axis)


@op("optional", onnx="Optional")
class Optional(Op):
    """An optional that holds the operand; without one, an empty optional of `type` (in text form)."""

    x: In | None
    type: str | None = None

    def infer(self, ctx: TypeContext) -> list[Type]:
        held = ctx.types[0] if ctx.types else None
        if held is not None:
            return [OptionalType(held)]
        if self.type is None:
            ctx.fail("an empty optional needs a type")
        return [OptionalType(types.parse(self.type))]

    def reference(self, xp: Any, x: Any = None) -> Any:
        return x


@op("optional_get_element", onnx="OptionalGetElement")
class OptionalGetElement(Op):
    """What an optional holds; a tensor or a sequence as it is."""

    x: In

    def infer(self, ctx: TypeContext) -> list[Type]:
        held = ctx.types[0]
        if held is None:
            ctx.fail("the operand is absent")
        return [held.of if isinstance(held, OptionalType) else held]

    def reference(self, xp: Any, x: Any) -> Any:
        if x is None:
            raise OperandError("the optional is empty")
        return x


@op("optional_has_element", onnx="OptionalHasElement")
class OptionalHasElement(Op):
    """Whether an optional holds something (tensors and sequences do; an absent operand does not), as a bool scalar."""

    x: In | None

    def infer(self, ctx: TypeContext) -> list[Type]:
        return [TensorType(elements.BOOL, ())]

    def reference(self, xp: Any, x: Any = None) -> Any:
        return xp.full((), x is not None, elements.BOOL)
