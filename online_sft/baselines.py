"""Baselines: what a reward is compared with before it becomes a weight. [P, G] -> [P, G], P prompts, G samples each.

A reward of NaN could not be scored: it takes no part in another sample's baseline. Any baseline that does not look
at the sample's own reward leaves the expected gradient as it is and only changes its variance (docs/algorithm.md,
section 2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = [
    "BASELINES",
    "GROUP_BASELINES",
    "Baseline",
    "OptimalBaseline",
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
    """Mean of earlier batches or steps, the older the less: sum of decay^age x total over sum of decay^age x count.

    As a baseline (reinforcement comparison, Williams, 1992) it is unbiased, because it is used before the batch at hand
    enters it. The first batch, which has none before, is compared with its own other samples.
    """

    total: float = 0.0
    count: float = 0.0
    decay: float = 0.9

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0

    def __call__(self, rewards: Tensor) -> Tensor:
        return constant(rewards, self.value) if self.count else _other_samples(rewards)

    def after(self, total: float, count: float) -> "RunningMean":
        """The mean once a further batch is in it."""
        return replace(self, total=self.decay * self.total + total, count=self.decay * self.count + count)


@dataclass(frozen=True)
class OptimalBaseline:
    """b_i = slope m_i + intercept: of all such baselines the one that had the least variance in earlier steps.

    m_i is the mean of the other rewards of the prompt. The gradient of a completion is -(a - b) grad s, with
    a = r - beta (s - s_ref) - beta, so its variance is E[g (a - b)^2] less what b cannot change, g = |grad s|^2, and
    the best b is the regression of a on m with weights g. With slope 0 that is the optimal constant E[g a] / E[g]
    (Weaver & Tao, 2001); slope 1 is leave-one-out. Where prompts differ in what they earn and groups are large, the
    slope is near 1; right answers that are likely have small g, which draws the intercept towards the rewards of
    others.

    Unbiased: m_i does not know the sample's own reward, and slope and intercept are of earlier steps. The first step,
    which has none before, is compared with its own other samples (`of_other_samples`). Without groups, m_i is a
    constant.

    Args:
        sums: of g, g m, g m^2, g a and g a m over the samples of earlier steps, times decay^age.
    """

    sums: tuple[float, ...] = (0.0,) * 5
    decay: float = 0.9

    @property
    def slope_and_intercept(self) -> tuple[float, float]:
        """The slope is kept between 0 and 1, where samples of a prompt that are alike leave it."""
        g, gm, gmm, ga, gam = self.sums
        mean_m, mean_a = gm / g, ga / g
        variance = gmm / g - mean_m**2
        slope = (gam / g - mean_m * mean_a) / variance if variance > 1e-12 * max(1.0, mean_m**2) else 0.0
        slope = min(max(slope, 0.0), 1.0)
        return slope, mean_a - slope * mean_m

    def __call__(self, rewards: Tensor) -> Tensor:
        if not self.sums[0]:
            return _other_samples(rewards)
        slope, intercept = self.slope_and_intercept
        return slope * self.of_others(rewards) + intercept

    def of_others(self, rewards: Tensor) -> Tensor:
        """m, [P, G]; where a sample has no other, the mean of m."""
        scored = ~rewards.isnan()
        alone = scored.sum(1, keepdim=True) - scored.int() < 1
        mean_m = self.sums[1] / self.sums[0] if self.sums[0] else 0.0
        return leave_one_out(rewards).masked_fill(alone, mean_m)

    def after(self, sums: Sequence[float]) -> "OptimalBaseline":
        """The baseline once the sums of a further step are in it."""
        decayed = (self.decay * old + new for old, new in zip(self.sums, sums, strict=True))
        return replace(self, sums=tuple(decayed))

    @staticmethod
    def of_other_samples(weights: Tensor, values: Tensor) -> Tensor:
        """The optimal constant of the others in a batch: sum_{j != i} g_j a_j / sum_{j != i} g_j. [B], [B] -> [B]."""
        others = (weights.sum() - weights).clamp(min=torch.finfo(weights.dtype).tiny)
        return ((weights * values).sum() - weights * values) / others

    @staticmethod
    def sums_of(weights: Tensor, of_others: Tensor, values: Tensor) -> Tensor:
        """The five sums of g, m and a, each [B]."""
        g, m, a = weights, of_others, values
        return torch.stack([g.sum(), (g * m).sum(), (g * m * m).sum(), (g * a).sum(), (g * a * m).sum()])


def _other_samples(rewards: Tensor) -> Tensor:
    """Mean of all other rewards of the batch."""
    return leave_one_out(rewards.view(1, -1)).view_as(rewards)


Baseline = Callable[[Tensor], Tensor]
BASELINES: dict[str, Baseline] = {
    "none": no_baseline,
    "constant": constant,
    "leave_one_out": leave_one_out,
    "group_mean": group_mean,
    "optimal": OptimalBaseline(),  # of these two the trainer keeps its own, and saves them with checkpoints
    "running_mean": RunningMean(),
}
GROUP_BASELINES = frozenset({"leave_one_out", "group_mean"})  # compare samples of one prompt: they need at least two
