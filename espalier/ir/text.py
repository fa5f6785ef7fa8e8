"""The text form: a graph as lines that a person can read, that never differ between runs, and that read back.

    graph "main" {
      input %0 "x": f32[n, 3]
      %1 = constant "w": f32[4, 3] sha256:9f2c…
      %2 = gemm(%0, %1, _) {alpha=1.0, transB=1} : f32[n, 4] "y" from ("fc1") lines ("model.py:7") by ("fold")
      output %2 "y"
    }

Small constants are written inline as nested tuples, large ones by their hash; `parse` then needs a mapping from hashes
to constants.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from espalier.errors import InputError
from espalier.ir import constants, elements, types
from espalier.ir.constants import Constant
from espalier.ir.dims import quoted
from espalier.ir.elements import Element
from espalier.ir.graph import Graph, Location, Node, Value, constant_value
from espalier.ir.inference import infer_node
from espalier.ir.op import lookup

INLINE = 16
"""Constants of at most this many elements are written out."""


# ---- printing ------------------------------------------------------------------------------------------------


def to_text(graph: Graph, *, locations: bool = True) -> str:
    """The text form of a graph and its regions."""
    return "\n".join(_Printer(locations).graph(graph, "")) + "\n"


class _Printer:
    def __init__(self, locations: bool) -> None:
        self.locations = locations
        self.numbers: dict[Value, int] = {}

    def graph(self, graph: Graph, indent: str) -> list[str]:
        inner = indent + "  "
        lines = [f"{indent}graph {quoted(graph.name)} {{"]
        lines += [f"{inner}input {self.define(v)} {quoted(v.name)}: {v.type}" for v in graph.inputs]
        for node in graph:
            for operand in node.operands:
                if operand is not None:
                    lines += self.constant(operand, inner)
            lines += self.node(node, inner)
        for output in graph.outputs:
            lines += self.constant(output, inner)
        names = graph.output_names
        for output, name in zip(graph.outputs, names, strict=True):
            lines.append(f"{inner}output {self.use(output)} {quoted(name)}")
        return [*lines, f"{indent}}}"]

    def define(self, value: Value) -> str:
        return f"%{self.numbers.setdefault(value, len(self.numbers))}"

    def use(self, value: Value | None) -> str:
        return "_" if value is None else f"%{self.numbers[value]}"

    def constant(self, value: Value, indent: str) -> list[str]:
        if value.constant is None or value in self.numbers:
            return []
        held = value.constant
        body = literal(held.array.tolist()) if _inline(held) else f"sha256:{held.digest}"
        return [f"{indent}{self.define(value)} = constant {quoted(value.name)}: {value.type} {body}"]

    def node(self, node: Node, indent: str) -> list[str]:
        operands = ", ".join(self.use(operand) for operand in node.operands)
        attributes = ", ".join(f"{key}={literal(value)}" for key, value in node.op.attributes.items())
        results = ", ".join(self.define(result) for result in node.results)
        typed = ", ".join(f"{result.type} {quoted(result.name)}" for result in node.results)
        line = f"{indent}{results} = {node.op.name}({operands}) {{{attributes}}} : {typed}"
        if self.locations:
            for word, entries in zip(("from", "lines", "by"), node.location, strict=True):
                if entries:
                    line += f" {word} ({', '.join(quoted(entry) for entry in entries)})"
        return [line, *(text for region in node.regions for text in self.graph(region, indent + "  "))]


def _inline(held: Constant) -> bool:
    return held.size <= INLINE and not (held.element.is_complex)


def literal(value: Any) -> str:
    """An attribute or a small constant as text that `parse_literal` reads back."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Element):
        return f"element({quoted(value.name)})"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bytes):
        return f"b{quoted(value.decode('latin-1'))}"
    if value is None or isinstance(value, bool | int):
        return repr(value)
    number = float(value)
    return repr(number) if math.isfinite(number) else f"float({quoted(str(number))})"


# ---- parsing -------------------------------------------------------------------------------------------------


class TextError(InputError):
    """A line that is not of the text form; says which."""

    def __init__(self, message: str) -> None:
        super().__init__("E301", message)


def parse(text: str, weights: Mapping[str, Constant] | None = None) -> Graph:
    """A graph from its text form. Large constants are looked up in `weights` by SHA-256. Raises TextError."""
    reader = _Reader([line.strip() for line in text.splitlines() if line.strip()], weights or {})
    try:
        return reader.graph()
    except (ValueError, TypeError, SyntaxError, OverflowError) as error:  # operands, literals or shapes that don't fit
        raise reader.error(str(error)) from None


_STRING = r'"(?:[^"\\]|\\.)*"'
_NODE = re.compile(r"^(?P<results>(?:%\d+(?:, )?)*) = (?P<name>[\w.]+)\((?P<operands>[^()]*)\) \{")


class _Reader:
    def __init__(self, lines: Sequence[str], weights: Mapping[str, Constant]) -> None:
        self.lines, self.weights, self.at = lines, weights, 0
        self.values: dict[str, Value] = {}

    def graph(self) -> Graph:
        match = re.fullmatch(rf"graph ({_STRING}) \{{", self._next())
        if not match:
            raise self.error("a graph begins with 'graph \"name\" {'")
        graph, outputs, names = Graph(ast.literal_eval(match[1])), [], []
        while (line := self._next()) != "}":
            if match := re.fullmatch(rf"input (%\d+) ({_STRING}): (.*)", line):
                self.values[match[1]] = graph.add_input(self._type(match[3]), ast.literal_eval(match[2]))
            elif match := re.fullmatch(rf"output (%\d+) ({_STRING})", line):
                outputs.append(self._value(match[1]))
                names.append(ast.literal_eval(match[2]))
            elif match := re.fullmatch(rf"(%\d+) = constant ({_STRING}): ([^\]]*\]) (.*)", line):
                self.values[match[1]] = self._constant(ast.literal_eval(match[2]), match[3], match[4])
            else:
                self._node(graph, line)
        graph.set_outputs([value for value in outputs if value is not None], names)
        return graph

    def _next(self) -> str:
        if self.at == len(self.lines):
            raise TextError("the text ends inside a graph")
        self.at += 1
        return self.lines[self.at - 1]

    def error(self, message: str) -> TextError:
        """About the line that was read last."""
        return TextError(f"line {self.at}: {message}: {self.lines[self.at - 1][:120]!r}")

    def _type(self, text: str) -> types.Type:
        try:
            return types.parse(text)
        except ValueError as error:
            raise self.error(str(error)) from None

    def _value(self, text: str) -> Value | None:
        if text == "_":
            return None
        if text not in self.values:
            raise self.error(f"{text} is not defined above")
        return self.values[text]

    def _constant(self, name: str, type_text: str, body: str) -> Value:
        type = self._type(type_text)
        if not isinstance(type, types.TensorType) or not type.is_static:
            raise self.error("a constant has a static tensor type")
        shape = tuple(int(str(extent)) for extent in type.shape or ())
        if body.startswith("sha256:"):
            if body[7:] not in self.weights:
                raise self.error("no weight with this hash was given")
            return constant_value(self.weights[body[7:]], name=name)
        held = np.array(parse_literal(body), dtype=type.element.dtype).reshape(shape)
        return constant_value(constants.constant(held, type.element), name=name)

    def _node(self, graph: Graph, line: str) -> None:
        match = _NODE.match(line)
        if not match:
            raise self.error("not a line of a graph")
        end = _closing(line, match.end() - 1)
        attributes = {}
        for item in types.split_outside(line[match.end() : end]):
            key, _, value = item.partition("=")
            attributes[key] = parse_literal(value)
        try:
            op = lookup(match["name"])(**attributes)
        except (KeyError, TypeError) as error:
            raise self.error(str(error)) from None
        rest = line[end + 1 :].strip().removeprefix(":")
        location, typed = self._location(rest)
        operands = [self._value(text) for text in types.split_outside(match["operands"])]
        declared = [re.fullmatch(rf"(.*) ({_STRING})", part) for part in types.split_outside(typed)]
        if not all(declared):
            raise self.error("results need types and names")
        regions = [self.graph() for _ in op.bodies]
        node = Node(op, operands, [self._type(m[1]) for m in declared if m], regions, location)
        given = [result.type for result in node.results]
        infer_node(graph, node)  # for the contents; the types stay as written
        for result, type, m in zip(node.results, given, declared, strict=True):
            result.type, result.name = type, ast.literal_eval(m[2]) if m else ""
        graph.insert(node)
        for text, result in zip(types.split_outside(match["results"]), node.results, strict=True):
            self.values[text] = result

    def _location(self, text: str) -> tuple[Location, str]:
        fields: list[tuple[str, ...]] = []
        for word in ("by", "lines", "from"):
            match = re.search(rf" {word} (\((?:{_STRING}(?:, )?)+\))$", text)
            fields.insert(0, tuple(ast.literal_eval(f"[{match[1][1:-1]}]")) if match else ())
            text = text[: match.start()] if match else text
        return Location(*fields), text


def _closing(line: str, opening: int) -> int:
    """The place of the brace that closes the one at `opening`, past quoted text. Raises ValueError."""
    quoted, position = False, opening
    while position < len(line):
        char = line[position]
        if quoted:
            position += char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char == "}":
            return position
        position += 1
    raise ValueError("a brace is not closed")


def parse_literal(text: str) -> Any:
    """What `literal` wrote. Raises ValueError."""
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(f"not a literal: {text[:120]!r}") from None


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.Tuple):
        return tuple(_evaluate(entry) for entry in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
        argument = ast.literal_eval(node.args[0])
        return elements.parse(argument) if node.func.id == "element" else float(argument)
    return ast.literal_eval(node)
