"""Higher-order operators: branches and loops become regions, wrappers are opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Pair, Scope
from espalier.frontends.torch.symbols import Symbols
from espalier.ir import dims
from espalier.ir.build import Builder
from espalier.ir.elements import BOOL, I64
from espalier.ir.graph import Graph, Value, constant_value
from espalier.ir.op import lookup
from espalier.ir.types import TensorType, Type


@lowers("wrap_with_set_grad_enabled")
def set_grad_enabled(s: Scope, converter: Any, enabled: bool, body: torch.fx.GraphModule, *operands: Any) -> Any:
    return converter.run(body, operands)


@lowers("wrap_with_autocast")
def autocast(
    s: Scope, converter: Any, device: str, dtype: Any, enabled: bool, cache: Any, body: torch.fx.GraphModule,
    *operands: Any,
) -> Any:  # fmt: skip
    """The types of the nodes inside are those that autocast gave them, which is checked node by node."""
    return converter.run(body, operands)


def _region(
    s: Scope, converter: Any, body: torch.fx.GraphModule, name: str, types: Sequence[tuple[Type, str]]
) -> tuple[Graph, list[Any], Any]:
    """A region's graph with its inputs, and the function that fills it from the values for the placeholders."""
    region = Graph(name, symbol_prefix=f"{s.graph.symbol_prefix}_{s.node.name}_{name}_")
    inputs = [region.add_input(type, label) for type, label in types]
    symbols = Symbols()
    symbols.dimensions = dict(s.symbols.dimensions)
    for value in inputs:
        for axis, extent in enumerate(value.shape or ()):
            known = dims.symbol_name(extent)
            if known is not None:
                symbols.sources.setdefault(known, (value, axis))
    inner = type(converter)(region, symbols, converter.constants)
    return region, inputs, inner


def _outputs(s: Scope, region: Graph, results: Any, extra: Sequence[Value] = ()) -> list[Value]:
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    b = Builder(region)
    found = list(extra)
    for result in results:
        if isinstance(result, Pair):
            s.refuse("complex results of a region")
        if not isinstance(result, Value):
            s.refuse(f"a {type(result).__name__} as a result of a region")
        # a region returns values of its own
        found.append(b.identity(result) if result.producer is None else result)
    region.set_outputs(found, [f"result_{k}" for k in range(len(found))])
    return found


def _tensors(s: Scope, operands: Sequence[Any]) -> list[Value]:
    """Operands of a region as values; sizes become scalars."""
    found: list[Value] = []
    for operand in operands:
        if isinstance(operand, Pair):
            s.refuse("complex operands of a region")
        found.append(operand if isinstance(operand, Value) else s.number(operand, I64))
    return found


def _inside(inputs: Sequence[Value], outside: Sequence[Any], symbols: Symbols) -> list[Any]:
    """What the placeholders of a body stand for: its inputs; for sizes, dimensions that have a source there."""
    found: list[Any] = []
    for value, operand in zip(inputs, outside, strict=True):
        if isinstance(operand, Value):
            found.append(value)
            continue
        name = dims.symbol_name(operand) if isinstance(operand, dims.Dim) else None
        if name is not None and name not in symbols.sources:
            symbols.sources[name] = (value, None)
        found.append(operand)
    return found


@lowers("cond")
def cond(s: Scope, converter: Any, predicate: Any, true: Any, false: Any, operands: Sequence[Any] = ()) -> Any:
    if isinstance(predicate, bool):
        return converter.run(true if predicate else false, operands)
    captures = _tensors(s, operands)
    regions = []
    for body, name in ((true, "then"), (false, "else")):
        types = [(capture.type, f"capture_{k}") for k, capture in enumerate(captures)]
        region, inputs, inner = _region(s, converter, body, name, types)
        results = inner.run(body, _inside(_reshaped(inner, inputs, operands), operands, inner.symbols))
        _outputs(s, region, results)
        regions.append(region)
    condition = s.cast(s.scalar(s.number(predicate, BOOL)), BOOL)
    count = len(regions[0].outputs)
    found = s.builder.node(_operator("if"), [condition, *captures], results=count, regions=regions).results
    return converter._settle(s, tuple(found))


def _reshaped(inner: Any, inputs: Sequence[Value], operands: Sequence[Any]) -> list[Value]:
    """Inputs; those that carry sizes as tensors of one entry."""
    b = inner.builder
    return [
        value if isinstance(operand, Value) else b.reshape(value, constant_value([1]))
        for value, operand in zip(inputs, operands, strict=True)
    ]


def _operator(name: str, **attributes: Any) -> Any:
    return lookup(name)(**attributes)


@lowers("while_loop")
def while_loop(
    s: Scope, converter: Any, condition: Any, body: Any, carried: Sequence[Any], captured: Sequence[Any] = ()
) -> Any:
    states, captures = _tensors(s, carried), _tensors(s, captured)
    if len(states) != len(carried) or any(not isinstance(x, Value) for x in (*carried, *captured)):
        s.refuse("sizes as operands of a loop")
    first = _first_condition(s, converter, condition, (*states, *captures))
    types: list[tuple[Type, str]] = [(TensorType(I64, ()), "pass"), (TensorType(BOOL, ()), "go_on")]
    types += [(value.type, f"state_{k}") for k, value in enumerate(states)]
    types += [(value.type, f"capture_{k}") for k, value in enumerate(captures)]
    region, inputs, inner = _region(s, converter, body, "body", types)
    results = inner.run(body, inputs[2:])
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    goes_on = inner.run(condition, [*results, *inputs[2 + len(states) :]])
    goes_on = goes_on[0] if isinstance(goes_on, (tuple, list)) else goes_on
    scope = Scope(region, inner.symbols, inner.builder, s.node, s.location)
    goes_on = scope.cast(scope.scalar(scope.number(goes_on, BOOL)), BOOL)
    _outputs(s, region, results, [inner.builder.identity(goes_on) if goes_on.producer is None else goes_on])
    loop = _operator("loop", carried=len(states))
    found = s.builder.node(loop, [None, first, *states, *captures], results=len(states), regions=[region]).results
    return converter._settle(s, tuple(found))


def _first_condition(s: Scope, converter: Any, condition: Any, operands: Sequence[Value]) -> Value:
    found = converter.run(condition, operands)
    found = found[0] if isinstance(found, (tuple, list)) else found
    s.builder.location = s.location
    return s.cast(s.scalar(s.number(found, BOOL)), BOOL)


@lowers("scan")
def scan(
    s: Scope, converter: Any, body: Any, init: Sequence[Any], scanned: Sequence[Any], additional: Sequence[Any] = ()
) -> Any:
    states, inputs, captures = (_tensors(s, entries) for entries in (init, scanned, additional))
    if any(not isinstance(x, Value) for x in (*init, *scanned, *additional)):
        s.refuse("sizes as operands of a scan")
    types: list[tuple[Type, str]] = [(value.type, f"state_{k}") for k, value in enumerate(states)]
    types += [(TensorType(x.element, s.shape_of(x)[1:]), f"entry_{k}") for k, x in enumerate(inputs)]
    types += [(value.type, f"capture_{k}") for k, value in enumerate(captures)]
    region, values, inner = _region(s, converter, body, "body", types)
    _outputs(s, region, inner.run(body, values))
    operator = _operator("scan", carried=len(states), num_scan_inputs=len(inputs))
    found = s.builder.node(
        operator, [*states, *inputs, *captures], results=len(region.outputs), regions=[region]
    ).results
    return converter._settle(s, tuple(found))


@lowers("map_impl")
def map_(s: Scope, converter: Any, body: Any, scanned: Sequence[Any], additional: Sequence[Any] = ()) -> Any:
    return scan(s, converter, body, (), scanned, additional)
