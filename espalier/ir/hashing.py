"""Structural hashes: equal graphs have equal hashes, whatever names and order they have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from espalier.ir.graph import Graph, Node, Value


def structural_hash(graph: Graph, *, weights: bool = True) -> str:
    """SHA-256 over inputs, operators, attributes, types, connections and (unless `weights` is false) constant contents.

    Names and provenance do not count; nor does the order of independent nodes. Inputs that nothing uses do.
    """
    keys: dict[Value, bytes] = {}
    for position, value in enumerate(graph.inputs):
        keys[value] = _digest(["input", str(position), str(value.type)])
    for node in graph:
        node_key = _node_key(node, [_value_key(v, keys, weights) for v in node.operands], weights)
        for result in node.results:
            keys[result] = _digest([node_key, str(result.index)])
    outputs = [_value_key(v, keys, weights) for v in graph.outputs]
    return _digest(["graph", *(keys[v] for v in graph.inputs), "outputs", *outputs]).hex()


def _node_key(node: Node, operands: list[bytes], weights: bool) -> bytes:
    regions = [structural_hash(region, weights=weights) for region in node.regions]
    types = [str(result.type) for result in node.results]
    return _digest([node.op.name, repr(node.op), *types, "operands", *operands, "regions", *regions])


def _value_key(value: Value | None, keys: dict[Value, bytes], weights: bool) -> bytes:
    if value is None:
        return b"absent"
    if value.constant is not None:
        return _digest(["constant", value.constant.digest if weights else str(value.type)])
    return keys[value]


def _digest(parts: Iterable[str | bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()
