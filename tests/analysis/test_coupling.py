"""What the analysis says of graphs that no torch module yields: ONNX's own operators, run-time shapes, regions."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import espalier
from benchmarks.cutting import check_all, difference, draw, hard
from espalier.analysis.coupling import Unit, couple
from espalier.backends.onnx import to_model
from espalier.ir import Graph
from espalier.ir.execute import execute
from tests.analysis.networks import NETWORKS, loaded

RNG = np.random.default_rng(0)


def model(text: str, **weights: np.ndarray) -> Graph:
    """A graph of ONNX's text form: `opsets | inputs => outputs { nodes }`, with these initializers."""
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>\n' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return espalier.load(proto)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def units(graph: Graph) -> dict[str, Unit]:
    return {unit.name: unit for unit in couple(graph).units}


def test_an_operator_that_is_not_known_freezes_what_it_touches() -> None:
    graph = model(
        """agraph (double[N, 4] x) => (double[N, 3] y) {
            a = MatMul(x, first)
            b = Relu(a)
            c = MatMul(b, second)
            d = mine.Fold(c, table)
            y = MatMul(d, third)
        }""",
        first=normal(4, 6), second=normal(6, 5), table=normal(5, 2), third=normal(5, 3),
    )  # fmt: skip
    found = units(graph)
    assert found["first.1"].verdict == "exact"
    for name in ("second.1", "table.0", "table.1"):
        assert found[name].verdict == "frozen"
        assert "does not say what it does to it" in found[name].why()
        assert "Fold" in found[name].why() or "opaque" in found[name].why()


def test_branches_freeze_what_passes_into_them() -> None:
    graph = model(
        """agraph (double[N, 4] x, bool c) => (double[N, 3] y) {
            a = MatMul(x, first)
            b = MatMul(a, second)
            d = If (c) <
                then_branch = one () => (double[N, 5] t) { t = Mul(b, inner) },
                else_branch = two () => (double[N, 5] e) { e = Relu(b) }
            >
            y = MatMul(d, third)
        }""",
        first=normal(4, 6), second=normal(6, 5), inner=normal(5), third=normal(5, 3),
    )  # fmt: skip
    found = units(graph)
    assert found["first.1"].verdict == "exact"
    assert found["second.1"].verdict == "frozen"
    assert "pass into a body" in found["second.1"].why()
    assert "third.0" not in {unit.name for unit in couple(graph).removable()}
    for condition in (True, False):
        assert check_all(graph, [normal(2, 4), np.array(condition)], RNG)[0] == 1


def test_loops_freeze_what_they_carry_and_what_their_bodies_hold() -> None:
    graph = model(
        """agraph (double[N, 4] x) => (double[N, 3] y) {
            a = MatMul(x, first)
            b = MatMul(a, second)
            d, s = Loop (trip, always, b) <
                body = step (int64 i, bool go, double[N, 5] state) => (bool on, double[N, 5] next, double[N, 5] seen) {
                    on = Identity(go)
                    next = MatMul(state, inner)
                    seen = Relu(next)
                }
            >
            y = MatMul(d, third)
        }""",
        first=normal(4, 6), second=normal(6, 5), inner=normal(5, 5), third=normal(5, 3), trip=np.array(3),
        always=np.array(True),
    )  # fmt: skip
    found = units(graph)
    assert found["first.1"].verdict == "exact"
    assert "pass into a body" in found["second.1"].why()
    assert "inner.0" not in {unit.name for unit in couple(graph).removable()}
    assert check_all(graph, [normal(2, 4)], RNG)[0] == 1


def test_a_weight_that_a_body_uses_too_is_frozen() -> None:
    graph = model(
        """agraph (double[N, 4] x, bool c) => (double[N, 5] y) {
            a = MatMul(x, shared)
            b = MatMul(a, second)
            y = If (c) <
                then_branch = one () => (double[N, 5] t) {
                    p = MatMul(x, shared)
                    t = MatMul(p, second)
                },
                else_branch = two () => (double[N, 5] e) { e = Relu(b) }
            >
        }""",
        shared=normal(4, 6), second=normal(6, 5),
    )  # fmt: skip
    assert not couple(graph).removable()


def test_scales_and_zero_points_leave_with_their_channels() -> None:
    """A QDQ model: weights quantized per channel, activations per tensor and per channel."""
    quantized = lambda *shape: RNG.integers(-100, 100, shape).astype(np.int8)  # noqa: E731
    positive = lambda *shape: RNG.uniform(0.01, 0.1, shape).astype(np.float32)  # noqa: E731
    graph = model(
        """agraph (float[N, 3, 6, 6] x) => (float[N, 5] y) {
            w1 = DequantizeLinear <axis = 0> (q1, s1, z1)
            b1 = DequantizeLinear <axis = 0> (i1, t1)
            a = Conv(x, w1, b1)
            r = Relu(a)
            q = QuantizeLinear <axis = 1> (r, sa, za)
            d = DequantizeLinear <axis = 1> (q, sa, za)
            w2 = DequantizeLinear <axis = 0> (q2, s2, z2)
            c = Conv(d, w2)
            e = QuantizeLinear (c, sc, zc)
            f = DequantizeLinear (e, sc, zc)
            g = GlobalAveragePool(f)
            h = Flatten(g)
            w3 = DequantizeLinear <axis = 1> (q3, s3)
            y = MatMul(h, w3)
        }""",
        q1=quantized(8, 3, 3, 3), s1=positive(8), z1=np.zeros(8, np.int8), i1=quantized(8).astype(np.int32),
        t1=positive(8), sa=positive(8), za=np.zeros(8, np.uint8), q2=quantized(6, 8, 3, 3), s2=positive(6),
        z2=np.zeros(6, np.int8), sc=positive(), zc=np.array(128, np.uint8), q3=quantized(6, 5), s3=positive(5),
    )  # fmt: skip
    found = units(graph)
    first = next(unit for unit in found.values() if unit.verdict != "frozen" and "q1.0" in map(str, unit.weights))
    assert {str(member) for member in first.weights} >= {"q1.0", "s1.0", "i1.0", "t1.0", "sa.0", "q2.1"}
    second = next(unit for unit in found.values() if unit.verdict != "frozen" and "q2.0" in map(str, unit.weights))
    assert {str(member) for member in second.weights} >= {"q2.0", "s2.0", "q3.0"}
    x = normal(2, 3, 6, 6).astype(np.float32)
    assert check_all(graph, [x], RNG, limit=1e-5)[0] == 2
    removed = draw(couple(graph).removable(), 0.5, RNG)
    cut = hard(graph, removed)
    again = espalier.load(to_model(cut))
    assert difference(execute(again, [x]), execute(cut, [x])) < 1e-5


def test_activations_with_a_zero_point_of_their_own() -> None:
    """Zero does not stay the number zero between the two: what reads it must change too."""
    graph = model(
        """agraph (float[N, 4] x) => (float[N, 3] y) {
            a = MatMul(x, first)
            q = QuantizeLinear (a, s, z)
            d = DequantizeLinear (q, s, z)
            y = MatMul(d, second)
        }""",
        first=normal(4, 6).astype(np.float32), second=normal(6, 3).astype(np.float32), s=np.float32(0.05),
        z=np.uint8(117),
    )  # fmt: skip
    assert units(graph)["first.1"].verdict == "exact"
    assert not units(graph)["first.1"].silent
    check_all(graph, [normal(5, 4).astype(np.float32)], RNG, limit=1e-5)


def test_outputs_that_are_weights_are_frozen() -> None:
    graph = model(
        """agraph (double[N, 4] x) => (double[N, 3] y, double[4, 6] first) {
            a = MatMul(x, first)
            y = MatMul(a, second)
        }""",
        first=normal(4, 6), second=normal(6, 3),
    )  # fmt: skip
    assert not couple(graph).removable()
    assert "output of the model, 'first'" in units(graph)["first.1"].why()


def test_channels_gathered_by_constant_indices() -> None:
    """The gathered copies are a coordinate of their own; the gathered channels stay."""
    graph = model(
        """agraph (double[N, 4] x) => (double[N, 3] y) {
            a = MatMul(x, first)
            b = Gather <axis = 1> (a, order)
            c = Add(b, shift)
            y = MatMul(c, second)
        }""",
        first=normal(4, 6), second=normal(5, 3), order=np.array([3, 0, 0, 5, 1]), shift=normal(5),
    )  # fmt: skip
    found = units(graph)
    assert "indexed by data" in found["first.1"].why()
    assert {str(member) for member in found["order.0"].weights} == {"order.0", "shift.0", "second.0"}
    assert not found["order.0"].silent
    check_all(graph, [normal(2, 4)], RNG)


def test_a_negated_and_scattered_copy_does_not_vanish() -> None:
    graph = model(
        """agraph (double[N, 4] x) => (double[N, 3] y) {
            a = MatMul(x, first)
            b = Exp(a)
            c = Transpose <perm = [1, 0]> (b)
            d = MatMul(b, second)
            e = MatMul(d, c)
            f = ReduceSum(e, axes)
            g = MatMul(b, third)
            y = Add(g, f)
        }""",
        first=normal(4, 6), second=normal(6, 6), third=normal(6, 3), axes=np.array([1]),
    )  # fmt: skip
    check_all(graph, [normal(2, 4)], RNG)


class Windows(nn.Module):
    """Shapes are read off the tensors: heads, windows, pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(6, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        x = self.embed(x)
        q, k, v = self.qkv(x).reshape(b, t, 3, 3, 4).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, -1))
        x = x + self.down(self.up(x).relu())
        return self.head(x.reshape(b * t, 12)).reshape(b, t, 2)


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        x = self.a(x).reshape(b, 3, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, 3, 2 * h, 2 * w)
        return self.fc(self.b(x).relu().reshape(b, 8, -1).mean(2))


@pytest.mark.parametrize("through_onnx", [False, True])
@pytest.mark.parametrize(
    ("module", "shape", "dynamic", "others", "least"),
    [
        (Windows, (2, 5, 6), {0: "batch", 1: "sequence"}, [(3, 4, 6), (1, 7, 6)], 4),
        (Pixels, (2, 3, 4, 6), {0: "batch", 2: "height", 3: "width"}, [(1, 3, 8, 5)], 2),
    ],
)
def test_shapes_that_are_computed_at_run_time_follow(
    module: type[nn.Module],
    shape: tuple[int, ...],
    dynamic: dict[int, str],
    others: Sequence[tuple[int, ...]],
    least: int,
    through_onnx: bool,
) -> None:
    torch.manual_seed(0)
    dims = {axis: torch.export.Dim(name, min=1, max=64) for axis, name in dynamic.items()}
    net = module().double().eval()
    graph = espalier.load(net, example_inputs=(torch.zeros(shape, dtype=torch.float64),), dynamic_shapes=(dims,))
    if through_onnx:
        graph = espalier.load(to_model(graph))
    assert len(couple(graph).removable()) >= least
    for other in (shape, *others):
        check_all(graph, [normal(*other)], RNG)


@pytest.mark.parametrize("policy", ["stretch", "not_larger"])
def test_resizing_to_extents_that_are_partly_known_follows(policy: str) -> None:
    """What torch's exporter makes of interpolating to another tensor's size, with a dynamic batch."""
    graph = model(
        f"""agraph (double[batch, 3, 8, 8] x) => (double[batch, 2, 8, 8] y) {{
            a = Conv(x, wide)
            b = Conv<strides = [2, 2]>(x, narrow)
            batch = Shape<start = 0, end = 1>(x)
            sizes = Concat<axis = 0>(batch, channels, pixels)
            large = Resize<mode = "linear", keep_aspect_ratio_policy = "{policy}">(b, , , sizes)
            sum = Add(a, large)
            y = Conv(sum, head)
        }}""",
        wide=normal(6, 3, 1, 1), narrow=normal(6, 3, 1, 1), head=normal(2, 6, 1, 1),
        channels=np.array([6]), pixels=np.array([8, 8]),
    )  # fmt: skip
    assert [(u.extent, u.verdict) for u in couple(graph).removable()] == ([(6, "exact")] if policy == "stretch" else [])
    if policy == "stretch":
        check_all(graph, [normal(3, 3, 8, 8)], RNG)


@pytest.mark.parametrize(("sizes", "kept"), [((19, 19), False), ((20, 19), False), ((40, 20), True)])
def test_an_extent_that_is_the_same_by_rounding_is_resampled(sizes: tuple[int, int], kept: bool) -> None:
    """A kept aspect ratio scales all axes alike: six channels by 0.95 are 5.7, which are six again, but mixed."""
    graph = model(
        """agraph (double[1, 3, 20, 20] x) => (double[1, 2, h, w] y) {
            a = Conv(x, wide)
            r = Resize<mode = "linear", keep_aspect_ratio_policy = "not_larger">(a, , , sizes)
            y = Conv(r, head)
        }""",
        wide=normal(6, 3, 1, 1), head=normal(2, 6, 1, 1), sizes=np.array([1, 6, *sizes]),
    )  # fmt: skip
    assert [unit.extent for unit in couple(graph).removable()] == ([6] if kept else [])
    if kept:
        check_all(graph, [normal(1, 3, 20, 20)], RNG)


def test_what_may_be_broadcast_at_run_time_stays() -> None:
    """If the last axis has 6 positions and not 1, a narrower h could not be added to it."""
    graph = model(
        """agraph (double[batch, width] x, double[batch, 6] z) => (double[batch, 3] y) {
            h = MatMul(z, first)
            sum = Add(x, h)
            y = MatMul(sum, last)
        }""",
        first=normal(6, 6), last=normal(6, 3),
    )  # fmt: skip
    found = units(graph)
    assert [name for name, unit in found.items() if unit.verdict != "frozen"] == []
    assert "broadcast that is not known before run time (at add" in found["first.1"].why()


@pytest.mark.parametrize(
    ("kernel", "attributes", "verdict"),
    [(1, "", "exact"), (1, "pads = [0, 0], strides = [1], group = 1", "exact"), (3, "pads = [1, 1]", "frozen")],
)
def test_positions_of_a_convolution_that_mixes_none_are_a_unit(kernel: int, attributes: str, verdict: str) -> None:
    """Over tokens in the place of channels, as gated MLPs have it, features are the positions."""
    graph = model(
        f"""agraph (double[2, 5, 4] x) => (double[2, 5, 3] y) {{
            h = MatMul(x, first)
            mixed = Conv<{attributes or "group = 1"}>(h, tokens)
            y = MatMul(mixed, last)
        }}""",
        first=normal(4, 6), tokens=normal(5, 5, kernel), last=normal(6, 3),
    )  # fmt: skip
    assert units(graph)["first.1"].verdict == verdict
    if verdict == "exact":
        check_all(graph, [normal(2, 5, 4)], RNG)


def test_couplings_leave_no_garbage() -> None:
    """No collection looks for some while they are made."""
    graphs = [loaded(name)[0] for name in list(NETWORKS)[:6]]
    for graph in graphs:
        couple(graph)
    gc.collect()
    gc.disable()
    try:
        for graph in graphs:
            couple(graph)
        assert gc.collect() == 0
    finally:
        gc.enable()
