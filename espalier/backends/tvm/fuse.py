"""Which tensors of the DAG get a buffer, and which are computed inside the kernels that use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from espalier.backends.tvm import layout
from espalier.backends.tvm.tensor import Access, Alias, Constant, Fold, Input, Map, Part, Product, Program, Tensor

CHEAP = 2
"""What may be computed again rather than stored, in additions."""
WEIGHT_LIMIT = 300
"""Additions and reads in one kernel's expression; larger ones are cut, to keep compilation fast."""
GUARDED = 4
"""Tensors that may be computed one from another within a branch; TVM takes time exponential in their number."""
Consumers: TypeAlias = dict[Tensor, list[tuple[Tensor, Access]]]
"""Who reads a tensor, and how."""
_ORDER: dict[Access, int] = {"same": 0, "once": 1, "many": 2}


@dataclass
class Plan:
    """The kernels in order, and what has a buffer."""

    roots: list[Tensor]
    """Tensors that a kernel (or an alias) makes, producers first."""
    stored: set[Tensor]
    fused: dict[Tensor, list[Tensor]] = field(default_factory=dict)
    """Root → the folds and products that its kernel computes on the way."""


def in_order(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Every tensor that the outputs need, operands first."""
    found: list[Tensor] = []
    seen: set[Tensor] = set()
    stack = [(tensor, False) for tensor in reversed(outputs)]
    while stack:
        tensor, done = stack.pop()
        if done:
            found.append(tensor)
        elif tensor not in seen:
            seen.add(tensor)
            stack.append((tensor, True))
            stack.extend((operand, False) for operand in reversed(tensor.operands))
    return found


def plan(outputs: Sequence[Tensor]) -> Plan:
    """Decide, consumers first, for each tensor whether its only reader's kernel can compute it; and the layouts."""
    order = in_order(outputs)
    if layout.stage(outputs, order):
        order = in_order(outputs)
    consumers: Consumers = {tensor: [] for tensor in order}
    for tensor in order:
        for operand, access in zip(tensor.operands, tensor.access, strict=True):
            consumers[operand].append((tensor, access))
    wanted = set(outputs)
    stored, fused = _decided(order, consumers, wanted)
    if narrower := _narrower(order, consumers, stored):
        stored, fused = _decided(order, consumers, wanted | narrower)
    roots = [tensor for tensor in order if tensor in stored and not isinstance(tensor, Input | Constant | Part)]
    layout.spread(outputs, order, roots)
    return Plan(roots, stored, {root: list(reversed(folds)) for root, folds in fused.items()})


def _decided(
    order: Sequence[Tensor], consumers: Consumers, wanted: set[Tensor]
) -> tuple[set[Tensor], dict[Tensor, list[Tensor]]]:  # fmt: skip
    """What has a buffer, as what is wanted has, and the folds and products of each root, consumers first."""
    stored: set[Tensor] = set()
    sinks: dict[Tensor, Tensor | None] = {}
    paths: dict[Tensor, Access] = {}
    repeated: dict[Tensor, int] = {}
    weights: dict[Tensor, int] = {}
    fused: dict[Tensor, list[Tensor]] = {}
    deep: dict[Tensor, int] = {}
    for tensor in reversed(order):
        if (
            isinstance(tensor, Constant)
            and tensor.array.size == 1
            and tensor not in wanted
            and not _needs_buffer(tensor, consumers)
        ):
            continue
        if (
            isinstance(tensor, Input | Constant | Program | Part | Alias)
            or tensor in wanted
            or _needs_buffer(tensor, consumers)
        ):
            stored.add(tensor)
            continue
        sink, path, again = _reader(tensor, consumers[tensor], stored, sinks, paths, repeated)
        if isinstance(tensor, Map):
            weight = 1 + tensor.cost
            room = sink is None or weights.get(sink, 0) + weight <= WEIGHT_LIMIT
            depth = max((deep.get(consumer, 0) for consumer, _ in consumers[tensor]), default=0) + (tensor.cost > 0)
            room = room and (path == "same" or depth <= GUARDED)
            alone = sink is not None and path != "many" and (path == "same" or len(consumers[tensor]) == 1)
            cheap = tensor.cost + again <= CHEAP
            if tensor.cost and not (room and (alone or cheap)):
                stored.add(tensor)
                continue
            deep[tensor] = depth if path != "same" else 0
            sinks[tensor] = sink if alone or tensor.cost == 0 else None
            paths[tensor], repeated[tensor] = path, 0 if alone else again + tensor.cost
            if sink is not None:
                weights[sink] = weights.get(sink, 0) + weight
        elif sink is not None and path == "same" and _covers(sink, tensor, fused.get(sink, [])):
            sinks[tensor], paths[tensor], repeated[tensor] = sink, path, 0
            fused.setdefault(sink, []).append(tensor)
        else:
            stored.add(tensor)
    return stored, fused


def _narrower(order: Sequence[Tensor], consumers: Consumers, stored: set[Tensor]) -> set[Tensor]:
    """What to keep rather than a product that another kernel was to go on from: the narrowest of what follows from it.

    Such are the sums of a quantized convolution that are quantized before another's are added.
    """
    found: set[Tensor] = set()
    for product in order:
        if not isinstance(product, Product) or product not in stored:
            continue
        best: Tensor = product
        tensor: Tensor = product
        while len(consumers[tensor]) == 1:
            ((consumer, access),) = consumers[tensor]
            if access != "same" or not isinstance(consumer, Map) or consumer in stored:
                break
            if not _covers(consumer, product, []):
                break
            tensor = consumer
            if tensor.element.bits < best.element.bits:
                best = tensor
        if best is not product:
            found.add(best)
    return found


def _needs_buffer(tensor: Tensor, consumers: Consumers) -> bool:
    return any(isinstance(consumer, Product | Program | Alias) for consumer, _ in consumers[tensor])


def _reader(
    tensor: Tensor,
    consumers: Sequence[tuple[Tensor, Access]],
    stored: set[Tensor],
    sinks: dict[Tensor, Tensor | None],
    paths: dict[Tensor, Access],
    repeated: dict[Tensor, int],
) -> tuple[Tensor | None, Access, int]:
    """The one kernel that reads a tensor (None: several), how, and the cost of what is computed again on the way."""
    found: set[Tensor | None] = set()
    worst: Access = "same"
    again = 0
    for consumer, access in consumers:
        inlined = consumer not in stored and not isinstance(consumer, Fold | Product)
        found.add(consumer if consumer in stored else sinks.get(consumer) if inlined else None)
        path = access
        if inlined:
            path = max(access, paths.get(consumer, "same"), key=_ORDER.__getitem__)
            again = max(again, repeated.get(consumer, 0))
        if consumer not in stored and isinstance(consumer, Fold | Product):
            # read inside of a fold that is itself part of another kernel
            found.discard(None)
            found.add(sinks.get(consumer))
            path = "many" if access == "many" else "once"
        worst = max(worst, path, key=_ORDER.__getitem__)
    return (found.pop() if len(found) == 1 else None), worst, again


def _covers(sink: Tensor, fold: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether a kernel's loops run over exactly the fold's entries; those of a product are for it alone."""
    if not isinstance(sink, Map) or [e for e in sink.shape if e != 1] != [e for e in fold.shape if e != 1]:
        return False
    return not others if isinstance(fold, Product) else not any(isinstance(other, Product) for other in others)
