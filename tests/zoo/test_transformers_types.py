"""The generated list is the rule applied, the shrinker keeps what makes a model run, and builds repeat."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from benchmarks.zoo import transformers_types as types
from benchmarks.zoo.inputs import InputMaker, Plan, Signature, plans
from benchmarks.zoo.shrink import STRATEGIES, VOCABULARY, reserved, shrink, walk
from benchmarks.zoo.weights import randomise

UNIFORM = STRATEGIES[0]
DOCUMENT = json.loads(types.LIST.read_text())
FAST = [entry["type"] for entry in DOCUMENT["types"] if entry["seconds"] < 0.05][:6]

same_version = pytest.mark.skipif(
    DOCUMENT["versions"]["transformers"] != transformers.__version__,
    reason=f"the list was generated with transformers {DOCUMENT['versions']['transformers']}",
)


@same_version
def test_the_list_is_a_prefix_of_the_hash_order() -> None:
    chosen, rejected = types.selected(), [entry["type"] for entry in DOCUMENT["rejected"]]
    examined = types.candidates()[: len(chosen) + len(rejected)]
    assert len(chosen) == types.WANTED
    assert sorted(chosen + rejected) == sorted(examined)
    assert chosen == [name for name in examined if name in set(chosen)]
    assert examined[-1] == chosen[-1]


def test_every_refusal_has_a_reason() -> None:
    assert all(entry["reason"] for entry in DOCUMENT["rejected"])
    assert all(entry["exports"] or entry["reason"] for entry in DOCUMENT["types"])
    assert DOCUMENT["counts"]["export"] == sum(entry["exports"] for entry in DOCUMENT["types"])


@same_version
@pytest.mark.parametrize("name", FAST)
def test_a_type_builds_as_recorded_and_repeats(name: str) -> None:
    entry = next(entry for entry in DOCUMENT["types"] if entry["type"] == name)
    results = []
    for _ in range(2):
        module, args, kwargs = types.build(name)
        assert not module.training
        with torch.no_grad():
            results.append(module(*args, **kwargs))
        assert {key: list(tensor.shape) for key, tensor in kwargs.items()} == entry["inputs"]
        assert sum(parameter.numel() for parameter in module.parameters()) == entry["parameters"]
    assert len(results[0]) == entry["outputs"]
    assert all(tensor.is_floating_point() for tensor in results[0])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert max(float(tensor.std()) for tensor in results[0] if tensor.numel() > 1) > 1e-3


@pytest.mark.slow
@same_version
@pytest.mark.parametrize("entry", DOCUMENT["types"], ids=lambda entry: entry["type"])
def test_every_type_runs_and_exports_as_recorded(entry: dict) -> None:
    module, args, kwargs = types.build(entry["type"])
    with torch.no_grad():
        assert len(module(*args, **kwargs)) == entry["outputs"]
    assert (types.exports(module, kwargs) == "") == entry["exports"]


def test_one_layer_of_each_kind_is_kept() -> None:
    default = transformers.CONFIG_MAPPING["qwen3_next"]()
    small = shrink(default, UNIFORM)
    assert small.num_hidden_layers == len(small.layer_types) < default.num_hidden_layers
    assert set(small.layer_types) == set(default.layer_types)


def test_nested_configurations_shrink_together() -> None:
    small = shrink(transformers.CONFIG_MAPPING["llava"](), UNIFORM)
    assert small.text_config.hidden_size == 64
    assert small.vision_config.num_hidden_layers == 2
    assert small.vision_config.image_size % small.vision_config.patch_size == 0
    assert 0 <= small.image_token_id < small.text_config.vocab_size == VOCABULARY
    assert small.image_token_id in reserved(small)
    assert all(not getattr(part, "use_cache", False) for part in walk(small))


def test_grouped_heads_stay_grouped_and_divide_the_width() -> None:
    for name in ("llama", "qwen2", "gemma2", "mistral"):
        small = shrink(transformers.CONFIG_MAPPING[name](), UNIFORM)
        assert small.hidden_size % small.num_attention_heads == 0
        assert small.num_attention_heads % small.num_key_value_heads == 0
    assert small.num_key_value_heads < small.num_attention_heads


def test_special_tokens_are_not_drawn_as_text() -> None:
    model, config = types.tiny_model("bert", UNIFORM)
    inputs = InputMaker(model, config, Plan()).make()
    ordinary = inputs["input_ids"][:, :-1]
    assert not set(ordinary.flatten().tolist()) & reserved(config)
    assert int(inputs["input_ids"].max()) < config.vocab_size


def test_a_plan_is_named_and_parsed_back() -> None:
    model, _ = types.tiny_model("clip", UNIFORM)
    tried = list(plans(Signature(model)))
    assert len(tried) == len(set(tried)) > 3
    assert [Plan.parse(plan.name) for plan in tried] == tried


def test_an_unknown_required_input_is_refused_by_name() -> None:
    class Odd(torch.nn.Module):
        def forward(self, gadget: torch.Tensor) -> torch.Tensor:
            return gadget

    config = transformers.CONFIG_MAPPING["bert"]()
    with pytest.raises(LookupError, match="gadget"):
        InputMaker(Odd(), config, Plan()).make()


def test_a_type_that_cannot_be_built_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(types, "STRATEGIES", STRATEGIES[:1])
    with pytest.raises(RuntimeError, match="names no inputs"):
        types.build("bark")


def test_weights_are_seeded_by_name_and_leave_nothing_constant() -> None:
    def make() -> torch.nn.Module:
        torch.manual_seed(torch.initial_seed() + 1)
        return randomise(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.LayerNorm(5)))

    first, second = make(), make()
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        if name.endswith("num_batches_tracked") or name == "0.weight":
            continue
        assert a.std() > 0, name
        if "0." not in name:
            assert torch.equal(a, b), name
    assert (first[1].running_var > 0.4).all()


def test_memory_nobody_wrote_becomes_ordinary_weights() -> None:
    layer = torch.nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.fill_(float("nan"))
        layer.bias.fill_(1e30)
    randomise(layer)
    assert torch.isfinite(layer.weight).all() and layer.weight.std() > 0.1
    assert layer.bias.abs().max() < 10
