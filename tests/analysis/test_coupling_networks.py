"""Which units the networks of `networks` have: extent, verdict, and every weight axis that has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.analysis.coupling import Coupling, couple
from tests.analysis.networks import NETWORKS, loaded

EXPECTED = {
    block.split("\n", 1)[0]: [line.strip() for line in block.split("\n")[1:] if line.strip()]
    for block in Path(__file__).with_name("units.txt").read_text(encoding="utf-8").split("\n\n")
}


def coupled(name: str) -> Coupling:
    return couple(loaded(name)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_units_that_may_be_removed(name: str) -> None:
    found = [f"{unit.verdict} {unit.extent}: {' '.join(map(str, unit.weights))}" for unit in coupled(name).removable()]
    assert sorted(found) == sorted(EXPECTED[name])


@pytest.mark.parametrize(
    ("name", "unit", "words"),
    [
        ("Residual", "stem.weight.1", ["an input of the model", "x"]),
        ("Residual", "head.fc.weight.0", ["an output of the model, 'output'"]),
        ("Residual", "stem.weight.2", ["spatial axis", "conv", "networks.py:"]),
        ("AttentionNorm", "embed.weight.T.1", ["layer_norm computes statistics over it", "norm", "networks.py:"]),
        ("GroupNorm", "conv.weight.0.1", ["group_norm computes statistics over it", "networks.py:"]),
        ("Misaligned", "a.weight.0.0", ["two ways that do not align", "reshape", "networks.py:"]),
        ("Shuffle24", "g1.weight.0.3", ["two ways that do not align", "g2", "networks.py:"]),
        ("ProductOfSigmoids", "a.weight.T.1", ["matmul sums over it where no factor vanishes", "networks.py:"]),
        ("ShiftedWindows", "bias.0", ["indexed by data", "gather", "networks.py:"]),
        ("TiedEmbedding", "table.weight.0", ["indexed by data", "table", "networks.py:"]),
        ("PixelShuffle", "a.weight.0.1", ["pixels of a block", "networks.py:"]),
        ("LSTM", "cell.bias_ih_l0.1.0", ["gates", "lstm", "networks.py:"]),
        ("Gram", "b.weight.0", ["one axis has it twice over", "reshape", "networks.py:"]),
        ("Outer", "b.weight.0", ["one axis has it twice over", "reshape", "networks.py:"]),
        ("PairDifference", "b.weight.0", ["one axis has it twice over", "reshape", "networks.py:"]),
        ("ResidualLinear", "a.weight.0", ["what reads it must be zeroed or cut too"]),
        ("Flatten", "conv.weight.0", ["zeroing its producers is enough"]),
    ],
)
def test_the_reason_names_what_and_where(name: str, unit: str, words: list[str]) -> None:
    found = {unit.name: unit for unit in coupled(name).units}[unit]
    assert all(word in found.why() for word in words), found.why()


def test_shapes_and_axes_are_no_weights() -> None:
    for name in ("Shuffle32", "PaddedResidual", "Residual"):
        assert all(m.value.element.storage.kind == "float" for u in coupled(name).units for m in u.weights)


def test_a_unit_knows_where_it_lies_on_an_axis() -> None:
    coupling = coupled("AttentionFused")
    units = {unit.name: unit for unit in coupling.units}
    weight = units["qkv.weight.T.1.0"].weights[0]
    heads, depth = units["qkv.weight.T.1.0"], units["qkv.weight.T.1.1"]
    assert coupling.of(weight.value, 1)[:2] == [heads, depth]
    third = [*range(4), *range(12, 16), *range(24, 28)]  # of q, k and v
    assert [p for p, h in enumerate(coupling.coordinate(weight.value, 1, heads)) if h == 0] == third
    assert coupling.coordinate(weight.value, 1, depth).tolist() == [0, 1, 2, 3] * 6 + [-1] * 12
    kept = coupling.positions(weight.value, 1, {heads.variable: [2, 0]})
    assert kept.tolist() == [8, 9, 10, 11, 0, 1, 2, 3, 20, 21, 22, 23, 12, 13, 14, 15, 32, 33, 34, 35, 24, 25, 26, 27]


def test_uses_tell_what_keeps_a_unit_from_what_sums_over_it() -> None:
    coupling = coupled("ResidualLinear")
    unit = next(unit for unit in coupling.units if unit.name == "a.weight.0")
    kept = {(str(use), u.kept) for use in unit.weights for u in coupling.uses(use, unit)}
    assert ("b.weight.0", True) in kept
    assert ("b.weight.1", False) in kept
    assert ("c.weight.1", False) in kept
