"""Every classic family builds the same network each time, runs quickly, repeats, and `torch.export` takes it."""

from __future__ import annotations

import time
import warnings

import pytest
import torch

from benchmarks.zoo.attention import gather, partition
from benchmarks.zoo.classic import FAMILIES
from benchmarks.zoo.scientific import SplineLinear

NAMED_BY_THE_BAR = {
    "resnet", "densenet", "hardnet", "mobilenet_v2", "mobilenet_v3", "efficientnet", "unet", "cnn_3d", "inception",
    "lstm", "gru", "tdnn", "ecapa", "graph_attention", "vit", "swin", "kan", "hopfield", "pointer_network",
    "lambda_layer", "complex_mask", "fourier_operator",
}  # fmt: skip


def outputs(name: str) -> tuple[torch.Tensor, ...]:
    module, args, kwargs = FAMILIES[name]()
    with torch.no_grad():
        result = module(*args, **kwargs)
    return result if isinstance(result, tuple) else (result,)


def test_every_family_of_the_bar_is_there() -> None:
    missing = {name for name in NAMED_BY_THE_BAR if not any(family.startswith(name) for family in FAMILIES)}
    assert not missing


@pytest.mark.parametrize("name", FAMILIES)
def test_two_builds_give_the_same_finite_outputs(name: str) -> None:
    start = time.process_time()
    first = outputs(name)
    assert time.process_time() - start < 5.0
    for a, b in zip(first, outputs(name), strict=True):
        assert torch.equal(a, b)
        assert torch.isfinite(a).all()
        assert a.float().std() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_reaches_the_outputs_with_its_own_value(name: str) -> None:
    module, args, kwargs = FAMILIES[name]()
    result = module(*args, **kwargs)
    floating = [t for t in (result if isinstance(result, tuple) else (result,)) if t.is_floating_point()]
    weights = torch.Generator().manual_seed(5)
    sum((t * torch.randn(t.shape, generator=weights)).sum() for t in floating).backward()
    for label, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, label
        assert parameter.numel() == 1 or (parameter != parameter.flatten()[0]).any(), label


@pytest.mark.parametrize("name", FAMILIES)
def test_export_accepts_it_and_computes_the_same(name: str) -> None:
    module, args, kwargs = FAMILIES[name]()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, args, kwargs, strict=False)
        result = program.module()(*args, **kwargs)
    for a, b in zip(result if isinstance(result, tuple) else (result,), outputs(name), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_spline_bases_are_a_partition_of_unity() -> None:
    layer = SplineLinear(3, 2)
    x = torch.linspace(-0.999, 0.999, 50)[:, None].expand(-1, 3)
    bases = layer.bases(x)
    assert bases.shape == (50, 3, 8)
    assert (bases >= -1e-6).all()
    torch.testing.assert_close(bases.sum(-1), torch.ones(50, 3), rtol=0, atol=1e-5)


def test_window_partition_is_undone() -> None:
    x = torch.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    assert torch.equal(gather(partition(x, 4), 4, 8, 12), x)
    assert torch.equal(partition(x, 4)[1], x[0, :4, 4:8].reshape(16, 3))


def test_a_shifted_window_does_not_see_across_the_seam() -> None:
    module, _, _ = FAMILIES["swin"]()
    block = next(b for b in module.layers if getattr(getattr(b, "attention", None), "shift", 0))
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, 0] += 1.0  # after the shift the first row shares windows with the last rows, but is masked from them
    with torch.no_grad():
        difference = (block.attention(changed) - block.attention(x)).abs().amax((0, 2, 3))
    assert difference[0] > 1e-3
    assert difference[-1] < 1e-5


def test_a_pointer_network_visits_each_input_once() -> None:
    probabilities, choices = outputs("pointer_network")
    assert all(sorted(row) == list(range(6)) for row in choices.tolist())
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 6))


def test_both_forms_of_graph_attention_agree() -> None:
    dense, (nodes, adjacency), _ = FAMILIES["graph_attention"]()
    sparse, (_, edges), _ = FAMILIES["graph_attention_edges"]()
    sparse.load_state_dict(dense.state_dict(), strict=False)
    for layer in (sparse.first, sparse.second):
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        # the dense form's rows attend over columns; an edge (i, j) of the list carries i's message to j
        torch.testing.assert_close(sparse(nodes, edges.flip(0)), swapped(dense)(nodes, adjacency), rtol=1e-4, atol=1e-5)


def swapped(network: torch.nn.Module) -> torch.nn.Module:
    """The dense network with the two halves of its attention vectors exchanged."""
    for layer in (network.first, network.second):
        layer.source, layer.target = layer.target, layer.source
    return network
