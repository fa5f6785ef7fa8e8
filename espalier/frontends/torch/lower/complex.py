"""Complex tensors as pairs of real ones: no backend needs complex numbers."""

from __future__ import annotations

import cmath
from collections.abc import Callable, Sequence
from typing import Any

import torch

from espalier.frontends.torch import registry
from espalier.frontends.torch.lower import elementwise
from espalier.frontends.torch.registry import lowers_complex
from espalier.frontends.torch.scope import Pair, Scope, dtype_element
from espalier.frontends.torch.tensors import number
from espalier.ir.elements import BOOL
from espalier.ir.graph import Value


def join(s: Scope, z: Pair) -> Value:
    """The parts on a new last axis."""
    return s.concat([s.unsqueeze(z.real, z.rank), s.unsqueeze(z.imag, z.rank)], z.rank)


def parts(s: Scope, x: Value) -> Pair:
    """The pair whose parts stand on the last axis."""
    last = s.rank_of(x) - 1
    return Pair(s.select(x, last, 0), s.select(x, last, 1))


def pair(s: Scope, x: Any) -> Pair:
    """An operand as a pair; real tensors and numbers have no imaginary part."""
    element = s.element if s.element.is_float else None
    if isinstance(x, Pair):
        return Pair(s.cast(x.real, element), s.cast(x.imag, element)) if element else x
    if isinstance(x, Value):
        x = s.cast(x, element) if element else x
        return Pair(x, s.expand(number(0, x.element), s.shape_of(x)))
    z = complex(x)
    assert element is not None
    return Pair(number(z.real, element), number(z.imag, element))


def _each(name: str) -> Callable[..., Any]:
    """A linear operator with real coefficients: both parts for themselves. Real operands are the same for both."""

    def lower(s: Scope, *arguments: Any, **keywords: Any) -> Any:
        function = registry.REAL[name]
        found = [function(s, *_part(s, arguments, k), **_part(s, keywords, k)) for k in range(2)]
        if isinstance(found[0], tuple):
            return tuple(Pair(real, imag) for real, imag in zip(*found, strict=True))
        return Pair(found[0], found[1])

    return lower


def _part(s: Scope, entry: Any, k: int) -> Any:
    if isinstance(entry, Pair):
        return entry.imag if k else entry.real
    if isinstance(entry, complex):
        return entry.imag if k else entry.real
    if isinstance(entry, (tuple, list)):
        return type(entry)(_part(s, one, k) for one in entry)
    if isinstance(entry, dict):
        return {key: _part(s, one, k) for key, one in entry.items()}
    return entry


_MOVES = [
    "view.default", "_unsafe_view.default", "reshape.default", "permute.default", "transpose.int", "t.default",
    "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims", "expand.default", "slice.Tensor",
    "select.int", "split_with_sizes.default", "split.Tensor", "chunk.default", "unbind.int", "flip.default",
    "roll.default", "repeat.default", "unfold.default", "diagonal.default", "tril.default", "triu.default",
    "clone.default", "alias.default", "detach.default", "contiguous.default", "index.Tensor", "gather.default",
    "index_select.default", "as_strided.default", "lift_fresh_copy.default", "take.default", "masked_select.default",
    "embedding.default", "sum.default", "sum.dim_IntList", "mean.default", "mean.dim", "cumsum.default",
    "neg.default", "zeros_like.default", "new_zeros.default", "zeros.default", "empty.memory_format",
    "empty_like.default",    "new_empty.default", "resolve_conj.default", "resolve_neg.default",
    "positive.default", "zero.default",
]  # fmt: skip

for _name in _MOVES:
    lowers_complex(f"aten.{_name}")(_each(f"aten.{_name}"))


def _all_pairs(name: str) -> Callable[..., Any]:
    """Operators of several tensors, some of which may be real: these count as pairs."""

    def lower(s: Scope, *arguments: Any, **keywords: Any) -> Any:
        return _each(name)(s, *(_lifted(s, entry) for entry in arguments), **keywords)

    return lower


def _lifted(s: Scope, entry: Any) -> Any:
    if isinstance(entry, Value) and entry.element.is_float:
        return pair(s, entry)
    if isinstance(entry, (tuple, list)):
        return [_lifted(s, one) for one in entry]
    return entry


for _name in (
    "cat.default",
    "stack.default",
    "slice_scatter.default",
    "select_scatter.default",
    "index_put.default",
    "scatter.src",
    "scatter_add.default",
    "index_add.default",
    "index_copy.default",
    "copy.default",
):
    lowers_complex(f"aten.{_name}")(_all_pairs(f"aten.{_name}"))


@lowers_complex("aten.constant_pad_nd.default")
def constant_pad(s: Scope, z: Pair, amounts: Sequence[Any], value: Any = 0) -> Pair:
    fill, function = complex(value), registry.REAL["aten.constant_pad_nd.default"]
    return Pair(function(s, z.real, amounts, fill.real), function(s, z.imag, amounts, fill.imag))


@lowers_complex(
    "aten.full.default",
    "aten.full_like.default",
    "aten.scalar_tensor.default",
    "aten.new_full.default",
    "aten.fill.Scalar",
)
def full(s: Scope, *arguments: Any, **_: Any) -> Pair:
    fill = arguments[{"new_full": 2, "scalar_tensor": 0}.get(str(s.node.target).split(".")[1], 1)]
    z = complex(fill)
    return Pair(s.full(s.shape, z.real), s.full(s.shape, z.imag))


@lowers_complex("aten.ones_like.default", "aten.ones.default", "aten.new_ones.default")
def ones(s: Scope, *_: Any, **__: Any) -> Pair:
    return Pair(s.full(s.shape, 1), s.full(s.shape, 0))


@lowers_complex("aten._to_copy.default", "prims.convert_element_type.default")
def to_copy(s: Scope, x: Any, dtype: torch.dtype | None = None) -> Any:
    if isinstance(x, Pair):
        element = dtype_element(dtype, x.element)
        if dtype is not None and not dtype.is_complex:
            return s.cast(x.real, element)
        return Pair(s.cast(x.real, element), s.cast(x.imag, element))
    return pair(s, x)


# ---- between real and complex ------------------------------------------------------------------------------


@lowers_complex("aten.view_as_real.default", "aten.view_as_real_copy.default")
def view_as_real(s: Scope, z: Pair) -> Value:
    return join(s, z)


@lowers_complex("aten.view_as_complex.default", "aten.view_as_complex_copy.default")
def view_as_complex(s: Scope, x: Value) -> Pair:
    return parts(s, x)


@lowers_complex("aten.complex.default")
def complex_of(s: Scope, real: Value, imag: Value) -> Pair:
    return Pair(s.expand(real, s.shape), s.expand(imag, s.shape))


@lowers_complex("aten.polar.default")
def polar(s: Scope, size: Value, angle: Value) -> Pair:
    return Pair(s.b.mul(size, s.b.cos(angle)), s.b.mul(size, s.b.sin(angle)))


@lowers_complex("aten.real.default")
def real_part(s: Scope, z: Pair) -> Value:
    return z.real


@lowers_complex("aten.imag.default")
def imaginary_part(s: Scope, z: Pair) -> Value:
    return z.imag


@lowers_complex("aten.conj.default", "aten._conj.default", "aten._conj_physical.default", "aten.conj_physical.default")
def conjugate(s: Scope, z: Pair) -> Pair:
    return Pair(z.real, s.b.neg(z.imag))


@lowers_complex("aten.abs.default")
def absolute(s: Scope, z: Pair) -> Value:
    return elementwise.length(s, z.real, z.imag)


@lowers_complex("aten.angle.default")
def angle(s: Scope, z: Pair) -> Value:
    return elementwise.atan2(s, z.imag, z.real)


# ---- arithmetic --------------------------------------------------------------------------------------------


def _times(s: Scope, a: Value, factor: Any) -> Value:
    return a if factor == 1 else s.b.mul(a, number(factor, a.element))


@lowers_complex("aten.add.Tensor", "aten.add.Scalar")
def add(s: Scope, x: Any, y: Any, alpha: Any = 1) -> Pair:
    a, b = pair(s, x), pair(s, y)
    return Pair(s.b.add(a.real, _times(s, b.real, alpha)), s.b.add(a.imag, _times(s, b.imag, alpha)))


@lowers_complex("aten.sub.Tensor", "aten.sub.Scalar")
def subtract(s: Scope, x: Any, y: Any, alpha: Any = 1) -> Pair:
    a, b = pair(s, x), pair(s, y)
    return Pair(s.b.sub(a.real, _times(s, b.real, alpha)), s.b.sub(a.imag, _times(s, b.imag, alpha)))


@lowers_complex("aten.rsub.Tensor", "aten.rsub.Scalar")
def reverse_subtract(s: Scope, x: Any, y: Any, alpha: Any = 1) -> Pair:
    return subtract(s, y, x, alpha)


def bilinear(s: Scope, x: Any, y: Any, product: Callable[[Value, Value], Value]) -> Pair:
    """(a + ib)·(c + id) for any bilinear product; operands without an imaginary part stay real."""
    if not isinstance(x, (Pair, complex)):
        left, z = s.operand(x), pair(s, y)
        return Pair(product(left, z.real), product(left, z.imag))
    if not isinstance(y, (Pair, complex)):
        z, right = pair(s, x), s.operand(y)
        return Pair(product(z.real, right), product(z.imag, right))
    p, q = pair(s, x), pair(s, y)
    real = s.b.sub(product(p.real, q.real), product(p.imag, q.imag))
    return Pair(real, s.b.add(product(p.real, q.imag), product(p.imag, q.real)))


@lowers_complex("aten.mul.Tensor", "aten.mul.Scalar")
def multiply(s: Scope, x: Any, y: Any) -> Pair:
    return bilinear(s, x, y, s.b.mul)


@lowers_complex("aten.square.default")
def square(s: Scope, z: Pair) -> Pair:
    return bilinear(s, z, z, s.b.mul)


@lowers_complex(
    "aten.mm.default",
    "aten.bmm.default",
    "aten.matmul.default",
    "aten.mv.default",
    "aten.dot.default",
    "aten.vdot.default",
)
def matmul(s: Scope, x: Any, y: Any) -> Pair:
    if "vdot" in str(s.node.target):
        x = conjugate(s, pair(s, x))
    return bilinear(s, x, y, s.b.matmul)


@lowers_complex("aten.linear.default")
def linear(s: Scope, x: Any, weight: Any, bias: Any = None) -> Pair:
    y = bilinear(s, x, weight, lambda a, w: s.b.matmul(a, s.swap(w, -1, -2)))
    return y if bias is None else add(s, y, bias)


@lowers_complex("aten.addmm.default", "aten.baddbmm.default")
def addmm(s: Scope, c: Any, x: Any, y: Any, beta: Any = 1, alpha: Any = 1) -> Pair:
    found = bilinear(s, x, y, s.b.matmul)
    return add(s, multiply(s, c, beta), multiply(s, found, alpha))


@lowers_complex("aten.einsum.default")
def einsum(s: Scope, equation: str, operands: Sequence[Any], path: Any = None) -> Pair:
    text = equation.replace(" ", "")
    if len(operands) == 1:
        z = pair(s, operands[0])
        return Pair(s.b.einsum(z.real, subscripts=text), s.b.einsum(z.imag, subscripts=text))
    if len(operands) > 2:
        s.refuse("einsum of more than two complex tensors")
    return bilinear(s, operands[0], operands[1], lambda a, b: s.b.einsum(a, b, subscripts=text))


@lowers_complex("aten.convolution.default", "aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def convolution(s: Scope, x: Any, w: Any, bias: Any = None, *arguments: Any) -> Pair:
    function = registry.REAL[str(s.node.target)]
    y = bilinear(s, x, w, lambda a, b: function(s, a, b, None, *arguments))
    if bias is None:
        return y
    shape = (-1, *[1] * (y.rank - 2))
    z = pair(s, bias)
    return add(s, y, Pair(*(s.b.reshape(part, s.sizes(shape)) for part in (z.real, z.imag))))


def _squared_length(s: Scope, z: Pair) -> Value:
    return s.b.add(s.b.mul(z.real, z.real), s.b.mul(z.imag, z.imag))


@lowers_complex("aten.div.Tensor", "aten.div.Scalar")
def divide(s: Scope, x: Any, y: Any) -> Pair:
    if not isinstance(y, (Pair, complex)):
        a, b = pair(s, x), s.operand(y)
        return Pair(s.b.div(a.real, b), s.b.div(a.imag, b))
    return multiply(s, pair(s, x), reciprocal(s, pair(s, y)))


@lowers_complex("aten.reciprocal.default")
def reciprocal(s: Scope, z: Pair) -> Pair:
    """1/z, scaled by the larger part, so that its square neither overflows nor vanishes."""
    size = s.b.max(s.b.abs(z.real), s.b.abs(z.imag))
    a, b = s.b.div(z.real, size), s.b.div(z.imag, size)
    scale = s.b.mul(s.b.add(s.b.mul(a, a), s.b.mul(b, b)), size)
    return Pair(s.b.div(a, scale), s.b.neg(s.b.div(b, scale)))


@lowers_complex("aten.exp.default")
def exp(s: Scope, z: Any) -> Pair:
    z = pair(s, z)
    return polar(s, s.b.exp(z.real), z.imag)


@lowers_complex("aten.log.default")
def log(s: Scope, z: Any) -> Pair:
    z = pair(s, z)
    return Pair(s.b.log(absolute(s, z)), angle(s, z))


@lowers_complex("aten.sqrt.default")
def sqrt(s: Scope, z: Any) -> Pair:
    z = pair(s, z)
    half = number(0.5, z.element)
    return polar(s, s.b.sqrt(absolute(s, z)), s.b.mul(angle(s, z), half))


@lowers_complex("aten.pow.Tensor_Scalar")
def power(s: Scope, z: Any, exponent: Any) -> Pair:
    z = pair(s, z)
    if isinstance(exponent, (int, float)) and float(exponent).is_integer() and 0 < exponent <= 4:
        found = z
        for _ in range(int(exponent) - 1):
            found = bilinear(s, found, z, s.b.mul)
        return found
    return exp(s, multiply(s, log(s, z), exponent))


@lowers_complex("aten.pow.Scalar")
def power_of_scalar(s: Scope, base: Any, z: Any) -> Pair:
    return exp(s, multiply(s, pair(s, z), cmath.log(complex(base))))


@lowers_complex("aten.sigmoid.default")
def sigmoid(s: Scope, z: Pair) -> Pair:
    return reciprocal(s, add(s, exp(s, Pair(s.b.neg(z.real), s.b.neg(z.imag))), 1))


@lowers_complex("aten.sgn.default")
def unit(s: Scope, z: Pair) -> Pair:
    """z/|z|, and 0 at 0."""
    size = absolute(s, z)
    zero = s.b.equal(size, s.zero_like(size))
    safe = s.b.where(zero, number(1, size.element), size)
    return Pair(s.b.div(z.real, safe), s.b.div(z.imag, safe))


@lowers_complex("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(s: Scope, condition: Value, x: Any, y: Any) -> Pair:
    a, b = pair(s, x), pair(s, y)
    condition = s.cast(condition, BOOL)
    return Pair(s.b.where(condition, a.real, b.real), s.b.where(condition, a.imag, b.imag))


@lowers_complex("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(s: Scope, z: Pair, mask: Value, value: Any) -> Pair:
    return where(s, mask, value, z)


def _equality(s: Scope, x: Any, y: Any) -> Value:
    a = x if isinstance(x, Pair) else None
    b = y if isinstance(y, Pair) else None
    pair = a or b
    assert pair is not None  # it is called for complex operands
    element = pair.element

    def split(entry: Any) -> tuple[Value, Value]:
        if isinstance(entry, Pair):
            return entry.real, entry.imag
        if isinstance(entry, Value):
            return s.cast(entry, element), number(0, element)
        return number(complex(entry).real, element), number(complex(entry).imag, element)

    (p, q), (u, v) = split(x), split(y)
    return s.b.logical_and(s.b.equal(p, u), s.b.equal(q, v))


lowers_complex("aten.eq.Tensor", "aten.eq.Scalar")(_equality)


@lowers_complex("aten.ne.Tensor", "aten.ne.Scalar")
def unequal(s: Scope, x: Any, y: Any) -> Value:
    return s.b.logical_not(_equality(s, x, y))
