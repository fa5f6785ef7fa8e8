"""Random numbers. A seed makes a node repeatable here; other implementations draw other numbers from the same seed."""

from __future__ import annotations

import math
from typing import Any

from espalier.ir import elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.elements import Element
from espalier.ir.op import In, Op, Out, TypeContext, op
from espalier.ir.ops.elementwise import arithmetic_element
from espalier.ir.terms import Term, Variable
from espalier.ir.types import TensorType, Type


@op("dropout", onnx="Dropout")
class Dropout(Op):
    """In training mode, zeroes a share `ratio` of x (default 1/2) and scales the rest up; else x itself.

    The second result says what was kept.
    """

    x: In
    ratio: In | None
    training_mode: In | None
    out: Out
    mask: Out | None
    seed: int | None = None

    axes = "..., _, _ -> ..., ..."
    zero = zeros.passed
    deterministic = False

    def infer(self, ctx: TypeContext) -> list[Type]:
        kinds = [arithmetic_element(ctx, "x", real=True), elements.BOOL][: ctx.result_count]
        return [TensorType(kind, ctx.shape("x")) for kind in kinds]

    def reference(self, xp: Any, x: Any, ratio: Any = None, training_mode: Any = None) -> Any:
        share = 0.5 if ratio is None else float(xp.to_numpy(ratio).reshape(()))
        if training_mode is None or not bool(xp.to_numpy(training_mode).reshape(())) or share == 0:
            return x, xp.full(x.shape, True, elements.BOOL)
        kept = xp.random_uniform(x.shape, self.seed) >= share
        scale = 1 / (1 - share) if share < 1 else math.inf
        return xp.astype(xp.where(kept, xp.wide(x) * scale, xp.zeros_like(xp.wide(x))), xp.element(x)), kept


class Random(Op):
    """Base of tensors of random numbers, whose shape is an attribute."""

    shape: tuple[int, ...]
    dtype: Element = elements.F32
    seed: float | None = None

    deterministic = False

    def element(self, ctx: TypeContext) -> Element:
        return self.dtype

    def equation(self, ctx: TypeContext) -> Equation | None:
        terms: list[Term] = [Variable(extent) for extent in self.shape]
        return Equation([], [terms], bound={"shape": terms})


class RandomLike(Op):
    """Base of tensors of random numbers shaped like another, and of its element unless `dtype` says otherwise."""

    x: In
    dtype: Element | None = None
    seed: float | None = None

    axes = "... -> ..."
    deterministic = False

    def element(self, ctx: TypeContext) -> Element:
        return self.dtype or ctx.element("x")


@op("random_normal", onnx="RandomNormal")
class RandomNormal(Random):
    """Normally distributed numbers."""

    mean: float = 0.0
    scale: float = 1.0

    def reference(self, xp: Any) -> Any:
        return xp.astype(xp.random_normal(self.shape, self.seed) * self.scale + self.mean, self.dtype)


@op("random_normal_like", onnx="RandomNormalLike")
class RandomNormalLike(RandomLike):
    """Normally distributed numbers in the shape of x."""

    mean: float = 0.0
    scale: float = 1.0

    def reference(self, xp: Any, x: Any) -> Any:
        numbers = xp.random_normal(x.shape, self.seed) * self.scale + self.mean
        return xp.astype(numbers, self.dtype or xp.element(x))


@op("random_uniform", onnx="RandomUniform")
class RandomUniform(Random):
    """Numbers spread evenly over [low, high)."""

    high: float = 1.0
    low: float = 0.0

    def reference(self, xp: Any) -> Any:
        return xp.astype(xp.random_uniform(self.shape, self.seed) * (self.high - self.low) + self.low, self.dtype)


@op("random_uniform_like", onnx="RandomUniformLike")
class RandomUniformLike(RandomLike):
    """Numbers spread evenly over [low, high) in the shape of x."""

    high: float = 1.0
    low: float = 0.0

    def reference(self, xp: Any, x: Any) -> Any:
        numbers = xp.random_uniform(x.shape, self.seed) * (self.high - self.low) + self.low
        return xp.astype(numbers, self.dtype or xp.element(x))


@op("bernoulli", onnx="Bernoulli")
class Bernoulli(RandomLike):
    """1 with the probability x, else 0."""

    zero = zeros.passed

    def reference(self, xp: Any, x: Any) -> Any:
        return xp.astype(xp.random_uniform(x.shape, self.seed) < xp.wide(x), self.dtype or xp.element(x))


@op("multinomial", onnx="Multinomial")
class Multinomial(Op):
    """`sample_size` draws from the classes whose logarithmic weights are x (n, classes): (n, sample_size)."""

    x: In
    dtype: Element = elements.I32
    sample_size: int = 1
    seed: float | None = None

    deterministic = False
    bound = {"sample_size": "s"}

    def equation(self, ctx: TypeContext) -> Equation | None:
        found = self.declared(ctx, "n c -> n s")
        if found is not None:
            found.letters["c"][0].pinned = "the result holds positions on this axis"
        return found

    def element(self, ctx: TypeContext) -> Element:
        arithmetic_element(ctx, "x", real=True)
        return self.dtype

    def reference(self, xp: Any, x: Any) -> Any:
        shares = xp.cumsum(xp.softmax(xp.astype(x, elements.F64), -1), axis=-1)
        draws = xp.random_uniform((x.shape[0], self.sample_size, 1), self.seed)
        passed = xp.astype(draws >= shares[:, None, :-1], elements.I64)
        return xp.astype(xp.sum(passed, axis=-1), self.dtype)
