"""The model's weights as one process has them: gathered where they are sharded, with adapters merged."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

__all__ = ["is_sharded", "whole_weights"]


def is_sharded(trainer: Any) -> bool:
    """Whether a process holds a part of each parameter only: FSDP, ZeRO-3."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return bool(trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3))


def whole_weights(trainer: Any) -> dict[str, Tensor]:
    """The weights by the names that they have in the model's own checkpoints; adapters are merged. A collective call.

    A tensor that has several names (tied embeddings) is there under the first of them. On the CPU of the main process;
    the others have none. The model itself stays as it is, to the bit.

    Raises:
        ValueError: for adapters that are no part of the weights.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"adapters of {model.active_peft_config.peft_type.value} cannot be merged: they are no part of the weights"
        )
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.accelerator.is_main_process:
        return {}
    return _once(_merged(model, state) if isinstance(model, PeftModel) else state)


def _merged(model: PeftModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of another model of the same architecture that is given these weights; PEFT knows what its adapters do."""
    base = model.get_base_model()
    with torch.device("meta"):  # neither memory nor random numbers
        like_ours = type(base)(base.config)
    config = model.peft_config[model.active_adapter]
    adapted = get_peft_model(like_ours, config, adapter_name=model.active_adapter, low_cpu_mem_usage=True)
    adapted.load_state_dict(state, strict=False, assign=True)
    # safe: new tensors, where the weights given are the policy's own
    return adapted.merge_and_unload(safe_merge=True).state_dict()


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[tuple[int, tuple[int, ...]]] = set()
    weights = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            weights[name] = tensor.detach().cpu().contiguous().clone()
    return weights
