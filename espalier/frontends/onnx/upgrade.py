"""Operators whose meaning changed over the operator sets, beyond attributes that became operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.errors import InputError
from espalier.frontends.onnx import schemas, tensors
from espalier.frontends.onnx.site import Refused, Site, adapter, scalar
from espalier.ir import elements
from espalier.ir.graph import Value, constant_value
from espalier.ir.ops.convolution import same_pads
from espalier.ir.types import TensorType

I64 = elements.I64


@adapter("Constant")
def constant(site: Site) -> Sequence[Value]:
    """A constant of the graph, whichever attribute holds it."""
    formals = schemas.formal_attributes(site.domain, site.op_type, site.version)
    given = {name: value for name, value in site.attributes.items() if value is not None and name in formals}
    if len(given) != 1:
        raise InputError("E116", "Constant needs exactly one value", node=site.location)
    ((name, value),) = given.items()
    return [constant_value(tensors.read_value(name, value, site.importer.folder, str(site.location)))]


@adapter("Softmax", "LogSoftmax", "Hardmax", before=13)
def softmax_of_rows(site: Site) -> Sequence[Value] | None:
    """Before opset 13 the axes from `axis` on count as one."""
    x, axis = site.required(0), site.get("axis", 1)
    if x.rank is not None:
        if not -x.rank <= axis < max(x.rank, 1):
            raise Refused(f"there is no axis {axis} in rank {x.rank}", fatal=True)
        if axis % max(x.rank, 1) == x.rank - 1:
            site.attributes["axis"] = -1
            return site.same()
    build, kind = site.build, site.op_type
    flat = build.flatten(x, axis=axis)
    rows = {"Softmax": build.softmax, "LogSoftmax": build.log_softmax, "Hardmax": build.hardmax}[kind](flat, axis=-1)
    return [build.reshape(rows, _shape_of(site, x))]


def _shape_of(site: Site, x: Value) -> Any:
    if isinstance(x.type, TensorType) and x.type.is_static and x.type.shape is not None:
        return np.array(x.type.shape, np.int64)
    return site.build.shape(x)


@adapter("Attention")
def attention(site: Site) -> Sequence[Value] | None:
    """The default scale 1/√width as a number, where the heads' width is known: it stays when the width changes."""
    if site.get("scale") is not None:
        return None
    *_, width = site.shape(0) or (None,)
    heads = site.get("q_num_heads") if site.required(0).rank == 3 else 1
    if isinstance(width, int) and heads and width >= heads:
        site.attributes["scale"] = (width // heads) ** -0.5
    return site.same()


@adapter("BatchNormalization", before=14)
def batch_norm(site: Site) -> Sequence[Value] | None:
    """Old outputs beyond the first are training's; `spatial=0` has statistics for each position."""
    names = list(site.proto.output)
    if any(name in _used(site) for name in names[1:] if name):
        return site.same()
    if site.attributes.pop("spatial", 1):
        site.results = 1
        return site.same()
    x, scale, bias, mean, variance = (site.required(k) for k in range(5))
    build = site.build
    epsilon = scalar(site.get("epsilon", 1e-5), x.element)
    deviation = build.sqrt(build.add(variance, epsilon))
    return [build.add(build.mul(build.div(build.sub(x, mean), deviation), scale), bias)]


def _used(site: Site) -> set[str]:
    """The names that nodes and outputs of the main graph read."""
    importer = site.importer
    if importer.read_names is None:
        graph = importer.model.graph
        importer.read_names = {name for node in graph.node for name in node.input}
        importer.read_names.update(info.name for info in graph.output)
        if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute) or importer.functions:
            importer.read_names.update(name for node in graph.node for name in node.output)  # it may be read inside
    return importer.read_names


@adapter("Dropout", before=12)
def dropout(site: Site) -> Sequence[Value] | None:
    """Before opset 12 nothing is dropped in inference; the mask of opset 7 had the data's element."""
    x = site.required(0)
    if site.results < 2:
        return [site.build.identity(x)]
    ones = site.build.expand(np.array(1, bool if site.version >= 10 else x.element.dtype), _shape_of(site, x))
    return [site.build.identity(x), ones]


@adapter("Dropout")
def dropout_seed(site: Site) -> Sequence[Value] | None:
    """The seed counts in training only."""
    training = site.operand(2)
    if training is None or (training.known is not None and not bool(training.known)):
        site.attributes.pop("seed", None)
    return site.same()


@adapter("Conv", "ConvInteger", "ConvTranspose", "DeformConv", "AveragePool", "MaxPool", "LpPool")
def automatic_pads(site: Site) -> Sequence[Value] | None:
    """Make the pads that `auto_pad` means explicit where the extents are known."""
    kernel = _kernel(site)
    mode = site.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return None
    if mode == "VALID":
        site.attributes.pop("auto_pad")
        site.attributes.pop("pads", None)
        return site.same()
    shape = site.required(0).shape
    if site.op_type == "ConvTranspose" or kernel is None or shape is None or len(shape) != len(kernel) + 2:
        return site.same()
    if mode in ("SAME_UPPER", "SAME_LOWER") and all(isinstance(extent, int) for extent in (*shape[2:], *kernel)):
        ones = (1,) * len(kernel)
        strides, dilations = site.get("strides") or ones, site.get("dilations") or ones
        pads = same_pads(mode, shape[2:], kernel, strides, dilations)
        if pads is not None:
            site.attributes.pop("auto_pad")
            site.attributes["pads"] = tuple(begin for begin, _ in pads) + tuple(end for _, end in pads)
    return site.same()


def _kernel(site: Site) -> tuple[Any, ...] | None:
    """The extents of the window. Convolutions have them from their weights; the attribute says them once more."""
    said = site.get("kernel_shape")
    if site.op_type not in ("Conv", "ConvInteger", "ConvTranspose", "DeformConv"):
        return said  # type: ignore[no-any-return]  # builders give Any
    site.attributes.pop("kernel_shape", None)
    if site.required(1).rank is None:
        return said  # type: ignore[no-any-return]  # builders give Any
    kernel = site.shape(1)[2:]
    if said is not None and all(isinstance(extent, int) for extent in kernel) and tuple(said) != kernel:
        raise Refused(f"kernel_shape is {list(said)}, but the weights are {list(site.shape(1))}", fatal=True)
    return kernel


@adapter("ConstantOfShape")
def constant_of_shape(site: Site) -> Sequence[Value]:
    """The value is a number and an element here, a tensor of one number in ONNX."""
    if "value" not in site.attributes:
        return [site.build.constant_of_shape(site.required(0))]
    held = tensors.read_tensor(site.attributes["value"], site.importer.folder, str(site.location))
    if held.size != 1:
        raise Refused(f"its value has {held.size} elements, not one", fatal=True)
    return [site.build.constant_of_shape(site.required(0), value=held.array.item(), dtype=held.element)]


@adapter("Upsample")
def upsample(site: Site) -> Sequence[Value]:
    """A resize that rounds positions down."""
    scales: Any = site.operand(1)
    if scales is None:
        scales = np.array(site.get("scales", ()), np.float32)
    mode = site.get("mode", "nearest")
    x = site.required(0)
    return [
        site.build.resize(
            x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
    ]  # fmt: skip


@adapter("Resize", before=11)
def resize(site: Site) -> Sequence[Value]:
    """Opset 10 rounds positions down when it enlarges and up when it shrinks."""
    mode, scales = site.get("mode", "nearest"), site.required(1)
    nearest = "floor"
    if mode == "nearest":
        if scales.constant is None:
            raise Refused("the rounding of opset 10 depends on scales that are not known")
        if np.any(scales.array < 1):
            if np.any(scales.array > 1):
                raise Refused("opset 10 rounds both up and down here")
            nearest = "ceil"
    return [
        site.build.resize(
            site.required(0), None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode=nearest
        )
    ]  # fmt: skip


@adapter("Optional")
def optional(site: Site) -> Sequence[Value]:
    """The type of an empty optional in text form."""
    declared = site.get("type")
    held = None if declared is None else site.importer.types.read(declared, str(site.location))
    return [site.build.optional(site.operand(0), type=None if held is None else str(held))]


@adapter("Range")
def arange(site: Site) -> Sequence[Value] | None:
    """Bounds that are vectors of one number, which onnxruntime takes as long as it does not know, become scalars."""
    for position, bound in enumerate(site.operands[:3]):
        if bound is not None and bound.rank == 1:
            short = bound.shape == (1,) and bound.constant is not None
            site.operands[position] = (
                constant_value(bound.array.reshape(())) if short else site.build.squeeze(bound, np.array([0]))
            )
    return site.same()


@adapter("Scatter")
def scatter(site: Site) -> Sequence[Value]:
    return [site.build.scatter_elements(*site.operands, axis=site.get("axis", 0))]


@adapter("Split", before=18)
def split(site: Site) -> Sequence[Value] | None:
    """Without sizes the parts are equal, and as many as there are results."""
    if site.operand(1) is None and "split" not in site.attributes:
        x, axis = site.required(0), site.get("axis", 0)
        extent = x.shape[axis] if x.rank is not None and -x.rank <= axis < x.rank else None
        if isinstance(extent, int) and extent % max(site.results, 1):
            raise Refused(f"{extent} can't be split into {site.results} equal parts", fatal=True)
        site.attributes["num_outputs"] = site.results
        return site.same()
    return None


@adapter("GroupNormalization", before=21)
def group_norm(site: Site) -> Sequence[Value] | None:
    """Opset 18 had one scale and bias per group, not per channel."""
    channels, groups = site.shape(0)[1], site.get("num_groups")
    if not isinstance(channels, int) or not groups or channels % groups:
        raise Refused(f"{channels} channels in {groups} groups")
    each = channels // groups
    for position in (1, 2):
        build = site.build
        column = build.reshape(site.required(position), np.array([groups, 1]))
        spread = build.expand(column, np.array([groups, each]))
        site.operands[position] = build.reshape(spread, np.array([channels]))
    return site.same()


@adapter("GridSample", before=20)
def grid_sample(site: Site) -> Sequence[Value] | None:
    mode = site.get("mode", "bilinear")
    site.attributes["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return site.same()


@adapter("RoiAlign", before=16)
def roi_align(site: Site) -> Sequence[Value] | None:
    site.attributes["coordinate_transformation_mode"] = "output_half_pixel"
    return site.same()


@adapter("DFT", before=20)
def dft(site: Site) -> Sequence[Value] | None:
    site.operands = [site.required(0), site.operand(1), constant_value(np.array(site.attributes.pop("axis", 1)))]
    return site.same()


@adapter("Add", "Sub", "Mul", "Div", "And", "Or", "Xor", "Equal", "Greater", "Less", "Pow", "PRelu", before=7)
def broadcast_at_axis(site: Site) -> Sequence[Value] | None:
    """Before opset 7 the second operand's axes stood at `axis` of the first's."""
    broadcast, axis = site.attributes.pop("broadcast", 0), site.attributes.pop("axis", None)
    a, b = site.required(0), site.required(1)
    if site.op_type == "PRelu" and a.rank is not None and b.rank == 1 and b.shape != (1,):
        broadcast, axis = 1, 1
    if broadcast and axis is not None and a.rank is not None and b.rank is not None:
        trailing = a.rank - axis % max(a.rank, 1) - b.rank
        if trailing > 0:
            site.operands[1] = site.build.unsqueeze(b, np.arange(b.rank, b.rank + trailing))
    return site.same()


@adapter("Gemm", before=7)
def gemm(site: Site) -> Sequence[Value] | None:
    site.attributes.pop("broadcast", None)
    return site.same()


@adapter("RNN", "LSTM", "GRU", before=7)
def recurrent(site: Site) -> Sequence[Value] | None:
    site.attributes.pop("output_sequence", None)
    return site.same()


@adapter("Resize")
def resize_aligned(site: Site) -> Sequence[Value] | None:
    """Aligned corners by a fraction of the extent, where ONNX's definition and its runtimes part.

    The reference that defines ONNX takes positions from extent · scale, fraction and all; its text, onnxruntime and
    PyTorch take them from the whole number of results. What PyTorch exports means the latter; of other models, such a
    node stays as it is, for the runtime to decide.
    """
    scales = site.operand(2)
    aligned = site.get("coordinate_transformation_mode") == "align_corners"
    if not aligned or site.version < 11 or scales is None:
        return None
    if scales.shape == (0,):
        return site.same()
    shape, axes, build = site.required(0).shape, site.get("axes"), site.build
    if site.importer.model.producer_name == "pytorch" and axes is None:
        if scales.constant is None or not np.array_equal(scales.array, np.rint(scales.array)):
            exact = build.mul(build.cast(build.shape(site.required(0)), to=elements.F32), scales)
            site.operands = [site.required(0), None, None, build.cast(build.floor(exact), to=I64)]
        return site.same()
    if scales.constant is None:
        return site.same()
    extents = (None,) * scales.array.size if shape is None else [shape[axis] for axis in axes] if axes else shape
    for extent, scale in zip(extents, scales.array.astype(np.float32), strict=False):
        width = np.float32(extent) * scale if isinstance(extent, int) else scale
        if abs(width - np.floor(width)) > 1e-5 * max(1.0, width):
            raise Refused(
                f"corners are aligned, and the extent {extent} times the scale {scale} is no whole number, of which "
                "ONNX and its runtimes make different positions: give `sizes` instead of `scales`"
            )
    return site.same()
