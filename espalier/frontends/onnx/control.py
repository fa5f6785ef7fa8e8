"""If, Loop and Scan: bodies become regions, and the outer values that they use become operands."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto

from espalier.errors import InputError
from espalier.frontends.onnx.importer import Scope
from espalier.frontends.onnx.site import Refused, Site, adapter
from espalier.ir import dims, elements
from espalier.ir.dims import Dimension
from espalier.ir.graph import Graph, Value
from espalier.ir.op import lookup
from espalier.ir.types import OptionalType, SequenceType, TensorType, Type

ROUNDS = 16
"""How often a body may be read until the types that it carries hold; each round makes one of them less precise."""


def _body(site: Site, name: str) -> GraphProto:
    attribute = site.raw.get(name)
    if attribute is None or not attribute.HasField("g"):
        raise InputError("E116", f"{site.op_type} lacks its {name}", node=site.location)
    return attribute.g


def _region(site: Site, name: str, inputs: Sequence[Type | None]) -> Scope:
    """Read a body; the scope knows what it captured."""
    proto = _body(site, name)
    if len(proto.input) != len(inputs):
        raise InputError(
            "E110",
            f"the {name} of {site.op_type} takes {len(proto.input)} inputs, not {len(inputs)}",
            node=site.location,
        )
    prefix = f"{site.importer.graph.fresh_symbol()}_"
    region, outer = Graph(proto.name or name, symbol_prefix=prefix), site.scope
    scope = Scope(site.importer, region, outer.opsets, outer, outer.references, outer.prefix, outer.place)
    site.importer.read_graph(proto, scope, inputs)
    return scope


@adapter("If")
def conditional(site: Site) -> Sequence[Value]:
    branches = [_region(site, name, ()) for name in ("then_branch", "else_branch")]
    captures = list(dict.fromkeys(outer for branch in branches for outer, _ in branch.captured))
    for branch in branches:
        inner = dict(branch.captured)
        region = branch.graph
        region.inputs = [inner.get(outer) or region.add_input(outer.type, outer.name) for outer in captures]
    op = lookup("if")()
    regions = [branch.graph for branch in branches]
    return site.build.node(op, [site.required(0), *captures], results=site.results, regions=regions).results


@adapter("Loop")
def loop(site: Site) -> Sequence[Value]:
    initial = [_present(site, value) for value in site.operands[2:]]
    scalars: list[Type | None] = [TensorType(elements.I64, ()), TensorType(elements.BOOL, ())]
    types: list[Type] = [value.type for value in initial]
    scope = _stable(site, scalars, types, [], 1)
    captures = [outer for outer, _ in scope.captured]
    operands = [site.operand(0), site.operand(1), *initial, *captures]
    op = lookup("loop")(carried=len(initial))
    return _padded(site, op, operands, scope, len(scope.graph.outputs) - 1)


@adapter("Scan", before=9)
def scan_of_batches(site: Site) -> Sequence[Value]:
    raise Refused("Scan of opset 8 runs over batches of sequences of different lengths")


@adapter("Scan")
def scan(site: Site) -> Sequence[Value]:
    values = [_present(site, value) for value in site.operands]
    scanned = site.get("num_scan_inputs", 0)
    if not 1 <= scanned <= len(values):
        raise Refused(f"{scanned} of {len(values)} tensors are scanned", fatal=True)
    carried = len(values) - scanned
    axes = site.get("scan_input_axes") or (0,) * scanned
    entries = [_entry(value.type, axis) for value, axis in zip(values[carried:], axes, strict=False)]
    types: list[Type] = [value.type for value in values[:carried]]
    scope = _stable(site, [], types, entries, 0)
    captures = [outer for outer, _ in scope.captured]
    attributes = {name: value for name, value in site.attributes.items() if name != "body"}
    op = lookup("scan")(carried=carried, **attributes)
    return _padded(site, op, [*values, *captures], scope, len(scope.graph.outputs))


def _present(site: Site, value: Value | None) -> Value:
    if value is None:
        raise Refused(f"{site.op_type} carries a value that is absent", fatal=True)
    return value


def _padded(site: Site, op: object, operands: list[Value | None], scope: Scope, results: int) -> Sequence[Value]:
    """All results of a loop, also those at the end that the model does not name."""
    if site.results > results:
        raise Refused(f"{site.op_type} has {results} results, not {site.results}", fatal=True)
    return site.build.node(op, operands, results=results, regions=[scope.graph]).results  # type: ignore[arg-type]  # made by name


def _entry(type: Type, axis: int) -> Type:
    """One entry of a tensor along an axis."""
    if not isinstance(type, TensorType):
        raise Refused(f"a {type} is scanned", fatal=True)
    if type.shape is None:
        return type
    if not -len(type.shape) <= axis < len(type.shape):
        raise Refused(f"there is no axis {axis} in {type}", fatal=True)
    axis %= len(type.shape)
    return TensorType(type.element, (*type.shape[:axis], *type.shape[axis + 1 :]))


def _stable(site: Site, before: Sequence[Type | None], carried: list[Type], after: Sequence[Type], skip: int) -> Scope:
    """The body, read with types of the carried values that hold on every pass.

    `skip` is how many results stand before the carried ones.
    """
    varying: set[Dimension] = set()
    for _ in range(ROUNDS):
        scope = _region(site, "body", [*before, *carried, *after])
        returned = [output.type for output in scope.graph.outputs[skip : skip + len(carried)]]
        if len(returned) < len(carried):
            raise Refused(f"the body of {site.op_type} returns too few values", fatal=True)
        wider = [_wider(site, a, b, varying) for a, b in zip(carried, returned, strict=True)]
        if wider == carried:
            return scope
        carried[:] = wider
    raise Refused(f"the types that {site.op_type} carries do not settle")


def _wider(site: Site, held: Type, returned: Type, varying: set[Dimension]) -> Type:
    """The held type, made as imprecise as it must be for the returned one to fit; `varying` fits every extent."""
    if isinstance(held, TensorType) and isinstance(returned, TensorType):
        if held.element.storage != returned.element.storage:
            raise Refused(f"{site.op_type} carries {held}, but its body returns {returned}", fatal=True)
        if held.shape is None or returned.shape is None or len(held.shape) != len(returned.shape):
            return TensorType(held.element, None)
        shape: list[Dimension] = []
        for extent, other in zip(held.shape, returned.shape, strict=True):
            if extent != other and extent not in varying:
                extent = dims.symbol(site.importer.graph.fresh_symbol())
                varying.add(extent)
            shape.append(extent)
        return TensorType(held.element, tuple(shape))
    if isinstance(held, SequenceType) and isinstance(returned, SequenceType):
        return SequenceType(_wider(site, held.of, returned.of, varying))
    if isinstance(held, OptionalType) or isinstance(returned, OptionalType):  # what is there for sure may be optional
        first, second = (type.of if isinstance(type, OptionalType) else type for type in (held, returned))
        return OptionalType(_wider(site, first, second, varying))
    raise Refused(f"{site.op_type} carries {held}, but its body returns {returned}", fatal=True)
