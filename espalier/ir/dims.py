"""Dimensions: what the entries of a shape are.

A static extent is a plain ``int``. Anything else is a `Dim`: a polynomial with integer coefficients in named symbols,
with floor division, modulo, minimum and maximum as further atoms. Polynomials are kept in one canonical form, so that
equal expressions compare equal. Symbols stand for integers ≥ 1 when they divide.
"""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import NamedTuple, NoReturn, TypeAlias

Dimension: TypeAlias = "int | Dim"
Shape: TypeAlias = tuple[Dimension, ...]


class Atom(NamedTuple):
    """An indivisible factor: a symbol (`kind` is "symbol"), or a function of two dimensions."""

    kind: str
    name: str
    operands: tuple[Dimension, ...] = ()

    def __str__(self) -> str:
        if self.kind != "symbol":
            return f"{self.kind}({self.operands[0]}, {self.operands[1]})"
        plain = self.name.isidentifier() and self.name.isascii() and not keyword.iskeyword(self.name)
        return self.name if plain else quoted(self.name)


def quoted(text: str) -> str:
    """Python's literal in double quotes, the only ones that readers of the text form look for, and in ASCII."""
    escaped = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'


Monomial: TypeAlias = tuple[tuple[Atom, int], ...]  # atoms with their powers, sorted by text


class NotANumberError(TypeError):
    """A number is wanted where a dimension is symbolic."""


class Dim:
    """A symbolic dimension. Use `symbol`, arithmetic, and the functions of this module; never the constructor."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Dim) and self._hash == other._hash and self.terms == other.terms)

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dimension) -> Dimension:
        return _combine((self, 1), (other, 1))

    __radd__ = __add__

    def __sub__(self, other: Dimension) -> Dimension:
        return _combine((self, 1), (other, -1))

    def __rsub__(self, other: Dimension) -> Dimension:
        return _combine((other, 1), (self, -1))

    def __neg__(self) -> Dimension:
        return _combine((self, -1))

    def __mul__(self, other: Dimension) -> Dimension:
        return _multiply(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dimension) -> Dimension:
        return floor_divide(self, other)

    def __rfloordiv__(self, other: Dimension) -> Dimension:
        return floor_divide(other, self)

    def __mod__(self, other: Dimension) -> Dimension:
        return modulo(self, other)

    def __rmod__(self, other: Dimension) -> Dimension:
        return modulo(other, self)

    def __bool__(self) -> bool:
        raise NotANumberError(
            f"the symbolic dimension {self} has no truth value; compare with == or test isinstance(…, int)"
        )

    def _number(self, *_: object) -> NoReturn:
        raise NotANumberError(f"a number is needed, but the dimension {self} is not known before run time")

    __int__ = __float__ = __index__ = __abs__ = __round__ = __ceil__ = __floor__ = __trunc__ = _number
    __lt__ = __le__ = __gt__ = __ge__ = _number
    __truediv__ = __rtruediv__ = __divmod__ = __rdivmod__ = __pow__ = __rpow__ = _number

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in self.terms:
            factors = [str(atom) for atom, power in monomial for _ in range(power)]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            parts.append(("-" if coefficient < 0 else "+" if parts else "") + "*".join(factors))
        return "".join(parts)

    __repr__ = __str__


def _terms(dim: Dimension) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Dim) else (((), int(dim)),) if dim else ()


def _monomial_key(monomial: Monomial) -> tuple[int, str]:
    return -sum(power for _, power in monomial), "*".join(f"{atom}^{power}" for atom, power in monomial)


def _canonical(terms: Mapping[Monomial, int]) -> Dimension:
    kept = [(monomial, coefficient) for monomial, coefficient in terms.items() if coefficient]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return Dim(tuple(sorted(kept, key=lambda term: _monomial_key(term[0]))))


def _combine(*weighted: tuple[Dimension, int]) -> Dimension:
    total: dict[Monomial, int] = {}
    for dim, weight in weighted:
        for monomial, coefficient in _terms(dim):
            total[monomial] = total.get(monomial, 0) + weight * coefficient
    return _canonical(total)


TERMS = 1 << 12
"""Of a product of sums, before equal ones are added up; products of products of sums grow without end."""
TERMS_READ = 64
"""The same where a dimension is read from text."""


def _multiply(a: Dimension, b: Dimension) -> Dimension:
    """a·b. Raises OverflowError where both are sums and the product would have more than `TERMS` terms."""
    lefts, rights = _terms(a), _terms(b)
    if len(lefts) > 1 and len(rights) > 1 and len(lefts) * len(rights) > TERMS:
        raise OverflowError(f"the product of sums of {len(lefts)} and {len(rights)} extents has too many terms")
    total: dict[Monomial, int] = {}
    for left, x in lefts:
        for right, y in rights:
            powers = dict(left)
            for atom, power in right:
                powers[atom] = powers.get(atom, 0) + power
            monomial = tuple(sorted(powers.items(), key=lambda item: str(item[0])))
            total[monomial] = total.get(monomial, 0) + x * y
    return _canonical(total)


def _atom(kind: str, name: str, *operands: Dimension) -> Dim:
    return Dim(((((Atom(kind, name, operands), 1),), 1),))


@cache
def symbol(name: str) -> Dim:
    """The dimension named `name` (any text; printed as it is, quoted where it is no identifier)."""
    return _atom("symbol", name)


def _divide_exactly(a: Dimension, b: Dimension) -> Dimension | None:
    """a/b if b is a single term that divides every term of a, or a multiple of b as a whole."""
    if a == b:
        return 1
    divisor = _terms(b)
    if len(divisor) != 1:
        quotient = _terms(a)[0][1] // divisor[0][1] if _terms(a) and divisor else 0
        return quotient if quotient and _multiply(b, quotient) == a else _divide_polynomial(a, b)
    (monomial, coefficient), result = divisor[0], {}
    for powers, value in _terms(a):
        left = dict(powers)
        for atom, power in monomial:
            left[atom] = left.get(atom, 0) - power
        if value % coefficient or any(power < 0 for power in left.values()):
            return None
        result[tuple((atom, power) for atom, power in left.items() if power)] = value // coefficient
    return _canonical(result)


def _divide_polynomial(a: Dimension, b: Dimension) -> Dimension | None:
    """Long division by leading terms; None unless it leaves no remainder."""
    quotient: Dimension = 0
    for _ in range(8):
        if a == 0:
            return quotient
        lead_a, lead_b = _terms(a)[0], _terms(b)[0]
        step = _divide_exactly(_canonical(dict([lead_a])), _canonical(dict([lead_b])))
        if step is None:
            return None
        quotient, a = quotient + step, a - _multiply(step, b)
    return None


def floor_divide(a: Dimension, b: Dimension) -> Dimension:
    """⌊a/b⌋; whatever divides exactly is taken out of the floor."""
    if b == 0:
        raise ZeroDivisionError(f"{a} is divided by zero")
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    exact = _divide_exactly(a, b)
    if exact is not None:
        return exact
    if isinstance(b, int) and isinstance(a, Dim):
        whole = _canonical({monomial: value // b for monomial, value in a.terms})
        rest = a - whole * b
        return whole + (rest // b if isinstance(rest, int) else _nested_floor(rest, b))
    return _atom("floordiv", "", a, b)


def _nested_floor(rest: Dim, divisor: int) -> Dimension:
    """⌊rest/divisor⌋, with ⌊⌊x/a⌋/b⌋ = ⌊x/(a·b)⌋."""
    if (exact := _without_remainder(rest, divisor)) is not None:
        return exact
    if len(rest.terms) == 1:
        monomial, coefficient = rest.terms[0]
        if coefficient == 1 and len(monomial) == 1 and monomial[0][1] == 1 and monomial[0][0].kind == "floordiv":
            inner, inner_divisor = monomial[0][0].operands
            if isinstance(inner_divisor, int):
                return floor_divide(inner, inner_divisor * divisor)
    return _atom("floordiv", "", rest, divisor)


def _without_remainder(rest: Dim, divisor: int) -> Dimension | None:
    """rest/divisor where a modulo in it takes the remainder away, as x − x mod a is a multiple of a; None otherwise."""
    for monomial, coefficient in rest.terms:
        if not monomial or monomial[0][0].kind != "mod" or (coefficient + 1) % divisor:
            continue
        (atom, power), *others = monomial
        dividend, modulus = atom.operands
        if others or power != 1 or not isinstance(modulus, int) or modulus % divisor:
            continue
        remainder = _atom(*atom[:2], *atom.operands)
        left = _divide_exactly(rest - remainder * coefficient - dividend, divisor)
        if left is not None:
            whole = floor_divide(dividend, modulus) * (modulus // divisor)
            return left + whole + remainder * ((coefficient + 1) // divisor)
    return None


def modulo(a: Dimension, b: Dimension) -> Dimension:
    """a − b·⌊a/b⌋."""
    if b == 0:
        raise ZeroDivisionError(f"{a} is divided by zero")
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if _divide_exactly(a, b) is not None:
        return 0
    if isinstance(b, int) and isinstance(a, Dim):
        a = _canonical({monomial: value % b for monomial, value in a.terms})
        if isinstance(a, Dim) and _without_remainder(a, b) is not None:
            return 0
    return a % b if isinstance(a, int) and isinstance(b, int) else _atom("mod", "", a, b)


def minimum(a: Dimension, b: Dimension) -> Dimension:
    """min(a, b)."""
    difference = a - b
    if isinstance(difference, int):
        return a if difference <= 0 else b
    return _atom("min", "", *sorted((a, b), key=str))


def maximum(a: Dimension, b: Dimension) -> Dimension:
    """max(a, b)."""
    difference = a - b
    if isinstance(difference, int):
        return a if difference >= 0 else b
    return _atom("max", "", *sorted((a, b), key=str))


def broadcast(a: Dimension, b: Dimension) -> Dimension:
    """The extent that two axes of unknown extents broadcast to: the other one if one is 1, else what both are."""
    if a == b or b == 1 or _is_part(b, a):
        return a
    if a == 1 or _is_part(a, b):
        return b
    if isinstance(a, int) or isinstance(b, int):  # the other one is that too, or 1
        return a if isinstance(a, int) else b
    if all((least := lower_bound(each)) is not None and least >= 1 for each in (a, b)):
        return maximum(a, b)
    return maximum(a, b) * minimum(minimum(a, b), 1)  # 0 where one is


def _is_part(a: Dimension, b: Dimension) -> bool:
    """Whether a is min(b, c) for some c from 2 on, which is 1 only where b is: if they broadcast, they are equal."""
    if not isinstance(a, Dim) or len(a.terms) != 1 or a.terms[0][1] != 1 or len(a.terms[0][0]) != 1:
        return False
    atom, power = a.terms[0][0][0]
    others = [operand for operand in atom.operands if operand != b]
    if power != 1 or atom.kind != "min" or len(others) != 1:
        return False
    least = lower_bound(others[0])
    return least is not None and least >= 2


def ceil_divide(a: Dimension, b: Dimension) -> Dimension:
    """⌈a/b⌉."""
    return -floor_divide(-a, b)


def product(dims: Iterable[Dimension]) -> Dimension:
    """The product of the dimensions; 1 for none."""
    number = 1
    total: Dimension | None = None
    for dim in dims:
        if isinstance(dim, Dim):
            total = dim if total is None else total * dim
        else:
            number *= dim
    if total is None or number == 0:
        return number
    return total if number == 1 else total * number


_NUMBERS = frozenset([int])


def is_static(shape: Iterable[Dimension]) -> bool:
    """Whether every dimension is a number."""
    return _NUMBERS.issuperset(map(type, shape))  # asked so often that a generator would show


def substitute(dim: Dimension, bindings: Mapping[str, Dimension]) -> Dimension:
    """The dimension with symbols replaced; symbols without a binding stay."""
    if not isinstance(dim, Dim):
        return dim
    total: Dimension = 0
    for monomial, coefficient in dim.terms:
        value: Dimension = coefficient
        for atom, power in monomial:
            factor = _substitute_atom(atom, bindings)
            for _ in range(power):
                value = value * factor
        total = total + value
    return total


def _substitute_atom(atom: Atom, bindings: Mapping[str, Dimension]) -> Dimension:
    if atom.kind == "symbol":
        return bindings.get(atom.name, _atom("symbol", atom.name))
    return FUNCTIONS[atom.kind](*(substitute(operand, bindings) for operand in atom.operands))


FUNCTIONS: dict[str, Callable[[Dimension, Dimension], Dimension]] = {
    "floordiv": floor_divide, "mod": modulo, "min": minimum, "max": maximum,
}  # fmt: skip


def symbols(dim: Dimension) -> set[str]:
    """The names of all symbols in a dimension."""
    if not isinstance(dim, Dim):
        return set()
    names: set[str] = set()
    for monomial, _ in dim.terms:
        for atom, _ in monomial:
            if atom.kind == "symbol":
                names.add(atom.name)
            for operand in atom.operands:
                names |= symbols(operand)
    return names


def symbol_name(dim: Dimension) -> str | None:
    """The name, if the dimension is one bare symbol."""
    if isinstance(dim, Dim) and len(dim.terms) == 1:
        monomial, coefficient = dim.terms[0]
        if coefficient == 1 and len(monomial) == 1 and monomial[0][1] == 1 and monomial[0][0].kind == "symbol":
            return monomial[0][0].name
    return None


def parse(text: str) -> Dimension:
    """A dimension from its printed form. Raises ValueError on anything else, and on products of many sums."""
    try:
        return _from_syntax(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(f"not a dimension: {text!r}") from error


def _from_syntax(node: ast.expr) -> Dimension:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return symbol(node.value)
    if isinstance(node, ast.Name):
        return symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_from_syntax(node.operand)
    if isinstance(node, ast.BinOp):
        left, right = _from_syntax(node.left), _from_syntax(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult) and len(_terms(left)) * len(_terms(right)) <= TERMS_READ:
            return left * right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return FUNCTIONS[node.func.id](*(_from_syntax(argument) for argument in node.args))
    raise ValueError(f"not a dimension: {ast.dump(node)}")


def common_factor(a: Dimension, b: Dimension) -> Dimension:
    """The largest factor that is seen to divide both; for numbers, the greatest common divisor."""
    if isinstance(a, int) and isinstance(b, int):
        return math.gcd(a, b)
    for small, large in ((a, b), (b, a)):
        if small != 0 and _divide_exactly(large, small) is not None:
            return small
    return 1


def reach(dim: Dimension, extent: int, most: int) -> int:
    """A number that |dim| does not exceed where symbols are at most `extent`, and products of them at most `most`."""
    if isinstance(dim, int):
        return abs(dim)
    total = 0
    for monomial, coefficient in dim.terms:
        bound = abs(coefficient) * min(extent ** sum(power for _, power in monomial), most)
        for atom, power in monomial:
            if atom.kind != "symbol":
                of = {"mod": atom.operands[1:], "floordiv": atom.operands[:1]}.get(atom.kind, atom.operands)
                bound *= max(1, -(-max(reach(operand, extent, most) for operand in of) // extent)) ** power
        total += bound
    return total


def lower_bound(dim: Dimension) -> int | None:
    """A number that the dimension is never below, given that symbols are at least 0; None if none is seen."""
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, coefficient in dim.terms:
        if monomial and coefficient < 0:
            return _bound_without(dim, monomial, coefficient)
        bound = 1
        for atom, power in monomial:
            factor = _atom_bound(atom)
            if factor is None or factor < 0:
                return None
            bound *= factor**power
        total += coefficient * bound
    return total


def _bound_without(dim: Dim, monomial: Monomial, coefficient: int) -> int | None:
    """`lower_bound` of a dimension from which a function is subtracted, by what the function never exceeds."""
    (atom, power), *others = monomial
    if others or power != 1 or atom.kind == "symbol":
        return None
    rest = dim - _multiply(coefficient, Dim(((monomial, 1),)))
    first, second = atom.operands
    if atom.kind in ("min", "max"):
        bounds = [lower_bound(rest + coefficient * operand) for operand in (first, second)]
        known = [bound for bound in bounds if bound is not None]
        if atom.kind == "min":
            return max(known, default=None)
        return min(known) if len(known) == 2 else None
    least = lower_bound(second)
    if least is None or least < 1:
        return None
    if atom.kind == "mod":
        return lower_bound(rest + coefficient * (second - 1))
    dividend = lower_bound(first)
    return lower_bound(rest + coefficient * first) if dividend is not None and dividend >= 0 else None


def _atom_bound(atom: Atom) -> int | None:
    if atom.kind == "symbol":
        return 0
    bounds = [lower_bound(operand) for operand in atom.operands]
    known = [bound for bound in bounds if bound is not None]
    if atom.kind == "max":
        return max(known, default=None)
    if atom.kind == "min":
        return min(known) if len(known) == 2 else None
    divisor = atom.operands[1]
    if atom.kind == "mod":
        return 0 if bounds[1] is not None and bounds[1] > 0 else None
    return bounds[0] // divisor if bounds[0] is not None and isinstance(divisor, int) and divisor > 0 else None
