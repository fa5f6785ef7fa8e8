"""The torch form of the primitives computes what the numpy form does, operator by operator, and has gradients."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import espalier.ir
from espalier.errors import UnsupportedError
from espalier.ir import Builder, Graph, TypeInferenceError, elements
from espalier.ir.elements import BF16, F16, F32, F64, Element, from_dtype
from espalier.ir.execute import execute
from espalier.ir.op import OPS, lookup
from espalier.ir.types import TensorType
from espalier.ir.types import parse as parse_type
from espalier.ir.xp import numpy as numpy_xp
from espalier.ir.xp import torch as torch_xp
from tests.ir.ops.samples import Sample, context, draw, operators_with_axes

DRAWS = ((0, F64), (1, F64), (2, F64), (3, F32), (4, F16), (5, BF16))
"""Seeds of samples, and the element that their floats get."""
TOLERANCE = {F64: 1e-9, F32: 2e-5, F16: 4e-3, BF16: 3e-2}
"""Relative to the largest result: sums are taken in another order."""


def used_primitives() -> set[str]:
    """The attributes of `xp` that operator references use."""
    found = set()
    for file in Path(espalier.ir.__path__[0], "ops").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xp":
                found.add(node.attr)
    return found


@pytest.mark.parametrize("xp", [numpy_xp, torch_xp], ids=["numpy", "torch"])
def test_both_forms_have_every_primitive_that_is_used(xp: Any) -> None:
    assert len(used_primitives()) > 80
    assert [name for name in sorted(used_primitives()) if not hasattr(xp, name)] == []


def as_element(sample: Sample, element: Element) -> Sample | None:
    """The sample with its f64 operands in another element; None if the operator does not take that."""
    operands = [a if a is None or a.dtype != np.float64 else a.astype(element.dtype) for a in sample.operands]
    op = sample.op if sample.op.deterministic else sample.op.replace(seed=1.0)
    changed = Sample(op, operands, sample.results)
    try:
        changed.op.infer(context(changed))
    except TypeInferenceError:
        return None
    return changed


def results(sample: Sample, xp: Any) -> list[np.ndarray[Any, Any]]:
    operands = [None if a is None else xp.asarray(a) for a in sample.operands]
    found = sample.op.reference(xp, *operands)
    found = found if isinstance(found, tuple) else (found,)
    return [xp.to_numpy(array) for array in found[: sample.results]]


def held(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As torch holds it: integers of 2 and 4 bits in 8."""
    kind = from_dtype(array.dtype)
    return array.astype(np.int8 if kind.kind == "int" else np.uint8) if kind.is_integer and kind.bits < 8 else array


@pytest.mark.parametrize("name", operators_with_axes())
def test_operators_agree_in_both_forms(name: str) -> None:
    compared = 0
    for seed, element in DRAWS:
        sample = as_element(draw(name, seed), element)
        if sample is None:
            continue
        compared += 1
        with np.errstate(all="ignore"):
            pairs = zip(results(sample, numpy_xp), results(sample, torch_xp), strict=True)
        for wanted, found in pairs:
            expected = held(wanted)
            assert found.dtype == expected.dtype and found.shape == expected.shape, sample
            if expected.dtype.kind in "iub" or expected.size == 0:
                np.testing.assert_array_equal(found, expected, err_msg=str(sample))
                continue
            wide = np.complex128 if expected.dtype.kind == "c" else np.float64
            a, b = found.astype(wide), expected.astype(wide)
            finite = np.abs(b[np.isfinite(b)])
            bound = TOLERANCE[element] * max(1.0, finite.max(initial=0.0))
            np.testing.assert_allclose(a, b, rtol=TOLERANCE[element], atol=bound, err_msg=str(sample))
    assert compared


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.int8, np.uint8, np.int64, np.uint16, np.bool_, np.complex64, ml_dtypes.bfloat16,
     ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2],
)  # fmt: skip
def test_numbers_go_to_torch_and_back_unchanged(dtype: Any) -> None:
    array = np.array([[0, 1, 2], [3, 4, 5]], np.float32).astype(dtype)[:, ::-1]
    array.flags.writeable = False
    tensor = torch_xp.asarray(array)
    assert torch_xp.element(tensor) == from_dtype(array.dtype)
    back = torch_xp.to_numpy(tensor)
    assert back.dtype == array.dtype and np.array_equal(back, array)


def test_what_torch_cannot_hold_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="E404"):
        torch_xp.asarray(np.zeros(2, ml_dtypes.float4_e2m1fn))
    with pytest.raises(UnsupportedError, match="E410"):
        torch_xp.asarray(np.array(["text"]))


def test_four_bit_integers_wrap_in_eight_bits() -> None:
    held = torch_xp.asarray(np.array([-8, 7], ml_dtypes.int4))
    assert held.dtype == torch.int8 and held.tolist() == [-8, 7]
    assert torch_xp.astype(torch.tensor([8, 17, -9]), elements.I4).tolist() == [-8, 1, 7]
    assert torch_xp.astype(torch.tensor([16, -1]), elements.U4).tolist() == [0, 15]


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_padding_beyond_the_border(mode: str, dtype: Any) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    for pads in ([(0, 0), (7, 9)], [(4, 1), (-1, 2)], [(-1, -1), (0, 3)]):
        expected = numpy_xp.pad(array, pads, mode)
        assert np.array_equal(torch_xp.to_numpy(torch_xp.pad(torch_xp.asarray(array), pads, mode)), expected)


def test_large_integers_multiply_exactly() -> None:
    a, b = np.array([[2**40 + 1, 3]]), np.array([[2**20 + 1], [5]])
    assert torch_xp.matmul(torch_xp.asarray(a), torch_xp.asarray(b)).item() == (a @ b).item()
    x, w = np.full((1, 2, 5), 2**30 + 1), np.full((4, 1, 3), 2**25 + 1)
    expected = numpy_xp.conv(x, w, (2,), [(1, 0)], (1,), 2)
    found = torch_xp.conv(torch_xp.asarray(x), torch_xp.asarray(w), (2,), [(1, 0)], (1,), 2)
    assert np.array_equal(found.numpy(), expected)


def test_convolutions_of_four_axes_and_of_channels_only() -> None:
    rng = np.random.default_rng(0)
    for spatial in (4, 0):
        x, w = rng.standard_normal((2, 4, *(3,) * spatial)), rng.standard_normal((6, 2, *(2,) * spatial))
        args = ((1,) * spatial, [(1, 0)] * spatial, (1,) * spatial, 2)
        found = torch_xp.conv(torch_xp.asarray(x), torch_xp.asarray(w), *args)
        np.testing.assert_allclose(found.numpy(), numpy_xp.conv(x, w, *args), atol=1e-9)


def test_indices_outside_are_refused() -> None:
    data = torch.zeros(3)
    for index in (3, -4):
        with pytest.raises(IndexError):
            torch_xp.scatter(data, (torch.tensor([index]),), torch.ones(1), "none")
        with pytest.raises(IndexError):
            torch_xp.take(data, torch.tensor([index]), 0)


def test_graphs_have_gradients() -> None:
    graph = Graph()
    b = Builder(graph)
    x, w = b.input(parse_type("f64[n, 4, 6]"), "x"), b.input(parse_type("f64[8, 2, 3]"), "w")
    y = b.conv(x, w, None, group=2, pads=(1, 1))
    y = b.concat(b.slice(y, np.array([0]), np.array([4]), np.array([1])), b.pad(x, np.zeros(6, np.int64)), axis=1)
    y = b.gather(b.softmax(b.reshape(b.tanh(y), np.array([0, -1])), axis=1), np.array([0, 0, -1]), axis=1)
    graph.set_outputs([b.reduce_sum(b.mul(y, y), keepdims=0)])
    assert isinstance(graph.outputs[0].type, TensorType)

    def loss(*arrays: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = execute(graph, list(arrays), torch_xp)[0]
        return found

    torch.manual_seed(0)
    leaves = [torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(8, 2, 3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(loss, [leaf.requires_grad_() for leaf in leaves])


def test_scatters_pass_gradients() -> None:
    op = lookup("scatter_elements")(reduction="add", axis=0)
    data, updates = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    index = torch.tensor([[0, 1], [0, -1], [2, 2]])
    assert torch.autograd.gradcheck(lambda a, u: op.reference(torch_xp, a, index, u), [data, updates])


def test_the_compared_operators_are_many() -> None:
    assert len(operators_with_axes()) > 150 and set(operators_with_axes()) <= set(OPS)
