"""Sampling with transformers from the model in training, without a trace in what follows."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad

__all__ = ["end_tokens", "generated", "generating", "generation_config", "own_random_numbers"]


@contextmanager
def generating(trainer: Trainer) -> Iterator[PreTrainedModel]:
    """The trainer's model, whole on every process and in evaluation mode. A collective call, with all processes."""
    args, wrapped = trainer.args, trainer.model_wrapped
    with (
        _in_evaluation_mode(wrapped),
        unwrap_model_for_generation(
            wrapped,
            trainer.accelerator,
            # of GRPO's trainers
            gather_deepspeed3_params=getattr(args, "ds3_gather_for_generation", True),
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        torch.no_grad(),
        DistributedBackend(trainer.accelerator).summon_full_params(wrapped, recurse=False),
    ):
        yield model


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Mapping[str, Any]
) -> GenerationConfig:
    """Sampling with these options and no others: `generate` would take the rest from the model's own configuration.

    Args:
        sampling: fields of a `GenerationConfig`.
    """
    return GenerationConfig(
        do_sample=True,
        top_k=0,
        min_p=0.0 if model.generation_config.min_p else None,  # continuous batching warns of any
        repetition_penalty=1.0,
        use_cache=True,
        disable_compile=True,
        eos_token_id=end_tokens(model, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )


def generated(
    model: PreTrainedModel, prompt_ids: Sequence[list[int]], config: GenerationConfig, device: torch.device
) -> list[list[int]]:
    """A completion of each prompt, up to its first end token."""
    prompts = [torch.tensor(ids) for ids in prompt_ids]
    inputs = pad(prompts, padding_value=config.pad_token_id, padding_side="left")
    mask = pad([torch.ones_like(ids) for ids in prompts], padding_value=0, padding_side="left")
    tokens = model.generate(inputs.to(device), attention_mask=mask.to(device), generation_config=config)
    return [_until_end(ids, config.eos_token_id or []) for ids in tokens[:, inputs.size(1) :].tolist()]


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """What happens inside does not show in the random numbers of Python, numpy and torch afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Also puts modules back that the training keeps in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's and those of the model's generation config, which TRL's rollouts end at, too."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return sorted({end for end in (tokenizer.eos_token_id, *ends) if end is not None})


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """With the end token, without the padding behind it."""
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]
