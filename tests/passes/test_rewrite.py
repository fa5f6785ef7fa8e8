"""The rewrite driver: matching, replacement, provenance, reasons, promises."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from espalier.errors import InputError, InternalError, VerificationError
from espalier.ir import Builder, Graph, Node, constant_value, to_text, verify
from espalier.ir.clone import clone
from espalier.ir.execute import execute
from espalier.ir.graph import Location
from espalier.ir.ops import If, Neg, Relu, Sub
from espalier.ir.types import parse as type_of
from espalier.passes import BITEXACT, REASSOCIATES, PassManager, parse_spec
from espalier.passes.base import PASSES, Context
from espalier.passes.rewrite import RULES, Replacement, Rewriter, group, rewrite


def chain(length: int) -> Graph:
    """neg(neg(… x)): an even chain is x."""
    graph = Graph()
    builder = Builder(graph)
    value = builder.input(type_of("f32[n, 4]"), "x")
    for k in range(length):
        builder.location = Location(names=(f"neg{k}",))
        value = builder.neg(value)
    graph.set_outputs([builder.relu(value)], ["y"])
    return graph


@pytest.fixture
def wrong_rule():
    """A rewrite that breaks its promise; taken out of the registry again."""

    @rewrite(Relu, semantics=BITEXACT)
    def wrong_relu(node: Node, rewriter: Rewriter) -> Replacement:
        """relu(x) is −x, supposedly."""
        return rewriter.neg(node.operand(0))

    yield
    del PASSES["wrong_relu"], RULES["wrong_relu"]


def test_cancels_to_a_fixpoint_and_keeps_the_function():
    graph = chain(6)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    before = execute(graph, [x])
    report = PassManager([parse_spec("drop_double_negation")]).run(graph)
    assert [node.op.name for node in graph] == ["relu"]
    assert report.rewrites == 3 and report.replayed >= 1
    np.testing.assert_array_equal(before[0], execute(graph, [x])[0])


def test_stop_after_does_exactly_that_many():
    graph = chain(8)
    report = PassManager([parse_spec("drop_double_negation")], stop_after=2).run(graph)
    assert report.rewrites == 2 and len(graph) == 5


def test_a_wrong_rewrite_is_caught_named_and_numbered(wrong_rule):
    graph = chain(2)
    with pytest.raises(VerificationError) as caught:
        PassManager([parse_spec("wrong_relu")]).run(graph)
    assert "wrong_relu" in caught.value.message and "rewrite 1" in caught.value.message
    assert caught.value.code == "E602"


def test_a_wrong_rewrite_passes_unseen_without_verification(wrong_rule):
    PassManager([parse_spec("wrong_relu")], verify="none").run(chain(1))


def test_a_rewrite_to_another_type_is_refused():
    graph = chain(1)

    @rewrite(Neg, semantics=BITEXACT)
    def changes_shape(node: Node, rewriter: Rewriter) -> Replacement:
        """Changes the shape."""
        return rewriter.reduce_sum(node.operand(0), np.array([1]), keepdims=0)

    try:
        with pytest.raises(InternalError, match="changes_shape"):
            parse_spec("changes_shape").run(graph, Context())
    finally:
        del PASSES["changes_shape"], RULES["changes_shape"]


def test_near_misses_say_why():
    graph = chain(1)
    report = PassManager([parse_spec("drop_double_negation")]).run(graph)
    assert report.passes[0].rewrites == 0
    assert report.passes[0].reasons == {"drop_double_negation: no operand is made by neg": 1}


def test_provenance_is_merged():
    graph = Graph()
    builder = Builder(graph, location=Location(names=("first",)))
    x = builder.input(type_of("f32[2, 3]"), "x")
    product = builder.matmul(x, np.ones((3, 4), np.float32))
    builder.location = Location(names=("second",))
    graph.set_outputs([builder.add(product, np.ones(4, np.float32))])
    PassManager([parse_spec("matmul_bias_to_gemm")]).run(graph)
    (gemm,) = graph.nodes
    assert set(gemm.location.names) == {"first", "second"}
    assert "matmul_bias_to_gemm" in gemm.location.passes


def test_a_shared_producer_stays():
    graph = Graph()
    builder = Builder(graph)
    x = builder.input(type_of("f32[3]"), "x")
    inner = builder.neg(x)
    graph.set_outputs([builder.neg(inner), inner], ["same", "negated"])
    PassManager([parse_spec("drop_double_negation")]).run(graph)
    verify(graph)
    a, b = execute(graph, [np.array([1, -2, 3], np.float32)])
    np.testing.assert_array_equal(a, -b)
    assert len(graph) == 1 and graph.output_names == ["same", "negated"]


def test_reassociation_is_held_to_rounding(monkeypatch):
    @rewrite(Sub, semantics=REASSOCIATES)
    def slightly_off(node: Node, rewriter: Rewriter) -> Replacement:
        """a − b, off by a thousandth."""
        return rewriter.mul(rewriter.sub(*node.operands), 1.001)

    graph = Graph()
    builder = Builder(graph)
    x, y = builder.input(type_of("f32[5]"), "x"), builder.input(type_of("f32[5]"), "y")
    graph.set_outputs([builder.sub(x, y)])
    try:
        with pytest.raises(VerificationError, match="is off by"):
            PassManager([parse_spec("slightly_off")]).run(graph)
    finally:
        del PASSES["slightly_off"], RULES["slightly_off"]


def test_rewrites_do_not_depend_on_hash_order():
    texts = set()
    for _ in range(3):
        graph = chain(5)
        PassManager([parse_spec("drop_double_negation")]).run(graph)
        texts.add(to_text(graph))
    assert len(texts) == 1


def test_tied_constant_stays_one():
    graph = Graph()
    builder = Builder(graph)
    x = builder.input(type_of("f32[2, 4]"), "x")
    weight = constant_value(np.eye(4, dtype=np.float32), name="w")
    graph.set_outputs([builder.matmul(builder.matmul(x, weight), weight)])
    PassManager([parse_spec("fold_constants"), parse_spec("common_subexpressions")]).run(graph)
    assert graph.constants() == [weight]


def test_a_disagreement_of_the_whole_model_is_bisected(monkeypatch, wrong_rule):
    """Replays switched off, only the whole-model comparison can see the wrong rewrite; it finds its number."""
    monkeypatch.setattr("espalier.passes.manager.Replayer.__call__", lambda self, change: None)
    graph = chain(4)
    with pytest.raises(VerificationError) as caught:
        PassManager([parse_spec("drop_double_negation"), parse_spec("wrong_relu")]).run(graph)
    assert "number 3" in str(caught.value.hint)


def test_nodes_of_an_inlined_branch_keep_their_place():
    region = Graph("branch")
    inner = Builder(region, location=Location(names=("inner",), lines=("model.py:3",)))
    region.set_outputs([inner.relu(region.add_input(type_of("f32[3]"), "x"))])
    graph = Graph()
    builder = Builder(graph, location=Location(names=("choice",)))
    x = builder.input(type_of("f32[3]"), "x")
    condition = constant_value(np.array(True))
    graph.set_outputs(builder.node(If(), [condition, x], results=1, regions=[region, clone(region)]).results)
    PassManager([parse_spec("inline_regions")]).run(graph)
    (relu,) = graph.nodes
    assert relu.location.names == ("inner", "choice") and relu.location.lines == ("model.py:3",)
    assert "inline_decided_if" in relu.location.passes


@pytest.fixture
def _names():
    before, rules = dict(PASSES), dict(RULES)
    yield
    for known, kept in ((PASSES, before), (RULES, rules)):
        known.clear()
        known.update(kept)


def define(name: str, source: str, **globals: object) -> None:
    """Run code as a module of that name."""
    spec = importlib.util.spec_from_loader(name, None)
    given = {"__name__": name, "__spec__": spec, "group": group, "rewrite": rewrite, "Neg": Neg, **globals}
    exec(compile(source, f"{name}.py", "exec"), given)


FUNCTION = "@rewrite(Neg)\ndef mine(node, rewriter):\n    return None\n"


@pytest.mark.usefixtures("_names")
def test_a_name_belongs_to_one_pass():
    kept, rule = PASSES["simplify"], RULES["drop_double_negation"]
    with pytest.raises(InputError, match=r"espalier\.passes\.rules\.algebra .* and plugin"):
        define("plugin", 'group("simplify", [rule], "another")', rule=rule)
    with pytest.raises(InputError, match="two passes are called 'drop_double_negation'"):
        define("plugin", FUNCTION.replace("mine", "drop_double_negation"))
    assert PASSES["simplify"] is kept and RULES["drop_double_negation"] is rule
    with pytest.raises(InputError, match="two passes are called 'mine'"):
        define("plugin", FUNCTION + FUNCTION)


@pytest.mark.usefixtures("_names")
def test_a_module_may_be_loaded_again():
    define("plugin", FUNCTION + 'group("ours", [mine], "ours")')
    first = PASSES["ours"]
    define("plugin", "\n\n" + FUNCTION + 'group("ours", [mine], "ours")')  # edited meanwhile
    assert PASSES["ours"] is not first and PASSES["ours"].__module__ == "plugin"
    algebra = importlib.import_module("espalier.passes.rules.algebra")
    importlib.reload(algebra)
    assert PASSES["simplify"] is algebra.simplify


def test_an_amended_node_is_what_a_new_one_would_be():
    """Folding a norm in place, and by a node made for comparison, give the same names, order, places and numbers."""
    rng = np.random.default_rng(0)
    graph = Graph()
    b = Builder(graph)
    x = b.input(type_of("f32[1, 3, 8, 8]"), "x")
    for k in range(3):
        b.location = Location((f"layer{k}",), (f"model.py:{k}",))
        weight, parts = rng.normal(size=(3, 3, 3, 3)), rng.uniform(0.5, 1, (4, 3))
        y = b.conv(x, weight.astype(np.float32), pads=(1, 1, 1, 1))
        y.name = f"conv{k}"
        b.location = Location((f"norm{k}",), (f"model.py:{k + 10}",))
        z = b.batch_norm(y, *parts.astype(np.float32), results=1)
        z.name = f"norm{k}"
        x = b.add(b.relu(z), x)
    graph.set_outputs([x], ["y"])
    data = [rng.normal(size=(1, 3, 8, 8)).astype(np.float32)]
    wanted = execute(graph, data)[0]
    texts, places = [], []
    for level in ("none", "rewrites"):
        copy = clone(graph)
        PassManager([parse_spec("fold_norms")], level).run(copy)
        verify(copy, "structure")
        assert not [node for node in copy if node.op.name == "batch_norm"]
        np.testing.assert_allclose(execute(copy, data)[0], wanted, rtol=1e-4, atol=1e-5)
        texts.append(to_text(copy))
        places.append([node.location for node in copy])
    assert texts[0] == texts[1]
    assert places[0] == places[1]
    assert set(places[0][0].names) == {"norm0", "layer0"}


def test_nodes_know_their_parts_by_name_and_only_those():
    graph = Graph()
    b = Builder(graph)
    y = b.relu(b.input(type_of("f32[2]"), "x"))
    node = y.producer
    assert node.x is graph.inputs[0]
    with pytest.raises(AttributeError, match="relu has no operand, result, attribute or region 'w'"):
        _ = node.w
    with pytest.raises(AttributeError):
        _ = node.no_operator_has_this
