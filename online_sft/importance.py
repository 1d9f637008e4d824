"""Importance weights: what a completion of another policy is worth to the gradient of this one.

The sampler q is an older policy (several updates per batch of completions) or another engine (vLLM). With the ratio
rho = pi(y|x) / q(y|x) of whole completions, E_q[rho f(y)] = E_pi[f(y)] for every f: the estimator keeps its
expectation. Truncating rho exchanges variance for bias (Ionides, 2008); ratios of single tokens leave out that the
tokens before came from q as well.
"""

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["IMPORTANCE_SAMPLING_MODES", "ImportanceSamplingMode", "importance_weights", "reweighted", "sequence_ratio"]

ImportanceSamplingMode = Literal["sequence_truncate", "sequence_mask", "token_truncate", "token_mask", "none"]
IMPORTANCE_SAMPLING_MODES: tuple[str, ...] = get_args(ImportanceSamplingMode)


def sequence_ratio(log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor) -> Tensor:
    """rho = prod_t pi(y_t) / q(y_t) over the tokens of `mask`. [B, T] -> [B], constant."""
    return _log_ratio(log_probs, sampler_log_probs, mask).sum(-1).exp()


def importance_weights(
    log_probs: Tensor,
    sampler_log_probs: Tensor,
    mask: Tensor,
    *,
    mode: ImportanceSamplingMode = "sequence_truncate",
    clip_min: float | None = None,
    clip_max: float | None = None,
) -> Tensor:
    """The weight of each token's log-prob in the gradient. [B, T] -> [B, T], constant: no gradient flows in.

    Args:
        log_probs, sampler_log_probs: of each token under the policy and under its sampler, nats. A sampler's NaN
            (unknown) counts as the policy's own.
        mask: 1 at the tokens that the policy wrote.
        mode: TRL's names. `sequence_*`: every token has its completion's ratio; `token_*`: its own. `*_truncate` cuts
            ratios to [clip_min, clip_max], `*_mask` sets those outside to 0. `none`: all 1.
        clip_min, clip_max: None is no limit.
    """
    log_ratio = _log_ratio(log_probs, sampler_log_probs, mask)
    if mode == "none":
        return torch.ones_like(log_ratio)
    level, limit = mode.split("_")
    ratio = (log_ratio.sum(-1, keepdim=True).expand_as(log_ratio) if level == "sequence" else log_ratio).exp()
    if clip_min is None and clip_max is None:
        return ratio
    inside = partial(torch.clamp, min=clip_min, max=clip_max)
    return inside(ratio) if limit == "truncate" else ratio.masked_fill(inside(ratio) != ratio, 0.0)


def reweighted(log_probs: Tensor, weights: Tensor) -> Tensor:
    """`log_probs` with the gradient of each multiplied by its weight; the values stay. [B, T] -> [B, T]."""
    return log_probs.detach() + weights * (log_probs - log_probs.detach())


def _log_ratio(log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor) -> Tensor:
    unknown = (mask == 0) | sampler_log_probs.isnan()
    return (log_probs - sampler_log_probs).detach().masked_fill(unknown, 0.0)
