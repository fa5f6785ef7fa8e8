"""Rewrites: a function on a matched root that returns what shall stand in its place.

    @rewrite(root=Relu, semantics=BITEXACT)
    def drop_repeated_relu(node, rewriter):
        \"""relu(relu(x)) is relu(x).\"""
        inner = node.x.defined_by(Relu) or rewriter.why("its input is no relu")
        return inner.out

The function returns a value, a tuple of values (one per result; None for results that nobody uses), or None if there is
no match. It must build everything through the rewriter and change nothing itself. The driver does the rest: candidates
by operator, insertion point, types, provenance, removal of dead producers, near-miss reasons, a deterministic order,
and a new look at the neighbours of whatever changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, TypeAlias

from espalier import plugins
from espalier.errors import EspalierError, InternalError
from espalier.ir import Builder, Graph, Node, Op, TypeInferenceError, Value
from espalier.ir.constants import Constant
from espalier.ir.graph import Location
from espalier.ir.inference import refine_type
from espalier.ir.verify import compatible
from espalier.passes.base import (
    BITEXACT,
    PASSES,
    Change,
    Context,
    Pass,
    Predicate,
    Semantics,
    graph_pass,
    origin,
    register,
)
from espalier.passes.inference import propagate

Replacement: TypeAlias = "Value | Sequence[Value | None] | None"
Rule: TypeAlias = Callable[[Any, "Rewriter"], Replacement]


class NoMatch(Exception):
    """Raised by `Rewriter.why`: the root does not match after all."""


class Rewriter(Builder):
    """A builder that inserts before the matched root, and through which a rule says why it does not match."""

    def __init__(self, graph: Graph, root: Node) -> None:
        super().__init__(graph, root)
        self.root = root
        self.created: list[Node] = []
        self.amended: dict[Node, Mapping[int, Value]] = {}
        """Nodes and the constants that they shall have when the rule is applied."""
        self.keeps_old = False
        """Whether somebody still wants to see the nodes as they were."""

    def move(self, root: Node) -> None:
        """Stand before another root, with nothing created."""
        self.root = self.before = root
        if self.created:
            self.created = []
        if self.amended:
            self.amended = {}

    def amend(self, node: Node, constants: Mapping[int, Value]) -> Node:
        """The node with other constants as operands, for rules whose root is all that uses its results.

        The types of the results must stay. It is what a new node would be, without one where nobody wants to compare.
        """
        if not self.keeps_old:
            self.amended[node] = constants
            return node
        operands = [*node.operands, *[None] * (max(constants) + 1 - len(node.operands))]
        for position, value in constants.items():
            operands[position] = value
        self.before = node
        made = self.node(node.op, operands, results=len(node.results))
        self.before = self.root
        for old, new in zip(node.results, made.results, strict=True):
            new.name = old.name
        self.amended[made] = {}
        return made

    def node(
        self, op: Op, operands: Sequence[Any], *, results: int | None = None, regions: Sequence[Graph] = ()
    ) -> Node:
        node = super().node(op, operands, results=results, regions=regions)
        self.created.append(node)
        return node

    def why(self, reason: str) -> NoReturn:
        """Give up on this root, saying what was missing."""
        raise NoMatch(reason)

    def require(self, condition: object, reason: str) -> None:
        """Give up on this root unless the condition holds."""
        if not condition:
            raise NoMatch(reason)


@dataclass(frozen=True)
class RewriteRule:
    """A rewrite as declared."""

    name: str
    matches: Callable[[type[Op]], bool]
    """Whether nodes of an operator class can be roots; asked once per class."""
    semantics: Semantics
    apply: Rule
    of: Callable[[type[Op]], bool] | None = None
    """Whether an operator class can make the operand that matters; asked once per class."""
    reads_constant: bool = False
    """Whether an operand must be a constant."""
    wanted: str = ""
    """What `of` and `reads_constant` ask for, in words."""

    @property
    def summary(self) -> str:
        return (self.apply.__doc__ or "").strip().splitlines()[0] if self.apply.__doc__ else ""


RULES: dict[str, RewriteRule] = {}


def rewrite(
    root: type[Op] | Sequence[type[Op]] | Callable[[type[Op]], bool],
    *,
    of: type[Op] | Sequence[type[Op]] | Callable[[type[Op]], bool] | None = None,
    constant: bool = False,
    semantics: Semantics = BITEXACT,
    requires: Sequence[Predicate] = (),
    establishes: Sequence[Predicate] = (),
    breaks: Sequence[Predicate] = (),
) -> Callable[[Rule], RewriteRule]:
    """Declare a rewrite; it becomes a pass of the function's name, and may be part of groups.

    `root` is an operator class, several, or a question about a class that its declared facts answer. So is `of`: at
    least one operand of a match is made by such an operator; `constant` says that at least one is a constant. Both
    only save time: the function is not asked about nodes that lack them.
    """

    def make(function: Rule) -> RewriteRule:
        name = getattr(function, "__name__", "rewrite")
        makers = None if of is None else _root_test(of)
        rule = RewriteRule(name, _root_test(root), semantics, function, makers, constant, _wanted(of, constant))
        rule_pass = type(
            name, (RewritePass,), {"rules": (rule,), "__doc__": function.__doc__, "__module__": function.__module__}
        )
        graph_pass(name, semantics=semantics, requires=requires, establishes=establishes, breaks=breaks)(rule_pass)
        RULES[name] = rule
        return rule

    return make


def _wanted(of: Any, constant: bool) -> str:
    """What must be among the operands, in words."""
    kinds: list[Any] = [of] if isinstance(of, type) else list(of) if isinstance(of, Sequence) else []
    words = [f"no operand is made by {' or '.join(kind.name for kind in kinds) or 'a fitting operator'}"] if of else []
    return " or ".join(words + ["no operand is a constant"] * constant)


def _root_test(root: type[Op] | Sequence[type[Op]] | Callable[[type[Op]], bool]) -> Callable[[type[Op]], bool]:
    if not isinstance(root, type | Sequence):
        return root
    classes = (root,) if isinstance(root, type) else tuple(root)
    return lambda kind: issubclass(kind, classes)


def group(name: str, rules: Sequence[RewriteRule], summary: str) -> type[Pass]:
    """A pass that applies several rewrites until none matches. Its promise is the weakest of theirs.

    Raises InputError E204 if another pass has the name.
    """
    kinds = ["bit-exact", "reassociates", "approximates", "grows"]
    weakest = max((rule.semantics for rule in rules), key=lambda s: kinds.index(s.kind))
    facts = {"rules": tuple(rules), "__doc__": summary, "__module__": origin().module}
    cls = type(name, (RewritePass,), {**facts, "name": name, "semantics": weakest})
    made: type[Pass] = dataclass(frozen=True)(cls)
    return register(made)


class RewritePass(Pass):
    """Applies its rules to a graph and its regions until none matches."""

    rules: ClassVar[tuple[RewriteRule, ...]] = ()
    table: ClassVar[_Table]

    def run(self, graph: Graph, context: Context) -> int:
        cls = type(self)
        if "table" not in cls.__dict__:
            cls.table = _Table(self.rules)
        return sum(_Driver(each, cls.table, context).run() for each in list(graph.all_graphs()))


@dataclass(eq=False)
class _Pattern:
    """What nodes of one operator, on operands made by the same operators, have in common."""

    rules: list[RewriteRule] = field(default_factory=list)
    """What may match."""
    passed_over: list[RewriteRule] = field(default_factory=list)
    """What cannot match."""


class _Roots(dict[type[Op], list[RewriteRule]]):
    """The rules for nodes of an operator class; each is asked once for each class."""

    def __init__(self, rules: Sequence[RewriteRule]) -> None:
        super().__init__()
        self.rules = tuple(rules)

    def __missing__(self, kind: type[Op]) -> list[RewriteRule]:
        found = self[kind] = [rule for rule in self.rules if rule.matches(kind)]
        return found


class _Table:
    """Which rules a node can be the root of, by its operator and by what makes its operands; asked once for each."""

    def __init__(self, rules: Sequence[RewriteRule]) -> None:
        self.rules = tuple(rules)
        self.roots = _Roots(rules)
        self.by_pattern: dict[Any, _Pattern] = {}

    def pattern(self, key: tuple[Any, ...]) -> _Pattern:
        """What the operator class, and the makers of the operands, leave."""
        found = self.by_pattern.get(key)
        if found is None:
            found = _Pattern()
            makers = [maker for maker in key[1:] if maker is not None]
            for rule in self.roots[key[0]]:
                fits = rule.of is None or any(maker is not Constant and rule.of(maker) for maker in makers)
                fits = fits and (not rule.reads_constant or Constant in makers)
                (found.rules if fits else found.passed_over).append(rule)
            if len(self.by_pattern) < _PATTERNS:
                self.by_pattern[key] = found
        return found


_PATTERNS = 1 << 14
"""Combinations of operators that are remembered; those of a concatenation of many are as many as models have."""


def _kinds(node: Node) -> tuple[Any, ...]:
    """A node's operator class and those that make its operands.

    `Constant` stands for constants, None for inputs of the graph and absent operands.
    """
    kinds: list[Any] = [type(node.op)]
    for operand in node.operands:
        if operand is None:
            kinds.append(None)
        elif operand.producer is not None:
            kinds.append(type(operand.producer.op))
        else:
            kinds.append(None if operand.constant is None else Constant)
    return tuple(kinds)


_NOWHERE = Location()
"""Of nodes for which a rule gives no location of their own."""


class _Driver:
    def __init__(self, graph: Graph, table: _Table, context: Context) -> None:
        self.graph, self.table, self.context = graph, table, context
        self.looked: dict[_Pattern, int] = {}
        """How many nodes of each pattern were looked at for which some rule was passed over."""
        self.rewriter: Rewriter | None = None
        self.queue: deque[Node] = deque()
        self.queued: set[Node] = set()

    def run(self) -> int:
        roots, known, queue = self.table.roots, self.table.by_pattern, self.queue
        node = self.graph.first
        while node is not None:
            if roots[type(node.op)]:
                queue.append(node)
            node = node.next
        self.queued.update(queue)
        limit, count = 100 + 20 * len(self.graph), 0
        while queue:
            node = queue.popleft()
            self.queued.discard(node)
            if node.graph is not self.graph:
                continue
            kinds = _kinds(node)
            pattern = known.get(kinds) or self.table.pattern(kinds)
            if pattern.passed_over:
                self.looked[pattern] = self.looked.get(pattern, 0) + 1
            for rule in pattern.rules:
                if self._try(rule, node):
                    count += 1
                    break
            if count > limit:
                names = ", ".join(rule.name for rule in self.table.rules)
                raise InternalError(
                    "E903", f"the rewrites {names} do not come to an end", node=node, source=node.location
                )
        for pattern, times in self.looked.items():
            for rule in pattern.passed_over:
                self.context.reasons[f"{rule.name}: {rule.wanted}"] += times
        return count

    def _enqueue(self, node: Node) -> None:
        if node not in self.queued and self.table.roots[type(node.op)]:
            self.queued.add(node)
            self.queue.append(node)

    def _try(self, rule: RewriteRule, root: Node) -> bool:
        rewriter = self.rewriter
        if rewriter is None:
            rewriter = self.rewriter = Rewriter(self.graph, root)
            rewriter.keeps_old = self.context.recorder is not None
        elif rewriter.root is not root or rewriter.created or rewriter.amended:
            rewriter.move(root)
        try:
            replacement = rule.apply(root, rewriter)
        except NoMatch as reason:
            self.context.reasons[f"{rule.name}: {reason}"] += 1
            replacement = None
        except EspalierError:
            raise
        except Exception as error:
            module = getattr(rule.apply, "__module__", "")
            if (refusal := plugins.failure(f"the rule {rule.name}", module, error, root)) is not None:
                raise refusal from error
            typed = isinstance(error, TypeInferenceError)
            what = f"built a node of wrong types: {error}" if typed else f"failed: {type(error).__name__}: {error}"
            raise InternalError("E903", f"{rule.name} {what}", node=root, source=root.location) from error
        if replacement is None or not self.context.may_rewrite():
            self._discard(rewriter)
            return False
        news = [replacement] if isinstance(replacement, Value) else replacement
        if len(news) != len(root.results):
            raise InternalError(
                "E903", f"{rule.name} gives {len(news)} values for {len(root.results)} results", node=root
            )
        alike = True
        for old, new in zip(root.results, news, strict=True):
            if new is None or old.type is not new.type:
                alike &= self._fits(rule, root, old, new)
        if self.context.recorder is not None:
            number = self.context.rewrites
            self.context.recorder(Change(rule.name, rule.semantics, number, list(root.results), news, rewriter.created))
        self._replace(rule, root, news, rewriter, alike)
        return True

    def _replace(
        self, rule: RewriteRule, root: Node, news: Sequence[Value | None], rewriter: Rewriter, alike: bool
    ) -> None:
        """Put what a rule gives in the place of the root's results, and look at everything near it again."""
        graph, amended = self.graph, rewriter.amended
        neighbours: list[Node | Graph] = []
        for old, new in zip(root.results, news, strict=True):
            if new is not None:
                neighbours += old.uses
                if new.producer is not None and (new.name == "" or new.producer in amended):
                    new.name = old.name
                holds = new.content is not None or (new.constant is not None and new.known is not None)
                learned = not alike or (holds and old.content is None)
                graph.replace(old, new)
                if learned:
                    neighbours += propagate(graph, new)
        sources = self._erase_dead(root, amended)
        if amended or rewriter.created:
            for node in amended:
                sources.append(node.location)
            where = Location.merged(sources, rule.name)
            for node, constants in amended.items():
                self._amend(node, constants, where)
            if rewriter.created:
                self._settle(rewriter.created, where)
        for user in neighbours:
            if isinstance(user, Node) and user.graph is graph:
                self._enqueue(user)

    def _fits(self, rule: RewriteRule, root: Node, old: Value, new: Value | None) -> bool:
        """Whether a result's replacement has the same type. Raises InternalError if it cannot stand for it."""
        if new is None:
            if old.uses:
                message = f"{rule.name} gives nothing for a result in use"
                raise InternalError("E903", message, node=root, source=root.location)
            return True
        if old.type == new.type:
            return True
        if not compatible(old.type, new.type):
            message = f"{rule.name} replaces {old.type} by {new.type}"
            raise InternalError("E903", message, node=root, source=root.location)
        if new.producer is not None:
            refine_type(new, old.type)
        return old.type == new.type

    def _settle(self, created: Sequence[Node], where: Location) -> None:
        """Take out what a rule built and nobody uses; the rest now comes from where the old nodes did."""
        for node in reversed(created):
            for result in node.results:
                if result.uses:
                    break
            else:
                self.graph.erase(node)
        for node in created:
            if node.graph is self.graph:
                node.location = where if node.location == _NOWHERE else node.location.merge(where)
                self._enqueue(node)

    def _amend(self, node: Node, constants: Mapping[int, Value], where: Location) -> None:
        """Change a node's constants; it then counts as its operands' newest user, as a new node would."""
        self.graph.set_operands(node, constants)
        for operand in node.operands:
            if operand is not None and len(operand.uses) > 1:
                operand.uses[node] = operand.uses.pop(node)
        node.location = where
        self._enqueue(node)

    def _erase_dead(self, root: Node, amended: Mapping[Node, Any]) -> list[Location]:
        """Remove a node whose results nobody uses, and its producers that are dead by that; where they came from.

        Amended ones have taken over users, all of which are looked at again.
        """
        graph, sources, stack = self.graph, [root.location], [root]
        while stack:
            node = stack.pop()
            if node.graph is not graph or node in amended:
                continue
            for result in node.results:
                if result.uses:
                    break
            else:
                graph.erase(node)
                if node is not root:
                    sources.append(node.location)
                for operand in node.operands:
                    maker = None if operand is None else operand.producer
                    if maker is not None:
                        stack.append(maker)
                if self.context.recorder is None:
                    node.results = []  # they know the node: both would wait for a garbage collection
                continue
            for result in node.results:
                if len(result.uses) == 1:  # the last neighbour may match now
                    for user in result.uses:
                        if isinstance(user, Node):
                            self._enqueue(user)
        return sources

    def _discard(self, rewriter: Rewriter) -> None:
        for node in reversed(rewriter.created):
            self.graph.erase(node)
        rewriter.created.clear()


__all__ = ["PASSES", "RULES", "NoMatch", "RewritePass", "RewriteRule", "Rewriter", "group", "rewrite"]
