import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import Qwen2ForCausalLM

from trainers.engine.probe import policy_log_probs, probe_sequences
from trainers.engine.suspects import explanation, find_suspects, layer_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "model.layers.11"),
        ("base_model.model.model.layers.1.mlp.down_proj", "model.layers.1"),
        ("model.language_model.layers.3.input_layernorm.weight", "model.language_model.layers.3"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_parameter_belongs_to_its_decoder_layer_or_else_to_its_module(name, layer):
    assert layer_of(name) == layer


def test_the_search_finds_two_layers_that_are_to_blame_together_and_no_third():
    def distance(taken_back):
        return 5.0 - 3.0 * ("b" in taken_back) - 1.9999 * ("d" in taken_back) + 0.5 * ("a" in taken_back)

    suspects, nearest = find_suspects(list("abcd"), distance, tolerance=1e-3)
    assert suspects == {"b", "d"}
    assert nearest == pytest.approx(1e-4)


def test_the_search_ends_where_nothing_helps_and_does_not_begin_where_all_agree():
    assert find_suspects(["a", "b"], lambda taken_back: 1.0 + len(taken_back), 1e-3) == (set(), 1.0)
    assert find_suspects(["a", "b"], lambda taken_back: 0.0, 1e-3) == (set(), 0.0)


@pytest.fixture
def sequences(tokenizer):
    return probe_sequences(tokenizer)


def moved(model, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def explained(model, engine, sequences):
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    text = explanation(model, lambda: policy_log_probs(model, sequences, CPU), engine, tolerance=1e-3)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0]), f"the search has changed {name}"
        assert value.requires_grad == before[name][1]
    return text


def test_an_engine_that_got_nothing_is_the_model_as_it_started(saved_model, sequences):
    engine = policy_log_probs(saved_model, sequences, CPU)
    assert "no weight has arrived" in explained(moved(saved_model), engine, sequences)


@pytest.mark.parametrize("left_out", ["model.layers.0", "model.embed_tokens", "model.norm"])
def test_a_layer_that_was_left_out_is_named(saved_model, sequences, left_out):
    first = Qwen2ForCausalLM.from_pretrained(saved_model.name_or_path)
    moved(saved_model)
    stale = copy.deepcopy(saved_model)
    stale.load_state_dict(
        {name: value for name, value in first.state_dict().items() if name.startswith(left_out)}, False
    )
    engine = policy_log_probs(stale, sequences, CPU)
    text = explained(saved_model, engine, sequences)
    assert text.startswith(f"suspect parameters: {left_out}.*. With these as in {saved_model.name_or_path}")
    assert "policy and engine agree" in text


@pytest.fixture
def adapted(saved_model):
    return moved(get_peft_model(saved_model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])))


def test_adapters_that_were_not_merged_are_named(adapted, sequences):
    with adapted.disable_adapter():
        engine = policy_log_probs(adapted, sequences, CPU)
    assert "the engine computes the model without its adapters" in explained(adapted, engine, sequences)
    assert (policy_log_probs(adapted, sequences, CPU) - engine).abs().max() > 0.01


def test_adapters_of_one_layer_that_were_not_merged_are_named(adapted, sequences):
    engine_model = copy.deepcopy(adapted)
    with torch.no_grad():
        for name, value in engine_model.named_parameters():
            if "layers.1." in name and "lora_B" in name:
                value.zero_()
    engine = policy_log_probs(engine_model, sequences, CPU)
    assert explained(adapted, engine, sequences).startswith("suspect parameters: model.layers.1.*. With these without")


def test_an_engine_that_no_layer_explains_is_said_to_be_so(saved_model, sequences):
    engine = policy_log_probs(saved_model, sequences, CPU) + 3.0
    assert explained(saved_model, engine, sequences).startswith("no layer as in ")


def test_the_probe_scores_each_token_given_those_before_it_and_leaves_the_mode_as_it_was(model, sequences):
    model.train()
    found = policy_log_probs(model, sequences, CPU)
    assert model.training
    expected = []
    for ids in sequences:
        log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected += [log_probs[t, token].item() for t, token in enumerate(ids[1:])]
    assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)
    assert len(found) > 20


def test_a_tokenizer_without_tokens_for_the_probe_is_refused(tokenizer):
    class Silent:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": []}

    with pytest.raises(ValueError, match="weight_sync_probe_every=0"):
        probe_sequences(Silent())
