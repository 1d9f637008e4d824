"""Completions of the policy as it is now, by whatever engine the trainer generates with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from trl import GRPOTrainer

__all__ = ["Rollout", "RolloutEngine", "synced_rollouts"]


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
        trainer: whose policy answers.
        policy_version: the step whose weights the engine has.
    """

    trainer: GRPOTrainer
    policy_version: int

    def generate(self, prompts: Sequence[Any], num_generations: int = 1) -> list[Rollout]:
        """`num_generations` completions of each prompt, prompt by prompt.

        A collective call: every process calls it, with as many prompts of its own.

        Args:
            prompts: strings or conversations, as in the training data.
            num_generations: samples of each.
        """
        trainer = self.trainer
        repeated = [prompt for prompt in prompts for _ in range(num_generations)]
        prompt_ids, images, fields = trainer._tokenize_prompts(repeated)
        completion_ids, log_probs = trainer._generate_single_turn(prompt_ids, images, fields, num_generations)
        texts = trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        rows = zip(prompt_ids, completion_ids, log_probs or [None] * len(repeated), texts, strict=True)
        return [Rollout(*row) for row in rows]


@contextmanager
def synced_rollouts(trainer: GRPOTrainer) -> Iterator[RolloutEngine]:
    """See `OnlineSFTTrainer.synced_rollouts`."""
    step = trainer.state.global_step
    if not trainer.use_vllm:  # transformers generates with the policy itself
        yield RolloutEngine(trainer, step)
        return
    generation = trainer.vllm_generation
    generation.sync_weights()
    trainer._last_loaded_step = step
    sleeps = generation.mode == "colocate" and generation.enable_sleep_mode
    if sleeps:  # TRL puts the engine to sleep after each `generate`, and would send the weights again before the next
        generation.llm.wake_up(tags=["kv_cache"])
        generation.enable_sleep_mode = False
    try:
        yield RolloutEngine(trainer, step)
    finally:
        if sleeps:
            generation.enable_sleep_mode = True
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True
