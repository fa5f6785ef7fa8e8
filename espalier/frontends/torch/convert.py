"""From an exported program to a graph: walks the nodes, lowers each, and checks what comes out against torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, SymIntArgument

from espalier.errors import InternalError, UnsupportedError
from espalier.frontends.torch import registry
from espalier.frontends.torch.lower import symbolic
from espalier.frontends.torch.scope import Pair, Scope
from espalier.frontends.torch.sources import location
from espalier.frontends.torch.symbols import Symbols
from espalier.frontends.torch.tensors import Constants, element_of
from espalier.ir import dims
from espalier.ir.build import Builder
from espalier.ir.dims import Dimension
from espalier.ir.elements import I64
from espalier.ir.graph import Graph, Value, constant_value
from espalier.ir.op import TypeInferenceError
from espalier.ir.types import TensorType

_PLACEMENT = {"layout", "device", "pin_memory", "memory_format", "non_blocking", "generator", "copy"}
"""Arguments that say where and how torch keeps a tensor, not what is in it."""


class Converter:
    """Lowers the nodes of one fx graph into one graph of the IR; regions get converters of their own."""

    def __init__(self, graph: Graph, symbols: Symbols, constants: Constants) -> None:
        self.graph, self.symbols, self.constants = graph, symbols, constants
        self.builder = Builder(graph)

    def run(self, module: torch.fx.GraphModule, arguments: Sequence[Any]) -> Any:
        """Lower a graph module for the values of its placeholders, and return those of its output."""
        environment: dict[torch.fx.Node, Any] = {}
        needed = live_nodes(module.graph)
        given = iter(arguments)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                environment[node] = next(given)
            elif node.op == "output":
                return torch.fx.node.map_arg(node.args[0], environment.__getitem__)
            elif node in needed:
                environment[node] = self._node(module, node, environment)
        raise InternalError("E901", f"{module} has no output node")

    def _node(self, module: torch.fx.GraphModule, node: torch.fx.Node, environment: dict[torch.fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(module)
            return held if isinstance(held, torch.nn.Module) else self.constants.value(held, str(node.target))
        arguments: Any = torch.fx.node.map_arg(node.args, environment.__getitem__)
        keywords = torch.fx.node.map_arg(node.kwargs, environment.__getitem__)
        if node.target is operator.getitem:
            return arguments[0][arguments[1]]
        where = location(node)
        self.builder.location = where
        scope = Scope(self.graph, self.symbols, self.builder, node, where)
        try:
            if not isinstance(node.target, torch._ops.OperatorBase):
                return symbolic.lower(scope, node.target, arguments)
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                return registry.REAL[str(node.target)](scope, self, *arguments, **keywords)
            return self._operator(scope, arguments, keywords)
        except TypeInferenceError as error:
            raise InternalError(
                "E901", f"{node.target} was lowered wrongly: {error}", node=node.name, source=where
            ) from error

    def _operator(self, scope: Scope, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        table = registry.COMPLEX if is_complex(scope.node, arguments) else registry.REAL
        name = str(scope.node.target)
        if name not in table:
            raise UnsupportedError("E408", f"{name} of complex numbers", node=scope.node.name, source=scope.location)
        keywords = {key: value for key, value in keywords.items() if key not in _PLACEMENT}
        found = table[name](scope, *arguments, **keywords)
        return self._settle(scope, found)

    def _settle(self, scope: Scope, found: Any) -> Any:
        """Check results against torch's types, give them those where inference knows less, and name them."""
        fakes = scope.fakes
        single = not isinstance(found, (tuple, list))
        results = [found] if single else list(found)
        for index, (result, fake) in enumerate(zip(results, fakes, strict=False)):
            suffix = f"_{index}" if len(fakes) > 1 else ""
            if isinstance(fake, torch.SymInt):
                results[index] = symbolic.item(scope, result, fake)
            for value, part in (
                ((result.real, ".real"), (result.imag, ".imag")) if isinstance(result, Pair) else ((result, ""),)
            ):
                if isinstance(fake, torch.Tensor) and isinstance(value, Value):
                    self._check(scope, value, fake)
                    if not value.name and not value.is_constant:
                        value.name = f"{scope.node.name}{suffix}{part}"
        return results[0] if single else tuple(results)

    def _check(self, scope: Scope, value: Value, fake: torch.Tensor) -> None:
        wanted = element_of(fake.dtype)
        if value.element != wanted:
            raise InternalError(
                "E901", f"{scope.node.target} gives {wanted} in torch, but it was lowered to {value.element}",
                node=scope.node.name, source=scope.location,
            )  # fmt: skip
        self.symbols.bind_shape(fake.shape, value)
        shape: list[Dimension] = []
        inferred = value.shape
        if inferred is not None and len(inferred) != fake.dim():
            self._mismatch(scope, value, fake)
        for axis, entry in enumerate(fake.shape):
            known = self.symbols.dimension(entry)
            ours = None if inferred is None else inferred[axis]
            if isinstance(known, int) and isinstance(ours, int) and known != ours:
                self._mismatch(scope, value, fake)
            if known is None:
                known = self.symbols.adopt(entry, ours)
            shape.append(ours if isinstance(ours, int) else known)
        value.type = TensorType(value.element, tuple(shape))
        self.symbols.bind_shape(fake.shape, value)

    def _mismatch(self, scope: Scope, value: Value, fake: torch.Tensor) -> None:
        raise InternalError(
            "E901", f"{scope.node.target} has shape {tuple(fake.shape)} in torch, but it was lowered to {value.type}",
            node=scope.node.name, source=scope.location,
        )  # fmt: skip


def is_complex(node: torch.fx.Node, arguments: Sequence[Any]) -> bool:
    """Whether an operand or a result of the node is complex."""
    found = node.meta.get("val")
    fakes = found if isinstance(found, (tuple, list)) else (found,)
    if any(isinstance(fake, torch.Tensor) and fake.is_complex() for fake in fakes):
        return True
    stack = list(arguments)
    while stack:
        entry = stack.pop()
        if isinstance(entry, (Pair, complex)):
            return True
        if isinstance(entry, (tuple, list)):
            stack.extend(entry)
    return False


def live_nodes(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The nodes that the outputs need; assertions and constraints are not among them."""
    found: set[torch.fx.Node] = set()
    stack = [node for node in graph.nodes if node.op == "output"]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def missing_operators(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """The live nodes, those of submodules included, whose operator nothing lowers."""
    registry.load_lowerings()
    found = []
    for node in sorted(live_nodes(module.graph)):
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(module)
            if isinstance(held, torch.fx.GraphModule):
                found += missing_operators(held)
        elif node.op == "call_function" and not _is_known(node):
            found.append(node)
    return found


def _is_known(node: torch.fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OperatorBase):
        return node.target is operator.getitem or symbolic.is_known(node.target)
    return str(node.target) in registry.REAL or str(node.target) in registry.COMPLEX


def refuse_missing(module: torch.fx.GraphModule) -> None:
    """Raise UnsupportedError naming every operator that nothing lowers, with a node and a source line of each."""
    found: dict[str, list[torch.fx.Node]] = {}
    for node in missing_operators(module):
        found.setdefault(str(node.target), []).append(node)
    if not found:
        return
    lines = [f"{name} ({len(nodes)}×; {nodes[0].name} from {location(nodes[0])})" for name, nodes in found.items()]
    first = next(iter(found.values()))[0]
    raise UnsupportedError(
        "E408", f"no translation of {'; '.join(lines)}", node=first.name, source=location(first),
        hint="Replace these operators in the module, or register lowerings for them.",
    )  # fmt: skip


def convert(
    program: torch.export.ExportedProgram,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    symbol_names: Callable[[str, int], str | None] = lambda name, axis: None,
) -> Graph:
    """The graph of a program in core ATen (or any overload that has a lowering).

    `symbol_names` gives the name of a dynamic extent from the input and the axis where it occurs first. Raises
    UnsupportedError for operators without a lowering, all of them at once.
    """
    refuse_missing(program.graph_module)
    signature = program.graph_signature
    graph, symbols, constants = Graph("main"), Symbols(), Constants()
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    arguments: list[Any] = []
    names = iter(input_names or ())
    for spec, node in zip(signature.input_specs, placeholders, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            arguments.append(_input(graph, symbols, spec, node, names, symbol_names))
        elif spec.kind is InputKind.CUSTOM_OBJ:
            raise UnsupportedError("E410", f"the program holds an object of a custom class, {spec.target}")
        elif spec.kind is InputKind.TOKEN:
            raise UnsupportedError("E408", "the program has effects that are ordered by tokens")
        else:
            arguments.append(_constant(program, constants, spec))
    converter = Converter(graph, symbols, constants)
    results = converter.run(program.graph_module, arguments)
    _outputs(program, converter, results, output_names)
    if input_names is not None and len(input_names) != len(graph.inputs):
        from espalier.errors import InputError

        raise InputError("E201", f"{len(input_names)} input names for {len(graph.inputs)} inputs")
    graph.metadata["producer"] = f"torch {torch.__version__}"
    return graph


def _input(graph: Graph, symbols: Symbols, spec: Any, node: Any, names: Any, symbol_names: Any) -> Any:
    if isinstance(spec.arg, ConstantArgument):
        return spec.arg.value
    fake = node.meta["val"]
    name = next(names, node.name)
    if isinstance(spec.arg, SymIntArgument):
        value = graph.add_input(TensorType(I64, ()), name)
        builder = Builder(graph)
        held = builder.reshape(value, constant_value([1]))
        symbol = dims.symbol(name)
        symbols.dimensions[str(fake.node.expr)] = symbol
        symbols.sources[str(symbol)] = (held, None)
        return symbol
    if not isinstance(fake, torch.Tensor):
        raise UnsupportedError("E410", f"the input {node.name} is a {type(fake).__name__}, not a tensor")
    shape: list[Dimension] = []
    for axis, entry in enumerate(fake.shape):
        known = symbols.dimension(entry)
        if known is None:
            known = symbols.adopt(entry, dims.symbol(symbol_names(node.name, axis) or f"{name}_{axis}"))
        shape.append(known)
    if fake.is_complex():
        value = graph.add_input(TensorType(element_of(fake.dtype), (*shape, 2)), name)
        symbols.bind_shape(fake.shape, value)
        b = Builder(graph)
        real, imag = (b.gather(value, constant_value(k), axis=len(shape)) for k in range(2))
        return Pair(real, imag)
    value = graph.add_input(TensorType(element_of(fake.dtype), tuple(shape)), name)
    symbols.bind_shape(fake.shape, value)
    return value


def _constant(program: torch.export.ExportedProgram, constants: Constants, spec: Any) -> Any:
    held = program.state_dict.get(spec.target)
    if held is None:
        held = program.constants[spec.target]
    if held.is_complex():
        parts = torch.view_as_real(held.detach().resolve_conj())
        return Pair(
            constants.value(parts[..., 0], f"{spec.target}.real"), constants.value(parts[..., 1], f"{spec.target}.imag")
        )
    return constants.value(held, spec.target)


def _outputs(program: Any, converter: Converter, results: Sequence[Any], names: Sequence[str] | None) -> None:
    """Set the graph's outputs; mutated buffers and inputs are not among them, but noted in the metadata."""
    graph, b = converter.graph, converter.builder
    specs = program.graph_signature.output_specs
    users = [index for index, spec in enumerate(specs) if spec.kind is OutputKind.USER_OUTPUT]
    ignored = [spec.target for spec in specs if spec.kind is not OutputKind.USER_OUTPUT and spec.target]
    if ignored:
        graph.metadata["ignored_mutations"] = ignored
    paths = _output_paths(program, len(users))
    outputs, found = [], []
    for index, path in zip(users, paths, strict=True):
        result = results[index]
        if result is None or isinstance(result, str):
            continue
        if isinstance(result, Pair):
            axis = constant_value([result.rank])
            result = b.concat(b.unsqueeze(result.real, axis), b.unsqueeze(result.imag, axis), axis=-1)
        elif isinstance(result, dims.Dim):
            result = b.reshape(converter.symbols.value(b, result), constant_value([0][:0], I64))
        elif not isinstance(result, Value):
            result = constant_value(result)
        outputs.append(result)
        found.append(path)
    if names is not None:
        from espalier.errors import InputError

        if len(names) != len(outputs):
            raise InputError("E201", f"{len(names)} output names for {len(outputs)} outputs")
        found = list(names)
    if not outputs:
        from espalier.errors import InputError

        raise InputError("E118", "the module returns no tensor")
    graph.set_outputs(outputs, found)


def _output_paths(program: Any, count: int) -> list[str]:
    """Names of the outputs from where they stand in what the module returns: "logits", "output_1", …"""
    spec = program.call_spec.out_spec
    if spec is None:
        return [f"output_{k}" for k in range(count)] if count > 1 else ["output"]
    tree = torch.utils._pytree.tree_unflatten(list(range(count)), spec)
    leaves, _ = torch.utils._pytree.tree_flatten_with_path(tree)
    names: list[str] = []
    for path, leaf in leaves:
        words = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        text = "_".join(words)
        if not text or text[0].isdigit():
            text = f"output_{text}" if text else "output"
        names.append(text)
        assert leaf == len(names) - 1
    return names
