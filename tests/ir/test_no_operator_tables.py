"""What an operator means stands in its class alone: no other layer tells operators apart one by one.

Outside of `ir/ops`, the frontends and the backends there is no dict with three or more operators as keys, no `match`
over three, and no chain of isinstance tests that asks one value for three.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import espalier
from espalier.ir.op import OPS, load_builtin_operators

PACKAGE = Path(espalier.__file__).parent
EXEMPT = ("ir/ops/", "frontends/", "backends/")
LIMIT = 3
TESTS = {"isinstance", "issubclass", "is_a", "defined_by"}

load_builtin_operators()
CLASSES = {cls.__name__ for cls in OPS.values() if cls.__module__.startswith("espalier.")}
ORDINARY = {*dir(builtins), *dir(operator), *dir(math), *dir(np)}
NAMES = {name for name in OPS if name not in ORDINARY}
"""Names of operators that are no names of ordinary functions."""


def operators(node: ast.AST | None, constants: dict[str, ast.expr]) -> set[str]:
    """The operators that an expression names: classes, or names in quotes; tuples, unions and constants are opened."""
    if isinstance(node, ast.Name):
        if node.id in constants:
            return operators(constants[node.id], {})
        return {node.id} & CLASSES
    if isinstance(node, ast.Attribute):
        return {node.attr} & CLASSES
    if isinstance(node, ast.Constant):
        return {node.value} & NAMES if isinstance(node.value, str) else set()
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return set().union(*(operators(entry, constants) for entry in node.elts))
    if isinstance(node, ast.BinOp):
        return operators(node.left, constants) | operators(node.right, constants)
    if isinstance(node, ast.Starred):
        return operators(node.value, constants)
    return set()


def asked(test: ast.expr, constants: dict[str, ast.expr]) -> Iterator[tuple[str, set[str]]]:
    """(subject, operators) for each question in a condition that tells operators apart."""
    for node in ast.walk(test):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in TESTS and node.args:
                method = isinstance(node.func, ast.Attribute)
                subject = node.func.value if isinstance(node.func, ast.Attribute) else node.args[0]
                found = [operators(each, constants) for each in node.args[not method :]]
                yield ast.dump(subject), set().union(*found)
        elif isinstance(node, ast.Compare):
            found = [operators(each, constants) for each in node.comparators]
            yield ast.dump(node.left), set().union(*found)


def chained(statement: ast.If) -> Iterator[ast.expr]:
    """The conditions of an if and its elifs."""
    yield statement.test
    if len(statement.orelse) == 1 and isinstance(statement.orelse[0], ast.If):
        yield from chained(statement.orelse[0])


def pattern_operators(pattern: ast.pattern, constants: dict[str, ast.expr]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(pattern):
        if isinstance(node, ast.MatchClass):
            found |= operators(node.cls, constants)
        elif isinstance(node, ast.MatchValue):
            found |= operators(node.value, constants)
    return found


def tables(source: str) -> list[str]:
    """The places of a module that tell three or more operators apart."""
    tree = ast.parse(source)
    constants = {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = set().union(*(operators(key, constants) for key in node.keys))
            if len(keys) >= LIMIT:
                found.append(f"line {node.lineno}: a dict over {sorted(keys)}")
        elif isinstance(node, ast.Match):
            keys = set().union(*(pattern_operators(case.pattern, constants) for case in node.cases))
            if len(keys) >= LIMIT:
                found.append(f"line {node.lineno}: a match over {sorted(keys)}")
        for _, body in ast.iter_fields(node):
            if isinstance(body, list):
                found += chains(body, constants)
        if isinstance(node, ast.BoolOp | ast.Call | ast.IfExp):
            for subject, keys in by_subject([node], constants).items():
                if len(keys) >= LIMIT:
                    found.append(f"line {node.lineno}: tests of {subject} for {sorted(keys)}")
    return sorted(set(found))


def by_subject(conditions: list[ast.expr], constants: dict[str, ast.expr]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for condition in conditions:
        for subject, names in asked(condition, constants):
            found.setdefault(subject, set()).update(names)
    return found


def chains(body: list[object], constants: dict[str, ast.expr]) -> Iterator[str]:
    """Chains of ifs in one block, with their elifs, that ask one subject for three operators or more."""
    ifs = [statement for statement in body if isinstance(statement, ast.If)]
    conditions = [condition for statement in ifs for condition in chained(statement)]
    for subject, names in by_subject(conditions, constants).items():
        if len(names) >= LIMIT:
            yield f"line {ifs[0].lineno}: a chain of tests of {subject} for {sorted(names)}"


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    return [path for path in found if not path.relative_to(PACKAGE).as_posix().startswith(EXEMPT)]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_tells_operators_apart(path: Path) -> None:
    found = tables(path.read_text(encoding="utf-8"))
    assert not found, "\n".join([f"{path.relative_to(PACKAGE)} keeps a table of operators:", *found])


@pytest.mark.parametrize(
    "source",
    [
        "{Conv: 1, ops.Relu: 2, MatMul: 3}",
        "{'conv': 1, 'softmax': 2, 'batch_norm': 3}",
        "match op:\n  case Conv():\n    a\n  case Relu() | Softmax():\n    b",
        "if isinstance(x, Conv):\n  a\nelif isinstance(x, Relu):\n  b\nelif isinstance(x, MatMul):\n  c",
        "def f(x):\n  if isinstance(x, Conv):\n    return 1\n  if isinstance(x, Relu):\n    return 2\n"
        "  if isinstance(x, MatMul):\n    return 3",
        "isinstance(x, (Conv, Relu, MatMul))",
        "isinstance(x, Conv | Relu | MatMul)",
        "node.is_a(Conv, Relu, MatMul)",
        "KINDS = (Conv, Relu, MatMul)\nisinstance(x, KINDS)",
        "isinstance(x, Conv) or isinstance(x, Relu) or isinstance(x, MatMul)",
        "if op.name == 'conv':\n  a\nelif op.name in ('relu', 'softmax'):\n  b",
    ],
)
def test_tables_are_found(source: str) -> None:
    assert tables(source)


@pytest.mark.parametrize(
    "source",
    [
        "{'add': 1, 'max': 2, 'min': 3, 'sqrt': 4, 'tile': 5}",
        "{Conv: 1, Relu: 2}",
        "a = norm.x.defined_by(Conv)\nb = a.x.defined_by(Relu)\nc = b.x.defined_by(MatMul)",
        "if isinstance(x, Conv):\n  a\nif isinstance(y, Relu):\n  b\nif isinstance(z, MatMul):\n  c",
    ],
)
def test_other_code_is_left_alone(source: str) -> None:
    assert not tables(source)
