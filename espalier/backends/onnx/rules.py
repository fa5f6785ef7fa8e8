"""Operators whose form in ONNX is not just their attributes and operands, or was another one in older versions."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, helper

from espalier.backends.onnx.printer import CannotPrint, Printed, rule
from espalier.frontends.onnx import schemas
from espalier.frontends.onnx.elements import code_of
from espalier.frontends.onnx.functions import type_proto
from espalier.ir import types
from espalier.ir.graph import Node, Value

Operands = list[Value | None]
Attributes = dict[str, Any]


@rule("opaque")
def opaque(node: Node, version: int, attributes: Attributes, operands: Operands) -> Printed:
    """The node that it came as; of ai.onnx only where its schema is the same."""
    op: Any = node.op
    proto = NodeProto.FromString(op.node)
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    if not domain:
        then = schemas.schema_of("", proto.op_type, dict(op.opsets).get("", version))
        now = schemas.schema_of("", proto.op_type, version)
        if then is None or now is None or then.since_version != now.since_version:
            if then is None:
                raise CannotPrint(f"ONNX has no operator {proto.op_type} in the opset that the model declares")
            raise CannotPrint(f"{proto.op_type} is kept as it was, and opset {version} lacks it or has another")
    return Printed(domain, proto.op_type, operands, {}, len(node.results), list(proto.attribute))


@rule("if", "loop", "scan")
def control(node: Node, version: int, attributes: Attributes, operands: Operands) -> Printed:
    """The bodies are written by the exporter; what is carried shows in them."""
    attributes.pop("carried", None)
    if version < 9 and node.op.name == "scan":
        raise CannotPrint("Scan of opset 8 runs over batches")
    return Printed("", str(node.op.onnx), operands, attributes, len(node.results))


@rule("constant_of_shape")
def constant_of_shape(node: Node, version: int, attributes: Attributes, operands: Operands) -> Printed:
    op: Any = node.op
    element = op.dtype.storage
    array = np.full((1,), op.value).astype(element.dtype)
    tensor = helper.make_tensor("value", code_of(element), [1], array.tobytes(), raw=True)
    if version < 9:
        raise CannotPrint("ConstantOfShape came with opset 9")
    if element.bits < 8 and element.kind != "bool":
        raise CannotPrint(f"ConstantOfShape of {element}")
    return Printed("", "ConstantOfShape", operands, {"value": tensor})


@rule("optional")
def optional(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    if "type" in attributes:
        attributes["type"] = type_proto(types.parse(attributes["type"]))


@rule("softmax", "log_softmax", "hardmax")
def softmax(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    """Before opset 13 all axes from `axis` on counted as one: the same only at the last."""
    if version >= 13:
        return
    op: Any = node.op
    x = operands[0]
    rank, axis = None if x is None else x.rank, op.axis
    if axis != -1 and (rank is None or axis % rank != rank - 1):
        raise CannotPrint(f"{node.op.onnx} of opset {version} takes the last axis only")
    if rank is None:
        raise CannotPrint(f"{node.op.onnx} of opset {version} counts axes from the front")
    attributes["axis"] = rank - 1


@rule("dropout", contents=True)
def dropout(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    """Before opset 12 it did nothing in inference, and knew no training."""
    if version >= 12:
        return
    training = operands[2] if len(operands) > 2 else None
    if training is not None and (training.constant is None or bool(training.array)):
        raise CannotPrint(f"Dropout of opset {version} does not train")
    del operands[2:]
    attributes.pop("seed", None)


@rule("split")
def split(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    """Before opset 18 parts without sizes were equal."""
    if version >= 18 or "num_outputs" not in attributes:
        return
    x = operands[0]
    extent = x.shape[attributes.get("axis", 0)] if x is not None and x.rank is not None else None
    if not isinstance(extent, int) or extent % attributes.pop("num_outputs"):
        raise CannotPrint(f"Split of opset {version} makes equal parts only")


@rule("batch_norm")
def batch_norm(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    if version < 14 and (attributes.get("training_mode") or len(node.results) > 1):
        raise CannotPrint(f"BatchNormalization of opset {version} trains in another way")


@rule("group_norm")
def group_norm(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    if version < 21:
        raise CannotPrint(f"GroupNormalization of opset {version} has scales by group, not by channel")


@rule("grid_sample")
def grid_sample(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    if version < 20:
        op: Any = node.op
        mode = op.mode
        if mode in ("linear", "cubic"):
            attributes["mode"] = f"bi{mode}"


@rule("resize", contents=True)
def resize(node: Node, version: int, attributes: Attributes, operands: Operands) -> Printed | None:
    """Before opset 11 there were Upsample (9) and another Resize (10), for positions rounded down."""
    if version >= 11:
        return None
    mode = attributes.pop("mode", "nearest")
    places = attributes.pop("coordinate_transformation_mode", None), attributes.pop("nearest_mode", None)
    scales = operands[2] if len(operands) > 2 else None
    roi, sizes = operands[1], operands[3] if len(operands) > 3 else None
    if attributes or places != ("asymmetric", "floor") or scales is None or roi is not None or sizes is not None:
        raise CannotPrint(f"Resize of opset {version} rounds positions down and takes scales only")
    if version >= 9:
        if scales.constant is None or np.any(scales.array < 1):
            raise CannotPrint(f"opset {version} rounds otherwise where it shrinks")
        return Printed("", "Upsample" if version < 10 else "Resize", [operands[0], scales], {"mode": mode})
    if scales.constant is None or np.any(scales.array < 1):
        raise CannotPrint("Upsample of opset 7 needs constant scales of at least 1")
    factors = tuple(scales.array.reshape(-1).tolist())
    return Printed("", "Upsample", [operands[0]], {"mode": mode, "scales": factors})


@rule("scatter_elements")
def scatter_elements(node: Node, version: int, attributes: Attributes, operands: Operands) -> Printed | None:
    """Called Scatter before opset 11."""
    if version >= 11:
        return None
    if "reduction" in attributes:
        raise CannotPrint(f"Scatter of opset {version} does not reduce")
    return Printed("", "Scatter", operands, attributes)


@rule("roi_align")
def roi_align(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    if version < 16 and attributes.pop("coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
        raise CannotPrint(f"RoiAlign of opset {version} does not shift by half a pixel")


@rule("dft", contents=True)
def dft(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    """The axis was an attribute before opset 20, with another default."""
    if version >= 20:
        return
    x, axis = operands[0], operands[2] if len(operands) > 2 else None
    if axis is None:
        if x is None or x.rank is None:
            raise CannotPrint("DFT of opset 17 counts axes from the front")
        attributes["axis"] = x.rank - 2
    elif axis.constant is None:
        raise CannotPrint("DFT of opset 17 needs axis to be constant")
    else:
        attributes["axis"] = int(axis.array.reshape(-1)[0])
        operands[2] = None


@rule("reshape", contents=True)
def reshape(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    """`allowzero` came with opset 14; it says nothing where no extent is 0."""
    shape = operands[1] if len(operands) > 1 else None
    if version >= 14 or shape is None or shape.constant is None:
        return
    if not np.any(shape.array == 0):
        attributes.pop("allowzero", None)


@rule("range")
def arange(node: Node, version: int, attributes: Attributes, operands: Operands) -> None:
    """How small floats are summed can be said since opset 27; it says nothing for other elements."""
    start = operands[0]
    if version < 27 and start is not None and (not start.element.is_float or start.element.bits >= 32):
        attributes.pop("stash_type", None)
