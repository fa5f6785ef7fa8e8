"""The graph IR: what a model is.

`dims` and `elements` make `types`; `terms` and `axes` make an operator's (`op`) one declaration; `graph` holds values
and nodes and the mutators; `build` adds nodes; `verify`, `text`, `hashing` and `execute` read. Operators live in `ops`,
one class each; the primitives that their references call in `xp`.
"""

from espalier.ir.build import Builder
from espalier.ir.constants import Constant
from espalier.ir.dims import Dim, Dimension
from espalier.ir.elements import Element, Quantized
from espalier.ir.graph import Graph, Location, Node, Value, constant_value
from espalier.ir.hashing import structural_hash
from espalier.ir.op import Op, TypeInferenceError, lookup
from espalier.ir.text import parse, to_text
from espalier.ir.types import OptionalType, SequenceType, TensorType, Type
from espalier.ir.verify import verify

__all__ = [
    "Builder", "Constant", "Dim", "Dimension", "Element", "Graph", "Location", "Node", "Op", "OptionalType",
    "Quantized", "SequenceType", "TensorType", "Type", "TypeInferenceError", "Value", "constant_value", "lookup",
    "parse", "structural_hash", "to_text", "verify",
]  # fmt: skip
