"""The memory of one process of a run, from its configuration and a model without weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.training_args import OptimizerNames

from trainers.dry_run.blank_model import BlankModel
from trainers.dry_run.memory import (
    Part,
    activations,
    autocast_copies,
    buckets,
    gradients,
    key_value_cache,
    optimizer_states,
    parameters,
    trl_head,
    vllm_share,
    weighted_head,
)
from trainers.dry_run.planned import Launch
from trainers.online_sft_config import OnlineSFTConfig

__all__ = ["Sizes", "parts_of"]


@dataclass(frozen=True)
class Sizes:
    """What the data says about the size of a micro-batch."""

    tokens_per_sequence: int | None  # the longest, prompt and completion; None: without limit
    sequences: int  # of a micro-batch of one process

    @property
    def tokens(self) -> int | None:
        """With padding."""
        return None if self.tokens_per_sequence is None else self.sequences * self.tokens_per_sequence


def parts_of(
    config: Any, blank: BlankModel, sizes: Sizes, *, has_weighted_head: bool, reward_models: Iterable[Any] = ()
) -> list[Part]:
    """What one process holds, line by line."""
    launch: Launch = config.launch
    in_16_bits = bool(config.bf16 or config.fp16)
    held, trained = blank.held, blank.trained
    if launch.is_zero and in_16_bits and not blank.bits:  # DeepSpeed's model is of 16 bits, whatever was loaded
        held, trained = (
            [torch.empty(t.shape, dtype=torch.bfloat16, device="meta") for t in ts] for ts in (held, trained)
        )
    if blank.bits:  # TRL's adapters of a quantised model are of 16 bits
        trained = [torch.empty(each.shape, dtype=torch.bfloat16, device="meta") for each in trained]
    parts_of_parameters = launch.parts_of("parameters")
    found = [
        parameters(held, parts=parts_of_parameters, quantised=blank.quantised, bits=blank.bits),
        gradients(trained, parts=launch.parts_of("gradients")),
        optimizer_states(
            OptimizerNames(config.optim).value,
            trained,
            parts=launch.parts_of("optimizer"),
            keeps_copy=launch.is_zero and in_16_bits,
        ),
    ]
    if launch.num_processes > 1 and not launch.method:
        found.append(buckets(trained))
    if isinstance(config, OnlineSFTConfig) and config.beta != 0.0 and len(trained) == len(held):
        found.append(parameters(held, parts=parts_of_parameters, name="reference model"))
    for each in reward_models:
        name = f"reward model {each.config._name_or_path.split('/')[-1]}"
        found.append(parameters(each.parameters(), name=name))
    if in_16_bits and not launch.is_zero and parts_of_parameters == 1:  # else a layer at a time is gathered in 16 bits
        found.append(autocast_copies(held))
    width = 2 if in_16_bits or blank.model.dtype.itemsize == 2 else 4
    found += _of_a_step(config, blank, sizes, width, has_weighted_head)
    if getattr(config, "use_vllm", False) and config.vllm_mode == "colocate":
        found.append(vllm_share(config.vllm_gpu_memory_utilization, _device_bytes()))
    return found


def _of_a_step(config: Any, blank: BlankModel, sizes: Sizes, width: int, has_weighted_head: bool) -> list[Part]:
    layers, num_tokens = blank.layers, sizes.tokens
    if layers is None or num_tokens is None:
        reason = (
            "its configuration does not say how large its layers are" if layers is None else "lengths have no limit"
        )
        return [Part("activations and logits", None, reason)]
    is_checkpointed = bool(config.activation_checkpointing)
    found = [activations(layers, num_tokens, width=width, is_checkpointed=is_checkpointed)]
    if has_weighted_head:
        found.append(
            weighted_head(
                layers, num_tokens, chunk_size=config.lm_head_chunk_size, is_trained=blank.trains_head, width=width
            )
        )
    else:
        found.append(trl_head(layers, num_tokens, is_trained=blank.trains_head, width=width))
    if not isinstance(config, OnlineSFTConfig) or config.use_vllm:
        return found
    assert sizes.tokens_per_sequence is not None
    if config.use_transformers_continuous_batching:
        return [*found, Part("key-value cache", None, "continuous batching takes a share of what is free")]
    num_sequences = config.per_device_train_batch_size * config.steps_per_generation
    return [*found, key_value_cache(layers, num_sequences, sizes.tokens_per_sequence, width=width)]


def _device_bytes() -> int | None:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
