"""The advantages of one optimizer step, normalised over all its micro-batches and ranks, and what its loss is divided
by."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch import Tensor

from online_sft.denominators import DENOMINATORS
from online_sft.normalisation import Moments, cells, clip, merge_moments, moments_by_cell, standardise
from trainers.running_advantages import RunningAdvantages
from trainers.weighted_sft_config import WeightedSFTConfig

__all__ = ["StepWeights", "loss_tokens", "sequence_ids"]

logger = get_logger(__name__)
Batch = dict[str, Any]


def loss_tokens(labels: Tensor) -> Tensor:
    """[B, T] bool. Nothing predicts a row's first token, whatever its label."""
    mask = labels != -100
    mask[:, 0] = False
    return mask


def sequence_ids(batch: Batch) -> Tensor:
    """[B, T] int64: the row, or, in a row of several sequences, the sequence that starts where the position is 0."""
    if "position_ids" in batch:
        starts = batch["position_ids"] == 0
        starts[:, 0] = True
        return starts.flatten().cumsum(0).view(starts.shape)
    labels = batch["labels"]
    return torch.arange(len(labels), device=labels.device).unsqueeze(1).expand(labels.shape)


def _with_gradient(batch: Batch, mask: Tensor) -> Tensor:
    """The loss tokens less those that shall have weight 0, whatever the normalisation."""
    return mask & (batch["has_gradient"] == 1) if "has_gradient" in batch else mask


class StepWeights:
    """Normalises and clips the advantages of an optimizer step's micro-batches, and counts its denominator D.

    Args:
        accelerator: of the trainer.
        running: statistics of "global" normalisation, read and updated.
        num_copies: ranks that see the same batch (tensor parallelism).
    """

    def __init__(
        self, args: WeightedSFTConfig, accelerator: Accelerator, running: RunningAdvantages, num_copies: int
    ) -> None:
        self._args = args
        self._accelerator = accelerator
        self._running = running
        self._num_copies = num_copies
        self._told = False

    def __call__(self, batches: list[Batch], *, update: bool) -> tuple[list[Batch], Tensor]:
        """The micro-batches of this rank with their advantages replaced, and D. Inputs are not changed.

        Args:
            update: add the step to the running statistics; without, "global" uses them as they are (evaluation).
        """
        masks = [loss_tokens(batch["labels"]) for batch in batches]
        weighed_tokens = [_with_gradient(batch, mask) for batch, mask in zip(batches, masks, strict=True)]
        advantages = self._normalised(batches, weighed_tokens, update)
        clipped = [
            clip(a, self._args.advantage_clipping) * mask for a, mask in zip(advantages, weighed_tokens, strict=True)
        ]
        weighed = [{**batch, "advantages": a} for batch, a in zip(batches, clipped, strict=True)]
        return weighed, self._denominator(weighed, masks)

    def _normalised(self, batches: list[Batch], masks: list[Tensor], update: bool) -> list[Tensor]:
        normalisation, advantages = self._args.advantage_normalization, [batch["advantages"] for batch in batches]
        if normalisation == "none":
            return advantages
        of_tokens = [cells(normalisation, sequence_ids(batch), batch.get("groups")) for batch in batches]
        parts = [moments_by_cell(*each) for each in zip(advantages, masks, of_tokens, strict=True)]
        if normalisation != "sequence":  # a sequence lies in one micro-batch, other cells spread over all
            parts = [self._over_step_and_ranks(parts, update)] * len(batches)
        return [standardise(*each) for each in zip(advantages, masks, of_tokens, parts, strict=True)]

    def _over_step_and_ranks(self, parts: list[dict[int, Moments]], update: bool) -> dict[int, Moments]:
        step = merge_moments(gather_object([merge_moments(parts)]))
        if self._args.advantage_normalization == "group":
            self._tell_of_lone_samples(step)
        if self._args.advantage_normalization != "global":
            return step
        seen = {0: self._running.moments}
        if not update:
            return seen if self._running.moments.count else step
        merged = merge_moments([seen, step])
        self._running.step = merged[0]
        return merged

    def _tell_of_lone_samples(self, groups: dict[int, Moments]) -> None:
        """Once, when most groups have nothing to compare: shuffling scatters a prompt's samples over steps."""
        num_equal = sum(moments.std == 0 for moments in groups.values())
        if num_equal <= len(groups) / 2 or self._told:
            return
        self._told = True
        logger.warning(
            "in %d of %d groups of this step all advantages are equal, so that their weight is 0: "
            "advantage_normalization='group' needs a prompt's samples in one step "
            "(train_sampling_strategy='sequential' keeps the order of the data set)",
            num_equal,
            len(groups),
        )

    def _denominator(self, batches: list[Batch], masks: list[Tensor]) -> Tensor:
        """Over ranks too, unless `average_tokens_across_devices` is off; 1 instead of 0, where the sum is 0 as well."""
        if self._args.loss_denominator == "constant":
            return torch.tensor(self._args.loss_denominator_value, device=masks[0].device)
        count = DENOMINATORS[self._args.loss_denominator]
        parts = [count(b["advantages"], mask, sequence_ids(b)) for b, mask in zip(batches, masks, strict=True)]
        total = torch.stack(parts).sum()
        if self._args.average_tokens_across_devices:
            total = self._accelerator.reduce(total, reduction="sum") / self._num_copies
        return total.masked_fill(total == 0, 1)
