"""Gives a causal language model the weighted fused LM head of `online_sft.fused_cross_entropy`."""

import types
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from online_sft.fused_cross_entropy import LogitTransform, weighted_linear_cross_entropy
from online_sft.losses import weighted_log_probs
from online_sft.objectives import Objective, dft, floored
from trainers.weighted_sft_config import WeightedSFTConfig

__all__ = ["TokenWeighting", "WeightedLMOutput", "add_weighted_lm_head", "logit_transform", "objective_of"]


@dataclass(frozen=True)
class TokenWeighting:
    """What one call asks of the head. Not a bare tensor argument: FSDP's mixed precision would round the weights."""

    weights: Tensor  # [B, T], aligned with the tokens
    objective: Objective = weighted_log_probs
    temperature: float = 1.0
    temperatures: Tensor | None = None  # [B, T], aligned with the tokens; they multiply `temperature`
    chunk_size: int = 256


@dataclass
class WeightedLMOutput(FusedCausalLMOutput):
    """TRL's output, per token [B, T-1] and without gradients, and the loss before its division."""

    nll: Tensor | None = None  # scalar, nats: minus the objective summed over tokens with a label and a weight


def add_weighted_lm_head(model: PreTrainedModel) -> None:
    """Patches `model`: `model(..., labels=labels, token_weighting=...)` returns a `WeightedLMOutput`, never logits.

    `labels`: [B, T], aligned with the tokens; the shift happens here. Without `token_weighting` the forward is the one
    that was there, TRL's fused head included. Works under PEFT (LoRA), DDP, FSDP and ZeRO-3, because backbone and head
    are looked up on each call, within the model's own forward.
    """
    original_forward = model.forward

    @wraps(type(model).forward)
    def forward(self: Any, *args: Any, token_weighting: TokenWeighting | None = None, **kwargs: Any) -> Any:
        if token_weighting is None:
            return original_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        head = self.get_output_embeddings()
        hidden = hidden.to(head.weight.device)  # `device_map` may put the head on another device
        temperatures = token_weighting.temperatures
        with maybe_gather_lm_head_ctx(head.weight, head.bias):
            scored = weighted_linear_cross_entropy(
                hidden,
                head.weight,
                labels.to(hidden.device),
                token_weighting.weights[:, 1:].to(hidden.device),
                head_bias=head.bias,
                transform=logit_transform(self.config.get_text_config(), token_weighting.temperature),
                temperatures=None if temperatures is None else temperatures[:, 1:].to(hidden.device),
                objective=token_weighting.objective,
                chunk_size=token_weighting.chunk_size,
                with_metrics=True,
            )
        return WeightedLMOutput(
            nll=scored.nll,
            log_probs=scored.log_probs,
            entropy=scored.entropy,
            is_top1=scored.is_top1,
            label_mask=scored.scored,
        )

    model.forward = types.MethodType(forward, model)


def logit_transform(config: PretrainedConfig, temperature: float = 1.0) -> LogitTransform:
    """What the model does to its LM head's product, from the names that Hugging Face's models give it.

    Cohere `logit_scale` and Falcon-H1 `lm_head_multiplier` multiply, Granite `logits_scaling` divides (HyperCLOVA X
    multiplies), Gemma 2 `final_logit_softcapping` caps.
    """
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale *= 1.0 if getattr(config, name, None) is None else getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is not None:
        scale *= scaling if config.model_type == "hyperclovax" else 1 / scaling
    return LogitTransform(scale, getattr(config, "final_logit_softcapping", None), temperature)


def objective_of(args: WeightedSFTConfig) -> Objective:
    """What the configuration sums over tokens."""
    if args.policy_weighting == "dft":
        return dft
    if args.negative_log_prob_floor is not None:
        return partial(floored, floor=args.negative_log_prob_floor)
    return weighted_log_probs
