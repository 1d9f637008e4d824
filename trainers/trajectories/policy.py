"""The model in training as a policy: episodes of it, over all processes."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import set_seed

from online_sft.trajectories.collection import Action, Environment, Episodes, State, collect
from online_sft.trajectories.rendering import Renderer
from trainers.engine.rollouts import RolloutEngine
from trainers.engine.sampling import end_tokens, in_evaluation_mode, own_random_numbers

__all__ = ["EnginePolicy", "play", "renderer_of", "seed_of"]


@dataclass(frozen=True)
class EnginePolicy:
    """Answers the states of all processes in one call of the engine, which each process makes with as many prompts.

    Args:
        engine: with the policy's weights.
        renderer: of the states.
        accelerator: of the trainer.
        longest_prompt: tokens; longer states are not answered.
        end_tokens: with which an action ends that is not cut.
    """

    engine: RolloutEngine
    renderer: Renderer
    accelerator: Accelerator
    longest_prompt: int
    end_tokens: frozenset[int]

    def __call__(self, states: Sequence[State]) -> list[Action | None]:
        """See `online_sft.trajectories.collection.Policy`."""
        prompts = [self.renderer.prompt_ids(state.messages, state.tools) for state in states]
        answered = [index for index, prompt in enumerate(prompts) if len(prompt) <= self.longest_prompt]
        actions: list[Action | None] = [None] * len(states)
        most = max(gather_object([len(answered)]))
        if not most:
            return actions
        # whoever has fewer sends some of its own again, or a token, and forgets the answers
        own = [prompts[index] for index in answered] or [[min(self.end_tokens, default=0)]]
        rollouts = self.engine.complete([own[place % len(own)] for place in range(most)])
        for index, rollout in zip(answered, rollouts, strict=False):
            actions[index] = Action(rollout.text, is_cut=self.end_tokens.isdisjoint(rollout.completion_ids[-1:]))
        return actions


def play(
    trainer: Any,
    environments: Sequence[Callable[[], Environment]],
    seeds: Sequence[int],
    *,
    sampling_seed: int,
    num_environments: int,
    max_steps: int,
    metadata: Mapping[str, Any],
) -> Episodes:
    """An episode for each seed, dealt to the processes; each gets all of them, in the order of the seeds, however many
    processes there are. Takes no random numbers from training.

    Args:
        trainer: with `synced_rollouts`, a `TrajectorySFTTrainer` or an `OnlineSFTTrainer`.
        environments: of each seed.
        sampling_seed: of the actions.
        num_environments, max_steps, metadata: of `collect`; the first for each process.
    """
    accelerator = trainer.accelerator
    mine = range(accelerator.process_index, len(seeds), accelerator.num_processes)
    with own_random_numbers(), in_evaluation_mode(trainer.model_wrapped), trainer.synced_rollouts() as engine:
        set_seed(seed_of(sampling_seed, accelerator.process_index))
        found = collect(
            _policy(trainer, engine),
            [environments[index] for index in mine],
            [seeds[index] for index in mine],
            num_environments=num_environments,
            max_steps=max_steps,
            metadata=metadata,
            anywhere=lambda here: any(gather_object([here])),
        )
    everywhere = gather_object([found])
    place_of = {seed: place for place, seed in enumerate(seeds)}
    return Episodes(
        sorted(
            (trajectory for each in everywhere for trajectory in each.trajectories),
            key=lambda trajectory: place_of[trajectory.metadata["seed"]],
        ),
        [failure for each in everywhere for failure in each.failures],
    )


def renderer_of(trainer: Any) -> Renderer:
    """How a trainer of TRL turns messages into tokens."""
    settings = getattr(trainer, "chat_template_kwargs", None)  # GRPO's have it
    return Renderer(trainer._tokenizer, trainer.chat_template, settings)


def seed_of(*numbers: int) -> int:
    """Of 32 bits, which other numbers do not share but by chance."""
    # (1, 2) would be (1, 2, 0): the seed of an evaluation that of a training
    return int(np.random.SeedSequence([len(numbers), *numbers]).generate_state(1)[0])


def _policy(trainer: Any, engine: RolloutEngine) -> EnginePolicy:
    return EnginePolicy(
        engine,
        renderer_of(trainer),
        trainer.accelerator,
        _longest_prompt(trainer),
        frozenset(end_tokens(trainer.model, trainer._tokenizer)),
    )


def _longest_prompt(trainer: Any) -> int:
    args = trainer.args
    # recurrent models have no such limit
    context = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", sys.maxsize)
    if args.use_vllm and args.vllm_max_model_length is not None:
        context = min(context, args.vllm_max_model_length)
    if context <= args.max_completion_length:
        raise ValueError(
            f"max_completion_length={args.max_completion_length} leaves no room for a prompt in a context of {context} "
            "tokens; lower it"
        )
    return context - args.max_completion_length
