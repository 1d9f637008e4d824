"""Rewards of groups: over their spread, if asked for, and which groups say nothing.

[P, G]: P prompts, G samples of each; NaN is a reward that could not be given.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["REWARD_SCALES", "degenerate_groups", "scaled_rewards"]

_EPSILON = 1e-4  # TRL's, below any spread that rewards have


def _no_scale(rewards: Tensor) -> Tensor:
    return torch.ones_like(rewards)


def _group_std(rewards: Tensor) -> Tensor:
    return (_variance(rewards, dim=1) ** 0.5 + _EPSILON).expand_as(rewards)


def _batch_std(rewards: Tensor) -> Tensor:
    return (_variance(rewards.flatten(), dim=0) ** 0.5 + _EPSILON).expand_as(rewards)


REWARD_SCALES: dict[str, Callable[[Tensor], Tensor]] = {"none": _no_scale, "group": _group_std, "batch": _batch_std}


def scaled_rewards(rewards: Tensor, scale: str = "none") -> Tensor:
    """r / spread. [P, G] -> [P, G], NaN where the reward is.

    scale: "none" divides by 1; "group" and "batch" by the standard deviation (Bessel's correction, + 1e-4) of the
    prompt's or of all samples, as GRPO does: another objective.
    """
    return rewards / REWARD_SCALES[scale](rewards)


def degenerate_groups(rewards: Tensor, min_std: float = 0.0) -> Tensor:
    """Groups that cannot tell better from worse: a population spread of at most `min_std`, or fewer than two rewards.

    [P, G] -> [P], bool.
    """
    scored = ~rewards.isnan()
    centred = rewards - rewards.nanmean(1, keepdim=True)
    std = (centred.square().nansum(1) / scored.sum(1).clamp(min=1)).sqrt()
    # the mean of equal float32 numbers need not be that number; without a reward the spread is 0
    equal = rewards.nan_to_num(-torch.inf).amax(1) == rewards.nan_to_num(torch.inf).amin(1)
    return equal | (std <= min_std)


def _variance(rewards: Tensor, dim: int) -> Tensor:
    """Unbiased, over what was scored; 0 where that is fewer than two."""
    count = (~rewards.isnan()).sum(dim, keepdim=True)
    squares = (rewards - rewards.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True)
    return squares / (count - 1).clamp(min=1)
