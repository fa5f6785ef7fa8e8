"""Numbers that come from shapes which are known when the model runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from espalier.backends.tvm import build
from espalier.backends.tvm.trace import trace
from espalier.errors import InternalError, UnsupportedError
from espalier.ir import elements
from espalier.ir.dims import NotANumberError, symbol
from espalier.ir.op import OperandError, lookup
from espalier.ir.xp import numpy as numpy_xp
from tests.backends.tvm.checks import agree, graph_of


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def extent(b: Any, x: Any, to: str) -> Any:
    return b.cast(b.shape(x, start=0, end=1), to=elements.parse(to))


@pytest.mark.parametrize("to", ["i32", "i64", "f32", "f64", "bool"])
def test_an_extent_in_any_element_is_a_result(to: str) -> None:
    agree(lambda b, x: extent(b, x, to), ones(3, 4), types=["f32[N, 4]"], more=[[ones(7, 4)]])


def test_an_extent_in_32_bits_meets_numbers_known_at_run_time() -> None:
    def model(b: Any, x: Any, k: Any) -> Any:
        n = extent(b, x, "i32")
        return b.add(n, k), b.concat(n, k, axis=0), b.where(b.less(n, k), n, k), b.cast(b.div(n, k), to=elements.F32)

    k = np.array([5], np.int32)
    agree(model, ones(3, 4), k, types=["f32[N, 4]", "i32[1]"], more=[[ones(9, 4), k]])


def test_functions_of_extents() -> None:
    def model(b: Any, x: Any) -> Any:
        n, three = b.shape(x, start=0, end=1), np.array([3], np.int64)
        apart = b.sub(n, three)
        half = b.div(b.cast(n, to=elements.F32), np.array([2], np.float32))
        return b.abs(apart), b.less(n, three), b.div(apart, np.array([2], np.int64)), b.sqrt(b.ceil(half))

    agree(model, ones(1, 4), types=["f32[N, 4]"], more=[[ones(n, 4)] for n in (2, 3, 8)])


@pytest.mark.parametrize("to", ["i32", "i64"])
def test_products_of_extents_wrap_around(to: str) -> None:
    def model(b: Any, x: Any) -> Any:
        n = extent(b, x, to)
        big = b.mul(b.mul(n, np.array([70000], n.type.element.dtype)), np.array([70000], n.type.element.dtype))
        return big, b.cast(big, to=elements.I64), b.div(big, np.array([7], n.type.element.dtype))

    agree(model, ones(1, 4), types=["f32[N, 4]"], more=[[ones(3, 4)], [ones(9, 4)]])
    graph = graph_of(model, [ones(1, 4)], ["f32[N, 4]"])
    assert (graph.outputs[0].content is None) == (to == "i32")


def test_dimensions_that_may_not_fit_are_no_integers() -> None:
    n, m = symbol("n"), symbol("m")
    held = np.array([n * 32 + m, n // 2 - 1, 5], object)
    assert numpy_xp.astype(held, elements.I32).tolist() == held.tolist()
    wide = (n * 40000, n * m * 2, n + 2**31)
    for entry, kind in (*((each, "i32") for each in wide), (n, "i16"), (n, "u32"), (n * 2**48, "i64")):
        with pytest.raises(NotANumberError):
            numpy_xp.astype(np.array([entry, None], object)[:1], elements.parse(kind))


INFINITE = 2**63 - 1


def counted(*shape: int) -> Any:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(1, INFINITE, 1), (-3, -1, 1), (2, 5, 1), (0, -2, 1), (-1, INFINITE, 1), (1, INFINITE, 3), (-4, 100, 2),
     (-1, -INFINITE, -1), (100, 1, -2), (7, 3, 1)],
)  # fmt: skip
def test_slices_of_an_axis_of_unknown_extent(start: int, end: int, step: int) -> None:
    bounds = [np.array([bound], np.int64) for bound in (start, end, 1, step)]
    agree(
        lambda b, x: b.relu(b.slice(x, *bounds)),
        counted(2, 7, 3),
        types=["f32[2, N, 3]"],
        more=[[counted(2, n, 3)] for n in (1, 2, 3, 12)],
    )


def test_slices_of_several_axes_by_extents() -> None:
    def model(b: Any, x: Any) -> Any:
        half = b.div(b.shape(x, start=0, end=1), np.array([2], np.int64))
        starts = b.concat(half, np.array([1], np.int64), axis=0)
        return b.slice(x, starts, np.array([INFINITE, 3]), np.array([0, 1]), np.array([1, 1]))

    agree(model, counted(7, 4), types=["f32[N, 4]"], more=[[counted(n, 4)] for n in (1, 4)])


@pytest.mark.parametrize("element", ["i32", "i64"])
def test_ranges_over_an_extent(element: str) -> None:
    kind = elements.parse(element).dtype

    def model(b: Any, x: Any) -> Any:
        n = b.reshape(extent(b, x, element), np.array([], np.int64))
        zero, two = np.array(0, kind), np.array(2, kind)
        return b.range(zero, n, np.array(1, kind)), b.range(two, n, two), b.range(n, zero, np.array(-3, kind))

    agree(model, counted(7, 4), types=["f32[N, 4]"], more=[[counted(n, 4)] for n in (1, 2, 10)])


@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}, {"is_causal": 1, "left_window_size": 2}])
def test_attention_over_an_unknown_number_of_positions(attributes: dict[str, int]) -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    agree(
        lambda b, q, k, v: b.attention(q, k, v, **attributes),
        *(normal(2, 2, 5, 4) for _ in range(3)),
        types=["f32[B, 2, T, 4]"] * 3,
        more=[[normal(1, 2, t, 4) for _ in range(3)] for t in (1, 7)],
    )


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_of_unknown_extents(mode: str, stride: int) -> None:
    w = counted(3, 2, 3, 3) / 27 - 1
    agree(
        lambda b, x: (
            b.conv(x, w, strides=(stride, stride), auto_pad=mode),
            b.max_pool(x, kernel_shape=(3, 3), strides=(stride, stride), auto_pad=mode),
        ),
        counted(1, 2, 8, 5),
        types=["f32[1, 2, H, W]"],
        more=[[counted(1, 2, h, w)] for h, w in ((1, 3), (7, 6))],
    )


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resizing_leaves_an_unknown_batch_as_it_is(mode: str) -> None:
    def model(b: Any, x: Any) -> Any:
        return b.resize(x, None, np.array([1, 1, 2, 1.5], np.float32), None, mode=mode)

    agree(model, counted(2, 3, 4, 6), types=["f32[N, C, 4, 6]"], more=[[counted(5, 1, 4, 6)]])


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resizing_to_sizes_leaves_an_unknown_batch_as_it_is(mode: str) -> None:
    def model(b: Any, x: Any) -> Any:
        sizes = b.concat(b.shape(x, start=0, end=2), np.array([9, 5], np.int64), axis=0)
        return b.resize(x, None, None, sizes, mode=mode, coordinate_transformation_mode="align_corners")

    agree(model, counted(2, 3, 4, 6), types=["f32[N, C, 4, 6]"], more=[[counted(5, 1, 4, 6)]])


@pytest.mark.parametrize("given", ["scales", "sizes"])
@pytest.mark.parametrize(
    ("mode", "coordinates"),
    [
        ("nearest", "asymmetric"), ("nearest", "half_pixel"), ("linear", "half_pixel"), ("linear", "align_corners"),
        ("linear", "pytorch_half_pixel"), ("cubic", "half_pixel"), ("cubic", "half_pixel_symmetric"),
    ],
)  # fmt: skip
def test_resizing_unknown_extents(mode: str, coordinates: str, given: str) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}

    def model(b: Any, x: Any, like: Any) -> Any:
        if given == "scales":
            return b.resize(x, None, np.array([1, 1, 2, 0.75], np.float32), None, **attributes)
        return b.resize(x, None, None, b.shape(like), exclude_outside=int(mode == "cubic"), **attributes)

    shapes = [((1, 2, 9, 6), (1, 2, 5, 11)), ((3, 2, 1, 2), (3, 2, 4, 1)), ((2, 2, 8, 8), (2, 2, 1, 8))]
    more = [[counted(*shape) for shape in pair] for pair in shapes]
    agree(model, counted(2, 2, 4, 6), ones(2, 2, 4, 6), types=["f32[N, 2, H, W]", "f32[N, 2, K, L]"], more=more)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_nothing_is_refused(mode: str) -> None:
    def model(b: Any, x: Any, like: Any) -> Any:
        return b.resize(x, None, None, b.shape(like), mode=mode)

    compiled = build.build(graph_of(model, [ones(1, 4), ones(1, 3)], ["f32[1, H]", "f32[1, K]"]), threads=1)
    assert compiled([ones(1, 0), ones(1, 0)])[0].shape == (1, 0)
    assert compiled([ones(1, 3), ones(1, 0)])[0].shape == (1, 0)
    with pytest.raises(IndexError, match="outside of its axis"):
        compiled([ones(1, 0), ones(1, 3)])


def test_long_activations_in_branches_stay_apart() -> None:
    """Written as one expression, this took TVM's simplifier longer than anybody waits."""

    def model(b: Any, x: Any) -> Any:
        moved = b.concat(b.mish(x), b.swish(b.tanh(x)), b.gelu(x), axis=2)
        last = b.concat(x, x, b.tanh(b.exp(x)), axis=1)  # only a branch of a branch holds one
        return b.pad(b.mish(moved), np.array([0, 0, 1, 0, 0, 2], np.int64)), last

    more = [[np.random.default_rng(0).normal(size=shape).astype(np.float32)] for shape in ((1, 5, 3), (4, 2, 33))]
    agree(model, ones(2, 3, 4), types=["f32[N, H, W]"], more=more)


def test_an_hourglass_of_unknown_extents() -> None:
    """Extents that were halved and doubled are cut to what they were before."""
    weights = np.random.default_rng(0).normal(size=(2, 2, 3, 3)).astype(np.float32)
    once, pads = np.array([1, 1], np.int64), (1, 1, 1, 1)

    def model(b: Any, x: Any) -> Any:
        height = b.shape(x, start=2, end=3)
        down = b.swish(b.conv(x, weights, None, strides=(2, 2), pads=pads))
        again = b.conv(down, weights, None, strides=(2, 2), pads=pads)
        up = b.swish(b.conv_transpose(again, weights, None, strides=(2, 2), pads=pads, output_padding=(1, 1)))
        past = b.add(height, once[:1])
        half = b.div(b.sub(past, b.mod(past, once[:1] * 2)), once[:1] * 2)
        cut = b.slice(up, once[:1] * 0, half, once[:1] * 2)
        return b.add(cut, down)

    more = [[np.random.default_rng(0).normal(size=shape).astype(np.float32)] for shape in ((1, 2, 11, 8), (3, 2, 7, 8))]
    agree(model, ones(1, 2, 8, 8), types=["f32[N, 2, H, 8]"], more=more)


def test_constants_are_repeated_along_an_extent() -> None:
    def model(b: Any, x: Any) -> Any:
        n = b.shape(x, start=0, end=1)
        shape = b.concat(n, np.array([3, 2], np.int64), axis=0)
        times = b.concat(n, np.array([2], np.int64), axis=0)
        return b.expand(counted(1, 3, 1), shape), b.tile(counted(2, 3), times)

    agree(model, ones(3, 4), types=["f32[N, 4]"], more=[[ones(1, 4)], [ones(7, 4)]])


def test_what_needs_an_extent_as_a_number_is_refused() -> None:
    def split(b: Any, x: Any) -> Any:
        return b.sequence_at(b.split_to_sequence(x, None, axis=0), np.array(0, np.int64))

    def resize(b: Any, x: Any) -> Any:  # with antialiasing, how many entries count depends on it
        sizes = b.concat(np.array([9], np.int64), b.shape(x, start=1), axis=0)
        return b.resize(x, None, None, sizes, mode="linear", antialias=1)

    for model in (split, resize):
        with pytest.raises(UnsupportedError, match="E402"):
            trace(graph_of(model, [ones(3, 4)], ["f32[N, M]"]))


@pytest.mark.parametrize(
    ("raised", "expected", "code"),
    [
        (OperandError("no"), UnsupportedError, "E402"), (NotANumberError("no"), UnsupportedError, "E402"),
        (ValueError("no"), InternalError, "E901"), (TypeError("no"), InternalError, "E901"),
    ],
)  # fmt: skip
def test_faults_are_told_from_refusals(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], code: str
) -> None:
    def reference(*_: Any) -> Any:
        raise raised

    graph = graph_of(lambda b, x: b.relu(x), [ones(3, 4)], ["f32[N, 4]"])
    monkeypatch.setattr(lookup("relu"), "reference", reference)
    with pytest.raises(expected, match=f"{code}.*no"):
        trace(graph)
