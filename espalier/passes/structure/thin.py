"""Thinner dense blocks: layers read fewer of the layers before them (HarDNet, ThreshNet)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from espalier.analysis.coupling import couple
from espalier.errors import InputError
from espalier.ir import Graph, Value
from espalier.passes.base import Context, Pass, approximates, graph_pass
from espalier.passes.rules.cleanup import DeadCode
from espalier.passes.structure.connections import Cut, Reader, blocks
from espalier.passes.structure.report import total_macs

Pattern = Literal["harmonic", "nearest"]


@graph_pass("thin", semantics=approximates("drop", math.inf))
class Thin(Pass):
    """Let layers of dense blocks (DenseNet) read only some of the layers before them; the other connections are cut.

    A cut connection is the same as zeros in the weights that read it. Layer l of a block keeps its connections to the
    layers l − 2ⁿ for all 2ⁿ that divide l (harmonic, as in HarDNet, arXiv:1909.00948), or to so many that are nearest;
    0 is the block's input. What follows the block goes on reading all, unless that is asked for.

    Attributes:
        pattern: harmonic or nearest.
        count: how many layers before it a layer reads with pattern=nearest.
        above: layers that read no more than so many channels stay dense (the threshold of ThreshNet).
        ends: whether what follows a block loses connections too: harmonic keeps odd layers and the last.
    """

    pattern: Pattern = "harmonic"
    count: int = 2
    above: int = 0
    ends: bool = False

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern):
            raise InputError("E201", f"pattern={self.pattern!r} is none of {', '.join(get_args(Pattern))}")
        if self.count < 1 or self.above < 0:
            raise InputError("E201", f"count={self.count} is below 1, or above={self.above} below 0")

    def links(self, number: int, *, is_last: bool = False) -> set[int]:
        """The layers that layer `number`, or what follows the one before it, goes on reading; 0: the input."""
        if is_last and self.pattern == "harmonic":
            return {k for k in range(1, number) if k % 2} | {number - 1}
        if self.pattern == "nearest":
            return set(range(max(0, number - self.count), number))
        return {number - (1 << n) for n in range(number.bit_length()) if number % (1 << n) == 0}

    def run(self, graph: Graph, context: Context) -> int:
        found = blocks(graph)
        if not found:
            hint = "Layers are wanted that read concatenations of the outputs of all layers before them."
            raise InputError("E224", "the model has no dense block", hint=hint)
        coupling, before, done = couple(graph), (total_macs(graph), _parameters(graph)), 0
        rows = []
        for place, readers in enumerate(found):
            for reader in readers:
                row, gone = self._row(place, reader, is_last=reader is readers[-1])
                rows.append(row)
                if not gone:
                    continue
                cut = Cut(coupling, reader, gone)
                row["refused"] = [{"source": _name(source), "why": why} for source, why in cut.refused.items()]
                if not cut.gone or not context.may_rewrite():
                    continue
                row["weights"] = [value.name for value in cut.readers]
                row["cut"] = [layer for source, layer in _layers(reader) if source in cut.gone]
                row["left"] = row["channels"] - sum(reader.extent(source) for source in cut.gone)
                cut.apply(self.name)
                done += 1
        DeadCode().run(graph, Context())
        after = (total_macs(graph), _parameters(graph))
        context.details = {
            "macs": {"before": before[0], "after": after[0]},
            "parameters": {"before": before[1], "after": after[1]},
            "readers": rows,
            "summary": list(_lines(rows, before, after)),
        }
        return done

    def _row(self, block: int, reader: Reader, *, is_last: bool) -> tuple[dict[str, Any], Sequence[Value]]:
        """What is to be cut of one reader, as JSON and as values."""
        channels = sum(map(reader.extent, reader.sources))
        row: dict[str, Any] = {
            "block": block,
            "layer": None if is_last else reader.number,
            "reads": _name(reader.whole),
            "channels": channels,
            "left": channels,
            "cut": [],
            "weights": [],
            "refused": [],
        }
        if channels <= self.above or (is_last and not self.ends):
            return row, []
        keep = self.links(reader.number, is_last=is_last)
        return row, [source for source, layer in _layers(reader) if layer not in keep]


def _layers(reader: Reader) -> Iterator[tuple[Value, int]]:
    return zip(reader.sources, reader.layers, strict=True)


def _name(value: Value) -> str:
    if value.name or value.producer is None:
        return value.name
    return "+".join(value.producer.location.names) or value.producer.op.name


def _parameters(graph: Graph) -> int:
    from espalier.cost.remaining import Remaining

    return Remaining(couple(graph)).parameters


def _lines(rows: Sequence[dict[str, Any]], before: tuple[Any, Any], after: tuple[Any, Any]) -> Iterator[str]:
    yield f"MACs {before[0]} → {after[0]}, parameters {before[1]} → {after[1]}"
    for row in rows:
        who = "what follows" if row["layer"] is None else f"layer {row['layer']}"
        if row["cut"]:
            cut = ", ".join("the input" if layer == 0 else str(layer) for layer in row["cut"])
            yield f"block {row['block']}, {who}: {row['channels']} → {row['left']} channels, without {cut}"
        for refusal in row["refused"]:
            yield f"block {row['block']}, {who}: goes on reading {refusal['source']}: {refusal['why']}"
