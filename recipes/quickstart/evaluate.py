"""Held-out accuracy, greedy and sampled."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.quickstart.problems import AgreeingReward

SAMPLES_PER_PROBLEM = 4
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Evaluation:
    greedy: float  # share of problems whose most likely completion is correct
    sampled: float  # share of correct completions among SAMPLES_PER_PROBLEM of each problem, at temperature 1
    completions: list[str]  # the most likely completion of each problem


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Dataset, reward: AgreeingReward
) -> Evaluation:
    """The same random numbers at every call, so that two models are compared on the same draws."""
    greedy = complete(model, tokenizer, problems["prompt"], sample=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        repeated = [prompt for prompt in problems["prompt"] for _ in range(SAMPLES_PER_PROBLEM)]
        sampled = complete(model, tokenizer, repeated, sample=True)
    return Evaluation(accuracy(greedy, problems, reward), accuracy(sampled, problems, reward), greedy)


@torch.no_grad()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, sample: bool
) -> list[str]:
    """The most likely completion of each prompt, or one sampled at temperature 1 from the whole distribution."""
    model.eval()
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    tokens = model.generate(**batch, do_sample=sample, max_new_tokens=MAX_NEW_TOKENS, **settings)
    return tokenizer.batch_decode(tokens[:, batch["input_ids"].size(1) :], skip_special_tokens=True)


def accuracy(completions: list[str], problems: Dataset, reward: AgreeingReward) -> float:
    """Share of correct completions; several of each problem, problem by problem, are allowed."""
    copies = len(completions) // len(problems)
    columns = {name: [value for value in problems[name] for _ in range(copies)] for name in ("solution", "index")}
    return reward(completions=completions, **columns).count(reward.reward.correct_reward) / len(completions)
