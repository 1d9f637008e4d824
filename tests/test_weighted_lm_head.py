"""The weighted LM head inside real models: their own logits decide what is right."""

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GraniteConfig,
    LlamaConfig,
    Qwen3Config,
)

from online_sft.losses import weighted_nll_from_logits
from trainers.weighted_lm_head import TokenWeighting, add_weighted_lm_head

SMALL = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
MAMBA = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
SMALL_GPT = {"vocab_size": 37, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": 1}
MODELS = {
    "qwen3": Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
    "llama, head of its own": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "gemma2, soft cap": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.2),
    "cohere, logit scale": CohereConfig(**SMALL, logit_scale=3.0),
    "granite, logits scaling": GraniteConfig(**SMALL, logits_scaling=4.0),
    "falcon h1, head multiplier": FalconH1Config(**SMALL, **MAMBA, lm_head_multiplier=5.0),
    "gpt-j, head with a bias": GPTJConfig(**SMALL_GPT, rotary_dim=4),
    "gpt2": GPT2Config(**SMALL_GPT),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_loss_and_every_gradient_are_those_of_the_models_own_logits(name, temperature):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name]).eval()
    for parameter in model.parameters():  # biases start at 0, where forgetting them would not show
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    tokens = torch.randint(2, 37, (3, 9))
    labels, weights = tokens.clone(), torch.randn(3, 9)
    labels[0, 4:] = -100
    weights[1, 2:5] = 0.0

    logits = model(tokens).logits
    dense = weighted_nll_from_logits(logits, labels, weights, denominator=7.0, temperature=temperature)
    dense.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    add_weighted_lm_head(model)
    weighting = TokenWeighting(weights, temperature=temperature, chunk_size=5)
    outputs = model(input_ids=tokens, labels=labels, token_weighting=weighting)
    (outputs.nll / 7.0).backward()
    assert_close(outputs.nll / 7.0, dense)
    for n, p in model.named_parameters():
        if n in expected:
            assert_close(p.grad, expected[n], rtol=1e-4, atol=1e-6)
    scored = (labels[:, 1:] != -100) & (weights[:, 1:] != 0)
    log_probs = (logits[:, :-1] / temperature).log_softmax(-1)
    assert torch.equal(outputs.label_mask, scored)
    assert_close(outputs.entropy, -(log_probs.exp() * log_probs).sum(-1).detach() * scored, rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs.is_top1, (log_probs.argmax(-1) == labels[:, 1:]) & scored)
    assert_close(model(tokens).logits, logits)  # without weights, nothing has changed


def test_temperatures_belong_to_the_tokens_that_they_are_given_for():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS["qwen3"]).eval()
    tokens, temperatures = torch.randint(2, 37, (2, 6)), 0.5 + torch.rand(2, 6)
    log_probs = (model(tokens).logits[:, :-1] / temperatures[:, 1:, None]).log_softmax(-1)
    expected = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    add_weighted_lm_head(model)
    weighting = TokenWeighting(torch.ones(2, 6), temperatures=temperatures)
    assert_close(model(input_ids=tokens, labels=tokens, token_weighting=weighting).log_probs, expected.detach())


def test_generation_is_the_models_own():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS["qwen3"]).eval()
    prompt = torch.tensor([[5, 6, 7]])
    before = model.generate(prompt, max_new_tokens=5, do_sample=False)
    add_weighted_lm_head(model)
    assert torch.equal(model.generate(prompt, max_new_tokens=5, do_sample=False), before)
