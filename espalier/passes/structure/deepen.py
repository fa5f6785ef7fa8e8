"""Deepening: more layers after chosen activations, and the model still computes the same."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from espalier.analysis.coupling import Coupling, couple, describe
from espalier.analysis.patterns import has_windows, is_elementwise
from espalier.errors import InputError, UnsupportedError
from espalier.ir import Builder, Graph, Node, Value, constant_value
from espalier.ir.execute import run
from espalier.ir.op import lookup
from espalier.ir.terms import letters
from espalier.ir.xp import numpy as xp
from espalier.passes.base import GROWS, Context, Pass, graph_pass
from espalier.passes.samples import try_graph
from espalier.passes.structure.importance import check_finite

Kind = Literal["auto", "identity", "residual"]
Array = NDArray[Any]
PROBE = np.linspace(-8.0, 8.0, 1601)
REACH = 64
"""How many nodes before an activation are searched for its layer."""


@dataclass(frozen=True)
class Spot:
    """A place for a layer: after this node, along this axis.

    Attributes:
        layer: the contraction whose results the node transforms.
        norm: the normalisation between them that has running statistics, if there is one.
        axis: the channels.
    """

    node: Node
    layer: Node
    norm: Node | None
    axis: int

    @property
    def value(self) -> Value:
        return self.node.results[0]

    @property
    def channels(self) -> int:
        extent = self.value.shape[self.axis]
        assert isinstance(extent, int)
        return extent

    @property
    def is_named(self) -> tuple[str, ...]:
        """The names that patterns may match."""
        return (self.value.name, *self.node.location.names)


NOWHERE = "no activation follows a layer after which one more could be inserted"


@graph_pass("deepen", semantics=GROWS)
class Deepen(Pass):
    """Insert layers that change nothing yet: identity layers, or residual bodies whose last layer is zero.

    After an activation that is idempotent (ReLU, a clip) stands an identity layer and the activation once more
    (Net2Deeper, arXiv:1511.05641): a convolution with a Dirac kernel, or a linear layer. If the model has batch norms
    there, so has the new layer, with statistics of the given data (or those that the norm before implies), and scale
    and shift that undo them. After others (GELU, SiLU, hard-swish; a sum, in a transformer), where that would change
    the outputs, stands x + W₂·σ(W₁·x) with W₂ = 0.

    Attributes:
        after: patterns of the names of activations (or of sums, if named), separated by `;`; any activation if empty.
        count: how many layers, spread over the places that there are; 0: one at each. If it is not given: one layer, or
            one at each place that `after` names.
        kind: identity, residual, or what fits the activation (auto).
        kernel: extent of a convolution's kernel; 0: as in the layer before (1 if that is even).
        seed: of the first weights of residual bodies; None takes the run's.
        optional: a model in which no layer fits is left as it is, and the summary says so, instead of refusing it.
    """

    after: str = ""
    count: int | None = None
    kind: Kind = "auto"
    kernel: int = 0
    seed: int | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if self.count is not None and (type(self.count) is not int or self.count < 0):
            raise InputError("E201", f"count={self.count!r} is no number from 0 on")
        if self.kind not in get_args(Kind):
            raise InputError("E201", f"kind={self.kind!r} is none of {', '.join(get_args(Kind))}")
        if self.kernel < 0 or (self.kernel and self.kernel % 2 == 0):
            raise InputError("E201", f"kernel={self.kernel} is no odd number: it has no middle")

    def run(self, graph: Graph, context: Context) -> int:
        coupling = couple(graph)
        check_finite(coupling)
        places = list(spots(coupling, all_nodes=bool(self.after)))
        found = self.chosen(places)
        rng = np.random.default_rng(context.seed if self.seed is None else self.seed)
        moments = _measured(graph, found, context) if context.data is not None else {}
        done: list[dict[str, Any]] = []
        for spot in found:
            if not context.may_rewrite():
                break
            done.append(insert(graph, spot, rng, context, self.kind, self.kernel, moments.get(spot.node)))
        lines = [
            f"deepened after {row['after']}: {row['kind']} of {row['channels']} channels, {', '.join(row['weights'])}"
            for row in done
        ]
        if not found:
            lines.append(f"not deepened: {NOWHERE}")
        elif self.count and self.count > len(found):
            lines.append(f"{len(found)} layers, not {self.count}: there are no more places")
        lines += [f"{reason} (×{count})" for reason, count in context.reasons.items()]
        context.details = {"deepened": done, "places": len(places), "summary": lines}
        return len(done)

    def chosen(self, found: Sequence[Spot]) -> list[Spot]:
        """The places that the options ask for. Raises InputError E202, UnsupportedError E402."""
        patterns = [pattern.strip() for pattern in self.after.split(";") if pattern.strip()]
        for pattern in patterns:
            if not any(pattern == name or fnmatch.fnmatchcase(name, pattern) for s in found for name in s.is_named):
                raise InputError(
                    "E202",
                    f"no activation after a layer is called {pattern!r}",
                    hint="`espalier inspect` lists nodes; one is needed that follows a convolution or linear layer.",
                )
        fitting = [s for s in found if not patterns or any(_named(s, pattern) for pattern in patterns)]
        if self.kind == "identity":
            for spot in fitting:
                if patterns and not is_idempotent(spot.node):
                    raise UnsupportedError(
                        "E402",
                        f"{describe(spot.node)} applied twice is not the same as once: an identity layer there would "
                        "change the outputs",
                        hint="Use kind=residual, or auto.",
                    )
            fitting = [spot for spot in fitting if is_idempotent(spot.node)]
        if not fitting and not self.optional:
            raise UnsupportedError("E402", NOWHERE)
        count = (0 if patterns else 1) if self.count is None else self.count
        if not count or count >= len(fitting):
            return fitting
        picks = np.linspace(0, len(fitting) - 1, count + 2)[1:-1].round().astype(int)
        return [fitting[pick] for pick in dict.fromkeys(picks.tolist())]


def _named(spot: Spot, pattern: str) -> bool:
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in spot.is_named)


# ---- where ------------------------------------------------------------------------------------------------------


def spots(coupling: Coupling, all_nodes: bool = False) -> Iterator[Spot]:
    """Where layers may go: after elementwise nonlinear nodes that transform a layer's results and feed something else.

    With `all_nodes`, linear ones (sums) too.
    """
    for node in coupling.graph:
        value = node.results[0] if len(node.results) == 1 else None
        if value is None or not _keeps_shape(node) or value.element.storage.kind != "float":
            continue
        if all(is_elementwise(user.op) for user in value.users) and not value.is_output:
            continue
        if not (all_nodes or _is_nonlinear(node)):
            continue
        found = _layer_before(coupling, node)
        if found is not None:
            yield found


def _keeps_shape(node: Node) -> bool:
    """Whether it maps numbers one by one: all that it computes from has its result's shape (or is one number)."""
    value, op = node.results[0], node.op
    if op.moves or op.contracts or op.axes is None or node.regions or value.rank is None or value.rank < 2:
        return False
    shapes = {operand.shape for operand in node.inputs if operand.constant is None}
    scalars = all(operand.constant.size == 1 or is_elementwise(op) for operand in node.inputs if operand.constant)
    return shapes == {value.shape} and scalars and (is_elementwise(op) or len(op.operands) > 1)


def _function(node: Node, *arrays: Array) -> Array:
    """The node on other numbers for what it computes from; constants of several numbers are taken as they are."""
    given = iter(arrays)
    operands = [None if v is None else v.array if v.constant is not None else next(given) for v in node.operands]
    with np.errstate(all="ignore"):
        return np.asarray(node.op.reference(xp, *operands))


def _computed(node: Node) -> int:
    return sum(operand is not None and operand.constant is None for operand in node.operands)


def _simple(node: Node) -> bool:
    """Whether it is a function of one number alone."""
    sizes = [operand.constant.size for operand in node.inputs if operand.constant is not None]
    return _computed(node) == 1 and all(size == 1 for size in sizes)


def _is_nonlinear(node: Node) -> bool:
    if not _simple(node):
        # products of two computed factors, say; sums are linear
        return _computed(node) > 1 and not _is_additive(node)
    array = PROBE.astype(node.results[0].element.dtype)
    found = np.asarray(_function(node, array), np.float64)
    bends = np.abs(np.diff(found, 2))
    continuous = len(np.unique(found)) > len(PROBE) // 8  # rounding gives few numbers
    return bool(np.all(np.isfinite(found)) and continuous and bends.max() > 1e-5)


def _is_additive(node: Node) -> bool:
    if any(operand.constant is not None and operand.constant.size > 1 for operand in node.inputs):
        return True
    rng, kind = np.random.default_rng(0), node.results[0].element.dtype
    a, b = (
        [rng.standard_normal(64).astype(kind) for _ in range(_computed(node))] for _ in range(2)
    )  # two points of the domain
    both = _function(node, *(x + y for x, y in zip(a, b, strict=True)))
    zero = _function(node, *(np.zeros_like(x) for x in a))
    return bool(np.allclose(both + zero, _function(node, *a) + _function(node, *b), rtol=1e-2, atol=1e-2))


def is_idempotent(node: Node) -> bool:
    """Whether applying the node twice is the same as once, and it is a function of one number."""
    return node.op.idempotent and _simple(node)


def _layer_before(coupling: Coupling, node: Node) -> Spot | None:
    """The nearest contraction with weights of which the node's result is a function, channel by channel."""
    shape, norm = node.results[0].shape, None
    waiting, seen = [node], {node}
    for current in waiting:
        if len(waiting) > REACH:
            return None
        if current.op.moves_on and norm is None and len(waiting) <= 2:
            norm = current
        if current.op.contracts:
            axis = _channels(coupling, current)
            if axis is None or not isinstance(shape[axis], int):
                return None
            return Spot(node, current, norm, axis)
        for operand in current.inputs:
            before = operand.producer
            if before is not None and before not in seen and operand.shape == shape and not before.regions:
                seen.add(before)
                waiting.append(before)
    return None


def _channels(coupling: Coupling, layer: Node) -> int | None:
    """The axis of a layer's result that its weights make: the second of a convolution's, the last of others'."""
    equation, shape = coupling.equations.get(layer), layer.results[0].shape
    if equation is None or len(layer.results) != 1 or shape is None or not equation.results[0]:
        return None
    made = {
        id(letter)
        for value, terms in zip(layer.operands, equation.operands, strict=False)
        if value is not None and value.constant is not None
        for term in terms or ()
        for letter in letters(term)
    }
    axes = [axis for axis, term in enumerate(equation.results[0]) if any(id(x) in made for x in letters(term))]
    slides = has_windows(layer.op)
    wanted = 1 if slides else len(shape) - 1
    return wanted if wanted in axes and (not slides or len(shape) > 2) else None


# ---- what -------------------------------------------------------------------------------------------------------


def _is_convolution(spot: Spot) -> bool:
    return spot.axis != (spot.value.rank or 0) - 1


def _kernel(spot: Spot, wanted: int) -> tuple[int, ...]:
    """The spatial extents of a convolution's kernel."""
    spatial = (spot.value.rank or 0) - 2
    weights = [v.constant.shape for v in spot.layer.inputs if v.constant is not None and len(v.shape) == spatial + 2]
    if wanted or not weights:
        return (wanted or 1,) * spatial
    return tuple(extent if extent % 2 else 1 for extent in weights[0][2:])


def _layer(builder: Builder, x: Value, spot: Spot, weight: Array, bias: Array, group: int, name: str) -> Value:
    """A convolution or linear layer; weight is (out, in, kernel…)."""
    kind = x.element.dtype
    shift = constant_value(bias.astype(kind), name=f"{name}.bias")
    if _is_convolution(spot):
        half = [extent // 2 for extent in weight.shape[2:]]
        made = constant_value(weight.astype(kind), name=f"{name}.weight")
        found: Value = builder.conv(x, made, shift, pads=(*half, *half), group=group)
        return found
    made = constant_value(np.ascontiguousarray(weight.T).astype(kind), name=f"{name}.weight")
    summed: Value = builder.add(builder.matmul(x, made), shift)
    return summed


def _take_over(graph: Graph, old: Value, new: Value, inside: set[Node]) -> None:
    """Let every user of a value but these use another."""
    for user in list(old.users):
        if user not in inside:
            for position, operand in enumerate(user.operands):
                if operand is old:
                    graph.set_operand(user, position, new)
    if old.is_output:
        graph.set_outputs([new if value is old else value for value in graph.outputs], graph.output_names)


def _start(graph: Graph, spot: Spot, by: str) -> tuple[Builder, str, Node | None]:
    taken = {value.name for value in graph.constants()}
    base = f"{spot.value.name or spot.node.op.name}.deeper"
    name, k = base, 1
    while f"{name}.weight" in taken or f"{name}.0.weight" in taken:
        k += 1
        name = f"{base}{k}"
    return Builder(graph, spot.node.next, spot.node.location.touched(by)), name, spot.node


def _inserted(first: Node | None, last: Node) -> set[Node]:
    found, node = {last}, last
    while node.previous is not None and node.previous is not first:
        node = node.previous
        found.add(node)
    return found


def insert(
    graph: Graph,
    spot: Spot,
    rng: np.random.Generator,
    context: Context,
    kind: Kind = "auto",
    kernel: int = 0,
    moments: tuple[Array, Array] | None = None,
) -> dict[str, Any]:
    """Insert a layer at a spot; `moments` are mean and variance per channel there. See `Deepen`.

    Returns what was inserted, as JSON: `after`, `kind`, `channels`, `weights`.
    """
    before = {value.name for value in graph.constants()}
    after = spot.value.name or "+".join(spot.node.location.names) or spot.node.op.name
    residual = kind == "residual" or (kind == "auto" and not is_idempotent(spot.node))
    if residual:
        _insert_residual(graph, spot, kernel, rng, "deepen")
    else:
        _insert_identity(graph, spot, kernel, moments, context, "deepen")
    made = [value.name for value in graph.constants() if value.name not in before]
    shown = "residual body" if residual else "identity layer"
    return {"after": after, "kind": shown, "channels": spot.channels, "weights": made}


def _insert_identity(
    graph: Graph, spot: Spot, kernel: int, moments: tuple[Array, Array] | None, context: Context, by: str
) -> None:
    builder, name, first = _start(graph, spot, by)
    channels, group = spot.channels, 1
    extents: tuple[int, ...] = ()
    if _is_convolution(spot):
        group = spot.layer.op.attributes.get("group", 1)
        extents = _kernel(spot, kernel)
    weight = np.zeros((channels, channels // group, *extents))
    middle = tuple(extent // 2 for extent in extents)
    for channel in range(channels):
        weight[(channel, channel % (channels // group), *middle)] = 1
    y = _layer(builder, spot.value, spot, weight, np.zeros(channels), group, name)
    moments = moments or _implied(spot)
    if spot.norm is not None and moments is not None:
        mean, variance = moments
        epsilon = spot.norm.op.attributes["epsilon"]
        numbers = {"weight": np.sqrt(variance + epsilon), "bias": mean, "running_mean": mean, "running_var": variance}
        kind = y.element.dtype
        y = builder.batch_norm(
            y,
            *(constant_value(array.astype(kind), name=f"{name}.norm.{part}") for part, array in numbers.items()),
            epsilon=epsilon,
        )
    elif spot.norm is not None:
        context.reasons["a layer was inserted without a batch norm: its statistics need data"] += 1
    operands = [y if v is not None and v.constant is None else v for v in spot.node.operands]
    last = builder.node(spot.node.op, operands)
    _take_over(graph, spot.value, last.results[0], _inserted(first, last))


def _implied(spot: Spot) -> tuple[Array, Array] | None:
    """Mean and variance per channel of an activation right after a batch norm, if what enters it is normal."""
    norm = spot.norm
    if norm is None or norm.results[0] not in spot.node.operands or not _simple(spot.node):
        return None
    if any(norm.operand(k).constant is None for k in (1, 2)):
        return None
    scale, shift = (norm.operand(k).array.astype(np.float64) for k in (1, 2))
    points, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    array = (shift[:, None] + scale[:, None] * points).astype(spot.value.element.dtype)
    numbers = np.asarray(_function(spot.node, array), np.float64)
    mean = numbers @ weights
    return mean, np.maximum((numbers - mean[:, None]) ** 2 @ weights, 0)


def _measured(graph: Graph, found: Sequence[Spot], context: Context) -> dict[Node, tuple[Array, Array]]:
    """Mean and variance per channel after nodes, on the data."""
    wanted = {spot.node: spot for spot in found if spot.norm is not None}
    moments: dict[Node, tuple[Array, Array]] = {}

    def observe(node: Node, results: Sequence[Any]) -> None:
        spot = wanted.get(node)
        if spot is not None:
            array = np.asarray(results[0], np.float64)
            axes = tuple(axis for axis in range(array.ndim) if axis != spot.axis)
            moments[node] = array.mean(axes), array.var(axes)

    if wanted:
        run(graph, try_graph(graph, context.seed, context.data).inputs, observe=observe)
    return moments


def _insert_residual(graph: Graph, spot: Spot, kernel: int, rng: np.random.Generator, by: str) -> None:
    builder, name, first = _start(graph, spot, by)
    channels = spot.channels
    extents = _kernel(spot, kernel) if _is_convolution(spot) else ()
    x = _normalized(builder, spot, name)
    deviation = np.sqrt(2 / (channels * np.prod(extents, dtype=float)))
    weight = rng.normal(0, deviation, (channels, channels, *extents))
    hidden = _layer(builder, x, spot, weight, np.zeros(channels), 1, f"{name}.0")
    same = _simple(spot.node) and _is_nonlinear(spot.node)
    op = spot.node.op if same else lookup("relu")()
    operands = [hidden if v is not None and v.constant is None else v for v in spot.node.operands] if same else [hidden]
    hidden = builder.node(op, operands).results[0]
    nothing = np.zeros((channels, channels, *(1 for _ in extents)))
    body = _layer(builder, hidden, spot, nothing, np.zeros(channels), 1, f"{name}.1")
    last = builder.node(lookup("add")(), [spot.value, body])
    _take_over(graph, spot.value, last.results[0], _inserted(first, last))


def _normalized(builder: Builder, spot: Spot, name: str) -> Value:
    """What enters a residual body: normalised as by what reads the value now, with parameters of its own."""
    for user in spot.value.users:
        numbers = user.operands[1:]
        own = all(v is not None and v.constant is not None and v.shape == (spot.channels,) for v in numbers)
        if (
            numbers
            and own
            and user.operands[0] is spot.value
            and user.op.normalizes == ()
            and _over_channels(user, spot)
        ):
            fresh = [constant_value(np.array(v.array), name=f"{name}.norm.{k}") for k, v in enumerate(numbers) if v]
            return builder.node(user.op, [spot.value, *fresh]).results[0]
    return spot.value


def _over_channels(user: Node, spot: Spot) -> bool:
    """Whether a node computes statistics over the channels."""
    from espalier.ir.inference import type_context

    assert user.graph is not None
    equation = user.op.equation(type_context(user.graph, user, lambda: "unknown"))
    if equation is None or not equation.operands[0]:
        return False
    own = {id(letter) for letter in letters(equation.operands[0][spot.axis])}
    return any(id(letter) in own for term in equation.normalized for letter in letters(term))
