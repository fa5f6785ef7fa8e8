"""ONNX's own backend cases: models with inputs and outputs, and what is left out of the count."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, TypeProto, numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
}  # fmt: skip


@dataclass
class Case:
    """One model with its data sets: (inputs, outputs), arrays, lists for sequences, None for empty optionals."""

    name: str
    kind: str
    model: ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


def cases() -> Iterator[Case]:
    """All cases, in the order of the onnx package."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in KINDS:
            for test in load_model_tests(kind=kind):
                model = test.model or onnx.load(str(Path(test.model_dir) / "model.onnx"))
                data = test.data_sets or [
                    _stored(model, folder) for folder in sorted(Path(test.model_dir).glob("test_data_set_*"))
                ]
                sets = [([_array(x) for x in ins], [_array(y) for y in outs]) for ins, outs in data]
                yield Case(test.name, kind, model, sets, test.rtol, test.atol)


def _stored(model: ModelProto, folder: Path) -> tuple[list[Any], list[Any]]:
    parts = []
    for what, infos in (("input", model.graph.input), ("output", model.graph.output)):
        count = len(list(folder.glob(f"{what}_*.pb")))
        parts.append([_read(folder / f"{what}_{k}.pb", infos[k].type) for k in range(count)])
    return parts[0], parts[1]


def _read(path: Path, type: TypeProto) -> Any:
    data = path.read_bytes()
    if type.HasField("sequence_type"):
        return onnx.SequenceProto.FromString(data)
    if type.HasField("optional_type"):
        return onnx.OptionalProto.FromString(data)
    return TensorProto.FromString(data)


def _array(proto: Any) -> Any:
    if isinstance(proto, TensorProto):
        return numpy_helper.to_array(proto)
    if isinstance(proto, onnx.SequenceProto):
        return numpy_helper.to_list(proto)
    if isinstance(proto, onnx.OptionalProto):
        return numpy_helper.to_optional(proto)
    return proto


def left_out(case: Case) -> str | None:
    """Why a case does not count; None if it does."""
    if any(_is_string(value) for ins, outs in case.data for value in [*ins, *outs]):
        return "strings"
    for graph in _graphs(case.model):
        infos = [*graph.input, *graph.output, *graph.value_info]
        if any(_of_strings(info.type) for info in infos) or any(
            t.data_type == TensorProto.STRING for t in graph.initializer
        ):
            return "strings"
        for node in graph.node:
            if node.op_type == "ImageDecoder":
                return "ImageDecoder"
            if node.op_type in RANDOM or _drops(node, case):
                return "random generators"
    return None


def _drops(node: onnx.NodeProto, case: Case) -> bool:
    """Whether a Dropout zeroes random elements: in training, with a ratio above 0."""
    if node.op_type != "Dropout" or len(node.input) < 3:
        return False
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in case.model.graph.initializer}
    given = [held.get(info.name) for info in case.model.graph.input]
    for inputs, _ in case.data:
        fed = iter(inputs)
        feed = {info.name: next(fed, None) for info, h in zip(case.model.graph.input, given, strict=True) if h is None}
        feed.update(held)
        ratio = feed.get(node.input[1]) if node.input[1] else 0.5
        if np.any(feed.get(node.input[2], False)) and np.any(np.asarray(ratio if ratio is not None else 0.5) != 0):
            return True
    return False


def _is_string(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_string, value))
    return isinstance(value, np.ndarray) and value.dtype.kind in "OSU"


def _of_strings(type: TypeProto) -> bool:
    if type.HasField("tensor_type"):
        return bool(type.tensor_type.elem_type == TensorProto.STRING)
    for kind in ("sequence_type", "optional_type"):
        if type.HasField(kind):
            return _of_strings(getattr(type, kind).elem_type)
    return False


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(a.g for node in graph.node for a in node.attribute if a.type == AttributeProto.GRAPH)


def compare(expected: list[Any], found: list[Any], rtol: float, atol: float) -> str | None:
    """Why outputs differ, by the rules of ONNX's own runner; None if they agree."""
    from onnx.backend.test.runner import Runner

    if len(expected) != len(found):
        return f"{len(found)} values, not {len(expected)}"
    for want, have in zip(expected, found, strict=True):
        if isinstance(want, list | tuple) != isinstance(have, list | tuple) or (want is None) != (have is None):
            return f"{type(have).__name__} for {type(want).__name__}"
        if isinstance(want, list | tuple):  # the runner compares lists entry by entry, but not those of scalars
            difference = compare(list(want), list(have), rtol, atol)
            if difference is not None:
                return difference
        elif want is not None:
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    Runner.assert_similar_outputs([np.asarray(want)], [np.asarray(have)], rtol, atol)
            except (AssertionError, ValueError, TypeError) as error:
                return " ".join(str(error).split())[:300] or type(error).__name__
    return None


def within_rounding(wanted: list[Any], found: list[Any]) -> bool:
    """Whether floats differ by at most one unit in the last place of the largest expected element, and nothing else."""
    for a, b in zip(wanted, found, strict=True):
        if compare([a], [b], 0, 0) is None:
            continue
        if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or np.shape(a) != np.shape(b) or not a.size:
            return False
        limit = float(np.finfo(a.dtype).eps) * float(np.max(np.abs(a)))
        if not np.max(np.abs(a.astype(np.float64) - np.asarray(b, np.float64))) <= limit:
            return False
    return True
