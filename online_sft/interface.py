"""`WeightedSFTInterface`: the weighted loss for a training loop of your own, from logits."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from online_sft.losses import per_token, token_log_probs, weighted_log_probs
from online_sft.normalisation import normalise

__all__ = ["WeightedSFTInterface", "checked_mask"]

_DEFAULTS = {"loss_reduction": "mean", "ignore_index": -100, "advantage_normalization": "batch", "temperature": 1.0}
_CHOICES = {
    "loss_reduction": ("mean", "sum", "none"),
    "advantage_normalization": ("batch", "sequence", "none"),  # one batch at a time: no running or group statistics
}


class WeightedSFTInterface:
    """Token-level weighted cross-entropy from logits, tokens, loss masks and advantages.

    The name, the keys and their defaults are those of the interface published for Atropos.

    Args:
        config: any of `loss_reduction` (mean: over loss tokens | sum | none), `ignore_index` (-100),
            `advantage_normalization` (batch | sequence | none), `temperature` (1.0, divides the logits).

    Raises:
        ValueError: for a key or a value that does not exist.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        config = dict(config or {})
        for key in config:
            if key not in _DEFAULTS:
                raise ValueError(f"unknown key {key!r}; the keys are {', '.join(_DEFAULTS)}")
        self.config = {**_DEFAULTS, **config}
        for key, choices in _CHOICES.items():
            if self.config[key] not in choices:
                raise ValueError(f"{key} must be one of {', '.join(choices)}; got {self.config[key]!r}")

    def compute_weighted_loss(
        self, logits: Tensor, tokens: Tensor, loss_masks: Tensor, advantages: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """L = -(1/D) sum_bt m_bt A_bt log p(y_bt | y_b,<t), in nats; the causal shift happens here.

        Args:
            logits: [B, T, V], unshifted: position t-1 predicts token t.
            tokens: [B, T] int64.
            loss_masks: [B, T], 1 (True) on loss tokens, else 0.
            advantages: [B, T], aligned with the tokens they belong to, or [B], one per sequence. Constant.
            labels: [B, T] instead of `tokens`, with `ignore_index` on further tokens without loss.

        Returns:
            `loss`: scalar, or [B, T-1] for loss_reduction "none"; a zero that backpropagates where there is no loss
            token.
            `token_losses`, `weighted_losses`: [B, T-1] nats, before and after the weight, 0 outside the mask.
            `effective_mask`: [B, T-1] bool, tokens with loss. `advantages`: [B, T-1], normalised.
            Entry t-1 belongs to token t. No input is changed.

        Raises:
            ValueError: when shapes disagree or a mask holds anything but 0 and 1.
        """
        targets = tokens if labels is None else labels
        if not logits.shape[:-1] == tokens.shape == targets.shape == loss_masks.shape:
            raise ValueError(
                f"tokens, labels and loss_masks must be [B, T] = {list(logits.shape[:-1])} like the logits; "
                f"got {list(tokens.shape)}, {list(targets.shape)} and {list(loss_masks.shape)}"
            )
        advantages = per_token(advantages, tokens)
        if advantages.shape != tokens.shape:
            raise ValueError(
                f"advantages must be [B, T] = {list(tokens.shape)} or [B] = [{len(tokens)}]; "
                f"got {list(advantages.shape)}"
            )
        ignore_index = self.config["ignore_index"]
        mask = (checked_mask(loss_masks) & (targets != ignore_index))[:, 1:]
        sequences = torch.arange(len(tokens), device=tokens.device).unsqueeze(1).expand(mask.shape)
        weights = normalise(
            advantages.detach()[:, 1:], mask, self.config["advantage_normalization"], sequences=sequences
        )
        log_probs = token_log_probs(
            logits, targets, temperature=self.config["temperature"], ignore_index=ignore_index
        ).masked_fill(~mask, 0.0)
        weights = weights.masked_fill(~mask, 0.0)
        weighted = -weighted_log_probs(log_probs, weights.to(log_probs.dtype))
        reductions = {
            "mean": weighted.sum() / mask.sum().clamp(min=1),
            "sum": weighted.sum(),
            "none": weighted,
        }
        return {
            "loss": reductions[self.config["loss_reduction"]],
            "token_losses": -log_probs,
            "weighted_losses": weighted,
            "effective_mask": mask,
            "advantages": weights,
        }


def checked_mask(mask: Tensor) -> Tensor:
    """The mask as bool.

    Raises:
        ValueError: when it holds anything but 0 and 1, such as Atropos' `masks` (-100 or the token itself).
    """
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        odd = mask[(mask != 0) & (mask != 1)].flatten()[0].item()
        raise ValueError(
            f"a loss mask must hold 1 on loss tokens and 0 elsewhere; got {odd}. Atropos' `masks` hold -100 or the "
            "token: pass `masks != -100`"
        )
    return mask.bool()
