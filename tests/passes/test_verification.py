"""What the manager shows of passes: replays by kind, comparison of what no replay shows, promised predicates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from espalier.errors import UnsupportedError, VerificationError
from espalier.ir import Builder, Graph, Node, Value
from espalier.ir.execute import Allowance
from espalier.ir.ops import Abs, Add, Conv, Mul, Neg, Relu, Slice
from espalier.ir.types import parse as type_of
from espalier.passes import BITEXACT, REASSOCIATES, PassManager, manager, parse_spec, replay, samples
from espalier.passes.base import PASSES, Context, Pass, Predicate, graph_pass, load_passes
from espalier.passes.manager import compare_models
from espalier.passes.rewrite import RULES, Replacement, Rewriter, rewrite
from espalier.passes.rules.matching import splat
from espalier.passes.samples import NoSample, sensitivity, try_graph


@pytest.fixture(autouse=True)
def own_passes() -> Iterator[None]:
    """Passes of a test go with it."""
    load_passes()
    passes, rules = set(PASSES), set(RULES)
    yield
    for registry, before in ((PASSES, passes), (RULES, rules)):
        for name in registry.keys() - before:
            del registry[name]


def products(*factors: float) -> Graph:
    graph = Graph()
    builder = Builder(graph)
    value = builder.input(type_of("f32[2, 300, 40]"), "x")
    for factor in factors:
        value = builder.relu(builder.mul(value, factor))
    graph.set_outputs([value], ["y"])
    return graph


def test_a_rule_that_is_wrong_for_one_number_is_caught() -> None:
    @rewrite(Mul, constant=True, semantics=BITEXACT)
    def drop_small_factors(node: Node, rewriter: Rewriter) -> Replacement:
        """x · c is x, supposedly for every c below 2."""
        rewriter.require(splat(node.operand(1)) < 2, "the factor is large")
        return node.operand(0)

    report = PassManager([parse_spec("drop_small_factors")]).run(products(1.0, 1.0))
    assert report.replayed == 1 and report.whole_model.startswith("well-formed")
    with pytest.raises(VerificationError, match="rewrite 2"):
        PassManager([parse_spec("drop_small_factors")]).run(products(1.0, 1.25))


def test_a_rule_that_is_wrong_for_negative_integers_is_caught() -> None:
    @rewrite(Abs, semantics=BITEXACT)
    def drop_absolutes(node: Node, rewriter: Rewriter) -> Replacement:
        """|x| is x, supposedly for every integer."""
        return node.operand(0)

    graph = Graph()
    builder = Builder(graph)
    graph.set_outputs([builder.abs(builder.input(type_of("i64[3, 4]"), "x"))], ["y"])
    with pytest.raises(VerificationError, match="rewrite 1"):
        PassManager([parse_spec("drop_absolutes")]).run(graph)


def test_a_rule_that_is_wrong_for_one_known_content_is_caught() -> None:
    @rewrite(Slice, semantics=BITEXACT)
    def drop_whole_slices(node: Node, rewriter: Rewriter) -> Replacement:
        """A slice as long as its axis is all of it, supposedly backwards, too."""
        rewriter.require(node.operand(0).type == node.results[0].type, "it is shorter")
        return node.operand(0)

    graph = Graph()
    builder = Builder(graph)
    x, other = builder.input(type_of("f32[5, 7]"), "x"), builder.input(type_of("f32[5, 9]"), "other")
    five = builder.slice(builder.shape(other), np.array([0]), np.array([1]), np.array([0]))

    def sliced(start: int, end: int, step: int) -> Value:
        ranges = [builder.sub(five, np.array([5 - number])) for number in (start, end, step)]
        return builder.slice(x, *ranges[:2], np.array([0]), ranges[2])

    graph.set_outputs([sliced(0, 5, 1), sliced(4, -6, -1)], ["all", "reversed"])
    with pytest.raises(VerificationError, match="rewrite 2"):
        PassManager([parse_spec("drop_whole_slices")]).run(graph)


@pytest.mark.parametrize("limit", [replay._KINDS_LIMIT, 0])
@pytest.mark.parametrize("made_of_itself", [[True], [True, True], [False], [True, False]])
def test_a_rule_that_rests_on_where_operands_come_from(
    limit: int, made_of_itself: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guess that a rule is right whatever the operands are is never taken for more, even when no more are kept."""
    monkeypatch.setattr(replay, "_KINDS_LIMIT", limit)
    monkeypatch.setattr(replay, "_PROVEN", set())
    monkeypatch.setattr(replay, "_SPECIAL", set())

    @rewrite(Mul, semantics=BITEXACT)
    def drop_second_factors(node: Node, rewriter: Rewriter) -> Replacement:
        """x · c is x, supposedly whatever c is; here, it is 1 if p is q."""
        return node.operand(0)

    graph = Graph()
    builder = Builder(graph)
    outputs = []
    for k, same in enumerate(made_of_itself):
        x, p, q = (builder.input(type_of("i64[3]"), f"{name}{k}") for name in "xpq")
        one = builder.sub(np.int64(1), builder.sub(p, p if same else q))
        outputs.append(builder.mul(x, one))
    graph.set_outputs(outputs, [f"y{k}" for k in range(len(outputs))])
    passes = PassManager([parse_spec("drop_second_factors")])
    if all(made_of_itself):
        assert passes.run(graph).rewrites == len(made_of_itself)
        return
    with pytest.raises(VerificationError, match=f"rewrite {len(made_of_itself)} "):
        passes.run(graph)


def test_a_rule_that_is_wrong_for_one_number_of_groups_is_caught() -> None:
    @rewrite(Conv, semantics=REASSOCIATES)
    def join_groups(node: Node, rewriter: Rewriter) -> Replacement:
        """A grouped convolution as a dense one, supposedly always of two groups."""
        rewriter.require(node.group > 1, "it is dense")
        w = node.operand(1).array
        half, channels = len(w) // 2, w.shape[1]
        dense = np.zeros((len(w), channels * node.group, *w.shape[2:]), w.dtype)
        dense[:half, :channels], dense[half:, -channels:] = w[:half], w[half:]
        return rewriter.conv(node.operand(0), dense, group=1)

    def grouped(channels: int, outputs: int, group: int) -> Graph:
        graph = Graph()
        builder = Builder(graph)
        x = builder.input(type_of(f"f32[1, {channels}, 10, 12]"), "x")
        w = np.random.default_rng(0).normal(size=(outputs, channels // group, 3, 3)).astype(np.float32)
        graph.set_outputs([builder.conv(x, w, group=group)], ["y"])
        return graph

    manager = PassManager([parse_spec("join_groups")])
    assert manager.run(grouped(14, 22, 2)).replayed == 1
    with pytest.raises(VerificationError, match="rewrite 1"):
        manager.run(grouped(20, 24, 4))


def test_what_a_pass_does_not_tell_is_compared() -> None:
    @graph_pass("negate_secretly")
    class NegateSecretly(Pass):
        """Puts a wrong operator into the graph, past every recorder."""

        def run(self, graph: Graph, context: Context) -> int:
            for node in graph:
                if node.is_a(Relu):
                    graph.set_op(node, Neg())
            return 1

    with pytest.raises(VerificationError, match="after the passes"):
        PassManager([parse_spec("negate_secretly")]).run(products(1.5))


def test_equal_nodes_are_merged_without_a_replay() -> None:
    graph = Graph()
    builder = Builder(graph)
    x = builder.input(type_of("f32[3, 4]"), "x")
    w, again = np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)
    graph.set_outputs([builder.add(builder.matmul(x, w), builder.matmul(x, again))], ["y"])
    report = PassManager([parse_spec("common_subexpressions")]).run(graph)
    assert len(graph) == 2 and not report.passes[0].untold
    assert report.replayed == 0 and report.whole_model.startswith("well-formed")


def test_rules_are_asked_only_where_operands_fit() -> None:
    asked: list[str] = []

    @rewrite(Relu, of=Mul, semantics=BITEXACT)
    def looks_at_products(node: Node, rewriter: Rewriter) -> Replacement:
        """Never matches."""
        asked.append(node.op.name)
        rewriter.why("on principle")

    graph = products(2.0)
    graph.set_outputs([Builder(graph).relu(graph.outputs[0])], ["y"])
    report = PassManager([parse_spec("looks_at_products")]).run(graph)
    assert asked == ["relu"]
    assert report.passes[0].reasons == {
        "looks_at_products: on principle": 1,
        "looks_at_products: no operand is made by mul": 1,
    }


def test_a_pass_is_held_to_what_it_establishes() -> None:
    tidy = Predicate("there are no products", lambda graph: not any(node.is_a(Mul) for node in graph))

    @graph_pass("claims_to_tidy", establishes=[tidy])
    class ClaimsToTidy(Pass):
        """Does nothing."""

        def run(self, graph: Graph, context: Context) -> int:
            return 0

    with pytest.raises(VerificationError, match="there are no products"):
        PassManager([parse_spec("claims_to_tidy")]).run(products(2.0))
    PassManager([parse_spec("claims_to_tidy")], verify="none").run(products(2.0))


def test_a_rule_that_is_not_bit_exact_at_minus_zero_is_caught() -> None:
    @rewrite(Add, constant=True, semantics=BITEXACT)
    def drop_zeros(node: Node, rewriter: Rewriter) -> Replacement:
        """x + 0 is x, but for −0."""
        return node.operand(0)

    graph = Graph()
    builder = Builder(graph)
    x = builder.input(type_of("f32[8]"), "x")
    graph.set_outputs([builder.add(x, np.zeros(8, np.float32))], ["y"])
    with pytest.raises(VerificationError, match="special inputs"):
        PassManager([parse_spec("drop_zeros")]).run(graph)


class Costly(Relu):
    """A stand-in for an operator whose reference takes longer than a check may."""

    def reference(self, xp, x):
        raise UnsupportedError("E411", "that takes too long")


def test_a_new_region_that_takes_too_long_is_not_replayed() -> None:
    @rewrite(Relu, semantics=BITEXACT)
    def relu_at_length(node: Node, rewriter: Rewriter) -> Replacement:
        """Right as far as anybody can tell in time."""
        rewriter.require(not isinstance(node.op, Costly), "done")
        return rewriter.node(Costly(), node.operands).results[0]

    report = PassManager([parse_spec("relu_at_length")]).run(products(1.25))
    assert report.replayed == 0
    assert report.unreplayed == {"relu_at_length": "the new region: that takes too long"}
    assert report.whole_model == "not compared: E411: that takes too long"


def test_a_new_region_that_fails_is_refused() -> None:
    class Failing(Relu):
        def reference(self, xp, x):
            raise ValueError("no")

    @rewrite(Relu, semantics=BITEXACT)
    def relu_that_fails(node: Node, rewriter: Rewriter) -> Replacement:
        """Wrong."""
        return rewriter.node(Failing(), node.operands).results[0]

    with pytest.raises(VerificationError, match="fails on special inputs: no"):
        PassManager([parse_spec("relu_that_fails")]).run(products(1.25))


def test_what_moves_the_outputs_is_asked_within_an_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    original, changed = products(1.0), products(1.01)
    with pytest.raises(VerificationError, match="E602"):
        compare_models(original, changed)
    trial = try_graph(original, 0)
    monkeypatch.setattr(samples, "Allowance", lambda: Allowance(seconds=-1.0))
    with pytest.raises(NoSample, match="E411: reference execution has taken -1 s"):
        sensitivity(original, trial.inputs, trial.outputs, 0, 0)
    monkeypatch.setattr(manager, "try_graph", lambda *_: trial)
    assert compare_models(original, changed).startswith("not compared: E411")
