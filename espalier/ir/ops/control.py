"""Control flow. A region is a graph that sees outer values only through its inputs.

The operands are ONNX's, followed by the outer values that the bodies capture; the inputs of each region are ONNX's
inputs of the body, followed by the same captured values. Loop and Scan say in `carried` how many values they carry.

Whoever builds a Loop or a Scan gives the region's inputs for carried values types that hold on every pass: it builds
the body with the types of the initial values, and as long as the body returns wider ones (`widen` of both is not what
the input has), builds it again with `widen`'s. Regions need symbols of their own for extents that are fresh in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.ir import dims, elements
from espalier.ir.dims import Dimension
from espalier.ir.op import Body, In, Ins, Op, OperandError, Outs, TypeContext, op
from espalier.ir.ops.movement import axis_index
from espalier.ir.ops.sequences import widen
from espalier.ir.ops.shapes import at_least_zero
from espalier.ir.types import OptionalType, SequenceType, TensorType, Type


def outer_symbols(ctx: TypeContext) -> set[str]:
    """The symbols of a node's operand types: they mean the same inside its regions."""
    found: set[str] = set()
    pending = [type for type in ctx.types if type is not None]
    while pending:
        current = pending.pop()
        if isinstance(current, TensorType):
            found.update(*(dims.symbols(extent) for extent in current.shape or ()))
        else:
            pending.append(current.of)
    return found


def outside(ctx: TypeContext, type: Type, known: set[str]) -> Type:
    """A region's result type as the outer graph sees it: symbols that only the region has become fresh ones."""
    if isinstance(type, SequenceType):
        return SequenceType(outside(ctx, type.of, known))
    if isinstance(type, OptionalType):
        return OptionalType(outside(ctx, type.of, known))
    if type.shape is None:
        return type
    return TensorType(type.element, tuple(e if dims.symbols(e) <= known else ctx.fresh() for e in type.shape))


def widened(ctx: TypeContext, what: str, a: Type, b: Type) -> Type:
    """`widen`, failing with the name of what has the two types."""
    try:
        return widen(a, b, ctx.fresh)
    except ValueError as error:
        ctx.fail(f"{what}: {error}")


def stacked(ctx: TypeContext, what: str, entry: Type, count: Dimension, axis: int = 0) -> Type:
    """The type of `count` entries stacked along a new axis."""
    if not isinstance(entry, TensorType):
        ctx.fail(f"{what} is {entry}, not a tensor")
    if entry.shape is None:
        return entry
    place = axis_index(axis, len(entry.shape) + 1)
    return TensorType(entry.element, (*entry.shape[:place], count, *entry.shape[place:]))


def stack(xp: Any, entries: Sequence[Any], axis: int, entry: Type) -> Any:
    """The entries stacked along a new axis; of none, an empty tensor of the entry's type (unknown extents are 0)."""
    if entries:
        return xp.stack(entries, axis=axis)
    if not isinstance(entry, TensorType) or entry.shape is None:
        raise OperandError(f"a loop that never runs has a result of unknown shape ({entry})")
    shape = [extent if isinstance(extent, int) else 0 for extent in entry.shape]
    shape.insert(axis % (len(shape) + 1), 0)
    return xp.zeros(tuple(shape), entry.element)


@op("if", onnx="If")
class If(Op):
    """The results of one of two regions. Both take the captured values."""

    cond: In
    captures: Ins
    outs: Outs
    then_branch: Body
    else_branch: Body

    def infer(self, ctx: TypeContext) -> list[Type]:
        then, other = ctx.region_results
        if len(then) != len(other) or len(then) != ctx.result_count:
            ctx.fail(f"branches with {len(then)} and {len(other)} results for {ctx.result_count}")
        known = outer_symbols(ctx)
        return [
            widened(ctx, f"result {k} of the branches", outside(ctx, a, known), outside(ctx, b, known))
            for k, (a, b) in enumerate(zip(then, other, strict=True))
        ]

    def reference(self, xp: Any, *operands: Any, regions: Sequence[Any] = ()) -> Any:
        cond, *captures = operands
        return tuple((regions[0] if bool(cond) else regions[1])(*captures))


@op("loop", onnx="Loop")
class Loop(Op):
    """The body repeated at most trip_count times, while its condition holds.

    `values` are the initial values of the `carried` values, then the captured ones. The body takes the pass number
    (i64), the condition, the carried and the captured values; it returns the condition, the carried values and what is
    stacked over the passes. Results are the carried values at the end, then the stacks.
    """

    trip_count: In | None
    cond: In | None
    values: Ins
    outs: Outs
    body: Body
    carried: int

    def infer(self, ctx: TypeContext) -> list[Type]:
        (results,) = ctx.region_results
        if len(results) != ctx.result_count + 1 or self.carried > ctx.result_count:
            ctx.fail(f"a body with {len(results)} results for a loop with {ctx.result_count} ({self.carried} carried)")
        trips = None if ctx.has("cond") or not ctx.has("trip_count") else ctx.dimensions("trip_count")
        count = ctx.fresh() if trips is None else at_least_zero(trips[0])  # only a condition ends a loop early
        known = outer_symbols(ctx)
        inner = [outside(ctx, type, known) for type in results[1:]]
        types: list[Type] = []
        for k, made in enumerate(inner):
            if k < self.carried:
                initial = ctx.types[2 + k] if 2 + k < len(ctx.types) else None
                if initial is None:
                    ctx.fail(f"carried value {k} has no initial value")
                types.append(widened(ctx, f"carried value {k}", initial, made))
            else:
                types.append(stacked(ctx, f"result {k}", made, count))
        return types

    def reference(self, xp: Any, *operands: Any, regions: Sequence[Any] = ()) -> Any:
        (body,) = regions
        trip_count, cond = [*operands, None, None][:2]
        values = operands[2:]
        carried, captures = list(values[: self.carried]), values[self.carried :]
        scans: list[list[Any]] = [[] for _ in body.result_types[1 + self.carried :]]
        limit = None if trip_count is None else int(trip_count)
        goes_on, step = cond is None or bool(cond), 0
        while goes_on and (limit is None or step < limit):
            condition = xp.full((), goes_on, elements.BOOL)
            results = body(xp.full((), step, elements.I64), condition, *carried, *captures)
            carried = list(results[1 : 1 + self.carried])
            for entries, entry in zip(scans, results[1 + self.carried :], strict=True):
                entries.append(entry)
            goes_on = cond is None or bool(results[0])
            step += 1
        types = body.result_types[1 + self.carried :]
        return *carried, *(stack(xp, entries, 0, type) for entries, type in zip(scans, types, strict=True))


@op("scan", onnx="Scan")
class Scan(Op):
    """The body run over the entries of `num_scan_inputs` tensors at once, carrying a state.

    `values` are the initial states (`carried` of them), the tensors that are scanned, and the captured values. The body
    takes states, one entry of each tensor, and the captured values; it returns states and what is stacked. Results are
    the states at the end, then the stacks. Directions are 0 (forward) and 1 (backward).
    """

    values: Ins
    outs: Outs
    body: Body
    carried: int
    num_scan_inputs: int
    scan_input_axes: tuple[int, ...] = ()
    scan_input_directions: tuple[int, ...] = ()
    scan_output_axes: tuple[int, ...] = ()
    scan_output_directions: tuple[int, ...] = ()

    def input_axes(self) -> tuple[int, ...]:
        return self.scan_input_axes or (0,) * self.num_scan_inputs

    def infer(self, ctx: TypeContext) -> list[Type]:
        (results,) = ctx.region_results
        if len(results) != ctx.result_count or self.carried > len(results):
            ctx.fail(f"a body with {len(results)} results for a scan with {ctx.result_count}")
        count: Dimension | None = None
        for k, axis in enumerate(self.input_axes()):
            shape = ctx.shape(self.carried + k)
            if shape is None:
                continue
            extent = shape[axis_index(axis, len(shape))]
            if isinstance(count, int) and isinstance(extent, int) and count != extent:
                ctx.fail(f"tensors of {count} and {extent} entries are scanned together")
            count = extent if count is None or isinstance(extent, int) else count
        length = ctx.fresh() if count is None else count
        known = outer_symbols(ctx)
        types: list[Type] = []
        for k, made in enumerate(outside(ctx, type, known) for type in results):
            if k < self.carried:
                initial = ctx.types[k]
                if initial is None:
                    ctx.fail(f"state {k} has no initial value")
                types.append(widened(ctx, f"state {k}", initial, made))
            else:
                axis = self.scan_output_axes[k - self.carried] if self.scan_output_axes else 0
                types.append(stacked(ctx, f"result {k}", made, length, axis))
        return types

    def reference(self, xp: Any, *values: Any, regions: Sequence[Any] = ()) -> Any:
        (body,) = regions
        states, scanned = list(values[: self.carried]), values[self.carried : self.carried + self.num_scan_inputs]
        captures = values[self.carried + self.num_scan_inputs :]
        types = body.result_types[self.carried :]
        axes = [axis % x.ndim for axis, x in zip(self.input_axes(), scanned, strict=True)]
        backward = self.scan_input_directions or (0,) * self.num_scan_inputs
        counts = {x.shape[axis] for axis, x in zip(axes, scanned, strict=True)}
        if len(counts) != 1:
            raise OperandError(f"tensors of {sorted(counts)} entries are scanned together")
        (count,) = counts
        scans: list[list[Any]] = [[] for _ in types]
        for step in range(count):
            entries = [
                x[(slice(None),) * axis + (count - 1 - step if back else step,)]
                for x, axis, back in zip(scanned, axes, backward, strict=True)
            ]
            results = body(*states, *entries, *captures)
            states = list(results[: self.carried])
            for made, entry in zip(scans, results[self.carried :], strict=True):
                made.append(entry)
        prepend = self.scan_output_directions or (0,) * len(types)
        places = self.scan_output_axes or (0,) * len(types)
        stacks = (
            stack(xp, made[::-1] if back else made, axis, type)
            for made, back, axis, type in zip(scans, prepend, places, types, strict=True)
        )
        return *states, *stacks
