"""Constants: immutable, whatever happens to the arrays they were made from."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import espalier
from espalier.ir import Builder, Graph, TensorType, constant_value
from espalier.ir.constants import constant
from espalier.ir.elements import F32
from espalier.ir.execute import execute


def test_what_a_caller_writes_later_does_not_count() -> None:
    given = np.ones(4, np.float32)
    graph = Graph()
    b = Builder(graph)
    graph.set_outputs([b.add(b.input(TensorType(F32, (4,)), "x"), given)])
    value = constant_value(given)
    assert value.constant is not None
    digest = value.constant.digest
    given[0] = 5
    assert value.array[0] == 1 and constant(value.array).digest == digest
    assert execute(graph, [np.zeros(4, np.float32)])[0][0] == 1


def test_memory_of_others_is_copied_and_views_that_are_read_only_are_kept() -> None:
    tensor = torch.ones(3)
    from_tensor = constant(tensor)
    tensor[0] = 5
    assert from_tensor.array[0] == 1
    weights = np.ones((2, 3), np.float32)
    view = weights.view()
    view.flags.writeable = False
    assert np.shares_memory(constant(view).array, weights)
    assert not np.shares_memory(constant(weights).array, weights)
    assert weights.flags.writeable


def test_the_weights_of_a_module_are_not_copied() -> None:
    module = nn.Linear(8, 8, bias=False)
    graph = espalier.load(module, example_inputs=(torch.ones(1, 8),))
    (weight,) = graph.constants()
    assert np.shares_memory(weight.array, module.weight.detach().numpy())
    assert not weight.array.flags.writeable
