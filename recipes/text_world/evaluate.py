"""What a model knows of the world, and how it walks."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from online_sft import EnvironmentEvaluationCallback
from recipes.text_world.environment import WalkEnv
from recipes.text_world.world import ACTIONS, MAX_STEPS, State, expected_return, next_state

__all__ = ["prediction_accuracy", "return_of", "score"]

NUM_EPISODES = 400
_MAX_NEW_TOKENS = 6  # an observation has five


@torch.no_grad()
def prediction_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, states: Iterable[State]) -> float:
    """Share of the next observations that the model writes without a fault, for every action in every state.

    It writes them greedily, token by token, as a world model is used: teacher forcing would show it the first half of
    the right answer before it asks for the second.
    """
    steps = [(state, action) for state in states for action in ACTIONS]
    said = [
        [{"role": "user", "content": str(state)}, {"role": "assistant", "content": action}] for state, action in steps
    ]
    prompts = [tokenizer.apply_chat_template(messages, tokenize=False) + "<user>" for messages in said]
    model.eval()
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens = model.generate(**batch, do_sample=False, max_new_tokens=_MAX_NEW_TOKENS)
    written = tokenizer.batch_decode(tokens[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
    right = [text == str(next_state(*step)) for text, step in zip(written, steps, strict=True)]
    return sum(right) / len(right)


def return_of(trainer: Any, starts: list[State]) -> float:
    """Mean return of a trainer's model in fresh episodes from these states, with actions sampled at temperature 1."""
    evaluation = EnvironmentEvaluationCallback(
        trainer, [partial(WalkEnv, starts)], num_tasks=NUM_EPISODES, num_environments=100, max_steps=MAX_STEPS
    )
    return evaluation.evaluate()["eval_return"]


def score(mean_return: float, starts: list[State]) -> float:
    """A mean return from these states as 0 for who acts at random and 100 for who takes a shortest way, both exactly.

    The normalised score of D4RL (Fu et al., 2020).
    """
    at_random = sum(expected_return(state, share_random=1.0) for state in starts) / len(starts)
    return 100 * (mean_return - at_random) / (1.0 - at_random)
