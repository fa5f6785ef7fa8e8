"""Movements, shapes, slices, sequences and control flow: types with symbols, meaning, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from espalier.ir import (
    Builder,
    Graph,
    TensorType,
    TypeInferenceError,
    Value,
    constant_value,
    dims,
    structural_hash,
    to_text,
    verify,
)
from espalier.ir import parse as parse_graph
from espalier.ir.dims import lower_bound, substitute, symbol
from espalier.ir.elements import BOOL, F32, I64
from espalier.ir.execute import execute
from espalier.ir.op import lookup
from espalier.ir.ops.segments import slice_span
from espalier.ir.ops.sequences import widen
from espalier.ir.terms import leaves, unify
from espalier.ir.types import OptionalType, SequenceType
from espalier.ir.types import parse as parse_type

N = symbol("n")


def graph_of(*inputs: str) -> tuple[Graph, Builder, list[Value]]:
    graph = Graph()
    builder = Builder(graph)
    return graph, builder, [builder.input(parse_type(text), f"x{k}") for k, text in enumerate(inputs)]


def shape_of(value: Value) -> list[str]:
    return [str(extent) for extent in value.shape]


# ---- symbolic shapes ---------------------------------------------------------------------------------------------


def test_shape_arithmetic_keeps_dynamic_reshapes_typed() -> None:
    graph, b, (x,) = graph_of("f32[n, t, 768]")
    shape = b.shape(x)
    batch, steps = b.gather(shape, 0), b.gather(shape, np.array(1))
    parts = [b.unsqueeze(batch, np.array([0])), b.unsqueeze(steps, np.array([0])), np.array([12]), np.array([-1])]
    heads = b.transpose(b.reshape(x, b.concat(*parts, axis=0)), perm=(0, 2, 1, 3))
    assert shape_of(heads) == ["n", "12", "t", "64"]
    back = b.reshape(b.transpose(heads, perm=(0, 2, 1, 3)), np.array([0, 0, -1]))
    assert shape_of(back) == ["n", "t", "768"]
    graph.set_outputs([back])
    data = np.arange(2 * 3 * 768, dtype=np.float32).reshape(2, 3, 768)
    assert np.array_equal(execute(graph, [data])[0], data)


def test_contents_of_shapes_follow_through_arithmetic_and_slices() -> None:
    _, b, (x,) = graph_of("f32[n, 4, h, w]")
    spatial = b.slice(b.shape(x), np.array([2]), np.array([4]))
    doubled = b.mul(spatial, np.array([2, 2]))
    assert [str(entry) for entry in doubled.known] == ["2*h", "2*w"]
    target = b.concat(b.shape(x, start=0, end=2), doubled, axis=0)
    assert shape_of(b.expand(b.constant_of_shape(np.array([1], np.int64)), target)) == ["n", "4", "2*h", "2*w"]
    assert shape_of(b.range(0, b.squeeze(b.gather(b.shape(x), np.array([2]))), 1)) == ["h"]
    assert str(b.size(x).known) == "4*h*n*w"
    assert shape_of(b.flatten(x, axis=2)) == ["4*n", "h*w"]
    assert shape_of(b.tile(x, np.array([1, 2, 1, 3]))) == ["n", "8", "h", "3*w"]


@pytest.mark.parametrize(
    ("start", "end", "step", "expected"),
    [
        (1, 2**63 - 1, 1, "max(0, n-1)"),
        (0, -1, 1, "max(0, n-1)"),
        (-1, 2**31 - 1, 1, "-max(0, n-1)+n"),
        (0, 2**63 - 1, 2, "-floordiv(n, 2)+n"),
        (-1, -(2**63), -1, "n"),
        (0, 5, 1, "min(5, n)"),
        (5, 2**63 - 1, 1, "max(0, n-5)"),
    ],
)
def test_slices_of_symbolic_extents(start: int, end: int, step: int, expected: str) -> None:
    _, b, (x,) = graph_of("f32[n, 2]")
    found = b.slice(x, np.array([start]), np.array([end]), np.array([0]), np.array([step]))
    assert shape_of(found) == [expected, "2"]
    for n in range(9):
        cut = np.zeros(n)[slice(start, None if end <= -(2**63) else end, step)]
        assert substitute(found.shape[0], {"n": n}) == len(cut)


def test_slice_bounds_mean_what_numpy_means() -> None:
    for n, step in itertools.product(range(5), (-3, -2, -1, 1, 2, 3)):
        for start, end in itertools.product(range(-n, n + 3), range(-n - 2, n + 3)):
            expected = list(range(n))[start:end:step]
            span = slice_span(n, start, end, step)
            assert span is not None
            assert [span[0] + k * step for k in range(int(str(span[1])))] == expected, (n, start, end, step)


def test_slices_of_unknown_sign_are_not_guessed() -> None:
    assert slice_span(10, symbol("a") - symbol("b"), 10, 1) is None


@pytest.mark.parametrize(
    "text",
    [
        "n",
        "3*n+2",
        "n*m-1",
        "floordiv(n+3, 2)",
        "max(n-5, 0)",
        "min(n, 4)",
        "mod(n, 3)",
        "floordiv(n, 2)*m",
        "n+m-2",
        "n-min(n, 3)",
        "2*n-floordiv(n, 2)*2",
        "max(n, m)+3-mod(n, 4)",
        "n+m-max(n, m)",
    ],
)
def test_lower_bounds_hold(text: str) -> None:
    dim = dims.parse(text)
    bound = lower_bound(dim)
    assert bound is not None
    found = [substitute(dim, {"n": n, "m": m}) for n in range(1, 12) for m in range(1, 12)]
    assert min(int(str(value)) for value in found) >= bound


def test_unknown_contents_give_fresh_symbols_and_no_axes() -> None:
    graph, b, (x, shape) = graph_of("f32[n, 6]", "i64[3]")
    result = b.reshape(x, shape)
    assert len(set(result.shape)) == 3 and not set(result.shape) & set(x.shape)
    again = b.reshape(result, b.shape(result))
    assert again.shape == result.shape
    unknown = b.non_zero(x)
    assert unknown.shape[0] == 2
    graph.set_outputs([result])
    data = np.ones((2, 6), np.float32)
    assert execute(graph, [data, np.array([3, -1, 2])])[0].shape == (3, 2, 2)


# ---- axes --------------------------------------------------------------------------------------------------------


def equation(value: Value) -> Any:
    from espalier.ir.inference import type_context

    node = value.producer
    assert node is not None and node.graph is not None
    return node.op.equation(type_context(node.graph, node))


def test_every_other_channel_is_the_major_factor() -> None:
    _, b, (x,) = graph_of("f32[n, 8]")
    kept = b.slice(x, np.array([1]), np.array([2**63 - 1]), np.array([1]), np.array([2]))
    found = equation(kept)
    inside = list(leaves(found.operands[0][1]))
    assert [(leaf.extent, leaf.pinned is None) for leaf in inside] == [(4, True), (1, False), (1, False)]
    assert found.results[0][1] is inside[0]


def test_a_split_into_packed_heads_separates_them() -> None:
    _, b, (x,) = graph_of("f32[n, 24]")
    parts = b.split(x, np.array([8, 8, 8]), axis=1, results=3)
    heads = b.reshape(parts[0], np.array([0, 2, 4]))
    first, second = equation(parts[0]), equation(heads)
    for a, c in second.equal:
        unify(a, c)
    unify(first.results[0][1], second.operands[0][1])
    assert [leaf.extent for leaf in leaves(first.operands[0][1])] == [2, 4, 8, 8]


def test_padding_is_zero_only_where_it_pads_with_zero() -> None:
    from espalier.ir.inference import type_context

    cases = ((None, "constant", True), (0.0, "constant", True), (1.0, "constant", False), (None, "edge", False))
    for value, mode, expected in cases:
        graph, b, (x,) = graph_of("f32[1, 4]")
        padded = b.pad(x, np.array([0, 1, 0, 1]), None if value is None else np.float32(value), mode=mode)
        ctx = type_context(graph, padded.producer)
        assert padded.producer.op.zero_at(ctx, [None, None, None]) is expected


def test_gathers_freeze_the_indexed_axis_only() -> None:
    _, b, (table, ids) = graph_of("f32[100, 16]", "i64[n, t]")
    found = equation(b.gather(table, ids))
    assert [term.pinned for term in found.operands[0]] == ["indexed by data", None]
    assert found.results[0] == [*found.operands[1], found.operands[0][1]]


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda b, x: b.reshape(x, np.array([5, -1])), "24 elements can't be reshaped"),
        (lambda b, x: b.reshape(x, np.array([-1, -1])), "no shape to reshape to"),
        (lambda b, x: b.transpose(x, perm=(0, 0, 1)), "does not permute"),
        (lambda b, x: b.squeeze(x, np.array([0])), "extent 2 can't be dropped"),
        (lambda b, x: b.concat(x, b.reshape(x, np.array([24])), axis=0), "different ranks"),
        (lambda b, x: b.concat(x, x, axis=3), "no axis 3 in rank 3"),
        (lambda b, x: b.split(x, np.array([2, 1]), axis=2, results=2), "do not add up to 4"),
        (lambda b, x: b.slice(x, np.array([0]), np.array([1]), np.array([0]), np.array([0])), "steps of 0"),
        (lambda b, x: b.expand(x, np.array([5, 4])), "can't be expanded"),
        (lambda b, x: b.pad(x, np.array([1, 1])), "2 amounts for 3 axes"),
        (lambda b, x: b.pad(x, np.zeros(6, np.int64), mode="mirror"), "no padding mode 'mirror'"),
        (lambda b, x: b.depth_to_space(x, blocksize=2), "rank"),
        (lambda b, x: b.top_k(x, np.array([9]), results=2), "the top 9 of 4"),
        (lambda b, x: b.gather_elements(x, np.zeros((9, 1, 1), np.int64), axis=1), "9 indices on axis 0"),
        (lambda b, x: b.tile(x, np.array([1])), "1 repeats for 3 axes"),
        (lambda b, x: b.sequence_at(x, 0), "not a sequence"),
    ],
)
def test_misfits_are_refused(build: Any, says: str) -> None:
    _, b, (x,) = graph_of("f32[2, 3, 4]")
    with pytest.raises(TypeInferenceError, match=says):
        build(b, x)


# ---- details of meaning ------------------------------------------------------------------------------------------


def run(name: str, *operands: Any, **attributes: Any) -> Any:
    from espalier.ir.xp import numpy as xp

    return lookup(name)(**attributes).reference(xp, *operands)


def test_ties_keep_their_order() -> None:
    values, indices = run("top_k", np.array([1, 3, 3, 2, 3]), np.array([4]))
    assert values.tolist() == [3, 3, 3, 2] and indices.tolist() == [1, 2, 4, 3]
    _, smallest = run("top_k", np.array([1, 3, 1, 2]), np.array([2]), largest=0)
    assert smallest.tolist() == [0, 2]


def test_scatters_combine_repeated_indices() -> None:
    data, index = np.zeros(3, np.int8), np.array([1, 1, -1])
    added = run("scatter_elements", data, index, np.array([100, 100, 1], np.int8), reduction="add")
    assert added.tolist() == [0, -56, 1] and added.dtype == np.int8
    largest = run("scatter_nd", data, index[:, None], np.array([3, 2, -1], np.int8), reduction="max")
    assert largest.tolist() == [0, 3, 0]


def test_one_hot_leaves_out_of_range_rows_off() -> None:
    found = run("one_hot", np.array([-3, -2, 1, 2]), np.array(2), np.array([5.0, 7.0]))
    assert found.tolist() == [[5, 5], [7, 5], [5, 7], [5, 5]]


def test_negative_pads_cut_after_others_grow() -> None:
    found = run("pad", np.arange(4.0), np.array([-1, 2]), np.array(9.0))
    assert found.tolist() == [1, 2, 3, 9, 9]


def test_half_precision_ranges_are_computed_in_single() -> None:
    found = run("range", np.float16(0), np.float16(4096), np.float16(1))
    assert found.dtype == np.float16 and found.size == 4096 and found[-1] == np.float16(4095)


# ---- sequences and control flow ----------------------------------------------------------------------------------


def test_widening_forgets_what_differs() -> None:
    names = iter("abc")
    fresh = lambda: symbol(next(names))  # noqa: E731
    a, c = parse_type("f32[n, 3]"), parse_type("f32[n, 4]")
    assert str(widen(a, c, fresh)) == "f32[n, a]"
    assert widen(a, parse_type("f32[n]"), fresh) == TensorType(F32, None)
    assert str(widen(SequenceType(a), SequenceType(c), fresh)) == "seq<f32[n, b]>"
    assert widen(OptionalType(a), a, fresh) == OptionalType(a)
    for other in (parse_type("i64[n, 3]"), SequenceType(a)):
        with pytest.raises(ValueError):
            widen(a, other, fresh)


def test_sequences_are_lists_that_nobody_changes() -> None:
    graph, b, (x,) = graph_of("f32[n, 4]")
    parts = b.split_to_sequence(x, np.array(3), axis=1)
    assert str(parts.type) == "seq<f32[n, u0]>"
    more = b.sequence_insert(parts, x, np.array(0))
    graph.set_outputs(
        [b.concat_from_sequence(more, axis=1), b.sequence_length(parts), b.sequence_at(parts, np.array(-1))]
    )
    data = np.arange(8, dtype=np.float32).reshape(2, 4)
    joined, count, last = execute(graph, [data])
    assert np.array_equal(joined, np.concatenate([data, data], axis=1)) and count == 2 and last.shape == (2, 1)


def region(name: str, *inputs: tuple[str, str]) -> tuple[Graph, Builder, list[Value]]:
    graph = Graph(name)
    builder = Builder(graph)
    return graph, builder, [builder.input(parse_type(text), label) for label, text in inputs]


def power_loop(trips: Any, scan: bool = True) -> Graph:
    """x · y^trips in a loop that captures y and stacks each product."""
    graph, b, (x, y) = graph_of("f32[n]", "f32[n]")
    body, inner, (_, cond, product, factor) = region(
        "body", ("i", "i64[]"), ("cond", "bool[]"), ("product", "f32[n]"), ("y", "f32[n]")
    )
    made = inner.mul(product, factor)
    body.set_outputs([cond, made, made] if scan else [cond, made], ["cond", "made", "stacked"][: 2 + scan])
    outs = b.loop(trips, None, x, y, carried=1, results=1 + scan, regions=[body])
    graph.set_outputs(outs if scan else [outs])
    return graph


@pytest.mark.parametrize("trips", [0, 1, 3])
def test_loops_carry_capture_and_stack(trips: int) -> None:
    graph = power_loop(np.array(trips))
    assert shape_of(graph.outputs[0]) == ["n"] and shape_of(graph.outputs[1]) == [str(trips), "n"]
    x, y = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    final, stacked = execute(graph, [x, y])
    assert np.array_equal(final, x * y**trips) and final.dtype == np.float32
    expected = [x * y**k for k in range(1, trips + 1)]
    assert stacked.shape[0] == trips and stacked.dtype == np.float32
    assert np.array_equal(stacked.reshape(-1), np.array(expected, np.float32).reshape(-1))


def test_loops_stop_by_their_condition() -> None:
    graph, b, (limit,) = graph_of("i64[]")
    body, inner, (step, _, total, top) = region(
        "body", ("i", "i64[]"), ("cond", "bool[]"), ("total", "i64[]"), ("top", "i64[]")
    )
    made = inner.add(total, step)
    body.set_outputs([inner.less(made, top), made], ["goes_on", "total"])
    goes_on = constant_value(np.array(True))
    graph.set_outputs([b.loop(None, goes_on, np.array(0), limit, carried=1, results=1, regions=[body])])
    assert execute(graph, [np.array(10)])[0] == 10  # 0 + 1 + 2 + 3 + 4


def test_a_loop_that_grows_its_value_has_a_fresh_extent() -> None:
    graph, b, (x,) = graph_of("f32[n, 2]")
    body, inner, (_, cond, held) = region("body", ("i", "i64[]"), ("cond", "bool[]"), ("held", "f32[m, 2]"))
    body.set_outputs([cond, inner.concat(held, held, axis=0)], ["cond", "held"])
    result = b.loop(np.array(2), None, x, carried=1, results=1, regions=[body])
    assert shape_of(result)[1] == "2" and result.shape[0] not in (N, symbol("m"))
    graph.set_outputs([result])
    assert execute(graph, [np.ones((3, 2), np.float32)])[0].shape == (12, 2)


def test_branches_agree_on_their_type() -> None:
    graph, b, (cond, x) = graph_of("bool[]", "f32[n, 2]")
    then, yes, (held,) = region("then", ("x", "f32[n, 2]"))
    then.set_outputs([yes.concat(held, held, axis=1)], ["y"])
    other, no, (same,) = region("else", ("x", "f32[n, 2]"))
    other.set_outputs([no.neg(same)], ["y"])
    result = getattr(b, "if")(cond, x, results=1, regions=[then, other])
    assert shape_of(result)[0] == "n" and result.shape[1] != 2
    graph.set_outputs([result])
    data = np.ones((3, 2), np.float32)
    assert execute(graph, [np.array(True), data])[0].shape == (3, 4)
    assert np.array_equal(execute(graph, [np.array(False), data])[0], -data)


def test_branches_of_different_elements_are_refused() -> None:
    _, b, (cond,) = graph_of("bool[]")
    regions = []
    for element in (np.float32, np.int64):
        made, _, _ = region("branch")
        made.set_outputs([constant_value(np.zeros(2, element))], ["y"])
        regions.append(made)
    with pytest.raises(TypeInferenceError, match="result 0 of the branches"):
        getattr(b, "if")(cond, results=1, regions=regions)


@pytest.mark.parametrize(("backward", "prepend"), list(itertools.product((0, 1), (0, 1))))
def test_scans_run_over_any_axis_in_either_direction(backward: int, prepend: int) -> None:
    graph, b, (state, xs) = graph_of("f32[n]", "f32[n, t]")
    body, inner, (held, entry) = region("body", ("held", "f32[n]"), ("entry", "f32[n]"))
    made = inner.add(held, entry)
    body.set_outputs([made, made], ["held", "sums"])
    outs = b.scan(
        state, xs, carried=1, num_scan_inputs=1, scan_input_axes=(1,), scan_output_axes=(-1,), results=2,
        scan_input_directions=(backward,), scan_output_directions=(prepend,), regions=[body],
    )  # fmt: skip
    assert [shape_of(out) for out in outs] == [["n"], ["n", "t"]]
    graph.set_outputs(outs)
    start, data = np.ones(2, np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    final, sums = execute(graph, [start, data])
    order = data[:, ::-1] if backward else data
    expected = 1 + np.cumsum(order, axis=1)
    assert np.array_equal(sums, expected[:, ::-1] if prepend else expected)
    assert np.array_equal(final, expected[:, -1])


def test_optionals_hold_a_value_or_nothing() -> None:
    graph, b, (x,) = graph_of("f32[n]")
    full, empty = b.optional(x), b.optional(type="seq<f32[*]>")
    assert str(full.type) == "optional<f32[n]>" and str(empty.type) == "optional<seq<f32[*]>>"
    graph.set_outputs([b.optional_get_element(full), b.optional_has_element(full), b.optional_has_element(empty)])
    data, has, has_not = execute(graph, [np.ones(2, np.float32)])
    assert data.tolist() == [1, 1] and has and not has_not
    assert [out.type for out in graph.outputs[1:]] == [TensorType(BOOL, ())] * 2
    assert b.sequence_length(b.sequence_empty()).type == TensorType(I64, ())


def test_regions_and_sequences_read_back_from_text() -> None:
    loop = power_loop(np.array(3))
    text = to_text(loop)
    again = parse_graph(text)
    assert to_text(again) == text and structural_hash(again) == structural_hash(loop)
    verify(again)
    x, y = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    for a, b in zip(execute(loop, [x, y]), execute(again, [x, y]), strict=True):
        assert np.array_equal(a, b)
    graph, b, (data,) = graph_of("f32[n]")
    sequence = b.sequence_insert(b.sequence_construct(data, data), data)
    graph.set_outputs([b.optional(type="seq<f32[*]>"), sequence])
    assert to_text(parse_graph(to_text(graph))) == to_text(graph)


# ---- ranking and choosing ----------------------------------------------------------------------------------------


def test_unique_entries_in_either_order() -> None:
    data = np.array([[1, 1], [0, 1], [2, 1], [0, 1]])
    values, first, inverse, counts = run("unique", data, axis=0)
    assert values.tolist() == [[0, 1], [1, 1], [2, 1]]
    assert [first.tolist(), inverse.tolist(), counts.tolist()] == [[1, 0, 2], [1, 0, 2, 0], [2, 1, 1]]
    values, first, inverse, counts = run("unique", np.array([2, 1, 1, 3, 4, 3]), sorted=0)
    assert values.tolist() == [2, 1, 3, 4]
    assert inverse.tolist() == [0, 1, 1, 2, 3, 2] and counts.tolist() == [1, 2, 2, 1]


def test_compress_takes_what_a_shorter_condition_says() -> None:
    data = np.arange(6).reshape(2, 3)
    assert run("compress", data, np.array([False, True]), axis=1).tolist() == [[1], [4]]
    assert run("compress", data, np.array([True, False, False, True])).tolist() == [0, 3]


def test_scalars_that_are_not_zero_have_no_coordinates() -> None:
    assert run("non_zero", np.array(3.0)).shape == (0, 1) and run("non_zero", np.array(0)).shape == (0, 0)


def test_boxes_that_overlap_a_better_one_are_dropped() -> None:
    boxes = np.array([[[0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6], [3, 3, 2, 2]]], np.float32)  # corners in any order
    scores = np.array([[[0.5, 0.9, 0.1, 0.8]]], np.float32)
    args = (boxes, scores, np.array([9]), np.array([0.5], np.float32))
    assert run("non_max_suppression", *args).tolist() == [[0, 0, 1], [0, 0, 3], [0, 0, 2]]
    assert run("non_max_suppression", *args, np.array([0.3], np.float32)).tolist() == [[0, 0, 1], [0, 0, 3]]
    assert run("non_max_suppression", boxes, scores).shape == (0, 3)
