"""Matrix products and other sums of products."""

from __future__ import annotations

import re
from typing import Any

from espalier.ir import elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dim, Dimension
from espalier.ir.elements import Element
from espalier.ir.op import In, Ins, Op, TypeContext, op
from espalier.ir.terms import pin


@op("matmul", onnx="MatMul")
class MatMul(Op):
    """Matrix product over the last axes of a and the last but one of b, the axes before broadcast; ONNX MatMul.

    A vector on the left is a row, one on the right a column; the axis added for it is dropped again.
    """

    a: In
    b: In

    contracts = True
    zero = zeros.either

    def equation(self, ctx: TypeContext) -> Equation | None:
        return product_equation(self, ctx)

    def reference(self, xp: Any, a: Any, b: Any) -> Any:
        return xp.matmul(a, b)


def product_equation(operator: Op, ctx: TypeContext, further: str = "") -> Equation | None:
    """The axes of a matrix product of the first two operands; `further` declares the rest, each after a comma."""
    ranks = ctx.rank(0), ctx.rank(1)
    if ranks[0] is None or ranks[1] is None:
        return None
    if 0 in ranks:
        ctx.fail("a matrix product takes no scalars")
    a, rows = ("k", "") if ranks[0] == 1 else ("... m k", "m")
    b, columns = ("k", "") if ranks[1] == 1 else ("... k n", "n")
    lead = "..." if max(ranks[0], ranks[1]) > 1 else ""
    return operator.declared(ctx, f"{a}, {b}{further} -> {lead} {rows} {columns}")


def beside(letter: str, extent: Dimension, whole: Dimension) -> str:
    """How a declaration names an axis that broadcasts to a letter's of the extent `whole`."""
    if extent == 1:
        return "1"
    unknown = isinstance(extent, Dim) and extent != whole
    return re.sub(r"\W", "", letter) + BROADCAST if unknown else letter


BROADCAST = "_once"
"""What `beside` puts after the letters of axes that may turn out to be of extent 1."""


def unknown_broadcasts(equation: Equation) -> Equation:
    """The equation, in which axes that `beside` could not tell to be a letter's are pinned."""
    for letter, variables in equation.letters.items():
        if letter.endswith(BROADCAST):
            for variable in variables:
                pin(variable, "broadcast that is not known before run time")
    return equation


@op("gemm", onnx="Gemm")
class Gemm(Op):
    """alpha · a·b + beta · c of matrices, a and b transposed if asked, c broadcast to the result; ONNX Gemm."""

    a: In
    b: In
    c: In | None
    alpha: float = 1.0
    beta: float = 1.0
    transA: int = 0  # noqa: N815  # as ONNX spells it
    transB: int = 0  # noqa: N815  # as ONNX spells it

    contracts = True
    zero = zeros.affine

    def equation(self, ctx: TypeContext) -> Equation | None:
        left, right = "k m" if self.transA else "m k", "n k" if self.transB else "k n"
        text = f"{left}, {right}"
        if ctx.has("c"):
            shape = ctx.shape("c")
            if shape is None:
                return self.declared(ctx, f"{text}, _ -> m n")
            if len(shape) > 2:
                ctx.fail(f"the summand of a matrix product has rank {len(shape)}")
            a, b = ctx.shape("a") or (), ctx.shape("b") or ()
            whole = (*a[1 - self.transA :][:1], *b[self.transB == 0 :][:1])[2 - len(shape) :]
            axes = zip(("m", "n")[2 - len(shape) :], shape, whole, strict=False)
            text += ", " + " ".join(beside(letter, extent, wide) for letter, extent, wide in axes)
        found = self.declared(ctx, f"{text} -> m n")
        return None if found is None else unknown_broadcasts(found)

    def reference(self, xp: Any, a: Any, b: Any, c: Any = None) -> Any:
        kind = xp.element(a)
        a, b = xp.wide(a), xp.wide(b)
        y = xp.matmul(xp.transpose(a, (1, 0)) if self.transA else a, xp.transpose(b, (1, 0)) if self.transB else b)
        y = scaled(xp, y, self.alpha)
        if c is not None and self.beta != 0:
            y = y + scaled(xp, xp.wide(c), self.beta)
        return xp.astype(y, kind)


def scaled(xp: Any, array: Any, factor: float) -> Any:
    """array · factor in the array's element; integers stay exact by a whole factor, else they go through f64."""
    if factor == 1:
        return array
    if xp.is_floating(array):
        return array * factor
    if float(factor).is_integer():
        return array * int(factor)
    return xp.astype(xp.astype(array, elements.F64) * factor, xp.element(array))


@op("einsum", onnx="Einsum")
class Einsum(Op):
    """Einstein summation: products of the inputs, summed over the letters that the result lacks; ONNX Einsum.

    `subscripts` is ONNX's `equation`. A letter that stands twice in one input takes its diagonal; `...` broadcasts.
    """

    xs: Ins
    subscripts: str

    onnx_names = {"subscripts": "equation"}
    contracts = True
    zero = zeros.either

    def terms(self) -> tuple[list[str], str]:
        """The subscripts of the inputs and of the result; without an arrow, ONNX's implicit result."""
        left, arrow, right = re.sub(r"\s", "", self.subscripts).partition("->")
        inputs = left.split(",")
        if not arrow:
            plain = left.replace(".", "").replace(",", "")
            right = ("..." if "..." in left else "") + "".join(x for x in sorted(set(plain)) if plain.count(x) == 1)
        return inputs, right

    def equation(self, ctx: TypeContext) -> Equation | None:
        inputs, result = self.terms()
        if len(inputs) != len(ctx.types):
            ctx.fail(f"the subscripts {self.subscripts!r} are for {len(inputs)} inputs, there are {len(ctx.types)}")
        shapes = [ctx.shape(position) for position in range(len(inputs))]
        extents: dict[str, Dimension] = {}
        entries: list[list[tuple[str, Dimension]]] = []
        for text, shape in zip(inputs, shapes, strict=True):
            if shape is None:
                return None
            parts = re.findall(r"\.\.\.|[A-Za-z]", text)
            spare = len(shape) - len([part for part in parts if part != "..."])
            if "".join(parts) != text or spare < 0 or (spare and "..." not in parts):
                ctx.fail(f"the subscripts {text!r} don't fit the shape {list(map(str, shape))}")
            rest = list(shape)
            entries.append([])
            for part in parts:
                taken, rest = (rest[:spare], rest[spare:]) if part == "..." else (rest[:1], rest[1:])
                entries[-1].append((part, 0 if part == "..." else taken[0]))
                if part != "..." and extents.get(part, 1) == 1:
                    extents[part] = taken[0]
        operands = [" ".join(_letter(part, extent, extents) for part, extent in entry) for entry in entries]
        right = " ".join(_letter(part, 0, {}) for part in re.findall(r"\.\.\.|[A-Za-z]", result))
        return self.declared(ctx, f"{', '.join(operands)} -> {right}")

    def reference(self, xp: Any, *xs: Any) -> Any:
        inputs, result = self.terms()
        return xp.einsum(f"{','.join(inputs)}->{result}", *xs)


def _letter(part: str, extent: Dimension, extents: dict[str, Dimension]) -> str:
    """One subscript as an axis declaration writes it; extent 1 against another broadcasts."""
    if part == "...":
        return part
    if extent == 1 and extents.get(part, 1) != 1:
        return "1"
    return f"u_{part}" if part.isupper() else part


@op("det", onnx="Det")
class Det(Op):
    """Determinants of the square matrices in the last two axes; ONNX Det."""

    x: In

    def equation(self, ctx: TypeContext) -> Equation | None:
        found = self.declared(ctx, "B? m m -> B?")
        if found is not None:
            pin(found.letters["m"][0], "rows of a determinant")
        return found

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.det(x)


def shifted(ctx: TypeContext, zero_point: str) -> bool:
    """Whether a zero point is there that is not known to be zero."""
    if not ctx.has(zero_point):
        return False
    known = ctx.numbers(zero_point)
    return known is None or bool(known.any())


@op("matmul_integer", onnx="MatMulInteger")
class MatMulInteger(Op):
    """Matrix product of 8-bit integers less their zero points, in i32, wrapping around; ONNX MatMulInteger.

    Zero points are scalars, one per row of a (per column of b), or have the matrix's rank with its columns (rows) 1.
    """

    a: In
    b: In
    a_zero_point: In | None
    b_zero_point: In | None

    contracts = True
    zero = zeros.affine

    def equation(self, ctx: TypeContext) -> Equation | None:
        further = ""
        for operand, letter in (("a_zero_point", "m"), ("b_zero_point", "n")):
            if not ctx.has(operand):
                further += ", _"
                continue
            shape = ctx.shape(operand)
            if shape is None:
                further += ", _"
            elif len(shape) == 0:
                further += ", "
            elif shape[-2 if letter == "m" and len(shape) > 1 else -1] == 1:
                further += ", _" if len(shape) > 1 else ", 1"
            elif len(shape) == 1:
                further += f", {letter}"
            else:
                further += ", ... m 1" if letter == "m" else ", ... 1 n"
        found = product_equation(self, ctx, further)
        if found is not None and shifted(ctx, "a_zero_point") and shifted(ctx, "b_zero_point"):
            pin(found.letters["k"][0], "zero points: what is cut out would not have been zero")
        return found

    def element(self, ctx: TypeContext) -> Element:
        return elements.I32

    def reference(self, xp: Any, a: Any, b: Any, a_zero_point: Any = None, b_zero_point: Any = None) -> Any:
        a, b = xp.astype(a, elements.I32), xp.astype(b, elements.I32)
        if a_zero_point is not None:
            zero_point = xp.astype(a_zero_point, elements.I32)
            a = a - (xp.reshape(zero_point, (-1, 1)) if zero_point.ndim == 1 and a.ndim > 1 else zero_point)
        if b_zero_point is not None:
            b = b - xp.astype(b_zero_point, elements.I32)
        return xp.matmul(a, b)
