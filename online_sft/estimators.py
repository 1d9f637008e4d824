"""Proposition 3: online SFT as a gradient estimator of E[r] - beta KL(policy || reference).

Notation of docs/algorithm.md, section 2, for one sampled completion y of prompt x:

    s = log pi(y|x)      s_ref = log pi_ref(y|x)      A = (r - b) - beta (s - s_ref)      w = A / s

All log-probs are sums over the completion's tokens, in nats. Every function maps [B] to [B], one loss per completion:
the caller averages over the completions of the whole optimizer step. The *value* of these losses means nothing; their
gradient is the point.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ESTIMATORS", "Estimator", "advantage", "prop3", "prop3_stable"]


def advantage(
    log_prob: Tensor, ref_log_prob: Tensor | None, reward: Tensor, *, beta: float, baseline: Tensor | float = 0.0
) -> Tensor:
    """Reward above the baseline, less the price of leaving the reference: A = (r - b) - beta (s - s_ref). [B] -> [B].

    Differentiable in `log_prob` (dA = -beta ds); reward, baseline and reference are constants.

    Raises:
        ValueError: when beta > 0 and there is no reference log-prob.
    """
    if beta != 0.0 and ref_log_prob is None:
        raise ValueError(f"beta={beta} needs the reference model's log-probs; pass ref_log_prob or set beta=0")
    adv = (reward - baseline).detach() if isinstance(baseline, Tensor) else reward.detach() - baseline
    if ref_log_prob is None or beta == 0.0:
        return adv
    return adv - beta * (log_prob - ref_log_prob.detach())


def prop3(
    log_prob: Tensor,
    ref_log_prob: Tensor | None,
    reward: Tensor,
    *,
    beta: float,
    baseline: Tensor | float = 0.0,
    denom_eps: float = 1e-2,
    clip_weight_value: float | None = None,
) -> Tensor:
    """Proposition 3 exactly as written: L = -[ w s + sg(w) s^2 / 2 ], w = A / s.

    w in the first term is live: only the second carries the stop-gradient sg. Detaching the first one, a common
    misreading, biases the gradient by 88 % on the test policy (tests/test_estimators.py).

    Args:
        log_prob: s, [B]; the gradient flows into it.
        ref_log_prob: s_ref, [B], constant; None is allowed when beta is 0.
        reward: r, [B], constant.
        beta: price of the KL divergence, reward units per nat.
        baseline: b, [B] or a number, constant; unbiased only if it does not depend on the same completion.
        denom_eps: where |s| is below it, A / s would lose the gradient to rounding (relative error about 1e-7 / |s| in
            float32), so `prop3_stable`, which has the same gradient without a division, is used there.
        clip_weight_value: cuts w to [-c, c], the circulated implementation's way, with -denom_eps for an s nearer to 0.
            Biased wherever it binds.

    Returns:
        [B]; the gradient is -(grad A + sg(A) grad s).
    """
    if clip_weight_value is not None:
        w = advantage(log_prob, ref_log_prob, reward, beta=beta, baseline=baseline) / log_prob.clamp(max=-denom_eps)
        w = w.clamp(-clip_weight_value, clip_weight_value)
        return -(w * log_prob + 0.5 * w.detach() * log_prob.square())
    safe = log_prob.abs() >= denom_eps
    s = torch.where(safe, log_prob, -torch.ones_like(log_prob))  # a harmless divisor where the stable form is taken
    w = advantage(log_prob, ref_log_prob, reward, beta=beta, baseline=baseline) / s
    as_written = -(w * s + 0.5 * w.detach() * s.square())
    return torch.where(safe, as_written, prop3_stable(log_prob, ref_log_prob, reward, beta=beta, baseline=baseline))


def prop3_stable(
    log_prob: Tensor,
    ref_log_prob: Tensor | None,
    reward: Tensor,
    *,
    beta: float,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    """The gradient of Proposition 3 without its division: L = -(A + sg(A) s). Arguments as in `prop3`.

    It is REINFORCE with the KL inside the reward: E[grad L] = -grad(E[r] - beta KL(pi || pi_ref)) when y is sampled
    from pi itself. Split into a pathwise and a score term: arXiv 2512.21852; k1 in the reward: arXiv 2510.01555.
    Exact at s = 0, where the written form is 0/0.
    """
    adv = advantage(log_prob, ref_log_prob, reward, beta=beta, baseline=baseline)
    return -(adv + adv.detach() * log_prob)


Estimator = Callable[..., Tensor]
ESTIMATORS: dict[str, Estimator] = {"prop3": prop3, "prop3_stable": prop3_stable}
