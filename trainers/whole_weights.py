"""The model's weights as one process has them: gathered where they are sharded, with adapters merged."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from trainers.engine.exact_merge import merged_without_trace

__all__ = ["is_sharded", "whole_weights"]


def is_sharded(trainer: Any) -> bool:
    """Whether a process holds a part of each parameter only: FSDP, ZeRO-3."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return bool(trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3))


def whole_weights(trainer: Any) -> dict[str, Tensor]:
    """The weights by the names that they have in the model's own checkpoints; adapters are merged. A collective call.

    A tensor that has several names (tied embeddings) is there under the first of them. On the CPU of the main process;
    the others have none. The model itself stays as it is, to the bit.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_main = trainer.accelerator.is_main_process
    if not isinstance(model, PeftModel):
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return _once(state) if is_main else {}
    if is_sharded(trainer):
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return _once(_merged(model, state)) if is_main else {}
    if not is_main:
        return {}
    with merged_without_trace(model):
        model.merge_adapter()
        return _once(_of_base_model(model, model.state_dict()))


def _merged(model: PeftModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a model of the same architecture that has been given the gathered weights."""
    base = model.get_base_model()
    with torch.device("meta"):  # neither memory nor random numbers
        like_ours = type(base)(base.config)
    config = model.peft_config[model.active_adapter]
    adapted = get_peft_model(like_ours, config, adapter_name=model.active_adapter, low_cpu_mem_usage=True)
    adapted.load_state_dict(state, strict=False, assign=True)
    adapted.merge_adapter()
    return _of_base_model(adapted, adapted.state_dict())


def _of_base_model(model: PeftModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("base_model.model.")
        .replace(".base_layer", "")
        .replace(f".modules_to_save.{model.active_adapter}", ""): each
        for name, each in state.items()
        if model.prefix not in name and "original_module" not in name
    }


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[tuple[int, tuple[int, ...]]] = set()
    weights = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            weights[name] = tensor.detach().cpu().contiguous().clone()
    return weights
