"""One model after the other: what is measured of its pruning, ours and Torch-Pruning's (see benchmarks/prune.py).

Each stage is reported as it is passed; what raises is the reason why a model stops there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.architectures import array as to_array
from benchmarks.architectures import build, tensors, used_inputs
from benchmarks.cutting import difference, hard, soft

RATIO = 0.5
HARD_IS_SOFT, AGREEMENT = {"f64": 1e-10, "f32": 1e-5}, 1e-3
Reporter = Callable[[dict[str, Any]], None]


# ---- ours ------------------------------------------------------------------------------------------------------------


def examine(name: str, report: Reporter) -> None:
    """Take one architecture through all stages, reporting each that it passes."""
    import numpy as np
    import torch

    from espalier.frontends.torch.convert import convert
    from espalier.frontends.torch.export import decompose
    from espalier.ir.clone import clone

    module, args, kwargs = build(name)
    report({"stage": "built"})
    with torch.no_grad():
        program = torch.export.export(module, args, kwargs, strict=False)
    report({"stage": "exported"})
    graph = convert(decompose(program))
    inputs = used_inputs(program, [to_array(tensor) for tensor in tensors((args, kwargs))])
    report({"stage": "lowered", "nodes": len(graph)})
    rng = np.random.default_rng(0)
    random = draws(graph)
    report({"random": True} if random else hard_is_soft(graph, inputs, rng))
    taken = clone(graph)
    report(prune(taken, inputs))
    report({"stage": "ran", **runs(taken, inputs)})
    report({"stage": "done", **through_onnxruntime(taken, inputs, random)})


def draws(graph: Any) -> bool:
    """Whether a model draws random numbers: two runs differ, so that only shapes can be compared."""
    return any(not node.op.deterministic for each in graph.all_graphs() for node in each)


def hard_is_soft(graph: Any, inputs: Sequence[Any], rng: Any) -> dict[str, Any]:
    """Exact units, all at once and some by themselves: removal against zeros. Raises ValueError where they differ."""
    import numpy as np

    from espalier.analysis.coupling import couple
    from espalier.ir.execute import execute

    kind = "f64"
    try:
        wide = widened(graph)
        fed = [a.astype(np.float64) if a.dtype == np.float32 else a for a in inputs]
        execute(wide, fed)
    except Exception:  # a model with types of its own: as it is, then
        wide, fed, kind = graph, list(inputs), "f32"
    units = couple(wide).units
    counts = {verdict: sum(unit.verdict == verdict for unit in units) for verdict in ("exact", "approximate", "frozen")}
    exact = [unit.name for unit in units if unit.verdict == "exact"]
    groups = [[str(n)] for n in rng.permutation(exact)[:3]] + ([exact] if len(exact) > 1 else [])
    by_name, worst = {unit.name: unit for unit in units}, 0.0
    for group in groups:
        extents = {name: by_name[name].extent for name in group}
        removed = {n: np.sort(rng.choice(extent, max(1, extent // 2), replace=False)) for n, extent in extents.items()}
        off = difference(execute(hard(wide, removed), fed), execute(soft(wide, removed), fed))
        worst = max(worst, off)
        if not off <= HARD_IS_SOFT[kind]:
            raise ValueError(f"removal of {group[:3]} ({len(group)} units) is off zeros by {off:.3g} in {kind}")
    return {"stage": "cut", "units": counts, "hard_soft": worst, "precision": kind}


def widened(graph: Any) -> Any:
    """A copy that computes in float64 what the graph computes in float32. Weights that are tied stay so."""
    from espalier.ir import TensorType
    from espalier.ir.clone import clone
    from espalier.ir.constants import ArraySource, Constant
    from espalier.ir.elements import F32, F64
    from espalier.ir.graph import constant_value
    from espalier.ir.inference import infer_node

    made = clone(graph)
    if any(node.regions for node in made):
        raise TypeError("regions declare types of their own")
    for value in made.inputs:
        if isinstance(value.type, TensorType) and value.type.element == F32:
            value.type = TensorType(F64, value.type.shape)
    wide: dict[Any, Any] = {}
    sources: dict[int, Any] = {}
    for node in made:
        changed = {key: F64 for key, held in node.op.attributes.items() if held == F32}
        if changed:
            made.set_op(node, node.op.replace(**changed))
        for position, operand in enumerate(node.operands):
            if operand is not None and operand.constant is not None and operand.element == F32:
                if operand not in wide:
                    held = operand.constant
                    if id(held.source) not in sources:
                        sources[id(held.source)] = ArraySource(held.source.read().astype("f8"))
                    shared = Constant(sources[id(held.source)], F64, held.shape, held.views)
                    wide[operand] = constant_value(shared, name=operand.name)
                made.set_operand(node, position, wide[operand])
        for result in node.results:
            if isinstance(result.type, TensorType):
                result.type = TensorType(F64 if result.type.element == F32 else result.type.element, result.type.shape)
        infer_node(made, node)
    return made


def prune(graph: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    """Half of all units, by Taylor scores on the example inputs."""
    from espalier.passes.base import Context, parse_spec
    from espalier.train.data import Data

    named = {value.name: array for value, array in zip(graph.inputs, inputs, strict=True)}
    context = Context(data=Data([named], tuple(graph.inputs)))
    parse_spec(f"prune:ratio={RATIO},criterion=taylor").run(graph, context)
    details = context.details
    return {
        "stage": "pruned", "units_cut": len(details["cut"]), "units_whole": len(details["whole"]),
        "parameters_removed": round(details["parameters"]["removed"], 3),
    }  # fmt: skip


def runs(graph: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    import numpy as np

    from espalier.ir import verify
    from espalier.ir.execute import execute

    verify(graph, "types")
    found = execute(graph, inputs)
    return {"finite": all(bool(np.isfinite(y).all()) for y in found if y.dtype.kind in "fc")}


def through_onnxruntime(graph: Any, inputs: Sequence[Any], random: bool) -> dict[str, Any]:
    """By how much onnxruntime's outputs of the exported graph are off ours (None: both are random).

    Where a top-k has ties, onnxruntime's picks are taken as given once they are shown to be as good; where its sigmoid
    is too coarse, it computes the formula. Raises ValueError beyond the limit.
    """
    from benchmarks.choices import with_exponentials

    if random:
        onnxruntime_outputs(graph, inputs)
        return {"onnxruntime": None}
    off, told = agreement(graph, inputs)
    if not off <= AGREEMENT:
        closer, ties = agreement(with_exponentials(graph), inputs)
        if closer <= AGREEMENT:
            off, told = closer, {"with_sigmoid": off, **ties}
    if not off <= AGREEMENT:
        raise ValueError(f"onnxruntime differs by {off:.3g}")
    return {"onnxruntime": off, **told}


def agreement(graph: Any, inputs: Sequence[Any]) -> tuple[float, dict[str, float]]:
    """By how much onnxruntime is off ours, and by how much more where it picks others among equals."""
    from benchmarks.choices import given_choices, with_choices
    from espalier.ir.execute import execute

    off = difference(onnxruntime_outputs(graph, inputs), execute(graph, inputs))
    if off <= AGREEMENT:
        return off, {}
    found = onnxruntime_outputs(with_choices(graph), inputs)
    count = len(graph.outputs)
    if len(found) > count:
        outputs, legal = given_choices(graph, inputs, found[count:])
        if legal:
            return difference(found[:count], outputs), {"without_ties": off}
    return off, {}


def onnxruntime_outputs(graph: Any, inputs: Sequence[Any]) -> list[Any]:
    import onnxruntime

    from espalier.backends.onnx import to_model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(to_model(graph).SerializeToString(), options, ["CPUExecutionProvider"])
    fed = {value.name: array for value, array in zip(graph.inputs, inputs, strict=True)}
    taken = {value.name for value in session.get_inputs()}
    return list(session.run(None, {name: array for name, array in fed.items() if name in taken}))


# ---- Torch-Pruning ---------------------------------------------------------------------------------------------------


def examine_peer(name: str, report: Reporter) -> None:
    """Torch-Pruning by magnitude; layers that make the outputs are left out for it, as its users are told to do."""
    import torch
    import torch_pruning

    module, args, kwargs = build(name)
    example = (kwargs or args) if not (args and kwargs) else None
    if example is None:
        raise ValueError("positional and keyword inputs")
    report({"stage": "built"})
    with torch.no_grad():
        wanted = [tensor.shape for tensor in tensors(module(*args, **kwargs))]
    masked = copy.deepcopy(module)
    pruner = torch_pruning.pruner.MagnitudePruner(
        module, example, torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=RATIO,
        ignored_layers=output_layers(module, args, kwargs),
    )  # fmt: skip
    before = sum(parameter.numel() for parameter in module.parameters())
    comparable, groups = True, 0
    for group in pruner.step(interactive=True):
        groups += 1
        comparable &= mask(group, module, masked)
        group.prune()
    after = sum(parameter.numel() for parameter in module.parameters())
    report({"stage": "pruned", "groups": groups, "parameters_removed": round(1 - after / before, 3)})
    with torch.no_grad():
        found = tensors(module(*args, **kwargs))
        if [tensor.shape for tensor in found] != wanted:
            raise ValueError("the outputs have other shapes")
        if comparable:
            off = difference([to_array(t) for t in found], [to_array(t) for t in tensors(masked(*args, **kwargs))])
            if off > 1e-3:
                raise ArithmeticError(f"differs from the masked model by {off:.3g}")
            report({"masked": off})
    if not groups:
        raise ValueError("it finds nothing to prune")
    report({"stage": "done"})


def output_layers(module: Any, args: Any, kwargs: Any) -> list[Any]:
    """The modules that make what is frozen because the model returns it."""
    import torch

    import espalier
    from espalier.analysis.coupling import couple

    turned = torch.nn.Embedding | torch.nn.ConvTranspose1d | torch.nn.ConvTranspose2d | torch.nn.ConvTranspose3d
    parts = dict(module.named_modules())
    found = []
    for unit in couple(espalier.load(module, example_inputs=kwargs or args)).units:
        if unit.verdict == "frozen" and "output of the model" in unit.why():
            for member in unit.weights:
                name, transposed = member.value.name.removesuffix(".T"), member.value.name.endswith(".T")
                part = parts.get(name.rpartition(".")[0])
                if part is not None and member.axis == (isinstance(part, turned) != transposed):
                    found.append(part)
    return list(dict.fromkeys(found))


def mask(group: Any, module: Any, masked: Any) -> bool:
    """Zeros in a copy where Torch-Pruning takes rows and columns away; False where zeros would mean something else."""
    import torch

    places = {id(part): name for name, part in module.named_modules()}
    for dependency, indices in group:
        part = dependency.target.module
        name = places.get(id(part))
        if name is None:
            continue
        twin = masked.get_submodule(name)
        if isinstance(part, torch.nn.LayerNorm | torch.nn.GroupNorm | torch.nn.RMSNorm):
            return False
        weight = getattr(twin, "weight", None)
        if weight is None or type(part).__module__.split(".")[0] != "torch":
            continue
        axis = 1 if "in_channels" in dependency.handler.__name__ and weight.dim() > 1 else 0
        if isinstance(part, torch.nn.Embedding):
            axis = 1
        if isinstance(part, torch.nn.Conv2d | torch.nn.Conv1d) and part.groups > 1 and axis == 1:
            continue  # its rows are zeros already
        if max(indices) >= weight.shape[axis]:
            return False
        with torch.no_grad():
            weight.index_fill_(axis, torch.tensor(list(indices)), 0.0)
            bias = getattr(twin, "bias", None)
            if axis == 0 and bias is not None:
                bias.index_fill_(0, torch.tensor(list(indices)), 0.0)
    return True
