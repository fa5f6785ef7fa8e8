"""Operators that put elements under other indices: reshapes, transposes, broadcasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from espalier.ir import dims, zeros
from espalier.ir.axes import Binding, Equation, broadcast_extent, one_differs
from espalier.ir.dims import Dimension, Shape, floor_divide
from espalier.ir.dims import product as extent_product
from espalier.ir.op import In, Op, OperandError, TypeContext, TypeInferenceError, op
from espalier.ir.terms import Term, Variable, product
from espalier.ir.types import TensorType, Type


def axis_index(axis: int, rank: int) -> int:
    """The axis counted from the front. Raises TypeInferenceError if there is none."""
    if not -rank <= axis < rank:
        raise TypeInferenceError(f"there is no axis {axis} in rank {rank}")
    return axis % rank


def axis_indices(axes: Any, rank: int) -> tuple[int, ...]:
    """Several axes counted from the front. Raises TypeInferenceError if one is missing or stands twice."""
    found = tuple(axis_index(int(axis), rank) for axis in axes)
    if len(set(found)) != len(found):
        raise TypeInferenceError(f"an axis stands twice in {tuple(axes)}")
    return found


def listed(xp: Any, array: Any) -> list[Any]:
    """The entries of an array as Python numbers (or dimensions)."""
    entries: list[Any] = xp.to_numpy(array).reshape(-1).tolist()
    return entries


def variables(shape: Shape, pinned: str | None = None) -> list[Term]:
    """A term of its own for each axis."""
    return [Variable(extent, pinned) for extent in shape]


def described(
    ctx: TypeContext,
    operands: Sequence[list[Term] | None],
    results: Sequence[list[Term] | None],
    *,
    equal: Sequence[tuple[Term, Term]] = (),
    bound: Mapping[str, Binding] | None = None,
) -> Equation:
    """An equation with an entry for each operand that the node has (None for those that axes don't describe)."""
    padded = [*operands, *[None] * len(ctx.types)]
    present = [None if type is None else axes for axes, type in zip(padded, ctx.types, strict=False)]
    return Equation(present, list(results), equal=list(equal), bound=dict(bound or {}))


def at_most(ctx: TypeContext, equation: Equation, small: Dimension, large: Dimension, message: str) -> None:
    """Say that an extent is at most another one; fail with the message if it is known not to be."""
    spare = large - small
    least = dims.lower_bound(spare)
    if isinstance(spare, int) and spare < 0:
        ctx.fail(message)
    if least is None or least < 0:
        equation.ordered.append((small, large))


def length(ctx: TypeContext, operand: str) -> int | None:
    """The number of entries of a one-dimensional operand, if it is known."""
    shape = ctx.shape(operand)
    return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None


def unknown_shape(ctx: TypeContext, rank: int | None) -> Shape | None:
    """Fresh symbols for each axis; None if not even the rank is known."""
    return None if rank is None else tuple(ctx.fresh() for _ in range(rank))


@op("reshape", onnx="Reshape")
class Reshape(Op):
    """The elements in row-major order under another shape: 0 copies an extent (unless allowzero), −1 follows."""

    data: In
    shape: In
    allowzero: int = 0

    zero = zeros.passed
    symbolic = True
    moves = True
    reshapes = True

    def target(self, ctx: TypeContext) -> Shape | None:
        """The result shape, as far as the shape operand's content tells; None if that is unknown."""
        wanted, data = ctx.dimensions("shape"), ctx.shape("data")
        if wanted is None:
            return None
        found: list[Dimension | None] = []
        for axis, extent in enumerate(wanted):
            if extent == 0 and not self.allowzero:
                if data is not None and axis >= len(data):
                    ctx.fail(f"there is no axis {axis} whose extent could be copied in rank {len(data)}")
                found.append(ctx.fresh() if data is None else data[axis])
            elif isinstance(extent, int) and extent < 0:
                if extent != -1 or None in found:
                    ctx.fail(f"{wanted} is no shape to reshape to")
                found.append(None)
            else:
                found.append(extent)
        others = extent_product(extent for extent in found if extent is not None)
        if data is None:
            return tuple(ctx.fresh() if extent is None else extent for extent in found)
        size = extent_product(data)
        if None not in found:
            if isinstance(size, int) and isinstance(others, int) and size != others:
                self._misfit(ctx, size, wanted)
            return tuple(extent for extent in found if extent is not None)
        if others == 0 or (isinstance(size, int) and isinstance(others, int) and size % others):
            self._misfit(ctx, size, wanted)
        return tuple(floor_divide(size, others) if extent is None else extent for extent in found)

    def _misfit(self, ctx: TypeContext, size: Dimension, wanted: Shape) -> NoReturn:
        ctx.fail(f"{size} elements can't be reshaped to {list(wanted)}")

    def infer(self, ctx: TypeContext) -> list[Type]:
        target = self.target(ctx)
        if target is None:
            target = unknown_shape(ctx, length(ctx, "shape"))
        return [TensorType(ctx.element("data"), target)]

    def equation(self, ctx: TypeContext) -> Equation | None:
        data, target = ctx.shape("data"), self.target(ctx)
        if data is None or target is None:
            return None
        ins, outs = variables(data), variables(target)
        whole: list[Term] = [*ins]
        differing = one_differs(data, target)
        if differing is not None:  # it must be the same at run time, but nothing is known of it
            axis, extent = differing
            reason = "its extent is not known before run time"
            whole[axis], ins[axis] = Variable(extent, reason), Variable(data[axis], reason)
        return described(ctx, [ins, None], [outs], equal=[(product(*whole), product(*outs))], bound={"shape": outs})

    def reference(self, xp: Any, data: Any, shape: Any) -> Any:
        target = listed(xp, shape)
        if not self.allowzero:
            target = [data.shape[axis] if extent == 0 else extent for axis, extent in enumerate(target)]
        return xp.reshape(data, tuple(target))


@op("transpose", onnx="Transpose")
class Transpose(Op):
    """Axis k of the result is axis perm[k]; without perm, the axes in reverse."""

    data: In
    perm: tuple[int, ...] = ()

    zero = zeros.passed
    symbolic = True
    moves = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("data")
        if shape is None:
            return None
        perm = self.permutation(len(shape))
        if sorted(perm) != list(range(len(shape))):
            ctx.fail(f"{self.perm} does not permute {len(shape)} axes")
        axes = variables(shape)
        return described(ctx, [axes], [[axes[axis] for axis in perm]])

    def permutation(self, rank: int) -> tuple[int, ...]:
        return self.perm or tuple(range(rank))[::-1]

    def infer(self, ctx: TypeContext) -> list[Type]:
        if ctx.shape("data") is None and self.perm:
            return [TensorType(ctx.element("data"), unknown_shape(ctx, len(self.perm)))]
        return super().infer(ctx)

    def reference(self, xp: Any, data: Any) -> Any:
        return xp.transpose(data, self.permutation(data.ndim))


@op("squeeze", onnx="Squeeze")
class Squeeze(Op):
    """Without the given axes, which have extent 1 (all such if none are given)."""

    data: In
    axes_: In | None

    zero = zeros.passed
    symbolic = True
    moves = True
    reshapes = True

    def dropped(self, ctx: TypeContext, shape: Shape) -> tuple[int, ...] | None:
        """The axes that go; None if only the data or run-time extents tell."""
        if ctx.has("axes_"):
            axes = ctx.numbers("axes_")
            if axes is None:
                return None
            found = axis_indices(axes.reshape(-1).tolist(), len(shape))
            for axis in found:
                if isinstance(shape[axis], int) and shape[axis] != 1:
                    ctx.fail(f"axis {axis} of extent {shape[axis]} can't be dropped")
            return found
        if not all(isinstance(extent, int) for extent in shape):
            return None
        return tuple(axis for axis, extent in enumerate(shape) if extent == 1)

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("data")
        dropped = None if shape is None else self.dropped(ctx, shape)
        if shape is None or dropped is None:
            return None
        reason = None if ctx.has("axes_") else "dropped once its extent is 1"
        axes: list[Term] = [Variable(1 if axis in dropped else extent, reason) for axis, extent in enumerate(shape)]
        return described(ctx, [axes, None], [[term for axis, term in enumerate(axes) if axis not in dropped]])

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape, count = ctx.shape("data"), length(ctx, "axes_") if ctx.has("axes_") else None
        if shape is not None and count is not None and self.dropped(ctx, shape) is None:
            return [TensorType(ctx.element("data"), unknown_shape(ctx, len(shape) - count))]
        return super().infer(ctx)

    def reference(self, xp: Any, data: Any, axes_: Any = None) -> Any:
        if axes_ is None:
            dropped = {axis for axis, extent in enumerate(data.shape) if extent == 1}
        else:
            dropped = {axis % data.ndim for axis in listed(xp, axes_)}
        if any(isinstance(data.shape[axis], int) and data.shape[axis] != 1 for axis in dropped):
            raise OperandError(f"axes {sorted(dropped)} of shape {tuple(data.shape)} can't be dropped")
        return xp.squeeze(data, tuple(sorted(dropped)))


@op("unsqueeze", onnx="Unsqueeze")
class Unsqueeze(Op):
    """With new axes of extent 1 at the given places of the result."""

    data: In
    axes_: In

    zero = zeros.passed
    symbolic = True
    moves = True
    reshapes = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape, axes = ctx.shape("data"), ctx.numbers("axes_")
        if shape is None or axes is None:
            return None
        added = axis_indices(axes.reshape(-1).tolist(), len(shape) + axes.size)
        ins = variables(shape)
        rest = iter(ins)
        outs = [Variable(1) if axis in added else next(rest) for axis in range(len(shape) + len(added))]
        return described(ctx, [ins, None], [outs])

    def infer(self, ctx: TypeContext) -> list[Type]:
        shape, count = ctx.shape("data"), length(ctx, "axes_")
        if shape is not None and count is not None and ctx.numbers("axes_") is None:
            return [TensorType(ctx.element("data"), unknown_shape(ctx, len(shape) + count))]
        return super().infer(ctx)

    def reference(self, xp: Any, data: Any, axes_: Any) -> Any:
        axes = listed(xp, axes_)
        rank = data.ndim + len(axes)
        added = {axis % rank for axis in axes}
        rest = iter(data.shape)
        return xp.reshape(data, tuple(1 if axis in added else next(rest) for axis in range(rank)))


@op("flatten", onnx="Flatten")
class Flatten(Op):
    """A matrix: the axes before `axis` in its rows, the others in its columns."""

    x: In
    axis: int = 1

    zero = zeros.passed
    symbolic = True
    moves = True
    reshapes = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("x")
        if shape is None:
            return None
        if not -len(shape) <= self.axis <= len(shape):
            ctx.fail(f"there is no place {self.axis} between the axes of rank {len(shape)}")
        cut = self.axis + len(shape) if self.axis < 0 else self.axis
        axes = variables(shape)
        return described(ctx, [axes], [[product(*axes[:cut]), product(*axes[cut:])]])

    def infer(self, ctx: TypeContext) -> list[Type]:
        if ctx.shape("x") is None:
            return [TensorType(ctx.element("x"), unknown_shape(ctx, 2))]
        return super().infer(ctx)

    def reference(self, xp: Any, x: Any) -> Any:
        cut = self.axis + x.ndim if self.axis < 0 else self.axis
        return xp.reshape(x, (extent_product(x.shape[:cut]), extent_product(x.shape[cut:])))


@op("expand", onnx="Expand")
class Expand(Op):
    """Broadcast to a shape (in both directions: an extent 1 of the target keeps the operand's)."""

    x: In
    shape: In

    zero = zeros.passed
    symbolic = True
    moves = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        x, wanted = ctx.shape("x"), ctx.dimensions("shape")
        if x is None or wanted is None:
            return None
        rank = max(len(x), len(wanted))
        own, target = (1,) * (rank - len(x)) + x, (1,) * (rank - len(wanted)) + wanted
        ins: list[Term] = []
        outs: list[Term] = []
        bound: list[Term] = []
        for axis, (extent, want) in enumerate(zip(own, target, strict=True)):
            if isinstance(extent, int) and isinstance(want, int) and extent != want and 1 not in (extent, want):
                ctx.fail(f"extent {extent} on axis {axis - rank} can't be expanded to {want}")
            if want == 1 or want == extent:
                source: Term = Variable(extent)
                ins.append(source)
                outs.append(source)
            elif extent == 1:
                ins.append(Variable(1))
                outs.append(Variable(want))
            else:  # one of the two may be 1 at run time
                reason = "broadcast that is not known before run time"
                ins.append(Variable(extent, reason))
                outs.append(Variable(broadcast_extent(extent, want), reason))
            bound.append(outs[-1] if outs[-1].extent == want else Variable(want, "keeps the operand's extent"))
        return described(ctx, [ins[rank - len(x) :], None], [outs], bound={"shape": bound[rank - len(wanted) :]})

    def infer(self, ctx: TypeContext) -> list[Type]:
        x, wanted, count = ctx.shape("x"), ctx.dimensions("shape"), length(ctx, "shape")
        if x is None and wanted is not None:
            return [TensorType(ctx.element("x"), None)]
        if wanted is None:
            rank = None if x is None or count is None else max(len(x), count)
            return [TensorType(ctx.element("x"), unknown_shape(ctx, rank))]
        return super().infer(ctx)

    def reference(self, xp: Any, x: Any, shape: Any) -> Any:
        wanted = listed(xp, shape)
        rank = max(x.ndim, len(wanted))
        own, wanted = [1] * (rank - x.ndim) + list(x.shape), [1] * (rank - len(wanted)) + wanted
        return xp.broadcast_to(x, tuple(a if w == 1 else w for a, w in zip(own, wanted, strict=True)))


@op("tile", onnx="Tile")
class Tile(Op):
    """Copies one after another along each axis."""

    x: In
    repeats: In

    zero = zeros.passed
    symbolic = True
    moves = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape, repeats = ctx.shape("x"), ctx.dimensions("repeats")
        if shape is None or repeats is None:
            return None
        if len(shape) != len(repeats):
            ctx.fail(f"{len(repeats)} repeats for {len(shape)} axes")
        axes, copies = variables(shape), variables(repeats)
        outs = [product(copy, axis) for copy, axis in zip(copies, axes, strict=True)]
        return described(ctx, [axes, None], [outs], bound={"repeats": copies})

    def infer(self, ctx: TypeContext) -> list[Type]:
        if ctx.shape("x") is None or ctx.content("repeats") is None:
            rank = ctx.rank("x")
            return [TensorType(ctx.element("x"), unknown_shape(ctx, length(ctx, "repeats") if rank is None else rank))]
        return super().infer(ctx)

    def reference(self, xp: Any, x: Any, repeats: Any) -> Any:
        return xp.tile(x, tuple(listed(xp, repeats)))


@op("trilu", onnx="Trilu")
class Trilu(Op):
    """Zero below (`upper`) or above the k-th diagonal of the matrices in the last two axes."""

    x: In
    k: In | None
    upper: int = 1

    zero = zeros.passed

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("x")
        if shape is None:
            return None
        if len(shape) < 2:
            ctx.fail(f"a triangle needs two axes, not {len(shape)}")
        axes = variables(shape[:-2]) + variables(shape[-2:], "a triangle")
        return described(ctx, [axes, None], [axes])

    def reference(self, xp: Any, x: Any, k: Any = None) -> Any:
        diagonal = 0 if k is None else int(listed(xp, k)[0])
        rows, columns = x.shape[-2:]
        offset = xp.reshape(xp.arange(columns), (1, -1)) - xp.reshape(xp.arange(rows), (-1, 1))
        return xp.where(offset >= diagonal if self.upper else offset <= diagonal, x, xp.zeros_like(x))


@op("reverse_sequence", onnx="ReverseSequence")
class ReverseSequence(Op):
    """The first lengths[i] time steps of each sample i in reverse, the others as they are."""

    x: In
    sequence_lens: In
    batch_axis: int = 1
    time_axis: int = 0

    zero = zeros.passed
    moves = True

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("x")
        if shape is None:
            return None
        batch, time = (axis_index(axis, len(shape)) for axis in (self.batch_axis, self.time_axis))
        if batch == time:
            ctx.fail("the batch axis is the time axis")
        axes = variables(shape)
        axes[time] = Variable(shape[time], "reversed")
        return described(ctx, [axes, [axes[batch]]], [axes])

    def reference(self, xp: Any, x: Any, sequence_lens: Any) -> Any:
        batch, time = self.batch_axis % x.ndim, self.time_axis % x.ndim
        steps = xp.arange(x.shape[time])
        lengths = xp.reshape(sequence_lens, (-1, 1))
        order = xp.where(steps < lengths, lengths - 1 - steps, steps)  # batch × time
        if batch > time:
            order = xp.transpose(order, (1, 0))
        places = tuple(x.shape[axis] if axis in (batch, time) else 1 for axis in range(x.ndim))
        return xp.take_along_axis(x, xp.broadcast_to(xp.reshape(order, places), x.shape), axis=time)
