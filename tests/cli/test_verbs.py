"""The command line as a contract: verbs, errors, JSON, what is written and what is not."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import espalier.cli
from espalier.cli.output import as_text
from espalier.errors import CATALOGUE
from espalier.passes import REASSOCIATES, approximates, rewrite
from espalier.passes.base import PASSES
from espalier.passes.rewrite import RULES
from tests.cli.commands import COMMANDS
from tests.documents import ROOT, blocks


def documented(verb: str) -> object:
    """The JSON that docs/command-line.md shows for a verb."""
    text = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    section = text.split(f"## {verb}\n")[1].split("\n## ")[0]
    return json.loads(re.search(r"```json\n(.*?)```", section, re.DOTALL)[1])


def same_schema(shown: object, found: object, where: str = "") -> None:
    """The same keys and kinds of values; of lists the first entries, of maps that are shown empty nothing."""
    numbers = isinstance(shown, int | float) and isinstance(found, int | float)
    assert numbers or type(shown) is type(found), f"{where}: {shown!r} is shown, {found!r} found"
    if isinstance(shown, dict) and shown:
        assert list(shown) == list(found), where
        for key in shown:
            same_schema(shown[key], found[key], f"{where}.{key}")
    elif isinstance(shown, list) and shown and found:
        same_schema(shown[0], found[0], f"{where}[0]")


def test_every_verb_prints_lines_or_one_documented_object(call, artifact: str) -> None:
    assert set(COMMANDS) == {name for name in espalier.cli.app if not name.startswith("-")}
    for verb, line in COMMANDS.items():
        code, text, said = call(line)
        assert (code, said) == (0, ""), line
        assert text.strip() and not text.startswith("{"), line
        code, text, said = call(f"{line} --json")
        assert (code, said) == (0, ""), line
        assert len(text.splitlines()) == 1
        found, shown = json.loads(text), documented(verb)
        if verb == "passes":
            found["pipelines"] = {key: found["pipelines"][key] for key in shown["pipelines"]}
            found["passes"] = [row for row in found["passes"] if row["name"] == shown["passes"][0]["name"]]
        same_schema(shown, found, verb)


def test_errors_are_documented_objects_too(call) -> None:
    code, text, said = call("inspect nothing.onnx --json")
    shown = json.loads(next(body for language, body in blocks("docs/command-line.md") if language == "json"))
    assert code == 2 and json.loads(text) == shown
    assert said.startswith("E101: ")


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("frobnicate", 2, "E201"),
        ("compile model.onnx", 2, "E201"),
        ("compile model.onnx -o out --verify loosely", 2, "E201"),
        ("compile model.onnx -o out --seed many", 2, "E201"),
        ("compile model.onnx -o out --stop-after -1 --backend onnx", 2, "E201"),
        ("compile model.onnx -o out --max-drop 1", 2, "E212"),
        ("compile model.onnx -o out --max-drop 200 --data labelled.npz", 2, "E201"),
        ("compile model.onnx -o out --budget latency=2ms", 2, "E211"),
        ("compile model.onnx -o out --device abacus", 2, "E202"),
        ("compile model.onnx -o out --backend abacus", 2, "E202"),
        ("compile model.onnx -o out --pipeline abacus", 2, "E202"),
        ("compile model.onnx -o out --pipeline missing.toml", 2, "E201"),
        ("compile model.onnx -o out --device missing.toml", 2, "E213"),
        ("compile model.onnx -o out --passes dead_cod", 2, "E202"),
        ("compile model.onnx -o out --passes dead_code:speed=3", 2, "E203"),
        ("compile model.onnx -o out --passes fold_constants:limit=many", 2, "E203"),
        ("compile model.onnx -o out --passes fold_constants:limit=1,limit=2", 2, "E203"),
        ("compile model.onnx -o out --backend onnx --print-after dead_cod", 2, "E202"),
        ("compile model.onnx -o out --data missing.npz --backend onnx", 2, "E206"),
        ("compile model.onnx -o out --data model.onnx --backend onnx", 2, "E206"),
        ("compile model.onnx -o out --data nobody:nothing --backend onnx", 2, "E206"),
        ("compile model.onnx -o model.onnx/out --backend onnx", 2, "E714"),
        ("run model.onnx --inputs labelled.npz -o missing/out.npz", 2, "E209"),
        ("run nothing --inputs inputs.npz -o out", 2, "E101"),
        ("bench", 2, "E201"),
        ("bench model.onnx --rounds 0", 2, "E201"),
        ("bench model.onnx --threads 0", 2, "E201"),
        ("verify model.onnx model.onnx --tolerance -1", 2, "E201"),
        ("passes dead_cod", 2, "E202"),
        ("explain E000", 2, "E202"),
    ],
)
def test_bad_usage_is_refused_by_code(call, line: str, code: int, error: str) -> None:
    exit_code, text, said = call(f"{line} --json")
    assert exit_code == code, said
    assert json.loads(text)["error"]["code"] == error, said
    assert said.startswith(f"{error}: ")
    assert not Path("out").exists()


def test_numbers_that_are_not_finite_are_null_in_json(call) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    code, text, _ = call("compile model.onnx -o out --backend onnx --passes prune:ratio=0.0 --data inputs.npz --json")
    assert code == 0
    json.loads(text, parse_constant=refuse)
    found = {
        "a": [math.inf, (-math.inf, 1.5)],
        "b": {"c": np.float32("nan"), math.inf: np.float32(2), "d": True, "e": 3},
    }
    wanted = {"a": [None, [None, 1.5]], "b": {"c": None, "inf": 2.0, "d": True, "e": 3}}
    assert json.loads(as_text(found), parse_constant=refuse) == wanted


def test_names_that_are_nearly_right_are_suggested(call) -> None:
    assert "Did you mean dead_code?" in call("compile model.onnx -o out --passes dead_cod")[2]
    assert "Did you mean dead_code?" in call("passes dead_cod")[2]


def test_every_code_is_explained(call) -> None:
    for code in CATALOGUE:
        found = json.loads(call(f"explain {code.lower()} --json")[1])
        assert found["code"] == code and found["advice"]


def test_the_first_rewrites_only(call) -> None:
    done = json.loads(call("compile model.onnx -o out --backend onnx --stop-after 1 --json")[1])
    assert done["report"]["rewrites"] == 1
    assert json.loads(call("compile model.onnx -o all --backend onnx --json")[1])["report"]["rewrites"] > 1


def test_graphs_are_printed_beside_the_result(call) -> None:
    code, text, said = call("compile model.onnx -o out --backend onnx --print-after fold_norms --json")
    assert code == 0 and json.loads(text)["artifact"] == "out"
    assert said.startswith("# after fold_norms\ngraph ") and " batch_norm(" not in said
    assert call("compile model.onnx -o out --backend onnx --print-after all")[2].count("# after ") > 5


def test_a_pipeline_from_a_file(call) -> None:
    Path("mine.toml").write_text('passes = ["fold_norms", "dead_code"]')
    done = json.loads(call("compile model.onnx -o out --backend onnx --pipeline mine.toml --json")[1])
    assert [row["spec"] for row in done["report"]["passes"]] == ["fold_norms", "dead_code"]


@pytest.fixture
def ruinous():
    """A pass that may approximate, and turns the scores around."""
    from espalier.ir.ops import Gemm

    @rewrite(Gemm, semantics=approximates("top-1", 1.0))
    def turn_around(node, rewriter):
        """Negate a gemm, once."""
        rewriter.require(node.alpha == 1.0, "done already")
        return rewriter.gemm(*node.operands, alpha=-2.0)

    yield "turn_around"
    del PASSES["turn_around"], RULES["turn_around"]


def test_the_accuracy_gate(call, ruinous: str) -> None:
    line = f"compile model.onnx -o out --backend onnx --passes {ruinous} --verify none"
    code, text, said = call(f"{line} --data inputs.npz --max-drop 10 --json")
    assert code == 4 and json.loads(text)["error"]["code"] == "E604", said
    assert "agreement went from 1.0000" in said and not Path("out").exists()
    code, text, _ = call(f"{line} --data inputs.npz --max-drop 100 --json")
    assert code == 0 and json.loads(text)["score"]["drop"] > 10


def test_a_model_that_changed_is_not_written(call, ruinous: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"compile model.onnx -o out --backend onnx --passes {ruinous} --json"
    code, text, _ = call(line)  # it said that it may change the outputs
    found = json.loads(text)
    assert code == 0 and "changes the outputs" in found["report"]["whole_model"]
    assert found["agreement"].startswith("agrees with the model after the last pass that approximates")
    shutil.rmtree("out")
    monkeypatch.setattr(PASSES[ruinous], "semantics", REASSOCIATES)
    monkeypatch.setitem(RULES, ruinous, dataclasses.replace(RULES[ruinous], semantics=REASSOCIATES))
    code, _, said = call(line)
    assert code == 4 and re.match("E60[23]: ", said) and not Path("out").exists()


def test_a_failed_pass_leaves_the_graph_behind(call, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.errors import VerificationError
    from espalier.passes.rules.cleanup import DeadCode

    def fail(self: object, graph: object, context: object) -> int:
        raise VerificationError("E606", "it went wrong")

    monkeypatch.setattr(DeadCode, "run", fail)
    code, _, said = call("compile model.onnx -o out --backend onnx --dump dumps")
    assert code == 4 and "failed-dead_code.txt" in said
    assert "conv" in Path("dumps/failed-dead_code.txt").read_text(encoding="utf-8")
