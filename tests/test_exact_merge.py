"""TRL merges adapters into the weights to send them and subtracts them again; the policy must not notice."""

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration

from trainers.engine.exact_merge import merged_without_trace


@pytest.fixture
def adapted(model):
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    adapted = get_peft_model(model.bfloat16(), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.copy_(0.3 * torch.randn_like(value))
    return adapted


def sent_by_trl(model):
    """What TRL hands to vLLM: its own code, without an engine behind it."""
    generation = object.__new__(VLLMGeneration)
    generation.model, generation.accelerator = model, Accelerator(cpu=True)
    generation._dist = DistributedBackend(generation.accelerator)
    return generation._iter_named_params()


def test_the_sums_are_sent_and_the_weights_are_the_same_to_the_bit_afterwards(adapted):
    before = {name: value.clone() for name, value in adapted.named_parameters()}
    weights = {m: m.get_base_layer().weight.clone() for m in adapted.modules() if hasattr(m, "get_delta_weight")}
    expected = {m: w + m.get_delta_weight("default").to(w.dtype) for m, w in weights.items()}
    with merged_without_trace(adapted):
        sent = dict(sent_by_trl(adapted))  # read once all have come, as vLLM's packed broadcast does
    names = {m: name for name, m in adapted.named_modules()}
    assert len(expected) == 6
    for module, total in expected.items():
        name = names[module].removeprefix("base_model.model.") + ".weight"
        assert_close(sent[name], total, rtol=0, atol=0)
        assert not torch.equal(sent[name], weights[module])
    for name, value in adapted.named_parameters():
        assert torch.equal(value, before[name]), name
    assert not any(module.merged for module in expected)
    assert not {"merge_adapter", "unmerge_adapter"} & set(vars(adapted))


def test_without_it_the_weights_move_and_what_is_sent_last_has_no_adapters(adapted):
    """If this fails, PEFT or TRL has mended it, and `merged_without_trace` can go."""
    before = {name: value.clone() for name, value in adapted.named_parameters()}
    sent = dict(sent_by_trl(adapted))
    assert any(not torch.equal(value, before[name]) for name, value in adapted.named_parameters())
    name = "model.layers.1.mlp.down_proj"
    module = adapted.get_submodule(f"base_model.model.{name}")
    weight, delta = before[f"base_model.model.{name}.base_layer.weight"], module.get_delta_weight("default")
    assert (sent[f"{name}.weight"] - weight).abs().max() < 0.02 < 0.2 < delta.abs().max()


def test_a_sync_that_fails_half_way_leaves_nothing_merged(adapted):
    before = {name: value.clone() for name, value in adapted.named_parameters()}
    with pytest.raises(ConnectionError), merged_without_trace(adapted):
        next(iter(sent_by_trl(adapted)))
        raise ConnectionError
    for name, value in adapted.named_parameters():
        assert torch.equal(value, before[name]), name
    assert not any(module.merged for module in adapted.modules() if hasattr(module, "merged"))
