"""What a kernel is written with: scopes that hold computed values, and loops around statements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import tvm
from tvm import tirx

from espalier.backends.tvm import numbers
from espalier.backends.tvm.tensor import Constant, Expr, Fold, Index, Map, Product, Tensor
from espalier.errors import UnsupportedError
from espalier.ir import dims
from espalier.ir.dims import Dim, Dimension

Statement = Any


@cache
def integer(value: int) -> Expr:
    """An int64 immediate; one object for each number, so that equal indices are seen to be equal."""
    return tirx.IntImm("int64", value)


def sequence(statements: Sequence[Statement]) -> Statement:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def loop(variable: Expr, extent: Expr, body: Statement, kind: str = "serial") -> Statement:
    """for variable in range(extent): body."""
    kinds = {
        "serial": tirx.ForKind.SERIAL, "parallel": tirx.ForKind.PARALLEL,
        "vectorized": tirx.ForKind.VECTORIZED, "unrolled": tirx.ForKind.UNROLLED,
    }  # fmt: skip
    return tirx.For(variable, integer(0), extent, kinds[kind], body)


def launched(body: Statement) -> Statement:
    """The statement, run by every thread: they share its parallel loops, of which there must be one at least."""
    return tirx.AttrStmt(integer(0), "pragma_parallel_launch_point", integer(1), body)


def awaited(body: Statement) -> Statement:
    """In a launch, outside of parallel loops: the statement, after which a thread waits until all have come so far."""
    return tirx.AttrStmt(integer(0), "pragma_parallel_barrier_when_finish", integer(1), body)


def knowing(functions: str, body: Statement) -> Statement:
    """The statement, which may call functions that LLVM's text defines, if there are any."""
    return tirx.AttrStmt(integer(0), "pragma_import_llvm", functions, body) if functions else body


class Names:
    """Variable names of one kernel: a letter and a count, never anything from the model."""

    def __init__(self) -> None:
        self.count = 0

    def variable(self, letter: str, dtype: str = "int64") -> Expr:
        self.count += 1
        return tirx.Var(f"{letter}{self.count}", dtype)


class Kernel:
    """The function being written: its buffers, symbols and names."""

    def __init__(self) -> None:
        self.names = Names()
        self.buffers: dict[Tensor, Expr] = {}
        """Tensors that are read from memory."""
        self.symbols: dict[str, Expr] = {}
        self.cells: dict[int, Expr] = {}
        """Reads of bound values, by identity."""
        self.folds: Mapping[Tensor, Any] = {}
        """Folds whose state is at hand → a function that gives their entry."""
        self.splits: dict[int, tuple[Expr, Expr, Expr, int]] = {}
        """Indices that were composed of a block and a lane, by identity, the two, and how many lanes a block has."""
        self.analyzer = tvm.sym.Analyzer()

    def symbol(self, name: str) -> Expr:
        if name not in self.symbols:
            self.symbols[name] = tirx.Var(f"d{len(self.symbols)}", "int64")
        return self.symbols[name]

    def dim(self, dimension: Dimension) -> Expr:
        return dimension_expression(dimension, self.symbol)

    def lane(self, lanes: int) -> Expr:
        """A variable that counts the lanes of a block."""
        variable = self.names.variable("l")
        self.analyzer.bind(variable, tvm.ir.Range(integer(0), integer(lanes)))
        return variable

    def composed(self, block: Expr, lane: Expr, lanes: int) -> Expr:
        """The index of a lane of a block; buffers in blocks of as many are then read without dividing."""
        index = block * integer(lanes) + lane
        self.splits[id(index)] = (index, block, lane, lanes)
        return index

    def block(self, index: Expr) -> Expr:
        """The block of a composed index."""
        return self.splits[id(index)][1]

    def place(self, tensor: Tensor, index: Index) -> list[Expr]:
        """Where an entry lies in a tensor's buffer."""
        layout = tensor.layout
        if layout is None:
            return list(index)
        channel, lanes = index[1], integer(layout.lanes)
        _, block, lane, composed = self.splits.get(id(channel), (channel, None, None, 0))
        if composed != layout.lanes:
            block, lane = (self.analyzer.simplify(part(channel, lanes)) for part in (tirx.floordiv, tirx.floormod))
        positions = [
            entry + integer(before) if before else entry
            for entry, (before, _) in zip(index[2:], layout.halo, strict=True)
        ]
        return [index[0], block, *positions, lane]


def dimension_expression(dimension: Dimension, symbol: Callable[[str], Expr]) -> Expr:
    """A dimension as an int64 expression of the symbols' variables."""
    if not isinstance(dimension, Dim):
        return integer(int(dimension))
    total: Expr = None
    for monomial, coefficient in dimension.terms:
        term: Expr = None
        for atom, power in monomial:
            factor = symbol(atom.name) if atom.kind == "symbol" else _atom(atom, symbol)
            for _ in range(power):
                term = factor if term is None else term * factor
        if term is None:
            term = integer(coefficient)
        elif coefficient != 1:
            term = term * integer(coefficient)
        total = term if total is None else total + term
    return total


def _atom(atom: dims.Atom, symbol: Callable[[str], Expr]) -> Expr:
    a, b = (dimension_expression(operand, symbol) for operand in atom.operands)
    if atom.kind in ("floordiv", "mod") and isinstance(atom.operands[1], Dim):
        b = tirx.max(b, integer(1))  # a division by 0 would end the process
    functions = {"floordiv": tirx.floordiv, "mod": tirx.floormod, "min": tirx.min, "max": tirx.max}
    return functions[atom.kind](a, b)


EXPRESSION_LIMIT = 4000
"""Entries read while one expression is written; beyond, something was inlined that should not have been."""


class Scope:
    """Writes expressions of entries at one place of a kernel; values bound here are computed before the statement.

    A bound value is kept in a buffer of one entry rather than in a variable: TVM's simplifier looks through variables
    and grows exponentially, and LLVM makes a register of either (but in TVM's scope "local" it would lie on the heap).
    Inside an expression (a branch that may not be evaluated) there are only variables; a branch that needs any becomes
    a statement where it can. In a loop of vectors, `lanes` (its variable, and how many there are), the buffer has an
    entry for each lane and is allocated outside.
    """

    def __init__(
        self,
        kernel: Kernel,
        parent: Scope | None = None,
        expression: bool = False,
        lanes: tuple[Expr, int] = (integer(0), 1),
    ) -> None:
        self.kernel, self.parent, self.expression, self.lanes = kernel, parent, expression, lanes
        self.variables: list[tuple[Expr, Expr]] = []
        """What is bound in an expression, …"""
        self.nested = False
        """… and whether anything is in a branch of it."""
        self.allocations: list[Statement] = []
        """The buffers of what is bound in statements."""
        self.computed: list[Statement] = []
        """The statements that compute it."""
        self.memo: dict[tuple[Tensor, tuple[int, ...]], tuple[Expr, Index]] = {}
        self.reads: int = 0 if parent is None else parent.reads

    def dim(self, dimension: Dimension) -> Expr:
        return self.kernel.dim(dimension)

    def bind(self, value: Expr) -> Expr:
        if isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm) or id(value) in self.kernel.cells:
            return value
        dtype = str(value.ty.dtype)
        if self.expression:
            variable = self.kernel.names.variable("v", dtype)
            self.variables.append((variable, value))
            return variable
        cell = self.cell(dtype)
        self.computed.append(tirx.BufferStore(cell, value, [self.lanes[0]]))
        return self.entry(cell)

    def cell(self, dtype: str) -> Expr:
        """A buffer for one value, in each lane."""
        cell = tirx.decl_buffer([integer(self.lanes[1])], dtype, self.kernel.names.variable("v").name, layout=None)
        self.allocations.append(tirx.AllocBuffer(cell))
        return cell

    def entry(self, cell: Expr) -> Expr:
        """What lies in a cell."""
        found = tirx.BufferLoad(cell, [self.lanes[0]])
        self.kernel.cells[id(found)] = found
        return found

    def read(self, tensor: Tensor, index: Index) -> Expr:
        """The expression of a tensor's entry."""
        key = (tensor, tuple(map(id, index)))
        scope: Scope | None = self
        while scope is not None:
            if key in scope.memo:
                return scope.memo[key][0]
            scope = scope.parent
        found = self._compute(tensor, index)
        self.memo[key] = (found, index)  # keeps the index alive, so that ids stay unique
        return found

    def whole(self, tensor: Tensor, index: Index) -> Expr:
        """The expression of an entry of integers as a float."""
        if self.kernel.buffers.get(tensor) is None and isinstance(tensor, Map) and tensor.whole is not None:
            self.reads += 1
            return self.bind(tensor.whole(Reader(self, tensor), index))
        return tirx.Cast("float32", self.read(tensor, index))

    def _compute(self, tensor: Tensor, index: Index) -> Expr:
        self.reads += 1
        if self.reads > EXPRESSION_LIMIT:
            raise UnsupportedError("E402", "an expression of this operator grows too large for one TVM kernel")
        buffer = self.kernel.buffers.get(tensor)
        if buffer is not None:
            return numbers.load(tensor.element, tirx.BufferLoad(buffer, self.kernel.place(tensor, index)), self.bind)
        if isinstance(tensor, Constant):
            return numbers.immediate(_only(tensor), numbers.expression_type(tensor.element))
        if isinstance(tensor, Fold | Product):
            return self.bind(self.kernel.folds[tensor](self, index))
        assert isinstance(tensor, Map), tensor
        found = tensor.body(Reader(self, tensor), index)
        return self.bind(found) if tensor.cost > 0 else found

    def inner(self, expression: bool = False) -> Scope:
        return Scope(self.kernel, self, expression or self.expression, self.lanes)

    def as_expression(self, value: Expr) -> Expr:
        """The value with everything bound here around it."""
        assert self.expression
        for variable, bound in reversed(self.variables):
            value = tirx.Let(variable, bound, value)
        return value

    def as_statements(self, *last: Statement) -> Statement:
        """What is bound here, then the statements."""
        assert not self.expression
        return sequence([*self.allocations, *self.computed, *last])


def _only(tensor: Constant) -> Any:
    value = tensor.array.reshape(-1)[0]
    return float(value) if tensor.element.is_float else int(value)


class Reader:
    """What one tensor's code sees: see `tensor.At`."""

    def __init__(self, scope: Scope, tensor: Tensor) -> None:
        self.scope, self.tensor = scope, tensor

    def __call__(self, operand: int, index: Index) -> Expr:
        return self.scope.read(self.tensor.operands[operand], index)

    def whole(self, operand: int, index: Index) -> Expr:
        return self.scope.whole(self.tensor.operands[operand], index)

    def dim(self, dimension: Dimension) -> Expr:
        return self.scope.dim(dimension)

    def bind(self, value: Expr) -> Expr:
        return self.scope.bind(value)

    def guard(self, condition: Expr, yes: Callable[[], Expr], no: Expr) -> Expr:
        return self.choose(condition, yes, lambda: no)

    def choose(self, condition: Expr, yes: Callable[[], Expr], no: Callable[[], Expr]) -> Expr:
        """One of two, of which only the one taken may be computed."""
        outer, scopes, values = self.scope, [], []
        before = outer.reads
        for branch in (yes, no):
            value, scope = self._within(outer.inner(expression=True), branch)
            values.append(scope.as_expression(value))
            scopes.append(scope)
        binds = any(scope.variables or scope.nested for scope in scopes)
        if outer.expression or outer.lanes[1] > 1 or not binds:
            outer.nested |= binds
            return tirx.if_then_else(condition, *values)
        # TVM's simplifier takes time that is exponential in the number of variables within one another
        outer.reads = before  # it is written anew
        cell, stores = outer.cell(str(values[0].ty.dtype)), []
        for branch in (yes, no):
            value, scope = self._within(outer.inner(), branch)
            outer.allocations += scope.allocations
            stores.append(sequence([*scope.computed, tirx.BufferStore(cell, value, [outer.lanes[0]])]))
        outer.computed.append(tirx.IfThenElse(condition, *stores))
        return outer.entry(cell)

    def _within(self, scope: Scope, branch: Callable[[], Expr]) -> tuple[Expr, Scope]:
        """What a branch gives when it is written in an inner scope, and the scope; what it reads counts outside too."""
        outer, self.scope = self.scope, scope
        try:
            return branch(), scope
        finally:
            self.scope, outer.reads = outer, scope.reads
