"""Replaying rewrites: the region before and the region after, run on made-up inputs and compared.

Rewrites are of one kind if rule, operators, connections, elements, the equalities among extents and numbers, and the
numbers that small constants hold are the same; how large extents are and what weights hold makes no other kind.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.errors import EspalierError, VerificationError
from espalier.ir import Graph, Node, Op, TensorType, Value
from espalier.ir.clone import extract
from espalier.ir.constants import ComputedSource, Constant
from espalier.ir.dims import product
from espalier.ir.execute import Allowance, run
from espalier.passes.base import BITEXACT, Change
from espalier.passes.samples import EXACT_MODES, MODES, Mode, NoSample, sample_inputs

LONG = 0.001
"""Seconds after which a region counts as large: it is compared on no further kinds of inputs."""
PULLED = 6
"""How many steps back what only the old region reads is followed, short of computations on activations."""
REGION_LIMIT = 48
"""Nodes of the old region that are followed back at most; what lies beyond becomes an input."""
LARGE = 1 << 9
"""Elements of a region's inputs from which on it is tried with smaller extents first."""
SMALLEST = 8
"""The smallest extent that takes the place of a larger one; windows fit into it."""
REGION_SECONDS = 60.0
"""Processor time that one run of a region may take."""
NUMBERS, FLOATS = 16, 2
"""Integers, and floats, that a constant may hold for them to count one by one."""
FEW = 4
"""Groups and the like that a rule may tell one by one."""


_PROVEN: set[Any] = set()
"""Kinds of rewrites that were replayed in this process, and agreed."""
_SPECIAL: set[Any] = set()
"""Kinds of rewrites that rest on where the operands come from: they are not right for all operands."""
_KINDS_LIMIT = 1 << 16


class Replayer:
    """Checks rewrites as they happen: each kind (see `_kind`) once in a process, or every one.

    `told` counts the changes, `checked` the replays, and the kinds of this run that an earlier run replayed.
    """

    def __init__(self, *, every: bool = False, seed: int = 0) -> None:
        self.every, self.seed = every, seed
        self.seen: dict[Any, bool] = {}
        """Kinds of this run, and whether their regions could be compared and agree."""
        self.told = self.checked = 0
        self.unchecked: dict[str, str] = {}
        """Rule → why one of its rewrites could not be replayed (in no mode)."""

    def __call__(self, change: Change) -> None:
        """Raise VerificationError E602, naming rule and number, if the new region computes something else."""
        self.told += 1
        if change.semantics.kind not in ("bit-exact", "reassociates") or _is_evident(change):
            return
        computation = _computation(change)
        if computation is not None:
            self._once((change.rule, *[type(node.op) for node in computation]), change, [], computation)
            return
        region = None if self.every else _old_node(change)
        if region is not None and self._holds_for_all_operands(change, *region):
            return
        leaves, nodes = _old_region(change)
        self._once(_kind(change, leaves, nodes), change, leaves, nodes)

    def _holds_for_all_operands(self, change: Change, leaves: Sequence[Value], nodes: Sequence[Node]) -> bool:
        """Whether the new region computes the same for whatever the old node reads, which says more than needed."""
        kind = _kind(change, leaves, nodes)
        if (self.seed, kind) in _SPECIAL:
            return False
        try:
            holds = self._once(kind, change, leaves, nodes, guess=True)
        except VerificationError:
            holds = False
        if not holds and len(_SPECIAL) < _KINDS_LIMIT:
            _SPECIAL.add((self.seed, kind))
        return holds

    def _once(
        self, kind: Any, change: Change, leaves: Sequence[Value], nodes: Sequence[Node], *, guess: bool = False
    ) -> bool:
        """Compare the regions if none of the kind was compared before. Whether they could be, now or then, and agree.

        A guess that fails on small inputs is wrong. Raises VerificationError E602 if the regions differ.
        """
        key = self.seed, guess, kind
        if not self.every and key in self.seen:
            return self.seen[key]
        self.seen[key] = False
        if not self.every and key in _PROVEN:
            self.checked += 1
            self.seen[key] = True
            return True
        olds = [old for old, new in zip(change.old, change.new, strict=True) if new is not None]
        news = [new for new in change.new if new is not None]
        before, after = extract(nodes, leaves, olds), extract(change.created, leaves, news)
        if not all(node.op.deterministic for node in (*nodes, *change.created)):
            self.unchecked[change.rule] = "the region holds a random or unknown operator"
            return False
        agrees = self.seen[key] = self._compare(change, before, after, guess)
        if agrees and len(_PROVEN) < _KINDS_LIMIT:
            _PROVEN.add(key)
        return agrees

    def _compare(self, change: Change, before: Graph, after: Graph, guess: bool = False) -> bool:
        """Whether the regions could be compared, and agree."""
        exact, rng = change.semantics is BITEXACT, np.random.default_rng(self.seed)
        tolerance = 0.0 if exact else _tolerance(before, after)
        modes = EXACT_MODES if exact else MODES
        if not before.inputs:
            modes = modes[:1]  # they would all be the same
        small = _agrees_when_small(before, after, modes, exact, tolerance, rng)
        if guess and small is False:
            return False
        done, reason = bool(small), ""
        start = time.thread_time()
        for mode in () if done else modes:
            if done and mode != "normal" and time.thread_time() - start > LONG:
                break
            try:
                inputs = sample_inputs(before.inputs, rng, mode)
                wanted = _run(before, inputs, exact=exact)
            except Exception as error:  # made-up inputs may lie outside of what the operators take
                reason = reason or f"{type(error).__name__}: {error}"[:200]
                continue
            try:
                found = _run(after, inputs, exact=exact)
            except Exception as error:
                if isinstance(error, EspalierError) and error.code == "E411":  # slow is not wrong
                    reason = reason or f"the new region: {error.message}"
                    break
                raise self._failure(change, f"fails on {mode} inputs: {error}") from error
            for a, b in zip(wanted, found, strict=True):
                if problem := _difference(a, b, exact, tolerance):
                    raise self._failure(change, f"{problem} on {mode} inputs")
            done = True
        self.checked += done
        if not done and not guess:
            self.unchecked.setdefault(change.rule, reason)
        return done

    def _failure(self, change: Change, what: str) -> VerificationError:
        node = change.old[0].producer
        return VerificationError(
            "E602",
            f"rewrite {change.number} ({change.rule}, {change.semantics}): the new region {what}",
            node=node,
            source=node.location if node is not None else None,
            hint=f"Stop before it with --stop-after {change.number - 1}.",
        )


def _is_evident(change: Change) -> bool:
    """Whether nothing is to be shown: unused results went, or a node stands for one equal to it on equal operands."""
    if not change.old:
        return True
    if not change.created:
        return False
    olds, news = {old.producer for old in change.old}, {new.producer for new in change.new if new is not None}
    (old, *rest), (new, *others) = olds, news or {None}
    if rest or others or old is None or new is None or [new] != list(change.created):
        return False
    if old.regions or old.op != new.op or not old.op.deterministic or len(old.operands) != len(new.operands):
        return False
    same = all(a is None or b is None or a.index == b.index for a, b in zip(change.old, change.new, strict=True))
    return same and all(_equal(a, b) for a, b in zip(old.operands, new.operands, strict=True))


def _equal(a: Value | None, b: Value | None) -> bool:
    if a is None or b is None or a.constant is None or b.constant is None:
        return a is b
    return a.constant is b.constant or (a.type == b.type and a.constant.digest == b.constant.digest)


def _agrees_when_small(
    before: Graph, after: Graph, modes: Sequence[Mode], exact: bool, tolerance: float, rng: np.random.Generator
) -> bool | None:
    """Whether large regions run and agree on smaller inputs; if not, that says nothing yet. None if none are large."""
    extents = _smaller_extents(before, after)
    if not extents:
        return None
    start = time.thread_time()
    try:
        for k, mode in enumerate(modes):
            if k and mode != "normal" and time.thread_time() - start > LONG:
                break
            inputs = sample_inputs(before.inputs, rng, mode, extents)
            wanted, found = _run(before, inputs, exact=exact), _run(after, inputs, exact=exact)
            for a, b in zip(wanted, found, strict=True):
                if not np.size(a) or _difference(a, b, exact, tolerance):
                    return False
    except Exception:  # operators may rest on the extents as they are
        return False
    return True


def _smaller_extents(before: Graph, after: Graph) -> dict[int, int]:
    """Extents of large inputs that no constant and no attribute has → small ones, different ones for different ones."""
    shapes = [value.type.shape or () for value in before.inputs if isinstance(value.type, TensorType)]
    sizes = [math.prod(extent if isinstance(extent, int) else 2 for extent in shape) for shape in shapes]
    if all(size <= LARGE for size in sizes):
        return {}
    fixed: set[Any] = set()
    for graph in (before, after):
        for node in graph:
            fixed.update(*(value if isinstance(value, tuple) else (value,) for value in node.op.attributes.values()))
            for operand in node.inputs:
                if operand.constant is not None:
                    fixed.update(operand.constant.shape)
                    if operand.constant.size <= NUMBERS and operand.element.is_integer:
                        fixed.update(operand.array.reshape(-1).tolist())
    large = sorted({d for shape in shapes for d in shape if isinstance(d, int) and d > SMALLEST} - fixed)
    free = (extent for extent in range(SMALLEST, SMALLEST + len(large) + len(fixed) + 1) if extent not in fixed)
    return {extent: small for extent, small in zip(large, free, strict=False) if small < extent}


def _old_node(change: Change) -> tuple[list[Value], list[Node]] | None:
    """The old node, and what it reads, if the new region reads nothing else."""
    node, *others = dict.fromkeys(old.producer for old in change.old)
    if node is None or others or node.regions:
        return None
    leaves = dict.fromkeys(operand for operand in node.inputs if operand.constant is None)
    created = set(change.created)
    read = [*change.new, *(operand for each in change.created for operand in each.inputs)]
    within = all(v is None or v.constant is not None or v in leaves or v.producer in created for v in read)
    return (list(leaves), [node]) if within else None


def _old_region(change: Change) -> tuple[list[Value], list[Node]]:
    """The old nodes between what the new region reads and the old results, and the inputs of both regions."""
    created = set(change.created)
    frontier = {v for node in change.created for v in node.inputs if v.constant is None and v.producer not in created}
    frontier |= {v for v in change.new if v is not None and v.constant is None and v.producer not in created}
    frontier -= set(change.old)  # a rule may keep its root's result
    nodes: list[Node] = []
    reaches: dict[Node, bool] = {}
    leaves: dict[Value, None] = dict.fromkeys(frontier)

    def visit(node: Node) -> bool:
        """Whether the node depends on the frontier; if so, it belongs to the region."""
        if node in reaches:
            return reaches[node]
        reaches[node] = False
        if len(reaches) > REGION_LIMIT:
            return False
        found = False
        for operand in node.operands:
            if operand is None or operand.constant is not None:
                continue
            if operand in frontier or (operand.producer is not None and visit(operand.producer)):
                found = True
        reaches[node] = found
        if found:
            nodes.append(node)
        return found

    for value in change.old:
        if value.producer is not None and not visit(value.producer) and value.producer not in nodes:
            nodes.append(value.producer)  # the root belongs to the region in any case
    pulled: dict[Node, None] = dict.fromkeys(nodes)

    def pull(value: Value, depth: int) -> None:
        """Follow what only the old region reads back to where it comes from: a rule may rest on that."""
        producer = value.producer
        if value.constant is not None or value in leaves or producer in pulled:
            return
        if producer is None or depth == 0 or producer.regions or not _tells(producer):
            leaves[value] = None
            return
        for operand in producer.inputs:
            pull(operand, depth - 1)
        pulled[producer] = None
        before.append(producer)

    before: list[Node] = []
    for node in nodes:
        for operand in node.inputs:
            pull(operand, PULLED)
    return list(leaves), _in_order([*before, *nodes])


def _in_order(nodes: Sequence[Node]) -> list[Node]:
    """The nodes in an order that can run."""
    left, found = set(nodes), dict[Node, None]()

    def place(node: Node) -> None:
        left.discard(node)
        for operand in node.inputs:
            if operand.producer in left:
                place(operand.producer)
        found[node] = None

    for node in nodes:
        if node in left:
            place(node)
    return list(found)


def _computation(change: Change) -> list[Node] | None:
    """The nodes that read nothing but constants, and for whose results constants now stand; None for other changes."""
    if change.created:
        return None
    for new in change.new:
        if new is not None and new.constant is None:
            return None
    nodes = dict.fromkeys([old.producer for old in change.old])
    for node in nodes:
        for operand in node.operands if node is not None else ():
            if operand is not None and operand.constant is None:
                return None
    return [node for node in nodes if node is not None]


def _tells(node: Node) -> bool:
    """Whether a rule may know a node's results: they are moved, or not made of activations."""
    if node.op.moves:
        return True
    floats = [v for v in node.inputs if v.constant is None and isinstance(v.type, TensorType) and v.element.is_float]
    return not floats


def _kind(change: Change, leaves: Sequence[Value], old_nodes: Sequence[Node]) -> Any:
    """What makes two rewrites the same for checking: operators, connections, elements, small constants, equal extents.

    What weights hold doesn't matter, nor how large extents are (but for 0 and 1).
    """
    numbers: dict[Value, int] = {value: k for k, value in enumerate(leaves)}
    extents: dict[Any, int] = {0: 0, 1: 1}
    described: list[Any] = [change.rule, *((_type_key(value, extents), _known_key(value)) for value in leaves)]
    for node in (*old_nodes, *change.created):
        described.append(
            (_operator_key(node.op, extents), *(_operand_key(operand, numbers, extents) for operand in node.operands))
        )
        for result in node.results:
            numbers[result] = len(numbers)
            described.append(_type_key(result, extents))
    described += [_operand_key(value, numbers, extents) for value in change.new]
    return tuple(described)


def _operator_key(op: Op, extents: dict[Any, int]) -> Any:
    """The operator, with a number instead of each attribute that is the extent of an axis (and not small)."""
    if not op.bound:
        return op
    return type(op), tuple(
        extents.setdefault(value, len(extents)) if name in op.bound and value > FEW else value
        for name, value in op.attributes.items()
    )


def _operand_key(operand: Value | None, numbers: dict[Value, int], extents: dict[Any, int]) -> Any:
    if operand is None:
        return None
    if operand.constant is None:
        return numbers.get(operand, -1)
    return _type_key(operand, extents), _content_key(operand.constant, extents)


def _known_key(value: Value) -> Any:
    """What a leaf is known to hold: it holds that in the replay, too."""
    known = None if value.constant is not None else value.known
    return None if known is None else tuple(known.reshape(-1).tolist())


def _content_key(constant: Constant, extents: dict[Any, int]) -> Any:
    """What a rule can tell constants apart by: few integers, in the order of first appearance, and the one number that
    all elements are. What nobody has read yet has decided nothing.
    """
    if isinstance(constant.source, ComputedSource) and not constant.source.is_read:
        return "unread"
    array = constant.array
    if array.dtype == object or not array.size:
        return "other"
    flat = array.reshape(-1)
    if array.size <= NUMBERS and array.dtype.kind in "biu":
        return tuple(number if number < 2 else extents.setdefault(number, len(extents)) for number in flat.tolist())
    if array.size <= FLOATS:
        return array.shape, flat.tobytes()
    first = flat[0]
    if array.size > 1 and (flat[1] != first or not np.all(flat == first)):
        return "varied"
    return repr(first.item() if isinstance(first, np.generic) else first)


def _type_key(value: Value, extents: dict[Any, int]) -> Any:
    """The type, with numbers in the order of first appearance instead of extents."""
    type = value.type
    if not isinstance(type, TensorType) or type.shape is None:
        return type
    return (type.element, *[extents.setdefault(extent, len(extents)) for extent in type.shape])


def _run(graph: Graph, inputs: Sequence[Any], *, exact: bool) -> list[Any]:
    """Run in the declared types, or (not exact) with f32 inputs widened to f64."""
    if not exact:
        inputs = [a.astype(np.float64) if a.dtype == np.float32 else a for a in inputs]
    return run(graph, inputs, allowance=Allowance(seconds=REGION_SECONDS))


def _tolerance(before: Graph, after: Graph) -> float:
    """Relative to the largest output: rounding of the narrowest float, over the longest sum."""
    longest, epsilon = 1, 2.0**-50
    for graph in (before, after):
        for node in graph:
            for value in (*node.inputs, *node.results):
                if not isinstance(value.type, TensorType) or not value.element.is_float:
                    continue
                bits = {64: 52, 32: 23, 16: 10 if value.element.name == "f16" else 7}.get(value.element.bits, 2)
                epsilon = max(epsilon, 2.0**-bits)
                size = product(value.type.shape[1:]) if value.constant is not None and value.type.shape else 1
                longest = max(longest, size if isinstance(size, int) else 1)
    return epsilon * (32 + math.sqrt(longest))


def _difference(a: Any, b: Any, exact: bool, tolerance: float) -> str | None:
    """What differs between two arrays, in words; None if they agree."""
    if not isinstance(a, np.ndarray | np.generic) or not isinstance(b, np.ndarray | np.generic):
        return None if repr(a) == repr(b) else "gives another sequence"
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return f"gives shape {b.shape} instead of {a.shape}"
    if exact and a.dtype != b.dtype:
        return f"gives {b.dtype} instead of {a.dtype}"
    if a.dtype == b.dtype != object and a.tobytes() == b.tobytes():
        return None
    if exact:
        same = (a == b) | ((a != a) & (b != b))
        if a.dtype.kind in "fc":
            same &= (np.signbit(np.real(a)) == np.signbit(np.real(b))) | (a != a)
        return None if np.all(same) else f"differs in {np.size(same) - np.count_nonzero(same)} of {same.size} elements"
    kind = np.complex128 if a.dtype.kind == "c" else np.float64
    wide_a, wide_b = a.astype(kind), b.astype(kind)
    finite = np.isfinite(wide_a)
    if not np.any(finite):
        return None
    scale = float(np.max(np.abs(wide_a[finite])))
    if not np.all(np.isfinite(wide_b[finite])):
        return "is not finite where the original is"
    error = float(np.max(np.abs(wide_a[finite] - wide_b[finite])))
    if not error <= tolerance * scale + 1e-300:
        return f"is off by {error:.3g} where the largest output is {scale:.3g} (tolerance {tolerance:.1g})"
    return None


__all__ = ["NoSample", "Replayer"]
