"""Completions of the policy as it is now, by whatever engine the trainer generates with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

__all__ = ["Rollout", "RolloutEngine", "synced", "synced_rollouts"]

# (prompts as token ids, each as often as it is answered, and how often that is) -> completions, and their log-probs
Sample = Callable[[list[list[int]], int], tuple[list[list[int]], list[list[float]] | None]]


@dataclass(frozen=True)
class Rollout:
    """One completion."""

    prompt_ids: list[int]
    completion_ids: list[int]
    log_probs: list[float] | None  # that vLLM sampled with, nats; None where transformers generates
    text: str  # the completion, without special tokens


@dataclass(frozen=True)
class RolloutEngine:
    """Generates with the trainer's engine, sampling options and chat template.

    Args:
        tokenize: prompts to token ids.
        sample: token ids to completions; a collective call.
        tokenizer: of the completions.
        policy_version: the step whose weights the engine has.
    """

    tokenize: Callable[[list[Any]], list[list[int]]]
    sample: Sample
    tokenizer: PreTrainedTokenizerBase
    policy_version: int

    def generate(self, prompts: Sequence[Any], num_generations: int = 1) -> list[Rollout]:
        """`num_generations` completions of each prompt, prompt by prompt.

        A collective call: every process calls it, with as many prompts of its own.

        Args:
            prompts: strings or conversations, as in the training data.
            num_generations: samples of each.
        """
        return self.complete(self.tokenize(list(prompts)), num_generations)

    def complete(self, prompt_ids: Sequence[list[int]], num_generations: int = 1) -> list[Rollout]:
        """The same of prompts that are tokens already."""
        repeated = [ids for ids in prompt_ids for _ in range(num_generations)]
        completion_ids, log_probs = self.sample(repeated, num_generations)
        texts = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        rows = zip(repeated, completion_ids, log_probs or repeat(None, len(repeated)), texts, strict=True)
        return [Rollout(*row) for row in rows]


@contextmanager
def synced_rollouts(trainer: GRPOTrainer) -> Iterator[RolloutEngine]:
    """See `OnlineSFTTrainer.synced_rollouts`."""

    def tokenize(prompts: list[Any]) -> list[list[int]]:
        prompt_ids, images, _ = trainer._tokenize_prompts(prompts)
        if images:
            raise ValueError("synced_rollouts generates from text; these prompts have images")
        return prompt_ids

    def sample(prompt_ids: list[list[int]], num_generations: int) -> tuple[list[list[int]], list | None]:
        return trainer._generate_single_turn(prompt_ids, None, {}, num_generations)

    engine = RolloutEngine(tokenize, sample, trainer.processing_class, trainer.state.global_step)
    if not trainer.use_vllm:  # transformers generates with the policy itself
        yield engine
        return
    with synced(trainer.vllm_generation):
        trainer._last_loaded_step = engine.policy_version
        yield engine


@contextmanager
def synced(generation: VLLMGeneration) -> Iterator[None]:
    """In the body vLLM has the policy's weights; after it, it sleeps where it is meant to."""
    generation.sync_weights()
    sleeps = generation.mode == "colocate" and generation.enable_sleep_mode
    if sleeps:  # TRL puts the engine to sleep after each `generate`, and would send the weights again before the next
        generation.llm.wake_up(tags=["kv_cache"])
        generation.enable_sleep_mode = False
    try:
        yield
    finally:
        if sleeps:
            generation.enable_sleep_mode = True
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True
