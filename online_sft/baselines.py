"""Baselines: what a reward is compared with before it becomes a weight. [P, G] -> [P, G], P prompts, G samples each.

A reward of NaN could not be scored: it takes no part in another sample's baseline. Any baseline that does not look
at the sample's own reward leaves the expected gradient as it is and only changes its variance (docs/algorithm.md,
section 2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "BASELINES",
    "GROUP_BASELINES",
    "Baseline",
    "RunningMean",
    "constant",
    "group_mean",
    "leave_one_out",
    "no_baseline",
]


def no_baseline(rewards: Tensor) -> Tensor:
    """b = 0. Unbiased."""
    return torch.zeros_like(rewards)


def constant(rewards: Tensor, value: float = 0.0) -> Tensor:
    """b = `value`. Unbiased."""
    return torch.full_like(rewards, value)


def leave_one_out(rewards: Tensor) -> Tensor:
    """b_i = mean of the *other* rewards of the group (Kool et al., 2019). Unbiased. 0 where there is no other."""
    others = rewards.nansum(1, keepdim=True) - rewards.nan_to_num()
    num_others = (~rewards.isnan()).sum(1, keepdim=True) - (~rewards.isnan()).int()
    return others / num_others.clamp(min=1)


def group_mean(rewards: Tensor) -> Tensor:
    """b_i = mean of all rewards of the group, the sample's own included (GRPO's, without its division by the spread).

    Scales the reward's gradient by (G-1)/G, so with a KL term it acts like beta G/(G-1). 0 where nothing was scored.
    """
    return rewards.nanmean(1, keepdim=True).nan_to_num().expand_as(rewards)


@dataclass(frozen=True)
class RunningMean:
    """Exponential moving average of the mean rewards of *earlier* batches (Williams, 1992), corrected for its start.

    As a baseline it is unbiased, because it is used before the batch at hand enters it. 0 before the first batch.
    """

    total: float = 0.0  # sum over batches of decay^age times the mean reward
    count: float = 0.0  # sum over batches of decay^age
    decay: float = 0.9

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0

    def __call__(self, rewards: Tensor) -> Tensor:
        return constant(rewards, self.value)

    def after(self, rewards: Tensor) -> "RunningMean":
        """The average once this batch is in it; unchanged by a batch that could not be scored."""
        mean = rewards.nanmean().item()
        if mean != mean:
            return self
        return RunningMean(self.decay * self.total + mean, self.decay * self.count + 1.0, self.decay)


Baseline = Callable[[Tensor], Tensor]
BASELINES: dict[str, Baseline] = {
    "none": no_baseline,
    "constant": constant,
    "leave_one_out": leave_one_out,
    "group_mean": group_mean,
    "running_mean": RunningMean(),  # the trainer keeps one of its own, and saves it with checkpoints
}
GROUP_BASELINES = frozenset({"leave_one_out", "group_mean"})  # compare samples of one prompt: they need at least two
