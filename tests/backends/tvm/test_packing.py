"""Weights of few bits in products of floats: packed, unpacked in registers or in panels, against the reference."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import espalier
from espalier.backends.tvm import build, machine, packing
from espalier.backends.tvm.arithmetic import as_tensor
from espalier.backends.tvm.tensor import Affine
from espalier.ir import Builder, Graph, TensorType, Value, elements
from espalier.ir.dims import symbol
from espalier.ir.elements import Element
from espalier.ir.execute import execute
from espalier.runtime import load

KINDS = [elements.U8, elements.I8, elements.U4, elements.I4, elements.U2, elements.I2]
TARGETS: dict[str, list[str] | None] = {"host": None, "avx2": ["avx", "avx2", "fma"], "baseline": []}


def integers(seed: int, kind: Element, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    low, high = kind.range
    return np.asarray(np.random.default_rng(seed).integers(low, high + 1, shape)).astype(kind.dtype)


def dequantized(
    b: Builder, kind: Element, shape: tuple[int, ...], axis: int | None = None, block: int = 0, zero: bool = True
) -> Value:
    """Weights of about 1, with scales and zero points along an axis."""
    scales: tuple[int, ...] = ()
    if block:
        scales = tuple(-(-extent // block) if k == axis else extent for k, extent in enumerate(shape))
    elif axis is not None:
        scales = (shape[axis],)
    scale = np.asarray(np.random.default_rng(1).random(scales) + 0.5, np.float32) / np.float32(kind.range[1] + 1)
    shift = integers(2, kind, scales) if zero else None
    found: Value = b.dequantize(integers(3, kind, shape), scale, shift, axis=axis or 0, block_size=block)
    return found


def product(
    kind: Element, rows: tuple[Any, ...], matrix: tuple[int, int], axis: int | None, block: int = 0, zero: bool = True,
    turned: bool = False,
) -> Graph:  # fmt: skip
    """An input times a dequantized matrix, which is given transposed if `turned`, with what follows in its kernel."""
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (*rows, matrix[0])), "x")
    if turned:
        w = b.transpose(
            dequantized(b, kind, matrix[::-1], None if axis is None else 1 - axis, block, zero), perm=(1, 0)
        )
    else:
        w = dequantized(b, kind, matrix, axis, block, zero)
    graph.set_outputs([b.relu(b.add(b.matmul(x, w), np.linspace(-1, 1, matrix[1], dtype=np.float32)))], ["y"])
    return graph


def agrees(graph: Graph, *rows: tuple[int, ...], target: str = "host", tolerance: float = 3e-6) -> int:
    """The compiled graph computes what the reference does, for some extents of its symbols. How large its weights are.

    A tolerance is relative to the largest number.
    """
    sets = TARGETS[target]
    compiled = build.build(graph, threads=1, target=None if sets is None else build.target_with(sets))
    for extents in rows or [()]:
        given = iter(extents)
        shape = [extent if isinstance(extent, int) else next(given) for extent in graph.inputs[0].shape]
        x = np.random.default_rng(4).normal(size=shape).astype(np.float32)
        (wanted,), (found,) = execute(graph, [x]), compiled([x])
        assert wanted.shape == found.shape
        if wanted.size:
            assert np.abs(wanted.astype(np.float64) - found).max() <= tolerance * np.abs(wanted).max()
    return sum(weight.nbytes for weight in compiled.weights)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("axis", "block"), [(None, 0), (0, 0), (1, 0), (0, 32), (0, 8)], ids=["one", "rows", "columns", "blocks", "small"]
)  # fmt: skip
def test_matrices_of_few_bits_stay_small(kind: Element, axis: int | None, block: int) -> None:
    """One row of an input, an odd number of columns, and zero points unless they differ by rows."""
    size = agrees(product(kind, (1,), (256, 193), axis, block, zero=axis != 0 or block > 0))
    blocks, lanes = -(-193 // machine.of(build.instruction_sets(build.host_target(1))).lanes), 16
    packed = 256 * blocks * lanes * kind.bits // 8
    shared = (256 // block if block else 1) * blocks * lanes * 5 + 256 * 4
    assert size <= packed + shared + 193 * 4


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("target", ["baseline", "avx2"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="code for x86-64")
def test_machines_without_wide_vectors(kind: Element, target: str) -> None:
    agrees(product(kind, (3,), (100, 50), 0, 32), target=target)
    agrees(product(kind, (20,), (75, 33), 1), target=target)


@pytest.mark.parametrize("kind", [elements.I8, elements.U4, elements.I2], ids=str)
@pytest.mark.parametrize("rows", [(2,), (9,), (150,), (2, 5), (3, 70)], ids=str)
def test_rows_and_what_is_left_over(kind: Element, rows: tuple[int, ...]) -> None:
    """Steps that fill no word, no block; columns that fill no vector; tiles and panels that are cut off."""
    agrees(product(kind, rows, (101, 67), 0, 32))
    agrees(product(kind, rows, (99, 50), 1, turned=True))
    agrees(product(kind, rows, (7, 300), None, zero=False))


@pytest.mark.parametrize("rows", [(symbol("m"),), (symbol("b"), symbol("m")), (symbol("b"), 9), (2, symbol("m"))])
def test_rows_known_at_run_time(rows: tuple[Any, ...]) -> None:
    sizes = [(1, 1), (2, 7), (0, 3), (3, 0), (1, 40)]
    count = sum(not isinstance(extent, int) for extent in rows)
    for kind, block in ((elements.U4, 16), (elements.I8, 0), (elements.U2, 0)):
        agrees(product(kind, rows, (70, 48), 0 if block else 1, block), *(size[-count:] for size in sizes))


def test_weights_are_unpacked_exactly() -> None:
    """One-hot rows read the weights, which are the reference's to the last bit; −1, 0 and 1 times a scale included."""
    for kind in KINDS:
        for block in (0, 16):
            for rows in (range(6), range(250)):
                graph = Graph()
                b = Builder(graph)
                x = b.input(TensorType(elements.F32, (len(rows), 256)), "x")
                graph.set_outputs([b.matmul(x, dequantized(b, kind, (256, 48), 0 if block else 1, block))])
                hot = np.eye(256, dtype=np.float32)[: len(rows)]
                np.testing.assert_array_equal(build.run(graph, [hot])[0], execute(graph, [hot])[0])


@pytest.mark.parametrize(
    ("axis", "block", "zero"), [(1, 16, True), (0, 1, True), (0, 3, True), (0, 0, True)],
    ids=["along columns", "single", "odd", "zero points by rows"],
)  # fmt: skip
def test_what_does_not_fit_is_dequantized_when_compiling(axis: int, block: int, zero: bool) -> None:
    """Or packed less tightly, as odd blocks are."""
    agrees(product(elements.I4, (5,), (96, 64), axis, block, zero))


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "dense": ((48, 32, 3, 3), {"pads": (1, 1, 1, 1)}),
    "strided": ((33, 16, 3, 3), {"strides": (2, 2), "pads": (0, 1, 1, 0)}),
    "dilated": ((32, 16, 2, 3), {"dilations": (2, 1)}),
    "pointwise": ((50, 40, 1, 1), {}),
    "few channels": ((32, 3, 5, 5), {"pads": (2, 2, 2, 2)}),
    "odd channels": ((32, 37, 3, 3), {"pads": (1, 1, 1, 1)}),
    "groups": ((64, 32, 3, 3), {"group": 2, "pads": (1, 1, 1, 1)}),
    "groups of few": ((32, 3, 3, 3), {"group": 2}),
    "depthwise": ((40, 1, 3, 3), {"group": 40, "pads": (1, 1, 1, 1)}),
}


@pytest.mark.parametrize("kind", [elements.U8, elements.I4, elements.U2], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(kind: Element, name: str) -> None:
    shape, keywords = CONVOLUTIONS[name]
    for axis, target in ((0, "host"), (None, "host"), (0, "baseline")):
        if target == "baseline" and platform.machine() != "x86_64":
            continue
        graph = Graph()
        b = Builder(graph)
        channels = shape[1] * keywords.get("group", 1)
        x = b.input(TensorType(elements.F32, (symbol("n") if axis is None else 1, channels, 9, 11)), "x")
        y = b.conv(x, dequantized(b, kind, shape, axis), np.linspace(-1, 1, shape[0], dtype=np.float32), **keywords)
        graph.set_outputs([b.relu(y)], ["y"])
        size = agrees(graph, (2,), target=target)
        assert size < 2 * int(np.prod(shape)) + 4 * 4 * shape[0] + 512


def test_rows_of_tables_are_dequantized_when_read() -> None:
    places = np.array([3, 0, 49, -1, 7])
    for kind, axis, block in ((elements.U4, 0, 0), (elements.I8, 1, 0), (elements.I4, 1, 16), (elements.U2, 0, 3)):
        graph = Graph()
        b = Builder(graph)
        index = b.input(TensorType(elements.I64, places.shape), "index")
        graph.set_outputs([b.gather(dequantized(b, kind, (50, 40), axis, block), index)])
        compiled = build.build(graph, threads=1)
        np.testing.assert_array_equal(compiled([places])[0], execute(graph, [places])[0])
        assert max(weight.nbytes for weight in compiled.weights) < 4 * 50 * 40


def test_recurrent_layers_of_dequantized_weights() -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (9, 2, 12)), "x")
    w, r = dequantized(b, elements.I8, (1, 80, 12)), dequantized(b, elements.I4, (1, 80, 20), 2, 10)
    graph.set_outputs([b.lstm(x, w, r, hidden_size=20, results=1)])
    agrees(graph, tolerance=1e-5)


def network(b: Builder, x: Value, kind: Element) -> Value:
    y = b.relu(b.conv(x, dequantized(b, kind, (32, 3, 3, 3), 0), strides=(2, 2), pads=(1, 1, 1, 1)))
    y = b.relu(b.conv(y, dequantized(b, kind, (64, 32, 3, 3), 0)))
    y = b.reshape(y, np.array([1, -1]))
    y = b.relu(b.gemm(y, dequantized(b, kind, (96, 64 * 36), 1, 64), transB=1))
    return b.matmul(y, dequantized(b, kind, (96, 10), 0, 32))


@pytest.mark.parametrize("kind", [elements.U8, elements.U4, elements.I2], ids=str)
def test_artifacts_are_as_small_as_their_weights(kind: Element, tmp_path: Path) -> None:
    graph = Graph()
    b = Builder(graph)
    x = b.input(TensorType(elements.F32, (1, 3, 16, 16)), "x")
    graph.set_outputs([network(b, x, kind)], ["y"])
    count = sum(node.operands[0].type.size for node in graph if node.op.name == "dequantize")  # type: ignore[union-attr]
    espalier.compile(graph, output=tmp_path / "artifact")
    image = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    (wanted,), found = execute(graph, [image]), load(tmp_path / "artifact")(image)["y"]
    assert np.abs(wanted - found).max() <= 3e-6 * np.abs(wanted).max()
    assert (tmp_path / "artifact" / "weights.safetensors").stat().st_size < 1.15 * count * (
        kind.bits / 8 + 5 / 64
    ) + 4096


def test_numbers_are_packed_as_tightly_as_runs_allow() -> None:
    """(bits, run) → (bits of a field, fields of a word)."""
    wanted = {
        (4, 64): (4, 8), (4, 37): (4, 8), (4, 6): (4, 2), (4, 3): (4, 4), (4, 1): (8, 1),
        (2, 64): (2, 8), (2, 3): (2, 4), (8, 64): (8, 4), (8, 3): (8, 1), (8, 1): (8, 1),
    }  # fmt: skip
    for (bits, run), fields in wanted.items():
        shape = (32, run, 1, 1)
        w = as_tensor(np.full(shape, 0.5, np.float32))
        stored = as_tensor(np.full(shape, (1 << bits) - 1, np.uint8))
        w.affine = Affine(stored, np.array(0.5, np.float32), np.array(0), None)
        found = packing.filters(w, run)
        assert found is not None
        assert (found.bits, found.count) == fields, (bits, run)
