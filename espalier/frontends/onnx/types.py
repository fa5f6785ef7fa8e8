"""Declared types of an ONNX model."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import TensorShapeProto, TypeProto, ValueInfoProto

from espalier.errors import UnsupportedError
from espalier.frontends.onnx.elements import from_code
from espalier.frontends.onnx.reader import not_utf8
from espalier.ir import dims
from espalier.ir.dims import Dimension
from espalier.ir.graph import Graph
from espalier.ir.types import OptionalType, SequenceType, TensorType, Type

EXPRESSION = 100
"""Letters of an extent's name beyond which it is not read as an expression."""
_UNNAMED = {"", "?", "None", "-1", "*"}
"""What exporters write for a dimension of which they know nothing; two of them need not be equal."""


class TypeReader:
    """Reads types. A dimension's text is one symbol, unless it is an expression in symbols that the inputs have."""

    def __init__(self, graph: Graph, inputs: Iterable[ValueInfoProto]) -> None:
        self.graph = graph
        self._types: dict[bytes, Type] = {}
        self._dimensions: dict[str, Dimension] = {}
        self._input_symbols = {
            dimension.dim_param
            for info in inputs
            for dimension in info.type.tensor_type.shape.dim
            if isinstance(dimension.dim_param, str) and dimension.dim_param.isidentifier()
        }
        self._unnamed_count = 0

    def read(self, proto: TypeProto, where: str) -> Type | None:
        """The type; None if the message says none. Raises InputError E111 or UnsupportedError E410."""
        key = proto.SerializeToString()
        found = self._types.get(key)
        if found is None:
            before = self._unnamed_count
            found = self._read(proto, where)
            if found is not None and before == self._unnamed_count:
                self._types[key] = found
        return found

    def _read(self, proto: TypeProto, where: str) -> Type | None:
        kind = proto.WhichOneof("value")
        if kind is None:
            return None
        if kind == "tensor_type":
            tensor = proto.tensor_type
            if not tensor.elem_type:
                return None
            shape = tuple(self._dimension(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None
            return TensorType(from_code(tensor.elem_type, where), shape)
        if kind in ("sequence_type", "optional_type"):
            inner = self._read(getattr(proto, kind).elem_type, where)
            if inner is None:
                return None
            return SequenceType(inner) if kind == "sequence_type" else OptionalType(inner)
        raise UnsupportedError("E410", f"{where!r} is a {kind.removesuffix('_type')}, not a tensor", node=where)

    def _dimension(self, proto: TensorShapeProto.Dimension) -> Dimension:
        if proto.HasField("dim_value"):
            return proto.dim_value if proto.dim_value >= 0 else self._unnamed()
        text = proto.dim_param
        if text.__class__ is not str:
            raise not_utf8(text)
        text = text.strip()
        if text in _UNNAMED:
            return self._unnamed()
        if text not in self._dimensions:
            self._dimensions[text] = self._named(text)
        return self._dimensions[text]

    def _named(self, text: str) -> Dimension:
        if len(text) > EXPRESSION:
            return dims.symbol(text)
        if not text.isidentifier():
            try:
                parsed = dims.parse(text)
            except ValueError:
                return dims.symbol(text)
            return parsed if dims.symbols(parsed) <= self._input_symbols else dims.symbol(text)
        taken = not self.graph.reserve_symbol(text)  # by a fresh symbol of ours
        return dims.symbol(f"{text}_" if taken else text)

    def _unnamed(self) -> Dimension:
        self._unnamed_count += 1
        return dims.symbol(self.graph.fresh_symbol())
