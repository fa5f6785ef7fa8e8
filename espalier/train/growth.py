"""When and where to grow while training: natural expansion scores, and trials of candidates.

A model's natural gradient score is gᵀF⁻¹g: how much a natural gradient step gains to first order. An expansion that
keeps the function adds parameters whose gradient the old ones cannot follow; by how much it raises the score tells what
it is worth (Mitchell et al., arXiv:2307.04526). The Fisher matrix is approximated layer by layer by A ⊗ B (K-FAC,
arXiv:1503.05671; for convolutions arXiv:1602.01407), with damping: A of what a layer's weights read, B of the gradients
of what it gives. For more inputs of a layer the gain is then that of the Schur complement, and never negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from espalier.analysis.parameters import parametric
from espalier.errors import InputError
from espalier.ir import Graph, Node, Value
from espalier.ir.axes import Equation
from espalier.ir.clone import clone
from espalier.ir.inference import type_context
from espalier.ir.op import TypeInferenceError
from espalier.ir.terms import letters
from espalier.ir.xp import torch as xp
from espalier.train.module import GraphModule, to_torch

Objective: TypeAlias = Callable[[GraphModule, Sequence[torch.Tensor], "torch.Tensor | None"], torch.Tensor]
"""Module, inputs and labels to a loss, averaged over the samples."""
Batches: TypeAlias = Sequence[tuple[Sequence[torch.Tensor], "torch.Tensor | None"]]
"""Inputs and labels (None without) of each batch; the first axis of the first input counts samples."""


@dataclass(frozen=True)
class Expansion:
    """A way to make a model larger that keeps what it computes: `apply` changes a graph in place."""

    name: str
    apply: Callable[[Graph], None]


class Layer(NamedTuple):
    """A node that is linear in a weight.

    Attributes:
        operand, data: positions of the weight and of what it multiplies.
        axis, out: the axis of its results, in the weight and in the result.
        biased: whether something is added along that axis.
    """

    node: Node
    operand: int
    data: int
    axis: int
    out: int
    biased: bool

    @property
    def name(self) -> str:
        return self.node.operand(self.operand).name or self.node.results[0].name


def layers(graph: Graph) -> list[Layer]:
    """The nodes that multiply something computed by a weight of which one axis is that of the results."""
    fixed = parametric(graph)
    found = []
    for node in graph:
        if fixed.issuperset(node.results) or not node.op.contracts or len(node.results) != 1 or node.regions:
            continue
        try:
            equation = node.op.equation(type_context(graph, node, lambda: "unknown"))
        except TypeInferenceError:
            continue
        if equation is not None and not equation.normalized:
            layer = _layer(node, equation, fixed)
            if layer is not None:
                found.append(layer)
    return found


def _layer(node: Node, equation: Equation, fixed: set[Value]) -> Layer | None:
    result = equation.results[0] or []
    data, weights, biased = [], [], False
    for position, (value, terms) in enumerate(zip(node.operands, equation.operands, strict=False)):
        if value is None or terms is None:
            continue
        if value.constant is None and value not in fixed:
            data.append(position)
            continue
        kept = [
            (axis, out)
            for axis, term in enumerate(terms)
            for out, other in enumerate(result)
            if {id(v) for v in letters(term)} & {id(v) for v in letters(other)}
        ]
        whole = all(len(list(letters(terms[axis]))) == 1 == len(list(letters(result[out]))) for axis, out in kept)
        contracted = len({axis for axis, _ in kept}) < len(terms)
        if contracted and len(kept) == 1 and whole and value.element.storage.kind == "float":
            weights.append((position, *kept[0]))
        elif contracted:
            return None
        else:
            biased = True
    optional = all(
        port.optional for port in node.op.operands[: len(node.operands)] if port.position not in (0, 1) or port.variadic
    )
    if len(data) != 1 or len(weights) != 1 or (biased and not optional):
        return None
    (operand, axis, out) = weights[0]
    read, own = ({id(v) for t in equation.operands[k] or () for v in letters(t)} for k in (data[0], operand))
    if read & own & {id(v) for term in result for v in letters(term)}:
        return None  # a product for each index of what both have, as a depthwise convolution is: no one matrix
    return Layer(node, operand, data[0], axis, out, biased)


def features(layer: Layer, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """What each number of a layer's weight (of this shape) multiplies, per row of results: (rows, numbers).

    The layer itself tells: with an identity as its weight it gives what it reads (patches, for a convolution).
    """
    rest = [extent for axis, extent in enumerate(shape) if axis != layer.axis]
    count = int(np.prod(rest))
    identity = torch.eye(count, dtype=x.dtype, device=x.device).reshape(count, *rest).movedim(0, layer.axis)
    operands: list[Any] = [None] * len(layer.node.operands)
    operands[layer.data], operands[layer.operand] = x, identity
    while operands[-1] is None:
        operands.pop()
    read: torch.Tensor = layer.node.op.reference(xp, *operands).movedim(layer.out, -1).reshape(-1, count)
    if layer.biased:
        read = torch.cat([read, read.new_ones(len(read), 1)], 1)
    return read


@dataclass
class Score:
    """The natural gradient score of a model: per layer gᵀF⁻¹g, and the damping with which it was taken."""

    of: dict[str, float] = field(default_factory=dict)
    damping: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.of.values())


def natural_score(
    graph: Graph, batches: Batches, objective: Objective, *, damping: float = 1e-2, like: Score | None = None
) -> Score:
    """The score of all layers on some batches.

    Args:
        damping: what is added to the diagonals of A and B, relative to their mean.
        like: take the damping of this score for layers of the same name (and its mean for others), so that scores of
            a model and of its expansions can be compared.

    Raises:
        InputError: E201 for a damping that is not positive, E212 without batches.
    """
    if not damping > 0:
        raise InputError("E201", f"damping={damping} is not positive")
    if not batches:
        raise InputError("E212", "natural scores need data")
    module, found = to_torch(graph), layers(graph)
    wanted = {layer.node.operand(layer.data) for layer in found}
    sums: list[list[torch.Tensor]] = [[] for _ in found]
    samples = 0
    counts = [0] * len(found)
    for inputs, labels in batches:
        held: dict[Value, torch.Tensor] = dict(zip(graph.inputs, inputs, strict=True))
        results: dict[Node, torch.Tensor] = {}
        nodes = {layer.node for layer in found}

        def observe(
            node: Node,
            values: Sequence[Any],
            held: dict[Value, torch.Tensor] = held,
            results: dict[Node, torch.Tensor] = results,
            nodes: set[Node] = nodes,
        ) -> None:
            held.update((v, r.detach()) for v, r in zip(node.results, values, strict=False) if v in wanted)
            if node in nodes:
                results[node] = values[0]

        loss = objective(_Observed(module, observe), inputs, labels)  # type: ignore[arg-type]  # called alike
        size = len(inputs[0])
        gradients = torch.autograd.grad(
            loss, [results[layer.node] for layer in found], allow_unused=True, materialize_grads=True
        )
        for k, (layer, gradient) in enumerate(zip(found, gradients, strict=True)):
            shape = layer.node.operand(layer.operand).shape
            a = features(layer, held[layer.node.operand(layer.data)], shape).double()
            channels = results[layer.node].shape[layer.out]
            d = gradient.detach().movedim(layer.out, -1).reshape(-1, channels).double() * size
            terms = [a.T @ a, d.T @ d, d.T @ a]
            sums[k] = [x + y for x, y in zip(sums[k], terms, strict=True)] if sums[k] else terms
            counts[k] += len(d)
        samples += size
    score = Score()
    means = np.mean(list(like.damping.values()), 0) if like is not None and like.damping else None
    for layer, (aa, dd, da), count in zip(found, sums, counts, strict=True):
        aa, dd, da = aa / samples, dd / count, da / samples
        own = damping * float(aa.diagonal().mean()), damping * float(dd.diagonal().mean())
        if like is not None:
            own = like.damping.get(layer.name) or (own if means is None else (float(means[0]), float(means[1])))
        name = layer.name if layer.name not in score.of else f"{layer.name}#{len(score.of)}"
        score.of[name], score.damping[name] = _quadratic(aa, dd, da, own), own
    return score


class _Observed:
    """A module that tells of everything that it computes."""

    def __init__(self, module: GraphModule, observe: Callable[[Node, Sequence[Any]], None]) -> None:
        self.module, self.observe = module, observe

    def __call__(self, *inputs: torch.Tensor) -> list[Any]:
        return self.module.forward(*inputs, observe=self.observe)


def _quadratic(a: torch.Tensor, b: torch.Tensor, g: torch.Tensor, damping: tuple[float, float]) -> float:
    """tr(A⁻¹ Gᵀ B⁻¹ G), damped."""
    tiny = torch.finfo(a.dtype).tiny
    a = a + max(damping[0], tiny) * torch.eye(len(a), dtype=a.dtype)
    b = b + max(damping[1], tiny) * torch.eye(len(b), dtype=b.dtype)
    return float((torch.linalg.solve(b, g) * torch.linalg.solve(a, g.T).T).sum())


@dataclass(frozen=True)
class Gain:
    """What an expansion adds to the score."""

    name: str
    before: float
    after: float

    @property
    def gain(self) -> float:
        return self.after - self.before


def gains(
    graph: Graph, expansions: Sequence[Expansion], batches: Batches, objective: Objective, *, damping: float = 1e-2
) -> list[Gain]:
    """What each expansion adds to the score of a graph, which stays as it is."""
    before = natural_score(graph, batches, objective, damping=damping)
    found = []
    for expansion in expansions:
        grown = clone(graph)
        expansion.apply(grown)
        after = natural_score(grown, batches, objective, damping=damping, like=before)
        found.append(Gain(expansion.name, before.total, after.total))
    return found


@dataclass(frozen=True)
class Policy:
    """When to expand: if the best expansion raises the score enough, and the last one is long enough ago.

    Attributes:
        threshold: what the score must be multiplied by, at least; above 1.
        least: what must be added to the score, at least.
        cooldown: rounds of training after an expansion without another.
        parameters: numbers in weights that the model must not exceed; None: any.
        expansions: how many in all; None: any.
        damping: see `natural_score`.
    """

    threshold: float = 1.05
    least: float = 0.0
    cooldown: int = 1
    parameters: int | None = None
    expansions: int | None = None
    damping: float = 1e-2

    def __post_init__(self) -> None:
        if not self.threshold >= 1 or self.least < 0 or self.cooldown < 0:
            message = f"threshold={self.threshold}, least={self.least}, cooldown={self.cooldown}: one is too small"
            raise InputError("E201", message)


@dataclass(frozen=True)
class Round:
    """One round of training: what was measured after it, and the expansion that was made (empty: none)."""

    number: int
    expansion: str
    before: float | None
    after: float | None
    parameters: int


def grow_while_training(
    graph: Graph,
    rounds: int,
    train: Callable[[Graph, int], Graph],
    expansions: Callable[[Graph, int], Sequence[Expansion]],
    batches: Batches,
    objective: Objective,
    policy: Policy | None = None,
) -> tuple[Graph, list[Round]]:
    """Train in rounds, and after each expand where that adds most to the natural score, if it adds enough.

    Args:
        train: a graph and the number of the round, from 0, to the graph with trained weights.
        expansions: a graph and the number of the round to the ways to expand it.
        batches: the data of the score.

    Returns: the graph, trained after its last expansion unless that was made last, and what happened.
    """
    policy, history = policy or Policy(), []
    cooling = made = 0
    for number in range(rounds):
        graph = train(graph, number)
        name, before, after = "", None, None
        last = number == rounds - 1
        if cooling:
            cooling -= 1
        elif not last and (policy.expansions is None or made < policy.expansions):
            allowed = [e for e in expansions(graph, number) if _fits(graph, e, policy)]
            found = gains(graph, allowed, batches, objective, damping=policy.damping)
            best = max(zip(found, allowed, strict=True), key=lambda entry: entry[0].gain, default=None)
            if best is not None:
                before, after = best[0].before, best[0].after
                if after > policy.threshold * before and best[0].gain > policy.least:
                    graph = clone(graph)
                    best[1].apply(graph)
                    name, cooling, made = best[1].name, policy.cooldown, made + 1
        history.append(Round(number, name, before, after, parameters(graph)))
    return graph, history


def parameters(graph: Graph) -> int:
    """The numbers in what looks learned, tied weights once."""
    return sum(parameter.numel() for parameter in to_torch(graph).parameters())


def _fits(graph: Graph, expansion: Expansion, policy: Policy) -> bool:
    if policy.parameters is None:
        return True
    grown = clone(graph)
    expansion.apply(grown)
    return parameters(grown) <= policy.parameters


def inherit(graph: Graph, momentum: float, seed: int = 0) -> Graph:
    """A copy with weights m·θ + (1 − m)·θ′, θ′ drawn anew with θ's mean and standard deviation (arXiv:2308.11331).

    Weights of one axis (norms, biases) stay. With momentum 1, all do. Raises InputError E201 outside of 0 to 1.
    """
    if not 0 <= momentum <= 1:
        raise InputError("E201", f"momentum={momentum} is not from 0 to 1")
    made = clone(graph)
    if momentum == 1:
        return made
    module, generator = to_torch(made), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                fresh = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                fresh = fresh * parameter.double().std() + parameter.double().mean()
                parameter.mul_(momentum).add_((1 - momentum) * fresh.to(parameter.dtype))
    return module.write_back(made)


@dataclass(frozen=True)
class Choice:
    """The candidate with the smallest loss, trained, and the losses of all; the model as it is has the name ""."""

    graph: Graph
    name: str
    losses: dict[str, float]


def try_expansions(
    graph: Graph,
    expansions: Sequence[Expansion],
    train: Callable[[Graph], Graph],
    evaluate: Callable[[Graph], float],
    *,
    momentum: float = 1.0,
    seed: int = 0,
) -> Choice:
    """Expand in each way, train briefly, keep what validates best (the candidate loop of GrowCLIP, arXiv:2308.11331).

    Args:
        train: a graph to the graph after brief training.
        evaluate: a graph to its loss on held-out data.
        momentum: how much of its weights a candidate inherits, see `inherit`; 1: all, as in Net2Net.

    Raises:
        InputError: E201 for a momentum outside of 0 to 1, or if no candidate's loss is finite.
    """
    best: tuple[float, str, Graph] | None = None
    losses: dict[str, float] = {}
    for expansion in (Expansion("", lambda same: None), *expansions):
        candidate = clone(graph)
        expansion.apply(candidate)
        candidate = train(inherit(candidate, momentum, seed))
        loss = losses[expansion.name] = float(evaluate(candidate))
        if np.isfinite(loss) and (best is None or loss < best[0]):
            best = (loss, expansion.name, candidate)
    if best is None:
        raise InputError("E201", "no candidate has a finite loss", hint="Train with a smaller learning rate.")
    return Choice(best[2], best[1], losses)
