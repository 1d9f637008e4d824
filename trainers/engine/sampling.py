"""Sampling with transformers from the model in training, without a trace in what follows."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad

__all__ = ["end_tokens", "generated", "generating", "generation_config", "in_evaluation_mode", "own_random_numbers"]


@contextmanager
def generating(trainer: Trainer) -> Iterator[PreTrainedModel]:
    """The trainer's model, whole on every process and in evaluation mode. A collective call, with all processes."""
    wrapped = trainer.model_wrapped
    with (
        in_evaluation_mode(wrapped),
        _without_checkpointing(wrapped),
        unwrap_model_for_generation(
            wrapped,
            trainer.accelerator,
            # of GRPO's trainers
            gather_deepspeed3_params=getattr(trainer.args, "ds3_gather_for_generation", True),
        ) as model,
        _with_no_sampling_of_its_own(model),
        torch.no_grad(),
        DistributedBackend(trainer.accelerator).summon_full_params(wrapped, recurse=False),
    ):
        yield model


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Mapping[str, Any]
) -> GenerationConfig:
    """Sampling with these options and no others; for a model that is `generating`.

    Args:
        sampling: fields of a `GenerationConfig`.
    """
    return GenerationConfig(
        do_sample=True,
        top_k=0,
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
        with torch.random.fork_rng(devices=_own_devices()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _own_devices() -> Sequence[int]:
    """One of several processes should not open the GPUs of the others."""
    if not torch.cuda.is_available():
        return ()
    return [torch.cuda.current_device()] if torch.distributed.is_initialized() else range(torch.cuda.device_count())


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Also puts modules back that the training keeps in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


@contextmanager
def _without_checkpointing(model: nn.Module) -> Iterator[None]:
    """TRL's own way back forgets the settings (`every_n_layers`), and is not taken after an exception."""
    checkpointed: list[Any] = [module for module in model.modules() if vars(module).get("gradient_checkpointing")]
    for module in checkpointed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True


@contextmanager
def _with_no_sampling_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """`generate` takes what it is not told from the model's own configuration; of that, the end tokens are left."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    configured = base.generation_config
    base.generation_config = GenerationConfig(eos_token_id=configured.eos_token_id)
    try:
        yield
    finally:
        base.generation_config = configured


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's and those of the model's generation config, which TRL's rollouts end at, too."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return sorted({end for end in (tokenizer.eos_token_id, *ends) if end is not None})


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """With the end token, without the padding behind it."""
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]
