"""Held-out accuracy, greedy and sampled."""

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 8


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, sample: bool, copies: int = 1
) -> list[str]:
    """`copies` completions of each prompt, prompt by prompt: the most likely tokens, or sampled at temperature 1."""
    model.eval()
    batch = tokenizer([prompt for prompt in prompts for _ in range(copies)], return_tensors="pt", padding=True)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    tokens = model.generate(
        **batch.to(model.device),
        do_sample=sample,
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )
    return tokenizer.batch_decode(tokens[:, batch["input_ids"].size(1) :], skip_special_tokens=True)


def accuracy(completions: list[str], problems: Dataset, reward) -> float:
    """Share of completions with the correct answer; several per problem, problem by problem, are allowed."""
    copies = len(completions) // len(problems)
    columns = {name: [value for value in problems[name] for _ in range(copies)] for name in ("solution", "index")}
    rewards = reward(completions=completions, **columns)
    return sum(value == max(rewards) and value > 0 for value in rewards) / len(rewards)
