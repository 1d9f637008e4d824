"""Weights for offline data: functions of the rewards of a whole data set and of which rows share a prompt.

    (rewards [N] float, groups [N] int64, parameters) -> weights [N]

`groups` are equal for samples of one prompt. Where a weighting is a softmax, its weights have mean 1, so that the
learning rate means what it meant before.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "WEIGHTINGS",
    "Weighting",
    "advantage_exponential",
    "boltzmann",
    "effective_sample_size",
    "exponential",
    "fit_temperature",
    "parameters_of",
    "rejection",
    "reward",
    "top_k",
    "uniform",
    "weighting_of",
]

Weighting = Callable[..., Tensor]  # (rewards, groups, **parameters) -> weights


def uniform(rewards: Tensor, groups: Tensor) -> Tensor:
    """1: plain SFT on everything."""
    return torch.ones_like(rewards)


def reward(rewards: Tensor, groups: Tensor) -> Tensor:
    """r, of either sign: off-policy REINFORCE without a baseline."""
    return rewards


def rejection(rewards: Tensor, groups: Tensor, *, threshold: float = 0.0) -> Tensor:
    """1 where r > threshold, else 0: rejection sampling (STaR, Zelikman et al., 2022; ReST, Gulcehre et al., 2023)."""
    return (rewards > threshold).to(rewards.dtype)


def top_k(rewards: Tensor, groups: Tensor, *, k: int = 1) -> Tensor:
    """1 for the k best samples of each prompt, the earlier of equals, else 0: RAFT (Dong et al., 2023)."""
    if k < 1 or k != int(k):
        raise ValueError(f"k must be a whole number of samples per prompt, at least 1; got {k}")
    by_reward = rewards.argsort(descending=True, stable=True)
    by_group = by_reward[groups[by_reward].argsort(stable=True)]  # groups together, the best of each first
    _, sizes = groups[by_group].unique_consecutive(return_counts=True)
    rank = torch.arange(len(rewards)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return torch.zeros_like(rewards).index_put_((by_group,), (rank < k).to(rewards.dtype))


def exponential(rewards: Tensor, groups: Tensor, *, temperature: float = 1.0) -> Tensor:
    """N softmax(r / temperature) over all rows: reward-weighted regression (Peters & Schaal, 2007)."""
    return len(rewards) * (rewards / temperature).softmax(0)


def advantage_exponential(
    rewards: Tensor, groups: Tensor, *, temperature: float = 1.0, max_weight: float = 20.0
) -> Tensor:
    """min(exp((r - V) / temperature), max_weight), V the prompt's mean reward: AWR (Peng et al., 2019)."""
    values = _sum_by_group(rewards, groups) / _sum_by_group(torch.ones_like(rewards), groups)
    return ((rewards - values) / temperature).exp().clamp(max=max_weight)


def boltzmann(rewards: Tensor, groups: Tensor, *, temperature: float = 1.0) -> Tensor:
    """exp(r / temperature) / Z(x), Z(x) the mean of exp(r / temperature) over the prompt's G samples.

    Where the samples come from pi_ref, the weighted likelihood is greatest at pi_ref(y|x) exp(r(x, y) / temperature) /
    Z(x), the solution of KL-regularised RLHF with beta = temperature (Rafailov et al., 2023, eq. 4).
    """
    highest = torch.full_like(rewards, -math.inf).scatter_reduce(0, _index(groups), rewards, "amax")[_index(groups)]
    likelihood = ((rewards - highest) / temperature).exp()
    return likelihood * _sum_by_group(torch.ones_like(rewards), groups) / _sum_by_group(likelihood, groups)


WEIGHTINGS: dict[str, Weighting] = {
    "advantage_exponential": advantage_exponential,
    "boltzmann": boltzmann,
    "exponential": exponential,
    "rejection": rejection,
    "reward": reward,
    "top_k": top_k,
    "uniform": uniform,
}


def weighting_of(name: str, parameters: Mapping[str, Any] | None = None) -> Weighting:
    """The weighting of that name with its parameters set.

    Raises:
        ValueError: for a name that is not in `WEIGHTINGS`, or a parameter that it does not have.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}; got {name!r}")
    parameters, known = dict(parameters or {}), parameters_of(name)
    for parameter, value in parameters.items():
        if parameter not in known:
            raise ValueError(f"weighting {name!r} has no parameter {parameter!r}; it has {', '.join(known) or 'none'}")
        if not isinstance(value, (int, float)) or (parameter != "threshold" and not value > 0):
            raise ValueError(f"the {parameter} of weighting {name!r} must be a positive number; got {value!r}")
    return partial(WEIGHTINGS[name], **parameters)


def parameters_of(name: str) -> list[str]:
    """The names of a weighting's parameters."""
    return [p.name for p in inspect.signature(WEIGHTINGS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]


def effective_sample_size(weights: Tensor) -> float:
    """(sum |w|)^2 / sum w^2 (Kish): as many equally weighted samples would tell as much. 0 where all weights are 0."""
    squares = weights.double().square().sum()
    return (weights.double().abs().sum().square() / squares).item() if squares else 0.0


def fit_temperature(weighting: Weighting, rewards: Tensor, groups: Tensor, *, target_ess: float) -> float:
    """The highest temperature at which the effective sample size is `target_ess` of all rows.

    Searched on a grid of its logarithm, from hot to cold, then by bisection: where weights are cut, as in
    `advantage_exponential`, the sample size does not fall all the way.

    Args:
        weighting: one with a `temperature`: exponential, advantage_exponential or boltzmann.
        target_ess: in (0, 1); the colder, the fewer rows count.

    Raises:
        ValueError: when no temperature reaches it, because too many rows have the highest reward.
    """

    def share(log_temperature: float) -> float:
        return effective_sample_size(weighting(rewards, groups, temperature=math.exp(log_temperature))) / len(rewards)

    spread = float((rewards.max() - rewards.min()).item()) or 1.0
    grid = [math.log(spread) + math.log(10) * exponent / 8 for exponent in range(32, -33, -1)]  # spread 1e4 to 1e-4
    shares = [share(x) for x in grid]
    brackets = ((grid[i + 1], grid[i]) for i in range(len(grid) - 1) if shares[i + 1] <= target_ess <= shares[i])
    cold, hot = next(brackets, (math.nan, math.nan))
    if math.isnan(hot):
        raise ValueError(
            f"no temperature gives an effective sample size of {target_ess:g} of the rows: with these rewards it lies "
            f"between {min(shares):.3g} and {max(shares):.3g}; choose target_ess in there"
        )
    for _ in range(60):
        middle = (cold + hot) / 2
        cold, hot = (middle, hot) if share(middle) < target_ess else (cold, middle)
    return math.exp(hot)


def _index(groups: Tensor) -> Tensor:
    return groups.unique(return_inverse=True)[1]


def _sum_by_group(values: Tensor, groups: Tensor) -> Tensor:
    """The sum over each row's group, at each row."""
    index = _index(groups)
    return torch.zeros_like(values).index_add_(0, index, values)[index]
