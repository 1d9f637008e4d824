"""What TRL's GRPO machinery hands to the loss: a micro-batch of completions."""

from typing import Any

from torch import Tensor

__all__ = ["MULTIMODAL_INPUTS", "policy_mask", "sampler_log_probs"]

# Inputs of vision-language models that TRL carries beside the tokens.
MULTIMODAL_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


def policy_mask(inputs: dict[str, Any]) -> Tensor:
    """1 at the tokens that the policy wrote: not at padding, nor at what tools said. [B, T]"""
    mask: Tensor = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def sampler_log_probs(inputs: dict[str, Any]) -> Tensor | None:
    """What the tokens were sampled with, [B, T]; None: with the policy as it is."""
    # an engine says what it sampled with; TRL keeps the log-probs of the policy that sampled where steps may differ
    return inputs.get("sampling_per_token_logps", inputs.get("old_per_token_logps"))
