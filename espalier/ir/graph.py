"""The graph: values, nodes, and the few mutators through which everything changes.

Identity is the object; names are hints. A value is a graph input, a node's result, or a constant; constants belong to
no graph and may be used from any. Nodes stand in an intrusive list in execution order. Regions (bodies of If, Loop,
Scan) are graphs of their own that see outer values only as explicit operands of their node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from espalier.ir import constants
from espalier.ir.constants import SMALL, Constant
from espalier.ir.elements import Element
from espalier.ir.op import NamedParts, Op
from espalier.ir.types import TensorType, Type

OpType = TypeVar("OpType", bound=Op)


class Location(NamedTuple):
    """Where a node comes from: nodes and lines of the user's model, and the passes that made or touched it."""

    names: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()

    @staticmethod
    def merged(locations: Sequence[Location], by: str = "") -> Location:
        """Everything that any of the locations says, once, and the pass that brought them together."""
        names, lines, passes = locations[0]
        for position in range(1, len(locations)):
            more_names, more_lines, more_passes = locations[position]
            names = _union(names, more_names)
            if more_lines:
                lines = _union(lines, more_lines)
            if more_passes:
                passes = _union(passes, more_passes)
        # as Location(…), which is called for every rewrite, does in twice the time
        return tuple.__new__(Location, (names, lines, (*passes, by) if by and by not in passes else passes))

    def merge(self, other: Location) -> Location:
        """Everything that either location says, once."""
        return Location.merged((self, other))

    def touched(self, by: str) -> Location:
        """The same place, after a pass."""
        return self if by in self.passes else Location(self.names, self.lines, (*self.passes, by))

    def __str__(self) -> str:
        return ", ".join(filter(None, ["+".join(self.names), "; ".join(self.lines)])) or "unknown source"


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of both, each once."""
    if not second or first == second:
        return first
    if len(second) == 1:
        return first if second[0] in first else first + second
    return tuple(dict.fromkeys(first + second)) if first else second


class Value:
    """One tensor (or sequence, or optional) of a graph."""

    __slots__ = ("constant", "content", "index", "name", "producer", "type", "uses")

    def __init__(self, type: Type, name: str = "", *, producer: Node | None = None, index: int = 0) -> None:
        self.type, self.name, self.producer, self.index = type, name, producer, index
        self.uses: dict[Node | Graph, int] = {}
        """Users in order of first use, with the number of times; a graph uses its outputs."""
        self.constant: Constant | None = None
        self.content: NDArray[Any] | None = None
        """Known numbers or dimensions of a small tensor that carries a shape."""

    @property
    def shape(self) -> Any:
        """The shape; None for an unknown rank (and for what is no tensor)."""
        return self.type.shape if isinstance(self.type, TensorType) else None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def element(self) -> Element:
        """The element. Raises TypeError for sequences and optionals."""
        if not isinstance(self.type, TensorType):
            raise TypeError(f"{self} is a {self.type}, not a tensor")
        return self.type.element

    @property
    def is_constant(self) -> bool:
        return self.constant is not None

    @property
    def array(self) -> NDArray[Any]:
        """The elements of a constant. Raises TypeError for other values."""
        if self.constant is None:
            raise TypeError(f"{self} is no constant")
        return self.constant.array

    @property
    def known(self) -> NDArray[Any] | None:
        """The content, of a constant too if it is small."""
        if self.content is None and self.constant is not None and self.constant.size <= SMALL:
            self.content = self.constant.array
        return self.content

    @property
    def has_one_use(self) -> bool:
        uses = self.uses
        return len(uses) == 1 and 1 in uses.values()

    @property
    def is_output(self) -> bool:
        """Whether a graph returns it."""
        return any(isinstance(user, Graph) for user in self.uses)

    @property
    def users(self) -> list[Node]:
        """The nodes that use it, each once."""
        return [user for user in self.uses if isinstance(user, Node)]

    def defined_by(self, kind: type[Op], *, result: int | None = 0) -> Node | None:
        """The node that makes it, if that is of the kind and it is the node's first result (or another; None: any)."""
        node = self.producer
        if node is None or not isinstance(node.op, kind) or result not in (self.index, None):
            return None
        return node

    def __repr__(self) -> str:
        return f"%{self.name or '?'}: {self.type}"


class Node(NamedParts):
    """One use of an operator. Operands, results and attributes are read by their names: `node.x`, `node.axis`."""

    __slots__ = ("graph", "location", "next", "op", "operands", "position", "previous", "regions", "results")

    def __init__(
        self,
        op: Op,
        operands: Sequence[Value | None],
        result_types: Sequence[Type],
        regions: Sequence[Graph] = (),
        location: Location | None = None,
    ) -> None:
        self.op = op
        self.operands: list[Value | None] = list(operands)
        if len(result_types) == 1:
            self.results = [Value(result_types[0], producer=self)]
        else:
            self.results = [Value(type, producer=self, index=k) for k, type in enumerate(result_types)]
        self.regions = tuple(regions)
        self.location = location or Location()
        self.graph: Graph | None = None
        self.previous: Node | None = None
        self.next: Node | None = None
        self.position = 0
        """Grows along the list; exact only right after `Graph.renumber`."""

    def is_a(self, *kinds: type[Op]) -> bool:
        return isinstance(self.op, kinds)

    def operand(self, position: int) -> Value:
        """An operand that must be there. Raises IndexError or TypeError if it is not."""
        found = self.operands[position]
        if found is None:
            raise TypeError(f"{self.op.name} lacks operand {position}")
        return found

    @property
    def inputs(self) -> list[Value]:
        """The operands that are there."""
        return [operand for operand in self.operands if operand is not None]

    def __repr__(self) -> str:
        return f"{self.op.name}({', '.join(str(o and o.name) for o in self.operands)}) from {self.location}"


class Epochs:
    """Counters that analyses compare to know whether what they read has changed."""

    __slots__ = ("topology", "types", "weights")

    def __init__(self) -> None:
        self.topology = self.types = self.weights = 0


class Listener:
    """Told of every change; subclasses override what they need."""

    def inserted(self, node: Node) -> None: ...

    def erased(self, node: Node) -> None: ...

    def changed(self, node: Node) -> None:
        """Its operands or its operator are new."""


class Graph:
    """Inputs, nodes in execution order, outputs."""

    def __init__(self, name: str = "main", *, symbol_prefix: str = "u") -> None:
        self.name = name
        self.symbol_prefix = symbol_prefix
        """What the names of fresh symbols begin with; a number follows."""
        self.inputs: list[Value] = []
        self._outputs: list[Value] = []
        self.output_names: list[str] = []
        self.first: Node | None = None
        self.last: Node | None = None
        self.node_count = 0
        self.epochs = Epochs()
        self.listeners: list[Listener] = []
        self.metadata: dict[str, Any] = {}
        """What a frontend knows beyond the graph itself (opset, producer); plain JSON values."""
        self._symbols = 0
        self._nesting = 0
        """How many nodes have regions."""

    # ---- reading -------------------------------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(self._outputs)

    def __iter__(self) -> Iterator[Node]:
        """The nodes in order. The node just given may be erased, and nodes may be inserted anywhere."""
        node = self.first
        while node is not None:
            following = node.next
            yield node
            if node.graph is self:
                following = node.next
            while following is not None and following.graph is not self:  # erased meanwhile: its link leads on
                following = following.next
            node = following

    def __reversed__(self) -> Iterator[Node]:
        node = self.last
        while node is not None:
            previous = node.previous
            yield node
            node = previous

    def __len__(self) -> int:
        return self.node_count

    @property
    def nodes(self) -> list[Node]:
        return list(self)

    def constants(self) -> list[Value]:
        """The constants that nodes (those of regions included) and outputs use, each once, in order of use."""
        found: dict[int, Value] = {}
        for graph in self.all_graphs():
            for node in graph:
                for operand in node.operands:
                    if operand is not None and operand.constant is not None:
                        found.setdefault(id(operand), operand)
            for output in graph._outputs:
                if output.constant is not None:
                    found.setdefault(id(output), output)
        return list(found.values())

    def all_graphs(self) -> Iterator[Graph]:
        """This graph and those of all regions inside."""
        stack = [self]
        while stack:
            graph = stack.pop()
            yield graph
            if graph._nesting:
                stack.extend(region for node in graph for region in node.regions)

    @property
    def is_deterministic(self) -> bool:
        """Whether equal inputs give equal outputs: no operator, in regions neither, is random or unknown."""
        return all(node.op.deterministic for graph in self.all_graphs() for node in graph)

    def fresh_symbol(self) -> str:
        """A name for a dimension that no other of this graph has."""
        self._symbols += 1
        return f"{self.symbol_prefix}{self._symbols - 1}"

    def reserve_symbol(self, name: str) -> bool:
        """Keep `fresh_symbol` from giving a name. False if it may have been given before."""
        number = name.removeprefix(self.symbol_prefix)
        if not name.startswith(self.symbol_prefix) or not number.isdecimal():
            return True
        if int(number) < self._symbols:
            return False
        self._symbols = int(number) + 1
        return True

    def reserve_symbols_of(self, other: Graph) -> None:
        """Keep `fresh_symbol` from giving a name that it has given in another graph of the same prefix."""
        self._symbols = max(self._symbols, other._symbols)

    # ---- mutators ------------------------------------------------------------------------------------------

    def add_input(self, type: Type, name: str = "") -> Value:
        value = Value(type, name)
        self.inputs.append(value)
        self.epochs.topology += 1
        return value

    def set_outputs(self, outputs: Iterable[Value], names: Sequence[str] | None = None) -> None:
        """Make these the outputs; `names` are what the outside calls them (the values' own names by default)."""
        for old in self._outputs:
            _drop_use(old, self)
        self._outputs = list(outputs)
        for new in self._outputs:
            new.uses[self] = new.uses.get(self, 0) + 1
        if names is not None:
            self.output_names = list(names)
        elif len(self.output_names) != len(self._outputs):
            self.output_names = [value.name for value in self._outputs]
        self.epochs.topology += 1

    def insert(self, node: Node, before: Node | None = None) -> Node:
        """Put a node before another, or at the end."""
        if node.graph is not None:
            raise ValueError(f"{node} already stands in a graph")
        node.graph = self
        self._link(node, before)
        for operand in node.operands:
            if operand is not None:
                operand.uses[node] = operand.uses.get(node, 0) + 1
        self.node_count += 1
        self._nesting += bool(node.regions)
        self.epochs.topology += 1
        for listener in self.listeners:
            listener.inserted(node)
        return node

    def move(self, node: Node, before: Node | None) -> None:
        """Put a node of this graph elsewhere in the order."""
        if before is node:
            return
        self._unlink(node)
        self._link(node, before)
        self.epochs.topology += 1

    def erase(self, node: Node) -> None:
        """Take out a node whose results nobody uses. Raises ValueError if somebody does."""
        for result in node.results:
            if result.uses:
                raise ValueError(f"{node} is still used")
        self._unlink(node)
        for operand in node.operands:
            if operand is not None:
                operand.uses.pop(node, None)
        node.graph = None
        self.node_count -= 1
        self._nesting -= bool(node.regions)
        self.epochs.topology += 1
        for listener in self.listeners:
            listener.erased(node)

    def set_operand(self, node: Node, position: int, value: Value | None) -> None:
        """Change one operand (beyond the last: append)."""
        self.set_operands(node, {position: value})

    def set_operands(self, node: Node, values: Mapping[int, Value | None]) -> None:
        """Change several operands at once, by their positions (beyond the last: append)."""
        operands, changed = node.operands, False
        for position, value in values.items():
            while len(operands) <= position:
                operands.append(None)
            old = operands[position]
            if old is value:
                continue
            operands[position], changed = value, True
            if old is not None:
                _drop_use(old, node)
            if value is not None:
                value.uses[node] = value.uses.get(node, 0) + 1
        if changed:
            self.epochs.topology += 1
            for listener in self.listeners:
                listener.changed(node)

    def set_op(self, node: Node, op: Op) -> None:
        """Change a node's attributes, or its operator for one of the same operands and results."""
        node.op = op
        self.epochs.topology += 1
        for listener in self.listeners:
            listener.changed(node)

    def set_type(self, value: Value, type: Type) -> None:
        if value.type != type:
            value.type = type
            self.epochs.types += 1

    def replace(self, old: Value, new: Value) -> None:
        """Let every user of a value use another instead. The graph's output names stay."""
        if old is new:
            return
        for user in list(old.uses):
            if isinstance(user, Graph):
                user.set_outputs([new if value is old else value for value in user._outputs], user.output_names)
                continue
            count = old.uses.pop(user)
            for position, operand in enumerate(user.operands):
                if operand is old:
                    user.operands[position] = new
            new.uses[user] = new.uses.get(user, 0) + count
            for listener in self.listeners:
                listener.changed(user)
        if not new.name and new.constant is None:
            new.name = old.name
        self.epochs.topology += 1

    def replace_constant(self, old: Value, new: Value) -> list[Node]:
        """Let this graph and its regions use another constant; copies that share the old one keep it.

        Gives the nodes that used it.
        """
        changed = []
        for each in self.all_graphs():
            for node in [user for user in old.users if user.graph is each]:
                for position, operand in enumerate(node.operands):
                    if operand is old:
                        each.set_operand(node, position, new)
                changed.append(node)
            if each in old.uses:
                each.set_outputs([new if value is old else value for value in each.outputs], each.output_names)
        return changed

    def renumber(self) -> None:
        """Make every node's `position` its place in the list."""
        for position, node in enumerate(self):
            node.position = position

    def _link(self, node: Node, before: Node | None) -> None:
        previous = before.previous if before is not None else self.last
        node.previous, node.next = previous, before
        if previous is None:
            self.first = node
        else:
            previous.next = node
        if before is None:
            self.last = node
        else:
            before.previous = node
        node.position = previous.position + 1 if previous is not None else 0

    def _unlink(self, node: Node) -> None:
        if node.previous is None:
            self.first = node.next
        else:
            node.previous.next = node.next
        if node.next is None:
            self.last = node.previous
        else:
            node.next.previous = node.previous

    def __repr__(self) -> str:
        return f"<graph {self.name}: {len(self.inputs)} inputs, {self.node_count} nodes, {len(self._outputs)} outputs>"


def _drop_use(value: Value, user: Node | Graph) -> None:
    count = value.uses.get(user, 0)
    if count > 1:
        value.uses[user] = count - 1
    elif count:
        del value.uses[user]


def constant_value(data: Any, element: Element | None = None, name: str = "") -> Value:
    """A constant value from a `Constant` or from anything numpy understands."""
    held = data if isinstance(data, Constant) else constants.constant(data, element)
    value = Value(TensorType(held.element, held.shape), name)
    value.constant = held
    return value


def as_value(operand: Any, like: Value | None = None) -> Value:
    """A value from a value, an array, or a number (which takes the element of `like`)."""
    if isinstance(operand, Value):
        return operand
    if isinstance(operand, Constant):
        return constant_value(operand)
    if isinstance(operand, bool | int | float) and like is not None and like.element.storage.kind != "string":
        return constant_value(np.asarray(operand, like.element.dtype), like.element.storage)
    return constant_value(operand)
