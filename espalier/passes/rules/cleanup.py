"""Dead code, common subexpressions, and folding of what is known at compile time."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from espalier.errors import EspalierError
from espalier.ir import Builder, Graph, Node, TensorType, Value, constant_value
from espalier.ir.dims import Atom, Dim, Dimension, lower_bound, symbol
from espalier.ir.ops.elementwise import Identity
from espalier.ir.ops.movement import Transpose
from espalier.ir.ops.shapes import Shape, Size
from espalier.ir.xp import numpy as xp
from espalier.passes.base import Change, Context, Pass, graph_pass
from espalier.passes.inference import propagate, reinfer

FOLD_LIMIT = 1 << 26
"""Largest constant, in bytes, that folding may make where it is larger than what it is made of."""


@graph_pass("dead_code")
class DeadCode(Pass):
    """Remove nodes whose results nobody uses."""

    def run(self, graph: Graph, context: Context) -> int:
        count = 0
        for each in graph.all_graphs():
            for node in reversed(each):
                if not any(result.uses for result in node.results) and context.may_rewrite():
                    if context.recorder is not None:
                        context.recorder(Change(self.name, self.semantics, context.rewrites, [], [], []))
                    each.erase(node)
                    count += 1
        return count


@graph_pass("common_subexpressions")
class CommonSubexpressions(Pass):
    """Let equal nodes on equal operands, and constants of equal content, be one."""

    def run(self, graph: Graph, context: Context) -> int:
        constants = _Constants()
        return sum(self._merge(each, constants, context) for each in graph.all_graphs())

    def _merge(self, graph: Graph, constants: _Constants, context: Context) -> int:
        rough: dict[Any, Node | None] = {}
        """By operator and operands but constants: the only node so far, or None once there were several."""
        seen: dict[Any, Node] = {}
        count = 0
        for node in graph:
            op = node.op
            if node.regions or not op.deterministic:
                continue
            key: Any = (op, *[None if v is None or v.constant is not None else v for v in node.operands])
            if op.commutative:
                key = (op, frozenset(key[1:]))
            alone = rough.setdefault(key, node)
            if alone is node:
                continue
            if alone is not None:
                rough[key] = None
                seen.setdefault(_node_key(alone, constants), alone)
            first = seen.setdefault(_node_key(node, constants), node)
            if first is node or any(a.type != b.type for a, b in zip(first.results, node.results, strict=True)):
                continue
            if not context.may_rewrite():
                break
            count += 1
            if context.recorder is not None:
                told = Change(self.name, self.semantics, context.rewrites, node.results, first.results, [first])
                context.recorder(told)
            first.location = first.location.merge(node.location).touched(self.name)
            for old, new in zip(node.results, first.results, strict=True):
                graph.replace(old, new)
            graph.erase(node)
        return count


def _node_key(node: Node, constants: _Constants) -> Any:
    """What equal nodes share."""
    operands = [constants.key(v) if v is not None and v.constant is not None else id(v) for v in node.operands]
    return (node.op, len(node.results), *(sorted(operands) if node.op.commutative else operands))


class _Constants:
    """A key that constants of equal content share. Contents are hashed only where two constants may be equal."""

    def __init__(self) -> None:
        self.keys: dict[int, Any] = {}
        self.first: dict[Any, Value] = {}
        self.held: list[Value] = []  # keeps ids valid

    def key(self, value: Value) -> Any:
        found = self.keys.get(id(value))
        if found is None and value.constant is not None:
            shape = (value.constant.element.name, value.constant.shape, _fingerprint(value))
            other = self.first.setdefault(shape, value)
            held = other.constant
            same = held is value.constant or (held is not None and held.digest == value.constant.digest)
            found = id(other) if same else id(value)
            self.keys[id(value)] = found
            self.held.append(value)
        return found


def _fingerprint(value: Value) -> bytes:
    """A few elements, to tell different constants apart without reading them."""
    array = value.array
    if array.dtype == object:
        return repr(array.tolist()).encode()
    flat = array[tuple(slice(0, 4) for _ in array.shape)] if array.size > 64 else array
    return np.ascontiguousarray(flat).tobytes()


@graph_pass("fold_constants")
class FoldConstants(Pass):
    """Compute at compile time what depends on constants only, and shape contents that are known numbers."""

    limit: int = FOLD_LIMIT

    def run(self, graph: Graph, context: Context) -> int:
        count = 0
        for each in graph.all_graphs():
            for node in each:
                first = node.operands[0] if node.operands else None
                if first is not None and first.constant is None and all(r.content is None for r in node.results):
                    continue  # as most are
                results = self._fold(node, context)
                if results is None:
                    continue
                if not context.may_rewrite():
                    return count
                count += 1
                if context.recorder is not None:
                    change = Change(self.name, self.semantics, context.rewrites, node.results, results, [])
                    context.recorder(change)
                for old, new in zip(node.results, results, strict=False):
                    learned = old.type != new.type or (old.content is None and new.known is not None)
                    each.replace(old, new)
                    if learned:
                        propagate(each, new)
                each.erase(node)
        return count

    def _fold(self, node: Node, context: Context) -> list[Value] | None:
        results = node.results
        first = node.operands[0] if node.operands else None
        if first is not None and first.constant is not None:  # what is tied stays tied
            if isinstance(node.op, Identity):
                return [first]
            if isinstance(node.op, Transpose):
                held = first.constant
                return [constant_value(held.transpose(node.op.permutation(len(held.shape))), name=results[0].name)]
        if len(results) == 1 and results[0].content is not None and node.operands:
            known = _numbers(results[0])
            if known is not None:
                return [known]
        for operand in node.operands:
            if operand is not None and operand.constant is None:
                return None
        if node.regions or not node.op.deterministic:
            return None
        if node.op.dequantizes or not all(isinstance(result.type, TensorType) for result in node.results):
            return None
        sources = sum(v.constant.nbytes for v in node.inputs if v.constant is not None)
        most = max(self.limit, 2 * sources)
        if sum(_bytes(result) for result in node.results) > most:
            context.reasons["the result would be too large"] += 1
            return None
        try:
            with np.errstate(all="ignore"):
                found = node.op.reference(xp, *(None if v is None else v.array for v in node.operands))
        except (
            EspalierError,
            ValueError,
            ArithmeticError,
            IndexError,
            TypeError,
            MemoryError,
            NotImplementedError,
        ) as error:
            context.reasons[f"{node.op.name} on constants fails: {error}"[:200]] += 1
            return None
        arrays = [np.asarray(array) for array in (found if isinstance(found, tuple) else (found,))][: len(node.results)]
        if sum(array.nbytes for array in arrays) > most:
            context.reasons["the result would be too large"] += 1
            return None
        arrays = [np.ascontiguousarray(array) if array.ndim else array for array in arrays]
        for array in arrays:
            if array.flags.owndata and type(node.op).__module__.startswith("espalier."):
                array.flags.writeable = False  # our operators keep no arrays: a constant need not copy it
        return [
            constant_value(array, result.element, result.name)
            for array, result in zip(arrays, node.results, strict=True)
        ]


def _bytes(result: Value) -> int:
    """How many bytes a result takes in memory, as far as its type tells."""
    type = result.type
    if not isinstance(type, TensorType) or not type.is_static or not isinstance(type.size, int):
        return 0
    return type.size * type.element.storage.dtype.itemsize


def _numbers(result: Value) -> Value | None:
    """The content as a constant, if it is numbers only."""
    content = result.content
    assert content is not None
    if content.dtype != result.element.dtype:
        numbers = content.reshape(-1).tolist()
        if Dim in set(map(type, numbers)):
            return None
        content = np.array(numbers, result.element.dtype).reshape(content.shape)
    return constant_value(content, result.element, result.name)


@graph_pass("shapes_of_inputs")
class ShapesOfInputs(Pass):
    """Read extents that only run time knows from the model's inputs, where they were read from tensors inside.

    Exporters ask whatever is at hand for the batch; asking a tensor for its shape ties all of its extents down.

    Attributes:
        expressions: compute anew, too, what extents inside are by those of the inputs, such as half of one.
    """

    expressions: bool = False

    def run(self, graph: Graph, context: Context) -> int:
        known: dict[Dimension, tuple[Value, int]] = {}
        for value in sorted(graph.inputs, key=lambda each: not each.uses):  # one that is used anyway, if possible
            for axis, extent in enumerate(value.shape or ()):
                if isinstance(extent, Dim):
                    known.setdefault(extent, (value, axis))
        read: dict[Dimension, Value] = {}
        asked = _asked(graph, known.keys(), self.expressions)
        for done, (value, wanted) in enumerate(asked):
            if not context.may_rewrite():
                return done
            self._ask(graph, value, wanted, known, read, context)
        return len(asked)

    def _ask(
        self,
        graph: Graph,
        value: Value,
        wanted: Sequence[Dimension],
        known: Mapping[Dimension, tuple[Value, int]],
        read: dict[Dimension, Value],
        context: Context,
    ) -> None:
        """Put numbers, and extents that are read from the inputs, in the place of a value."""
        node = value.producer
        assert node is not None
        build = Builder(graph, node, node.location.touched(self.name))
        parts = [_extent(build, extent, known, read) for extent in wanted]
        steps = [*parts, parts[0] if len(parts) == 1 else build.concat(*parts, axis=0)]
        if not value.rank:
            steps.append(build.reshape(steps[-1], np.zeros(0, np.int64)))
        if steps[-1].element != value.element:
            steps.append(build.cast(steps[-1], to=value.element))
        if context.recorder is not None:
            context.recorder(Change(self.name, self.semantics, context.rewrites, [value], [steps[-1]], _makers(steps)))
        graph.replace(value, steps[-1])


def _makers(values: Iterable[Value], found: dict[Node, None] | None = None) -> list[Node]:
    """The nodes that compute values from inputs of the model, each after those that it reads."""
    found = {} if found is None else found
    for value in values:
        if value.producer is not None and value.producer not in found:
            _makers(value.producer.inputs, found)
            found[value.producer] = None
    return [*found]


def _extent(
    build: Builder, extent: Dimension, known: Mapping[Dimension, tuple[Value, int]], read: dict[Dimension, Value]
) -> Value:
    """An extent as i64[1], computed from those of inputs."""
    if not isinstance(extent, Dim):
        return constant_value(np.array([extent], np.int64))
    if extent not in read and extent in known:
        of, axis = known[extent]
        read[extent] = build.shape(of, start=axis, end=axis + 1)
    if extent not in read:
        total: Value | None = None
        for monomial, coefficient in extent.terms:
            factors = [_factor(build, atom, known, read) for atom, power in monomial for _ in range(power)]
            if coefficient != 1 or not factors:
                factors.append(constant_value(np.array([coefficient], np.int64)))
            term = functools.reduce(build.mul, factors)
            total = term if total is None else build.add(total, term)
        assert total is not None
        read[extent] = total
    return read[extent]


def _factor(
    build: Builder, atom: Atom, known: Mapping[Dimension, tuple[Value, int]], read: dict[Dimension, Value]
) -> Value:
    if atom.kind == "symbol":
        return _extent(build, symbol(atom.name), known, read)
    a, b = (_extent(build, operand, known, read) for operand in atom.operands)
    made: Value = getattr(build, {"floordiv": "div"}.get(atom.kind, atom.kind))(a, b)
    return made


def _computable(extent: Dimension, known: Set[Dimension]) -> bool:
    """Whether integer arithmetic on extents of inputs gives an extent; its division rounds negative numbers up."""
    if not isinstance(extent, Dim) or extent in known:
        return True
    for monomial, _ in extent.terms:
        for atom, _ in monomial:
            bounds = [lower_bound(operand) for operand in atom.operands]
            rounded = atom.kind == "floordiv" and any(bound is None or bound < 0 for bound in bounds)
            unknown = atom.kind == "symbol" and symbol(atom.name) not in known
            if rounded or unknown or not all(_computable(operand, known) for operand in atom.operands):
                return False
    return True


def _asked(graph: Graph, known: Set[Dimension], expressions: bool) -> list[tuple[Value, list[Dimension]]]:
    """What is computed from shapes of tensors inside and used as anything else, as numbers and known extents."""
    inputs, inside = set(graph.inputs), dict[Value, None]()
    for node in graph:
        if isinstance(node.op, Shape | Size):
            asks = node.operand(0) not in inputs
        else:
            asks = any(value in inside for value in node.inputs)
        if asks:
            inside.update((r, None) for r in node.results if r.content is not None and r.constant is None)
    needed = {v for v in inside if v.is_output or any(not inside.keys() >= {*user.results} for user in v.users)}
    found: list[tuple[Value, list[Dimension]]] = []
    for value in reversed(inside):
        if value in needed:
            content, producer = value.content, value.producer
            assert content is not None and producer is not None
            wanted: list[Dimension] = content.reshape(-1).tolist()
            if not any(isinstance(entry, Dim) for entry in wanted):
                continue  # numbers are folded
            exact = content.ndim <= 1 and value.element.is_integer
            computed = functools.partial(_computable, known=known) if expressions else known.__contains__
            if exact and all(computed(entry) for entry in wanted if isinstance(entry, Dim)):
                found.append((value, wanted))
            else:  # what it is computed from
                needed.update(producer.inputs)
    return found[::-1]


@graph_pass("infer_types")
class InferTypes(Pass):
    """Infer all types again, so that what passes learned about shapes reaches the rest of the graph."""

    def run(self, graph: Graph, context: Context) -> int:
        for each in graph.all_graphs():
            for node in each:
                reinfer(each, node)
        return 0
