"""Rounding ties: when a quantized model may differ by a quantizer's step from another run of it.

Sums in another order, or a batch norm folded into weights, move a number by a few last bits; a quantizer makes a whole
step of that where the number lies on the border between two, and later layers carry it on. Such a difference proves
nothing against an artifact. `stepwise` tells it from a fault: it takes the artifact's own result of each quantizer as
given, computes the original model from there to the next one in f64, and asks whether the artifact's next result is
what the exact number, or one within rounding of it, is quantized to. What is no quantizer must agree as ever.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from espalier.ir import Graph, Node, Value
from espalier.ir.ops.quantization import Dequantize, FakeQuantize, MultiThreshold, Quantize
from espalier.ir.xp import numpy as xp

Arrays = dict[str, NDArray[Any]]
SLACKS = (1e-7, 3e-7, 1e-6)
"""How far from a border a number may be for its rounding to count as a tie, relative to the largest of its tensor."""


def quantizers(graph: Graph) -> list[Node]:
    """The nodes that round something which depends on the model's inputs."""
    depend: set[Value] = set(graph.inputs)
    found = []
    for node in graph:
        if any(operand in depend for operand in node.operands):
            depend.update(node.results)
            if isinstance(node.op, (FakeQuantize, MultiThreshold, Quantize)):
                found.append(node)
    return found


def stepwise(path: Path, backend: str, feeds: Sequence[Arrays], outputs: Sequence[Arrays]) -> dict[str, Any]:
    """What became of each quantizer's results in an artifact that gave these outputs.

    Returns:
        `proven`, and if not, `reason`; `ties`, the numbers that another run may round the other way, `of` how many;
        `distance`, the largest from a border, relative to the largest of its tensor; `difference` of the outputs, from
        the last quantizer on, relative to the largest.
    """
    from espalier.frontends import load

    graph = load(path)
    names = [node.results[0].name for node in quantizers(graph)]
    inner = _observed(path, backend, names, feeds, outputs)
    for found, wanted in zip(inner, outputs, strict=True):
        found.update(_before(graph, wanted))
    total: dict[str, Any] = {"proven": True, "ties": 0, "of": 0, "distance": 0.0, "difference": 0.0}
    for feed, found in zip(feeds, inner, strict=True):
        step = _walk(graph, feed, found, set(names))
        if "reason" in step:
            return {"proven": False, **step}
        for key, combine in (("ties", sum), ("of", sum), ("distance", max), ("difference", max)):
            total[key] = combine((total[key], step[key]))
    return total


def _observed(
    path: Path, backend: str, names: Sequence[str], feeds: Sequence[Arrays], outputs: Sequence[Arrays]
) -> list[Arrays]:
    """What an artifact's quantizers of these names give, from artifacts that have them as outputs.

    Outputs change what is computed in one go, and so, now and then, which way a tie goes. Where the model's own outputs
    change with it, fewer are observed at a time.
    """
    import espalier

    model = onnx.load(path)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    with tempfile.TemporaryDirectory() as folder:
        run = espalier.compile(model, device="cpu", backend=backend, output=Path(folder) / "artifact").load()
        inner = [run(feed) for feed in feeds]
    same = all(np.array_equal(a[name], b[name]) for a, b in zip(inner, outputs, strict=True) for name in b)
    if same or len(names) <= 1:
        return inner
    middle = len(names) // 2
    parts = [_observed(path, backend, part, feeds, outputs) for part in (names[:middle], names[middle:])]
    return [{**first, **second} for first, second in zip(*parts, strict=True)]


def _before(graph: Graph, outputs: Arrays) -> Arrays:
    """These outputs, and what the quantizers right before them must have given.

    Where observing them changed the outputs, that these follow from the results of other quantizers all the same, but
    for ties, is as good a proof.
    """
    found = dict(outputs)
    last = set(quantizers(graph))
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        node = value.producer
        before = node.operands[0].producer if node is not None and isinstance(node.op, Dequantize) else None
        if node is None or before is None or before not in last or not isinstance(before.op, Quantize):
            continue
        there, back = ([value and value.constant for value in each.operands[1:]] for each in (before, node))
        if all(weights is not None for weights in there + back):
            there, back = ([weights.array for weights in each] for each in (there, back))
            if all(map(np.array_equal, there, back)):
                found[before.results[0].name] = before.op.reference(xp, outputs[name], *there)
    return found


def _walk(graph: Graph, feed: Arrays, found: Arrays, names: set[str]) -> dict[str, Any]:
    """One run of the original in f64, with an artifact's results at the quantizers."""
    store: dict[Value, Any] = {value: _wide(feed[value.name]) for value in graph.inputs}
    ties = of = 0
    distance = 0.0

    def read(value: Value | None) -> Any:
        if value is None:
            return None
        return _wide(value.constant.array) if value.constant is not None else store[value]

    for node in graph:
        operands = [read(operand) for operand in node.operands]
        name = node.results[0].name
        if name not in names:
            results = node.op.reference(xp, *operands)
            store.update(zip(node.results, results if isinstance(results, tuple) else (results,), strict=False))
            continue
        mine, (x, *rest) = _wide(found[name]), operands
        exact = node.op.reference(xp, x, *rest)
        off = ~np.isclose(mine, exact, rtol=1e-6, atol=1e-6 * float(np.max(np.abs(exact), initial=0)))
        of += off.size
        ties += int(off.sum())
        if off.any():
            needed = next((slack for slack in SLACKS if _within(node, x, rest, mine, off, slack)), None)
            if needed is None:
                reason = f"{name}: a result is not what any number within {SLACKS[-1]} of the exact one rounds to"
                return {"reason": reason}
            distance = max(distance, needed)
        store[node.results[0]] = mine
    difference = 0.0
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        exact = read(value)
        scale = float(np.max(np.abs(exact), initial=0)) or 1.0
        difference = max(difference, float(np.max(np.abs(exact - found[name]), initial=0)) / scale)
    return {"ties": ties, "of": of, "distance": distance, "difference": difference}


def _within(node: Node, x: Any, rest: Sequence[Any], mine: Any, off: Any, slack: float) -> bool:
    """Whether results are those of numbers at most so far from x: quantizers are monotone."""
    room = slack * float(np.max(np.abs(x), initial=0))
    a, b = node.op.reference(xp, x - room, *rest), node.op.reference(xp, x + room, *rest)
    margin = 1e-6 * float(np.max(np.abs(mine), initial=0))
    inside = (mine >= np.minimum(a, b) - margin) & (mine <= np.maximum(a, b) + margin)
    return bool(np.all(inside[off]))


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype == np.float32 else array
