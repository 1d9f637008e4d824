"""The trainer itself leads a language model to pi* = pi_ref exp(r / beta) / Z; the loss alone: test_verification.py."""

import itertools

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from online_sft import OnlineSFTConfig, OnlineSFTTrainer

BETA, PROMPTS, LENGTH = 0.5, ["1 + 1 =", "7 + 0 ="], 2


def reward_of(prompt, completion_ids):
    """Anything fixed: a number between 0 and 1 that depends on prompt, tokens and their order."""
    return ((sum((t + 3) * token for t, token in enumerate(completion_ids)) + 5 * PROMPTS.index(prompt)) % 8) / 7


def table(model, tokenizer, prompt):
    """log pi of every completion of at most two tokens, and its reward."""
    prompt_ids, end = tokenizer(prompt)["input_ids"], tokenizer.eos_token_id
    vocabulary = range(len(tokenizer))
    completions = [[end]] + [list(c) for c in itertools.product(vocabulary, repeat=LENGTH) if c[0] != end]
    first = model(torch.tensor([prompt_ids])).logits[0, -1].double().log_softmax(-1)
    second = model(torch.tensor([[*prompt_ids, token] for token in vocabulary])).logits[:, -1].double().log_softmax(-1)
    log_probs = [first[c[0]] + (second[c[0], c[1]] if len(c) > 1 else 0.0) for c in completions]
    return torch.stack(log_probs), torch.tensor([reward_of(prompt, c) for c in completions], dtype=torch.float64)


@torch.no_grad()
def kl_to_the_optimum(model, reference, tokenizer):
    divergences = []
    for prompt in PROMPTS:
        s, rewards = table(model, tokenizer, prompt)
        s_ref, _ = table(reference, tokenizer, prompt)
        assert abs(s.exp().sum() - 1) < 1e-5
        best = (s_ref + rewards / BETA).log_softmax(-1)
        divergences.append((s.exp() * (s - best)).sum().item())
    return max(divergences)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_iterations": 2, "importance_sampling_clip_max": None}], ids=str)
def test_the_trainer_reaches_the_optimal_policy(saved_model, tokenizer, cpu_args, tmp_path, options):
    def reward(prompts, completion_ids, **columns):
        return [reward_of(prompt, ids) for prompt, ids in zip(prompts, completion_ids, strict=True)]

    args = OnlineSFTConfig(
        **cpu_args,
        **options,
        beta=BETA,
        max_steps=300,
        per_device_train_batch_size=256,
        num_generations=32,
        max_completion_length=LENGTH,
        learning_rate=2e-3,
        lr_scheduler_type="linear",
        adam_beta2=0.99,
    )
    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS] * 8)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    trainer = OnlineSFTTrainer(saved_model, reward, args, data, processing_class=tokenizer)
    assert kl_to_the_optimum(reference, reference, tokenizer) > 0.1
    trainer.train()
    trained = kl_to_the_optimum(trainer.model.eval(), reference, tokenizer)
    print("KL(policy || optimum):", trained)
    assert trained < 1e-3
